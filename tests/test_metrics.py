"""Metrics against official values, a plain implementation, and cases that follow from the protocol."""

from pathlib import Path

import numpy as np
import pytest

from dulvos.errors import InputError
from dulvos.metrics import STATS_COLUMNS, SequenceScores, score_sequence, summarise
from tests.oracles import blobs, score_oracle


def video(seed: int, length: int, size: tuple[int, int], objects: int) -> np.ndarray:
    """Random smooth regions, some at the image's border: (T, H, W) uint8 ids 0..objects."""
    return np.stack([blobs(100 * seed + t, tuple(range(1, objects + 1)), *size) for t in range(length)])


def square(top: int, left: int, side: int = 20, size: tuple[int, int] = (60, 80)) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


def measure(truth: np.ndarray, prediction: np.ndarray) -> tuple[float, float]:
    """J and F of two masks (H, W): frame 1 of a sequence whose object is known from frame 0."""
    sequences = np.ones((2, 3, *truth.shape), np.uint8)
    sequences[:, 1] = truth, prediction
    scores = score_sequence(*sequences)
    return scores.j.item(), scores.f.item()


def scores_of(*j: list[float]) -> SequenceScores:
    """Scores with the given J, a row for each object, and half of it as F."""
    return SequenceScores(ids=tuple(range(1, len(j) + 1)), j=np.array(j), f=np.array(j) / 2)


@pytest.mark.parametrize("case", ["metrics_two_objects", "metrics_edges", "published_bmx_trees"])
def test_golden(golden: Path, case: str) -> None:
    expected = np.load(golden / f"{case}.npz")
    scores = score_sequence(expected["truth"], expected["prediction"])
    for name in ("j", "f", "j_and_f"):
        np.testing.assert_allclose(getattr(scores, name), expected[name], rtol=0, atol=1e-9, err_msg=name)
    columns = [STATS_COLUMNS.index(name) for name in expected["stats_columns"]]
    np.testing.assert_allclose(scores.stats[:, columns], expected["stats"], rtol=0, atol=1e-9)


