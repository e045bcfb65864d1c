"""Faults: kill -9, full and read-only disks, half-written files, vanished frames, jumping clocks, two calls at once.

A fault is survived if one clear line tells it, nothing finished is lost, the next call continues, and the numbers are
those of an undisturbed run. Each test records its fault by `record_property`; `python -m tests.trust` counts them.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import psutil
import pytest

from dulvos.datasets import load_davis
from dulvos.errors import InputError
from dulvos.inference import SegmentSettings
from dulvos.masks import read_mask
from dulvos.study.collections import index_videos
from dulvos.study.download import ARCHIVES, download
from dulvos.study.evaluation import evaluate, evaluation_run
from dulvos.study.rows import ROOT, Study
from dulvos.study.runs import training_run
from dulvos.training import TrainSettings, train
from dulvos.videos import find_videos
from tests.oracles import write_textures

SETTINGS = TrainSettings(iterations=4, batch=2, frames=2, crop=32, scale_min=32, scale_max=40, grid=4, cross_grid=2,
                         precision="fp32", checkpoint_minutes=0.0)  # a checkpoint after each iteration
DAMAGED = [0.0, 0.5, 0.99]  # the share of a file that a power cut left

# a server that has imported everything forks the processes that are killed
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


def run_training(folder: Path, data: str) -> None:
    training_run(Study("s", folder), "trained", data, SETTINGS, device="cpu")


def run_evaluation(folder: Path, data: str) -> None:
    evaluation_run(Study("s", folder), "colour", data, "colour", device="cpu")


def outcome(folder: Path) -> dict:
    """Every file to the byte, but for what times, dates and tries change."""
    changing = ("date", "seconds", "cpu_seconds", "seconds_per_iteration", "seconds_per_frame", "peak_memory_mb", "commit",
                "dirty", "threads")
    files = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or path.suffix == ".tmp":  # what a kill leaves beside a mask
            continue
        if path.suffix == ".json" and "rows" in path.parts:
            files[name] = {k: v for k, v in json.loads(path.read_text()).items() if k not in changing}
        elif path.name.startswith("history") or path.parent.name == "history":
            files[name] = pd.read_csv(path).drop(columns="seconds").to_csv()
        elif path.suffix in (".png", ".csv", ".safetensors"):
            files[name] = path.read_bytes()
        elif path.suffix not in (".json", ".pt", ".lock"):
            files[name] = "?"  # anything else, such as a temporary file, is not expected
    return files


def differing(folder: Path, whole: dict) -> list[str]:
    """Files that differ between a folder and an undisturbed outcome; bytes are too long to be shown."""
    made = outcome(folder)
    return sorted(name for name in made.keys() | whole.keys() if made.get(name) != whole.get(name))


@pytest.mark.parametrize("target", [run_training, run_evaluation])
def test_killed_at_any_moment_the_same_call_ends_as_an_undisturbed_one(target, tiny, tmp_path, slow, record_property):
    process, begun = start(target, tmp_path / "whole", str(tiny)), time.monotonic()
    process.join()
    assert process.exitcode == 0
    duration, whole = time.monotonic() - begun, outcome(tmp_path / "whole")
    assert any(name.endswith((".safetensors", ".png")) for name in whole)
    moments, kills, place = random.Random(0), 20 if slow else 2, 0
    done = 0
    while done < kills:
        process = start(target, tmp_path / str(place), str(tiny))
        process.join(moments.random() * duration)
        if process.is_alive():
            process.kill()
            done += 1
        process.join()
        if process.exitcode == 0:  # it was faster; the next one begins in a folder of its own
            assert not differing(tmp_path / str(place), whole)
            place += 1
    target(tmp_path / str(place), str(tiny))
    assert not differing(tmp_path / str(place), whole)
    record_property("faults", [f"kill -9: {target.__name__.removeprefix('run_')}", kills])


def test_a_killed_reader_of_clips_ends_the_run_in_one_line_and_it_continues(tmp_path, record_property):
    record_property("fault", "out of memory: reader of clips")
    videos = find_videos(write_textures(tmp_path / "videos", "abcd"))
    whole = train(SETTINGS, videos, tmp_path / "whole", device="cpu")["encoder"].read_bytes()

    def kill(folder: Path) -> None:
        while not (folder / "checkpoint.pt").exists():
            time.sleep(0.01)
        for child in psutil.Process().children(recursive=True):
            if "spawn_main" in " ".join(child.cmdline()):
                child.kill()

    settings = dataclasses.replace(SETTINGS, workers=1, iterations=40)
    threading.Thread(target=kill, args=(tmp_path / "run",), daemon=True).start()
    with pytest.raises(ChildProcessError, match="checkpoint.pt"):
        train(settings, videos, tmp_path / "run", device="cpu")
    shutil.rmtree(tmp_path / "run")
    assert train(dataclasses.replace(SETTINGS, workers=1), videos, tmp_path / "run", device="cpu")[
        "encoder"].read_bytes() == whole  # any number of readers gives the same weights


@pytest.fixture
def disk(tmp_path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system in memory with these options."""
    mounted = []

    def mount(options: str) -> Path:
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here ({done.stderr.strip()})")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize(("target", "full", "room"), [
    (run_training, "size=150m", "size=1g"), (run_evaluation, "size=1m,nr_inodes=12", "nr_inodes=1000")])
