"""Tables of the grid: each change's effect beside the paper's, and the paper's other claims beside what we see."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from dulvos.study.ablation import EDGES, GridStudy
from dulvos.study.ablation_states import STALE, Run
from dulvos.files import replacing
from dulvos.study.rows import NOT_RUN
from dulvos.study.tables import to_markdown
from dulvos.training import TrainSettings

__all__ = ["CLAIMS", "FIELDS", "Claim", "baseline_is_stale", "baseline_scores", "baseline_values", "claims_table", "effects"]
__all__ += ["effects_table", "findings", "write_tables"]

FIELDS = {"B, T": "frames", "λ": "lam", "N": "grid", "M": "cross_grid", "T": "frames"}  # what an edge varies
VISIBLE = 0.95  # of further seeds of the baseline stay within what a difference must exceed to count as an effect
VERDICTS = {"agrees": "As in the paper", "opposite": "The other way round than in the paper",
            "differs": "An effect where the paper sees none", "within the deviation": "Too small to tell from another seed",
            "-": "Nothing to agree with", "not stated": "The paper gives no number"}


@dataclass(frozen=True)
class Claim:
    """Something that the paper says beside Fig. 3, and the points that try it.

    `expected` is "lower" or "equal", against the baseline; "" where the paper gives nothing to agree with.
    """

    claim: str
    where: str
    says: str
    points: tuple[str, ...]
    expected: str = ""


CLAIMS = (
    Claim("Without the regularising branch, features encode position", "Sec. 3.5", "converges to a trivial solution",
          ("no-branch", "no-crop"), "lower"),
    Claim("A grid without jitter leaves a shortcut", "Sec. 3.5", "jitter is necessary", ("no-jitter",), "lower"),
    Claim("The order of frames does not matter", "Sec. 3.5", "irrelevant", ("ordered",), "equal"),
    Claim("Colours changed in each frame hurt", "App. B.2", "a decrease", ("colour-frame",), "lower"),
    Claim("Colours changed alike in a clip do not matter", "App. B.2", "no significant change", ("colour-video",), "equal"),
    Claim("LayerNorm in the head changes little", "App. B", "effect insignificant", ("layer-norm",), "equal"),
    Claim("τ matters little", "Sec. 4", "influence not significant", ("tau0.025", "tau0.1"), "equal"),
    Claim("Random initialisation is surprisingly strong", "App. D, Table 1",
          "43.1 J&F, trained 69.3: 62 % of it", ("random",)),
    Claim("res4 is the layer to compare", "Sec. 4, App. C", "res4 is used; others are not reported", ("res3", "key")),
    Claim("One sample a grid cell, or one shift a grid", "Sec. 3.3", "a sample a cell; the release: a shift", ("jitter-each",)),
    Claim("BatchNorm of the second forward", "App. B.1", "evaluation mode; the release: training mode", ("forward-eval",)),
    Claim("Features aligned with the cells' true centres", "ours", "-", ("aligned",)),
)


def baseline_scores(every: list[Run]) -> np.ndarray:
    """J&F of the baseline's seeds, in percent: those that are there, made by today's code if any was."""
    return np.array([run.score for run in _baseline(every)])


def baseline_is_stale(every: list[Run]) -> bool:
    """Whether the baseline's numbers were made by earlier code; every difference rests on them."""
    return any(run.state != "done" for run in _baseline(every))


def _baseline(every: list[Run]) -> list[Run]:
    there = [run for run in every if run.point.varied == "baseline" and run.evaluated is not None]
    return [run for run in there if run.state == "done"] or there


