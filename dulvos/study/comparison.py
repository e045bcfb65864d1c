"""Table 1 at CPU scale: the paper's method and its rivals as objectives in one harness, from `comparison.csv`.

All are trained on the same clips, with the same encoder, optimiser, number of frames and seeds, and carry masks by the
same propagation; only the loss differs. A row is "CRW objective", never "CRW": the column `differs` says what is
unlike the original. A new line of the CSV file is a new row: its name, objective, settings as name=value pairs, and
the line of the paper's Table 1 ("method, data") whose number stands beside it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from dulvos.encoder import LAYERS
from dulvos.study.paper import TABLE1, read_csv
from dulvos.study.plans import evaluate_step, train_step
from dulvos.study.rows import NOT_RUN, Study, frame, newest
from dulvos.study.steps import Step, find_state

__all__ = ["DAVIS", "Method", "Setting", "comparison_steps", "comparison_table", "curves", "methods"]

SCORES = {"J_m": "J-Mean", "J_r": "J-Recall", "F_m": "F-Mean", "F_r": "F-Recall"}
MAIN = "res4"  # the layer that the paper compares


@dataclass(frozen=True)
class Method:
    """A line of `comparison.csv`; `key` begins the names of its runs."""

    key: str
    name: str
    objective: str
    settings: dict
    paper: str | None
    differs: str | None


@dataclass(frozen=True)
class Setting:
    """What all methods share.

    Arguments:
        study: the study that holds the rows.
        data: as the notebooks 01_train and 02_evaluate take it.
        training, inference: settings of all trainings and evaluations.
        seeds: trainings of each method.
        snapshots: iterations after which the first seed's encoder is evaluated on the way.
        minutes: of a training and an evaluation, about, on one core.
    """

    study: str
    data: str
    training: dict
    inference: dict
    seeds: int = 2
    snapshots: tuple[int, ...] = ()
    minutes: tuple[float, float] = (15, 6)


# the budget of the ablation grid's baseline: 400 iterations of 40 frames at 128² crops, val at 240p
DAVIS = Setting("comparison", "davis",
                {"iterations": 400, "gap": 4, "crop": 128, "scale_min": 256, "scale_max": 384, "lr": 3e-4, "lr_every": 300,
                 "snapshot_every": 100}, {"shorter_side": 240}, snapshots=(100, 200))


def methods() -> list[Method]:
    """The lines of `comparison.csv`."""
    made = []
    for line in read_csv("comparison.csv").to_dict("records"):
        pairs = (pair.partition("=") for pair in line.pop("settings").split())
        settings = {name: ast.literal_eval(value) for name, _, value in pairs}
        key = re.sub(r"[^a-z0-9]+", "-", f"{line['objective']} {'stride4' if settings.get('stride') == 4 else ''}").strip("-")
        made.append(Method(key, settings=settings, **line))
    return made


def comparison_steps(setting: Setting = DAVIS) -> list[Step]:
    """Every training and evaluation that the table and the curves show, seeds of one method first, then 07_results."""
    study, steps = Study(setting.study), []
    common = {**setting.inference, "data": setting.data, "minutes": setting.minutes[1]}

    def evaluate(name: str, features: str, needs: tuple[str, ...] = (), **more) -> None:
        steps.append(replace(evaluate_step(study, name, features=features, needs=needs, **common, **more), files=False))

    for seed in range(setting.seeds):
        for method in methods():
            name = f"{method.key}-{seed}"
            training = {**setting.training, **method.settings, "objective": method.objective, "seed": seed}
            train = train_step(study, name, setting.data, training, setting.minutes[0])
            steps.append(train)
            for layer in LAYERS:
                evaluate(f"{name}-{layer}", f"trained:{name}", (train.full_name,), layer=layer)
            for iteration in setting.snapshots if seed == 0 else ():
                evaluate(f"{name}-at-{iteration}", f"trained:{name}@{iteration}", (train.full_name,), layer=MAIN)
        for layer in LAYERS:
            evaluate(f"random-{seed}-{layer}", "random", layer=layer, seed=seed)
    evaluate(f"colour-0-{MAIN}", "colour", layer=MAIN)
    wanted = {need for step in steps if step.needs and find_state(step).word != "done" for need in step.needs}
    steps = [replace(step, files=step.full_name in wanted) if step.row == "train" else step for step in steps]
    return [*steps, Step(study, "07_results", "", {"data": setting.data}, 0.5, last=True)]


def comparison_table(study: Study) -> pd.DataFrame:
    """A line for each method: scores at its best layer, J&F at that layer and at res4 (means over seeds), and its cost.

    Scores are percentages. The paper's J&F is DAVIS-2017's, of other training data: it stands beside, never within.
    """
    rows, lines = study.rows(), []
    papers = {f"{line['method']}, {line['data']}": line["J&F_m"] for line in TABLE1.to_dict("records")}
    listed = [(m.key, m.name, papers.get(m.paper), m.differs) for m in methods()]
    listed += [("random", "random features", papers.get("Random initialisation, None"), None),
               ("colour", "raw colours", None, None)]
    for key, name, paper, differs in listed:
        layers = {layer: _seeds(rows, key, layer) for layer in LAYERS}
        layers = {layer: found for layer, found in layers.items() if found}
        line = {"method": name, "paper's J&F_m (other data)": paper, "differs from the original": differs, "state": NOT_RUN}
        if layers:
            best = max(layers, key=lambda layer: _mean(layers[layer], "J&F-Mean"))
            found = layers[best]
            line |= {title: _mean(found, score) for title, score in SCORES.items()}
            line |= {"J&F_m": _mean(found, "J&F-Mean"), "±": _deviation(found), "layer": best, "seeds": len(found),
                     "state": "run" if all(row["current"] for row in found) else "† by earlier code"}
            if MAIN in layers:
                line[f"J&F_m at {MAIN}"] = _mean(layers[MAIN], "J&F-Mean")
            line |= _cost(rows, [row["trained_key"] for row in found])
        lines.append(line)
    return frame(lines, ["method", *SCORES, "J&F_m", "±", "layer", f"J&F_m at {MAIN}", "frames seen", "CPU hours",
                         "peak memory (MB)", "seeds", "paper's J&F_m (other data)", "differs from the original", "state"])


def _seeds(rows: pd.DataFrame, key: str, layer: str) -> list[pd.Series]:
    """The evaluation that counts for each seed of a method at a layer."""
    found = rows[(rows["kind"] == "evaluate") & rows["name"].str.fullmatch(rf"{re.escape(key)}-\d+-{layer}")]
    return [newest(found[found["name"] == name]) for name in sorted(set(found["name"]))]


def _mean(found: Sequence[pd.Series], score: str) -> float:
    return round(100 * float(np.mean([row[f"scores.{score}"] for row in found])), 1)


def _deviation(found: Sequence[pd.Series]) -> float | None:
    values = [100 * row["scores.J&F-Mean"] for row in found]
    return round(float(np.std(values, ddof=1)), 1) if len(values) > 1 else None


def _cost(rows: pd.DataFrame, keys: Sequence[str]) -> dict:
    trained = rows[(rows["kind"] == "train") & rows["key"].isin([key for key in keys if key])]
    if trained.empty:
        return {}
    one = trained.iloc[-1]
    seen = one["iterations"] * one["parameters.batch"] * one["parameters.frames"]
    return {"frames seen": int(seen), "CPU hours": round(float(trained["cpu_seconds"].mean()) / 3600, 2),
            "peak memory (MB)": round(float(trained["peak_memory_mb"].max()))}


def curves(study: Study) -> pd.DataFrame:
    """J&F at res4 against CPU hours: method, CPU hours, J&F, iteration; of the first seed, its snapshots and its end."""
    rows, lines = study.rows(), []
    for method in methods():
        found = rows[(rows["kind"] == "evaluate")
                     & rows["name"].str.fullmatch(rf"{re.escape(method.key)}-0-(at-\d+|{MAIN})")]
        for name in sorted(set(found["name"])):
            row = newest(found[found["name"] == name])
            lines.append({"method": method.name, "CPU hours": row["training_cpu_seconds"] / 3600,
                          "J&F": 100 * row["scores.J&F-Mean"], "iteration": int(row["training_iteration"])})
    return pd.DataFrame(lines, columns=["method", "CPU hours", "J&F", "iteration"]).sort_values(["method", "iteration"])
