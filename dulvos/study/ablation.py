"""The ablation grid: the points of the paper's Fig. 3, its other claims, and what our rows say about them.

Each line of `ablation.csv` is a point, the baseline with one thing changed. Its columns:

    name      name of the point's runs; may contain settings, as in B{batch}T{frames}
    varied    "baseline", "claim", or an edge of Fig. 3 (a key of `EDGES`)
    label     what changes, in the paper's symbols; may contain settings too
    settings  name=value pairs that differ from the baseline (fields of TrainSettings or SegmentSettings)
    features  "random", or empty for trained features
    paper     the difference that the paper states, in J&F points; 0 means "no effect", empty no number
    claim, where, says  a claim of the paper, its section and its words; several points may test one claim
    expected  the difference that we expect: lower, equal, or empty
"""

import ast
import contextlib
import dataclasses
import math
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from scipy import stats

from dulvos.errors import InputError
from dulvos.inference import SegmentSettings
from dulvos.study.paper import FREE, read_csv, trained_with
from dulvos.study.rows import NOT_RUN, Study, counting, frame, has, state, training
from dulvos.study.tables import write
from dulvos.training import TrainSettings

__all__ = ["EDGES", "SCALES", "Point", "Scale", "claims", "effects", "figure_table", "find_scale", "noise",
           "pairs", "points", "scale_text", "stated", "write_tables"]

EDGES = {"B, T": "frames", "λ": "lam", "N": "grid", "M": "cross_grid", "T": "frames"}  # edge -> setting
ALLOWED = {"varied": ("baseline", "claim", *EDGES), "expected": ("lower", "equal", None)}  # in ablation.csv
CONFIDENCE = 0.95  # a difference counts as noise if it is within this interval around 0


@dataclass(frozen=True)
class Scale:
    """A scale at which the grid is run, a section of `ablation_scales.toml`."""

    name: str  # its rows are in `results/ablation-<name>`
    train: str  # training data, as notebook 01_train takes it
    evaluate: str  # evaluation data, as notebook 02_evaluate takes it
    training: dict  # settings of the baseline's training that differ from the defaults
    inference: dict  # settings of its evaluation that differ from the defaults
    seeds: list[int]  # how many for the baseline, for each other point of Fig. 3, and for each claim
    minutes: list[float]  # about, of the baseline's training and of its evaluation on one core
    lengths: str  # what all points have in common: "iterations", or "epochs" (then iterations depend on B)
    words: str  # description for captions
    only: Sequence[str] = ()  # names of the points that are planned; all by default

    @property
    def folder(self) -> str:
        """Name of the study that holds the rows."""
        return f"ablation-{self.name}"

    @property
    def meaningless(self) -> bool:
        """Whether the scale is so small that its numbers only show that everything runs."""
        return self.name == "demo"


def pairs(text: str | None) -> dict:
    """Settings from a cell of a CSV file, such as "lam=0.1 norm=layer"; raises InputError without "="."""
    settings = {}
    for pair in (text or "").split():
        name, equals, value = pair.partition("=")
        if not equals:
            raise InputError(f"settings must be name=value pairs, not {text!r}")
        with contextlib.suppress(ValueError, SyntaxError):  # a word stays a string
            value = ast.literal_eval(value)
        settings[name] = value
    return settings


_TABLES = tomllib.loads(Path(__file__).with_name("ablation_scales.toml").read_text("utf-8"))
SCALES = {name: Scale(name, **fields) for name, fields in _TABLES.items()}


def find_scale(name: str) -> Scale:
    """The scale of that name; raises InputError, which lists the names."""
    if name not in SCALES:
        raise InputError(f"study must be one of {', '.join(SCALES)}, not {name!r}")
    return SCALES[name]


@dataclass(frozen=True)
class Point:
    """A point of the grid at one scale: the baseline with one thing changed."""

    name: str
    varied: str
    label: str
    features: str  # "random" or "trained"
    training: dict  # settings for 01_train, except the seed
    inference: dict  # settings for 02_evaluate
    trained: str  # name of the point whose trainings it uses, often itself; "" for random features
    seeds: int  # how many are planned
    line: dict  # the whole line of `ablation.csv`; None for an empty cell

    @property
    def settings(self) -> TrainSettings:
        """All settings of its training, with seed 0."""
        return TrainSettings.from_dict(self.training)


