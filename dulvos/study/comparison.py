"""Table 1 at CPU scale: the paper's method and its rivals, trained alike.

All have the same training videos, encoder, optimiser, number of frames, seeds and propagation. They differ in
the loss and in the input that it needs; variants of CRW and MAST change one or two things more. So a method
is called "CRW objective", never "CRW". A line of `comparison.csv` is a method:

    key       begins the names of its runs
    name      in tables
    settings  name=value pairs; empty for random and colour, which are not trained
    paper     the line of the paper's Table 1 whose number stands beside it, as "method, data"
    differs   how the objective differs from the original method
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from dulvos.encoder import LAYERS
from dulvos.errors import InputError
from dulvos.study.ablation import noise, pairs
from dulvos.study.paper import FREE, TABLE1, read_csv
from dulvos.study.plans import count_by_rows, evaluate_step, train_step
from dulvos.study.rows import NOT_RUN, Study, counting, frame, has, lookup, state
from dulvos.study.steps import Step
from dulvos.training import TrainSettings

__all__ = ["TRAINING", "comparison_steps", "comparison_table", "methods", "visible"]

SCORES = {"J_m": "J-Mean", "J_r": "J-Recall", "F_m": "F-Mean", "F_r": "F-Recall", "J&F_m": "J&F-Mean"}
MAIN = "res4"  # the layer that the paper compares
FIRST = (MAIN, "res3")  # these layers are evaluated right after a training

# as the ablation grid's baseline: 400 iterations of 40 frames at 128² crops, val at 240p
TRAINING = {"iterations": 400, "gap": 4, "crop": 128, "scale_min": 256, "scale_max": 384, "lr": 3e-4,
            "lr_every": 300, "snapshot_every": 100}
INFERENCE = {"shorter_side": 240}
FULL_SIZE = {"dense": "res3", "mast": "res3"}  # the paper's method and its best rival, at their best layers
MINUTES = {"train": 35, "evaluate": 8}  # of the method on one core, about
PAPERS = {", ".join(filter(None, line)): score
          for *line, score in TABLE1[["method", "train data", "paper J&F_m"]].itertuples(index=False)}


def methods(path: Path = Path(__file__).with_suffix(".csv")) -> list[dict]:
    """The lines of `comparison.csv`, with settings as a dictionary.

    Raises:
        InputError: a line is wrong; gives its number.
    """
    made = []
    for number, line in enumerate(read_csv(path).to_dict("records"), 2):
        try:
            settings = pairs(line["settings"])
            TrainSettings.from_dict({**TRAINING, **settings})
            if not line["key"] or line["key"] in [other["key"] for other in made]:
                raise InputError(f"each line needs a key of its own, not {line['key']!r}")
            if bool(settings) == (line["key"] in ("random", "colour")):
                raise InputError(f"{line['key']!r} needs settings, as objective=crw; random, colour: none")
            if line["paper"] and line["paper"] not in PAPERS:
                raise InputError(f"paper must be one of {'; '.join(PAPERS)}; not {line['paper']!r}")
        except (InputError, LookupError) as error:
            raise InputError(f"{path}, line {number}: {error}") from None
        made.append({**line, "settings": settings})
    return made


def comparison_steps(name: str = "comparison", data: str = "davis", *, training: dict = TRAINING,
                     inference: dict = INFERENCE, seeds: int = 2,
                     snapshots: Sequence[int] = (100, 200)) -> list[Step]:
    """Trainings and evaluations for the table and the curves, the most telling first, and 07_results last.

    Arguments:
        name: of the study that holds the rows.
        data: as the notebooks 01_train and 02_evaluate take it.
        training, inference: settings of all trainings and evaluations.
        seeds: trainings of each method.
        snapshots: iterations whose snapshots of the first seed are evaluated, too.
    """
    study, steps, trained = Study(name), [], [method for method in methods() if method["settings"]]

    def evaluate(name: str, features: str, **more) -> None:
        parameters = {"minutes": MINUTES["evaluate"], **inference, **more}
        steps.append(evaluate_step(study, name, data, features, **parameters))

    evaluate(f"colour-0-{MAIN}", "colour", layer=MAIN)
    for seed in range(seeds):
        for layer in FIRST:
            evaluate(f"random-{seed}-{layer}", "random", layer=layer, seed=seed)
        for method in trained:
            run, settings = f"{method['key']}-{seed}", {**training, **method["settings"], "seed": seed}
            steps.append(train_step(study, run, data, settings, MINUTES["train"]))
            for layer in FIRST:
                evaluate(f"{run}-{layer}", f"trained:{run}", layer=layer)
    for seed in range(seeds):
        for key, layer in FULL_SIZE.items():  # each takes about five times as long as 240p
            evaluate(f"{key}-{seed}-{layer}-480p", f"trained:{key}-{seed}",
                     minutes=5 * MINUTES["evaluate"], layer=layer, shorter_side=0)
    for layer in [layer for layer in LAYERS if layer not in FIRST]:
        for seed in range(seeds):
            evaluate(f"random-{seed}-{layer}", "random", layer=layer, seed=seed)
        for run in [step.name for step in steps if step.row == "train"]:
            evaluate(f"{run}-{layer}", f"trained:{run}", layer=layer)
    for method in trained:
        run = f"{method['key']}-0"
        for iteration in snapshots:
            evaluate(f"{run}-at-{iteration}", f"trained:{run}@{iteration}", layer=MAIN)
    return [*count_by_rows(steps), Step(study, "07_results", "", {"data": data}, 0.5, last=True)]


def comparison_table(study: Study) -> pd.DataFrame:
    """A line for each method: its scores at its best layer, its J&F at res4 and at 480p, and its cost.

    Scores are means over seeds, in percent, on the newest data and by trainings with the newest settings. The
    paper's J&F is DAVIS-2017's, from other training data.
    """
    rows, lines = study.rows(), []
    trained, evaluated = rows[rows["kind"] == "train"], _evaluated(rows)
    for method in methods():
        own = evaluated[method["key"]]
        means, full = own.groupby("layer")[[*SCORES]].mean().round(1), FULL_SIZE.get(method["key"])
        line = {"method": method["name"], "paper's J&F_m (other data)": PAPERS.get(method["paper"]),
                "J&F_m at 480p": means["J&F_m"].get(f"{full}-480p", NOT_RUN if full else None),
                "differs from the original": method["differs"], "state": NOT_RUN}
        means = means.reindex(LAYERS).dropna()
        if len(means):
            told = max(state(row, rows) for _, row in own.iterrows())  # † sorts last
            best = own.groupby("layer")["J&F_m"].mean()[means.index].idxmax()
            own = own[own["layer"] == best]
            layers = [MAIN] if method["key"] == "colour" else LAYERS
            missing = [layer for layer in layers if layer not in means.index]
            line |= {**means.loc[best], "±": round(own["J&F_m"].std(), 1), "layer": best, "seeds": len(own),
                     f"J&F_m at {MAIN}": means["J&F_m"].get(MAIN),
                     "state": told + f"; layer {', '.join(missing)}: {NOT_RUN}" * bool(missing)}
            made = trained[trained["key"].isin(own["trained_key"])]
            if len(made):
                seen = made["iterations"] * made["parameters.batch"] * made["parameters.frames"]
                line |= {"frames seen": int(seen.iloc[-1]),
                         "CPU hours": round(made["cpu_seconds"].mean() / 3600, 2),
                         "peak memory (MB)": round(made["peak_memory_mb"].max())}
        lines.append(line)
    return frame(lines, ["method", *SCORES, "±", "layer", f"J&F_m at {MAIN}", "J&F_m at 480p", "frames seen",
                         "CPU hours", "peak memory (MB)", "seeds", "paper's J&F_m (other data)",
                         "differs from the original", "state"])


def visible(study: Study, layer: str) -> float:
    """The largest difference that can be chance between two methods with two seeds each, at a layer.

    In J&F points; found as in `ablation.effects`, with the variance pooled over the trained methods.
    """
    evaluated = _evaluated(study.rows())
    scores = (evaluated[method["key"]] for method in methods() if method["settings"])
    deviation, student = noise(own.loc[own["layer"] == layer, "J&F_m"] for own in scores)
    return student * deviation  # the deviation of the difference is √(1/2 + 1/2) times that of one seed


def _evaluated(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The evaluations that count for each method's key, with columns layer and `SCORES` in percent."""
    trained, found = rows[rows["kind"] == "train"], rows[rows["kind"] == "evaluate"]
    found = counting(found[found["fingerprint"].isin(found["fingerprint"].tail(1))], "name")
    found[["method", "layer"]] = found["name"].str.extract(r"^(.+)-\d+-([a-z]+\d*(?:-480p)?)$")
    found[[*SCORES]] = 100 * found.reindex(columns=[f"scores.{score}" for score in SCORES.values()])
    return {method["key"]: _comparable(found[found["method"] == method["key"]], trained)
            for method in methods()}


def _comparable(own: pd.DataFrame, trained: pd.DataFrame) -> pd.DataFrame:
    """The evaluations whose training had the same settings as that of the newest one."""
    if own.empty:
        return own
    made = trained.drop_duplicates("key").set_index("key").reindex(own["trained_key"])
    names = {field.name for field in dataclasses.fields(TrainSettings)}.difference(FREE)
    wanted = {name: lookup(made.iloc[-1], f"parameters.{name}") for name in names}
    return own.loc[[has(one, wanted) for _, one in made.iterrows()]]
