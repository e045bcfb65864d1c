"""Faults: kill -9, full and read-only disks, half-written files, vanished frames, clocks, two calls at once.

A fault is survived if one clear line reports it, nothing finished is lost, the next call continues, and the
numbers are those of an undisturbed run. Each test records its fault by `record_property` for the counts of
`python -m tests.trust`.
"""

import contextlib
import dataclasses
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import psutil
import pytest

from dulvos.datasets import load_davis
from dulvos.errors import InputError
from dulvos.inference import SegmentSettings
from dulvos.study.download import ARCHIVES, download
from dulvos.study.evaluation import evaluate, evaluation_run
from dulvos.study.rows import Study
from dulvos.study.runs import training_run
from dulvos.training import TrainSettings, train
from tests.oracles import open_videos, write_textures

SETTINGS = TrainSettings(iterations=4, batch=2, frames=2, crop=32, scale_min=32, scale_max=40, grid=4,
                         cross_grid=2, precision="fp32", checkpoint_minutes=0.0)  # one after each iteration
CHANGING = ("date", "seconds", "cpu_seconds", "seconds_per_iteration", "seconds_per_frame", "peak_memory_mb",
            "commit", "dirty", "threads")  # fields of a row that differ from run to run

# processes that will be killed are forked from a server that has imported everything
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([__name__])


def start(target: Callable, *arguments: object) -> multiprocessing.Process:
    """Start a process, and wait until it begins to work."""
    ready = SERVER.Event()
    process = SERVER.Process(target=_begin, args=(ready, target, arguments))
    process.start()
    assert ready.wait(120)
    return process


def _begin(ready, target: Callable, arguments: tuple) -> None:
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    ready.set()
    target(*arguments)


def training(folder: Path, data: Path) -> dict:
    return training_run(Study("s", folder), "trained", str(data), SETTINGS, device="cpu")


def evaluation(folder: Path, data: Path) -> dict:
    return evaluation_run(Study("s", folder), "colour", str(data), "colour", device="cpu")


BOTH = pytest.mark.parametrize("target", [training, evaluation])


def outcome(folder: Path) -> dict:
    """The content of every file, except for what changes from run to run."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if path.suffix == ".json" and "rows" in path.parts:
            files[name] = {k: v for k, v in json.loads(path.read_text()).items() if k not in CHANGING}
        elif path.name.startswith("history") or path.parent.name == "history":
            files[name] = pd.read_csv(path).drop(columns="seconds").to_csv()
        elif path.suffix in (".png", ".csv", ".safetensors"):
            files[name] = path.read_bytes()
        elif path.suffix not in (".json", ".pt", ".lock", ".tmp"):  # a kill leaves .tmp files
            files[name] = "not expected"
    return files


@pytest.fixture(scope="module")
def undisturbed(tiny, tmp_path_factory) -> Callable[[Path, Callable], None]:
    """Compares a folder with an undisturbed run; a failure shows the names of the files that differ."""
    made = {}
    for target in (training, evaluation):
        folder = tmp_path_factory.mktemp("whole")
        target(folder, tiny)
        made[target] = outcome(folder)

    def compare(folder: Path, target: Callable) -> None:
        found, expected = outcome(folder), made[target]
        assert not [name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)]
    return compare


@BOTH
def test_killed_at_any_moment(target, tiny, tmp_path, undisturbed, slow, record_property):
    """The same call, repeated, ends like an undisturbed one."""
    begun = time.monotonic()
    target(tmp_path / "whole", tiny)
    seconds, moments, place, done = time.monotonic() - begun, random.Random(0), 0, 0
    while done < (20 if slow else 2):
        process = start(target, tmp_path / str(place), tiny)
        process.join(moments.random() * seconds)
        if process.is_alive():
            process.kill()
            done += 1
            record_property("fault", f"kill -9: {target.__name__}")
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        if process.exitcode == 0:  # it had ended before; the next one gets a new folder
            undisturbed(tmp_path / str(place), target)
            place += 1
    target(tmp_path / str(place), tiny)
    undisturbed(tmp_path / str(place), target)


def test_a_killed_reader_of_clips(tmp_path, record_property):
    """One line reports it; the weights do not depend on the number of workers."""
    record_property("fault", "out of memory: reader of clips")
    videos = open_videos(write_textures(tmp_path / "videos", "abcd"))
    whole = train(SETTINGS, videos, tmp_path / "whole", device="cpu")["encoder"].read_bytes()

    def kill() -> None:
        while not (tmp_path / "run/checkpoint.pt").exists():
            time.sleep(0.01)
        for child in psutil.Process().children(recursive=True):
            if "spawn_main" in " ".join(child.cmdline()):
                child.kill()

    settings = dataclasses.replace(SETTINGS, workers=1)
    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(ChildProcessError, match="checkpoint.pt"):
        train(dataclasses.replace(settings, iterations=40), videos, tmp_path / "run", device="cpu")
    shutil.rmtree(tmp_path / "run")
    assert train(settings, videos, tmp_path / "run", device="cpu")["encoder"].read_bytes() == whole


def test_a_reader_whose_death_is_signalled_after_its_connection_broke(tmp_path, monkeypatch):
    """The signal's handler, which raises, does not replace the line by another error."""
    def late(*_):
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")

    def batches(*_, **__):
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        raise ConnectionResetError
        yield  # makes this a generator, as a loader is read

    monkeypatch.setattr("dulvos.training.DataLoader", batches)
    before = signal.signal(signal.SIGALRM, late)
    try:
        with pytest.raises(ChildProcessError, match="checkpoint.pt"):
            train(SETTINGS, open_videos(write_textures(tmp_path / "videos", "ab")), tmp_path, device="cpu")
        time.sleep(0.2)
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(("target", "most"), [(training, 10**7), (evaluation, 300)])
def test_a_full_disk(target, most, tiny, tmp_path, undisturbed, record_property):
    """With more room the same call continues. A limit on the size of files (bytes) replaces a small disk."""
    record_property("fault", f"disk full: {target.__name__}")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            with pytest.raises(InputError, match=str(tmp_path)):
                target(tmp_path, tiny)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.glob("s/rows/*"))
    target(tmp_path, tiny)
    undisturbed(tmp_path, target)


