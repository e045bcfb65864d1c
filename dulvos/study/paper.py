"""The paper's Tables 1, 2 and 3 (CSV files beside this module), with columns for our results.

Only whole runs of the paper's own protocol count as "ours". Scores are percentages. `rows` are those of all
studies.
"""

import dataclasses
from pathlib import Path

import pandas as pd

from dulvos.encoder import STRIDE
from dulvos.errors import InputError
from dulvos.inference import SegmentSettings
from dulvos.released import RELEASES
from dulvos.study.collections import SOURCES, paper_settings
from dulvos.study.download import ARCHIVES
from dulvos.study.rows import (
    NOT_RUN,
    Study,
    complete,
    counting,
    frame,
    has,
    lookup,
    newest,
    percent,
    remark,
    state,
    training,
)
from dulvos.training import NO_NUMBERS, TrainSettings

__all__ = ["DAVIS_2017_VAL", "IMAGENET", "OURS", "PROTOCOL", "RANDOM", "SEED_DEVIATION", "SELECTED_LAYERS",
           "SELECTED_ON", "TABLE1", "TABLE2", "TABLE3", "WEIGHTS", "YOUTUBE_VOS_VALID", "of_table",
           "read_csv", "table1", "table2", "table3", "trained_with"]

OURS = "the paper's method"
RANDOM = "Random initialisation"
IMAGENET = "ImageNet ResNet-18"  # a line of ours
WEIGHTS = "released weights"
SEED_DEVIATION = 0.42  # J&F on DAVIS-2017 val over 5 training runs, Sec. 4.3
SELECTED_ON = 5  # sequences of DAVIS-2017 val on which the authors chose snapshots (App. B, not named there)
SELECTED_LAYERS = ("key", "res4")  # the layers that the release chose from
DAVIS_2017_VAL = ARCHIVES["davis2017"].counts["val"]
YOUTUBE_VOS_VALID = {"sequences": 474}  # 2018 val, Sec. 4.2
WHOLE = {1: {"kind": "evaluate", "data": "DAVIS-2017", "split": "val", **DAVIS_2017_VAL},
         2: {"kind": "youtube-vos", "split": "valid", "every_frame": True, **YOUTUBE_VOS_VALID}}

# Settings of inference that the paper fixes, and settings of training that may differ from the paper's.
PROTOCOL = {field.name: field.default for field in dataclasses.fields(SegmentSettings)
            if field.name not in ("precision", "protocol")}
FREE = ("seed", "precision", *NO_NUMBERS)

# The line in Table 1 of features that were not trained here, by its KEYS, and the layer that they need.
KEYS = ["method", "train data", "apart"]  # apart: how a line of ours differs from the paper's, or ""
LINES = {"random": (RANDOM, None, "", "res4"), "imagenet": (IMAGENET, "ImageNet", "supervised", "res4"),
         **{name: (release.method, release.data, WEIGHTS, release.layer)
            for name, release in RELEASES.items()}}


def read_csv(name: str | Path) -> pd.DataFrame:
    """Read a CSV file beside this module, or any other by its path; None stands for an empty cell.

    Raises:
        InputError: the file is no CSV, such as one with an unquoted comma in a cell.
    """
    path = Path(__file__).parent / name
    try:
        return frame(pd.read_csv(path))
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


TABLE1 = read_csv("table1.csv")  # DAVIS-2017 val at 480p; stride 4 is the paper's "×2"
TABLE2 = read_csv("table2.csv")  # YouTube-VOS 2018 val, scored by its server
TABLE3 = read_csv("table3.csv")  # cost of training, on one A100


def table1(rows: pd.DataFrame) -> pd.DataFrame:
    """Table 1 (Sec. 4.1): the paper's lines, then our results that fit none of these lines.

    "Ours" is an evaluation of all of DAVIS-2017 val at full size with the paper's propagation. On a line of
    the paper, its features are random, the released weights of CRW, or the last checkpoint of a training on
    that line's data with the paper's settings. Lines of their own show the authors' weights, shorter
    trainings, incomplete data, selected snapshots, and ImageNet features.
    """
    found = _by_line(rows, 1)
    ours = frame([{**dict(zip(KEYS, line)), "ours J&F_m": percent(row["scores.J&F-Mean"]),
                   "state": f"{state(row, rows)} (study {row['study']})"} for line, row in found.items()],
                 [*KEYS, "ours J&F_m", "state"])
    # CRW's line is compared with its released weights; lines of ours that match none of the paper's follow
    papers = TABLE1.assign(apart=TABLE1["method"].map({"CRW": WEIGHTS}).fillna(""))
    table = pd.concat([papers, ours])[KEYS].drop_duplicates(ignore_index=True)
    table = table.merge(TABLE1, "left", KEYS[:2]).merge(ours, "left", KEYS)
    theirs = pd.to_numeric(table["paper J&F_m"])
    table["difference"] = (pd.to_numeric(table["ours J&F_m"]) - theirs).round(1)
    table = table.fillna({"stride": STRIDE, "ours J&F_m": NOT_RUN, "state": NOT_RUN})
    table.loc[len(TABLE1):, "method"] += ", " + table["apart"]
    scores = [column for column in TABLE1 if column.startswith("paper")]
    return frame(table, ["method", "train data", "stride", *scores, "ours J&F_m", "difference", "state"])


