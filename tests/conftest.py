"""Fixtures of several tests; those that need golden cases or real data skip with a reason without them."""

import dataclasses
import os
import tempfile
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import nbformat
import pytest
import torch
from hypothesis import HealthCheck
from hypothesis.configuration import set_hypothesis_home_dir

from dulvos.checkpoints import load_encoder
from dulvos.datasets import Dataset, load_davis
from dulvos.encoder import Encoder
from dulvos.inference import SegmentSettings
from dulvos.study.collections import SOURCES, paper_settings
from dulvos.study.rows import Study, flat, version
from tests.miniature import PLAIN, draw_video, write_davis, write_youtube_vos

SCORES = {"J&F-Mean": 0.5, "J-Mean": 0.4, "J-Recall": 0.3, "J-Decay": 0.2, "F-Mean": 0.6, "F-Recall": 0.1,
          "F-Decay": 0.05}
ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also long tests: the whole corpus, many kills")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes long, and is left out without --slow")
    set_hypothesis_home_dir(str(Path(tempfile.gettempdir()) / "dulvos-hypothesis"))  # not in the repository
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    common = {"deadline": None, "database": None, "suppress_health_check": checks}
    hypothesis.settings.register_profile("sample", max_examples=15, derandomize=True, **common)
    hypothesis.settings.register_profile("slow", max_examples=500, **common)
    hypothesis.settings.load_profile("slow" if config.getoption("--slow") else "sample")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="takes long; --slow runs it"))


@pytest.fixture(scope="session")
def slow(request: pytest.FixtureRequest) -> bool:
    """Whether --slow was given: a test that samples its cases then tries all."""
    return request.config.getoption("--slow")


def _find(variable: str, sibling: str) -> Path:
    folder = Path(os.environ.get(variable) or ROOT.parent / "shared" / sibling)
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: set {variable} to the folder of {sibling}")
    return folder


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has results and indexes of its own, and none of the variables that a user or a call sets."""
    for name in ("DULVOS_DATA_DIR", "DULVOS_DAVIS", "DULVOS_WEIGHTS"):
        monkeypatch.setenv(name, "")  # so that it is put back, also if a call sets it
        monkeypatch.delenv(name)
    monkeypatch.setenv("DULVOS_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("DULVOS_CACHE", str(tmp_path))


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """A study called "study" in an empty results folder."""
    return Study("study", tmp_path)


@pytest.fixture
def write_row(study: Study) -> Callable[..., dict]:
    """Writes a row like that of a run at the paper's settings, except for the fields that are given.

    `settings` change single parameters, `stale` gives an earlier version; rows with longer keys are newer.
    """
    def write(kind: str, name: str, key: str, *, settings: dict | None = None, stale: bool = False,
              **fields) -> dict:
        usual = SegmentSettings()
        if kind == "train":
            titles = {source.title: collection for collection, source in SOURCES.items()}
            usual = paper_settings(titles.get(fields.get("data"), "youtube-vos"), 3471)
        row = {"kind": kind, "study": study.name, "name": name, "key": key, "seconds": 90.0, "device": "cpu",
               "peak_memory_mb": 1234.5, "frames": 1999, "fingerprint": "f", "threads": 2,
               "commit": "1234567890",
               "parameters": {**dataclasses.asdict(usual), **(settings or {})},
               "date": f"2025-01-01T00:00:{len(key):02d}"}
        if kind == "train":
            row |= {"iterations": row["parameters"]["iterations"], "split": "train", "data": "YouTube-VOS",
                    "videos": 3471, "encoder": "runs/encoder.safetensors"}
        else:
            row |= {"features": name, "trained_key": "", "data": "DAVIS-2017", "split": "val",
                    "sequences": 30, "objects": 61, "scores": SCORES, "seconds_per_frame": 0.123}
        row = {**row, **fields}
        row["version"] = -1 if stale else version(kind, flat(row))
        Study(row["study"], study.results).write(row)
        return row
    return write


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the golden cases (inputs and outputs of the reference implementations)."""
    return _find("DULVOS_GOLDEN", "golden")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder that holds `DAVIS/` (DAVIS-2016) and `clips/`."""
    return _find("DULVOS_DATA", "data")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sequences of 6 frames of 64x96 pixels in DAVIS-2017's layout, in train and val; do not write."""
    videos = {name: draw_video(discs) for name, discs in PLAIN.items()}
    return write_davis(tmp_path_factory.mktemp("tiny"), videos, name="tiny", splits=("train", "val"))


@pytest.fixture
def dataset(tiny: Path) -> Dataset:
    """The val split of `tiny`."""
    return load_davis(tiny, "val")


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    """An untrained encoder; do not change it."""
    return load_encoder("random", seed=1)


@pytest.fixture(scope="session")
def images() -> torch.Tensor:
    return torch.randn(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def youtube_vos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """YouTube-VOS' layout in small; do not write into it."""
    return write_youtube_vos(tmp_path_factory.mktemp("youtube-vos"))


@pytest.fixture(scope="session")
def chromium() -> Iterator:
    """A browser (`tests.browser.Chromium`) for all tests that need it."""
    from tests import browser  # takes a second to import

    with browser.start() as started:
        yield started


@pytest.fixture(scope="module")
def js(chromium, request: pytest.FixtureRequest) -> Iterator[Callable]:
    """Runs the body of a JavaScript function, in which `js` is the test module's SCRIPT, on named values."""
    page, script = chromium.context.new_page(), b64encode(request.module.SCRIPT.read_bytes()).decode()
    page.evaluate(f"import('data:text/javascript;base64,{script}').then((js) => {{ window.js = js; }})")
    yield lambda body, **data: page.evaluate(f"({{{', '.join(data)}}}) => {{{body}}}", data)
    page.close()


@pytest.fixture(scope="session")
def lab(chromium, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """A JupyterLab (`tests.browser.Lab`) for all tests that need it."""
    from tests import browser

    with browser.serve(tmp_path_factory.mktemp("lab") / "served", chromium) as served:
        yield served


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A test whose browser hangs fails, instead of the whole run hanging."""
    if "chromium" not in item.fixturenames:
        return (yield)
    from tests import browser

    with browser.limited(browser.LIMIT):
        return (yield)


@pytest.fixture
def make_study(tmp_path):
    """Makes a study whose notebooks are {name: source of their one cell}, with the parameters below."""
    def make(**sources: str) -> Study:
        study = Study("study", tmp_path / "results", tmp_path / "notebooks")
        study.notebooks.mkdir(exist_ok=True)
        for name, source in sources.items():
            head = nbformat.v4.new_code_cell('study: str = ""\nword: str = "x"  # a word\ncount: int = 1',
                                             metadata={"tags": ["parameters"]})
            notebook = nbformat.v4.new_notebook(cells=[head, nbformat.v4.new_code_cell(source)])
            notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "", "language": "python"}
            nbformat.write(notebook, study.notebooks / f"{name}.ipynb")
        return study
    return make
