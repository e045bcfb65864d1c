"""Tables: from result rows, and the paper's numbers, to DataFrames, Markdown and CSV.

Scores are percentages, differences points. None is what does not apply or is not known; what was not run says so.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd

from dulvos import paper, results
from dulvos.inference import SegmentSettings
from dulvos.training import TrainSettings

__all__ = ["METHODS", "NOT_RUN", "all_rows", "benchmarks", "difference", "failure_frame", "newest", "run_path", "sequence_table"]
__all__ += ["state", "study_table", "summary", "table1", "table3", "to_markdown", "to_text", "write_tables"]

NOT_RUN = "not run"
POINTS = "points"  # state of a line of differences
METHODS = {"copy": "first mask copied", "colour": "raw colours", "random": "random features", "trained": "trained features"}
SCORES = {"J&F": "J&F-Mean", "J mean": "J-Mean", "J recall": "J-Recall", "J decay": "J-Decay", "F mean": "F-Mean",
          "F recall": "F-Recall", "F decay": "F-Decay"}

# what the paper's protocol and method fix; whatever departs from it is another experiment, not a row of Tables 1 and 3
PROTOCOL = {name: getattr(SegmentSettings(), name) for name in ("layer", "context", "radius", "topk", "tau", "shorter_side")}
METHOD = {name: getattr(TrainSettings(), name) for name in (
    "batch", "frames", "crop", "ordered", "view_scale", "grid", "cross_grid", "tau", "lam", "jitter", "second_forward", "alignment",
    "dim", "norm")}

FORMATS = {"difference": "{:+.1f}", "seconds a frame": "{:.2f}"}  # other numbers: one decimal, integers as they are
TITLES = {
    "table1": "Table 1: DAVIS-2017 val, J&F in percent",
    "study": "This study: means over objects, in percent",
    "sequences": "J&F in percent: sequences are means over their objects",
    "table3": "Table 3: cost of training",
}


def all_rows() -> pd.DataFrame:
    """The rows of every study, as `read_rows` gives those of one."""
    studies = sorted(folder.parent.name for folder in results.RESULTS.glob("*/rows"))
    records = [row for study in studies for row in results.read_rows(study).to_dict("records")]
    return pd.DataFrame(records, columns=None if records else ["kind", "name", "key", "date", "current"])


def newest(rows: pd.DataFrame) -> pd.Series | None:
    """The row that counts among runs of one name: the newest made by today's code, without one the newest; None of none."""
    return None if rows.empty else rows.sort_values(["current", "date"]).iloc[-1]


def state(row: pd.Series | None, rows: pd.DataFrame) -> str:
    """Whether a row was run, and by which code; an evaluation is no newer than the training (among `rows`) it rests on."""
    if row is None:
        return NOT_RUN
    training = _training(row, rows)
    for made, what in ((row, "made"), (training, "trained")):
        if made is not None and not made.current:
            return f"† {what} by earlier code, commit {str(made.get('commit', 'unknown'))[:7]}"
    return "run"


