"""Mask files and their colours: read, write, and draw over a frame."""

from __future__ import annotations

import io
import os
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from dulvos.errors import InputError
from dulvos.files import replacing

__all__ = ["OBJECT_COLOURS", "PALETTE", "is_binary", "overlay", "read_mask", "read_values", "write_mask"]

_BITS = (np.arange(256)[:, None] >> np.arange(9) & 1).reshape(256, 3, 3)  # [id, place, channel]
PALETTE = (_BITS << np.array([[7], [6], [5]])).sum(1).astype(np.uint8)
"""(256, 3) uint8, the RGB of every id in PASCAL VOC (Everingham et al., IJCV 2010), DAVIS and YouTube-VOS.

Bits 0, 1, 2 of an id are the highest bits of R, G, B; bits 3, 4, 5 the second highest; bits 6, 7 the third.
"""
_OKABE_ITO = bytes.fromhex("D55E00 56B4E9 F0E442 009E73 CC79A7 0072B2 E69F00")
OBJECT_COLOURS = np.frombuffer(_OKABE_ITO, np.uint8).reshape(7, 3)
"""(7, 3) uint8, the colours of objects 1 to 7 over a frame; object 8 takes the first again.

From Okabe and Ito, "Color Universal Design" (2008): they can be told apart with any kind of colour vision.
"""


def read_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """Read the object ids of a mask file.

    If all values are 0 or 255, 255 is object 1. In any other mask 255 means void and becomes 0. Palette
    images give their indices. Images without a palette give the id whose colour in `PALETTE` they show, or
    their grey level. Alpha is ignored. Only PNG is read: JPEG blurs ids into one another, other formats
    renumber them.

    Returns:
        (H, W) uint8 in 0..254.

    Raises:
        InputError: the file is missing, damaged or no PNG, or holds colours or values that are not ids.
    """
    values = read_values(path)
    void = values == 255
    return void.astype(np.uint8) if is_binary(values) else np.where(void, 0, values).astype(np.uint8)


def write_mask(path: str | os.PathLike[str], ids: np.ndarray) -> None:
    """Write ids, (H, W) uint8 in 0..254, as a palette PNG, whole or not at all; makes the folders above.

    Raises:
        InputError: the suffix is not .png, or `ids` has another shape or dtype or holds 255 (void).
    """
    path = Path(path)
    if path.suffix != ".png":
        raise InputError(f"{path}: masks are PNG files; give a name that ends in .png")
    if ids.ndim != 2 or ids.dtype != np.uint8 or (ids == 255).any():
        raise InputError(f"{path}: ids must be (H, W) uint8 in 0..254, not {ids.shape} {ids.dtype}"
                         f" up to {ids.max(initial=0)}")
    image = Image.fromarray(ids)
    image.putpalette(PALETTE.tobytes())
    with replacing(path) as stream:
        image.save(stream, format="PNG")


def read_values(path: str | os.PathLike[str]) -> np.ndarray:
    """(H, W) uint8 values of a mask file, 255 included; raises as `read_mask` does."""
    path = Path(path)
    try:
        data = io.BytesIO(path.read_bytes())
        with Image.open(data, formats=("PNG",)) as image:
            image.verify()  # compares the checksums, which decoding does not
        with Image.open(data, formats=("PNG",)) as image:
            ImageOps.exif_transpose(image, in_place=True)  # as the reader of frames does
            values = np.asarray(image.convert("RGB") if image.mode == "RGBA" else image)
    except Exception as error:  # Pillow raises many kinds
        said = getattr(error, "strerror", None)
        reason = said.lower() if said else "not a complete PNG"
        raise InputError(f"{path}: unreadable mask ({reason}); expected a palette or grey PNG") from error
    if image.mode in ("RGB", "RGBA"):
        return _ids_of_colours(values, path)
    values = values[..., 0] if image.mode in ("LA", "PA") else values
    if values.ndim != 2 or values.max() > 255:
        raise InputError(f"{path}: values up to {values.max()} (mode {image.mode}); expected ids of 0 to 255")
    return values.astype(np.uint8)


def is_binary(values: np.ndarray) -> bool:
    """Whether values are all 0 or 255, and not all 0."""
    return values.max() == 255 and not values[values < 255].any()


def _ids_of_colours(colours: np.ndarray, path: Path) -> np.ndarray:
    packing = np.array([1 << 16, 1 << 8, 1])
    found, inverse = np.unique(colours @ packing, return_inverse=True)
    for table in (PALETTE @ packing, np.arange(256) * packing.sum()):
        if np.isin(found, table).all():
            order = np.argsort(table)
            ids = order[np.searchsorted(table, found, sorter=order)]
            return ids.astype(np.uint8)[inverse].reshape(colours.shape[:2])
    stray = next(colour for colour in found if colour not in PALETTE @ packing)
    raise InputError(f"{path}: the colour #{stray:06x} is neither in the DAVIS palette nor grey; save the "
                     "mask as a palette PNG")


def overlay(frame: np.ndarray, ids: np.ndarray, alpha: float = 0.5, outline: bool = True) -> np.ndarray:
    """Draw a mask over a frame in `OBJECT_COLOURS`; pixels of id 0 keep their colour.

    Arguments:
        frame: (H, W, 3) uint8 RGB. ids: (H, W) integers.
        alpha: opacity of the mask, in [0, 1].
        outline: draw the rim of each object, on its inner side, opaque.

    Raises:
        InputError: the mask has another size than the frame.
    """
    if ids.shape != frame.shape[:2]:
        raise InputError(f"the mask is {ids.shape}, the frame {frame.shape[:2]}; they must have one size")
    marked, strength = ids > 0, np.full(ids.shape, float(alpha))
    if outline:
        kernel = np.ones((2 * max(1, min(ids.shape) // 240) + 1,) * 2, np.uint8)
        flat = ids if ids.dtype == np.uint8 else ids.astype(np.float32)
        strength[cv2.erode(flat, kernel) != cv2.dilate(flat, kernel)] = 1
    below = frame[marked]  # [n, 3]: most of a frame is background and need not be computed
    colour = OBJECT_COLOURS[(ids[marked].astype(int) - 1) % len(OBJECT_COLOURS)]
    mixed = frame.copy()
    mixed[marked] = np.rint(below + strength[marked, None] * (colour.astype(float) - below))
    return mixed
