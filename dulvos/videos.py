"""Read videos, that is folders of frames and video files, as 8-bit RGB arrays, and resize frames.

Grey and palette pictures become RGB. 16-bit samples are scaled from 0..65535, whatever range a picture uses.
Alpha is ignored: transparent pixels keep the colour stored under them. Of an animation, only the first
picture is read.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, PngImagePlugin

from dulvos.errors import InputError
from dulvos.files import expand

__all__ = ["FRAME_SUFFIXES", "VIDEO_SUFFIXES", "Video", "fingerprint", "frame_files", "open_video", "resize",
           "shrink", "shrunk_size"]

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm")

_EXPECTED = f"a folder of frames ({', '.join(FRAME_SUFFIXES)}) or a video file ({', '.join(VIDEO_SUFFIXES)})"
# How complete files begin and end. Others are also decoded by Pillow, which refuses cut files.
_ENDINGS = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PNG": b"IEND\xaeB`\x82"}
# Pillow refuses a PNG whose colour profile or text takes more than 1 MB, which some tools write.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 1 << 28
_open = threading.local()  # each thread keeps one video file open


@contextmanager
def _readable(path: Path | None = None, kinds: type[Exception] = OSError) -> Iterator[None]:
    """Turn errors of the system, or whatever a decoder of `path` raises, into an InputError."""
    try:
        yield
    except kinds as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: unreadable frame ({reason}); replace this file" if path else
                         f"{error.filename}: {reason}; expected a readable file or folder") from error


@dataclass(frozen=True)
class Video:
    """Frames of one size under one name; it holds no open file, so it can be sent to other processes.

    Arguments:
        name: name of the folder, or of the file without its suffix.
        path: the folder of frames or the video file.
        length: number of frames; of a video file, those that decode, whatever its header says.
        size: (H, W) of the first frame, after any rotation that EXIF or the container asks for.
        files: names of the frame files in natural order; empty for a video file.
    """

    name: str
    path: Path
    length: int
    size: tuple[int, int]
    files: tuple[str, ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return self.length

    def frame_name(self, index: int) -> str:
        """Name of a frame: the stem of its file; for a video file, the index in five digits."""
        index = range(self.length)[index]
        return Path(self.files[index]).stem if self.files else f"{index:05d}"

    def numbers(self) -> dict[str, int]:
        """The frames' numbers by their names, in order."""
        return {self.frame_name(index): index for index in range(self.length)}

    @_readable()
    def read(self, index: int) -> np.ndarray:
        """Read one frame, (H, W, 3) uint8 RGB; negative indices count from the end.

        A video file is only decoded forwards, because seeking misses frames in some files: a step back starts
        again at the first frame.

        Raises:
            InputError: the frame cannot be read, is cut short, or has another size than the first one.
            IndexError: there is no such frame.
        """
        index = range(self.length)[index]
        if self.files:
            return self._read(index, None)
        decoder = getattr(_open, "decoder", None)
        if not decoder or decoder.identity != _identity(self.path) or decoder.position > index:
            decoder = _open.decoder = _Decoder(self.path)
        return self._read(index, decoder)

    def frames(self, start: int = 0) -> Iterator[np.ndarray]:
        """Frames `start` to the last, each (H, W, 3) uint8 RGB, in one pass; raises as `read` does."""
        decoder = None if self.files else _Decoder(self.path)
        for index in range(start, self.length):
            yield self._read(index, decoder)

    def _read(self, index: int, decoder: _Decoder | None) -> np.ndarray:
        where = f"{self.path}, frame {index}" if decoder else self.path / self.files[index]
        frame = decoder.read(index) if decoder else _read_image(where)
        self.check_size(frame.shape[:2], where)
        return frame

    def check_size(self, size: tuple[int, int], where: object) -> None:
        """Raise an InputError that names `where` unless (H, W) is the size of the video's frames."""
        if tuple(size) != tuple(self.size):
            found, wanted = (f"{width}x{height}" for height, width in (size, self.size))
            raise InputError(f"{where} is {found} (width x height), but {self.path} is {wanted}; frames and "
                             "masks of a video must have one size")

    def verify(self) -> None:
        """Raise an InputError that names the first frame file with a bad header, another size or no end."""
        for path in (self.path / file for file in self.files):
            self.check_size(_header_size(path), path)
            if not _is_whole(path):
                _read_image(path)


@_readable()
def open_video(path: str | os.PathLike[str]) -> Video:
    """Open a folder of frames (reads the first header only) or a video file (decodes it once, to count).

    Arguments:
        path: a folder of jpg, jpeg, png, bmp or webp frames, ordered naturally by their names (other files
            are ignored), or an mp4, avi, mkv, mov or webm file.

    Raises:
        InputError: nothing is there, it holds no frame or two of one name, or the file is unknown or broken.
    """
    path = expand(path)
    if path.is_dir():
        files = frame_files(path)
        if not files:
            raise InputError(f"{path}: no frames in this folder; expected {_EXPECTED}")
        stem, count = Counter(Path(file).stem for file in files).most_common(1)[0]
        if count > 1:
            raise InputError(f"{path}: {count} frames are called {stem!r}; keep one file for each frame")
        return Video(path.resolve().name, path, len(files), _header_size(path / files[0]), files)
    if path.suffix.lower() not in VIDEO_SUFFIXES or not path.is_file():
        reason = "not a video" if path.exists() else "no such file or folder"
        raise InputError(f"{path}: {reason}; expected {_EXPECTED}")
    decoder = _Decoder(path)
    size = decoder.read(0).shape[:2]
    while decoder.capture.grab():  # headers announce frames that are missing
        decoder.position += 1
    return Video(path.stem, path, decoder.position + 1, size)


