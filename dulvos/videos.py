"""Read videos, that is folders of frames and video files, as 8-bit RGB arrays, and resize frames.

Grey and palette pictures become RGB. 16-bit samples are scaled from 0..65535, whatever range a picture uses.
Alpha is ignored: transparent pixels keep their stored colour. Only the first picture of an animation is read.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, PngImagePlugin

from dulvos.errors import InputError
from dulvos.files import AnyPath, expand

__all__ = ["FRAME_SUFFIXES", "VIDEO_SUFFIXES", "Video", "fingerprint", "frame_files", "given_file",
           "open_video", "resize", "shrink", "shrunk_size"]

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
VIDEO_SUFFIXES = (*".mp4 .avi .mkv .mov .webm .m4v .ts .mts .m2ts .mpg .mpeg .wmv .flv .3gp .ogv".split(),)
RATE = 24.0  # frames per second of DAVIS, of folders, and of video files that state no rate

_EXPECTED = f"a folder of frames ({', '.join(FRAME_SUFFIXES)}) or a video file ({', '.join(VIDEO_SUFFIXES)})"
# How complete JPEG and PNG files begin and end. Pillow, which refuses cut files, decodes others once more.
_ENDINGS = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PNG": b"IEND\xaeB`\x82"}
# Pillow refuses a PNG whose colour profile or text takes more than 1 MB, which some tools write.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 1 << 28
_open = threading.local()  # each thread keeps one video file open


@contextmanager
def _readable(frame: Path | None = None) -> Iterator[None]:
    """Turn a system error into an InputError; with `frame`, the path of a frame's file, any error."""
    kinds = Exception if frame else OSError
    try:
        yield
    except kinds as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{frame}: unreadable frame ({reason}); replace this file" if frame else
                         f"{error.filename}: {reason}; expected a readable file or folder") from error


@dataclass(frozen=True)
class Video:
    """A folder of frames or a video file; it holds no open file, so it can be sent to other processes.

    Arguments:
        name: name of the folder, or of the file without its suffix.
        path: the folder of frames or the video file.
        length: number of frames; for a video file, of those that decode, whatever its header says.
        size: (H, W) of the first frame, after any rotation that EXIF or the container asks for.
        files: names of the frame files, ordered by their numbers; empty for a video file.
        rate: frames per second.
        aspect: width / height of a pixel when the video is shown.
    """

    name: str
    path: Path
    length: int
    size: tuple[int, int]
    files: tuple[str, ...] = field(default=(), repr=False)
    rate: float = RATE
    aspect: Fraction = Fraction(1)

    def __len__(self) -> int:
        return self.length

    def frame_name(self, index: int) -> str:
        """Name of a frame: the stem of its file; for a video file, the index in five digits."""
        index = range(self.length)[index]
        return Path(self.files[index]).stem if self.files else f"{index:05d}"

    def numbers(self) -> dict[str, int]:
        """{name of a frame: its index}, in order."""
        return {self.frame_name(index): index for index in range(self.length)}

    @_readable()
    def read(self, index: int) -> np.ndarray:
        """Read one frame, (H, W, 3) uint8 RGB; negative indices count from the end.

        A video file is only decoded forwards, because seeking misses frames in some files. A step back starts
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
        """Frames from `start` on, each (H, W, 3) uint8 RGB, in one pass; raises what `read` raises."""
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
        if size != self.size:
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
def open_video(path: AnyPath, given: Iterable[AnyPath] = (), *, quick: bool = False) -> Video:
    """Open a folder of frames (reads the first header only) or a video file (decodes it once, to count).

    Arguments:
        path: a folder of pictures whose names differ in their numbers only (other kinds of files are
            ignored), or a video file.
        given: masks, as `dulvos.masks.given_masks` takes them; they are no frames, even if they lie in the
            folder.
        quick: do not decode a video file, but estimate its length as 98 % of its packets, since decoders lose
            a few.

    Raises:
        InputError: the path does not exist, its kind is unknown, it is damaged, or the folder holds no
            frames, two with one number, or pictures with other names.
    """
    path = expand(path)
    if path.is_dir():
        files = frame_files(path, given)
        if not files:
            raise InputError(f"{path}: no frames in this folder; expected {_EXPECTED}")
        return Video(path.resolve().name, path, len(files), _header_size(path / files[0]), files)
    if path.suffix.lower() not in VIDEO_SUFFIXES or not path.is_file():
        reason = "not a video" if path.exists() else "no such file or folder"
        raise InputError(f"{path}: {reason}; expected {_EXPECTED}")
    decoder = _Decoder(path)
    size = decoder.read(0).shape[:2]
    rate = float(decoder.stream.average_rate or RATE)
    aspect = decoder.stream.sample_aspect_ratio or Fraction(1)
    if decoder.turns % 2:
        aspect = 1 / aspect
    if quick:
        packets, decoder = 0, _Decoder(path)  # whose file closes when nothing refers to it
        with suppress(av.FFmpegError):
            for packet in decoder.packets:
                packets += packet.size > 0
        length = max(1, packets - max(2, (packets + 49) // 50))
    else:  # headers announce frames that are missing
        length = 1 + sum(1 for _ in decoder.frames)
    return Video(path.stem, path, length, size, rate=rate, aspect=aspect)


@_readable()
def fingerprint(videos: Iterable[Video]) -> str:
    """16 hex digits of names, lengths, sizes, and the files' names and byte counts, but no dates or paths."""
    digest = hashlib.sha256()
    for video in videos:
        files = [video.path / file for file in video.files] or [video.path]
        sizes = [(file.name, file.stat().st_size) for file in files]
        digest.update(repr((video.name, video.length, video.size, sizes)).encode())
    return digest.hexdigest()[:16]


