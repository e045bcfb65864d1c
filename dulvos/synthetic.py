"""The embedded benchmark "cutouts": rendered videos in DAVIS-2017's layout, for studies where no data set is at hand.

It is a rendered benchmark, not real video, and its numbers never stand beside those of a real one. Every texture comes
from the photographs inside the scikit-image wheel: cut-outs of them move, turn, grow, bend and cover each other before
a photograph that a camera pans, turns and zooms over; one video is a true stereo pair seen by a camera on a rail. The
light drifts, the shutter blurs, the sensor is noisy. Much is meant to mislead a matcher of raw colour: objects are cut
from the very photograph they move over, and look-alikes without a label move among them.

Training and validation share no photograph: astronaut, camera, gravel and motorcycle are kept for validation. A few
photographs serve in several videos of their split.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import skimage.data
from numpy.random import Generator
from PIL import Image
from tqdm.auto import tqdm

from dulvos.datasets import write_mask
from dulvos.errors import InputError

__all__ = ["LATE_ENTRY", "SPECIAL", "TRAIN", "TRANSLATION", "VAL", "Scene", "render", "render_video"]

NAME, VERSION = "cutouts", 1
CLIP = 24  # frames in which motion and light run through their cycle
TRANSLATION = (4, 8)  # (dy, dx) pixels a frame in the video "translation"
LATE_ENTRY = 4  # first frame with object 2 in the video "late-entry"
SPECIAL = ("static-noise", "translation", "occlusion", "late-entry")


@dataclass(frozen=True)
class Scene:
    """What a video shows; cut-outs are named photograph/shape, see `_cutout`.

    Fields:
        background: a photograph, or "stereo": the garage with its depth, whose motorcycle is object 1.
        objects: cut-outs with a label, in the order of their ids.
        distractors: cut-outs that move among them without a label.
        share: range of the part of the frame a cut-out covers.
    """

    background: str
    objects: tuple[str, ...]
    distractors: tuple[str, ...] = ()
    share: tuple[float, float] = (0.06, 0.13)


TRAIN = {
    "cats": Scene("chelsea", ("chelsea/head",), ("chelsea/blob",)),
    "coins": Scene("coins", ("coins/athena", "coins/zeus"), ("coins/nike", "coins/horn")),
    "cups": Scene("coffee", ("coffee/cup", "coffee/saucer"), ("coffee/spoon",)),
    "eyes": Scene("retina", ("chelsea/eye", "retina/blob"), ("retina/blob",)),
    "fabric": Scene("brick", ("brick/blob", "coffee/cup"), ("brick/blob",)),
    "fur": Scene("chelsea", ("chelsea/blob", "ihc/gland"), ("chelsea/blob",)),
    "galaxies": Scene("hubble", ("hubble/blob", "retina/ball"), ("hubble/blob",)),
    "glands": Scene("ihc", ("ihc/gland", "ihc/lobe"), ("ihc/blob",)),
    "herd": Scene("grass", ("ihc/horse", "chelsea/horse", "brick/horse")),
    "lawn": Scene("grass", ("grass/blob", "grass/blob"), ("grass/horse",)),
    "launch": Scene("rocket", ("rocket/blob", "chelsea/head"), ("rocket/blob",)),
    "moons": Scene("moon", ("moon/blob", "coins/zeus"), ("moon/blob",)),
    "planets": Scene("hubble", ("retina/ball", "moon/ball", "coins/athena")),
    "stalls": Scene("coffee", ("chelsea/head", "retina/blob", "coffee/blob")),
    "tissue": Scene("ihc", ("ihc/blob",), ("ihc/gland", "ihc/blob")),
    "wall": Scene("brick", ("grass/horse", "coffee/saucer"), ("brick/horse",)),
}
VAL = {
    "astronauts": Scene("astronaut", ("astronaut/bust", "astronaut/helmet"), ("astronaut/suit",)),
    "cameramen": Scene("camera", ("camera/head", "camera/coat"), ("camera/coat",)),
    "garage": Scene("stereo", ("astronaut/helmet",), ("motorcycle/blob",)),
    "gravel": Scene("gravel", ("gravel/blob", "camera/head"), ("gravel/blob",)),
    "riders": Scene("motorcycle", ("motorcycle/bike", "astronaut/bust", "motorcycle/blob")),
}

# Outlines in pixels of the photograph: x,y pairs of a polygon, or x,y,radius of a disk.
OUTLINES = {
    "astronaut/bust": "185,150 178,130 158,110 153,70 170,45 195,30 215,18 245,16 275,28 295,55 301,90 290,120 "
                      "270,136 262,142 256,172 285,195 302,228 302,262 275,290 225,292 165,272 132,242 115,205 "
                      "118,186 135,162 160,150",
    "astronaut/helmet": "277,511 279,450 293,400 318,370 358,349 400,344 440,356 470,384 489,425 497,455 508,470 508,511",
    "astronaut/suit": "30,500 20,390 35,330 50,280 80,235 110,215 150,270 210,295 275,294 305,262 310,238 330,245 "
                      "345,275 355,310 361,345 325,362 295,395 280,440 276,511 35,511",
    "camera/coat": "2,511 2,255 20,230 50,185 75,140 110,125 130,122 155,105 165,85 190,65 225,66 255,85 270,115 "
                   "262,136 320,140 325,150 322,180 331,195 318,225 302,245 304,272 270,303 245,311 207,295 180,340 "
                   "141,382 148,430 150,511",
    "camera/head": "120,200 130,122 155,105 165,85 190,65 225,66 255,85 270,115 262,136 320,140 325,150 322,180 331,195 "
                   "318,225 290,240 240,240 180,250 130,240",
    "chelsea/eye": "170,112,34",
    "chelsea/head": "45,0 110,0 200,0 300,0 398,0 372,55 355,80 362,120 350,165 330,210 312,250 290,285 240,290 190,275 "
                    "120,225 60,170 35,110 35,50",
    "coffee/cup": "175,100 180,70 205,40 250,22 300,20 350,32 390,62 408,100 405,130 390,175 375,215 345,250 310,280 "
                  "280,283 255,282 228,306 200,298 198,270 218,240 190,205 175,160",
    "coffee/saucer": "80,200 90,150 120,110 172,78 185,50 215,28 270,18 330,25 380,50 400,72 410,66 425,75 418,100 "
                     "450,135 475,190 475,240 450,300 410,345 350,375 270,388 200,372 140,330 100,275",
    "coffee/spoon": "325,285 333,258 360,245 387,253 405,272 403,298 385,318 360,325 335,312",
    "coins/athena": "347,187,32",
    "coins/horn": "270,258,48",
    "coins/nike": "334,43,29",
    "coins/zeus": "46,260,28",
    "ihc/gland": "255,345 275,315 285,305 300,318 340,330 365,350 380,390 383,430 370,480 355,505 315,505 300,480 280,455 "
                 "262,430 258,390",
    "ihc/lobe": "265,2 430,2 445,60 455,130 452,200 440,260 418,298 395,295 350,265 315,220 290,170 275,130",
    "moon/ball": "200,250,190",
    "retina/ball": "705,705,690",
}
# The grey photographs get a tint, lest grey alone give an object away.
TINTS = {"brick": (1.15, 0.8, 0.65), "coins": (1.1, 0.95, 0.7), "grass": (0.8, 1.05, 0.55), "gravel": (1.0, 0.93, 0.82)}
PHOTOS = {"hubble": "hubble_deep_field", "ihc": "immunohistochemistry"}


@cache
def _photo(name: str) -> np.ndarray:
    """(h, w, 3) uint8 RGB of a photograph in the scikit-image wheel, tinted where it is grey."""
    if name in ("motorcycle", "stereo"):
        return skimage.data.stereo_motorcycle()[0]
    photo = getattr(skimage.data, PHOTOS.get(name, name))()
    if photo.ndim == 2:
        photo = np.clip(photo[..., None] * np.float32(TINTS.get(name, (1, 1, 1))), 0, 255).astype(np.uint8)
    return photo


@cache
def _motorcycle() -> tuple[np.ndarray, np.ndarray]:
    """Disparity (h, w) float32 of the left photograph, holes filled from behind, and the motorcycle's mask (h, w) bool."""
    disparity = skimage.data.stereo_motorcycle()[2]
    known = np.isfinite(disparity)
    y, x = np.mgrid[: disparity.shape[0], : disparity.shape[1]]
    floor = 22.6 + 0.1815 * (y - 300) - 0.0024 * (x - 40)  # the plane fitted to its free parts
    near = (np.where(known, disparity, 0) > np.maximum(33, floor + 3)).astype(np.uint8)
    near = cv2.morphologyEx(near, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7)))
    near = cv2.morphologyEx(near, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3)))
    _, parts, stats, _ = cv2.connectedComponentsWithStats(near)
    behind = cv2.erode(np.where(known, disparity, np.inf).astype(np.float32), np.ones((41, 41)))
    return np.where(known, disparity, behind), parts == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()


