"""Masks and folders in DAVIS's and YouTube-VOS's layouts, broken and odd, and `python -m dulvos segment` with them."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from dulvos import datasets, masks
from dulvos.__main__ import main
from dulvos.errors import InputError
from dulvos.inference import SegmentSettings
from dulvos.masks import PALETTE, write_mask
from dulvos.study.evaluation import evaluate
from dulvos.videos import open_video
from tests.corpus import Case
from tests.corpus_frames import encoded, picture

__all__ = ["CASES", "command", "make_clip", "write_davis"]

CASES: list[Case] = []
SIZE, LENGTH = (48, 64), 4


def make_clip(folder: Path, length: int = LENGTH) -> Path:
    """A folder `clip` of smooth frames."""
    (folder / "clip").mkdir(parents=True)
    for index in range(length):
        Image.fromarray(picture(index)).save(folder / "clip" / f"{index:05d}.png")
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
        except SystemExit as stop:  # words that are no command or option: a box that names them
            if stop.code == 2 and error.getvalue():
                raise InputError(" ".join(error.getvalue().split())) from None
            status = stop.code
    lines = error.getvalue().splitlines()
    if status == 2 and "error: " in lines[-1]:
        raise InputError(lines[-1].partition("error: ")[2])
    assert status == 0, f"status {status}: {lines}"
    return out.getvalue()


def mask(name: str, data: np.ndarray | Image.Image | bytes, expect: str | list[int] | dict, kind: str = "png",
         **options: Any) -> None:
    """A case of a first mask: the ids in it are expected, or the words of an error."""
    def act(folder: Path) -> Any:
        path = folder / f"mask.{'jpg' if kind == 'jpeg' else kind}"
        image = data if isinstance(data, (bytes, Image.Image)) else Image.fromarray(data)
        path.write_bytes(image if isinstance(image, bytes) else encoded(image, kind, **options))
        return masks.given_masks(open_video(make_clip(folder)), [path])
    check = expect if isinstance(expect, str) else lambda found: list(found) == [0] and np.unique(found[0]).tolist() == expect
    CASES.append(Case("masks", name, act, check))


def soften(ids: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(ids, (0, 0), 0.8)


palette = Image.fromarray(blocks(1, 4, 9))
palette.putpalette(PALETTE.tobytes())
own_palette = Image.fromarray(blocks(1, 2))
own_palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0] + [0] * 759)
turned = Image.Exif()
turned[0x0112] = 6
coloured = PALETTE[blocks(1, 4, 9)]
mask("ids 1, 4, 9 by the palette", palette, [0, 1, 4, 9])
mask("ids 1, 4, 9 in grey", blocks(1, 4, 9), [0, 1, 4, 9])
mask("ids 1, 4, 9 in 16 bits", blocks(1, 4, 9, kind=np.uint16), [0, 1, 4, 9])
mask("a palette of one's own gives its indices", own_palette, [0, 1, 2])
mask("id 255 alone is object 1", blocks(255), [0, 1])
mask("id 255 beside others is void", blocks(1, 255), [0, 1])
mask("all 255", np.full(SIZE, 255, np.uint8), [1])
mask("no background", np.ones(SIZE, np.uint8), [1])
mask("black and white", Image.fromarray(blocks(255) > 0), [0, 1])
mask("64 objects", np.tile(np.arange(64, dtype=np.uint8), (48, 1)), list(range(64)))
mask("254 objects", (np.arange(48 * 64) % 255).astype(np.uint8).reshape(SIZE), list(range(255)))
mask("RGB in the palette's colours", coloured, [0, 1, 4, 9])
mask("RGB in grey", np.dstack([blocks(1, 4, 9)] * 3), [0, 1, 4, 9])
mask("RGB of 0 and 255", np.dstack([blocks(255)] * 3), [0, 1])
mask("RGBA in the palette's colours", np.dstack([coloured, blocks() + 255]), [0, 1, 4, 9])
mask("RGBA, all transparent", np.dstack([coloured, blocks()]), [0, 1, 4, 9])
mask("grey with alpha", np.dstack([blocks(1, 2), blocks() + 255]), [0, 1, 2])
mask("EXIF rotation", np.rot90(blocks(1, 2)), [0, 1, 2], exif=turned)
mask("RGB in other colours", picture(), r"mask\.png: .*#\w{6}")
mask("RGB red", np.dstack([blocks(255), blocks(), blocks()]), "#ff0000")
mask("the object in alpha alone", np.dstack([blocks()] * 3 + [blocks(255)]), r"no object .*mask\.png")
mask("an object in alpha, white everywhere", np.dstack([blocks() + 255] * 3 + [blocks(255)]), r"mask\.png: one colour .*alpha")
mask("soft edges", soften(blocks(255)), r"mask\.png: mostly 255, but \d+ other greys .*without soft edges")
mask("soft edges in RGB", np.dstack([soften(blocks(255))] * 3), "without soft edges")
mask("objects 128 and 255 in grey", blocks(128, 255, 255), r"but 1 other greys")
mask("16 bits beyond 255", blocks(1, 300, kind=np.uint16), r"mask\.png: .*300.*ids of 0 to 255")
mask("16 bits, 0 and 65535", blocks(65535, kind=np.uint16), "65535.*ids of 0 to 255")
mask("empty", blocks(), r"no object .*mask\.png.*ids from 1 to 254")
mask("another size", blocks(1, size=(50, 60)), r"mask\.png is 60x50 .*64x48.*one size")
mask("1 x 1", blocks()[:1, :1] + 1, r"1x1 .*64x48")
mask("jpeg, which blurs ids", blocks(1, 4, 9), r"mask\.jpg: unreadable mask .*expected a palette or grey PNG", "jpeg")
mask("jpeg of 0 and 255", blocks(255), "expected a palette or grey PNG", "jpeg")
mask("gif, which renumbers ids", blocks(1, 4, 9), "expected a palette or grey PNG", "gif")
mask("tiff of halves", blocks(1, 2).astype(np.float32) / 2, "expected a palette or grey PNG", "tiff")
mask("text", b"text", "unreadable mask .*expected a palette or grey PNG")
mask("no bytes", b"", "unreadable mask .*expected a palette or grey PNG")
whole = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 9, SIZE, np.uint8)), "png")
for length in (5, 40, len(whole) // 2):
    mask(f"cut to {length} bytes", whole[:length], "unreadable mask")


for place in range(-120, -40, 5):  # the last rows, of which Pillow compares no checksum by itself
    flipped = bytearray(whole)
    flipped[place] ^= 255
    mask(f"a flipped byte, {-place} from the end", bytes(flipped), "unreadable mask")


def given(name: str, items: Callable[[Path], list], expect: str | Callable[[Any], bool]) -> None:
    """A case of what is given as masks, from a folder with good.png."""
    def act(folder: Path) -> Any:
        write_mask(folder / "good.png", blocks(1, 2))
        return masks.given_masks(open_video(make_clip(folder)), items(folder))
    CASES.append(Case("masks", name, act, expect))


given("no mask", lambda folder: [], "no object .*expected a PNG")
given("a mask that is not there", lambda folder: [folder / "absent.png"], r"absent\.png: unreadable mask \(no such file")
given("a later frame's mask", lambda folder: [folder / "good.png", f"2={folder / 'good.png'}"],
      lambda found: list(found) == [0, 2])
given("a frame that is not there", lambda folder: [f"9={folder / 'good.png'}"], r"good\.png: given for frame 9, .*0 to 3")
given("two masks of a frame", lambda folder: [folder / "good.png", f"0={folder / 'good.png'}"], "a second mask of frame 0")
given("a number of 5000 digits", lambda folder: ["9" * 5000 + "=x.png"], "unreadable mask|given for frame")
given("a name that is too long", lambda folder: ["a" * 300], r"unreadable mask \(file name too long")
given("an empty folder", lambda folder: [(folder / "none").mkdir() or folder / "none"],
      r"no masks in this folder; expected 00000\.png")
given("a folder with a stray mask", lambda folder: [shutil.copy(folder / "good.png", (folder / "m").mkdir() or folder / "m") and
      folder / "m"], r"good\.png: a mask of no frame")
given("a link to itself", lambda folder: [(folder / "l.png").symlink_to("l.png") or folder / "l.png"], r"too many levels")


def segment(name: str, options: list, expect: str | Callable[[Any], bool] = lambda said: "4 frames" in said) -> None:
    """A case of `python -m dulvos segment clip mask out` with options, which may name video, mask or folder anew."""
    def act(folder: Path) -> Any:
        make_clip(folder)
        write_mask(folder / "mask.png", blocks(1, 4, 9))
        (folder / "text").write_text("text")
        places = {"video": "clip", "mask": "mask.png", "out": "out",
                  **(options[0] if options and isinstance(options[0], dict) else {})}
        rest = [option for option in options if not isinstance(option, dict)]
        return command("segment", *(folder / place for place in places.values()), "--checkpoint", "random", "--device", "cpu",
                       "--no-mp4",
                       *rest)
    CASES.append(Case("segment command", name, act, expect))


segment("as it should be", [])
segment("a context that no memory holds", ["--context", 10**15], "context=.*memory")
for option, value, words in (
        ("topk", "x", "topk: invalid int"), ("topk", "2.5", "topk: invalid int"), ("topk", "0", "topk must be >= 1|topk=0"),
        ("topk", "1000", "topk=1000 exceeds the 6x8 cells"), ("tau", "nan", "tau must be a finite"),
        ("tau", "inf", "tau must be a finite"), ("tau", "1e-300", "tau >= 1e-6"), ("tau", "0", "tau >= 1e-6"),
        ("radius", "nan", "radius must be a finite"), ("radius", "-1", "radius > 0"),
        ("context", "0", "context and topk must be >= 1"), ("context", "9" * 30, "context must be a finite"),
        ("shorter-side", "3", "shorter_side must be 0 .*>= 8"), ("shorter-side", "1e3", "shorter-side: invalid int"),
        ("layer", "res9", "layer must be one of .*res9"), ("precision", "fp8", "precision must be .*fp8"),
        ("fps", "nan", "--fps must lie in"), ("fps", "0", "--fps must lie in"), ("device", "abacus", "device='abacus'"),
        ("device", "meta", "device='meta'"), ("device", "", "device=''"),
        ("checkpoint", "none", "none: no such checkpoint; give"), ("checkpoint", "x" * 300, "no such checkpoint"),
        ("checkpoint", "", "no such checkpoint")):
    segment(f"--{option} {value[:20]}", [f"--{option}", value], words)
segment("an unknown option", ["--frobnicate", "1"], "unrecognized arguments: --frobnicate")
segment("a video that is not there", [{"video": "absent"}], "absent: no such file or folder")
segment("a mask for a video", [{"video": "mask.png"}], r"mask\.png: not a video")
segment("results into a file", [{"out": "text"}], "text: cannot be written to")
segment("results into the frames", [{"out": "clip"}], "clip: holds .*frames")
segment("results onto the mask", [{"out": "."}], "a given mask")


def write_davis(root: Path, lines: str = "a\nb\n", year: str = "2017") -> Path:
    """Two sequences of three frames with two objects."""
    (root / "ImageSets" / year).mkdir(parents=True)
    (root / "ImageSets" / year / "val.txt").write_text(lines)
    for name in "ab":
        for index in range(3):
            frame = root / "JPEGImages" / "480p" / name / f"{index:05d}.jpg"
            frame.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(index)).save(frame)
            write_mask(root / "Annotations" / "480p" / name / f"{index:05d}.png", blocks(1, 2))
    return root


def look(root: Path, **options: Any) -> list[tuple[str, int]]:
    return [(s.name, int(s.truth().max())) for s in datasets.load_davis(root, **options).sequences]


def davis(name: str, spoil: Callable[[Path], Any], expect: str | Callable[[Any], bool],
          read: Callable[[Path], Any] = look) -> None:
    """A case of a folder in DAVIS's layout, spoilt."""
    CASES.append(Case("DAVIS folders", name, lambda folder: (write_davis(folder), spoil(folder), read(folder))[-1], expect))


