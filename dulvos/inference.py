"""From frames and a first mask to masks: features of a video's frames, and their propagation."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dulvos.devices import autocast, free_memory
from dulvos.encoder import IMAGE_MEAN, IMAGE_STD, LAYERS, STRIDE, Encoder, prepare_frames
from dulvos.errors import InputError, check_types
from dulvos.propagation import object_ids, propagate, to_labels
from dulvos.videos import Video, resize, shrink, shrunk_size

__all__ = ["MakeFeatures", "SegmentSettings", "carry", "check_memory", "colour_features", "encode", "segment"]

_CHANNELS = {"res3": 256, "res4": 512, "key": 128}
_BYTES_A_PIXEL = 120  # of a frame in the encoder, about


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


MakeFeatures = Callable[[Iterable[np.ndarray], SegmentSettings], Iterable[Tensor]]


def encode(encoder: Callable, frames: Iterable[np.ndarray], settings: SegmentSettings = SegmentSettings(), *,
           batch: int = 0) -> Iterator[Tensor]:
    """Dense features of frames, one by one, on the encoder's device.

    Arguments:
        encoder: what `load_encoder` returns; an `Encoder` runs up to `settings.layer` and no further. Or any
            function of (n, 3, H, W) float images that returns (n, K, h, w) features. These of its attributes
            count: `mean` and `std` of the RGB in [0, 1] that it expects (ImageNet's by default), `multiple`
            (frames are resized to sides that are multiples of it) and `device` (the CPU by default).
        frames: (H, W, 3) uint8 RGB of one size.
        batch: frames encoded at once; 0 takes 4 on a CPU and up to 16 on a GPU, fewer if its memory is short.
            The features do not depend on it beyond rounding.

    Yields:
        (K, h, w) float32, L2-normalised over K; of an `Encoder`, h = ⌈H / stride⌉ and w = ⌈W / stride⌉.
    """
    place = _device(encoder)
    batch = batch or (4 if place.type == "cpu" else 16)
    frames = (_seen(frame, encoder, settings) for frame in frames)
    while chunk := list(itertools.islice(frames, batch)):
        while chunk:
            try:
                features = _features(encoder, np.stack(chunk[:batch]), settings, place)
            except torch.OutOfMemoryError:
                if batch == 1:
                    raise
                batch = (batch + 1) // 2
                continue
            yield from features
            chunk = chunk[batch:]


def _device(encoder: Callable) -> torch.device:
    if isinstance(encoder, nn.Module):
        return next(encoder.parameters()).device
    return torch.device(getattr(encoder, "device", "cpu"))


def _seen(frame: np.ndarray, encoder: Callable, settings: SegmentSettings) -> np.ndarray:
    """A frame as the encoder sees it."""
    frame, multiple = shrink(frame, settings.shorter_side), getattr(encoder, "multiple", 1)
    size = tuple(max(1, round(side / multiple)) * multiple for side in frame.shape[:2])
    return frame if size == frame.shape[:2] else resize(frame, size)


def _features(encoder: Callable, frames: np.ndarray, settings: SegmentSettings,
              place: torch.device) -> Tensor:
    images = torch.from_numpy(frames).permute(0, 3, 1, 2).to(place)  # [n, 3, H, W], channels last
    images = prepare_frames(images, getattr(encoder, "mean", IMAGE_MEAN), getattr(encoder, "std", IMAGE_STD))
    with torch.inference_mode(), autocast(place, settings.precision):
        if isinstance(encoder, Encoder):
            return getattr(encoder(images, (settings.layer,)), settings.layer)
        return F.normalize(encoder(images).float(), dim=1)


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
            features: MakeFeatures, settings: SegmentSettings = SegmentSettings()) -> Iterator[np.ndarray]:
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
    size = np.shape(next(iter(masks.values()), ()))
    return (ids for _, ids in carry(features(_checked(frames, size), settings), masks, settings))


def carry(features: Iterable[Tensor | None], masks: Mapping[int, np.ndarray], settings: SegmentSettings, *,
          history: Sequence[Tensor] = (), ended: Mapping[int, Collection[int]] | None = None
          ) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Carry masks through a video by its features: `propagate`, and ids at full size.

    Arguments:
        features, history, ended: as `propagate` takes them.
        masks: frame number -> (H, W) ids that are new or corrected there.

    Yields:
        (M, h, w) float32 soft masks and (H, W) uint8 ids of the frames after the history.

    Raises:
        InputError: an id beyond 254; what `propagate` raises.
    """
    ids = object_ids(masks)
    if ids[-1] > 254:
        raise InputError(f"object ids must be <= 254, not {ids[-1]}; dulvos.read_mask reads a mask of 0 and 255 as object 1")
    softs = propagate(features, masks, context=settings.context, radius=settings.radius, topk=settings.topk, tau=settings.tau,
                      history=history, ended=ended)
    return _enlarged(softs, masks, ids, len(history))


def _enlarged(softs: Iterator[Tensor], masks: Mapping[int, np.ndarray], ids: tuple[int, ...],
              start: int) -> Iterator[tuple[Tensor, np.ndarray]]:
    size = np.shape(next(iter(masks.values())))
    for t, soft in enumerate(softs, start):
        if t not in masks:
            yield soft, to_labels(soft, size, ids).to(torch.uint8).cpu().numpy()
            continue
        given = np.asarray(masks[t])
        kept = [i for i, name in enumerate(ids) if name == 0 or name not in given]
        labels = to_labels(soft[kept], size, tuple(ids[i] for i in kept)).cpu().numpy()
        yield soft, np.where(given > 0, given, 0 if t == min(masks) else labels).astype(np.uint8)


def _checked(frames: Iterable[np.ndarray], size: tuple[int, ...]) -> Iterator[np.ndarray]:
    for t, frame in enumerate(frames):
        if frame.dtype != np.uint8 or frame.shape[2:] != (3,):
            raise InputError(f"frame {t} is {frame.dtype} {frame.shape}; expected uint8 RGB, (H, W, 3)")
        if frame.shape[:2] != size:
            raise InputError(f"frame {t} is {frame.shape[1]}x{frame.shape[0]} (width x height), the mask "
                             f"{size[1]}x{size[0]}; they must have one size")
        yield frame


def check_memory(video: Video, masks: int, settings: SegmentSettings, encoder: Callable) -> None:
    """Estimate what carrying that many masks through a video needs.

    Raises:
        InputError: more than is free.
    """
    height, width = shrunk_size(tuple(video.size), settings.shorter_side)
    channels = getattr(encoder, "channels", _CHANNELS[settings.layer])
    cells, kept = height * width / getattr(encoder, "stride", STRIDE) ** 2, settings.context + 1 + masks
    # features of the kept frames, in 4 and again in 2 to 4 bytes; four frames at once in the encoder
    needed = 7 * kept * cells * channels + 4 * height * width * _BYTES_A_PIXEL
    free = free_memory(_device(encoder))
    if needed > free:
        raise InputError(f"{video.path}: frames of {width}x{height} need about {needed / 2**30:.0f} GB with "
                         f"a context of {settings.context}, and {free / 2**30:.0f} GB are free; give "
                         "shorter_side=480, or less")
