"""Masks come back as written, each kind of mask file gives its ids, an overlay mixes the right pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dulvos.errors import InputError
from dulvos.masks import OBJECT_COLOURS, PALETTE, overlay, read_mask, write_mask

H, W = 12, 16


def blocks(*ids: int, height: int = H, width: int = W) -> np.ndarray:
    """(height, width) uint8: a column of background, then one for each id."""
    mask = np.zeros((height, width), np.uint8)
    for place, i in enumerate(ids, 1):
        mask[:, 3 * place : 3 * place + 3] = i
    return mask


def save(path: Path, picture: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    return path


def test_palette_is_the_voc_colour_map() -> None:
    expected = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128)]
    expected += [(128, 128, 128), (64, 0, 0), (192, 0, 0), (64, 128, 0)]
    assert PALETTE[:11].tolist() == [list(colour) for colour in expected]
    assert PALETTE[[21, 64, 255]].tolist() == [[128, 64, 128], [32, 0, 0], [224, 224, 192]]
    assert PALETTE.dtype == np.uint8 and len(np.unique(PALETTE, axis=0)) == 256


def test_masks_are_read_as_written(tmp_path: Path) -> None:
    ids = np.arange(255, dtype=np.uint8).reshape(15, 17)
    write_mask(tmp_path / "new" / "a.png", ids)
    assert np.array_equal(read_mask(tmp_path / "new" / "a.png"), ids)
    with Image.open(tmp_path / "new" / "a.png") as image:
        assert image.mode == "P" and np.array_equal(np.asarray(image.convert("RGB")), PALETTE[ids])
    write_mask(tmp_path / "new" / "a.png", ids[:3])
    assert np.array_equal(read_mask(tmp_path / "new" / "a.png"), ids[:3])


@pytest.mark.parametrize(("name", "ids"), [
    ("a.png", blocks(1).astype(np.int64)), ("a.png", blocks(1)[None]), ("a.png", blocks(1, 255)),
    ("a.jpg", blocks(1))])
def test_what_is_no_mask_is_not_written(tmp_path: Path, name: str, ids: np.ndarray) -> None:
    with pytest.raises(InputError, match=name):
        write_mask(tmp_path / name, ids)
    assert not list(tmp_path.iterdir())


WHITE = np.full((H, W), 255, np.uint8)


@pytest.mark.parametrize(("stored", "ids"), [
    pytest.param(blocks(255), blocks(1), id="0/255"),
    pytest.param(WHITE, np.ones((H, W), np.uint8), id="all foreground"),
    pytest.param(blocks(), blocks(), id="empty"),
    pytest.param(blocks(1), blocks(1), id="0/1"),
    pytest.param(blocks(255) > 0, blocks(1), id="bits"),
    pytest.param(blocks(1, 5, 255), blocks(1, 5), id="void"),
    pytest.param(blocks(3, 255), blocks(3), id="void beside one object"),
    pytest.param(blocks(7, 200).astype(np.uint16), blocks(7, 200), id="16 bit"),
    pytest.param(np.dstack([blocks(255)] * 3), blocks(1), id="grey RGB"),
    pytest.param(np.dstack([blocks(255)] * 3 + [WHITE]), blocks(1), id="grey RGBA"),
    pytest.param(np.dstack([blocks(255), WHITE]), blocks(1), id="grey and alpha"),
    pytest.param(np.dstack([blocks(1, 2, 3)] * 3), blocks(1, 2, 3), id="grey levels"),
    pytest.param(PALETTE[blocks(1, 7, 200)], blocks(1, 7, 200), id="colours"),
    pytest.param(PALETTE[blocks(1, 7, 255)], blocks(1, 7), id="colours and void"),
])
def test_every_kind_of_mask_gives_its_ids(tmp_path: Path, stored: np.ndarray, ids: np.ndarray) -> None:
    found = read_mask(save(tmp_path / "a.png", stored))
    assert found.dtype == np.uint8 and np.array_equal(found, ids)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_overlay_is_the_mixture_of_every_pixel(dtype: type) -> None:
    """The rim is opaque on the inner side of each object, but not where an object leaves the frame."""
    frame, ids = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8), np.zeros((60, 80), dtype)
    ids[5:30, 10:50], ids[20:50, 40:80], ids[55:, :9] = 1, 7, 200
    edge = np.zeros(ids.shape, bool)
    for y, x in np.ndindex(ids.shape):
        edge[y, x] = len(np.unique(ids[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2])) > 1
    strength = np.where(ids > 0, np.where(edge, 1, 0.5), 0)[..., None]
    colour = OBJECT_COLOURS[(ids.astype(int) - 1) % 7].astype(float)
    before = frame.copy()
    mixed = overlay(frame, ids)
    assert mixed.dtype == np.uint8
    assert np.array_equal(mixed, np.rint(frame + strength * (colour - frame)).astype(np.uint8))
    assert np.array_equal(frame, before)
    with pytest.raises(InputError):
        overlay(frame, ids[1:])


def test_object_colours_are_distinct() -> None:
    colours = OBJECT_COLOURS.astype(float)
    distance = np.linalg.norm(colours[:, None] - colours[None], axis=-1) + 1e3 * np.eye(7)
    assert colours.shape == (7, 3) and distance.min() > 60
