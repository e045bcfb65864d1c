"""What of the grid is done: its runs, the rows found for them, their states, the time left."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from dulvos.study import results, runs, steps as study
from dulvos.study.ablation import GridStudy, Point, grid_points
from dulvos.errors import InputError
from dulvos.inference import SegmentSettings
from dulvos.training import TrainSettings
from dulvos.videos import fingerprint

__all__ = ["STALE", "Run", "check_names", "evaluate_step", "failure_of", "grid_runs", "is_locked", "listing", "lock_step", "minutes_left"]
__all__ += ["train_step"]

STALE = "done by earlier code"


@dataclass(frozen=True)
class Run:
    """One number of the grid: a point and a seed, with the rows found for it.

    Fields:
        name: of its evaluation. training: name of its training, which several runs may share; "" without one.
        settings: TrainSettings as a dict, None for random features. inference: SegmentSettings.
        trained, evaluated: rows, or None.
        state: done, `STALE`, running, failed, missing.
    """

    point: Point
    seed: int
    name: str
    training: str
    settings: dict | None
    inference: dict
    trained: pd.Series | None = None
    evaluated: pd.Series | None = None
    state: str = "missing"

    @property
    def score(self) -> float:
        """J&F in percent; NaN without a row."""
        return math.nan if self.evaluated is None else 100 * float(self.evaluated["scores.J&F-Mean"])


def grid_runs(grid: GridStudy, *, check_data: bool = True) -> list[Run]:
    """Every run with its rows and its state.

    Arguments:
        check_data: a row counts only if it was made from the data that is there now. Data that is not there cannot be compared:
            a fresh clone shows the rows that came with it.
    """
    rows, made = results.read_rows(grid.folder), []
    marks = _marks(grid) if check_data else (None, None)
    for point in grid_points(grid):
        for seed in range(grid.seeds if point.varied == "baseline" else 1):
            training = "" if point.features == "random" else f"{point.name if point.training else 'baseline'}-{seed}"
            settings = None
            if training:
                settings = dataclasses.asdict(TrainSettings.from_dict({**grid.training, **point.training, "seed": seed}))
            inference = dataclasses.asdict(SegmentSettings(**{**grid.inference, **point.inference}))
            run = Run(point, seed, f"{point.name}-{seed}", training, settings, inference)
            made.append(_with_state(grid, run, rows, marks))
    return made


def check_names(grid: GridStudy, every: list[Run], names: Sequence[str]) -> None:
    """Raise an InputError that names what is no run of the grid."""
    unknown = sorted(set(names) - {run.name for run in every})
    if unknown:
        raise InputError(f"no run {', '.join(unknown)} in {grid.folder}; the runs are {', '.join(run.name for run in every)}")


def _marks(grid: GridStudy) -> tuple[str | None, str | None]:
    """Fingerprints of the training videos and of the evaluation's frames and masks, as rows hold them; None where they are not here."""
    if "cutouts" in (grid.train, grid.evaluate) and not runs.CUTOUTS.is_dir():  # to open it would render it
        return None, None
    try:
        train, val = runs.open_data(grid.train, "train"), runs.open_data(grid.evaluate, "val")
    except InputError:
        return None, None
    videos = getattr(train, "fingerprint", None) or fingerprint([sequence.video for sequence in train.sequences])
    return videos, runs.dataset_fingerprint(val)


def _with_state(grid: GridStudy, run: Run, rows: pd.DataFrame, marks: tuple[str | None, str | None]) -> Run:
    trained = evaluated = None
    if run.settings is not None:
        trained = _find(rows, "train", {k: v for k, v in run.settings.items() if k not in runs.NO_NUMBERS}, marks[0])
    if run.training == "":
        evaluated = _find(rows, "evaluate", run.inference, marks[1], features=run.point.features, seed=run.seed)
    elif trained is not None:
        evaluated = _find(rows, "evaluate", run.inference, marks[1], features=f"trained:{trained.key}")
    steps = [train_step(grid, run)] * (run.training != "") + [evaluate_step(grid, run, "")]
    if evaluated is not None and evaluated.current and (trained is None or trained.current):
        state = "done"
    elif any(is_locked(grid, step) for step in steps):
        state = "running"
    elif any(failure_of(grid, step).is_file() for step in steps):
        state = "failed"
    else:
        state = "missing" if evaluated is None else STALE
    return dataclasses.replace(run, trained=trained, evaluated=evaluated, state=state)


