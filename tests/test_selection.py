"""The paper's choice of a snapshot and layer: the best one, on sequences that are always the same, and never unlabelled."""

from __future__ import annotations

import dataclasses
import shutil

import cv2
import numpy as np
import pytest

from dulvos.study import paper, results, runs, selection, tables
from dulvos.checkpoints import load_encoder, save_encoder
from dulvos.masks import write_mask
from dulvos.errors import InputError
from dulvos.study.miniature import write_youtube_vos
from dulvos.study.collections import paper_settings
from dulvos.study.youtube_vos import youtube_vos_run
from dulvos.inference import SegmentSettings
from dulvos.study.rows import NOT_RUN, Study, all_rows
from dulvos.study.selection import draw_sequences, find_selected, list_snapshots, selection_run
from tests.oracles import texture

SETTINGS = SegmentSettings(context=2)
ITERATIONS = (9, 10, 12)  # the last one's encoder is that of the run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Seven videos of DAVIS-2017's layout, and the results of a training on YouTube-VOS that kept two snapshots."""
    root = tmp_path_factory.mktemp("made")
    for number in range(7):
        for t in range(4):
            frame = root / f"davis/JPEGImages/480p/v{number}/{t:05d}.jpg"
            frame.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(frame), texture(number, 32, 56)[:, 2 * t: 2 * t + 48])
            mask = np.zeros((32, 48), np.uint8)
            mask[8:24, 20 - 2 * t: 36 - 2 * t] = 1
            write_mask(root / f"davis/Annotations/480p/v{number}/{t:05d}.png", mask)
    (root / "davis/ImageSets/2017").mkdir(parents=True)
    (root / "davis/ImageSets/2017/val.txt").write_text("".join(f"v{number}\n" for number in range(7)))
    kept = root / "results/study/runs/trained-0123456789ab"
    for iteration in ITERATIONS:
        last = iteration == ITERATIONS[-1]
        path = kept / "encoder.safetensors" if last else kept / f"snapshots/encoder-{iteration}.safetensors"
        save_encoder(load_encoder("random", seed=iteration), path, iteration=iteration)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "RESULTS", root / "results")
        write_training()
        run(root)
    return root


