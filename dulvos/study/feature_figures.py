"""Figures of features in a video: maps of cells, views, tracks, errors and scores over time; arrays in, Figures out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch

from dulvos import videos
from dulvos.encoder import STRIDE
from dulvos.errors import InputError
from dulvos.study.figures import COLOURS, WIDTH, NotebookFigure, show_pictures, style

__all__ = ["Row", "clip_rows", "error_curves", "falls", "landings", "score_strip", "shrink", "spread_points", "trails"]

# blue against vermillion, and dashes, so that neither colour vision nor a printer matters
LINES = ((COLOURS[5], "-"), (COLOURS[0], "--"), ("0.45", ":"), (COLOURS[3], "-."))


@dataclass(frozen=True, eq=False)
class Row:
    """One row of `clip_rows`.

    Arguments:
        title: beside the row.
        maps: of each column: (h, w) float on the row's one scale, (h, w, 3) uint8 colours of cells, or None: the frame.
        label: of the row's scale; "" draws none.
        opacity: of the maps, in [0, 1]: one number, or (h, w) of each column.
        marks: of each column: positions (n, 2) [y, x] in cells and colours (n, 3) in [0, 1], or None.
        frames: (H, W, 3) uint8 pictures under the maps, where they are not those of all rows.
        limits: of the scale; None takes the least and the greatest value.
        stride, offset: of the cells, in pixels, or (y, x) each: cell i has its middle at offset + stride·i.
    """

    title: str
    maps: Sequence[np.ndarray | None]
    label: str = ""
    opacity: float | Sequence[np.ndarray] = 1.0
    marks: Sequence[tuple[np.ndarray, np.ndarray] | None] = ()
    frames: Sequence[np.ndarray] | None = None
    limits: tuple[float, float] | None = None
    stride: float | tuple[float, float] = STRIDE
    offset: float | tuple[float, float] = 0.0


def shrink(image: np.ndarray, shorter_side: int) -> np.ndarray:
    """A frame (H, W, 3) or a mask (H, W), uint8, at the size at which `dulvos.inference.encode` looks at it; 0 keeps it.

    A mask's ids are picked, never mixed.
    """
    if image.ndim == 3:
        return videos.shrink(image, shorter_side)
    height, width = videos.shrunk_size(image.shape, shorter_side)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def spread_points(inside: np.ndarray, count: int) -> np.ndarray:
    """Cells of a region (h, w) bool, the deepest first, then each far from the rim and from those before: (≤ count, 2) [y, x].

    The frame's border is a rim too. Fewer come where the region is smaller.

    Raises:
        InputError: an empty region.
    """
    if not inside.any():
        raise InputError("the region to pick points from is empty; give a mask with an object, or points")
    depth = cv2.distanceTransform(np.pad(inside, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.mgrid[: inside.shape[0], : inside.shape[1]]
    points: list[tuple[int, int]] = []
    room = depth.copy()
    while len(points) < count and room.max() > 0:
        points.append(tuple(int(i) for i in np.unravel_index(room.argmax(), room.shape)))
        apart = np.min([np.hypot(y - a, x - b) for a, b in points], 0)
        room = np.where(inside, np.minimum(2 * depth, apart), 0)  # twice: the rim may be nearer than the next point
    return np.array(points)


def falls(scores: np.ndarray, window: int = 5) -> int:
    """The frame by which a score (T,) has fallen most within `window` frames; NaN is passed over."""
    known = np.flatnonzero(~np.isnan(scores))
    if len(known) < 2:
        raise InputError(f"{len(known)} scored frame(s): a fall needs two")
    window = min(window, len(known) - 1)
    return int(known[window:][np.argmin(scores[known[window:]] - scores[known[:-window]])])


@style()
def clip_rows(frames: Sequence[np.ndarray], rows: Sequence[Row], titles: Sequence[str] = ()) -> Figure:
    """Frames (H, W, 3) uint8 of a clip in columns, and under or over them, row by row, what is known of their cells.

    Frames under maps are grey.
    """
    columns = len(frames)
    bars = any(row.label for row in rows)
    side = (WIDTH - 0.2 - 0.5 * bars) / columns
    figure = NotebookFigure((WIDTH, 0.2 + len(rows) * (side * frames[0].shape[0] / frames[0].shape[1] + 0.02)))
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for number, (line, row) in enumerate(zip(axes, rows)):
        under, seen = list(row.frames or frames), np.min(row.opacity) < 1
        for column, cells in enumerate(row.maps):  # colours of a map mean something: no photograph's may shine through
            if cells is not None:
                under[column] = _grey(under[column]) if seen else np.full_like(under[column], 255)
        show_pictures(line, under, () if number else titles)
        known = [np.ravel(m) for m in row.maps if m is not None and m.ndim == 2]
        limits = row.limits or ((np.nanmin(np.concatenate(known)), np.nanmax(np.concatenate(known))) if known else (0, 1))
        scale = Normalize(*limits)
        for column, (axis, cells) in enumerate(zip(line, row.maps)):
            if cells is None:
                continue
            opacity = row.opacity if np.isscalar(row.opacity) else row.opacity[column]
            top, left = np.subtract(row.offset, np.divide(row.stride, 2)) * np.ones(2)
            bottom, right = np.multiply(cells.shape[:2], row.stride) + (top, left)
            extent = (left, right, bottom, top)
            axis.imshow(cells, "viridis", scale, alpha=opacity, interpolation="nearest", extent=extent)
        for axis, mark in zip(line, row.marks):
            if mark is not None:
                _dots(axis, np.reshape(mark[0], (-1, 2)) * row.stride + row.offset, mark[1])
        line[0].set_ylabel(row.title)
        if row.label:
            figure.colorbar(ScalarMappable(scale, "viridis"), ax=list(line), label=row.label, shrink=0.9, pad=0.01, aspect=12)
    return figure


@style()
def trails(frames: Sequence[np.ndarray], numbers: Sequence[int], rows: Mapping[str, np.ndarray],
           kept: Mapping[str, np.ndarray] | None = None, *, tail: int = 12) -> Figure:
    """Points followed through a video, a row for each way of following them.

    Arguments:
        frames, numbers: the frames shown, (H, W, 3) uint8, and their numbers in the video.
        rows: title and tracks (T, n, 2) [y, x] in cells.
        kept: of the same titles, (T, n) bool: whether the point is still where it should be (dot) or not (cross).
        tail: frames of which the path is drawn.
    """
    side = (WIDTH - 0.3) / len(frames)
    figure = NotebookFigure((WIDTH, 0.2 + len(rows) * (side * frames[0].shape[0] / frames[0].shape[1] + 0.02)))
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)
    axes = figure.subplots(len(rows), len(frames), squeeze=False)
    for number, (line, (title, tracks)) in enumerate(zip(axes, rows.items())):
        show_pictures(line, frames, () if number else [f"frame {t}" for t in numbers])
        line[0].set_ylabel(title)
        right = kept[title] if kept else np.ones(tracks.shape[:2], bool)
        for axis, t in zip(line, numbers):
            for n in range(tracks.shape[1]):
                path, colour = tracks[max(0, t - tail): t + 1, n] * STRIDE, COLOURS[n % len(COLOURS)]
                axis.plot(path[:, 1], path[:, 0], color="black", linewidth=2.4, alpha=0.5)
                axis.plot(path[:, 1], path[:, 0], color=colour, linewidth=1.4)
                for edge, size, thick in (("black", 6, 3), (colour, 4.5, 1.5)):
                    axis.plot(path[-1, 1], path[-1, 0], marker="o" if right[t, n] else "x", color=edge, markersize=size,
                              markeredgewidth=0 if right[t, n] else thick)
    return figure


@style()
def landings(view: np.ndarray, panels: Mapping[str, tuple[np.ndarray, np.ndarray]], *, across: int = 10) -> Figure:
    """Where cells of view 2 ought to land in the main view (H, W, 3), dots, and where they find themselves, ends of lines.

    Arguments:
        panels: title, expected and found positions (h, w, 2) [y, x], in cells of the main view.
        across: about so many cells are drawn, each way.
    """
    side = WIDTH / max(3, len(panels))
    figure = NotebookFigure((side * len(panels), side * view.shape[0] / view.shape[1] + 0.2))
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    show_pictures(axes, [view // 2] * len(panels), list(panels))
    limit = np.hypot(*view.shape[:2]) / STRIDE / 4
    scale = Normalize(0, limit)
    for axis, (expected, found) in zip(axes, panels.values()):
        step = max(1, round(min(expected.shape[:2]) / across))
        expected, found = (places[step // 2:: step, step // 2:: step].reshape(-1, 2) for places in (expected, found))
        colours = ScalarMappable(scale, "cividis").to_rgba(np.linalg.norm(expected - found, axis=1))
        for a, b, colour in zip(expected * STRIDE, found * STRIDE, colours):
            axis.plot([a[1], b[1]], [a[0], b[0]], color=colour, linewidth=0.9)
        axis.scatter(*expected.T[::-1] * STRIDE, s=9, c=colours, edgecolor="white", linewidth=0.3, zorder=3)
    figure.colorbar(ScalarMappable(scale, "cividis"), ax=list(axes), label="cells off", extend="max", shrink=0.9, pad=0.01)
    return figure


@style()
def error_curves(panels: Mapping[str, Mapping[str, np.ndarray]], *, limit: float = 12) -> Figure:
    """For each panel and each named set of distances (any shape, in cells): the share of cells that are at most so far off."""
    figure = NotebookFigure((WIDTH * len(panels) / max(2, len(panels)), 2.3 + 0.14 * max(map(len, panels.values()))))
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    grid = np.linspace(0, limit, 241)
    for axis, (title, curves) in zip(axes, panels.items()):
        for (name, errors), (colour, dashes) in zip(curves.items(), LINES):
            ordered = np.sort(np.ravel(errors))
            share = np.searchsorted(ordered, grid, side="right") / len(ordered)
            axis.plot(grid, 100 * share, dashes, color=colour, label=f"{name} (median {np.median(ordered):.1f})")
        axis.set(title=title, xlabel="distance d in cells of 8 pixels", xlim=(0, limit), ylim=(0, 101))
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22))  # below: a curve may run anywhere
    axes[0].set_ylabel("cells within d (%)")
    return figure


@style()
def score_strip(frames: Mapping[int, np.ndarray], scores: Mapping[str, np.ndarray], *, moment: int | None = None) -> Figure:
    """Frames of a video, joined to the scores of all its frames under them.

    Arguments:
        frames: number and picture (H, W, 3) uint8 of the frames shown, in order.
        scores: name and J&F (T,) in [0, 1], NaN where there is none.
        moment: a frame to point out, such as `falls` of a score.
    """
    length = max(len(values) for values in scores.values())
    height, width = next(iter(frames.values())).shape[:2]
    tall = WIDTH / len(frames) * height / width + 0.3
    figure = NotebookFigure((WIDTH, tall + 1.6))
    top, bottom = figure.subfigures(2, 1, height_ratios=[tall, 1.6])
    places, axis = top.subplots(1, len(frames), squeeze=False)[0], bottom.subplots()
    show_pictures(places, list(frames.values()), [f"frame {t}" for t in frames])
    for (name, values), (colour, dashes) in zip(scores.items(), LINES):
        axis.plot(100 * values, dashes, color=colour, label=f"{name}: mean {100 * np.nanmean(values):.1f}")
    for place, t in zip(places, frames):
        colour = COLOURS[0] if t == moment else "0.8"
        axis.axvline(t, color=colour, linewidth=0.8, zorder=0)
        figure.add_artist(ConnectionPatch((width / 2, height), (t, 102), place.transData, axis.transData, color=colour))
        if t == moment:
            place.set_title(f"frame {t}", color=colour)
            axis.annotate("greatest fall", (t, 101), (3, 0), textcoords="offset points", va="top", fontsize=7, color=colour)
    axis.set(xlim=(-0.5, length - 0.5), ylim=(0, 102), xlabel="frame", ylabel="J&F (%)")
    axis.legend(loc="best", ncols=len(scores), frameon=True, framealpha=0.85, edgecolor="none")
    return figure


def _grey(picture: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def _dots(axis: Axes, positions: np.ndarray, colours: np.ndarray) -> None:
    """Dots at pixels (n, 2) [y, x], with a rim that shows on any ground."""
    y, x = positions.T
    size = 30 if len(x) < 10 else 9
    axis.scatter(x, y, s=size, c=colours, edgecolor="black", linewidth=1.4, zorder=3, clip_on=False)
    axis.scatter(x, y, s=size, c=colours, edgecolor="white", linewidth=0.7, zorder=3, clip_on=False)
