"""What else goes wrong: no memory left, clocks that jump, frames that vanish, two at once."""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
import torch

from dulvos import losses, training, videos

from dulvos.study import evaluation, runs, steps as study
from dulvos.__main__ import main
from dulvos.datasets import load_davis
from dulvos.errors import InputError
from dulvos.study.evaluation import evaluate
from dulvos.study.collections import index_videos
from dulvos.inference import SegmentSettings
from dulvos.study.runs import evaluation_run, training_run
from dulvos.trainer import train
from dulvos.training import training_loss
from dulvos.videos import find_videos
from tests.oracles import write_textures
from tests.test_faults_kill import start
from tests.test_runs import SETTINGS, data, folder  # noqa: F401
from tests.test_study import bench  # noqa: F401
from tests.test_training import SMALL

ROOT = Path(__file__).resolve().parent.parent
TINY = dataclasses.replace(SMALL, iterations=3, batch=2, checkpoint_minutes=60.0)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list:
    return find_videos(write_textures(tmp_path_factory.mktemp("textures"), "abcd"))


@pytest.fixture(scope="module")
def weights(videos: list, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Of an undisturbed run of `TINY`."""
    return train(TINY, videos, tmp_path_factory.mktemp("whole"), device="cpu")["encoder"].read_bytes()


# memory that runs out

def test_a_killed_reader_of_clips_ends_the_run_in_one_line_and_it_continues(videos: list, weights: bytes, tmp_path: Path,
                                                                            monkeypatch: pytest.MonkeyPatch,
                                                                            record_property: Callable) -> None:
    """As the kernel does when memory runs out; torch says so in the middle of whatever this process does."""
    record_property("fault", "out of memory: reader of clips")
    real, steps = training_loss, []

    def kill_a_reader(*arguments: object, **named: object) -> losses.LossOutput:
        steps.append(1)
        readers = [child for child in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(child.cmdline())]
        if len(steps) == 2:
            readers[0].send_signal(signal.SIGKILL)
            time.sleep(5)
        return real(*arguments, **named)

    monkeypatch.setattr(training, "training_loss", kill_a_reader)
    # more batches than a reader prepares ahead
    settings = dataclasses.replace(TINY, iterations=12, workers=1, checkpoint_minutes=0.0)
    with pytest.raises(ChildProcessError, match=r"^a process that reads clips was killed \(out of memory\?\); [^\n]*checkpoint"
                       r"\.pt is kept, the same call continues; give fewer workers$"):
        train(settings, videos, tmp_path, device="cpu")
    assert not (tmp_path / "encoder.safetensors").exists()
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["iteration"] == 1
    monkeypatch.undo()
    assert train(dataclasses.replace(TINY, workers=1), videos, tmp_path, device="cpu")["encoder"].read_bytes() == weights


@pytest.mark.parametrize("error", [FloatingPointError("loss nan"), ChildProcessError("a reader was killed")])
def test_what_ends_a_training_ends_the_command_in_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch,
                                                           capsys: pytest.CaptureFixture) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(runs, "training_run", fail)
    assert main(["train", "cutouts", "--study", "s"]) == 1 and capsys.readouterr().err == f"error: {error}\n"


def test_a_killed_kernel_fails_its_step_in_one_line(bench: Path, capsys: pytest.CaptureFixture,  # noqa: F811
                                                    record_property: Callable) -> None:
    record_property("fault", "out of memory: notebook")
    notebook = nbformat.read(bench / "bad.ipynb", as_version=4)
    notebook.cells[1].source = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    nbformat.write(notebook, bench / "bad.ipynb")
    steps = [study.Step("bad", "broken"), study.Step("good", "other", {"word": "b"})]
    assert study.run_study("s", steps, "x") == 1
    printed = capsys.readouterr().out
    assert "[broken] FAILED: its kernel was killed (out of memory?)" in printed and (bench / "ran").read_text() == "b"


class Clock:
    """Days forwards and years back at each look."""

    def __init__(self) -> None:
        self.jumps = itertools.cycle((0.0, 86_400.0, -3e8, 2e9, -1e9))

    def __call__(self) -> float:
        return 1.7e9 + next(self.jumps)


def test_durations_do_not_follow_a_clock_that_jumps(data: str, folder: Path, monkeypatch: pytest.MonkeyPatch,  # noqa: F811
                                                    record_property: Callable) -> None:
    record_property("fault", "clock that jumps: training")
    record_property("fault", "clock that jumps: evaluation")
    begun = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", Clock())
        trained = training_run("s", "trained", data, SETTINGS, device="cpu")
        scored = evaluation_run("s", "trained", data, "trained", SegmentSettings(), device="cpu")
    spent = time.monotonic() - begun
    history = pd.read_csv(folder / "history" / f"trained-{trained['key']}.csv")
    assert 0 < trained["seconds"] < spent and history.seconds.is_monotonic_increasing
    assert 0 < scored["seconds"] < spent and 0 < scored["seconds_per_frame"] < spent
    assert training_run("s", "trained", data, SETTINGS, device="cpu") == trained, "done, whatever the date"


def test_a_study_and_its_lock_do_not_follow_the_clock(bench: Path, monkeypatch: pytest.MonkeyPatch,  # noqa: F811
                                                      record_property: Callable) -> None:
    record_property("fault", "clock that jumps: study")
    monkeypatch.setattr(study.time, "time", Clock())
    steps = [study.Step("good", "first", {"word": "a"})]
    assert study.run_study("s", steps, "x") == 0 and study.run_study("s", steps, "x") == 0
    assert (bench / "ran").read_text() == "a"
    copy = nbformat.read(study.executed_copy("s", steps[0]), as_version=4)
    assert 0 <= copy.metadata.dulvos.minutes < 5


def test_an_index_does_not_trust_dates_of_the_future(tmp_path: Path, dataset, record_property: Callable) -> None:  # noqa: F811
    """A folder whose date differs in whatever direction is read again."""
    root = shutil.copytree(dataset.root / "JPEGImages" / "480p", tmp_path / "videos")
    before = index_videos(root, [""], tmp_path / "index.json").fingerprint
    for stamp in (4e9, 1e8):
        record_property("fault", "clock that jumps: index")
        (root / "translation" / f"{int(stamp)}.jpg").write_bytes((root / "translation" / "00000.jpg").read_bytes())
        os.utime(root / "translation", (stamp, stamp))
        after = index_videos(root, [""], tmp_path / "index.json").fingerprint
        assert after != before
        before = after


# frames that vanish between indexing and reading

def test_a_frame_that_vanishes_before_evaluation_is_named_before_anything_is_propagated(dataset, tmp_path: Path,  # noqa: F811
                                                                                        record_property: Callable) -> None:
    record_property("fault", "vanished frame: evaluation")
    found = load_davis(shutil.copytree(dataset.root, tmp_path / "data"), "val")
    (found.sequences[1].video.path / "00004.jpg").unlink()
    with pytest.raises(InputError, match=r"late-entry.00004\.jpg: unreadable frame \(no such file"):
        evaluate(found, "colour", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_frame_that_vanishes_during_evaluation_is_named_and_back_again_it_continues(dataset, tmp_path: Path,  # noqa: F811
                                                                                      monkeypatch: pytest.MonkeyPatch,
                                                                                      record_property: Callable) -> None:
    record_property("fault", "vanished frame: evaluation, meanwhile")
    found = load_davis(shutil.copytree(dataset.root, tmp_path / "data"), "val")
    whole, _ = evaluate(found, "colour", tmp_path / "whole")
    frame, real = found.sequences[1].video.path / "00004.jpg", evaluation.score_sequence

    def vanish(*arguments: object, **named: object) -> object:
        frame.rename(tmp_path / "hidden.jpg")  # the first sequence is done
        return real(*arguments, **named)

    monkeypatch.setattr(evaluation, "score_sequence", vanish)
    with pytest.raises(InputError, match=r"late-entry.00004\.jpg: unreadable frame \(no such file"):
        evaluate(found, "colour", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").glob("*.json")] == ["translation.json"]
    monkeypatch.undo()
    (tmp_path / "hidden.jpg").rename(frame)
    again, _ = evaluate(found, "colour", tmp_path / "out")
    assert all(np.array_equal(a.j, b.j) and np.array_equal(a.f, b.f) for a, b in zip(whole, again))


def test_a_video_that_vanishes_while_it_is_indexed_is_left_out_by_name(dataset, tmp_path: Path,  # noqa: F811
                                                                       monkeypatch: pytest.MonkeyPatch,
                                                                       record_property: Callable) -> None:
    record_property("fault", "vanished frame: index")
    root = shutil.copytree(dataset.root / "JPEGImages" / "480p", tmp_path / "videos")
    real = videos.header_size

    def vanish(path: Path) -> tuple[int, int]:
        if path.parent.name == "late-entry":
            path.unlink()  # its name was read, its header not yet
        return real(path)

    monkeypatch.setattr(videos, "header_size", vanish)
    index = index_videos(root, [""], tmp_path / "index.json")
    assert [video.name for video in index.videos] == ["translation"]
    assert "1 without a readable video, left out; the first:" in index.notes[0] and "00000.jpg" in index.notes[0]


def test_two_run_all_at_once_the_second_says_who_holds_the_folder(tmp_path: Path, record_property: Callable) -> None:
    record_property("fault", "two at once: run_all.sh")
    code = ("import sys, pathlib; from dulvos.study.steps import lock\n"
            "with lock(pathlib.Path(sys.argv[1])): print('held', flush=True); input()")
    environment = os.environ | {"DULVOS_RESULTS": str(tmp_path), "DULVOS_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "demo")], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert holder.stdout.readline() == "held\n"
        done = subprocess.run(["bash", str(ROOT / "run_all.sh"), "demo"], env=environment, capture_output=True, text=True,
                              check=False)
        assert done.returncode == 2
        assert done.stderr == f"error: {tmp_path / 'demo'}: in use by process {holder.pid}; wait for it or stop it\n"
        assert [path.name for path in (tmp_path / "demo").iterdir()] == [".lock"], "it wrote nothing"
    finally:
        holder.kill()
        holder.wait()


def _evaluate(folder: Path, root: Path, scores: Path) -> None:
    found, _ = evaluate(load_davis(root, "val"), "colour", folder)
    np.save(scores, np.concatenate([score.j for score in found]))


def test_two_evaluations_by_hand_at_once_end_in_the_same_scores(dataset, tmp_path: Path,  # noqa: F811
                                                                record_property: Callable) -> None:
    """Notebooks run by hand hold no lock; each mask is replaced whole by an equal one."""
    record_property("fault", "two at once: evaluation")
    pair = [start(_evaluate, tmp_path / "out", dataset.root, tmp_path / f"{i}.npy") for i in range(2)]
    for process in pair:
        process.join()
        assert process.exitcode == 0
    _evaluate(tmp_path / "alone", dataset.root, tmp_path / "alone.npy")
    assert all(np.array_equal(np.load(tmp_path / f"{i}.npy"), np.load(tmp_path / "alone.npy")) for i in range(2))
