"""The paper's Tables 1, 2 and 3 with ours beside: only whole runs of its own protocol stand there.

Scores are percentages, differences points. None is what does not apply or is not known; what was not run says so.
"""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pandas as pd

from dulvos.study import paper, results
from dulvos.released import RELEASES
from dulvos.study.collections import SOURCES, paper_settings
from dulvos.inference import SegmentSettings
from dulvos.study.rows import NOT_RUN, frame, has, kind, label, newest, percent, remark, state, training
from dulvos.training import NO_NUMBERS, TrainSettings

__all__ = ["METHOD", "PROTOCOL", "probes", "table1", "table2", "table3"]

# what the paper's protocol and method fix; whatever departs from it is another experiment, not a row of these tables
PROTOCOL = {name: getattr(SegmentSettings(), name) for name in ("layer", "context", "radius", "topk", "tau", "shorter_side")}
METHOD = {name: getattr(TrainSettings(), name) for name in (
    "batch", "frames", "crop", "ordered", "photometric", "view_scale", "view_flip", "grid", "cross_grid", "tau", "lam", "jitter",
    "second_forward", "alignment", "dim", "norm")}
SHORT = "released length"  # trained as long as the authors' snapshot, not to the end of the schedule
WEIGHTS = "released weights"
MISCOUNTED = "data of another size"
IMAGENET = "ImageNet ResNet-18 (supervised)"
FREE = ("seed", "precision", "compile", *NO_NUMBERS)  # settings that a training may have of its own
ESTIMATE = 50  # iterations of a probe from which a cost is estimated


def table1(rows: pd.DataFrame) -> pd.DataFrame:
    """The paper's Table 1 (Sec. 4.1), one line for each of its own; below, what it has no line for.

    "ours" is filled by evaluations of DAVIS-2017 val, all 30 sequences at full size with the paper's propagation: of random
    features; of a training with the paper's settings, to the end of its schedule, on the line's own data; of CRW's released
    weights. The last lines, where there are runs: the authors' released weights, trainings of their length or on data of
    another size, what was selected on validation sequences, ImageNet features.

    Arguments:
        rows: of all studies.
    """
    whole = [row for _, row in kind(rows, "evaluate").iterrows() if row["data"] == "DAVIS-2017" and row["split"] == "val"
             and has(row, _protocol(row)) and all(row[unit] == paper.DAVIS_2017_VAL[unit] for unit in ("sequences", "objects"))]
    lines, others = [], []
    for _, line in paper.TABLE1.iterrows():
        lines.append(_line1(line, _label(line.method), [row for row in whole if _origin(row, rows) == _wanted(line)], rows))
        apart = [(what, row) for row in whole for method, data, what in [_origin(row, rows)]
                 if method == line.method == paper.OURS and data == line["data"] and what]
        for what in sorted({what for what, _ in apart}):
            others.append(_line1(line, f"{_label(line.method)}, {what}", [row for other, row in apart if other == what], rows))
    fitting = [row for row in whole if row["features"] == "imagenet"]
    nothing = pd.Series({**dict.fromkeys(paper.TABLE1, None), "data": "ImageNet", "stride 4": False}, dtype=object)
    others += [_line1(nothing, IMAGENET, fitting, rows)] if fitting else []
    return frame(lines + others, list(lines[0]))


def table2(rows: pd.DataFrame) -> pd.DataFrame:
    """The paper's Table 2 (Sec. 4.2): its server alone scores; what is ready to hand in says where it lies.

    The last lines are our runs on the local split, whose scores are no numbers of this table and stand in columns of their own.

    Arguments:
        rows: of all studies.
    """
    ours, lines = kind(rows, "youtube-vos"), []
    ready = [row for _, row in ours[ours["split"] == "valid"].iterrows()
             if has(row, _protocol(row)) and row["sequences"] == paper.YOUTUBE_VOS_VALID and row["every_frame"]]
    for _, line in paper.TABLE2.iterrows():
        fitting = [] if line.supervised else [row for row in ready if _origin(row, rows)[:2] == _wanted(line)[:2]]
        lines.append({"method": _label(line.method), "train data": line["data"],
                      **{f"paper {score}": line[score] for score in paper.TABLE2.columns[3:]},
                      "state": "; ".join(dict.fromkeys(_handed_in(row, rows) for row in fitting)) or NOT_RUN})
    local = ours[ours["split"] == "local"]
    for (study, name), group in local.groupby(["study", "name"], sort=True):
        row = newest(group)
        lines.append({"method": f"{label(row)} (study {study})", "train data": None,
                      **{f"local {score}": percent(row[f"scores.{score}"]) for score in paper.TABLE2.columns[3:]},
                      "state": f"{state(row, rows)}: {row['data']}, not the server's"})
    columns = [*lines[0]]
    extra = [] if local.empty else [f"local {score}" for score in paper.TABLE2.columns[3:]]
    return frame(lines, [*columns[:-1], *extra, columns[-1]])


