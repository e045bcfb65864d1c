"""The tables of a study as DataFrames, Markdown and CSV, made from its rows.

Scores are percentages, differences points. None means that a number does not apply or is not known. What was
not run says "not run", and † marks rows of an earlier version.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from dulvos.errors import InputError
from dulvos.files import replacing
from dulvos.study.paper import PROTOCOL, TABLE1, table1, table2, table3
from dulvos.study.rows import (
    CURVE,
    NOT_RUN,
    Study,
    all_rows,
    benchmarks,
    frame,
    kind,
    label,
    newest,
    percent,
    remark,
    state,
)

__all__ = ["METHODS", "POINTS", "TITLES", "difference", "failure_frame", "score_curve", "sequence_table",
           "study_table", "summary", "to_markdown", "to_text", "write", "write_tables"]

POINTS = "points"  # the state of a line of differences, after a † if either side has one
METHODS = {"copy": "first mask copied", "colour": "raw colours", "random": "random features",
           "trained": "trained features"}
SCORES = {"J&F": "J&F-Mean", "J mean": "J-Mean", "J recall": "J-Recall", "J decay": "J-Decay",
          "F mean": "F-Mean", "F recall": "F-Recall", "F decay": "F-Decay"}
SIGNED = "{:+z.1f}"
FORMATS = {"difference": SIGNED, "ours": SIGNED, "seconds a frame": "{:.2f}", "CPU hours": "{:.2f}"}
TITLES = {
    "table1": "Table 1: DAVIS-2017 val, J&F in percent",
    "study": "This study: means over objects, in percent",
    "sequences": "J&F in percent: sequences are means over their objects",
    "table2": "Table 2: YouTube-VOS 2018 val, in percent",
    "table3": "Table 3: cost of training",
}


def study_table(rows: pd.DataFrame) -> pd.DataFrame:
    """The scores and the cost of each method, and below each benchmark how much training brought.

    Arguments:
        rows: of one study.
    """
    lines = []
    for data, split in benchmarks(rows) or [(None, None)]:
        picked, start = _methods(rows, data, split), len(lines)
        for method, row in picked.items():
            lines.append({"method": METHODS.get(method, method), **_measured(row), "state": state(row, rows)})
        pair = [picked["trained"], picked["random"]]
        gain, made = difference(*pair), NOT_RUN
        if gain:
            made = "† " * any(state(row, rows).startswith("†") for row in pair) + POINTS
        elif all(row is not None for row in pair):
            made = "not comparable: other data or settings"
        lines.append({"method": "trained - random", **gain, "state": made})
        for line in lines[start:]:
            line["data"] = data and f"{data} {split}"
    return frame(lines, ["data", "method", *SCORES, "sequences", "objects", "frames", "seconds a frame",
                         "threads", "state"])


def _measured(row: pd.Series | None) -> dict:
    if row is None:
        return {}
    try:
        counts = {count: int(row[count]) for count in ("sequences", "objects", "frames")}
        return {**_scores(row), **counts, "seconds a frame": round(float(row["seconds_per_frame"]), 2),
                "threads": int(row["threads"]) if pd.notna(row.get("threads")) else None}
    except (LookupError, TypeError, ValueError) as error:
        raise InputError(f"row evaluate-{row['name']}-{row['key']}.json of study {row['study']!r} lacks a "
                         f"number ({error}); restore it, or delete it to run again") from error


def _scores(row: pd.Series) -> dict[str, float]:
    return {column: percent(row[f"scores.{score}"]) for column, score in SCORES.items()}


def difference(row: pd.Series | None, other: pd.Series | None) -> dict[str, float]:
    """Scores of a row minus those of another, in points; empty if more than the features differs."""
    if row is None or other is None or _setting(row) != _setting(other):
        return {}
    theirs = _scores(other)
    return {column: round(value - theirs[column], 1) for column, value in _scores(row).items()}


def _setting(row: pd.Series) -> list[str]:
    """An evaluation's data and settings; one that came after the row was made had its default."""
    settings = {name: row.get(f"parameters.{name}") for name in PROTOCOL}
    settings = [PROTOCOL[name] if pd.isna(value) else value for name, value in settings.items()]
    return [str(value) for value in (row["data"], row["split"], row.get("fingerprint"), *settings)]


def sequence_table(study: Study) -> pd.DataFrame:
    """J&F of each sequence by method; a benchmark's last line is the mean over all its OBJECTS, its score.

    Selected checkpoints are left out, because some of these sequences selected them.
    """
    rows, blocks = study.rows(), []
    for data, split in benchmarks(rows):
        titles, tables = [], []
        for name, row in _methods(rows, data, split).items():
            if row is not None and remark(row):
                continue
            titles.append(METHODS.get(name, name) + " †" * state(row, rows).startswith("†"))
            if row is not None and (path := study.path(row, "scores", ".csv")).exists():
                tables.append(_read_scores(path, int(row["objects"])).assign(method=titles[-1]))
        if not tables:
            continue
        table = pd.concat(tables).eval("score = 50 * (`J mean` + `F mean`)")
        margin = {"margins": True, "margins_name": "mean over objects"}
        block = table.pivot_table("score", "sequence", "method", **margin)
        block = block.reindex(columns=titles).round(1).astype(object)
        counts = tables[-1].groupby("sequence").size()
        block.insert(0, "objects", [*counts, counts.sum()])
        block = block.where(block.notna(), NOT_RUN).reset_index()
        block.insert(0, "data", f"{data} {split}")
        blocks.append(block)
    empty = frame([], ["data", "sequence", "objects", *METHODS.values()])
    return pd.concat(blocks, ignore_index=True) if blocks else empty


