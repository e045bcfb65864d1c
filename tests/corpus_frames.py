"""Broken and odd folders of frames, for `open_video`."""

import io
import os
import re
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps

from dulvos.videos import Video, open_video
from tests.corpus import TARGETS, Expected, Target, add, put


def picture(seed: int = 0, height: int = 48, width: int = 64) -> np.ndarray:
    """A smooth (H, W, 3) uint8 picture, which compression hardly changes."""
    coarse = np.random.default_rng(seed).integers(30, 226, (3, 4, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)


def read_all(path: str | os.PathLike[str]) -> list[np.ndarray]:
    """Every frame, read in both ways, which must agree."""
    video = open_video(path)
    video.verify()
    frames = list(video.frames())
    for index in (0, len(video) - 1, 0):
        assert np.array_equal(video.read(index), frames[index])
    assert len(frames) == len(video)
    assert all(frame.shape == (*video.size, 3) and frame.dtype == np.uint8 for frame in frames)
    return frames


def frames_of(video: Video) -> list[np.ndarray]:
    return list(video.frames())


def like(*expected: np.ndarray, error: float = 0) -> Callable[[list[np.ndarray]], bool]:
    """A check for these frames, up to a mean difference of `error`."""
    return lambda frames: len(frames) == len(expected) and all(
        a.shape == b.shape and np.abs(a.astype(float) - b).mean() <= error for a, b in zip(frames, expected))


def forbidden(path: Path, inside: str = "") -> Any:
    """Read a path without permission for it, or for a file in it.

    Permissions do not bind root, so root acts as the user "nobody", in a folder that this user may enter.
    """
    root = os.getuid() == 0
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        moved = Path(shutil.move(path, folder))
        (moved / inside).chmod(0)
        try:
            os.seteuid(65534 if root else os.getuid())
            return read_all(moved)
        finally:
            os.seteuid(0 if root else os.getuid())
            (moved / inside).chmod(0o755)


def encoded(image: np.ndarray | Image.Image, kind: str = "png", **options: Any) -> bytes:
    """An image file in memory."""
    stream = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(stream, kind.replace("jpg", "jpeg"), **options)
    return stream.getvalue()


def plain(image: Any, kind: str = "png", **options: Any) -> dict[str, bytes]:
    """One frame in a folder."""
    return {f"0.{kind}": encoded(image, kind, **options)}


def deep(values: np.ndarray) -> dict[str, bytes]:
    return {"0.png": cv2.imencode(".png", values.astype(np.uint16) * 257)[1].tobytes()}


def frames(name: str, files: dict[str, bytes], expect: Expected, read: Callable[[Path], Any] = read_all,
           **more: Any) -> None:
    """A case of a folder of frames: {file: bytes}."""
    def act(folder: Path) -> Any:
        for file, data in files.items():
            put(folder / file, data)
        return read(folder)
    add("frames", name, expect, act, **more)


COLOUR, GREY, PNG = picture(), picture()[..., 0], encoded(picture())
GREYS, IMAGE = np.repeat(GREY[..., None], 3, 2), Image.fromarray(COLOUR)
ANIMATED = {"save_all": True, "append_images": [Image.fromarray(picture(1))]}
HALF = np.where(np.arange(64) < 32, 255, 0).astype(np.uint8)[None].repeat(48, 0)
HOLED, BLACK_AND_WHITE = np.dstack([COLOUR, HALF]), Image.fromarray(GREY > 120)  # half transparent; 1 bit
EXIF, MAKER = b"Exif\0\0no exif data", Image.Exif()
MAKER[0x010F] = "maker"
XMP = b'<x xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'

# kinds of pictures: all become 8-bit RGB without alpha; only the first picture of an animation counts
for name, files, expected, error in (
        ("grey", plain(GREY), GREYS, 0), ("16-bit grey is scaled, not clipped", deep(GREY), GREYS, 0),
        ("16-bit colour", deep(COLOUR[..., ::-1]), COLOUR, 0),
        ("16-bit colour with alpha", deep(np.dstack([COLOUR[..., ::-1], GREY])), COLOUR, 0),
        ("transparent pixels keep their colour", plain(HOLED), COLOUR, 0),
        ("transparent webp", plain(HOLED, "webp", lossless=True, exact=True), COLOUR, 0),
        ("transparent bmp", plain(HOLED, "bmp"), COLOUR, 0),
        ("grey with alpha", plain(np.dstack([GREY, HALF])), GREYS, 0),
        ("palette", plain(IMAGE.quantize(200)), COLOUR, 4),
        ("palette with a transparent colour", plain(IMAGE.quantize(200), transparency=3), COLOUR, 4),
        ("black and white", plain(BLACK_AND_WHITE), (GREYS > 120) * 255, 0),
        ("black and white bmp", plain(BLACK_AND_WHITE, "bmp"), (GREYS > 120) * 255, 0),
        ("grey jpeg", plain(GREY, "jpg", quality=95), GREYS, 2),
        ("CMYK jpeg", plain(IMAGE.convert("CMYK"), "jpg", quality=97), COLOUR, 3),
        ("progressive jpeg", plain(COLOUR, "jpg", quality=97, progressive=True), COLOUR, 3),
        ("animated webp", plain(IMAGE, "webp", **ANIMATED, lossless=True), COLOUR, 0),
        ("animated png", plain(IMAGE, **ANIMATED), COLOUR, 0),
        ("jpeg called png", {"0.png": encoded(COLOUR, "jpg", quality=97)}, COLOUR, 3),
        ("gif called png", {"0.png": encoded(IMAGE.quantize(200), "gif")}, COLOUR, 4),
        ("an orientation in XMP", plain(COLOUR, "jpg", quality=97, xmp=XMP, exif=MAKER), COLOUR, 3),
        ("broken EXIF data", plain(COLOUR, "jpg", quality=97, exif=EXIF), COLOUR, 3),
        ("bytes after a jpeg", {"0.jpg": encoded(COLOUR, "jpg", quality=97) + b"a note"}, COLOUR, 3),
        ("1 x 1", plain(COLOUR[:1, :1]), COLOUR[:1, :1], 0), ("one frame", plain(COLOUR), COLOUR, 0),
        ("hidden and other files, a folder called 1.png",
         {"0.png": PNG, "._0.png": b"x", "Thumbs.db": b"x", "1.png/x": b"x"}, COLOUR, 0)):
    frames(name, files, like(expected, error=error))
bmp = bytearray(encoded(COLOUR[::-1], "bmp"))
bmp[22:26] = struct.pack("<i", -48)  # a negative height: rows from the top
frames("bmp from the top", {"0.bmp": bytes(bmp)}, like(COLOUR))
for orientation in range(1, 9):
    tag, turned = Image.Exif(), Image.fromarray(COLOUR)
    tag[0x0112] = turned.getexif()[0x0112] = orientation
    turned = np.array(ImageOps.exif_transpose(turned))
    for kind, options in (("jpg", {"quality": 97}), ("png", {}), ("webp", {"lossless": True})):
        frames(f"EXIF orientation {orientation} in {kind}", plain(COLOUR, kind, exif=tag, **options),
               like(turned, error=3))

# sizes and numbers
frames("8K", plain(picture(0, 4320, 7680), "jpg"), lambda found: found[0].shape == (4320, 7680, 3), slow=True)
frames("frames that change size", {"0.png": PNG, "1.png": encoded(picture(1, 32, 40))},
       r"1\.png is 40x32 .*64x48.*one size")
frames("gaps in numbering", {f"f{n}.PNG": encoded(picture(n)) for n in (1, 2, 9, 10, 100)},
       like(*(picture(n) for n in (1, 2, 9, 10, 100))))
for names in (("3.png", "3.jpg"), ("3.png", "03.png"), ("3.png", "3.0.png"), ("mask.png",), ("3_mask.png",),
              ("mask 3.png", "mask 2.png"), ("1 (1).png",), ("frame1.png",)):
    frames(f"{', '.join(names)} among numbered frames",
           {f"{n}.jpg": encoded(COLOUR, "jpg") for n in (1, 2, 3)} | dict.fromkeys(names, PNG),
           rf"({'|'.join(map(re.escape, names))})( and .*jpg are no| are no)")
frames("names without numbers", {"a.png": PNG, "b.png": PNG}, "a.png and b.png are no")
for names in (("0.png", "9.png", "10.png"), ("00005.jpg", "00010.jpg"), ("f_01.png", "f_02.png"),
              ("img9.jpg", "img12.jpg"), ("a_g01_c02_000009.jpg", "a_g01_c02_000010.jpg"),
              ("1403636579763555583.png", "1403636579763555584.png"), ("t0.25.png", "t0.5.png", "t10.1.png"),
              ("1305031102.175304.png", "1305031102.211214.png"), ("s2 1.jpg", "s10 0.jpg"),
              ("0000000000 (1).JPEG", "0000000000 (2).JPEG"), ("0.5.png", "1.png", "1.5.png")):
    frames(f"named {', '.join(names)}", {name: encoded(picture(n), name.split(".")[-1]) for n, name
           in enumerate(names)}, like(*(picture(n) for n in range(len(names))), error=6))
frames("given masks are no frames", {"1.jpg": PNG, "mask.png": PNG, "1.png": PNG, "sub/2.png": PNG},
       lambda video: video.files == ("1.jpg",),
       lambda folder: open_video(folder, [folder / "mask.png", f"1={folder}/1.png", folder / "sub"]))
frames("no frames", {"notes.txt": b"none"}, r"no frames in this folder.*\.jpg")

# names
for name in ("with space", "ünï 视频", "new\nline", "-dash", "100%d", "it's", 'a"b', "x[1]*?", "a:b",
             "x.mp4"):
    frames(f"folder and frame called {name!r}", {f"{name}/{name}.png": PNG}, like(COLOUR),
           lambda folder, name=name: read_all(folder / name))
for name, words in (("new\nline", "no such file or folder"), ("x.mp4", "no such file or folder"),
                    ("x" * 300, "file name too long"), ("a\0b", "no such file")):
    frames(f"nothing called {name[:9]!r}", {}, words, lambda folder, name=name: read_all(folder / name))

# broken pictures
for kind in ("jpg", "png", "bmp", "webp"):
    whole = encoded(COLOUR, kind)
    for length in (0, 4, 30, len(whole) // 2, len(whole) - 1):
        said = f"{kind} cut to {length} bytes"
        frames(said, {f"0.{kind}": whole[:length]}, rf"0\.{kind}: unreadable frame.*replace")
        frames(f"{said}, the second frame", {f"0.{kind}": whole, f"1.{kind}": whole[:length]},
               rf"1\.{kind}: unreadable frame.*replace", lambda folder: frames_of(open_video(folder)))
frames("text called png", {"0.png": b"text"}, r"0\.png: unreadable frame \(cannot identify")
noise = bytearray(encoded(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)))
noise[len(noise) // 2] ^= 255
frames("a flipped byte in a png", {"0.png": bytes(noise)}, r"0\.png: unreadable frame")
bomb = bytearray(encoded(np.zeros((8, 8), np.uint8)))
bomb[16:24] = struct.pack(">II", 100_000, 100_000)
bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
frames("a png that says it has 10^10 pixels", {"0.png": bytes(bomb)}, r"0\.png: unreadable frame.*exceeds")


# the file system
def linked(folder: Path, target: str) -> Any:
    (folder / "0.png").symlink_to(target)
    return read_all(folder)


def vanished(folder: Path) -> Any:
    video = open_video(folder)
    (folder / "1.png").unlink()
    return frames_of(video)


add("frames", "a link to nothing", r"0\.png: unreadable frame \(no such file", linked, "nothing")
add("frames", "a link to itself", r"0\.png: unreadable frame \(too many levels", linked, "0.png")
for name, pipe in (("a pipe, which would never end", "0.png"), ("a link to a pipe", "pipe")):
    add("frames", name, "no frames in this folder", lambda folder, pipe: read_all(
        os.mkfifo(folder / pipe) or pipe == "pipe" and os.symlink(pipe, folder / "0.png") or folder), pipe)
for name, inside in (("frame", "0.png"), ("folder", "")):
    frames(f"a {name} without permission", {"v/0.png": PNG}, f"v/?{inside}.*permission denied",
           lambda folder, inside=inside: forbidden(folder / "v", inside))
frames("a frame that vanishes after opening", {f"{n}.png": PNG for n in range(3)},
       r"1\.png: unreadable frame \(no such file", vanished)

for kind, options in (("jpg", {"quality": 95}), ("png", {}), ("bmp", {}), ("webp", {})):
    TARGETS.append(Target(kind, lambda folder, kind=kind, options=options: put(
        folder / f"0.{kind}", encoded(COLOUR, kind, **options)),
        lambda folder: np.array(read_all(folder)).tolist(), kind == "png"))
