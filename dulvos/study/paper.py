"""The paper's Tables 1, 2 and 3, from the CSV files beside this module, with columns for our results.

Only whole runs of the paper's own protocol count as "ours". Scores are percentages. All functions take the
rows of all studies.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd

from dulvos.inference import SegmentSettings
from dulvos.released import RELEASES
from dulvos.study.collections import SOURCES, paper_settings
from dulvos.study.rows import NOT_RUN, Study, frame, has, newest, percent, remark, state, training
from dulvos.training import NO_NUMBERS

__all__ = ["DAVIS_2017_VAL", "IMAGENET", "OURS", "PROTOCOL", "RANDOM", "SEED_DEVIATION", "SELECTED_LAYERS",
           "SELECTED_ON", "TABLE1", "TABLE2", "TABLE3", "WEIGHTS", "YOUTUBE_VOS_VALID", "method_name",
           "read_csv", "table1", "table2", "table3"]

OURS = "Ours"  # the paper's own method, as its tables call it
RANDOM = "Random initialisation"
IMAGENET = "ImageNet ResNet-18 (supervised)"  # a line of ours
WEIGHTS = "released weights"
SEED_DEVIATION = 0.42  # J&F on DAVIS-2017 val over 5 training runs, Sec. 4.3
SELECTED_ON = 5  # DAVIS-2017 val sequences, unnamed, on which the authors chose snapshots, App. B
SELECTED_LAYERS = ("key", "res4")  # the layers among which the release chose
DAVIS_2017_VAL = {"sequences": 30, "objects": 61, "frames": 1999}
YOUTUBE_VOS_VALID = {"sequences": 474}  # 2018 val, Sec. 4.2

# What the paper fixes at inference (anything else is another experiment), and what a training may choose.
PROTOCOL = {field.name: field.default for field in dataclasses.fields(SegmentSettings)
            if field.name not in ("precision", "protocol")}
FREE = ("seed", "precision", *NO_NUMBERS)

# The lines of features that were not trained here: method, data, and how they differ from the paper's line.
LINES = {"random": (RANDOM, None, ""), "imagenet": (IMAGENET, "ImageNet", ""),
         **{name: (release.method, release.data, WEIGHTS) for name, release in RELEASES.items()}}


def read_csv(name: str | Path) -> pd.DataFrame:
    """A CSV file, by its name if it lies beside this module; None stands for an empty cell."""
    table = pd.read_csv(Path(__file__).parent / name).astype(object)  # object keeps whole numbers beside None
    return table.where(table.notna(), None)


TABLE1 = read_csv("table1.csv")  # DAVIS-2017 val at 480p; stride 4 is the paper's "×2"
TABLE2 = read_csv("table2.csv")  # YouTube-VOS 2018 val, scored by its server
TABLE3 = read_csv("table3.csv")  # cost of training, on one A100; a rival has the data of the line below it


def method_name(method: str) -> str:
    """The name of a method of the paper in our tables, where "Ours" would mean this study."""
    return "the paper's method" if method == OURS else method


def table1(rows: pd.DataFrame) -> pd.DataFrame:
    """Table 1 (Sec. 4.1): each line of the paper's, then lines for results that belong to none of them.

    "Ours" is an evaluation of the whole of DAVIS-2017 val at full size with the paper's propagation. Its
    features are random, the released weights of CRW, or the last of a training on the line's data with the
    paper's settings. The lines below hold the authors' weights, shorter trainings, incomplete data, selected
    snapshots, and ImageNet features.
    """
    found = _by_line(rows, {"kind": "evaluate", "data": "DAVIS-2017", "split": "val", **DAVIS_2017_VAL})
    papers = TABLE1.to_dict("records")
    wanted = [(line, "", WEIGHTS if line["method"] == "CRW" else "") for line in papers]
    used = {(line["method"], line["data"], what) for line, _, what in wanted}
    imagenet = dict.fromkeys(TABLE1) | {"method": IMAGENET, "data": "ImageNet", "stride": 8}
    for line in [*papers, imagenet]:
        wanted += [(line, f", {what}" if what else "", what) for method, data, what in sorted(found, key=str)
                   if (method, data) == (line["method"], line["data"]) and (method, data, what) not in used]
    lines = []
    for line, apart, what in wanted:
        row, theirs = found.get((line["method"], line["data"], what)), line["J&F_m"]
        ours = None if row is None else percent(row["scores.J&F-Mean"])
        lines.append({
            "method": method_name(line["method"]) + apart, "train data": line["data"],
            "stride": line["stride"], **{f"paper {score}": line[score] for score in TABLE1.columns[5:]},
            "ours J&F_m": NOT_RUN if ours is None else ours,
            "difference": None if ours is None or theirs is None else round(ours - theirs, 1),
            "state": state(row, rows) + ("" if row is None else f" (study {row['study']})")})
    return frame(lines, list(lines[0]))


def table2(rows: pd.DataFrame, results: Path) -> pd.DataFrame:
    """Table 2 (Sec. 4.2): only the benchmark's server can score it, so "state" names the submissions to send.

    Runs on the local split are left out, because their scores are not the server's.

    Arguments:
        results: the folder that holds the studies.
    """
    found = _by_line(rows, {"kind": "youtube-vos", "split": "valid", "every_frame": True, **YOUTUBE_VOS_VALID})
    lines = []
    for line in TABLE2.to_dict("records"):
        made = []
        for (method, data, what), row in found.items():
            if (method, data) == (line["method"], line["data"]):
                path = Study(row["study"], results).path(row, "masks") / "submission.zip"
                there = f"submit results/{path.relative_to(results)}"
                made.append(f"{state(row, rows)}{what and f' ({what})'}: "
                            f"{there if path.is_file() else 'its masks are not on this machine'}")
        lines.append({"method": method_name(line["method"]), "train data": line["data"],
                      **{f"paper {score}": line[score] for score in TABLE2.columns[3:]},
                      "state": "; ".join(made) or NOT_RUN})
    return frame(lines, list(lines[0]))


def table3(rows: pd.DataFrame) -> pd.DataFrame:
    """Table 3, the cost of training: ours beside the paper's, then our other trainings."""
    trained, lines, used = rows[rows["kind"] == "train"], [], []
    ours = trained[np.array([_length(row) == "" for _, row in trained.iterrows()], bool)]
    for line in TABLE3.to_dict("records"):
        row = newest(ours[ours["data"] == line["data"]]) if line["method"] == OURS else None
        used += [] if row is None else [row["key"]]
        lines.append({"method": method_name(line["method"]), "train data": line["data"],
                      "paper iterations": line["iterations"], "paper time": line["time"],
                      "paper memory (GB)": line["memory (GB)"], **_cost(row), "state": state(row, rows)})
    for _, group in trained.groupby(["study", "name"]):
        row = newest(group)
        if row["key"] not in used:
            lines.append({"method": f"{row['name']} (study {row['study']})", "train data": row["data"],
                          **_cost(row), "state": state(row, rows)})
    return frame(lines, list(lines[0]))


