"""The grid carried by Dask: killed in every way it ends in the same rows; a failure stops nothing but what rests on it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dulvos.study import results, steps as study
from dulvos.study import ablation_states as states, work
from dulvos.study.ablation import GridStudy
from dulvos.study.work import run_grid
from dulvos.errors import InputError
from tests import fake_grid

ONLY = ("baseline-0", "res3-0", "lam0-0", "random-0")
STEPS, SECONDS = 25, 0.1

CHILD = """
import sys
from pathlib import Path
from dulvos.study import steps as study
from dulvos.study.work import run_grid
from tests.fake_grid import tiny_grid
if __name__ == "__main__":
    study.NOTEBOOKS = Path(sys.argv[2])
    sys.exit(run_grid(tiny_grid(Path(sys.argv[1])), workers=0 if sys.argv[3] else 2, scheduler=sys.argv[3], only=sys.argv[4:]))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_grid.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def expected(data: Path, tmp_path_factory: pytest.TempPathFactory) -> set[tuple[str, bytes]]:
    """The rows of a grid that nothing disturbed."""
    folder, grid = tmp_path_factory.mktemp("undisturbed"), fake_grid.tiny_grid(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "RESULTS", folder)
        patch.setenv("DULVOS_RESULTS", str(folder))
        fake_grid.write_notebooks(folder / "notebooks", grid, steps=STEPS)
        for run in states.grid_runs(grid):
            if run.name in ONLY:
                if run.training:
                    fake_grid.run_in_place(folder / "notebooks", states.train_step(grid, run))
                    run = next(r for r in states.grid_runs(grid) if r.name == run.name)
                key = run.trained.key if run.training else ""
                fake_grid.run_in_place(folder / "notebooks", states.evaluate_step(grid, run, key))
    return rows_in(folder)


def rows_in(folder: Path) -> set[tuple[str, bytes]]:
    return {(path.name, path.read_bytes()) for path in (folder / "ablation-tiny/rows").glob("*.json")}


class Bench:
    """A results folder with fake notebooks, and the command that runs the grid on it."""

    def __init__(self, folder: Path, data: Path, bad: str = "", seconds: float = SECONDS):
        self.folder, self.data = folder, data
        self.notebooks, self.base = folder / "sources", folder / "ablation-tiny"
        fake_grid.write_notebooks(self.notebooks, self.grid, steps=STEPS, seconds=seconds, bad=bad)
        self.environment = os.environ | {"DULVOS_RESULTS": str(folder), "PYTHONPATH": str(Path(__file__).parent.parent)}

    @property
    def grid(self) -> GridStudy:
        return fake_grid.tiny_grid(self.data)

    def start(self, scheduler: str = "") -> subprocess.Popen:
        command = [sys.executable, "-c", CHILD, str(self.data), str(self.notebooks), scheduler, *ONLY]
        return subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def count(self, name: str) -> int:
        """Iterations that a training has behind it."""
        return sum(len(path.read_text().split()) - 1 for path in self.base.glob(f"runs/{name}-*/history.csv"))

    def holder(self, step: str) -> int:
        """The process that is at a step, 0 if there is none."""
        path = self.base / "runs" / f"{step}.lock"
        if not path.is_file():
            return 0
        with open(path) as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                words = stream.read().split()  # none yet between taking the lock and signing it
                return int(words[1]) if words else 0
        return 0


@pytest.fixture
def bench(tmp_path: Path, data: Path) -> Bench:
    return Bench(tmp_path, data)


def wait(condition: Callable[[], object], child: subprocess.Popen | None = None, seconds: float = 400) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert child is None or child.poll() is None, child.stdout.read()
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@contextlib.contextmanager
def cluster(bench: Bench) -> Iterator[tuple[subprocess.Popen, str]]:
    """`dask scheduler` and two of `dask worker`, as on a cluster; the scheduler and its address."""
    file = bench.folder / "scheduler.json"
    file.unlink(missing_ok=True)
    quiet = {"env": bench.environment, "stdout": open(bench.folder / "dask.log", "a"), "stderr": subprocess.STDOUT}
    dask, found = [sys.executable, "-m", "dask"], ["--scheduler-file", str(file), "--no-dashboard"]
    scheduler = subprocess.Popen([*dask, "scheduler", "--host", "127.0.0.1", "--port", "0", *found], **quiet)
    workers = subprocess.Popen([*dask, "worker", "--nworkers", "2", "--nthreads", "1", "--death-timeout", "60", *found],
                               **quiet)
    try:
        wait(file.is_file, seconds=60)
        yield scheduler, json.loads(file.read_text())["address"]
    finally:
        for process in (scheduler, workers):
            process.terminate()
            process.wait()


