"""The tables of a study, made from its rows, as DataFrames, Markdown and CSV.

Scores are percentages, differences are points. None means that a number does not apply or is not known, "not
run" that the run is missing, and † that the row was made by earlier code.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from dulvos.files import write_file
from dulvos.study.paper import PROTOCOL, table1, table2, table3
from dulvos.study.rows import (
    CURVE,
    NOT_RUN,
    Study,
    all_rows,
    benchmarks,
    complete,
    counting,
    frame,
    has,
    label,
    lookup,
    percent,
    remark,
    state,
)

__all__ = ["METHODS", "POINTS", "TITLES", "failure_frame", "sequence_table", "study_table",
           "summary", "to_markdown", "to_text", "write", "write_tables"]

POINTS = "points"  # the state of a line of differences; a † precedes it if either row has one
METHODS = {"copy": "first mask copied", "colour": "raw colours", "random": "random features",
           "trained": "trained features"}
LABELS = {**METHODS, "davis2016": "shipped weights"}
SCORES = {"J&F": "J&F-Mean", "J mean": "J-Mean", "J recall": "J-Recall", "J decay": "J-Decay",
          "F mean": "F-Mean", "F recall": "F-Recall", "F decay": "F-Decay"}
COUNTS = ("sequences", "objects", "frames")
MEAN = "mean over objects"
SIGNED = "{:+z.1f}"
FORMATS = {"difference": SIGNED, "ours": SIGNED, "seconds a frame": "{:.2f}", "CPU hours": "{:.2f}"}
TITLES = {
    "table1": "Table 1: DAVIS-2017 val, J&F in percent",
    "study": "This study: means over objects, in percent",
    "sequences": "J&F in percent: sequences are means over their objects",
    "table2": "Table 2: YouTube-VOS 2018 val, in percent",
    "table3": "Table 3: cost of training",
    "fig3": "Fig. 3: J&F in percent, differences in points from the baseline",
    "claims": "The paper's other claims",
}


def study_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Scores and cost of each method, and for each benchmark the gain of trained over random features.

    Arguments:
        rows: those of one study.
    """
    lines = []
    for data, found in _by_benchmark(rows):
        made = {method: {**_measured(row), "state": state(row, rows)} for method, row in found.items()}
        trained, random = found["trained"], found["random"]
        gain = {"state": NOT_RUN}
        if trained is not None and random is not None:
            gain["state"] = "not comparable: other data or settings"
            settings = {name: lookup(trained, f"parameters.{name}") for name in PROTOCOL}
            if has(random, settings) and trained["fingerprint"] == random["fingerprint"]:
                gain = {column: percent(trained[f"scores.{name}"] - random[f"scores.{name}"])
                        for column, name in SCORES.items()}
                stale = "†" in made["trained"]["state"] + made["random"]["state"]
                gain["state"] = "† " * stale + POINTS
        lines += [{"data": data, "method": LABELS.get(method, method), **line}
                  for method, line in {**made, "trained - random": gain}.items()]
    return frame(lines, ["data", "method", *SCORES, *COUNTS, "seconds a frame", "threads", "state"])


def _measured(row: pd.Series | None) -> dict:
    if row is None:
        return {}
    with complete(row):
        threads = lookup(row, "threads")
        return {**{column: percent(row[f"scores.{score}"]) for column, score in SCORES.items()},
                **{count: int(row[count]) for count in COUNTS},
                "seconds a frame": round(float(row["seconds_per_frame"]), 2),
                "threads": threads and int(threads)}


def sequence_table(study: Study) -> pd.DataFrame:
    """J&F of each sequence and method; the last line of a benchmark is its score, the mean over all objects.

    Checkpoints that were selected on some of these sequences are left out.
    """
    rows, blocks = study.rows(), [frame([], ["data", "sequence", "objects"])]
    for data, found in _by_benchmark(rows):
        titles, tables = [], []
        for name, row in found.items():
            if row is not None and remark(row):
                continue
            titles.append(LABELS.get(name, name) + " †" * state(row, rows).startswith("†"))
            if row is not None and (path := study.path(row, "scores", ".csv")).exists():
                tables.append(pd.read_csv(path).assign(method=titles[-1]))
        if tables:
            table = pd.concat(tables).eval("score = 50 * (`J mean` + `F mean`)")
            block = table.pivot_table("score", "sequence", "method", margins=True, margins_name=MEAN)
            block = block.reindex(columns=titles).round(1).astype(object).fillna(NOT_RUN).reset_index()
            counts = table.drop_duplicates(["sequence", "object"]).groupby("sequence").size()
            blocks.append(block.assign(data=data, objects=[*counts, counts.sum()]))
    return pd.concat(blocks, ignore_index=True)