@pytest.mark.parametrize("target", [
    training, evaluation, lambda folder, data: download(next(iter(ARCHIVES)), folder)],
    ids=["training", "evaluation", "download"])
def test_a_read_only_folder_is_named_first(target, tiny, tmp_path, request, record_property):
    """Before any work."""
    record_property("fault", f"read-only: {request.node.callspec.id}")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,ro", "tmpfs", tmp_path]).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        with pytest.raises(InputError, match=str(tmp_path)):
            target(tmp_path, tiny)
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])  # of the file that is left after a power cut
@pytest.mark.parametrize(("what", "file"), [("row", "s/rows/*.json"), ("encoder", "s/runs/*/*.safetensors")])
def test_half_a_file_is_named_or_made_again(what, file, share, tiny, tmp_path, undisturbed, record_property):
    """The corpus of inputs damages other kinds of files."""
    record_property("fault", f"truncated: {what}")
    training(tmp_path, tiny)
    path, = tmp_path.glob(file)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    if what == "row":
        with pytest.raises(InputError, match=path.name):
            training(tmp_path, tiny)
        path.unlink()
    training(tmp_path, tiny)
    undisturbed(tmp_path, training)


@pytest.mark.parametrize("when", ["before", "during"])
def test_a_frame_that_vanishes_and_comes_back(when, tiny, tmp_path, record_property):
    record_property("fault", f"vanished frame: evaluation, {when}")
    data = shutil.copytree(tiny, tmp_path / "data")
    dataset = load_davis(data, "val")
    frame = data / "JPEGImages/480p/late-entry/00004.jpg"
    kept = frame.read_bytes()
    whole, _ = evaluate(dataset, "colour", tmp_path / "whole")
    if when == "before":
        frame.unlink()
    else:  # after it was checked, and before it is read
        object.__setattr__(dataset.sequences[1].video, "verify", frame.unlink)
    with pytest.raises(InputError, match="00004.jpg"):
        evaluate(dataset, "colour", tmp_path / "out")
    assert (tmp_path / "out" / "translation.json").exists() == (when == "during")
    frame.write_bytes(kept)
    scores, _ = evaluate(load_davis(data, "val"), "colour", tmp_path / "out")
    assert all((a.j == b.j).all() for a, b in zip(scores, whole))


def test_two_evaluations_at_once_end_in_the_same_scores(tiny, tmp_path, undisturbed, record_property):
    record_property("fault", "two at once: evaluation")
    both = [start(evaluation, tmp_path, tiny) for _ in range(2)]
    for process in both:
        process.join(300)
    assert [process.exitcode for process in both] == [0, 0]
    undisturbed(tmp_path, evaluation)


def test_durations_do_not_follow_a_clock_that_jumps(tiny, tmp_path, monkeypatch, record_property):
    record_property("fault", "clock that jumps: evaluation and training")
    real, calls = time.time, []
    monkeypatch.setattr(time, "time", lambda: calls.append(1) or real() + 1e6 * (-1) ** len(calls))
    trained = training(tmp_path, tiny)
    scored = evaluation_run(Study("s", tmp_path), "copy", str(tiny), "copy", SegmentSettings())
    assert 0 <= scored["seconds"] < 60 and 0 < trained["seconds"] < 60


def test_ctrl_c_ends_a_training_and_the_same_command_continues(tiny, tmp_path, undisturbed, record_property):
    record_property("fault", "Ctrl-C: training")
    process = start(training, tmp_path, tiny)
    while not list(tmp_path.glob("s/runs/*/checkpoint.pt")):
        assert process.is_alive()
        time.sleep(0.01)
    ended = list(tmp_path.glob("s/runs/*/encoder.safetensors"))  # on a slow machine, before we looked
    if not ended:
        os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == (0 if ended else 1)
    training(tmp_path, tiny)
    undisturbed(tmp_path, training)
