"""Training clips: which frames, which crop, in which order; all follow from the seed and the clip's index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as colour

from dulvos.errors import InputError
from dulvos.videos import Video, resize

__all__ = ["PHOTOMETRIC", "Clips", "frame_indices", "usable_videos"]

PHOTOMETRIC = ("none", "video", "frame")
_CHANGES = (colour.adjust_brightness, colour.adjust_contrast, colour.adjust_saturation)


def usable_videos(videos: Sequence[Video], frames: int) -> tuple[list[Video], list[str]]:
    """The videos of at least `frames` frames, and a line about each other one; InputError if none is."""
    kept = [video for video in videos if len(video) >= frames]
    if not kept:
        raise InputError(f"no video is as long as a clip of frames={frames}; the longest of {len(videos)} "
                         f"has {max(map(len, videos), default=0)} frames")
    return kept, [f"left out: {video.name} has {len(video)} frames, a clip needs {frames}"
                  for video in videos if len(video) < frames]


def frame_indices(length: int, frames: int, gap: int, generator: np.random.Generator, *,
                  ordered: bool = False) -> np.ndarray:
    """(T,) int64 frame numbers 0, g, 2g, … from a random start, in random order; the first is the reference.

    Arguments:
        length: number of frames of the video, >= T.
        frames: T.
        gap: g, >= 1; in a video shorter than g·T, ⌊length / T⌋.
        ordered: keep the frames in order (the order does not matter, Sec. 3.5).
    """
    gap = min(length, gap * frames) // frames
    start = generator.integers(0, length - gap * (frames - 1))
    indices = start + gap * np.arange(frames)
    return indices if ordered else generator.permutation(indices)


@dataclass(eq=False)
class Clips(Dataset):
    """An endless sequence of clips; each epoch takes one clip of each video, in an order drawn anew.

    A clip depends only on the seed and its number, so training resumes exactly with any number of workers.
    All frames of a clip share one random square crop, at a scale where the shorter side would have U{scale}
    pixels, and one horizontal flip with p = 0.5.

    Arguments:
        videos: at least one with T frames or more; shorter ones are left out.
        frames, gap, ordered: as `frame_indices` takes them.
        crop: side S of the crop, in pixels.
        scale: least and greatest length of the shorter side, in pixels, both included; >= crop.
        centre: crop at the centre (TrackingNet, Kinetics).
        photometric: brightness, contrast and saturation times U(0.6, 1.4): "none" (the method), "video"
            (alike in all frames of a clip), "frame" (anew in each; App. B.2 says that this hurts).

    Raises:
        InputError: no video is long enough.
    """

    videos: Sequence[Video]
    _: KW_ONLY
    frames: int
    gap: int
    crop: int
    scale: tuple[int, int]
    centre: bool = False
    ordered: bool = False
    photometric: str = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        self.videos, _ = usable_videos(self.videos, self.frames)

    def video_of(self, number: int) -> Video:
        """The video that clip `number` is taken from."""
        epoch, position = divmod(number, len(self.videos))
        order = np.random.default_rng((self.seed, 0, epoch)).permutation(len(self.videos))
        return self.videos[order[position]]

    def __getitem__(self, number: int) -> Tensor:
        """(T, 3, S, S) uint8 RGB; frame 0 is the reference."""
        video = self.video_of(number)
        generator = np.random.default_rng((self.seed, 1, number))
        indices = frame_indices(len(video), self.frames, self.gap, generator, ordered=self.ordered)
        shorter = int(generator.integers(self.scale[0], self.scale[1] + 1))
        flip, y, x = generator.random() < 0.5, generator.random(), generator.random()
        if self.centre:
            y = x = 0.5
        frames = {index: video.read(index) for index in sorted(indices.tolist())}  # files are read forwards
        height, width = frames[indices[0]].shape[:2]
        side = min(round(self.crop / shorter * min(height, width)), height, width)  # before it is resized
        top, left = int(y * (height - side + 1)), int(x * (width - side + 1))
        window = slice(top, top + side), slice(left, left + side)
        clip = np.stack([resize(frames[index][window], (self.crop, self.crop)) for index in indices])
        clip = torch.from_numpy(clip).permute(0, 3, 1, 2)  # [T, 3, S, S]
        clip = clip.flip(-1) if flip else clip
        if self.photometric != "none":
            draws = 1 if self.photometric == "video" else self.frames
            factors = np.broadcast_to(generator.uniform(0.6, 1.4, (draws, 3)), (self.frames, 3))
            for t, row in enumerate(factors):
                frame = clip[t]
                for change, factor in zip(_CHANGES, row):
                    frame = change(frame, float(factor))
                clip[t] = frame
        return clip.contiguous()
