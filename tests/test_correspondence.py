"""Correspondence: matches found by plain search, planted motions recovered, and the very cells that propagation copies from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dulvos import correspondence as c
from dulvos.errors import InputError
from dulvos.propagation import propagate
from dulvos.views import Similarity, warp
from tests.oracles import blobs, random_features, resize

HEIGHT, WIDTH = 6, 9  # never square, so that (h, w) cannot be swapped unseen


def shifted(frames: int, dy: int, dx: int, *, pad: int = 12) -> Tensor:
    """(T, K, h, w) of one random map whose content moves by (dy, dx) cells a frame; what enters is new."""
    whole = random_features(5, 16, HEIGHT + 2 * pad, WIDTH + 2 * pad)
    tops, lefts = (pad - step * torch.arange(frames) for step in (dy, dx))
    return torch.stack([whole[:, y: y + HEIGHT, x: x + WIDTH] for y, x in zip(tops, lefts)])


def test_affinity_is_the_cosine_with_every_cell() -> None:
    features = random_features(0, 3, 8, HEIGHT, WIDTH)
    found = c.affinity(features, 1, 4, 7)
    assert found.shape == (3, HEIGHT, WIDTH)
    for t, y, x in ((0, 0, 8), (1, 4, 7), (2, 5, 0)):
        assert found[t, y, x] == pytest.approx(float(features[1, :, 4, 7] @ features[t, :, y, x]))
    assert found[1, 4, 7] == pytest.approx(1)


@pytest.mark.parametrize(("frame", "y", "x"), [(3, 0, 0), (-1, 0, 0), (0, HEIGHT, 0), (0, 0, WIDTH), (0, -1, 0)])
def test_a_cell_outside_is_refused(frame: int, y: int, x: int) -> None:
    with pytest.raises(InputError, match=f"outside 3 frames of {HEIGHT}x{WIDTH} cells"):
        c.affinity(random_features(0, 3, 8, HEIGHT, WIDTH), frame, y, x)


def test_best_matches_are_the_greatest_of_each_frame_in_order() -> None:
    maps = torch.randperm(2 * HEIGHT * WIDTH).view(2, HEIGHT, WIDTH).float()
    positions, values = c.best_matches(maps, 4)
    assert positions.shape == (2, 4, 2) and positions.dtype == torch.int64
    for t in range(2):
        assert values[t].tolist() == sorted(maps[t].flatten().tolist())[:-5:-1]
        assert torch.equal(maps[t, positions[t, :, 0], positions[t, :, 1]], values[t])
    assert c.best_matches(maps, HEIGHT * WIDTH)[1].shape == (2, HEIGHT * WIDTH)
    for k in (0, HEIGHT * WIDTH + 1):
        with pytest.raises(InputError, match=r"k must lie in \[1, 54\]"):
            c.best_matches(maps, k)


def test_anchor_grid_takes_the_middle_of_each_block() -> None:
    grid = c.anchor_grid(6, 9, 3)
    assert grid.tolist() == [[y, x] for y in (1, 3, 5) for x in (1, 4, 7)]
    assert c.anchor_grid(60, 107, 8).max(0).values.tolist() == [56, 100]
    assert len(c.anchor_grid(6, 9, 6).unique(dim=0)) == 36
    with pytest.raises(InputError, match="does not fit"):
        c.anchor_grid(6, 9, 7)


def test_dominant_anchors_are_a_softmax_over_all_anchors() -> None:
    features, anchors = random_features(1, 2, 8, HEIGHT, WIDTH), random_features(2, 8, 5, 1)[..., 0].T
    labels, confidence = c.dominant_anchors(features, anchors, 0.1)
    v = torch.softmax(torch.einsum("tkhw,nk->thwn", features, anchors) / 0.1, -1)
    torch.testing.assert_close((confidence, labels), tuple(v.max(-1)))
    one, sure = c.dominant_anchors(features, anchors[:1], 0.1)
    assert (one == 0).all() and (sure == 1).all()


def test_an_anchor_dominates_its_own_cell() -> None:
    features, place = random_features(1, 2, 32, HEIGHT, WIDTH), c.anchor_grid(HEIGHT, WIDTH, 3)
    labels, _ = c.dominant_anchors(features, features[0, :, place[:, 0], place[:, 1]].T)
    assert labels[0, place[:, 0], place[:, 1]].tolist() == list(range(9))


def test_dominant_anchors_refuse_other_channels_and_tau() -> None:
    features = random_features(1, 2, 8, HEIGHT, WIDTH)
    with pytest.raises(InputError, match=r"\(n, 8\)"):
        c.dominant_anchors(features, torch.zeros(8, 5))
    with pytest.raises(InputError, match="tau must be positive"):
        c.dominant_anchors(features, torch.zeros(5, 8), 0)


def spread(frames: int = 3) -> Tensor:
    """Features with three clear, skewed directions of variance."""
    rng = np.random.default_rng(0)
    scales = np.array([9, 3, 1, 0.1, 0.1, 0.1])[:, None, None]
    return torch.from_numpy(rng.exponential(size=(frames, 6, HEIGHT, WIDTH)) * scales)


def test_principal_components_are_one_basis_for_the_clip() -> None:
    features = spread()
    components = c.principal_components(features)
    assert components.shape == (3, 3, HEIGHT, WIDTH) and components.min() == 0 and components.max() == 1
    again = features.clone()
    again[2] = features[0]
    once_more = c.principal_components(again)
    torch.testing.assert_close(once_more[0], once_more[2])  # equal features, equal colours, whatever the frame
    for place in range(3):  # here the channels are the components, in order of variance
        pair = torch.stack([components[:, place].flatten(), features[:, place].flatten().float()])
        assert torch.corrcoef(pair)[0, 1] > 0.8  # the rest is clipped


def test_principal_components_do_not_depend_on_rotations_signs_or_outliers() -> None:
    features = spread()
    rotation = torch.from_numpy(np.linalg.qr(np.random.default_rng(1).standard_normal((6, 6)))[0])
    components = c.principal_components(features)
    torch.testing.assert_close(c.principal_components(torch.einsum("ij,tjhw->tihw", rotation, features)), components)
    torch.testing.assert_close(c.principal_components(-features), components)
    wild = features.clone()
    wild[0, 0, 0, 0] += 1000  # one cell in 162 must not take the whole range
    assert (c.principal_components(wild) - components)[:, 0].abs().median() < 0.02
    assert torch.equal(c.principal_components(torch.ones(1, 4, 2, 2)), torch.zeros(1, 3, 2, 2))  # nothing varies
    with pytest.raises(InputError, match=r"\[1, 6\]"):
        c.principal_components(features, 7)


def test_tracks_follow_a_motion_both_ways() -> None:
    features, points = shifted(4, 1, -2), torch.tensor([[2, 4], [3, 5]])
    found = c.tracks(features, points, 3, start=1)
    for t in range(4):
        expected = points + (t - 1) * torch.tensor([1, -2])
        inside = ((expected >= 0) & (expected < torch.tensor([HEIGHT, WIDTH]))).all(1)
        assert inside.any() and torch.equal(found[t][inside], expected[inside])


def test_tracks_step_less_than_the_radius() -> None:
    features, point = shifted(2, 0, 2), torch.tensor([[3, 3]])
    assert c.tracks(features, point, 2.01)[1].tolist() == [[3, 5]]
    assert c.tracks(features, point, 2)[1].tolist() != [[3, 5]]
    assert c.tracks(features, point, 0.5)[1].tolist() == [[3, 3]]
    assert c.tracks(features, point, float("inf"))[1].tolist() == [[3, 5]]


def test_tracks_refuse_points_outside_and_no_radius() -> None:
    with pytest.raises(InputError, match="outside"):
        c.tracks(shifted(2, 0, 0), torch.tensor([[WIDTH - 1, 0]]), 3)
    with pytest.raises(InputError, match="radius must be positive"):
        c.tracks(shifted(2, 0, 0), torch.tensor([[0, 0]]), 0)


def test_cycle_error_is_zero_for_a_permutation_and_counts_the_way_back() -> None:
    a = random_features(3, 32, HEIGHT, WIDTH)
    order = torch.randperm(HEIGHT * WIDTH, generator=torch.Generator().manual_seed(0))
    assert (c.cycle_error(a, a.flatten(1)[:, order].view_as(a)) == 0).all()
    # every cell goes to the one cell that b's all are, and comes back to (1, 2)
    b = a[:, 1:2, 2:3].expand_as(a)
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    torch.testing.assert_close(c.cycle_error(a, b), torch.hypot(y - 1.0, x - 2.0))


def test_cycle_error_in_pieces_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = random_features(3, 2, 8, HEIGHT, WIDTH)
    whole = c.cycle_error(a, b)
    monkeypatch.setattr(c, "CHUNK", 7 * HEIGHT * WIDTH)
    assert whole.max() > 0 and torch.equal(c.cycle_error(a, b), whole)
    with pytest.raises(InputError, match="one shape"):
        c.cycle_error(a, b[:, :-1])


@pytest.mark.parametrize("stride", [None, 8])
@pytest.mark.parametrize("flip", [False, True])
def test_where_theta_leads_is_where_warp_samples(flip: bool, stride: int | None) -> None:
    theta = Similarity(64, torch.tensor([flip]), torch.tensor([9]), torch.tensor([20]), torch.tensor([41])).theta()
    features = random_features(4, 64, 8, 8)
    result = c.equivariance_error(features, warp(features[None, None], theta, corrected_stride=stride)[0, 0], theta[0],
                                  corrected_stride=stride)
    # the warped features find exactly the cell that the sampling took, half a cell away at most on each axis
    inside = ((result.expected >= 0) & (result.expected <= 7)).all(-1)
    assert inside.double().mean() > 0.8
    assert (result.expected - result.found)[inside].abs().max() <= 0.5001
    assert result.error[inside].max() <= 0.7072 < result.position_error.mean()


def test_the_corrected_alignment_leads_pixels_to_pixels() -> None:
    """A flip of 64 pixels takes pixel 8i to 63 - 8i, which lies 7.875 - i cells in; the release says 7 - i."""
    theta = Similarity(64, torch.tensor([True]), torch.tensor([0]), torch.tensor([0]), torch.tensor([64])).theta()[0]
    features = random_features(4, 64, 8, 8)
    for stride, edge in ((8, 7.875), (None, 7)):
        expected = c.equivariance_error(features, features, theta, corrected_stride=stride).expected
        torch.testing.assert_close(expected[3, :, 1], edge - torch.arange(8.0))
        torch.testing.assert_close(expected[:, 3, 0], torch.arange(8.0))


def test_a_network_that_knows_places_only_has_the_error_of_positions() -> None:
    theta = Similarity(64, torch.tensor([True]), torch.tensor([9]), torch.tensor([20]), torch.tensor([41])).theta()[0]
    places = random_features(4, 64, 5, 8)
    result = c.equivariance_error(places, places, theta)
    torch.testing.assert_close(result.error, result.position_error)
    assert result.error.mean() > 1
    identity = torch.eye(3)[:2]
    assert c.equivariance_error(places, places, identity).error.max() < 1e-6
    with pytest.raises(InputError, match="one shape"):
        c.equivariance_error(places, places[:, :-1], theta)


SOURCES = {  # frames, context, radius, topk, reference
    "the first step": (2, 20, 12, 10, 0),
    "copies of the reference": (6, 20, 3, 10, 0),
    "a full context": (9, 4, 3, 10, 0),
    "a later reference": (9, 20, 4, 7, 3),
    "one neighbour": (5, 2, 2, 1, 0),
    "radius below one cell": (5, 2, 0.5, 5, 0),
}


@pytest.mark.parametrize("case", SOURCES)
def test_sources_are_what_propagate_copies_from(case: str) -> None:
    frames, context, radius, topk, reference = SOURCES[case]
    noise = random_features(len(case), frames, 8, HEIGHT, WIDTH)
    features = F.normalize(noise[:1] + 0.7 * noise, dim=1)
    mask = blobs(1, (1, 2), 8 * HEIGHT, 8 * WIDTH)
    settings = {"context": context, "radius": radius, "topk": topk}
    soft = torch.stack(list(propagate(features, {reference: mask}, **settings)))  # [T, M, h, w]
    assert torch.allclose(soft[reference].double(), resize(torch.stack([torch.from_numpy(mask) == i for i in range(3)]),
                                                           HEIGHT, WIDTH), atol=1e-5)
    for t in range(reference + 1, frames):
        for y, x in ((0, 0), (2, 7), (5, 8)):
            found = c.sources(features, t, y, x, reference=reference, **settings)
            assert found.frames.shape == found.weights.shape == (topk,) and found.positions.shape == (topk, 2)
            assert reference <= found.frames.min() and found.frames.max() < t
            assert float(found.weights.sum()) == pytest.approx(1) and (found.weights.diff() <= 0).all()
            copied = soft[found.frames, :, found.positions[:, 0], found.positions[:, 1]]  # [topk, M]
            torch.testing.assert_close((found.weights[:, None] * copied).sum(0), soft[t, :, y, x].double(), rtol=0, atol=1e-5,
                                       check_dtype=False)


def test_the_reference_counts_as_often_as_it_stands_in_the_context() -> None:
    """In a still video the cell itself is best, in every one of the 21 entries of frame 1."""
    still = random_features(0, 1, 16, HEIGHT, WIDTH).expand(2, -1, -1, -1)
    found = c.sources(still, 1, 3, 4)
    assert (found.frames == 0).all() and (found.positions == torch.tensor([3, 4])).all()
    torch.testing.assert_close(found.weights, torch.full((10,), 0.1, dtype=torch.float64))


def test_only_the_reference_is_looked_at_from_afar() -> None:
    """The cell's twin lies 5 cells away in all frames; within d < 5 it is found in the reference alone, and once."""
    features = random_features(0, 4, 16, HEIGHT, WIDTH)
    features[:, :, 2, 6] = features[3, :, 2, 1]
    found = c.sources(features, 3, 2, 1, context=3, radius=5)
    twin = (found.positions == torch.tensor([2, 6])).all(1)
    assert found.frames[twin].tolist() == [0]
    assert (c.sources(features, 3, 2, 1, context=3, radius=5.1).positions == torch.tensor([2, 6])).all(1).sum() == 4


def test_sources_refuse_what_propagate_cannot_do() -> None:
    features = random_features(0, 3, 8, HEIGHT, WIDTH)
    for frame, settings, message in ((0, {}, "must come before"), (1, {"reference": 2}, "must come before"),
                                     (3, {}, "outside"), (1, {"context": 0}, "context must be >= 1"),
                                     (1, {"topk": HEIGHT * WIDTH + 1}, "topk"), (1, {"radius": 0}, "radius"),
                                     (1, {"tau": 0}, "tau")):
        with pytest.raises(InputError, match=message):
            c.sources(features, frame, 0, 0, **settings)
