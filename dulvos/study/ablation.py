"""The ablation grid (Fig. 3): its points, written down once for each scale."""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd

from dulvos.errors import InputError
from dulvos.study.collections import SOURCES, paper_settings
from dulvos.training import TrainSettings

__all__ = ["EDGES", "STUDIES", "GridStudy", "Point", "find_study", "grid_points"]

FIG3 = pd.DataFrame([
    ("B, T", {"B": 80, "T": 1}, -9.3),
    ("B, T", {"B": 40, "T": 2}, None),
    ("B, T", {"B": 8, "T": 10}, None),
    ("λ", {"λ": 0.0}, -2.3),
    ("λ", {"λ": 1.0}, -0.8),
    ("N", {"N": 4}, -8.2),
    ("N", {"N": 16}, None),
    ("M", {"M": 2}, None),
    ("M", {"M": 8}, -1.5),  # the largest drop for M
    ("T", {"T": 10}, None),
    ("T", {"T": 15}, 0.0),  # "we match": no number is stated
], columns=["varied", "setting", "difference"], dtype=object)

EDGES = ("B, T", "λ", "N", "M", "T")  # of Fig. 3


@dataclass(frozen=True)
class GridStudy:
    """A scale at which the grid is run.

    Arguments:
        folder: below `results/`; rows of two scales never lie in one.
        train, evaluate: data sets, as `dulvos.study.runs.open_data` takes them.
        training: settings of the baseline, as `01_train` takes them; every point departs from these.
        inference: the same for `02_evaluate`.
        seeds: trainings of the baseline; every other point has one.
        minutes: of a training and of an evaluation of the baseline, about, on one core.
        epochs: iterations mean epochs: a point of another B has as many clips, not as many iterations.
        scale: in words, for captions; the data that were evaluated come from the rows.
        meaningless: the numbers only show that everything runs.
    """

    folder: str
    train: str
    evaluate: str
    training: dict
    inference: dict = field(default_factory=dict)
    seeds: int = 1
    minutes: tuple[float, float] = (1.0, 1.0)
    epochs: bool = False
    scale: str = ""
    meaningless: bool = False


_PAPER = paper_settings("youtube-vos", SOURCES["youtube-vos"].videos)

STUDIES = {
    "demo": GridStudy(
        "ablation-demo", "cutouts", "cutouts",
        {"iterations": 8, "batch": 4, "frames": 5, "gap": 1, "crop": 128, "scale_min": 144, "scale_max": 208, "lr": 3e-4,
         "lr_every": 400},
        seeds=2, minutes=(0.5, 0.5), scale="rendered videos, 8 iterations, B·T = 20 at 128² crops", meaningless=True),
    "davis": GridStudy(  # scale_min and scale_max are those of the study "davis", chosen on the training split
        "ablation-davis", "davis", "davis",
        {"iterations": 400, "batch": 8, "frames": 5, "gap": 4, "crop": 128, "scale_min": 256, "scale_max": 384, "lr": 3e-4,
         "lr_every": 300}, {"shorter_side": 240},
        seeds=3, minutes=(11, 6), scale="400 iterations, B·T = 40 at 128² crops, all of val evaluated at 240p"),
    "paper": GridStudy(
        "ablation-paper", "youtube-vos", "davis",
        {"iterations": _PAPER.iterations, "batch": 16, "frames": 5, "gap": 2, "crop": 256, "scale_min": 256, "scale_max": 319,
         "lr": 1e-4, "lr_every": _PAPER.lr_every, "workers": 4},
        seeds=5, minutes=(360, 10), epochs=True, scale="trained on YouTube-VOS, 500 epochs, B·T = 80 at 256² crops, val at 480p"),
}


@dataclass(frozen=True)
class Point:
    """A place in the grid: the baseline with one thing changed.

    Arguments:
        name: of its runs.
        varied: "baseline", one of `EDGES`, or "claim".
        label: what is set, in the paper's symbols.
        training: settings that depart from the baseline's.
        inference: the same for the evaluation.
        features: "trained" or "random".
        paper: J&F points from the baseline that the paper states in Fig. 3's text, or None.
        note: what a reader of its number must know.
    """

    name: str
    varied: str
    label: str
    training: dict = field(default_factory=dict)
    inference: dict = field(default_factory=dict)
    features: str = "trained"
    paper: float | None = None
    note: str = ""