def table3(rows: pd.DataFrame) -> pd.DataFrame:
    """The paper's Table 3 with our trainings beside; those on other data or at other settings have lines of their own.

    Where a line was not run but probed (`dulvos.study.machine.training_probe`), it holds an estimate that says so.

    Arguments:
        rows: of all studies.
    """
    trained, lines = kind(rows, "train"), []
    ours = trained[np.array([_schedule(row) == "" for _, row in trained.iterrows()], bool)]
    used, probed = set(), probes()
    for _, line in paper.TABLE3.iterrows():
        row = newest(ours[ours["data"] == line["data"]]) if line.method == paper.OURS else None
        used |= set() if row is None else {row.key}
        cost = _estimate(probed[line["data"]]) if row is None and line.method == paper.OURS and line["data"] in probed \
            else _cost(row, rows)
        lines.append({"method": _label(line.method), "train data": line["data"], "paper iterations": line.iterations,
                      "paper time": line.time, "paper memory (GB)": line["memory (GB)"], **cost})
    for (study, name), group in trained.groupby(["study", "name"], sort=True):
        row = newest(group)
        if row.key not in used:
            lines.append({"method": f"{name} (study {study})", "train data": row["data"], **_cost(row, rows)})
    return frame(lines, list(lines[0]))


def probes() -> dict[str, dict]:
    """The longest probe of each data set at the paper's settings, of 50 iterations at least, by the data's name."""
    found = {}
    for path in sorted(results.RESULTS.glob("*/probes/*.json")):
        probe = json.loads(path.read_text())
        if probe["probed"] >= ESTIMATE and all(probe["parameters"].get(name) == value for name, value in METHOD.items()):
            found[probe["data"]] = max(probe, found.get(probe["data"], probe), key=lambda one: one["probed"])
    return found


def _line1(line: pd.Series, method: str, fitting: list[pd.Series], rows: pd.DataFrame) -> dict:
    row = newest(pd.DataFrame(fitting))
    ours = NOT_RUN if row is None else percent(row["scores.J&F-Mean"])
    known = row is not None and line["J&F_m"] is not None
    return {"method": method, "train data": line["data"], "stride": 4 if line["stride 4"] else 8,
            **{f"paper {score}": line[score] for score in ("J_m", "J_r", "F_m", "F_r", "J&F_m")}, "ours J&F_m": ours,
            "difference": round(ours - line["J&F_m"], 1) if known else None,
            "state": state(row, rows) if row is None else f"{state(row, rows)} (study {row['study']})"}


def _wanted(line: pd.Series) -> tuple[str, str | None, str]:
    """What `_origin` gives for an evaluation that belongs to a line of the paper's."""
    return line["method"], line["data"], WEIGHTS if line["method"] == "CRW" else ""


def _origin(row: pd.Series, rows: pd.DataFrame) -> tuple[str, str | None, str]:
    """(method, data, remark) of the features of an evaluation; ("", None, "") where they belong to no line."""
    features = row["features"]
    if features == "random":
        return paper.RANDOM, None, ""
    if features in RELEASES:
        return RELEASES[features].method, RELEASES[features].data, WEIGHTS
    made = training(row, rows)
    schedule = None if made is None else _schedule(made)
    if schedule is None:
        return "", None, ""
    miscounted = made.get("miscounted")
    apart = [schedule, MISCOUNTED if isinstance(miscounted, list) and miscounted else "", remark(row)]
    return paper.OURS, made["data"], ", ".join(filter(None, apart))


def _schedule(made: pd.Series) -> str | None:
    """Of a training with the paper's settings for its data: "" at the end of the schedule, SHORT where the authors took their snapshot.

    None of any other: other settings, another length, data that the paper did not train on.
    """
    name = next((name for name, source in SOURCES.items() if source.title == made["data"] and source.schedule), None)
    videos = made.get("videos")
    if name is None or pd.isna(videos):
        return None
    for released, what in ((False, ""), (True, SHORT)):
        expected = dataclasses.asdict(paper_settings(name, int(videos), released=released))
        if has(made, {name: value for name, value in expected.items() if name not in FREE}):
            return what
    return None


def _protocol(row: pd.Series) -> dict:
    """The paper's settings of inference, with the layer that released weights use, or that was selected."""
    release, layer = RELEASES.get(row["features"]), row.get("parameters.layer")
    if release:
        return {**PROTOCOL, "layer": release.layer}
    return {**PROTOCOL, "layer": layer} if remark(row) and layer in paper.SELECTED_LAYERS else PROTOCOL


def _label(method: str) -> str:
    return "the paper's method" if method == paper.OURS else method


def _handed_in(row: pd.Series, rows: pd.DataFrame) -> str:
    path, what = results.study_folder(row["study"]) / "masks" / f"{row['name']}-{row['key']}" / "submission.zip", _origin(row, rows)[2]
    there = f"hand in results/{path.relative_to(results.RESULTS)}" if path.is_file() else "its masks are not on this machine"
    return f"{state(row, rows)}{f' ({what})' if what else ''}: {there}"


def _cost(row: pd.Series | None, rows: pd.DataFrame) -> dict:
    if row is None:
        return {"our iterations": NOT_RUN, "our time": None, "our peak memory (MB)": None, "device": None, "state": NOT_RUN}
    gpu = row.get("gpu") if isinstance(row.get("gpu"), str) else str(row.device)
    device = f"{row.device}, {int(row.threads)} threads" if str(row.device).startswith("cpu") else gpu
    return {"our iterations": int(row.iterations), "our time": _duration(row.seconds),
            "our peak memory (MB)": round(row.peak_memory_mb), "device": device, "state": state(row, rows)}


def _estimate(probe: dict) -> dict:
    return {"our iterations": probe["iterations"], "our time": f"{_duration(probe['seconds'])} (estimate)",
            "our peak memory (MB)": round(probe["peak_memory_mb"]), "device": probe["device"],
            "state": f"{NOT_RUN}: an estimate from {probe['probed']} iterations"}


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