def _find(rows: pd.DataFrame, kind: str, parameters: dict, mark: str | None, **fields) -> pd.Series | None:
    """The row with these parameters and fields that counts: made by today's code if there is one, then the newest.

    A setting that came after a row was made had its default in it.
    """
    defaults = dataclasses.asdict({"train": TrainSettings, "evaluate": SegmentSettings}[kind]())
    found = rows[rows["kind"] == kind] if "kind" in rows else rows
    for name, value in parameters.items():
        held = found.get(f"parameters.{name}", pd.Series(index=found.index, dtype=object))
        found = found[held.where(held.notna(), defaults[name]) == value]
    for column, value in (fields | ({} if mark is None else {"fingerprint": mark})).items():
        if column not in found:
            return None
        found = found[found[column] == value]
    return None if found.empty else found.sort_values(["current", "date"]).iloc[-1]


def train_step(grid: GridStudy, run: Run) -> study.Step:
    """The papermill run of `01_train` for a run."""
    given = {**grid.training, **run.point.training, "seed": run.seed}
    minutes = grid.minutes[0] * _cost(given) / _cost(grid.training)
    return study.Step("01_train", f"01_train-{run.training}",
                      study.with_others("01_train", {"study": grid.folder, "data": grid.train, "name": run.training, **given}), minutes)


def evaluate_step(grid: GridStudy, run: Run, trained_key: str) -> study.Step:
    """The papermill run of `02_evaluate_davis` for a run whose training has that key."""
    features = f"trained:{trained_key}" if run.training else run.point.features
    given = {**grid.inference, **run.point.inference} | ({} if run.training else {"seed": run.seed})
    return study.Step("02_evaluate_davis", f"02_evaluate_davis-{run.name}",
                      {"study": grid.folder, "data": grid.evaluate, "name": run.name, "features": features, **given},
                      grid.minutes[1])


def _cost(training: dict) -> float:
    return training["iterations"] * training["batch"] * training["frames"] * training["crop"] ** 2


def failure_of(grid: GridStudy, step: study.Step) -> Path:
    """The executed copy that a failed step leaves."""
    return study.executed_copy(grid.folder, step).with_suffix(".failed.ipynb")


def _lock_file(grid: GridStudy, step: study.Step) -> Path:
    return results.study_folder(grid.folder) / "runs" / f"{step.name}.lock"


@contextlib.contextmanager
def lock_step(grid: GridStudy, step: study.Step) -> Iterator[None]:
    """One process at a time for a step; a second waits. The system frees the lock when its holder dies, however it dies."""
    path = _lock_file(grid, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.truncate(0)
        stream.write(f"{os.uname().nodename} {os.getpid()}\n")
        stream.flush()
        yield


def is_locked(grid: GridStudy, step: study.Step) -> bool:
    """Whether some process is at a step now."""
    path = _lock_file(grid, step)
    if not path.is_file():
        return False
    with open(path) as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def minutes_left(grid: GridStudy, every: list[Run], workers: int = 1) -> float:
    """About how long the rest takes: the plan's minutes, corrected by what the finished runs took."""
    planned, taken, left = 0.0, 0.0, 0.0
    seen = set()
    for run in every:
        parts = [(train_step(grid, run), run.trained)] if run.settings is not None else []
        for step, row in [*parts, (evaluate_step(grid, run, ""), run.evaluated)]:
            if step.name in seen:
                continue
            seen.add(step.name)
            if row is not None and row.current:
                planned, taken = planned + step.minutes, taken + row.seconds / 60
            else:
                left += step.minutes
    return left * (taken / planned if planned and taken else 1) / workers


def listing(grid: GridStudy, every: list[Run]) -> str:
    """A line a run for a terminal: its state, its number; last the sums and the time left."""
    lines = [f"grid {grid.folder!r}: {grid.scale}"]
    for run in every:
        shown = "" if run.evaluated is None else f"J&F {run.score:.1f}"
        if run.state == "running":
            shown = _progress(grid, run)
        elif run.state == "failed":
            failures = [failure_of(grid, step) for step in (train_step(grid, run), evaluate_step(grid, run, ""))]
            shown = " ".join(str(path.relative_to(results.RESULTS)) for path in failures if path.is_file())
        lines.append(f"  {run.name:16s} {run.point.label:36s} {run.state:24s} {shown}".rstrip())
    counts = pd.Series([run.state for run in every]).value_counts()
    lines.append(", ".join(f"{count} {state}" for state, count in counts.items())
                 + f"; left: about {minutes_left(grid, every) / 60:.1f} h one after another")
    return "\n".join(lines)


def _progress(grid: GridStudy, run: Run) -> str:
    if run.trained is not None:
        return "evaluating"
    found = list((results.study_folder(grid.folder) / "runs").glob(f"{run.training}-*/history.csv"))
    done = max((max(0, path.read_text().count("\n") - 1) for path in found), default=0)
    return f"{done} of {run.settings['iterations']} iterations"
