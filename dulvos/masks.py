"""Mask files: read, write and draw them; check a user's own masks, and write results beside them."""

import io
import itertools
import json
import os
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from dulvos.errors import InputError
from dulvos.files import SIGNATURE, AnyPath, expand, make_folder, read_json, write_file
from dulvos.videos import Video, given_file

__all__ = ["MOVIE", "OBJECT_COLOURS", "PALETTE", "as_png", "check_folder", "given_masks", "mask_files",
           "overlay", "read_ended", "read_mask", "save_given", "save_masks", "write_mask"]

MOVIE = "overlay.mp4"
_SIGNED = PngInfo()
_SIGNED.add_text("Software", SIGNATURE)
_ENDED = "ended.json"  # beside painted masks: frame name -> ids of objects that are gone from that frame on

_BITS = (np.arange(256)[:, None] >> np.arange(9) & 1).reshape(256, 3, 3)  # [id, place, channel]
PALETTE = (_BITS << np.array([[7], [6], [5]])).sum(1).astype(np.uint8)
"""(256, 3) uint8, the RGB of every id in PASCAL VOC (Everingham et al., IJCV 2010), DAVIS and YouTube-VOS.

Bits 0, 1, 2 of an id are the highest bits of R, G, B; bits 3, 4, 5 the second highest; bits 6, 7 the third.
"""
_OKABE_ITO = bytes.fromhex("D55E00 56B4E9 F0E442 009E73 CC79A7 0072B2 E69F00")
OBJECT_COLOURS = np.frombuffer(_OKABE_ITO, np.uint8).reshape(7, 3)
"""(7, 3) uint8, the colours of objects 1 to 7 over a frame; object 8 takes the first again.

From Okabe and Ito, "Color Universal Design" (2008): people with any colour vision can tell them apart.
"""


def read_mask(path: AnyPath, threshold: int = 0) -> np.ndarray:
    """Read the object ids of a mask, (H, W) uint8 in 0..254, from a PNG file (other formats change ids).

    If all values are 0 or 255, 255 is object 1. In any other mask, 255 means void and becomes 0. The ids of a
    palette image are its indices; if the palette has another colour than black at 0, black is the background.
    The ids of other images are found by their colours in `PALETTE`, or are the grey levels. Alpha is ignored.
    Warns if a palette's black is not at 0, and if no pixel is background.

    Arguments:
        threshold: in 1..255, pixels of at least this grey level are object 1, all others background; 0: none.

    Raises:
        InputError: the file is missing, damaged or not a PNG; its edges are soft; its object is in the alpha
            channel only; its colours or values are not ids; it is grey, and its objects are mostly 255 but
            also have other greys; or the threshold is out of range.
    """
    path = expand(path)
    if threshold not in range(256):
        raise InputError(f"threshold must be a grey level of 1 to 255, or 0 for none, not {threshold!r}")
    try:
        with Image.open(path) as image:
            image.verify()  # compares the checksums, which decoding does not
        with Image.open(path) as image:
            if image.format != "PNG":
                raise ValueError(f"a {image.format} file")
            ImageOps.exif_transpose(image, in_place=True)  # as the reader of frames does
            pixels, greys, palette = np.asarray(image), np.asarray(image.convert("L")), image.getpalette()
    except Exception as error:  # Pillow raises many kinds
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: unreadable mask ({reason}); expected a palette or grey PNG") from error
    if pixels.max() > 255:
        raise InputError(f"{path}: values up to {pixels.max()} (mode {image.mode}); expected ids of 0 to 255")
    if "A" in image.mode and greys.min() == greys.max() > 0 and np.ptp(pixels[..., -1]):
        raise InputError(f"{path}: one colour everywhere, the object is in the alpha channel; save it on "
                         "black, without transparency")
    if threshold:
        values = (greys >= threshold).astype(np.uint8)
    elif palette:
        values = _ids_of_indices(pixels, np.resize(palette, (256, 3)), path)
    elif image.mode in ("RGB", "RGBA"):
        values = _ids_of_colours(pixels[..., :3], path)
    else:
        values = greys if image.mode == "LA" else pixels
    if not threshold and (not palette or values is not pixels):  # the greys of `PALETTE` say nothing of edges
        _refuse_soft(greys, path, bool(palette))
    ids = np.where(values == 255, not (values % 255).any(), values).astype(np.uint8)
    if ids.all():
        warnings.warn(f"{path}: no pixel is background, which is 0; is this intended?", stacklevel=2)
    return ids