def table2(rows: pd.DataFrame, results: Path) -> pd.DataFrame:
    """Table 2 (Sec. 4.2). Only the benchmark's server can score it, so "state" names the files to submit.

    Arguments:
        results: the folder that holds the studies.
    """
    made: dict[tuple, list[str]] = {}
    for (*line, apart), row in _by_line(rows, 2).items():
        path = Study(row["study"], results).path(row, "masks") / "submission.zip"
        there = f"submit results/{path.relative_to(results)}" if path.is_file() else "its masks are not here"
        made.setdefault(tuple(line), []).append(f"{state(row, rows)}{apart and f' ({apart})'}: {there}")
    lines = zip(TABLE2["method"], TABLE2["train data"])
    table = TABLE2.assign(state=["; ".join(made.get(line, [NOT_RUN])) for line in lines])
    return table.drop(columns="supervised")


def table3(rows: pd.DataFrame) -> pd.DataFrame:
    """Table 3, the cost of training: ours beside the paper's, then our other trainings."""
    trained = counting(rows[rows["kind"] == "train"], ["study", "name"]).sort_values(["study", "name"])
    lines, shown = [], []
    for line in TABLE3.to_dict("records"):
        row = None
        if line["method"] == OURS:
            own = trained[trained["data"] == line["train data"]]
            whole = [_length(made) == "" and not lookup(made, "miscounted") for _, made in own.iterrows()]
            row = newest(own.loc[whole])
            shown += [] if row is None else [row.name]
        lines.append({**line, **_cost(row, rows)})
    lines += [{"method": f"{row['name']} (study {row['study']})", "train data": row["data"],
               **_cost(row, rows)} for _, row in trained.drop(index=shown).iterrows()]
    return frame(lines, [*TABLE3, "our iterations", "our time", "our peak memory (MB)", "device", "state"])


def _cost(row: pd.Series | None, rows: pd.DataFrame) -> dict:
    if row is None:
        return {"our iterations": NOT_RUN, "state": NOT_RUN}
    with complete(row):
        minutes, threads = row["seconds"] / 60, int(row["threads"])
        device = lookup(row, "gpu") or row["device"]
        if row["device"].startswith("cpu"):
            device = f"cpu, {threads} thread{'s' * (threads != 1)}"
        return {"our iterations": int(row["iterations"]),
                "our time": f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h",
                "our peak memory (MB)": round(row["peak_memory_mb"]), "device": device,
                "state": state(row, rows)}


def of_table(rows: pd.DataFrame, table: int) -> pd.DataFrame:
    """The evaluations on the whole of the data of Table 1 or 2 with the paper's propagation, at any layer."""
    wanted = WHOLE[table]
    rows = rows[rows.reindex(columns=[*wanted]).eq([*wanted.values()]).all(axis=1)]
    settings = {name: value for name, value in PROTOCOL.items() if name != "layer"}
    return rows.loc[[has(row, settings) for _, row in rows.iterrows()]]


def _by_line(rows: pd.DataFrame, table: int) -> dict[tuple, pd.Series]:
    """The evaluation that counts for each line of a table, by its `KEYS`."""
    found: dict[tuple, list[pd.Series]] = {}
    for _, row in of_table(rows, table).iterrows():
        made, chosen = training(row, rows), remark(row)
        *line, layer = LINES.get(row["features"], (None, None, "", "res4"))
        if made is not None and (length := _length(made)) is not None:
            size = "data of another size" if lookup(made, "miscounted") else ""
            line = OURS, made["data"], ", ".join(filter(None, [length, size, chosen]))
        layers = SELECTED_LAYERS if chosen else [layer]
        if line[0] and lookup(row, "parameters.layer") in layers:
            found.setdefault(tuple(line), []).append(row)
    return {line: newest(pd.DataFrame(found[line])) for line in sorted(found, key=str)}


def _length(made: pd.Series) -> str | None:
    """How long a training with the paper's settings ran: "" for the whole schedule, or "released length".

    None for other settings, another length, or data that the paper did not train on.
    """
    name = {source.title: name for name, source in SOURCES.items() if source.epochs}.get(made["data"])
    if name and pd.notna(made.get("videos")):
        for released in (False, True):
            if trained_with(made, paper_settings(name, int(made["videos"]), released=released)):
                return "released length" * released
    return None


def trained_with(made: pd.Series, settings: TrainSettings) -> bool:
    """Whether a training had these settings; its seed, precision and what changes no number may differ."""
    wanted = dataclasses.asdict(settings)
    return has(made, {name: value for name, value in wanted.items() if name not in FREE})