def scored(root: Path) -> int:
    return len(evaluate(datasets.load_davis(root), "copy", root / "out", settings=SegmentSettings())[0])


LIST, MASK = "ImageSets/2017/val.txt", "Annotations/480p/a/00000.png"
davis("as it should be", lambda root: None, lambda found: found == [("a", 2), ("b", 2)])
for name, text, words in (("empty", "", "an empty list"), ("of what is not there", "c\n", "480p/c: missing on disk"),
                          ("that leads out", "../../a\n", "is no name of a sequence"),
                          ("of ..", "..\n", "is no name of a sequence"),
                          ("of /etc", "/etc\n", "is no name of a sequence"), ("of a long name", "a" * 400, "missing on disk"),
                          ("with a zero byte", "a\0b\n", "missing on disk")):
    davis(f"a list {name}", lambda root, text=text: (root / LIST).write_text(text), words)
davis("a list with a byte order mark", lambda root: (root / LIST).write_bytes(b"\xef\xbb\xbfa\r\nb\r\n"),
      lambda found: len(found) == 2)
davis("a list that is no text", lambda root: (root / LIST).write_bytes(bytes(range(256))), "not a list of sequences")
davis("no annotations", lambda root: shutil.rmtree(root / "Annotations"), "Annotations/480p/a: missing on disk")
davis("no first annotation", lambda root: (root / MASK).unlink(), r"00000\.png: no such annotation")
davis("no second annotation", lambda root: (root / MASK).with_stem("00001").unlink(), r"00001\.png: no such annotation", scored)
davis("an annotation without a frame", lambda root: (root / "JPEGImages/480p/a/00001.jpg").unlink(),
      "a mask of no frame")
