"""Figures: what masks do to pixels, colours that can be told apart, pictures from tiny inputs, files whole or not at all."""

from __future__ import annotations

import base64
import errno

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from dulvos.study import figures
from dulvos.errors import InputError

FRAME = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)


@pytest.mark.parametrize("n", [1, 4, 8, 16])
def test_anchor_colours_are_distinct_and_neighbours_are_alike(n):
    colours = figures.anchor_colours(n)
    assert colours.shape == (n * n, 3) and colours.dtype == np.uint8
    assert len(np.unique(colours, axis=0)) == n * n
    if n > 2:
        grid = colours.reshape(n, n, 3).astype(float)
        steps = [np.linalg.norm(np.diff(grid, axis=axis), axis=-1).max() for axis in (0, 1)]
        corners = grid[[0, 0, -1, -1], [0, -1, 0, -1]]
        apart = np.linalg.norm(corners[:, None] - corners[None], axis=-1)[~np.eye(4, dtype=bool)].min()
        assert max(steps) < apart


def test_principal_colours_do_not_depend_on_a_rotation_of_the_features():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((2, 5, 4, 6)) * np.array([5, 3, 2, 0.1, 0.1])[:, None, None]
    rotation = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    one, other = (figures.principal_colours(f).astype(int) for f in (features, np.einsum("ij,njhw->nihw", rotation, features)))
    assert one.shape == (2, 4, 6, 3)
    for channel in range(3):  # up to the sign of a component
        a, b = one[..., channel], other[..., channel]
        assert min(np.abs(a - b).max(), np.abs(a - (255 - b)).max()) <= 2
    assert figures.principal_colours(np.ones((1, 4, 2, 2))).shape == (1, 2, 2, 3)  # nothing varies


HISTORY = pd.DataFrame({"iteration": [1, 2, 3], "loss": [5.0, 4, 3], "loss_st": [4.8, 3.9, 2.9], "loss_cv": [2.0, 1, 1],
                        "lr": [1e-4] * 3, "seconds": [1.0, 2, 3]})
TABLE = pd.DataFrame({"copy": [0.2, 0.3, np.nan], "trained": [0.6, 0.5, 0.9]}, index=["dog", "cat", "cow"])
SQUARE = FRAME[:64, :64]
THETA = np.array([[-0.5, 0, 0.2], [0, 0.5, -0.1]])
CURVE = pd.DataFrame({"iteration": [0, 500, 4000], "CPU hours": [0, 0.2, 1.7], "J&F": [38, 50, 60.0], "J mean": [40, 51, 61.0],
                      "F mean": [36, 49, 59.0], "shorter side": 240, "state": "run"})
MAKERS = {
    "montage": lambda: figures.montage([("a", [FRAME, FRAME]), ("b", [FRAME[:32]])], ["one", "two"]),
    "curves": lambda: figures.training_curves(HISTORY),
    "scores": lambda: figures.scores_by_sequence(TABLE),
    "score curve": lambda: figures.score_curve(CURVE),
    "strip": lambda: figures.frame_strip([FRAME] * 4, np.array([np.nan, 0.5, 0.4, np.nan]), np.array([np.nan, 0.6, 0.2, np.nan])),
    "anchors": lambda: figures.anchors([FRAME] * 2, np.array([[[0, 5], [40, 45]], [[1, 6], [41, 46]]])),
    "maps": lambda: figures.cell_maps([FRAME] * 6, [np.full((8, 10), np.nan), *[np.eye(8, 10)] * 4, np.zeros((8, 10, 3), np.uint8)],
                                      list("abcdef"), label="v", marks=[[0], [], [11, 12], [], [], []]),
    "views": lambda: figures.view_pair(SQUARE, SQUARE, THETA, np.array([[[0, 1], [8, 9]], [[2, 3], [10, 11]]])),
    "views without pairs": lambda: figures.view_pair(SQUARE, SQUARE, THETA),
    "similarity": lambda: figures.similarity(np.eye(8), 2, title="t"),
    "neighbourhood": lambda: figures.neighbourhood(("t", FRAME), 12, [("0", FRAME, np.array([1, 2]), np.array([0.3, 0.7]), np.inf),
                                                                       ("1", FRAME, np.array([], int), np.array([]), 3.0)]),
}


@pytest.mark.parametrize("name", MAKERS)
def test_figures_from_tiny_inputs_are_drawn_and_shown(name):
    figure = MAKERS[name]()
    assert isinstance(figure, Figure)
    (kind, data), = figure._repr_mimebundle_().items()
    start = {"image/png": b"\x89PNG", "image/jpeg": b"\xff\xd8\xff"}[kind]
    assert base64.b64decode(data).startswith(start)


def test_cells_are_drawn_at_their_centres():
    figure = figures.anchors([FRAME] * 2, np.array([[[0, 5], [40, 45]], [[1, 6], [41, 46]]]))
    dots = figure.axes[0].collections[-1].get_offsets()
    assert dots.tolist() == [[0, 0], [40, 0], [0, 32], [40, 32]]  # (x, y): cell (y, x) at pixels (8·y, 8·x)
    axis = figures.cell_maps([FRAME], [np.eye(8, 10)], [""]).axes[0]
    assert axis.images[1].get_extent() == [-4, 76, 60, -4]
    assert axis.get_xlim() == (-0.5, 79.5) and axis.get_ylim() == (63.5, -0.5)  # the picture stays where it is


def test_the_box_of_view_2_follows_theta():
    box = figures.view_pair(SQUARE, SQUARE, THETA).axes[0].patches[0].get_xy()[:4]
    # flipped, half as large, its centre at (x, y) = (0.2, -0.1) of half a side: pixels 37.9, 28.3
    assert np.allclose(box.mean(0), [0.2 * 32 + 31.5, -0.1 * 32 + 31.5])
    assert np.allclose(box[1] - box[0], [-32, 0]) and np.allclose(box[3] - box[0], [0, 32])


def test_scores_are_shown_in_percent_best_on_top():
    axis = figures.scores_by_sequence(TABLE).axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["cat", "dog", "cow"]
    assert axis.collections[-1].get_offsets()[:, 0].tolist() == pytest.approx([50, 60, 90])


def test_save_writes_both_files_makes_the_folder_and_returns_the_figure(tmp_path):
    figure = MAKERS["curves"]()
    assert figures.save(figure, tmp_path / "new" / "lam-0.1", vector=True) is figure
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == ["lam-0.1.pdf", "lam-0.1.png"]
    assert (tmp_path / "new" / "lam-0.1.png").read_bytes().startswith(b"\x89PNG")
    first = (tmp_path / "new" / "lam-0.1.pdf").read_bytes()
    assert first.startswith(b"%PDF")
    figures.save(figure, tmp_path / "new" / "lam-0.1.png", vector=True)
    assert (tmp_path / "new" / "lam-0.1.pdf").read_bytes() == first
    figures.save(figure, tmp_path / "photo.png")
    assert not (tmp_path / "photo.pdf").exists()


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path, figure = tmp_path / "a.png", MAKERS["curves"]()
    path.write_bytes(b"old")

    def fail(stream, **_):
        stream.write(b"half")
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(InputError, match=r"a\.png: cannot be written \(No space left on device\)"):
        figures.save(figure, path)
    assert path.read_bytes() == b"old" and [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_style_does_not_leak():
    import matplotlib

    before = dict(matplotlib.rcParams)
    MAKERS["montage"]()
    assert dict(matplotlib.rcParams) == before
