"""The paper's training collections: where to get them, an index of their videos, their training settings.

Each is a section of `collections.toml`. An index keeps each video's length and size in a file, so that a
later look reads only what changed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple

import cv2
from tqdm import tqdm

from dulvos import datasets
from dulvos.errors import InputError
from dulvos.files import replacing
from dulvos.training import TrainSettings
from dulvos.videos import FRAME_SUFFIXES, VIDEO_SUFFIXES, Video, frame_files, open_video

__all__ = ["SOURCES", "Collection", "Index", "Source", "index_videos", "open_collection", "paper_settings"]

_THREADS = 16  # most of the time goes into waiting for the disk
_DEPTH = 4  # levels of folders above a video, at most
_MARGIN = 0.02  # of the packets of a video file: decoders lose a few at the ends


@dataclass(frozen=True)
class Source:
    """A training collection; masks, boxes and labels in it are not read.

    Fields:
        title: its name in tables.
        origin: where one gets it, and under what terms.
        layout: path of a frame or file, below the collection's folder.
        places: patterns of the folders that hold its videos; the first that matches counts.
        settings: what differs from the defaults of `TrainSettings`.
        listed: a file with the names of the videos to take; "" takes all.
        videos, frames: the expected numbers; 0 if no public page states it.
        about: the numbers are approximate, because copies differ.
        epochs: length of the paper's training; 0 if the paper did not train on it.
        decay_epochs: between two decays of the learning rate. released_epochs: until the authors' snapshot.
        remark: what else a user should know.
    """

    title: str
    origin: str
    layout: str
    places: list[str]
    settings: dict[str, Any]
    listed: str = ""
    videos: int = 0
    frames: int = 0
    about: bool = False
    epochs: int = 0
    decay_epochs: int = 0
    released_epochs: int = 0
    remark: str = ""

    def __str__(self) -> str:
        """What to expect and where to get it, in one line."""
        counts = " and ".join(f"{number:,} {what}" for what, number in self.counts.items())
        return (f"{self.title} ({'about ' * self.about}{counts}) as {self.layout}, from {self.origin}"
                + (f" ({self.remark})" if self.remark else ""))

    @property
    def counts(self) -> dict[str, int]:
        """The expected numbers of videos and of frames, where they are known."""
        counts = {"videos": self.videos, "frames": self.frames}
        return {what: number for what, number in counts.items() if number}


_TABLES = tomllib.loads(Path(__file__).with_name("collections.toml").read_text("utf-8"))
SOURCES = {name: Source(**fields) for name, fields in _TABLES.items()}


@dataclass(frozen=True)
class Collection(datasets.Dataset):
    """A data set for training: videos without masks.

    Fields:
        fingerprint: see `Index`.
        miscounted: a line for each count that differs: the copy is incomplete, or holds another split.
        notes: those lines, and lines about videos that cannot be read and are left out.
    """

    fingerprint: str
    miscounted: list[str]
    notes: list[str]

    @property
    def videos(self) -> list[Video]:
        return [sequence.video for sequence in self.sequences]


def open_collection(name: str, folder: str | os.PathLike[str], cache: str | os.PathLike[str]) -> Collection:
    """Index a collection, or any folder of videos.

    Arguments:
        name: a key of `SOURCES`, or "" for any folder of frame folders and video files, four levels deep.
        folder: the collection's own folder, in which `layout` begins.
        cache: folder for index files.

    Raises:
        InputError: the name is unknown, or the videos are missing; says what is expected and where to get it.
    """
    root, source = Path(folder), _source(name) if name else None
    own = root.resolve()
    file = Path(cache) / f"{name or own.name}-{hashlib.sha256(os.fsencode(own)).hexdigest()[:8]}.json"
    try:
        index = index_videos(root, _places(source, root) if source else [""], file)
    except InputError as error:
        if source is None:
            raise
        raise InputError(f"{error}; expected {source}") from None
    miscounted = _miscounted(source, index.videos) if source else []
    title = source.title if source else own.name
    if not source and title in {other.title for other in SOURCES.values()}:
        title += " (own folder)"  # tables know collections by their titles
    notes = miscounted + index.notes
    sequences = [datasets.Sequence(video.name, video, {}) for video in index.videos]
    return Collection(title, root, "train", sequences, index.fingerprint, miscounted, notes)


def paper_settings(name: str, videos: int, *, released: bool = False, **changes: Any) -> TrainSettings:
    """The settings that the paper trained a collection with, its epochs turned into iterations.

    An epoch is one clip of each video. Batches cross the borders of epochs, so an epoch has videos / B
    iterations; lengths are rounded up.

    Arguments:
        videos: their number, without those shorter than a clip.
        released: train only until the authors' snapshot, instead of the whole schedule.
        changes: other values of `TrainSettings`.

    Raises:
        InputError: the name is unknown, or a setting is wrong.
    """
    source = _source(name)
    settings = {**source.settings, **changes}
    if source.epochs:
        batch = TrainSettings.from_dict(settings).batch
        lengths = {"iterations": source.released_epochs if released else source.epochs,
                   "lr_every": source.decay_epochs}
        settings = {k: max(1, math.ceil(epochs * videos / batch)) for k, epochs in lengths.items()} | settings
    return TrainSettings.from_dict(settings)


def _source(name: str) -> Source:
    if name not in SOURCES:
        raise InputError(f"{name!r}: no such training collection; choose one of {', '.join(SOURCES)}")
    return SOURCES[name]


def _places(source: Source, root: Path) -> list[str]:
    """The folders to index, relative to root."""
    found = next(filter(None, (sorted(root.glob(pattern)) for pattern in source.places)), [])
    found = [path.relative_to(root).as_posix() for path in found if path.is_dir()]
    if not found:
        raise InputError(f"{root}: no folder {' or '.join(source.places)} in it")
    if not source.listed:
        return found
    try:
        names = (root / source.listed).read_text().split()
    except OSError:
        raise InputError(f"{root / source.listed}: no such file; it names the videos to train on") from None
    if not names:
        raise InputError(f"{root / source.listed}: an empty list; expected the name of a video in each line")
    return [f"{place}/{name}" for place in found for name in names]


def _miscounted(source: Source, videos: list[Video]) -> list[str]:
    """A line for each count that differs from what is expected; an approximate one may lack a tenth."""
    lines, found = [], {"videos": len(videos), "frames": sum(map(len, videos))}
    for what, expected in source.counts.items():
        said = f"{source.title}: {found[what]:,} {what} found, {'about ' * source.about}{expected:,} expected"
        if found[what] < expected * (0.9 if source.about else 1):
            lines.append(f"{said}: the copy is incomplete, {expected - found[what]:,} are missing")
        elif found[what] > expected and not source.about:
            lines.append(f"{said}: is another split in the folder?")
    return lines


class Index(NamedTuple):
    """The videos below some folders, sorted by path and named by it.

    Fields:
        videos: those that can be read.
        fingerprint: 16 hex digits for paths, lengths, sizes, frame names, and byte counts of files and first
            frames; no dates, no absolute paths.
        notes: a line for each kind of fault in the tree.
    """

    videos: list[Video]
    fingerprint: str
    notes: list[str]


class _Entry(NamedTuple):
    """What the index keeps of a video."""

    path: str  # below root, with "/"
    length: int
    height: int
    width: int
    stamp: int  # time of the last change
    bytes: int  # of the video file, or of the first frame
    names: str = ""  # hash of the frames' names; "" for a video file
    even: bool = True  # frames are numbered evenly


@dataclass(frozen=True)
class _Names(Sequence):
    """The names of the frames in a folder, listed when needed: all names of Kinetics-400 take gigabytes."""

    folder: Path
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> str:
        names = _listed(self.folder)
        if len(names) != self.count:
            raise InputError(f"{self.folder}: holds {len(names)} frames now, {self.count} when it was "
                             "indexed; start again")
        return names[index]


@lru_cache(maxsize=64)
def _listed(folder: Path) -> tuple[str, ...]:
    return frame_files(folder)


def index_videos(root: str | os.PathLike[str], places: Sequence[str], cache: Path) -> Index:
    """Find all videos in some folders, up to four levels deep: folders of frames and video files.

    Reads the names of the frames and one header a video. The length of a video file is its number of packets
    minus 2 %, because decoders lose a few; this reads the file but decodes nothing. A second call reads only
    files that changed and folders in which something was added, removed or renamed; it does not notice a
    frame that was overwritten in place.

    Arguments:
        root: folder from which paths count.
        places: folders below it, with "/", that hold videos or are videos; "" for root itself.
        cache: the index file; it may be missing, old or damaged.

    Raises:
        InputError: there is no such folder, or no video in it.
    """
    root, kept, level = Path(root), _read(cache), list(dict.fromkeys(places))
    for place in level:
        if not (root / place).is_dir():
            raise InputError(f"{root / place}: no such folder; expected one with frames or video files")
    found: dict[str, _Entry] = {}
    faults: dict[str, str] = {}

    def look(path: str) -> tuple[str, _Entry | list[str] | Exception]:
        try:
            return path, _look(root, path, kept.get(path))
        except (InputError, OSError) as error:
            return path, error

    try:
        with ThreadPool(_THREADS) as pool, tqdm(desc="indexing", unit=" videos", mininterval=5) as bar:
            for _ in range(_DEPTH + 1):
                paths, level = level, []
                for path, seen in pool.imap_unordered(look, paths):
                    if isinstance(seen, _Entry):
                        found[path] = seen
                        bar.update()
                    elif isinstance(seen, list):
                        level += seen
                    else:
                        faults[path] = str(seen)
    finally:  # also at Ctrl-C, so that the next call continues from here
        if kept | found != kept:
            _write(cache, kept | found)
    faults |= {path: f"{root / path}: more than {_DEPTH} levels of folders" for path in level}
    if not found:
        reason = next(iter(faults.values()), "nothing in it")
        raise InputError(f"{root}: no video in {', '.join(place or '.' for place in places[:3])} ({reason}); "
                         "expected folders of frames or video files")
    entries = [found[path] for path in sorted(found)]
    marks = [(e.path, e.length, e.height, e.width, e.bytes, e.names) for e in entries]
    videos = [Video(e.path, root / e.path, e.length, (e.height, e.width),
                    _Names(root / e.path, e.length) if e.names else ()) for e in entries]
    notes = []
    if faults:
        notes.append(f"{len(faults)} without a readable video, left out; the first: {faults[min(faults)]}")
    if uneven := [e.path for e in entries if not e.even]:
        notes.append(f"{len(uneven)} videos whose frames are not numbered evenly (frames may be missing); "
                     f"the first: {uneven[0]}")
    return Index(videos, _hash(marks), notes)


def _look(root: Path, path: str, old: _Entry | None) -> _Entry | list[str]:
    """The entry of a video, or the paths to look at next."""
    full = root / path
    state = full.stat()
    if old and old.stamp == state.st_mtime_ns and (old.names or old.bytes == state.st_size):
        return old
    if full.suffix.lower() in VIDEO_SUFFIXES and full.is_file():
        return _Entry(path, *_measure(full), state.st_mtime_ns, state.st_size)
    entries = [entry for entry in os.scandir(full) if not entry.name.startswith(".")]
    suffixes = {entry.name: Path(entry.name).suffix.lower() for entry in entries}
    if any(suffixes[entry.name] in FRAME_SUFFIXES and not entry.is_dir() for entry in entries):
        if not path:
            raise InputError(f"{full}: it holds frames itself; give the folder above it")
        video = open_video(full)
        numbers = [int((re.findall("[0-9]+", Path(name).stem) or [0])[-1]) for name in video.files]
        even = len({after - before for before, after in zip(numbers, numbers[1:])}) <= 1
        size = (full / video.files[0]).stat().st_size
        return _Entry(path, len(video), *video.size, state.st_mtime_ns, size, _hash(video.files), even)
    further = [entry.name for entry in entries if entry.is_dir() or suffixes[entry.name] in VIDEO_SUFFIXES]
    if not further:
        raise InputError(f"{full}: an empty folder")
    return [f"{path}/{name}" if path else name for name in further]


def _measure(path: Path) -> tuple[int, int, int]:
    """Length, height and width of a video file. Its header may announce frames that are missing."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_FORMAT, -1])  # gives packets
    packets = sum(iter(capture.grab, False))
    if not packets:
        raise InputError(f"{path}: cannot be opened as a video")
    # opened again, because OpenCV does not know the container's rotation among packets
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    size = [round(capture.get(side)) for side in (cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH)]
    return max(1, packets - max(2, math.ceil(_MARGIN * packets))), *size


def _hash(content: object) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]


def _write(cache: Path, entries: dict[str, _Entry]) -> None:
    content = json.dumps([entries[path] for path in sorted(entries)], separators=(",", ":"))
    with replacing(cache) as stream:
        stream.write(f"{_hash(content)}\n{content}".encode())


def _read(cache: Path) -> dict[str, _Entry]:
    """The entries in an index file; none if it is missing, damaged or of another form."""
    try:
        mark, _, content = cache.read_text().partition("\n")
        entries = [_Entry(*entry) for entry in json.loads(content)] if mark == _hash(content) else []
        return {entry.path: entry for entry in entries}
    except (OSError, ValueError, TypeError):
        return {}