davis("an annotation of another size", lambda root: write_mask(root / MASK, blocks(1, size=(10, 10))),
      "is 10x10 .*64x48")
davis("a broken annotation", lambda root: (root / MASK).write_bytes(b""), r"00000\.png: unreadable mask")
davis("a first annotation without objects", lambda root: write_mask(root / MASK, blocks()), "480p/a: .*an object",
      scored)
davis("masks of 0 and 255 in DAVIS-2017", lambda root: Image.fromarray(blocks(255)).save(root / MASK),
      "0/255 masks .*year=2016")
davis("another year", lambda root: None, "year 2018", lambda root: look(root, year=2018))
davis("another split", lambda root: None, "no split 'test'", lambda root: look(root, split="test"))
davis("a file for a folder", lambda root: None, "no split 'val'", lambda root: look(root / LIST))
davis("benchmark.json of a list", lambda root: (root / "benchmark.json").write_text("[]"), 'benchmark.json: .*expected {"name"')
davis("benchmark.json nested 10^5 deep", lambda root: (root / "benchmark.json").write_text("[" * 100_000),
      "benchmark.json: .*expected")
davis("two frames to score", lambda root: [file.unlink() for file in root.glob("*/480p/a/00002.*")],
      "480p/a: 2 frame",
      scored)


