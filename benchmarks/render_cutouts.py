"""How the embedded videos, `dulvos/study/cutouts`, were made: `python -m benchmarks.render_cutouts OUT`.

They are rendered, not filmed: never compare their scores with those of real videos. Cut-outs of the
photographs in the scikit-image wheel move, turn, grow, bend and cover each other, while a camera pans, turns
and zooms over another photograph. In one video, the camera slides along a rail in front of a stereo pair, so
that near things move further than far ones. The light drifts, the shutter blurs, the sensor is noisy. Colour
alone does not tell the objects apart: they move over the photograph that they were cut from, among
look-alikes without a label.

`cutouts_videos.csv` lists the videos and `cutouts_outlines.csv` the outlines of the cut-outs, in pixels of
the photograph: x:y of each corner of a polygon, or x:y:radius of a disk. A cut-out is called
photograph/shape. Training and validation share no photograph.
"""

import argparse
import math
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import skimage.data
from numpy.random import Generator
from PIL import Image
from tqdm.auto import tqdm

from dulvos.masks import write_mask

SIZE = H, W = 192, 256  # of the frames, in pixels
LENGTH = 24  # frames; rates of motion are in periods per so many frames
# Grey photographs get a tint, or the lack of colour would give their cut-outs away.
TINTS = {"brick": (1.15, 0.8, 0.65), "coins": (1.1, 0.95, 0.7), "grass": (0.8, 1.05, 0.55),
         "gravel": (1, 0.93, 0.82)}

Motion = Callable[[float], float]  # frame index -> pixels, radians or log of a scale
Images = Callable[[float], np.ndarray]  # frame index -> image
Sprite = Callable[[float, np.ndarray], np.ndarray]  # frame index, x and y (2, h, w) -> (h, w, 4) there


def list_videos() -> dict[str, dict]:
    """The videos by name: split, background, objects (in the order of their ids), distractors, pace, draw.

    The background "stereo" is a garage with depth, and its motorcycle is object 1. Distractors are cut-outs
    without a label. At pace 1, cut-outs move by up to one or two cells of the feature grid per frame. `draw`
    counts the random draws of motions until all objects stay in sight and one is partly covered.
    """
    return _read_csv("videos")


def _read_csv(name: str) -> dict[str, dict]:
    file = Path(__file__).with_name(f"cutouts_{name}.csv")
    return pd.read_csv(file, index_col="name", keep_default_na=False).to_dict("index")


@cache
def _photo(name: str) -> np.ndarray:
    """A photograph of the scikit-image wheel, (h, w, 3) uint8 RGB."""
    if name in ("motorcycle", "stereo"):
        return skimage.data.stereo_motorcycle()[0]
    photo = getattr(skimage.data, name)()
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


def _cut(name: str, area: float, rng: Generator) -> np.ndarray:
    """Cut photograph/shape out so that it covers `area` pixels: (n, n, 4) float32, RGB and opacity in 0..255.

    Three shapes have no listed outline: "blob", a random smooth one anywhere in the photograph; "horse", the
    silhouette in the wheel, filled from anywhere; "bike", the motorcycle, found by its disparity.
    """
    source, shape = name.split("/")
    h, w = _photo(source).shape[:2]
    opacity, points = np.zeros((h, w), np.uint8), None
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
    else:
        outline = _read_csv("outlines")[name]["outline"].split()
        points = np.array([point.split(":") for point in outline], int)
    if points is not None and len(points) == 1:
        (x, y, radius), = points.tolist()
        cv2.circle(opacity, (x, y), radius, 255, -1)
    elif points is not None:
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
    speed, phase = rng.uniform(*rate) * math.tau / LENGTH, rng.uniform(0, math.tau)
    return lambda t: amplitude * math.sin(speed * t + phase)


def _grid(height: int, width: int) -> np.ndarray:
    """x and y of every pixel, (2, height, width) float32."""
    return np.stack(np.meshgrid(np.arange(width), np.arange(height))).astype(np.float32)


