"""Masks of a video from its frames and a first mask: encode the frames, propagate the mask."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dulvos.devices import autocast, free_memory
from dulvos.encoder import IMAGE_MEAN, IMAGE_STD, LAYERS, STRIDE, Encoder, prepare_frames
from dulvos.errors import InputError, check_choices, check_types
from dulvos.propagation import PROTOCOLS, Protocol, object_ids, propagate, to_labels
from dulvos.videos import Video, resize, shrunk_size

__all__ = ["MakeFeatures", "SegmentSettings", "carry", "check_memory", "colour_features", "encode",
           "seen_size", "segment"]

_BYTES_A_PIXEL = 120  # memory that the encoder takes for a frame, about
# DINO's evaluation: the longer side is a multiple of this, and the deviation differs from ImageNet's
_DINO_SIDES, _DINO_STD = 64, (0.228, 0.224, 0.225)
_FRAMES = {"crw": {}, "dino": {"shorter_side": 480, "frames": "dino"}}  # beyond `PROTOCOLS`


@dataclass(frozen=True)
class SegmentSettings(Protocol):
    """Settings of inference; the defaults are the release's for DAVIS-2017 (Sec. 4, App. C).

    `SegmentSettings.of("dino")` gives those of DINO's evaluation, for comparisons of image encoders.

    Raises:
        InputError: a value of the wrong type, out of range or unknown.
    """

    layer: str = "res4"  # of our encoder: res3, res4, key; other encoders have one layer
    shorter_side: int = 0  # reduce frames to this shorter side for the encoder; 0 keeps them
    frames: str = "crw"  # crw: reduced, antialiased; dino: resized, the longer side a multiple of 64
    precision: str = "bf16"  # of the encoder: bf16 (autocast), fp32; propagation is float32
    protocol: str = "crw"  # crw (the paper's) or dino; decides the settings that you do not give

    def __post_init__(self) -> None:
        check_types(self)
        super().__post_init__()
        check_choices(self, layer=(*LAYERS, ""), precision=("bf16", "fp32"), frames=_FRAMES,
                      protocol=PROTOCOLS)
        dino = self.frames == "dino"
        if self.shorter_side < (_DINO_SIDES if dino else STRIDE) and (self.shorter_side or dino):
            least = _DINO_SIDES if dino else f"{STRIDE} or 0 (keep)"
            raise InputError(f"shorter_side must be >= {least}, not {self.shorter_side}")
        usual = asdict(PROTOCOLS["crw"])
        if self.protocol != "crw" and usual.items() <= asdict(self).items():
            raise InputError(f"protocol={self.protocol!r} does not set the other values; use "
                             f"SegmentSettings.of({self.protocol!r})")

    @classmethod
    def of(cls, protocol: str = "crw", **changes: Any) -> SegmentSettings:
        """The settings of a protocol, "crw" (the paper's) or "dino", with some changes; raises InputError."""
        values = asdict(PROTOCOLS[protocol]) | _FRAMES[protocol] if protocol in PROTOCOLS else {}
        return cls(**{"protocol": protocol, **values, **changes})


MakeFeatures = Callable[[Iterable[np.ndarray], SegmentSettings], Iterable[Tensor]]
"""From (H, W, 3) uint8 frames and settings to (K, h, w) float features of each, L2-normalised over K."""


def encode(encoder: Callable, frames: Iterable[np.ndarray], settings: SegmentSettings = SegmentSettings(), *,
           batch: int = 0) -> Iterator[Tensor]:
    """Dense features of frames, one by one, on the encoder's device.

    Arguments:
        encoder: what `load_encoder` returns, or any function from (n, 3, H, W) float images to (n, K, h, w)
            features. A function may have attributes: `mean` and `std` of the RGB in [0, 1] that it expects
            (by default ImageNet's), `multiple` (frames are resized to sides that are multiples of it) and
            `device` (by default the CPU).
        frames: (H, W, 3) uint8 RGB of one size.
        batch: frames encoded at once; 0 takes 4 on a CPU and 16 on a GPU. It is halved if memory is short.

    Yields:
        (K, h, w) float32, L2-normalised over K; of an `Encoder`, h = ⌈H / stride⌉ and w = ⌈W / stride⌉.
    """
    place = _device(encoder)
    batch = batch or (4 if place.type == "cpu" else 16)
    frames = (_seen(frame, settings, getattr(encoder, "multiple", 1)) for frame in frames)
    chunk: list[np.ndarray] = []  # read, but not encoded yet
    while chunk := chunk or list(itertools.islice(frames, batch)):
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
        return next(encoder.parameters(), torch.empty(0)).device
    return torch.device(getattr(encoder, "device", "cpu"))


def seen_size(size: tuple[int, int], settings: SegmentSettings, multiple: int = 1) -> tuple[int, int]:
    """The size (h, w) that frames of size (H, W) have for the encoder; `multiple` as in `encode`."""
    if settings.frames == "dino":
        longer = int(settings.shorter_side * (max(size) / min(size))) // _DINO_SIDES * _DINO_SIDES
        size = (settings.shorter_side, longer) if size[0] <= size[1] else (longer, settings.shorter_side)
    else:
        size = shrunk_size(size, settings.shorter_side)
    return tuple(max(1, round(side / multiple)) * multiple for side in size)


def _seen(frame: np.ndarray, settings: SegmentSettings, multiple: int = 1) -> np.ndarray:
    size = seen_size(frame.shape[:2], settings, multiple)
    return cv2.resize(frame, size[::-1]) if settings.frames == "dino" else resize(frame, size)


def _features(encoder: Callable, frames: np.ndarray, settings: SegmentSettings,
              place: torch.device) -> Tensor:
    images = torch.from_numpy(frames).permute(0, 3, 1, 2).to(place)  # [n, 3, H, W], channels last
    mean, std = getattr(encoder, "mean", IMAGE_MEAN), getattr(encoder, "std", IMAGE_STD)
    std = _DINO_STD if settings.frames == "dino" and tuple(std) == IMAGE_STD else std
    images = prepare_frames(images, mean, std)
    with torch.inference_mode(), autocast(place, settings.precision):
        if isinstance(encoder, Encoder):
            layer = settings.layer or "res4"
            return getattr(encoder(images, (layer,)), layer)
        features = encoder(images)
        if not (isinstance(features, Tensor) and features.ndim == 4 and len(features) == len(images)):
            made = f"{type(features).__name__} {(*getattr(features, 'shape', ()),)}"
            raise InputError(f"the encoder makes a {made} of images {(*images.shape,)}, not (n, K, h, w)")
        return F.normalize(features.float(), dim=1)


def _mean_colours(images: Tensor) -> Tensor:
    colours = F.adaptive_avg_pool2d(images, [-(-side // STRIDE) for side in images.shape[2:]])
    return torch.cat([colours, torch.ones_like(colours[:, :1])], 1)


colour_features: MakeFeatures = partial(encode, _mean_colours)
"""A baseline without a network: the mean colour of 8x8 pixels, and a 1 so that brightness counts (K = 4)."""


def segment(frames: Iterable[np.ndarray], first_mask: np.ndarray | Mapping[int, np.ndarray],
            features: MakeFeatures, settings: SegmentSettings = SegmentSettings(), *,
            ended: Mapping[int, Collection[int]] | None = None) -> Iterator[np.ndarray]:
    """Find the masks of a video from the mask of its first frame.

        encoder = load_encoder("davis2016")
        for ids in segment(video.frames(), mask, partial(encode, encoder)): ...

    Arguments:
        frames: (H, W, 3) uint8 RGB of one size.
        first_mask: (H, W) ids of frame 0, or {frame number: ids that are new or corrected there}.
        features: makes (K, h, w) features of frames, such as `partial(encode, encoder)`.
        ended: frame number -> ids of the objects that are gone from that frame on.

    Yields:
        (H, W) uint8 ids; in a frame with a given mask, its objects are exactly as given.

    Raises:
        InputError: frames of another kind or size than the masks need; what `propagate` raises.
    """
    masks = dict(first_mask) if isinstance(first_mask, Mapping) else {0: first_mask}
    size = np.shape(next(iter(masks.values()), ()))

    def checked() -> Iterator[np.ndarray]:
        for t, frame in enumerate(frames):
            if frame.dtype != np.uint8 or frame.shape != (*size, 3):
                raise InputError(f"frame {t} is {frame.dtype} {frame.shape}; expected uint8 RGB of the "
                                 f"mask's size, {(*size, 3)}")
            yield frame

    return (ids for _, ids in carry(features(checked(), settings), masks, settings, ended=ended))


def carry(features: Iterable[Tensor | None], masks: Mapping[int, np.ndarray], settings: SegmentSettings, *,
          history: Sequence[Tensor] = (), ended: Mapping[int, Collection[int]] | None = None
          ) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Carry masks through a video: `propagate`, then ids at full size.

    Arguments:
        features, history, ended: as for `propagate`.
        masks: frame number -> (H, W) ids that are new or corrected there.

    Yields:
        for each frame after the history, (M, h, w) float32 soft masks and (H, W) uint8 ids.

    Raises:
        InputError: an id beyond 254; what `propagate` raises.
    """
    ids = object_ids(masks)
    if ids[-1] > 254:
        raise InputError(f"object ids must be <= 254, not {ids[-1]}; dulvos.read_mask reads a mask of 0 and "
                         "255 as object 1")
    start, size = min(masks), np.shape(next(iter(masks.values())))
    softs = propagate(features, masks, settings, history=history, ended=ended)
    for t, soft in enumerate(softs, len(history)):
        given = np.asarray(masks.get(t, np.uint8(0)))
        found = [c for c, name in enumerate(ids) if name == 0 or name not in given]
        stride = round(seen_size(size, settings)[0] / soft.shape[1])
        labels = to_labels(soft[found], size, tuple(ids[c] for c in found), enlarge=settings.enlarge,
                           stride=stride).to(torch.uint8).cpu().numpy()
        yield soft, np.where(given > 0, given, 0 if t == start else labels).astype(np.uint8)


def check_memory(video: Video, masks: Mapping[int, np.ndarray], settings: SegmentSettings,
                 encoder: Callable) -> None:
    """Raise an InputError if carrying these masks, and one that is painted later, needs more than is free.

    Arguments:
        masks: frame number -> (H, W) ids.
    """
    height, width = seen_size(tuple(video.size), settings)
    channels = getattr(encoder, "channels", 512)  # of res4, the layer with most
    cells, kept = height * width / getattr(encoder, "stride", STRIDE) ** 2, settings.context + 2 + len(masks)
    objects = len({0, 1}.union(*map(np.unique, masks.values())))  # with the background
    # features of the kept frames take 4 bytes, and a copy of them about 3; the encoder has four frames at
    # once; each object has soft masks in the kept frames, and 8 bytes a pixel at full size
    needed = (7 * channels + 4 * objects) * kept * cells + 4 * height * width * _BYTES_A_PIXEL \
        + 8 * objects * math.prod(video.size)
    free = free_memory(_device(encoder))
    if needed > free:
        raise InputError(f"{video.path}: frames of {width}x{height} need about {needed / 2**30:.0f} GB with "
                         f"a context of {settings.context} and {objects - 1} objects, and "
                         f"{free / 2**30:.0f} GB are free; give shorter_side=480, or fewer objects at once")
