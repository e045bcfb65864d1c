"""The command line: what each command does; bad input ends it with one line before any work."""

import io
import os
import signal
import subprocess
import sys
import time
from collections import deque

import numpy as np
import pytest
import torch
from PIL import Image

import dulvos
from dulvos import masks, movies, videos
from dulvos.__main__ import main
from dulvos.checkpoints import save_encoder
from dulvos.masks import read_mask, write_mask
from dulvos.study.rows import ROOT, Study
from dulvos.study.runs import open_data

SIZE, LENGTH = (49, 80), 5


@pytest.fixture
def clip(tmp_path, monkeypatch):
    """A video of odd height, as a folder and as a file, and masks of its first frame; the working folder."""
    frames = np.random.default_rng(2).integers(0, 255, (LENGTH, *SIZE, 3), np.uint8)
    (tmp_path / "clip").mkdir()
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / "clip" / f"{index:05d}.jpg")
    movies.write_mp4(tmp_path / "clip.mp4", [frame[:48] for frame in frames], 12)
    for name, size in (("mask", SIZE), ("even", (48, 80))):
        ids = np.zeros(size, np.uint8)
        ids[10:30, 20:50], ids[30:40, 60:] = 1, 3
        write_mask(tmp_path / f"{name}.png", ids)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def segment(*arguments):
    return main(["segment", *map(str, arguments), "--checkpoint", "random", "--device", "cpu"])


def test_a_folder_of_frames_gives_masks_and_a_movie(clip, capsys):
    assert segment("clip", "mask.png", "out") == segment("clip", "mask.png", "out") == 0
    names = sorted(file.name for file in (clip / "out").glob("[!.]*"))
    assert names == [*(f"{t:05d}.png" for t in range(LENGTH)), masks.MOVIE]
    for t in range(LENGTH):
        ids = read_mask(f"out/{t:05d}.png")
        assert ids.shape == SIZE and set(np.unique(ids)) <= {0, 1, 3}
    assert np.array_equal(read_mask("out/00000.png"), read_mask("mask.png"))
    movie = videos.open_video(clip / "out" / masks.MOVIE)
    assert len(movie) == LENGTH and movie.size == (50, 80) and movie.rate == 24
    assert f"{LENGTH} frames" in capsys.readouterr().out


def test_a_video_file_keeps_its_rate_and_later_masks_are_taken(clip):
    assert segment("clip.mp4", "even.png", "3=even.png", "out", "--shorter-side", 24) == 0
    assert np.array_equal(read_mask("out/00003.png"), read_mask("even.png"))
    assert videos.open_video(clip / "out" / masks.MOVIE).rate == 12
    assert segment("clip.mp4", "even.png", "plain", "--no-mp4") == 0
    assert len(list((clip / "plain").glob("[!.]*"))) == LENGTH
    assert (read_mask("plain/00001.png") != read_mask("out/00001.png")).any()  # --shorter-side has an effect


def test_ends_of_objects_are_taken_from_the_painters_folder(clip):
    video = videos.open_video(clip / "clip")
    masks.save_given(clip / "given", video, {0: read_mask("mask.png")}, {2: [3]})
    assert segment("clip", "given", "ended", "--no-mp4") == 0
    assert [3 in read_mask(f"ended/{t:05d}.png") for t in range(4)] == [True, True, False, False]


@pytest.mark.parametrize(("wrong", "match"), [
    ({"video": "absent.mp4"}, "absent.mp4"), ({"video": "mask.png"}, "mask.png"),
    ({"mask": "absent.png"}, "absent.png"), ({"mask": "even.png"}, "80x48"),
    ({"mask": "empty.png"}, "empty.png"), ({"mask": "text.png"}, "text.png"),
    ({"mask": "9=mask.png"}, "0 to 4"), ({"out": "text.png"}, "text.png"), ({"out": "clip"}, "clip"),
    ({"options": ["--checkpoint", "davis2099"]}, "davis2099"), ({"options": ["--layer", "res9"]}, "res9"),
    ({"options": ["--topk", "0"]}, "topk"),
    ({"options": ["--device", "abacus"]}, "abacus"), ({"options": ["--shorter-side", "3"]}, "shorter_side"),
    ({"options": ["--precision", "fp8"]}, "fp8"), ({"options": ["--topk", "1000"]}, "topk")])
