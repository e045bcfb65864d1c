"""Figures: from arrays and tables to matplotlib Figures, in one style; nothing here reads or computes results."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle, ConnectionPatch, Polygon
from PIL import Image
from skimage.color import lab2rgb, rgb2lab

from dulvos.encoder import STRIDE
from dulvos.errors import InputError

__all__ = ["COLOURS", "OBJECT_COLOURS", "anchor_colours", "anchors", "cell_maps", "frame_strip", "montage", "neighbourhood"]
__all__ += ["overlay", "principal_colours", "save", "scores_by_sequence", "similarity", "style", "training_curves", "view_pair"]

WIDTH = 7.0  # inches, of a full-width figure in a paper
# Okabe and Ito, "Color Universal Design" (2008): told apart with any kind of colour vision
COLOURS = {"vermillion": "#D55E00", "sky blue": "#56B4E9", "yellow": "#F0E442", "green": "#009E73", "purple": "#CC79A7",
           "blue": "#0072B2", "orange": "#E69F00"}
OBJECT_COLOURS = np.array([[round(255 * c) for c in to_rgb(colour)] for colour in COLOURS.values()], np.uint8)
"""(7, 3) uint8, the colours of objects 1, 2, …; object 8 has the first again."""
MARKERS = "osD^vPX"

STYLE = {"font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "legend.fontsize": 7, "xtick.labelsize": 7,
         "ytick.labelsize": 7, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": False,
         "axes.prop_cycle": matplotlib.cycler(color=list(COLOURS.values())), "lines.linewidth": 1.2, "legend.frameon": False,
         "figure.dpi": 110, "figure.constrained_layout.use": True, "pdf.fonttype": 42}


def style() -> AbstractContextManager:
    """The rc settings of every figure here, as a context or a decorator: fonts for a column, colours all can tell apart."""
    return matplotlib.rc_context(STYLE)


class _Figure(Figure):
    """A Figure that a notebook shows without pyplot, and small: photographs as JPEG, the rest as PNG."""

    def _repr_mimebundle_(self, **_) -> dict[str, str]:
        png, jpeg = io.BytesIO(), io.BytesIO()
        with style():
            self.savefig(png, format="png", bbox_inches="tight")
        Image.open(png).convert("RGB").save(jpeg, "jpeg", quality=85)
        kind, stream = ("png", png) if len(png.getbuffer()) < 3 * len(jpeg.getbuffer()) else ("jpeg", jpeg)
        return {f"image/{kind}": base64.b64encode(stream.getbuffer()).decode()}


def save(figure: Figure, path: str | os.PathLike, *, vector: bool = False) -> Figure:
    """Write a figure as PNG (150 dpi), whole or not at all (a temporary name, then a rename); makes its folder.

    Arguments:
        path: the file, with or without its .png.
        vector: write a PDF beside it too: for curves and dots, not for photographs.

    Returns:
        The figure, so that a notebook's cell may end here and show it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix in ("png", "pdf")[: 1 + vector]:
        file = path.with_name(f"{path.name.removesuffix('.png')}.{suffix}")
        temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        metadata = {"CreationDate": None} if suffix == "pdf" else None  # the same figure gives the same bytes
        try:
            with style():
                figure.savefig(temporary, format=suffix, dpi=150, bbox_inches="tight", metadata=metadata)
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)
    return figure


