"""The comparison: one line of the CSV file is a method; its table is made from rows, and says what was not run."""

from __future__ import annotations

import dataclasses

import pytest

from dulvos.objectives import OBJECTIVES, TrainSettings
from dulvos.study.comparison import DAVIS, Setting, comparison_steps, comparison_table, curves, methods
from dulvos.study.paper import TABLE1
from dulvos.study.rows import NOT_RUN, Study
from dulvos.study.steps import check_parameters, run_steps

TINY = {"iterations": 2, "crop": 32, "scale_min": 32, "scale_max": 40, "grid": 4, "cross_grid": 2, "gap": 1, "precision": "fp32"}


def test_every_objective_is_compared_on_as_many_frames():
    listed = methods()
    assert {method.objective for method in listed} == set(OBJECTIVES)
    assert len({method.key for method in listed}) == len(listed)
    for method in listed:
        settings = TrainSettings.from_dict({**DAVIS.training, **method.settings, "objective": method.objective})
        assert settings.batch * settings.frames == 40
        assert method.paper is None or any(f"{line.method}, {line.data}" == method.paper for line in TABLE1.itertuples())


def test_steps_fit_their_notebooks_and_needs_come_first(monkeypatch, tmp_path):
    monkeypatch.setenv("DULVOS_RESULTS", str(tmp_path))
    monkeypatch.delenv("DULVOS_DAVIS", raising=False)
    steps = comparison_steps()
    names = [step.full_name for step in steps]
    assert len(set(names)) == len(names)
    for place, step in enumerate(steps):
        check_parameters(step.source, step.parameters)
        assert set(step.needs) <= set(names[:place])


def test_without_rows_everything_says_not_run(study):
    table = comparison_table(study)
    assert set(table["state"]) == {NOT_RUN} and len(table) == len(methods()) + 2 and curves(study).empty


def test_the_table_takes_the_best_layer_and_the_mean_over_seeds(study, write_row):
    for seed, key in ((0, "a"), (1, "b")):
        write_row("train", f"crw-{seed}", f"t{key}", cpu_seconds=3600.0, settings={"batch": 10, "frames": 4})
        for layer, score in (("res3", 0.5), ("res4", 0.4)):
            scores = dict.fromkeys(("J-Mean", "J-Recall", "F-Mean", "F-Recall"), 0.3) | {"J&F-Mean": score + seed / 50}
            write_row("evaluate", f"crw-{seed}-{layer}", f"e{key}{layer}", scores=scores, trained_key=f"t{key}")
    line = comparison_table(study).set_index("method").loc["CRW objective"]
    assert (line["layer"], line["J&F_m"], line["J&F_m at res4"], line["seeds"]) == ("res3", 51.0, 41.0, 2)
    assert line["±"] == 1.4 and line["CPU hours"] == 1.0 and line["paper's J&F_m (other data)"] == 67.6
    assert comparison_table(study).set_index("method").loc["MAST objective", "state"] == NOT_RUN


@pytest.mark.slow
def test_a_miniature_of_the_comparison_runs(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("DULVOS_RESULTS", str(tmp_path))
    setting = Setting("small", str(tiny), TINY, {"context": 2}, seeds=1)
    steps = [dataclasses.replace(step, parameters={**step.parameters, "batch": 2} if step.row == "train" else step.parameters)
             for step in comparison_steps(setting)]
    assert run_steps(steps, threads=1) == 0
    assert set(comparison_table(Study("small", tmp_path))["state"]) == {"run"}
