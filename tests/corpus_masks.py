"""Broken and odd masks, folders in the layouts of DAVIS and YouTube-VOS, and words of the segment command."""

import contextlib
import io
import json
import os
import shutil
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, PngImagePlugin

from dulvos import datasets, masks
from dulvos.__main__ import main
from dulvos.errors import InputError
from dulvos.masks import PALETTE, write_mask
from dulvos.study.collections import open_collection
from dulvos.videos import open_video
from tests import miniature
from tests.corpus import TARGETS, Expected, Target, add, put
from tests.corpus_frames import encoded, picture

SIZE, LENGTH = (48, 64), 4


def make_clip(folder: Path, length: int = LENGTH) -> Path:
    """A folder `clip` of smooth frames."""
    for index in range(length):
        put(folder / "clip" / f"{index:05d}.png", encoded(picture(index)))
    return folder / "clip"


def blocks(*ids: int, size: tuple[int, int] = SIZE, kind: Any = np.uint8) -> np.ndarray:
    mask = np.zeros(size, kind)
    for place, name in enumerate(ids):
        mask[5:40, 3 + 12 * place: 13 + 12 * place] = name
    return mask


def command(*arguments: Any) -> str:
    """What `python -m dulvos` prints; an error that it ends with is raised as InputError."""
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code
    lines = error.getvalue().splitlines()
    if status == 2:  # unknown commands and options are named in a box
        raise InputError(lines[-1].partition("error: ")[2] or " ".join(" ".join(lines).split()))
    assert status == 0, f"status {status}: {lines}"
    return out.getvalue()


def give(folder: Path, data: bytes, kind: str, *threshold: int) -> dict[int, np.ndarray]:
    path = put(folder / f"mask.{kind}", data)
    found = masks.given_masks(open_video(make_clip(folder)), [path], *threshold)
    assert np.array_equal(masks.read_mask(path, *threshold), found[0])
    return found


def noted(folder: Path, data: bytes) -> tuple[np.ndarray, list[str]]:
    """A first mask, and the warnings of reading it, which `give` does twice."""
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        return give(folder, data, "png")[0], [str(note.message) for note in notes]


def mask(name: str, data: np.ndarray | Image.Image | bytes, expect: str | np.ndarray, kind: str = "png",
         **options: Any) -> None:
    """A case of a first mask: these ids are expected, or the words of an error."""
    data = data if isinstance(data, bytes) else encoded(data, kind, **options)
    add("masks", name, expect if isinstance(expect, str) else
        lambda found: list(found) == [0] and found[0].dtype == np.uint8 and np.array_equal(found[0], expect),
        give, data, kind)


def paletted(ids: np.ndarray, colours: bytes) -> Image.Image:
    image = Image.fromarray(ids)
    image.putpalette(colours)
    return image


one, three, many = blocks(1), blocks(1, 4, 9), np.arange(48 * 64).reshape(SIZE)
coloured, turned = PALETTE[three], Image.Exif()
turned[0x0112] = 6
soft, soft200 = (cv2.GaussianBlur(blocks(grey), (0, 0), 0.8) for grey in (255, 200))
tiny = blocks(1, 2, 3)
for place in range(16):
    tiny[42, 4 * place: 4 * place + 2], tiny[43, 16 * place: 16 * place + 2] = 10 + place, 30 + place
disc = cv2.circle(blocks(), (30, 20), 14, 200, -1, cv2.LINE_AA)
once_jpeg = {(grey, quality): cv2.imdecode(cv2.imencode(".jpg", blocks(grey), [1, quality])[1], 0)
             for grey in (90, 200, 255) for quality in (75, 95, 99)
             if (grey, quality) != (200, 99)}  # it has too few greys to be recognised
