"""Training: its steps against a literal version of the method; runs that are cut off, resumed or stopped."""

import copy
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dulvos.checkpoints import load_encoder
from dulvos.encoder import Encoder, prepare_frames
from dulvos.errors import InputError
from dulvos.losses import sample_grid
from dulvos.objectives import TrainSettings
from dulvos.training import clip_numbers, make_clips, make_parts, parameter_groups, train, training_step
from dulvos.videos import Video
from dulvos.views import Similarity, sample_similarity
from tests.oracles import loss_oracle, open_videos, write_textures

SMALL = TrainSettings(iterations=12, batch=3, frames=2, crop=64, scale_min=64, scale_max=72, grid=4,
                      cross_grid=2, lr=1e-3, lr_every=5, precision="fp32", checkpoint_minutes=0)
NUMBERS = ["iteration", "loss", "loss_st", "loss_cv", "lr"]  # columns that a resumed run must repeat


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_biases_take_twice_the_rate_and_no_decay(norm: str) -> None:
    with torch.device("meta"):
        net = Encoder(norm=norm)
    names = {p: name for name, p in net.named_parameters()}
    for group, kind, rate, decay in zip(parameter_groups(net, TrainSettings(lr=1e-3, weight_decay=5e-4)),
                                        (".weight", ".bias"), (1e-3, 2e-3), (5e-4, 0)):
        assert (group["lr"], group["weight_decay"]) == (rate, decay)
        assert [names[p] for p in group["params"]] == [name for name in names.values() if name.endswith(kind)]
        assert f"backbone.bn1{kind}" in names.values() and f"head.1{kind}" in names.values()


def test_batches_cross_epochs_and_drop_nothing() -> None:
    assert [list(clip_numbers(SMALL, i)) for i in range(3, 5)] == [[9, 10, 11], [12, 13, 14]]
    shared = dataclasses.replace(SMALL, batch=4)
    assert [list(clip_numbers(shared, 1, rank=rank, processes=2)) for rank in (0, 1)] == [[4, 5], [6, 7]]


# a literal version of an iteration

def second_view(clip: Tensor, flip: bool, top: int, left: int, side: int) -> tuple[Tensor, Tensor]:
    """View 2 of one clip's frames (T, 3, S, S), and 𝒯 (2, 3)."""
    size = clip.shape[-1]
    clip = clip.flip(-1) if flip else clip
    crop = F.interpolate(clip[..., top: top + side, left: left + side], (size, size), mode="bilinear")
    s, f = side / size, -1 if flip else 1
    dx, dy = ((corner + side / 2 - size / 2) / (size / 2) for corner in (left, top))
    return crop, torch.tensor([[f * s, 0, f * dx], [0, s, dy]], dtype=clip.dtype)


def literal_loss(frames: Tensor, drawn: Similarity, grids: list[Tensor], net: nn.Module,
                 s: TrainSettings) -> tuple[Tensor, ...]:
    """L, L_ST and L_CV of a batch by two forwards and warped affinities, as in the authors' code."""
    count, length = frames.shape[:2]
    draws = zip(drawn.flip.tolist(), drawn.top.tolist(), drawn.left.tolist(), drawn.side.tolist())
    seconds, thetas = zip(*(second_view(clip, *draw) for clip, draw in zip(frames, draws)))
    first = net(torch.cat([*frames, *(view[:1] for view in seconds)])).key  # B·T and B references
    main, view2 = first[: count * length].unflatten(0, (count, length)), [first[count * length:, None]]
    if length > 1:
        with torch.no_grad():
            others = net.train(s.second_forward == "train")(torch.cat([view[1:] for view in seconds])).key
        view2.append(others.unflatten(0, (count, length - 1)))
        net.train()
    return loss_oracle(main, torch.cat(view2, 1), torch.stack(thetas), *grids, s.tau, s.lam)[:3]


@pytest.mark.parametrize(("optimiser", "lr", "frames", "second_forward"), [
    ("adam", 1e-4, 3, "train"), ("sgd", 1e-3, 2, "eval"), ("adam", 1e-4, 1, "train")])
