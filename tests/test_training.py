"""Training: its settings, the two forwards, one iteration."""

from __future__ import annotations

import contextlib
import dataclasses
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dulvos import losses, training, views
from dulvos.encoder import Encoder, Features, prepare_frames
from dulvos.errors import InputError
from dulvos.training import TrainSettings, clip_numbers, forward_views, make_clips, parameter_groups, training_loss
from tests.oracles import texture

SMALL = TrainSettings(iterations=12, batch=3, frames=2, crop=64, scale_min=64, scale_max=72, grid=4, cross_grid=2,
                      lr=1e-3, lr_every=5, precision="fp32", checkpoint_minutes=0)


# settings

@pytest.mark.parametrize(("values", "message"), [
    ({"batch": 0}, "batch must be >= 1"),
    ({"iterations": -5}, "iterations must be >= 1"),
    ({"frames": 2.0}, "frames must be int, not 2.0"),
    ({"batch": True}, "batch must be int"),
    ({"lr": "1e-4"}, "lr must be float"),
    ({"lr": float("nan")}, "lr must be a finite number"),
    ({"lam": float("inf")}, "lam must be a finite number"),
    ({"lr": 10**400}, "lr must be a finite number of at most 64 bits"),
    ({"seed": 10**30}, "seed must be a finite number of at most 64 bits"),
    ({"lam": -0.1}, "lam must be >= 0"),
    ({"lr": 0}, "lr must be > 0"),
    ({"tau": 0.0}, "tau must be > 0"), ({"tau": 1e-320}, "tau must be >= 1e-6 and dim <= 65536, not"),
    ({"dim": 10**12}, "tau must be >= 1e-6 and dim <= 65536, not"),
    ({"centre": 1}, "centre must be bool"),
    ({"jitter": "shared"}, "jitter.*common.*independent.*none.*shared"),
    ({"second_forward": "test"}, "second_forward.*train.*eval"),
    ({"alignment": "none"}, "alignment.*published.*corrected"),
    ({"optimiser": "lamb"}, "optimiser.*adam.*sgd"),
    ({"norm": "none"}, "norm.*batch.*layer"),
    ({"precision": "fp16"}, "precision.*bf16.*fp32"),
    ({"crop": 250, "scale_min": 256}, "crop must be a multiple of 8"),
    ({"crop": 320}, "crop <= scale_min.*crop=320"),
    ({"scale_min": 300, "scale_max": 299}, "scale_max=299"),
    ({"view_scale": 0.0}, r"view_scale must lie in \(0, 1\]"),
    ({"view_scale": 1.5}, r"view_scale must lie in \(0, 1\]"),
    ({"grid": 7}, "grid=7 does not divide the 32x32.*divisor of 32"),
    ({"cross_grid": 5}, "cross_grid=5 does not divide the 32x32.*divisor of 32"),
    ({"crop": 128, "grid": 32}, "grid=32 does not divide the 16x16"),
])
def test_settings_out_of_range(values: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainSettings.from_dict(values)


def test_unknown_settings_list_the_known() -> None:
    with pytest.raises(InputError, match="unknown setting iters, lamda; the settings are seed, iterations,.*lam,"):
        TrainSettings.from_dict({"lamda": 0.1, "iters": 5, "lr": 1e-4})
    for values in (None, [], 3):
        with pytest.raises(InputError, match="settings must be a mapping"):
            TrainSettings.from_dict(values)


def test_defaults_are_the_paper_s_for_youtube_vos() -> None:
    expected = {"batch": 16, "frames": 5, "gap": 2, "crop": 256, "scale_min": 256, "scale_max": 319, "grid": 8, "cross_grid": 4,
                "tau": 0.05, "lam": 0.1, "dim": 128, "lr": 1e-4, "lr_decay": 0.5, "weight_decay": 5e-4, "optimiser": "adam",
                "jitter": "common", "second_forward": "train", "alignment": "published", "ordered": False, "norm": "batch"}
    settings = dataclasses.asdict(TrainSettings())
    assert {name: settings[name] for name in expected} == expected
    assert TrainSettings.from_dict({"tau": 1, "lam": 0}) == TrainSettings(tau=1.0, lam=0.0)


# one iteration

class Normed(nn.Module):
    """BatchNorm, cells of 8x8 pixels, and a note of each batch that came by."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.batches = nn.BatchNorm2d(3), []

    def forward(self, images: Tensor, layers: tuple[str, ...]) -> Features:
        assert layers == ("key",)
        self.batches.append(images)
        return Features(key=F.avg_pool2d(self.norm(images), 8))


def two_views(clips: int, frames: int) -> tuple[Tensor, Tensor]:
    """Views whose frames differ in mean, so that batches of other frames have other statistics."""
    generator = torch.Generator().manual_seed(0)
    views = torch.randn(2, clips, frames, 3, 16, 16, generator=generator)
    views[1] += 2 + torch.arange(frames).view(-1, 1, 1, 1)
    return views[0], views[1]


def batch_normed(images: Tensor) -> Tensor:
    mean, var = images.mean((0, 2, 3), keepdim=True), images.var((0, 2, 3), keepdim=True, unbiased=False)
    return F.avg_pool2d((images - mean) / (var + 1e-5).sqrt(), 8)


@pytest.mark.parametrize("second_forward", ["train", "eval"])
def test_two_forwards_with_statistics_of_their_own(second_forward: str) -> None:
    """B·T + B images, then B·(T - 1); the second batch has its own statistics and updates the running ones again."""
    net = Normed().train()
    frames, frames_view2 = two_views(3, 4)
    ours = forward_views(net, frames, frames_view2, second_forward=second_forward)
    first = torch.cat([frames.flatten(0, 1), frames_view2[:, 0]])
    second = frames_view2[:, 1:].flatten(0, 1)
    assert [len(batch) for batch in net.batches] == [3 * 4 + 3, 3 * 3]
    assert torch.equal(net.batches[0], first) and torch.equal(net.batches[1], second)

    mean, var = torch.zeros(3), torch.ones(3)  # the running ones
    seen = [first, second] if second_forward == "train" else [first]
    for images in seen:
        mean, var = 0.9 * mean + 0.1 * images.mean((0, 2, 3)), 0.9 * var + 0.1 * images.var((0, 2, 3))
    assert net.norm.num_batches_tracked == len(seen)
    torch.testing.assert_close(net.norm.running_mean, mean)
    torch.testing.assert_close(net.norm.running_var, var)
    assert net.training and net.norm.training

    key = batch_normed(first)
    rest = batch_normed(second)
    if second_forward == "eval":
        rest = F.avg_pool2d((second - mean.view(3, 1, 1)) / (var.view(3, 1, 1) + 1e-5).sqrt(), 8)
    torch.testing.assert_close(ours[0], key[:12].unflatten(0, (3, 4)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours[1][:, 0], key[12:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours[1][:, 1:], rest.unflatten(0, (3, 3)), rtol=1e-4, atol=1e-5)


def test_the_second_forward_has_no_gradient() -> None:
    net = Normed().train()
    features, features_view2 = forward_views(net, *two_views(2, 3))

    def slope(part: Tensor) -> bool:
        found = torch.autograd.grad(part.square().sum(), net.norm.weight, retain_graph=True)[0]
        return bool(found.abs().sum() > 0)
    assert slope(features[:, 1:]) and slope(features_view2[:, 0])
    assert not slope(features_view2[:, 1:])


def test_a_single_frame_needs_one_forward() -> None:
    net = Normed().train()
    features, features_view2 = forward_views(net, *two_views(3, 1))
    assert [len(batch) for batch in net.batches] == [6]
    assert features.shape == features_view2.shape == (3, 1, 3, 2, 2)
    assert net.norm.num_batches_tracked == 1


def test_a_network_in_evaluation_stays_there() -> None:
    net = Normed().eval()
    forward_views(net, *two_views(2, 3))
    assert not net.training and net.norm.num_batches_tracked == 0


class Content(nn.Module):
    """Features of the colours around each cell, or of its place alone."""

    def __init__(self, place: bool) -> None:
        super().__init__()
        self.place, self.directions = place, torch.randn(64, 3, generator=torch.Generator().manual_seed(0))

    def forward(self, images: Tensor, layers: tuple[str, ...]) -> Features:
        cells = F.avg_pool2d(images, 8)
        if self.place:
            y, x = torch.meshgrid(*(torch.linspace(-2, 2, side) for side in cells.shape[2:]), indexing="ij")
            cells = torch.stack([y, x, torch.zeros_like(x)]).expand_as(cells)
        waves = torch.einsum("kc,nchw->nkhw", 3 * self.directions, cells)
        return Features(key=F.normalize(torch.cat([waves.sin(), waves.cos()], 1), dim=1))


@pytest.mark.parametrize("clips", [1, 3])
def test_training_rewards_content_and_not_place(clips: int) -> None:
    """A network that encodes places alone must pay, else training collapses to it."""
    settings = dataclasses.replace(SMALL, crop=128, scale_min=128, scale_max=128, grid=16, cross_grid=8, frames=2)
    pictures = [texture(seed, 128, 128, sigma=14) for seed in range(clips)]
    still = prepare_frames(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2))[:, None].expand(-1, 2, -1, -1, -1)
    mean = {}
    for place in (False, True):
        outputs = [training_loss(Content(place), still, settings, torch.Generator().manual_seed(seed)) for seed in range(8)]
        mean[place] = [sum(getattr(o, name).item() for o in outputs) / 8 for name in ("space_time", "cross_view")]
    for content, place in zip(mean[False], mean[True]):
        assert place > 2 * content + 1, mean


def test_the_losses_see_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """𝒯, the grids and the two views belong together, and the losses are float32 under autocast."""
    seen = {}

    def spy(features: Tensor, features_view2: Tensor, theta: Tensor, anchor_index: Tensor, cross_index: Tensor,
            **settings: float) -> losses.LossOutput:
        assert features.dtype == features_view2.dtype == theta.dtype == torch.float32
        assert not torch.is_autocast_enabled("cpu")
        seen.update(settings, shapes=(features.shape, anchor_index.shape, cross_index.shape))
        return losses.LossOutput(*features.sum()[None].expand(3), None)
    monkeypatch.setattr(losses, "dense_loss", spy)
    settings = dataclasses.replace(SMALL, tau=0.1, lam=0.3, alignment="corrected")
    autocast = lambda: torch.autocast("cpu", torch.bfloat16)  # noqa: E731
    training_loss(Encoder(dim=16).train(), torch.randn(2, 2, 3, 64, 64), settings, torch.Generator(), autocast)
    assert seen == {"tau": 0.1, "lam": 0.3, "corrected_stride": 8, "shapes": ((2, 2, 16, 8, 8), (2, 4, 4), (2, 2, 2))}


def test_every_switch_reaches_what_it_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that arrives nowhere would make an ablation of nothing."""
    seen = {}

    def spy(module: ModuleType, name: str) -> None:
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, **k: seen.update(k) or original(*a, **k))
    for module, name in ((views, "sample_similarity"), (losses, "sample_grid"), (training, "forward_views")):
        spy(module, name)
    settings = dataclasses.replace(SMALL, view_scale=0.75, view_flip=False, jitter="none", second_forward="eval", centre=True,
                                   ordered=True, photometric="frame", gap=3, seed=4)
    training_loss(Encoder(dim=16).train(), torch.randn(2, 2, 3, 64, 64), settings, torch.Generator())
    assert seen.pop("autocast") is contextlib.nullcontext
    assert seen == {"scale": (0.75, 1.0), "flip": False, "jitter": "none", "second_forward": "eval"}
    drawn = make_clips(settings, [range(9)])  # as long as a video of 9 frames
    given = {name: getattr(drawn, name) for name in ("frames", "gap", "crop", "centre", "ordered", "photometric", "seed", "scale")}
    assert given == {name: getattr(settings, name) for name in given if name != "scale"} | {"scale": (64, 72)}


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_biases_take_twice_the_rate_and_no_decay(norm: str) -> None:
    with torch.device("meta"):
        net = Encoder(norm=norm)
    weights, biases = parameter_groups(net, TrainSettings(lr=1e-3, weight_decay=5e-4))
    assert (weights["lr"], weights["weight_decay"]) == (1e-3, 5e-4)
    assert (biases["lr"], biases["weight_decay"]) == (2e-3, 0)
    names = {id(p): name for name, p in net.named_parameters()}
    found = [sorted(names[id(p)] for p in group["params"]) for group in (weights, biases)]
    assert found == [sorted(n for n in names.values() if n.endswith(kind)) for kind in (".weight", ".bias")]
    assert {"backbone.bn1.bias", "head.0.bias", "head.1.bias", "head.3.bias"} <= set(found[1])
    assert len(found[0]) + len(found[1]) == len(names)


def test_batches_cross_epochs_and_drop_nothing() -> None:
    assert [list(clip_numbers(SMALL, i)) for i in range(3, 5)] == [[9, 10, 11], [12, 13, 14]]
    shared = dataclasses.replace(SMALL, batch=4)
    assert [list(clip_numbers(shared, 1, rank=rank, processes=2)) for rank in (0, 1)] == [[4, 5], [6, 7]]
