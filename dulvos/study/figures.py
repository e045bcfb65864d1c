"""Figures: arrays and tables in, matplotlib Figures out, in one style; nothing here reads or computes results."""

from __future__ import annotations

import ast
import base64
import io
import os
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
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
from matplotlib.patches import Circle, ConnectionPatch, Polygon
from PIL import Image
from skimage.color import lab2rgb, rgb2lab

from dulvos.correspondence import principal_components
from dulvos.encoder import STRIDE
from dulvos.files import replacing
from dulvos.masks import OBJECT_COLOURS, overlay
from dulvos.study.rows import Study
from dulvos.study.steps import check_parameters, defaults
from dulvos.study.tables import to_markdown

__all__ = ["COLOURS", "OBJECT_COLOURS", "WIDTH", "Notebook", "NotebookFigure", "anchor_colours", "anchors", "cell_centres", "cell_maps"]
__all__ += ["frame_strip", "montage", "neighbourhood", "overlay", "principal_colours", "save", "score_curve", "scores_by_sequence"]
__all__ += ["show_pictures", "similarity", "style", "training_curves", "view_pair"]

WIDTH = 7.0  # inches, across a page
VERMILLION, SKY, YELLOW, GREEN, PURPLE, BLUE, ORANGE = COLOURS = [f"#{bytes(c).hex()}" for c in OBJECT_COLOURS]
STYLE = {"font.size": 8, "axes.titlesize": 8, "legend.fontsize": 7, "xtick.labelsize": 7, "ytick.labelsize": 7,
         "axes.spines.top": False, "axes.spines.right": False, "lines.linewidth": 1.2, "legend.frameon": False,
         "figure.dpi": 110, "figure.constrained_layout.use": True, "pdf.fonttype": 42}


def style() -> AbstractContextManager:
    """The rc settings of every figure here, as a context or a decorator."""
    return matplotlib.rc_context(STYLE)


class NotebookFigure(Figure):
    """A Figure that a notebook shows without pyplot, and small: photographs as JPEG, the rest as PNG."""

    def _repr_mimebundle_(self, **_) -> dict[str, str]:
        png, jpeg = io.BytesIO(), io.BytesIO()
        self.savefig(png, format="png", bbox_inches="tight")
        Image.open(png).convert("RGB").save(jpeg, "jpeg", quality=85)
        kind, stream = ("png", png) if len(png.getbuffer()) < 3 * len(jpeg.getbuffer()) else ("jpeg", jpeg)
        return {f"image/{kind}": base64.b64encode(stream.getbuffer()).decode()}


class Notebook:
    """The study that a notebook belongs to, and where its figures and tables go; it checks the notebook's parameters.

        book = Notebook("07_results", globals())  # in the first cell after the parameters
        book.show(figure, "montage")

    Arguments:
        name: of the file, without its suffix.
        names: the notebook's globals(): the parameter `study` names the study; `out`, if there is one and it is not
            empty, the folder for figures and tables.

    Raises:
        InputError: a parameter that the notebook does not know, or of the wrong type.
    """

    def __init__(self, name: str, names: Mapping[str, object]) -> None:
        self.study, out = Study(names["study"]), names.get("out")
        source = self.study.notebooks / f"{name}.ipynb"
        known = defaults(source)
        given = {key: names[key] for key in known if key in names}
        for cell in names.get("In", ()):  # papermill writes the parameters that it is given into a cell of their own
            if cell.startswith("# Parameters\n"):
                targets = [node.targets[0].id for node in ast.parse(cell).body if isinstance(node, ast.Assign)]
                given |= {key: names[key] for key in targets}
        check_parameters(source, given)
        self.figures, self.tables = (Path(out) if out else self.study.folder / kind for kind in ("figures", "tables"))
        self.credit = ""  # printed small below photographs

    def show(self, figure: Figure, name: str, *, vector: bool = False) -> Figure:
        """Save a figure as NAME.png, with `vector` as PDF too, and return it: as a cell's last line it is shown."""
        return save(figure, self.figures / name, vector=vector, credit="" if vector else self.credit)

    def caption(self, text: str) -> None:
        """Show a caption whose numbers were computed."""
        display(Markdown(f"*{text}*"))

    def table(self, table: pd.DataFrame) -> None:
        """Show a table as it is printed everywhere."""
        display(Markdown(to_markdown(table)))


