"""Metrics against official values, a plain way, and what the protocol's words imply."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.scoring import plain
from dulvos.errors import InputError
from dulvos.metrics import STATS_COLUMNS, SequenceScores, boundary_f, jaccard, score_sequence, summarise


def blobs(seed: int, length: int, size: tuple[int, int], objects: int) -> np.ndarray:
    """Random smooth regions, some of which touch the image's border: (T, H, W) uint8 ids 0..objects."""
    noise = np.random.default_rng(seed).normal(size=(length, *size, objects + 1))
    return np.stack([cv2.GaussianBlur(frame, (0, 0), 6).argmax(axis=-1) for frame in noise]).astype(np.uint8)


def square(top: int, left: int, side: int = 20, size: tuple[int, int] = (60, 80)) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


def scores_of(*j: list[float]) -> SequenceScores:
    """Scores whose F is half of the given J, one row an object."""
    return SequenceScores(ids=tuple(range(1, len(j) + 1)), j=np.array(j), f=np.array(j) / 2)


@pytest.mark.parametrize("case", ["metrics_two_objects", "metrics_edges", "published_bmx_trees"])
def test_golden(golden: Path, case: str) -> None:
    expected = np.load(golden / f"{case}.npz")
    scores = score_sequence(expected["truth"], expected["prediction"])
    for name in ("j", "f", "j_and_f"):
        np.testing.assert_allclose(getattr(scores, name), expected[name], rtol=0, atol=1e-9, err_msg=name)
    columns = [STATS_COLUMNS.index(name) for name in expected["stats_columns"]]
    np.testing.assert_allclose(scores.stats[:, columns], expected["stats"], rtol=0, atol=1e-9)


SIZES = [((60, 100), 2), ((101, 64), 1), ((96, 128), 4), ((240, 427), 2)]