@_readable()
def fingerprint(videos: Iterable[Video]) -> str:
    """16 hex digits for names, lengths, sizes, and the files' names and byte counts; no dates, no paths."""
    digest = hashlib.sha256()
    for video in videos:
        files = [video.path / file for file in video.files] or [video.path]
        sizes = [(file.name, file.stat().st_size) for file in files]
        digest.update(repr((video.name, video.length, tuple(video.size), sizes)).encode())
    return digest.hexdigest()[:16]


def resize(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a frame, (H, W, 3) uint8, to size (h, w) by the project's one filter: bilinear, antialiased."""
    image = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None]
    image = F.interpolate(image, size, mode="bilinear", antialias=True, align_corners=False)
    return image[0].permute(1, 2, 0).numpy()


def shrunk_size(size: tuple[int, int], shorter_side: int) -> tuple[int, int]:
    """The (h, w) of a frame of size (H, W) after `shrink`."""
    if not 0 < shorter_side < min(size):
        return size
    return tuple(round(side * shorter_side / min(size)) for side in size)


def shrink(frame: np.ndarray, shorter_side: int) -> np.ndarray:
    """Reduce a frame, (H, W, 3) uint8, to a shorter side in pixels; 0 or a longer one keeps the frame."""
    size = shrunk_size(frame.shape[:2], shorter_side)
    return frame if size == frame.shape[:2] else resize(frame, size)


def _header_size(path: Path) -> tuple[int, int]:
    """(H, W) of a picture after any EXIF rotation, from its header alone; raises InputError if unreadable."""
    with _readable(path, Exception), Image.open(path) as image:
        exif = Image.Exif()  # not `getexif`: it also obeys XMP, unlike OpenCV, and decodes a whole PNG
        with suppress(SyntaxError):  # OpenCV ignores broken EXIF data too
            exif.load(image.info.get("exif", b""))
        return image.size if exif.get(ExifTags.Base.Orientation) in (5, 6, 7, 8) else image.size[::-1]


@_readable()
def frame_files(folder: Path) -> tuple[str, ...]:
    """Names of the frames in a folder, in natural order."""
    def is_frame(entry: os.DirEntry) -> bool:
        if entry.name.startswith(".") or Path(entry.name).suffix.lower() not in FRAME_SUFFIXES:
            return False
        # A broken link counts, so that reading it is an error; a pipe does not: reading it would never end.
        return entry.is_file(follow_symlinks=False) or entry.is_symlink() and not os.path.isdir(entry)

    def natural(name: str) -> tuple[str, str]:
        return re.sub("[0-9]+", lambda number: number[0].zfill(20), Path(name).stem), name

    return tuple(sorted((entry.name for entry in os.scandir(folder) if is_frame(entry)), key=natural))


def _read_image(path: Path) -> np.ndarray:
    with _readable(path, Exception):
        if not _is_whole(path):
            with Image.open(path) as image:
                image.load()  # OpenCV would silently fill the rest of a cut picture with grey
        frame = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
        return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


def _is_whole(path: Path) -> bool:
    """Whether a JPEG or PNG ends as complete ones do; False for other kinds."""
    with open(path, "rb") as stream:
        head = stream.read(4)
        stream.seek(max(0, path.stat().st_size - 1024))
        tail = stream.read().rstrip(b"\0")
    return any(head.startswith(start) and tail.endswith(end) for start, end in _ENDINGS.items())


def _identity(path: Path) -> tuple[Path, int, int]:
    """Differs in a forked process, which shares its parent's position in the file, and for a new file."""
    return path.absolute(), os.getpid(), path.stat().st_mtime_ns


class _Decoder:
    """A video file that is decoded forwards; `position` is the frame that was decoded last."""

    @_readable()
    def __init__(self, path: Path) -> None:
        self.path, self.position, self.identity = path, -1, _identity(path)
        source = str(path.absolute())  # FFmpeg would take a relative "12:30.mp4" for a protocol
        if source != source.encode(errors="replace").decode():
            raise InputError(f"{path}: this path is not UTF-8, which crashes OpenCV; rename it")
        with open(path, "rb"):
            pass  # an error here says more than OpenCV's
        # One thread: decoder threads do not survive a fork, and a worker that releases them hangs.
        self.capture = cv2.VideoCapture(source, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        if not self.capture.isOpened():
            raise InputError(f"{path}: cannot be opened as a video; re-encode or replace the file")

    def read(self, index: int) -> np.ndarray:
        """Frame `index`, not before `position`; the last frame can be read again."""
        while self.position < index and self.capture.grab():
            self.position += 1
        decoded, frame = self.capture.retrieve()
        if self.position < index or not decoded:
            raise InputError(f"{self.path}: frame {index} does not decode; re-encode or replace the file")
        return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
