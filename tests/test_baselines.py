"""The baselines' losses: golden values of the released code, a slow oracle, and properties."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dulvos import baselines
from dulvos.baselines import colorize_loss, contrast_loss, copy_colours, corrflow_loss, mast_loss, walk_loss
from dulvos.errors import InputError


def load(golden: Path, case: str) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value) for name, value in np.load(golden / f"{case}.npz").items()}


def check(loss: Tensor, features: Tensor, case: dict[str, Tensor], gradient: str) -> None:
    """A golden case's loss and its gradient."""
    assert loss.item() == pytest.approx(case["loss"].item(), rel=1e-5)
    ours, = torch.autograd.grad(loss, features)
    assert (ours - case[gradient]).abs().max() <= 1e-4 * case[gradient].abs().max()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clips(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


@pytest.mark.parametrize("case", ["crw_small", "crw_paper"])
def test_golden_walks(golden: Path, case: str) -> None:
    expected = load(golden, case)
    features = expected["features"].requires_grad_()
    output = walk_loss(F.normalize(features, dim=1), tau=expected["tau"].item())
    assert output.walks.tolist() == pytest.approx(expected["walks"].tolist(), rel=1e-5)
    check(output.total, features, expected, "grad_features")


@pytest.mark.parametrize("method", ["mast", "corrflow"])
def test_golden_copies(golden: Path, method: str) -> None:
    case = load(golden, f"reconstruct_{method}_small")
    stride, radius, target = case["stride"].item(), case["radius"].item(), case["target_features"]
    target, reference = target.requires_grad_(), case["reference_features"]
    if method == "mast":  # its case holds a list of one reference
        colours = case["reference_colours"]
        cells = colours[..., ::stride, ::stride]
    else:
        classes = torch.stack([case["reference_classes"][:, 0], case["target_classes"]], 1)
        both = F.one_hot(classes[..., ::stride, ::stride], 16).movedim(-1, 2).float()
        reference, cells = reference[None], both[None, :, 0]
    copied = copy_colours(reference, target, cells, radius=radius,
                          border="zero" if method == "mast" else "exclude")
    torch.testing.assert_close(copied, case["copied"], rtol=0, atol=1e-5)
    features = torch.stack([reference[0], target], 1)
    output = (mast_loss(features, torch.stack([colours[0], case["target_colours"]], 1)) if method == "mast"
              else corrflow_loss(features, both, classes, torch.zeros(2, 2, dtype=torch.bool)))
    check(output.copied, target, case, "grad_target_features")


def test_dropout_is_a_function_of_the_generator_and_the_share_of_edges_that_are_removed() -> None:
    nodes = F.normalize(clips(0, 2, 16, 4, 9), dim=1)
    losses = [walk_loss(nodes, dropout=0.3, generator=generator(seed)).total for seed in (0, 0, 1)]
    assert losses[0] == losses[1] and len({*map(float, losses), float(walk_loss(nodes).total)}) == 3
    still = F.normalize(clips(1, 1, 64, 1, 25), dim=1).expand(-1, -1, 3, -1)
    costs = [walk_loss(still, tau=0.01, dropout=p, generator=generator()).total for p in (0, 0.01, 0.1)]
    assert costs[0] < 1e-6 < costs[1] < costs[2] / 2
    assert walk_loss(still, dropout=0.999, generator=generator()).total.isfinite()


def test_a_low_loss_of_walks_proves_no_matching() -> None:
    """With dropout, random points in three dimensions cost less than perfect matches in many."""
    noise = F.normalize(clips(0, 10, 3, 4, 49), dim=1)
    matched = F.normalize(clips(1, 10, 128, 1, 49), dim=1).expand(-1, -1, 4, -1)
    guessed, found = (walk_loss(nodes, dropout=0.1, generator=generator()).total
                      for nodes in (noise, matched))
    assert guessed < 2.5 < 3 < found


def copy_oracle(reference: Tensor, target: Tensor, colours: Tensor, radius: int | None,
                border: str) -> Tensor:
    """Cell by cell, window by window."""
    references, batch, _, height, width = reference.shape
    copied = torch.zeros(batch, colours.shape[2], height, width, dtype=target.dtype)
    reach = max(height, width) if radius is None else radius
    for b, y, x in np.ndindex(batch, height, width):
        total = 0
        for r, dy, dx in np.ndindex(references, 2 * reach + 1, 2 * reach + 1):
            i, j = y + dy - reach, x + dx - reach
            if 0 <= i < height and 0 <= j < width:
                weight = (reference[r, b, :, i, j] @ target[b, :, y, x]).exp()
                copied[b, :, y, x] += weight * colours[r, b, :, i, j]
                total += weight
            else:
                total += border == "zero" and radius is not None
        copied[b, :, y, x] /= total
    return copied


@pytest.mark.parametrize("border", ["zero", "exclude"])
@pytest.mark.parametrize("radius", [None, 0, 1, 3])
def test_copies_agree_with_an_oracle(radius: int | None, border: str) -> None:
    reference, target, colours = clips(0, 2, 2, 4, 3, 5), clips(1, 2, 4, 3, 5), clips(2, 2, 2, 3, 3, 5)
    ours = copy_colours(reference, target, colours, radius=radius, border=border)
    torch.testing.assert_close(ours, copy_oracle(reference, target, colours, radius, border))


@pytest.mark.parametrize("call", [
    lambda nodes: walk_loss(nodes[:, :, :2]), lambda nodes: walk_loss(nodes[0]),
    lambda nodes: walk_loss(nodes, tau=0), lambda nodes: walk_loss(nodes, dropout=1),
    lambda nodes: copy_colours(nodes, nodes, nodes),
    lambda nodes: copy_colours(nodes[None], nodes, nodes[None, 1:]),
    lambda nodes: copy_colours(nodes[None], nodes, nodes[None], radius=-1),
    lambda nodes: copy_colours(nodes[None], nodes, nodes[None], border="mirror")])
def test_bad_arguments_are_refused(call) -> None:
    with pytest.raises(InputError):
        call(torch.zeros(2, 4, 3, 5))


def test_corrflow_and_colorize_agree_with_a_chain_of_copies() -> None:
    features, classes = clips(0, 2, 3, 5, 4, 3), torch.randint(0, 16, (2, 3, 16, 12), generator=generator(1))
    cells = baselines.one_hot_cells(classes, 16, 4).double()

    def copy(colours: Tensor, *path: int) -> Tensor:
        for a, b in zip(path, path[1:]):
            colours = copy_colours(features[None, :, a], features[:, b], colours[None], radius=6,
                                   border="exclude")
        return colours

    def cost(copied: Tensor, t: int) -> Tensor:
        large = F.interpolate(copied, (16, 12), mode="bilinear")
        return -(large.gather(1, classes[:, t, None]) + 1e-8).log().mean()

    # whether the first and the last frame's copies are kept does not matter
    output = corrflow_loss(features, cells, classes, torch.tensor([[True] * 3, [False] * 3]))
    first = copy(cells[:, 0], 0, 1)
    second = copy(torch.stack([first[0], cells[1, 1]]), 1, 2)  # the first clip keeps its copy
    torch.testing.assert_close(output.copied, (cost(first, 1) + cost(second, 2)) / 2)
    cycles = cost(copy(cells[:, 0], 0, 1, 0), 0) + cost(copy(cells[:, 0], 0, 1, 2, 1, 0), 0)
    torch.testing.assert_close(output.rest, 0.1 * cycles / 2)
    assert output.total == output.copied + output.rest
    # colorize copies from everywhere, as corrflow does on so small a map
    apart = corrflow_loss(features, cells, classes, torch.zeros(2, 3, dtype=torch.bool))
    torch.testing.assert_close(colorize_loss(features, cells, classes).total, apart.copied)


@pytest.mark.parametrize(("channel", "weight"), [(0, 1), (1, 10), (2, 10)])
def test_contrast_weighs_a_and_b_tenfold_and_the_way_back_a_tenth(channel: int, weight: float) -> None:
    """With equal features, every copy is the frame's mean, here 0; the frames are ±1 and ±3."""
    lab = torch.zeros(1, 2, 3, 8, 8)
    lab[:, 0, channel], lab[:, 1, channel] = 1, 3
    lab[..., 4:] *= -1
    output = contrast_loss(torch.zeros(1, 2, 4, 2, 2), lab)
    assert output.copied.item() == pytest.approx(weight * (3 + 0.1 * 1))


def test_contrast_copies_back_by_the_same_weights() -> None:
    """All cells of frame 1 copy from cell 0 of frame 0. On the way back it gets the sum, and the others 0."""
    features = torch.zeros(1, 2, 1, 2, 2)
    features[:, 0, :, 0, 0], features[:, 1] = 1, 100
    lab = torch.zeros(1, 2, 3, 2, 2)
    lab[:, :, 0] = 1
    assert contrast_loss(features, lab).copied.item() == pytest.approx(0.1 * (3 + 1 + 1 + 1) / 4)


def test_contrast_terms_vanish_for_a_clip_alone_and_halve_for_twins() -> None:
    features, lab = clips(0, 1, 3, 5, 4, 3), clips(1, 1, 3, 3, 16, 12)
    assert contrast_loss(features, lab).rest.abs() < 1e-12
    twins = contrast_loss(features.expand(2, -1, -1, -1, -1), lab.expand(2, -1, -1, -1, -1))
    assert twins.rest.item() == pytest.approx(0.5)


CORNER = torch.cartesian_prod(torch.arange(7.0), torch.arange(7.0)).flip(1)  # x, y of a grid, rows first


def test_patches_are_jittered_squares_of_a_grid() -> None:
    boxes = baselines.patch_boxes(40, 128, generator())
    assert torch.equal(boxes, baselines.patch_boxes(40, 128, generator()))
    assert (boxes[..., :2] >= 16 * CORNER - 1e-3).all() and (boxes[..., 2:] <= 16 * CORNER + 32 + 1e-3).all()
    width, height = (boxes[..., 2:] - boxes[..., :2]).unbind(-1)
    share, ratio = width * height / 32**2, width / height
    assert 0.7 <= share.min() < 0.71 < 0.89 < share.max() <= 0.9001
    assert 0.749 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.334
    assert len((boxes - boxes[:1]).flatten(0, 1).unique(dim=0)) > 39 * 49  # each patch by itself


def test_patches_are_cut_where_their_boxes_are() -> None:
    frames = torch.rand(2, 3, 64, 64, generator=generator())
    boxes = torch.cat([8 * CORNER, 8 * CORNER + 16], 1).expand(2, -1, -1)
    plain = frames.unfold(2, 16, 8).unfold(3, 16, 8).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    torch.testing.assert_close(baselines.cut_patches(frames, boxes), plain)


def test_lab_is_cie_lab() -> None:
    picture = np.random.default_rng(0).random((20, 30, 3), np.float32)
    picture[0] *= 0.02  # dark
    ours = baselines.rgb_to_lab(torch.from_numpy(picture).permute(2, 0, 1)).permute(1, 2, 0)
    theirs = cv2.cvtColor(picture, cv2.COLOR_RGB2Lab)  # interpolates in a table
    assert np.abs(ours.numpy() - theirs).max() < 1
    known = torch.tensor([[1.0, 0, 0], [1, 1, 1]]).T[:, None]
    lab = baselines.rgb_to_lab(known)[:, 0].T
    torch.testing.assert_close(lab, torch.tensor([[53.24, 80.09, 67.20], [100, 0, 0]]), rtol=0, atol=0.05)
    scaled = baselines.scale_lab(baselines.rgb_to_lab(known))[:, 0].T
    torch.testing.assert_close(scaled, (lab - torch.tensor([50, 0, 0])) / torch.tensor([50, 127, 127]))


@pytest.mark.parametrize("centres", [baselines.LAB_CLASSES, baselines.AB_CLASSES])
def test_colour_classes_are_the_nearest(centres: tuple) -> None:
    lab = torch.tensor([50.0, 0, 0])[:, None, None] + 30 * torch.randn(2, 3, 9, 7, generator=generator())
    points, pixels = torch.tensor(centres).double(), lab.movedim(1, -1).double()
    nearest = torch.cdist(pixels[..., -points.shape[1]:].flatten(0, 2), points).argmin(1)
    assert torch.equal(baselines.colour_classes(lab, centres).flatten(), nearest)
    assert len(centres) == 16


def test_one_hot_cells_hold_shares() -> None:
    classes = torch.tensor([[0, 1, 2, 2], [0, 0, 2, 2]])[None, None]
    shares = baselines.one_hot_cells(classes, 3, 2)[0, 0, :, 0]
    assert shares.tolist() == [[0.75, 0], [0.25, 0], [0, 1]]


def test_dropped_channels() -> None:
    """CorrFlow's: one or two of three, at probability 0.7. MAST's: one of the last two, always."""
    source = generator()
    draws = torch.stack([baselines.channel_factors(source) for _ in range(1000)])
    counts = torch.bincount((draws == 0).sum(1), minlength=4) / 1000
    assert counts.tolist() == pytest.approx([0.3, 0.35, 0.35, 0], abs=0.05)
    assert torch.allclose(draws.sum(1), torch.tensor(3.0))
    assert ((draws == 0).float().mean(0) - 0.35).abs().max() < 0.05
    mast = [baselines.channel_factors(source, (1, 2), most=1, probability=1) for _ in range(100)]
    assert {tuple(factors.tolist()) for factors in mast} == {(1.5, 0, 1.5), (1.5, 1.5, 0)}
