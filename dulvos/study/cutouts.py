"""The embedded benchmark "cutouts": rendered videos in DAVIS-2017's layout, for use without a data set.

The videos are rendered, not filmed: never compare their scores with those of real videos. Every texture
comes from the photographs in the scikit-image wheel. Cut-outs of them move, turn, grow, bend and cover each
other, while a camera pans, turns and zooms over another photograph. One video is a stereo pair seen by a
camera on a rail, with true parallax. The light drifts, the shutter blurs, the sensor is noisy. Matching
colours is not enough: objects move over the photograph that they were cut from, and look-alikes without a
label move among them.

`cutouts_videos.csv` lists the videos and `cutouts_outlines.csv` the outlines of the cut-outs, in pixels of
the photograph: x:y of each corner of a polygon, or x:y:radius of a disk. A cut-out is called
photograph/shape. Training and validation share no photograph; astronaut, camera, gravel and motorcycle are
kept for validation.
"""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import cv2
import numpy as np
import skimage.data
from numpy.random import Generator
from PIL import Image
from tqdm.auto import tqdm

from dulvos.errors import InputError
from dulvos.files import cannot_write
from dulvos.masks import write_mask

__all__ = ["list_videos", "motorcycle", "rail", "render", "render_video"]

NAME, VERSION = "cutouts", 2
CYCLE = 24  # frames; rates of motion are in periods per cycle
NAMES = {"hubble": "hubble_deep_field", "ihc": "immunohistochemistry"}  # as scikit-image calls them
# Grey photographs are tinted, or a lack of colour alone would give an object away.
TINTS = {"brick": (1.15, 0.8, 0.65), "coins": (1.1, 0.95, 0.7), "grass": (0.8, 1.05, 0.55),
         "gravel": (1, 0.93, 0.82)}

Size = tuple[int, int]
Motion = Callable[[float], float]  # frame index -> pixels, radians or log of a scale
Images = Callable[[float], np.ndarray]  # frame index -> image


def list_videos() -> dict[str, dict[str, str]]:
    """The videos by name: split, background, objects (in the order of their ids), distractors, pace.

    The background "stereo" is a garage with depth, and its motorcycle is object 1. Distractors are cut-outs
    without a label. At pace 1, cut-outs move by up to one or two cells of the feature grid per frame.
    """
    return {video["name"]: video for video in _read_csv("videos")}