def points(scale: Scale, path: Path = Path(__file__).with_suffix(".csv")) -> list[Point]:
    """All points of the grid at a scale, the baseline first.

    Raises:
        InputError: a line of the CSV file is wrong; gives its number. The first line must be the baseline.
    """
    made: dict[str, Point] = {}
    for number, line in enumerate(read_csv(path).to_dict("records"), 2):
        try:
            point = _point(scale, line)
            if point.name in made:
                raise InputError(f"there is another point called {point.name!r}")
            if (point.varied == "baseline") == bool(made):
                raise InputError("the first line, and no other, must be the baseline")
        except (InputError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise InputError(f"{path}, line {number}: {error}") from None
        made[point.name] = point
    if not made:
        raise InputError(f"{path}: no point; the first line must be the baseline")
    return list(made.values())


def _point(scale: Scale, line: dict) -> Point:
    for column, allowed in ALLOWED.items():
        if line[column] not in allowed:
            raise InputError(f"{column} must be one of {allowed}, not {line[column]!r}")
    if not (line["name"] and line["label"]):
        raise InputError("a point needs a name and a label")
    changes, base = pairs(line["settings"]), TrainSettings.from_dict(scale.training)
    if free := sorted(changes.keys() & set(FREE)):
        raise InputError(f"{free[0]} cannot be varied: rows with any {free[0]} count alike")
    if line["varied"] == "B, T":  # T at a fixed B·T
        if changes.get("frames", 0) < 1 or base.batch * base.frames % changes["frames"]:
            raise InputError(f"a point of B, T needs frames that divide B·T = {base.batch * base.frames}")
        changes["batch"] = base.batch * base.frames // changes["frames"]
        if scale.lengths == "epochs":
            ratio = base.batch / changes["batch"]
            changes |= {name: round(getattr(base, name) * ratio) for name in ("iterations", "lr_every")}
    training = {name: value for name, value in changes.items() if hasattr(base, name)}
    inference = scale.inference | {name: changes[name] for name in changes.keys() - training.keys()}
    SegmentSettings(**inference)  # refuses a wrong one
    if line["features"] and training:
        raise InputError(f"{line['features']} features are not trained; leave out {', '.join(training)}")
    settings = dataclasses.asdict(TrainSettings.from_dict(scale.training | training))
    float(line["paper"] or 0)  # refuses what is no number
    name, label = (line[column].format(**settings) for column in ("name", "label"))
    trained = "" if line["features"] else name if training else "baseline"
    planned = not scale.only or name in scale.only
    seeds = planned * scale.seeds[{"baseline": 0, "claim": 2}.get(line["varied"], 1)]
    return Point(name, line["varied"], label, line["features"] or "trained", scale.training | training,
                 inference, trained, seeds, line)


def effects(study: Study, scale: Scale) -> pd.DataFrame:
    """Compare each point with the baseline, from the study's rows: a line for each point, the baseline first.

    Only rows of the newest data count. Rows of earlier code count only for a point that has no others.

    Columns:
        name, varied, label, paper, claim, where, says, expected: as in `Point`.
        value: the value of the setting that an edge varies; None for the baseline and for claims.
        seeds, score: number of seeds that were run, and their mean J&F in percent.
        ours: the score minus the baseline's, in points.
        deviation: standard deviation of `ours` over seeds; for the baseline, of the score of one seed; None
            for the baseline's own networks, evaluated otherwise. The variance is pooled over the other points
            that have several seeds.
        visible: the largest difference that counts as noise (95 % of Student's t distribution).
        verdict: how `ours` compares with what the paper says.
        state: "not run", "run" or the number of seeds; † if the point or the baseline is of earlier code.
        data: the data that were evaluated.
    """
    rows, grid, lines = study.rows(), points(scale), []
    rows = rows[rows["fingerprint"].isin(rows.groupby("kind")["fingerprint"].last())]
    runs = [(row, training(row, rows), state(row, rows) == "run")
            for _, row in rows[rows["kind"] == "evaluate"].iterrows()]
    evaluated = [_seeds(point, runs) for point in grid]
    base, (spread, student) = evaluated[0], noise(
        found["score"] for point, found in zip(grid, evaluated)
        if point is grid[0] or point.trained != "baseline")
    for point, found in zip(grid, evaluated):
        count, edge, ours, deviation, visible = len(found), EDGES.get(point.varied), None, None, None
        if point is grid[0]:
            deviation = spread
        elif count and len(base):
            ours = found["score"].mean() - base["score"].mean()
            if point.trained != "baseline":  # the baseline's own networks are no independent seeds
                deviation = spread * math.sqrt(1 / count + 1 / len(base))
                visible = student * deviation
        told = "run" if count == point.seeds == 1 else f"{count} of {max(point.seeds, count)} seeds"
        if not (found["current"].all() and base["current"].all()):
            told = f"† {told} by earlier code"
        lines.append({
            **point.line, "name": point.name, "label": point.label, "seeds": count,
            "score": found["score"].mean(), "value": edge and getattr(point.settings, edge), "ours": ours,
            "deviation": deviation, "visible": visible, "data": found["data"].max(),
            "state": told if count else NOT_RUN})
    table = frame(lines, [*lines[0], "verdict"])
    table["verdict"] = [_verdict(scale, line) for line in table.to_dict("records")]
    return table


def _seeds(point: Point, runs: list[tuple[pd.Series, pd.Series | None, bool]]) -> pd.DataFrame:
    """The evaluations that count for a point, one for each seed.

    Arguments:
        runs: each evaluation, its training (None for random features), and whether both are of today's code.
    """
    inference, found = dataclasses.asdict(SegmentSettings(**point.inference)), []
    for row, made, current in runs:
        if made is None:
            fits, seed = not point.trained and row["features"] == point.features, row.get("seed")
        else:
            fits = point.trained and pd.isna(row["snapshot"]) and trained_with(made, point.settings)
            seed = made["parameters.seed"]
        if fits and has(row, inference):
            found.append((seed, current, row["date"], 100 * row["scores.J&F-Mean"], row["data"]))
    table = counting(pd.DataFrame(found, columns=["seed", "current", "date", "score", "data"]), "seed")
    return table[table["current"] == table["current"].any()]


def noise(scores: Iterable[pd.Series]) -> tuple[float, float]:
    """The deviation of one seed's score, pooled over points, and Student's t for its degrees of freedom.

    NaN if no point has two seeds.

    Arguments:
        scores: those of each point's seeds.
    """
    scores = list(scores)
    freedom = sum(max(len(own) - 1, 0) for own in scores)
    squares = sum(((own - own.mean()) ** 2).sum() for own in scores)
    return math.sqrt(squares / freedom) if freedom else math.nan, stats.t.ppf((1 + CONFIDENCE) / 2, freedom)


def _verdict(scale: Scale, line: dict) -> str:
    """How a line of `effects` compares with what the paper says."""
    ours, visible = line["ours"], line["visible"]
    if line["varied"] == "baseline":
        return "-"
    if ours is None:
        return NOT_RUN
    if scale.meaningless:
        return "means nothing"
    if line["expected"] is None:
        return "-" if line["varied"] == "claim" else "not stated"
    if visible is None:
        return "deviation unknown"
    if abs(ours) <= visible:
        return "no effect seen" if line["expected"] == "equal" else "too small to tell"
    if line["expected"] == "equal":
        return "differs"
    return "agrees" if ours < 0 else "opposite"


def stated(difference: float | None, expected: str | None) -> str:
    """What the paper says about a point of Fig. 3: a number, only that it is lower, or nothing."""
    if difference is None:
        return expected or "not stated"
    return f"{difference:+z.1f}" if difference else "about 0"


def figure_table(found: pd.DataFrame) -> pd.DataFrame:
    """Fig. 3 as a table, the baseline first, from what `effects` returns."""
    lines = found[found["varied"] != "claim"].rename(columns={"label": "setting", "score": "J&F"})
    numbers = ["J&F", "ours", "deviation"]
    lines[numbers] = lines[numbers].astype(float).round(4)
    lines["paper"] = ["-", *map(stated, lines["paper"][1:], lines["expected"][1:])]
    return frame(lines, ["varied", "setting", *numbers, "paper", "verdict", "state"])


def claims(found: pd.DataFrame) -> pd.DataFrame:
    """The paper's other claims beside what we see, a line for each, from what `effects` returns."""
    def verdicts(own: pd.Series) -> str:
        return ", ".join(dict.fromkeys(own[own != NOT_RUN])) or NOT_RUN

    tried, base = found[found["varied"] == "claim"], found["score"].iloc[0]
    tried = tried.assign(claim=tried["claim"].fillna(tried["label"]),
                         seen=[_seen(line, base) for line in tried.to_dict("records")])
    table = tried.groupby("claim", sort=False, as_index=False).agg(
        {"where": "first", "says": "first", "seen": "; ".join, "verdict": verdicts})
    return table.rename(columns={"says": "the paper says", "seen": "we see (J&F)"})


def _seen(line: dict, base: float | None) -> str:
    if line["ours"] is None:
        return f"{line['label']}: {NOT_RUN}"
    seen = f"{line['label']}: {line['ours']:+z.1f}"
    if line["deviation"] is not None:
        seen += f" ± {line['deviation']:.1f}"
    if line["features"] == "random":
        seen += f" ({line['score']:.1f}, {100 * line['score'] / base:.0f} % of the baseline)"
    return seen + " †" * line["state"].startswith("†")


def scale_text(found: pd.DataFrame, scale: Scale) -> str:
    """The data that were evaluated and the scale in words, for captions."""
    return ", ".join([*sorted(found["data"].dropna().unique()), scale.words])


def write_tables(study: Study, scale: Scale, folder: Path) -> dict[str, pd.DataFrame]:
    """Make the tables "fig3" and "claims" and write them into a folder."""
    found = effects(study, scale)
    about = "These numbers mean nothing: they show that everything runs. " * scale.meaningless
    return write({"fig3": figure_table(found), "claims": claims(found)},
                 folder, f"{about}Scale: {scale_text(found, scale)}.")
