"""Correspondence: matches by plain search, planted motions, and what propagation copies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dulvos import correspondence as c
from dulvos.errors import InputError
from dulvos.propagation import PROTOCOLS, propagate
from dulvos.views import Similarity, warp
from tests.oracles import blobs, random_features, resize

HEIGHT, WIDTH = 6, 9  # never square, so that (h, w) cannot be swapped unseen
FEATURES = random_features(0, 3, 8, HEIGHT, WIDTH)


def shifted(frames: int, dy: int, dx: int, *, pad: int = 12) -> Tensor:
    """(T, K, h, w) of one random map whose content moves by (dy, dx) cells a frame; what enters is new."""
    whole = random_features(5, 16, HEIGHT + 2 * pad, WIDTH + 2 * pad)
    tops, lefts = (pad - step * torch.arange(frames) for step in (dy, dx))
    return torch.stack([whole[:, y: y + HEIGHT, x: x + WIDTH] for y, x in zip(tops, lefts)])


def theta_of(flip: bool, top: int, left: int, side: int) -> Tensor:
    """𝒯 (1, 2, 3) of a crop of 64 x 64 pixels."""
    return Similarity(64, *(torch.tensor([value]) for value in (flip, top, left, side))).theta()


def test_affinity_is_the_cosine_with_every_cell() -> None:
    found = c.affinity(FEATURES, 1, 4, 7)
    assert found.shape == (3, HEIGHT, WIDTH)
    for t, y, x in ((0, 0, 8), (1, 4, 7), (2, 5, 0)):
        assert found[t, y, x] == pytest.approx(float(FEATURES[1, :, 4, 7] @ FEATURES[t, :, y, x]))
    assert found[1, 4, 7] == pytest.approx(1)


def test_best_matches_are_the_greatest_of_each_frame_in_order() -> None:
    maps = torch.randperm(2 * HEIGHT * WIDTH).view(2, HEIGHT, WIDTH).float()
    positions, values = c.best_matches(maps, 4)
    assert positions.shape == (2, 4, 2) and positions.dtype == torch.int64
    for t in range(2):
        assert values[t].tolist() == sorted(maps[t].flatten().tolist())[:-5:-1]
        assert torch.equal(maps[t, positions[t, :, 0], positions[t, :, 1]], values[t])


def test_anchor_grid_takes_the_middle_of_each_block() -> None:
    assert c.anchor_grid(6, 9, 3).tolist() == [[y, x] for y in (1, 3, 5) for x in (1, 4, 7)]
    assert c.anchor_grid(60, 107, 8).max(0).values.tolist() == [56, 100]
    assert len(c.anchor_grid(6, 9, 6).unique(dim=0)) == 36


def test_dominant_anchors_are_a_softmax_over_all_anchors() -> None:
    anchors = random_features(2, 8, 5, 1)[..., 0].T
    labels, shares = c.dominant_anchors(FEATURES, anchors, 0.1)
    v = torch.softmax(torch.einsum("tkhw,nk->thwn", FEATURES, anchors) / 0.1, -1)
    torch.testing.assert_close((shares, labels), tuple(v.max(-1)))
    one, sure = c.dominant_anchors(FEATURES, anchors[:1], 0.1)
    assert (one == 0).all() and (sure == 1).all()
    features, place = random_features(1, 2, 32, HEIGHT, WIDTH), c.anchor_grid(HEIGHT, WIDTH, 3)
    labels, _ = c.dominant_anchors(features, features[0, :, place[:, 0], place[:, 1]].T)
    assert labels[0, place[:, 0], place[:, 1]].tolist() == list(range(9))  # an anchor dominates its own cell


def test_principal_components() -> None:
    """One basis for the clip, which does not depend on rotations and signs of channels, or on outliers."""
    rng = np.random.default_rng(0)
    scales = np.array([9, 3, 1, 0.1, 0.1, 0.1])[:, None, None]  # three clear, skewed directions of variance
    features = torch.from_numpy(rng.exponential(size=(3, 6, HEIGHT, WIDTH)) * scales)
    components = c.principal_components(features)
    assert components.shape == (3, HEIGHT, WIDTH, 3) and components.min() == 0 and components.max() == 1
    for place in range(3):  # here the channels are the components, in order of variance
        pair = torch.stack([components[..., place].flatten(), features[:, place].flatten()])
        assert torch.corrcoef(pair)[0, 1] > 0.8  # the rest is clipped
    rotation = torch.from_numpy(np.linalg.qr(rng.standard_normal((6, 6)))[0])
    for other in (torch.einsum("ij,tjhw->tihw", rotation, features), -features):
        torch.testing.assert_close(c.principal_components(other), components)
    features[0, 0, 0, 0] += 1000  # one cell in 162 must not take the whole range
    assert (c.principal_components(features) - components)[..., 0].abs().median() < 0.02
    features[2] = features[0]
    again = c.principal_components(features)
    torch.testing.assert_close(again[0], again[2])  # equal features, equal values in any frame
    assert (c.principal_components(torch.ones(1, 4, 2, 2)) == 0).all()  # nothing varies


@pytest.mark.parametrize(("radius", "follows"), [(2.3, True), (5**0.5, False), (0.5, False), (np.inf, True)])
def test_tracks_follow_a_motion_in_steps_below_the_radius(radius: float, follows: bool) -> None:
    points = torch.tensor([[2, 6], [3, 5]])
    found = c.tracks(shifted(3, 1, -2), points, radius)
    expected = points + torch.arange(3)[:, None, None] * torch.tensor([1, -2])
    assert torch.equal(found, expected) == follows
    assert radius > 1 or torch.equal(found, points.expand(3, -1, -1))


def test_cycle_error_is_zero_for_a_permutation_and_counts_the_way_back() -> None:
    a = random_features(3, 32, HEIGHT, WIDTH)
    order = torch.randperm(HEIGHT * WIDTH, generator=torch.Generator().manual_seed(0))
    assert (c.cycle_error(a, a.flatten(1)[:, order].view_as(a)) == 0).all()
    # every cell goes to the one cell that b's all are, and comes back to (1, 2)
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    torch.testing.assert_close(c.cycle_error(a, a[:, 1:2, 2:3].expand_as(a)), torch.hypot(y - 1.0, x - 2.0))


def test_large_maps_are_matched_in_parts() -> None:
    a, b = random_features(3, 2, 2, 50, 84)  # 4,200² similarities: two parts
    similarity = a.flatten(1).T @ b.flatten(1)
    back = similarity.argmax(0)[similarity.argmax(1)]
    y, x = (place[back] - place for place in (torch.arange(4200) // 84, torch.arange(4200) % 84))
    torch.testing.assert_close(c.cycle_error(a, b).flatten(), torch.hypot(y.float(), x.float()))


@pytest.mark.parametrize("stride", [None, 8])
@pytest.mark.parametrize("flip", [False, True])
def test_where_theta_leads_is_where_warp_samples(flip: bool, stride: int | None) -> None:
    theta, features = theta_of(flip, 9, 20, 41), random_features(4, 64, 8, 8)
    warped = warp(features[None, None], theta, corrected_stride=stride)[0, 0]
    expected, found = c.view_matches(features, warped, theta[0], corrected_stride=stride)
    # warped features find exactly the cell that the sampling took, at most half a cell away on each axis
    inside = ((expected >= 0) & (expected <= 7)).all(-1)
    assert inside.double().mean() > 0.8
    assert (expected - found)[inside].abs().max() <= 0.5001


def test_the_corrected_alignment_leads_pixels_to_pixels() -> None:
    """A flip of 64 pixels takes pixel 8i to 63 - 8i, 7.875 - i cells in; the release says 7 - i."""
    features, theta = random_features(4, 64, 8, 8), theta_of(True, 0, 0, 64)[0]
    for stride, edge in ((8, 7.875), (None, 7)):
        expected, _ = c.view_matches(features, features, theta, corrected_stride=stride)
        torch.testing.assert_close(expected[3, :, 1], edge - torch.arange(8.0))
        torch.testing.assert_close(expected[:, 3, 0], torch.arange(8.0))


SOURCES = {  # frames, reference, rules
    "the first step": (2, 0, {}),
    "copies of the reference": (6, 0, {"radius": 3}),
    "a full context": (9, 0, {"context": 4, "radius": 3}),
    "a later reference": (9, 3, {"radius": 4, "topk": 7}),
    "one neighbour": (5, 0, {"context": 2, "radius": 2, "topk": 1}),
    "radius below one cell": (5, 0, {"context": 2, "radius": 0.5, "topk": 5}),
    "DINO's rules": (9, 1, {"protocol": PROTOCOLS["dino"], "context": 4, "radius": 2, "shrink": "bilinear"}),
}


@pytest.mark.parametrize("case", SOURCES)
def test_sources_are_what_propagate_copies_from(case: str) -> None:
    frames, reference, rules = SOURCES[case]
    noise = random_features(len(case), frames, 8, HEIGHT + 8, WIDTH)
    features, mask = F.normalize(noise[:1] + 0.7 * noise, dim=1), blobs(1, (1, 2), 8 * HEIGHT + 64, 8 * WIDTH)
    soft = torch.stack(list(propagate(features, {reference: mask}, **rules)))  # [T, M, h, w]
    given = resize(torch.stack([torch.from_numpy(mask) == i for i in range(3)]), HEIGHT + 8, WIDTH)
    torch.testing.assert_close(soft[reference].double(), given, rtol=0, atol=1e-5)
    for t in range(reference + 1, frames):
        for y, x in ((0, 0), (2, 7), (5, 8), (13, 4)):
            found = c.sources(features, t, y, x, reference=reference, **rules)
            count = rules.get("topk", 5 if "protocol" in rules else 10)
            assert len(found.frames) == len(found.positions) == count
            assert reference <= found.frames.min() and found.frames.max() < t
            assert float(found.weights.sum()) == pytest.approx(1) and (found.weights.diff() <= 0).all()
            copied = soft[found.frames, :, found.positions[:, 0], found.positions[:, 1]].double()  # [topk, M]
            torch.testing.assert_close(found.weights @ copied, soft[t, :, y, x].double(), rtol=0, atol=1e-5)


def test_the_reference_counts_as_often_as_it_stands_in_the_context() -> None:
    """In a still video the cell itself is best, in every one of the 21 entries of frame 1."""
    found = c.sources(FEATURES[:1].expand(2, -1, -1, -1), 1, 3, 4)
    assert (found.frames == 0).all() and (found.positions == torch.tensor([3, 4])).all()
    torch.testing.assert_close(found.weights, torch.full((10,), 0.1, dtype=torch.float64))


def test_only_the_reference_is_looked_at_from_afar() -> None:
    """The cell's twin lies 5 cells away in all frames; with d < 5 only the reference shows it, once."""
    features = random_features(0, 4, 16, HEIGHT, WIDTH)
    features[:, :, 2, 6] = features[3, :, 2, 1]
    for radius, frames in ((5, [0]), (5.1, [0, 0, 1, 2])):
        found = c.sources(features, 3, 2, 1, context=3, radius=radius)
        twin = (found.positions == torch.tensor([2, 6])).all(1)
        assert sorted(found.frames[twin].tolist()) == frames