def resize(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a frame, (H, W, 3) uint8, to size (h, w), bilinear and antialiased, as everywhere here."""
    if tuple(size) == frame.shape[:2]:
        return frame
    image = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None]
    image = F.interpolate(image, size, mode="bilinear", antialias=True, align_corners=False)
    return image[0].permute(1, 2, 0).numpy()


def shrunk_size(size: tuple[int, int], shorter_side: int) -> tuple[int, int]:
    """The (h, w) of a frame of size (H, W) after `shrink`."""
    if not 0 < shorter_side < min(size):
        return size
    return tuple(round(side * shorter_side / min(size)) for side in size)


def shrink(frame: np.ndarray, shorter_side: int) -> np.ndarray:
    """Reduce a frame, (H, W, 3) uint8, to a shorter side in pixels; 0 or a larger side keeps the frame."""
    return resize(frame, shrunk_size(frame.shape[:2], shorter_side))


def _header_size(path: Path) -> tuple[int, int]:
    """(H, W) of a picture after any EXIF rotation, from its header alone; raises InputError if unreadable."""
    with _readable(path), Image.open(path) as image:
        exif = Image.Exif()  # not `getexif`: it also obeys XMP, unlike OpenCV, and decodes a whole PNG
        with suppress(SyntaxError):  # OpenCV ignores broken EXIF data too
            exif.load(image.info.get("exif", b""))
        return image.size if exif.get(ExifTags.Base.Orientation) in (5, 6, 7, 8) else image.size[::-1]


@_readable()
def frame_files(folder: Path, given: Iterable[AnyPath] = ()) -> tuple[str, ...]:
    """Names of the frames in a folder, ordered by the numbers in them; see `open_video`."""
    paths = [given_file(item)[1] for item in given]
    masks = {path.name for path in paths if os.path.realpath(path.parent) == os.path.realpath(folder)}
    files = []
    for entry in os.scandir(folder):
        stem, suffix = os.path.splitext(entry.name)
        # A broken link counts, so that reading it is an error. A pipe does not: reading it would never end.
        if (not stem.startswith(".") and suffix.lower() in FRAME_SUFFIXES
                and (entry.is_file(follow_symlinks=False)
                     or entry.is_symlink() and (os.path.isfile(entry) or not os.path.exists(entry)))
                and entry.name not in masks):
            words = re.split(r"([0-9]+(?:\.[0-9]+)?)", stem)
            files.append(([*map(Decimal, words[1::2])], words[::2], entry.name))
    files.sort()
    for (numbers, words, one), (other_numbers, other_words, other) in itertools.pairwise(files):
        if numbers == other_numbers or words != other_words:
            raise InputError(f"{folder}: {one} and {other} are not frames of one video; names of frames may "
                             "differ only in their numbers; move or rename one of them")
    return tuple(name for *_, name in files)


def given_file(item: AnyPath) -> tuple[int, Path]:
    """Frame number and path of a mask given as FRAME=PATH, or as a path alone, which is of frame 0."""
    numbered = re.fullmatch("([0-9]{1,18})=(.*)", os.fspath(item), re.DOTALL)
    if numbered and not os.path.exists(item):
        return int(numbered[1]), expand(numbered[2])
    return 0, expand(item)


def _read_image(path: Path) -> np.ndarray:
    with _readable(path):
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
    """Differs for a new file, and in a forked process, which shares its parent's position in the file."""
    return path.absolute(), os.getpid(), path.stat().st_mtime_ns


def _frames(packets: Iterable[av.Packet]) -> Iterator[av.VideoFrame]:
    with suppress(av.FFmpegError):  # damage that demuxing cannot skip ends the video
        for packet in packets:
            with suppress(av.FFmpegError):  # the next packet may decode
                yield from packet.decode()


class _Decoder:
    """A video file that is decoded forwards; `position` is the frame that was decoded last."""

    @_readable()
    def __init__(self, path: Path) -> None:
        self.path, self.position, self.identity = path, -1, _identity(path)
        try:
            container = av.open(os.path.abspath(path))  # a relative "12:30.mp4" would name a protocol
            weakref.finalize(self, container.close)  # a cycle of references would keep it open
            self.stream = container.streams.best("video")
            # One thread: decoder threads do not survive a fork, and a worker that releases them hangs.
            self.stream.codec_context.thread_count = 1
        except OSError:
            raise
        except (av.FFmpegError, AttributeError) as error:  # there may be no stream, or no decoder for it
            raise InputError(f"{path}: cannot be opened as a video; re-encode or replace it") from error
        self.packets = container.demux(self.stream)
        self.frames = _frames(self.packets)

    def read(self, index: int) -> np.ndarray:
        """Frame `index` >= `position`, (H, W, 3) uint8 RGB."""
        while self.position < index and (frame := next(self.frames, None)):
            self.position, self.frame = self.position + 1, frame
            if not self.position:
                self.size = frame.width, frame.height  # later frames of another size are scaled to it
        if self.position < index:
            raise InputError(f"{self.path}: frame {index} does not decode; re-encode or replace the file")
        image = self.frame.reformat(*self.size, "rgb24", interpolation="BICUBIC", threads=1).to_ndarray()
        self.turns = round(self.frame.rotation / 90)  # counterclockwise
        return np.ascontiguousarray(np.rot90(image, self.turns))
