"""Result rows: what was run, on what, by which code, and what came out; tables and figures are made from these alone."""

from __future__ import annotations

import ast
import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from dulvos.errors import InputError
from dulvos.files import replacing

__all__ = ["ROOT", "code_hash", "find_row", "plain_name", "provenance", "read_rows", "run_key", "study_folder", "write_json"]
__all__ += ["write_row"]

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(os.environ.get("DULVOS_RESULTS", ROOT / "results"))
PACKAGES = ("torch", "torchvision", "numpy", "opencv-python", "accelerate", "pandas")

# the modules that determine the numbers of each kind of run
SOURCES = {
    "train": ("encoder", "views", "losses", "clips", "videos", "training"),
    "evaluate": ("encoder", "propagation", "tiled", "batched", "inference", "metrics", "videos", "datasets",
                 "evaluation"),
    "youtube-vos": ("encoder", "propagation", "tiled", "batched", "inference", "metrics", "videos", "datasets",
                    "external/local_split", "external/submission", "external/youtube_vos"),
}
# code that gives, to the bit, the numbers of the earlier code named beside it, so that its rows stay current; each says why
EQUAL = {
    # frames are reduced before they go to a GPU, every frame is looked at for NaN, references are compared in parts on a GPU, and
    # one whose channels later masks gave anew is not compared at all (its part was multiplied by 0)
    "8333387c37d4": "28b098fe72a7",
}
SOURCES["select"] = SOURCES["evaluate"]  # the same on a few sequences, to choose among snapshots


def study_folder(study: str) -> Path:
    """`results/<study>`, in DULVOS_RESULTS if that is set."""
    return RESULTS / plain_name("study", study)


def plain_name(what: str, name: str) -> str:
    """The name of a study or a run, of which files are called; raises an InputError if it would lead out of their folder."""
    if not isinstance(name, str) or not name.isprintable() or Path(name).name != name or name in ("", "..") or len(name) > 100:
        raise InputError(f"{what} must be a plain folder name such as 'demo', of at most 100 characters, not {name!r}")
    return name


@lru_cache
def code_hash(*modules: str) -> str:
    """Short hash of what modules of this package compute: their syntax trees without docstrings, comments and error messages."""
    digest = hashlib.sha256()
    for module in modules:
        tree = ast.parse((Path(__file__).parent / f"{module}.py").read_text())
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
                body[0].value = ast.Constant(None)
            if isinstance(node, ast.Raise):
                node.exc = node.cause = None
        digest.update(f"{module}\n{_syntax(tree)}\n".encode())
    return EQUAL.get(digest.hexdigest()[:12], digest.hexdigest()[:12])


def _syntax(tree: ast.AST) -> str:
    """The tree as Python 3.11 writes it: later ones write other empty fields, and rows would seem to be of other code."""
    text = ast.dump(tree, **({"show_empty": True} if sys.version_info >= (3, 13) else {}))
    return text.replace(", type_params=[]", "")


def run_key(kind: str, parameters: dict, data: str) -> str:
    """Key of a run: 12 hex digits of its kind, parameters, data fingerprint and the code that determines its numbers."""
    content = json.dumps([kind, parameters, data, code_hash(*SOURCES[kind])], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def provenance(kind: str, *, seed: int | None, data: str, fingerprint: str) -> dict:
    """Where a row comes from: command, commit, dirty flag, code hash, versions, machine, data, date."""
    return {
        "source": os.environ.get("DULVOS_SOURCE", "Python"),  # the notebook or command, set by the study
        "commit": _git("rev-parse", "HEAD") or "unknown",
        "dirty": bool(_git("status", "--porcelain", "--", "dulvos", "notebooks", "run_all.sh")),
        "code": code_hash(*SOURCES[kind]),
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
    write_json(path, row)
    return path


def find_row(study: str, kind: str, key: str) -> dict | None:
    """The row of a run that is done, or None."""
    for path in (study_folder(study) / "rows").glob(f"{kind}-*-{key}.json"):
        return _read(path)
    return None


def read_rows(study: str, kind: str | None = None) -> pd.DataFrame:
    """All rows of a study, oldest first, with a column `current`: whether the code that made it is today's.

    Nested fields become columns such as `parameters.lr`.

    Raises:
        InputError: a row that is no JSON, or that lacks what every row has.
    """
    rows = [_read(path) for path in sorted((study_folder(study) / "rows").glob(f"{kind or '*'}-*.json"))]
    for row in rows:
        row["current"] = row["code"] == code_hash(*SOURCES[row["kind"]])
    if not rows:
        return pd.DataFrame(columns=["kind", "name", "key", "date", "current"])
    return pd.json_normalize(rows).sort_values("date", ignore_index=True)


def _read(path: Path) -> dict:
    try:
        row = json.loads(path.read_text())
        if row["kind"] not in SOURCES or not all(isinstance(row[name], str) for name in ("name", "key", "date", "code")):
            raise ValueError("kind, name, key, date or code are none")
        if not all(isinstance(row.get(name, ""), str) for name in ("study", "data", "split", "features", "trained_key")):
            raise ValueError("study, data, split, features or trained_key is no text")
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not a result row ({error}); restore it or delete it to run again") from None
    return row
