"""Tables: from result rows, and the paper's numbers, to DataFrames, Markdown and CSV.

Scores are percentages, differences points. None is what does not apply or is not known; what was not run says so.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from dulvos.study import paper, results
from dulvos.errors import InputError
from dulvos.files import replacing
from dulvos.study.paper_tables import PROTOCOL, table1, table2, table3
from dulvos.study.rows import (CURVE, NOT_RUN, all_rows, benchmarks, frame, kind, label, newest, percent, remark, state)

__all__ = ["METHODS", "NOT_RUN", "all_rows", "benchmarks", "difference", "failure_frame", "newest", "run_path"]
__all__ += ["score_curve", "sequence_table", "state", "study_table", "summary", "table1", "table2", "table3", "to_markdown", "to_text", "write_tables"]

POINTS = "points"  # state of a line of differences, after a † where one of the two has one
METHODS = {"copy": "first mask copied", "colour": "raw colours", "random": "random features", "trained": "trained features"}
SCORES = {"J&F": "J&F-Mean", "J mean": "J-Mean", "J recall": "J-Recall", "J decay": "J-Decay", "F mean": "F-Mean",
          "F recall": "F-Recall", "F decay": "F-Decay"}

FORMATS = {"difference": "{:+z.1f}", "seconds a frame": "{:.2f}", "CPU hours": "{:.2f}"}  # other numbers: one decimal, integers as they are
TITLES = {
    "table1": "Table 1: DAVIS-2017 val, J&F in percent",
    "study": "This study: means over objects, in percent",
    "sequences": "J&F in percent: sequences are means over their objects",
    "table2": "Table 2: YouTube-VOS 2018 val, in percent",
    "table3": "Table 3: cost of training",
}


def run_path(row: pd.Series, folder: str, suffix: str = "") -> Path:
    return results.study_folder(row["study"]) / folder / f"{row['name']}-{row['key']}{suffix}"


def study_table(rows: pd.DataFrame) -> pd.DataFrame:
    """A line a method: its scores, on how much, at what cost; below each benchmark what training brought.

    Arguments:
        rows: of one study.
    """
    lines = []
    for data, split in benchmarks(rows) or [(None, None)]:
        picked = _methods(rows, data, split)
        for name, row in picked.items():
            line = {"data": data and f"{data} {split}", "method": METHODS.get(name, name)}
            if row is not None:
                try:
                    line |= {column: percent(row[f"scores.{score}"]) for column, score in SCORES.items()}
                    line |= {column: int(row[column]) for column in ("sequences", "objects", "frames")}
                    line["seconds a frame"] = round(float(row.seconds_per_frame), 2)
                    line["threads"] = int(row.threads) if pd.notna(row.get("threads")) else None
                except (AttributeError, LookupError, TypeError, ValueError) as error:
                    raise InputError(f"row evaluate-{row['name']}-{row['key']}.json of study {row['study']!r} lacks a number "
                                     f"({error}); restore it or delete it to run again") from error
            lines.append({**line, "state": state(row, rows)})
        mark = "† " * any(state(picked[name], rows).startswith("†") for name in ("trained", "random"))
        gain = difference(picked["trained"], picked["random"])
        comparable = gain or picked["trained"] is None or picked["random"] is None
        lines.append({"data": data and f"{data} {split}", "method": "trained - random", **gain,
                      "state": mark + POINTS if gain else NOT_RUN if comparable else "not comparable: other data or settings"})
    columns = ["data", "method", *SCORES, "sequences", "objects", "frames", "seconds a frame", "threads", "state"]
    return frame(lines, columns)


def difference(row: pd.Series | None, other: pd.Series | None) -> dict[str, float]:
    """Scores of a row minus those of another, in points, as the tables show both; empty unless only the features differ."""
    if row is None or other is None:
        return {}
    same = ["data", "split", "fingerprint", *(f"parameters.{name}" for name in PROTOCOL)]
    if any(str(row.get(field)) != str(other.get(field)) for field in same):
        return {}
    points = {column: percent(row[f"scores.{score}"]) - percent(other[f"scores.{score}"]) for column, score in SCORES.items()}
    return {column: round(value, 1) for column, value in points.items()}


def sequence_table(study: str) -> pd.DataFrame:
    """J&F of every sequence (mean over its objects) and method; the last line of a benchmark is the mean over OBJECTS.

    Selected features are left out: some of these sequences chose them.
    """
    rows, blocks = results.read_rows(study), []
    for data, split in benchmarks(rows):
        columns, counts = {}, {}
        for name, row in _methods(rows, data, split).items():
            if row is not None and remark(row):
                continue
            title = METHODS.get(name, name) + " †" * state(row, rows).startswith("†")
            path = None if row is None else run_path(row, "scores", ".csv")
            if path is None or not path.exists():
                columns[title] = pd.Series(dtype=object)
                continue
            table = _read_scores(path, int(row.objects))
            table["J&F"] = 100 * (table["J mean"] + table["F mean"]) / 2
            counts |= table.groupby("sequence").size().to_dict()
            columns[title] = table.groupby("sequence")["J&F"].mean()
            columns[title]["\0"] = table["J&F"].mean()
        if not counts:
            continue
        block = pd.DataFrame(columns, index=[*sorted(counts), "\0"])
        block = block.astype(float).round(1).astype(object)
        block = block.where(block.notna(), NOT_RUN)
        block.insert(0, "data", f"{data} {split}")
        block.insert(1, "sequence", [*sorted(counts), "mean over objects"])
        block.insert(2, "objects", [*(counts[name] for name in sorted(counts)), sum(counts.values())])
        blocks.append(block)
    if not blocks:
        return frame([], ["data", "sequence", "objects", *METHODS.values()])
    return pd.concat(blocks, ignore_index=True)


def score_curve(study: str) -> pd.DataFrame:
    """J&F against training: iteration, CPU hours, J&F, J mean, F mean (percent), state; a line each evaluation on the way, rising.

    The way of one training on one data set: those of the newest evaluation.
    """
    rows, lines = results.read_rows(study), []
    evaluated = kind(rows, "evaluate")
    evaluated = evaluated[evaluated["name"].str.startswith(CURVE)]
    for column in ("fingerprint", "trained_key"):
        marks = evaluated[column].fillna("") if column in evaluated else pd.Series(dtype=object)
        last = marks[marks != ""].tail(1)
        evaluated = evaluated[marks.isin(["", *last])] if len(last) else evaluated
    for name in sorted(set(evaluated["name"]), key=lambda name: int(name[len(CURVE):])):
        row = newest(evaluated[evaluated["name"] == name])
        spent = row.get("training_cpu_seconds")
        lines.append({"iteration": int(name[len(CURVE):]), "CPU hours": 0.0 if pd.isna(spent) else round(spent / 3600, 2),
                      **{column: percent(row[f"scores.{SCORES[column]}"]) for column in ("J&F", "J mean", "F mean")},
                      "shorter side": int(row["parameters.shorter_side"]), "state": state(row, rows)})
    return pd.DataFrame(lines)


def _read_scores(path: Path, objects: int) -> pd.DataFrame:
    lines = path.read_text().count("\n")
    if lines != objects + 1:  # a head, and a line an object, the last one ended
        raise InputError(f"{path}: damaged, {objects} objects were scored and {max(0, lines - 1)} are in it; delete it and evaluate "
                         "again, which takes seconds")
    return pd.read_csv(path)


def failure_frame(scores: np.ndarray, window: int = 5) -> int:
    """Where a video fails: the frame at which the mean of the `window` scores ahead falls most below that of those before.

    Arguments:
        scores: (T,) float, NaN where a frame has none.
    """
    fall = [np.nanmean(scores[max(t - window, 1): t]) - np.nanmean(scores[t: t + window]) for t in range(2, len(scores) - 1)]
    return int(np.argmax(fall)) + 2 if fall else 0


def to_text(table: pd.DataFrame) -> pd.DataFrame:
    """A table's cells as they are printed: one decimal, signs on differences, "-" for what is not there."""
    def cell(value: object, column: str) -> str:
        if value is None or value is pd.NA or isinstance(value, float) and np.isnan(value):
            return "-"
        if isinstance(value, (float, np.floating)):
            return FORMATS.get(column, "{:.1f}").format(value)
        return f"{value:,}" if isinstance(value, (int, np.integer)) else str(value)

    text = {column: [cell(value, column) for value in table[column]] for column in table}
    for place, made in enumerate(table.get("state", ())):
        for column in SCORES.keys() & text.keys() if made.removeprefix("† ") == POINTS else ():
            text[column][place] = f"{table[column].iloc[place]:+z.1f}"
    return pd.DataFrame(text, columns=table.columns, dtype=object)


