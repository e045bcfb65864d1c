"""Features of frames and the masks they carry."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from dulvos.checkpoints import load_encoder
from dulvos.errors import InputError
from dulvos.inference import SegmentSettings, colour_features, encode, segment


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("random")


@pytest.fixture(scope="module")
def frames():
    """A textured square on a textured ground, moving by one cell a frame."""
    generator = np.random.default_rng(0)
    ground = np.kron(generator.integers(0, 120, (8, 11, 3)), np.ones((8, 8, 1)))[:61, :83]
    video, masks = np.stack([ground] * 5), np.zeros((5, 61, 83), np.uint8)
    for t in range(5):
        video[t, 16:40, 8 + 8 * t: 32 + 8 * t] = generator.integers(140, 255, 3) * 0 + (250, 200, 160)
        masks[t, 16:40, 8 + 8 * t: 32 + 8 * t] = 1
    return list(video.astype(np.uint8)), masks


def test_encode_gives_a_map_for_each_frame_whatever_the_batch(encoder, frames):
    settings = SegmentSettings(precision="fp32")
    together, single = (list(encode(encoder, frames[0], settings, batch=batch)) for batch in (4, 1))
    assert len(together) == 5 and together[0].shape == (512, 8, 11)  # ⌈61 / 8⌉, ⌈83 / 8⌉
    for a, b in zip(together, single):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_encode_reads_no_further_than_its_batch(encoder, frames):
    read = []
    stream = encode(encoder, (read.append(1) or frame for frame in frames[0]), batch=2)
    next(stream)
    assert len(read) == 2


@pytest.mark.parametrize(("layer", "channels"), [("res3", 256), ("key", 128)])
def test_layers(encoder, frames, layer, channels):
    assert next(encode(encoder, frames[0], SegmentSettings(layer=layer))).shape[0] == channels


def test_shorter_side_reduces_the_map_and_not_the_masks(encoder, frames):
    settings = SegmentSettings(shorter_side=32)
    assert next(encode(encoder, frames[0], settings)).shape[1:] == (4, 6)
    masks = list(segment(frames[0], frames[1][0], partial(encode_with, encoder), settings))
    assert all(mask.shape == (61, 83) for mask in masks)


def encode_with(encoder, frames, settings):
    return encode(encoder, frames, settings)


def test_colour_tells_a_bright_object_from_a_dark_ground(frames):
    masks = list(segment(frames[0], frames[1][0], colour_features))
    for mask, truth in zip(masks, frames[1]):
        assert mask.dtype == np.uint8
        assert (mask & truth).sum() / (mask | truth).sum() > 0.6  # a map of 8x11 cells is coarse


def test_given_masks_come_back_exactly_and_ids_keep_their_gaps(frames):
    first = np.where(frames[1][0] > 0, 4, 0).astype(np.uint8)
    later = np.zeros_like(first)
    later[3, 5] = 9  # smaller than a cell: would be lost by propagation
    masks = list(segment(frames[0], {0: first, 2: later}, colour_features))
    np.testing.assert_array_equal(masks[0], first)
    assert masks[2][3, 5] == 9 and (masks[2] == 9).sum() == 1
    assert set(np.unique(masks[1])) <= {0, 4}
    assert set(np.unique(masks[4])) <= {0, 4, 9}


def test_a_mask_of_another_size_is_named_with_both_sizes(frames):
    with pytest.raises(InputError, match="83x61.*40x40"):
        list(segment(frames[0], np.ones((40, 40), np.uint8), colour_features))


@pytest.mark.parametrize("wrong", [{"layer": "res5"}, {"precision": "fp16"}, {"shorter_side": 4}])
def test_settings_name_what_is_wrong(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        SegmentSettings(**wrong)
