"""The paper's tables: its numbers, and which of our rows may stand beside them."""

import numpy as np
import pandas as pd
import pytest

from dulvos.study import paper
from dulvos.study.rows import NOT_RUN, all_rows
from tests.conftest import SCORES

METHOD = "the paper's method"


@pytest.fixture
def table1(study):
    """Makes Table 1 of all rows, its lines called by method and data."""
    def make() -> pd.DataFrame:
        table = paper.table1(all_rows(study.results))
        return table.set_index([table["method"], table["train data"].fillna("")])
    return make


def filled(table: pd.DataFrame) -> dict:
    """What stands in "ours", by line."""
    return table.loc[table["ours J&F_m"] != NOT_RUN, "ours J&F_m"].to_dict()


def test_the_papers_numbers_agree_with_each_other():
    scored = paper.TABLE1.dropna(subset="paper J_m").filter(like="paper").astype(float)
    means = (scored["paper J_m"] + scored["paper F_m"]) / 2
    assert np.abs(means - scored["paper J&F_m"]).max() < 0.101
    *parts, mean = paper.TABLE2.filter(like="paper").astype(float).to_numpy().T
    assert np.abs(np.mean(parts, 0) - mean).max() < 0.051
    assert [len(table) for table in (paper.TABLE1, paper.TABLE2, paper.TABLE3)] == [10, 10, 6]
    assert paper.TABLE1.loc[0, "paper J&F_m"] == 43.1 and paper.TABLE1.loc[6, "paper J_r"] is None
    assert set(paper.TABLE3["method"]) < set(paper.TABLE1["method"]) and set(paper.TABLE1["stride"]) == {4, 8}


def test_table1_is_filled_by_whole_runs_of_the_papers_protocol(write_row, table1):
    write_row("evaluate", "random", "e1")
    free = {"seed": 3, "workers": 8, "snapshot_every": 100, "precision": "fp32"}  # changes no number
    write_row("train", "trained", "t1", settings=free)
    write_row("evaluate", "trained", "e2", trained_key="t1", scores={"J&F-Mean": 0.68444})
    write_row("train", "trained", "t3", study="there", data="OxUvA")
    write_row("evaluate", "trained", "e4", trained_key="t3", study="here")
    table = table1()
    assert filled(table) == {(paper.RANDOM, ""): 50.0, (METHOD, "YouTube-VOS"): 68.4, (METHOD, "OxUvA"): 50.0}
    assert table.loc[(METHOD, "YouTube-VOS"), ["difference", "state"]].tolist() == [-0.9, "run (study study)"]
    assert table.loc[("MAST", "OxUvA"), "state"] == NOT_RUN


@pytest.mark.parametrize(("what", "slip"), [
    *(("evaluate", slip) for slip in (
        {"data": "cutouts"}, {"data": "DAVIS-2016"}, {"split": "train"}, {"sequences": 20}, {"objects": 60},
        {"frames": 1998}, {"settings": {"shorter_side": 240}}, {"settings": {"layer": "key"}},
        {"settings": {"context": 5}})),
    *(("train", slip) for slip in (
        {"data": "cutouts"}, {"data": "DAVIS-2016"}, {"data": "DAVIS-2017"}, {"key": "t2"},
        {"videos": None})),
    *(("train", {"settings": {name: value}}) for name, value in {
        "lam": 0.0, "batch": 8, "crop": 128, "grid": 4, "iterations": 2, "lr": 1.0, "lr_every": 30_000,
        "gap": 30, "optimiser": "sgd", "centre": True, "scale_max": 256}.items())], ids=str)
def test_table1_takes_no_other_run(write_row, table1, what, slip):
    evaluation, trained = (slip, {}) if what == "evaluate" else ({}, slip)
    if what == "evaluate":
        write_row("evaluate", "random", "e1", **slip)
    write_row("train", "trained", **{"key": "t1", **trained})
    write_row("evaluate", "trained", "e2", trained_key="t1", **evaluation)
    assert not filled(table1())


def test_table1_takes_no_weights_of_unknown_training_and_no_release_at_another_layer(write_row, table1):
    write_row("train", "trained", "t1")
    for features, layer in {"davis2016": "res4", "weights.safetensors": "res4", "crw": "res4",
                            "araslanov-oxuva": "res3"}.items():
        write_row("evaluate", "trained", f"e-{features}", features=features, settings={"layer": layer})
    assert not filled(table1())


def test_the_newest_row_of_todays_code_counts_and_older_ones_are_marked(write_row, table1):
    for key, score, stale in (("e", 0.1, True), ("e22", 0.2, True)):
        write_row("evaluate", "random", key, scores={"J&F-Mean": score}, stale=stale)
    line = table1().loc[(paper.RANDOM, "")]
    assert line["ours J&F_m"] == 20.0 and line["state"].startswith("†") and "1234567" in line["state"]
    write_row("evaluate", "random", "e1", scores={"J&F-Mean": 0.3})
    line = table1().loc[(paper.RANDOM, "")]
    assert line["ours J&F_m"] == 30.0 and line["state"] == "run (study study)"
    write_row("train", "trained", "t1", stale=True)
    write_row("evaluate", "trained", "e3", trained_key="t1")
    assert table1().loc[(METHOD, "YouTube-VOS"), "state"].startswith("†")