def overlay(frame: np.ndarray, ids: np.ndarray, alpha: float = 0.5, outline: bool = True) -> np.ndarray:
    """Masks over a frame, in `OBJECT_COLOURS`; pixels of id 0 stay as they are.

    Arguments:
        frame: (H, W, 3) uint8 RGB.
        ids: (H, W) integer, 0 being background.
        alpha: opacity of the masks, in [0, 1].
        outline: draw each object's rim, inside of it, without transparency.

    Returns:
        (H, W, 3) uint8.
    """
    ids = np.asarray(ids)
    if ids.shape != frame.shape[:2]:
        raise InputError(f"the mask is {ids.shape}, the frame {frame.shape[:2]}; masks and frames must have one size")
    inside = ids > 0
    colour = OBJECT_COLOURS[(ids.astype(int) - 1) % len(OBJECT_COLOURS)]
    strength = np.where(inside, alpha, 0.0)[..., None]
    if outline:
        flat = ids.astype(np.float32)
        kernel = np.ones((2 * max(1, min(ids.shape) // 240) + 1,) * 2, np.uint8)
        strength[inside & (cv2.erode(flat, kernel) != cv2.dilate(flat, kernel))] = 1
    return np.rint(frame + strength * (colour.astype(float) - frame)).astype(np.uint8)


def anchor_colours(n: int) -> np.ndarray:
    """(n·n, 3) uint8, a colour for each anchor of an n x n grid by its place: neighbours look alike.

    Bright to dark from top to bottom, blue to orange from left to right, mixed in CIELAB.
    """
    corners = rgb2lab([[[0.62, 0.85, 1.0], [1.0, 0.93, 0.40]], [[0.0, 0.13, 0.45], [0.62, 0.10, 0.0]]])
    u = np.linspace(0, 1, n) if n > 1 else np.array([0.5])
    mixed = np.einsum("yi,xj,ijc->yxc", *[np.stack([1 - u, u], 1)] * 2, corners)
    return np.rint(255 * lab2rgb(mixed)).astype(np.uint8).reshape(-1, 3)


def principal_colours(features: np.ndarray) -> np.ndarray:
    """The first three principal components of all cells as RGB: (n, K, h, w) float -> (n, h, w, 3) uint8."""
    features = np.moveaxis(np.asarray(features, np.float32), 1, -1)  # [n, h, w, K]
    cells = features.reshape(-1, features.shape[-1])
    cells = cells - cells.mean(0)
    _, axes = np.linalg.eigh(cells.T @ cells)
    axes = axes[:, :-4:-1]  # [K, 3]
    axes = axes * np.sign(axes.sum(0))  # an eigenvector's sign is arbitrary
    low, high = np.percentile(cells @ axes, (1, 99), axis=0)
    colours = np.clip((cells @ axes - low) / np.maximum(high - low, 1e-12), 0, 1)
    return np.rint(255 * colours).astype(np.uint8).reshape(*features.shape[:-1], 3)


@style()
def montage(rows: Sequence[tuple[str, Sequence[np.ndarray]]], column_titles: Sequence[str] = ()) -> Figure:
    """Images side by side, a row a video or method, as in the paper's Fig. 4.

    Arguments:
        rows: (title, images), each image (H, W, 3) uint8; rows may differ in length and size.
        column_titles: above the first row.
    """
    columns = max(len(images) for _, images in rows)
    heights = [max(image.shape[0] / image.shape[1] for image in images) for _, images in rows]
    figure = _Figure((WIDTH, 0.25 + (WIDTH - 0.3) / columns * sum(heights)))
    axes = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    for line, (title, images) in zip(axes, rows):
        for axis in line[len(images):]:
            axis.remove()
        for axis, image in zip(line, images):
            _picture(axis, image)
        line[0].set_ylabel(title)
    for axis, title in zip(axes[0], column_titles):
        axis.set_title(title)
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)
    return figure


@style()
def training_curves(history: pd.DataFrame) -> Figure:
    """L_ST, L_CV and the learning rate over iterations: each raw value, and the median of a hundredth of the run around it.

    Arguments:
        history: columns iteration, loss, loss_st, loss_cv, lr, seconds, as `history.csv` has them.
    """
    figure = _Figure((WIDTH, 2.1))
    left, middle, right = figure.subplots(1, 3)
    window = max(5, len(history) // 50)
    for axis, name, colour, title in ((left, "loss_st", "blue", r"space-time loss $\mathcal{L}_{ST}$ (Eq. 3)"),
                                      (middle, "loss_cv", "vermillion", r"cross-view loss $\mathcal{L}_{CV}$ (Eq. 5)")):
        smooth = history[name].rolling(window, center=True, min_periods=1).median()
        axis.plot(history.iteration, history[name], color=COLOURS[colour], alpha=0.25, linewidth=0.5)
        axis.plot(history.iteration, smooth, color=COLOURS[colour], label=f"median of {window}")
        axis.set(title=title, xlabel="iteration")
        axis.legend()
    right.step(history.iteration, history.lr, where="post", color="0.3")
    right.set(title=f"learning rate ({history.seconds.iloc[-1] / 60:.0f} min in all)", xlabel="iteration", ylim=(0, None))
    return figure


@style()
def scores_by_sequence(table: pd.DataFrame) -> Figure:
    """J&F of every sequence, a dot a method, best of the last method on top; the means in the legend and as lines.

    Arguments:
        table: index: sequences, columns: methods, values: J&F in [0, 1] or in percent; NaN where not run.
    """
    table = table * (100 if np.nanmax(table.to_numpy(float)) <= 1 else 1)
    table = table.sort_values(table.columns[-1])
    figure = _Figure((WIDTH * 0.75, 0.9 + 0.19 * len(table)))
    axis = figure.subplots()
    y = np.arange(len(table))
    axis.hlines(y, table.min(axis=1), table.max(axis=1), color="0.8", linewidth=1, zorder=1)
    for number, method in enumerate(table):
        colour, mean = list(COLOURS.values())[::-1][number % len(COLOURS)], table[method].mean()
        axis.scatter(table[method], y, s=22, marker=MARKERS[number % len(MARKERS)], color=colour, edgecolor="white",
                     linewidth=0.4, zorder=3, label=f"{method}: mean {mean:.1f}")
        axis.axvline(mean, color=colour, linestyle=":", linewidth=1, zorder=0)
    axis.set(xlabel="J&F (%)", ylim=(-0.7, len(table) - 0.3))
    axis.set_yticks(y, table.index)
    axis.tick_params(axis="y", length=0)
    figure.legend(loc="outside upper center", ncols=min(3, table.shape[1]))
    return figure


@style()
def frame_strip(frames: Sequence[np.ndarray], j: np.ndarray, f: np.ndarray, *, shown: int = 6) -> Figure:
    """Frames of a video, evenly picked, above J and F of every frame; a line leads from each frame to its scores.

    Arguments:
        frames: T images (H, W, 3) uint8, such as `overlay` gives.
        j, f: (T,) in [0, 1]; NaN where a frame has no score (the first and the last).
    """
    picked = np.unique(np.linspace(0, len(frames) - 1, shown).round().astype(int))
    ratio = frames[0].shape[0] / frames[0].shape[1]
    figure = _Figure((WIDTH, 1.7 + WIDTH / len(picked) * ratio))
    top, bottom = figure.subfigures(2, 1, height_ratios=[WIDTH / len(picked) * ratio + 0.3, 1.4])
    axis = bottom.subplots()
    for name, values, colour, line in (("J", j, "blue", "-"), ("F", f, "vermillion", "--")):
        axis.plot(values, line, color=COLOURS[colour], label=f"{name}: mean {100 * np.nanmean(values):.1f} %")
    axis.set(xlim=(-0.5, len(frames) - 0.5), ylim=(0, 1.02), xlabel="frame", ylabel="score")
    axis.legend(loc="lower left", ncols=2)
    for place, index in zip(top.subplots(1, len(picked), squeeze=False)[0], picked):
        _picture(place, frames[index], f"frame {index}")
        axis.axvline(index, color="0.8", linewidth=0.8, zorder=0)
        height, width = frames[index].shape[:2]
        figure.add_artist(ConnectionPatch((width / 2, height), (index, 1.02), place.transData, axis.transData, color="0.8"))
    return figure


@style()
def anchors(frame: np.ndarray, index: np.ndarray) -> Figure:
    """The anchors of a reference frame, each in its colour, over the grid's blocks and all cells (Sec. 3.3, 𝒢).

    Arguments:
        frame: (H, W, 3) uint8, whose features have H/8 x W/8 cells; cell i is centred at pixel 8·i.
        index: (n, n) flat indices y·w + x, as `dulvos.losses.sample_grid` draws them for one clip.
    """
    height, width, n = frame.shape[0] // STRIDE, frame.shape[1] // STRIDE, len(index)
    figure = _Figure((WIDTH * 0.55, WIDTH * 0.55 * height / width + 0.3))
    axis = figure.subplots()
    _picture(axis, frame, f"{n} x {n} anchors among {height} x {width} cells")
    x, y = np.meshgrid(np.arange(width) * STRIDE, np.arange(height) * STRIDE)
    axis.scatter(x, y, s=0.8, color="white", linewidths=0)
    for k in range(1, n):
        axis.axvline(k * width / n * STRIDE - STRIDE / 2, color="white", linewidth=0.6)
        axis.axhline(k * height / n * STRIDE - STRIDE / 2, color="white", linewidth=0.6)
    y, x = _pixels(index, width)
    axis.scatter(x, y, s=26, c=anchor_colours(n) / 255, edgecolor="black", linewidth=0.8, zorder=3)
    return figure


@style()
def cell_maps(frames: Sequence[np.ndarray], maps: Sequence[np.ndarray], titles: Sequence[str], *, label: str = "",
              marks: Sequence[Sequence[int]] = (), limits: tuple[float, float] | None = None, alpha: float = 0.75) -> Figure:
    """Maps of cells over their frames, where they belong: cell i covers pixels 8·i ± 4.

    Arguments:
        frames: P images (H, W, 3) uint8.
        maps: P maps, (h, w) float shown by one common scale (NaN: the frame is seen), or (h, w, 3) uint8 colours.
        titles: P.
        label: of the scale.
        marks: flat cell indices to ring in each panel.
        limits: of the scale; None takes the least and the greatest value.
        alpha: opacity of the maps.
    """
    columns = min(len(maps), 5)
    rows = -(-len(maps) // columns)
    ratio = max(frame.shape[0] / frame.shape[1] for frame in frames)
    side = min((WIDTH - 0.5) / columns, 2.4)
    figure = _Figure((side * columns + 0.5, rows * (side * ratio + 0.25)))
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    values = np.concatenate([np.ravel(m) for m in maps if np.ndim(m) == 2] or [[0, 1]])
    scale = Normalize(*(limits or (np.nanmin(values), np.nanmax(values))))
    for axis in axes[len(maps):]:
        axis.remove()
    for number, (axis, frame, cells, title) in enumerate(zip(axes, frames, maps, titles)):
        _picture(axis, frame, title)
        _cells(axis, cells, alpha=alpha, norm=scale)
        y, x = _pixels(marks[number] if len(marks) else [], cells.shape[1])
        axis.scatter(x, y, s=36, facecolor="none", edgecolor="black", linewidth=2.2)
        axis.scatter(x, y, s=36, facecolor="none", edgecolor="white", linewidth=1.2)
    if label:
        figure.colorbar(ScalarMappable(scale), ax=list(axes[: len(maps)]), label=label, shrink=0.9, pad=0.01)
    return figure


@style()
def view_pair(main: np.ndarray, view2: np.ndarray, theta: np.ndarray, pairs: np.ndarray | None = None) -> Figure:
    """The two views of a frame: where view 2 lies in the main view (a flip shows in the corners), and corresponding cells.

    Arguments:
        main, view2: (S, S, 3) uint8.
        theta: (2, 3), 𝒯 from view-2 to main-view coordinates, (x, y) in [-1, 1].
        pairs: (2, n, n) flat cell indices in the main view and in view 2, drawn in one colour and joined.
    """
    size = len(main)
    figure = _Figure((WIDTH * 0.8, WIDTH * 0.4 + 0.1))
    left, right = figure.subplots(1, 2)
    _picture(left, main, "main view")
    _picture(right, view2, "view 2 (regularising branch)")
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    inside = corners @ theta[:, :2].T + theta[:, 2]
    for axis, places in ((left, inside), (right, corners)):
        places = ((places + 1) * size - 1) / 2  # align_corners=False
        axis.add_patch(Polygon(places, fill=False, edgecolor="white", linewidth=2, clip_on=False))
        axis.scatter(*places.T, s=50, c=list(COLOURS.values())[:4], edgecolor="white", zorder=3, clip_on=False)
    if pairs is not None:
        colours = anchor_colours(pairs.shape[1]) / 255
        places = [np.stack(_pixels(index, size // STRIDE)[::-1], 1) for index in pairs]
        for axis, place in zip((left, right), places):
            axis.scatter(*place.T, s=26, c=colours, edgecolor="black", linewidth=0.8, zorder=3)
        for a, b, colour in zip(*places, colours):
            figure.add_artist(ConnectionPatch(a, b, left.transData, right.transData, color=colour, linewidth=0.8))
    return figure


@style()
def similarity(matrix: np.ndarray, clips: int, *, title: str = "", xlabel: str = "", ylabel: str = "") -> Figure:
    """A matrix of cosines between the features of `clips` clips, (n, m) float, with lines between the clips."""
    figure = _Figure((WIDTH * 0.55, WIDTH * 0.45))
    axis = figure.subplots()
    image = axis.imshow(matrix, cmap="viridis", vmax=1)
    for k in range(1, clips):
        axis.axhline(k * matrix.shape[0] / clips - 0.5, color="white", linewidth=1)
        axis.axvline(k * matrix.shape[1] / clips - 0.5, color="white", linewidth=1)
    axis.set(title=title, xlabel=xlabel, ylabel=ylabel)
    figure.colorbar(image, label="cosine similarity", pad=0.02)
    return figure


@style()
def neighbourhood(query: tuple[str, np.ndarray], cell: int,
                  entries: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray]], radius: Sequence[float]) -> Figure:
    """One cell of a frame and the cells its label is copied from, with their weights as areas (App. C).

    Arguments:
        query: title and frame (H, W, 3) uint8.
        cell: flat index y·w + x of the cell that asks.
        entries: a context frame each: title, frame, flat indices of the chosen cells (n,), their weights (n,).
        radius: of each entry, in cells: what the cell may look at; inf for the reference.
    """
    columns = min(3, len(entries) + 1)
    rows = -(-(len(entries) + 1) // columns)
    height, width = query[1].shape[:2]
    figure = _Figure((WIDTH, rows * (WIDTH / columns * height / width + 0.2)))
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    cells = -(-width // STRIDE)
    y, x = _pixels([cell], cells)
    _picture(axes[0], query[1], query[0])
    for axis, (title, frame, index, weights), reach in zip(axes[1:], entries, radius):
        _picture(axis, frame, title)
        if np.isfinite(reach):
            axis.add_patch(Circle((x[0], y[0]), reach * STRIDE, fill=False, edgecolor="white", linewidth=1.5))
        places = _pixels(index, cells)[::-1]
        axis.scatter(*places, s=12 + 400 * weights, color=COLOURS["yellow"], edgecolor="black", linewidth=0.8, alpha=0.8)
    for axis in axes[: len(entries) + 1]:
        axis.plot(x, y, "+", color="black", markersize=11, markeredgewidth=3)
        axis.plot(x, y, "+", color="white", markersize=10, markeredgewidth=1.5)
    for axis in axes[len(entries) + 1:]:
        axis.remove()
    return figure


def _picture(axis: Axes, image: np.ndarray, title: str = "") -> None:
    axis.imshow(image, interpolation="antialiased")
    axis.set(xticks=[], yticks=[], title=title, xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5))
    axis.spines[:].set_visible(False)


def _cells(axis: Axes, cells: np.ndarray, **style) -> None:
    """Cells over a picture, its limits kept: cell i is centred at pixel 8·i."""
    height, width = cells.shape[:2]
    half = STRIDE / 2
    limits = axis.get_xlim(), axis.get_ylim()
    axis.imshow(cells, extent=(-half, width * STRIDE - half, height * STRIDE - half, -half), interpolation="nearest",
                cmap="viridis", **style)
    axis.set(xlim=limits[0], ylim=limits[1])


def _pixels(index: np.ndarray | Sequence[int], width: int) -> tuple[np.ndarray, np.ndarray]:
    """(y, x) pixels of the centres of cells, given by flat indices."""
    y, x = np.divmod(np.ravel(np.asarray(index, int)), width)
    return y * STRIDE, x * STRIDE
