"""The tables of a study as DataFrames, Markdown and CSV, made from its rows.

Scores are percentages, differences are points. None means that a number does not apply or is not known. "not
run" marks what is missing, and † marks rows of an earlier version.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from dulvos.errors import InputError
from dulvos.files import replacing
from dulvos.study.paper import PROTOCOL, table1, table2, table3
from dulvos.study.rows import (
    CURVE,
    NOT_RUN,
    Study,
    all_rows,
    benchmarks,
    frame,
    label,
    lookup,
    newest,
    percent,
    remark,
    state,
)

__all__ = ["METHODS", "POINTS", "TITLES", "failure_frame", "score_curve", "sequence_table", "study_table",
           "summary", "to_markdown", "to_text", "write", "write_tables"]

POINTS = "points"  # the state of a line of differences, after a † if either side has one
METHODS = {"copy": "first mask copied", "colour": "raw colours", "random": "random features",
           "trained": "trained features"}
LABELS = {**METHODS, "davis2016": "shipped weights"}
SCORES = {"J&F": "J&F-Mean", "J mean": "J-Mean", "J recall": "J-Recall", "J decay": "J-Decay",
          "F mean": "F-Mean", "F recall": "F-Recall", "F decay": "F-Decay"}
SIGNED = "{:+z.1f}"
FORMATS = {"difference": SIGNED, "ours": SIGNED, "seconds a frame": "{:.2f}", "CPU hours": "{:.2f}"}
SAME = ("data", "split", "fingerprint", *(f"parameters.{name}" for name in PROTOCOL))  # to be comparable
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
        found = _methods(rows, data, split)
        made = [{"method": LABELS.get(method, method), **_measured(row), "state": state(row, rows)}
                for method, row in found.items()]
        trained, random = found["trained"], found["random"]
        gain = {"method": "trained - random", "state": NOT_RUN}
        if trained is not None and random is not None:
            gain["state"] = "not comparable: other data or settings"
            if all(lookup(trained, name) == lookup(random, name) for name in SAME):
                ours, theirs = _scores(trained), _scores(random)
                gain |= {score: round(ours[score] - theirs[score], 1) for score in SCORES}
                gain["state"] = "† " * ("†" in state(trained, rows) + state(random, rows)) + POINTS
        lines += [{"data": data and f"{data} {split}", **line} for line in (*made, gain)]
    return frame(lines, ["data", "method", *SCORES, "sequences", "objects", "frames", "seconds a frame",
                         "threads", "state"])


def _measured(row: pd.Series | None) -> dict:
    if row is None:
        return {}
    try:
        counts = {count: int(row[count]) for count in ("sequences", "objects", "frames")}
        threads = int(row["threads"]) if pd.notna(row.get("threads")) else None
        seconds = round(float(row["seconds_per_frame"]), 2)
        return {**_scores(row), **counts, "seconds a frame": seconds, "threads": threads}
    except (LookupError, TypeError, ValueError) as error:
        raise InputError(f"row evaluate-{row['name']}-{row['key']}.json of study {row['study']!r} lacks a "
                         f"number ({error}); restore it, or delete it to run again") from error


def _scores(row: pd.Series) -> dict[str, float]:
    return {column: percent(row[f"scores.{score}"]) for column, score in SCORES.items()}


def sequence_table(study: Study) -> pd.DataFrame:
    """J&F of each sequence by method; a benchmark's last line is its score, the mean over all its objects.

    Selected checkpoints are left out, because some of these sequences selected them.
    """
    rows, blocks = study.rows(), [frame([], ["data", "sequence", "objects"])]
    for data, split in benchmarks(rows):
        titles, tables = [], []
        for name, row in _methods(rows, data, split).items():
            if row is not None and remark(row):
                continue
            titles.append(LABELS.get(name, name) + " †" * state(row, rows).startswith("†"))
            if row is not None and (path := study.path(row, "scores", ".csv")).exists():
                tables.append(pd.read_csv(path).assign(method=titles[-1]))
        if not tables:
            continue
        table = pd.concat(tables).eval("score = 50 * (`J mean` + `F mean`)")
        margin = {"margins": True, "margins_name": "mean over objects"}
        block = table.pivot_table("score", "sequence", "method", **margin)
        block = block.reindex(columns=titles).round(1).astype(object)
        counts = tables[-1].groupby("sequence").size()
        block.insert(0, "objects", [*counts, counts.sum()])
        block.insert(0, "data", f"{data} {split}")
        blocks.append(block.where(block.notna(), NOT_RUN).reset_index())
    table = pd.concat(blocks, ignore_index=True)
    return table if len(table) else table.reindex(columns=[*table, *METHODS.values()])


def score_curve(study: Study) -> pd.DataFrame:
    """J&F against training: a line for each encoder that was evaluated on the way, in the order of training.

    All lines are of one training and one data set, those of the newest such evaluation.
    """
    rows, lines = study.rows(), []
    found = rows[(rows["kind"] == "evaluate") & rows["name"].str.startswith(CURVE)]
    last = found[found["trained_key"] != ""].tail(1)  # the first point, untrained, has none
    found = found[found["fingerprint"].isin(last["fingerprint"])
                  & found["trained_key"].isin(["", *last["trained_key"]])]
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
    def cell(content: object, column: str, made: str) -> str:
        if pd.isna(content):
            return "-"
        if isinstance(content, float):
            signed = column in SCORES and made.removeprefix("† ") == POINTS
            return (SIGNED if signed else FORMATS.get(column, "{:.1f}")).format(content)
        return f"{content:,}" if isinstance(content, (int, np.integer)) else str(content)

    states = table.get("state", [""] * len(table))
    text = {column: [cell(content, column, made) for content, made in zip(table[column], states)]
            for column in table}
    return pd.DataFrame(text, columns=table.columns, dtype=object)


def to_markdown(table: pd.DataFrame) -> str:
    """A table in GitHub's Markdown, with numbers aligned to the right."""
    rules = ["---:" if any(isinstance(content, (int, float, np.number)) for content in table[column])
             else "---" for column in table]
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
    shown = ["data", "method", "J&F", "J mean", "F mean", "sequences", "objects", "seconds a frame", "state"]
    table = to_text(study_table(study.rows()))[shown]
    return f"study {study.name!r}: {TITLES['study']}\n{table.to_string(index=False)}"


def _methods(rows: pd.DataFrame, data: str | None, split: str | None) -> dict[str, pd.Series | None]:
    """The row that counts for each method: `METHODS`, None for an absent one, then others by their label."""
    found = rows[(rows["kind"] == "evaluate") & (rows["data"] == data) & (rows["split"] == split)]
    found = found[~found["name"].str.startswith(CURVE).astype(bool)]
    found = found.assign(label=[label(row) for _, row in found.iterrows()])
    names = [*METHODS, *sorted(set(found["label"]) - set(METHODS))]
    return {name: newest(found[found["label"] == name]) for name in names}