@pytest.fixture(autouse=True)
def folder(made, tmp_path, monkeypatch):
    """Of the study: a copy of the results after one selection."""
    shutil.copytree(made / "results", tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    return tmp_path / "study"


def write_training(**changes):
    results.write_row("study", {"kind": "train", "study": "study", "name": "trained", "key": "0123456789ab", "iterations": 12,
                                "date": "2026-01-01", "encoder": "runs/trained-0123456789ab/encoder.safetensors",
                                "seconds": 1.0, "data": "YouTube-VOS", "version": results.VERSIONS["train"],
                                "parameters": dataclasses.asdict(paper_settings("youtube-vos", 3471)), "split": "train", "videos": 3471, "seed": 0,
                                "peak_memory_mb": 1.0, "device": "cpu", "threads": 1, **changes})


def run(made, **changes):
    arguments = {"count": 5, "device": "cpu", "features": "trained"} | changes
    return selection_run("study", "trained", str(made / "davis"), settings=SETTINGS, **arguments)


def test_the_best_snapshot_and_layer_is_evaluated_on_all_and_says_so(made, folder, monkeypatch):
    def never(*_, **__):
        raise AssertionError("what is done is not done again")

    monkeypatch.setattr(selection, "evaluate", never)
    monkeypatch.setattr(runs, "evaluate", never)
    row, tried = run(made)
    rows = results.read_rows("study", "select")
    assert len(rows) == 6 and tried.shape == (3, 2) and list(tried.index) == list(ITERATIONS) and list(tried) == ["key", "res4"]
    assert {len(names) for names in rows["sequences"]} == {5} and len({tuple(names) for names in rows["sequences"]}) == 1
    best = rows.loc[rows["scores.J&F-Mean"].idxmax()]
    assert tried.max().max() == round(100 * best["scores.J&F-Mean"], 1) > tried.min().min()
    assert (row["parameters.layer"], row["snapshot"] or 12) == (best["parameters.layer"], best["iteration"])
    assert row["name"] == "trained-selected" and row["sequences"] == 7 and row["trained_key"] == "0123456789ab"
    assert row["selected"] == (f"selected on 5 sequences of DAVIS-2017 val (iteration {best['iteration']}, "
                               f"{best['parameters.layer']})")
    assert [path.name for path in (folder / "masks").iterdir()] == [f"trained-selected-{row['key']}"]  # the others' are removed
    assert find_selected("study", "trained") == (row["features"], row["parameters.layer"], row["selected"])


def test_what_was_selected_never_stands_where_the_last_checkpoint_does(made, monkeypatch):
    monkeypatch.setitem(paper.DAVIS_2017_VAL, "sequences", 7)
    monkeypatch.setitem(paper.DAVIS_2017_VAL, "objects", 7)
    monkeypatch.setitem(tables.PROTOCOL, "context", 2)
    row, _ = run(made)
    study = tables.study_table(Study("study", results.RESULTS).rows()).set_index("method")
    assert study.loc["trained features", "state"] == NOT_RUN and study.loc["trained - random", "state"] == NOT_RUN
    assert study.loc[f"trained, {row['selected']}", "J&F"] == round(100 * row["scores.J&F-Mean"], 1)
    assert "selected" not in " ".join(tables.sequence_table(Study("study", results.RESULTS)))
    table = paper.table1(all_rows(results.RESULTS))
    assert (table["ours J&F_m"].iloc[:10] == NOT_RUN).all()
    assert list(table["method"].iloc[10:]) == [f"the paper's method, {row['selected']}"]


def test_the_last_checkpoint_selected_is_not_the_row_of_the_last_checkpoint(made, monkeypatch):
    """Equal features and settings, two rows: one says that it was chosen, the other that it is the last."""
    last = runs.evaluation_run("study", "trained", str(made / "davis"), "trained", SETTINGS, device="cpu")
    monkeypatch.setattr(selection, "list_snapshots", lambda *_: {12: "trained:0123456789ab"})
    monkeypatch.setattr(paper, "SELECTED_LAYERS", ("res4",))
    row, _ = run(made)
    assert row["weights"] == last["weights"] and row["scores"] == last["scores"]
    assert row["key"] != last["key"] and (last["selected"], last["snapshot"]) == ("", None)


def test_a_snapshot_is_had_by_its_iteration(made):
    assert list_snapshots("study", "trained") == {
        9: "trained:0123456789ab@9", 10: "trained:0123456789ab@10", 12: "trained:0123456789ab"}
    source, said = runs.find_features("study", "trained:0123456789ab@10")
    assert source.endswith("snapshots/encoder-10.safetensors")
    assert said["trained_key"] == "0123456789ab" and said["snapshot"] == 10
    with pytest.raises(InputError, match="encoder-11.safetensors: no such snapshot"):
        runs.find_features("study", "trained:0123456789ab@11")


def test_the_sequences_are_drawn_at_random_and_always_the_same(made):
    dataset = runs.open_data(str(made / "davis"), "val")
    names = [sequence.name for sequence in draw_sequences(dataset, 5).sequences]
    assert names == sorted(set(names)) != [f"v{number}" for number in range(5)]
    assert names == [sequence.name for sequence in draw_sequences(dataset, 5).sequences]
    assert len(draw_sequences(dataset, 30).sequences) == 7


def test_table2_takes_what_was_selected_on_davis(folder, tmp_path):
    root = write_youtube_vos(tmp_path / "youtube-vos", valid={"v1": "ab"})
    row = youtube_vos_run("study", "trained-selected", root, "selected", SETTINGS, device="cpu")
    features, layer, words = find_selected("study", "trained")
    assert (row["features"], row["parameters.layer"], row["selected"]) == (features, layer, words)
    last = youtube_vos_run("study", "trained", root, "trained", SETTINGS, device="cpu")
    assert last["selected"] == "" and last["parameters.layer"] == "res4" and last["key"] != row["key"]


@pytest.mark.parametrize(("changes", "message"), [
    ({"features": "random"}, "a snapshot is selected of a training"),
    ({"features": "trained:0123456789ab@9"}, "a snapshot is selected of a training"),
    ({"features": "trained:other"}, "no trained encoder called 'other'"),
    ({"count": 0}, "must be >= 1, not 0"),
])
def test_what_cannot_be_selected_is_said(made, changes, message):
    with pytest.raises(InputError, match=message):
        run(made, **changes)


def test_without_snapshots_nothing_is_selected_in_silence(made, folder):
    shutil.rmtree(folder / "runs/trained-0123456789ab/snapshots")
    with pytest.raises(InputError, match="no snapshot to select; .* snapshot_every > 0"):
        run(made)


def test_a_selection_of_an_earlier_training_is_none_of_the_newest(folder):
    save_encoder(load_encoder("random"), folder / "runs/trained-ba9876543210/encoder.safetensors", iteration=12)
    write_training(key="ba9876543210", date="2026-01-02", encoder="runs/trained-ba9876543210/encoder.safetensors")
    with pytest.raises(InputError, match="nothing was selected for 'trained'"):
        find_selected("study", "trained")
