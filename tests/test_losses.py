"""The losses: the release's numbers, a dense oracle, and a test for each way to get them wrong unnoticed."""

from __future__ import annotations

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
    (2, 3, 5, 8, 8, 4, 2),
    (3, 2, 4, 6, 12, 3, 6),
    (4, 1, 6, 12, 4, 2, 4),
    (1, 4, 3, 10, 15, 5, 1),
    (3, 5, 8, 9, 6, 3, 3),
]
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
    found = torch.autograd.grad(loss, inputs, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found)]


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

    So labels are anchors of the own clip, anchors carry gradient, view 2 gets none but in L_CV's references,
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


def test_many_logits_are_computed_in_chunks() -> None:
    """8 million of them, with a temperature at which all count."""
    features, features_view2, *rest = draw(2, (2, 3, 4, 32, 32, 32, 2), torch.float32)
    inputs = [features.requires_grad_()]
    output = dense_loss(features, features_view2, *rest, tau=1.0)
    cells, anchors = warp(features, rest[0])[:, 1:], gather_cells(features[:, 0], rest[1])
    logits = cells.movedim(2, -1).flatten(0, -2) @ anchors.flatten(0, 1).t()
    expected = F.cross_entropy(logits, output.pseudo_labels[:, 1:].flatten())
    torch.testing.assert_close(output.space_time, expected)
    torch.testing.assert_close(gradients(output.space_time, *inputs), gradients(expected, *inputs), rtol=1e-4,
                               atol=1e-9)


@pytest.mark.parametrize(("height", "width", "n"), [
    (32, 32, 8), (8, 12, 4), (12, 6, 3), (16, 16, 16), (7, 7, 1)])
def test_grid_has_one_offset_a_clip(height: int, width: int, n: int) -> None:
    clips = 300
    index, again = (sample_grid(clips, height, width, n, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(index, again)
    assert index.shape == (clips, n, n) and index.dtype == torch.int64
    y, x = index // width, index % width
    dy, dx = y - torch.arange(n)[:, None] * (height // n), x - torch.arange(n) * (width // n)
    for offset, stride in ((dy, height // n), (dx, width // n)):
        assert torch.equal(offset, offset[:, :1, :1].expand_as(offset))
        assert set(offset[:, 0, 0].tolist()) == set(range(stride))  # all of [0, stride), each clip on its own
    if height > n and width > n:
        assert not torch.equal(dy[:, 0, 0] * (width // n), dx[:, 0, 0] * (height // n))


def test_grid_with_other_jitter() -> None:
    """Each cell of the grid gives one position: anywhere in it, or its corner always."""
    cell = torch.arange(4)[:, None] * 4 + torch.arange(4)  # of a 4x4 grid on an 8x12 map
    free = sample_grid(50, 8, 12, 4, torch.Generator().manual_seed(0), jitter="independent")
    assert torch.equal(free // 12 // 2 * 4 + free % 12 // 3, cell.expand(50, -1, -1))
    assert (free - free[:, :1, :1]).unique(dim=0).shape[0] == 50
    fixed = sample_grid(3, 8, 12, 4, torch.Generator().manual_seed(0), jitter="none")
    assert torch.equal(fixed, (torch.arange(4)[:, None] * 24 + torch.arange(4) * 3).expand(3, -1, -1))


@pytest.mark.parametrize(("height", "width", "n"), [
    (32, 32, 7), (8, 12, 8), (12, 8, 3), (8, 8, 0), (8, 8, 16)])
def test_grid_must_divide_the_map(height: int, width: int, n: int) -> None:
    allowed = [k for k in range(1, 33) if height % k == width % k == 0]
    with pytest.raises(InputError) as error:
        sample_grid(2, height, width, n, torch.Generator())
    assert f"{height}x{width}" in str(error.value) and str(allowed) in str(error.value)
    with pytest.raises(InputError, match="common.*independent.*none.*shared"):
        sample_grid(2, 8, 8, 4, torch.Generator(), jitter="shared")


def test_flat_indices_are_rows_first() -> None:
    features = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6)
    cells = gather_cells(features, torch.tensor([[[7]], [[22]]]))  # y, x = 1, 1 and 3, 4
    assert torch.equal(cells, torch.stack([features[0, :, 1, 1], features[1, :, 3, 4]])[:, None])


@pytest.mark.parametrize(("position", "shape"), [
    (1, (2, 2, 5, 8, 8)), (1, (2, 3, 5, 8, 4)), (2, (1, 2, 3)), (2, (2, 3, 3)), (3, (1, 4, 4)),
    (4, (3, 2, 2))])
def test_shapes_must_agree(position: int, shape: tuple[int, ...]) -> None:
    arguments = draw(0, SHAPES[0])
    arguments[position] = torch.zeros(shape, dtype=arguments[position].dtype)
    with pytest.raises(InputError, match="shape"):
        dense_loss(*arguments)
    with pytest.raises(InputError, match=r"\(B, T, K, h, w\)"):
        dense_loss(*(f[:, 0] for f in arguments[:2]), *arguments[2:])
    for tau in (0, float("nan")):
        with pytest.raises(InputError, match="tau"):
            dense_loss(*draw(0, SHAPES[0]), tau=tau)
