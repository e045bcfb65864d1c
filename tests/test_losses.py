"""The losses: the release's numbers, a dense oracle, and a test for each mistake that nobody would notice."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dulvos.errors import InputError
from dulvos.losses import dense_loss, gather_cells, sample_grid
from dulvos.views import sample_similarity, warp
from tests.oracles import loss_oracle, random_features

SHAPES = [  # B, T, K, h, w, N, M
    (2, 3, 5, 8, 8, 4, 2), (4, 1, 6, 12, 4, 2, 4), (1, 4, 3, 10, 15, 5, 1), (3, 5, 8, 9, 6, 3, 3)]
ALL = ("total", "space_time", "cross_view")


def draw(seed: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Arguments of `dense_loss`: two unrelated views, 𝒯 and the grids."""
    clips, frames, channels, height, width, n, m = shape
    generator = torch.Generator().manual_seed(seed)
    features = [random_features(seed + i, clips, frames, channels, height, width, dtype=dtype)
                for i in (100, 200)]
    theta = sample_similarity(clips, 256, generator).theta()
    return [*features, theta, *(sample_grid(clips, height, width, k, generator) for k in (n, m))]


def gradients(loss: Tensor, *inputs: Tensor) -> list[Tensor]:
    if not loss.requires_grad:  # L_ST of one frame
        return [torch.zeros_like(x) for x in inputs]
    return list(torch.autograd.grad(loss, inputs, retain_graph=True, materialize_grads=True))


@pytest.mark.parametrize("case", ["loss_small", "loss_rect", "loss_wide_margin"])
def test_golden(golden: Path, case: str) -> None:
    expected = {name: torch.from_numpy(value) for name, value in np.load(golden / f"{case}.npz").items()}
    inputs = [expected[name].requires_grad_() for name in ("features", "features_view2")]
    output = dense_loss(*(F.normalize(x, dim=2) for x in inputs), *(
        expected[name] for name in ("theta", "anchor_index", "cross_index")),
        tau=expected["tau"].item(), lam=expected["lam"].item())
    assert torch.equal(output.pseudo_labels, expected["pseudo"])
    for ours, name in zip(ALL, ("loss", "loss_st", "loss_cv")):
        assert getattr(output, ours).item() == pytest.approx(expected[name].item(), rel=1e-5), name
    for ours, name in zip(gradients(output.total, *inputs), ("grad_features", "grad_features_view2")):
        assert (ours - expected[name]).abs().max() <= 1e-5 * expected[name].abs().max(), name


@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_a_dense_oracle(shape: tuple[int, ...]) -> None:
    """Values, labels and gradients; the oracle warps B·N² affinities, the package K channels.

    So labels are anchors of the own clip, anchors have a gradient, view 2 has one in L_CV's references only,
    and the reference frame stays out of L_ST.
    """
    features, features_view2, *rest = draw(0, shape)
    inputs = [features.requires_grad_(), features_view2.requires_grad_()]
    output = dense_loss(*inputs, *rest, tau=0.07, lam=0.3)
    *expected, labels = loss_oracle(*inputs, *rest, tau=0.07, lam=0.3)
    assert torch.equal(output.pseudo_labels, labels)
    for name, value in zip(ALL, expected):
        torch.testing.assert_close(getattr(output, name), value)
        for ours, theirs in zip(gradients(3 * getattr(output, name), *inputs), gradients(3 * value, *inputs)):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_autocast_changes_nothing() -> None:
    """A training loop may hold the loss in the same autocast as the network."""
    features, *rest = draw(0, SHAPES[0], torch.float32)
    features.requires_grad_()
    outside = dense_loss(features, *rest)
    with torch.autocast("cpu", torch.bfloat16):
        inside = dense_loss(features, *rest)
    assert torch.equal(inside.total, outside.total)
    assert torch.equal(*(gradients(loss.total, features)[0] for loss in (inside, outside)))


