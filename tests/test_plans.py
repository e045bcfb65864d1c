"""Plans: what a command runs; each step's parameters are known to its notebook, and needs come first."""

from __future__ import annotations

import pytest

from dulvos.errors import InputError
from dulvos.study import ablation
from dulvos.study.plans import DAVIS_CPU, davis_steps, demo_steps, grid_steps
from dulvos.study.rows import ROOT
from dulvos.study.steps import check_parameters, find_state
from dulvos.training import TrainSettings

PLANS = {"demo": demo_steps, "davis": davis_steps, "davis on a GPU": lambda: davis_steps("paper"),
         **{f"grid {name}": lambda name=name: grid_steps(name) for name in ablation.SCALES}}


@pytest.fixture(autouse=True)
def committed(monkeypatch):
    """The rows that came with the checkout, and no data to compare them with."""
    monkeypatch.setenv("DULVOS_RESULTS", str(ROOT / "results"))
    monkeypatch.delenv("DULVOS_DAVIS", raising=False)


@pytest.mark.parametrize("plan", PLANS)
def test_parameters_are_known_and_needs_come_first(plan):
    steps = PLANS[plan]()
    names = [step.full_name for step in steps]
    assert len(set(names)) == len(names) and len({step.study for step in steps}) == 1
    for place, step in enumerate(steps):
        check_parameters(step.source, step.parameters)
        assert set(step.needs) <= set(names[:place])
        if step.row == "train":
            TrainSettings.from_dict({name: value for name, value in step.given.items()
                                     if name in TrainSettings.__dataclass_fields__})


@pytest.mark.parametrize(("plan", "missing"), [("demo", set()), ("davis", {"02_evaluate-curve-2000"})])
def test_committed_rows_belong_to_the_plans_steps(plan, missing):
    """Were a default or a parameter to move, the rows of the README would not be those of its commands any more."""
    steps = [step for step in PLANS[plan]() if step.row]
    assert {step.full_name for step in steps if find_state(step).row is None} == missing


def test_the_committed_grid_is_done_but_for_what_changed():
    """One frame a clip has a version of its own since its first run."""
    open_points = {step.name for step in grid_steps("davis") if step.row == "evaluate" and find_state(step).word != "done"}
    seeds = {f"{point.name}-{seed}" for point in ablation.points(ablation.find_scale("davis")) for seed in (1, 2)}
    assert open_points - seeds == {"B40T1-0"}


def test_a_grids_training_counts_by_its_row_unless_an_evaluation_needs_its_weights():
    wanted = {step.name: step for step in grid_steps("davis", ["N4-0", "B40T1-0"])}
    assert set(wanted) == {"N4-0", "B40T1-0", ""}
    files = {step.name: step.files for step in grid_steps("davis", ["N4-0", "B40T1-0"]) if step.row == "train"}
    assert files == {"N4-0": False, "B40T1-0": True}


def test_the_davis_study_keeps_the_snapshots_of_its_curve():
    curve = [step for step in davis_steps() if step.name.startswith("curve-")]
    kept = {int(step.parameters["features"].partition("@")[2]) for step in curve if "@" in step.parameters["features"]}
    assert kept and all(iteration % DAVIS_CPU["snapshot_every"] == 0 for iteration in kept)
    assert {step.parameters["shorter_side"] for step in curve} == {240}


@pytest.mark.parametrize("call", [lambda: grid_steps("large"), lambda: grid_steps("demo", ["N5-0"]), lambda: davis_steps("gpu")])
def test_unknown_names_are_refused(call):
    with pytest.raises(InputError):
        call()
