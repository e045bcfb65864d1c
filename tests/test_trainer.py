"""A training run from start to end, cut off and gone on with, stopped by what cannot be read."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import dulvos
from dulvos import devices, losses, training
from dulvos.checkpoints import load_encoder
from dulvos.clips import Clips
from dulvos.encoder import prepare_frames
from dulvos.errors import InputError
from dulvos.trainer import train
from dulvos.training import training_loss
from dulvos.videos import find_videos
from tests.oracles import write_textures
from tests.test_training import SMALL


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list:
    return find_videos(write_textures(tmp_path_factory.mktemp("textures"), "abcd"))


@pytest.fixture(scope="module")
def whole(videos: list, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run that was never cut off."""
    folder = tmp_path_factory.mktemp("whole")
    result = train(dataclasses.replace(SMALL, checkpoint_minutes=60), videos, folder, device="cpu")
    assert result["encoder"] == folder / "encoder.safetensors" and result["iterations"] == SMALL.iterations
    assert result["device"] == "cpu" and result["videos"] == 4
    assert all(np.isfinite(result[name]) for name in ("loss", "loss_st", "loss_cv"))
    assert result["seconds"] > 0 and result["peak_memory_mb"] > 100
    return folder


def history(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "history.csv")


def test_history_and_schedule(whole: Path) -> None:
    rows = history(whole)
    assert list(rows.columns) == ["iteration", "loss", "loss_st", "loss_cv", "lr", "seconds"]
    assert rows.iteration.tolist() == list(range(1, SMALL.iterations + 1))
    assert rows.lr.to_numpy() == pytest.approx(1e-3 * 0.5 ** (np.arange(SMALL.iterations) // SMALL.lr_every))
    assert rows.loss.to_numpy() == pytest.approx((rows.loss_st + 0.1 * rows.loss_cv).to_numpy(), rel=1e-5)
    assert rows.seconds.is_monotonic_increasing
    files = sorted(file.name for file in whole.iterdir())
    assert files == ["checkpoint.pt", "encoder.json", "encoder.safetensors", "history.csv"]


def test_loss_decreases(videos: list, whole: Path) -> None:
    """On other clips of the videos, before and after training, with the same 𝒯 and grids: each draw's own loss varies more."""
    dataset = Clips(videos, frames=2, gap=2, crop=64, scale=(64, 72), seed=1)
    frames = prepare_frames(torch.stack([dataset[number] for number in range(4)]))
    nets = [load_encoder("random", seed=SMALL.seed).train(), load_encoder(whole / "encoder.safetensors").train()]
    with torch.no_grad():
        before, after = ([training_loss(net, frames, SMALL, torch.Generator().manual_seed(seed)).total.item()
                          for seed in range(4)] for net in nets)
    assert np.mean(before) - np.mean(after) > 0.5, (before, after)


def test_the_optimiser_is_the_paper_s(whole: Path) -> None:
    state = torch.load(whole / "checkpoint.pt", weights_only=True)
    weights, biases = state["optimiser"]["param_groups"]
    for group, rate, decay in ((weights, 1e-3, 5e-4), (biases, 2e-3, 0)):
        assert tuple(group["betas"]) == (0.5, 0.999)
        assert (group["initial_lr"], group["weight_decay"]) == (pytest.approx(rate), decay)
        assert group["lr"] == pytest.approx(rate * 0.5 ** (SMALL.iterations // SMALL.lr_every))


def test_the_encoder_is_the_last_one(whole: Path) -> None:
    trained = load_encoder(whole / "encoder.safetensors").state_dict()
    last = torch.load(whole / "checkpoint.pt", weights_only=True)["net"]
    assert all(torch.equal(value, last[name]) for name, value in trained.items())
    assert trained["backbone.bn1.num_batches_tracked"] == 2 * SMALL.iterations


CHILD = """
import sys
from tests.test_training import SMALL
from dulvos.trainer import train
from dulvos.videos import find_videos
train(SMALL, find_videos(sys.argv[1]), sys.argv[2], device="cpu")
"""


def test_a_run_that_was_killed_goes_on_to_the_bit(videos: list, whole: Path, tmp_path: Path) -> None:
    """Weights, both moments of Adam, schedule, clips, 𝒯 and grids: if one were lost, the numbers would part."""
    roots = [Path(dulvos.__file__).parent.parent, Path(__file__).parent.parent]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, roots))}
    with open(tmp_path / "log", "w") as log:
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(videos[0].path.parent), str(tmp_path)], env=environment,
                                 stdout=log, stderr=log)
        while not (tmp_path / "checkpoint.pt").exists() and child.poll() is None:
            time.sleep(0.01)
        child.kill()
        assert child.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
    reached = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["iteration"]
    assert 0 < reached < SMALL.iterations and not (tmp_path / "encoder.safetensors").exists()

    torch.manual_seed(reached)  # the run has no use for it
    train(dataclasses.replace(SMALL, checkpoint_minutes=60), videos, tmp_path, device="cpu")
    columns = ["iteration", "loss", "loss_st", "loss_cv", "lr"]
    pd.testing.assert_frame_equal(history(tmp_path)[columns], history(whole)[columns], check_exact=True)
    assert (tmp_path / "encoder.safetensors").read_bytes() == (whole / "encoder.safetensors").read_bytes()


