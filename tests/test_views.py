"""𝒯 and the second view, both against explicit pixel positions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dulvos.errors import InputError
from dulvos.views import Similarity, sample_similarity, warp

SIZE = 128  # pixels; 16 cells
CROPS = [  # flip, top, left, side: off-centre, so that no two orders of flip, shift and scale agree
    (False, 0, 0, 128), (True, 0, 0, 128), (False, 60, 0, 64), (True, 60, 0, 64), (True, 0, 64, 64),
    (True, 3, 30, 90), (False, 41, 30, 77),
]


def similarity(*crops: tuple[bool, int, int, int], size: int = SIZE) -> Similarity:
    flip, top, left, side = zip(*crops)
    return Similarity(size, torch.tensor(flip), *(torch.tensor(values) for values in (top, left, side)))


def main_pixel(x: Tensor, flip: bool, start: int, side: int) -> Tensor:
    """Where a view-2 pixel centre comes from along one axis: pixel x' of the main view."""
    x = start + (x + 0.5) * side / SIZE - 0.5
    return SIZE - 1 - x if flip else x


def coordinates(height: int, width: int) -> Tensor:
    """A map whose two channels are each position's own x and y: (1, 1, 2, h, w)."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y]).double()[None, None]


@pytest.mark.parametrize("crop", CROPS)
def test_theta_maps_view_2_to_the_main_view(crop):
    """The other way round, or a shift that is not flipped, misses these positions by many pixels."""
    flip, top, left, side = crop
    theta = similarity(crop).theta()[0].double()
    assert theta.shape == (2, 3)
    for x, y in ((0, 0), (17, 90), (SIZE - 1, 5)):
        pixel = torch.tensor([x, y])
        point = torch.cat([(2 * pixel + 1) / SIZE - 1, torch.ones(1)]).double()
        expected = [main_pixel(pixel[0], flip, left, side), main_pixel(pixel[1], False, top, side)]
        ours = ((theta @ point + 1) * SIZE - 1) / 2
        torch.testing.assert_close(ours, torch.stack(expected).double(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("crop", CROPS)
def test_view_2_is_flipped_and_then_cropped(crop):
    flip, top, left, side = crop
    view = similarity(crop).frames(coordinates(SIZE, SIZE))[0, 0]
    at = torch.arange(SIZE, dtype=torch.float64)
    x, y = main_pixel(at, flip, left, side), main_pixel(at, False, top, side)
    inside = slice(2, -2)  # the crop's rim repeats itself
    torch.testing.assert_close(view[0, 5, inside], x[inside])
    torch.testing.assert_close(view[1, inside, 5], y[inside])


def test_frames_of_a_clip_share_a_transform():
    frames = torch.rand(3, 1, 3, SIZE, SIZE).expand(-1, 4, -1, -1, -1)
    views = similarity(*CROPS[3:6]).frames(frames)
    assert views.shape == frames.shape
    assert torch.equal(views, views[:, :1].expand_as(views))
    for clip, crop in enumerate(CROPS[3:6]):
        torch.testing.assert_close(views[clip], similarity(crop).frames(frames[clip : clip + 1])[0])


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("corrected", [False, True])
def test_alignment_in_pixels(crop, corrected):
    """Published: cell i at pixel 8i + 3.5; corrected: at pixel 8i, where a convolution of stride 8 looks."""
    flip, top, left, side = crop
    cells, centre = SIZE // 8, 0 if corrected else 3.5
    at = 8 * torch.arange(cells).double() + centre
    x = (main_pixel(at, flip, left, side) - centre) / 8
    y = (main_pixel(at, False, top, side) - centre) / 8
    theta = similarity(crop).theta()
    warped = warp(coordinates(cells, cells), theta, corrected_stride=8 if corrected else None)[0, 0]
    for ours, cell in ((warped[0, 0], x), (warped[1, :, 0], y)):
        clear = (cell % 1 - 0.5).abs() > 1e-3  # halfway between two cells either will do
        assert clear.any()
        assert torch.equal(ours[clear], cell.round().clamp(0, cells - 1)[clear])


def test_warp_of_a_map_that_is_not_square():
    """A shift to the right by half the width moves columns, not rows."""
    theta = torch.tensor([[[1.0, 0, 0.5], [0, 1, 0]]])
    warped = warp(coordinates(6, 16), theta)[0, 0]
    assert torch.equal(warped[0, 3, :12], torch.arange(4, 16).double())
    assert torch.equal(warped[1, :, 0], torch.arange(6).double())
    flip = torch.tensor([[[-1.0, 0, 0], [0, 1, 0]]])  # of 128 pixels: 8i comes from 127 - 8i, near 16 - i
    warped = warp(coordinates(6, 16), flip, corrected_stride=8)[0, 0]
    assert torch.equal(warped[0, 2], torch.arange(16, 0, -1).double().clamp(max=15))
    assert torch.equal(warped[1, :, 0], torch.arange(6).double())


@pytest.mark.parametrize("corrected", [None, 8])
def test_warp_treats_frames_alike_and_clips_apart(corrected):
    maps = torch.randn(3, 4, 5, 16, 16)
    theta = similarity(*CROPS[3:6]).theta()
    together = warp(maps, theta, corrected_stride=corrected)
    for b in range(3):
        for t in range(4):
            alone = warp(maps[b : b + 1, t : t + 1], theta[b : b + 1], corrected_stride=corrected)
            assert torch.equal(together[b, t], alone[0, 0])


def test_samples_lie_in_the_frame_and_fill_it():
    drawn = sample_similarity(2000, SIZE, torch.Generator().manual_seed(0))
    assert drawn.side.min() == SIZE // 2 and SIZE - 2 <= drawn.side.max() <= SIZE
    assert abs(drawn.flip.double().mean() - 0.5) < 0.05
    for corner in (drawn.top, drawn.left):
        assert corner.min() == 0 and (corner + drawn.side).max() == SIZE
        small = drawn.side < 70
        assert corner[small].min() <= 2 and corner[small].max() >= 55  # uniform over the room there is
    assert not torch.equal(drawn.top, drawn.left)
    again = sample_similarity(2000, SIZE, torch.Generator().manual_seed(0))
    assert torch.equal(drawn.theta(), again.theta())


def test_scale_bounds_the_crop():
    drawn = sample_similarity(500, SIZE, torch.Generator().manual_seed(0), scale=(0.25, 0.5))
    assert drawn.side.min() >= SIZE // 4 and drawn.side.max() <= SIZE // 2
    assert set(sample_similarity(9, SIZE, torch.Generator(), scale=(1, 1)).side.tolist()) == {SIZE}
    assert not sample_similarity(99, SIZE, torch.Generator(), flip=False).flip.any()


@pytest.mark.parametrize("scale", [(0, 1), (0.5, 1.1), (0.9, 0.5), (float("nan"), 1)])
def test_scale_out_of_range(scale):
    with pytest.raises(InputError, match="scale must satisfy"):
        sample_similarity(1, SIZE, torch.Generator(), scale=scale)