def _cost(row: pd.Series | None) -> dict:
    if row is None:
        return {"our iterations": NOT_RUN, "our time": None, "our peak memory (MB)": None, "device": None}
    minutes, device = row["seconds"] / 60, row["device"]
    if device.startswith("cpu"):
        device += f", {int(row['threads'])} threads"
    elif isinstance(row.get("gpu"), str):
        device = row["gpu"]
    return {"our iterations": int(row["iterations"]),
            "our time": f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h",
            "our peak memory (MB)": round(row["peak_memory_mb"]), "device": device}


def _by_line(rows: pd.DataFrame, wanted: dict) -> dict[tuple, pd.Series]:
    """The newest evaluation with the paper's propagation for each line: method, data, what sets it apart."""
    found: dict[tuple, list[pd.Series]] = {}
    for _, row in rows[rows.reindex(columns=[*wanted]).eq([*wanted.values()]).all(axis=1)].iterrows():
        features, chosen, made = row["features"], remark(row), training(row, rows)
        line, layers = LINES.get(features), SELECTED_LAYERS if chosen else (PROTOCOL["layer"],)
        if features in RELEASES:  # with the layer that it was made for
            layers = (RELEASES[features].layer,)
        if made is not None and (length := _length(made)) is not None:
            miscounted = made.get("miscounted")
            size = "data of another size" if isinstance(miscounted, list) and miscounted else ""
            line = OURS, made["data"], ", ".join(filter(None, [length, size, chosen]))
        if line and any(has(row, {**PROTOCOL, "layer": layer}) for layer in layers):
            found.setdefault(line, []).append(row)
    return {line: newest(pd.DataFrame(group)) for line, group in found.items()}


def _length(made: pd.Series) -> str | None:
    """How long a training with the paper's settings ran: "" for the whole schedule, or "released length".

    None means other settings, another length, or data on which the paper did not train.
    """
    name = {source.title: name for name, source in SOURCES.items() if source.epochs}.get(made["data"])
    if name and pd.notna(made.get("videos")):
        for released, what in ((False, ""), (True, "released length")):
            expected = dataclasses.asdict(paper_settings(name, int(made["videos"]), released=released))
            if has(made, {setting: value for setting, value in expected.items() if setting not in FREE}):
                return what
    return None