@pytest.mark.parametrize(("size", "objects"), [((60, 100), 2), ((101, 64), 1), ((96, 128), 4)])
def test_agrees_with_the_protocol_step_by_step(size: tuple[int, int], objects: int) -> None:
    truth, other = video(0, 6, size, objects), video(1, 6, size, objects)
    near = np.stack([np.roll(frame, t, axis=t % 2) for t, frame in enumerate(truth)])
    prediction = np.where(np.arange(size[1]) < size[1] // 2, near, other)
    prediction[3][prediction[3] == 1] = 0
    scores = score_sequence(truth, prediction)
    assert scores.ids == tuple(range(1, objects + 1))
    np.testing.assert_allclose([scores.j, scores.f], score_oracle(truth, prediction), rtol=0, atol=1e-9)
    turned = score_sequence(np.asfortranarray(prediction), np.asfortranarray(truth))
    np.testing.assert_array_equal(turned.j[:1], scores.j[:1])  # symmetric, whatever the layout in memory


@pytest.mark.parametrize("size", [(60, 80), (35, 50), (1, 50), (60, 1)])
def test_objects_inside_the_frame_and_at_its_border_agree_too(size: tuple[int, int]) -> None:
    truth = square(20, 30, 15, size) if min(size) > 1 else square(0, 0, 15, size)
    for shift in ((0, 0), (1, 2), (2, -3), (-2, -1), (40, 1)):
        prediction = np.roll(truth, shift, axis=(0, 1))
        expected = score_oracle(*(np.stack([mask] * 3).astype(np.uint8) for mask in (truth, prediction)))
        np.testing.assert_allclose(measure(truth, prediction), np.ravel(expected), rtol=0, atol=1e-9)


EMPTY, FULL = np.zeros((60, 80), bool), np.ones((60, 80), bool)
MASK, RIGHT = square(20, 30), square(0, 40, 80)
SIZE, WIDER = (150, 200), (150, 201)  # of diagonal 250, so that boundaries match within 2 pixels; within 3


@pytest.mark.parametrize(("truth", "prediction", "j", "f"), [
    (EMPTY, EMPTY, 1, 1), (MASK, EMPTY, 0, 0), (EMPTY, MASK, 0, 0),
    (FULL, EMPTY, 0, 1),  # a mask that fills the frame has no boundary
    (RIGHT, np.roll(RIGHT, 1, 1) & RIGHT, 39 / 40, 1),  # one cut by the border has none there
    (square(50, 50, 1, SIZE), square(50, 52, 1, SIZE), 0, 1),
    # a pixel's boundary is a block of 2x2, so that only the facing corners of two are close: a disk
    (square(50, 50, 1, SIZE), square(52, 52, 1, SIZE), 0, 0.25),
    (square(50, 50, 1, SIZE), square(50, 54, 1, SIZE), 0, 0),
    (square(50, 50, 1, WIDER), square(50, 54, 1, WIDER), 0, 0.5)])
def test_known_cases(truth: np.ndarray, prediction: np.ndarray, j: float, f: float) -> None:
    assert measure(truth, prediction) == (j, f)


def test_objects_are_those_of_the_first_annotation_whatever_marks_the_background() -> None:
    truth = video(0, 9, (48, 64), 3)
    truth[1:, :9, :9] = 7  # an object that comes later is background
    prediction = truth.copy()
    prediction[:, -9:, -9:][prediction[:, -9:, -9:] == 0] = 9
    void = np.where(truth == 0, 255, truth).astype(np.uint8)
    for pair in ((truth, prediction), (void, prediction), (truth, void), (void, void)):
        scores = score_sequence(*pair)
        assert scores.ids == (1, 2, 3) and scores.j_and_f == 1
        np.testing.assert_array_equal(scores.stats, [[1, 1, 0, 1, 1, 0]] * 3)


@pytest.mark.parametrize(("length", "first", "last"), [
    (1, 1, 1), (4, 2, 2), (5, 2, 2), (7, 3, 2), (10, 3, 3), (11, 4, 3), (13, 4, 4), (300, 76, 76)])
def test_decay_is_first_quarter_minus_last(length: int, first: int, last: int) -> None:
    """Edges round half up, and each quarter includes both of its edges; long sequences do not overflow."""
    values = np.random.default_rng(length).uniform(size=length)
    expected = values[:first].mean() - values[-last:].mean()
    assert scores_of(values.tolist()).stats[0, 2] == pytest.approx(expected, abs=1e-12)


def test_summary_is_a_mean_over_objects() -> None:
    one = scores_of([0.9, 0.9, 0.9])
    three = scores_of([0.3, 0.2, 0.1], [0.6, 0.6, 0.6], [0.2, 0.2, 0.5])  # of recall 0, 1, 0: it is strict
    summary = summarise(iter([one, three]))
    assert " ".join(summary) == "J&F-Mean J-Mean J-Recall J-Decay F-Mean F-Recall F-Decay"
    j_mean = (0.9 + 0.2 + 0.6 + 0.3) / 4
    expected = (0.75 * j_mean, j_mean, 2 / 4, -0.15 / 4, j_mean / 2, 0, -0.075 / 4)
    assert list(summary.values()) == pytest.approx(expected)
    assert three.j_and_f == pytest.approx(0.75 * (0.2 + 0.6 + 0.3) / 3)


def test_late_object_counts_after_its_first_annotation() -> None:
    truth, prediction = video(6, 12, (40, 50), 3), video(7, 12, (40, 50), 3)
    everything = score_sequence(truth, prediction)
    scores = score_sequence(truth, prediction, first_frame={3: 10, 2: 4, 1: 0})
    assert scores.ids == (1, 2, 3)
    for values, whole in ((scores.j, everything.j), (scores.f, everything.f)):
        np.testing.assert_array_equal(values, [whole[0], [*[np.nan] * 4, *whole[1, 4:]], [np.nan] * 10])
    own = SequenceScores(ids=(2,), j=everything.j[1:2, 4:], f=everything.f[1:2, 4:])
    np.testing.assert_array_equal(scores.stats, [everything.stats[0], own.stats[0], [np.nan] * 6])
    assert scores.j_and_f == pytest.approx(scores.stats[:2][:, [0, 3]].mean())


TRUTH = video(8, 4, (40, 50), 2)


@pytest.mark.parametrize(("truth", "prediction", "first_frame", "named"), [
    (TRUTH, TRUTH[:3], None, r"\(4, 40, 50\).*\(3, 40, 50\)"),
    (TRUTH[0], TRUTH[0], None, r"\(T, H, W\)"),
    (TRUTH, TRUTH.astype(np.float32), None, "prediction float32"),
    (TRUTH[:2], TRUTH[:2], None, "^2 "),
    (np.full_like(TRUTH, 255), TRUTH, None, "first annotation"), (TRUTH, TRUTH, {}, "first annotation"),
    *[(TRUTH, TRUTH, {i: t}, f"first_frame.* {t} .*object {i}")
      for i, t in ((9, 0), (0, 0), (1, 4), (1, -1))],
    (TRUTH, TRUTH, {1: 2}, "no frame")])
def test_wrong_inputs_are_named(truth, prediction, first_frame, named: str) -> None:
    with pytest.raises(InputError, match=named):
        score_sequence(truth, prediction, first_frame=first_frame)
    with pytest.raises(InputError):
        summarise([])