def _cutout(name: str, area: float, rng: Generator) -> np.ndarray:
    """Cut "photograph/shape" out, so that it covers `area` pixels: (n, n, 4) float32, RGB and opacity 0..255.

    Shapes: one of `OUTLINES`; "blob", a smooth random outline anywhere; "horse", the wheel's silhouette of a horse filled
    from anywhere in the photograph; "bike", the motorcycle by its disparity.
    """
    photo, (source, shape) = _photo(name.split("/")[0]), name.split("/")
    h, w = photo.shape[:2]
    opacity = np.zeros((h, w), np.uint8)
    if shape == "bike":
        opacity[_motorcycle()[1]] = 255
    elif shape == "horse":
        horse = cv2.resize((~skimage.data.horse()).astype(np.uint8) * 255, None, fx=0.7, fy=0.7)
        top, left = rng.integers(0, (h - horse.shape[0], w - horse.shape[1]), endpoint=True)
        opacity[top:top + horse.shape[0], left:left + horse.shape[1]] = horse
    elif shape == "blob":
        angle = np.linspace(0, 2 * np.pi, 180)
        radius = min(h, w) * rng.uniform(0.15, 0.26)
        waves = [rng.uniform(0, 0.5) / k * np.cos(k * angle + rng.uniform(0, 6.3)) for k in range(2, 6)]
        points = (1 + sum(waves)) * np.stack([np.cos(angle), np.sin(angle)])
        points = radius * points + rng.uniform(radius * 1.4, np.array([[w], [h]]) - radius * 1.4)
        cv2.fillPoly(opacity, [np.int32(points.T)], 255)
    else:
        points = np.array([np.float32(point.split(",")) for point in OUTLINES[name].split()])
        if points.shape[1] == 3:
            x, y, radius = points[0].astype(int).tolist()
            cv2.circle(opacity, (x, y), radius, 255, -1)
        else:
            cv2.fillPoly(opacity, [points.astype(np.int32)], 255)
    opacity = cv2.GaussianBlur(opacity, (0, 0), max(h, w) / 250)  # rounds the corners
    x, y, bw, bh = cv2.boundingRect(opacity)
    pad = max(bw, bh)
    padded = cv2.copyMakeBorder(np.dstack([photo, opacity]), pad, pad, pad, pad, cv2.BORDER_CONSTANT)
    x, y = x + (bw - pad) // 2 + pad, y + (bh - pad) // 2 + pad
    n = round(np.sqrt(area / (opacity.sum() / 255)) * pad)
    return cv2.resize(padded[y:y + pad, x:x + pad], (n, n), interpolation=cv2.INTER_AREA).astype(np.float32)


