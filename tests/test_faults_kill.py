"""kill -9 at random moments: the next call goes on, and what comes out is what an undisturbed run gives.

One kill each here, twenty each with --slow; those of the grid's workers are in test_grid_work.py, too.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from dulvos.study import results, runs
from dulvos.study import download
from dulvos.inference import SegmentSettings
from dulvos.trainer import train
from dulvos.videos import find_videos
from tests.oracles import write_textures
from tests.test_download import Handler, Server, archive, server  # noqa: F401
from tests.test_grid_work import Bench, data, expected, rows_in, wait  # noqa: F401
from tests.test_runs import data as tiny  # noqa: F401
from tests.test_training import SMALL

# a server that has imported everything forks the processes that are killed: a kill costs no seconds of importing
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([__name__])


def start(target: Callable, *arguments: object) -> multiprocessing.Process:
    """A process that is at its work, no longer at its start."""
    ready = SERVER.Event()
    process = SERVER.Process(target=_begin, args=(ready, target, arguments))
    process.start()
    assert ready.wait(120)
    return process


def _begin(ready, target: Callable, arguments: tuple) -> None:
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    ready.set()
    target(*arguments)


def endure(target: Callable, place: Path, kills: int, outcome: Callable[[Path], object], *arguments: object) -> int:
    """Kill `target(folder, *arguments)` at a random moment of its course, call after call, and then let it end.

    A run that ends before it is killed is compared with an undisturbed one, and the next begun in a folder of its own.

    Returns:
        The number of kills.
    """
    process, begun = start(target, place / "undisturbed", *arguments), time.monotonic()
    process.join()
    assert process.exitcode == 0
    duration, undisturbed = time.monotonic() - begun, outcome(place / "undisturbed")
    moments, done, folder = random.Random(0), 0, place / "0"
    while True:
        process = start(target, folder, *arguments)
        if done < kills:
            process.join(moments.random() * duration)
            if process.is_alive():
                process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            done += 1
            continue
        assert process.exitcode == 0, "the next call continues"
        assert outcome(folder) == undisturbed
        if done == kills:
            return done
        folder = folder.with_name(f"{int(folder.name) + 1}")


@pytest.fixture
def kills(slow: bool) -> int:
    return 20 if slow else 1


# SMALL writes a checkpoint after each iteration
def _train(folder: Path, videos: Path) -> None:
    train(dataclasses.replace(SMALL, iterations=4, batch=2), find_videos(videos), folder, device="cpu")


def _trained(folder: Path) -> tuple:
    """Weights to the bit, history, and no file that should not be there."""
    history = pd.read_csv(folder / "history.csv").drop(columns="seconds")
    return (folder / "encoder.safetensors").read_bytes(), history.to_csv(), sorted(path.name for path in folder.iterdir())


def test_training(tmp_path: Path, kills: int, record_property: Callable) -> None:
    videos = write_textures(tmp_path / "textures", "abcd")
    record_property("faults", ["kill -9: training", endure(_train, tmp_path, kills, _trained, videos)])


def _evaluate(folder: Path, data: str) -> None:  # noqa: F811
    results.RESULTS = folder
    runs.evaluation_run("s", "colour", data, "colour", SegmentSettings(), device="cpu")


def _evaluated(folder: Path) -> tuple:
    """The row but for times, and every mask, table and score to the byte."""
    row = json.loads(next((folder / "s/rows").glob("*.json")).read_text())
    timed = ("date", "seconds", "seconds_per_frame", "peak_memory_mb", "commit", "dirty")
    files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*")
             if path.is_file() and path.suffix not in (".json", ".tmp")}
    return {name: value for name, value in row.items() if name not in timed}, files


def test_evaluation(tmp_path: Path, kills: int, tiny: str, record_property: Callable) -> None:  # noqa: F811
    record_property("faults", ["kill -9: evaluation", endure(_evaluate, tmp_path, kills, _evaluated, tiny)])


class Slow(Handler):
    """A connection that gives a few bytes at a time."""

    def setup(self) -> None:
        super().setup()
        write = self.wfile.write

        def trickle(content: bytes) -> None:
            for first in range(0, len(content), 1 << 12):
                write(content[first: first + (1 << 12)])
                time.sleep(0.002)
        self.wfile.write = trickle


def _download(folder: Path, offered: download.Archive) -> None:
    download.ARCHIVES = {"tiny": offered}
    download.download("tiny", folder)


def _downloaded(folder: Path) -> dict:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_download(tmp_path: Path, kills: int, archive: download.Archive, server: Server,  # noqa: F811
                  record_property: Callable) -> None:
    server.RequestHandlerClass = Slow
    record_property("faults", ["kill -9: download", endure(_download, tmp_path, kills, _downloaded, archive)])


@pytest.mark.slow
def test_grid(tmp_path: Path, data: Path, expected: set, record_property: Callable) -> None:  # noqa: F811
    """Workers and the command that holds them, whichever comes: three quarters are workers."""
    moments, kills, round_ = random.Random(0), 0, 0
    while kills < 20:
        bench = Bench(tmp_path / f"{round_}", data)
        round_ += 1
        while True:
            child = bench.start()
            while kills < 20 and child.poll() is None:
                time.sleep(moments.uniform(0.5, 6))
                steps = [path.stem for path in bench.base.glob("runs/*.lock") if bench.holder(path.stem)]
                if child.poll() is None and steps and moments.random() < 0.75:
                    holder = bench.holder(moments.choice(steps))
                    if holder:
                        os.kill(holder, signal.SIGKILL)
                        kills += 1
                elif child.poll() is None:
                    child.kill()
                    kills += 1
            output, _ = child.communicate(timeout=300)
            wait(lambda: not any(bench.holder(path.stem) for path in bench.base.glob("runs/*.lock")))  # noqa: B023
            if child.returncode == 0:
                break
            assert child.returncode == -signal.SIGKILL or "the same command" in output, output
        assert rows_in(bench.folder) == expected
    record_property("faults", ["kill -9: grid", kills])
