"""Objectives: their settings, the method's two forwards, and each one's loss in an iteration."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dulvos import baselines
from dulvos.encoder import Encoder, Features, prepare_frames
from dulvos.errors import InputError
from dulvos.objectives import OBJECTIVES, Iteration, TrainSettings, forward_views
from dulvos.training import clip_numbers, make_clips, make_parts, training_step
from tests.oracles import ArrayVideo, texture

TINY = TrainSettings(batch=2, frames=3, gap=1, crop=32, scale_min=32, scale_max=36, grid=2, cross_grid=2,
                     dim=32, lr=1e-3, precision="fp32")
BASELINES = [name for name in OBJECTIVES if name != "dense"]


# settings

def test_defaults_are_the_paper_s_for_youtube_vos() -> None:
    assert TrainSettings() == TrainSettings(
        objective="dense", batch=16, frames=5, gap=2, crop=256, scale_min=256, scale_max=319, grid=8,
        cross_grid=4, tau=0.05, lam=0.1, dim=128, lr=1e-4, lr_decay=0.5, weight_decay=5e-4, optimiser="adam",
        jitter="common", stride=8, second_forward="train", alignment="published", ordered=False, norm="batch",
        view_scale=0.5, view_flip=True, photometric="none", padding="zeros", centre=False)
    assert TrainSettings.from_dict({"tau": 1, "lam": 0}) == TrainSettings(tau=1.0, lam=0.0)
    assert TrainSettings(crop=128, grid=32, stride=4).grid == 32
    with pytest.raises(InputError, match="crop=32.*padding='reflect'"):  # res4 of a patch would be one cell
        dataclasses.replace(TINY, objective="crw", padding="reflect")


# the method

def test_the_second_forward_has_no_gradient_and_evaluation_mode_stays() -> None:
    net, views = Encoder(8).train(), torch.randn(2, 2, 3, 3, 16, 16)
    main, view2 = forward_views(net, *views)
    slopes = [torch.autograd.grad(part.sum(), net.head[3].weight, retain_graph=True)[0].any()
              for part in (main[:, 1:], view2[:, 0], view2[:, 1:])]
    assert slopes == [True, True, False]
    forward_views(net.eval(), *views)
    assert not net.training and net.backbone.bn1.num_batches_tracked == 2  # both while it trained


# the baselines

def moving_textures(count: int, frames: int = 6) -> list[ArrayVideo]:
    """Smooth colours that move by two pixels a frame."""
    pictures = [texture(seed, 40, 40 + 2 * frames, sigma=8) for seed in range(count)]
    return [ArrayVideo(f"v{i}", np.stack([picture[:, 2 * t: 2 * t + 40] for t in range(frames)]))
            for i, picture in enumerate(pictures)]


@torch.no_grad()
def loss_of(net: nn.Module, frames: Tensor, settings: TrainSettings, seed: int = 0, **options: int) -> float:
    generator = torch.Generator().manual_seed(seed)
    return float(Iteration(net, frames, settings, generator, **options).loss().total)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_s_loss_falls(objective: str) -> None:
    settings = dataclasses.replace(TINY, objective=objective)
    clips, parts = make_clips(settings, moving_textures(2)), make_parts(settings, torch.device("cpu"))
    frames = prepare_frames(torch.stack([clips[number] for number in (100, 101)]))

    def mean_loss() -> float:  # over four draws of whatever the objective draws
        return float(np.mean([loss_of(parts["net"], frames, settings, seed) for seed in range(4)]))

    before = mean_loss()
    for iteration in range(15):
        batch = torch.stack([clips[number] for number in clip_numbers(settings, iteration)])
        training_step(parts["net"], parts, batch, settings, iteration)
    assert mean_loss() < 0.9 * before


@pytest.mark.parametrize("objective", BASELINES)
def test_baselines_take_frames_in_order_and_draw_from_the_generator(objective: str) -> None:
    """Two processes see what one would, each its own clips; CRW's dropout is drawn by each process."""
    settings = dataclasses.replace(TINY, objective=objective)
    ordered, drawn = (make_clips(changed, moving_textures(2))
                      for changed in (dataclasses.replace(TINY, ordered=True), settings))
    assert all(torch.equal(ordered[number], drawn[number]) for number in range(6))
    frames = torch.randn(2, 3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    net = make_parts(settings, torch.device("cpu"))["net"].eval()
    whole = loss_of(net, frames, settings)
    assert whole == loss_of(net, frames, settings)
    assert (whole == loss_of(net, frames, settings, 1)) == (objective == "colorize")  # which draws nothing
    if objective in ("mast", "corrflow", "colorize"):
        halves = [loss_of(net, frames[rank: rank + 1], settings, rank=rank, processes=2) for rank in (0, 1)]
        assert np.mean(halves) == pytest.approx(whole, rel=1e-5)


def test_mast_copies_the_channel_that_the_input_lacks() -> None:
    """On frames where only b varies, the loss is large when b is dropped and small when a is."""
    settings, seen, losses = dataclasses.replace(TINY, objective="mast"), [], {}

    class Spy(Encoder):
        def forward(self, images: Tensor, layers: tuple[str, ...], **options: Tensor) -> Features:
            seen.append(tuple(options["factors"].tolist()))
            return super().forward(images, layers, **options)

    net = Spy(settings.dim, colour="lab").train()
    grey = torch.full((1, 3, 3, 32, 32), 128, dtype=torch.uint8)
    grey[:, 1:, 2, 8:] = 77  # less blue moves b, and a hardly
    for seed in range(8):
        loss = loss_of(net, prepare_frames(grey), settings, seed)
        losses[seen[-1]] = loss
    assert set(losses) == {(1.5, 0, 1.5), (1.5, 1.5, 0)}
    assert losses[(1.5, 1.5, 0)] > losses[(1.5, 0, 1.5)]


def test_corrflow_passes_more_copies_on_as_training_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A share of 0.1 at first and 0.4 from lr_every on, whatever the length of the run."""
    settings = dataclasses.replace(TINY, objective="corrflow", lr_every=100)
    frames = torch.randn(64, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    net = make_parts(settings, torch.device("cpu"))["net"].eval()
    shares, loss = [], baselines.corrflow_loss
    monkeypatch.setattr(baselines, "corrflow_loss",
                        lambda *given: shares.append(float(given[3].double().mean())) or loss(*given))
    for number in (0, 50, 100, 10**6):
        loss_of(net, frames, settings, number=number)
    assert shares == pytest.approx([0.1, 0.25, 0.4, 0.4], abs=0.08)
