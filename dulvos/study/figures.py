"""Figures that several notebooks draw, in one style, and what every notebook needs around its cells."""

from __future__ import annotations

import ast
import base64
import io
import os
import textwrap
from collections import abc
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Circle, ConnectionPatch
from PIL import Image
from skimage.color import lab2rgb, rgb2lab

from dulvos.correspondence import principal_components
from dulvos.datasets import Sequence
from dulvos.encoder import STRIDE
from dulvos.errors import InputError
from dulvos.files import replacing
from dulvos.masks import OBJECT_COLOURS
from dulvos.study.rows import Study
from dulvos.study.runs import open_data
from dulvos.study.steps import check_parameters, defaults
from dulvos.study.tables import to_markdown
from dulvos.videos import open_video

__all__ = ["COLOURS", "LINES", "STYLE", "WIDTH", "Maps", "Notebook", "NotebookFigure", "anchor_colours",
           "cell_centres", "cell_maps", "montage", "neighbourhood", "principal_colours", "save",
           "score_strip", "show_pictures", "style", "training_curves"]

WIDTH = 7.0  # inches, across a page
COLOURS = [f"#{bytes(colour).hex()}" for colour in OBJECT_COLOURS]
VERMILLION, SKY, YELLOW, GREEN, PURPLE, BLUE, ORANGE = COLOURS
LINES = ((BLUE, "-"), (VERMILLION, "--"), ("0.45", ":"), (GREEN, "-."))  # dashes for those who see no colours
STYLE = {"font.size": 8, "axes.titlesize": 8, "legend.fontsize": 7, "xtick.labelsize": 7,
         "ytick.labelsize": 7, "axes.spines.top": False, "axes.spines.right": False, "lines.linewidth": 1.2,
         "legend.frameon": False, "figure.dpi": 110, "figure.constrained_layout.use": True,
         "pdf.fonttype": 42}
TIGHT = {"w_pad": 0.01, "h_pad": 0.01, "wspace": 0.01, "hspace": 0.01}


def style() -> AbstractContextManager:
    """The settings of every figure, as a context or a decorator."""
    return matplotlib.rc_context(STYLE)


class NotebookFigure(Figure):
    """A Figure that a notebook shows without pyplot, and small: photographs as JPEG, the rest as PNG."""

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        png, jpeg = io.BytesIO(), io.BytesIO()
        with style():
            self.savefig(png, format="png", bbox_inches="tight")
        Image.open(png).convert("RGB").save(jpeg, "jpeg", quality=85)
        kind, stream = ("png", png) if len(png.getbuffer()) < 3 * len(jpeg.getbuffer()) else ("jpeg", jpeg)
        return {f"image/{kind}": base64.b64encode(stream.getbuffer()).decode()}


