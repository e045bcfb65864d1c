"""Table 1 at CPU scale: the paper's method and its rivals as objectives in one harness.

All are trained on the same clips, with the same encoder, optimiser, number of frames and seeds, and carry
masks by the same propagation; only the loss differs. A row is called "CRW objective", never "CRW"; the
column `differs` says what is unlike the original. A new line of `comparison.csv` is a new row: its name,
objective, settings as name=value pairs, and the line of the paper's Table 1 ("method, data") whose number
stands beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from dulvos.encoder import LAYERS
from dulvos.study.ablation import pairs
from dulvos.study.paper import TABLE1, read_csv
from dulvos.study.plans import count_by_rows, evaluate_step, train_step
from dulvos.study.rows import NOT_RUN, Study, frame, state
from dulvos.study.steps import Step

__all__ = ["TRAINING", "comparison_steps", "comparison_table", "curves", "methods"]

SCORES = {"J_m": "J-Mean", "J_r": "J-Recall", "F_m": "F-Mean", "F_r": "F-Recall", "J&F_m": "J&F-Mean"}
MAIN = "res4"  # the layer that the paper compares
FIRST = (MAIN, "res3")  # the layers that are evaluated right after a training

# the budget of the ablation grid's baseline: 400 iterations of 40 frames at 128² crops, val at 240p
TRAINING = {"iterations": 400, "gap": 4, "crop": 128, "scale_min": 256, "scale_max": 384, "lr": 3e-4,
            "lr_every": 300, "snapshot_every": 100}
INFERENCE = {"shorter_side": 240}
MINUTES = {"train": 35, "evaluate": 8}  # about, on one core, as the method took


def methods() -> list[dict]:
    """The lines of `comparison.csv`, each with a `key`, with which the names of its runs begin."""
    lines = read_csv("comparison.csv").to_dict("records")
    for line in lines:
        line["settings"] = pairs(line["settings"])
        line["key"] = line["objective"] + "-stride4" * (line["settings"].get("stride") == 4)
    return lines


def comparison_steps(name: str = "comparison", data: str = "davis", *, training: dict = TRAINING,
                     inference: dict = INFERENCE, seeds: int = 2,
                     snapshots: Sequence[int] = (100, 200)) -> list[Step]:
    """Each training and evaluation that the table and the curves show, then 07_results.

    Arguments:
        name: of the study that holds the rows.
        data: as the notebooks 01_train and 02_evaluate take it.
        training, inference: settings of all trainings and evaluations.
        seeds: trainings of each method.
        snapshots: iterations after which the first seed's encoder is evaluated on the way.
    """
    study, steps = Study(name), []

    def evaluate(name: str, features: str, needs: tuple[str, ...] = (), **more) -> None:
        minutes = MINUTES["evaluate"]
        steps.append(evaluate_step(study, name, data, features, minutes, needs, **inference, **more))

    evaluate(f"colour-0-{MAIN}", "colour", layer=MAIN)
    needs = {}
    for seed in range(seeds):
        for layer in FIRST:
            evaluate(f"random-{seed}-{layer}", "random", layer=layer, seed=seed)
        for method in methods():
            run = f"{method['key']}-{seed}"
            settings = {**training, **method["settings"], "objective": method["objective"], "seed": seed}
            steps.append(train_step(study, run, data, settings, MINUTES["train"]))
            needs[run] = (steps[-1].full_name,)
            for layer in FIRST:
                evaluate(f"{run}-{layer}", f"trained:{run}", needs[run], layer=layer)
    for layer in (layer for layer in LAYERS if layer not in FIRST):  # what says less comes last
        for seed in range(seeds):
            evaluate(f"random-{seed}-{layer}", "random", layer=layer, seed=seed)
        for run in needs:
            evaluate(f"{run}-{layer}", f"trained:{run}", needs[run], layer=layer)
    for method in methods():
        run = f"{method['key']}-0"
        for iteration in snapshots:
            evaluate(f"{run}-at-{iteration}", f"trained:{run}@{iteration}", needs[run], layer=MAIN)
    return [*count_by_rows(steps), Step(study, "07_results", "", {"data": data}, 0.5, last=True)]


def comparison_table(study: Study) -> pd.DataFrame:
    """A line for each method: scores at its best layer, J&F at res4 (means over seeds), and its cost.

    Scores are percentages. The paper's J&F is DAVIS-2017's and comes from other training data, so it has a
    column of its own.
    """
    rows, found, lines = study.rows(), _evaluations(study), []
    trained = rows[rows["kind"] == "train"]
    papers = {f"{line['method']}, {line['train data']}": line["paper J&F_m"] for line in TABLE1.to_dict("records")}
    others = [{"key": "random", "name": "random features", "paper": "Random initialisation, None"},
              {"key": "colour", "name": "raw colours"}]
    for method in [*methods(), *others]:
        line = {"method": method["name"], "paper's J&F_m (other data)": papers.get(method.get("paper")),
                "differs from the original": method.get("differs"), "state": NOT_RUN}
        own = found[found["method"] == method["key"]]
        means = (100 * own.groupby("layer")[list(SCORES)].mean()).round(1).reindex(LAYERS).dropna()
        if len(means):
            best = means["J&F_m"].idxmax()
            own = own[own["layer"] == best]
            made = trained[trained["key"].isin(own["trained_key"])]
            line |= {**means.loc[best], "±": round(100 * own["J&F_m"].std(), 1), "layer": best,
                     f"J&F_m at {MAIN}": means["J&F_m"].get(MAIN), "seeds": len(own),
                     "state": max(state(row, rows) for _, row in own.iterrows())}  # † sorts last
            layers = [MAIN] if method["key"] == "colour" else LAYERS
            missing = [layer for layer in layers if layer not in means.index]
            line["state"] += f"; {NOT_RUN}: {', '.join(missing)}" * bool(missing)
            if len(made):
                seen = made["iterations"] * made["parameters.batch"] * made["parameters.frames"]
                line |= {"frames seen": int(seen.iloc[-1]),
                         "CPU hours": round(made["cpu_seconds"].mean() / 3600, 2),
                         "peak memory (MB)": round(made["peak_memory_mb"].max())}
        lines.append(line)
    return frame(lines, ["method", *SCORES, "±", "layer", f"J&F_m at {MAIN}", "frames seen", "CPU hours",
                         "peak memory (MB)", "seeds", "paper's J&F_m (other data)",
                         "differs from the original", "state"])


def _evaluations(study: Study) -> pd.DataFrame:
    """The evaluation that counts for each name, with its parts: method, seed, layer or "at-ITERATION"."""
    rows = study.rows("evaluate").sort_values(["current", "date"]).groupby("name").tail(1)
    parts = rows["name"].str.extract(r"^(?P<method>.+)-(?P<seed>\d+)-(?P<layer>at-\d+|[a-z]+\d*)$")
    scores = {title: rows.get(f"scores.{score}") for title, score in SCORES.items()}
    return rows.assign(**parts, **scores).reset_index(drop=True)


def curves(study: Study) -> pd.DataFrame:
    """J&F at res4 against CPU hours: the snapshots and the end of each method's first training."""
    found, names = _evaluations(study), {method["key"]: method["name"] for method in methods()}
    shown = found["layer"].str.match(f"at-|{MAIN}$") & (found["seed"] == "0")
    found = found[found["method"].isin(names) & shown]
    table = pd.DataFrame({"method": found["method"].map(names), "J&F": 100 * found["J&F_m"],
                          "CPU hours": found.get("training_cpu_seconds", 0) / 3600,
                          "iteration": found.get("training_iteration")})
    return table.sort_values(["method", "iteration"])
