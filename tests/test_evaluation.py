"""Evaluation: masks, scores, official files and rows; done once, continued after a kill, bad input named."""

import dataclasses
import os
import shutil
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dulvos.checkpoints import encoder_file, load_encoder, save_encoder
from dulvos.datasets import load_davis, read_predictions
from dulvos.errors import InputError
from dulvos.inference import SegmentSettings, encode
from dulvos.masks import read_mask, write_mask
from dulvos.metrics import SequenceScores, score_sequence, summarise
from dulvos.study.evaluation import evaluate, evaluate_encoders, evaluation_run, object_table, write_official
from dulvos.study.plans import evaluate_step
from dulvos.study.rows import TRAINING_VERSION, Study
from dulvos.study.runs import find_features, trained_encoder
from dulvos.study.steps import execute
from dulvos.study.youtube_vos import LOCAL, open_split
from tests.miniature import FRAMES, STEP, draw_video, write_davis

SETTINGS = SegmentSettings(context=2, radius=3.0)
KEY = "0123456789ab"


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def same(some: list[SequenceScores], others: list[SequenceScores]) -> bool:
    return all(np.array_equal((a.j, a.f), (b.j, b.f)) for a, b in zip(some, others, strict=True))


@pytest.mark.parametrize("features", ["copy", "colour", "random"])
def test_the_masks_that_are_written_give_the_scores(dataset, tmp_path, features):
    scores, outcome = evaluate(dataset, features, tmp_path)
    for sequence, got in zip(dataset.sequences, scores, strict=True):
        masks, given = read_predictions(tmp_path, sequence), sequence.mask(0)
        assert np.array_equal(masks[0], given) and (features != "copy" or (masks == given).all())
        assert same([score_sequence(sequence.truth(), masks)], [got])
    table = object_table(dataset, scores)
    assert list(table["sequence"]) == ["translation", "late-entry"] and table["J mean"].between(0, 1).all()
    assert (outcome["frames"], outcome["saved"]) == (12, 12)


def test_the_masks_do_not_depend_on_processes_or_on_who_makes_the_features(dataset, tmp_path, capsys):
    one, _ = evaluate(dataset, "random", tmp_path / "one", SETTINGS)
    encoder = load_encoder("random")
    for features, processes in (("random", 2), (encoder, 1), (partial(encode, encoder), 2)):
        folder = tmp_path / f"{type(features).__name__}{processes}"
        scores, outcome = evaluate(dataset, features, folder, SETTINGS, processes=processes)
        assert outcome["frames"] == 12 and same(one, scores)
        assert "12/12" in capsys.readouterr().err, "the bar counts the frames of all processes"
        for path in (tmp_path / "one").rglob("*.png"):
            assert path.read_bytes() == (folder / path.relative_to(tmp_path / "one")).read_bytes()