text, profile = PngImagePlugin.PngInfo(), np.random.default_rng(0).bytes(3 << 20)
text.add_text("comment", "x" * (3 << 20), zip=True)
for name, data, expect in (
        ("ids 1, 4, 9 by the palette", paletted(three, PALETTE.tobytes()), three),
        ("ids 1, 4, 9 in grey", three, three), ("ids 1, 4, 9 in 16 bits", three.astype(np.uint16), three),
        ("a palette of one's own gives its indices", paletted(three, b"\0\0\0\xff" * 192), three),
        ("id 255 alone is object 1", blocks(255), one), ("id 255 beside others is void", blocks(1, 255), one),
        ("all 255", blocks() + 255, blocks() + 1), ("no background", blocks() + 1, blocks() + 1),
        ("black and white", blocks(255) > 0, one), ("64 objects", (many % 64).astype(np.uint8), many % 64),
        ("254 objects", (many % 255).astype(np.uint8), many % 255),
        ("RGB in the palette's colours", coloured, three), ("RGB in grey", np.dstack([three] * 3), three),
        ("RGB in the palette's colours with void", PALETTE[blocks(1, 255)], one),
        ("RGB of 0 and 255", np.dstack([blocks(255)] * 3), one),
        ("RGBA in the palette's colours", np.dstack([coloured, blocks() + 255]), three),
        ("RGBA, all transparent", np.dstack([coloured, blocks()]), three),
        ("RGBA of 0 and 255", np.dstack([blocks(255)] * 3 + [blocks() + 255]), one),
        ("grey with alpha", np.dstack([three, blocks() + 255]), three),
        ("RGB in other colours", picture(), r"mask\.png: .*#\w{6}"),
        ("RGB red", np.dstack([blocks(255), blocks(), blocks()]), "#ff0000"),
        ("the object in alpha alone", np.dstack([blocks()] * 3 + [blocks(255)]), r"no object .*mask\.png"),
        ("an object in alpha, white everywhere", np.dstack([blocks() + 255] * 3 + [blocks(255)]),
         r"mask\.png: one colour .*alpha"),
        ("soft edges", soft, r"mask\.png: \d+ greys .*--threshold=127 .*without soft edges"),
        ("soft edges in RGB", np.dstack([soft] * 3), "without soft edges"),
        ("soft edges of grey 200", soft200, "--threshold=100 .*without soft edges"),
        ("soft edges of two greys", cv2.GaussianBlur(blocks(200, 100), (0, 0), 0.8), "without soft edges"),
        ("soft edges, by a palette", Image.fromarray(np.dstack([soft] * 3)).quantize(), "without soft edges"),
        ("a smooth disc of grey 200", disc, "without soft edges"),
        *((f"grey {grey}, once a JPEG of quality {quality}", once_jpeg[grey, quality], "without soft edges")
          for grey, quality in once_jpeg),
        ("tiny objects, some of which touch", tiny, tiny),
        ("objects 128 and 255 in grey", blocks(128, 255, 255), r"1 greys besides"),
        ("16 bits beyond 255", blocks(1, 300, kind=np.uint16), r"mask\.png: .*300.*ids of 0 to 255"),
        ("16 bits, 0 and 65535", blocks(65535, kind=np.uint16), "65535.*ids of 0 to 255"),
        ("empty", blocks(), r"no object .*mask\.png.*ids from 1 to 254"),
        ("another size", blocks(1, size=(50, 60)), r"mask\.png is 60x50 .*64x48.*one size"),
        ("1 x 1", blocks()[:1, :1] + 1, r"1x1 .*64x48"),
        ("text", b"text", "unreadable mask .*expected a palette or grey PNG"),
        ("no bytes", b"", "unreadable mask .*expected a palette or grey PNG")):
    mask(name, data, expect)
mask("EXIF rotation", np.rot90(three), three, exif=turned)
mask("text of 3 MB", three, three, pnginfo=text)
mask("a colour profile of 3 MB", three, three, icc_profile=profile)
for name, data, threshold, expect in (("soft edges", soft, 127, one), ("grey 200", soft200, 100, one),
                                      ("no such grey", soft200, 201, blocks()),
                                      ("white", blocks() + 255, 128, blocks() + 1)):
    add("masks", f"a threshold: {name}", "no object" if not expect.any() else
        lambda found, expect=expect: np.array_equal(found[0], expect), give, encoded(data), "png", threshold)