def benchmarks(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """(data, split) of what was evaluated, the latest first."""
    evaluated = _kind(rows, "evaluate").sort_values("date", ascending=False)
    return list(dict.fromkeys(zip(evaluated.data, evaluated.split)))


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
                line |= {column: _percent(row[f"scores.{score}"]) for column, score in SCORES.items()}
                line |= {column: int(row[column]) for column in ("sequences", "objects", "frames")}
                line["seconds a frame"] = round(float(row.seconds_per_frame), 2)
            lines.append({**line, "state": state(row, rows)})
        gain = difference(picked["trained"], picked["random"])
        comparable = gain or picked["trained"] is None or picked["random"] is None
        lines.append({"data": data and f"{data} {split}", "method": "trained - random", **gain,
                      "state": POINTS if gain else NOT_RUN if comparable else "not comparable: other data or settings"})
    columns = ["data", "method", *SCORES, "sequences", "objects", "frames", "seconds a frame", "state"]
    return _frame(lines, columns)


def difference(row: pd.Series | None, other: pd.Series | None) -> dict[str, float]:
    """Scores of a row minus those of another, in points, as the tables show both; empty unless only the features differ."""
    if row is None or other is None:
        return {}
    same = ["data", "split", "fingerprint", *(f"parameters.{name}" for name in PROTOCOL)]
    if any(str(row.get(field)) != str(other.get(field)) for field in same):
        return {}
    points = {column: _percent(row[f"scores.{score}"]) - _percent(other[f"scores.{score}"]) for column, score in SCORES.items()}
    return {column: round(value, 1) for column, value in points.items()}


def sequence_table(study: str) -> pd.DataFrame:
    """J&F of every sequence (mean over its objects) and method; the last line of a benchmark is the mean over OBJECTS."""
    rows, blocks = results.read_rows(study), []
    for data, split in benchmarks(rows):
        columns, counts = {}, {}
        for name, row in _methods(rows, data, split).items():
            title = METHODS.get(name, name) + " †" * state(row, rows).startswith("†")
            path = None if row is None else run_path(row, "scores", ".csv")
            if path is None or not path.exists():
                columns[title] = pd.Series(dtype=object)
                continue
            table = pd.read_csv(path)
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
        return _frame([], ["data", "sequence", "objects", *METHODS.values()])
    return pd.concat(blocks, ignore_index=True)


def table1(rows: pd.DataFrame) -> pd.DataFrame:
    """The paper's Table 1 with ours beside: only whole runs of its own protocol stand here (Sec. 4.1).

    "ours" is filled by evaluations of DAVIS-2017 val, all 30 sequences at full size with the paper's propagation; of random
    features, or of a training with the paper's settings on the line's own data. Nothing else is comparable.

    Arguments:
        rows: of all studies.
    """
    evaluated = _kind(rows, "evaluate")
    whole = [row for _, row in evaluated.iterrows() if row["data"] == "DAVIS-2017" and row["split"] == "val" and _is(row, PROTOCOL)
             and all(row[unit] == paper.DAVIS_2017_VAL[unit] for unit in ("sequences", "objects"))]
    lines = []
    for _, line in paper.TABLE1.iterrows():
        fitting = [row for row in whole if _fits(line, row, rows)]
        row = newest(pd.DataFrame(fitting))
        ours = NOT_RUN if row is None else _percent(row["scores.J&F-Mean"])
        lines.append({"method": _label(line.method), "train data": line["data"], "stride": 4 if line["stride 4"] else 8,
                      **{f"paper {score}": line[score] for score in ("J_m", "J_r", "F_m", "F_r", "J&F_m")}, "ours J&F_m": ours,
                      "difference": None if row is None else round(ours - line["J&F_m"], 1),
                      "state": state(row, rows) if row is None else f"{state(row, rows)} (study {row['study']})"})
    return _frame(lines, list(lines[0]))


def table3(rows: pd.DataFrame) -> pd.DataFrame:
    """The paper's Table 3 with our trainings beside; those on other data or at other settings have lines of their own.

    Arguments:
        rows: of all studies.
    """
    trained, lines = _kind(rows, "train"), []
    ours = trained[np.array([_is(row, METHOD) for _, row in trained.iterrows()], bool)]
    used = set()
    for _, line in paper.TABLE3.iterrows():
        row = newest(ours[ours["data"] == line["data"]]) if line.method == paper.OURS else None
        used |= set() if row is None else {row.key}
        lines.append({"method": _label(line.method), "train data": line["data"], "paper iterations": line.iterations,
                      "paper time": line.time, "paper memory (GB)": line["memory (GB)"], **_cost(row, rows)})
    for (study, name), group in trained.groupby(["study", "name"], sort=True):
        row = newest(group)
        if row.key not in used:
            lines.append({"method": f"{name} (study {study})", "train data": row["data"], **_cost(row, rows)})
    return _frame(lines, list(lines[0]))


def run_path(row: pd.Series, folder: str, suffix: str = "") -> Path:
    """A file or folder that belongs to a row: `results/<study>/<folder>/<name>-<key><suffix>`."""
    return results.study_folder(row["study"]) / folder / f"{row['name']}-{row['key']}{suffix}"


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
        for column in SCORES.keys() & text.keys() if made == POINTS else ():
            text[column][place] = f"{table[column].iloc[place]:+.1f}"
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
            "table3": table3(rows)}
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
    lines.append(f"paper's Table 1 (DAVIS-2017 val): {len(filled)} of its {len(paper.TABLE1)} lines run")
    lines += [f"  {line.method}, {line['train data'] or 'no data'}: ours {line['ours J&F_m']:.1f}, paper {line['paper J&F_m']:.1f}"
              for _, line in filled.iterrows()]
    return "\n".join(lines)


def _kind(rows: pd.DataFrame, kind: str) -> pd.DataFrame:
    rows = rows[rows["kind"] == kind]
    needed = ["study", "name", "key", "date", "current", "data", "split", "features", "trained_key", "sequences", "objects"]
    return rows.reindex(columns=[*rows.columns, *(column for column in needed if column not in rows)])


def _methods(rows: pd.DataFrame, data: str | None, split: str | None) -> dict[str, pd.Series | None]:
    """The row that counts for each method on a benchmark: the usual ones first, absent ones None, others by name."""
    evaluated = _kind(rows, "evaluate")
    evaluated = evaluated[(evaluated["data"] == data) & (evaluated["split"] == split)]
    names = [*METHODS, *sorted(set(evaluated["name"]) - set(METHODS))]
    return {name: newest(evaluated[evaluated["name"] == name]) for name in names}


def _training(row: pd.Series, rows: pd.DataFrame) -> pd.Series | None:
    """The training that an evaluation rests on."""
    key = row.get("trained_key")
    return newest(rows[(rows["kind"] == "train") & (rows["key"] == key)]) if row["kind"] == "evaluate" and key else None


def _fits(line: pd.Series, row: pd.Series, rows: pd.DataFrame) -> bool:
    """Whether an evaluation belongs to a line of Table 1: by what its features were trained on."""
    if line["method"] == paper.RANDOM:
        return row["features"] == "random"
    training = _training(row, rows)
    return line["method"] == paper.OURS and training is not None and training["data"] == line["data"] and _is(training, METHOD)


def _is(row: pd.Series, settings: dict) -> bool:
    return all(row.get(f"parameters.{name}") == value for name, value in settings.items())


def _label(method: str) -> str:
    return "the paper's method" if method == paper.OURS else method


def _cost(row: pd.Series | None, rows: pd.DataFrame) -> dict:
    if row is None:
        return {"our iterations": NOT_RUN, "our time": None, "our peak memory (MB)": None, "device": None, "state": NOT_RUN}
    minutes = row.seconds / 60
    device = f"{row.device}, {int(row.threads)} threads" if str(row.device).startswith("cpu") else str(row.device)
    return {"our iterations": int(row.iterations), "our time": f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h",
            "our peak memory (MB)": round(row.peak_memory_mb), "device": device, "state": state(row, rows)}


def _percent(score: float) -> float:
    return round(100 * float(score), 1)


def _frame(lines: list[dict], columns: list[str]) -> pd.DataFrame:
    # dtype=object keeps integers beside None
    table = pd.DataFrame([[line.get(column) for column in columns] for line in lines], columns=columns, dtype=object)
    return table.where(table.notna(), None)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
