"""Small drawn videos in the layouts of DAVIS and YouTube-VOS."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import cv2
import numpy as np

from dulvos.masks import write_mask
from tests.oracles import texture

FRAMES, STEP = 13, 3  # frames of a video of YouTube-VOS, and steps between annotations (there 150 and 5)
IDS, ENTRY = (1, 5), 6  # ids with a gap; the frame in which the second object enters
VALID = {"v1": "ab", "v2": "cd"}  # the categories of each video's two objects
TRAIN = {f"t{n}": pair for n, pair in enumerate(("ab", "ac", "bd", "dd", "ee", "ae", "cb"), 1)}
PLAIN = {"translation": [(20, 20, 4, 8, 0)], "late-entry": [(24, 28, 0, 1, 0), (40, 66, 0, -1, 4)]}


def draw_video(discs: Iterable[tuple], *, size: tuple[int, int] = (64, 96), frames: int = 6,
               seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Textured discs that move over a textured ground: frames (T, H, W, 3) and masks (T, H, W), ids 1, 2, ...

    discs: y, x, dy, dx of each in pixels (a frame), and the frame in which it enters.
    """
    video = np.tile(texture(seed, *size), (frames, 1, 1, 1))
    masks, (y, x) = np.zeros((frames, *size), np.uint8), np.mgrid[: size[0], : size[1]]
    for number, (top, left, dy, dx, entry) in enumerate(discs, 1):
        for t in range(entry, frames):
            inside = np.hypot(y - top - t * dy, x - left - t * dx) < 12
            skin = np.roll(texture(seed + 10 * number, *size), (t * dy, t * dx), (0, 1))
            video[t][inside] = skin[inside] // 2 + 127 * np.eye(3, dtype=np.uint8)[number % 3]
            masks[t][inside] = number
    return video, masks


def write_video(frames: np.ndarray, folder: Path) -> None:
    folder.mkdir(parents=True)
    for t, frame in enumerate(frames):
        cv2.imwrite(str(folder / f"{t:05d}.jpg"), frame[..., ::-1])


def write_davis(root: Path, videos: Mapping[str, tuple[np.ndarray, np.ndarray]], *, name: str = "",
                splits: Iterable[str] = ("val",)) -> Path:
    """Videos (frames, masks) in DAVIS-2017's layout; `name` is the data set's own."""
    for video, (frames, masks) in videos.items():
        write_video(frames, root / "JPEGImages/480p" / video)
        for t, ids in enumerate(masks):
            write_mask(root / "Annotations/480p" / video / f"{t:05d}.png", ids)
    (root / "ImageSets/2017").mkdir(parents=True)
    for split in splits:
        (root / "ImageSets/2017" / f"{split}.txt").write_text("".join(f"{video}\n" for video in videos))
    if name:
        (root / "benchmark.json").write_text(json.dumps({"name": name}))
    return root


def write_youtube_vos(root: Path, *, valid: Mapping[str, str] = VALID,
                      train: Mapping[str, str] = TRAIN) -> Path:
    """`valid` is annotated where an object enters, `train` in every frame that is handed in."""
    coarse = [f"{t:05d}" for t in range(0, FRAMES, STEP)]
    for split, videos in (("valid", valid), ("train", train)):
        meta = {}
        for seed, (name, categories) in enumerate(videos.items()):
            meta[name] = {"objects": {str(i): {"category": category, "frames": coarse}
                                      for i, category in zip(IDS, categories)}}
            frames, masks = draw_video([(22, 28, 0, 1, 0), (40, 70, 0, -1, ENTRY)], frames=FRAMES, seed=seed)
            write_video(frames, root / f"{split}_all_frames/JPEGImages" / name)
            (root / f"{split}/JPEGImages" / name).mkdir(parents=True)
            for t in coarse:
                file = root / f"{split}/JPEGImages" / name / f"{t}.jpg"
                file.write_bytes((root / f"{split}_all_frames/JPEGImages" / name / f"{t}.jpg").read_bytes())
            masks = np.where(masks == 2, IDS[1], masks).astype(np.uint8)
            for t in (0, ENTRY) if split == "valid" else range(0, FRAMES, STEP):
                write_mask(root / split / "Annotations" / name / f"{t:05d}.png", masks[t])
        (root / split / "meta.json").write_text(json.dumps({"videos": meta}))
    return root
