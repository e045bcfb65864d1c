"""Region similarity J and contour accuracy F of predicted masks, by the DAVIS-2017 semi-supervised protocol.

Protocol: Pont-Tuset et al., arXiv:1704.00675. Measures: Perazzi et al., CVPR 2016 (there 𝒥 and ℱ).
"""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil, hypot

import cv2
import numpy as np

from dulvos.errors import InputError

__all__ = ["STATS_COLUMNS", "SUMMARY_COLUMNS", "SequenceScores", "score_sequence", "summarise"]

STATS_COLUMNS = ("J mean", "J recall", "J decay", "F mean", "F recall", "F decay")
SUMMARY_COLUMNS = ("J&F-Mean", "J-Mean", "J-Recall", "J-Decay", "F-Mean", "F-Recall", "F-Decay")
BACKGROUND = (0, 255)  # 255: void
TOLERANCE = 0.008  # of the image diagonal


@dataclass(frozen=True, eq=False)
class SequenceScores:
    """J and F of each object in each scored frame of one sequence."""

    ids: tuple[int, ...]  # of the objects, ascending
    j: np.ndarray  # (objects, T - 2) float64 in [0, 1], frames 1 ... T-2; NaN up to the first annotation
    f: np.ndarray  # the same for F

    @property
    def stats(self) -> np.ndarray:
        """`STATS_COLUMNS` of each object: (objects, 6) float64, NaN for an object without a scored frame."""
        return np.array([_statistics(j) + _statistics(f) for j, f in zip(self.j, self.f, strict=True)])

    @property
    def j_and_f(self) -> float:
        """J&F = (mean J + mean F) / 2, over the objects that have a scored frame."""
        return summarise([self])["J&F-Mean"]


def score_sequence(truth: np.ndarray, prediction: np.ndarray, *,
                   first_frame: Mapping[int, int] | None = None) -> SequenceScores:
    """J and F of each object in the frames between the first and the last.

    J = |A ∩ B| / |A ∪ B| compares the regions; it is 1 if both are empty. F = 2PR / (P + R) compares their
    boundaries; it is 1 if both are empty and 0 if one is. P is the share of the prediction's boundary that
    lies within ⌈.008 · diagonal⌉ pixels of the truth's boundary, R the share the other way round. The border
    of the image is no boundary.

    The objects are those of the first annotation, truth[0]; other ids are background. For YouTube-VOS, the
    objects are the keys of `first_frame`, and each counts from the frame after its first annotation.

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
        raise InputError(f"{length} frame(s): at least 3 are needed, as the first and last are not scored")
    entry = _entry_frames(truth, first_frame)
    radius = ceil(TOLERANCE * hypot(*size))
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    disk = (x**2 + y**2 <= radius**2).astype(np.uint8)
    j, f = np.full((2, len(entry), length - 2), np.nan)

    def score(case: tuple[int, int, int]) -> None:
        row, object_id, t = case
        a, b = ((ids[t] == object_id).view(np.uint8) for ids in (truth, prediction))
        j[row, t - 1], f[row, t - 1] = _compare(a, b, disk)

    scored = [(row, object_id, t) for row, (object_id, start) in enumerate(entry.items())
              for t in range(start + 1, length - 1)]
    with ThreadPoolExecutor() as pool:  # numpy and OpenCV release the interpreter's lock
        list(pool.map(score, scored))
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


def _compare(truth: np.ndarray, prediction: np.ndarray, disk: np.ndarray) -> tuple[float, float]:
    """J and F of two masks (H, W), uint8 0 and 1; boundaries match within the disk (n, n)."""
    x, y, width, height = cv2.boundingRect(truth | prediction)
    box = slice(max(y - 1, 0), y + height + 1), slice(max(x - 1, 0), x + width + 1)  # holds all boundaries
    truth, prediction = truth[box], prediction[box]
    union = np.count_nonzero(truth | prediction)
    j = np.count_nonzero(truth & prediction) / union if union else 1.0
    edge, predicted = _boundary(truth), _boundary(prediction)
    if not edge.any() and not predicted.any():
        return j, 1.0
    recall, precision = (int(np.count_nonzero(one & cv2.dilate(other, disk))) / max(int(one.sum()), 1)
                         for one, other in ((edge, predicted), (predicted, edge)))
    return j, 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _boundary(mask: np.ndarray) -> np.ndarray:
    """Pixels that differ from their right, lower or lower-right neighbour: (H, W) uint8."""
    boundary = np.zeros_like(mask)
    boundary[:, :-1] = mask[:, :-1] ^ mask[:, 1:]
    boundary[:-1] |= mask[:-1] ^ mask[1:]
    boundary[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return boundary


def _statistics(values: np.ndarray) -> tuple[float, float, float]:
    """Mean, recall (share above .5) and decay (first quarter - last) over one object's scored frames."""
    values = values[~np.isnan(values)]
    if not values.size:
        return np.nan, np.nan, np.nan
    # as in the official tool (whose uint8 edges overflow), 1e-10 rounds halves up, and quarters share a frame
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