def test_a_full_disk_is_one_line_and_with_room_it_continues(target, full, room, tiny, disk, tmp_path, record_property):
    record_property("fault", f"disk full: {target.__name__.removeprefix('run_')}")
    target(tmp_path / "whole", str(tiny))
    place = disk(full)
    with pytest.raises(InputError, match=str(place)):
        target(place, str(tiny))
    assert not list(place.rglob("*.tmp")) and not list(place.glob("s/rows/*"))
    subprocess.run(["mount", "-o", f"remount,{room}", str(place)], check=True)
    target(place, str(tiny))
    assert not differing(place, outcome(tmp_path / "whole"))


@pytest.mark.parametrize("what", ["training", "evaluation", "download"])
def test_a_read_only_folder_is_named_before_any_work(what, tiny, disk, record_property):
    record_property("fault", f"read-only: {what}")
    place = disk("size=1m,ro")
    with pytest.raises(InputError, match=str(place)):
        if what == "download":
            download(next(iter(ARCHIVES)), place)
        else:
            (run_training if what == "training" else run_evaluation)(place, str(tiny))


def test_files_that_may_not_grow_are_one_line_too(tiny, tmp_path, record_property):
    """A limit on the size of files needs no right to mount."""
    record_property("fault", "file too large: evaluation")
    code = ("import resource, sys; from pathlib import Path; from tests.test_faults import run_evaluation;"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300)); run_evaluation(Path(sys.argv[1]), sys.argv[2])")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), str(tiny)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and str(tmp_path) in done.stderr.splitlines()[-1] and "InputError" in done.stderr
    run_evaluation(tmp_path, str(tiny))


@pytest.mark.parametrize("share", DAMAGED)
@pytest.mark.parametrize("what", ["row", "encoder", "history", "mask"])
def test_half_a_file_is_named_or_made_again(what, share, tiny, tmp_path, record_property):
    record_property("fault", f"truncated: {what}")
    target = run_evaluation if what == "mask" else run_training
    target(tmp_path, str(tiny))
    whole = outcome(tmp_path)
    pattern = {"row": "s/rows/*.json", "encoder": "s/runs/*/*.safetensors", "history": "s/runs/*/history.csv",
               "mask": "s/masks/*/translation/00003.png"}[what]
    path, = tmp_path.glob(pattern)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    if what == "mask":  # a finished sequence keeps its scores, and a damaged mask is never read as one
        with pytest.raises(InputError, match="00003.png"):
            read_mask(path)
        return
    if what == "row":
        with pytest.raises(InputError, match=path.name):
            target(tmp_path, str(tiny))
        path.unlink()
    target(tmp_path, str(tiny))
    if what != "history":  # nothing reads the history of a finished run
        assert not differing(tmp_path, whole)