def write_mask(path: AnyPath, ids: np.ndarray) -> None:
    """Write ids, (H, W) uint8 in 0..254, as a palette PNG, whole or not at all; makes the folders above it.

    Raises:
        InputError: `ids` has another shape or dtype or holds 255 (void).
    """
    path = expand(path)
    if ids.ndim != 2 or ids.dtype != np.uint8 or (ids == 255).any():
        raise InputError(f"{path}: ids must be (H, W) uint8 in 0..254, not {ids.shape} {ids.dtype}"
                         f" up to {ids.max(initial=0)}")
    write_file(path, as_png(ids))


def as_png(ids: np.ndarray, texts: PngInfo | None = None) -> bytes:
    """The palette PNG of ids, (H, W) uint8."""
    image, stream = Image.fromarray(ids), io.BytesIO()
    image.putpalette(PALETTE.tobytes())
    image.save(stream, format="PNG", pnginfo=texts)
    return stream.getvalue()


def _ids_of_indices(indices: np.ndarray, palette: np.ndarray, path: AnyPath) -> np.ndarray:
    """Ids, where black is 0; `indices` themselves if they show the colours of `PALETTE`, else a copy."""
    used, ids = np.bincount(indices.ravel(), minlength=256) > 0, np.arange(256)
    if np.array_equal(palette[used], PALETTE[used]):
        return indices
    if palette[0].any():
        objects = used & palette.any(1)
        if np.array_equal(objects, used):
            raise InputError(f"{path}: shows no black, and its palette has another colour at 0, so the "
                             "background is unknown; paint the background black")
        warnings.warn(f"{path}: its palette has no black at 0; black is taken as background", stacklevel=2)
        ids[0] = np.argmin(objects)  # the first index that is free
        ids[~objects] = 0
    return ids[indices]


def _refuse_soft(greys: np.ndarray, path: AnyPath, colours: bool) -> None:
    """Raise an InputError if most greys occur on rims only, or if a mask without `colours` is mostly 255."""
    kernel = np.ones((3, 3), np.uint8)
    low, high = cv2.erode(greys, kernel), cv2.dilate(greys, kernel)
    # around a rim pixel are other greys: without background, or with a brighter grey
    rim = (low < high) & (greys > 0) & ((low > 0) | (greys < high))
    thin = len(np.setdiff1d(greys[rim], greys[low == high]))
    found = len(np.setdiff1d(greys, [0, 255]))
    white = found and np.bincount(greys.ravel(), minlength=256)[1:].argmax() == 254
    # where most pixels are rims, there are no objects that could have soft edges
    if white and (thin > found / 2 or not colours) or 2 < thin > found / 2 and rim.mean() < 0.5:
        half = greys.max() // 2
        raise InputError(f"{path}: {found} greys besides 0 and 255 would be objects; for one object, give "
                         f"--threshold={half} (threshold={half} in Python) or save it as 0 and 255 without "
                         "soft edges; for several, give each an id from 1 to 254")


def _ids_of_colours(colours: np.ndarray, path: AnyPath) -> np.ndarray:
    packing = np.array([1 << 16, 1 << 8, 1])
    packed, palette = colours @ packing, PALETTE @ packing
    for table in (palette, np.arange(256) * packing.sum()):
        order = np.argsort(table)
        ids = order[np.searchsorted(table, packed, sorter=order).clip(max=255)]
        if np.array_equal(table[ids], packed):
            return ids
    stray = np.setdiff1d(packed, palette)[0]
    raise InputError(f"{path}: holds #{stray:06x}, which is not in the DAVIS palette, and not only greys; "
                     "save the mask as a palette PNG")