def find_study(name: str) -> GridStudy:
    """The study of that name.

    Raises:
        InputError: there is none.
    """
    if name not in STUDIES:
        raise InputError(f"study must be one of {', '.join(STUDIES)}, not {name!r}")
    return STUDIES[name]


def grid_points(grid: GridStudy) -> list[Point]:
    """Every point: the baseline, Fig. 3's edges (Sec. 4.3), and the paper's other claims, each one change away."""
    base = TrainSettings.from_dict(grid.training)
    product = base.batch * base.frames
    points = [Point("baseline", "baseline", f"B={base.batch} T={base.frames} λ={base.lam:g} N={base.grid} M={base.cross_grid}")]
    for frames, batch in ((1, 80), (2, 40), (10, 8)):
        ours = {"batch": product // frames, "frames": frames}
        points.append(Point(f"B{ours['batch']}T{frames}", "B, T", f"B={ours['batch']} T={frames}", _in_epochs(grid, ours),
                            paper=_stated("B, T", {"B": batch, "T": frames}),
                            note="L_ST runs over the reference frame itself" if frames == 1 else ""))
    points += [Point(f"lam{lam:g}", "λ", f"λ={lam:g}", {"lam": lam}, paper=_stated("λ", {"λ": lam})) for lam in (0.0, 1.0)]
    for n in (4, 16):
        every = n == base.crop // 8
        points.append(Point(f"N{n}", "N", f"N={n}", {"grid": n}, paper=_stated("N", {"N": n}),
                            note="every cell is an anchor, which leaves no jitter" if every else ""))
    points += [Point(f"M{m}", "M", f"M={m}", {"cross_grid": m}, paper=_stated("M", {"M": m})) for m in (2, 8)]
    points += [Point(f"T{t}", "T", f"T={t}", {"frames": t}, paper=_stated("T", {"T": t})) for t in (10, 15)]
    return points + [
        Point("no-branch", "claim", "no regularising branch", {"view_scale": 1.0, "view_flip": False}),
        Point("no-crop", "claim", "view 2 is only flipped", {"view_scale": 1.0}),
        Point("no-jitter", "claim", "grids without jitter", {"jitter": "none"}),
        Point("jitter-each", "claim", "one sample a grid cell", {"jitter": "independent"}),
        Point("colour-frame", "claim", "colours changed anew in each frame", {"photometric": "frame"}),
        Point("colour-video", "claim", "colours changed alike in a clip", {"photometric": "video"}),
        Point("layer-norm", "claim", "LayerNorm in the head", {"norm": "layer"}),
        Point("tau0.025", "claim", "τ=0.025 in training", {"tau": 0.025}),
        Point("tau0.1", "claim", "τ=0.1 in training", {"tau": 0.1}),
        Point("ordered", "claim", "frames in order", {"ordered": True}),
        Point("forward-eval", "claim", "second forward in evaluation mode", {"second_forward": "eval"}),
        Point("aligned", "claim", "corrected alignment", {"alignment": "corrected"}),
        Point("res3", "claim", "res3 compared", inference={"layer": "res3"}),
        Point("key", "claim", "the head's output compared", inference={"layer": "key"}),
        Point("random", "claim", "random initialisation", features="random"),
    ]


def _stated(varied: str, setting: dict) -> float | None:
    for line in FIG3.itertuples():
        if line.varied == varied and line.setting == setting:
            return line.difference
    raise KeyError(f"Fig. 3 has no point {varied} {setting}")


def _in_epochs(grid: GridStudy, changes: dict) -> dict:
    if not grid.epochs:
        return changes
    ratio = grid.training["batch"] / changes["batch"]
    return {**changes, **{name: round(grid.training[name] * ratio) for name in ("iterations", "lr_every")}}