@style()
def save(figure: Figure, path: str | os.PathLike, *, vector: bool = False, credit: str = "") -> Figure:
    """Write a figure whole or not at all, and return it, so that a notebook's cell may end here and show it.

    `path` is the PNG's (150 dpi), and its folder is made; `vector` adds a PDF, not for photographs; `credit` goes small below.
    """
    path = Path(path)
    figure.text(1, -0.005, credit, ha="right", va="top", fontsize=5, color="0.4")
    for suffix in ("png", "pdf")[: 1 + vector]:
        file = path.with_name(f"{path.name.removesuffix('.png')}.{suffix}")
        metadata = {"CreationDate": None} if suffix == "pdf" else None  # the same figure gives the same bytes
        with replacing(file) as stream:
            figure.savefig(stream, format=suffix, dpi=150, bbox_inches="tight", metadata=metadata)
    return figure


def anchor_colours(n: int) -> np.ndarray:
    """(n·n, 3) uint8, a colour for each anchor of an n x n grid by its place, mixed in CIELAB: neighbours look alike."""
    corners = rgb2lab([[[0.62, 0.85, 1.0], [1.0, 0.93, 0.40]], [[0.0, 0.13, 0.45], [0.62, 0.10, 0.0]]])
    u = np.linspace(0, 1, n) if n > 1 else np.array([0.5])
    ramp = np.stack([1 - u, u], 1)
    return np.rint(255 * lab2rgb(np.einsum("yi,xj,ijc->yxc", ramp, ramp, corners))).astype(np.uint8).reshape(-1, 3)


def principal_colours(features: np.ndarray) -> np.ndarray:
    """The first three principal components of all cells as RGB: (n, K, h, w) float -> (n, h, w, 3) uint8."""
    return principal_components(torch.as_tensor(features)).mul(255).round().byte().movedim(1, -1).numpy()


@style()
def montage(rows: Sequence[tuple[str, Sequence[np.ndarray]]], column_titles: Sequence[str] = ()) -> Figure:
    """Rows (title, images (H, W, 3) uint8) as in the paper's Fig. 4; they may differ in length and size."""
    columns = max(len(images) for _, images in rows)
    heights = [max(image.shape[0] / image.shape[1] for image in images) for _, images in rows]
    figure = NotebookFigure((WIDTH, 0.25 + (WIDTH - 0.3) / columns * sum(heights)))
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)
    titles = ["\n".join(textwrap.fill(line, 13, break_long_words=False) for line in title.split("\n")) for title, _ in rows]
    # of a letter, which is about .6 of its size wide: the size at which every title fits beside its row
    size = min(115 * (WIDTH - 0.3) / columns * height / max(1, *map(len, title.split("\n"))) for title, height in zip(titles, heights))
    for line, title, (_, images) in zip(figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights), titles, rows):
        label = line[0].set_ylabel(title)
        label.set_fontsize(min(label.get_fontsize(), size))
        show_pictures(line, images, column_titles)
        column_titles = ()
    return figure


