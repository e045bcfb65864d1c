"""𝒯 and the second view, both against explicit pixel positions."""

import pytest
import torch
from torch import Tensor

from dulvos.errors import InputError
from dulvos.views import Similarity, sample_similarity, warp

SIZE = 128  # pixels; 16 cells
CROPS = [  # flip, top, left, side: off-centre, so that no two orders of flip, shift and scale agree
    (False, 0, 0, 128), (True, 0, 0, 128), (False, 60, 0, 64), (True, 0, 64, 64), (True, 3, 30, 90),
    (False, 41, 30, 77)]


def similarity(crop: tuple[bool, int, int, int]) -> Similarity:
    return Similarity(SIZE, *(torch.tensor([value]) for value in crop))


def main_pixels(at: Tensor, crop: tuple[bool, int, int, int]) -> tuple[Tensor, Tensor]:
    """Where view-2 pixel centres (n,) of each axis come from: pixels x and y of the main view."""
    flip, top, left, side = crop
    x, y = (start + (at + 0.5) * side / SIZE - 0.5 for start in (left, top))
    return SIZE - 1 - x if flip else x, y


def coordinates(height: int, width: int) -> Tensor:
    """A map whose two channels are each position's own x and y: (1, 1, 2, h, w)."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y]).double()[None, None]


@pytest.mark.parametrize("crop", CROPS)
def test_theta_and_the_frames_of_view_2_map_to_the_same_pixels(crop):
    """The other way round, or a shift that is not flipped, misses these positions by many pixels."""
    at = torch.arange(SIZE, dtype=torch.float64)
    x, y = main_pixels(at, crop)
    theta = similarity(crop).theta()[0].double()
    places = theta @ torch.stack([(2 * at + 1) / SIZE - 1, (2 * at + 1) / SIZE - 1, torch.ones(SIZE)])
    torch.testing.assert_close(((places + 1) * SIZE - 1) / 2, torch.stack([x, y]), rtol=0, atol=1e-4)
    view = similarity(crop).frames(coordinates(SIZE, SIZE))[0, 0]
    inside = slice(2, -2)  # the crop's rim repeats itself
    torch.testing.assert_close(view[0, 5, inside], x[inside])
    torch.testing.assert_close(view[1, inside, 5], y[inside])


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("corrected", [False, True])
def test_alignment_in_pixels(crop, corrected):
    """Published: cell i at pixel 8i + 3.5; corrected: at pixel 8i, where a convolution of stride 8 looks."""
    cells, centre = SIZE // 8, 0 if corrected else 3.5
    places = main_pixels(8 * torch.arange(cells).double() + centre, crop)
    warped = warp(coordinates(cells, cells), similarity(crop).theta(),
                  corrected_stride=8 if corrected else None)[0, 0]
    for ours, pixel in zip((warped[0, 0], warped[1, :, 0]), places):
        cell = (pixel - centre) / 8
        clear = (cell % 1 - 0.5).abs() > 1e-3  # halfway between two cells either will do
        assert clear.any() and torch.equal(ours[clear], cell.round().clamp(0, cells - 1)[clear])


@pytest.mark.parametrize(("theta", "stride", "x"), [
    ([[1.0, 0, 0.5], [0, 1, 0]], None, [*range(4, 16), 15, 15, 15, 15]),  # by a quarter of the width
    ([[-1.0, 0, 0], [0, 1, 0]], 8, [15, *range(15, 0, -1)])])  # of 128 pixels: 8i comes from 127 - 8i
def test_warp_of_a_map_that_is_not_square_moves_columns_not_rows(theta, stride, x):
    warped = warp(coordinates(6, 16), torch.tensor([theta]), corrected_stride=stride)[0, 0]
    assert warped[0, 3].tolist() == x and warped[1, :, 0].tolist() == [*range(6)]


def test_samples_lie_in_the_frame_and_fill_it():
    drawn, again = (sample_similarity(2000, SIZE, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(drawn.theta(), again.theta())
    assert drawn.side.min() == SIZE // 2 and SIZE - 2 <= drawn.side.max() <= SIZE
    assert abs(drawn.flip.double().mean() - 0.5) < 0.05
    for corner in (drawn.top, drawn.left):
        assert corner.min() == 0 and (corner + drawn.side).max() == SIZE
        small = drawn.side < 70
        assert corner[small].min() <= 2 and corner[small].max() >= 55  # uniform over the room there is
    assert not torch.equal(drawn.top, drawn.left)
    small = sample_similarity(500, SIZE, torch.Generator().manual_seed(0), scale=(0.25, 0.5))
    assert small.side.min() >= SIZE // 4 and small.side.max() <= SIZE // 2
    assert set(sample_similarity(9, SIZE, torch.Generator(), scale=(1, 1)).side.tolist()) == {SIZE}
    assert not sample_similarity(99, SIZE, torch.Generator(), flip=False).flip.any()


@pytest.mark.parametrize("scale", [(0, 1), (0.5, 1.1), (0.9, 0.5), (float("nan"), 1)])
def test_scale_out_of_range(scale):
    with pytest.raises(InputError, match="scale"):
        sample_similarity(1, SIZE, torch.Generator(), scale=scale)