def test_released_weights_lengths_and_imagenet_have_lines_of_their_own(write_row, table1):
    """They never stand for ours trained to the end of the schedule."""
    for name, score in (("crw", 0.676), ("araslanov-youtube-vos", 0.693), ("imagenet", 0.5)):
        settings = {"layer": "res3" if name == "crw" else "res4"}
        write_row("evaluate", name, f"e-{name}", settings=settings, scores={**SCORES, "J&F-Mean": score})
    write_row("train", "trained", "t1", settings={"iterations": 13_017})  # 60 epochs
    write_row("evaluate", "trained", "e3", trained_key="t1", scores={**SCORES, "J&F-Mean": 0.65})
    table = table1()
    assert filled(table.iloc[:10]) == {("CRW", "Kinetics-400"): 67.6}
    assert {method: score for (method, _), score in filled(table.iloc[10:]).items()} == {
        f"{METHOD}, released length": 65.0, f"{METHOD}, released weights": 69.3,
        f"{paper.IMAGENET}, supervised": 50.0}
    assert table["paper J&F_m"].tolist()[10:] == [69.3, 69.3, None]


@pytest.mark.parametrize(("fields", "trained", "label"), [
    ({"snapshot": 13_017}, {}, "iteration 13,017"),
    ({"selected": "selected on 5", "settings": {"layer": "key"}}, {}, "selected on 5"),
    ({}, {"miscounted": ["TrackingNet: 3 videos found"]}, "data of another size"),
    ({"selected": "best"}, {"settings": {"iterations": 13_017}, "miscounted": ["one"]},
     "released length, data of another size, best"),
], ids=["snapshot", "selected", "miscounted", "all"])
def test_what_is_not_the_last_checkpoint_has_a_line_of_its_own(write_row, table1, fields, trained, label):
    write_row("train", "trained", "t1", **{"miscounted": [], **trained})
    write_row("evaluate", "trained", "e1", trained_key="t1", **fields)
    assert filled(table1()) == {(f"{METHOD}, {label}", "YouTube-VOS"): 50.0}
    write_row("evaluate", "trained", "e22", trained_key="t1", scores={"J&F-Mean": 0.6})
    assert filled(table1().iloc[:10]) == ({} if trained else {(METHOD, "YouTube-VOS"): 60.0})


def test_table2_tells_which_submissions_to_send(write_row, study):
    valid = {"split": "valid", "data": "YouTube-VOS", "sequences": 474, "every_frame": True, "scores": None}
    write_row("youtube-vos", "crw", "y1", settings={"layer": "res3"}, **valid)
    write_row("youtube-vos", "araslanov-kinetics", "y2", **valid)
    write_row("youtube-vos", "araslanov-trackingnet", "y3", **{**valid, "every_frame": False})
    write_row("youtube-vos", "araslanov-trackingnet", "y4", **{**valid, "sequences": 473})
    write_row("train", "trained", "t1")
    write_row("youtube-vos", "trained-selected", "y5", trained_key="t1", selected="selected on 5",
              settings={"layer": "key"}, **valid)
    write_row("youtube-vos", "random", "y6", **{**valid, "split": "local"})  # no score of the server's
    zipped = study.folder / "masks/crw-y1/submission.zip"
    zipped.parent.mkdir(parents=True)
    zipped.touch()
    table = paper.table2(all_rows(study.results), study.results)
    states = table[table["state"] != NOT_RUN].set_index(["method", "train data"])["state"].to_dict()
    assert list(states) == [("CRW", "Kinetics-400"), (METHOD, "YouTube-VOS"), (METHOD, "Kinetics-400")]
    assert "results/study/masks/crw-y1/submission.zip" in states["CRW", "Kinetics-400"]
    assert "(selected on 5)" in states[METHOD, "YouTube-VOS"] and ".zip" not in states[METHOD, "Kinetics-400"]


def test_table3_sets_only_the_papers_settings_beside_the_paper(write_row, study):
    write_row("train", "trained", "t1", peak_memory_mb=11000.4, seconds=7200.0, device="cuda", gpu="A100")
    write_row("train", "lam0", "t2", data="OxUvA", settings={"lam": 0.0}, threads=3, gpu="A100")
    write_row("train", "small", "t3", data="Kinetics-400", settings={"crop": 128})
    write_row("train", "part", "t44", miscounted=True)
    table = paper.table3(all_rows(study.results))
    run = table[table["our iterations"] != NOT_RUN].set_index("method")
    assert list(run.index) == [METHOD, "lam0 (study study)", "part (study study)", "small (study study)"]
    assert run.loc[METHOD].tolist() == [
        "YouTube-VOS", 100_000, "6 h", 12, 108_469, "2.0 h", 11000, "A100", "run"]
    lam0 = run.loc["lam0 (study study)", ["paper iterations", "our time", "device"]]
    assert lam0.tolist() == [None, "2 min", "cpu, 3 threads"]
