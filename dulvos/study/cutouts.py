"""The embedded benchmark "cutouts": rendered videos in DAVIS-2017's layout, for when no data set is at hand.

A rendered benchmark, not real video: its numbers never stand beside those of a real one. All texture is from the
photographs in the scikit-image wheel. Cut-outs of them move, turn, grow, bend and cover each other, while a camera
pans, turns and zooms over another photograph; one video is a stereo pair seen by a camera on a rail, with true
parallax. The light drifts, the shutter blurs, the sensor is noisy. Much of it misleads whoever matches colours:
objects move over the very photograph they are cut from, and look-alikes without a label move among them.

Training and validation share no photograph: astronaut, camera, gravel and motorcycle are kept for validation. Within
a split a photograph serves in several videos.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path

import cv2
import numpy as np
import skimage.data
from numpy.random import Generator
from PIL import Image
from tqdm.auto import tqdm

from dulvos.masks import write_mask
from dulvos.errors import InputError
from dulvos.files import cannot_write

__all__ = ["LATE_ENTRY", "SPECIAL", "TRAIN", "TRANSLATION", "VAL", "Scene", "render", "render_video"]

NAME, VERSION = "cutouts", 2
CYCLE = 24  # frames, the unit of all rates
TRANSLATION = (4, 8)  # (dy, dx) pixels a frame in the video "translation"
LATE_ENTRY = 4  # first frame with object 2 in the video "late-entry"
SPECIAL = ("static-noise", "translation", "occlusion", "late-entry")


@dataclass(frozen=True)
class Scene:
    """What a video shows; cut-outs are named photograph/shape, see `_cutout`.

    Fields:
        background: a photograph, or "stereo": a garage with depth, whose motorcycle is object 1.
        objects: cut-outs with a label, in the order of their ids.
        distractors: cut-outs without one.
        pace: of all these; 1 is up to one or two cells of features a frame.
    """

    background: str
    objects: tuple[str, ...]
    distractors: tuple[str, ...] = ()
    pace: float = 1.0


TRAIN = {
    "bricks": Scene("brick", ("brick/blob", "coffee/cup"), ("brick/blob",)),
    "cats": Scene("chelsea", ("chelsea/head",), ("chelsea/blob",)),
    "coins": Scene("coins", ("coins/athena", "coins/zeus"), ("coins/nike", "coins/zeus"), 1.5),
    "cups": Scene("coffee", ("coffee/cup", "coffee/saucer"), ("coffee/blob",)),
    "eyes": Scene("retina", ("chelsea/eye", "retina/blob"), ("retina/blob",)),
    "fur": Scene("chelsea", ("chelsea/blob", "ihc/gland"), ("chelsea/blob",)),
    "galaxies": Scene("hubble", ("hubble/blob", "retina/ball"), ("hubble/blob",), 2),
    "glands": Scene("ihc", ("ihc/gland", "ihc/lobe"), ("ihc/blob",)),
    "herd": Scene("grass", ("ihc/horse", "chelsea/horse", "brick/horse")),
    "launch": Scene("rocket", ("rocket/blob", "chelsea/head"), ("rocket/blob",), 2),
    "lawn": Scene("grass", ("grass/blob", "grass/blob"), ("grass/horse",)),
    "moons": Scene("moon", ("moon/blob", "coins/zeus"), ("moon/blob",)),
    "planets": Scene("hubble", ("retina/ball", "moon/ball", "coins/athena")),
    "table": Scene("coffee", ("chelsea/head", "retina/blob", "coffee/blob")),
    "tissue": Scene("ihc", ("ihc/blob",), ("ihc/gland", "ihc/blob")),
    "wall": Scene("brick", ("grass/horse", "coffee/saucer"), ("brick/horse",)),
}
VAL = {
    "astronauts": Scene("astronaut", ("astronaut/bust", "astronaut/helmet"), ("astronaut/blob",)),
    "cameramen": Scene("camera", ("camera/man", "astronaut/shuttle"), ("camera/man",)),
    "garage": Scene("stereo", ("astronaut/helmet",), ("motorcycle/blob",)),
    "gravel": Scene("gravel", ("gravel/blob", "camera/man"), ("gravel/blob",), 1.5),
    "riders": Scene("motorcycle", ("motorcycle/bike", "astronaut/bust", "motorcycle/blob")),
}

# In pixels of the photograph: x,y pairs of a polygon, or x,y,radius of a disk.
OUTLINES = {
    "astronaut/bust": "185,150 178,130 158,110 153,70 170,45 215,18 245,16 275,28 295,55 301,90 270,136 256,172 "
                      "285,195 302,228 302,262 275,290 225,292 165,272 132,242 115,205 118,186 135,162 160,150",
    "astronaut/helmet": "277,511 279,450 293,400 318,370 358,349 400,344 440,356 470,384 489,425 497,455 508,511",
    "astronaut/shuttle": "400,3 432,12 438,40 454,60 458,270 372,276 368,265 376,235 355,222 376,190 379,50 396,40",
    "camera/man": "70,330 30,250 75,140 155,105 165,85 190,65 225,66 255,85 270,115 262,136 320,140 322,180 331,195 "
                  "318,225 302,245 304,272 270,303 245,311 207,295 180,340 120,350",
    "chelsea/eye": "170,112,34",
    "chelsea/head": "45,0 398,0 355,80 362,120 330,210 312,250 290,285 240,290 190,275 120,225 60,170 35,110 35,50",
    "coffee/cup": "175,100 180,70 205,40 250,22 300,20 350,32 390,62 408,100 405,130 375,215 345,250 310,280 "
                  "255,282 228,306 200,298 198,270 218,240 190,205 175,160",
    "coffee/saucer": "80,200 90,150 120,110 172,78 185,50 215,28 270,18 330,25 380,50 425,75 418,100 450,135 "
                     "475,190 475,240 450,300 410,345 350,375 270,388 200,372 140,330 100,275",
    "coins/athena": "347,187,32",
    "coins/nike": "334,43,29",
    "coins/zeus": "46,260,28",
    "ihc/gland": "255,345 275,315 285,305 340,330 365,350 383,430 370,480 355,505 315,505 300,480 262,430 258,390",
    "ihc/lobe": "265,2 430,2 455,130 452,200 440,260 418,298 395,295 350,265 315,220 290,170 275,130",
    "moon/ball": "200,250,190",
    "retina/ball": "705,705,690",
}
NAMES = {"hubble": "hubble_deep_field", "ihc": "immunohistochemistry"}
# of grey photographs, lest grey alone give an object away
TINTS = {"brick": (1.15, 0.8, 0.65), "coins": (1.1, 0.95, 0.7), "grass": (0.8, 1.05, 0.55), "gravel": (1, 0.93, 0.82)}

Size = tuple[int, int]
Motion = Callable[[float], float]  # of the frame index
Images = Callable[[float], np.ndarray]


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
def _motorcycle() -> tuple[np.ndarray, np.ndarray]:
    """Disparity of the left photograph, (h, w) float32, holes filled from behind; the motorcycle's mask (h, w) bool."""
    disparity = skimage.data.stereo_motorcycle()[2]
    known = np.isfinite(disparity)
    y, x = np.mgrid[: disparity.shape[0], : disparity.shape[1]]
    floor = 22.6 + 0.1815 * (y - 300) - 0.0024 * (x - 40)  # the plane through its free parts
    near = np.uint8(known & (disparity > np.maximum(33, floor + 3)))
    near = cv2.morphologyEx(near, cv2.MORPH_CLOSE, np.ones((5, 5)))
    near = cv2.morphologyEx(near, cv2.MORPH_OPEN, np.ones((3, 3)))
    _, parts, stats, _ = cv2.connectedComponentsWithStats(near)
    behind = cv2.erode(np.where(known, disparity, np.float32(np.inf)), np.ones((41, 41)))
    disparity = cv2.medianBlur(np.where(known, disparity, behind), 5)  # cuts no comb into the edges
    return disparity, parts == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()


