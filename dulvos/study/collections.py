"""The paper's training collections: where to get them, an index of their videos, their training settings.

Each is a line of `collections.csv`, whose columns `settings.*` hold what differs from the defaults of
`TrainSettings`. An index keeps each video's length and size in a file, so a later look reads only changes.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
from tqdm import tqdm

from dulvos import datasets
from dulvos.errors import InputError
from dulvos.files import replacing
from dulvos.training import TrainSettings
from dulvos.videos import FRAME_SUFFIXES, VIDEO_SUFFIXES, Video, frame_files, open_video

__all__ = ["SOURCES", "Collection", "Index", "Source", "index_videos", "open_collection", "paper_settings",
           "sources_table"]

_THREADS = 16  # most of the time goes into waiting for the disk
_BATCH = 4096  # paths that wait for a thread
_DEPTH = 4  # levels of folders above a video, at most
_MARGIN = 0.02  # of the packets of a video file: decoders lose a few at the ends


@dataclass(frozen=True)
class Source:
    """A training collection. Masks, boxes and labels in it are not read.

    Arguments:
        title: its name in tables.
        origin: where one gets it, and under what terms.
        layout: path of a frame or file, below the collection's folder.
        places: patterns of the folders that hold its videos; the first that matches counts.
        listed: a file with the names of the videos to take; "" takes all.
        videos, frames: the expected numbers; 0 if no public page states it.
        about: the numbers are approximate, because copies differ.
        epochs: length of the paper's training; 0 if the paper did not train on it.
        decay_epochs: between two decays of the learning rate. released_epochs: until the authors' snapshot.
        settings: what differs from the defaults of `TrainSettings`.
        remark: what else a user should know.
    """

    title: str
    origin: str
    layout: str
    places: tuple[str, ...]
    listed: str
    videos: int
    frames: int
    about: bool
    epochs: int
    decay_epochs: int
    released_epochs: int
    settings: dict[str, Any]
    remark: str

    @property
    def remarked(self) -> str:
        """The remark in brackets after a space, if there is one."""
        return self.remark and f" ({self.remark})"

    def expected(self, what: str = "videos") -> str:
        """The expected number of "videos" or "frames" in words."""
        number = getattr(self, what)
        return f"{'about ' if self.about else ''}{number:,}" if number else "not stated"


def _read_sources() -> dict[str, Source]:
    kinds = {field.name: type(field.default) for field in dataclasses.fields(TrainSettings)}
    kinds = {name: "True".__eq__ if kind is bool else kind for name, kind in kinds.items()}
    sources = {}
    with open(Path(__file__).with_name("collections.csv"), newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            settings = {k: kind(text) for k, kind in kinds.items() if (text := line.get(f"settings.{k}"))}
            numbers = ("videos", "frames", "epochs", "decay_epochs", "released_epochs")
            texts = ("title", "origin", "layout", "listed", "remark")
            sources[line["name"]] = Source(
                **{name: line[name] for name in texts}, **{name: int(line[name] or 0) for name in numbers},
                places=tuple(line["places"].split()), about=line["about"] == "True", settings=settings)
    return sources


SOURCES = _read_sources()


@dataclass(frozen=True)
class Collection(datasets.Dataset):
    """A data set for training: videos without masks.

    Arguments:
        fingerprint: see `Index`.
        miscounted: a line for each count that differs: the copy is incomplete, or holds another split.
        notes: those lines, and lines about what is unreadable and so left out.
    """

    fingerprint: str
    miscounted: list[str]
    notes: list[str]

    @property
    def videos(self) -> list[Video]:
        return [sequence.video for sequence in self.sequences]


def open_collection(name: str, folder: str | os.PathLike[str], cache: str | os.PathLike[str], *,
                    decode: bool = False) -> Collection:
    """Index a collection, or any folder of videos.

    Arguments:
        name: a key of `SOURCES`, or "" for any folder of frame folders and video files, four levels deep.
        folder: the collection's own folder, in which `layout` begins.
        cache: folder for index files.
        decode: see `index_videos`.

    Raises:
        InputError: the name is unknown, or the videos are missing; says what is expected and where to get it.
    """
    root = Path(folder)
    source = _source(name) if name else None
    mark = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:8]
    file = Path(cache) / f"{name or root.resolve().name}-{mark}.json"
    try:
        if not root.is_dir():
            raise InputError(f"{root}: no such folder")
        index = index_videos(root, _places(source, root) if source else [""], file, decode=decode)
    except InputError as error:
        if source is None:
            raise
        raise InputError(f"{error}; {source.title} is expected as {root}/{source.layout}, {source.expected()}"
                         f" videos{source.remarked}; from {source.origin}") from None
    sequences = [datasets.Sequence(video.name, video, {}) for video in index.videos]
    miscounted = _miscounted(source, index.videos) if source else []
    title = source.title if source else root.resolve().name
    if not source and title in {other.title for other in SOURCES.values()}:
        title += " (own folder)"  # tables know collections by their titles
    notes = miscounted + index.notes
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


def sources_table(names: Sequence[str] = tuple(SOURCES)) -> str:
    """Two tables in Markdown: the files that are expected, and the settings (iterations for all videos)."""
    files = ["| data | expected below `DULVOS_DATA_DIR` | videos | frames | from |",
             "|---|---|---:|---:|---|"]
    trained = ["| data | optimiser | lr | decay | gap | shorter side, crop | epochs (released) "
               "| iterations (released) |", "|---|---|---:|---|---:|---|---:|---:|"]
    for name in names:
        source, whole = SOURCES[name], paper_settings(name, SOURCES[name].videos)
        files.append(f"| {source.title} | `{name}/{source.layout}` | {source.expected()} "
                     f"| {source.expected('frames')} | {source.origin}{source.remarked} |")
        every, epochs, iterations = f"{whole.lr_every:,} iterations", "-", f"{whole.iterations:,}"
        if source.epochs:
            every, epochs = f"{source.decay_epochs} epochs", f"{source.epochs} ({source.released_epochs})"
            iterations += f" ({paper_settings(name, source.videos, released=True).iterations:,})"
        crop = f"{whole.scale_min}..{whole.scale_max}, {'centre' if whole.centre else 'random'} {whole.crop}"
        decay = f"×{whole.lr_decay:g} every {every}"
        cells = source.title, whole.optimiser, f"{whole.lr:g}", decay, whole.gap, crop, epochs, iterations
        trained.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*files, "", *trained])


def _source(name: str) -> Source:
    if name not in SOURCES:
        raise InputError(f"{name!r}: no such training collection; choose one of {', '.join(SOURCES)}")
    return SOURCES[name]


def _places(source: Source, root: Path) -> list[str]:
    """The folders to index, relative to root."""
    found = next(filter(None, (sorted(root.glob(pattern)) for pattern in source.places)), [])
    found = [path.relative_to(root).as_posix() for path in found if path.is_dir()]
    if not found:
        raise InputError(f"{root}: no folder {' or '.join(source.places)} in here")
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
    lines = []
    for what, found in (("videos", len(videos)), ("frames", sum(map(len, videos)))):
        expected = getattr(source, what)
        if found < expected * (0.9 if source.about else 1):
            lines.append(f"{source.title}: {found:,} {what} found, {source.expected(what)} expected: the "
                         f"copy is incomplete, {expected - found:,} are missing")
        elif expected and found > expected and not source.about:
            lines.append(f"{source.title}: {found:,} {what} found, more than the {expected:,} expected: is "
                         "another split in the folder?")
    return lines


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
    exact: bool = True  # the length was found by decoding


@dataclass(frozen=True)
class Index:
    """The videos below some folders, sorted by path and named by it.

    Arguments:
        videos: those that can be read.
        fingerprint: 16 hex digits for paths, lengths, sizes, frame names, and byte counts of files and first
            frames; no dates, no absolute paths.
        notes: a line for each kind of fault in the tree.
    """

    videos: list[Video]
    fingerprint: str
    notes: list[str]


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


def index_videos(root: str | os.PathLike[str], places: Sequence[str], cache: Path, *,
                 decode: bool = False) -> Index:
    """Find all videos in some folders, up to four levels deep: folders of frames and video files.

    Reads the names of the frames and one header a video. The length of a video file is its number of packets
    minus 2 %, because decoders lose a few; this reads the file but decodes nothing. A second call reads only
    files that changed and folders in which something was added, removed or renamed; it does not notice a
    frame that was overwritten in place.

    Arguments:
        root: folder from which paths count.
        places: folders below it, with "/", that hold videos or are videos; "" for root itself.
        cache: the index file; it may be missing, old or damaged.
        decode: count the frames of video files by decoding them (up to a few seconds each).

    Raises:
        InputError: there is no such folder, or no video in it.
    """
    root, kept = Path(root), _read(cache)
    for place in places:
        if not (root / place).is_dir():
            raise InputError(f"{root / place}: no such folder; expected one with frames or video files")
    found: dict[str, _Entry] = {}
    faults: dict[str, str] = {}

    def visit(path: str) -> list[str]:
        try:
            entry = _look(root, path, kept.get(path), decode)
        except (InputError, OSError) as error:
            faults[path] = str(error)
            return []
        if isinstance(entry, list):
            return entry
        found[path] = entry
        bar.update()
        return []

    level = list(dict.fromkeys(places))
    with ThreadPoolExecutor(_THREADS) as pool, tqdm(desc="indexing", unit=" videos", mininterval=5) as bar:
        try:
            for _ in range(_DEPTH + 1):
                batches = (level[i : i + _BATCH] for i in range(0, len(level), _BATCH))
                level = [path for batch in batches for further in pool.map(visit, batch) for path in further]
        except BaseException:  # Ctrl-C during hours of decoding: the next call continues from here
            pool.shutdown(cancel_futures=True)
            _write(cache, kept | found)
            raise
    faults |= {path: f"{root / path}: more than {_DEPTH} levels of folders" for path in level}
    if not found:
        reason = next(iter(faults.values()), "nothing in it")
        raise InputError(f"{root}: no video in {', '.join(place or '.' for place in places[:3])} ({reason}); "
                         "expected folders of frames or video files")
    found = dict(sorted(found.items()))
    if found != kept:
        _write(cache, found)
    marks = [(e.path, e.length, e.height, e.width, e.bytes, e.names) for e in found.values()]
    videos = [Video(e.path, root / e.path, e.length, (e.height, e.width),
                    _Names(root / e.path, e.length) if e.names else ()) for e in found.values()]
    notes = []
    if faults:
        notes.append(f"{len(faults)} without a readable video, left out; the first: {faults[min(faults)]}")
    if uneven := [e.path for e in found.values() if not e.even]:
        notes.append(f"{len(uneven)} videos whose frames are not numbered evenly (frames may be missing); "
                     f"the first: {uneven[0]}")
    return Index(videos, _hash(marks), notes)


def _look(root: Path, path: str, old: _Entry | None, decode: bool) -> _Entry | list[str]:
    """The entry of a video, or the paths to look at next."""
    full = root / path
    state = full.stat()
    if old and old.stamp == state.st_mtime_ns and (
            old.names or old.bytes == state.st_size and old.exact >= decode):
        return old
    if full.suffix.lower() in VIDEO_SUFFIXES and not full.is_dir():
        length, size = _measure(full, decode)
        return _Entry(path, length, *size, state.st_mtime_ns, state.st_size, exact=decode)
    entries = [entry for entry in os.scandir(full) if not entry.name.startswith(".")]
    if any(Path(entry.name).suffix.lower() in FRAME_SUFFIXES and not entry.is_dir() for entry in entries):
        if not path:
            raise InputError(f"{full}: it holds frames itself; give the folder above it")
        video = open_video(full)
        numbers = [int((re.findall("[0-9]+", Path(name).stem) or [0])[-1]) for name in video.files]
        even = len({after - before for before, after in zip(numbers, numbers[1:])}) <= 1
        size = (full / video.files[0]).stat().st_size
        return _Entry(path, len(video), *video.size, state.st_mtime_ns, size, _hash(video.files), even)
    further = [entry.name for entry in entries
               if entry.is_dir() or Path(entry.name).suffix.lower() in VIDEO_SUFFIXES]
    if not further:
        raise InputError(f"{full}: an empty folder")
    return [f"{path}/{name}" if path else name for name in further]


def _measure(path: Path, decode: bool) -> tuple[int, tuple[int, int]]:
    """Length and (H, W) of a video file, not from its header, which may announce frames that are missing."""
    if decode:
        video = open_video(path)
        return video.length, video.size
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_FORMAT, -1])  # gives packets
    packets = 0
    while capture.grab():
        packets += 1
    if not packets:
        raise InputError(f"{path}: cannot be opened as a video")
    # opened again, because OpenCV does not know the container's rotation among packets
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    size = round(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)), round(capture.get(cv2.CAP_PROP_FRAME_WIDTH))
    return max(1, packets - max(2, math.ceil(_MARGIN * packets))), size


def _hash(content: object) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]


def _write(cache: Path, entries: dict[str, _Entry]) -> None:
    content = json.dumps(list(entries.values()), separators=(",", ":"))
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
