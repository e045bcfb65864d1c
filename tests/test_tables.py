"""Tables: what may stand beside the paper's numbers, and what may not."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pandas as pd
import pytest

from dulvos.study import paper, results, tables
from dulvos.errors import InputError
from dulvos.study import youtube_vos
from dulvos.study.local_split import LOCAL
from dulvos.study.collections import SOURCES, paper_settings
from dulvos.inference import SegmentSettings
from dulvos.training import TrainSettings

SCORES = {"J&F-Mean": 0.5, "J-Mean": 0.4, "J-Recall": 0.3, "J-Decay": 0.2, "F-Mean": 0.6, "F-Recall": 0.1, "F-Decay": 0.05}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    return tmp_path


def write(kind, name, key, *, study="study", settings=None, stale=False, **fields):
    """A row as a run at the paper's settings leaves it, but for what is given; longer keys are newer."""
    titles = {source.title: collection for collection, source in SOURCES.items()}
    defaults = paper_settings(titles.get(fields.get("data"), "youtube-vos"), 3471) if kind == "train" else SegmentSettings()
    row = {"kind": kind, "study": study, "name": name, "key": key, "seconds": 90.0, "peak_memory_mb": 1234.5, "device": "cpu",
           "frames": 1999, "parameters": {**dataclasses.asdict(defaults), **(settings or {})}, "fingerprint": "f", "threads": 2,
           "commit": "1234567890", "version": 0 if stale else results.VERSIONS[kind],
           "date": f"2025-01-01T00:00:{len(key):02d}"}
    if kind == "train":
        row |= {"iterations": row["parameters"]["iterations"], "split": "train", "data": "YouTube-VOS", "videos": 3471,
                "encoder": "runs/encoder.safetensors"}
    else:
        row |= {"features": name, "trained_key": "", "data": "DAVIS-2017", "split": "val", "sequences": 30, "objects": 61,
                "scores": SCORES, "seconds_per_frame": 0.123}
    results.write_row(study, {**row, **fields})


def ours(method=paper.OURS, data="YouTube-VOS"):
    """What Table 1 says on one line."""
    table = paper.TABLE1
    place, = table.index[(table["method"] == method) & ((table["data"] == data) | (method == paper.RANDOM))]
    return tables.table1(tables.all_rows()).loc[place]


def filled():
    return (tables.table1(tables.all_rows())["ours J&F_m"] != tables.NOT_RUN).sum()


def test_papers_numbers_agree_with_each_other():
    scored = paper.TABLE1.dropna(subset="J_m")
    mean = (scored["J_m"] + scored["F_m"]).astype(float) / 2
    assert np.abs(mean - scored["J&F_m"].astype(float)).max() < 0.101
    parts = paper.TABLE2[["seen J_m", "seen F_m", "unseen J_m", "unseen F_m"]].astype(float).mean(axis=1)
    assert np.abs(parts - paper.TABLE2["mean"].astype(float)).max() < 0.051
    assert len(paper.TABLE1) == 10 and len(paper.TABLE2) == 10 and len(paper.TABLE3) == 6
    assert paper.TABLE1.loc[0, "J&F_m"] == 43.1 and paper.TABLE1.loc[6, "J_r"] is None
    baseline = paper.FIG3_BASELINE
    assert all(s.keys() <= baseline.keys() and not s.items() <= baseline.items() for s in paper.FIG3["setting"])
    assert all(s["B"] * s["T"] == 80 for s in paper.FIG3.loc[paper.FIG3["varied"] == "B, T", "setting"])


def test_table1_is_filled_by_whole_runs_of_the_papers_protocol():
    write("evaluate", "random", "e1")
    write("train", "trained", "t1")
    write("evaluate", "trained", "e2", trained_key="t1", scores={"J&F-Mean": 0.68444})
    random, trained = ours(paper.RANDOM), ours()
    assert random["ours J&F_m"] == 50.0 and random["difference"] == 6.9
    assert trained["ours J&F_m"] == 68.4 and trained["difference"] == -0.9 and trained["state"] == "run (study study)"
    assert filled() == 2
    assert ours(data="OxUvA")["ours J&F_m"] == "not run" and ours("MAST")["ours J&F_m"] == "not run"


@pytest.mark.parametrize("slip", [
    {"data": "cutouts"}, {"data": "DAVIS-2016"}, {"split": "train"}, {"sequences": 20}, {"objects": 60},
    {"settings": {"shorter_side": 240}}, {"settings": {"layer": "key"}}, {"settings": {"context": 5}}], ids=str)
