"""Figures: what is drawn where, what is written, and the set-up of a notebook."""

import base64
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from dulvos.errors import InputError
from dulvos.study import figures

RNG = np.random.default_rng(0)
FRAME = RNG.integers(0, 256, (64, 80, 3), np.uint8)
VALUES = RNG.random((3, 8, 10))
LINES = [
    figures.Maps("frames", [None] * 3, marks=[(np.array([[1, 2], [3, 4]]), np.eye(3)[:2]), None]),
    figures.Maps("values", [VALUES[0], VALUES[1] + 3, None], label="v", opacity=0.7),
    figures.Maps("some", [None, np.full((8, 10), np.nan), VALUES[2]], limits=(0, 1)),
    figures.Maps("pictures", [FRAME] * 3, stride=1)]
MAKERS = {
    "montage": lambda: figures.montage([("a", [FRAME, FRAME]), ("b", [FRAME[:32]])], ["one", "two"]),
    "maps": lambda: figures.cell_maps([FRAME] * 3, LINES, ["a", "b", "c"]),
}


@pytest.fixture
def book(tmp_path: Path) -> figures.Notebook:
    return figures.Notebook("04_features", {"study": "mine", "out": str(tmp_path / "out")})


@pytest.mark.parametrize("name", MAKERS)
def test_figures_are_drawn_and_shown_and_leave_the_settings_alone(name: str) -> None:
    before = dict(matplotlib.rcParams)
    figure = MAKERS[name]()
    assert isinstance(figure, Figure) and dict(matplotlib.rcParams) == before
    (kind, data), = figure._repr_mimebundle_().items()
    start = {"image/png": b"\x89PNG", "image/jpeg": b"\xff\xd8\xff"}[kind]
    assert base64.b64decode(data).startswith(start)


@pytest.mark.parametrize("n", [1, 4, 8, 16])
def test_anchor_colours_are_distinct_and_neighbours_are_alike(n: int) -> None:
    colours = figures.anchor_colours(n)
    assert colours.dtype == np.uint8 and len(np.unique(colours, axis=0)) == len(colours) == n * n
    grid = colours.reshape(n, n, 3).astype(float)
    if n > 2:
        steps = [np.linalg.norm(np.diff(grid, axis=axis), axis=-1).max() for axis in (0, 1)]
        corners = grid[[0, 0, -1, -1], [0, -1, 0, -1]]
        assert max(steps) < np.linalg.norm(corners[:, None] - corners, axis=-1)[~np.eye(4, dtype=bool)].min()


def test_cells_lie_where_their_pixels_are() -> None:
    """Cell (y, x) is centred at pixel (8·y, 8·x); the picture stays where it is, grey below a map."""
    axes = MAKERS["maps"]().axes
    assert [axis.get_title() for axis in axes[:6]] == ["a", "b", "c", "", "", ""]
    assert axes[0].collections[0].get_offsets().tolist() == [[16, 8], [32, 24]]
    assert axes[3].images[1].get_extent() == [-4, 76, 60, -4]
    assert axes[9].images[1].get_extent() == [-0.5, 79.5, 63.5, -0.5]
    assert axes[3].get_xlim() == (-0.5, 79.5) and axes[3].get_ylim() == (63.5, -0.5)
    assert axes[3].images[0].get_array().ndim == 2
    assert (axes[5].images[0].get_array() == FRAME).all()
    limits = [axis.images[1].get_clim() for axis in axes[3:5]]  # one line of maps has one scale
    assert limits[0] == limits[1] == (VALUES[0].min(), VALUES[1].max() + 3)


def test_a_montage_names_rows_and_columns() -> None:
    first, second, short = MAKERS["montage"]().axes
    assert [axis.get_title(loc="left") for axis in (first, second, short)] == ["a", "", "b"]
    assert short.get_xlabel() == "one" and short.images[0].get_array().shape == (32, 80, 3)


def test_figures_are_written_drawings_also_as_pdf_and_photographs_with_their_credit(book):
    figure, book.credit = MAKERS["maps"](), "whose"
    assert book.show(figure, "lam-0.1", vector=True) is figure and not figure.texts
    assert sorted(file.name for file in book.figures.iterdir()) == ["lam-0.1.pdf", "lam-0.1.png"]
    first = (book.figures / "lam-0.1.pdf").read_bytes()
    book.show(MAKERS["maps"](), "lam-0.1", vector=True)
    assert first.startswith(b"%PDF") and (book.figures / "lam-0.1.pdf").read_bytes() == first
    book.show(figure, "photo")
    assert [text.get_text() for text in figure.texts] == ["whose"]
    assert len(list(book.figures.iterdir())) == 3


def test_a_notebook_checks_its_parameters(tmp_path: Path) -> None:
    given = {"study": "mine", "frame": 3, "other": object(), "count": 7}
    book = figures.Notebook("00_the_method", given)
    assert book.study.folder == tmp_path / "results/mine" and book.figures == book.study.folder / "figures"
    assert figures.Notebook("00_the_method", {**given, "out": str(tmp_path / "x")}).tables == tmp_path / "x"
    with pytest.raises(InputError, match="frame"):
        figures.Notebook("00_the_method", {**given, "frame": "three"})


def test_a_notebook_takes_a_sequence_or_a_video_of_ones_own(book, tiny, tmp_path):
    middle = book.sequence(str(tiny))
    assert middle.masks and book.sequence(str(tiny), middle.name).name == middle.name and book.credit == ""
    for t in range(3):
        cv2.imwrite(str(tmp_path / f"{t}.png"), FRAME)
    own = book.sequence("nowhere", str(tmp_path))
    assert own.masks == {} and len(own.video) == 3
    with pytest.raises(InputError, match=f"nobody.*{middle.name}"):
        book.sequence(str(tiny), "nobody")