@pytest.mark.parametrize("share", DAMAGED)
def test_half_an_index_is_made_anew(share, tiny, tmp_path, record_property):
    record_property("fault", "truncated: index")
    whole = index_videos(tiny / "JPEGImages", ["480p"], tmp_path / "index.json")
    data = (tmp_path / "index.json").read_bytes()
    (tmp_path / "index.json").write_bytes(data[: int(share * len(data))])
    again = index_videos(tiny / "JPEGImages", ["480p"], tmp_path / "index.json")
    assert again.fingerprint == whole.fingerprint and (tmp_path / "index.json").read_bytes() == data


@pytest.mark.parametrize("when", ["before", "during"])
def test_a_frame_that_vanishes_is_named_and_back_again_the_evaluation_continues(when, tiny, tmp_path, record_property):
    record_property("fault", f"vanished frame: evaluation, {when}")
    data = shutil.copytree(tiny, tmp_path / "data")
    dataset = load_davis(data, "val")
    frame = data / "JPEGImages/480p/late-entry/00004.jpg"
    kept = frame.read_bytes()
    whole, _ = evaluate(dataset, "colour", tmp_path / "whole")
    if when == "before":
        frame.unlink()
    else:
        video = dataset.sequences[1].video
        object.__setattr__(video, "verify", frame.unlink)  # it is there when it is looked for, and gone when it is read
    with pytest.raises(InputError, match="00004.jpg"):
        evaluate(dataset, "colour", tmp_path / "out")
    assert (tmp_path / "out" / "translation.json").exists() == (when == "during")
    frame.write_bytes(kept)
    scores, _ = evaluate(load_davis(data, "val"), "colour", tmp_path / "out")
    assert all((a.j == b.j).all() for a, b in zip(scores, whole))


def test_a_video_that_vanishes_while_it_is_indexed_is_left_out_by_name(tiny, tmp_path, record_property):
    record_property("fault", "vanished frame: index")
    data = shutil.copytree(tiny / "JPEGImages", tmp_path / "data")
    for frame in (data / "480p/late-entry").iterdir():
        frame.unlink()
    index = index_videos(data, ["480p"], tmp_path / "index.json")
    assert len(index.videos) == 1 and "late-entry" in " ".join(index.notes)


def test_two_evaluations_at_once_end_in_the_same_scores(tiny, tmp_path, record_property):
    record_property("fault", "two at once: evaluation")
    run_evaluation(tmp_path / "whole", str(tiny))
    both = [start(run_evaluation, tmp_path / "both", str(tiny)) for _ in range(2)]
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert not differing(tmp_path / "both", outcome(tmp_path / "whole"))


def test_durations_do_not_follow_a_clock_that_jumps(tiny, study, monkeypatch, record_property):
    record_property("fault", "clock that jumps: evaluation and training")
    real, calls = time.time, []
    monkeypatch.setattr(time, "time", lambda: calls.append(1) or real() + 1e6 * (-1) ** len(calls))
    trained = training_run(study, "trained", str(tiny), SETTINGS, device="cpu")
    scored = evaluation_run(study, "copy", str(tiny), "copy", SegmentSettings())
    assert 0 <= scored["seconds"] < 60 and 0 < trained["seconds"] < 60


def test_ctrl_c_ends_a_training_and_the_same_command_continues(tiny, tmp_path, record_property):
    record_property("fault", "Ctrl-C: training")
    run_training(tmp_path / "whole", str(tiny))
    process = start(run_training, tmp_path / "run", str(tiny))
    while not list((tmp_path / "run").glob("s/runs/*/checkpoint.pt")):
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    process.join()
    run_training(tmp_path / "run", str(tiny))
    assert not differing(tmp_path / "run", outcome(tmp_path / "whole"))