def _cutout(name: str, area: float, rng: Generator) -> np.ndarray:
    """Cut photograph/shape out to cover `area` pixels: (n, n, 4) float32, RGB and opacity in 0..255.

    Shapes: those of `OUTLINES`; "blob", a smooth random outline anywhere; "horse", the silhouette in the wheel,
    filled from anywhere; "bike", the motorcycle by its disparity.
    """
    source, shape = name.split("/")
    h, w = _photo(source).shape[:2]
    opacity = np.zeros((h, w), np.uint8)
    if shape == "bike":
        opacity[_motorcycle()[1]] = 255
    elif shape == "horse":
        horse = cv2.resize(np.uint8(~skimage.data.horse()) * 255, None, fx=0.7, fy=0.7)
        top, left = rng.integers(0, (h - horse.shape[0], w - horse.shape[1]), endpoint=True)
        opacity[top:top + horse.shape[0], left:left + horse.shape[1]] = horse
    elif len(points := np.array([point.split(",") for point in OUTLINES.get(name, "").split()], float)) == 1:
        cv2.circle(opacity, np.int32(points[0, :2]), int(points[0, 2]), 255, -1)
    else:
        if shape == "blob":
            angle, radius = np.linspace(0, 2 * np.pi, 180), min(h, w) * rng.uniform(0.15, 0.26)
            bumps = sum(rng.uniform(0, 0.4) / k * np.cos(k * angle + rng.uniform(0, 7)) for k in range(2, 6))
            points = radius * (1 + bumps)[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
            points += rng.uniform(radius * 1.4, np.array([w, h]) - radius * 1.4)
        cv2.fillPoly(opacity, [np.int32(points)], 255)
    opacity = cv2.GaussianBlur(opacity, (0, 0), max(h, w) / 250)  # rounds the corners
    x, y, width, height = cv2.boundingRect(opacity)
    side = max(width, height)
    square = cv2.copyMakeBorder(np.dstack([_photo(source), opacity]), *[side] * 4, cv2.BORDER_CONSTANT)
    x, y = x + (width + side) // 2, y + (height + side) // 2
    n = round(side * math.sqrt(area / (opacity.sum() / 255)))
    return cv2.resize(square[y:y + side, x:x + side], (n, n), interpolation=cv2.INTER_AREA).astype(np.float32)


def _wave(rng: Generator, amplitude: float, rate: tuple[float, float] = (0.2, 0.5)) -> Motion:
    """A sine of the frame index with a random phase and a random rate in periods a cycle."""
    speed, phase = rng.uniform(*rate) * math.tau / CYCLE, rng.uniform(0, math.tau)
    return lambda t: amplitude * math.sin(speed * t + phase)


def _constant(value):
    return lambda t: value


def _grid(size: Size) -> np.ndarray:
    """x and y of every pixel, (2, H, W) float32."""
    return np.stack(np.meshgrid(np.arange(size[1]), np.arange(size[0]))).astype(np.float32)


@dataclass(frozen=True)
class _Layer:
    """A cut-out and its motion: functions of the frame index, in pixels and radians."""

    sprite: np.ndarray
    id: int
    x: Motion
    y: Motion
    turn: Motion = _constant(0.0)
    grow: Motion = _constant(0.0)
    bend: Motion = _constant(0.0)

    def at(self, t: float, grid: np.ndarray) -> np.ndarray:
        """The cut-out as it lies over the pixels of grid (2, h, w) at time t, (h, w, 4) float32."""
        x, y = grid[0] - np.float32(self.x(t)), grid[1] - np.float32(self.y(t))
        cos, sin = (np.float32(f(self.turn(t)) * math.exp(-self.grow(t))) for f in (math.cos, math.sin))
        x, y = cos * x + sin * y, cos * y - sin * x
        h, w = self.sprite.shape[:2]
        if bend := np.float32(self.bend(t)):
            x, y = x + bend * w * np.sin(y * (5 / h) + bend), y + bend * h * np.sin(x * (6 / w) - 9 * bend)
        return cv2.remap(self.sprite, x + (w - 1) / 2, y + (h - 1) / 2, cv2.INTER_LINEAR)


def _choreograph(sprites: list[tuple[int, np.ndarray]], size: Size, pace: float, rng: Generator) -> list[_Layer]:
    """Draw order and motions so that every object starts in sight and stays, and one is covered in part."""
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
        inside = np.array([[layer.at(t, coarse)[..., 3] >= 128 for layer in layers] for t in range(0, CYCLE, 2)])
        above = np.cumsum(inside[:, ::-1], 1)[:, ::-1] - inside  # [frames, layers, h, w], cut-outs on top of it
        labelled = [layer.id > 0 for layer in layers]
        inside, visible = (a.sum((2, 3))[:, labelled] / np.take(whole, order)[labelled]
                           for a in (inside, inside & (above == 0)))
        covered = 1 - (visible / np.maximum(inside, 1e-3)).min()
        score = min(visible[0].min(), 0.7) + min(np.quantile(visible, 0.15, 0).min(), 0.45) + min(covered, 0.5)
        if score > best_score:
            best, best_score = layers, score
        if score >= 1.649:
            break
    return best


def _rail(left: np.ndarray, right: np.ndarray, disparity: np.ndarray) -> Images:
    """What a camera sees a share of the way from the left to the right one: share in [0, 1] -> (h, w, 4).

    A left pixel of disparity d lands at x - share * d, the nearest on top; what the left camera does not see comes
    from the right one, so that nothing is made up. Images (h, w, 4) uint8, disparity (h, w) in pixels.
    """
    h, w = disparity.shape
    x, y = _grid((h, w))
    rows, columns = np.unravel_index(np.argsort(disparity, axis=None, kind="stable"), (h, w))

    @lru_cache(1)
    def view(share: float) -> np.ndarray:
        depth = np.zeros((h, w), np.float32)
        moved = np.rint(columns - share * disparity[rows, columns]).astype(int)
        depth[rows[moved >= 0], moved[moved >= 0]] = disparity[rows, columns][moved >= 0]
        depth = cv2.morphologyEx(depth, cv2.MORPH_CLOSE, np.ones((3, 3)))  # cracks, where a surface widens
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
    """A photograph under a moving camera: frame index -> (H, W, 4) float32, RGB and opacity of its own object."""
    h, w = _photo(name).shape[:2]
    scale = (1.0 if name == "stereo" else 1.45) * max(size[0] / h, size[1] / w)
    h, w = round(h * scale), round(w * scale)
    photo = np.dstack([_photo(name), np.zeros_like(_photo(name)[..., :1])])
    world = _constant(cv2.resize(photo, (w, h), interpolation=cv2.INTER_AREA).astype(np.float32))
    if name == "stereo":
        right, (disparity, near) = skimage.data.stereo_motorcycle()[1], _motorcycle()
        view = _rail(np.dstack([_photo(name), 255 * np.uint8(near)]), np.dstack([right, photo[..., 3]]), disparity)
        slide = _wave(rng, 0.5, (0.6, 0.9))

        def world(t: float) -> np.ndarray:
            share = 0.5 + slide(round(t))
            return cv2.resize(view(share), (w, h), interpolation=cv2.INTER_AREA).astype(np.float32)

    zoom, turn = _wave(rng, 0.15), _wave(rng, rng.uniform(0.03, 0.12))
    pan = [_wave(rng, rng.uniform(0.5, 0.9), (0.3, 0.6)) for _ in range(2)]

    def shot(t: float) -> np.ndarray:
        z, centre = math.exp(zoom(t) - 0.16), np.array(size[::-1]) / 2
        to = np.array([w, h]) / 2
        to += np.maximum(to - z * centre, 0) * [wave(t) for wave in pan]
        cos, sin = z * math.cos(turn(t)), z * math.sin(turn(t))
        turned = np.array([[cos, -sin], [sin, cos]])
        matrix, flags = np.column_stack([turned, to - turned @ centre]), cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(world(t), matrix, size[::-1], flags=flags, borderMode=cv2.BORDER_REFLECT_101)

    return shot


def _light(size: Size, rng: Generator) -> Images:
    """Drifting light: frame index -> gains (H, W, 3), of brightness, a shade that crosses the frame, a cast."""
    level, cross = _wave(rng, rng.uniform(0.03, 0.15)), _wave(rng, 1.5)
    cast = [_wave(rng, 0.05) for _ in range(3)]
    depth, across = rng.uniform(0.05, 0.2), (rng.uniform(-4, 4, (2, 1, 1)) * _grid(size) / max(size)).sum(0)
    return lambda t: np.float32((0.95 + depth * np.cos(across + cross(t)))[..., None]
                                * [(1 + level(t)) * (1 + wave(t)) for wave in cast])


def _expose(background: Images, layers: list[_Layer], t: float, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Background and layers, back to front, at one instant: image (H, W, 3) float32 and ids (H, W) uint8."""
    ground = background(t)
    image, ids = ground[..., :3], np.uint8(ground[..., 3] >= 127.5)
    for layer in layers:
        above = layer.at(t, grid)
        image = image + above[..., 3:] / 255 * (above[..., :3] - image)
        ids = np.where(above[..., 3] >= 127.5, np.uint8(layer.id), ids)
    return image, ids


def _special(kind: str, size: Size, frames: int, rng: Generator) -> tuple[Images, list[_Layer]]:
    """Background and layers of a video of `SPECIAL`."""
    h, w = size
    still = np.zeros((h, w, 4), np.float32)
    still[..., :3] = cv2.resize(_photo("grass"), (w, h), interpolation=cv2.INTER_AREA)
    cup, blob = (_cutout(name, h * w / 24, rng) for name in ("coffee/cup", "chelsea/blob"))
    if kind == "static-noise":
        still[..., :3] = rng.integers(0, 256, (h, w, 3))
        blob[..., :3] = still[:len(blob), :len(blob), :3]
        layers = [_Layer(blob, 1, _constant(w / 2), _constant(h / 2))]
    elif kind == "translation":
        y, x = (length + (len(cup) - 1) / 2 % 1 for length in (h // 4, w // 6))  # pixels lie on pixels
        layers = [_Layer(cup, 1, lambda t: x + TRANSLATION[1] * t, lambda t: y + TRANSLATION[0] * t)]
    elif kind == "occlusion":
        post = cv2.resize(_photo("brick")[:, :256], (w * 2 // 5, h), interpolation=cv2.INTER_AREA)
        post = np.dstack([post, np.full(post.shape[:2], 255)]).astype(np.float32)
        layers = [_Layer(cup, 1, lambda t: w * (0.13 + 0.74 * t / max(frames - 1, 1)), _constant(h / 2)),
                  _Layer(post, 0, _constant(w / 2), _constant((h - 1) / 2))]
    else:
        layers = [_Layer(cup, 1, lambda t: w * 0.3 + t, _constant(h * 0.4)),
                  _Layer(blob, 2, lambda t: w * 0.7 - t if t >= LATE_ENTRY else 2 * w, _constant(h * 0.6))]
    return _constant(still), layers


def render_video(
    scene: str | Scene, *, seed: int = 0, size: Size = (192, 256), frames: int = 24
) -> tuple[np.ndarray, np.ndarray]:
    """Render one video, a pure function of its arguments.

    The videos of `SPECIAL` are plain ones for tests, with a camera at rest and neither drifting light, blur nor
    sensor noise: the same noise in every frame; an object that moves by `TRANSLATION` each frame; one that is wholly
    hidden in the middle; one that is joined by object 2 in frame `LATE_ENTRY`.

    Arguments:
        scene: a name in `TRAIN`, `VAL` or `SPECIAL`, or a scene of your own.
        seed: of all that is drawn.
        size: (H, W) of the frames in pixels, at least 64 each.
        frames: their number T, at least 1.

    Returns:
        frames (T, H, W, 3) uint8 RGB and masks (T, H, W) uint8, ids 1, 2, ... on background 0.

    Raises:
        InputError: no such video, or a size or number of frames out of range.
    """
    if min(size) < 64 or frames < 1:
        raise InputError(f"size={size}, frames={frames}: a video has at least one frame of at least 64x64 pixels")
    name, scenes, size = str(scene), TRAIN | VAL, tuple(size)
    if isinstance(scene, str) and scene not in SPECIAL and scene not in scenes:
        raise InputError(f"no video {scene!r}; there are {', '.join([*SPECIAL, *scenes])}")
    rng = np.random.default_rng([seed, *name.encode()])
    if name in SPECIAL:
        background, layers = _special(name, size, frames, rng)
        light, shutter, noise = _constant(np.float32(1)), (0.0,), 0.0
    else:
        scene = scenes.get(name, scene)
        cutouts = [*enumerate(scene.objects, 1 + (scene.background == "stereo")), *((0, n) for n in scene.distractors)]
        areas = rng.uniform(0.08, 0.16, len(cutouts)) * size[0] * size[1]
        sprites = [(id, _cutout(n, area, rng)) for (id, n), area in zip(cutouts, areas)]
        layers = _choreograph(sprites, size, scene.pace, rng)
        background, light = _background(scene.background, size, rng), _light(size, rng)
        shutter, noise = (-0.15, 0.0, 0.15), 4.0
    grid = _grid(size)
    video, masks = np.empty((frames, *size, 3), np.uint8), np.empty((frames, *size), np.uint8)
    for t in range(frames):
        images, ids = zip(*(_expose(background, layers, t + offset, grid) for offset in shutter))
        image = sum(images) / len(images) * light(t) + noise * rng.standard_normal((*size, 3), np.float32)
        video[t], masks[t] = np.clip(np.rint(image), 0, 255), ids[len(ids) // 2]
    return video, masks


def render(
    root: str | os.PathLike, *, seed: int = 0, size: Size = (192, 256),
    frames: tuple[int, int] = (24, 24), progress: bool = True,
) -> Path:
    """Render the benchmark into `root` in DAVIS-2017's layout, or find it there.

    It is rendered beside `root` and then renamed, so that what is there is whole; `benchmark.json` holds its
    settings.

    Arguments:
        root: the folder, absent or empty, or with this benchmark of the same settings in it.
        seed, size: as for `render_video`.
        frames: of each training video and of each validation video.
        progress: show a bar.

    Raises:
        InputError: the folder holds something else, or the benchmark with other settings; a setting is out of range.
    """
    root = Path(root)
    settings = {"name": NAME, "version": VERSION, "seed": seed, "size": list(size), "frames": list(frames)}
    if _is_there(root, settings):
        return root
    part = root.with_name(f".{root.name}.{os.getpid()}")
    try:
        for split, scenes in (("train", TRAIN), ("val", VAL)):
            listing = part / "ImageSets" / "2017" / f"{split}.txt"
            listing.parent.mkdir(parents=True, exist_ok=True)
            listing.write_text("".join(f"{name}\n" for name in scenes))
        for name in tqdm([*TRAIN, *VAL], desc=f"rendering {NAME}", unit="video", disable=not progress):
            images, annotations = (part / kind / "480p" / name for kind in ("JPEGImages", "Annotations"))
            images.mkdir(parents=True)
            video, masks = render_video(name, seed=seed, size=size, frames=frames[name in VAL])
            for t, (frame, ids) in enumerate(zip(video, masks)):
                Image.fromarray(frame).save(images / f"{t:05d}.jpg", quality=92)
                write_mask(annotations / f"{t:05d}.png", ids)
        scenes = {name: asdict(scene) for name, scene in (TRAIN | VAL).items()}
        (part / "benchmark.json").write_text(json.dumps({**settings, "scenes": scenes}, indent=1) + "\n")
        if root.exists():
            root.rmdir()  # empty, as seen above, and no target for a rename everywhere
        os.sync()  # what the name promises must be on the disk before the name
        part.rename(root)
    except OSError as error:
        if not _is_there(root, settings):  # else another process was faster
            raise cannot_write(root, error.errno) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return root


def _is_there(root: Path, settings: dict) -> bool:
    """Whether root holds the benchmark with these settings; an error if it holds anything else."""
    if not root.exists() or root.is_dir() and not any(root.iterdir()):
        return False
    try:
        found = json.loads((root / "benchmark.json").read_text())
        found = {key: found.get(key) for key in settings}
    except (OSError, ValueError, AttributeError):
        raise InputError(f"{root}: holds no rendered benchmark but something else; give a new folder") from None
    if found != settings:
        raise InputError(f"{root}: holds {found}, not {settings}; remove it or give a new folder")
    return True
