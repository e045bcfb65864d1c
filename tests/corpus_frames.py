"""Folders of frames, broken and odd: what `open_video` makes of them."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps

from dulvos.videos import Video, open_video
from tests.corpus import Case

__all__ = ["CASES", "as_nobody", "encoded", "like", "picture", "plain", "read_all"]

CASES: list[Case] = []
Made = Callable[[Path], Any]


def picture(seed: int = 0, height: int = 48, width: int = 64) -> np.ndarray:
    """A smooth (H, W, 3) uint8 picture, which compression hardly changes."""
    coarse = np.random.default_rng(seed).integers(30, 226, (3, 4, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)


COLOUR, GREY = picture(), picture()[..., 0]
GREYS = np.repeat(GREY[..., None], 3, 2)
HOLED = np.dstack([COLOUR, np.where(np.arange(64) < 32, 255, 0).astype(np.uint8)[None].repeat(48, 0)])  # half transparent


def read_all(path: str | os.PathLike[str] | Video) -> list[np.ndarray]:
    """Every frame, by both ways of reading, which must agree."""
    video = path if isinstance(path, Video) else open_video(path)
    video.verify()
    frames = list(video.frames())
    for index in (0, len(video) - 1, 0):
        assert np.array_equal(video.read(index), frames[index])
    assert len(frames) == len(video) and all(frame.shape == (*video.size, 3) and frame.dtype == np.uint8 for frame in frames)
    return frames


def like(*expected: np.ndarray, error: float = 0) -> Callable[[list[np.ndarray]], bool]:
    """Whether these frames come out, but for a mean difference."""
    def check(frames: list[np.ndarray]) -> bool:
        return len(frames) == len(expected) and all(
            a.shape == b.shape and np.abs(a.astype(float) - b).mean() <= error for a, b in zip(frames, expected, strict=True))
    return check


def as_nobody(act: Callable[[], Any]) -> Any:
    """Act without root's rights, which permissions do not bind."""
    if os.getuid():
        return act()
    os.seteuid(65534)
    try:
        return act()
    finally:
        os.seteuid(0)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def frames(name: str, files: dict[str, bytes] | Made, expect: str | Callable[[Any], bool], read: Made = read_all,
           **more: Any) -> None:
    """A case of a folder of frames: {file: bytes}, or what makes them."""
    def act(folder: Path) -> Any:
        if callable(files):
            return read(files(folder) or folder)
        for file, data in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(data)
        return read(folder)
    CASES.append(Case("frames", name, act, expect, **more))


def plain(image: Any, kind: str = "png", **options: Any) -> dict[str, bytes]:
    return {f"0.{kind}": encoded(image if isinstance(image, Image.Image) else Image.fromarray(image),
                                 kind.replace("jpg", "jpeg"),
                                 **options)}


def deep(values: np.ndarray) -> dict[str, bytes]:
    return {"0.png": cv2.imencode(".png", values)[1].tobytes()}


# kinds of pictures: 8-bit RGB comes out, alpha is ignored, the first picture of an animation counts
frames("grey", plain(GREY), like(GREYS))
frames("16-bit grey is scaled, not clipped", deep(GREY.astype(np.uint16) * 257), like(GREYS))
frames("16-bit colour", deep(COLOUR[..., ::-1].astype(np.uint16) * 257), like(COLOUR))
frames("16-bit colour with alpha", deep(np.dstack([COLOUR[..., ::-1], GREY]).astype(np.uint16) * 257), like(COLOUR))
frames("transparent pixels keep their colour", plain(HOLED), like(COLOUR))
frames("transparent webp", plain(HOLED, "webp", lossless=True, exact=True), like(COLOUR))
frames("transparent bmp", plain(HOLED, "bmp"), like(COLOUR))
frames("grey with alpha", plain(np.dstack([GREY, HOLED[..., 3]])), like(GREYS))
frames("palette", plain(Image.fromarray(COLOUR).quantize(200)), like(COLOUR, error=4))
frames("palette with a transparent colour", plain(Image.fromarray(COLOUR).quantize(200), transparency=3), like(COLOUR, error=4))
frames("black and white", plain(Image.fromarray(GREY > 120)), like((GREYS > 120) * 255))
frames("black and white bmp", plain(Image.fromarray(GREY > 120), "bmp"), like((GREYS > 120) * 255))
frames("grey jpeg", plain(GREY, "jpg", quality=95), like(GREYS, error=2))
frames("CMYK jpeg", plain(Image.fromarray(COLOUR).convert("CMYK"), "jpg", quality=97), like(COLOUR, error=3))
frames("progressive jpeg", plain(COLOUR, "jpg", quality=97, progressive=True), like(COLOUR, error=3))
frames("animated webp", plain(COLOUR, "webp", save_all=True, append_images=[Image.fromarray(picture(1))], lossless=True),
       like(COLOUR))
frames("animated png", plain(COLOUR, save_all=True, append_images=[Image.fromarray(picture(1))]), like(COLOUR))
frames("jpeg called png", {"0.png": plain(COLOUR, "jpg", quality=97)["0.jpg"]}, like(COLOUR, error=3))
frames("gif called png", {"0.png": encoded(Image.fromarray(COLOUR).quantize(200), "gif")}, like(COLOUR, error=4))


