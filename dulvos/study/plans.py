"""What a command runs: the steps of the demo, of the study on DAVIS, and of the ablation grid."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from dulvos.errors import InputError
from dulvos.study import ablation
from dulvos.study.rows import CURVE, Study
from dulvos.study.steps import Step, defaults, find_state
from dulvos.training import TrainSettings

__all__ = ["count_by_rows", "davis_steps", "demo_steps", "evaluate_step", "grid_steps", "train_step"]

METHODS = {"copy": 2, "colour": 15, "random": 17, "trained": 17}  # and minutes of their evaluation on DAVIS
SHIPPED = "davis2016"  # our weights in the package
CURVE_SIDE = 240  # pixels of the shorter side: a fifth of the time of 480

# As short as learning can be seen. A crop has 8x8 cells, so N and M are halved; τ and λ are the paper's.
DEMO = {"iterations": 150, "batch": 8, "frames": 5, "gap": 2, "crop": 64, "scale_min": 96, "scale_max": 144,
        "grid": 4, "cross_grid": 2, "lr": 3e-4, "lr_every": 120}
DEMO_GRID = ("baseline-0", "N4-0")
# crop, scale and batch were chosen on the training split: benchmarks/choose_training.py
DAVIS_CPU = {"iterations": 8500, "batch": 8, "frames": 5, "gap": 4, "crop": 128, "scale_min": 256,
             "scale_max": 384, "lr": 3e-4, "lr_every": 6000, "workers": 1, "snapshot_every": 1000}
# B, T, crop and schedule of the paper's YouTube-VOS runs, on DAVIS's frames
DAVIS_PAPER = {"iterations": 100_000, "batch": 16, "frames": 5, "gap": 2, "crop": 256, "scale_min": 256,
               "scale_max": 319, "lr": 1e-4, "lr_every": 21_700, "workers": 4}


def train_step(study: Study, name: str, data: str, settings: dict, minutes: float, **more) -> Step:
    """A run of 01_train; settings without a line in its `parameters` cell go into `others`."""
    known = defaults(study.notebooks / "01_train.ipynb")
    parameters = {key: value for key, value in settings.items() if key in known}
    others = {key: value for key, value in settings.items()
              if key not in known and value != getattr(TrainSettings, key, None)}
    parameters |= {"others": others} if others else {}
    parameters |= {"data": data, "name": name, **more}
    return Step(study, "01_train", name, parameters, minutes, row="train")


def evaluate_step(study: Study, name: str, data: str, features: str, minutes: float,
                  needs: tuple[str, ...] = (), kind: str = "evaluate", **settings) -> Step:
    """A run of 02_evaluate."""
    parameters = {"data": data, "name": name, "features": features, **settings}
    return Step(study, "02_evaluate", name, parameters, minutes, needs, row=kind)


def demo_steps() -> list[Step]:
    """The study at demo scale, on the embedded videos, and two points of the grid, which show its path."""
    train = train_step(Study("demo"), "trained", "cutouts", DEMO, 4)
    steps = _study_steps(train, dict.fromkeys([*METHODS, SHIPPED], 0.4))
    explorer = {"data": "cutouts", "checkpoint": "trained", "beside": SHIPPED, "html": "explorer.html"}
    show = Step(train.study, "05_explore_anchors", "", explorer, 0.4, (train.full_name,), last=True)
    grid = [replace(step, files=True) for step in grid_steps("demo", DEMO_GRID)]  # run, not only shown
    return [*steps, show, *grid]


def davis_steps(setting: str = "cpu") -> list[Step]:
    """The study on DAVIS: `setting` is "cpu" (hours on two cores) or "paper" (the paper's, for a GPU)."""
    if setting == "paper":
        return _study_steps(train_step(Study("davis-paper"), "trained", "davis", DAVIS_PAPER, 360), METHODS)
    train = train_step(Study("davis"), "trained", "davis", DAVIS_CPU, 130)
    return _study_steps(train, METHODS, curve=(1000, 2000, 4000))


def _study_steps(train: Step, minutes: dict[str, float], curve: Sequence[int] = ()) -> list[Step]:
    """A training, evaluations of the methods and of the snapshots in `curve`, notebooks that show them."""
    study, data, needs, steps = train.study, train.parameters["data"], (train.full_name,), [train]
    for name, cost in minutes.items():
        own = needs if name == "trained" else ()
        steps.append(evaluate_step(study, name, data, name, cost, own))
    if curve:  # J&F against training, at 240p (`dulvos.study.tables.score_curve`)
        features = {0: "random", **{iteration: f"trained:trained@{iteration}" for iteration in curve},
                    train.parameters["iterations"]: "trained:trained"}
        steps += [evaluate_step(study, f"{CURVE}{iteration}", data, source, 4, needs, shorter_side=CURVE_SIDE)
                  for iteration, source in features.items()]
    shown = {"data": data, "checkpoint": "trained"}
    return [*steps, Step(study, "00_the_method", "", shown, 0.4, needs, last=True),
            Step(study, "04_features", "", shown, 0.4, needs, last=True),
            Step(study, "07_results", "", {"data": data}, 0.4, last=True)]


def grid_steps(name: str, only: Collection[str] = ()) -> list[Step]:
    """The ablation grid at a scale: a training and an evaluation for each point and seed, then 03_ablation.

    Arguments:
        name: of the scale: demo, davis or paper.
        only: names of evaluations, such as "N4-0", to which the grid is restricted.

    Raises:
        InputError: no such scale or evaluation.
    """
    scale = ablation.find_scale(name)
    study, trainings, evaluations = Study(scale.folder), {}, {}
    for point in ablation.points(scale):
        minutes = scale.minutes[0] * _cost(point.training) / _cost(scale.training)
        for seed in range(point.seeds):
            run, features, needs, settings = f"{point.name}-{seed}", point.features, (), {"seed": seed}
            if point.trained:
                trained, settings = f"{point.trained}-{seed}", {}
                train = train_step(study, trained, scale.train, point.training | {"seed": seed}, minutes)
                features, needs = f"trained:{trained}", (train.full_name,)
                trainings.setdefault(train.full_name, train)
            evaluations[run] = evaluate_step(study, run, scale.evaluate, features, scale.minutes[1], needs,
                                             **point.inference, **settings)
    unknown = sorted(set(only) - set(evaluations))
    if unknown:
        raise InputError(f"no run {', '.join(unknown)} in the grid {name!r}; it has {', '.join(evaluations)}")
    chosen = [step for run, step in evaluations.items() if not only or run in only]
    needed = {need for step in chosen for need in step.needs}
    steps = count_by_rows([*(step for name, step in trainings.items() if name in needed), *chosen])
    return [*steps, Step(study, "03_ablation", "", {"scale": name}, 0.5, last=True)]


def count_by_rows(steps: Sequence[Step]) -> list[Step]:
    """The same steps, done by their rows alone, but for trainings whose weights an evaluation still needs.

    Rows are committed, weights and masks are not.
    """
    steps = [replace(step, files=False) for step in steps]
    wanted = {need for step in steps if step.needs and find_state(step)[0] != "done" for need in step.needs}
    return [replace(step, files=step.full_name in wanted) for step in steps]


def _cost(training: dict) -> float:
    return training["iterations"] * training["batch"] * training["frames"] * training["crop"] ** 2
