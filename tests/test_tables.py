"""The tables of a study: what is compared with what, and how it is printed and written."""

import numpy as np
import pandas as pd
import pytest

from dulvos.errors import InputError
from dulvos.study import tables
from dulvos.study.rows import NOT_RUN
from tests.conftest import SCORES


def test_study_table(study, write_row):
    better = {**SCORES, "J&F-Mean": 0.7046, "J-Decay": 0.1}
    for key, (name, scores) in enumerate({"trained": better, "random": SCORES, "zebra": SCORES}.items()):
        write_row("evaluate", name, f"e{key}", data="cutouts", scores=scores)
    write_row("evaluate", "trained", "e9", data="cutouts", snapshot=100, scores={**SCORES, "J&F-Mean": 0.9})
    table = tables.study_table(study.rows()).set_index("method")
    assert [*table.index] == ["first mask copied", "raw colours", "random features", "trained features",
                              "trained, iteration 100", "zebra", "trained - random"]
    assert table.loc["trained features", ["J&F", "objects"]].tolist() == [70.5, 61]
    assert table.loc["trained - random", ["J&F", "J decay"]].tolist() == [20.5, -10.0]
    assert table.loc["raw colours", ["J&F", "state"]].tolist() == [None, NOT_RUN]
    assert "+20.5" in tables.summary(study)
    text = tables.to_text(table.reset_index()).set_index("method")
    assert text.loc["random features", ["threads", "seconds a frame"]].tolist() == ["2", "0.12"]
    assert text.loc["trained - random", "J&F"] == "+20.5"


def test_a_difference_is_as_old_as_the_older_side(study, write_row):
    write_row("train", "trained", "t1", stale=True)
    write_row("evaluate", "trained", "e1", trained_key="t1")
    write_row("evaluate", "random", "e2")
    last = tables.to_text(tables.study_table(study.rows())).iloc[-1]
    assert last["state"].startswith("†") and last["J&F"] == "+0.0"


@pytest.mark.parametrize("slip", [{"settings": {"shorter_side": 240}}, {"fingerprint": "other"},
                                  {"data": "DAVIS-2016"}], ids=str)
def test_no_difference_between_runs_that_differ_in_more_than_their_features(study, write_row, slip):
    write_row("evaluate", "trained", "e1")
    write_row("evaluate", "random", "e22", **slip)
    table = tables.study_table(study.rows())
    assert table.loc[table["method"] == "trained - random", "J&F"].isna().all()
    assert table["data"].unique().tolist() == ["DAVIS-2016 val"] * ("data" in slip) + ["DAVIS-2017 val"]


def test_sequence_table_ends_with_the_mean_over_objects(study, write_row):
    path = study.path(write_row("evaluate", "random", "e1", data="cutouts", objects=4), "scores", ".csv")
    path.parent.mkdir()
    pd.DataFrame({"sequence": ["a", "a", "a", "b"], "object": [1, 2, 3, 1], "J mean": [0.2, 0.4, 0.6, 1.0],
                  "F mean": [0.4, 0.4, 0.4, 1.0]}).to_csv(path, index=False)
    part = study.path(write_row("evaluate", "copy", "e3", data="cutouts", objects=1), "scores", ".csv")
    part.write_text(path.read_text().rpartition("b,")[0])
    write_row("evaluate", "trained-selected", "e2", data="cutouts", selected="on a")
    table = tables.sequence_table(study).set_index("sequence")
    assert [*table] == ["data", "objects", *tables.METHODS.values()]
    assert table["random features"].to_dict() == {"a": 40.0, "b": 100.0, "mean over objects": 55.0}
    assert table["objects"].to_dict() == {"a": 3, "b": 1, "mean over objects": 4}
    assert set(table["trained features"]) == {NOT_RUN}


def test_evaluations_of_the_curve_are_no_method_of_a_table(study, write_row):
    write_row("evaluate", "curve-500", "c1", date="2026-01-01", data="of the curve alone")
    table = tables.study_table(study.rows())
    assert not table["method"].str.startswith("curve").any() and set(table["state"]) == {NOT_RUN}


def test_a_name_alone_makes_no_method(study, write_row):
    write_row("evaluate", "copy", "c", features="trained")
    table = tables.study_table(study.rows()).set_index("method")
    assert table.loc["first mask copied", "state"] == NOT_RUN
    assert table.loc["copy with features trained", "state"] == "run"


def test_without_rows_everything_says_not_run(study):
    made = tables.write_tables(study)
    assert set(made["table1"]["ours J&F_m"]) == set(made["study"]["state"]) == {NOT_RUN}
    assert set(made["table3"]["our iterations"]) == {NOT_RUN} and made["sequences"].empty
    assert NOT_RUN in tables.summary(study)
    assert {path.name for path in (study.folder / "tables").iterdir()} == {
        f"{name}.{suffix}" for name in made for suffix in ("csv", "md")}


def test_a_row_without_a_number_is_named(study, write_row):
    write_row("evaluate", "random", "e1", seconds_per_frame=None)
    with pytest.raises(InputError, match="evaluate-random-e1.json"):
        tables.study_table(study.rows())
    write_row("train", "trained", "t1", seconds=1.0, device="cpu", threads=None)
    with pytest.raises(InputError, match="train-trained-t1.json"):
        tables.table3(study.rows())


def test_markdown():
    table = pd.DataFrame({"name": ["a|b", None], "difference": [1.26, -2.0], "n": [3000, None]}, dtype=object)
    assert tables.to_markdown(table).splitlines() == [
        "| name | difference | n |", "| --- | ---: | ---: |", "| a\\|b | +1.3 | 3,000 |", "| - | -2.0 | - |"]


def test_a_mask_is_lost_where_the_scores_fall():
    scores = np.full(30, 0.9)
    scores[[0, -1]] = np.nan
    scores[17:-1] = 0.2
    assert tables.failure_frame(scores) == 17
    assert tables.failure_frame(scores[:3]) == 0
