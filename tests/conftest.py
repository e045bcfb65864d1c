"""Fixtures that find the golden cases and the real data, or skip with a reason."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import hypothesis
import pytest
from hypothesis import HealthCheck
from hypothesis.configuration import set_hypothesis_home_dir

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also what takes long: the whole corpus, many kills, the soak")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes long, and is left out without --slow")
    set_hypothesis_home_dir(str(Path(tempfile.gettempdir()) / "dulvos-hypothesis"))  # not in the repository
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    hypothesis.settings.register_profile("sample", max_examples=15, derandomize=True, deadline=None, database=None,
                                         suppress_health_check=checks)
    hypothesis.settings.register_profile("slow", max_examples=500, deadline=None, database=None, suppress_health_check=checks)
    hypothesis.settings.load_profile("slow" if config.getoption("--slow") else "sample")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="takes long; --slow runs it"))


@pytest.fixture(scope="session")
def slow(request: pytest.FixtureRequest) -> bool:
    """Whether --slow was given: a test that samples then takes all."""
    return request.config.getoption("--slow")


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