def test_killed_workers_and_a_killed_command_end_in_the_same_rows(bench: Bench, expected: set) -> None:
    child = bench.start()
    wait(lambda: bench.count("lam0-0") > 3, child)
    worker, reached = bench.holder("01_train-lam0-0"), bench.count("lam0-0")
    os.kill(worker, signal.SIGKILL)
    wait(lambda: bench.holder("01_train-lam0-0") not in (0, worker) and bench.count("lam0-0") > reached + 1, child)
    child.kill()  # with it the scheduler, which lives in it
    child.wait()
    wait(lambda: not any(bench.holder(path.stem) for path in bench.base.glob("runs/*.lock")))  # what it started dies with it
    assert rows_in(bench.folder) < expected

    child = bench.start()
    output, _ = child.communicate(timeout=300)
    assert child.returncode == 0, output
    assert rows_in(bench.folder) == expected
    starts = Counter((bench.base / "started").read_text().splitlines())
    assert 2 <= starts["train lam0-0"] <= 4 and starts["evaluate lam0-0"] == 1, "what is done is not done again"
    history = next(bench.base.glob("runs/lam0-0-*/history.csv")).read_text().split()[1:]
    assert sorted(set(map(int, history))) == list(range(1, STEPS + 1))
    assert len(history) < STEPS + 2 * 12, "a run goes on where it was cut off"


def test_a_running_scheduler_is_used_and_may_be_killed(bench: Bench, expected: set) -> None:
    with cluster(bench) as (scheduler, address):
        child = bench.start(address)
        wait(lambda: bench.count("baseline-0") > 3, child)
        scheduler.kill()
        output, _ = child.communicate(timeout=300)
        assert child.returncode == 1 and "the same command" in output, output
        assert rows_in(bench.folder) < expected
    with cluster(bench) as (_, address):
        child = bench.start(address)
        output, _ = child.communicate(timeout=300)
        assert child.returncode == 0, output
    assert rows_in(bench.folder) == expected


def test_a_failure_stops_nothing_but_what_rests_on_it(tmp_path: Path, data: Path) -> None:
    bench = Bench(tmp_path, data, bad="lam0-0", seconds=0)
    child = bench.start()
    output, _ = child.communicate(timeout=300)
    assert child.returncode == 1, output
    copy = "ablation-tiny/notebooks/01_train-lam0-0.failed.ipynb"
    assert f"FAILED 01_train-lam0-0: see {copy}" in output and (tmp_path / copy).is_file()
    assert "FAILED 02_evaluate_davis-lam0-0: left out: 01_train-lam0-0 failed" in output and "1 runs are not done" in output
    names = sorted(path.name.rsplit("-", 1)[0] for path in bench.base.glob("rows/*.json"))
    assert names == ["evaluate-baseline-0", "evaluate-random-0", "evaluate-res3-0", "train-baseline-0"]
    starts = Counter((bench.base / "started").read_text().splitlines())
    assert starts["train baseline-0"] == 1, "res3 shares the baseline's training"


def test_wrong_wishes_end_before_anything_runs(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(study, "NOTEBOOKS", tmp_path)
    grid = fake_grid.tiny_grid(data)
    fake_grid.write_notebooks(tmp_path, grid)
    with pytest.raises(InputError, match="no run lam7-0 in ablation-tiny; the runs are baseline-0, .*lam0-0"):
        run_grid(grid, only=("lam7-0",))
    with pytest.raises(InputError, match="127.0.0.1:9: no Dask scheduler answers there"):
        run_grid(grid, scheduler="tcp://127.0.0.1:9", only=ONLY)
    with pytest.raises(InputError, match="leave --workers and --threads out"):
        run_grid(grid, scheduler="tcp://127.0.0.1:9", workers=2, only=ONLY)
    with pytest.raises(InputError, match="nowhere"):
        run_grid(fake_grid.tiny_grid(tmp_path / "nowhere"))


@pytest.mark.parametrize(("visible", "expected"), [("", ["0", "1", "0"]), ("2,5", ["2", "5", "2"]), ("GPU-a,GPU-b", ["GPU-a", "GPU-b", "GPU-a"])])
def test_workers_share_the_gpus_that_are_left_to_this_process(visible: str, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [work.worker_environment(index, 1, 2)["CUDA_VISIBLE_DEVICES"] for index in range(3)] == expected
    assert "CUDA_VISIBLE_DEVICES" not in work.worker_environment(0, 1, 0)
