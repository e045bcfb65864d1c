"""The set-up of every notebook, and the figures that several notebooks draw, in one style."""

import base64
import io
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import cv2
import matplotlib.style
import numpy as np
import pandas as pd
from IPython.display import Markdown, display
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image

from dulvos import datasets
from dulvos.encoder import STRIDE
from dulvos.errors import InputError
from dulvos.files import expand, replacing
from dulvos.masks import OBJECT_COLOURS
from dulvos.study.rows import Study
from dulvos.study.runs import open_data
from dulvos.study.steps import check_parameters, defaults
from dulvos.study.tables import to_markdown
from dulvos.videos import open_video

__all__ = ["COLOURS", "LINES", "WIDTH", "Maps", "Notebook", "NotebookFigure", "anchor_colours", "cell_maps",
           "montage", "show_pictures", "style"]

WIDTH = 7.0  # inches, of a page
COLOURS = [f"#{bytes(colour).hex()}" for colour in OBJECT_COLOURS]
VERMILLION, _, _, GREEN, _, BLUE, _ = COLOURS
LINES = ((BLUE, "-"), (VERMILLION, "--"), ("0.45", ":"), (GREEN, "-."))  # also distinct without colour
TIGHT = {"w_pad": 0.01, "h_pad": 0.01, "wspace": 0.01, "hspace": 0.01}


def style() -> AbstractContextManager:
    """The style of every figure (`figures.mplstyle`), as a context manager or a decorator."""
    return matplotlib.style.context(Path(__file__).with_suffix(".mplstyle"))


class NotebookFigure(Figure):
    """A Figure that a notebook shows without pyplot, as JPEG if that is much smaller than PNG."""

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        png, jpeg = io.BytesIO(), io.BytesIO()
        with style():
            self.savefig(png, format="png", bbox_inches="tight")
        Image.open(png).convert("RGB").save(jpeg, "jpeg", quality=85)
        kind, stream = ("png", png) if len(png.getbuffer()) < 3 * len(jpeg.getbuffer()) else ("jpeg", jpeg)
        return {f"image/{kind}": base64.b64encode(stream.getbuffer()).decode()}