for name, data, threshold, words in (
        ("16 bits", (many * 20).astype(np.uint16), 128, "61420"),
        ("alpha", np.dstack([blocks() + 255] * 3 + [blocks(255)]), 128, "alpha"),
        *((repr(threshold), one, threshold, "threshold") for threshold in (-1, 256, 1.5, "a"))):
    add("masks", f"a threshold: {name}", words, give, encoded(data), "png", threshold)
WHITE, BLACK, RED = b"\xff\xff\xff", b"\0\0\0", b"\xff\0\0"
for name, data, expect, note in (
        ("black, white, red", paletted(blocks(1, 1, 2), BLACK + WHITE + RED), blocks(1, 1, 2), ""),
        ("white, black", paletted(1 - one, WHITE + BLACK), one, "black is taken as background"),
        ("black, white", paletted(one, BLACK + WHITE), one, ""),
        ("white, red, black", paletted(np.uint8([2, 1, 0])[blocks(1, 2)], WHITE + RED + BLACK),
         blocks(1, 2), "black is taken as background"),
        ("no background", one * 0 + 1, one * 0 + 1, "no pixel is background"),
        ("an object everywhere but in one pixel", (many > 0).astype(np.uint8), many > 0, "")):
    add("masks", f"a note: {name}", lambda found, expect=expect, note=note: (
        np.array_equal(found[0], expect) and [note in line and "mask.png" in line for line in found[1]]
        == [True] * 2 * bool(note)), noted, encoded(data))
mask("a palette without black", paletted(one, WHITE + RED), r"mask\.png: shows no black, .*background")
for name, data, kind in (("jpeg, which blurs ids", blocks(1, 4, 9), "jpg"),
                         ("jpeg of 0 and 255", blocks(255), "jpg"),
                         ("gif, which renumbers ids", blocks(1, 4, 9), "gif"),
                         ("tiff of halves", blocks(1, 2).astype(np.float32) / 2, "tiff")):
    words = rf"mask\.{kind}: unreadable mask \(a {kind[:2]}\w* file\); expected a palette or grey PNG"
    mask(name, data, words, kind)
mask("jpeg called png", encoded(blocks(255), "jpg"), r"mask\.png: unreadable mask \(a JPEG file\)")
whole = encoded(np.random.default_rng(0).integers(0, 9, SIZE, np.uint8))
for place in range(-120, -40, 5):  # the last rows, whose checksum Pillow does not compare by itself
    flipped = whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1:]
    mask(f"a flipped byte, {-place} from the end", flipped, "unreadable mask")


def given(folder: Path, items: list[str]) -> dict[int, np.ndarray]:
    """Given masks, named from a folder that holds good.png and some that are no masks."""
    write_mask(folder / "good.png", blocks(1, 2))
    write_mask(folder / "stray/good.png", blocks(1, 2))
    (folder / "none").mkdir()
    (folder / "link.png").symlink_to("link.png")
    video = open_video(make_clip(folder))
    with contextlib.chdir(folder):
        return masks.given_masks(video, items)


for name, items, expect in (
        ("no mask", [], "no object .*expected a PNG"),
        ("a mask that is not there", ["absent.png"], r"absent\.png: unreadable mask \(no such file"),
        ("a later frame's mask", ["good.png", "2=good.png"], lambda found: list(found) == [0, 2]),
        ("a frame that is not there", ["9=good.png"], r"good\.png: given for frame 9; .*0 to 3"),
        ("two masks of a frame", ["good.png", "0=good.png"], "given for frame 0; give one"),
        ("a number of 5000 digits", ["9" * 5000 + "=x.png"], "unreadable mask|given for frame"),
        ("a name that is too long", ["a" * 300], r"unreadable mask \(file name too long"),
        ("an empty folder", ["none"], r"no masks in this folder; expected 00000\.png"),
        ("a folder with a stray mask", ["stray"], r"good\.png: no frame"),
        ("a link to itself", ["link.png"], r"too many levels")):
    add("masks", name, expect, given, items)