def youtube(name: str, meta: Any, expect: str | Callable[[Any], bool]) -> None:
    """A case of YouTube-VOS's meta.json."""
    def act(folder: Path) -> Any:
        clip = make_clip(folder)
        shutil.copytree(clip, folder / "valid" / "JPEGImages" / "a")
        write_mask(folder / "valid" / "Annotations" / "a" / "00000.png", blocks(1, 2))
        (folder / "valid" / "meta.json").write_text(json.dumps(meta))
        return [(s.name, s.objects, list(s.first_masks())) for s in datasets.load_youtube_vos(folder).sequences]
    CASES.append(Case("YouTube-VOS folders", name, act, expect))


youtube("as it should be", {"videos": {"a": {"objects": {"1": {}, "2": {}}}}}, lambda found: found == [("a", (1, 2), [0])])
for name, objects, words in (("text", "12", "meta.json"), ("a list", [1], "meta.json"), ("no number", {"x": 1}, "meta.json"),
                             ("300", {"300": 1}, "no annotation holds object 300"),
                             ("-1", {"-1": 1}, "no annotation holds object -1")):
    youtube(f"objects: {name}", {"videos": {"a": {"objects": objects}}}, words)
youtube("no videos", {"videos": {}}, "no sequences")
youtube("a list", [], "meta.json: .*expected")
youtube("a name that leads out", {"videos": {"../a": {"objects": {}}}}, "is no name of a sequence")