def _animate(image: np.ndarray, pace: float, rng: Generator) -> Sprite:
    """Let a cut-out, (n, n, 4) float32, sway, turn, grow and bend at random."""
    turn, grow = _wave(rng, rng.uniform(0.3, 1.1)), _wave(rng, rng.uniform(0.05, 0.25))
    bend, paths = _wave(rng, rng.uniform(0.01, 0.04), (0.4, 0.8)), []
    for length in (W, H):
        centre, reach = length * rng.uniform(0.3, 0.7), length * rng.uniform(0.15, 0.35)
        paths.append((centre, _wave(rng, reach, (0.2 * pace, 0.5 * pace))))

    def draw(t: float, grid: np.ndarray) -> np.ndarray:
        x, y = (at - np.float32(centre + sway(t)) for at, (centre, sway) in zip(grid, paths))
        cos, sin = (np.float32(f(turn(t)) * math.exp(-grow(t))) for f in (math.cos, math.sin))
        x, y = cos * x + sin * y, cos * y - sin * x
        (h, w), b = image.shape[:2], np.float32(bend(t))
        x, y = x + b * w * np.sin(y * (5 / h) + b), y + b * h * np.sin(x * (6 / w) - 9 * b)
        return cv2.remap(image, x + (w - 1) / 2, y + (h - 1) / 2, cv2.INTER_LINEAR)

    return draw


