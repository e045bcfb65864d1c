"""Result rows: what was run, on what, by which code, and what came out; tables and figures are made from these alone."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from dulvos.errors import InputError
from dulvos.files import replacing

__all__ = ["ROOT", "VERSIONS", "find_row", "flat", "plain_name", "provenance", "read_rows", "run_key", "study_folder", "write_json"]
__all__ += ["write_row"]

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = Path(os.environ.get("DULVOS_RESULTS", ROOT / "results"))
PACKAGES = ("torch", "torchvision", "numpy", "opencv-python", "accelerate", "pandas")

# Raise a version when the numbers of that kind change, or undo the change: tests/test_digests.py tells.
# Rows of an earlier version are marked † in every table.
VERSIONS = {"train": 1, "evaluate": 1, "youtube-vos": 1, "select": 1}


def study_folder(study: str) -> Path:
    """`results/<study>`, in DULVOS_RESULTS if that is set."""
    return RESULTS / plain_name("study", study)


def plain_name(what: str, name: str) -> str:
    """The name of a study or a run, of which files are called; raises an InputError if it would lead out of their folder."""
    if not isinstance(name, str) or not name.isprintable() or Path(name).name != name or name in ("", "..") or len(name) > 100:
        raise InputError(f"{what} must be a plain folder name such as 'demo', of at most 100 characters, not {name!r}")
    return name


def run_key(kind: str, parameters: dict, data: str) -> str:
    """Key of a run: 12 hex digits of its kind, parameters, data fingerprint and version of the numbers."""
    content = json.dumps([kind, parameters, data, VERSIONS[kind]], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def provenance(kind: str, *, seed: int | None, data: str, fingerprint: str) -> dict:
    """Where a row comes from: command, commit, dirty flag, version of the numbers, versions of packages, machine, data, date."""
    return {
        "source": os.environ.get("DULVOS_SOURCE", "Python"),  # the notebook or command, set by the study
        "commit": _git("rev-parse", "HEAD") or "unknown",
        "dirty": bool(_git("status", "--porcelain", "--", "dulvos", "notebooks", "run_all.sh")),
        "version": VERSIONS[kind],
        "seed": seed,
        "data": data,
        "fingerprint": fingerprint,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def write_json(path: Path, content: dict) -> None:
    """Write JSON whole or not at all: a temporary name, synced, then renamed; numpy numbers and paths are converted."""
    def convert(value):
        if dataclasses.is_dataclass(value):
            return dataclasses.asdict(value)
        if isinstance(value, (np.generic, np.ndarray)):
            return value.tolist()
        return str(value)

    with replacing(path) as stream:
        stream.write(json.dumps(content, indent=1, default=convert).encode() + b"\n")


def write_row(study: str, row: dict) -> Path:
    """Write one row, `results/<study>/rows/<kind>-<name>-<key>.json`; it needs the fields kind, name and key."""
    path = study_folder(study) / "rows" / f"{row['kind']}-{row['name']}-{row['key']}.json"
    write_json(path, flat(row))
    return path


def flat(row: dict) -> dict:
    """A row without nested mappings: {"parameters": {"lr": 1}} becomes {"parameters.lr": 1}."""
    out = {}
    for name, value in row.items():
        out |= {f"{name}.{inner}": item for inner, item in flat(value).items()} if isinstance(value, dict) else {name: value}
    return out


def find_row(study: str, kind: str, key: str) -> dict | None:
    """The row of a run that is done, or None."""
    for path in (study_folder(study) / "rows").glob(f"{kind}-*-{key}.json"):
        return _read(path)
    return None


def read_rows(study: str, kind: str | None = None) -> pd.DataFrame:
    """All rows of a study, oldest first, with a column `current`: whether the code that made it is today's.

    Columns have the rows' names, such as `parameters.lr`.

    Raises:
        InputError: a row that is no JSON, or that lacks what every row has.
    """
    rows = [_read(path) for path in sorted((study_folder(study) / "rows").glob(f"{kind or '*'}-*.json"))]
    for row in rows:
        row["current"] = row["version"] == VERSIONS[row["kind"]]
    if not rows:
        return pd.DataFrame(columns=["kind", "name", "key", "date", "current"])
    return pd.DataFrame(rows).sort_values("date", ignore_index=True)


def _read(path: Path) -> dict:
    try:
        row = flat(json.loads(path.read_text()))
        if row["kind"] not in VERSIONS or not all(isinstance(row[name], str) for name in ("name", "key", "date")):
            raise ValueError("kind, name, key or date are none")
        if not isinstance(row["version"], int):
            raise ValueError("version is no whole number")
        if not all(isinstance(row.get(name, ""), str) for name in ("study", "data", "split", "features", "trained_key")):
            raise ValueError("study, data, split, features or trained_key is no text")
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not a result row ({error}); restore it or delete it to run again") from None
    return row
