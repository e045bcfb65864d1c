"""A video of your own: masks are given, found, corrected and found again, and nothing is computed twice."""

from __future__ import annotations

import math
import tempfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dulvos.devices import free_memory
from dulvos.errors import InputError
from dulvos.inference import MakeFeatures, SegmentSettings, carry
from dulvos.propagation import object_ids
from dulvos.videos import Video

__all__ = ["Session"]


class Session:
    """A video whose features and soft masks are kept: `run` goes on from the first frame that changed.

    The masks are those of `dulvos.segment` with the same `given`.

    Arguments:
        video: its frames.
        features: makes (K, h, w) features of frames, as `dulvos.segment` takes it.
        settings: of inference.
        given: frame number -> (H, W) uint8 ids of the objects that are new or corrected there.
        room: bytes of features to keep in memory (default: half of what is free); the rest lies in a
            temporary file.

    Fields:
        given: as above; may be changed.
        ended: frame number -> ids of the objects that are gone from that frame on; may be changed.
    """

    def __init__(self, video: Video, features: MakeFeatures, settings: SegmentSettings = SegmentSettings(),
                 given: Mapping[int, np.ndarray] | None = None, *, room: int | None = None):
        self.video, self.settings = video, settings
        self.given, self.ended = dict(given or {}), {}
        self._encode, self._stream = features, None
        self._features = _Features(free_memory(torch.device("cpu")) // 2 if room is None else room)
        self._softs: list[tuple[tuple[int, ...], Tensor]] = []  # ids of the channels, (M, h, w)
        self._found: list[bytes] = []  # masks, compressed: a mask of 4K would take 8 MB
        self._made: tuple[dict, dict] = {}, {}  # the given and ended that masks follow from,
        self._valid = 0  # the first so many
        self._before: dict[int, tuple[np.ndarray, set[int]]] = {}  # frame -> mask before, objects given

    @property
    def found(self) -> int:
        """Number of leading frames that have a mask, though some may be out of date."""
        return len(self._found)

    @property
    def done(self) -> int:
        """Number of leading frames whose masks follow from what is given now."""
        pairs = zip(self._made, (self.given, self.ended))
        changed = [t for was, now in pairs for t in {*was, *now}
                   if not np.array_equal(was.get(t), now.get(t))]
        return min([self._valid, *changed])

    def labels(self, t: int) -> np.ndarray:
        """The mask of a frame, (H, W) uint8 ids, as found and then corrected; 0 before anything is known."""
        ids = np.zeros(self.video.size, np.uint8)
        if t < self.found:
            ids = np.frombuffer(zlib.decompress(self._found[t]), np.uint8).reshape(ids.shape)
        given = self.given.get(t, np.zeros_like(ids))
        corrected = np.isin(ids, [*_objects(given), *self.ended.get(t, ())])
        return np.where(given > 0, given, np.where(corrected, 0, ids)).astype(np.uint8)

    def paint(self, t: int, ids: np.ndarray, ended: Collection[int] = ()) -> None:
        """Correct a frame: objects whose pixels changed are given anew; those erased altogether end there.

        Untouched objects go on as before, and painting what was there before takes the correction back.

        Arguments:
            t: frame number.
            ids: (H, W) uint8 in 0..254, the frame's whole mask as it should be.
            ended: objects that end here though no pixel of theirs was left to be erased.

        Raises:
            InputError: no such frame, or a mask of another size or kind.
        """
        if not 0 <= t < len(self.video):
            raise InputError(f"frame {t} is painted, but {self.video.path} has the frames 0 to "
                             f"{len(self.video) - 1}")
        if ids.shape != tuple(self.video.size) or ids.dtype != np.uint8 or ids.max() > 254:
            raise InputError(f"frame {t}: a mask must be uint8 ids up to 254, of size {tuple(self.video.size)}"
                             f", not {ids.dtype} up to {ids.max(initial=0)}, of size {ids.shape}")
        before, touched = self._before.setdefault(t, (self.labels(t), _objects(self.given.get(t))))
        changed, present = before != ids, _objects(ids)
        touched = touched | _objects(before[changed]) | _objects(ids[changed]) | {*ended}
        _set(self.given, t, np.where(np.isin(ids, [*touched]), ids, 0).astype(np.uint8), touched & present)
        known = set().union(*(_objects(mask) for start, mask in self.given.items() if start < t))
        gone = tuple(sorted((touched - present) & known))
        _set(self.ended, t, gone, gone)

    def run(self) -> Iterator[tuple[int, np.ndarray]]:
        """Find what is missing or out of date, frame by frame; can be left at any moment and called again.

        Yields:
            the frame's number and its mask, (H, W) uint8 ids.

        Raises:
            InputError: no object is marked, or one in a mask of another size; what `dulvos.segment` raises.
        """
        if not any(mask.any() for mask in self.given.values()):
            raise InputError(f"{self.video.path}: no object is marked; paint one, or give a mask")
        for t, mask in self.given.items():
            if mask.shape != tuple(self.video.size) or not 0 <= t < len(self.video):
                raise InputError(f"a mask of size {mask.shape} is given for frame {t}; {self.video.path} has "
                                 f"{len(self.video)} frames of size {tuple(self.video.size)}")
        start, made = self.done, (dict(self.given), dict(self.ended))
        ids = object_ids(made[0])
        carried = carry(self._needed(start, made[0]), made[0], self.settings,
                        ended={t: [i for i in gone if i in ids] for t, gone in made[1].items()},
                        history=[_channels(soft, old, ids) for old, soft in self._softs[:start]])
        self._made, self._valid = made, start
        del self._softs[start:]
        for t, (soft, labels) in enumerate(carried, start):
            if t > start or t >= self.found:  # from now on, painting it is compared with its new mask
                self._before.pop(t, None)
            self._softs.append((ids, soft.cpu()))
            self._found[t:t + 1] = [zlib.compress(labels.tobytes(), 1)]
            self._valid = t + 1
            yield t, labels

    def _needed(self, start: int, given: Mapping[int, np.ndarray]) -> Iterator[Tensor | None]:
        for t in range(len(self.video)):
            yield self._feature(t) if t in given or t >= start - self.settings.context else None

    def _feature(self, t: int) -> Tensor:
        while len(self._features) <= t:
            if self._stream is None:
                self._stream = iter(self._encode(self.video.frames(len(self._features)), self.settings))
            try:
                self._features.append(next(self._stream))
            except BaseException:  # Ctrl-C too: a generator that an exception left gives no more
                self._stream = None
                raise
        return self._features[t]


class _Features:
    """Features of frames by number, in memory up to `room` bytes, the rest in a temporary file."""

    def __init__(self, room: int):
        self._room, self._length = room, 0
        self._memory: list[Tensor] = []
        self._file = None

    def __len__(self) -> int:
        return self._length

    def append(self, features: Tensor) -> None:
        self._device, features = features.device, features.float().cpu()
        self._shape = tuple(features.shape)
        if self._file is None and (len(self) + 1) * features.nbytes <= self._room:
            self._memory.append(features)
        else:
            self._file = self._file or tempfile.TemporaryFile()
            self._file.write(features.numpy().tobytes())
            self._file.flush()
        self._length += 1

    def __getitem__(self, t: int) -> Tensor:
        if t < len(self._memory):
            return self._memory[t].to(self._device)
        offset = (t - len(self._memory)) * 4 * math.prod(self._shape)
        mapped = np.memmap(self._file, np.float32, "r", offset, self._shape)
        return torch.from_numpy(np.array(mapped)).to(self._device)


def _set(target: dict[int, Any], t: int, value: Any, keep: Collection) -> None:
    if keep:
        target[t] = value
    else:
        target.pop(t, None)


def _objects(ids: np.ndarray | None) -> set[int]:
    return set() if ids is None else {*np.bincount(ids.ravel(), minlength=1).nonzero()[0].tolist()} - {0}


def _channels(soft: Tensor, old: tuple[int, ...], ids: tuple[int, ...]) -> Tensor:
    """A soft mask (M, h, w) with the channels `ids`; an object that was not known had no cell."""
    return torch.stack([soft[old.index(i)] if i in old else torch.zeros_like(soft[0]) for i in ids])