def effects(grid: GridStudy, every: list[Run]) -> pd.DataFrame:
    """A line a point but the baseline: what it changes, in J&F points from the mean over the baseline's seeds.

    Columns:
        name, varied, label, note: of the point.
        value: what an edge varies (T for "B, T"), None for a claim.
        paper: the paper's difference, None where it states none.
        score, ours: J&F in percent and its difference, None without a row or a baseline.
        deviation: standard deviation of such a difference between one training and the baseline's mean, None below two seeds.
        visible: what a difference must exceed to count: 95 % of further seeds stay within (Student's t over the seeds).
        state: of the run, or of the baseline if that is of earlier code. sign: how ours compares with the paper's.
    """
    base = baseline_scores(every)
    spread = float(np.std(base, ddof=1) * math.sqrt(1 + 1 / len(base))) if len(base) > 1 else None
    visible = None if spread is None else float(stats.t.ppf((1 + VISIBLE) / 2, len(base) - 1)) * spread
    stale, lines = baseline_is_stale(every), []
    for run in every:
        if run.point.varied == "baseline":
            continue
        value = run.point.training[FIELDS[run.point.varied]] if run.point.varied in EDGES else None
        score = None if run.evaluated is None else run.score
        ours = None if score is None or not len(base) else score - float(base.mean())
        lines.append({"name": run.point.name, "varied": run.point.varied, "label": run.point.label, "note": run.point.note,
                      "value": value, "paper": run.point.paper, "score": score, "ours": ours,
                      "deviation": None if ours is None else spread, "visible": None if ours is None else visible,
                      "state": STALE if stale and run.state == "done" else run.state,
                      "sign": _sign(grid, run.point.paper, ours, visible)})
    table = pd.DataFrame(lines, dtype=object)
    return table.where(table.notna(), None)


def _sign(grid: GridStudy, stated: float | None, ours: float | None, visible: float | None) -> str:
    if ours is None:
        return NOT_RUN
    if grid.meaningless:
        return "means nothing"
    if stated is None:
        return "not stated"
    if visible is None:
        return f"{_agreement(stated, ours)}, deviation unknown"
    if abs(ours) <= visible:
        return "agrees" if stated == 0 else "within the deviation"
    return "differs" if stated == 0 else _agreement(stated, ours)


def _agreement(stated: float, ours: float) -> str:
    return "agrees" if stated * ours > 0 or stated == 0 else "opposite"


def effects_table(grid: GridStudy, every: list[Run]) -> pd.DataFrame:
    """Fig. 3 as a table: the baseline first, then each edge's points."""
    base, found = baseline_scores(every), effects(grid, every)
    first = {"varied": "baseline", "setting": next(run.point.label for run in every),
             "J&F": float(base.mean()) if len(base) else None, "ours": None,
             "deviation": float(np.std(base, ddof=1)) if len(base) > 1 else None, "paper": None, "sign": "-",
             "state": f"{len(base)} of {grid.seeds} seeds" + " †" * baseline_is_stale(every)}
    lines = [first] + [
        {"varied": line.varied, "setting": line.label + f" ({line.note})" * (line.note != ""), "J&F": line.score,
         "ours": line.ours,
         "deviation": line.deviation, "paper": _stated(line.paper), "sign": line.sign, "state": _state(line.state)}
        for line in found[found.varied != "claim"].itertuples()]
    table = pd.DataFrame(lines, dtype=object)
    table["ours"] = [None if value is None else f"{value:+z.1f}" for value in table["ours"].where(table["ours"].notna(), None)]
    return table.where(table.notna(), None)


def _stated(value: float | None) -> str:
    return "not stated" if value is None else "about 0" if value == 0 else f"{value:+z.1f}"


def claims_table(grid: GridStudy, every: list[Run]) -> pd.DataFrame:
    """Claim, where in the paper, what the paper says, what we see, whether they agree, at which scale."""
    found = effects(grid, every).set_index("name")
    lines = []
    for claim in CLAIMS:
        points = [found.loc[name] for name in claim.points]
        lines.append({"claim": claim.claim, "where": claim.where, "the paper says": claim.says,
                      "we see (J&F)": "; ".join(_seen(point, every) for point in points),
                      "verdict": _verdict(grid, claim, points), "scale": _scale(grid, every)})
    return pd.DataFrame(lines, dtype=object)