def test_table1_takes_no_other_evaluation(slip):
    write("evaluate", "random", "e1", **slip)
    write("train", "trained", "t1")
    write("evaluate", "trained", "e2", trained_key="t1", **slip)
    assert filled() == 0
    assert (tables.table1(tables.all_rows())["state"] == tables.NOT_RUN).all()


@pytest.mark.parametrize("slip", [
    {"data": "cutouts"}, {"data": "DAVIS-2016"}, {"key": "t2"}, {"settings": {"lam": 0.0}}, {"settings": {"batch": 8}},
    {"settings": {"crop": 128}}, {"settings": {"grid": 4}}, {"settings": {"iterations": 2}}, {"settings": {"lr": 1.0}},
    {"settings": {"lr_every": 30_000}}, {"settings": {"optimiser": "sgd"}}, {"settings": {"gap": 30}}, {"settings": {"centre": True}},
    {"settings": {"scale_max": 256}}, {"videos": None}, {"data": "DAVIS-2017"}], ids=str)
def test_table1_takes_no_other_training(slip):
    write("train", "trained", **{"key": "t1", **slip})
    write("evaluate", "trained", "e1", trained_key="t1")
    assert filled() == 0


def test_chance_and_what_changes_no_number_are_free():
    write("train", "trained", "t1", settings={"seed": 3, "workers": 8, "snapshot_every": 100, "precision": "fp32", "compile": True})
    write("evaluate", "trained", "e1", trained_key="t1")
    assert filled() == 1 and ours()["ours J&F_m"] == 50.0


def test_table1_takes_no_weights_whose_training_is_unknown():
    write("train", "trained", "t1")
    write("evaluate", "trained", "e1", features="davis2016")
    write("evaluate", "random", "e2", features="weights.safetensors")
    assert filled() == 0


def test_the_training_may_lie_in_another_study():
    write("train", "trained", "t1", study="there", data="OxUvA")
    write("evaluate", "trained", "e1", trained_key="t1", study="here")
    assert ours(data="OxUvA")["ours J&F_m"] == 50.0 and filled() == 1


def test_the_newest_row_of_todays_code_counts():
    write("evaluate", "random", "e", scores={"J&F-Mean": 0.1})
    write("evaluate", "random", "e22", scores={"J&F-Mean": 0.2})
    write("evaluate", "random", "e333", scores={"J&F-Mean": 0.3}, stale=True)
    assert ours(paper.RANDOM)["ours J&F_m"] == 20.0
    assert ours(paper.RANDOM)["state"] == "run (study study)"


def test_rows_of_earlier_code_are_marked():
    write("evaluate", "random", "e", stale=True)
    write("evaluate", "random", "e22", scores={"J&F-Mean": 0.2}, stale=True)
    assert ours(paper.RANDOM)["ours J&F_m"] == 20.0
    assert ours(paper.RANDOM)["state"] == "† made by earlier code, commit 1234567 (study study)"
    write("train", "trained", "t1", stale=True)
    write("evaluate", "trained", "e3", trained_key="t1")
    assert ours()["state"].startswith("† trained by earlier code")


def test_study_table():
    better = {"J&F-Mean": 0.7046, "J-Mean": 0.7, "J-Recall": 0.9, "J-Decay": 0.1, "F-Mean": 0.7, "F-Recall": 0.8, "F-Decay": 0.0}
    write("evaluate", "trained", "e1", data="cutouts", scores=better)
    write("evaluate", "random", "e2", data="cutouts")
    write("evaluate", "zebra", "e3", data="cutouts")
    table = tables.study_table(results.read_rows("study")).set_index("method")
    assert [*table.index] == ["first mask copied", "raw colours", "random features", "trained features", "zebra", "trained - random"]
    assert table.loc["trained features", "J&F"] == 70.5 and table.loc["trained features", "objects"] == 61
    assert table.loc["trained - random", "J&F"] == 20.5 and table.loc["trained - random", "J decay"] == -10.0
    assert table.loc["raw colours", "state"] == "not run" and table.loc["raw colours", "J&F"] is None
    text = tables.to_text(table.reset_index()).set_index("method")
    assert text.loc["random features", "threads"] == "2"
    assert text.loc["trained - random", "J&F"] == "+20.5" and text.loc["random features", "seconds a frame"] == "0.12"