@style()
def training_curves(history: pd.DataFrame) -> Figure:
    """L_ST, L_CV (raw, and running medians over 2 % of the run) and learning rate; columns as in `history.csv`."""
    figure = NotebookFigure((WIDTH, 2.1))
    *axes, rate = figure.subplots(1, 3)
    window = max(5, len(history) // 50)
    titles = r"space-time loss $\mathcal{L}_{ST}$ (Eq. 3)", r"cross-view loss $\mathcal{L}_{CV}$ (Eq. 5)"
    for axis, name, colour, title in zip(axes, ("loss_st", "loss_cv"), (BLUE, VERMILLION), titles):
        smooth = history[name].rolling(window, center=True, min_periods=1).median()
        axis.plot(history.iteration, history[name], color=colour, alpha=0.25, linewidth=0.5)
        axis.plot(history.iteration, smooth, color=colour)
        axis.set(title=title, xlabel=f"iteration (line: median of {window})")
    rate.step(history.iteration, 1e4 * history.lr, where="post", color="0.3")
    rate.set(title=f"learning rate · 10⁴ ({history.seconds.iloc[-1] / 60:.0f} min in all)", xlabel="iteration", ylim=(0, None))
    return figure


@style()
def score_curve(table: pd.DataFrame) -> Figure:
    """J&F (percent) against CPU hours of training; columns as in `dulvos.study.tables.score_curve`. †: made by earlier code."""
    figure = NotebookFigure((WIDTH * 0.6, 2.2))
    axis = figure.subplots()
    axis.plot(table["CPU hours"], table["J&F"], "o-", color=BLUE, markersize=4)
    for iteration, hours, score, state in table[["iteration", "CPU hours", "J&F", "state"]].itertuples(index=False):
        text = f"{score:.1f}{' †' * state.startswith('†')}\n{iteration:,} it."
        axis.annotate(text, (hours, score), xytext=(5, -13), textcoords="offset points", fontsize=6)
    axis.set(xlabel="CPU hours of training", ylabel=f"J&F (%), frames at {table['shorter side'].iloc[0]}p", ylim=(table["J&F"].min() - 8, None))
    return figure


@style()
def scores_by_sequence(table: pd.DataFrame) -> Figure:
    """J&F of sequences (index) by methods (columns), all in [0, 1] or all in percent, NaN where not run; dotted: means."""
    table = table * (100 if np.nanmax(table.to_numpy(float)) <= 1 else 1)
    table = table.sort_values(table.columns[-1])
    figure = NotebookFigure((WIDTH * 0.75, 0.9 + 0.19 * len(table)))
    axis, places = figure.subplots(), np.arange(len(table))
    axis.hlines(places, table.min(axis=1), table.max(axis=1), color="0.8", linewidth=1, zorder=1)
    for method, colour, marker in zip(table, COLOURS[::-1] * 4, "osD^vPX<" * 4):
        axis.axvline(table[method].mean(), color=colour, linestyle=":", linewidth=1, zorder=0)
        axis.scatter(table[method], places, s=24, marker=marker, color=colour, edgecolor="white", linewidth=0.4, zorder=3,
                     label=f"{method}: {table[method].mean():.1f}")
    axis.set(xlabel="J&F (%)", ylim=(-0.7, len(table) - 0.3))
    axis.set_yticks(places, table.index)
    axis.tick_params(axis="y", length=0)
    figure.legend(loc="outside upper center", ncols=4, title="means over the sequences")
    return figure


@style()
def frame_strip(frames: Sequence[np.ndarray], j: np.ndarray, f: np.ndarray, *, shown: int = 6) -> Figure:
    """T frames (H, W, 3) uint8, evenly picked, joined to J and F (T,) in [0, 1] of all frames, NaN where there is none."""
    picked = np.unique(np.linspace(0, len(frames) - 1, shown).round().astype(int))
    height, width = frames[0].shape[:2]
    tall = WIDTH / len(picked) * height / width + 0.3
    figure = NotebookFigure((WIDTH, tall + 1.4))
    top, bottom = figure.subfigures(2, 1, height_ratios=[tall, 1.4])
    axis, places = bottom.subplots(), top.subplots(1, len(picked), squeeze=False)[0]
    for name, values, colour, line in (("J", j, BLUE, "-"), ("F", f, VERMILLION, "--")):
        axis.plot(100 * values, line, color=colour, label=f"{name}: mean {100 * np.nanmean(values):.1f} %")
    axis.set(xlim=(-0.5, len(frames) - 0.5), ylim=(0, 102), xlabel="frame", ylabel="J, F (%)")
    axis.legend(loc="lower left", ncols=2)
    show_pictures(places, [frames[index] for index in picked], [f"frame {index}" for index in picked])
    for place, index in zip(places, picked):
        axis.axvline(index, color="0.8", linewidth=0.8, zorder=0)
        figure.add_artist(ConnectionPatch((width / 2, height), (index, 102), place.transData, axis.transData, color="0.8"))
    return figure


@style()
def anchors(frames: Sequence[np.ndarray], index: np.ndarray) -> Figure:
    """Anchors (B, n, n), flat cell indices, in their colours, with all cells and the grid's blocks, on B frames (𝒢)."""
    (height, width), n = (-(-side // STRIDE) for side in frames[0].shape[:2]), index.shape[1]
    side = WIDTH / max(2, len(frames))
    figure = NotebookFigure((side * len(frames), side * height / width + 0.2))
    axes = figure.subplots(1, len(frames), squeeze=False)[0]
    offsets = [divmod(int(cells[0, 0]), width) for cells in index]
    show_pictures(axes, frames, [f"{n} x {n} anchors, offset by {y} down and {x} right" for y, x in offsets])
    for axis, cells in zip(axes, index):
        axis.scatter(*cell_centres(range(height * width), width), s=0.8, color="white", linewidths=0)
        for k in range(1, n):
            axis.axvline((k * width / n - 0.5) * STRIDE, color="white", linewidth=0.6)
            axis.axhline((k * height / n - 0.5) * STRIDE, color="white", linewidth=0.6)
        axis.scatter(*cell_centres(cells, width), s=30, c=anchor_colours(n) / 255, edgecolor="white", clip_on=False, zorder=3)
    return figure


@style()
def cell_maps(frames: Sequence[np.ndarray], maps: Sequence[np.ndarray], titles: Sequence[str], *, label: str = "",
              marks: Sequence[Sequence[int]] = (), alpha: float = 0.7) -> Figure:
    """Maps of cells over their frames, where they belong: cell i covers the pixels 8·i ± 4.

    Arguments:
        frames, titles: of each panel, (H, W, 3) uint8 and text.
        maps: of each panel, (h, w) float on one scale (NaN: the frame is seen), or (h, w, 3) uint8 colours.
        label: of the scale; "" draws none. alpha: opacity of the maps.
        marks: of each panel, flat indices of the cells to ring.
    """
    columns = min(len(maps), 5)
    rows, side = -(-len(maps) // columns), min((WIDTH - 0.5) / columns, 2.4)
    figure = NotebookFigure((side * columns + 0.5, rows * (side * frames[0].shape[0] / frames[0].shape[1] + 0.25)))
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    values = np.concatenate([np.ravel(m) for m in maps if m.ndim == 2] or [[0, 1]])
    scale, half = Normalize(np.nanmin(values), np.nanmax(values)), STRIDE / 2
    show_pictures(axes, frames, titles)
    for axis, cells, marked in zip(axes, maps, marks or [()] * len(maps)):
        bottom, right = np.multiply(cells.shape[:2], STRIDE) - half
        axis.imshow(cells, "viridis", scale, alpha=alpha, interpolation="nearest", extent=(-half, right, bottom, -half))
        for colour, linewidth in (("black", 2.4), ("white", 1.2)):
            axis.scatter(*cell_centres(marked, cells.shape[1]), s=36, facecolor="none", edgecolor=colour, linewidth=linewidth)
    if label:
        figure.colorbar(ScalarMappable(scale, "viridis"), ax=list(axes[: len(maps)]), label=label, shrink=0.9, pad=0.01)
    return figure


@style()
def view_pair(main: np.ndarray, view2: np.ndarray, theta: np.ndarray, pairs: np.ndarray | None = None) -> Figure:
    """Both views (S, S, 3) of a frame: view 2's box, its corners in four colours, and pairs of cells, joined.

    `theta` (2, 3) leads from view-2 to main-view coordinates (x, y) in [-1, 1]; `pairs` (2, n, n) are flat indices, main first.
    """
    figure = NotebookFigure((WIDTH * 0.85, WIDTH * 0.4 + 0.1))
    axes = figure.subplots(1, 2, gridspec_kw={"wspace": 0.08})
    show_pictures(axes, [main, view2], ["main view", "view 2 (regularising branch)"])
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    for axis, place in zip(axes, (corners @ theta[:, :2].T + theta[:, 2], corners)):
        place = ((place + 1) * len(main) - 1) / 2  # pixels, align_corners=False
        axis.add_patch(Polygon(place, fill=False, edgecolor="white", linewidth=2, clip_on=False))
        axis.scatter(*place.T, s=50, c=COLOURS[:4], edgecolor="white", zorder=3, clip_on=False)
    if pairs is not None:
        colours, places = anchor_colours(pairs.shape[1]) / 255, [cell_centres(p, len(main) // STRIDE) for p in pairs]
        for axis, place in zip(axes, places):
            axis.scatter(*place, s=30, c=colours, edgecolor="white", linewidth=0.8, zorder=3)
        for a, b, colour in zip(*(np.transpose(place) for place in places), colours):
            figure.add_artist(ConnectionPatch(a, b, axes[0].transData, axes[1].transData, color=colour, linewidth=0.8))
    return figure


@style()
def similarity(matrix: np.ndarray, clips: int, *, title: str = "", xlabel: str = "", ylabel: str = "") -> Figure:
    """A matrix of cosines (n, n) between the features of `clips` clips, with lines between the clips."""
    figure = NotebookFigure((WIDTH * 0.55, WIDTH * 0.45))
    axis = figure.subplots()
    figure.colorbar(axis.imshow(matrix, "viridis", vmax=1), label="cosine similarity", pad=0.02)
    for k in range(1, clips):
        axis.axhline(k * len(matrix) / clips - 0.5, color="white", linewidth=1)
        axis.axvline(k * len(matrix) / clips - 0.5, color="white", linewidth=1)
    axis.set(title=title, xlabel=xlabel, ylabel=ylabel)
    return figure


@style()
def neighbourhood(query: tuple[str, np.ndarray], cell: int,
                  entries: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray, float]]) -> Figure:
    """One cell of a frame (cross) and the cells that its label is copied from, their weights as areas (App. C).

    Arguments:
        query: title and frame (H, W, 3) uint8. cell: its flat index.
        entries: title, frame, flat indices (n,) and weights (n,) of cells copied from; radius looked at in cells, or infinite.
    """
    panels = [(*query, [], np.empty(0), np.inf), *entries]
    rows, cells, (height, width) = -(-len(panels) // 3), -(-query[1].shape[1] // STRIDE), query[1].shape[:2]
    figure = NotebookFigure((WIDTH, rows * (WIDTH / 3 * height / width + 0.2)))
    axes = figure.subplots(rows, 3, squeeze=False).ravel()
    show_pictures(axes, [panel[1] for panel in panels], [panel[0] for panel in panels])
    (x,), (y,) = cell_centres([cell], cells)
    for axis, (_, _, index, weights, radius) in zip(axes, panels):
        if np.isfinite(radius):
            axis.add_patch(Circle((x, y), radius * STRIDE, fill=False, edgecolor="white", linewidth=1.5))
        axis.scatter(*cell_centres(index, cells), s=10 + 400 * weights, color=YELLOW, edgecolor="black", alpha=0.8)
        for colour, size, linewidth in (("black", 11, 3), ("white", 10, 1.5)):
            axis.plot(x, y, "+", color=colour, markersize=size, markeredgewidth=linewidth)
    return figure


def show_pictures(axes: Sequence[Axes], images: Sequence[np.ndarray], titles: Sequence[str] = ()) -> None:
    """A picture on each axis, without ticks; axes left over go."""
    for axis in axes[len(images):]:
        axis.remove()
    for axis, image, title in zip(axes, images, [*titles, *[""] * len(images)]):
        axis.imshow(image, interpolation="antialiased")
        axis.autoscale(False)  # what is drawn on top must not move the picture
        axis.set(xticks=[], yticks=[], title=title, frame_on=False)


def cell_centres(index: np.ndarray | Sequence[int], width: int) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) in pixels of the centres of cells, given by flat indices."""
    y, x = np.divmod(np.ravel(np.asarray(index, int)), width)
    return x * STRIDE, y * STRIDE
