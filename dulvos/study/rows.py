"""Result rows: one flat JSON file for each run, with its provenance. Tables and figures are made from rows alone.

Scores in a row lie in [0, 1]; tables show percentages. A field that does not apply is missing or None.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from dulvos.errors import InputError
from dulvos.files import make_folder, replacing
from dulvos.inference import SegmentSettings
from dulvos.training import TrainSettings

__all__ = [
    "CURVE", "NOT_RUN", "ROOT", "SUFFIX", "Study", "all_rows", "benchmarks", "frame", "has", "kind", "label", "newest", "once",
    "percent", "plain_name", "provenance", "remark", "run_key", "state", "training", "version", "write_json",
]  # fmt: skip

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "torchvision", "numpy", "opencv-python-headless", "timm", "pandas")
KINDS = ("train", "evaluate", "youtube-vos", "select")
NOT_RUN = "not run"
CURVE = "curve-"  # begins the names of rows on the curve of J&F against training, which stand in no table of methods
SUFFIX = "-selected"  # ends the names of rows whose snapshot was selected on validation sequences

# Raise a version when a change moves the numbers of training or of evaluation, or undo the change;
# tests/test_digests.py notices. Tables mark the rows of an earlier version with †.
TRAINING_VERSION = 1
EVALUATION_VERSION = 1


def version(kind: str, row: dict) -> int:
    """The version of the numbers that today's code gives for a run of this kind with these (flat) parameters."""
    if kind != "train":
        return EVALUATION_VERSION
    # with one frame a clip, L_ST is 0 since version 2; longer clips never had another loss
    return TRAINING_VERSION + (row.get("parameters.frames") == 1 and row.get("parameters.objective", "dense") == "dense")


@dataclass(frozen=True)
class Study:
    """A study and its folder `results/<name>`: rows, scores, history, tables, figures, executed notebooks.

    Its folders runs, masks and logs hold what is made on the way and is not committed.

    Arguments:
        name: a plain folder name.
        results: the folder of all studies; by default DULVOS_RESULTS, else `results` in the checkout.
        notebooks: the folder of the notebooks that its steps run.

    Raises:
        InputError: the name would lead out of the folder.
    """

    name: str
    results: Path = field(default_factory=lambda: Path(os.environ.get("DULVOS_RESULTS", ROOT / "results")))
    notebooks: Path = ROOT / "notebooks"

    def __post_init__(self) -> None:
        plain_name("study", self.name)
        object.__setattr__(self, "results", Path(self.results))

    @property
    def folder(self) -> Path:
        """`results/<name>`."""
        return self.results / self.name

    def path(self, row: dict | pd.Series, folder: str, suffix: str = "") -> Path:
        """A file or folder that belongs to a row: `results/<name>/<folder>/<row's name>-<key><suffix>`."""
        return self.folder / folder / f"{row['name']}-{row['key']}{suffix}"

    def rows(self, kind: str | None = None) -> pd.DataFrame:
        """The rows, oldest first, with a column `current`: whether today's code gives the same numbers.

        Raises:
            InputError: a file that is no row.
        """
        rows = [_read(path) for path in sorted((self.folder / "rows").glob(f"{kind or '*'}-*.json"))]
        if not rows:
            return pd.DataFrame(columns=["kind", "name", "key", "date", "current"])
        table = pd.DataFrame(rows).sort_values("date", ignore_index=True, kind="stable")
        return table.assign(current=[row["version"] == version(row["kind"], row) for row in table.to_dict("records")])

    def find(self, kind: str, wanted: dict, *, stale: bool = False) -> dict | None:
        """The newest row of a kind whose fields equal those wanted; a field it lacks has its default.

        Arguments:
            stale: a row of an earlier version counts too.
        """
        rows = [_read(path) for path in (self.folder / "rows").glob(f"{kind}-*.json")]
        fitting = [row for row in rows if row["kind"] == kind and (stale or row["version"] == version(kind, row))
                   and all(_value(kind, row, name) == value for name, value in wanted.items())]
        return max(fitting, key=lambda row: row["date"], default=None)

    def write(self, row: dict) -> Path:
        """Write a row as `rows/<kind>-<name>-<key>.json`."""
        path = self.path(row, "rows", ".json")
        path = path.with_name(f"{row['kind']}-{path.name}")
        write_json(path, flat(row))
        return path


