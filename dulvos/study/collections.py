"""The paper's training collections: where to get them, which videos they hold, and the paper's settings.

`collections.toml` has a section for each. An index file keeps what was read of a collection, so that the next
call reads only what changed.
"""

import gzip
import hashlib
import json
import math
import os
import tomllib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from dulvos import datasets
from dulvos.errors import InputError
from dulvos.files import AnyPath, expand, write_file
from dulvos.training import TrainSettings
from dulvos.videos import FRAME_SUFFIXES, VIDEO_SUFFIXES, Video, frame_files, open_video

__all__ = ["SOURCES", "Collection", "Source", "open_collection", "paper_settings"]

_THREADS = 16  # they mostly wait for the disk
_DEPTH = 4  # levels of folders in which videos are searched


@dataclass(frozen=True)
class Source:
    """A training collection; its masks, boxes and labels are not read."""

    title: str  # name in tables
    origin: str  # where to get it, and its terms
    layout: str  # path of a frame or video file in the collection's folder
    places: list[str]  # patterns of the videos' paths; the first pattern that matches counts
    settings: dict[str, Any]  # the paper's settings that differ from the defaults of `TrainSettings`
    counts: dict[str, int]  # expected numbers of videos and of frames, as far as a public page states them
    listed: str = ""  # file with the names of the training videos; "" takes all videos
    about: bool = False  # copies differ, so the counts are approximate
    epochs: int = 0  # of the paper's training; 0 if the paper did not train on it
    decay_epochs: int = 0  # between two decays of the learning rate
    released_epochs: int = 0  # of the weights that the authors released
    remark: str = ""  # what else a user should know

    def __str__(self) -> str:
        """What to expect and where to get it, in one line."""
        counts = " and ".join(f"{number:,} {what}" for what, number in self.counts.items())
        return (f"{self.title} ({'about ' * self.about}{counts}) as {self.layout}, from {self.origin}"
                + (f" ({self.remark})" if self.remark else ""))


_TABLES = tomllib.loads(Path(__file__).with_name("collections.toml").read_text("utf-8"))
SOURCES = {name: Source(**fields) for name, fields in _TABLES.items()}


@dataclass(frozen=True)
class Collection(datasets.Dataset):
    """Videos for training, without masks; each is named by its path in the collection's folder."""

    fingerprint: str  # of paths, lengths, sizes, frame names and byte counts; not of dates or absolute paths
    miscounted: list[str]  # a line for each count that differs from what is expected
    notes: list[str]  # these lines, and one about videos that were left out because they cannot be read

    @property
    def videos(self) -> list[Video]:
        return [sequence.video for sequence in self.sequences]


class _Entry(NamedTuple):
    """What the index file keeps of a video."""

    length: int
    height: int
    width: int
    bytes: int  # of the video file, or of the first frame
    names: str  # hash of the frames' names; "" for a video file
    changed: int  # time of the last change in nanoseconds


@dataclass(frozen=True)
class _Names(Sequence):
    """The names of the frames in a folder, read when needed: all of TrackingNet's would take gigabytes."""

    folder: Path
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> str:
        names = _frame_files(self.folder)
        if len(names) != self.count:
            raise InputError(f"{self.folder}: has {len(names)} frames, but had {self.count} when it was "
                             "indexed; start again")
        return names[index]


_frame_files = lru_cache(maxsize=64)(frame_files)


def open_collection(name: str, folder: AnyPath, cache: AnyPath) -> Collection:
    """Find the videos of a collection, or of any folder.

    Of a folder of frames, only the header of one frame is read. A video file is read whole, but only its
    first frame is decoded, and its length is an estimate (`open_video`, quick). The next call reads only
    files that changed and folders in which something was added, removed or renamed. It does not notice a
    frame that was overwritten in place.

    Arguments:
        name: a key of `SOURCES`, or "" for any folder with frame folders and video files, four levels deep.
        folder: the collection's own folder, in which `layout` begins.
        cache: folder for index files.

    Raises:
        InputError: there is no video; says what is expected and where to get it.
    """
    root, source = expand(folder), SOURCES.get(name)
    own = root.resolve()
    index = Path(cache) / f"{name or own.name}-{hashlib.sha256(os.fsencode(own)).hexdigest()[:8]}.json.gz"
    kept = _read(index)
    places = [(path, True) for path in _listed(source, root)] if source else _all(root)
    paths = sorted(path.relative_to(root).as_posix() for path, is_video in places if is_video)
    with ThreadPool(_THREADS) as pool:
        looks = pool.imap(lambda path: _look(root / path, kept.get(path)), paths)
        found = dict(zip(paths, tqdm(looks, "indexing", len(paths), unit=" videos", mininterval=5,
                                     disable=not paths)))
    entries = {path: entry for path, entry in found.items() if isinstance(entry, _Entry)}
    left = [fault for fault in found.values() if isinstance(fault, str)]
    left += [f"{path}: no video" for path, is_video in places if not is_video]
    if not entries:
        expected = source or (f"folders of frames or video files, at most {_DEPTH} levels deep, or a name: "
                              + ", ".join(SOURCES))
        raise InputError(f"{root}: no such folder, or no video in it ({left[0] if left else 'it is empty'}); "
                         f"expected {expected}" + datasets.below(root, *(source.places if source else ())))
    if entries != kept:
        write_file(index, gzip.compress(json.dumps(entries).encode(), mtime=0))
    videos = [Video(path, root / path, entry.length, (entry.height, entry.width),
                    _Names(root / path, entry.length) if entry.names else ())
              for path, entry in entries.items()]
    title = source.title if source else own.name
    if not source and title in {other.title for other in SOURCES.values()}:
        title += " (own folder)"  # tables know collections by their titles
    miscounted = _miscounted(source, videos) if source else []
    told = [f"{len(left)} files or folders are left out; the first: {left[0]}"] if left else []
    return Collection(title, root, "train", [datasets.Sequence(video.name, video, {}) for video in videos],
                      _hash([(path, *entry[:-1]) for path, entry in entries.items()]),
                      miscounted, miscounted + told)


