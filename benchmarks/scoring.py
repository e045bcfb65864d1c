"""J and F at 480p, ours beside a plain way: `python -m benchmarks.scoring [--objects 3]`."""

from __future__ import annotations

import argparse
import cProfile
from contextlib import nullcontext
from types import SimpleNamespace
from unittest import mock

import cv2
import numpy as np

from benchmarks.measure import compare
from dulvos import metrics


def plain(truth: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """J and F (objects, T - 2) as the protocol words them: one frame and object at a time, whole masks."""
    radius = int(np.ceil(0.008 * np.hypot(*truth.shape[1:])))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = (y**2 + x**2 <= radius**2).astype(np.uint8)

    def boundary(mask: np.ndarray) -> np.ndarray:
        wide = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
        return (mask != wide[:-1, 1:]) | (mask != wide[1:, :-1]) | (mask != wide[1:, 1:])

    ids = [i for i in np.unique(truth[0]) if i not in (0, 255)]
    j, f = np.ones((2, len(ids), len(truth) - 2))
    for row, i in enumerate(ids):
        for t in range(1, len(truth) - 1):
            a, b = truth[t] == i, prediction[t] == i
            if union := (a | b).sum():
                j[row, t - 1] = (a & b).sum() / union
            edge_a, edge_b = boundary(a), boundary(b)
            near_a, near_b = (cv2.dilate(edge.astype(np.uint8), disk) > 0 for edge in (edge_a, edge_b))
            if edge_a.any() or edge_b.any():
                precision = (edge_b & near_a).sum() / max(edge_b.sum(), 1)
                recall = (edge_a & near_b).sum() / max(edge_a.sum(), 1)
                f[row, t - 1] = 2 * precision * recall / (precision + recall) if precision + recall else 0
    return j, f


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=3)
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="where the time of one thread goes")
    options = parser.parse_args()
    noise = np.random.default_rng(0).normal(size=(options.objects + 1, 560, 960))
    smooth = np.stack([cv2.GaussianBlur(channel, (0, 0), 40) for channel in noise])
    truth, prediction = (
        np.stack(
            [smooth[:, t : t + 480, t + shift : t + shift + 854].argmax(0) for t in range(options.frames)]
        ).astype(np.uint8)
        for shift in (0, 4)
    )

    def ours() -> tuple[np.ndarray, np.ndarray]:
        scores = metrics.score_sequence(truth, prediction)
        return scores.j, scores.f

    if options.profile:
        one_thread = SimpleNamespace(map=map)
        with mock.patch.object(metrics, "ThreadPoolExecutor", lambda threads: nullcontext(one_thread)):
            ours()  # warm
            cProfile.runctx("ours()", {}, {"ours": ours}, sort="tottime")
        return
    compare(
        "J and F",
        "480p",
        ours,
        lambda: plain(truth, prediction),
        runs=options.runs,
        unit="ms an object and frame",
        per=options.objects * (options.frames - 2) / 1000,
        difference=lambda a, b: float(max(np.abs(x - y).max() for x, y in zip(a, b))),
    )


if __name__ == "__main__":
    main()
