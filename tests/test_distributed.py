"""Several processes: their step is the one-process step, and a run started by torchrun trains, writes once and goes on."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import dulvos
from dulvos import devices
from dulvos.study import results
from dulvos.checkpoints import load_encoder
from dulvos.encoder import Encoder, prepare_frames
from dulvos.errors import InputError
from dulvos.losses import LossOutput
from dulvos.trainer import train
from dulvos.training import TrainSettings, training_loss
from dulvos.videos import find_videos
from tests.oracles import write_textures

SETTINGS = TrainSettings(iterations=2, batch=4, frames=2, crop=64, scale_min=64, scale_max=72, grid=4, cross_grid=2, dim=16,
                         lr=1e-3, precision="fp32", checkpoint_minutes=60)
PROCESSES = 2


def step(net: nn.Module, rank: int, clips: int) -> LossOutput:
    """Loss and gradients of a process's clips, BatchNorm in evaluation mode: its statistics would be local otherwise."""
    frames = torch.randint(0, 256, (SETTINGS.batch, SETTINGS.frames, 3, 64, 64), generator=torch.Generator().manual_seed(1))
    own = prepare_frames(frames.to(torch.uint8))[rank * clips: (rank + 1) * clips]
    output = training_loss(net.eval(), own, SETTINGS, torch.Generator().manual_seed(2), rank=rank,
                           processes=SETTINGS.batch // clips)
    output.total.backward()
    return output


def fresh() -> Encoder:
    """The same network in every process, with statistics as after some training."""
    torch.manual_seed(0)
    net = Encoder(SETTINGS.dim).train()
    with torch.no_grad():
        net(torch.randn(4, 3, 64, 64))
    return net


def process(folder: Path) -> None:
    """What each process does; torchrun starts it, `train` joins the processes."""
    videos = find_videos(folder / "videos")
    whole = train(SETTINGS, videos, folder / "whole")  # no device: there is no GPU, and the processes are joined all the same
    for iterations in (1, SETTINGS.iterations):
        train(dataclasses.replace(SETTINGS, iterations=iterations), videos, folder / "part", device="cpu")
    rank, count = distributed.get_rank(), distributed.get_world_size()
    refusal = ""
    try:
        train(dataclasses.replace(SETTINGS, batch=3), videos, folder / "odd", device="cpu")
    except InputError as error:
        refusal = str(error)
    net = fresh()
    output = step(DistributedDataParallel(net, broadcast_buffers=False), rank, SETTINGS.batch // count)
    torch.save({"backend": distributed.get_backend(), "whole": whole["processes"], "refusal": refusal,
                "terms": torch.stack([output.total, output.space_time, output.cross_view]).detach(),
                "labels": output.pseudo_labels, "gradients": {name: p.grad for name, p in net.named_parameters()}},
               folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes on the CPU left."""
    folder = tmp_path_factory.mktemp("processes")
    write_textures(folder / "videos", "abcd")
    roots = [Path(dulvos.__file__).parent.parent, Path(__file__).parent.parent]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, roots)), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
    done = subprocess.run([*command, "-m", "tests.test_distributed", str(folder)], env=environment, capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / "log").write_text(done.stdout + done.stderr)
    return folder


@pytest.fixture(scope="module")
def seen(folder: Path) -> list[dict]:
    """What each process saw."""
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


@pytest.fixture(scope="module")
def alone() -> tuple[LossOutput, dict]:
    """One process with all clips: its loss and gradients."""
    net = fresh()
    return step(net, 0, SETTINGS.batch), {name: p.grad for name, p in net.named_parameters()}


def test_the_mean_loss_is_that_of_the_whole_batch(seen: list[dict], alone: tuple[LossOutput, dict]) -> None:
    output, _ = alone
    assert [process["backend"] for process in seen] == ["gloo"] * PROCESSES
    mean = torch.stack([process["terms"] for process in seen]).mean(0)
    torch.testing.assert_close(mean, torch.stack([output.total, output.space_time, output.cross_view]).detach())
    assert not torch.allclose(seen[0]["terms"], mean), "each process compares its own cells with the anchors of all"
    labels = torch.cat([process["labels"] for process in seen])
    assert torch.equal(labels, output.pseudo_labels), "anchors count over the whole batch"


def test_gradients_are_those_of_the_whole_batch(seen: list[dict], alone: tuple[LossOutput, dict]) -> None:
    """They are not if anchors of other processes come without gradient."""
    _, expected = alone
    for process in seen:
        assert process["gradients"].keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(process["gradients"][name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()),
                                       msg=lambda text: f"{name}: {text}")  # noqa: B023


@pytest.mark.parametrize(("joined", "place", "device"), [(1, "cpu", None), (2, "cuda", "cpu")])
def test_processes_that_are_not_joined_as_they_were_started_are_refused(
    joined: int, place: str, device: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(devices, "PartialState", lambda cpu: SimpleNamespace(num_processes=joined, device=torch.device(place)))
    with pytest.raises(InputError, match=f"2 processes were started, and they compute on '{place}' here, {joined} together"):
        devices.joined_processes(device)


def test_a_run_of_two_processes_writes_once(folder: Path, seen: list[dict]) -> None:
    files = ["checkpoint.pt", "encoder.json", "encoder.safetensors", "history.csv"]
    for run in ("whole", "part"):
        assert sorted(path.name for path in (folder / run).iterdir()) == files
        assert pd.read_csv(folder / run / "history.csv").iteration.tolist() == [1, 2]
    assert [process["whole"] for process in seen] == [PROCESSES] * PROCESSES
    assert load_encoder(folder / "whole" / "encoder.safetensors").config["dim"] == SETTINGS.dim
    assert torch.load(folder / "whole" / "checkpoint.pt", weights_only=True)["settings"]["processes"] == PROCESSES


def test_it_goes_on_to_the_bit(folder: Path) -> None:
    """Cut off after the first of two iterations, as `tests.test_training` does with one process."""
    columns = ["iteration", "loss", "loss_st", "loss_cv", "lr"]
    whole, part = (pd.read_csv(folder / run / "history.csv")[columns] for run in ("whole", "part"))
    pd.testing.assert_frame_equal(part, whole, check_exact=True)
    weights = [(folder / run / "encoder.safetensors").read_bytes() for run in ("whole", "part")]
    assert weights[0] == weights[1]


def test_the_recorded_loss_is_that_of_the_whole_batch(folder: Path, tmp_path: Path) -> None:
    """BatchNorm's statistics are local, so that the numbers part a little from those of one process, and no more than that."""
    videos = find_videos(folder / "videos")
    train(SETTINGS, videos, tmp_path, device="cpu")
    one, two = (pd.read_csv(run / "history.csv").loss.to_numpy() for run in (tmp_path, folder / "whole"))
    assert two[0] == pytest.approx(one[0], rel=0.1) and two[0] != one[0]


def test_processes_must_share_a_batch(seen: list[dict]) -> None:
    assert [process["refusal"] for process in seen] == [
        f"batch=3 cannot be shared by {PROCESSES} processes; choose a multiple of {PROCESSES}"] * PROCESSES


def test_a_run_shared_by_two_processes_leaves_one_row(tmp_path: Path) -> None:
    """The command that several GPUs are given: a run of its own key, done once."""
    write_textures(tmp_path / "videos", "abcd")
    environment = os.environ | {"DULVOS_RESULTS": str(tmp_path / "results"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}", "-m", "dulvos", "train",
               str(tmp_path / "videos"), "--study", "shared", "--device", "cpu", "--set", "iterations=1", "batch=2", "frames=2", "crop=64",
               "scale_min=64", "scale_max=72", "jitter=none", "precision=fp32"]
    for _ in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=results.ROOT)
        assert done.returncode == 0, done.stderr[-3000:]
    assert "trained already" in done.stdout
    row, = (json.loads(path.read_text()) for path in (tmp_path / "results" / "shared" / "rows").glob("*.json"))
    assert row["processes"] == PROCESSES and row["parameters.jitter"] == "none" and row["iterations"] == 1
    assert (tmp_path / "results" / "shared" / row["encoder"]).is_file()


if __name__ == "__main__":
    process(Path(sys.argv[1]))
