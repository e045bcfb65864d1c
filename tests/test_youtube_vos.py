"""YouTube-VOS: every frame is carried through, objects enter late, seen and unseen classes are told apart."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from dulvos.study import results
from dulvos.datasets import load_youtube_vos
from dulvos.masks import read_mask
from dulvos.errors import InputError
from dulvos.study import youtube_vos
from dulvos.study.local_split import LOCAL, local_split
from dulvos.study.miniature import FRAMES, STEP, write_youtube_vos
from dulvos.study.youtube_vos import CLASS_COLUMNS, class_scores, open_split, predict, score, youtube_vos_run
from dulvos.inference import SegmentSettings
from dulvos.metrics import score_sequence

SETTINGS = SegmentSettings(context=2, radius=3.0)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_youtube_vos(tmp_path_factory.mktemp("youtube-vos"))


@pytest.fixture(scope="module")
def valid(root):
    return load_youtube_vos(root, "valid")


@pytest.fixture(scope="module")
def folder(valid, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("masks")
    outcome = predict(valid, "colour", folder, settings=SETTINGS)
    assert outcome["frames"] == 2 * FRAMES and outcome["saved"] == 2 * 5
    return folder


def test_all_frames_are_carried_and_the_annotated_ones_handed_in(valid, folder):
    files = sorted(path.name for path in (folder / "Annotations/v1").iterdir())
    assert files == [f"{t:05d}.png" for t in range(0, FRAMES, STEP)]
    given = valid.sequences[0].first_masks()
    assert list(given) == [0, 6]
    masks = [read_mask(folder / "Annotations/v1" / name) for name in files]
    np.testing.assert_array_equal(masks[0], given[0])
    entered = given[6] == 5
    assert entered.any() and (masks[2][entered] == 5).all(), "an object that enters is saved as given"
    assert not any((mask == 5).any() for mask in masks[:2]) and (masks[3] == 5).any()


def test_fewer_frames_give_other_masks(root, folder, tmp_path):
    """The frames between are not decoration: without them the same masks would come out, were they left out silently."""
    coarse = tmp_path / "coarse"
    shutil.copytree(root / "valid", coarse / "valid")
    dataset = load_youtube_vos(coarse, "valid")
    assert predict(dataset, "colour", tmp_path / "out", settings=SETTINGS)["frames"] == 2 * 5
    last = "Annotations/v1/00012.png"
    assert (read_mask(tmp_path / "out" / last) != read_mask(folder / last)).any()


def test_what_is_finished_is_not_done_again(valid, folder, monkeypatch):
    monkeypatch.setattr(youtube_vos, "segment", lambda *_: pytest.fail("carried again"))
    assert predict(valid, "colour", folder, settings=SETTINGS)["saved"] == 10


def test_objects_are_scored_from_the_frame_after_they_enter(root, tmp_path):
    split, dataset = local_split(root), open_split(root, "local")
    assert dataset.name == LOCAL and {s.name for s in dataset.sequences} == set(split.val)
    predict(dataset, "colour", tmp_path, settings=SETTINGS)
    table = score(dataset, tmp_path, split.unseen)
    assert len(table) == 2 * len(split.val) and set(table["object"]) == {1, 5}
    sequence = dataset.sequences[0]
    truth = sequence.masks[0].parent
    stack = [np.stack([read_mask(place / f"{t:05d}.png") for t in range(0, FRAMES, STEP)])
             for place in (truth, tmp_path / "Annotations" / sequence.name)]
    expected = score_sequence(*stack, first_frame={1: 0, 5: 2})
    own = table[table["sequence"] == sequence.name]
    np.testing.assert_allclose(own["J mean"], expected.stats[:, 0])
    np.testing.assert_allclose(own["F mean"], expected.stats[:, 3])
    scores = class_scores(table)
    assert tuple(scores) == CLASS_COLUMNS
    assert scores["unseen J_m"] == pytest.approx(table.loc[table["category"].isin(split.unseen), "J mean"].mean())
    assert scores["mean"] == pytest.approx(np.mean(list(scores.values())[:4]))


def test_a_perfect_prediction_scores_one(root, tmp_path):
    split, dataset = local_split(root), open_split(root, "local")
    for sequence in dataset.sequences:
        shutil.copytree(root / "train/Annotations" / sequence.name, tmp_path / "Annotations" / sequence.name)
    assert class_scores(score(dataset, tmp_path, split.unseen)) == dict.fromkeys(CLASS_COLUMNS, 1.0)


@pytest.mark.parametrize("split", ["valid", "local"])
def test_a_run_leaves_a_row_and_is_done_once(root, tmp_path, monkeypatch, split):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    row = youtube_vos_run("s", "colour", root, "colour", SETTINGS, split=split, device="cpu")
    assert row["every_frame"] and row["frames"] == row["sequences"] * FRAMES
    if split == "valid":
        assert (tmp_path / "s" / row["submission"]).is_file() and row["masks"] == 10 and "scores" not in row
    else:
        assert 0 < row["scores.mean"] < 1 and row["data"] == "YouTube-VOS local split" and row["unseen_classes"]
    monkeypatch.setattr(youtube_vos, "predict", lambda *_, **__: pytest.fail("run again"))
    assert youtube_vos_run("s", "colour", root, "colour", SETTINGS, split=split, device="cpu")["key"] == row["key"]
    with pytest.raises(InputError, match="split must be 'valid' or 'local'"):
        youtube_vos_run("s", "colour", root, "colour", SETTINGS, split="test")
