"""What a command runs: the steps of the demo, of the study on DAVIS, and of the ablation grid."""

import tomllib
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from dulvos.errors import InputError
from dulvos.study import ablation
from dulvos.study.rows import CURVE, SUFFIX, Study
from dulvos.study.steps import Step, find_state
from dulvos.training import TrainSettings

__all__ = ["count_by_rows", "demo_steps", "evaluate_step", "grid_steps", "study_steps", "train_step"]

# the studies with one training
PLANS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
CURVE_SIDE = 240  # shorter side in pixels; takes a fifth of the time of 480
DEMO_GRID = ("baseline-0", "N4-0")


def train_step(study: Study, name: str, data: str, settings: dict, minutes: float, **more) -> Step:
    """A run of 01_train; raises an InputError if the settings are wrong."""
    TrainSettings.from_dict(settings)
    parameters = {"data": data, "name": name, "others": settings, **more}
    return Step(study, "01_train", name, parameters, minutes, row="train")


def evaluate_step(study: Study, name: str, data: str, features: str, minutes: float, kind: str = "evaluate",
                  **settings) -> Step:
    """A run of 02_evaluate, which needs the step that trains or selects its features."""
    parameters = {"data": data, "name": name, "features": features, **settings}
    made, _, run = features.partition("@")[0].partition(":")
    run = run or "trained"
    needs = {"trained": [f"01_train-{run}"], "selected": [f"02_evaluate-{run}{SUFFIX}"]}.get(made, [])
    return Step(study, "02_evaluate", name, parameters, minutes, needs, row=kind)


def demo_steps() -> list[Step]:
    """The study and two points of the grid on the embedded videos, to show that everything runs."""
    train, *others = study_steps("demo")
    explorer = {"data": "cutouts", "checkpoint": "trained", "beside": "davis2016", "html": "explorer.html"}
    show = Step(train.study, "05_explore_anchors", "", explorer, 0.4, [train.full_name], last=True)
    grid = [replace(step, files=True) for step in grid_steps("demo", DEMO_GRID)]  # despite committed rows
    return [train, *others, show, *grid]


def study_steps(name: str) -> list[Step]:
    """The training and the evaluations of a section of `plans.toml`, and the notebooks that show them."""
    study, plan = Study(name), PLANS[name]
    data = plan["data"]
    train = train_step(study, "trained", data, plan["training"], plan["minutes"])
    scored = [evaluate_step(study, features, data, features, minutes)
              for features, minutes in plan["evaluations"].items()]
    scored += [evaluate_step(study, f"{CURVE}{iteration}", data, features, 4, shorter_side=CURVE_SIDE)
               for iteration, features in plan["curve"].items()]
    shown = {"data": data, "checkpoint": "trained"}
    return [train, *scored, Step(study, "00_the_method", "", shown, 0.4, [train.full_name], last=True),
            Step(study, "04_features", "", shown, 0.4, [train.full_name], last=True),
            Step(study, "07_results", "", {"data": data}, 0.4, last=True)]


def grid_steps(name: str, only: Collection[str] = ()) -> list[Step]:
    """The ablation grid at a scale: a training and an evaluation for each point and seed, then 03_ablation.

    Arguments:
        name: of the scale, in `ablation_scales.toml`.
        only: names of evaluations, such as "N4-0", to which the grid is restricted.

    Raises:
        InputError: no such scale or evaluation.
    """
    scale = ablation.find_scale(name)
    study, trainings, evaluations = Study(scale.folder), {}, []
    runs = {f"{point.name}-{seed}": (point, seed)
            for point in ablation.points(scale) for seed in range(point.seeds)}
    if unknown := sorted(set(only) - set(runs)):
        raise InputError(f"no run {', '.join(unknown)} in the grid {name!r}; it has {', '.join(runs)}")
    for run, (point, seed) in runs.items():
        if only and run not in only:
            continue
        features, settings = point.features, point.inference | {"seed": seed}
        if point.trained:
            trained, settings = f"{point.trained}-{seed}", point.inference
            features = f"trained:{trained}"
            minutes = scale.minutes[0] * _cost(point.training) / _cost(scale.training)
            trainings[trained] = train_step(study, trained, scale.train, point.training | {"seed": seed},
                                            minutes)
        evaluations.append(evaluate_step(study, run, scale.evaluate, features, scale.minutes[1], **settings))
    steps = count_by_rows([*trainings.values(), *evaluations])
    return [*steps, Step(study, "03_ablation", "", {"scale": name}, 0.5, last=True)]


def count_by_rows(steps: Sequence[Step]) -> list[Step]:
    """The same steps, which count as done by their committed rows, without weights or masks.

    Only a training whose weights an evaluation still needs must have them on this machine.
    """
    steps = [replace(step, files=False) for step in steps]
    wanted = {need for step in steps if step.needs and find_state(step)[0] != "done" for need in step.needs}
    return [replace(step, files=step.full_name in wanted) for step in steps]


def _cost(training: dict) -> float:
    """The pixels that a training sees."""
    return training["iterations"] * training["batch"] * training["frames"] * training["crop"] ** 2
