"""Broken and odd video files, for `open_video` and the segment command."""

import contextlib
import os
import shutil
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np

from dulvos.masks import write_mask
from dulvos.study.collections import open_collection
from dulvos.videos import open_video
from tests.corpus import TARGETS, Expected, Target, add, put
from tests.corpus_frames import encoded, forbidden, frames_of, like, picture, read_all
from tests.corpus_masks import command

PART, BROKEN = "video files", r"a\.\w+: cannot be opened as a video"
FRAMES = [picture(seed) for seed in range(12)]
ODD, DOT = [frame[:47, :63] for frame in FRAMES], [frame[:1, :1] for frame in FRAMES]
GREYS = [np.repeat(frame[..., :1], 3, 2) for frame in FRAMES]


def write_video(path: Path, *arguments: Any, **options: Any) -> Path:
    """`encode` in a thread of its own, because SVT-AV1 gives the calling thread real-time priority."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(encode, path, *arguments, **options).result()


def encode(path: Path, frames: list[np.ndarray] = FRAMES, codec: str = "libx264", pixels: str = "yuv420p",
           times: list[int] | None = None, rate: Fraction | int = 10, aspect: Fraction | int = 1) -> Path:
    """Encode (H, W, 3) uint8 frames at a rate per second, or at times in milliseconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.codec_context.sample_aspect_ratio = aspect
        stream.pix_fmt = pixels
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, picture_ in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture_, "rgb24")
            if times:
                frame.pts, frame.time_base = times[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


lossless = partial(write_video, codec="ffv1", pixels="bgr0")
small = partial(write_video, codec="mpeg4")


def files(name: str, file: str, expect: Expected, write: Callable = write_video, /, **options: Any) -> None:
    """A case of a video file that `write` writes."""
    add(PART, name, expect, lambda folder: read_all(write(folder / file, **options)))


for file, codec, pixels, error in (
        ("a.mp4", "mpeg4", "yuv420p", 12), ("a.mp4", "libx264", "yuv420p", 6),
        ("alpha.mov", "png", "rgba", 0), ("a.avi", "mjpeg", "yuvj420p", 12),
        ("a.webm", "libvpx-vp9", "yuv420p", 8),
        *((f"a.{kind}", "libsvtav1", "yuv420p", 8) for kind in ("mp4", "mkv", "webm")),
        ("10 bits.mp4", "libsvtav1", "yuv420p10le", 8),
        *((f"a.{kind}", "libx264", "yuv420p", 6) for kind in ("m4v", "ts", "mts", "m2ts", "M2TS")),
        ("a.mpg", "mpeg2video", "yuv420p", 12), ("a.wmv", "wmv2", "yuv420p", 12),
        ("a.flv", "flv", "yuv420p", 12), ("a.3gp", "mpeg4", "yuv420p", 12),
        ("10 bits.mp4", "libx264", "yuv420p10le", 6), ("rgb.mkv", "ffv1", "bgr0", 0),
        ("16 bits.mkv", "ffv1", "gbrp16le", 1)):
    files(f"{file} of {codec}, {pixels}", file, like(*FRAMES, error=error), codec=codec, pixels=pixels)
TIMES = [0, 10, 500, 510, 515, 2000, 2010, 3000, 3005, 3010, 3020, 9000]
for suffix in ("mp4", "mkv"):
    files(f"variable frame rate in {suffix}", f"a.{suffix}", like(*FRAMES, error=6), times=TIMES)
files("greyscale", "a.mkv", like(*GREYS), frames=GREYS, codec="ffv1", pixels="gray")
files("odd sides", "a.mkv", like(*ODD), lossless, frames=ODD)
files("1 x 1 video", "a.mkv", like(DOT[0]), lossless, frames=DOT[:1])
files("one frame in mp4", "a.mp4", like(FRAMES[0], error=6), frames=FRAMES[:1])


def beside(folder: Path, name: str) -> Any:
    with contextlib.chdir(folder):
        return read_all(small(folder / name, FRAMES[:3]).name)


for name in ("with space", "ünï 视频", "new\nline", "-dash", "100%d", "12:30:00", "http:x", "a|b"):
    add(PART, f"called {name!r}", like(*FRAMES[:3], error=6), beside, f"{name}.mp4")


def turned(path: Path, matrix: tuple[int, ...]) -> Path:
    """An mp4 whose container asks for a rotation."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 44
    data[place: place + 36] = struct.pack(">9i", *(65536 * m for m in matrix), 1 << 30)
    path.write_bytes(data)
    return path


def rotated(folder: Path, matrix: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, Fraction]:
    """The first frame before and after the container asks for a rotation, and the aspect of its pixels."""
    path = write_video(folder / "a.mp4", FRAMES[:2], aspect=Fraction(4, 3))
    return read_all(path)[0], read_all(turned(path, matrix))[0], open_video(path).aspect


for name, matrix, turns, aspect in (("portrait", (0, 1, 0, -1, 0, 0, 0, 0), -1, Fraction(3, 4)),
                                    ("upside down", (-1, 0, 0, 0, -1, 0, 0, 0), 2, Fraction(4, 3))):
    add(PART, f"{name} by its container, of wide pixels", lambda seen, turns=turns, aspect=aspect:
        np.array_equal(np.rot90(seen[0], turns), seen[1]) and seen[2] == aspect, rotated, matrix)


def resized(path: Path) -> Path:
    """A stream whose frames become smaller."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for index in range(4):
            size = (48, 64) if index < 2 else (24, 32)
            packet = av.Packet(encoded(picture(index, *size), "jpg", quality=95))
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, index, index, Fraction(1, 10)
            container.mux(packet)
    return path


files("a stream that changes size is scaled to the first", "a.mkv", like(*FRAMES[:4], error=8), resized)


def carried(folder: Path, write: Callable[[Path], Path], size: tuple[int, int], *options: Any) -> Any:
    """Length, rate and aspect of the movie that `python -m dulvos segment` makes of a video."""
    mask = np.zeros(size, np.uint8)
    mask[: -(-size[0] // 2)] = 3
    write_mask(folder / "mask.png", mask)
    with contextlib.chdir(folder):  # "1:" in a name is no protocol
        path = write(folder / "a.mkv").rename("1:2.mkv")
        command("segment", path, "mask.png", "12:30", "--checkpoint", "random", "--device", "cpu",
                "--precision", "fp32", *options)
        movie = open_video("12:30/overlay.mp4")
        return len(movie), movie.rate, movie.aspect


for name, write, size, options in (
        ("variable frame rate", partial(write_video, frames=FRAMES[:4], times=TIMES[:4]), (48, 64), ()),
        ("1 x 1", partial(lossless, frames=DOT[:4]), (1, 1), ("--topk", 1)),
        ("3 pixels wide", partial(lossless, frames=[f[:, :3] for f in FRAMES[:4]]), (48, 3), ("--topk", 5)),
        ("odd sides", partial(lossless, frames=ODD[:4]), (47, 63), ()),
        ("a stream that changes size", resized, (48, 64), ())):
    add(PART, f"carried through: {name}", lambda made: made[0] == 4 and 0.1 <= made[1] <= 1000, carried,
        write, size, *options)
for name, codec, rate, aspect, shown in (
        ("AV1", "libsvtav1", 25, 1, 25), ("a timelapse", "libx264", Fraction(1, 60), 1, 0.1),
        ("slow motion", "libx264", 5000, 1, 1000),
        ("pixels that are not square", "libx264", 24, Fraction(16, 15), 24)):
    add(PART, f"carried through: {name}", lambda made, wanted=(4, shown, aspect): made == wanted, carried,
        partial(write_video, frames=FRAMES[:4], codec=codec, rate=rate, aspect=aspect), (48, 64))


def cut(path: Path, share: float, write: Callable[[Path], Path] = small) -> Path:
    write(path).write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


def only_sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


for share in (0.01, 0.3, 0.95):
    files(f"mp4 cut to {share:.0%}", "a.mp4", BROKEN, cut, share=share)
files("mkv cut in half has its first frames", "a.mkv",
      lambda frames: 2 < len(frames) < 12 and like(*FRAMES[: len(frames)])(frames), cut, share=0.6,
      write=lossless)
files("an empty file", "a.mp4", BROKEN, put, content="")
files("text called mp4", "a.mp4", BROKEN, put, content="text")
files("a playlist of other files", "a.mp4", BROKEN, put, content="#EXTM3U\n/etc/hostname\n")
files("another kind of file", "a.pdf", r"a\.pdf: not a video.*\.mp4", put, content="x")
files("sound alone", "a.mp4", BROKEN, only_sound)
files("a pipe called mp4", "a.mp4", r"a\.mp4: not a video", lambda path: os.mkfifo(path) or path)
files("a name that is no UTF-8", "a.mp4", like(*FRAMES, error=12),
      lambda path: small(path).rename(path.with_name("a\udcff.mp4")))


def replaced(folder: Path) -> list[np.ndarray]:
    video = open_video(lossless(folder / "a.mkv"))
    video.read(0)
    lossless(folder / "b.mkv", FRAMES[::-1]).replace(folder / "a.mkv")
    return [video.read(3)]


def gone(folder: Path) -> list[np.ndarray]:
    video = open_video(small(folder / "a.mp4"))
    video.path.unlink()
    return frames_of(video)


def several(folder: Path) -> list[str]:
    for name in ("a.mkv", "a.mkv.mp4", "b.mp4"):
        shutil.copy(small(folder / "a.mp4", FRAMES[:4]), folder / name)
    return [video.name for video in open_collection("", folder, folder / "index").videos]


def mixed(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the videos in a folder, and the notes about it."""
    for name, codec in (("a.ts", "mpeg4"), ("b/c.M4V", "mpeg4"), ("b/d.flv", "flv"), ("e.mkv", "libsvtav1")):
        write_video(put(folder / name, ""), FRAMES[:4], codec)
    put(folder / "list.txt", "")
    put(folder / "f/1.png", encoded(FRAMES[0]))
    small(folder / "f/preview.mp4")
    put(folder / "g/1.png", encoded(FRAMES[0]))
    put(folder / "g/1_mask.png", encoded(FRAMES[0]))
    put(folder / "1/2/3/4/5/6.png", encoded(FRAMES[0]))
    (put(folder / "links/1.png").parent / "0.png").symlink_to("vanished")
    found = open_collection("", folder, folder / ".index")
    return [video.name for video in found.videos], found.notes


add(PART, "a folder of many kinds, and what it skips", lambda found:
    found[0] == ["a.ts", "b/c.M4V", "b/d.flv", "e.mkv", "f"]  # two unreadable, three of another kind
    and len(found[1]) == 1 and found[1][0].startswith("5 ") and "1_mask.png" in found[1][0], mixed)
add(PART, "a file without permission", r"a\.mp4: permission denied",
    lambda folder: forbidden(small(folder / "a.mp4")))
add(PART, "a file replaced while it is read", like(FRAMES[8]), replaced)
add(PART, "a file that vanishes after opening", r"a\.mp4: no such file", gone)
add(PART, "names that differ in their suffix only",
    lambda names: names == ["a.mkv", "a.mkv.mp4", "a.mp4", "b.mp4"], several)

for file, codec, pixels in (
        ("a.mp4", "libx264", "yuv420p"), ("a.mp4", "mpeg4", "yuv420p"), ("a.mkv", "ffv1", "bgr0"),
        ("a.avi", "mjpeg", "yuvj420p"), ("a.webm", "libvpx-vp9", "yuv420p")):
    write = partial(write_video, frames=FRAMES[:4], codec=codec, pixels=pixels)
    TARGETS.append(Target(f"{file.partition('.')[2]} of {codec}",
                          lambda folder, file=file, write=write: write(folder / file),
                          lambda folder, file=file: read_all(folder / file)))
