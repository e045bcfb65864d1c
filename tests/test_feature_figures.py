"""Figures of features: pictures from tiny inputs, points where they belong, falls where they are."""

from __future__ import annotations

import matplotlib.colors
import numpy as np
import pytest
from matplotlib.figure import Figure

from dulvos.study import feature_figures as pictures
from dulvos.study import figures
from dulvos.errors import InputError

RNG = np.random.default_rng(0)
FRAMES = list(RNG.integers(0, 256, (3, 48, 72, 3), np.uint8))
HEIGHT, WIDTH = 6, 9
VALUES = RNG.random((3, HEIGHT, WIDTH))
TRACKS = RNG.integers(0, HEIGHT, (3, 4, 2))
SCORE = np.array([np.nan, 0.8, 0.8, 0.7, 0.2, 0.2, np.nan])


@pytest.mark.parametrize(("size", "side", "expected"), [((480, 854), 240, (240, 427)), ((300, 100), 50, (150, 50)),
                                                        ((48, 72), 0, (48, 72)), ((48, 72), 96, (48, 72))])
def test_shrink_makes_the_shorter_side(size: tuple[int, int], side: int, expected: tuple[int, int]) -> None:
    assert pictures.shrink(np.zeros((*size, 3), np.uint8), side).shape == (*expected, 3)
    assert pictures.shrink(np.zeros(size, np.uint8), side).shape == expected


def test_shrink_mixes_colours_but_never_ids() -> None:
    stripes = np.tile(np.array([0, 200], np.uint8), (64, 32))
    assert set(np.unique(pictures.shrink(stripes, 32))) <= {0, 200}
    inner = pictures.shrink(np.repeat(stripes[..., None], 3, 2), 32)[:, 1:-1]  # the filter is cut at the border
    assert np.abs(inner.astype(int) - 100).max() <= 1


def test_spread_points_begin_in_the_middle_and_stay_inside() -> None:
    inside = np.zeros((20, 30), bool)
    inside[4:15, 5:26] = True
    points = pictures.spread_points(inside, 5)
    assert points.shape == (5, 2) and points[0].tolist()[0] == 9 and 10 <= points[0][1] <= 20
    assert inside[points[:, 0], points[:, 1]].all()
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1)[~np.eye(5, dtype=bool)]
    assert apart.min() >= 4


def test_spread_points_of_a_small_and_of_an_empty_region() -> None:
    inside = np.zeros((5, 5), bool)
    inside[2, 3] = True
    assert pictures.spread_points(inside, 4).tolist() == [[2, 3]]
    assert pictures.spread_points(np.ones((5, 7), bool), 3)[0].tolist() == [2, 2]  # the frame's border is a rim
    with pytest.raises(InputError, match="empty"):
        pictures.spread_points(np.zeros((5, 5), bool), 4)


def test_falls_finds_the_end_of_the_steepest_fall() -> None:
    score = np.full(40, 0.9)
    score[20:] = 0.3
    assert 20 <= pictures.falls(score) <= 24
    assert pictures.falls(score, window=1) == 20
    assert pictures.falls(SCORE, window=1) == 4
    assert pictures.falls(np.array([np.nan, 0.5, 0.4])) == 2
    with pytest.raises(InputError, match="1 scored frame"):
        pictures.falls(np.array([np.nan, 0.5]))


