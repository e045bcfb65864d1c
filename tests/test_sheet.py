"""The explorer's sheet: pixels and cells lead to each other, and what is painted stands where the cells are."""

from __future__ import annotations

import numpy as np
import pytest

from dulvos.study.figures import anchor_colours
from dulvos.interactive.sheet import QUERY, TIME, Pictures, Sheet, tint, tint_labels

RNG = np.random.default_rng(0)
SHAPES = [(5, (256, 256), (32, 32), 1), (5, (192, 256), (24, 32), 2), (21, (480, 854), (60, 107), 2), (1, (80, 50), (10, 7), 1)]


@pytest.mark.parametrize("frames, size, cells, bands", SHAPES)
def test_tiles_lie_inside_and_apart(frames, size, cells, bands):
    sheet = Sheet(frames, size, cells, bands=bands)
    taken = np.zeros(sheet.size, int)
    for tile in sheet.tiles:
        assert 0 <= tile.top <= sheet.size[0] - tile.height and 0 <= tile.left <= sheet.size[1] - tile.width
        assert tile.width / tile.height == pytest.approx(size[1] / size[0], rel=0.03)
        taken[tile.top: tile.top + tile.height, tile.left: tile.left + tile.width] += 1
    assert taken.max() == 1
    assert [tile.frame for tile in sheet.tiles[: 1 + bands]] == [QUERY] + [TIME] * bands
    assert [tile.frame for band in range(bands) for tile in sheet.small_tiles(band)] == list(range(frames)) * bands


@pytest.mark.parametrize("frames, size, cells, bands", SHAPES)
def test_a_click_on_a_cell_s_pixel_asks_about_that_cell(frames, size, cells, bands):
    sheet = Sheet(frames, size, cells, bands=bands)
    query, time = 0, min(1, frames - 1)
    for frame, y, x in [(0, 0, 0), (0, cells[0] - 1, cells[1] - 1), (query, 5, 3), (time, 7, 2), (time, 0, cells[1] - 1)]:
        assert sheet.cell_at(*sheet.pixel_of(frame, y, x, query, time), query, time) == (frame, y, x)
    frame = frames - 1  # in a small tile, where cells may be smaller than pixels
    found = sheet.cell_at(*sheet.pixel_of(frame, 6, 4, query, time), query, time)
    assert found[0] == frame and abs(found[1] - 6) <= 1 and abs(found[2] - 4) <= 1


def test_rows_and_columns_are_not_exchanged():
    sheet = Sheet(3, (192, 256), (24, 32))
    left, up = sheet.pixel_of(0, 10, 4, 0, 1), sheet.pixel_of(0, 4, 10, 0, 1)
    assert left[0] < up[0] and left[1] > up[1]


def test_between_the_tiles_there_is_no_cell():
    sheet = Sheet(3, (192, 256), (24, 32))
    assert sheet.cell_at(3, 3, 0, 0) is None
    assert sheet.cell_at(-1, 100, 0, 0) is None
    assert sheet.cell_at(sheet.tiles[0].width + 2, 100, 0, 0) is None


def test_a_cell_is_centred_at_eight_times_its_number():
    """A sheet in which a large tile has the frame's own size: cell i covers the pixels 8·i ± 4."""
    sheet = Sheet(2, (296, 296), (37, 37))
    tile = sheet.tiles[0]
    assert (tile.height, tile.width) == (300, 300)
    (x,), (y,) = sheet.centres(tile, np.array([[10, 20]]))
    assert (x - tile.left + 0.5, y - tile.top + 0.5) == pytest.approx((160.5 * 300 / 296, 80.5 * 300 / 296))
    for distance, cell in ((-3.4, 20), (3.4, 20), (-4.6, 19), (4.6, 21)):
        assert sheet.cell_at(x + 0.5 + distance * 300 / 296, y + 0.5, 0, 1) == (0, 10, cell)


def test_paint_puts_a_cell_s_colour_where_the_cell_is_and_the_frame_elsewhere():
    sheet, time = Sheet(4, (192, 256), (24, 32), bands=2), 3
    frames = [np.full((192, 256, 3), 40 * frame + 40, np.uint8) for frame in range(4)]
    colours = np.zeros((2, 4, 24, 32, 4), np.uint8)
    colours[1, 2, 10, 20] = (255, 0, 0, 255)
    pixels = sheet.paint(Pictures(sheet, frames), list(colours), 1, time)
    red = np.argwhere((pixels[..., 0] == 255) & (pixels[..., 1] == 0))
    tile = sheet.small_tiles(1)[2]
    (x,), (y,) = sheet.centres(tile, np.array([[10, 20]]))
    assert np.abs(red.mean(0) - (y, x)).max() <= 1
    assert len(red) == pytest.approx((8 * tile.width / 256) ** 2, rel=0.3)
    assert (pixels[sheet.tiles[0].top + 50, 50] == (80, 80, 80, 255)).all()  # the frame asked about, undimmed
    assert pixels[2, 2, 3] == 0  # captions are seen between tiles
    edges = [tile.frame for tile in sheet.small_tiles(0) if pixels[tile.top, tile.left, 2] > 200]
    assert edges == [time]


def test_opacity_mixes():
    sheet = Sheet(1, (80, 80), (10, 10))
    pictures = Pictures(sheet, [np.full((80, 80, 3), 100, np.uint8)])
    colours = np.full((1, 10, 10, 4), (200, 0, 0, 51), np.uint8)
    tile = sheet.tiles[1]
    pixel = sheet.paint(pictures, [colours], 0, 0)[tile.top + 9, tile.left + 9].astype(int)
    grey = 75
    assert np.abs(pixel[:3] - [0.8 * grey + 0.2 * 200, 0.8 * grey, 0.8 * grey]).max() <= 1


def test_tint_is_clear_at_nothing_and_stronger_the_more():
    colours = tint(np.array([-1, 0, 0.5, 1, 2]))
    assert colours[0].tolist() == colours[1].tolist() and colours[3].tolist() == colours[4].tolist()
    assert colours[1, 3] == 0 < colours[2, 3] < colours[3, 3]


def test_labels_take_their_anchor_s_colour_and_other_clips_are_grey():
    labels, confidence = np.array([[[0, 3], [4, 11]]]), np.array([[[0.0, 1.0], [1.0, 1.0]]], np.float32)
    colours = tint_labels(labels, confidence, 2)
    assert (colours[0, 0, :, :3] == anchor_colours(2)[[0, 3]]).all()
    assert (colours[0, 1, :, :3] == colours[0, 1, 0, 0]).all()
    assert colours[0, 0, 0, 3] < colours[0, 0, 1, 3]
