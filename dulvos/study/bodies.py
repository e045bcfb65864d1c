"""Carry joints (JHMDB) and body parts (VIP) through videos, like masks.

We did not have these data sets. The readers follow the published layouts, and the measures follow the
literature on label propagation; the tests use small drawn videos.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.io
import torch

from dulvos.datasets import Dataset, Sequence, read_predictions
from dulvos.errors import InputError
from dulvos.inference import MakeFeatures, SegmentSettings
from dulvos.masks import mask_files
from dulvos.propagation import propagate
from dulvos.videos import Video, open_video, resize

__all__ = ["JOINT_SETTINGS", "JointVideo", "carry_joints", "load_jhmdb", "load_vip", "mean_iou", "pck"]

JOINT_SETTINGS = SegmentSettings(context=7, radius=5.0)  # of CRW's evaluation on JHMDB
SIDE = 320  # pixels, of the squares to which CRW's evaluation resizes frames
SIGMA = 0.5  # cells, of the Gaussian that marks a joint
STRONGEST = 3  # a joint lies at the weighted mean of this many cells, the strongest ones


class JointVideo(NamedTuple):
    """A video and its joints (T, J, 2), x and y in pixels; its last frames may lack them."""

    name: str
    video: Video
    joints: np.ndarray


def load_jhmdb(root: Path, split: int = 1) -> list[JointVideo]:
    """The test videos of a split of JHMDB (Jhuang et al., ICCV 2013), with 15 joints.

    Reads `splits/<action>_test_split<split>.txt`, lines of "<video>.avi 2" for a test video;
    `Rename_Images/<action>/<video>/*.png`; and `joint_positions/<action>/<video>/joint_positions.mat`.

    Raises:
        InputError: a list, a video or its joints are missing or wrong.
    """
    root, found, ending = Path(root), [], f"_test_split{split}.txt"
    for file in sorted((root / "splits").glob(f"*{ending}")):
        words = file.read_text().split()
        for name in (name for name, kind in zip(words[::2], words[1::2]) if kind == "2"):
            folder = f"{file.name.removesuffix(ending)}/{Path(name).stem}"
            video = open_video(root / "Rename_Images" / folder)
            path = root / "joint_positions" / folder / "joint_positions.mat"
            try:
                joints = scipy.io.loadmat(path)["pos_img"].transpose(2, 1, 0) - 1.0  # MATLAB counts from 1
                if len(joints) > len(video) or joints.shape[2] != 2:
                    raise ValueError(f"joints {joints.shape}")
            except Exception as error:  # scipy raises many kinds
                raise InputError(f"{path}: {type(error).__name__}: {error}; expected 'pos_img' of shape (2, "
                                 f"joints, frames), and the video has {len(video)} frames") from None
            found.append(JointVideo(folder, video, joints))
    if not found:
        raise InputError(f"{root / 'splits'}: no test video of split {split}; expected <action>{ending}")
    return found


def carry_joints(frames: Iterable[np.ndarray], first: np.ndarray, make: MakeFeatures,
                 settings: SegmentSettings = JOINT_SETTINGS) -> np.ndarray:
    """Carry the joints of the first frame through a video, as soft maps with a channel for each joint.

    As in CRW's evaluation, frames are resized to squares, a joint marks the cell in which it lies, and its
    position is the weighted mean of the upper left corners of the strongest cells.

    Arguments:
        frames: (H, W, 3) uint8 RGB.
        first: (J, 2) x and y in pixels.
        make: makes (K, h, w) features of frames, as for `dulvos.segment`.

    Returns:
        (T, J, 2) x and y in pixels; NaN for a lost joint.
    """
    frames = list(frames)
    height, width = frames[0].shape[:2]
    features = list(make((resize(frame, (SIDE, SIDE)) for frame in frames), settings))
    rows, columns = features[0].shape[1:]
    scale = np.array([width / columns, height / rows])
    x, y = np.floor(first / scale).T[..., None, None]
    squares = (np.arange(columns) - x) ** 2 + (np.arange(rows)[:, None] - y) ** 2  # [J, h, w]
    bumps = np.exp(-squares / (2 * SIGMA**2)) * (squares <= (3 * SIGMA) ** 2)
    maps = np.concatenate([bumps.sum(0, keepdims=True) == 0, bumps]).astype(np.float32)  # background first
    places = []
    for soft in propagate(features, maps, settings):
        weight, cell = soft[1:].flatten(1).cpu().topk(STRONGEST)  # [J, 3]
        corners = torch.stack([cell % columns, cell // columns], -1)
        places.append((weight[..., None] * corners).sum(1) / weight.sum(1, keepdim=True))  # 0 / 0 is NaN
    return torch.stack(places).numpy() * scale


def pck(videos: Iterable[tuple[np.ndarray, np.ndarray]], alpha: float) -> float:
    """Percentage of correct keypoints, PCK@alpha: the mean over joints of the mean over frames.

    A joint is correct within alpha · 0.6 · the diagonal of the box around the true places of the joints that
    are not lost. The first frame, frames without true joints, and lost joints do not count.

    Arguments:
        videos: predicted and true joints of each video, (T, J, 2) and (up to T, J, 2).
    """
    correct = []
    for predicted, truth in videos:
        predicted = predicted[: len(truth)]
        seen = ~np.isnan(predicted).any(2)  # [T, J]
        boxes = np.where(seen[..., None], truth, np.nan)
        size = 0.6 * np.linalg.norm(np.nanmax(boxes, 1) - np.nanmin(boxes, 1), axis=1)  # [T]
        near = np.linalg.norm(predicted - truth, axis=2) <= alpha * size[:, None]
        correct.append(np.where(seen, near, np.nan)[1:])
    return 100 * float(np.nanmean(np.nanmean(np.concatenate(correct), 0)))


def load_vip(root: Path, split: str = "val") -> Dataset:
    """A split of VIP (Zhou et al., ACM MM 2018); ids in its masks are categories of body parts.

    Reads `VIP_Fine/lists/<split>_videos.txt` (a name in each line), `VIP_Fine/Images/<video>/*.jpg` and
    `VIP_Fine/Annotations/Category_ids/<video>/*.png`. `dulvos.study.evaluation.evaluate` carries the parts.

    Raises:
        InputError: the list, a video or its annotations are missing.
    """
    root = Path(root) / "VIP_Fine"
    listed = root / "lists" / f"{split}_videos.txt"
    if not listed.is_file():
        raise InputError(f"{listed}: no such list; expected the names of the videos, one in each line")
    sequences = []
    for name in listed.read_text().split():
        video = open_video(root / "Images" / name)
        sequences.append(Sequence(name, video, mask_files(video, root / "Annotations/Category_ids" / name)))
    return Dataset("VIP", root, split, sequences)


def mean_iou(dataset: Dataset, folder: Path) -> float:
    """Mean intersection over union, in percent, of the masks that `evaluate` wrote into a folder.

    Intersections and unions are summed over all frames and videos. The mean is over the categories in the
    annotations, background included.
    """
    both, predicted, true = np.zeros((3, 256), np.int64)
    for sequence in dataset.sequences:
        truth, masks = sequence.truth(), read_predictions(folder, sequence)
        both += np.bincount(truth[truth == masks], minlength=256)
        predicted += np.bincount(masks.ravel(), minlength=256)
        true += np.bincount(truth.ravel(), minlength=256)
    return 100 * float((both / np.maximum(predicted + true - both, 1))[true > 0].mean())