MAKERS = {
    "rows": lambda: pictures.clip_rows(FRAMES, [
        pictures.Row("frames", [None] * 3, marks=[(np.array([[1, 2], [3, 4]]), np.eye(3)[:2]), None]),
        pictures.Row("values", list(VALUES), label="v", opacity=0.7, limits=(0, 1)),
        pictures.Row("some", [None, *VALUES[1:]], opacity=list(VALUES)),
        pictures.Row("colours", [np.zeros((HEIGHT, WIDTH, 3), np.uint8)] * 3, frames=FRAMES[::-1])], ["a", "b", "c"]),
    "trails": lambda: pictures.trails(FRAMES, [0, 1, 2], {"one": TRACKS, "two": TRACKS}, {"one": TRACKS[..., 0] > 2,
                                                                                          "two": TRACKS[..., 0] > 9}),
    "trails unchecked": lambda: pictures.trails(FRAMES[:1], [2], {"one": TRACKS}),
    "landings": lambda: pictures.landings(FRAMES[0], {"one": (RNG.random((6, 6, 2)) * 6, RNG.integers(0, 6, (6, 6, 2)))}),
    "curves": lambda: pictures.error_curves({"left": {"a": VALUES, "b": 9 * VALUES}, "right": {"a": VALUES}}),
    "strip": lambda: pictures.score_strip(dict(zip((0, 4, 6), FRAMES)), {"a": SCORE, "b": SCORE / 2}, moment=4),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_figures_are_drawn(maker: str, tmp_path) -> None:
    figure = MAKERS[maker]()
    assert isinstance(figure, Figure)
    figures.save(figure, tmp_path / "it.png", credit="whose")
    assert (tmp_path / "it.png").stat().st_size > 3000
    assert "whose" in [text.get_text() for text in figure.texts]


def test_maps_lie_where_their_cells_are() -> None:
    """Cell i covers the pixels 8·i ± 4; what is under an opaque map must not shine through."""
    figure = pictures.clip_rows(FRAMES, [pictures.Row("", list(VALUES))], ["a", "b", "c"])
    under, over = figure.axes[0].images
    assert tuple(over.get_extent()) == (-4, 68, 44, -4)
    assert (under.get_array() == 255).all()
    assert [axis.get_title() for axis in figure.axes] == ["a", "b", "c"]
    see_through, bare = pictures.clip_rows(FRAMES[:2], [pictures.Row("", [VALUES[0], None], opacity=0.5)]).axes
    grey = see_through.images[0].get_array()
    assert (grey[..., 0] == grey[..., 1]).all() and (bare.images[0].get_array() == FRAMES[1]).all()


def test_one_row_has_one_scale() -> None:
    figure = pictures.clip_rows(FRAMES, [pictures.Row("", [VALUES[0], VALUES[1] + 3, None], label="v")] * 2, ["a", "b", "c"])
    assert [axis.get_title() for axis in figure.axes[:6]] == ["a", "b", "c", "", "", ""]  # once, above all rows
    limits = [axis.images[1].get_clim() for axis in figure.axes[:2]]
    assert limits[0] == limits[1] == (VALUES[0].min(), VALUES[1].max() + 3)


def test_trails_end_at_the_points() -> None:
    axis = pictures.trails(FRAMES[:1], [2], {"one": TRACKS[:, :1]}).axes[0]
    assert axis.lines[-1].get_marker() == "o" and axis.lines[-1].get_xydata().tolist() == [(8 * TRACKS[2, 0, ::-1]).tolist()]
    lost = pictures.trails(FRAMES[:1], [2], {"one": TRACKS[:, :1]}, {"one": np.zeros((3, 1), bool)}).axes[0]
    assert lost.lines[-1].get_marker() == "x"
    assert len(pictures.trails(FRAMES[:1], [2], {"one": TRACKS[:, :1]}, tail=1).axes[0].lines[0].get_xdata()) == 2


def test_landings_draw_a_readable_number_of_lines() -> None:
    places = RNG.random((60, 60, 2)) * 6
    axis = pictures.landings(FRAMES[0], {"one": (places, places)}, across=10).axes[0]
    assert len(axis.lines) == 100 and (axis.lines[0].get_xydata() == 8 * places[3, 3, ::-1]).all()
    assert len(pictures.landings(FRAMES[0], {"one": (places[:4, :4], places[:4, :4])}).axes[0].lines) == 16


def test_curves_are_the_share_of_cells_within_a_distance() -> None:
    axis = pictures.error_curves({"": {"a": np.array([[0, 1], [1, 20]])}}, limit=2).axes[0]
    x, share = axis.lines[0].get_data()
    assert share[x < 1].tolist() == [25] * (x < 1).sum() and set(share[x >= 1]) == {75}
    assert "median 1.0" in axis.get_legend().get_texts()[0].get_text()


def test_the_moment_is_pointed_out() -> None:
    figure = pictures.score_strip(dict(zip((0, 4, 6), FRAMES)), {"a": SCORE}, moment=4)
    titles = {axis.get_title(): axis.title.get_color() for axis in figure.axes if axis.get_title()}
    assert list(titles) == ["frame 0", "frame 4", "frame 6"]
    plain = matplotlib.rcParams["text.color"]
    assert titles["frame 4"] == figures.COLOURS[0] and titles["frame 0"] == titles["frame 6"] == plain
    assert "greatest fall" in [text.get_text() for axis in figure.axes for text in axis.texts]