def rail(left: np.ndarray, right: np.ndarray, disparity: np.ndarray, share: float) -> np.ndarray:
    """What a camera sees on its way from the left (share 0) to the right camera (share 1), (h, w, 4) uint8.

    A left pixel of disparity d moves to x - share * d, and the nearest pixel wins. What the left camera does
    not see comes from the right one, so nothing is invented. Images (h, w, 4) uint8, disparity (h, w) pixels.
    """
    x, y = _grid(*disparity.shape)
    far_to_near = np.argsort(disparity, axis=None, kind="stable")
    rows, columns = np.unravel_index(far_to_near, disparity.shape)
    moved = np.rint(columns - share * disparity[rows, columns]).astype(int)
    seen = moved >= 0
    depth = np.zeros(disparity.shape, np.float32)
    depth[rows[seen], moved[seen]] = disparity[rows, columns][seen]
    depth = cv2.morphologyEx(depth, cv2.MORPH_CLOSE, np.ones((3, 3)))  # closes cracks
    hole = depth == 0
    filled = cv2.erode(np.where(hole, disparity.max(), depth), np.ones((1, 81)))
    depth = np.where(hole, filled, depth)
    one, other = (cv2.remap(image, x + s * depth, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
                  for image, s in ((left, share), (right, share - 1)))
    image = np.where(hole[..., None], other, one)
    image[..., 3] = cv2.medianBlur(image[..., 3], 7)
    return image


def _background(name: str, rng: Generator) -> Images:
    """A photograph under a moving camera: (H, W, 4) float32, RGB and the opacity of its own object."""
    photo, stereo = _photo(name), name == "stereo"
    h, w = photo.shape[:2]
    scale = (1.0 if stereo else 1.45) * max(H / h, W / w)
    world_size = round(w * scale), round(h * scale)
    still = np.dstack([photo, np.zeros((h, w), np.uint8)])
    if stereo:
        disparity, near = motorcycle()
        right = np.dstack([skimage.data.stereo_motorcycle()[1], still[..., 3]])
        still[..., 3] = 255 * near
        slide = _wave(rng, 0.5, (0.6, 0.9))
    zoom, turn = _wave(rng, 0.15), _wave(rng, rng.uniform(0.03, 0.12))
    pan = [_wave(rng, rng.uniform(0.5, 0.9), (0.3, 0.6)) for _ in range(2)]

    @lru_cache(1)
    def world(frame: int) -> np.ndarray:
        image = rail(still, right, disparity, 0.5 + slide(frame)) if stereo else still
        return cv2.resize(image, world_size, interpolation=cv2.INTER_AREA).astype(np.float32)

    def shoot(t: float) -> np.ndarray:
        z, centre, to = math.exp(zoom(t) - 0.16), np.array([W, H]) / 2, np.array(world_size) / 2
        to += np.maximum(to - z * centre, 0) * [wave(t) for wave in pan]
        cos, sin = z * math.cos(turn(t)), z * math.sin(turn(t))
        turned = np.array([[cos, -sin], [sin, cos]])
        matrix = np.column_stack([turned, to - turned @ centre])
        return cv2.warpAffine(world(round(t) if stereo else 0), matrix, (W, H),
                              flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                              borderMode=cv2.BORDER_REFLECT_101)

    return shoot


def _light(rng: Generator) -> Images:
    """Gains (H, W, 3) of a drifting light: brightness, times a shade that crosses the frame, times a cast."""
    level, cross = _wave(rng, rng.uniform(0.03, 0.15)), _wave(rng, 1.5)
    cast = [_wave(rng, 0.05) for _ in range(3)]
    depth, across = rng.uniform(0.05, 0.2), (rng.uniform(-4, 4, (2, 1, 1)) * _grid(H, W) / max(SIZE)).sum(0)
    return lambda t: np.float32((0.95 + depth * np.cos(across + cross(t)))[..., None]
                                * [(1 + level(t)) * (1 + wave(t)) for wave in cast])


def render_video(name: str, frames: int = LENGTH) -> tuple[np.ndarray, np.ndarray]:
    """Render the first frames of a video, the same ones on every call.

    Arguments:
        name: a name in `list_videos`.
        frames: their number T, at least 1.

    Returns:
        frames (T, H, W, 3) uint8 RGB and masks (T, H, W) uint8, ids 1, 2, ... on background 0.
    """
    video, rng = list_videos()[name], np.random.default_rng([0, *name.encode()])
    objects, distractors = video["objects"].split(), video["distractors"].split()
    first = 2 if video["background"] == "stereo" else 1
    ids = [*range(first, first + len(objects)), *[0] * len(distractors)]
    areas = rng.uniform(0.08, 0.16, len(ids)) * H * W
    sprites = [_cut(cutout, area, rng) for cutout, area in zip(objects + distractors, areas)]
    for _ in range(video["draw"]):
        layers = [(ids[i], _animate(sprites[i], video["pace"], rng)) for i in rng.permutation(len(ids))]
    world, light, grid = _background(video["background"], rng), _light(rng), _grid(H, W)

    def expose(t: float) -> tuple[np.ndarray, np.ndarray]:
        ground = world(t)
        image, mask = ground[..., :3], np.uint8(ground[..., 3] >= 127.5)
        for id, draw in layers:  # back to front
            above = draw(t, grid)
            image = image + above[..., 3:] / 255 * (above[..., :3] - image)
            mask = np.where(above[..., 3] >= 127.5, np.uint8(id), mask)
        return image, mask

    images, masks = np.empty((frames, H, W, 3), np.uint8), np.empty((frames, H, W), np.uint8)
    for t in range(frames):
        (before, _), (now, masks[t]), (after, _) = (expose(t + offset) for offset in (-0.15, 0.0, 0.15))
        image = (before + now + after) / 3 * light(t) + 4 * rng.standard_normal((H, W, 3), np.float32)
        images[t] = np.clip(np.rint(image), 0, 255)
    return images, masks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="a new folder, which gets DAVIS-2017's layout")
    root = parser.parse_args().out
    (root / "ImageSets/2017").mkdir(parents=True)
    (root / "benchmark.json").write_text('{"name": "cutouts", "version": 2}')
    for name, video in tqdm(list_videos().items(), desc="rendering", unit="video"):
        with open(root / f"ImageSets/2017/{video['split']}.txt", "a") as stream:
            stream.write(f"{name}\n")
        folder = root / "JPEGImages/480p" / name
        folder.mkdir(parents=True)
        for t, (image, ids) in enumerate(zip(*render_video(name))):
            Image.fromarray(image).save(folder / f"{t:05d}.jpg", quality=92)
            write_mask(root / "Annotations/480p" / name / f"{t:05d}.png", ids)


if __name__ == "__main__":
    main()