def _wave(rng: Generator, amplitude: float, rate: tuple[float, float] = (0.4, 1.1)) -> Callable[[float], float]:
    """A sine of the frame index with a random phase and a random rate in cycles a clip."""
    rate, phase = float(rng.uniform(*rate)) * 2 * math.pi / CLIP, float(rng.uniform(0, 2 * math.pi))
    amplitude = float(amplitude)
    return lambda t: amplitude * math.sin(rate * t + phase)


def _constant(value: float) -> Callable[[float], float]:
    return lambda t: value


@dataclass(frozen=True)
class Layer:
    """A cut-out and its motion: functions of the frame index, in pixels and radians."""

    sprite: np.ndarray
    id: int
    x: Callable[[float], float]
    y: Callable[[float], float]
    turn: Callable[[float], float] = _constant(0.0)
    grow: Callable[[float], float] = _constant(0.0)
    bend: Callable[[float], float] = _constant(0.0)
    start: int = 0

    def warp(self, t: float, grid: np.ndarray) -> np.ndarray:
        """The sprite at time t, sampled at grid (2, h, w), pixels as x, y: (h, w, 4), transparent where it is not."""
        if round(t) < self.start:
            return np.zeros((*grid.shape[1:], 4), np.float32)
        x, y = grid[0] - np.float32(self.x(t)), grid[1] - np.float32(self.y(t))
        cos, sin = (np.float32(f(self.turn(t)) * np.exp(-self.grow(t))) for f in (np.cos, np.sin))
        x, y = cos * x + sin * y, cos * y - sin * x
        h, w = self.sprite.shape[:2]
        if bend := np.float32(self.bend(t)):
            x, y = x + bend * w * np.sin(y * (5 / h) + bend), y + bend * h * np.sin(x * (6 / w) - 9 * bend)
        return cv2.remap(self.sprite, x + (w - 1) / 2, y + (h - 1) / 2, cv2.INTER_LINEAR)