def _read_scores(path: Path, objects: int) -> pd.DataFrame:
    lines = path.read_text().count("\n")
    if lines != objects + 1:  # a head and a whole line for each object
        raise InputError(f"{path}: damaged, {objects} objects were scored and {max(0, lines - 1)} are in it; "
                         "delete it and evaluate again, which takes seconds")
    return pd.read_csv(path)


def score_curve(study: Study) -> pd.DataFrame:
    """J&F against training: a line for each encoder that was evaluated on the way, in the order of training.

    All lines are of one training and one data set, those of the newest such evaluation.
    """
    rows, lines = study.rows(), []
    found = kind(rows, "evaluate")
    found = found[found["name"].str.startswith(CURVE)]
    for column in ("fingerprint", "trained_key"):  # random features, the first point, have no trained_key
        marks = found.get(column, pd.Series(index=found.index, dtype=object)).fillna("")
        found = found[marks.isin(["", *marks[marks != ""].tail(1)])]
    for name, group in found.groupby("name"):
        row = newest(group)
        spent = row.get("training_cpu_seconds")
        lines.append({"iteration": int(name.removeprefix(CURVE)),
                      "CPU hours": 0.0 if pd.isna(spent) else round(spent / 3600, 2),
                      **{score: _scores(row)[score] for score in ("J&F", "J mean", "F mean")},
                      "shorter side": int(row["parameters.shorter_side"]), "state": state(row, rows)})
    return pd.DataFrame(sorted(lines, key=lambda line: line["iteration"]))


def failure_frame(scores: np.ndarray, window: int = 5) -> int:
    """The frame where a mask is lost: the mean of the scores there and after falls most below that before.

    Arguments:
        scores: (T,) float, NaN where a frame has none, such as the first and the last.
        window: how many scores each of the two means takes.
    """
    falls = [np.nanmean(scores[max(t - window, 1): t]) - np.nanmean(scores[t: t + window])
             for t in range(2, len(scores) - 1)]
    return int(np.argmax(falls)) + 2 if falls else 0


def to_text(table: pd.DataFrame) -> pd.DataFrame:
    """A table's cells as they are printed: one decimal, signs on differences, "-" for None."""
    def cell(value: object, column: str, made: str) -> str:
        if value is None or value is pd.NA or isinstance(value, float) and np.isnan(value):
            return "-"
        if isinstance(value, (float, np.floating)):
            signed = column in SCORES and made.removeprefix("† ") == POINTS
            return (SIGNED if signed else FORMATS.get(column, "{:.1f}")).format(value)
        return f"{value:,}" if isinstance(value, (int, np.integer)) else str(value)

    states = table.get("state", [""] * len(table))
    text = {column: [cell(value, column, made) for value, made in zip(table[column], states)]
            for column in table}
    return pd.DataFrame(text, columns=table.columns, dtype=object)


def to_markdown(table: pd.DataFrame) -> str:
    """A table in GitHub's Markdown, with numbers aligned to the right."""
    rules = ["---:" if any(isinstance(value, (int, float, np.number)) for value in table[column]) else "---"
             for column in table]
    lines = [list(table), rules, *to_text(table).to_numpy().tolist()]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def write(table: pd.DataFrame, path: Path, title: str, about: str = "") -> None:
    """Write a table as CSV and, below a title and what it is about, as Markdown; `path` has no suffix."""
    title = f"**{title}.** {about}" if about else f"**{title}**"
    for suffix, text in (("csv", table.to_csv(index=False)), ("md", f"{title}\n\n{to_markdown(table)}")):
        with replacing(path.with_name(f"{path.name}.{suffix}")) as stream:
            stream.write(text.encode())


def write_tables(study: Study, folder: Path | None = None) -> dict[str, pd.DataFrame]:
    """Make every table and write it, by default into the study's folder `tables`."""
    rows = all_rows(study.results)
    made = {"table1": table1(rows), "study": study_table(study.rows()), "sequences": sequence_table(study),
            "table2": table2(rows, study.results), "table3": table3(rows)}
    for name, table in made.items():
        write(table, Path(folder or study.folder / "tables") / name, TITLES[name])
    return made


def summary(study: Study) -> str:
    """What a study found, as plain text for a terminal."""
    table, filled = to_text(study_table(study.rows())), table1(all_rows(study.results))
    filled = filled[filled["ours J&F_m"] != NOT_RUN]
    shown = ["data", "method", "J&F", "J mean", "F mean", "sequences", "objects", "seconds a frame", "state"]
    run = (filled.index < len(TABLE1)).sum()
    lines = [f"study {study.name!r}: {TITLES['study']}", table[shown].to_string(index=False),
             f"paper's Table 1 (DAVIS-2017 val): {run} of its {len(TABLE1)} lines run"]
    lines += [f"  {line['method']}, {line['train data'] or 'no data'}: ours {line['ours J&F_m']:.1f}, "
              f"paper {line['paper J&F_m'] or '-'}" for line in filled.to_dict("records")]
    return "\n".join(lines)


def _methods(rows: pd.DataFrame, data: str | None, split: str | None) -> dict[str, pd.Series | None]:
    """The row that counts for each method: `METHODS`, None for an absent one, then others by their label."""
    found = kind(rows, "evaluate")
    found = found[(found["data"] == data) & (found["split"] == split) & ~found["name"].str.startswith(CURVE)]
    labels = pd.Series([label(row) for _, row in found.iterrows()], found.index, dtype=object)
    return {name: newest(found[labels == name]) for name in [*METHODS, *sorted(set(labels) - set(METHODS))]}