def test_a_finished_run_is_left_as_it_is(videos: list, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (whole / "encoder.safetensors").read_bytes(), history(whole)
    monkeypatch.setattr(training, "training_loss", None)
    result = train(SMALL, videos, whole, device="cpu")
    assert result["iterations"] == SMALL.iterations
    assert (whole / "encoder.safetensors").read_bytes() == before[0]
    pd.testing.assert_frame_equal(history(whole), before[1])


def test_a_run_can_be_prolonged_but_not_shortened(videos: list, whole: Path, tmp_path: Path) -> None:
    for iterations in (1, 2):
        train(dataclasses.replace(SMALL, iterations=iterations), videos, tmp_path, device="cpu")
    assert history(tmp_path).loss.tolist() == history(whole).loss[:2].tolist()
    with pytest.raises(InputError, match=r"checkpoint\.pt: has 2 iterations already.*iterations=1"):
        train(dataclasses.replace(SMALL, iterations=1), videos, tmp_path, device="cpu")


@pytest.fixture
def spoilt(whole: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may spoil."""
    shutil.copy(whole / "checkpoint.pt", tmp_path)
    return tmp_path


@pytest.mark.parametrize("length", [0, 10, 100_000, -1000])
def test_truncated_checkpoint(videos: list, spoilt: Path, length: int) -> None:
    file = spoilt / "checkpoint.pt"
    content = file.read_bytes()[:length]
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"checkpoint\.pt: truncated"):
        train(SMALL, videos, spoilt, device="cpu")
    assert file.read_bytes() == content  # the user decides


@pytest.mark.parametrize("content", [[1, 2], {"net": {}}, "text"])
def test_not_a_checkpoint(videos: list, tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match=r"checkpoint\.pt: .*not a checkpoint"):
        train(SMALL, videos, tmp_path, device="cpu")


def test_checkpoint_of_several_processes(videos: list, whole: Path, tmp_path: Path) -> None:
    """Each had BatchNorm statistics of its own: one process would go on with something else."""
    state = torch.load(whole / "checkpoint.pt", weights_only=True)
    torch.save({**state, "settings": state["settings"] | {"processes": 4}}, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match=r"checkpoint\.pt: .*other settings \({'processes': 4}\)"):
        train(SMALL, videos, tmp_path, device="cpu")


@pytest.mark.parametrize("change", [{"lr": 1e-4}, {"seed": 1}, {"norm": "layer"}])
def test_checkpoint_of_other_settings(videos: list, spoilt: Path, change: dict) -> None:
    name, = change
    with pytest.raises(InputError, match=rf"checkpoint\.pt: .*other settings.*{name}.*another folder"):
        train(dataclasses.replace(SMALL, **change), videos, spoilt, device="cpu")


def test_checkpoint_of_other_data(videos: list, spoilt: Path) -> None:
    with pytest.raises(InputError, match=r"checkpoint\.pt: .*other data.*another folder"):
        train(SMALL, videos[:3], spoilt, device="cpu")


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_checkpoint(videos: list, tmp_path: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    settings = dataclasses.replace(SMALL, batch=2)
    calls, real = [], training_loss

    def spoil(*arguments: object, **named: object) -> losses.LossOutput:
        calls.append(1)
        output = real(*arguments, **named)
        return output if len(calls) < 3 else dataclasses.replace(output, total=output.total * float("nan"))
    monkeypatch.setattr(training, "training_loss", spoil)
    with pytest.raises(FloatingPointError, match=r"loss nan at iteration 2, clips of [abcd], [abcd]; .*checkpoint\.pt; lr="):
        train(settings, videos, tmp_path, device="cpu")
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["iteration"] == len(state["history"]) == 2
    assert all(value.isfinite().all() for value in state["net"].values())
    assert not (tmp_path / "encoder.safetensors").exists()


@pytest.mark.usefixtures("whole")
def test_one_process_trains_in_both_precisions(videos: list, tmp_path: Path) -> None:
    """As a study does, or a notebook; `whole` was in fp32."""
    result = train(dataclasses.replace(SMALL, iterations=1, precision="bf16"), videos, tmp_path, device="cpu")
    assert np.isfinite(result["loss"])


def test_an_absent_device_is_an_error(videos: list, tmp_path: Path) -> None:
    """And not a run that takes weeks on another."""
    device = "mps" if torch.cuda.is_available() else "cuda"
    with pytest.raises(InputError, match=device):
        train(dataclasses.replace(SMALL, iterations=1, batch=1), videos, tmp_path, device=device)


def test_other_settings_train_too(videos: list, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """SGD, the paper's evaluation mode, layer norm, corrected alignment, more clips a batch than videos."""
    settings = dataclasses.replace(SMALL, iterations=1, batch=5, frames=3, optimiser="sgd", norm="layer", dim=16,
                                   second_forward="eval", alignment="corrected", jitter="independent", centre=True)
    short = find_videos(write_textures(tmp_path / "short", "z", frames=2))
    result = train(settings, [*videos, *short], tmp_path / "run", device="cpu")
    assert np.isfinite(result["loss"]) and result["videos"] == 4
    said = capsys.readouterr().out
    assert "left out: z has 2 frames" in said and "batch=5 exceeds the 4 videos" in said
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert {group["momentum"] for group in state["optimiser"]["param_groups"]} == {0.9}
    assert load_encoder(result["encoder"]).config["norm"] == "layer"
    with pytest.raises(InputError, match="frames=9.*longest of 5 has 8"):
        train(dataclasses.replace(settings, frames=9), [*videos, *short], tmp_path / "other", device="cpu")


def test_snapshots_are_the_encoders_on_the_way(videos: list, whole: Path, tmp_path: Path) -> None:
    """Kept or not, they change no number; each is what a run of that length ends with."""
    settings = dataclasses.replace(SMALL, snapshot_every=5, checkpoint_minutes=60)
    train(settings, videos, tmp_path, device="cpu")
    assert (tmp_path / "encoder.safetensors").read_bytes() == (whole / "encoder.safetensors").read_bytes()
    kept = sorted((tmp_path / "snapshots").glob("*.safetensors"))
    assert [path.name for path in kept] == ["encoder-10.safetensors", "encoder-5.safetensors"]
    train(dataclasses.replace(SMALL, iterations=5, checkpoint_minutes=60), videos, tmp_path / "short", device="cpu")
    assert kept[1].read_bytes() == (tmp_path / "short" / "encoder.safetensors").read_bytes() != kept[0].read_bytes()
    notes = json.loads(kept[1].with_suffix(".json").read_text())
    assert notes["iteration"] == 5 and 0 < notes["seconds"] < history(whole).seconds.iloc[-1] + 60 and notes["cpu_seconds"] > 0


@pytest.mark.parametrize("workers", [0, 1])
def test_a_frame_that_vanishes_ends_the_run_in_one_line(videos: list, whole: Path, tmp_path: Path, workers: int) -> None:
    """What was trained is kept, and with the frame back the run ends as if nothing had been."""
    copies = shutil.copytree(videos[0].path.parent, tmp_path / "videos")
    found = find_videos(copies)
    hidden = tmp_path / "hidden"
    train(dataclasses.replace(SMALL, iterations=2, workers=workers), found, tmp_path / "run", device="cpu", data="these")
    for video in found:
        (hidden / video.name).mkdir(parents=True)
        for file in video.files:
            (video.path / file).rename(hidden / video.name / file)
    with pytest.raises(InputError, match=r"^[^\n]*[abcd].\d+\.png: [^\n]*no such file[^\n]*$"):
        train(dataclasses.replace(SMALL, workers=workers), found, tmp_path / "run", device="cpu", data="these")
    for video in found:
        for file in video.files:
            (hidden / video.name / file).rename(video.path / file)
    train(dataclasses.replace(SMALL, workers=workers), found, tmp_path / "run", device="cpu", data="these")
    assert (tmp_path / "run" / "encoder.safetensors").read_bytes() == (whole / "encoder.safetensors").read_bytes()


def test_what_cannot_be_compiled_runs_as_it_is(videos: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                               capsys: pytest.CaptureFixture) -> None:
    def fail(function: object) -> object:
        raise RuntimeError("no compiler\nfound")
    monkeypatch.setattr(torch, "compile", fail)
    assert devices.cannot_compile(torch.device("cpu")) == "torch.compile fails (no compiler)"
    train(dataclasses.replace(SMALL, iterations=1, compile=True), videos, tmp_path, device="cpu")
    assert capsys.readouterr().out.count("compile=True has no effect here: torch.compile fails (no compiler)") == 1