def test_a_difference_is_no_newer_than_what_it_is_of():
    write("train", "trained", "t1", stale=True)
    write("evaluate", "trained", "e1", trained_key="t1")
    write("evaluate", "random", "e2")
    last = tables.to_text(tables.study_table(results.read_rows("study"))).iloc[-1]
    assert last["state"] == "† points" and last["J&F"] == "+0.0"


@pytest.mark.parametrize("slip", [{"settings": {"shorter_side": 240}}, {"fingerprint": "other"}], ids=str)
def test_no_difference_between_runs_that_differ_in_more_than_their_features(slip):
    write("evaluate", "trained", "e1")
    write("evaluate", "random", "e2", **slip)
    last = tables.study_table(results.read_rows("study")).iloc[-1]
    assert last["J&F"] is None and last["state"].startswith("not comparable")


def test_benchmarks_are_kept_apart():
    write("evaluate", "random", "e1", data="DAVIS-2016")
    write("evaluate", "trained", "e22", data="DAVIS-2017")
    table = tables.study_table(results.read_rows("study"))
    assert table["data"].unique().tolist() == ["DAVIS-2017 val", "DAVIS-2016 val"]
    assert table.loc[table["method"] == "trained - random", "J&F"].isna().all()


def test_sequence_table_ends_with_the_mean_over_objects(folder):
    write("evaluate", "random", "e1", data="cutouts", objects=4)
    scores = pd.DataFrame({"sequence": ["a", "a", "a", "b"], "object": [1, 2, 3, 1], "J mean": [0.2, 0.4, 0.6, 1.0],
                           "F mean": [0.4, 0.4, 0.4, 1.0]})
    (folder / "study" / "scores").mkdir()
    scores.to_csv(folder / "study" / "scores" / "random-e1.csv", index=False)
    table = tables.sequence_table("study").set_index("sequence")
    assert table["random features"].to_dict() == {"a": 40.0, "b": 100.0, "mean over objects": 55.0}
    assert table["objects"].to_dict() == {"a": 3, "b": 1, "mean over objects": 4}
    assert (table["trained features"] == "not run").all()
    path = folder / "study" / "scores" / "random-e1.csv"
    whole = path.read_bytes()
    for length in (0, 20, -10, -1, whole.rindex(b"\n", 0, -1) + 1):  # cut short it would give another mean, or another last digit
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"random-e1\.csv: damaged, 4 objects were scored and \d are in it; delete it"):
            tables.sequence_table("study")


def test_table3_sets_only_the_papers_setting_beside_the_paper():
    write("train", "trained", "t1", peak_memory_mb=11000.4, seconds=7200.0, device="cuda")
    write("train", "lam0", "t2", data="OxUvA", settings={"lam": 0.0}, threads=3)
    write("train", "small", "t3", data="Kinetics-400", settings={"crop": 128})
    table = tables.table3(tables.all_rows())
    own = table[table["train data"] == "YouTube-VOS"].iloc[-1]
    assert own["paper iterations"] == 100_000 and own["our iterations"] == 108_469 and own["our time"] == "2.0 h"
    assert own["our peak memory (MB)"] == 11000 and own["device"] == "cuda"
    assert (table["our iterations"] != "not run").sum() == 3
    assert table.loc[table["paper memory (GB)"].isna(), "method"].tolist() == ["lam0 (study study)", "small (study study)"]
    assert table.iloc[-2]["device"] == "cpu, 3 threads" and table.iloc[-2]["our time"] == "2 min"


def test_without_any_row_everything_says_not_run():
    made = tables.write_tables("empty")
    assert (made["table1"]["ours J&F_m"] == "not run").all() and (made["table3"]["our iterations"] == "not run").all()
    assert (made["study"]["state"] == "not run").all() and made["sequences"].empty
    assert tables.summary("empty").count("not run") == 5


def test_summary_tells_scores_and_gain():
    write("evaluate", "random", "e1", data="cutouts")
    write("evaluate", "trained", "e2", data="cutouts", scores={**SCORES, "J&F-Mean": 0.6})
    text = tables.summary("study")
    assert "60.0" in text and "+10.0" in text and "30 sequences, 61 objects" in text and "0 of its 10 lines" in text


def test_markdown():
    table = pd.DataFrame({"name": ["a|b", None], "difference": [1.26, -2.0], "n": [3000, None]}, dtype=object)
    assert tables.to_markdown(table).splitlines() == [
        "| name | difference | n |", "| --- | ---: | ---: |", "| a\\|b | +1.3 | 3,000 |", "| - | -2.0 | - |"]