def test_steps_follow_the_description(tmp_path, optimiser, lr, frames, second_forward):
    """Losses, weights and statistics of each step, which starts from the state after the step before."""
    s = TrainSettings(batch=2, frames=frames, gap=1, crop=32, scale_min=32, scale_max=40, grid=2,
                      cross_grid=2, lr_every=2, lr=lr, optimiser=optimiser, precision="fp32", seed=4,
                      second_forward=second_forward)
    clips = make_clips(s, open_videos(write_textures(tmp_path, "ab", frames=4, size=(40, 48))))
    parts = make_parts(s, torch.device("cpu"))
    net, twin = parts["net"], copy.deepcopy(parts["net"])
    groups = [{"params": [p], "bias": name.endswith(".bias"), "weight_decay": 5e-4 * name.endswith(".weight")}
              for name, p in twin.named_parameters()]
    steps = (torch.optim.Adam(groups, betas=(0.5, 0.999)) if optimiser == "adam"
             else torch.optim.SGD(groups, momentum=0.9))
    for number in range(5):
        before = copy.deepcopy(net.state_dict())
        twin.load_state_dict(before)
        batch = torch.stack([clips[i] for i in clip_numbers(s, number)])
        state = np.random.SeedSequence((s.seed, 2, number)).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(state >> 1))
        drawn = sample_similarity(2, 32, generator)
        grids = [sample_grid(2, 4, 4, n, generator) for n in (s.grid, s.cross_grid)]
        expected = literal_loss(prepare_frames(batch), drawn, grids, twin, s)
        for group in steps.param_groups:
            group["lr"] = lr * 0.5 ** (number // 2) * (2 if group["bias"] else 1)
        steps.zero_grad()
        expected[0].backward()
        steps.step()

        *ours, rate = training_step(net, parts, batch, s, number)
        assert ours == pytest.approx([value.item() for value in expected], rel=1e-4), number
        assert rate == pytest.approx(lr * 0.5 ** (number // 2))
        trained = {name for name, _ in net.named_parameters()}
        for name, value in twin.state_dict().items():
            found = net.state_dict()[name]
            if name in trained - {"head.0.bias"}:  # BatchNorm follows it, so its gradient is only rounding
                assert (found - value).norm() < 0.05 * (value - before[name]).norm(), (number, name)
            elif name not in trained:
                torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-5)


# runs

@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Video]:
    return open_videos(write_textures(tmp_path_factory.mktemp("textures"), "abcd"))


@pytest.fixture(scope="module")
def whole(videos: list, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    result = train(dataclasses.replace(SMALL, checkpoint_minutes=60), videos, folder, device="cpu")
    known = {"encoder": folder / "encoder.safetensors", "iterations": SMALL.iterations, "device": "cpu",
             "videos": 4, "processes": 1, "computed_in": "fp32"}
    assert known.items() <= result.items()
    assert all(np.isfinite(result[name]) for name in ("loss", "loss_st", "loss_cv"))
    assert result["seconds"] > 0 and result["cpu_seconds"] > 0 and result["peak_memory_mb"] > 100
    return folder


@pytest.fixture
def spoilt(whole: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may spoil."""
    shutil.copy(whole / "checkpoint.pt", tmp_path)
    return tmp_path


def history(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "history.csv")


def weights(folder: Path) -> bytes:
    return (folder / "encoder.safetensors").read_bytes()


def test_history_and_encoder(whole: Path) -> None:
    rows = history(whole)
    assert list(rows.columns) == [*NUMBERS, "seconds"]
    assert rows.iteration.tolist() == list(range(1, SMALL.iterations + 1))
    assert rows.loss.to_numpy() == pytest.approx((rows.loss_st + 0.1 * rows.loss_cv).to_numpy(), rel=1e-5)
    assert rows.seconds.is_monotonic_increasing
    files = sorted(file.name for file in whole.iterdir())
    assert files == ["checkpoint.pt", "encoder.json", "encoder.safetensors", "history.csv"]
    state = torch.load(whole / "checkpoint.pt", weights_only=True)
    trained = load_encoder(whole / "encoder.safetensors").state_dict()
    assert all(torch.equal(value, state["net"][name]) for name, value in trained.items())
    assert trained["backbone.bn1.num_batches_tracked"] == 2 * SMALL.iterations


@pytest.mark.parametrize(("objective", "colour"), [("corrflow", "rgb"), ("mast", "lab"), ("crw", "rgb")])
def test_baselines_resume_to_the_bit(videos: list, tmp_path: Path, objective: str, colour: str) -> None:
    settings = dataclasses.replace(SMALL, objective=objective, iterations=3, batch=2, frames=3, crop=32,
                                   scale_min=32, stride=4, checkpoint_minutes=60)
    result = train(settings, videos, tmp_path / "whole", device="cpu")
    for iterations in (1, 3):
        train(dataclasses.replace(settings, iterations=iterations), videos, tmp_path / "parts", device="cpu")
    whole, parts = (history(tmp_path / name)[NUMBERS] for name in ("whole", "parts"))
    pd.testing.assert_frame_equal(parts, whole, check_exact=True)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    assert np.isfinite(result["loss"]) and result["loss_st"] is None and whole.loss_st.isna().all()
    loaded = load_encoder(result["encoder"])
    assert (loaded.stride, loaded.colour) == (4, colour)


def test_a_finished_run_is_left_as_it_is_and_cannot_be_shortened(videos: list, whole: Path) -> None:
    before = weights(whole), history(whole)
    assert train(SMALL, videos, whole, device="cpu")["iterations"] == SMALL.iterations
    with pytest.raises(InputError, match=r"checkpoint\.pt: .*iterations.*12"):
        train(dataclasses.replace(SMALL, iterations=1), videos, whole, device="cpu")
    assert weights(whole) == before[0]
    pd.testing.assert_frame_equal(history(whole), before[1])


@pytest.mark.parametrize("spoil", [0, 10, 100_000, -1000, [1, 2], {"net": {}}, "text"], ids=str)
def test_a_checkpoint_that_is_cut_or_none(videos: list, spoilt: Path, spoil: object) -> None:
    file = spoilt / "checkpoint.pt"
    if isinstance(spoil, int):
        file.write_bytes(file.read_bytes()[:spoil])
    else:
        torch.save(spoil, file)
    content = file.read_bytes()
    with pytest.raises(InputError, match=r"checkpoint\.pt"):
        train(SMALL, videos, spoilt, device="cpu")
    assert file.read_bytes() == content  # the user decides


@pytest.mark.parametrize("change", [{"lr": 1e-4}, {"seed": 1}, {"norm": "layer"}, {"objective": "mast"},
                                    {"stride": 4}, {"processes": 4}])
def test_a_checkpoint_of_another_run(videos: list, spoilt: Path, change: dict) -> None:
    """Also of several processes: each had its own BatchNorm statistics, so that one cannot continue."""
    with pytest.raises(InputError, match=r"checkpoint\.pt: .*data"):
        train(SMALL, videos[:3], spoilt, device="cpu")
    state = torch.load(spoilt / "checkpoint.pt", weights_only=True)
    torch.save(state | {"settings": state["settings"] | change}, spoilt / "checkpoint.pt")
    with pytest.raises(InputError, match=rf"checkpoint\.pt: .*{next(iter(change))}"):
        train(SMALL, videos, spoilt, device="cpu")


def test_a_checkpoint_from_before_a_setting_came_is_resumed(videos: list, whole: Path, spoilt: Path) -> None:
    state = torch.load(spoilt / "checkpoint.pt", weights_only=True)
    later = ("objective", "stride", "processes", "iterations", "data")
    old = {name: value for name, value in state["settings"].items() if name not in later}
    costs = {"seconds": 1e6, "cpu_seconds": 2e6, "peak": 3e6}  # of the earlier call
    torch.save({**state, **costs, "settings": old | {"compile": False}, "data": state["settings"]["data"]},
               spoilt / "checkpoint.pt")
    made = train(SMALL, videos, spoilt, device="cpu")
    assert weights(spoilt) == weights(whole)
    assert made["cpu_seconds"] >= 2e6 and made["peak_memory_mb"] >= 3e6
    train(dataclasses.replace(SMALL, iterations=SMALL.iterations + 1), videos, spoilt, device="cpu")
    assert pd.read_csv(spoilt / "history.csv").seconds.iloc[-1] >= 1e6


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_checkpoint(videos: list, tmp_path: Path) -> None:
    settings = dataclasses.replace(SMALL, batch=2, lr=9e18)
    with pytest.raises(FloatingPointError, match=r"iteration [1-9].*clips of [abcd], [abcd]"):
        train(settings, videos, tmp_path, device="cpu")
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["iteration"] == len(state["history"]) > 0
    assert all(value.isfinite().all() for value in state["net"].values())
    assert not (tmp_path / "encoder.safetensors").exists()


def test_other_settings_train_too(videos: list, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """bf16, SGD, evaluation mode, layer norm, more clips a batch than videos, a video that is too short."""
    settings = dataclasses.replace(SMALL, iterations=1, batch=5, frames=3, optimiser="sgd", norm="layer",
                                   dim=16, second_forward="eval", alignment="corrected", precision="bf16")
    short = open_videos(write_textures(tmp_path / "short", "z", frames=2))
    result = train(settings, [*videos, *short], tmp_path / "run", device="cpu")
    assert np.isfinite(result["loss"]) and result["videos"] == 4
    said = capsys.readouterr().out
    assert "z has 2 frames" in said and "batch=5 exceeds the 4 videos" in said
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert {group["momentum"] for group in state["optimiser"]["param_groups"]} == {0.9}
    assert load_encoder(result["encoder"]).config["norm"] == "layer"
    with pytest.raises(InputError, match="frames=9"):
        train(dataclasses.replace(settings, frames=9), [*videos, *short], tmp_path / "other", device="cpu")
    absent = "mps" if torch.cuda.is_available() else "cuda"
    with pytest.raises(InputError, match=absent):  # instead of weeks on another device
        train(settings, videos, tmp_path / "absent", device=absent)


def test_snapshots_are_the_encoders_on_the_way(videos: list, whole: Path, tmp_path: Path) -> None:
    """They change no number; each equals the encoder of a run of that length."""
    train(dataclasses.replace(SMALL, snapshot_every=5, checkpoint_minutes=60), videos, tmp_path, device="cpu")
    assert weights(tmp_path) == weights(whole)
    kept = sorted((tmp_path / "snapshots").glob("*.safetensors"))
    assert [path.name for path in kept] == ["encoder-10.safetensors", "encoder-5.safetensors"]
    train(dataclasses.replace(SMALL, iterations=5), videos, tmp_path / "short", device="cpu")
    assert kept[1].read_bytes() == weights(tmp_path / "short") != kept[0].read_bytes()
    notes = json.loads(kept[1].with_suffix(".json").read_text())
    assert notes["iteration"] == 5 and notes["seconds"] > 0 and notes["cpu_seconds"] > 0


@pytest.mark.parametrize("workers", [0, 1])
def test_a_frame_that_vanishes_ends_the_run_in_one_line(videos, whole, tmp_path, workers):
    """What was trained is kept; when the frame is back, the run ends like an undisturbed one."""
    root = shutil.copytree(videos[0].path.parent, tmp_path / "videos")
    found, run = open_videos(root), tmp_path / "run"
    settings = dataclasses.replace(SMALL, workers=workers, checkpoint_minutes=60)
    (root / "d").rename(tmp_path / "d")  # not in the first batch
    with pytest.raises(InputError, match=r"d.\d+\.png: "):
        train(settings, found, run, device="cpu", data="these")
    assert torch.load(run / "checkpoint.pt", weights_only=True)["iteration"] == 1
    (tmp_path / "d").rename(root / "d")
    train(settings, found, run, device="cpu", data="these")
    assert weights(run) == weights(whole)
