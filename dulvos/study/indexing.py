"""Indexes of large collections: length and size of every video without decoding one, kept in a file and brought up to date."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
from tqdm import tqdm

from dulvos.errors import InputError
from dulvos.files import replacing
from dulvos.videos import FRAME_SUFFIXES, VIDEO_SUFFIXES, Video, header_size, open_video

__all__ = ["FrameNames", "Index", "index_videos"]

FORMAT = 1
THREADS = 16  # most of the time goes into waiting for the disk
CHUNK = 64  # entries a task
DEPTH = 4  # levels of folders above a video, at most
MARGIN = 0.02  # of a file's packets: decoders lose a few at the ends


@dataclass(frozen=True, slots=True)
class FrameNames(Sequence):
    """Frame names that follow a rule (00000.jpg, 00005.jpg, …), without holding them: a process that reads clips of
    Kinetics-400 would else hold seventy million.

    Arguments:
        prefix, suffix: what all names begin and end with.
        start, step: the first number, and the difference of two that follow each other.
        digits: least number of digits, filled with zeros.
        count: number of names.
    """

    prefix: str
    start: int
    step: int
    digits: int
    suffix: str
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> str:
        number = range(self.start, self.start + self.step * self.count, self.step)[index]
        return f"{self.prefix}{number:0{self.digits}d}{self.suffix}"

    def __iter__(self) -> Iterator[str]:
        numbers = range(self.start, self.start + self.step * self.count, self.step)
        return (f"{self.prefix}{number:0{self.digits}d}{self.suffix}" for number in numbers)

    @classmethod
    def of(cls, names: Iterable[str]) -> FrameNames | None:
        """The rule that gives these names, in whatever order they come; None where there is none."""
        names = sorted(names, key=lambda name: (len(name), name))
        parts = [re.fullmatch(r"(.*?)([0-9]+)(\.[^.0-9]+)", name) for name in names[:2]]
        if not all(parts):
            return None
        prefix, first, suffix = parts[0].groups()
        step = int(parts[1][2]) - int(first) if len(parts) == 2 else 1
        rule = cls(prefix, int(first), step, len(first), suffix, len(names)) if step > 0 else None
        return rule if rule and list(rule) == names else None


class Row(NamedTuple):
    """What the index keeps of a video: `stamp` is the time of its last change, `bytes` those of the file or the first frame."""

    path: str
    length: int
    height: int
    width: int
    names: FrameNames | tuple[str, ...]
    stamp: int
    bytes: int
    exact: bool


@dataclass(frozen=True)
class Index:
    """The videos below some folders, sorted by path and named by it.

    Arguments:
        videos: those that can be read.
        fingerprint: 16 hex digits of paths, lengths, sizes, frame names, and bytes of files and first frames: no dates, no
            absolute paths.
        notes: a line for each kind of thing that is wrong in the tree.
    """

    videos: list[Video]
    fingerprint: str
    notes: list[str]


def index_videos(root: str | os.PathLike[str], places: Sequence[str], cache: Path, *, decode: bool = False) -> Index:
    """Find every video in some folders, at any depth up to four: folders of frames and video files.

    Reads the names of the frames and one header a video. Of video files it counts the packets and takes 2 % less as length,
    because decoders lose a few: this reads the files, but decodes none. A second call looks at dates alone: it reads again what
    was added, removed or renamed in, and files that were written again. A frame overwritten in place goes unnoticed.

    Arguments:
        root: folder from which paths count.
        places: folders below it, with "/", that hold videos or are videos; "" for root itself.
        cache: the index file; it may be missing, old or damaged.
        decode: count the frames of video files by decoding them all (a tenth of a second to a few seconds each).

    Raises:
        InputError: no such folder, or no video in it.
    """
    root = Path(root)
    for place in places:
        if not (root / place).is_dir():
            raise InputError(f"{root / place}: no such folder; expected one that holds folders of frames or video files")
    kept = _read(cache)
    rows: list[Row] = []
    faults: dict[str, str] = {}
    try:
        _walk(root, places, kept, decode, rows, faults)
    except BaseException:  # Ctrl-C in hours of decoding: the next call goes on from there
        _write(cache, [*({**kept, **{row.path: row for row in rows}}).values()])
        raise
    rows.sort(key=lambda row: row.path)
    if not rows:
        reason = next(iter(faults.values()), "nothing in it")
        raise InputError(f"{root}: no video in {', '.join(place or '.' for place in places[:3])} ({reason}); "
                         "expected folders of frames or video files")
    if rows != list(kept.values()):
        _write(cache, rows)
    digest = hashlib.sha256()
    for row in rows:
        names = row.names if isinstance(row.names, tuple) else tuple(asdict(row.names).values())
        digest.update(repr((row.path, row.length, row.height, row.width, names, row.bytes)).encode())
    videos = [Video(row.path, root / row.path, row.length, (row.height, row.width), row.names) for row in rows]
    return Index(videos, digest.hexdigest()[:16], _notes(rows, faults))


def _walk(root: Path, places: Sequence[str], kept: dict[str, Row], decode: bool, rows: list[Row],
          faults: dict[str, str]) -> None:
    """Fill in the rows, and for each folder or file without a readable video the reason."""
    pending = list(dict.fromkeys(places))
    visit = partial(_visit_all, str(root), kept, decode)
    size = 1 if decode else CHUNK
    pool = ThreadPoolExecutor(THREADS)
    with tqdm(desc="indexing", unit=" videos", mininterval=5.0) as bar:
        try:
            for level in range(DEPTH + 1):
                chunks, pending = [pending[i: i + size] for i in range(0, len(pending), size)], []
                for path, found in itertools.chain.from_iterable(pool.map(visit, chunks)):
                    if isinstance(found, Row):
                        rows.append(found)
                        bar.update()
                    elif isinstance(found, str):
                        faults[path] = found
                    else:
                        pending += found
        finally:
            pool.shutdown(cancel_futures=True)
    faults.update((path, f"{root / path}: under more than {DEPTH} levels of folders") for path in pending)


def _visit_all(root: str, kept: dict[str, Row], decode: bool, paths: list[str]) -> list[tuple[str, Row | str | list[str]]]:
    found = []
    for path in paths:
        try:
            found.append((path, _visit(root, path, kept.get(path), decode)))
        except (InputError, OSError) as error:
            found.append((path, str(error)))
    return found


def _visit(root: str, path: str, old: Row | None, decode: bool) -> Row | list[str]:
    """The row of a video, or the paths to look at next."""
    full = os.path.join(root, path)
    state = os.stat(full)
    if old and old.stamp == state.st_mtime_ns and (old.names or (old.bytes == state.st_size and old.exact >= decode)):
        return old
    if Path(path).suffix.lower() in VIDEO_SUFFIXES and not os.path.isdir(full):
        length, size = _measure(full, decode)
        return Row(path, length, *size, (), state.st_mtime_ns, state.st_size, decode)
    frames, further = [], []
    with os.scandir(full) as entries:
        for entry in entries:
            suffix = os.path.splitext(entry.name)[1].lower()
            if entry.name.startswith("."):
                continue
            if suffix in FRAME_SUFFIXES and not entry.is_dir():
                frames.append(entry.name)
            elif suffix in VIDEO_SUFFIXES or entry.is_dir():
                further.append(f"{path}/{entry.name}" if path else entry.name)
    if not frames:
        if not further:
            raise InputError(f"{full}: an empty folder")
        return further
    if not path:
        raise InputError(f"{full}: it holds frames itself; give the folder above it")
    names = FrameNames.of(frames) or open_video(full).files
    first = Path(full, names[0])
    return Row(path, len(names), *header_size(first), names, state.st_mtime_ns, first.stat().st_size, True)


def _measure(path: str, decode: bool) -> tuple[int, tuple[int, int]]:
    """Length and (H, W) of a video file; the header's length is not used, it announces frames that are not there."""
    if decode:
        video = open_video(path)
        return video.length, video.size
    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_FORMAT, -1])  # -1: packets, not frames
    packets = 0
    while capture.grab():
        packets += 1
    if not packets:
        raise InputError(f"{path}: cannot be opened as a video")
    # opened again: among packets, OpenCV does not know of the container's rotation
    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    size = round(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)), round(capture.get(cv2.CAP_PROP_FRAME_WIDTH))
    return max(1, packets - max(2, math.ceil(MARGIN * packets))), size


def _notes(rows: list[Row], faults: dict[str, str]) -> list[str]:
    lines = []
    if faults:
        lines.append(f"{len(faults)} without a readable video, left out; the first: {faults[min(faults)]}")
    gaps = [row.path for row in rows if row.names and isinstance(row.names, tuple)]
    if gaps:
        lines.append(f"{len(gaps)} videos whose frames are not numbered evenly (frames may be missing); the first: {gaps[0]}")
    return lines


def _plain(row: Row) -> list:
    return [*row[:4], row.names if isinstance(row.names, tuple) else asdict(row.names), *row[5:]]


def _write(cache: Path, rows: list[Row]) -> None:
    content = {"format": FORMAT, "rows": [_plain(row) for row in rows]}
    with replacing(cache) as stream:
        stream.write(json.dumps(content, separators=(",", ":")).encode())


def _read(cache: Path) -> dict[str, Row]:
    try:
        content = json.loads(cache.read_bytes())
        rows = [Row(*row) for row in content["rows"] if content["format"] == FORMAT]
        return {row.path: row._replace(names=FrameNames(**row.names) if isinstance(row.names, dict) else tuple(row.names))
                for row in rows}
    except (OSError, ValueError, LookupError, TypeError):
        return {}
