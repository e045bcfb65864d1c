"""The soak sees what grows and what slows down; with --slow, ten minutes of training are flat."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest

from tests.soak import COLUMNS, main, sample, verdict, watch


def made(seconds: float = 3600.0, **columns: Callable[[np.ndarray], np.ndarray]) -> pd.DataFrame:
    """Samples of an hour in which nothing changes but what is given, with noise."""
    times = np.arange(0, seconds, 5.0)
    noise = np.random.default_rng(0).normal(0, 1, len(times))
    flat = {"seconds": times, "memory_mb": 2000 + 20 * noise, "handles": 40 + (noise > 2), "threads": 10 + 0 * times,
            "processes": 3 + 0 * times, "cpu_seconds": 0.9 * times, "read_mb": 2 * times, "busy_seconds": 0.95 * times}
    return pd.DataFrame(flat | {name: function(times) for name, function in columns.items()}, columns=COLUMNS)


def test_a_flat_hour_is_flat() -> None:
    lines, wrong = verdict(made())
    assert not wrong and any(line.startswith("memory_mb: median") for line in lines)


@pytest.mark.parametrize(("column", "function", "said"), [
    ("memory_mb", lambda t: 2000 + t / 30, "memory_mb"),  # two MB a minute
    ("handles", lambda t: 40 + np.floor(t / 600), "handles"),
    ("threads", lambda t: 10 + np.floor(t / 900), "threads"),
    ("read_mb", lambda t: 2 * t - t**2 / 6000, "seconds a MB read"),
])
def test_what_grows_or_slows_down_is_named(column: str, function: Callable, said: str) -> None:
    _, wrong = verdict(made(**{column: function}))
    assert wrong and all(said in line for line in wrong)


def test_iterations_that_slow_down_are_named_unless_others_took_the_processors() -> None:
    history = pd.DataFrame({"iteration": range(1, 2001), "seconds": np.cumsum(np.linspace(1.0, 1.5, 2000))})
    assert any("an iteration" in line for line in verdict(made(), history)[1])
    lines, wrong = verdict(made(busy_seconds=lambda t: 0.95 * t + t**2 / 7200 * 0.5), history)
    assert not wrong and any("NOT JUDGED" in line for line in lines)


def test_a_process_that_opens_files_is_seen_and_its_end_ends_the_watch(tmp_path: Path) -> None:
    code = "import time\nkept = []\nfor i in range(30):\n    kept.append(open('/dev/null')); time.sleep(0.1)"
    child = subprocess.Popen([sys.executable, "-c", code])
    try:
        samples = watch(child.pid, tmp_path / "soak.csv", seconds=60, every=0.1)
    finally:
        child.wait()
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "soak.csv").round(1), samples.round(1), check_dtype=False, atol=0.11)
    assert 5 <= len(samples) <= 60 and samples.handles.max() - samples.handles.min() >= 5
    assert any("handles" in line for line in verdict(samples, warm=0)[1])
    with pytest.raises(SystemExit, match="no such process"):
        watch(child.pid, tmp_path / "soak.csv", seconds=1)


def test_a_sample_counts_descendants() -> None:
    alone = sample(psutil.Process())
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        both = sample(psutil.Process(os.getpid()))
    finally:
        child.kill()
        child.wait()
    assert both["processes"] == alone["processes"] + 1 and both["memory_mb"] > 0


@pytest.mark.slow
def test_ten_minutes_of_training_with_workers_are_flat(tmp_path: Path, record_property: Callable) -> None:
    record_property("fault", "ten minutes: training with workers")
    assert main(["--minutes", "10", "--workers", "1", "--out", str(tmp_path / "soak.csv")]) == 0
