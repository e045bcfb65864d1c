"""Region similarity J and contour accuracy F of predicted masks, by the DAVIS-2017 semi-supervised protocol.

Protocol: Pont-Tuset et al., arXiv:1704.00675. Measures: Perazzi et al., CVPR 2016 (there 𝒥 and ℱ).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil, hypot, isqrt

import cv2
import numpy as np

from dulvos.errors import InputError

__all__ = ["STATS_COLUMNS", "SUMMARY_COLUMNS", "SequenceScores", "score_sequence", "summarise"]

STATS_COLUMNS = ("J mean", "J recall", "J decay", "F mean", "F recall", "F decay")
SUMMARY_COLUMNS = ("J&F-Mean", "J-Mean", "J-Recall", "J-Decay", "F-Mean", "F-Recall", "F-Decay")
BACKGROUND = (0, 255)  # 255: void
TOLERANCE = 0.008  # of the image diagonal
PACKET = 4  # frames at once: their truths and predictions fill the 8 bits of a byte


@dataclass(frozen=True, eq=False)
class SequenceScores:
    """J and F of each object in each scored frame of one sequence."""

    ids: tuple[int, ...]  # of the objects, ascending
    j: np.ndarray  # (objects, T - 2) float64, of the frames 1 ... T-2; NaN until after the first annotation
    f: np.ndarray

    @property
    def stats(self) -> np.ndarray:
        """`STATS_COLUMNS` of each object: (objects, 6) float64, NaN for an object without a scored frame."""
        return np.array([_statistics(j) + _statistics(f) for j, f in zip(self.j, self.f, strict=True)])

    @property
    def j_and_f(self) -> float:
        """J&F = (mean J + mean F) / 2, over the objects that have a scored frame."""
        return summarise([self])["J&F-Mean"]


def score_sequence(
    truth: np.ndarray, prediction: np.ndarray, *, first_frame: Mapping[int, int] | None = None
) -> SequenceScores:
    """J and F of each object in the frames between the first and the last.

    J = |A ∩ B| / |A ∪ B| compares the regions, 1 if both are empty. F = 2PR / (P + R) compares their
    boundaries, 1 if both are empty, 0 if one is: P is the share of the prediction's boundary that lies within
    ⌈.008 · diagonal⌉ pixels of the truth's, R the share of the truth's that lies as near to the prediction's.
    The border of the image is no boundary.

    The objects are those of the first annotation, truth[0]; other ids are background. With `first_frame`
    (YouTube-VOS) its keys are the objects, and each counts from the frame after its first annotation.

    Arguments:
        truth, prediction: (T, H, W) integer ids, T >= 3; 0 and 255 are background.
        first_frame: object id -> frame of its first annotation in `truth`, in [0, T).

    Raises:
        InputError: arrays that are not integers of one shape (T, H, W), T < 3, no object in the first
            annotation, a `first_frame` that disagrees with the truth, no frame to score.
    """
    truth, prediction = np.asarray(truth), np.asarray(prediction)
    if truth.shape != prediction.shape or truth.ndim != 3:
        raise InputError(f"truth is {truth.shape}, prediction {prediction.shape}: both must be (T, H, W)")
    if not {truth.dtype.kind, prediction.dtype.kind} <= set("ui"):
        raise InputError(f"truth is {truth.dtype}, prediction {prediction.dtype}: ids must be integers")
    length, *size = truth.shape
    if length < 3:
        raise InputError(f"{length} frame(s): at least 3 are needed; the first and the last are not scored")
    entry = _entry_frames(truth, first_frame)
    radius = ceil(TOLERANCE * hypot(*size))
    j, f = np.full((2, len(entry), length - 2), np.nan)

    def score(row: int, object_id: int, frame: int) -> None:
        stop = min(frame + PACKET, length - 1)
        planes = _pack(truth[frame:stop], prediction[frame:stop], object_id)
        j[row, frame - 1 : stop - 1] = _jaccard(planes)[: stop - frame]
        f[row, frame - 1 : stop - 1] = _boundary_f(planes, radius)[: stop - frame]

    packets = [(row, object_id, frame) for row, (object_id, start) in enumerate(entry.items())
               for frame in range(start + 1, length - 1, PACKET)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy releases the interpreter's lock
        list(pool.map(score, *zip(*packets)))
    return SequenceScores(tuple(entry), j, f)


def summarise(scores: Iterable[SequenceScores]) -> dict[str, float]:
    """Mean of each statistic over the objects of all sequences, with the names of DAVIS's official tool.

    J&F-Mean = (J-Mean + F-Mean) / 2. Objects without a scored frame are left out.

    Raises:
        InputError: no scores.
    """
    stats = [sequence.stats for sequence in scores]
    if not stats:
        raise InputError("no scores to summarise: at least one sequence must be scored")
    j_mean, _, _, f_mean, _, _ = means = np.nanmean(np.concatenate(stats), axis=0).tolist()
    return dict(zip(SUMMARY_COLUMNS, [(j_mean + f_mean) / 2, *means], strict=True))


def _pack(truth: np.ndarray, prediction: np.ndarray, object_id: int) -> np.ndarray:
    """Masks of an object in n <= PACKET frames, (n, H, W) ids, as the bits of one (h, w) uint8 array.

    Bit i is the truth of frame i, bit PACKET + i its prediction, so that one pass serves all. (h, w) is their
    bounding box and one pixel around it, which holds all boundaries.
    """
    planes = np.zeros(truth.shape[1:], dtype=np.uint8)
    plane = np.empty_like(planes)  # used again: new memory would take longer than the comparison
    for first_bit, frames in ((0, truth), (PACKET, prediction)):
        for bit, ids in enumerate(frames, first_bit):
            np.equal(ids, object_id, out=plane.view(bool))
            plane *= np.uint8(1 << bit)
            planes |= plane
    x, y, width, height = cv2.boundingRect(planes)
    return planes[max(y - 1, 0) : y + height + 1, max(x - 1, 0) : x + width + 1]


def _count(planes: np.ndarray) -> np.ndarray:
    """Pixels of each mask: (2, PACKET) int, the truth's and the prediction's."""
    return np.reshape([np.count_nonzero(planes & (1 << bit)) for bit in range(2 * PACKET)], (2, PACKET))


def _jaccard(planes: np.ndarray) -> np.ndarray:
    intersection, union = _count(planes & (planes >> PACKET))[0], _count(planes | (planes >> PACKET))[0]
    return np.where(union > 0, intersection / np.maximum(union, 1), 1.0)


def _boundary_f(planes: np.ndarray, radius: int) -> np.ndarray:
    boundary = _boundary(planes)
    near = _dilate(boundary, radius)
    near_other = near >> PACKET | near * np.uint8(1 << PACKET)  # numpy's `<<` takes several times as long
    length, matched = _count(boundary), _count(boundary & near_other)
    recall, precision = matched / np.maximum(length, 1)
    f = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)  # 0 without a match
    return np.where(length.any(axis=0), f, 1.0)


def _boundary(planes: np.ndarray) -> np.ndarray:
    """Pixels that differ from a neighbour in the array, right, lower or lower-right: (h, w) uint8."""
    boundary = np.zeros_like(planes)
    boundary[:, :-1] = planes[:, :-1] ^ planes[:, 1:]
    boundary[:-1] |= planes[:-1] ^ planes[1:]
    boundary[:-1, :-1] |= planes[:-1, :-1] ^ planes[1:, 1:]
    return boundary


def _dilate(planes: np.ndarray, radius: int) -> np.ndarray:
    """Dilation with the disk x² + y² <= radius², the union of its columns, from the outer ones inwards."""
    height, width = planes.shape
    dilated, column, reach = np.zeros_like(planes), np.pad(planes, radius), 0
    for x in range(radius, -1, -1):
        while reach < isqrt(radius**2 - x**2):
            column, reach = column[:-2] | column[1:-1] | column[2:], reach + 1
        rows = column[radius - reach :][:height]
        dilated |= rows[:, radius - x :][:, :width] | rows[:, radius + x :][:, :width]
    return dilated


def _statistics(values: np.ndarray) -> tuple[float, float, float]:
    """Mean, recall (share above .5), decay (first quarter - last) of one object's scored frames."""
    values = values[~np.isnan(values)]
    if not values.size:
        return np.nan, np.nan, np.nan
    # as the official tool, 1e-10 rounds halves up, and quarters share a frame (its uint8 edges overflow)
    edges = np.round(np.linspace(1, len(values), 5) + 1e-10).astype(int) - 1
    decay = values[edges[0] : edges[1] + 1].mean() - values[edges[3] : edges[4] + 1].mean()
    return float(values.mean()), float(np.mean(values > 0.5)), decay


def _entry_frames(truth: np.ndarray, first_frame: Mapping[int, int] | None) -> dict[int, int]:
    """Object id -> frame of its first annotation, ids ascending, checked against the truth."""
    if first_frame is None:
        first_frame = dict.fromkeys(np.setdiff1d(truth[0], BACKGROUND).tolist(), 0)
    if not first_frame:
        raise InputError("the first annotation holds no object: all its ids are background (0, 255)")
    for object_id, frame in first_frame.items():
        if object_id in BACKGROUND or not 0 <= frame < len(truth) or object_id not in truth[frame]:
            raise InputError(f"first_frame: frame {frame} of {len(truth)} has no object {object_id} in truth")
    if min(first_frame.values()) >= len(truth) - 2:
        raise InputError("no frame to score: all objects are first annotated in the last two frames")
    return dict(sorted(first_frame.items()))
