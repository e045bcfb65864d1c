"""Figures of the grid: the star of the paper's Fig. 3, the same as small multiples, and the other claims."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from dulvos.study import figures, paper
from dulvos.study.ablation import EDGES
from dulvos.study.ablation_states import STALE
from dulvos.study.figures import BLUE, GREEN, ORANGE, PURPLE, VERMILLION, WIDTH, NotebookFigure
from dulvos.study.rows import NOT_RUN

__all__ = ["claims_figure", "small_multiples", "star"]

EDGE_COLOURS = dict(zip(EDGES, (VERMILLION, BLUE, GREEN, PURPLE, ORANGE)))
EDGE_TITLES = {"B, T": "T at fixed B·T", "λ": "λ, weight of $\\mathcal{L}_{CV}$", "N": "N, anchors a side",
               "M": "M, cross-view cells", "T": "T at fixed B"}
GREY = "0.45"
BAND = "grey band: 95 % of further seeds, no effect"


@figures.style()
def star(effects: pd.DataFrame, baseline: str, scores: np.ndarray, warning: str = "", *, stale: bool = False) -> Figure:
    """Fig. 3: the baseline in the centre, an edge a change, ours in bold, the paper's difference below it.

    Arguments:
        effects: as `dulvos.study.ablation_tables.effects` gives them; claims are left out.
        baseline: what the baseline is, in symbols.
        scores: its J&F in percent, one a seed; may be empty.
        warning: printed across the top.
        stale: the scores were made by earlier code.
    """
    points = effects[effects.varied != "claim"]
    figure = NotebookFigure((WIDTH, 5.6))
    axis = figure.subplots()
    axis.set(xlim=(-1.75, 1.75), ylim=(-1.4, 1.4), aspect="equal")
    axis.set_axis_off()
    for point, angle in zip(points.itertuples(), _angles(points.varied)):
        x, y = math.cos(angle), math.sin(angle)
        colour, run = EDGE_COLOURS[point.varied], point.ours is not None
        axis.plot([0, x], [0, y], color=colour, linewidth=2.2 if run else 1.0, linestyle="-" if run else ":", zorder=1)
        _node(axis, x, y, 0.18, colour, run)
        shown = _signed(point.ours) + "†" * (point.state == STALE) if run else NOT_RUN
        within = {"ha": "center", "va": "center", "zorder": 4}
        bold = {"fontsize": 9, "fontweight": "bold"} if run else {"fontsize": 6.5, "color": GREY}
        axis.text(x, y + 0.055, shown, **within, **bold)
        axis.text(x, y - 0.07, _stated(point.paper), **within, fontsize=6, linespacing=1.0, color=GREY)
        side = "left" if x > 0.15 else "right" if x < -0.15 else "center"
        axis.text(1.21 * x, 1.24 * y, point.label, ha=side, va="center", color=colour, fontsize=9, fontweight="bold")
    _node(axis, 0, 0, 0.33, "0.2", bool(len(scores)))
    middle = f"{scores.mean():.1f}" if len(scores) else NOT_RUN
    if len(scores) > 1:
        middle += f" ± {scores.std(ddof=1):.1f}"
    middle += " †" * stale
    within = {"ha": "center", "va": "center", "zorder": 4}
    axis.text(0, 0.15, "baseline", fontsize=7.5, **within)
    axis.text(0, 0.0, middle, fontsize=11, fontweight="bold", **within)
    axis.text(0, -0.14, f"J&F, {len(scores)} seed" + "s" * (len(scores) != 1), fontsize=6.5, color=GREY, **within)
    axis.set_title(f"J&F points from the baseline, {baseline}, when one thing is changed (bold: ours, grey: the paper's)")
    _warn(figure, warning)
    return figure


@figures.style()
def small_multiples(effects: pd.DataFrame, baseline: dict[str, float], scores: np.ndarray, warning: str = "") -> Figure:
    """Fig. 3, a panel an edge: our differences with their deviations beside the paper's.

    Arguments:
        effects, scores, warning: see `star`.
        baseline: the baseline's value on each edge.
    """
    figure = NotebookFigure((WIDTH, 2.6))
    axes = figure.subplots(1, len(EDGES), sharey=True, width_ratios=[4, 3, 3, 3, 3])
    spread = _known(effects.deviation)
    for axis, edge in zip(axes, EDGES):
        points = effects[effects.varied == edge]
        values = sorted([baseline[edge], *points.value])
        place = {value: index for index, value in enumerate(values)}
        _band(axis, effects)
        deviation = scores.std(ddof=1) if len(scores) > 1 else None
        _ours(axis, [place[baseline[edge]]], [0.0] if len(scores) else [], deviation, "0.2", "s")
        run = points[points.ours.notna()]
        _ours(axis, [place[value] for value in run.value], run.ours.astype(float), spread, EDGE_COLOURS[edge], "o")
        stated = points[points.paper.notna()]
        told = stated[stated.paper != 0]  # "no effect" is said without a number, and so without a deviation
        axis.plot([place[value] + 0.22 for value in stated.value[stated.paper == 0]], [0.0] * (len(stated) - len(told)), "D",
                  color=GREY, markerfacecolor="white", markersize=4)
        axis.errorbar([place[value] + 0.22 for value in [*told.value, baseline[edge]]], [*told.paper.astype(float), 0.0],
                      paper.SEED_DEVIATION, fmt="D", color=GREY, markerfacecolor="white", markersize=4, linewidth=0.8)
        for point in run[run.state == STALE].itertuples():
            axis.annotate("†", (place[point.value] - 0.1, point.ours), xytext=(4, 3), textcoords="offset points", fontsize=7)
        for point in points[points.ours.isna()].itertuples():
            axis.annotate(NOT_RUN, (place[point.value] - 0.1, 0), xycoords=("data", "axes fraction"), xytext=(0, 3),
                          textcoords="offset points", rotation=90, ha="center", va="bottom", fontsize=6, color=GREY)
        names = {value: f"{value:g}" for value in values}
        if edge == "B, T":
            names |= dict(zip(points.value, points.label.str.replace(" ", "\n"))) | {baseline[edge]: f"T={baseline[edge]}"}
        axis.set_xticks(range(len(values)), [names[value] for value in values])
        axis.set(title=EDGE_TITLES[edge], xlim=(-0.5, len(values) - 0.5))
        axis.get_xticklabels()[place[baseline[edge]]].set_fontweight("bold")
    axes[0].set_ylabel("J&F points from the baseline")
    marks = [axes[0].plot([], [], shape, color=colour, markerfacecolor=face)[0]
             for shape, colour, face in (("o", "0.2", "0.2"), ("D", GREY, "white"))]
    figure.legend(marks, [f"ours (bar: one deviation over seeds; {BAND})",
                          f"the paper (bar: its ± {paper.SEED_DEVIATION}), DAVIS-2017 val"],
                  loc="outside lower center", ncols=2)
    _warn(figure, warning)
    return figure


@figures.style()
def claims_figure(effects: pd.DataFrame, warning: str = "") -> Figure:
    """The points beside Fig. 3, a line each: J&F points from the baseline."""
    points = effects[effects.varied == "claim"].iloc[::-1].reset_index(drop=True)
    figure = NotebookFigure((WIDTH, 0.21 * len(points) + 0.8))
    axis = figure.subplots()
    _band(axis, effects, vertical=True)
    run = points[points.ours.notna()]
    axis.errorbar(run.ours.astype(float), run.index, xerr=_known(effects.deviation), fmt="o", color=BLUE, markersize=5)
    for place in points.index[points.ours.isna()]:
        axis.annotate(NOT_RUN, (0, place), xycoords=("axes fraction", "data"), xytext=(6, 0),
                      textcoords="offset points", va="center", fontsize=6.5, color=GREY)
    axis.set_yticks(range(len(points)), [point.label + " †" * (point.state == STALE) for point in points.itertuples()])
    axis.set(xlabel=f"J&F points from the baseline (bar: one deviation over seeds; {BAND})",
             ylim=(-0.7, len(points) - 0.3))
    _warn(figure, warning)
    return figure


def _angles(edges: pd.Series) -> list[float]:
    """A direction for each point, clockwise from the top, with a gap between edges."""
    groups = edges.ne(edges.shift()).cumsum()
    steps = np.arange(len(edges)) + 0.6 * (groups.to_numpy() - 1)
    whole = len(edges) + 0.6 * groups.max()
    return [math.pi / 2 - 2 * math.pi * (step - 1) / whole for step in steps]


def _stated(value: float | None) -> str:
    return f"paper\n{'not stated' if value is None else 'about 0' if value == 0 else _signed(value)}"


def _signed(value: float) -> str:
    return f"{value:+z.1f}".replace("-", "\N{MINUS SIGN}")


def _node(axis: Axes, x: float, y: float, radius: float, colour: str, run: bool) -> None:
    line = {"linewidth": 2, "linestyle": "-"} if run else {"linewidth": 1, "linestyle": ":"}
    axis.add_patch(Circle((x, y), radius, facecolor="white", edgecolor=colour, zorder=3, **line))


def _known(column: pd.Series) -> float | None:
    """What the points that were run have in common."""
    known = column.dropna()
    return None if known.empty else float(known.iloc[0])


def _band(axis: Axes, effects: pd.DataFrame, vertical: bool = False) -> None:
    (axis.axvline if vertical else axis.axhline)(0, color="0.7", linewidth=0.8, zorder=0)
    visible = _known(effects.visible)
    if visible is not None:
        (axis.axvspan if vertical else axis.axhspan)(-visible, visible, color="0.93", zorder=0)


def _ours(axis: Axes, places: list[int], values, spread: float | None, colour: str, marker: str) -> None:
    if len(values):
        axis.errorbar(np.array(places) - 0.1, values, spread, fmt=marker, color=colour, markersize=5, zorder=3)


def _warn(figure: Figure, warning: str) -> None:
    if warning:
        figure.suptitle(warning, color=VERMILLION, fontsize=9, fontweight="bold")
