"""From frames and a first mask to masks: features of a video's frames, and their propagation."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dulvos.devices import autocast
from dulvos.encoder import LAYERS, STRIDE, Encoder, prepare_frames
from dulvos.errors import InputError, check_types
from dulvos.propagation import object_ids, propagate, to_labels
from dulvos.videos import shrink

__all__ = ["SegmentSettings", "colour_features", "encode", "segment"]


@dataclass(frozen=True)
class SegmentSettings:
    """Settings of inference; the defaults are the paper's for DAVIS-2017 (Sec. 4, App. C).

    Raises:
        InputError: a value of the wrong type, unknown layer or precision, a side below the encoder's stride.
    """

    layer: str = "res4"  # res3, res4, key
    context: int = 20  # recent entries; the reference comes on top
    radius: float = 12.0  # of the neighbourhood in recent entries, in cells, exclusive
    topk: int = 10
    tau: float = 0.05
    shorter_side: int = 0  # frames are reduced to this shorter side for the encoder; 0 keeps them
    precision: str = "bf16"  # of the encoder: bf16 (autocast), fp32; propagation is float32

    def __post_init__(self) -> None:
        check_types(self)
        if self.layer not in LAYERS:
            raise InputError(f"layer must be one of {LAYERS}, not {self.layer!r}")
        if self.precision not in ("bf16", "fp32"):
            raise InputError(f"precision must be 'bf16' or 'fp32', not {self.precision!r}")
        if self.shorter_side and self.shorter_side < STRIDE:
            raise InputError(f"shorter_side must be 0 (keep) or >= {STRIDE}, not {self.shorter_side}")


def encode(encoder: Encoder, frames: Iterable[np.ndarray], settings: SegmentSettings = SegmentSettings(), *,
           batch: int = 4) -> Iterator[Tensor]:
    """Dense features of frames, one by one, on the encoder's device.

    Arguments:
        encoder: in evaluation mode; it runs up to `settings.layer` and no further.
        frames: (H, W, 3) uint8 RGB.
        batch: frames encoded at once (the features do not depend on it beyond rounding).

    Yields:
        (K, h, w) float32, L2-normalised over K; h = ⌈H / 8⌉, w = ⌈W / 8⌉.
    """
    device = next(encoder.parameters()).device
    frames = (shrink(frame, settings.shorter_side) for frame in frames)
    while chunk := list(itertools.islice(frames, batch)):
        images = torch.from_numpy(np.stack(chunk)).permute(0, 3, 1, 2)  # [n, 3, H, W], channels last
        images = prepare_frames(images.to(device))
        with torch.inference_mode(), autocast(device, settings.precision):
            features = getattr(encoder(images, (settings.layer,)), settings.layer)
        yield from features


def colour_features(frames: Iterable[np.ndarray], settings: SegmentSettings = SegmentSettings()) -> Iterator[Tensor]:
    """A baseline without a network: the mean colour of every 8 x 8 pixels, with a constant so that darkness counts too.

    Yields:
        (4, h, w) float32, L2-normalised, as `encode` does.
    """
    for frame in frames:
        image = prepare_frames(torch.from_numpy(shrink(frame, settings.shorter_side)).permute(2, 0, 1)[None])
        colour = F.adaptive_avg_pool2d(image, [-(-side // STRIDE) for side in image.shape[2:]])
        yield F.normalize(torch.cat([colour, torch.ones_like(colour[:, :1])], 1), dim=1)[0]


def segment(frames: Iterable[np.ndarray], first_mask: np.ndarray | Mapping[int, np.ndarray],
            features: Callable[[Iterable[np.ndarray], SegmentSettings], Iterable[Tensor]],
            settings: SegmentSettings = SegmentSettings()) -> Iterator[np.ndarray]:
    """Masks of a video from the mask of its first frame.

        encoder = load_encoder("davis2016")
        for ids in segment(video.frames(), mask, partial(encode, encoder)): ...

    Arguments:
        frames: (H, W, 3) uint8 RGB of one size.
        first_mask: (H, W) ids of frame 0, or a mapping from frame number to the ids that are new (or corrected) there.
        features: makes (K, h, w) features of frames, such as `partial(encode, encoder)`, or `colour_features`.

    Yields:
        (H, W) uint8 ids; where a mask was given, its objects exactly as given.

    Raises:
        InputError: frames of another kind, a mask of another size than the frames; what `propagate` raises.
    """
    masks = dict(first_mask) if isinstance(first_mask, Mapping) else {0: first_mask}
    ids = object_ids(masks)
    if ids[-1] > 254:
        raise InputError(f"object ids must be <= 254, not {ids[-1]}; dulvos.read_mask reads a mask of 0 and 255 as object 1")
    size = np.shape(next(iter(masks.values()), ()))
    softs = propagate(features(_checked(frames, size), settings), masks, context=settings.context,
                      radius=settings.radius, topk=settings.topk, tau=settings.tau)
    for t, soft in enumerate(softs):
        if t not in masks:
            yield to_labels(soft, size, ids).to(torch.uint8).cpu().numpy()
            continue
        given = np.asarray(masks[t])
        kept = [i for i, name in enumerate(ids) if name == 0 or name not in given]
        labels = to_labels(soft[kept], size, tuple(ids[i] for i in kept)).cpu().numpy()
        yield np.where(given > 0, given, 0 if t == min(masks) else labels).astype(np.uint8)


def _checked(frames: Iterable[np.ndarray], size: tuple[int, ...]) -> Iterator[np.ndarray]:
    for t, frame in enumerate(frames):
        if frame.dtype != np.uint8 or frame.shape[2:] != (3,):
            raise InputError(f"frame {t} is {frame.dtype} {frame.shape}; expected uint8 RGB, (H, W, 3)")
        if frame.shape[:2] != size:
            raise InputError(f"frame {t} is {frame.shape[1]}x{frame.shape[0]} (width x height), the mask "
                             f"{size[1]}x{size[0]}; they must have one size")
        yield frame
