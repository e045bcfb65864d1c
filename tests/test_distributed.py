"""Several processes take the same step as one; a run started by torchrun writes once and resumes."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import dulvos
from dulvos import devices
from dulvos.checkpoints import load_encoder
from dulvos.encoder import Encoder, prepare_frames
from dulvos.errors import InputError
from dulvos.losses import LossOutput
from dulvos.objectives import Iteration, TrainSettings
from dulvos.study.rows import ROOT
from dulvos.training import train
from tests.oracles import open_videos, write_textures

SETTINGS = TrainSettings(iterations=2, batch=4, frames=2, crop=64, scale_min=64, scale_max=72, grid=4,
                         cross_grid=2, dim=16, lr=1e-3, precision="fp32", checkpoint_minutes=60)
PROCESSES = 2
GATHERING = ("dense", "contrastcorr")  # objectives that compare the clips of all processes
TERMS = {"dense": ("total", "space_time", "cross_view"), "contrastcorr": ("total", "copied", "rest")}


def step(net: nn.Module, objective: str, rank: int, clips: int) -> dict:
    """Loss and gradients of a process's clips; BatchNorm, whose statistics are local, does not train."""
    frames = torch.randint(0, 256, (4, 2, 3, 64, 64), generator=torch.Generator().manual_seed(1))
    own = prepare_frames(frames.to(torch.uint8))[rank * clips: (rank + 1) * clips]
    output = Iteration(net.eval(), own, dataclasses.replace(SETTINGS, objective=objective),
                       torch.Generator().manual_seed(2), rank=rank, processes=SETTINGS.batch // clips).loss()
    net.zero_grad()
    output.total.backward()
    plain = getattr(net, "module", net)
    return {"terms": torch.stack([getattr(output, name) for name in TERMS[objective]]).detach(),
            "labels": output.pseudo_labels if isinstance(output, LossOutput) else torch.zeros(0),
            "gradients": {name: p.grad.clone() for name, p in plain.named_parameters()}}


def fresh() -> Encoder:
    """The same network in every process, with statistics as after some training."""
    torch.manual_seed(0)
    net = Encoder(SETTINGS.dim).train()
    with torch.no_grad():
        net(torch.randn(4, 3, 64, 64))
    return net


def process(folder: Path) -> None:
    """What each process that torchrun starts does."""
    videos = open_videos(folder / "videos")
    whole = train(SETTINGS, videos, folder / "whole")  # no device: the CPU, because the GPUs are hidden
    for iterations in (1, SETTINGS.iterations):
        train(dataclasses.replace(SETTINGS, iterations=iterations), videos, folder / "part", device="cpu")
    baseline = dataclasses.replace(SETTINGS, iterations=1, objective="crw", frames=3)
    crw = train(baseline, videos, folder / "crw", device="cpu")
    rank, count = distributed.get_rank(), distributed.get_world_size()
    refusal = ""
    try:
        train(dataclasses.replace(SETTINGS, batch=3), videos, folder / "odd", device="cpu")
    except InputError as error:
        refusal = str(error)
    net = DistributedDataParallel(fresh(), broadcast_buffers=False)
    steps = {name: step(net, name, rank, SETTINGS.batch // count) for name in GATHERING}
    torch.save({"backend": distributed.get_backend(), "whole": whole["processes"], "refusal": refusal,
                "crw": crw["loss"], "steps": steps}, folder / f"{rank}.pt")


def torchrun(*arguments: object, **variables: str) -> subprocess.CompletedProcess:
    roots = [Path(dulvos.__file__).parent.parent, Path(__file__).parent.parent]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, roots)), "OMP_NUM_THREADS": "1",
                                "CUDA_VISIBLE_DEVICES": "", **variables}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
    done = subprocess.run([*command, "-m", *map(str, arguments)], env=environment, capture_output=True,
                          text=True, timeout=600, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that two processes on the CPU wrote."""
    folder = tmp_path_factory.mktemp("processes")
    write_textures(folder / "videos", "abcd")
    torchrun("tests.test_distributed", folder)
    return folder


@pytest.fixture(scope="module")
def seen(folder: Path) -> list[dict]:
    """What each process saw."""
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


@pytest.mark.parametrize("objective", GATHERING)
def test_loss_and_gradients_are_those_of_the_whole_batch(seen: list[dict], objective: str) -> None:
    """They would differ if anchors or cells of other processes were missing or had no gradient."""
    alone = step(fresh(), objective, 0, SETTINGS.batch)
    steps = [process["steps"][objective] for process in seen]
    assert [process["backend"] for process in seen] == ["gloo"] * PROCESSES
    mean = torch.stack([one["terms"] for one in steps]).mean(0)
    torch.testing.assert_close(mean, alone["terms"])
    assert not torch.allclose(steps[0]["terms"], mean), "each compares its own cells with those of all"
    labels = torch.cat([one["labels"] for one in steps])
    assert torch.equal(labels, alone["labels"]), "anchors count over the whole batch"
    for one in steps:
        assert one["gradients"].keys() == alone["gradients"].keys()
        for name, gradient in alone["gradients"].items():
            # rounding may move a few cells over a kink of a ReLU or of an absolute value
            assert (one["gradients"][name] - gradient).norm() < 0.02 * gradient.norm(), name


@pytest.mark.parametrize(("started", "device", "named"), [(1, "abacus", "abacus"), (2, "cpu", "WORLD_SIZE=2"),
                                                          (2, "abacus", "abacus")])
def test_processes_that_cannot_be_joined_are_refused(started, device, named, monkeypatch):
    """torchrun's other variables are missing, so the processes cannot find each other."""
    monkeypatch.setenv("WORLD_SIZE", str(started))
    for variable in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(InputError, match=named):
        devices.joined_processes(device)
    assert not distributed.is_initialized()


def test_a_run_of_two_processes_writes_once_and_goes_on_to_the_bit(folder: Path, seen: list[dict]) -> None:
    files = ["checkpoint.pt", "encoder.json", "encoder.safetensors", "history.csv"]
    for run in ("whole", "part"):
        assert sorted(path.name for path in (folder / run).iterdir()) == files
        assert pd.read_csv(folder / run / "history.csv").iteration.tolist() == [1, 2]
    columns = ["iteration", "loss", "loss_st", "loss_cv", "lr"]  # part was cut off after its first iteration
    whole, part = (pd.read_csv(folder / run / "history.csv")[columns] for run in ("whole", "part"))
    pd.testing.assert_frame_equal(part, whole, check_exact=True)
    weights = [(folder / run / "encoder.safetensors").read_bytes() for run in ("whole", "part")]
    assert weights[0] == weights[1] and [process["whole"] for process in seen] == [PROCESSES] * PROCESSES
    written = pd.read_csv(folder / "crw" / "history.csv").loss[0]
    assert [process["crw"] for process in seen] == [pytest.approx(written)] * PROCESSES
    assert load_encoder(folder / "whole" / "encoder.safetensors").config["dim"] == SETTINGS.dim
    state = torch.load(folder / "whole" / "checkpoint.pt", weights_only=True)
    assert state["settings"]["processes"] == PROCESSES
    assert all("batch=3" in process["refusal"] and "2 processes" in process["refusal"] for process in seen)


def test_a_run_shared_by_two_processes_leaves_one_row(tmp_path: Path) -> None:
    """The command for several GPUs; its second call finds the run done."""
    write_textures(tmp_path / "videos", "abcd")
    options = "--study shared --device cpu --iterations 1 --batch 2 --frames 2 --crop 64 --scale-min 64 " \
              "--scale-max=72 --jitter none --precision fp32 --no-view-flip"
    for _ in range(2):
        torchrun("dulvos", "train", tmp_path / "videos", *options.split(), DULVOS_RESULTS=str(tmp_path))
    row, = (json.loads(path.read_text()) for path in (tmp_path / "shared" / "rows").glob("*.json"))
    assert row["processes"] == PROCESSES and row["parameters.jitter"] == "none" and row["iterations"] == 1
    assert (row["parameters.view_flip"], row["parameters.lr"], row["name"]) == (False, 1e-4, "trained")
    assert (tmp_path / "shared" / row["encoder"]).is_file()


if __name__ == "__main__":
    process(Path(sys.argv[1]))