def overlay(frame: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Draw a mask over a frame in `OBJECT_COLOURS`: half transparent, with an opaque rim inside each object.

    Arguments:
        frame: (H, W, 3) uint8 RGB. ids: (H, W) integers; pixels of id 0 keep their colour.

    Raises:
        InputError: the mask has another size than the frame.
    """
    if ids.shape != frame.shape[:2]:
        raise InputError(f"the mask is {ids.shape}, the frame {frame.shape[:2]}; they must have one size")
    ids = ids.astype(np.uint8)
    kernel = np.ones((2 * max(1, min(ids.shape) // 240) + 1,) * 2, np.uint8)
    strength = np.where(cv2.erode(ids, kernel) != cv2.dilate(ids, kernel), 1, 0.5)
    marked, mixed = ids > 0, frame.copy()  # most of a frame is background and need not be computed
    colour = OBJECT_COLOURS[(ids[marked] - 1) % len(OBJECT_COLOURS)].astype(float)
    mixed[marked] = np.rint(frame[marked] + strength[marked, None] * (colour - frame[marked]))
    return mixed


def given_masks(video: Video, given: Sequence[AnyPath], threshold: int = 0) -> dict[int, np.ndarray]:
    """Read the masks that a user gives for a video: {frame number: (H, W) uint8 ids}, in order.

    Arguments:
        given: each is "mask.png" (of frame 0), "FRAME=mask.png" (of that frame, counted from 0), or a folder
            of PNGs that are named like the video's frames. A mask after the first holds the objects that are
            new or corrected there.
        threshold: as `read_mask` takes it.

    Raises:
        InputError: a mask of another size, of no frame, or of a frame that has a mask already; no object in
            any mask; what `read_mask` raises.
    """
    files = []
    for item in given:
        folder = expand(item)
        files += mask_files(video, folder).items() if os.path.isdir(folder) else [given_file(item)]
    masks = {}
    for frame, path in files:
        if frame in masks or frame >= len(video):
            raise InputError(f"{path}: given for frame {frame}; give one mask for a frame, as FRAME=PNG, "
                             f"where FRAME is 0 to {len(video) - 1}")
        masks[frame] = read_mask(path, threshold)
        video.check_size(masks[frame].shape, path)
    if not any(ids.any() for ids in masks.values()):
        named = ", ".join(map(os.fspath, given)) or "none"
        raise InputError(f"no object in the given masks ({named}); expected a PNG with ids from 1 to 254, "
                         "where 0 is background")
    return dict(sorted(masks.items()))


def mask_files(video: Video, folder: Path) -> dict[int, Path]:
    """{frame number: mask} for the PNGs in a folder, which are named like the video's frames, in order.

    Raises:
        InputError: there is none, one belongs to no frame, or two belong to the same.
    """
    numbers = video.numbers()
    found = [*folder.glob("[!.]*.[pP][nN][gG]")]
    files = {file.stem: file for file in found}
    if twice := sorted({*found} - {*files.values()}):
        raise InputError(f"{twice[0]}: another file here is a mask of the same frame; remove one of them")
    if stray := sorted(files.keys() - numbers):
        raise InputError(f"{files[stray[0]]}: no frame of {video.path} has this name; expected names like "
                         f"{video.frame_name(0)}.png")
    if not files:
        raise InputError(f"{folder}: no masks in this folder; expected {video.frame_name(0)}.png")
    return dict(sorted((numbers[stem], file) for stem, file in files.items()))


def check_folder(out: AnyPath, video: Video, overwrite: bool = False, given: Iterable[AnyPath] = ()) -> Path:
    """Make the folder for the results and return its path.

    Arguments:
        overwrite: results may replace files that no earlier run wrote.
        given: masks, as for `given_masks`, which results never replace.

    Raises:
        InputError: it is not a folder or cannot be written to; or results would replace the video, a given
            mask, or a file that no earlier run wrote.
    """
    out = expand(out)
    if video.path.resolve() in (out.resolve(), (out / MOVIE).resolve()):
        raise InputError(f"{out}: results would replace {video.path}; give another folder for them")
    names = _result_names(video)
    files = [path for path in (*out.glob("*.png"), out / MOVIE) if path.is_file()]
    signed = {path.name for path in files if SIGNATURE.encode() in path.read_bytes()}
    kept = {given_file(item)[1].resolve() for item in given}
    for path in files:
        if path.name in names and kept & {path.resolve(), out.resolve()}:
            raise InputError(f"{path}: results would replace this given mask; move it to another folder")
        if path.name in names and path.name not in signed and not overwrite:
            raise InputError(f"{path}: results would replace this file, which an earlier run did not write; "
                             "give another folder, or --overwrite (overwrite=True in Python)")
    if others := sorted(signed.difference(names)):
        warnings.warn(f"{out}: {', '.join(others[:3])} (of {len(others)}) are masks of another video, which "
                      "an earlier run wrote; they stay", stacklevel=2)
    return make_folder(out)


def _result_names(video: Video) -> list[str]:
    return [*(f"{name}.png" for name in video.numbers()), MOVIE]


def save_masks(masks: Iterable[tuple[int, np.ndarray]], video: Video,
               out: Path) -> Iterator[tuple[int, np.ndarray]]:
    """Yield masks, (frame number, (H, W) uint8 ids) in order, and write each as `out/<frame>.png`.

    The first one removes what an earlier run left: `overlay.mp4` and the masks of this and later frames.
    """
    names = _result_names(video)
    for count, (t, ids) in enumerate(masks):
        if count == 0:
            for name in names[t:]:
                (out / name).unlink(missing_ok=True)
        write_file(out / names[t], as_png(ids, _SIGNED))
        yield t, ids


def save_given(folder: Path, video: Video, given: Mapping[int, np.ndarray],
               ended: Mapping[int, Collection[int]], own: Collection[Path] = ()) -> set[Path]:
    """Make a folder hold these masks and ends of objects, and no others, for `given_masks` and `read_ended`.

    Masks drawn by hand are never deleted: a folder that holds other files is renamed `<folder>-<number>`.

    Arguments:
        given: frame number -> (H, W) uint8 ids.
        ended: frame number -> ids of the objects that are gone from that frame on.
        own: files in the folder that this replaces; they are deleted when the new ones are written.

    Returns:
        The paths of the new files.
    """
    files = {f"{video.frame_name(frame)}.png": as_png(ids) for frame, ids in given.items()}
    if ended:
        ends = {video.frame_name(frame): list(ids) for frame, ids in sorted(ended.items())}
        files[_ENDED] = json.dumps(ends).encode()
    found = {path.name: path.is_file() and path.read_bytes() for path in {*folder.glob("[!.]*")} - {*own}}
    if found and found != files:
        numbered = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(1))
        folder.rename(next(path for path in numbered if not path.exists()))
    new = {write_file(folder / name, content) for name, content in files.items()}
    for path in {*own} - new:
        path.unlink(missing_ok=True)
    return new


def read_ended(video: Video, given: Sequence[AnyPath]) -> dict[int, tuple[int, ...]]:
    """The ends of objects that `save_given` wrote: frame number -> ids that are gone from that frame on.

    Arguments:
        given: as `given_masks` takes it; only its folders hold such a file.

    Raises:
        InputError: the file is damaged, or names a frame that the video does not have.
    """
    numbers, ended = video.numbers(), {}
    for path in (expand(item) / _ENDED for item in given):
        if path.is_file():
            ended |= read_json(path, f"ids of objects by frames of {video.path}", lambda ends: {
                numbers[name]: tuple(map(int, ids)) for name, ids in ends.items()})
    return ended
