"""Training clips: their frames, crops and order; all follow from the seed and the clip's number."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as colour

from dulvos.errors import InputError
from dulvos.videos import Video, resize

__all__ = ["PHOTOMETRIC", "ClipSettings", "Clips", "frame_indices", "usable_videos"]

PHOTOMETRIC = ("none", "video", "frame")
_CHANGES = (colour.adjust_brightness, colour.adjust_contrast, colour.adjust_saturation)


def usable_videos(videos: Sequence[Video], frames: int) -> tuple[list[Video], list[str]]:
    """The videos of at least `frames` frames, and a line about each shorter one; InputError if all are."""
    kept = [video for video in videos if len(video) >= frames]
    if not kept:
        raise InputError(f"no video is as long as a clip of frames={frames}; the longest of {len(videos)} "
                         f"has {max(map(len, videos), default=0)} frames")
    return kept, [f"left out: {video.name} has {len(video)} frames, a clip needs {frames}"
                  for video in videos if len(video) < frames]


def frame_indices(length: int, frames: int, gap: int, generator: np.random.Generator, *,
                  ordered: bool = False) -> np.ndarray:
    """(T,) int64 frame numbers s, s + g, s + 2g, … in random order, s random; the first is the reference.

    Arguments:
        length: number of frames of the video, >= T.
        frames: T.
        gap: g, >= 1; in a video shorter than g·T, it becomes ⌊length / T⌋.
        ordered: keep the frames in order (the order does not matter, Sec. 3.5).
    """
    gap = min(length, gap * frames) // frames
    start = generator.integers(0, length - gap * (frames - 1))
    indices = start + gap * np.arange(frames)
    return indices if ordered else generator.permutation(indices)


@dataclass(frozen=True)
class ClipSettings:
    """How clips are drawn; lengths are in pixels, and the defaults are the paper's for YouTube-VOS."""

    seed: int = 0
    frames: int = 5  # T, frames per clip
    gap: int = 2  # between sampled frames; 1 takes neighbours
    crop: int = 256  # side S of the square crops
    scale_min: int = 256  # the shorter side is scaled to U{scale_min..scale_max} before cropping
    scale_max: int = 319
    centre: bool = False  # crop at the centre (TrackingNet, Kinetics)
    ordered: bool = False  # keep the frames of a clip in order
    photometric: str = "none"  # colour changes: none (the method), video (alike in a clip), frame (App. B.2)


class Clips(Dataset):
    """An endless sequence of clips; each epoch takes one clip of each video, in a new random order.

    A clip depends only on the seed and its number, so training resumes exactly with any number of workers.
    All frames of a clip share one random square crop, and one horizontal flip with p = 0.5. Colour changes
    multiply brightness, contrast and saturation by U(0.6, 1.4).

    Arguments:
        videos: at least one with T frames or more; shorter ones are left out.

    Raises:
        InputError: no video is long enough.
    """

    def __init__(self, videos: Sequence[Video], settings: ClipSettings) -> None:
        self.videos, _ = usable_videos(videos, settings.frames)
        self.settings = settings

    def video_of(self, number: int) -> Video:
        """The video that clip `number` is taken from."""
        epoch, position = divmod(number, len(self.videos))
        order = np.random.default_rng((self.settings.seed, 0, epoch)).permutation(len(self.videos))
        return self.videos[order[position]]

    def __getitem__(self, number: int) -> Tensor:
        """(T, 3, S, S) uint8 RGB; frame 0 is the reference."""
        s, video = self.settings, self.video_of(number)
        generator = np.random.default_rng((s.seed, 1, number))
        indices = frame_indices(len(video), s.frames, s.gap, generator, ordered=s.ordered)
        shorter = int(generator.integers(s.scale_min, s.scale_max + 1))
        flip, y, x = generator.random() < 0.5, generator.random(), generator.random()
        if s.centre:
            y = x = 0.5
        frames = {index: video.read(index) for index in sorted(indices.tolist())}  # files are read forwards
        height, width = frames[indices[0]].shape[:2]
        side = max(1, round(min(1, s.crop / shorter) * min(height, width)))  # of the crop, unscaled
        top, left = int(y * (height - side + 1)), int(x * (width - side + 1))
        window = slice(top, top + side), slice(left, left + side)
        clip = np.stack([resize(frames[index][window], (s.crop, s.crop)) for index in indices])
        clip = torch.from_numpy(clip).permute(0, 3, 1, 2)  # [T, 3, S, S]
        clip = clip.flip(-1) if flip else clip
        if s.photometric != "none":
            draws = 1 if s.photometric == "video" else s.frames
            factors = np.broadcast_to(generator.uniform(0.6, 1.4, (draws, 3)), (s.frames, 3))
            for t, row in enumerate(factors.tolist()):
                for change, factor in zip(_CHANGES, row):
                    clip[t] = change(clip[t], factor)
        return clip.contiguous()