def failure_frame(scores: np.ndarray) -> int:
    """The frame where a mask is lost: where the next five scores are lowest compared with the last five.

    Arguments:
        scores: (T,) float; NaN for frames without a score, such as the first and the last.
    """
    falls = [np.nanmean(scores[max(t - 5, 1): t]) - np.nanmean(scores[t: t + 5])
             for t in range(2, len(scores) - 1)]
    return int(np.argmax(falls)) + 2 if falls else 0


def to_text(table: pd.DataFrame) -> pd.DataFrame:
    """A table's cells as text: one decimal, signs on differences, "-" for None."""
    def cell(content: object, column: str, state: object) -> str:
        if pd.isna(content):
            return "-"
        if isinstance(content, float):
            signed = column in SCORES and str(state).endswith(POINTS)
            return (SIGNED if signed else FORMATS.get(column, "{:.1f}")).format(content)
        return f"{content:,}" if isinstance(content, int) else str(content)

    lines = [[cell(content, column, line.get("state")) for column, content in line.items()]
             for line in table.to_dict("records")]
    return pd.DataFrame(lines, columns=table.columns, dtype=object)


def to_markdown(table: pd.DataFrame) -> str:
    """A table in GitHub's Markdown; numbers are aligned to the right."""
    rules = ["---:" if any(isinstance(content, (int, float, np.number)) for content in table[column])
             else "---" for column in table]
    lines = [list(table), rules, *to_text(table).to_numpy().tolist()]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def write(tables: dict[str, pd.DataFrame], folder: Path, about: str = "") -> dict[str, pd.DataFrame]:
    """Write tables as CSV and as Markdown (with their titles and `about`), and return them."""
    for name, table in tables.items():
        title = f"**{TITLES[name]}.** {about}" if about else f"**{TITLES[name]}**"
        write_file(folder / f"{name}.csv", table.to_csv(index=False))
        write_file(folder / f"{name}.md", f"{title}\n\n{to_markdown(table)}")
    return tables


def write_tables(study: Study, folder: Path | None = None) -> dict[str, pd.DataFrame]:
    """Make all tables and write them, by default into the study's folder `tables`."""
    rows = all_rows(study.results)
    return write({"table1": table1(rows), "study": study_table(study.rows()),
                  "sequences": sequence_table(study), "table2": table2(rows, study.results),
                  "table3": table3(rows)}, Path(folder or study.folder / "tables"))


def summary(study: Study) -> str:
    """The scores of a study as plain text for a terminal."""
    shown = ["data", "method", "J&F", "J mean", "F mean", "sequences", "objects", "seconds a frame", "state"]
    table = to_text(study_table(study.rows()))[shown]
    return f"study {study.name!r}: {TITLES['study']}\n{table.to_string(index=False)}"


def _label(row: pd.Series) -> str:
    """As `label`; a row named like one of the `METHODS`, but with other features, is named with them."""
    wrong = row["name"] in METHODS and row["name"] not in row["features"]
    return f"{row['name']} with features {row['features']}" if wrong else label(row)


def _by_benchmark(rows: pd.DataFrame) -> Iterator[tuple[str | None, dict[str, pd.Series | None]]]:
    """Each benchmark, the latest first, with the row that counts for each method.

    The `METHODS` come first (None if one was not run), then the others by label.
    """
    found = rows[(rows["kind"] == "evaluate") & ~rows["name"].str.startswith(CURVE).astype(bool)]
    found = found.assign(label=[_label(row) for _, row in found.iterrows()])
    for data, split in benchmarks(found) or [("", "")]:
        own = counting(found[(found["data"] == data) & (found["split"] == split)], "label")
        made = {row["label"]: row for _, row in own.sort_values("label").iterrows()}
        yield f"{data} {split}" if data else None, dict.fromkeys(METHODS) | made
