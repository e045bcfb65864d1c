"""A video of yours: its masks read and checked, carried through it, and written beside a movie of what was found."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dulvos.checkpoints import load_encoder
from dulvos.devices import find_device, free_memory
from dulvos.encoder import STRIDE, Encoder
from dulvos.errors import InputError
from dulvos.files import replacing
from dulvos.inference import SegmentSettings, encode, segment
from dulvos.masks import overlay, read_mask, write_mask
from dulvos.propagation import propagate
from dulvos.videos import Video

__all__ = ["MOVIE", "carry", "check_folder", "check_memory", "corrected", "first_frames", "given_masks", "look", "own_mask"]
__all__ += ["prepare_encoder", "write_given"]

MOVIE = "overlay.mp4"
CHANNELS = {"res3": 256, "res4": 512, "key": 128}
BYTES_A_PIXEL = 120  # of a frame in the encoder, about
WRITTEN = ".written.json"  # names of what a run left in its folder


def first_frames(video: Video, count: int) -> Video:
    """The video's first frames alone, all of them for 0; raises an InputError for fewer than none."""
    if count < 0:
        raise InputError(f"frames must be >= 0 (0 takes all), not {count}")
    return replace(video, length=min(count or len(video), len(video)))


def given_masks(video: Video, given: Sequence[str | os.PathLike[str]]) -> dict[int, np.ndarray]:
    """The masks that a user gives, {frame number: (H, W) uint8 ids}, read and compared with the video.

    Arguments:
        given: each is "mask.png" (of frame 0), "FRAME=mask.png" (of that frame, numbered from 0), or a folder whose PNGs are
            called as the video's frames are. A mask after the first one holds the objects that are new or corrected there.

    Raises:
        InputError: a file is missing, unreadable, of another size, of no frame or of a frame that has one; no object at all.
    """
    files: list[tuple[int, Path]] = []
    for item in map(os.fspath, given):
        frame, equals, name = item.partition("=")
        if equals and re.fullmatch("[0-9]{1,18}", frame) and not os.path.exists(item):
            files.append((int(frame), Path(name)))
        elif os.path.isdir(item):
            files += _named(video, Path(item))
        else:
            files.append((0, Path(item)))
    if not files:
        raise InputError(f"no mask is given; expected a PNG of the objects in the first frame of {video.path}")
    masks: dict[int, np.ndarray] = {}
    for frame, path in files:
        if frame >= len(video):
            raise InputError(f"{path}: given for frame {frame}, but {video.path} has the frames 0 to {len(video) - 1}")
        if frame in masks:
            raise InputError(f"{path}: a second mask of frame {frame}; give one for each frame, as FRAME=PNG")
        masks[frame] = own_mask(path)
        if masks[frame].shape != tuple(video.size):
            mask, size = (f"{shape[1]}x{shape[0]}" for shape in (masks[frame].shape, video.size))
            raise InputError(f"{path} is {mask} (width x height), frames of {video.path} are {size}; they must have one size")
    if not any(ids.any() for ids in masks.values()):
        raise InputError(f"{', '.join(str(path) for _, path in files)}: no object in it; expected ids 1 to 254 somewhere, 0 is "
                         "background")
    return dict(sorted(masks.items()))


def own_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """A mask as `dulvos.masks.read_mask` reads it, refused where a paint program has written something else than ids.

    Raises:
        InputError: also for soft edges, whose greys would be objects, and for an object that only the alpha channel holds.
    """
    ids = read_mask(path)
    with Image.open(path) as image:
        if image.mode not in ("L", "LA", "RGB", "RGBA"):
            return ids
        colours, alpha = np.asarray(image.convert("RGB")), np.asarray(image.convert("RGBA"))[..., 3]
    if alpha.min() < alpha.max() and colours.any() and (colours == colours[0, 0]).all():
        raise InputError(f"{path}: one colour everywhere, the object is in the alpha channel; save it without transparency, on black")
    counts = np.bincount(colours[..., 0].ravel(), minlength=256)
    if (colours == colours[..., :1]).all() and counts[1:255].any() and counts[255] > counts[1:255].max():
        raise InputError(f"{path}: mostly 255, but {np.count_nonzero(counts[1:255])} other greys too, each of which would be an object; "
                         "save it without soft edges, as 0 and 255, or give each object an id from 1 to 254")
    return ids


def _named(video: Video, folder: Path) -> list[tuple[int, Path]]:
    numbers = {video.frame_name(index): index for index in range(len(video))}
    files = sorted(folder.glob("[!.]*.png"))
    for file in files:
        if file.stem not in numbers:
            raise InputError(f"{file}: a mask of no frame of {video.path}; expected names such as {video.frame_name(0)}.png")
    if not files:
        raise InputError(f"{folder}: no masks in this folder; expected {video.frame_name(0)}.png")
    return [(numbers[file.stem], file) for file in files]


def corrected(given: Mapping[int, np.ndarray], frame: int, carried: np.ndarray, ids: np.ndarray) -> Mapping[int, np.ndarray]:
    """The given masks after a frame was corrected: there, each object that was touched is given anew; `given` if none was.

    `segment` takes every object of a later mask as corrected, and its channel is carried from there on; so objects that nobody
    touched stay out. An object that was erased altogether does too: its end cannot be given.

    Arguments:
        given: what `carried` was made from.
        carried: (H, W) uint8 ids of that frame before, `ids`: after.
    """
    touched = set(np.unique(carried[carried != ids]).tolist()) | set(np.unique(ids[carried != ids]).tolist())
    if not touched:
        return given
    if frame in given:
        touched |= set(np.unique(given[frame]).tolist())
    return dict(sorted({**given, frame: np.where(np.isin(ids, list(touched - {0})), ids, 0).astype(np.uint8)}.items()))


