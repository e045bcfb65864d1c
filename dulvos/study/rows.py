"""Result rows: a flat JSON file for each run, with its provenance. Tables and figures are made from rows.

Scores in a row lie in [0, 1]; tables show percentages. A field that does not apply is missing or None.
"""

import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch

from dulvos.errors import InputError
from dulvos.files import expand, make_folder, read_json, write_file
from dulvos.inference import SegmentSettings
from dulvos.training import TrainSettings

__all__ = ["CURVE", "NOT_RUN", "ROOT", "SUFFIX", "Study", "all_rows", "benchmarks", "complete", "counting",
           "find_training", "flat", "frame", "has", "label", "lookup", "newest", "once", "percent",
           "provenance", "remark", "run_key", "state", "training", "version", "write_json"]

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "torchvision", "numpy", "opencv-python-headless", "timm", "pandas")
KINDS = ("train", "evaluate", "youtube-vos", "select")
NEEDED = {"kind": str, "name": str, "key": str, "date": str, "version": int}  # every row has these
TEXT = ("study", "data", "split", "features", "trained_key", "fingerprint")  # some rows have these
COLUMNS = (*NEEDED, *TEXT, "snapshot", "sequences", "objects", "current")  # every table of rows has these
NOT_RUN = "not run"
CURVE = "curve-"  # rows whose names begin so belong to the curve of J&F against training, not to a table
SUFFIX = "-selected"  # rows whose names end so have a snapshot that was selected on validation sequences

# If a change moves the numbers of training or of evaluation (tests/test_digests.py fails then), undo it or
# raise the version. Tables mark the rows of an earlier version with †.
TRAINING_VERSION = 1
EVALUATION_VERSION = 1


def version(kind: str, row: dict) -> int:
    """The version of today's code for a run of this kind with these parameters."""
    if kind != "train":
        return EVALUATION_VERSION
    objective = row.get("parameters.objective", "dense")
    # since version 2, L_ST is 0 with one frame a clip, and ContrastCorr's network sees Lab colours
    changed = objective == "contrastcorr" or objective == "dense" and row.get("parameters.frames") == 1
    return TRAINING_VERSION + changed


@dataclass(frozen=True)
class Study:
    """A study and its folder `results/<name>`, whose folders runs, masks and logs are not committed.

    Arguments:
        name: a plain folder name; any other raises an InputError.
        results: the folder of all studies; by default DULVOS_RESULTS, else `results` in the checkout.
        notebooks: the folder of the notebooks that its steps run.
    """

    name: str
    results: Path = field(default_factory=lambda: Path(os.environ.get("DULVOS_RESULTS") or ROOT / "results"))
    notebooks: Path = ROOT / "notebooks"

    def __post_init__(self) -> None:
        _check_name("study", self.name)
        object.__setattr__(self, "results", expand(self.results))

    @property
    def folder(self) -> Path:
        """`results/<name>`."""
        return self.results / self.name

    def path(self, row: dict | pd.Series, folder: str, suffix: str = "") -> Path:
        """The file or folder of a row: `results/<name>/<folder>/<row's name>-<key><suffix>`."""
        return self.folder / folder / f"{row['name']}-{row['key']}{suffix}"

    def rows(self, kind: str = "*") -> pd.DataFrame:
        """The rows, oldest first, with a column `current`: whether today's code gives the same numbers."""
        return _table((self.folder / "rows").glob(f"{kind}-*.json"))

    def find(self, kind: str, wanted: dict) -> dict | None:
        """The newest row of a kind and of today's version that has these values, as `lookup` finds them."""
        rows = map(_read, (self.folder / "rows").glob(f"{kind}-*.json"))
        fitting = [row for row in rows if row["version"] == version(kind, row)
                   and all(lookup(row, name) == value for name, value in wanted.items())]
        return max(fitting, key=lambda row: row["date"], default=None)

    def write(self, row: dict) -> Path:
        """Write a row as `rows/<kind>-<name>-<key>.json`."""
        path = self.folder / "rows" / f"{row['kind']}-{row['name']}-{row['key']}.json"
        write_json(path, flat(row))
        return path