@pytest.mark.parametrize(("call", "named"), [
    (lambda: c.affinity(FEATURES, 3, 0, 0), "frame 3"),
    (lambda: c.affinity(FEATURES, -1, 0, 0), "frame -1"),
    (lambda: c.affinity(FEATURES, 0, HEIGHT, 0), r"\[6, 0\].*6x9"),
    (lambda: c.affinity(FEATURES, 0, 0, WIDTH), r"\[0, 9\].*6x9"),
    (lambda: c.affinity(FEATURES, 0, -1, 0), r"\[-1, 0\].*6x9"),
    (lambda: c.anchor_grid(6, 9, 7), "7.*6x9"),
    (lambda: c.dominant_anchors(FEATURES, torch.zeros(5, 8), 0), "tau"),
    (lambda: c.tracks(FEATURES, torch.tensor([[WIDTH - 1, 0]]), 3), r"\[\[8, 0\]\].*6x9"),
    (lambda: c.tracks(FEATURES, torch.tensor([[0, 0]]), 0), "radius"),
    (lambda: c.sources(FEATURES, 0, 0, 0), "frame 0"),
    (lambda: c.sources(FEATURES, 1, 0, 0, reference=2), "frame 2"),
    (lambda: c.sources(FEATURES, 3, 0, 0), "frame 3"),
    (lambda: c.sources(FEATURES, 1, 0, 0, context=0), "context=0"),
])
def test_wrong_inputs_are_named(call, named: str) -> None:
    with pytest.raises(InputError, match=named):
        call()