def test_bad_input_is_one_line_and_status_2_before_any_work(clip, capsys, wrong, match):
    write_mask("empty.png", np.zeros(SIZE, np.uint8))
    (clip / "text.png").write_text("no picture")
    out = wrong.get("out", "out")
    earlier = [(4, np.ones(SIZE, np.uint8))]
    deque(masks.save_masks(earlier, videos.open_video("clip"), clip / "out"), maxlen=0)
    arguments = [wrong.get("video", "clip"), wrong.get("mask", "mask.png"), out, *wrong.get("options", [])]
    assert main(["segment", "--checkpoint", "random", *arguments]) == 2
    lines = capsys.readouterr().err.rstrip("\n").split("\n")
    assert lines[-1].startswith("error: ") and match in lines[-1]
    assert len(lines) == 1 or "1000" in arguments  # a topk that is too large is noticed at the first frame
    assert os.listdir("out") == ["00004.png"]


@pytest.mark.parametrize(("arguments", "named"), [
    ("segment clip.mp4", "OUT"), ("segment clip out", "OUT"), ("segment clip mask.png 3=mask.png", "OUT"),
    ("davis", "DULVOS_DAVIS"), ("davis --davis absent", "absent"), ("davis --davis .", "ImageSets"),
    ("grid --davis clip", "--davis"), ("grid --study davis --run", "DULVOS_DAVIS"),
    ("grid --only N5-0", "N5-0"), ("paper --rows crw", "--data"), ("paper --data absent", "absent"),
    ("paper --data clip --rows mast", "mast"), ("index --data clip", "--data clip"),
    ("index absent", "absent"), ("train absent --study s", "absent"), ("train clip --study ../s", "../s"),
    ("train clip --study s --batch 0", "batch"), ("train youtube-vos --study s", "DULVOS_DATA_DIR"),
    ("evaluate --encoder random", "--davis"), ("evaluate --encoder random --davis absent", "absent"),
    ("evaluate --encoder --davis clip", "--encoder"),
    ("evaluate --encoder random --davis clip --youtube-vos clip", "--youtube-vos"),
    ("evaluate --encoder random --davis {tiny} --study ../s", "../s")])
def test_other_commands_refuse_bad_input_in_one_line(clip, tiny, capsys, arguments, named):
    assert main(arguments.format(tiny=tiny).split()) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and named in said.err
    assert not said.out and not (clip / "results").exists()


@pytest.mark.parametrize("error", [FloatingPointError, ChildProcessError, torch.OutOfMemoryError])
def test_a_training_that_cannot_go_on_ends_with_status_1(monkeypatch, capsys, error):
    def fail(*_, **__):
        raise error("why")

    monkeypatch.setattr("dulvos.study.runs.training_run", fail)
    assert main(["train", "cutouts", "--study", "s"]) == 1 and "error: why" in capsys.readouterr().err


def test_importing_dulvos_is_light():
    code = "import dulvos, sys; print({'timm', 'dask', 'distributed', 'papermill'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_comparison_that_would_ignore_other_options_is_refused(capsys):
    for more in (["--grid"], ["--setting", "paper"]):
        assert main(["davis", "--compare", *more]) == 2 and more[0] in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_letters_that_a_terminal_lacks_are_escaped(monkeypatch, encoding):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding, write_through=True))
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0 and rb"\u03c4" in sys.stdout.buffer.getvalue()


def test_the_version_is_told(capsys):
    assert main(["--version"]) == 0 and dulvos.__version__ in capsys.readouterr().out


