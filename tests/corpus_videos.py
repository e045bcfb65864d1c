"""Video files, broken and odd: what `open_video` and `find_videos` make of them."""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from dulvos.masks import write_mask
from dulvos.movies import frame_rate
from dulvos.videos import find_videos, open_video
from tests.corpus import Case
from tests.corpus_frames import as_nobody, like, picture, plain, read_all
from tests.corpus_masks import command

__all__ = ["CASES", "FRAMES", "write_video"]

CASES: list[Case] = []
FRAMES = [picture(seed) for seed in range(12)]


def write_video(path: Path, frames: list[np.ndarray], codec: str = "libx264", pixels: str = "yuv420p",
                times: list[int] | None = None) -> Path:
    """Encode (H, W, 3) uint8 frames, at 10 a second or at times in milliseconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, pixels_ in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels_, "rgb24")
            if times:
                frame.pts, frame.time_base = times[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def files(name: str, make: Callable[[Path], Any], expect: str | Callable[[Any], bool],
          read: Callable[[Path], Any] = read_all) -> None:
    """A case of a video file, which `make` writes and names."""
    CASES.append(Case("video files", name, lambda folder: read(make(folder)), expect))


for name, codec, pixels, error in (
        ("a.mp4", "mpeg4", "yuv420p", 12), ("a.mp4", "libx264", "yuv420p", 6), ("a.avi", "mjpeg", "yuvj420p", 12),
        ("a.webm", "libvpx-vp9", "yuv420p", 8), ("10 bits.mp4", "libx264", "yuv420p10le", 6), ("rgb.mkv", "ffv1", "bgr0", 0),
        ("16 bits.mkv", "ffv1", "gbrp16le", 1), ("alpha.mov", "png", "rgba", 0)):
    kind = {"codec": codec, "pixels": pixels}
    files(f"{name} of {codec}, {pixels}", lambda folder, name=name, kind=kind: write_video(folder / name, FRAMES, **kind),
          like(*FRAMES, error=error))
greys = [np.repeat(frame[..., :1], 3, 2) for frame in FRAMES]
files("greyscale", lambda folder: write_video(folder / "a.mkv", greys, "ffv1", "gray"), like(*greys))
for suffix in ("mp4", "mkv"):
    files(f"variable frame rate in {suffix}", lambda folder, suffix=suffix: write_video(
        folder / f"a.{suffix}", FRAMES, times=[0, 10, 500, 510, 515, 2000, 2010, 3000, 3005, 3010, 3020, 9000]),
        like(*FRAMES, error=6))
odd = [frame[:47, :63] for frame in FRAMES]
files("odd sides", lambda folder: write_video(folder / "a.mkv", odd, "ffv1", "bgr0"), like(*odd))
files("1 x 1 video", lambda folder: write_video(folder / "a.mkv", [FRAMES[0][:1, :1]], "ffv1", "bgr0"), like(FRAMES[0][:1, :1]))
files("one frame in mp4", lambda folder: write_video(folder / "a.mp4", FRAMES[:1]), like(FRAMES[0], error=6))
for name in ("with space.mp4", "ünï 视频.mp4", "new\nline.mp4", "-dash.mp4", "100%d.mp4", "12:30:00.mp4", "http:x.mp4",
             "a|b.mp4"):
    def there(path: Path) -> list[np.ndarray]:
        with contextlib.chdir(path.parent):
            return read_all(path.name)
    files(f"called {name!r}", lambda folder, name=name: write_video(folder / name, FRAMES[:3], "mpeg4"),
          like(*FRAMES[:3], error=6), there)


def rotated(folder: Path, matrix: tuple[int, ...]) -> list[np.ndarray]:
    before = read_all(write_video(folder / "a.mp4", FRAMES[:2]))
    data = bytearray((folder / "a.mp4").read_bytes())
    place = data.index(b"tkhd") + 44
    data[place: place + 36] = struct.pack(">9i", *(65536 * m for m in matrix[:8]), 1 << 30)
    (folder / "b.mp4").write_bytes(data)
    return [*before, *read_all(folder / "b.mp4")]


files("portrait by its container", lambda folder: folder, lambda all: np.array_equal(np.rot90(all[0], -1), all[2]),
      lambda folder: rotated(folder, (0, 1, 0, -1, 0, 0, 0, 0)))
files("upside down by its container", lambda folder: folder, lambda all: np.array_equal(np.rot90(all[0], 2), all[2]),
      lambda folder: rotated(folder, (-1, 0, 0, 0, -1, 0, 0, 0)))


def resized(folder: Path) -> Path:
    with av.open(str(folder / "a.mkv"), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for index in range(4):
            packet = av.Packet(plain(picture(index, *((48, 64) if index < 2 else (24, 32))), "jpg", quality=95)["0.jpg"])
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, index, index, Fraction(1, 10)
            container.mux(packet)
    return folder / "a.mkv"


files("a stream that changes size is scaled to the first", resized, like(*FRAMES[:4], error=8))


def carried(folder: Path, path: Path, size: tuple[int, int], *options: Any) -> tuple[int, float]:
    """Frames and rate of the movie that `python -m dulvos segment` makes of a video."""
    mask = np.zeros(size, np.uint8)
    mask[: -(-size[0] // 2)] = 3
    write_mask(folder / "mask.png", mask)
    with contextlib.chdir(folder):  # what precedes a colon is no protocol
        path = path.rename("1:2" + path.suffix)
        command("segment", path, "mask.png", "12:30", "--checkpoint", "random", "--device", "cpu", "--precision", "fp32",
                *options)
        movie = open_video("12:30/overlay.mp4")
        return len(movie), frame_rate(movie)


for name, make, size, options in (

        ("variable frame rate", lambda folder: write_video(folder / "a.mkv", FRAMES[:4], times=[0, 500, 510, 1333]), (48, 64),
         ()),
        ("1 x 1", lambda folder: write_video(folder / "a.mkv", [f[:1, :1] for f in FRAMES[:4]], "ffv1", "bgr0"), (1, 1),
         ("--topk", 1)),
        ("3 pixels wide", lambda folder: write_video(folder / "a.mkv", [f[:, :3] for f in FRAMES[:4]], "ffv1", "bgr0"), (48, 3),
         ("--topk", 5)),
        ("odd sides", lambda folder: write_video(folder / "a.mkv", [f[:47, :63] for f in FRAMES[:4]], "ffv1", "bgr0"), (47, 63),
         ()),
        ("a stream that changes size", resized, (48, 64), ())):
    files(f"carried through: {name}", lambda folder: folder, lambda made: made[0] == 4 and 0.1 <= made[1] <= 1000,
          lambda folder, make=make, size=size, options=options: carried(folder, make(folder), size, *options))


def cut(folder: Path, name: str, length: float, codec: str = "mpeg4") -> Path:
    path = write_video(folder / name, FRAMES, codec, "bgr0" if codec == "ffv1" else "yuv420p")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * length)])
    return path


for length in (0.01, 0.3, 0.95):
    files(f"mp4 cut to {length:.0%}", lambda folder, length=length: cut(folder, "a.mp4", length),
          r"a\.mp4: cannot be opened as a video")
files("mkv cut in half has its first frames", lambda folder: cut(folder, "a.mkv", 0.6, "ffv1"),
      lambda frames: 2 < len(frames) < 12 and like(*FRAMES[: len(frames)])(frames))
files("an empty file", lambda folder: (folder / "a.mp4").touch() or folder / "a.mp4", r"a\.mp4: cannot be opened as a video")
files("text called mp4", lambda folder: (folder / "a.mp4").write_text("text") and folder / "a.mp4",
      r"a\.mp4: cannot be opened as a video")
files("a playlist of other files", lambda folder: (folder / "a.mp4").write_text("#EXTM3U\n/etc/hostname\n")
      and folder / "a.mp4",
      r"a\.mp4: cannot be opened as a video")
files("another kind of file", lambda folder: (folder / "a.pdf").write_text("x") and folder / "a.pdf",
      r"a\.pdf: not a video.*\.mp4")


def only_sound(folder: Path) -> Path:
    with av.open(str(folder / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return folder / "a.mp4"


files("sound alone", only_sound, r"a\.mp4: cannot be opened as a video")
files("a pipe called mp4", lambda folder: os.mkfifo(folder / "a.mp4") or folder / "a.mp4", r"a\.mp4: not a video")
files("a name that is no UTF-8", lambda folder: write_video(folder / "a.mp4", FRAMES[:1]).rename(folder / "a\udcff.mp4"),
      "not UTF-8")
files("a file without permission", lambda folder: folder, r"a\.mp4: permission denied", lambda folder: (
    folder.chmod(0o755), write_video(folder / "a.mp4", FRAMES[:1]).chmod(0), as_nobody(lambda: read_all(folder / "a.mp4")))[-1])


def replaced(folder: Path) -> list[np.ndarray]:
    video = open_video(write_video(folder / "a.mkv", FRAMES, "ffv1", "bgr0"))
    video.read(0)
    write_video(folder / "b.mkv", FRAMES[::-1], "ffv1", "bgr0").replace(folder / "a.mkv")
    return [video.read(3)]


files("a file replaced while it is read", lambda folder: folder, like(FRAMES[8]), replaced)


def gone(folder: Path) -> list[np.ndarray]:
    video = open_video(write_video(folder / "a.mp4", FRAMES))
    video.path.unlink()
    return list(video.frames())


files("a file that vanishes after opening", lambda folder: folder, r"a\.mp4: no such file", gone)


def several(folder: Path) -> list[str]:
    path = write_video(folder / "a.mp4", FRAMES[:1])
    for name in ("a.mkv", "a.mkv.mp4", "b.mp4"):
        shutil.copy(path, folder / name)
    return [video.name for video in find_videos(folder)]


files("names that differ in their suffix only", lambda folder: folder,
      lambda names: names == ["a.mkv", "a.mkv.mp4", "a.mp4", "b"], several)
files("a broken file among others", lambda folder: cut(folder, "a.mp4", 0.3).parent, r"a\.mp4: cannot be opened", find_videos)
files("a folder of nothing", lambda folder: folder, "no videos in here", find_videos)
