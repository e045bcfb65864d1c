"""A miniature of YouTube-VOS in its layout, rendered: for the notebook and the tests, no benchmark."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from dulvos.study import cutouts as synthetic
from dulvos.masks import write_mask

__all__ = ["FRAMES", "STEP", "TRAIN", "VALID", "write_youtube_vos"]

FRAMES, STEP = 13, 3  # frames of a video, and which of them are annotated; YouTube-VOS itself has every 5th of about 150
IDS, ENTRY = (1, 5), 6  # ids with a gap; the frame from which on the second object is seen
VALID = {"v1": "ab", "v2": "cd"}  # the categories of each video's two objects
TRAIN = {f"t{n}": pair for n, pair in enumerate(("ab", "ac", "bd", "dd", "ee", "ae", "cb"), 1)}


def write_youtube_vos(root: str | os.PathLike[str], *, size: tuple[int, int] = (64, 96), valid: Mapping[str, str] = VALID,
                      train: Mapping[str, str] = TRAIN) -> Path:
    """Write `valid`, `valid_all_frames`, `train`, `train_all_frames` and their meta.json; videos that are there are left.

    Validation videos hold an annotation where an object enters, training videos one of every frame that is handed in.
    """
    root = Path(root)
    for split, videos in (("valid", valid), ("train", train)):
        meta = {name: _write_video(root, split, name, pair, size, seed) for seed, (name, pair) in enumerate(videos.items())}
        (root / split / "meta.json").write_text(json.dumps({"videos": meta}))
    return root


def _write_video(root: Path, split: str, name: str, categories: str, size: tuple[int, int], seed: int) -> dict:
    """Frames and annotations of one video; what meta.json says of it."""
    coarse = [f"{t:05d}" for t in range(0, FRAMES, STEP)]
    meta = {"objects": {str(i): {"category": category, "frames": coarse} for i, category in zip(IDS, categories)}}
    if (root / split / "Annotations" / name).is_dir():
        return meta
    wait = ENTRY - synthetic.LATE_ENTRY
    order = np.r_[np.zeros(wait, int), : FRAMES - wait]  # the video begins with a pause
    frames, masks = (part[order] for part in synthetic.render_video("late-entry", size=size, frames=FRAMES - wait, seed=seed))
    masks = np.where(masks == 2, IDS[1], masks).astype(np.uint8)
    for t, frame in enumerate(frames):
        for folder in [f"{split}_all_frames", split][: 1 + (t % STEP == 0)]:
            path = root / folder / "JPEGImages" / name / f"{t:05d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), frame[..., ::-1])
        if t in ((0, ENTRY) if split == "valid" else range(0, FRAMES, STEP)):
            write_mask(root / split / "Annotations" / name / f"{t:05d}.png", masks[t])
    return meta