def _read_csv(name: str) -> list[dict[str, str]]:
    with open(Path(__file__).with_name(f"cutouts_{name}.csv"), newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@cache
def _photo(name: str) -> np.ndarray:
    """A photograph of the scikit-image wheel, (h, w, 3) uint8 RGB."""
    if name in ("motorcycle", "stereo"):
        return skimage.data.stereo_motorcycle()[0]
    photo = getattr(skimage.data, NAMES.get(name, name))()
    if photo.ndim == 2:
        photo = np.clip(photo[..., None] * np.float32(TINTS.get(name, (1, 1, 1))), 0, 255).astype(np.uint8)
    return photo


@cache
def motorcycle() -> tuple[np.ndarray, np.ndarray]:
    """The left photograph's disparity (h, w) float32, without holes, and the motorcycle (h, w) bool."""
    disparity = skimage.data.stereo_motorcycle()[2]
    known = np.isfinite(disparity)
    y, x = np.mgrid[: disparity.shape[0], : disparity.shape[1]]
    floor = 22.6 + 0.1815 * (y - 300) - 0.0024 * (x - 40)  # a plane fitted to the free parts of the floor
    near = np.uint8(known & (disparity > np.maximum(33, floor + 3)))
    near = cv2.morphologyEx(near, cv2.MORPH_CLOSE, np.ones((5, 5)))
    near = cv2.morphologyEx(near, cv2.MORPH_OPEN, np.ones((3, 3)))
    _, parts, stats, _ = cv2.connectedComponentsWithStats(near)
    behind = cv2.erode(np.where(known, disparity, np.float32(np.inf)), np.ones((41, 41)))
    disparity = cv2.medianBlur(np.where(known, disparity, behind), 5)  # keeps the edges smooth
    return disparity, parts == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()


def _cutout(name: str, area: float, rng: Generator) -> np.ndarray:
    """Cut photograph/shape out so that it covers `area` pixels: (n, n, 4) float32, RGB and opacity in 0..255.

    Three shapes have no listed outline: "blob", a random smooth one anywhere in the photograph; "horse", the
    silhouette in the wheel, filled from anywhere; "bike", the motorcycle, found by its disparity.
    """
    source, shape = name.split("/")
    h, w = _photo(source).shape[:2]
    opacity = np.zeros((h, w), np.uint8)
    if shape == "bike":
        opacity[motorcycle()[1]] = 255
    elif shape == "horse":
        horse = cv2.resize(np.uint8(~skimage.data.horse()) * 255, None, fx=0.7, fy=0.7)
        top, left = rng.integers(0, (h - horse.shape[0], w - horse.shape[1]), endpoint=True)
        opacity[top:top + horse.shape[0], left:left + horse.shape[1]] = horse
    elif shape == "blob":
        angle, radius = np.linspace(0, 2 * np.pi, 180), min(h, w) * rng.uniform(0.15, 0.26)
        bumps = sum(rng.uniform(0, 0.4) / k * np.cos(k * angle + rng.uniform(0, 7)) for k in range(2, 6))
        points = radius * (1 + bumps)[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
        points += rng.uniform(radius * 1.4, np.array([w, h]) - radius * 1.4)
        cv2.fillPoly(opacity, [np.int32(points)], 255)
    else:
        outline = next(row["outline"] for row in _read_csv("outlines") if row["cutout"] == name)
        points = [[int(number) for number in point.split(":")] for point in outline.split()]
        if len(points) == 1:
            cv2.circle(opacity, points[0][:2], points[0][2], 255, -1)
        else:
            cv2.fillPoly(opacity, [np.int32(points)], 255)
    opacity = cv2.GaussianBlur(opacity, (0, 0), max(h, w) / 250)  # rounds the corners
    x, y, width, height = cv2.boundingRect(opacity)
    side = max(width, height)
    square = cv2.copyMakeBorder(np.dstack([_photo(source), opacity]), *[side] * 4, cv2.BORDER_CONSTANT)
    x, y = x + (width + side) // 2, y + (height + side) // 2
    n = round(side * math.sqrt(area / (opacity.sum() / 255)))
    return cv2.resize(square[y:y + side, x:x + side], (n, n), interpolation=cv2.INTER_AREA).astype(np.float32)


def _wave(rng: Generator, amplitude: float, rate: tuple[float, float] = (0.2, 0.5)) -> Motion:
    """A sine of the frame index with a random phase and a random rate."""
    speed, phase = rng.uniform(*rate) * math.tau / CYCLE, rng.uniform(0, math.tau)
    return lambda t: amplitude * math.sin(speed * t + phase)


def _grid(size: Size) -> np.ndarray:
    """x and y of every pixel, (2, H, W) float32."""
    return np.stack(np.meshgrid(np.arange(size[1]), np.arange(size[0]))).astype(np.float32)


@dataclass(frozen=True)
class _Layer:
    """A cut-out and its motions; its id is 0 if it has no label."""

    sprite: np.ndarray
    id: int
    x: Motion
    y: Motion
    turn: Motion
    grow: Motion
    bend: Motion

    def at(self, t: float, grid: np.ndarray) -> np.ndarray:
        """The cut-out over the pixels of grid (2, h, w) at time t, (h, w, 4) float32."""
        x, y = grid[0] - np.float32(self.x(t)), grid[1] - np.float32(self.y(t))
        cos, sin = (np.float32(f(self.turn(t)) * math.exp(-self.grow(t))) for f in (math.cos, math.sin))
        x, y = cos * x + sin * y, cos * y - sin * x
        (h, w), bend = self.sprite.shape[:2], np.float32(self.bend(t))
        x, y = x + bend * w * np.sin(y * (5 / h) + bend), y + bend * h * np.sin(x * (6 / w) - 9 * bend)
        return cv2.remap(self.sprite, x + (w - 1) / 2, y + (h - 1) / 2, cv2.INTER_LINEAR)


def _choreograph(sprites: list[tuple[int, np.ndarray]], size: Size, pace: float,
                 rng: Generator) -> list[_Layer]:
    """Choose drawing order and motions: all objects start and stay in sight, and one is partly covered."""
    def path(length: int) -> Motion:
        centre, reach = length * rng.uniform(0.3, 0.7), length * rng.uniform(0.15, 0.35)
        sway = _wave(rng, reach, (0.2 * pace, 0.5 * pace))
        return lambda t: centre + sway(t)

    def move(id: int, sprite: np.ndarray) -> _Layer:
        turn, grow = _wave(rng, rng.uniform(0.3, 1.1)), _wave(rng, rng.uniform(0.05, 0.25))
        bend = _wave(rng, rng.uniform(0.01, 0.04), (0.4, 0.8))
        return _Layer(sprite, id, path(size[1]), path(size[0]), turn, grow, bend)

    coarse, best, best_score = _grid(size)[:, ::4, ::4], [], -1.0
    whole = [(sprite[..., 3] >= 128).sum() / 16 for _, sprite in sprites]
    for _ in range(200):
        order = rng.permutation(len(sprites))
        layers = [move(*sprites[i]) for i in order]
        inside = np.array([[layer.at(t, coarse)[..., 3] >= 128 for layer in layers]
                           for t in range(0, CYCLE, 2)])
        above = np.cumsum(inside[:, ::-1], 1)[:, ::-1] - inside  # [frames, layers, h, w], how many cover it
        labelled = [layer.id > 0 for layer in layers]
        inside, visible = (a.sum((2, 3))[:, labelled] / np.take(whole, order)[labelled]
                           for a in (inside, inside & (above == 0)))
        covered = 1 - (visible / np.maximum(inside, 1e-3)).min()
        mostly = np.quantile(visible, 0.15, 0).min()
        score = min(visible[0].min(), 0.7) + min(mostly, 0.45) + min(covered, 0.5)
        if score > best_score:
            best, best_score = layers, score
        if score >= 1.649:  # of 1.65
            break
    return best


def rail(left: np.ndarray, right: np.ndarray, disparity: np.ndarray) -> Images:
    """What a camera sees on its way from the left (0) to the right camera (1): share in [0, 1] -> (h, w, 4).

    A left pixel of disparity d moves to x - share * d, and the nearest pixel wins. What the left camera does
    not see comes from the right one, so nothing is invented. Images (h, w, 4) uint8, disparity (h, w) pixels.
    """
    h, w = disparity.shape
    x, y = _grid((h, w))
    rows, columns = np.unravel_index(np.argsort(disparity, axis=None, kind="stable"), (h, w))

    @lru_cache(1)
    def view(share: float) -> np.ndarray:
        depth = np.zeros((h, w), np.float32)
        moved = np.rint(columns - share * disparity[rows, columns]).astype(int)
        depth[rows[moved >= 0], moved[moved >= 0]] = disparity[rows, columns][moved >= 0]
        depth = cv2.morphologyEx(depth, cv2.MORPH_CLOSE, np.ones((3, 3)))  # closes cracks
        hole = depth == 0
        filled = cv2.erode(np.where(hole, disparity.max(), depth), np.ones((1, 81)))
        depth = np.where(hole, filled, depth)
        one, other = (cv2.remap(image, x + s * depth, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
                      for image, s in ((left, share), (right, share - 1)))
        seen = np.where(hole[..., None], other, one)
        seen[..., 3] = cv2.medianBlur(seen[..., 3], 7)
        return seen

    return view


def _background(name: str, size: Size, rng: Generator) -> Images:
    """A photograph under a moving camera: (H, W, 4) float32, RGB and the opacity of its own object."""
    photo = np.dstack([_photo(name), np.zeros_like(_photo(name)[..., :1])])
    h, w = photo.shape[:2]
    scale = (1.0 if name == "stereo" else 1.45) * max(size[0] / h, size[1] / w)
    h, w = round(h * scale), round(w * scale)

    def fit(image: np.ndarray) -> np.ndarray:
        return cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA).astype(np.float32)

    if name == "stereo":
        right, (disparity, near) = skimage.data.stereo_motorcycle()[1], motorcycle()
        left = np.dstack([photo[..., :3], 255 * np.uint8(near)])
        view = rail(left, np.dstack([right, photo[..., 3]]), disparity)
        slide = _wave(rng, 0.5, (0.6, 0.9))
    else:
        still = fit(photo)
    zoom, turn = _wave(rng, 0.15), _wave(rng, rng.uniform(0.03, 0.12))
    pan = [_wave(rng, rng.uniform(0.5, 0.9), (0.3, 0.6)) for _ in range(2)]

    def shot(t: float) -> np.ndarray:
        z, centre = math.exp(zoom(t) - 0.16), np.array(size[::-1]) / 2
        to = np.array([w, h]) / 2
        to += np.maximum(to - z * centre, 0) * [wave(t) for wave in pan]
        cos, sin = z * math.cos(turn(t)), z * math.sin(turn(t))
        turned = np.array([[cos, -sin], [sin, cos]])
        world = fit(view(0.5 + slide(round(t)))) if name == "stereo" else still
        matrix = np.column_stack([turned, to - turned @ centre])
        return cv2.warpAffine(world, matrix, size[::-1], flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                              borderMode=cv2.BORDER_REFLECT_101)

    return shot


def _light(size: Size, rng: Generator) -> Images:
    """Gains (H, W, 3) of a drifting light: brightness, times a shade that crosses the frame, times a cast."""
    level, cross = _wave(rng, rng.uniform(0.03, 0.15)), _wave(rng, 1.5)
    cast = [_wave(rng, 0.05) for _ in range(3)]
    depth, across = rng.uniform(0.05, 0.2), (rng.uniform(-4, 4, (2, 1, 1)) * _grid(size) / max(size)).sum(0)
    return lambda t: np.float32((0.95 + depth * np.cos(across + cross(t)))[..., None]
                                * [(1 + level(t)) * (1 + wave(t)) for wave in cast])


def render_video(name: str, *, seed: int = 0, size: Size = (192, 256),
                 frames: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Render one video, a pure function of its arguments.

    Arguments:
        name: a name in `list_videos`.
        seed: of everything that is drawn at random.
        size: (H, W) of the frames in pixels, at least 64 each.
        frames: their number T, at least 1.

    Returns:
        frames (T, H, W, 3) uint8 RGB and masks (T, H, W) uint8, ids 1, 2, ... on background 0.

    Raises:
        InputError: no such video, or a size or number of frames out of range.
    """
    videos, size = list_videos(), tuple(size)
    if min(size) < 64 or frames < 1:
        raise InputError(f"size={size}, frames={frames}: a video needs at least one frame of at least 64x64")
    if name not in videos:
        raise InputError(f"no video {name!r} in the embedded benchmark; its videos are {', '.join(videos)}")
    video, rng = videos[name], np.random.default_rng([seed, *name.encode()])
    background = video["background"]
    cutouts = [*enumerate(video["objects"].split(), 1 + (background == "stereo")),
               *((0, cutout) for cutout in video["distractors"].split())]
    areas = rng.uniform(0.08, 0.16, len(cutouts)) * size[0] * size[1]
    sprites = [(id, _cutout(cutout, area, rng)) for (id, cutout), area in zip(cutouts, areas)]
    layers = _choreograph(sprites, size, float(video["pace"]), rng)
    world, light, grid = _background(background, size, rng), _light(size, rng), _grid(size)

    def expose(t: float) -> tuple[np.ndarray, np.ndarray]:
        ground = world(t)
        image, ids = ground[..., :3], np.uint8(ground[..., 3] >= 127.5)
        for layer in layers:  # back to front
            above = layer.at(t, grid)
            image = image + above[..., 3:] / 255 * (above[..., :3] - image)
            ids = np.where(above[..., 3] >= 127.5, np.uint8(layer.id), ids)
        return image, ids

    images, masks = np.empty((frames, *size, 3), np.uint8), np.empty((frames, *size), np.uint8)
    for t in range(frames):
        (before, _), (now, masks[t]), (after, _) = (expose(t + offset) for offset in (-0.15, 0.0, 0.15))
        image = sum((before, now, after)) / 3 * light(t) + 4 * rng.standard_normal((*size, 3), np.float32)
        images[t] = np.clip(np.rint(image), 0, 255)
    return images, masks


def render(root: str | os.PathLike, *, seed: int = 0, size: Size = (192, 256),
           frames: tuple[int, int] = (24, 24), progress: bool = True) -> Path:
    """Render the benchmark into `root` in DAVIS-2017's layout, unless it is there already.

    It is rendered beside `root` and then renamed, so `root` is never half full. `benchmark.json` holds the
    settings.

    Arguments:
        root: a folder that is absent or empty, or that holds this benchmark with the same settings.
        seed, size: as for `render_video`.
        frames: of each training video and of each validation video.
        progress: show a progress bar.

    Raises:
        InputError: the folder holds something else or other settings, or cannot be written.
    """
    root, videos = Path(root), list_videos()
    settings = {"name": NAME, "version": VERSION, "seed": seed, "size": list(size), "frames": list(frames)}
    if _is_there(root, settings):
        return root
    part = root.with_name(f".{root.name}.{os.getpid()}")
    try:
        (part / "ImageSets/2017").mkdir(parents=True)
        for name, video in tqdm(videos.items(), desc=f"rendering {NAME}", unit="video", disable=not progress):
            with open(part / f"ImageSets/2017/{video['split']}.txt", "a") as stream:
                stream.write(f"{name}\n")
            folder = part / "JPEGImages/480p" / name
            folder.mkdir(parents=True)
            images, masks = render_video(name, seed=seed, size=size, frames=frames[video["split"] == "val"])
            for t, (image, ids) in enumerate(zip(images, masks)):
                Image.fromarray(image).save(folder / f"{t:05d}.jpg", quality=92)
                write_mask(part / "Annotations/480p" / name / f"{t:05d}.png", ids)
        (part / "benchmark.json").write_text(json.dumps(settings, indent=1) + "\n")
        if root.exists():
            root.rmdir()  # it is empty; not every system renames onto a folder
        os.sync()  # the data must reach the disk before the name promises them
        part.rename(root)
    except OSError as error:
        if not _is_there(root, settings):  # else another process was faster
            raise cannot_write(root, error.errno) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return root


def _is_there(root: Path, settings: dict) -> bool:
    """Whether root holds the benchmark with these settings; an InputError if it holds anything else."""
    if not root.exists() or root.is_dir() and not any(root.iterdir()):
        return False
    try:
        found = json.loads((root / "benchmark.json").read_text())
        found = {key: found.get(key) for key in settings}
    except (OSError, ValueError, AttributeError):
        raise InputError(f"{root}: holds something else than this benchmark; give a new folder") from None
    if found != settings:
        raise InputError(f"{root}: holds {found}, not {settings}; remove it or give a new folder")
    return True