def killed(frames, settings):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_and_a_wrong_number_of_processes_are_told(dataset, tmp_path):
    for processes, error in ((2, ChildProcessError), (-1, InputError)):
        with pytest.raises(error, match="processes"):
            evaluate(dataset, killed, tmp_path, SETTINGS, processes=processes)


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda root: (root / "JPEGImages/480p/late-entry/00004.jpg").write_bytes(b""), "late-entry.00004.jpg"),
    (lambda root: (root / "Annotations/480p/late-entry/00002.png").unlink(), "00002.png: no such annotation"),
    (lambda root: (root / "Annotations/480p/late-entry/00003.png").write_bytes(b""), "late-entry.00003.png"),
    (lambda root: write_mask(root / "Annotations/480p/late-entry/00000.png", np.zeros((64, 96), np.uint8)),
     "late-entry: "),
    (lambda root: [path.unlink() for path in root.glob("*/480p/late-entry/0000[2-5].*")], "late-entry: 2 fr"),
], ids=["broken frame", "no annotation", "broken annotation", "no object", "too short"])
def test_bad_input_is_found_before_anything_is_propagated(tiny, tmp_path, spoil, message):
    spoil(shutil.copytree(tiny, tmp_path / "data"))
    with pytest.raises(InputError, match=message):
        evaluate(load_davis(tmp_path / "data", "val"), "colour", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_official_files_are_those_of_daviss_own_tool(tmp_path):
    video = draw_video([(20, 20, 0, 0, 0), (40, 60, 0, 0, 0)])
    dataset = load_davis(write_davis(tmp_path, {"b": video, "a": video}), "val")
    j = [np.array([[1.0, 0.5], [0.25, 0.25]]), np.array([[0.125, 0.5, 1 / 3]])]
    scores = [SequenceScores(ids, values, values / 2) for ids, values in zip(((1, 2), (1,)), j, strict=True)]
    write_official(dataset, scores, tmp_path)
    lines = (tmp_path / "global_results-val.csv").read_text().splitlines()
    assert lines[0] == "J&F-Mean,J-Mean,J-Recall,J-Decay,F-Mean,F-Recall,F-Decay"
    assert lines[1] == ",".join(f"{value:.3f}" for value in summarise(scores).values())
    # by object, in the list's order; sequences are not averaged
    assert (tmp_path / "per-sequence_results-val.csv").read_text() == \
        "Sequence,J-Mean,F-Mean\nb_1,0.750,0.375\nb_2,0.250,0.125\na_1,0.319,0.160\n"


def test_a_run_leaves_a_row_and_its_files_and_is_done_once(tiny, study):
    run = partial(evaluation_run, study, "colour", str(tiny), "colour", SETTINGS, device="cpu")
    row = run()
    masks, scores = study.path(row, "masks"), study.path(row, "scores", ".csv")
    assert (masks / "translation/00005.png").is_file() and (masks / "global_results-val.csv").is_file()
    assert row["objects"] == len(pd.read_csv(scores)) == 2 and row["data"] == "tiny"
    assert row["scores.J-Mean"] == pytest.approx(pd.read_csv(scores)["J mean"].mean(), abs=1e-6)
    assert {"commit", "dirty", "version", "versions.torch", "threads", "date", "seconds"} <= row.keys()
    before = times(study.folder)
    assert run() == row and times(study.folder) == before
    for missing in (scores, masks / "late-entry.json"):  # rows are committed, files are not; or a kill
        missing.unlink()
        again = run()
        assert missing.is_file()
        assert all(again[name] == row[name] for name in row if name.startswith(("key", "scores.", "frames")))
    remade = {path for path, time in times(masks).items() if time != before[path] and path.suffix != ".csv"}
    assert remade == {path for path in before if "late-entry" in str(path.relative_to(study.folder))}


def test_other_settings_seeds_weights_or_masks_are_other_runs(tiny, study, tmp_path):
    other = shutil.copytree(tiny, tmp_path / "other")
    masks = other / "Annotations/480p/late-entry"
    shutil.copy(masks / "00005.png", masks / "00003.png")
    runs = [("copy", tiny, {}), ("copy", other, {}), ("random", tiny, {}), ("random", tiny, {"seed": 1}),
            ("copy", tiny, {"settings": SegmentSettings(topk=5)})]
    rows = [evaluation_run(study, "run", str(data), features, device="cpu", **more)
            for features, data, more in runs]
    renamed = dataclasses.replace(load_davis(tiny, "val"), name="DAVIS-2016")  # where objects are merged
    rows.append(evaluation_run(study, "run", renamed, "copy", device="cpu"))
    assert len({row["key"] for row in rows}) == len(study.rows()) == 6
    assert rows[0]["fingerprint"] != rows[1]["fingerprint"]


def test_a_baseline_runs_on_the_processor_and_says_so(tiny, study):
    row = evaluation_run(study, "copy", str(tiny), "copy", device="meta")  # a device that computes nothing
    assert (row["device"], row["computed_in"], row["seed"]) == ("cpu", "fp32", None)
    assert row["peak_memory_mb"] > 0


def test_weights_are_known_by_their_bytes(study, tmp_path):
    """Also those in the package, which a later training may replace; those for timm also by their layer."""
    path = tmp_path / "own.safetensors"
    path.write_bytes(encoder_file("davis2016").read_bytes())
    marks = [find_features(study, features)[1]["weights"] for features in ("davis2016", str(path))]
    assert marks[0] == marks[1] and len(marks[0]) == 12
    marks += [find_features(study, f"timm:resnet10t@layer{layer}={path}")[1]["weights"] for layer in (1, 2)]
    path.write_bytes(b"others")
    for features in (str(path), f"timm:resnet10t@layer1={path}"):
        marks.append(find_features(study, features)[1]["weights"])
    assert len(set(marks)) == 5 and not any(str(tmp_path) in mark for mark in marks)


def test_a_file_called_like_features_is_not_taken_for_them(study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("random", "copy", "colour", "imagenet"):
        Path(name).touch()
        assert find_features(study, name)[1]["weights"] == name


def test_encoders_are_compared_in_one_table_the_best_first(tiny, youtube_vos, study):
    encoders = ("copy", "timm:resnet10t@layer2=random", "random", "timm:resnet10t@layer1=random", "colour")
    table = evaluate_encoders(study, encoders, str(tiny), SETTINGS, device="cpu")
    channels = {"copy": 0, "colour": 4, "random": 512, "timm:resnet10t@layer1=random": 64,
                "timm:resnet10t@layer2=random": 128}
    assert dict(zip(table["encoder"], table["channels"], strict=True)) == channels
    assert table["J&F-Mean"].is_monotonic_decreasing and (table["seconds a frame"] > 0).all()
    rows = study.rows().set_index("features")
    expected = [100 * rows.loc[name, "scores.J&F-Mean"] for name in table["encoder"]]
    assert table["J&F-Mean"].tolist() == expected
    before = times(study.folder)
    again = evaluate_encoders(study, encoders, str(tiny), SETTINGS, device="cpu")
    assert again.equals(table) and times(study.folder) == before
    with pytest.raises(InputError, match="nothing.safetensors"):
        evaluate_encoders(study, ("random", "nothing.safetensors"), str(tiny), SegmentSettings(topk=2))
    assert times(study.folder) == before, "an unknown encoder is found before the first is evaluated"
    packed = evaluate_encoders(study, ("copy",), str(youtube_vos), SETTINGS, split="valid")
    assert (study.folder / packed.loc[0, "submission"]).is_file()


# YouTube-VOS

def test_every_frame_is_carried_and_the_annotated_ones_are_handed_in(youtube_vos, tmp_path):
    valid = open_split(str(youtube_vos), "valid")
    scores, outcome = evaluate(valid, "colour", tmp_path, SETTINGS)
    assert (outcome["frames"], outcome["saved"]) == (2 * FRAMES, 2 * 5)
    assert not any(score.ids for score in scores)
    files = sorted(path.name for path in (tmp_path / "v1").iterdir())
    assert files == [f"{t:05d}.png" for t in range(0, FRAMES, STEP)]
    given, masks = valid.sequences[0].first_masks(), [read_mask(tmp_path / "v1" / name) for name in files]
    assert list(given) == [0, 6]
    np.testing.assert_array_equal(masks[0], given[0])
    entered = given[6] == 5
    assert entered.any() and (masks[2][entered] == 5).all(), "an object that enters is saved as given"
    assert not any((mask == 5).any() for mask in masks[:2]) and (masks[3] == 5).any()
    (coarse := tmp_path / "coarse").mkdir()
    shutil.copytree(youtube_vos / "valid", coarse / "valid")
    _, fewer = evaluate(open_split(str(coarse), "valid"), "colour", tmp_path / "out", SETTINGS)
    assert fewer["frames"] == 2 * 5
    assert (read_mask(tmp_path / "out/v1/00012.png") != masks[4]).any(), "frames between make a difference"


def test_objects_are_scored_from_the_frame_after_they_enter(youtube_vos, tmp_path):
    local = open_split(str(youtube_vos), "local")
    for features in ("colour", "copy"):
        scores, _ = evaluate(local, features, tmp_path / features, SETTINGS)
        for sequence, got in zip(local.sequences, scores, strict=True):
            masks = [np.stack([read_mask(folder / f"{t:05d}.png") for t in range(0, FRAMES, STEP)])
                     for folder in (sequence.masks[0].parent, tmp_path / features / sequence.name)]
            np.testing.assert_array_equal(got.stats, score_sequence(*masks, first_frame={1: 0, 5: 2}).stats)
            assert {1, 5} <= set(np.unique(masks[1][3])), "both objects are carried"


def test_an_object_that_enters_at_the_end_is_not_scored(youtube_vos, tmp_path):
    local = open_split(str(youtube_vos), "local")
    sequence = local.sequences[0]
    for t in list(sequence.masks)[:-2]:
        path = tmp_path / sequence.masks[t].name
        write_mask(path, np.where(sequence.mask(t) == 5, 0, sequence.mask(t)))
        sequence.masks[t] = path
    dataset = dataclasses.replace(local, sequences=[sequence])
    scores, _ = evaluate(dataset, "colour", tmp_path / "out", SETTINGS)
    assert scores[0].ids == (1,)


@pytest.mark.parametrize("split", ["valid", "local"])
def test_a_run_on_youtube_vos_leaves_a_submission_or_scores(youtube_vos, study, split):
    run = partial(evaluation_run, study, "colour", str(youtube_vos), "colour", SETTINGS, split=split)
    row = run()
    assert (row["kind"], row["split"]) == ("youtube-vos", split)
    assert row["every_frame"] and row["frames"] == row["sequences"] * FRAMES
    if split == "valid":
        assert (study.folder / row["submission"]).is_file()
        assert row["saved"] == 10 and "scores.mean" not in row
    else:
        assert 0 < row["scores.mean"] < 1 and row["data"] == LOCAL and row["unseen_classes"]
    before = times(study.folder)
    assert run() == row and times(study.folder) == before


# trained features and the selection of a snapshot

@pytest.fixture(scope="module")
def seven(tmp_path_factory) -> Path:
    """Seven videos in DAVIS-2017's layout."""
    videos = {f"v{i}": draw_video([(16, 20, 0, 1, 0)], size=(32, 48), frames=4, seed=i) for i in range(7)}
    return write_davis(tmp_path_factory.mktemp("seven"), videos)


def add_training(study: Study, key: str = KEY, date: str = "2026-01-01",
                 kept: tuple[int, ...] = (9, 12)) -> Path:
    """A training with snapshots; the last of them is its encoder."""
    folder = study.folder / f"runs/trained-{key}"
    for iteration in kept:
        name = "encoder" if iteration == kept[-1] else f"snapshots/encoder-{iteration}"
        encoder = load_encoder("random", seed=iteration)
        save_encoder(encoder, folder / f"{name}.safetensors", iteration=iteration)
    study.write({"kind": "train", "study": study.name, "name": "trained", "key": key, "date": date, "seed": 0,
                 "version": TRAINING_VERSION, "encoder": f"runs/trained-{key}/encoder.safetensors"})
    return folder


def test_trained_features_are_found_by_name_key_and_iteration(study):
    first = add_training(study)
    second = add_training(study, "ba9876543210", "2026-01-02", (3, 5))
    assert trained_encoder(study) == second / "encoder.safetensors"
    source, told = find_features(study, f"trained:{KEY}@9")
    assert source == str(first / "snapshots/encoder-9.safetensors")
    assert (told["trained_key"], told["snapshot"], told["training_iteration"]) == (KEY, 9, 9)
    assert find_features(study, f"trained:{KEY}")[1]["snapshot"] is None
    assert find_features(study, "trained@3")[0] == str(second / "snapshots/encoder-3.safetensors")
    (first / "encoder.json").write_text("{")
    for features, message in ((f"trained:{KEY}@11", "encoder-11.safetensors"),
                              (f"trained:{KEY}", "encoder.json"),
                              ("trained:other", "no trained encoder called 'other'; run 01_train")):
        with pytest.raises(InputError, match=message):
            find_features(study, features)
    (second / "encoder.safetensors").unlink()  # weights are not committed; an older one does not replace them
    with pytest.raises(InputError, match="ba9876543210/encoder.safetensors: .*not on this machine"):
        trained_encoder(study)


def run_notebook(study: Study, data: Path, features: str, select: int = 0, **more) -> str:
    """What went wrong in notebook 02_evaluate."""
    return execute(evaluate_step(study, "trained-selected", str(data), features, 1, select=select,
                                 device="cpu", context=2, radius=3.0, **more))


def test_the_best_snapshot_and_layer_is_evaluated_on_all_sequences_and_says_so(seven, study, youtube_vos):
    add_training(study)
    assert run_notebook(study, seven, "trained", 5) == ""
    rows = study.rows("select")
    assert sorted(rows["name"]) == ["trained-12-key", "trained-12-res4", "trained-9-key", "trained-9-res4"]
    names, = {tuple(names) for names in rows["drawn"]}  # drawn at random, and always the same
    assert len(names) == 5 and [*names] == sorted(names) != [f"v{i}" for i in range(5)]
    best = rows.loc[rows["scores.J&F-Mean"].idxmax()]
    row = study.find("evaluate", {"name": "trained-selected"})
    assert (row["weights"], row["parameters.layer"]) == (best["weights"], best["parameters.layer"])
    assert (row["sequences"], row["trained_key"], row["source"]) == (7, KEY, "notebooks/02_evaluate.ipynb")
    assert row["selected"] == (f"selected on 5 sequences of DAVIS-2017 val (iteration "
                               f"{best['name'].split('-')[1]}, {best['parameters.layer']})")
    assert [path.name for path in (study.folder / "masks").iterdir()] == [f"trained-selected-{row['key']}"]
    # the same features, chosen and not chosen, are two rows
    last = evaluation_run(study, "trained", str(seven), row["features"],
                          dataclasses.replace(SETTINGS, layer=row["parameters.layer"]), device="cpu")
    assert (last["weights"], last["scores.J&F-Mean"]) == (row["weights"], row["scores.J&F-Mean"])
    assert last["key"] != row["key"] and last["selected"] == ""
    assert run_notebook(study, youtube_vos, "selected", split="valid") == ""
    other = study.find("youtube-vos", {"name": "trained-selected"})
    assert all(other[field] == row[field] for field in ("features", "parameters.layer", "selected"))
    add_training(study, "ba9876543210", "2026-01-02")  # nothing was selected from the newest training
    assert "for 'trained'" in run_notebook(study, youtube_vos, "selected", split="valid")


@pytest.mark.parametrize(("features", "kept"), [
    ("random", (9, 12)), (f"trained:{KEY}@9", (9, 12)), ("trained", (12,))])
def test_what_cannot_be_selected_is_said(seven, study, features, kept):
    add_training(study, kept=kept)
    assert "snapshot_every" in run_notebook(study, seven, features, 5)
    assert not (study.folder / "masks").exists()