def upside_down(folder: Path) -> None:
    data = bytearray(encoded(Image.fromarray(COLOUR[::-1]), "bmp"))
    data[22:26] = struct.pack("<i", -48)  # a negative height: rows from the top
    (folder / "0.bmp").write_bytes(data)


frames("bmp from the top", upside_down, like(COLOUR))
for orientation in range(1, 9):
    tag = Image.Exif()
    tag[0x0112] = orientation
    turned = Image.fromarray(COLOUR)
    turned.getexif()[0x0112] = orientation
    turned = np.array(ImageOps.exif_transpose(turned))
    for kind, options in (("jpg", {"quality": 97}), ("png", {}), ("webp", {"lossless": True})):
        frames(f"EXIF orientation {orientation} in {kind}", plain(COLOUR, kind, exif=tag, **options), like(turned, error=3))
frames("broken EXIF data", plain(COLOUR, "jpg", quality=97, exif=b"Exif\0\0no exif data"), like(COLOUR, error=3))

# sizes and numbers
frames("1 x 1", plain(COLOUR[:1, :1]), like(COLOUR[:1, :1]))
frames("8K", lambda folder: cv2.imwrite(str(folder / "0.jpg"), picture(0, 4320, 7680)) and None,
       lambda frames: frames[0].shape == (4320, 7680, 3), slow=True)
frames("one frame", plain(COLOUR), like(COLOUR))
frames("frames that change size", {**plain(COLOUR), "1.png": plain(picture(1, 32, 40))["0.png"]},
       r"1\.png is 40x32 .*64x48.*one size")
frames("gaps in numbering", {f"f{n}.png": plain(picture(n))["0.png"] for n in (1, 2, 9, 10, 100)},
       like(*(picture(n) for n in (1, 2, 9, 10, 100))))
frames("two frames of one name", {**plain(COLOUR), **plain(COLOUR, "jpg")}, "2 frames are called '0'")
frames("no frames", {"notes.txt": b"none"}, r"no frames in this folder.*\.jpg")
frames("hidden files and a folder called 1.png", {**plain(COLOUR), "._0.png": b"x", "1.png/x": b"x"}, like(COLOUR))

# names
for name in ("with space", "ünï 视频", "new\nline", "-dash", "100%d", "it's", 'a"b', "x[1]*?", "a:b", "x.mp4"):
    frames(f"folder and frame called {name!r}", {f"{name}/{name}.png": plain(COLOUR)["0.png"]}, like(COLOUR),
           lambda folder, name=name: read_all(folder / name))
    frames(f"nothing called {name!r}", {}, "no such file or folder", lambda folder, name=name: read_all(folder / name))
frames("a name that is too long", {}, "file name too long", lambda folder: read_all(folder / ("x" * 300)))
frames("a name with a zero byte", {}, "no such file", lambda folder: read_all(folder / "a\0b"))

# broken pictures
for kind in ("jpg", "png", "bmp", "webp"):
    whole = plain(COLOUR, kind)[f"0.{kind}"]
    for length in (0, 4, 30, len(whole) // 2, len(whole) - 1):
        frames(f"{kind} cut to {length} bytes", {f"0.{kind}": whole[:length]}, rf"0\.{kind}: unreadable frame.*replace")
        frames(f"{kind} cut to {length} bytes, the second frame", {f"0.{kind}": whole, f"1.{kind}": whole[:length]},
               rf"1\.{kind}: unreadable frame.*replace", lambda folder: list(open_video(folder).frames()))
frames("text called png", {"0.png": b"text"}, r"0\.png: unreadable frame \(cannot identify")
noise = bytearray(plain(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8))["0.png"])
noise[len(noise) // 2] ^= 255
frames("a flipped byte in a png", {"0.png": bytes(noise)}, r"0\.png: unreadable frame")
bomb = bytearray(plain(np.zeros((8, 8), np.uint8))["0.png"])
bomb[16:24] = struct.pack(">II", 100_000, 100_000)
bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
frames("a png that says it has 10^10 pixels", {"0.png": bytes(bomb)}, r"0\.png: unreadable frame.*exceeds")


# what the file system does
frames("a link to nothing", lambda folder: (folder / "0.png").symlink_to("nothing"), r"0\.png: unreadable frame \(No such file")
frames("a link to itself", lambda folder: (folder / "0.png").symlink_to("0.png"), r"0\.png: unreadable frame \(Too many levels")
frames("a pipe, which would never end", lambda folder: os.mkfifo(folder / "0.png"), "no frames in this folder")


def forbidden(folder: Path, what: str) -> Any:
    (folder / "v").mkdir()
    (folder / "v" / "0.png").write_bytes(plain(COLOUR)["0.png"])
    folder.chmod(0o755)
    (folder / what).chmod(0)
    try:
        return as_nobody(lambda: read_all(folder / "v"))
    finally:
        (folder / what).chmod(0o755)


frames("a frame without permission", {}, "Permission denied", lambda folder: forbidden(folder, "v/0.png"))
frames("a folder without permission", {}, "v.*permission denied", lambda folder: forbidden(folder, "v"))


def vanished(folder: Path) -> Any:
    video = open_video(folder)
    (folder / "1.png").unlink()
    return list(video.frames())


frames("a frame that vanishes after opening", {f"{n}.png": plain(COLOUR)["0.png"] for n in range(3)},
       r"1\.png: unreadable frame \(No such file", vanished)