def segment(folder: Path, options: list, mask: str = "mask.png", out: str = "out") -> str:
    """`python -m dulvos segment clip mask.png out`, with another mask or folder, and with options."""
    make_clip(folder)
    write_mask(folder / "mask.png", blocks(1, 4, 9))
    return command("segment", *(folder / place for place in ("clip", mask, out)), "--checkpoint", "random",
                   "--device", "cpu", "--no-mp4", *options)


COMMAND = "segment command"
add(COMMAND, "as it should be", lambda said: "4 frames" in said, segment, [])
for option, value, words in (  # test_main.py tries others
        ("context", 10**15, "GB with a context of"), ("context", "9" * 30, "context must be a finite"),
        ("topk", "2.5", "--topk: invalid"), ("shorter-side", "1e3", "--shorter-side: invalid"),
        ("tau", "nan", "tau must be a finite"), ("device", "", "device"),
        ("checkpoint", "x" * 300, "no such checkpoint"), ("checkpoint", "", "no such checkpoint"),
        ("frobnicate", "1", "unrecognized .*--frobnicate")):
    add(COMMAND, f"--{option} {str(value)[:20]}", words, segment, [f"--{option}", value])


def segment_again(folder: Path, *others: str, options: tuple[str, ...] = (), runs: int = 1) -> list[str]:
    """Files that differ from a run into an empty folder, when `out` held these others before."""
    segment(folder, [], out="first")
    for name in others:
        put(folder / "out" / name, "of another")
    for _ in range(runs):
        segment(folder, list(options))
    names = {file.name for place in ("first", "out") for file in (folder / place).iterdir()}
    return sorted(name for name in names if name not in os.listdir(folder / "first")
                  or (folder / "first" / name).read_bytes() != (folder / "out" / name).read_bytes())


add(COMMAND, "twice, beside other files", ["00009.png", "notes"].__eq__,
    partial(segment_again, runs=2), "00009.png", "notes")
for name in ("00002.png", "overlay.mp4"):
    add(COMMAND, f"onto {name} of another", rf"out/{name}: .*would replace .*--overwrite",
        segment_again, name)
    add(COMMAND, f"--overwrite onto {name} of another", lambda changed: not changed,
        partial(segment_again, options=("--overwrite",)), name)
add(COMMAND, "soft edges", "--threshold=127", lambda folder: segment(
    folder, [], mask=put(folder / "soft.png", encoded(soft)).name))
add(COMMAND, "--threshold", lambda said: "objects 1\n" in said, lambda folder: segment(
    folder, ["--threshold", "100"], mask=put(folder / "soft.png", encoded(soft200)).name))


def truth_again(folder: Path, count: int) -> str:
    for index in range(count):
        write_mask(folder / "given" / f"{index:05d}.png", blocks(1))
    return segment(folder, [], mask="given")


add(COMMAND, "a mask for every frame", "given: masks are given for all 4 frames", truth_again, LENGTH)
add(COMMAND, "a mask for every frame but one", lambda said: "4 frames" in said, truth_again, LENGTH - 1)


def write_davis(root: Path) -> Path:
    """Two sequences of three frames with two objects."""
    video = [picture(index) for index in range(3)], [blocks(1, 2)] * 3
    return miniature.write_davis(root, {"a": video, "b": video})


def look(root: Path, **options: Any) -> list[tuple[str, int]]:
    return [(s.name, int(s.truth().max())) for s in datasets.load_davis(root, **options).sequences]


def davis(name: str, expect: Expected, spoil: Callable[[Path], Any] = lambda root: None,
          read: Callable[[Path], Any] = look) -> None:
    """A case of a spoilt folder in DAVIS's layout; errors that only evaluation finds are in its tests."""
    add("DAVIS folders", name, expect, lambda folder: (write_davis(folder), spoil(folder), read(folder))[-1])


