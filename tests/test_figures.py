"""Figures: what is drawn where, files whole or not at all, and the set-up of a notebook."""

from __future__ import annotations

import base64
import errno
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from dulvos.errors import InputError
from dulvos.study import figures

RNG = np.random.default_rng(0)
FRAME = RNG.integers(0, 256, (64, 80, 3), np.uint8)
VALUES = RNG.random((3, 8, 10))
SCORE = np.array([np.nan, 0.8, 0.8, 0.7, 0.2, 0.2, np.nan])
HISTORY = pd.DataFrame({"iteration": [1, 2, 3], "loss_st": [4.8, 3.9, 2.9], "loss_cv": [2.0, 1, 1],
                        "lr": [1e-4] * 3, "seconds": [1.0, 2, 3]})
LINES = [
    figures.Maps("frames", [None] * 3, marks=[(np.array([[1, 2], [3, 4]]), np.eye(3)[:2]), None]),
    figures.Maps("values", list(VALUES), label="v", opacity=0.7, limits=(0, 1)),
    figures.Maps("some", [None, np.full((8, 10), np.nan), VALUES[2]]),
    figures.Maps("colours", [np.zeros((8, 10, 3), np.uint8)] * 3, frames=[FRAME[::-1]] * 3)]
MAKERS = {
    "montage": lambda: figures.montage([("a", [FRAME, FRAME]), ("b", [FRAME[:32]])], ["one", "two"]),
    "curves": lambda: figures.training_curves(HISTORY),
    "maps": lambda: figures.cell_maps([FRAME] * 3, LINES, ["a", "b", "c"]),
    "strip": lambda: figures.score_strip(dict.fromkeys((0, 4, 6), FRAME), {"a": SCORE, "b": SCORE}, moment=4),
    "neighbourhood": lambda: figures.neighbourhood(("t", FRAME), 12, [
        ("0", FRAME, np.array([1, 2]), np.array([0.3, 0.7]), np.inf),
        ("1", FRAME, np.array([], int), np.array([]), 3.0)]),
}


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


def test_principal_colours_do_not_depend_on_a_rotation_of_the_features() -> None:
    features = RNG.standard_normal((2, 5, 4, 6)) * np.array([5, 3, 2, 0.1, 0.1])[:, None, None]
    rotation = np.linalg.qr(RNG.standard_normal((5, 5)))[0]
    turned = np.einsum("ij,njhw->nihw", rotation, features)
    pair = [figures.principal_colours(f).astype(int) for f in (features, turned)]
    for a, b in zip(*(np.moveaxis(colours, -1, 0) for colours in pair)):  # a component's sign is free
        assert a.shape == (2, 4, 6) and min(np.abs(a - b).max(), np.abs(a - (255 - b)).max()) <= 2


def test_cells_lie_where_their_pixels_are() -> None:
    """Cell (y, x) is centred at pixel (8·y, 8·x); the picture stays where it is, and maps hide or grey it."""
    assert [c.tolist() for c in figures.cell_centres([0, 5, 40], 10)] == [[0, 40, 0], [0, 0, 32]]
    figure = figures.cell_maps([FRAME] * 3, LINES, ["a", "b", "c"])
    first, axis, opaque = figure.axes[0], figure.axes[3], figure.axes[9]
    assert first.collections[0].get_offsets().tolist() == [[16, 8], [32, 24]]
    assert axis.images[1].get_extent() == [-4, 76, 60, -4]
    assert axis.get_xlim() == (-0.5, 79.5) and axis.get_ylim() == (63.5, -0.5)
    assert np.ptp(axis.images[0].get_array(), axis=2).max() == 0
    assert (opaque.images[0].get_array() == 255).all()
    assert [a.get_title() for a in figure.axes[:6]] == ["a", "b", "c", "", "", ""]


def test_one_line_of_maps_has_one_scale() -> None:
    line = figures.Maps("", [VALUES[0], VALUES[1] + 3, None], label="v")
    axes = figures.cell_maps([FRAME] * 3, [line]).axes
    limits = [axis.images[1].get_clim() for axis in axes[:2]]
    assert limits[0] == limits[1] == (VALUES[0].min(), VALUES[1].max() + 3)


def test_the_moment_is_pointed_out() -> None:
    titles = {axis.get_title(): axis.title.get_color() for axis in MAKERS["strip"]().axes if axis.get_title()}
    assert list(titles) == ["frame 0", "frame 4", "frame 6"]
    assert titles["frame 4"] == figures.COLOURS[0] != titles["frame 0"] == titles["frame 6"]


def test_sources_lie_on_their_cells_and_the_circle_has_the_radius() -> None:
    _, reference, recent = MAKERS["neighbourhood"]().axes
    assert reference.collections[0].get_offsets().tolist() == [[8, 0], [16, 0]] and not reference.patches
    circle, = recent.patches
    assert circle.center == (16, 8) and circle.radius == 24


def test_save_writes_what_was_asked_and_returns_the_figure(tmp_path: Path) -> None:
    figure, folder = MAKERS["curves"](), tmp_path / "new"
    assert figures.save(figure, folder / "lam-0.1", vector=True, credit="whose") is figure
    assert sorted(file.name for file in folder.iterdir()) == ["lam-0.1.pdf", "lam-0.1.png"]
    first = (folder / "lam-0.1.pdf").read_bytes()
    figures.save(figure, folder / "lam-0.1.png", vector=True)
    assert first.startswith(b"%PDF") and (folder / "lam-0.1.pdf").read_bytes() == first
    figures.save(figure, tmp_path / "photo.png")
    assert not (tmp_path / "photo.pdf").exists()
    assert "whose" in [text.get_text() for text in figure.texts]


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, figure = tmp_path / "a.png", MAKERS["curves"]()
    path.write_bytes(b"old")

    def fail(stream, **_) -> None:
        stream.write(b"half")
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(InputError, match=r"a\.png"):
        figures.save(figure, path)
    assert path.read_bytes() == b"old" and [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_a_notebook_checks_its_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DULVOS_RESULTS", str(tmp_path))
    cells = ["", "# Parameters\nframe = 3\n", "count = 7"]
    given = {"study": "mine", "frame": 3, "other": object(), "In": cells, "count": 7}
    book = figures.Notebook("00_the_method", given)
    assert book.study.folder == tmp_path / "mine" and book.figures == tmp_path / "mine" / "figures"
    book.show(MAKERS["curves"](), "losses", vector=True)
    assert (book.figures / "losses.png").is_file() and (book.figures / "losses.pdf").is_file()
    assert figures.Notebook("00_the_method", {**given, "out": str(tmp_path / "x")}).tables == tmp_path / "x"
    with pytest.raises(InputError, match="frame"):
        figures.Notebook("00_the_method", {**given, "frame": "three"})
    with pytest.raises(InputError, match="framme"):  # papermill would only warn
        figures.Notebook("00_the_method", {**given, "framme": 3, "In": ["# Parameters\nframme = 3\n"]})


def test_a_notebook_takes_a_sequence_or_a_video_of_ones_own(tiny: Path, tmp_path: Path) -> None:
    book = figures.Notebook("04_features", {"study": "mine", "out": str(tmp_path)})
    middle = book.sequence(str(tiny))
    assert middle.masks and book.sequence(str(tiny), middle.name).name == middle.name and book.credit == ""
    for t in range(3):
        cv2.imwrite(str(tmp_path / f"{t}.png"), FRAME)
    own = book.sequence("nowhere", str(tmp_path))
    assert own.masks == {} and len(own.video) == 3
    with pytest.raises(InputError, match=f"nobody.*{middle.name}"):
        book.sequence(str(tiny), "nobody")