def test_tables_are_written_whole_or_not_at_all(folder, monkeypatch):
    tables.write_tables("study")
    written = {path.name: path.read_text() for path in (folder / "study" / "tables").iterdir()}
    assert sorted(written) == sorted(f"{name}.{suffix}" for name in tables.TITLES for suffix in ("csv", "md"))
    assert written["table1.csv"].splitlines()[1] == "Random initialisation,,8,,,,,43.1,not run,,not run"
    write("evaluate", "random", "e1")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        tables.write_tables("study")
    assert {name: (folder / "study" / "tables" / name).read_text() for name in written} == written


def test_a_failure_is_where_the_score_falls():
    scores = np.full(30, 0.9)
    scores[[0, -1]] = np.nan
    scores[17:-1] = 0.2
    assert tables.failure_frame(scores) == 17
    assert tables.failure_frame(scores[:3]) == 0


def test_released_weights_and_lengths_have_lines_of_their_own():
    """The authors' weights, and ours trained as long as theirs, never stand for ours trained to the end of the schedule."""
    write("evaluate", "crw", "e1", settings={"layer": "res3"}, scores={**SCORES, "J&F-Mean": 0.676})
    write("evaluate", "araslanov-youtube-vos", "e2", scores={**SCORES, "J&F-Mean": 0.693})
    write("train", "trained", "t1", settings={"iterations": 13_017})  # 60 epochs
    write("evaluate", "trained", "e3", trained_key="t1", scores={**SCORES, "J&F-Mean": 0.65})
    write("evaluate", "imagenet", "e4")
    assert ours()["ours J&F_m"] == "not run"
    assert ours("CRW", "Kinetics-400")["ours J&F_m"] == 67.6 and ours("CRW", "Kinetics-400")["difference"] == 0.0
    table = tables.table1(tables.all_rows()).iloc[10:].set_index("method")
    assert table["ours J&F_m"].to_dict() == {
        "the paper's method, released length": 65.0, "the paper's method, released weights": 69.3,
        "ImageNet ResNet-18 (supervised)": 50.0}
    assert table["paper J&F_m"].tolist() == [69.3, 69.3, None]
    assert "1 of its 10 lines" in tables.summary("study")


@pytest.mark.parametrize(("fields", "trained", "label"), [
    ({"snapshot": 13_017}, {}, "iteration 13,017"),
    ({"snapshot": 13_017, "selected": "selected on 5 sequences of DAVIS-2017 val (iteration 13,017, key)",
      "settings": {"layer": "key"}}, {}, "selected on 5 sequences of DAVIS-2017 val (iteration 13,017, key)"),
    ({}, {"miscounted": ["TrackingNet: 3 videos found"]}, "data of another size"),
    ({"selected": "selected"}, {"settings": {"iterations": 13_017}, "miscounted": ["one"]}, "released length, data of another size, selected"),
], ids=lambda value: str(value)[:20])
def test_what_is_not_the_last_checkpoint_of_the_whole_has_a_line_of_its_own(fields, trained, label):
    write("train", "trained", "t1", **{"miscounted": [], **trained})
    write("evaluate", "trained", "e1", trained_key="t1", **fields)
    table = tables.table1(tables.all_rows())
    assert filled() == 1 and (table["ours J&F_m"].iloc[:10] == "not run").all()
    assert table["method"].iloc[10] == f"the paper's method, {label}" and table["paper J&F_m"].iloc[10] == 69.3
    write("evaluate", "trained", "e22", trained_key="t1")
    assert (ours()["ours J&F_m"] == 50.0) == (not trained)


def test_a_snapshot_is_no_method_of_the_study():
    write("evaluate", "trained", "e1", snapshot=100, scores={**SCORES, "J&F-Mean": 0.9})
    table = tables.study_table(results.read_rows("study")).set_index("method")
    assert table.loc["trained features", "state"] == "not run" and table.loc["trained, iteration 100", "J&F"] == 90.0


def test_table2_says_what_was_selected():
    valid = {"split": "valid", "data": "YouTube-VOS", "sequences": 474, "every_frame": True, "scores": None}
    write("train", "trained", "t1")
    write("youtube-vos", "trained-selected", "y1", trained_key="t1", selected="selected on 5", settings={"layer": "key"}, **valid)
    states = tables.table2(tables.all_rows())["state"]
    assert [state for state in states if state != "not run"] == ["run (selected on 5): its masks are not on this machine"]