def to_markdown(table: pd.DataFrame) -> str:
    """A table in GitHub's Markdown, numbers to the right."""
    text = to_text(table)
    right = [any(isinstance(v, (int, float, np.number)) and not isinstance(v, bool) for v in table[column]) for column in table]
    lines = [list(text.columns), ["---:" if numbers else "---" for numbers in right], *text.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def write_tables(study: str, folder: Path | None = None) -> dict[str, pd.DataFrame]:
    """Make every table, and write each as CSV and Markdown to a folder, `results/<study>/tables` unless another is given."""
    rows = all_rows()
    made = {"table1": table1(rows), "study": study_table(results.read_rows(study)), "sequences": sequence_table(study),
            "table2": table2(rows), "table3": table3(rows)}
    folder = results.study_folder(study) / "tables" if folder is None else Path(folder)
    for name, table in made.items():
        _write(folder / f"{name}.csv", table.to_csv(index=False))
        _write(folder / f"{name}.md", f"**{TITLES[name]}**\n\n{to_markdown(table)}")
    return made


def summary(study: str) -> str:
    """What a study found, as plain text for a terminal."""
    rows = results.read_rows(study)
    table = study_table(rows)
    lines = [f"study {study!r}: {TITLES['study']}"]
    for data, block in table.groupby("data", sort=False, dropna=False):
        counts = block.dropna(subset="sequences")
        if len(counts):
            one = counts.iloc[0]
            lines.append(f"{data}: {one.sequences} sequences, {one.objects} objects, {one.frames} frames")
        shown = to_text(block)[["method", "J&F", "J mean", "J recall", "F mean", "F recall", "seconds a frame", "state"]]
        lines += ["  " + line for line in shown.to_string(index=False).splitlines()]
    filled = table1(all_rows())
    filled = filled[filled["ours J&F_m"] != NOT_RUN]
    run = (filled.index < len(paper.TABLE1)).sum()
    lines.append(f"paper's Table 1 (DAVIS-2017 val): {run} of its {len(paper.TABLE1)} lines run")
    lines += [f"  {line.method}, {line['train data'] or 'no data'}: ours {line['ours J&F_m']:.1f}, "
              f"paper {line['paper J&F_m'] or '-'}" for _, line in filled.iterrows()]
    return "\n".join(lines)


def _methods(rows: pd.DataFrame, data: str | None, split: str | None) -> dict[str, pd.Series | None]:
    """The row that counts for each method on a benchmark: the usual ones first, absent ones None, others by their label."""
    evaluated = kind(rows, "evaluate")
    evaluated = evaluated[(evaluated["data"] == data) & (evaluated["split"] == split)]
    evaluated = evaluated[~evaluated["name"].str.startswith(CURVE)]
    labels = pd.Series([label(row) for _, row in evaluated.iterrows()], evaluated.index, dtype=object)
    names = [*METHODS, *sorted(set(labels) - set(METHODS))]
    return {name: newest(evaluated[labels == name]) for name in names}


def _write(path: Path, text: str) -> None:
    with replacing(path) as stream:
        stream.write(text.encode())
