"""Which result rows count: the newest of a name made by today's code, and what a row says of how it was made.

Scores are percentages. None is what does not apply or is not known; what was not run says so.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from dulvos.study import results

__all__ = ["CURVE", "NOT_RUN", "SUFFIX", "all_rows", "benchmarks", "frame", "has", "kind", "label", "newest", "percent", "remark"]
__all__ += ["run_path", "state", "training"]

NOT_RUN = "not run"
CURVE = "curve-"  # of the names of rows that stand on the curve of J&F against training, and in no table of methods
SUFFIX = "-selected"  # of the names of rows that `dulvos.study.selection` leaves


def all_rows() -> pd.DataFrame:
    """The rows of every study, as `read_rows` gives those of one; ablation grids have tables of their own."""
    names = sorted(folder.parent.name for folder in results.RESULTS.glob("*/rows"))
    studies = [name for name in names if not name.startswith("ablation-")]
    records = [row for study in studies for row in results.read_rows(study).to_dict("records")]
    return pd.DataFrame(records, columns=None if records else ["kind", "name", "key", "date", "current"])


def newest(rows: pd.DataFrame) -> pd.Series | None:
    """The row that counts among runs of one name: the newest made by today's code, without one the newest; None of none."""
    return None if rows.empty else rows.sort_values(["current", "date"]).iloc[-1]


def state(row: pd.Series | None, rows: pd.DataFrame) -> str:
    """Whether a row was run, and by which code; an evaluation is no newer than the training (among `rows`) it rests on."""
    if row is None:
        return NOT_RUN
    for made, what in ((row, "made"), (training(row, rows), "trained")):
        if made is not None and not made.current:
            return f"† {what} by earlier code, commit {str(made.get('commit', 'unknown'))[:7]}"
    return "run"


def remark(row: pd.Series) -> str:
    """What sets features apart from the last of their training: how they were selected, or the snapshot; "" of the last."""
    selected, snapshot = row.get("selected"), row.get("snapshot")
    if isinstance(selected, str) and selected:
        return selected
    return f"iteration {int(snapshot):,}" if pd.notna(snapshot) else ""


def label(row: pd.Series) -> str:
    """What a row is called in tables: its name, and what `remark` says."""
    return f"{row['name'].removesuffix(SUFFIX)}, {remark(row)}" if remark(row) else row["name"]


def benchmarks(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """(data, split) of what was evaluated, the latest first."""
    evaluated = kind(rows, "evaluate").sort_values("date", ascending=False)
    return list(dict.fromkeys(zip(evaluated.data, evaluated.split)))


def run_path(row: pd.Series, folder: str, suffix: str = "") -> Path:
    """A file or folder that belongs to a row: `results/<study>/<folder>/<name>-<key><suffix>`."""
    return results.study_folder(row["study"]) / folder / f"{row['name']}-{row['key']}{suffix}"


def kind(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows of a kind, with the columns that tables ask for."""
    rows = rows[rows["kind"] == name]
    needed = ["study", "name", "key", "date", "current", "data", "split", "features", "trained_key", "sequences", "objects"]
    return rows.reindex(columns=[*rows.columns, *(column for column in needed if column not in rows)])


def training(row: pd.Series, rows: pd.DataFrame) -> pd.Series | None:
    """The training that an evaluation rests on."""
    key = row.get("trained_key")
    return newest(rows[(rows["kind"] == "train") & (rows["key"] == key)]) if row["kind"] != "train" and key else None


def has(row: pd.Series, settings: dict) -> bool:
    """Whether a run had these settings."""
    return all(row.get(f"parameters.{name}") == value for name, value in settings.items())


def percent(score: float) -> float:
    """A score in [0, 1] as tables show it."""
    return round(100 * float(score), 1)


def frame(lines: list[dict], columns: list[str]) -> pd.DataFrame:
    """A table of lines, None where a line lacks a column."""
    # dtype=object keeps integers beside None
    table = pd.DataFrame([[line.get(column) for column in columns] for line in lines], columns=columns, dtype=object)
    return table.where(table.notna(), None)