def test_crws_weights_count_at_their_own_layer_only():
    write("evaluate", "crw", "e1")
    write("evaluate", "araslanov-oxuva", "e2", settings={"layer": "res3"})
    assert filled() == 0


def test_table2_says_what_can_be_handed_in_and_keeps_local_scores_apart(folder):
    valid = {"split": "valid", "data": "YouTube-VOS", "sequences": 474, "every_frame": True, "masks": 3, "scores": None}
    write("youtube-vos", "crw", "y1", settings={"layer": "res3"}, **valid)
    write("youtube-vos", "araslanov-kinetics", "y2", **valid)
    write("youtube-vos", "araslanov-trackingnet", "y3", **{**valid, "every_frame": False})
    local = dict(zip(youtube_vos.CLASS_COLUMNS, (0.6, 0.5, 0.4, 0.3, 0.45)))
    write("youtube-vos", "random", "y4", split="local", data=LOCAL, scores=local)
    (folder / "study/masks/crw-y1").mkdir(parents=True)
    (folder / "study/masks/crw-y1/submission.zip").touch()
    table = tables.table2(tables.all_rows())
    states = table[table["state"] != "not run"].set_index(["method", "train data"])["state"]
    assert states.iloc[0] == "run (released weights): hand in results/study/masks/crw-y1/submission.zip"
    assert states.loc[("the paper's method", "Kinetics-400")] == "run (released weights): its masks are not on this machine"
    assert len(states) == 3 and table.iloc[-1]["state"] == "run: YouTube-VOS local split, not the server's"
    assert table.iloc[-1]["local mean"] == 45.0 and table.iloc[-1]["paper mean"] is None
    assert table["local mean"].notna().sum() == 1


def test_table3_estimates_what_was_probed_and_says_so():
    probe = {"data": "TrackingNet", "probed": 50, "iterations": 200_000, "seconds": 72_000.0, "peak_memory_mb": 9000.2,
             "device": "a GPU", "parameters": dataclasses.asdict(TrainSettings())}
    results.write_json(results.RESULTS / "paper/probes/trackingnet.json", probe)
    small = {**probe, "data": "OxUvA", "parameters": {**probe["parameters"], "batch": 2}}
    results.write_json(results.RESULTS / "miniature/probes/trackingnet.json", {**small, "data": "YouTube-VOS"})
    results.write_json(results.RESULTS / "paper/probes/kinetics-400.json", {**probe, "data": "Kinetics-400", "probed": 49})
    table = tables.table3(tables.all_rows())
    line = table[(table["train data"] == "TrackingNet") & (table["method"] == "the paper's method")].iloc[0]
    assert line["our time"] == "20.0 h (estimate)" and line["our peak memory (MB)"] == 9000 and line["device"] == "a GPU"
    assert line["state"] == "not run: an estimate from 50 iterations" and line["our iterations"] == 200_000
    assert (table["state"] == "not run").sum() == 5
    write("train", "trained", "t1", data="TrackingNet")
    table = tables.table3(tables.all_rows())
    assert not table["our time"].astype(str).str.contains("estimate").any()


def test_the_curve_goes_from_no_training_to_the_last_encoder():
    """Evaluations on the way stand on it by their iteration, those of one training on one data set, and in no table of methods."""
    for iteration, hours, mean in ((4000, 2.0, 0.6), (500, 0.25, 0.5), (1000, 0.5, 0.55)):
        write("evaluate", f"curve-{iteration}", f"c{iteration}", trained_key="t1", training_cpu_seconds=3600 * hours,
              settings={"shorter_side": 240}, scores={**SCORES, "J&F-Mean": mean})
    write("evaluate", "curve-0", "c0", settings={"shorter_side": 240}, scores={**SCORES, "J&F-Mean": 0.4}, stale=True)
    for old in ({"trained_key": "t0"}, {"fingerprint": "of other data"}):
        write("evaluate", "curve-2000", f"c{[*old][0]}", date="2000-01-01", training_cpu_seconds=3600,
              settings={"shorter_side": 240}, scores=SCORES, **old)
    curve = tables.score_curve("study")
    assert curve["iteration"].tolist() == [0, 500, 1000, 4000] and curve["CPU hours"].tolist() == [0, 0.25, 0.5, 2]
    assert curve["J&F"].tolist() == [40, 50, 55, 60] and curve["state"].str.startswith("†").tolist() == [True] + [False] * 3
    assert not tables.study_table(results.read_rows("study"))["method"].str.startswith("curve").any()
    assert tables.score_curve("another").empty