def once(study: Study, kind: str, name: str, wanted: dict, compute: Callable[[dict], dict], *,
         whole: Callable[[dict], bool] = lambda row: True, write: bool = True) -> dict:
    """The row of a run; the run is made only if its row or files are missing.

    Arguments:
        kind: one of `KINDS`.
        wanted: what determines the run's numbers, flat: parameters, seed, weights, the data's fingerprint.
        compute: makes the run. It takes the fields that are known before, and returns the others.
        whole: whether the files of a row are here too; rows are committed, checkpoints and masks are not.
        write: whether to write the row; False in all processes but the first.

    Raises:
        InputError: the name is no plain folder name, or the study's folder cannot be written to.
    """
    _check_name("name", name)
    row = study.find(kind, {"name": name, **wanted})
    if row is not None and whole(row):
        return row
    make_folder(study.folder)  # an error comes now, not after hours
    key = run_key(kind, wanted) if row is None else row["key"]
    row = {"kind": kind, "study": study.name, "name": name, "key": key, **wanted}
    made = provenance(kind, row)  # before the run, during which somebody may commit other code
    row = flat({**row, **compute(row), **made, "date": _now()})
    if write:
        study.write(row)
    return row


def run_key(kind: str, wanted: dict) -> str:
    """12 hex digits of a run's kind and version, and of its wanted fields that differ from their defaults."""
    changed = {name: value for name, value in wanted.items() if value != lookup({"kind": kind}, name)}
    content = json.dumps([kind, changed, version(kind, wanted)], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def provenance(kind: str, row: dict) -> dict:
    """Where a row comes from: notebook or command, commit, dirty flag, versions, machine, date."""
    installed = {package.name: package.version for package in importlib.metadata.distributions()}
    return {
        "source": os.environ.get("DULVOS_SOURCE", "Python"),
        "commit": _git("rev-parse", "HEAD") or "unknown",
        "dirty": bool(_git("status", "--porcelain", "--", "dulvos", "notebooks", "run_all.sh")),
        "version": version(kind, row),
        "versions": {"python": platform.python_version(), **{name: installed.get(name) for name in PACKAGES}},
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "date": _now(),
    }


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def flat(row: dict, prefix: str = "") -> dict:
    """A row without nested mappings: {"parameters": {"lr": 1}} becomes {"parameters.lr": 1}."""
    out = {}
    for name, value in row.items():
        out |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return out


def write_json(path: Path, content: dict) -> None:
    """Write JSON whole or not at all; numpy's numbers and arrays are converted, other types to text."""
    text = json.dumps(content, indent=1, default=lambda value: getattr(value, "tolist", value.__str__)())
    write_file(path, text + "\n")


def all_rows(results: Path | None = None) -> pd.DataFrame:
    """The rows of every study but the ablation grids and the comparison, which have tables of their own."""
    results = results or Study("demo").results
    return _table(path for path in results.glob("*/rows/*.json")
                  if not path.parts[-3].startswith(("ablation-", "comparison")))


def newest(rows: pd.DataFrame) -> pd.Series | None:
    """The row that counts among runs of one name: the newest current one, else the newest of all."""
    return None if rows.empty else rows.sort_values(["current", "date"]).iloc[-1]


def counting(rows: pd.DataFrame, by: str | list[str]) -> pd.DataFrame:
    """The row that counts (`newest`) in each group of rows with the same values in the columns `by`."""
    return rows.sort_values(["current", "date"]).groupby(by).tail(1)


def state(row: pd.Series | None, rows: pd.DataFrame) -> str:
    """"run", "not run", or † with the reason: earlier code made the row, or the training it rests on."""
    if row is None:
        return NOT_RUN
    for made, what in ((row, "made"), (training(row, rows), "trained")):
        if made is not None and not made.current:
            return f"† {what} by earlier code, commit {str(lookup(made, 'commit') or 'unknown')[:7]}"
    return "run"


def training(row: pd.Series, rows: pd.DataFrame) -> pd.Series | None:
    """The training that an evaluation rests on, if there is one among the rows."""
    return None if row["kind"] == "train" else find_training(rows, row["trained_key"])


def find_training(rows: pd.DataFrame, name: str) -> pd.Series | None:
    """The training that counts among those of that name or key."""
    return newest(rows[(rows["kind"] == "train") & ((rows["name"] == name) | (rows["key"] == name))])


def remark(row: pd.Series) -> str:
    """How the checkpoint was chosen, if it is not the last of its training; else ""."""
    snapshot = lookup(row, "snapshot")
    return lookup(row, "selected") or ("" if snapshot is None else f"iteration {int(snapshot):,}")


def label(row: pd.Series) -> str:
    """What tables call a row: its name, and how its checkpoint was chosen."""
    return f"{row['name'].removesuffix(SUFFIX)}, {remark(row)}" if remark(row) else row["name"]


def has(row: pd.Series, settings: dict) -> bool:
    """Whether a run had these settings; defaults stand for those that its code did not have."""
    return all(lookup(row, f"parameters.{name}") == value for name, value in settings.items())


def lookup(row: dict | pd.Series, name: str) -> object:
    """A field of a row; its default if the code that made the row did not have it yet."""
    found = row.get(name)
    if found is not None and found == found:  # pandas gives NaN for a field that only other rows have
        return found
    settings, _, setting = name.partition(".")
    if settings != "parameters":
        return {"processes": 1, "selected": ""}.get(name)
    return getattr(TrainSettings if row["kind"] == "train" else SegmentSettings, setting, None)


def benchmarks(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """(data, split) of what was evaluated, the latest first."""
    evaluated = rows[rows["kind"] == "evaluate"].sort_values("date", ascending=False)
    return list(dict.fromkeys(zip(evaluated["data"], evaluated["split"])))


@contextlib.contextmanager
def complete(row: pd.Series) -> Iterator[None]:
    """Turn the errors of a row that lacks a field, or has a wrong one, into an InputError that names it."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"row {row['kind']}-{row['name']}-{row['key']}.json of study {row['study']!r} lacks "
                         f"a field ({error}); restore it, or delete it to run again") from error


def percent(score: float) -> float:
    """A score in [0, 1] as tables show it."""
    return round(100 * float(score), 1)


def frame(lines: list[dict] | pd.DataFrame, columns: list[str] | None = None) -> pd.DataFrame:
    """A table of lines, with None where a line lacks a column."""
    table = pd.DataFrame(lines, columns=columns, dtype=object)  # object keeps integers beside None
    return table.where(table.notna(), None)


def _table(paths: Iterable[Path]) -> pd.DataFrame:
    rows = [dict.fromkeys(COLUMNS) | _read(path) for path in sorted(paths)]
    for row in rows:
        row["current"] = row["version"] == version(row["kind"], row)
    table = pd.DataFrame(rows, columns=None if rows else COLUMNS)
    return table.sort_values("date", ignore_index=True, kind="stable")


def _read(path: Path) -> dict:
    return read_json(path, "a result row; restore it, or delete it to run again", _checked)


def _checked(content: dict) -> dict:
    row = flat(content)
    types = NEEDED | {name: str for name in TEXT if name in row}
    if wrong := [name for name, kind in types.items() if type(row[name]) is not kind]:
        raise ValueError(f"{', '.join(wrong)}: wrong type")
    if row["kind"] == "evaluate" and not isinstance(row.get("scores.J&F-Mean"), float):
        raise ValueError("scores are missing")
    if row["kind"] not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}")
    return row


def _check_name(what: str, name: str) -> None:
    """Raise an InputError unless the name can be that of a file, and does not lead out of its folder."""
    if not (isinstance(name, str) and 0 < len(name) <= 100 and name.isprintable()
            and Path(name).name == name != ".."):
        raise InputError(f"{what} must be a plain folder name of at most 100 characters, such as 'demo', "
                         f"not {name!r}")


def _git(*arguments: str) -> str:
    """What git says about this checkout; nothing without git or outside a checkout."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    return ""
