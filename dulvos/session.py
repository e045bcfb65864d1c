"""Work on your own video: give masks, find the others, correct them; nothing is computed twice."""

import os
import tempfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dulvos.errors import InputError
from dulvos.files import cannot_write
from dulvos.inference import MakeFeatures, SegmentSettings, carry
from dulvos.propagation import object_ids
from dulvos.videos import Video

__all__ = ["Session", "objects"]


def objects(ids: np.ndarray) -> set[int]:
    """The ids in a mask, without the background's 0."""
    return set(np.setdiff1d(ids, 0).tolist())


class Session:
    """A video with its features and soft masks, so that `run` continues at the first frame that changed.

    The masks are those of `dulvos.segment` with the same `given` and `ended`, which you may change. One
    thread may paint while another runs.

    Arguments:
        features: makes (K, h, w) features of frames, as for `dulvos.segment`; a temporary file keeps them.
        given: frame number -> (H, W) uint8 ids of the objects that are new or corrected there.
        ended: frame number -> ids of the objects that are gone from that frame on.
    """

    def __init__(self, video: Video, features: MakeFeatures, settings: SegmentSettings = SegmentSettings(),
                 given: Mapping[int, np.ndarray] | None = None,
                 ended: Mapping[int, Collection[int]] | None = None):
        self.video, self.settings = video, settings
        self.given, self.ended = dict(given or {}), dict(ended or {})
        self._encode, self._stream = features, None
        self._file, self._places = tempfile.TemporaryFile(), []  # features, and where each frame's begin
        # of each frame the ids of the channels, the soft mask (M, h, w), and the mask, compressed because
        # one of a 4K frame takes 8 MB
        self._found: list[tuple[tuple[int, ...], Tensor, bytes]] = []
        self._valid, self._made = 0, ({}, {})  # the first `_valid` masks follow from this given and ended
        # of each painted frame its mask before it was painted, and the objects that have been painted
        self._before: dict[int, tuple[np.ndarray, set[int]]] = {}
        self._painted: dict[int, tuple] = {}  # its mask now, and what that made of `given` and `ended`

    @property
    def found(self) -> int:
        """Number of frames, from the first on, that have a mask, perhaps out of date."""
        return len(self._found)

    @property
    def done(self) -> int:
        """Number of frames, from the first on, whose masks are up to date."""
        changed = [t for was, now in zip(self._made, (self.given, self.ended)) for t in {*was, *now}
                   if not np.array_equal(was.get(t), now.get(t))]
        return min([self._valid, *changed])

    def labels(self, t: int) -> np.ndarray:
        """The mask of a frame as found and then corrected, (H, W) uint8 ids; 0 where nothing is known yet."""
        painted, *made = self._painted.get(t, (None,))
        if painted is not None and made[0] is self.given.get(t) and made[1] is self.ended.get(t):
            return painted.copy()  # what was erased or taken back is gone from it
        ids = np.zeros(self.video.size, np.uint8)
        if t < self.found:
            ids = np.frombuffer(zlib.decompress(self._found[t][2]), np.uint8).reshape(ids.shape)
        given = self.given.get(t, np.zeros_like(ids))
        corrected = np.isin(ids, [*objects(given), *self.ended.get(t, ())])
        return np.where(given > 0, given, np.where(corrected, 0, ids)).astype(np.uint8)

    def paint(self, t: int, ids: np.ndarray, ended: Collection[int] = ()) -> None:
        """Correct a frame: an object whose pixels change is given anew, and ends here if no pixel is left.

        Other objects go on as before. Painting the earlier mask again takes the correction back.

        Arguments:
            t: frame number.
            ids: (H, W) uint8 in 0..254, the whole mask as it should be.
            ended: more objects that end here, which had no pixel to erase.

        Raises:
            InputError: no such frame, or a mask of another size or kind.
        """
        self._check(t, ids)
        earlier = self._before.get(t)  # once, because another thread may remove it
        if earlier is None:
            touched = objects(self.given[t]) if t in self.given else set()
            earlier = self._before[t] = self.labels(t), touched | {*self.ended.get(t, ())}
        before, touched = earlier
        changed, present = before != ids, objects(ids)
        touched = touched | objects(before[changed]) | objects(ids[changed]) | {*ended}
        known = set().union(*(objects(mask) for start, mask in self.given.items() if start < t))
        if touched & present:
            self.given[t] = np.where(np.isin(ids, [*touched]), ids, 0).astype(np.uint8)
        else:
            self.given.pop(t, None)
        if gone := (touched - present) & known:
            self.ended[t] = tuple(sorted(gone))
        else:
            self.ended.pop(t, None)
        self._painted[t] = ids.copy(), self.given.get(t), self.ended.get(t)

    def run(self) -> Iterator[tuple[int, np.ndarray]]:
        """Find the masks that are missing or out of date; may be stopped and called again at any time.

        Yields:
            number of a frame and its mask, (H, W) uint8 ids.

        Raises:
            InputError: no object is marked; a given mask is wrong; the folder for temporary files is full;
                what `dulvos.segment` raises.
        """
        given, ended = made = {t: mask.copy() for t, mask in self.given.items()}, dict(self.ended)
        start = self.done  # after the copies, so that the next run finds what another thread paints meanwhile
        if not any(mask.any() for mask in given.values()):
            raise InputError(f"{self.video.path}: no object is marked; paint one, or give a mask")
        for t, mask in given.items():
            self._check(t, mask)
        ids = object_ids(given)
        needed = (self._feature(t) if t in given or t >= start - self.settings.context else None
                  for t in range(len(self.video)))
        history = [torch.stack([soft[old.index(i)] if i in old else torch.zeros_like(soft[0]) for i in ids])
                   for old, soft, _ in self._found[:start]]  # a new object has zeros
        carried = carry(needed, given, self.settings, history=history, ended=ended)
        self._valid, self._made = start, made
        for t, (soft, labels) in enumerate(carried, start):
            if t > start or t >= self.found:  # the next stroke is compared with the new mask
                self._before.pop(t, None)
            self._painted.pop(t, None)
            self._found[t:t + 1] = [(ids, soft.cpu(), zlib.compress(labels.tobytes(), 1))]
            self._valid = t + 1
            yield t, labels

    def _check(self, t: int, ids: np.ndarray) -> None:
        if (not 0 <= t < len(self.video) or ids.shape != tuple(self.video.size) or ids.dtype != np.uint8
                or ids.max() > 254):
            raise InputError(f"frame {t}: {ids.dtype} ids up to {ids.max(initial=0)}, of size {ids.shape}; a "
                             f"mask must be uint8 up to 254, of size {tuple(self.video.size)}, in one of the "
                             f"{len(self.video)} frames of {self.video.path}")

    def _feature(self, t: int) -> Tensor:
        while len(self._places) <= t:
            if self._stream is None:
                self._stream = iter(self._encode(self.video.frames(len(self._places)), self.settings))
            try:
                features = next(self._stream)
                try:
                    place = self._file.seek(0, os.SEEK_END)
                    np.save(self._file, features.float().cpu().numpy())
                    self._file.flush()
                except OSError as error:
                    raise cannot_write(Path(tempfile.gettempdir()), error.errno) from None
            except BaseException:  # also Ctrl-C: a generator that has raised cannot continue
                self._stream = None
                raise
            self._device = features.device
            self._places.append(place)
        self._file.seek(self._places[t])
        return torch.from_numpy(np.load(self._file)).to(self._device)