def prepare_encoder(checkpoint: str | os.PathLike[str], device: str | None = None) -> Encoder:
    """An encoder as `load_encoder` finds it, on that device (None takes a CUDA GPU where there is one); raises as both do."""
    return load_encoder(checkpoint).to(find_device(device), memory_format=torch.channels_last)


def check_folder(out: str | os.PathLike[str], video: Video, given: Sequence[str | os.PathLike[str]] = ()) -> Path:
    """Make the folder for the results and see that they can be written there without touching what they are made from.

    Raises:
        InputError: not a folder, not writable, the video's own folder, or one in which a given mask lies.
    """
    out = Path(out)
    own = out.resolve()
    if own == video.path.resolve():
        raise InputError(f"{out}: holds the video's frames, which masks of the same names would replace; give another folder")
    for item in map(os.fspath, given):
        path = Path(item if os.path.exists(item) else item.partition("=")[2])
        if own == (path.resolve() if path.is_dir() else path.resolve().parent):
            raise InputError(f"{out}: holds the given {path.name}, which results may replace; give another folder")
    probe = out / f".probe.{os.getpid()}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"{out}: cannot be written to ({error.strerror}); give a folder that can") from None
    return out


def check_memory(video: Video, masks: int, settings: SegmentSettings, device: torch.device) -> None:
    """Raise an InputError if carrying that many masks through a video would need more memory than is free, by estimate."""
    scale = min(1.0, settings.shorter_side / min(video.size)) if settings.shorter_side else 1.0
    pixels = scale**2 * video.size[0] * video.size[1]
    # features twice, in 4 and in 2 to 4 bytes, of the context and the given frames; four frames at once in the encoder
    needed = pixels / STRIDE**2 * CHANNELS[settings.layer] * 7 * (settings.context + 1 + masks) + 4 * pixels * BYTES_A_PIXEL
    free = free_memory(device)
    if needed > free:
        height, width = (round(scale * side) for side in video.size)
        raise InputError(f"{video.path}: frames of {width}x{height} need about {needed / 2**30:.0f} GB with a context of "
                         f"{settings.context}, and {free / 2**30:.0f} GB are free; give shorter_side=480, or less")


def carry(video: Video, masks: Mapping[int, np.ndarray], encoder: Encoder, settings: SegmentSettings,
          out: Path) -> Iterator[np.ndarray]:
    """Carry masks through a video, writing `out/<frame>.png` as they come; what an earlier run left there goes first.

    Propagation is sequential and remembers soft masks, which no PNG holds: it always starts at frame 0.

    Arguments:
        masks: as `given_masks` gives them.
        out: as `check_folder` gives it.

    Yields:
        (H, W, 3) uint8: each frame with its mask over it, after its mask was written.

    Raises:
        InputError: what `segment` raises; wrong settings at once, before the first frame is read.
    """
    if not any(ids.any() for ids in masks.values()):
        raise InputError(f"{video.path}: no object is marked in frame {', '.join(map(str, masks)) or 0}; paint or give one")
    propagate((), masks, context=settings.context, radius=settings.radius, topk=settings.topk, tau=settings.tau)
    return _carry(video, masks, encoder, settings, out)


def _carry(video: Video, masks: Mapping[int, np.ndarray], encoder: Encoder, settings: SegmentSettings,
           out: Path) -> Iterator[np.ndarray]:
    names = [f"{video.frame_name(index)}.png" for index in range(len(video))]
    shown, encoded = itertools.tee(video.frames())
    results = segment(encoded, masks, partial(encode, encoder), settings)
    for index, (ids, frame) in enumerate(zip(results, shown)):
        if index == 0:  # nothing is wrong with the settings, then
            _replace_written(out, [MOVIE, *names])
        write_mask(out / names[index], ids)
        yield overlay(frame, ids)


def write_given(folder: Path, video: Video, given: Mapping[int, np.ndarray]) -> None:
    """Let a folder hold these masks and no others, as PNGs that `given_masks` takes.

    Masks are drawn by hand: others that it held, and earlier ones of these frames, are moved to `earlier-<number>/` in it.

    Arguments:
        given: frame -> (H, W) uint8 ids.
    """
    masks = {f"{video.frame_name(frame)}.png": ids for frame, ids in given.items()}
    for path in sorted(folder.glob("*.png")):
        with contextlib.suppress(InputError):  # damaged: moved too
            if path.name in masks and np.array_equal(read_mask(path), masks[path.name]):
                continue
        numbers = (number for number in itertools.count(1) if not (folder / f"earlier-{number}" / path.name).exists())
        place = folder / f"earlier-{next(numbers)}" / path.name
        place.parent.mkdir(exist_ok=True)
        path.rename(place)
    for name, ids in masks.items():
        write_mask(folder / name, ids)


def _replace_written(folder: Path, names: Sequence[str]) -> None:
    """Remove what an earlier run left in a folder, by the list that it left, and what has those names; leave the list of them."""
    path = folder / WRITTEN
    earlier = json.loads(path.read_bytes()) if path.exists() else []
    for name in {*earlier, *names}:
        (folder / Path(name).name).unlink(missing_ok=True)
    with replacing(path) as stream:
        stream.write(json.dumps(list(names)).encode())


def look(video: Video, out: Path, count: int = 5) -> tuple[list[np.ndarray], list[str]]:
    """Evenly picked frames with the masks in `out` over them, (H, W, 3) uint8, and their titles."""
    numbers = np.unique(np.linspace(0, len(video) - 1, count).round().astype(int)).tolist()
    pictures = [overlay(video.read(number), read_mask(out / f"{video.frame_name(number)}.png")) for number in numbers]
    return pictures, [f"frame {number}" for number in numbers]
