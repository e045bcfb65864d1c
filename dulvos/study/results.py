"""Deprecated: what modules that are being rewritten still ask for; use `dulvos.study.rows`. It goes with the last of them."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

from dulvos.study import rows
from dulvos.study.rows import ROOT, flat, plain_name, write_json

RESULTS = Path(os.environ.get("DULVOS_RESULTS", ROOT / "results"))
VERSIONS = {"train": rows.TRAINING_VERSION, **dict.fromkeys(("evaluate", "youtube-vos", "select"), rows.EVALUATION_VERSION)}
__all__ = ["ROOT", "VERSIONS", "find_row", "flat", "plain_name", "provenance", "read_rows", "run_key", "study_folder", "write_json", "write_row"]


def study_folder(study: str) -> Path:
    return rows.Study(study, RESULTS).folder


def run_key(kind: str, parameters: dict, data: str) -> str:
    return rows.run_key(kind, {**{f"parameters.{k}": v for k, v in parameters.items()}, "fingerprint": data})


def provenance(kind: str, *, seed: int | None, data: str, fingerprint: str) -> dict:
    return {**rows.provenance(kind, {}), "seed": seed, "data": data, "fingerprint": fingerprint}


def write_row(study: str, row: dict) -> Path:
    return rows.Study(study, RESULTS).write(row)


def find_row(study: str, kind: str, key: str) -> dict | None:
    return rows.Study(study, RESULTS).find(kind, {"key": key})


def read_rows(study: str, kind: str | None = None) -> pd.DataFrame:
    return rows.Study(study, RESULTS).rows(kind)