class Notebook:
    """The study that a notebook belongs to, and the folders for its figures and tables.

        book = Notebook("07_results", globals())  # in the first cell after the parameters
        book.show(figure, "montage")

    Arguments:
        name: name of the notebook's file, without suffix.
        names: the notebook's globals(). Its parameter `study` names the study; a parameter `out` that is not
            empty is the folder for figures and tables, instead of the study's.

    Raises:
        InputError: a parameter has the wrong type.
    """

    def __init__(self, name: str, names: Mapping[str, object]) -> None:
        self.study, out = Study(names["study"]), names.get("out")
        source = self.study.notebooks / f"{name}.ipynb"
        check_parameters(source, {key: names[key] for key in defaults(source) if key in names})
        self.figures = expand(out or self.study.folder / "figures")
        self.tables = expand(out or self.study.folder / "tables")
        self.credit = ""  # printed small below photographs

    def sequence(self, data: str, video: str = "") -> datasets.Sequence:
        """A sequence of the val split of `data`, by default the middle one, or your own video without masks.

        Raises:
            InputError: there is no such video, or it cannot be read.
        """
        if video and expand(video).exists():
            own = open_video(video)
            return datasets.Sequence(own.name, own, {})
        dataset = open_data(data, "val")
        sequences = {sequence.name: sequence for sequence in dataset.sequences}
        name = video or sorted(sequences)[len(sequences) // 2]
        if name not in sequences:
            raise InputError(f"video={video!r}: no such file or folder, and no sequence of {dataset.name} "
                             f"{dataset.split}, which has {', '.join(sequences)}")
        self.credit = "DAVIS 2016/2017, CC BY-NC 4.0" if dataset.name.startswith("DAVIS") else ""
        return sequences[name]

    @style()
    def show(self, figure: Figure, name: str, *, vector: bool = False) -> Figure:
        """Write a figure as NAME.png and return it, so that the cell shows it.

        Arguments:
            vector: the figure is a drawing: write a PDF, too. Others are photographs and get the credit.
        """
        if not vector:
            figure.text(1, -0.005, self.credit, ha="right", va="top", fontsize=5, color="0.4")
        for suffix in ("png", "pdf")[: 1 + vector]:
            with replacing(self.figures / f"{name}.{suffix}") as stream:
                # without a date, the same figure gives the same bytes
                figure.savefig(stream, format=suffix, dpi=150, bbox_inches="tight",
                               metadata={"CreationDate": None})
        return figure

    def caption(self, text: str) -> None:
        """Show a caption that contains computed numbers."""
        display(Markdown(f"*{text}*"))

    def table(self, table: pd.DataFrame) -> None:
        """Show a table in Markdown."""
        display(Markdown(to_markdown(table)))


def anchor_colours(n: int) -> np.ndarray:
    """Colours of an n x n grid of anchors, (n·n, 3) uint8, mixed in CIELAB so that neighbours look alike."""
    corners = np.float32([[[0.62, 0.85, 1.0], [1.0, 0.93, 0.40]], [[0.0, 0.13, 0.45], [0.62, 0.10, 0.0]]])
    u = np.linspace(0, 1, n)
    ramp = np.stack([1 - u, u], 1)
    mixed = np.einsum("yi,xj,ijc->yxc", ramp, ramp, cv2.cvtColor(corners, cv2.COLOR_RGB2Lab))
    colours = cv2.cvtColor(mixed.astype(np.float32), cv2.COLOR_Lab2RGB)
    return np.rint(255 * colours).astype(np.uint8).reshape(-1, 3)


def show_pictures(axes: Sequence[Axes], images: Sequence[np.ndarray], titles: Sequence[str] = ()) -> None:
    """Put a picture on each axis, without ticks; remove the axes without a picture."""
    for axis in axes[len(images):]:
        axis.remove()
    for axis, image, title in zip(axes, images, [*titles, *[""] * len(images)]):
        axis.imshow(image, interpolation="antialiased")
        axis.autoscale(False)  # what is drawn on top must not move the picture
        axis.set(xticks=[], yticks=[], title=title, frame_on=False)


@style()
def montage(rows: Sequence[tuple[str, Sequence[np.ndarray]]], column_titles: Sequence[str] = ()) -> Figure:
    """Rows of pictures as in the paper's Fig. 4, with titles above the rows and below the columns.

    Arguments:
        rows: a title and (H, W, 3) uint8 images for each row; rows may differ in length and size.
    """
    columns = max(len(images) for _, images in rows)
    heights = [max(image.shape[0] / image.shape[1] for image in images) for _, images in rows]
    figure = NotebookFigure((WIDTH, WIDTH / columns * sum(heights) + 0.2 * len(rows) + 0.2))
    figure.get_layout_engine().set(**TIGHT)
    axes = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    for line, (title, images) in zip(axes, rows):
        show_pictures(line, images)
        line[0].set_title(title, loc="left")
    for axis, title in zip(axes[-1], column_titles):
        axis.set_xlabel(title)
    return figure


@dataclass(frozen=True, eq=False)
class Maps:
    """One line of `cell_maps`. The centre of cell i is at pixel offset + stride·i.

    Arguments:
        maps: for each column, values (h, w) float (all columns share one scale; NaN shows the frame),
            colours (h, w, 3) or (h, w, 4) with opacity (uint8 or in [0, 1]), or None for the frame alone.
        marks: for each column, positions (n, 2) [y, x] in cells and colours (n, 3) in [0, 1], or None.
    """

    title: str
    maps: Sequence[np.ndarray | None]
    label: str = ""  # of the scale; "" draws no scale
    opacity: float = 1.0  # of the maps, in [0, 1]
    marks: Sequence[tuple[np.ndarray, np.ndarray] | None] = ()
    limits: tuple[float, float] | None = None  # of the scale; None takes the smallest and largest value
    stride: float | tuple[float, float] = STRIDE  # pixels between cells, or (y, x)
    offset: float | tuple[float, float] = 0.0  # pixels, or (y, x)


@style()
def cell_maps(frames: Sequence[np.ndarray], lines: Sequence[Maps], titles: Sequence[str] = ()) -> Figure:
    """Draw maps of cells over frames (H, W, 3) uint8: a column for each frame, a row for each `Maps`."""
    side = (WIDTH - 0.2 - 0.5 * any(line.label for line in lines)) / len(frames)
    height, width = frames[0].shape[:2]
    figure = NotebookFigure((WIDTH, 0.2 + len(lines) * (side * height / width + 0.02)))
    figure.get_layout_engine().set(**TIGHT)
    for axes, line in zip(figure.subplots(len(lines), len(frames), squeeze=False), lines):
        show_pictures(axes, frames, titles)
        titles = ()
        values = [cells for cells in line.maps if np.ndim(cells) == 2] or [0, 1]
        scale = Normalize(*(line.limits or (np.nanmin(values), np.nanmax(values))))
        for axis, cells, mark in zip_longest(axes, line.maps, line.marks):
            if cells is not None:
                # a photograph that shines through must not change the map's colours
                axis.images[0].set(data=axis.images[0].get_array().mean(2), cmap="gray", clim=(0, 255))
                top, left = np.subtract(line.offset, np.divide(line.stride, 2)) * np.ones(2)
                bottom, right = np.multiply(cells.shape[:2], line.stride) + (top, left)
                axis.imshow(cells, "viridis", scale, alpha=line.opacity, interpolation="nearest",
                            extent=(left, right, bottom, top))
            if mark is not None:
                y, x = (np.reshape(mark[0], (-1, 2)) * line.stride + line.offset).T
                for colour, rim in (("black", 1.4), ("white", 0.7)):  # visible on any background
                    axis.scatter(x, y, s=30 if len(x) < 10 else 9, c=mark[1], edgecolor=colour,
                                 linewidth=rim, zorder=3, clip_on=False)
        axes[0].set_ylabel(line.title)
        if line.label:
            figure.colorbar(ScalarMappable(scale, "viridis"), ax=list(axes), label=line.label, shrink=0.9,
                            pad=0.01, aspect=12)
    return figure