@pytest.mark.parametrize(("size", "objects"), SIZES)
def test_agrees_with_the_protocol_step_by_step(size: tuple[int, int], objects: int) -> None:
    truth, other = blobs(0, 6, size, objects), blobs(1, 6, size, objects)
    near = np.stack([np.roll(frame, t, axis=t % 2) for t, frame in enumerate(truth)])
    prediction = np.where(np.arange(size[1]) < size[1] // 2, near, other)
    prediction[3][prediction[3] == 1] = 0

    scores = score_sequence(truth, prediction)
    assert scores.ids == tuple(range(1, objects + 1))
    np.testing.assert_allclose([scores.j, scores.f], plain(truth, prediction), rtol=0, atol=1e-9)


@pytest.mark.parametrize("size", [(60, 80), (35, 50), (1, 50), (60, 1)])
def test_objects_inside_the_frame_and_at_its_border_agree_too(size: tuple[int, int]) -> None:
    truth = square(20, 30, 15, size) if min(size) > 1 else square(0, 0, 15, size)
    for shift in ((0, 0), (1, 2), (2, -3), (-2, -1), (40, 1)):
        prediction = np.roll(truth, shift, axis=(0, 1))
        expected = plain(*(np.stack([mask] * 3).astype(np.uint8) for mask in (truth, prediction)))
        measured = [jaccard(truth, prediction), boundary_f(truth, prediction)]
        np.testing.assert_allclose(measured, np.ravel(expected), rtol=0, atol=1e-9)


def test_a_perfect_prediction_scores_one_whatever_marks_the_background() -> None:
    truth = blobs(0, 9, (48, 64), 3)
    void = np.where(truth == 0, 255, truth).astype(np.uint8)
    for pair in ((truth, truth), (void, truth), (truth, void), (void, void)):
        scores = score_sequence(*pair)
        assert scores.ids == (1, 2, 3) and scores.j_and_f == 1
        np.testing.assert_array_equal(scores.stats, [[1, 1, 0, 1, 1, 0]] * 3)


@pytest.mark.parametrize("measure", [jaccard, boundary_f])
def test_empty_masks_symmetry_and_memory_layout(measure) -> None:
    empty, mask = np.zeros((60, 80), dtype=bool), square(20, 30)
    assert (measure(empty, empty), measure(mask, empty), measure(empty, mask)) == (1, 0, 0)
    a, b = (masks == 1 for masks in blobs(2, 2, (50, 70), 1))
    assert 0 < measure(a, b) < 1
    assert measure(a, b) == measure(b, a) == measure(np.asfortranarray(a), b)


def test_jaccard_of_overlapping_squares() -> None:
    assert jaccard(square(0, 0, 20), square(0, 10, 20)) == 200 / 600


def test_boundary_tolerance_is_a_disk_of_the_rounded_up_radius() -> None:
    size = (150, 200)  # diagonal 250: exactly 2 pixels
    assert boundary_f(square(50, 50, 1, size), square(50, 52, 1, size)) == 1
    # A pixel's boundary is a 2x2 block, so only the facing corners of two blocks moved by (2, 2) are close.
    assert boundary_f(square(50, 50, 1, size), square(52, 52, 1, size)) == 0.25
    assert boundary_f(square(50, 50, 1, size), square(50, 54, 1, size)) == 0
    wider = (150, 201)  # 2.006 pixels, so 3
    assert boundary_f(square(50, 50, 1, wider), square(50, 54, 1, wider)) == 0.5


def test_boundary_ignores_the_image_border() -> None:
    """A mask that fills the frame has no boundary, and one cut by the border has none there."""
    full = np.ones((60, 80), dtype=bool)
    assert boundary_f(full, np.zeros_like(full)) == 1
    half = np.zeros_like(full)
    half[:, 40:] = True
    assert boundary_f(half, np.roll(half, 1, axis=1) & half) == 1


def test_first_and_last_frame_are_not_scored() -> None:
    truth, prediction = blobs(3, 7, (40, 50), 2), blobs(4, 7, (40, 50), 2)
    expected = score_sequence(truth, prediction)
    assert expected.j.shape == expected.f.shape == (2, 5)
    prediction[0], prediction[-1], truth[-1] = 0, 1, 2
    changed = score_sequence(truth, prediction)
    np.testing.assert_array_equal(changed.j, expected.j)
    np.testing.assert_array_equal(changed.f, expected.f)


def test_ids_of_the_first_annotation_only() -> None:
    truth = np.zeros((4, 60, 80), dtype=np.uint8)
    truth[:, square(5, 5)] = 7
    truth[1:, square(30, 5)] = 2
    prediction = truth.copy()
    prediction[:, square(5, 40)] = 9
    scores = score_sequence(truth, prediction)
    assert scores.ids == (7,)
    assert scores.j_and_f == 1


def test_recall_is_strict() -> None:
    assert scores_of([0.5, 0.5, 0.51, 0.4]).stats[0, 1] == 0.25


@pytest.mark.parametrize(("length", "first", "last"), [
    (1, 1, 1), (4, 2, 2), (5, 2, 2), (7, 3, 2), (10, 3, 3), (11, 4, 3), (13, 4, 4), (300, 76, 76)])
def test_decay_is_first_quarter_minus_last(length: int, first: int, last: int) -> None:
    """Edges round half up, and each quarter includes both of its edges; long sequences do not overflow."""
    values = np.random.default_rng(length).uniform(size=length)
    expected = values[:first].mean() - values[-last:].mean()
    assert scores_of(values.tolist()).stats[0, 2] == pytest.approx(expected, abs=1e-12)


def test_summary_is_a_mean_over_objects() -> None:
    one = scores_of([0.9, 0.9, 0.9])
    three = scores_of([0.3, 0.2, 0.1], [0.6, 0.6, 0.6], [0.2, 0.2, 0.2])
    summary = summarise(iter([one, three]))
    assert " ".join(summary) == "J&F-Mean J-Mean J-Recall J-Decay F-Mean F-Recall F-Decay"
    j_mean = (0.9 + 0.2 + 0.6 + 0.2) / 4
    expected = (0.75 * j_mean, j_mean, 2 / 4, 0.15 / 4, j_mean / 2, 0, 0.075 / 4)
    assert list(summary.values()) == pytest.approx(expected)
    assert three.j_and_f == pytest.approx(0.75 * (0.2 + 0.6 + 0.2) / 3)


def test_late_object_counts_after_its_first_annotation() -> None:
    truth, prediction = blobs(6, 12, (40, 50), 3), blobs(7, 12, (40, 50), 3)
    everything = score_sequence(truth, prediction)
    scores = score_sequence(truth, prediction, first_frame={3: 10, 2: 4, 1: 0})
    assert scores.ids == (1, 2, 3)
    for values, all_values in ((scores.j, everything.j), (scores.f, everything.f)):
        np.testing.assert_array_equal(np.isnan(values).sum(axis=1), [0, 4, 10])
        np.testing.assert_array_equal(values[0], all_values[0])
        np.testing.assert_array_equal(values[1, 4:], all_values[1, 4:])
    own = SequenceScores(ids=(2,), j=everything.j[1:2, 4:], f=everything.f[1:2, 4:])
    np.testing.assert_array_equal(scores.stats[:2], [everything.stats[0], own.stats[0]])
    assert np.isnan(scores.stats[2]).all()
    assert scores.j_and_f == pytest.approx(scores.stats[:2][:, [0, 3]].mean())


TRUTH = blobs(8, 4, (40, 50), 2)


@pytest.mark.parametrize(("call", "named"), [
    (lambda: score_sequence(TRUTH, TRUTH[:3]), r"\(4, 40, 50\).*\(3, 40, 50\)"),
    (lambda: jaccard(TRUTH[0] > 0, TRUTH[0].T > 0), r"\(40, 50\).*\(50, 40\)"),
    (lambda: boundary_f(TRUTH[0] > 0, TRUTH[0, :1] > 0), r"\(40, 50\).*\(1, 50\)"),
    (lambda: score_sequence(TRUTH[0], TRUTH[0]), r"\(T, H, W\)"),
    (lambda: score_sequence(TRUTH, TRUTH.astype(np.float32)), "prediction float32"),
    (lambda: score_sequence(TRUTH[:2], TRUTH[:2]), "^2 .*at least 3"),
    (lambda: score_sequence(np.full_like(TRUTH, 255), TRUTH), "first annotation"),
    (lambda: score_sequence(TRUTH, TRUTH, first_frame={}), "first annotation"),
    (lambda: score_sequence(TRUTH, TRUTH, first_frame={9: 0}), "first_frame.* 0 .*object 9"),
    (lambda: score_sequence(TRUTH, TRUTH, first_frame={0: 0}), "first_frame.* 0 .*object 0"),
    (lambda: score_sequence(TRUTH, TRUTH, first_frame={1: 4}), "first_frame.* 4 .*object 1"),
    (lambda: score_sequence(TRUTH, TRUTH, first_frame={1: -1}), "first_frame.* -1 .*object 1"),
    (lambda: score_sequence(TRUTH, TRUTH, first_frame={1: 2}), "last two frames"),
    (lambda: summarise([]), "scores"),
])
def test_wrong_inputs_are_named(call, named: str) -> None:
    with pytest.raises(InputError, match=named):
        call()