def paper_settings(name: str, videos: int, *, released: bool = False, **changes: Any) -> TrainSettings:
    """The settings with which the paper trained on a collection; epochs become iterations, rounded up.

    An epoch is one clip of each video. Batches cross the borders of epochs, so an epoch has videos / B
    iterations.

    Arguments:
        videos: number of videos that are at least as long as a clip.
        released: train as long as for the weights that the authors released, not for the whole schedule.
        changes: fields of `TrainSettings` with other values.
    """
    source = SOURCES[name]
    settings = {**source.settings, **changes}
    if source.epochs:
        batch = TrainSettings.from_dict(settings).batch
        lengths = {"iterations": source.released_epochs if released else source.epochs,
                   "lr_every": source.decay_epochs}
        settings = {k: max(1, math.ceil(epochs * videos / batch)) for k, epochs in lengths.items()} | settings
    return TrainSettings.from_dict(settings)


def _miscounted(source: Source, videos: list[Video]) -> list[str]:
    """A line for each count that differs; an approximate one only if more than a tenth is missing."""
    lines, found = [], {"videos": len(videos), "frames": sum(map(len, videos))}
    for what, expected in source.counts.items():
        least, most = (0.9 * expected, math.inf) if source.about else (expected, expected)
        if not least <= found[what] <= most:
            lines.append(f"{source.title}: {found[what]:,} {what} found, {'about ' * source.about}"
                         f"{expected:,} expected: the copy is incomplete, or it is another split")
    return lines


def _listed(source: Source, root: Path) -> list[Path]:
    """The training videos of a collection."""
    found: list[Path] = []
    for pattern in source.places:
        found = found or [path for path in root.glob(pattern) if not path.name.startswith(".")
                          and (path.suffix.lower() in VIDEO_SUFFIXES or path.is_dir())]
    if found and source.listed:
        try:
            names = {*(root / source.listed).read_text("utf-8-sig").split()}
        except OSError:
            raise InputError(f"{root / source.listed}: no such file; it names the training videos") from None
        found = [path for path in found if path.name in names]
    return found


def _all(folder: Path, depth: int = _DEPTH) -> list[tuple[Path, bool]]:
    """The files and lowest folders in a folder, without hidden ones, and whether each is a video.

    A folder with frames is a video; video files and folders beside the frames are not.
    """
    found: list[tuple[Path, bool]] = []
    for path in sorted(folder.glob("[!.]*")):
        inside = [*path.glob("[!.]*")] if path.is_dir() else []
        others = [inner for inner in inside if inner.suffix.lower() in VIDEO_SUFFIXES or inner.is_dir()]
        if any(inner.suffix.lower() in FRAME_SUFFIXES for inner in inside):
            found += [(path, True), *((other, False) for other in others)]
        elif inside and depth > 1:
            found += _all(path, depth - 1)
        else:
            found.append((path, path.suffix.lower() in VIDEO_SUFFIXES and not inside))
    return found


def _look(path: Path, old: _Entry | None) -> _Entry | str:
    """What the index keeps of a video: the old entry if nothing changed; or why it cannot be read."""
    try:
        state = path.stat()
        if old and old.changed == state.st_mtime_ns and (old.names or old.bytes == state.st_size):
            return old
        video = open_video(path, quick=True)
        first, names = (path / video.files[0], _hash(video.files)) if video.files else (path, "")
        return _Entry(len(video), *video.size, first.stat().st_size, names, state.st_mtime_ns)
    except (InputError, OSError) as error:
        return str(error)


def _hash(content: object) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]


def _read(index: Path) -> dict[str, _Entry]:
    """The entries of an index file; none if it is missing, damaged or of another version."""
    try:
        entries = json.loads(gzip.decompress(index.read_bytes()))
        return {path: _Entry(*entry) for path, entry in entries.items()}
    except (OSError, EOFError, zlib.error, ValueError, TypeError):
        return {}
