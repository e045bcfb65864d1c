"""`python -m dulvos segment`: a video and a mask in, masks and a movie out; bad input is one line before any work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from dulvos import movies, videos
from dulvos.__main__ import main
from dulvos.masks import read_mask, write_mask
from dulvos.study import results, runs, work
from dulvos.study import steps as study
from tests.oracles import write_textures

SIZE, LENGTH = (49, 80), 5


@pytest.fixture
def clip(tmp_path):
    """A video of odd height, as a file and as a folder, and a mask of its first frame."""
    frames = np.random.default_rng(2).integers(0, 255, (LENGTH, *SIZE, 3), np.uint8)
    (tmp_path / "clip").mkdir()
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / "clip" / f"{index:05d}.jpg")
    movies.write_mp4(tmp_path / "clip.mp4", [frame[:48] for frame in frames], 12)
    for name, size in (("mask", SIZE), ("even", (48, 80))):
        ids = np.zeros(size, np.uint8)
        ids[10:30, 20:50], ids[30:40, 60:] = 1, 3
        write_mask(tmp_path / f"{name}.png", ids)
    return tmp_path


def run(*arguments):
    return main(["segment", *map(str, arguments), "--checkpoint", "random", "--device", "cpu"])


def test_a_folder_of_frames_gives_masks_and_a_movie(clip, capsys):
    assert run(clip / "clip", clip / "mask.png", clip / "out") == 0
    assert sorted(file.name for file in (clip / "out").glob("[!.]*")) == [*(f"{t:05d}.png" for t in range(LENGTH)), "overlay.mp4"]
    for t in range(LENGTH):
        ids = read_mask(clip / "out" / f"{t:05d}.png")
        assert ids.shape == SIZE and set(np.unique(ids)) <= {0, 1, 3}
    assert np.array_equal(read_mask(clip / "out" / "00000.png"), read_mask(clip / "mask.png"))
    movie = videos.open_video(clip / "out" / "overlay.mp4")
    assert len(movie) == LENGTH and movie.size == (50, 80) and movies.frame_rate(movie) == 24
    assert f"{LENGTH} frames" in capsys.readouterr().out


def test_a_video_file_keeps_its_rate_and_later_masks_are_taken(clip):
    assert run(clip / "clip.mp4", clip / "even.png", f"3={clip / 'even.png'}", clip / "out", "--shorter-side", 24) == 0
    assert np.array_equal(read_mask(clip / "out" / "00003.png"), read_mask(clip / "even.png"))
    assert movies.frame_rate(videos.open_video(clip / "out" / "overlay.mp4")) == 12
    assert run(clip / "clip.mp4", clip / "even.png", clip / "plain", "--no-mp4") == 0
    assert not (clip / "plain" / "overlay.mp4").exists() and len(list((clip / "plain").glob("[!.]*"))) == LENGTH


def test_settings_reach_the_propagation(clip):
    other = ("--layer", "res3", "--topk", 1, "--context", 1, "--radius", 2.5, "--precision", "fp32")
    for name, options in (("a", ()), ("b", other)):
        assert run(clip / "clip", clip / "mask.png", clip / name, "--no-mp4", *options) == 0
    a, b = (read_mask(clip / name / "00004.png") for name in "ab")
    assert not np.array_equal(a, b)


@pytest.mark.parametrize(("wrong", "match"), [
    ({"video": "absent.mp4"}, "absent.mp4"), ({"video": "mask.png"}, "not a video"), ({"mask": "absent.png"}, "absent.png"),
    ({"mask": "even.png"}, "80x48"), ({"mask": "empty.png"}, "no object"), ({"mask": "text.png"}, "text.png"),
    ({"mask": "9=mask.png"}, "0 to 4"), ({"out": "text.png"}, "text.png"), ({"out": "clip"}, "video's frames"),
    ({"options": ["--checkpoint", "davis2099"]}, "davis2099"), ({"options": ["--layer", "res9"]}, "res9"),
    ({"options": ["--topk", "0"]}, "topk"), ({"options": ["--fps", "0"]}, "fps"),
    ({"options": ["--device", "abacus"]}, "abacus"),
    ({"options": ["--shorter-side", "3"]}, "shorter_side"), ({"options": ["--precision", "fp8"]}, "fp8"),
    ({"options": ["--topk", "1000"]}, "topk")])
def test_bad_input_is_one_line_and_status_2_before_any_work(clip, capsys, monkeypatch, wrong, match):
    monkeypatch.chdir(clip)
    write_mask("empty.png", np.zeros(SIZE, np.uint8))
    (clip / "text.png").write_text("no picture")
    out = wrong.get("out", "out")
    write_mask("out/00004.png", np.ones(SIZE, np.uint8))  # of an earlier run
    arguments = [wrong.get("video", "clip"), wrong.get("mask", "mask.png"), out, *wrong.get("options", [])]
    assert main(["segment", "--checkpoint", "random", *arguments]) == 2
    lines = capsys.readouterr().err.rstrip("\n").split("\n")
    assert lines[-1].startswith("error: ") and match in lines[-1]
    assert len(lines) == 1 or "1000" in arguments  # that one shows once the first frame's cells are counted
    assert os.listdir("out") == ["00004.png"]


def test_help_says_what_goes_in_and_what_a_stopped_run_does(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["segment", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    for words in ("FRAME=PNG", "overlay.mp4", "starts again at the first frame", "--shorter-side", "davis2016"):
        assert words in text


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_stopped_in_the_middle_it_leaves_whole_masks_and_the_same_command_ends_well(clip, stop):
    long = clip / "long"
    long.mkdir()
    for index in range(30):
        os.link(clip / "clip" / f"{index % LENGTH:05d}.jpg", long / f"{index:05d}.jpg")
    command = [sys.executable, "-m", "dulvos", "segment", long, clip / "mask.png", clip / "out", "--checkpoint", "random"]
    process = subprocess.Popen(command, cwd=results.ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while not (clip / "out" / "00001.png").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(stop)
    said = process.communicate()[1]
    if stop == signal.SIGINT:
        assert process.returncode == 130 and "starts again at the first frame" in said
    written = sorted((clip / "out").glob("[0-9]*.png"))
    assert 2 <= len(written) < 30 and all(read_mask(file).shape == SIZE for file in written)
    assert not (clip / "out" / "overlay.mp4").exists()
    assert main([str(part) for part in command[3:]]) == 0
    assert len(list((clip / "out").glob("[0-9]*.png"))) == 30 and (clip / "out" / "overlay.mp4").exists()


def test_train_takes_settings_by_name_and_leaves_a_row(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    write_textures(tmp_path / "videos", "ab")
    data = ["train", str(tmp_path / "videos"), "--study", "s", "--device", "cpu"]
    small = ["iterations=1", "batch=2", "frames=2", "crop=64", "scale_min=64", "scale_max=72", "lr=1e-3", "jitter=independent"]
    assert main([*data, "--set", *small]) == 0
    row = results.read_rows("s").iloc[0]
    assert row["parameters.jitter"] == "independent" and row["parameters.lr"] == 1e-3 and row["name"] == "trained"
    for wrong, said in ((["lr"], "'lr' is no setting; expected NAME=VALUE"), (["lrate=1"], "unknown setting lrate; the settings are"),
                        (["batch=two"], "batch must be int, not 'two'")):
        assert main([*data, "--set", *wrong]) == 2
        assert said in capsys.readouterr().err


def test_a_gpu_that_is_too_small_is_one_line(monkeypatch, capsys):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    monkeypatch.setattr(runs, "training_run", full)
    assert main(["train", "cutouts", "--study", "s"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: CUDA out of memory. Tried to allocate 2 GiB. Give less: a smaller batch") and said.count("\n") == 1


@pytest.mark.parametrize(("arguments", "statuses", "calls"), [
    (["demo"], (0, 0), ["study demo"]),
    (["demo", "--grid"], (0, 0), ["study demo", "grid ablation-demo", "draw demo"]),
    (["demo", "--grid"], (1, 0), ["study demo", "grid ablation-demo", "draw demo"]),
    (["davis", "--davis", ".", "--grid"], (0, 1), ["study davis", "grid ablation-davis", "draw davis"]),
])
def test_the_grid_follows_the_study_and_either_failure_counts(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], statuses: tuple[int, int], calls: list[str]
) -> None:
    made = []
    monkeypatch.setenv("DULVOS_DAVIS", "")  # which the command sets: given back afterwards
    monkeypatch.setattr(study, "run_study", lambda name, steps, data: made.append(f"study {name}") or statuses[0])
    monkeypatch.setattr(work, "run_grid", lambda grid: made.append(f"grid {grid.folder}") or statuses[1])
    monkeypatch.setattr(work, "draw", lambda name: made.append(f"draw {name}") or 0)
    assert main(["study", *arguments]) == max(statuses) and made == calls