LIST, MASK, NAME = "ImageSets/2017/val.txt", "Annotations/480p/a/00000.png", "benchmark.json"
davis("as it should be", lambda found: found == [("a", 2), ("b", 2)])
for name, text, expect in (
        ("empty", b"", "an empty list"), ("of what is not there", b"c\n", "480p/c: missing on disk"),
        ("that leads out", b"../../a\n", "cannot name a sequence"),
        ("of ..", b"..\n", "cannot name a sequence"), ("of /etc", b"/etc\n", "cannot name a sequence"),
        ("of a long name", b"a" * 400, "missing on disk"), ("with a zero byte", b"a\0b\n", "missing on disk"),
        ("that is no text", bytes(range(256)), "not a list of sequences")):
    davis(f"a list {name}", expect, lambda root, text=text: put(root / LIST, text))
davis("no annotations", "480p/a: missing on disk", lambda root: shutil.rmtree(root / "Annotations"))
davis("no first annotation", r"00000\.png: no such annotation", lambda root: (root / MASK).unlink())
davis("an annotation without a frame", ": no frame of",
      lambda root: (root / "JPEGImages/480p/a/00001.jpg").unlink())
davis("an annotation of another size", "is 10x10 .*64x48",
      lambda root: write_mask(root / MASK, blocks(1, size=(10, 10))))
davis("a broken annotation", r"00000\.png: unreadable mask", lambda root: put(root / MASK, b""))
davis("another year", "year 2018", read=lambda root: look(root, year=2018))
davis("another split", "no split 'test'", read=lambda root: look(root, split="test"))
davis("a file for a folder", "no split 'val'", read=lambda root: look(root / LIST))
for name, text in (("of a list", "[]"), ("nested 10^5 deep", "[" * 100_000)):
    davis(f"benchmark.json {name}", 'benchmark.json: .*expected {"name"',
          lambda root, text=text: put(root / NAME, text))


def youtube(folder: Path, meta: Any) -> list:
    clip = make_clip(folder)
    shutil.copytree(clip, folder / "valid/JPEGImages/a")
    write_mask(folder / "valid/Annotations/a/00000.png", blocks(1, 2))
    put(folder / "valid/meta.json", json.dumps(meta))
    return [(s.name, s.objects, list(s.first_masks())) for s in datasets.load_youtube_vos(folder).sequences]


for name, meta, expect in (
        ("as it should be", {"videos": {"a": {"objects": {"1": {}, "2": {}}}}},
         lambda found: found == [("a", (1, 2), [0])]),
        *((f"objects: {objects!r}", {"videos": {"a": {"objects": objects}}}, words) for objects, words in (
            ("12", "meta.json"), ([1], "meta.json"), ({"x": 1}, "meta.json"),
            ({"300": 1}, "no annotation holds object 300"), ({"-1": 1}, "no annotation holds object -1"))),
        ("no videos", {"videos": {}}, "no sequences"), ("a list", [], "meta.json: .*expected"),
        ("a name that leads out", {"videos": {"../a": {"objects": {}}}}, "cannot name a sequence")):
    add("YouTube-VOS folders", name, expect, youtube, meta)


# files to be damaged at random
def read_mask(folder: Path) -> list[list[int]]:
    ids = masks.read_mask(folder / "mask.png")
    assert ids.dtype == np.uint8 and ids.max() < 255
    return ids.tolist()


def index(folder: Path) -> Path:
    found = open_collection("", folder / "videos", folder / "index")
    assert [(video.name, len(video), video.size) for video in found.videos] == [("clip", 4, SIZE)]
    return next((folder / "index").iterdir())


TARGETS += [
    Target("mask", lambda folder: put(folder / "mask.png", whole), read_mask, True),
    Target("list of sequences", lambda folder: write_davis(folder) / LIST, look),
    Target("benchmark.json", lambda folder: put(write_davis(folder) / NAME, '{"name": "own"}'), look),
    Target("index", lambda folder: make_clip(folder / "videos") and index(folder), index)]
