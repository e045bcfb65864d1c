"""Shares of anchors: a softmax over own or all anchors, and which anchor a click means."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dulvos import correspondence
from dulvos.errors import InputError
from dulvos.interactive.contrast import Contrast, anchor_features, chosen_anchor, log_sum

GENERATOR = torch.Generator().manual_seed(0)


def unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=GENERATOR), dim=1)


@pytest.fixture
def contrast() -> Contrast:
    return Contrast(unit(3, 16, 8, 12), lambda: list(unit(2, 16, 10, 9)))


def test_anchors_are_the_reference_s_cells_row_by_row():
    reference = unit(1, 16, 8, 12)[0]
    anchors = anchor_features(reference, 4)
    assert torch.equal(anchors[1], reference[:, 1, 4]) and torch.equal(anchors[4], reference[:, 3, 1])
    with pytest.raises(InputError, match="grid of 9"):
        anchor_features(reference, 9)


def test_log_sum_is_the_denominator_of_equation_1():
    features, anchors = unit(2, 16, 4, 5), unit(6, 16)
    expected = torch.einsum("nk,tkhw->tnhw", anchors, features).div(0.1).exp().sum(1).log()
    assert torch.allclose(log_sum(features, anchors, 0.1), expected, atol=1e-5)


@pytest.mark.parametrize("clips, count", [("own", 16), ("all", 48)])
def test_shares_of_all_anchors_sum_to_one(contrast, clips, count):
    own = sum(contrast.share(anchor, 4, 0.2, clips) for anchor in range(16))
    logits = torch.einsum("nk,tkhw->tnhw", contrast.anchors(4, clips), contrast.features) / 0.2
    assert logits.shape[1] == count
    assert torch.allclose(own, logits.softmax(1)[:, :16].sum(1), atol=1e-5)
    assert torch.allclose(contrast.share(5, 4, 0.2, clips), logits.softmax(1)[:, 5], atol=1e-5)


def test_other_clips_only_take_away(contrast):
    assert (contrast.share(3, 4, 0.1, "all") < contrast.share(3, 4, 0.1, "own")).all()


def test_the_dominant_anchor_has_the_greatest_share(contrast):
    labels, confidence = contrast.dominant(4, 0.1, "all")
    assert labels.max() >= 16
    own = labels < 16
    shares = torch.stack([contrast.share(anchor, 4, 0.1, "all") for anchor in range(16)])
    assert torch.allclose(shares.max(0).values[own], confidence[own], atol=1e-5)
    assert torch.equal(shares.argmax(0)[own], labels[own])


def test_a_click_means_the_nearest_anchor_in_the_reference_and_the_dominant_one_elsewhere(contrast):
    grid = correspondence.anchor_grid(8, 12, 4)
    for number, (y, x) in enumerate(grid.tolist()):
        assert contrast.chosen(4, 0, y, x) == number
    assert contrast.chosen(4, 0, 7, 11) == 15
    labels, _ = contrast.dominant(4, 0.1, "own")
    assert contrast.chosen(4, 2, 5, 7) == labels[2, 5, 7]
    assert chosen_anchor(contrast.features, contrast.anchors(4, "own"), 1, 0, 0) == labels[1, 0, 0]


def test_what_clicks_share_is_computed_once_and_other_clips_only_when_asked_for():
    calls = []
    contrast = Contrast(unit(2, 16, 8, 8), lambda: calls.append(1) or list(unit(1, 16, 8, 8)))
    contrast.share(0, 4, 0.1, "own")
    assert not calls
    for anchor in range(3):
        contrast.share(anchor, 4, 0.1, "all")
    assert len(calls) == 1
