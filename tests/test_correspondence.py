"""Correspondence: matches against a plain search, sources against what propagation copies."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dulvos import correspondence as c
from dulvos.errors import InputError
from dulvos.propagation import PROTOCOLS, propagate
from tests.oracles import blobs, random_features, resize

HEIGHT, WIDTH = 6, 9  # never square, so that (h, w) cannot be swapped unseen
FEATURES = random_features(0, 3, 8, HEIGHT, WIDTH)


def test_affinity_is_the_cosine_with_every_cell_and_the_best_matches_are_its_greatest() -> None:
    found = c.affinity(FEATURES, 1, 4, 7)
    torch.testing.assert_close(found, torch.einsum("k,tkhw->thw", FEATURES[1, :, 4, 7], FEATURES))
    positions, values = c.best_matches(found, 4)
    assert positions.shape == (3, 4, 2) and positions.dtype == torch.int64
    for t in range(3):
        assert values[t].tolist() == sorted(found[t].flatten().tolist())[:-5:-1]
        assert torch.equal(found[t, positions[t, :, 0], positions[t, :, 1]], values[t])


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


@pytest.mark.parametrize(("call", "named"), [
    *[(lambda at=at: c.affinity(FEATURES, *at), rf"frame {at[0]}.*\[{at[1]}, {at[2]}\].*6x9")
      for at in ((3, 0, 0), (-1, 0, 0), (0, HEIGHT, 0), (0, 0, WIDTH), (0, -1, 0))],
    (lambda: c.anchor_grid(6, 9, 7), "7.*6x9"),
    (lambda: c.dominant_anchors(FEATURES, torch.zeros(5, 8), 0), "tau"),
    (lambda: c.sources(FEATURES, 0, 0, 0), "frame 0"),
    (lambda: c.sources(FEATURES, 1, 0, 0, reference=2), "frame 2"),
    (lambda: c.sources(FEATURES, 3, 0, 0), "frame 3"),
    (lambda: c.sources(FEATURES, 1, 0, 0, context=0), "context=0")])
def test_wrong_inputs_are_named(call, named: str) -> None:
    with pytest.raises(InputError, match=named):
        call()