def test_many_logits_are_computed_in_chunks() -> None:
    """8 million logits, at a temperature at which all matter."""
    features, features_view2, *rest = draw(2, (2, 3, 4, 32, 32, 32, 2), torch.float32)
    inputs = [features.requires_grad_()]
    output = dense_loss(features, features_view2, *rest, tau=1.0)
    cells, anchors = warp(features, rest[0])[:, 1:], gather_cells(features[:, 0], rest[1])
    logits = cells.movedim(2, -1).flatten(0, -2) @ anchors.flatten(0, 1).t()
    expected = F.cross_entropy(logits, output.pseudo_labels[:, 1:].flatten())
    torch.testing.assert_close(output.space_time, expected)
    torch.testing.assert_close(gradients(output.space_time, *inputs), gradients(expected, *inputs), rtol=1e-4,
                               atol=1e-9)


@pytest.mark.parametrize(("height", "width", "n"), [(32, 32, 8), (8, 12, 4), (16, 16, 16), (7, 7, 1)])
def test_grids_are_jittered_as_told(height: int, width: int, n: int) -> None:
    """One random offset a clip; one in each cell of the grid; or none."""
    index, again, free, fixed = (
        sample_grid(300, height, width, n, torch.Generator().manual_seed(0), jitter=way)
        for way in ("common", "common", "independent", "none"))
    assert torch.equal(index, again) and index.shape == (300, n, n) and index.dtype == torch.int64
    corner = torch.arange(n)[:, None] * (height // n) * width + torch.arange(n) * (width // n)
    assert torch.equal(fixed, corner.expand(300, -1, -1))
    for drawn in (index, free):  # all of [0, stride) on both axes, by themselves, in each clip
        dy, dx = (drawn - corner) // width, (drawn - corner) % width
        for offset, stride in ((dy, height // n), (dx, width // n)):
            assert set(offset[:, 0, 0].tolist()) == set(range(stride)) == set(offset.flatten().tolist())
        if n < height:
            assert not torch.equal(dy[:, 0, 0] * (width // n), dx[:, 0, 0] * (height // n))
    assert torch.equal(index - corner, (index - corner)[:, :1, :1].expand_as(index))
    assert n in (1, height) or len((free - free[:, :1, :1]).unique(dim=0)) > 290


@pytest.mark.parametrize(("height", "width", "n"), [(32, 32, 7), (8, 12, 8), (12, 8, 3), (8, 8, 0)])
def test_grid_must_divide_the_map(height: int, width: int, n: int) -> None:
    allowed = [k for k in range(1, 33) if height % k == width % k == 0]
    with pytest.raises(InputError) as error:
        sample_grid(2, height, width, n, torch.Generator())
    assert f"{height}x{width}" in str(error.value) and str(allowed) in str(error.value)
    with pytest.raises(InputError, match="common.*independent.*none.*shared"):
        sample_grid(2, 8, 8, 4, torch.Generator(), jitter="shared")


@pytest.mark.parametrize(("position", "shape"), [
    (1, (2, 2, 5, 8, 8)), (1, (2, 3, 5, 8, 4)), (2, (1, 2, 3)), (2, (2, 3, 3)), (3, (1, 4, 4)),
    (4, (3, 2, 2))])
def test_shapes_must_agree(position: int, shape: tuple[int, ...]) -> None:
    good = draw(0, SHAPES[0])
    bad = [torch.zeros(shape, dtype=x.dtype) if i == position else x for i, x in enumerate(good)]
    with pytest.raises(InputError, match="shape"):
        dense_loss(*bad)
    with pytest.raises(InputError, match=r"\(B, T, K, h, w\)"):
        dense_loss(*(f[:, 0] for f in good[:2]), *good[2:])
    for tau in (0, float("nan")):
        with pytest.raises(InputError, match="tau"):
            dense_loss(*good, tau=tau)
