"""What a command runs: the steps of the demo, of the study on DAVIS, and of the ablation grid."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from dulvos.errors import InputError
from dulvos.study import ablation
from dulvos.study.rows import CURVE, Study
from dulvos.study.steps import Step, defaults, find_state
from dulvos.training import TrainSettings

__all__ = ["davis_steps", "demo_steps", "evaluate_step", "grid_steps", "train_step"]

METHODS = ("copy", "colour", "random", "trained")
CURVE_SIDE = 240  # pixels of the shorter side: a fifth of the time of 480

# For CPUs: small crops, few clips and a short schedule; the method's own settings (N, M, τ, λ) are the paper's.
DEMO = {"iterations": 750, "batch": 8, "frames": 5, "gap": 2, "crop": 128, "scale_min": 144, "scale_max": 208, "lr": 3e-4,
        "lr_every": 400}
# crop, scale and batch were chosen on the training split: benchmarks/choose_training.py
DAVIS_CPU = {"iterations": 8500, "batch": 8, "frames": 5, "gap": 4, "crop": 128, "scale_min": 256, "scale_max": 384,
             "lr": 3e-4, "lr_every": 6000, "workers": 1, "snapshot_every": 1000}
# B, T, crop and schedule of the paper's YouTube-VOS runs, on DAVIS's frames
DAVIS_PAPER = {"iterations": 100_000, "batch": 16, "frames": 5, "gap": 2, "crop": 256, "scale_min": 256, "scale_max": 319,
               "lr": 1e-4, "lr_every": 21_700, "workers": 4}


def train_step(study: Study, name: str, data: str, settings: dict, minutes: float, **more) -> Step:
    """A run of 01_train; settings without a line in its `parameters` cell go into `others`."""
    known = defaults(study.notebooks / "01_train.ipynb")
    parameters = {key: value for key, value in settings.items() if key in known}
    others = {key: value for key, value in settings.items()
              if key not in known and value != getattr(TrainSettings, key, None)}
    parameters |= {"others": others} if others else {}
    return Step(study, "01_train", name, {"data": data, "name": name, **parameters, **more}, minutes, row="train")


def evaluate_step(study: Study, name: str, data: str, features: str, minutes: float, needs: tuple[str, ...] = (),
                  kind: str = "evaluate", **settings) -> Step:
    """A run of 02_evaluate."""
    parameters = {"data": data, "name": name, "features": features, **settings}
    return Step(study, "02_evaluate", name, parameters, minutes, needs, row=kind)


def demo_steps() -> list[Step]:
    """The study at demo scale, on the embedded benchmark: about twelve minutes on two cores."""
    study = Study("demo")
    train = train_step(study, "trained", "cutouts", DEMO, 10)
    return [train, *_methods(study, "cutouts", train, dict.fromkeys(METHODS, 0.5)), *_told(study, "cutouts", train)]


def davis_steps(setting: str = "cpu") -> list[Step]:
    """The study on DAVIS: `setting` is "cpu" (hours on two cores) or "paper" (the paper's, for a GPU).

    Raises:
        InputError: another setting.
    """
    if setting not in ("cpu", "paper"):
        raise InputError(f"setting must be 'cpu' or 'paper', not {setting!r}")
    minutes = {"copy": 2, "colour": 15, "random": 17, "trained": 17}
    if setting == "paper":
        study = Study("davis-paper")
        train, curve = train_step(study, "trained", "davis", DAVIS_PAPER, 360), []
    else:
        study = Study("davis")
        train = train_step(study, "trained", "davis", DAVIS_CPU, 130)
        curve = _curve(study, "davis", train)
    return [train, *_methods(study, "davis", train, minutes), *curve, *_told(study, "davis", train)]


def _methods(study: Study, data: str, train: Step, minutes: dict[str, float]) -> list[Step]:
    return [evaluate_step(study, name, data, name, minutes[name], (train.full_name,) if name == "trained" else ())
            for name in METHODS]


def _curve(study: Study, data: str, train: Step) -> list[Step]:
    """Evaluations of the snapshots, at 240p: what more training brings (`dulvos.study.tables.score_curve`)."""
    last, every = train.parameters["iterations"], train.parameters["snapshot_every"]
    kept = [iteration for iteration in (every, 2 * every, 4 * every) if iteration < last]
    features = {0: "random"} | {i: f"trained:{train.name}@{i}" for i in kept} | {last: f"trained:{train.name}"}
    return [evaluate_step(study, f"{CURVE}{i}", data, source, 4, (train.full_name,), shorter_side=CURVE_SIDE)
            for i, source in features.items()]


def _told(study: Study, data: str, train: Step) -> list[Step]:
    """The notebooks that show the method and the features, then the results of all steps before."""
    shown = {"data": data, "checkpoint": "trained"}
    needs = (train.full_name,)
    return [Step(study, "00_the_method", "", shown, 1, needs, last=True),
            Step(study, "04_features", "", shown, 1, needs, last=True),
            Step(study, "07_results", "", {"data": data}, 0.5, last=True)]


def grid_steps(name: str, only: Iterable[str] = ()) -> list[Step]:
    """The ablation grid at a scale: a training and an evaluation for each point and seed, then 03_ablation.

    Arguments:
        name: of the scale: demo, davis or paper.
        only: names of evaluations, such as "N4-0", to which the grid is restricted.

    Raises:
        InputError: no such scale or evaluation.
    """
    scale = ablation.find_scale(name)
    study = Study(scale.folder)
    trainings: dict[str, Step] = {}
    evaluations: dict[str, Step] = {}
    for point in ablation.points(scale):
        for seed in range(point.seeds):
            trained = f"{point.trained}-{seed}" if point.trained else ""
            needs, features, settings = (), point.features, {**_changed(study, "02_evaluate", point.inference), "seed": seed}
            if trained:
                training = _changed(study, "01_train", point.training | {"seed": seed})
                minutes = scale.minutes[0] * _cost(point.training) / _cost(scale.training)
                trainings.setdefault(trained, train_step(study, trained, scale.train, training, minutes))
                needs, features = (trainings[trained].full_name,), f"trained:{trained}"
                settings = _changed(study, "02_evaluate", point.inference)
            run = f"{point.name}-{seed}"
            evaluations[run] = replace(evaluate_step(study, run, scale.evaluate, features, scale.minutes[1], needs,
                                                     **settings), files=False)
    unknown = sorted(set(only) - set(evaluations))
    if unknown:
        raise InputError(f"no run {', '.join(unknown)} in the grid {name!r}; it has {', '.join(evaluations)}")
    chosen = [step for run, step in evaluations.items() if not only or run in only]
    # weights are not committed: a training whose evaluations are done may count by its row alone
    wanted = {need for step in chosen if find_state(step).word != "done" for need in step.needs}
    needed = {need for step in chosen for need in step.needs}
    steps = [replace(step, files=step.full_name in wanted) for step in trainings.values() if step.full_name in needed]
    return [*steps, *chosen, Step(study, "03_ablation", "", {"scale": name}, 0.5, last=True)]


def _changed(study: Study, notebook: str, settings: dict) -> dict:
    """The settings that differ from the values in a notebook's `parameters` cell."""
    known = defaults(study.notebooks / f"{notebook}.ipynb")
    return {name: value for name, value in settings.items() if name not in known or known[name] != value}


def _cost(training: dict) -> float:
    return training["iterations"] * training["batch"] * training["frames"] * training["crop"] ** 2
