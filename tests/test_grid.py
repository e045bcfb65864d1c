"""The table of the grid, and what is known of each run from its rows."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from dulvos.study import results, steps as study
from dulvos.study import ablation as grid, ablation_states as states
from dulvos.study.ablation import EDGES, STUDIES, GridStudy, grid_points
from dulvos.study.ablation_states import Run, evaluate_step, grid_runs, listing, lock_step, minutes_left, train_step
from dulvos.errors import InputError
from dulvos.inference import SegmentSettings
from dulvos.training import TrainSettings
from tests import fake_grid

PAPER = STUDIES["paper"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_grid.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def tiny(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GridStudy:
    """A grid in an empty results folder."""
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    return fake_grid.tiny_grid(data)


def named(study_: GridStudy, name: str) -> Run:
    return next(run for run in grid_runs(study_) if run.name == name)


# the table

def test_the_paper_s_grid_is_the_paper_s() -> None:
    """method.md: (B, T) at B·T = 80, λ, N, M, T at B = 16, five seeds; every difference that the text states, and no other."""
    points = {point.name: point for point in grid_points(PAPER)}
    assert points["baseline"].label == "B=16 T=5 λ=0.1 N=8 M=4" and PAPER.seeds == 5
    pairs = [(p.training["batch"], p.training["frames"]) for p in points.values() if p.varied == "B, T"]
    assert pairs == [(80, 1), (40, 2), (8, 10)]
    edges = (("λ", "lam", [0, 1]), ("N", "grid", [4, 16]), ("M", "cross_grid", [2, 8]), ("T", "frames", [10, 15]))
    for edge, field, values in edges:
        assert [p.training for p in points.values() if p.varied == edge] == [{field: value} for value in values]
    stated = {name: point.paper for name, point in points.items() if point.paper is not None}
    assert stated == {"B80T1": -9.3, "lam0": -2.3, "lam1": -0.8, "N4": -8.2, "M8": -1.5, "T15": 0.0}
    assert sum(p.varied in EDGES for p in points.values()) == len(grid.FIG3)


@pytest.mark.parametrize("scale", STUDIES)
def test_every_point_is_one_change_of_settings_that_exist(scale: str) -> None:
    """And the notebooks take what they are given."""
    grid_ = STUDIES[scale]
    base = dataclasses.asdict(TrainSettings.from_dict(grid_.training))
    points = grid_points(grid_)
    assert len({point.name for point in points}) == len(points)
    for run in grid_runs(grid_, check_data=False):
        changed = {k for k, v in (run.settings or base).items() if v != base[k]} - {"seed"}
        beside = {"iterations", "lr_every"} if grid_.epochs else set()
        assert changed - beside in (set(run.point.training) - beside, {"batch", "frames"})
        assert run.inference == dataclasses.asdict(SegmentSettings(**{**grid_.inference, **run.point.inference}))
        if run.training:
            study.check_parameters("01_train", train_step(grid_, run).parameters)
        study.check_parameters("02_evaluate", evaluate_step(grid_, run, "0").parameters)


def test_epochs_stay_where_iterations_mean_epochs() -> None:
    """80 clips a batch see a video as often as 16 do in a fifth of the iterations; a small study counts iterations."""
    settings = {run.point.name: run.settings for run in grid_runs(PAPER, check_data=False) if run.settings}
    clips = {name: tuple(settings[name][count] * settings[name]["batch"] for count in ("iterations", "lr_every"))
             for name in ("baseline", "B80T1", "B40T2", "B8T10")}
    for seen, epochs in zip(zip(*clips.values()), (500, 100)):
        assert max(abs(count - epochs * 3471) for count in seen) <= 80, "but for a batch"
    davis = {run.settings["iterations"] for run in grid_runs(STUDIES["davis"], check_data=False) if run.settings}
    assert davis == {STUDIES["davis"].training["iterations"]}


def test_scales_are_never_mixed() -> None:
    assert len({grid_.folder for grid_ in STUDIES.values()}) == len(STUDIES)
    assert all(grid_.folder.startswith("ablation-") for grid_ in STUDIES.values()), "what the tables of all studies leave out"
    with pytest.raises(InputError, match="study must be one of demo, davis, paper, not 'tiny'"):
        grid.find_study("tiny")


# states

def test_layers_share_the_baseline_s_training(tiny: GridStudy) -> None:
    runs = {run.name: run for run in grid_runs(tiny)}
    assert {runs[name].training for name in ("res3-0", "key-0", "baseline-0")} == {"baseline-0"}
    assert runs["random-0"].training == "" and runs["lam0-0"].training == "lam0-0"
    assert [run.seed for run in runs.values() if run.point.varied == "baseline"] == [0, 1, 2]


def test_a_row_counts_for_what_determined_it_and_for_nothing_else(tiny: GridStudy) -> None:
    """Its parameters, its data, its code; an evaluation for the training it rests on."""
    fake_grid.write_rows(tiny, named(tiny, "lam0-0"), 47.9)
    found = {run.name: run.state for run in grid_runs(tiny)}
    assert found.pop("lam0-0") == "done" and named(tiny, "lam0-0").score == pytest.approx(47.9)
    assert "done" not in found.values()
    longer = dataclasses.replace(tiny, training={**tiny.training, "iterations": 9})
    assert named(longer, "lam0-0").state == "missing"
    other_data = {"fingerprint": "0"}
    fake_grid.write_rows(tiny, named(tiny, "lam1-0"), 40, **other_data)
    assert named(tiny, "lam1-0").state == "missing"
    assert next(r for r in grid_runs(tiny, check_data=False) if r.name == "lam1-0").state == "done", "a clone without the data"
    fake_grid.write_rows(tiny, named(tiny, "N4-0"), 40, code="0")
    assert named(tiny, "N4-0").state == "done by earlier code" and named(tiny, "N4-0").score == pytest.approx(40)


def test_running_and_failed_are_seen_and_end(tiny: GridStudy) -> None:
    run = named(tiny, "N4-0")
    with lock_step(tiny, train_step(tiny, run)):
        assert named(tiny, "N4-0").state == "running"
        assert "0 of 8 iterations" in listing(tiny, grid_runs(tiny))
    assert named(tiny, "N4-0").state == "missing"
    copy = states.failure_of(tiny, train_step(tiny, run))
    copy.parent.mkdir(parents=True)
    copy.write_text("{}")
    assert named(tiny, "N4-0").state == "failed" and "01_train-N4-0.failed.ipynb" in listing(tiny, grid_runs(tiny))
    fake_grid.write_rows(tiny, run, 45.8)
    assert named(tiny, "N4-0").state == "done"


def test_the_time_left_learns_from_the_time_taken(tiny: GridStudy) -> None:
    before = minutes_left(tiny, grid_runs(tiny))
    fake_grid.write_rows(tiny, named(tiny, "baseline-0"), 50, minutes=10)  # both steps were planned for a minute
    every = grid_runs(tiny)
    assert minutes_left(tiny, every) == pytest.approx(10 * (before - 2))
    assert minutes_left(tiny, every, workers=2) == pytest.approx(minutes_left(tiny, every) / 2)


def test_the_command_lists_the_grid_without_data(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "DULVOS_DAVIS"} | {"DULVOS_RESULTS": str(tmp_path)}
    done = subprocess.run([sys.executable, "-m", "dulvos", "grid", "--study", "davis"], capture_output=True, text=True,
                          cwd=results.ROOT, env=environment)
    assert done.returncode == 0 and "baseline-2" in done.stdout and "missing" in done.stdout.splitlines()[-1], done.stderr
    done = subprocess.run([sys.executable, "-m", "dulvos", "grid", "--study", "davis", "--run"], capture_output=True, text=True,
                          cwd=results.ROOT, env=environment)
    assert done.returncode == 2 and "--davis DIR" in done.stderr and done.stderr.count("\n") == 1


def test_a_row_from_before_a_setting_had_its_default():
    settings = dataclasses.asdict(TrainSettings())
    old = {f"parameters.{name}": value for name, value in settings.items() if name != "view_flip"}
    rows = pd.DataFrame([{"kind": "train", "key": "k", "current": False, "date": "2025", **old}])
    assert states._find(rows, "train", settings, None).key == "k"
    assert states._find(rows, "train", settings | {"view_flip": False}, None) is None
    assert states._find(rows, "train", settings | {"lam": 0.2}, None) is None


@pytest.mark.parametrize("name", STUDIES)
def test_every_training_is_one_that_the_notebook_takes(name):
    """Flat where its cell has a line for a setting, else in `others`; none is lost."""
    found = STUDIES[name]
    for run in grid_runs(found, check_data=False):
        if run.settings:
            parameters = states.train_step(found, run).parameters
            study.check_parameters("01_train", parameters)
            given = {**parameters, **parameters.get("others", {})}
            assert {setting: given[setting] for setting in {**found.training, **run.point.training}} == \
                {**found.training, **run.point.training}