def _move(sprite: np.ndarray, id: int, size: tuple[int, int], rng: Generator) -> Layer:
    """Draw a motion for a cut-out."""
    def path(length: int) -> Callable[[float], float]:
        centre, wave = length * rng.uniform(0.3, 0.7), _wave(rng, length * rng.uniform(0.12, 0.35))
        return lambda t: centre + wave(t)

    x, y = path(size[1]), path(size[0])
    turn, grow = _wave(rng, rng.uniform(0.4, 1.3)), _wave(rng, rng.uniform(0.1, 0.3))
    return Layer(sprite, id, x, y, turn, grow, _wave(rng, rng.uniform(0.02, 0.06), (0.6, 1.6)))


def _choreograph(sprites: list[tuple[np.ndarray, int]], size: tuple[int, int], rng: Generator) -> list[Layer]:
    """Draw motions, back to front, until every object starts in sight, stays in the video and one is covered in part."""
    grid = _grid(size)[:, ::4, ::4]
    best, best_score = [], -np.inf
    for _ in range(200):
        layers = [_move(*sprites[i], size, rng) for i in rng.permutation(len(sprites))]
        seen = []  # (t, object, [visible, in the frame, nominal])
        for t in range(0, CLIP, 2):
            ids, whole = np.zeros(grid.shape[1:], int), {}
            for k, layer in enumerate(layers):
                inside = layer.warp(t, grid)[..., 3] >= 128
                ids[inside], whole[k] = k + 1, inside.sum()
            seen.append([((ids == k + 1).sum(), whole[k], (layer.sprite[..., 3] >= 128).sum() / 16)
                         for k, layer in enumerate(layers) if layer.id])
        visible, inside, nominal = np.moveaxis(np.array(seen, float), 2, 0)
        covered = 1 - (visible / np.maximum(inside, 1)).min()
        starts, stays = (visible / nominal)[0].min(), np.quantile(visible / nominal, 0.15, axis=0).min()
        score = min(starts, 0.7) + min(stays, 0.45) + (min(covered, 0.5) if len(sprites) > 1 else 0.5)
        if score > best_score:
            best, best_score = layers, score
        if best_score >= 1.649:
            break
    return best


def _grid(size: tuple[int, int]) -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(size[1]), np.arange(size[0]))).astype(np.float32)