def _seen(point: pd.Series, every: list[Run]) -> str:
    if point.ours is None:
        return f"{point.label}: {_state(point.state)}"
    text = f"{point.label}: {point.ours:+z.1f}" + ("" if point.deviation is None else f" ± {point.deviation:.1f}")
    if point.name == "random":
        text += f" ({point.score:.1f}, {100 * point.score / baseline_scores(every).mean():.0f} % of the baseline)"
    return text + " †" * (point.state == STALE)


def _verdict(grid: GridStudy, claim: Claim, points: list[pd.Series]) -> str:
    first, points = points[0], [point for point in points if point.ours is not None]
    if not points or claim.expected == "lower" and first.ours is None:
        return NOT_RUN
    if grid.meaningless:
        return "means nothing"
    if not claim.expected:
        return "-"
    if any(point.deviation is None for point in points):
        return "deviation unknown"
    inside = [abs(point.ours) <= point.visible for point in points]
    if claim.expected == "equal":
        return "agrees" if all(inside) else "differs"
    # the first point is the claim itself
    return "within the deviation" if inside[0] else "agrees" if first.ours < 0 else "opposite"


def findings(grid: GridStudy, every: list[Run]) -> str:
    """Which of the paper's effects appear at this scale and which do not: a Markdown line for each verdict, made from rows."""
    found = effects(grid, every)
    base = baseline_scores(every)
    count = f"{int(found.ours.notna().sum())} of {len(found)} points have numbers, the baseline {len(base)} of {grid.seeds} seeds"
    if grid.meaningless:
        return f"{count}. These numbers mean nothing: they show that everything runs."
    said: dict[str, list[str]] = {}
    for line in found[found.varied != "claim"].itertuples():
        seen = "" if line.ours is None else f" {line.ours:+z.1f}" + ("" if line.paper is None else f" (the paper {_stated(line.paper)})")
        said.setdefault(line.sign, []).append(line.label + seen + " †" * (line.state == STALE))
    for line in claims_table(grid, every).to_dict("records"):
        said.setdefault(line["verdict"], []).append(f"“{line['claim']}”" + " †" * ("†" in line["we see (J&F)"]))
    order = [*VERDICTS, *sorted(said.keys() - {*VERDICTS, NOT_RUN}), NOT_RUN]
    lines = [f"- **{VERDICTS.get(verdict, verdict.capitalize())}:** {'; '.join(said[verdict])}." for verdict in order if verdict in said]
    return "\n".join([f"{count}. Scale: {_scale(grid, every)}.", "", *lines])


def _state(state: str) -> str:
    return {"done": "run", STALE: "† by earlier code", "missing": NOT_RUN, "running": f"{NOT_RUN}: running",
            "failed": f"{NOT_RUN}: failed"}.get(state, f"{NOT_RUN}: {state}")


def _scale(grid: GridStudy, every: list[Run]) -> str:
    """What was evaluated, as the rows say, and how it was trained."""
    return ", ".join([*sorted({run.evaluated["data"] for run in every if run.evaluated is not None}), grid.scale])


def baseline_values(grid: GridStudy) -> dict[str, float]:
    """What the baseline has on each edge."""
    base = TrainSettings.from_dict(grid.training)
    return {edge: getattr(base, name) for edge, name in FIELDS.items()}


def write_tables(grid: GridStudy, every: list[Run], folder: Path) -> dict[str, pd.DataFrame]:
    """Make both tables, "fig3" and "claims", and write each as CSV and Markdown to a folder."""
    warning = "These numbers mean nothing: they show that everything runs. " if grid.meaningless else ""
    made = {"fig3": effects_table(grid, every), "claims": claims_table(grid, every)}
    titles = {"fig3": "Fig. 3: J&F in percent, differences in points from the baseline", "claims": "The paper's other claims"}
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in made.items():
        text = f"**{titles[name]}.** {warning}Scale: {_scale(grid, every)}.\n\n{to_markdown(table)}"
        for suffix, content in (("csv", table.to_csv(index=False)), ("md", text)):
            with replacing(folder / f"{name}.{suffix}") as stream:
                stream.write(content.encode())
    return made