def test_a_tilde_is_the_users_folder(clip, tiny, monkeypatch):
    """Shells do not expand it after "=", and notebooks never do."""
    monkeypatch.setenv("HOME", str(clip))
    assert segment("~/clip", "0=~/mask.png", "~/out", "--no-mp4") == 0 and (clip / "out/00004.png").exists()
    (clip / "tiny").symlink_to(tiny)
    encoder = save_encoder(dulvos.load_encoder("random"), clip / "a.safetensors")
    mask = read_mask("~/mask.png")
    video = dulvos.open_video("~/clip")
    assert len(video) == LENGTH and dulvos.load_encoder(f"~/{encoder.name}")
    assert np.array_equal(masks.given_masks(video, ["~/out"])[0], mask)
    assert np.array_equal(masks.given_masks(video, ["0=~/mask.png"])[0], mask)
    (clip / "videos").mkdir()
    (clip / "videos/a").symlink_to(clip / "clip")
    for data in ("~/tiny", "~/videos"):
        assert open_data(data, "train").sequences
    monkeypatch.setenv("DULVOS_DAVIS", "~/tiny")
    assert open_data("davis", "val").sequences and Study("s", "~/results").results == clip / "results"


def test_encoders_are_compared_on_the_command_line(tiny, tmp_path, capsys, monkeypatch):
    assert main(["evaluate", "--encoder", "copy", "colour", "--davis", str(tiny), "--protocol", "dino",
                 "--shorter-side", "64"]) == 0
    said = capsys.readouterr().out
    assert set(Study("encoders").rows()["parameters.context"]) == {7}
    assert all(word in said for word in ("copy", "colour", "J&F-Mean", "seconds a frame"))
    assert len(list((tmp_path / "results/encoders/rows").glob("evaluate-*.json"))) == 2
    (tmp_path / "davis").symlink_to(tiny)
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "--encoder", "copy", "--davis", "davis"]) == 0, "a folder of that name"
    assert main(["evaluate", "--encoder", "copy", "--davis", "davis", "--split", "local"]) == 2


@pytest.mark.parametrize("arguments", [
    ["segmen"], ["segment"], ["demo", "--davis", "x"], ["davis", "--setting", "gpu"],
    ["segment", "a", "b", "c", "--topk", "many"], []])
def test_words_that_are_no_command_or_option_end_with_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2


@pytest.mark.parametrize(("command", "words"), [
    ("davis", "--davis --setting --compare"), ("grid", "--run --scheduler"),
    ("paper", "--dry-run --selected"), ("train", "--lam 0.1 --study"), ("index", "--data"),
    ("evaluate", "--encoder timm:MODEL --processes --topk"),
    ("segment", "--tau 0.05 --shorter-side FRAME=PNG"), ("download", "davis2016 --to")])
def test_help_names_options_and_defaults(command, words, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and all(word in text for word in words.split())


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_stopped_in_the_middle_it_leaves_whole_masks_and_the_same_command_ends_well(clip, stop):
    (clip / "long").mkdir()
    for index in range(100):
        os.link(clip / "clip" / f"{index % LENGTH:05d}.jpg", clip / "long" / f"{index:05d}.jpg")
    words = ["segment", *(str(clip / name) for name in ("long", "mask.png", "out")), "--checkpoint", "random"]
    process = subprocess.Popen([sys.executable, "-m", "dulvos", *words], cwd=ROOT, stderr=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL,  # a job in the background ignores SIGINT
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    while not (clip / "out" / "00001.png").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(stop)
    assert process.wait() == (130 if stop == signal.SIGINT else -stop)
    written = sorted((clip / "out").glob("[0-9]*.png"))
    assert 2 <= len(written) < 100 and all(read_mask(file).shape == SIZE for file in written)
    assert not (clip / "out" / masks.MOVIE).exists()
    assert main(words) == 0
    assert len(list((clip / "out").glob("[0-9]*.png"))) == 100 and (clip / "out" / masks.MOVIE).exists()