def _rail(left: np.ndarray, right: np.ndarray, disparity: np.ndarray, near: np.ndarray) -> Callable:
    """The scene seen from a share of the way between two cameras: share -> (image, mask of the near part).

    A left pixel with disparity d lands at x - share * d, the nearest on top; what only the right camera sees comes
    from its photograph, so that nothing is made up. Images (h, w, 3) float32, disparity (h, w) in pixels.
    """
    h, w = disparity.shape
    grid, order = _grid((h, w)), np.argsort(disparity, axis=None, kind="stable")
    y, x = np.unravel_index(order, (h, w))

    def view(share: float) -> tuple[np.ndarray, np.ndarray]:
        landed, mask = np.zeros((h, w), np.float32), np.zeros((h, w), np.float32)
        to = np.round(x - share * disparity[y, x]).astype(int)
        inside = to >= 0
        landed[y[inside], to[inside]] = disparity[y[inside], x[inside]]
        mask[y[inside], to[inside]] = near[y[inside], x[inside]]
        landed, mask = (cv2.morphologyEx(a, cv2.MORPH_CLOSE, np.ones((1, 3))) for a in (landed, mask))  # cracks
        hole = landed == 0
        landed = np.where(hole, cv2.erode(np.where(hole, np.float32(np.inf), landed), np.ones((1, 41))), landed)
        landed = np.minimum(landed, disparity.max())
        image = cv2.remap(left, grid[0] + share * landed, grid[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        other = cv2.remap(right, grid[0] - (1 - share) * landed, grid[1], cv2.INTER_LINEAR,
                          borderMode=cv2.BORDER_REPLICATE)
        return np.where(hole[..., None], other, image), mask

    return view


def _background(name: str, size: tuple[int, int], rng: Generator) -> Callable:
    """A photograph under a moving camera: frame index -> image (H, W, 3) float32 and ids (H, W) of its own object."""
    h, w = _photo(name).shape[:2]
    room = 1.0 if name == "stereo" else 1.45
    scale = room * max(size[0] / h, size[1] / w)
    h, w = round(h * scale), round(w * scale)

    def fit(array: np.ndarray) -> np.ndarray:
        return cv2.resize(array.astype(np.float32), (w, h), interpolation=cv2.INTER_AREA)

    if name == "stereo":
        left, right, _ = skimage.data.stereo_motorcycle()
        disparity, near = _motorcycle()
        view = _rail(fit(left), fit(right), scale * fit(disparity), fit(near) >= 0.5)
        slide = _wave(rng, 0.5, (0.8, 1.2))
        world = lambda t: view(0.5 + slide(t))
    else:
        world = _constant((fit(_photo(name)), np.zeros((h, w), np.float32)))
    zoom, turn = _wave(rng, 0.15), _wave(rng, rng.uniform(0.03, 0.12))
    pan_x, pan_y = (_wave(rng, rng.uniform(0.5, 0.9), (0.4, 0.9)) for _ in range(2))

    def shot(t: float) -> tuple[np.ndarray, np.ndarray]:
        z = np.exp(-0.16 + zoom(t))
        slack_x, slack_y = max(w - z * size[1], 0) / 2, max(h - z * size[0], 0) / 2
        cos, sin = z * np.cos(turn(t)), z * np.sin(turn(t))
        x, y = w / 2 + slack_x * pan_x(t), h / 2 + slack_y * pan_y(t)
        matrix = np.array([[cos, -sin, x - (cos * size[1] - sin * size[0]) / 2],
                           [sin, cos, y - (sin * size[1] + cos * size[0]) / 2]])
        image, mask = (cv2.warpAffine(a, matrix, size[::-1], flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                                      borderMode=cv2.BORDER_REFLECT_101) for a in world(t))
        return image, (mask >= 0.5).astype(np.uint8)

    return shot


def _light(size: tuple[int, int], rng: Generator) -> Callable[[float], np.ndarray]:
    """Drifting light: frame index -> gains (H, W, 3), a brightness, a shade that crosses the frame and a colour cast."""
    grid = _grid(size) / max(size)
    level, cross = _wave(rng, rng.uniform(0.1, 0.25)), _wave(rng, 2.0)
    direction, depth = rng.uniform(-4, 4, (2, 1, 1)), rng.uniform(0.15, 0.35)
    cast = [_wave(rng, 0.06) for _ in range(3)]

    def gains(t: float) -> np.ndarray:
        shade = 1 + depth * np.cos((direction * grid).sum(0) + cross(t))
        return np.float32(0.9 * shade[..., None] * (1 + level(t)) * [1 + wave(t) for wave in cast])

    return gains


def _expose(background: Callable, layers: list[Layer], t: float, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Background and layers, back to front, at one instant: image (H, W, 3) float32 and ids (H, W) uint8."""
    image, ids = background(t)
    for layer in layers:
        warped = layer.warp(t, grid)
        opacity = warped[..., 3:] / 255
        image = image + opacity * (warped[..., :3] - image)
        ids = np.where(warped[..., 3] >= 127.5, np.uint8(layer.id), ids)
    return image, ids


def _special(kind: str, size: tuple[int, int], frames: int, rng: Generator) -> tuple[Callable, list[Layer]]:
    """Background and layers of a video of `SPECIAL`: a fixed camera and no light, blur or noise."""
    (h, w), area = size, size[0] * size[1] / 24
    still = cv2.resize(_photo("grass"), (w, h), interpolation=cv2.INTER_AREA).astype(np.float32)
    cup, blob = _cutout("coffee/cup", area, rng), _cutout("chelsea/blob", area, rng)
    if kind == "static-noise":
        still = np.float32(rng.integers(0, 256, (h, w, 3)))
        blob[..., :3] = still[:blob.shape[0], :blob.shape[1]]
        layers = [Layer(blob, 1, _constant(w // 2), _constant(h // 2))]
    elif kind == "translation":
        odd = cup[:cup.shape[0] - 1 + cup.shape[0] % 2, :cup.shape[1] - 1 + cup.shape[1] % 2]  # centred on a pixel
        layers = [Layer(odd, 1, lambda t: w // 6 + TRANSLATION[1] * t, lambda t: h // 4 + TRANSLATION[0] * t)]
    elif kind == "occlusion":
        post = cv2.resize(_photo("brick")[:, :256], (w * 2 // 5, h), interpolation=cv2.INTER_AREA)
        post = np.dstack([post, np.full(post.shape[:2], 255)]).astype(np.float32)
        layers = [Layer(cup, 1, lambda t: w * (0.13 + 0.74 * t / max(frames - 1, 1)), _constant(h / 2)),
                  Layer(post, 0, _constant(w / 2), _constant((h - 1) / 2))]
    else:
        layers = [Layer(cup, 1, lambda t: w * 0.3 + t, _constant(h * 0.4)),
                  Layer(blob, 2, lambda t: w * 0.7 - t, _constant(h * 0.6), start=LATE_ENTRY)]
    return _constant((still, np.zeros(size, np.uint8))), layers


def render_video(
    scene: str | Scene, *, seed: int = 0, size: tuple[int, int] = (192, 256), frames: int = CLIP
) -> tuple[np.ndarray, np.ndarray]:
    """Render one video, a pure function of its arguments.

    The videos of `SPECIAL` are small and plain, for tests: the same noise in every frame; an object that moves by
    `TRANSLATION` each frame; one that is wholly hidden in the middle; a second object from frame `LATE_ENTRY` on.

    Arguments:
        scene: a name in `TRAIN`, `VAL` or `SPECIAL`, or a scene of your own.
        seed: of all that is drawn.
        size: (H, W) of the frames in pixels, at least (64, 64).
        frames: their number T, at least 1.

    Returns:
        frames (T, H, W, 3) uint8 RGB and masks (T, H, W) uint8, ids 1, 2, ... on background 0.

    Raises:
        InputError: no such video, or a size or number of frames out of range.
    """
    if min(size) < 64 or frames < 1:
        raise InputError(f"a video has frames of at least 64x64 and at least one: not size={size}, frames={frames}")
    key, scenes = str(scene), TRAIN | VAL
    if key not in SPECIAL and isinstance(scene, str):
        if scene not in scenes:
            raise InputError(f"no video {scene!r}: there are {', '.join([*SPECIAL, *scenes])}")
        scene = scenes[scene]
    rng = np.random.default_rng([seed, *key.encode()])
    grid = _grid(size)
    if key in SPECIAL:
        background, layers = _special(key, size, frames, rng)
        light, shutter, noise = None, (0.0,), 0.0
    else:
        first = 2 if scene.background == "stereo" else 1
        wanted = [*enumerate(scene.objects, first), *((0, name) for name in scene.distractors)]
        sprites = [(_cutout(name, rng.uniform(*scene.share) * size[0] * size[1], rng), id) for id, name in wanted]
        layers = _choreograph(sprites, size, rng)
        background, light = _background(scene.background, size, rng), _light(size, rng)
        shutter, noise = (-0.2, -0.1, 0.0, 0.1, 0.2), 4.0
    video, masks = np.empty((frames, *size, 3), np.uint8), np.empty((frames, *size), np.uint8)
    for t in range(frames):
        exposures = [_expose(background, layers, t + open_, grid) for open_ in shutter]
        image = sum(image for image, _ in exposures) / len(exposures)
        if light:
            image = image * light(t) + noise * rng.standard_normal(image.shape, np.float32)
        video[t], masks[t] = np.clip(np.rint(image), 0, 255), exposures[len(exposures) // 2][1]
    return video, masks


def render(
    root: str | os.PathLike,
    *,
    seed: int = 0,
    size: tuple[int, int] = (192, 256),
    frames: tuple[int, int] = (CLIP, 30),
    progress: bool = True,
) -> Path:
    """Render the benchmark into `root` in DAVIS-2017's layout, or find it there.

    It is rendered beside `root` and renamed, `benchmark.json` comes last: what is there is complete.

    Arguments:
        root: the folder; created, or taken as it is if it holds this benchmark with the same settings.
        seed: of all that is drawn.
        size: (H, W) of the frames in pixels.
        frames: of each training video and of each validation video.
        progress: show a bar.

    Raises:
        InputError: the folder holds something else, or this benchmark with other settings.
    """
    root = Path(root)
    settings = {"name": NAME, "version": VERSION, "seed": seed, "size": list(size), "frames": list(frames)}
    if _is_there(root, settings):
        return root
    part = root.with_name(f".{root.name}.{os.getpid()}.part")
    try:
        for split, scenes, length in (("train", TRAIN, frames[0]), ("val", VAL, frames[1])):
            listing = part / "ImageSets" / "2017" / f"{split}.txt"
            listing.parent.mkdir(parents=True, exist_ok=True)
            listing.write_text("".join(f"{name}\n" for name in sorted(scenes)))
        for name in tqdm([*TRAIN, *VAL], desc=f"rendering {NAME}", unit="video", disable=not progress):
            video, masks = render_video(name, seed=seed, size=size, frames=frames[name in VAL])
            images, annotations = (part / kind / "480p" / name for kind in ("JPEGImages", "Annotations"))
            images.mkdir(parents=True)
            annotations.mkdir(parents=True)
            for t, (frame, ids) in enumerate(zip(video, masks)):
                Image.fromarray(frame).save(images / f"{t:05d}.jpg", quality=92)
                write_mask(annotations / f"{t:05d}.png", ids)
        (part / "benchmark.json").write_text(json.dumps(settings | {"scenes": {
            name: asdict(scene) for name, scene in (TRAIN | VAL).items()}}, indent=1) + "\n")
        if root.is_dir():
            root.rmdir()  # empty, as seen above
        part.rename(root)
    except OSError:
        if not _is_there(root, settings):  # else another process was faster
            raise
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
        raise InputError(f"{root}: exists and is no rendered benchmark; give a new folder") from None
    if found != settings:
        raise InputError(f"{root}: rendered with {found}, asked for {settings}; give a new folder or remove it")
    return True
