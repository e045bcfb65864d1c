"""The comparison: a line of the CSV file is a method; its table is made from rows."""

import pytest

from dulvos.errors import InputError
from dulvos.objectives import OBJECTIVES, TrainSettings
from dulvos.study.comparison import TRAINING, comparison_steps, comparison_table, methods, visible
from dulvos.study.rows import NOT_RUN, Study
from dulvos.study.runner import Workers, run_steps
from tests.conftest import SCORES

TINY = {"iterations": 2, "crop": 64, "scale_min": 64, "scale_max": 72, "grid": 4, "cross_grid": 2,
        "gap": 1, "precision": "fp32"}


def test_every_objective_is_compared_on_as_many_frames():
    listed = methods()
    settings = [TrainSettings.from_dict({**TRAINING, **line["settings"]}) for line in listed
                if line["settings"]]
    assert {own.objective for own in settings} == set(OBJECTIVES)
    assert {own.batch * own.frames for own in settings} == {40}
    assert len({line["key"] for line in listed}) == len(listed)


@pytest.mark.parametrize(("line", "words"), [
    ("crw,CRW,objective=crw bath=10,,", "bath"), ("crw,CRW,objective=crw frames=1,,", "frames"),
    ("crw,CRW,,,", "'crw' needs settings"), ("colour,colours,tau=0.1,,", "random, colour: none"),
    ("random,again,,,", "a key of its own"), (",none,objective=crw,,", "a key of its own"),
    ("crw,CRW,objective=crw,CRW,", "CRW, Kinetics-400")])
def test_a_wrong_line_is_named(tmp_path, line, words):
    path = tmp_path / "own.csv"
    path.write_text(f"key,name,settings,paper,differs\nrandom,random features,,,\n{line}\n")
    with pytest.raises(InputError, match=f"own.csv, line 3: .*{words}"):
        methods(path)


def test_without_rows_everything_says_not_run(study):
    table = comparison_table(study)
    assert set(table["state"]) == {NOT_RUN} and len(table) == len(methods())


def test_the_table_takes_the_best_layer_and_the_mean_over_seeds(study, write_row):
    for seed, key in ((0, "a"), (1, "b")):
        write_row("train", f"crw-{seed}", f"t{key}", cpu_seconds=3600.0, settings={"batch": 10, "frames": 4})
        for layer, score in (("res3", 0.5), ("res4", 0.4)):
            scores = {**SCORES, "J&F-Mean": score + seed / 50}
            write_row("evaluate", f"crw-{seed}-{layer}", f"e{key}{layer}", scores=scores,
                      trained_key=f"t{key}")
    for seed, score in ((0, 0.5), (1, 0.6)):
        write_row("evaluate", f"mast-{seed}-res3-480p", f"full{seed}", trained_key="ta",
                  scores={**SCORES, "J&F-Mean": score})
    for seed, key, made in ((2, "o", {"settings": {"iterations": 7}}), (3, "p", {})):  # older, and different
        write_row("train", f"crw-{seed}", key, cpu_seconds=1.0, **made)
        write_row("evaluate", f"crw-{seed}-res3", "e" + key, scores=SCORES, trained_key=key,
                  fingerprint="f" if made else "other data")
    # of crw alone, one degree of freedom
    assert visible(study, "res3") == pytest.approx(12.706 * 2**0.5, rel=1e-3)
    table = comparison_table(study).set_index("method")
    line, mast = table.loc["CRW objective"], table.loc["MAST objective"]
    assert (line["layer"], line["J&F_m"], line["J&F_m at res4"], line["seeds"]) == ("res3", 51.0, 41.0, 2)
    assert line["±"] == 1.4 and line["CPU hours"] == 1.0 and line["paper's J&F_m (other data)"] == 67.6
    assert mast["state"] == NOT_RUN and mast["J&F_m at 480p"] == 55
    assert table.loc["the paper's method", "J&F_m at 480p"] == NOT_RUN


def test_an_evaluation_is_as_old_as_its_training(study, write_row):
    write_row("train", "crw-0", "t", stale=True, cpu_seconds=1.0)
    write_row("evaluate", "crw-0-res4", "e", trained_key="t", scores=SCORES)
    assert comparison_table(study).set_index("method").loc["CRW objective", "state"].startswith("†")


def test_a_line_mixes_no_settings_and_is_as_old_as_its_oldest_number(study, write_row):
    write_row("train", "mast-1", "other", settings={"lr": 1.0}, cpu_seconds=1.0)
    write_row("train", "mast-0", "t", cpu_seconds=1.0)
    write_row("evaluate", "mast-1-res3-480p", "e", trained_key="other", scores=SCORES)
    low = {**SCORES, "J&F-Mean": 0.1}
    write_row("evaluate", "mast-0-res4", "ee", trained_key="t", stale=True, scores=low)
    write_row("evaluate", "mast-0-res3", "eee", trained_key="t", scores=SCORES)
    line = comparison_table(study).set_index("method").loc["MAST objective"]
    assert line["J&F_m at 480p"] == NOT_RUN and line["J&F_m at res4"] == 10 and line["state"].startswith("†")


@pytest.mark.slow
def test_a_miniature_of_the_comparison_runs(tiny):
    steps = comparison_steps("small", str(tiny), training=TINY, inference={"context": 2}, seeds=1,
                             snapshots=())
    assert run_steps(steps, Workers(threads=1)) == 0
    assert set(comparison_table(Study("small"))["state"]) == {"run"}
