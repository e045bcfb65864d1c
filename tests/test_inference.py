"""Features of frames, and the masks that they carry."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch

from dulvos.errors import InputError
from dulvos.inference import SegmentSettings, colour_features, encode, seen_size, segment
from tests.miniature import draw_video

FRAMES, MASKS = draw_video([(28, 20, 0, 8, 0)], size=(61, 83), frames=5)  # a disc moves by a cell a frame


def test_encode_gives_a_map_for_each_frame_whatever_the_batch(encoder):
    settings = SegmentSettings(precision="fp32")
    together, single = (list(encode(encoder, FRAMES, settings, batch=batch)) for batch in (4, 1))
    assert len(together) == 5 and together[0].shape == (512, 8, 11)  # ⌈61 / 8⌉, ⌈83 / 8⌉
    for a, b in zip(together, single):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_encode_reads_no_further_than_its_batch(encoder):
    read = []
    stream = encode(encoder, (read.append(1) or frame for frame in FRAMES), batch=2)
    next(stream)
    assert len(read) == 2


@pytest.mark.parametrize("wrong", [
    lambda images: images[:1], lambda images: images[0], lambda images: (images,),
    lambda images: images.numpy(), lambda images: images.flatten(2)])
def test_an_encoder_that_makes_no_maps_is_refused(wrong):
    with pytest.raises(InputError, match=r"\(4, 3, 61, 83\)"):
        next(encode(wrong, FRAMES))


def test_a_module_may_lack_parameters():
    assert next(encode(torch.nn.AvgPool2d(8), FRAMES)).shape == (3, 7, 10)


def test_colour_tells_an_object_from_its_ground():
    masks = list(segment(FRAMES, MASKS[0], colour_features))
    for mask, truth in zip(masks, MASKS):
        assert mask.dtype == np.uint8
        assert (mask & truth).sum() / (mask | truth).sum() > 0.6  # a map of 8x11 cells is coarse


def test_a_protocol_sets_its_values_and_each_can_be_changed():
    usual = SegmentSettings()
    values = usual.context, usual.radius, usual.neighbourhood, usual.topk, usual.tau, usual.layer
    assert values == (20, 12, "disc", 10, 0.05, "res4") and usual.shorter_side == 0
    dino = SegmentSettings.of("dino")
    assert SegmentSettings.of() == SegmentSettings.of("crw") == SegmentSettings()
    values = dino.context, dino.neighbourhood, dino.topk, dino.tau, dino.shorter_side
    assert values == (7, "box", 5, 0.1, 480)
    for field in dataclasses.fields(dino):
        if field.name not in ("protocol", "precision", "layer"):
            usual = getattr(SegmentSettings(), field.name)
            changes = {"frames": "crw"} if field.name == "shorter_side" else {}
            changed = SegmentSettings.of("dino", **{field.name: usual}, **changes)
            assert getattr(changed, field.name) == usual and changed.protocol == "dino"
    with pytest.raises(InputError, match="protocol"):
        SegmentSettings.of("mast")


@pytest.mark.parametrize(("size", "dino", "crw", "patches"), [
    ((480, 854), (480, 832), (240, 427), (238, 420)), ((854, 480), (832, 480), (427, 240), (420, 238)),
    ((480, 480), (480, 448), (240, 240), (238, 238)), ((240, 432), (480, 832), (240, 432), (238, 434))])
def test_the_size_that_an_encoder_sees(size, dino, crw, patches):
    """DINO's rule also enlarges, and makes a rectangle of a square; transformers see whole patches."""
    assert seen_size(size, SegmentSettings.of("dino")) == dino
    assert seen_size(size, SegmentSettings(shorter_side=240)) == crw
    assert seen_size(size, SegmentSettings(shorter_side=240), 14) == patches


def test_frames_of_dinos_protocol_have_its_filter_and_deviation():
    seen = []

    def encoder(images):
        seen.append(images[0])
        return images

    settings = SegmentSettings.of("dino", shorter_side=64, precision="fp32")
    next(encode(encoder, FRAMES, settings))
    expected = cv2.resize(FRAMES[0], (64, 64), interpolation=cv2.INTER_LINEAR) / 255
    expected = (expected - [0.485, 0.456, 0.406]) / [0.228, 0.224, 0.225]
    np.testing.assert_allclose(seen[0].permute(1, 2, 0), expected, atol=1e-5)
    encoder.std = (0.5, 0.5, 0.5)  # an encoder's own deviation has priority
    next(encode(encoder, FRAMES, settings))
    np.testing.assert_allclose(seen[1][2] * 0.5, seen[0][2] * 0.225, atol=1e-5)


@pytest.mark.parametrize("case", ["dino_protocol", "dino_small"])
def test_the_protocol_of_dino_gives_its_labels(golden, case):
    """From features to labels at full size, as in a golden case of the released code."""
    known = np.load(golden / f"{case}.npz")
    features = torch.nn.functional.normalize(torch.from_numpy(known["features"]), dim=1)
    first = np.kron(known["first_segmentation"], np.ones((known["patch"],) * 2, int)).astype(np.uint8)
    settings = SegmentSettings.of("dino", frames="crw", shorter_side=0, context=int(known["n_last_frames"]),
                                  radius=float(known["size_mask_neighborhood"]), topk=int(known["topk"]),
                                  tau=float(known["tau"]))
    blank = [np.zeros((*first.shape, 3), np.uint8)] * len(features)
    masks = list(segment(blank, first, lambda frames, _: (x for x, _ in zip(features, frames)), settings))
    assert np.mean(np.stack(masks[1:]) != known["labels"]) < 1e-4