class Notebook:
    """The study that a notebook belongs to, its checked parameters, and where its figures and tables go.

        book = Notebook("07_results", globals())  # in the first cell after the parameters
        book.show(figure, "montage")

    Arguments:
        name: of the file, without its suffix.
        names: the notebook's globals(). The parameter `study` names the study; `out`, unless it is missing or
            empty, is the folder for figures and tables.

    Raises:
        InputError: a parameter that the notebook does not know, or of the wrong type.
    """

    def __init__(self, name: str, names: Mapping[str, object]) -> None:
        self.study, out = Study(names["study"]), names.get("out")
        source = self.study.notebooks / f"{name}.ipynb"
        known = defaults(source)
        given = {key: names[key] for key in known if key in names}
        for cell in names.get("In", ()):
            if cell.startswith("# Parameters\n"):  # where papermill puts what it is given
                given |= {node.targets[0].id: names[node.targets[0].id] for node in ast.parse(cell).body
                          if isinstance(node, ast.Assign)}
        check_parameters(source, given)
        self.figures = Path(out or self.study.folder / "figures")
        self.tables = Path(out or self.study.folder / "tables")
        self.credit = ""  # printed small below photographs

    def sequence(self, data: str, video: str = "") -> Sequence:
        """A sequence of the val split of `data`, by default its middle one, or your own video without masks.

        Raises:
            InputError: there is none of that name; what `dulvos.study.runs.open_data` and `open_video` raise.
        """
        if video and Path(video).exists():
            own = open_video(video)
            return Sequence(own.name, own, {})
        dataset = open_data(data, "val")
        sequences = {sequence.name: sequence for sequence in dataset.sequences}
        name = video or sorted(sequences)[len(sequences) // 2]
        if name not in sequences:
            raise InputError(f"video={video!r}: no such file or folder, and no sequence of {dataset.name} "
                             f"{dataset.split}, which has {', '.join(sequences)}")
        self.credit = "DAVIS 2016/2017, CC BY-NC 4.0" if dataset.name.startswith("DAVIS") else ""
        return sequences[name]

    def show(self, figure: Figure, name: str, *, vector: bool = False) -> Figure:
        """Save a figure as NAME.png, with `vector` also as PDF, and return it, to end a cell with it."""
        return save(figure, self.figures / name, vector=vector, credit="" if vector else self.credit)

    def caption(self, text: str) -> None:
        """Show a caption whose numbers were computed."""
        display(Markdown(f"*{text}*"))

    def table(self, table: pd.DataFrame) -> None:
        """Show a table as it is printed everywhere."""
        display(Markdown(to_markdown(table)))


@style()
def save(figure: Figure, path: str | os.PathLike, *, vector: bool = False, credit: str = "") -> Figure:
    """Write a figure whole or not at all, and return it.

    Arguments:
        path: of the PNG (150 dpi), with or without its suffix; the folder is made.
        vector: write a PDF too; photographs make large ones.
        credit: small text below the figure.
    """
    path = Path(path)
    figure.text(1, -0.005, credit, ha="right", va="top", fontsize=5, color="0.4")
    for suffix in ("png", "pdf")[: 1 + vector]:
        metadata = {"CreationDate": None} if suffix == "pdf" else None  # the same figure gives the same bytes
        with replacing(path.with_name(f"{path.name.removesuffix('.png')}.{suffix}")) as stream:
            figure.savefig(stream, format=suffix, dpi=150, bbox_inches="tight", metadata=metadata)
    return figure


def anchor_colours(n: int) -> np.ndarray:
    """Colours of the anchors of an n x n grid, (n·n, 3) uint8, mixed in CIELAB: neighbours look alike."""
    corners = rgb2lab([[[0.62, 0.85, 1.0], [1.0, 0.93, 0.40]], [[0.0, 0.13, 0.45], [0.62, 0.10, 0.0]]])
    u = np.linspace(0, 1, n) if n > 1 else np.array([0.5])
    ramp = np.stack([1 - u, u], 1)
    colours = lab2rgb(np.einsum("yi,xj,ijc->yxc", ramp, ramp, corners))
    return np.rint(255 * colours).astype(np.uint8).reshape(-1, 3)


def principal_colours(features: np.ndarray) -> np.ndarray:
    """The first three principal components of all cells as RGB: (n, K, h, w) float -> (n, h, w, 3) uint8."""
    return principal_components(torch.as_tensor(features)).mul(255).round().byte().movedim(1, -1).numpy()


def cell_centres(index: np.ndarray | abc.Sequence[int], width: int) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) in pixels of the centres of cells, given by flat indices."""
    y, x = np.divmod(np.ravel(np.asarray(index, int)), width)
    return x * STRIDE, y * STRIDE


def show_pictures(axes: abc.Sequence[Axes], images: abc.Sequence[np.ndarray],
                  titles: abc.Sequence[str] = ()) -> None:
    """Put a picture on each axis, without ticks, and remove the axes that are left over."""
    for axis in axes[len(images):]:
        axis.remove()
    for axis, image, title in zip(axes, images, [*titles, *[""] * len(images)]):
        axis.imshow(image, interpolation="antialiased")
        axis.autoscale(False)  # what is drawn on top must not move the picture
        axis.set(xticks=[], yticks=[], title=title, frame_on=False)


@style()
def montage(rows: abc.Sequence[tuple[str, abc.Sequence[np.ndarray]]],
            column_titles: abc.Sequence[str] = ()) -> Figure:
    """Rows of pictures as in the paper's Fig. 4.

    Arguments:
        rows: a title and (H, W, 3) uint8 images each; rows may differ in length and size.
    """
    columns = max(len(images) for _, images in rows)
    heights = [max(image.shape[0] / image.shape[1] for image in images) for _, images in rows]
    figure = NotebookFigure((WIDTH, 0.25 + (WIDTH - 0.3) / columns * sum(heights)))
    figure.get_layout_engine().set(**TIGHT)
    titles = ["\n".join(textwrap.fill(line, 13, break_long_words=False) for line in title.split("\n"))
              for title, _ in rows]
    # a letter is about .6 of its size wide: the size at which every title fits beside its row
    size = min(115 * (WIDTH - 0.3) / columns * height / max(1, *map(len, title.split("\n")))
               for title, height in zip(titles, heights))
    axes = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    for line, title, (_, images) in zip(axes, titles, rows):
        label = line[0].set_ylabel(title)
        label.set_fontsize(min(label.get_fontsize(), size))
        show_pictures(line, images, column_titles)
        column_titles = ()
    return figure


@style()
def training_curves(history: pd.DataFrame) -> Figure:
    """The losses (raw and as running medians) and the learning rate; columns as in `history.csv`."""
    panels = {"loss_st": r"space-time loss $\mathcal{L}_{ST}$ (Eq. 3)",
              "loss_cv": r"cross-view loss $\mathcal{L}_{CV}$ (Eq. 5)"}
    if history["loss_st"].isna().all():
        panels = {"loss": "loss"}  # a baseline's
    figure = NotebookFigure((WIDTH, 2.1))
    *axes, rate = figure.subplots(1, len(panels) + 1)
    window = max(5, len(history) // 50)
    for axis, (name, title), colour in zip(axes, panels.items(), (BLUE, VERMILLION)):
        smooth = history[name].rolling(window, center=True, min_periods=1).median()
        axis.plot(history.iteration, history[name], color=colour, alpha=0.25, linewidth=0.5)
        axis.plot(history.iteration, smooth, color=colour)
        axis.set(title=title, xlabel=f"iteration (line: median of {window})")
    rate.step(history.iteration, 1e4 * history.lr, where="post", color="0.3")
    minutes = history.seconds.iloc[-1] / 60
    rate.set(title=f"learning rate · 10⁴ ({minutes:.0f} min in all)", xlabel="iteration", ylim=(0, None))
    return figure


@style()
def score_strip(frames: Mapping[int, np.ndarray], scores: Mapping[str, np.ndarray], *,
                moment: int | None = None, label: str = "J&F (%)") -> Figure:
    """Frames of a video, joined to the scores of all its frames below them.

    Arguments:
        frames: number and picture (H, W, 3) uint8 of the frames shown, in order.
        scores: name and scores (T,) in [0, 1], NaN where a frame has none.
        moment: a frame to point out, such as `dulvos.study.tables.failure_frame` of a score.
    """
    length = max(map(len, scores.values()))
    height, width = next(iter(frames.values())).shape[:2]
    tall = WIDTH / len(frames) * height / width + 0.3
    figure = NotebookFigure((WIDTH, tall + 1.6))
    top, bottom = figure.subfigures(2, 1, height_ratios=[tall, 1.6])
    places, axis = top.subplots(1, len(frames), squeeze=False)[0], bottom.subplots()
    show_pictures(places, list(frames.values()), [f"frame {t}" for t in frames])
    for (name, values), (colour, dashes) in zip(scores.items(), LINES):
        axis.plot(100 * values, dashes, color=colour, label=f"{name}: mean {100 * np.nanmean(values):.1f}")
    for place, t in zip(places, frames):
        colour = VERMILLION if t == moment else "0.8"
        axis.axvline(t, color=colour, linewidth=0.8, zorder=0)
        join = ConnectionPatch((width / 2, height), (t, 102), place.transData, axis.transData, color=colour)
        figure.add_artist(join)
        if t == moment:
            place.set_title(f"frame {t}", color=colour)
            axis.annotate("lost here", (t, 101), (3, 0), textcoords="offset points", va="top", color=colour)
    axis.set(xlim=(-0.5, length - 0.5), ylim=(0, 102), xlabel="frame", ylabel=label)
    axis.legend(loc="best", ncols=len(scores), frameon=True, framealpha=0.85, edgecolor="none")
    return figure


@dataclass(frozen=True, eq=False)
class Maps:
    """One line of `cell_maps`.

    Arguments:
        title: beside the line.
        maps: for each column (h, w) float on the line's one scale (NaN shows the frame), (h, w, 3) uint8
            colours of cells, or (h, w, 4) with their opacity, or None for the frame alone.
        label: of the scale; "" draws no scale.
        opacity: of the maps, in [0, 1].
        marks: for each column positions (n, 2) [y, x] in cells and colours (n, 3) in [0, 1], or None.
        frames: (H, W, 3) uint8 pictures below the maps, if not those of all lines.
        limits: of the scale; None takes the least and the greatest value.
        stride, offset: of the cells in pixels, or (y, x) each; cell i has its middle at offset + stride·i.
    """

    title: str
    maps: abc.Sequence[np.ndarray | None]
    label: str = ""
    opacity: float = 1.0
    marks: abc.Sequence[tuple[np.ndarray, np.ndarray] | None] = ()
    frames: abc.Sequence[np.ndarray] | None = None
    limits: tuple[float, float] | None = None
    stride: float | tuple[float, float] = STRIDE
    offset: float | tuple[float, float] = 0.0


@style()
def cell_maps(frames: abc.Sequence[np.ndarray], lines: abc.Sequence[Maps],
              titles: abc.Sequence[str] = ()) -> Figure:
    """Maps of cells over their frames (H, W, 3) uint8, a column each."""
    columns = len(frames)
    side = (WIDTH - 0.2 - 0.5 * any(line.label for line in lines)) / columns
    height = 0.2 + len(lines) * (side * frames[0].shape[0] / frames[0].shape[1] + 0.02)
    figure = NotebookFigure((WIDTH, height))
    figure.get_layout_engine().set(**TIGHT)
    for number, (axes, line) in enumerate(zip(figure.subplots(len(lines), columns, squeeze=False), lines)):
        below = list(frames if line.frames is None else line.frames)
        for column, cells in enumerate(line.maps):
            if cells is not None:  # a photograph that shines through must not change the map's colours
                grey = np.repeat(below[column].mean(2, keepdims=True), 3, 2).astype(np.uint8)
                seen = line.opacity < 1 or cells.shape[2:] != (3,)
                below[column] = grey if seen else np.full_like(grey, 255)
        show_pictures(axes, below, () if number else titles)
        known = [np.ravel(cells) for cells in line.maps if cells is not None and cells.ndim == 2]
        values = np.concatenate(known or [[0, 1]])
        scale = Normalize(*(line.limits or (np.nanmin(values), np.nanmax(values))))
        for axis, cells in zip(axes, line.maps):
            if cells is not None:
                top, left = np.subtract(line.offset, np.divide(line.stride, 2)) * np.ones(2)
                bottom, right = np.multiply(cells.shape[:2], line.stride) + (top, left)
                axis.imshow(cells, "viridis", scale, alpha=line.opacity, interpolation="nearest",
                            extent=(left, right, bottom, top))
        for axis, mark in zip(axes, line.marks):
            if mark is not None:
                y, x = (np.reshape(mark[0], (-1, 2)) * line.stride + line.offset).T
                for colour, width in (("black", 1.4), ("white", 0.7)):  # a rim that shows on any ground
                    axis.scatter(x, y, s=30 if len(x) < 10 else 9, c=mark[1], edgecolor=colour,
                                 linewidth=width, zorder=3, clip_on=False)
        axes[0].set_ylabel(line.title)
        if line.label:
            figure.colorbar(ScalarMappable(scale, "viridis"), ax=list(axes), label=line.label, shrink=0.9,
                            pad=0.01, aspect=12)
    return figure


@style()
def neighbourhood(query: tuple[str, np.ndarray], cell: int,
                  entries: abc.Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray, float]]) -> Figure:
    """One cell of a frame (cross) and the cells from which its label is copied, weights as areas (App. C).

    Arguments:
        query: title and frame (H, W, 3) uint8. cell: its flat index.
        entries: title, frame, flat indices (n,) and weights (n,) of the cells copied from, and the radius in
            cells within which the cell may look there, or infinity.
    """
    panels = [(*query, [], np.empty(0), np.inf), *entries]
    lines, cells, (height, width) = -(-len(panels) // 3), -(-query[1].shape[1] // STRIDE), query[1].shape[:2]
    figure = NotebookFigure((WIDTH, lines * (WIDTH / 3 * height / width + 0.2)))
    axes = figure.subplots(lines, 3, squeeze=False).ravel()
    show_pictures(axes, [panel[1] for panel in panels], [panel[0] for panel in panels])
    (x,), (y,) = cell_centres([cell], cells)
    for axis, (_, _, index, weights, radius) in zip(axes, panels):
        if np.isfinite(radius):
            axis.add_patch(Circle((x, y), radius * STRIDE, fill=False, edgecolor="white", linewidth=1.5))
        centres = cell_centres(index, cells)
        axis.scatter(*centres, s=10 + 400 * weights, color=YELLOW, edgecolor="black", alpha=0.8)
        for colour, size, linewidth in (("black", 11, 3), ("white", 10, 1.5)):
            axis.plot(x, y, "+", color=colour, markersize=size, markeredgewidth=linewidth)
    return figure
