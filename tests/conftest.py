"""Fixtures that find the golden cases and the real data, or skip with a reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _find(variable: str, sibling: str) -> Path:
    folder = Path(os.environ.get(variable) or ROOT.parent / "shared" / sibling)
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: set {variable} to the folder of {sibling}")
    return folder


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the golden cases (inputs and outputs of the reference implementations)."""
    return _find("DULVOS_GOLDEN", "golden")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder that holds `DAVIS/` (DAVIS-2016) and `clips/`."""
    return _find("DULVOS_DATA", "data")
