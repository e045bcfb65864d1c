"""Evaluation of a small rendered data set: files, scores, resumption, independence."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dulvos.study import evaluation, cutouts as synthetic
from dulvos.datasets import load_davis, read_predictions
from dulvos.masks import write_mask
from dulvos.errors import InputError
from dulvos.study.evaluation import evaluate, object_table
from dulvos.metrics import score_sequence


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Two sequences of 6 frames of 64x96 pixels in DAVIS-2017's layout."""
    import cv2

    root = tmp_path_factory.mktemp("tiny")
    for name in ("translation", "late-entry"):
        frames, masks = synthetic.render_video(name, size=(64, 96), frames=6)
        for t in range(6):
            write_mask(root / "Annotations/480p" / name / f"{t:05d}.png", masks[t])
            path = root / "JPEGImages/480p" / name / f"{t:05d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), frames[t][..., ::-1])
    (root / "ImageSets/2017").mkdir(parents=True)
    (root / "ImageSets/2017/val.txt").write_text("translation\nlate-entry\n")
    (root / "benchmark.json").write_text(json.dumps({"name": "tiny"}))
    return load_davis(root, "val")


def test_copying_the_first_mask_scores_what_copying_scores(dataset, tmp_path):
    scores, outcome = evaluate(dataset, "copy", tmp_path)
    for sequence, got in zip(dataset.sequences, scores):
        truth = sequence.truth()
        expected = score_sequence(truth, np.repeat(truth[:1], len(truth), 0))
        np.testing.assert_array_equal(got.j, expected.j)
    assert outcome["frames"] == 12


@pytest.mark.parametrize("features", ["colour", "random"])
def test_masks_are_written_in_daviss_layout_and_give_the_scores(dataset, tmp_path, features):
    scores, _ = evaluate(dataset, features, tmp_path)
    for sequence, got in zip(dataset.sequences, scores):
        masks = read_predictions(tmp_path, sequence)
        np.testing.assert_array_equal(masks[0], sequence.mask(0))  # the given mask, exactly
        np.testing.assert_array_equal(score_sequence(sequence.truth(), masks).f, got.f)
    table = object_table(dataset, scores)
    assert list(table.sequence) == ["translation", "late-entry"] and table["J mean"].between(0, 1).all()


def test_what_is_finished_is_not_done_again_and_the_numbers_are_the_same(dataset, tmp_path, monkeypatch):
    whole, _ = evaluate(dataset, "colour", tmp_path / "whole")
    segment, calls = evaluation.segment, []

    def stop_in_the_second(frames, *rest):
        calls.append(1)
        for t, ids in enumerate(segment(frames, *rest)):
            if len(calls) == 2 and t == 3:
                raise KeyboardInterrupt
            yield ids

    monkeypatch.setattr(evaluation, "segment", stop_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        evaluate(dataset, "colour", tmp_path / "cut")
    first = tmp_path / "cut/translation/00003.png"
    before = first.stat().st_mtime_ns
    again, _ = evaluate(dataset, "colour", tmp_path / "cut")
    assert len(calls) == 3 and first.stat().st_mtime_ns == before
    for a, b in zip(whole, again):
        np.testing.assert_array_equal(a.j, b.j)
        np.testing.assert_array_equal(a.f, b.f)


def test_a_broken_frame_is_found_before_anything_is_propagated(dataset, tmp_path, monkeypatch):
    import shutil

    root = tmp_path / "data"
    shutil.copytree(dataset.root, root)
    frame = root / "JPEGImages/480p/late-entry/00004.jpg"
    frame.write_bytes(b"")
    with pytest.raises(InputError, match="late-entry.00004.jpg"):
        evaluate(load_davis(root, "val"), "colour", tmp_path / "out")
    assert not (tmp_path / "out/translation").exists()


def test_a_missing_annotation_is_found_before_anything_is_propagated(dataset, tmp_path):
    missing = dataset.sequences[-1].masks.pop(2)
    with pytest.raises(InputError, match=f"{missing.name}: no such annotation"):
        evaluate(dataset, "copy", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_checkpoint_is_named_first(dataset, tmp_path):
    with pytest.raises(InputError, match="nothing.safetensors"):
        evaluate(dataset, "nothing.safetensors", tmp_path)
