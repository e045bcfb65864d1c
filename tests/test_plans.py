"""Plans: what a command runs; each step's parameters are known to its notebook, and needs come first."""

import pytest

from dulvos.errors import InputError
from dulvos.study import ablation
from dulvos.study.comparison import comparison_steps
from dulvos.study.plans import demo_steps, grid_steps, study_steps, train_step
from dulvos.study.rows import ROOT, Study
from dulvos.study.steps import check_parameters, find_state
from dulvos.training import TrainSettings

PLANS = {"demo": demo_steps, "davis": lambda: study_steps("davis"),
         "davis on a GPU": lambda: study_steps("davis-paper"),
         "comparison": comparison_steps,
         **{f"grid {name}": lambda name=name: grid_steps(name) for name in ablation.SCALES}}


@pytest.fixture(autouse=True)
def committed(monkeypatch):
    """The rows that came with the checkout, and no data to compare them with."""
    monkeypatch.setenv("DULVOS_RESULTS", str(ROOT / "results"))


@pytest.mark.parametrize("plan", PLANS)
def test_parameters_are_known_and_needs_come_first(plan):
    steps = PLANS[plan]()
    names = [(step.study, step.full_name) for step in steps]
    assert len(set(names)) == len(names)
    for place, step in enumerate(steps):
        check_parameters(step.source, step.parameters)
        assert {(step.study, need) for need in step.needs} <= set(names[:place])
        if step.row == "train":
            TrainSettings.from_dict({name: value for name, value in step.given.items()
                                     if name in TrainSettings.__dataclass_fields__})


@pytest.mark.parametrize(("plan", "missing"), [("demo", set()), ("davis", {"02_evaluate-curve-2000"})])
def test_committed_rows_belong_to_the_plans_steps(plan, missing):
    """If a default or a parameter moved, the README's rows would no longer be those of its commands."""
    steps = [step for step in PLANS[plan]() if step.row]
    assert {step.full_name for step in steps if find_state(step)[1] is None} <= missing


def test_the_committed_grid_has_a_seed_of_every_point():
    first = [step for step in grid_steps("davis") if step.row == "evaluate" and step.name.endswith("-0")]
    assert [step.name for step in first if find_state(step)[0] != "done"] == []


@pytest.mark.parametrize(("scale", "needed"), [("davis", set()), ("paper", {"N4-0"})])
def test_a_grids_training_counts_by_its_row_unless_an_evaluation_needs_its_weights(scale, needed):
    """The evaluation of N4-0 was run at the scale "davis" only."""
    steps = grid_steps(scale, ["N4-0"])
    assert {step.name for step in steps} == {"N4-0", ""}
    assert {step.name for step in steps if step.files and step.row} == needed


def test_the_davis_study_keeps_the_snapshots_of_its_curve():
    train, *others = study_steps("davis")
    curve = [step for step in others if step.name.startswith("curve-")]
    kept = [step.parameters["features"].partition("@")[2] for step in curve]
    assert any(kept) and not any(int(iteration or 0) % train.given["snapshot_every"] for iteration in kept)
    assert {step.parameters["shorter_side"] for step in curve} == {240}


@pytest.mark.parametrize(("plan", "arguments", "named"), [
    (grid_steps, ("large",), "davis-long.*large"), (grid_steps, ("demo", ["N5-0"]), "N5-0"),
    (train_step, (Study("s"), "a", "cutouts", {"crop": "large"}, 1), "crop"),
    (train_step, (Study("s"), "a", "cutouts", {"corp": 64}, 1), "corp")])
def test_unknown_names_and_wrong_settings_are_refused(plan, arguments, named):
    with pytest.raises(InputError, match=named):
        plan(*arguments)