def once(study: Study, kind: str, name: str, wanted: dict, compute: Callable[[str], dict], *,
         whole: Callable[[dict], bool] = lambda row: True, write: bool = True) -> dict:
    """The row of a run, computed only if there is none.

    Arguments:
        kind: one of `KINDS`.
        wanted: what determines the run's numbers, flat: its parameters, seed, weights, the data's fingerprint.
        compute: makes the run under its key, and gives the row's other fields.
        whole: whether the files of a row are here too; rows are committed, and checkpoints and masks are not.
        write: False in all processes but the first.
    """
    plain_name("name", name)
    row = study.find(kind, {"name": name, **wanted})
    if row is not None and whole(row):
        return row
    make_folder(study.folder)  # refused now, not after hours
    key = run_key(kind, wanted) if row is None else row["key"]
    row = {"kind": kind, "study": study.name, "name": name, "key": key, **wanted, **compute(key)}
    row = flat({**row, **provenance(kind, row)})
    if write:
        study.write(row)
    return row


def run_key(kind: str, wanted: dict) -> str:
    """12 hex digits of what determines a run: its kind, version and fields that differ from their defaults."""
    told = {name: value for name, value in wanted.items() if value != _value(kind, {}, name)}
    content = json.dumps([kind, told, version(kind, wanted)], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def provenance(kind: str, row: dict) -> dict:
    """Where a row comes from: notebook or command, commit, dirty flag, versions, machine, date."""
    return {
        "source": os.environ.get("DULVOS_SOURCE", "Python"),
        "commit": _git("rev-parse", "HEAD") or "unknown",
        "dirty": bool(_git("status", "--porcelain", "--", "dulvos", "notebooks", "run_all.sh")),
        "version": version(kind, row),
        "versions": {"python": platform.python_version(), **{name: _package_version(name) for name in PACKAGES}},
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def flat(row: dict) -> dict:
    """A row without nested mappings: {"parameters": {"lr": 1}} becomes {"parameters.lr": 1}."""
    out = {}
    for name, value in row.items():
        inner = flat(value) if isinstance(value, dict) else None
        out |= {name: value} if inner is None else {f"{name}.{key}": item for key, item in inner.items()}
    return out


def write_json(path: Path, content: dict) -> None:
    """Write JSON whole or not at all; dataclasses, numpy numbers and paths are converted."""
    def convert(value: object) -> object:
        if dataclasses.is_dataclass(value):
            return dataclasses.asdict(value)
        return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else str(value)

    with replacing(path) as stream:
        stream.write(json.dumps(content, indent=1, default=convert).encode() + b"\n")


def plain_name(what: str, name: str) -> str:
    """The name, if a file or folder can be called so without leaving its folder; otherwise an InputError."""
    if (not isinstance(name, str) or not name.isprintable() or Path(name).name != name or name in ("", "..")
            or len(name) > 100):
        raise InputError(f"{what} must be a plain folder name of at most 100 characters, such as 'demo', not {name!r}")
    return name


def all_rows(results: Path | None = None) -> pd.DataFrame:
    """The rows of every study but the ablation grids, which have tables of their own."""
    results = Study("demo").results if results is None else results
    names = sorted(folder.parent.name for folder in results.glob("*/rows"))
    records = [row for name in names if not name.startswith("ablation-")
               for row in Study(name, results).rows().to_dict("records")]
    return pd.DataFrame(records, columns=None if records else ["kind", "name", "key", "date", "current"])


def newest(rows: pd.DataFrame) -> pd.Series | None:
    """The row that counts among runs of one name: the newest current one; without a current one, the newest."""
    return None if rows.empty else rows.sort_values(["current", "date"]).iloc[-1]


def state(row: pd.Series | None, rows: pd.DataFrame) -> str:
    """"run", "not run", or † with the reason: an evaluation is as old as the training it rests on."""
    if row is None:
        return NOT_RUN
    for made, what in ((row, "made"), (training(row, rows), "trained")):
        if made is not None and not made.current:
            return f"† {what} by earlier code, commit {str(made.get('commit', 'unknown'))[:7]}"
    return "run"


def training(row: pd.Series, rows: pd.DataFrame) -> pd.Series | None:
    """The training that an evaluation rests on."""
    key = row.get("trained_key")
    return newest(rows[(rows["kind"] == "train") & (rows["key"] == key)]) if row["kind"] != "train" and key else None


def remark(row: pd.Series) -> str:
    """How the checkpoint was chosen, if it is not the last of its training; else ""."""
    selected, snapshot = row.get("selected"), row.get("snapshot")
    if isinstance(selected, str) and selected:
        return selected
    return f"iteration {int(snapshot):,}" if pd.notna(snapshot) else ""


def label(row: pd.Series) -> str:
    """What tables call a row: its name, and how its checkpoint was chosen."""
    return f"{row['name'].removesuffix(SUFFIX)}, {remark(row)}" if remark(row) else row["name"]


def kind(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows of a kind, with every column that tables ask for."""
    rows = rows[rows["kind"] == name]
    needed = ("study", "name", "key", "date", "current", "data", "split", "features", "trained_key", "sequences",
              "objects")
    return rows.reindex(columns=[*rows.columns, *(column for column in needed if column not in rows)])


def has(row: pd.Series, settings: dict) -> bool:
    """Whether a run had these settings; one that came after the row was made had its default."""
    given = {name.partition(".")[2]: value for name, value in row.items()
             if name.startswith("parameters.") and (isinstance(value, list) or pd.notna(value))}
    defaults = TrainSettings if row["kind"] == "train" else SegmentSettings
    return all(given.get(name, getattr(defaults, name, None)) == value for name, value in settings.items())


def benchmarks(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """(data, split) of what was evaluated, the latest first."""
    evaluated = kind(rows, "evaluate").sort_values("date", ascending=False)
    return list(dict.fromkeys(zip(evaluated.data, evaluated.split)))


def percent(score: float) -> float:
    """A score in [0, 1] as tables show it."""
    return round(100 * float(score), 1)


def frame(lines: list[dict], columns: list[str]) -> pd.DataFrame:
    """A table of lines, None where a line lacks a column."""
    # dtype=object keeps integers beside None
    table = pd.DataFrame([[line.get(column) for column in columns] for line in lines], columns=columns, dtype=object)
    return table.where(table.notna(), None)


def _value(kind: str, row: dict, name: str) -> object:
    """A field of a row; the default of a setting, or of a field, that came after the row was made."""
    settings, _, setting = name.partition(".")
    if name in row or settings != "parameters":
        return row.get(name, {"processes": 1, "selected": ""}.get(name))
    return getattr(TrainSettings if kind == "train" else SegmentSettings, setting, None)


def _read(path: Path) -> dict:
    try:
        row = flat(json.loads(path.read_text()))
        text = ("study", "data", "split", "features", "trained_key")
        if row["kind"] not in KINDS or not all(isinstance(row[name], str) for name in ("name", "key", "date")):
            raise ValueError("kind, name, key or date is missing or wrong")
        if not isinstance(row["version"], int) or not all(isinstance(row.get(name, ""), str) for name in text):
            raise ValueError(f"version must be a whole number, and {', '.join(text)} text")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: not a result row ({error}); restore it, or delete it to run again") from None
    return row


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _package_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
