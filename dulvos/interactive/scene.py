"""What the explorer shows, without any widget: a clip opened with its encoders, and the picture of it that a click asks for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from torch import Tensor

from dulvos import correspondence
from dulvos.checkpoints import load_encoder
from dulvos.devices import find_device
from dulvos.encoder import LAYERS, Encoder
from dulvos.errors import InputError
from dulvos.study.figures import anchor_colours
from dulvos.inference import SegmentSettings, encode
from dulvos.interactive import sheet
from dulvos.interactive.contrast import Contrast
from dulvos.interactive.sheet import QUERY, TIME, Sheet
from dulvos.videos import Video

__all__ = ["CLIPS", "SHOWS", "Picture", "Scene", "View", "clip_indices", "encode_clip", "seen_size", "stretch"]

SHOWS = ("affinity", "share", "dominant")
CLIPS = ("own", "all")


@dataclass(frozen=True)
class View:
    """What the explorer shows.

    Fields:
        video: a sequence of the data set, a folder of frames or a video file; "" takes the first sequence.
        checkpoint: what `dulvos.load_encoder` takes. beside: a second one to compare with; "" for none.
        layer: res3, res4 or key.
        show: "affinity" (cosine of the cell with all cells), "share" (of its anchor in the softmax over anchors, at each
            cell), "dominant" (each cell in the colour of its dominant anchor).
        clips: whose anchors compete there: "own" (N², as for pseudo labels, Eq. 2) or "all" (B·N², as in L_ST, Eq. 3).
        grid: whether the anchors are marked.
        tau: τ. n: N.
        frames: T. start: first frame in the video. gap: between frames.
        frame, y, x: the cell asked about, frame being the place in the clip. time: the frame shown large, likewise.

    Raises:
        InputError: a field that can be right for no video.
    """

    video: str = ""
    checkpoint: str = "davis2016"
    beside: str = ""
    layer: str = "res4"
    show: str = "affinity"
    clips: str = "own"
    grid: bool = False
    tau: float = 0.05
    n: int = 8
    frames: int = 5
    start: int = 0
    gap: int = 4
    frame: int = 0
    y: int = 12
    x: int = 16
    time: int = 2

    def __post_init__(self) -> None:
        for name, allowed in (("layer", LAYERS), ("show", SHOWS), ("clips", CLIPS)):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        if not self.checkpoint:
            raise InputError("checkpoint must name an encoder: 'davis2016', 'random', 'imagenet' or a .safetensors file")
        for name, least in (("n", 1), ("frames", 1), ("start", 0), ("gap", 1), ("frame", 0), ("y", 0), ("x", 0), ("time", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise InputError(f"{name} must be a whole number >= {least}, not {value!r}")
        if not self.tau > 0:
            raise InputError(f"tau must be positive, not {self.tau}")


def clip_indices(length: int, frames: int, start: int, gap: int) -> tuple[int, ...]:
    """Frame numbers start, start + gap, …, the gap reduced and the start moved back so that the clip fits.

    Raises:
        InputError: a video of fewer frames.
    """
    if length < frames:
        raise InputError(f"the video has {length} frames, frames={frames} are asked for; choose 1 to {length}")
    gap = max(1, min(gap, (length - 1) // max(1, frames - 1)))
    start = min(start, length - 1 - gap * (frames - 1))
    return tuple(range(start, start + gap * frames, gap))


def seen_size(size: tuple[int, int], shorter_side: int) -> tuple[int, int]:
    """(H, W) in which the encoder sees frames of `size`, (H, W) reduced to a shorter side; 0 keeps them."""
    if not 0 < shorter_side < min(size):
        return size
    return round(size[0] * shorter_side / min(size)), round(size[1] * shorter_side / min(size))


@lru_cache(maxsize=4)
def _encoder(checkpoint: str, device: str, seed: int) -> Encoder:
    return load_encoder(checkpoint, seed=seed).to(device)


@lru_cache(maxsize=6)  # of 280 MB for 21 frames of 480p and res4
def encode_clip(video: Video, indices: tuple[int, ...], checkpoint: str, layer: str, *, shorter_side: int = 0,
                device: str | None = None, seed: int = 0) -> Tensor:
    """Features (T, K, h, w) float32 of frames of a video, L2-normalised over K; the last few clips are kept.

    Raises:
        InputError: what `load_encoder`, `find_device` and the video raise.
    """
    settings = SegmentSettings(layer=layer, shorter_side=shorter_side)
    encoder = _encoder(checkpoint, str(find_device(device)), seed)
    return torch.stack(list(encode(encoder, (video.read(index) for index in indices), settings))).contiguous()

@dataclass(frozen=True)
class Picture:
    """What a view looks like; places are pixels (x, y) of the sheet.

    Fields:
        maps: for each encoder (T, h, w) float32: cosines, shares, or confidences of the dominant anchors.
        anchor: number of the anchor that the cell stands for.
        pixels, marks, dots, captions: see `dulvos.interactive.canvas.Canvas.update`.
    """

    maps: list[np.ndarray]
    anchor: int
    pixels: np.ndarray
    marks: dict[str, np.ndarray]
    dots: tuple[np.ndarray, np.ndarray]
    captions: list[tuple[float, float, str, str]]


class Scene:
    """A clip of a video, opened with one or two encoders.

    Arguments:
        view: what it is opened for. video: its video. others: of the batch's other clips, begun by their references.
        width: of the sheet in pixels. shorter_side: of the frames that the encoder sees; 0 keeps them.
        features: makes features as `encode_clip` does.

    Fields:
        video, indices: of the frames; place 0 of the clip is the reference. sheet: where they lie.
        encoders, contrasts: names of the encoders, and the features of each. cells: (h, w).
    """

    def __init__(self, view: View, video: Video, others: list[Video], *, width: int, shorter_side: int,
                 features: Callable[..., Tensor]):
        self.indices = clip_indices(len(video), view.frames, view.start, view.gap)
        self.video, self.encoders = video, [name for name in (view.checkpoint, view.beside) if name]

        def contrast(name: str) -> Contrast:
            return Contrast(features(video, self.indices, name, view.layer),
                            lambda: [features(other, (0,), name, view.layer)[0] for other in others])

        self.contrasts = [contrast(name) for name in self.encoders]
        self.cells = tuple(self.contrasts[0].features.shape[2:])
        self.sheet = Sheet(view.frames, seen_size(video.size, shorter_side), self.cells, bands=len(self.encoders), width=width)
        self.pictures = sheet.Pictures(self.sheet, [video.read(index) for index in self.indices])

    def fit(self, view: View) -> View:
        """The view with its cell and time moved inside this clip."""
        limits = {"frame": len(self.indices), "y": self.cells[0], "x": self.cells[1], "time": len(self.indices)}
        return dataclasses.replace(view, **{name: min(getattr(view, name), limit - 1) for name, limit in limits.items()})

    def snap(self, view: View, frame: int, y: int, x: int) -> tuple[int, int, int]:
        """The cell that a click on this one means: with the grid shown, in the reference frame, the nearest anchor."""
        if not view.grid or frame:
            return frame, y, x
        y, x = correspondence.anchor_grid(*self.cells, view.n)[self.contrasts[0].chosen(view.n, 0, y, x)].tolist()
        return 0, y, x

    def labels(self) -> list[tuple[float, float, str]]:
        """Texts (x, y, text) above the small tiles; frame numbers are the video's."""
        tiles = [tile for band in range(len(self.encoders)) for tile in self.sheet.small_tiles(band)]
        return [(tile.left + 1, tile.top - 2, f"frame {self.indices[tile.frame]}" + ", reference" * (tile.frame == 0))
                for tile in tiles]

    def picture(self, view: View) -> Picture:
        """The picture of a view that fits."""
        anchor = self.contrasts[0].chosen(view.n, view.frame, view.y, view.x)
        found = [self._map(contrast, view, anchor) for contrast in self.contrasts]
        pixels = self.sheet.paint(self.pictures, [colours for _, colours, _ in found], view.frame, view.time)
        captions = self._captions(view)
        if view.show != "dominant":
            for tile, (_, _, (low, high)) in zip(self.sheet.tiles[1:], found):
                captions += _scale(pixels, tile, low, high)
        maps = [values for values, _, _ in found]
        return Picture(maps, anchor, pixels, self._marks(view, maps, anchor), self._dots(view), captions)

    def _map(self, contrast: Contrast, view: View, anchor: int) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
        """A map (T, h, w), its colours (T, h, w, 4), and the ends of its scale."""
        if view.show == "dominant":
            labels, confidence = (part.cpu().numpy() for part in contrast.dominant(view.n, view.tau, view.clips))
            return confidence, sheet.tint_labels(labels, confidence, view.n), (0, 1)
        if view.show == "affinity":
            values = contrast.affinity(view.frame, view.y, view.x).cpu().numpy()
            low, high = stretch(values, view.frame)
        else:
            values = contrast.share(anchor, view.n, view.tau, view.clips).cpu().numpy()
            own = values if view.clips == "own" else contrast.share(anchor, view.n, view.tau, "own").cpu().numpy()
            low, high = 0.0, float(own.max())  # one scale for own and all, so that the toggle shows what competition takes
        return values, sheet.tint((values - low) / max(high - low, 1e-6)), (low, high)

    def _captions(self, view: View) -> list[tuple[float, float, str, str]]:
        whose = {"own": "the own clip's anchors", "all": "all clips' anchors"}[view.clips]
        what = {"affinity": "cosine similarity with the cell asked about; ringed: the ten best of a frame, the best in orange",
                "share": f"share of the boxed anchor among {whose}; ringed: the ten best cells of a frame",
                "dominant": f"every cell in the colour of its dominant anchor among {whose}"
                            + ", grey where it is another clip's" * (view.clips == "all")}[view.show]
        first, *large = self.sheet.tiles[: 1 + len(self.encoders)]
        asked = f"{self.video.name}, frame {self.indices[view.frame]}: row {view.y}, column {view.x}"
        captions = [(first.left + 1, first.top - 4, asked, "left")]
        for band, (tile, encoder) in enumerate(zip(large, self.encoders)):
            small, name = self.sheet.small_tiles(band)[0], _label(encoder)
            captions += [(tile.left + 1, tile.top - 4, f"{name}, frame {self.indices[view.time]}", "left"),
                         (small.left + 1, small.top - sheet.LABEL, f"{name}: {what}", "left")]
        return captions

    def _marks(self, view: View, maps: list[np.ndarray], anchor: int) -> dict[str, np.ndarray]:
        marks: dict[str, list[np.ndarray]] = {}

        def mark(kind: str, tile: sheet.Tile, cells: np.ndarray) -> None:
            kind += "-large" * (tile.frame < 0)
            marks.setdefault(kind, []).append(np.stack(self.sheet.centres(tile, cells), 1))

        best = [correspondence.best_matches(torch.from_numpy(values), min(10, values[0].size))[0].numpy() for values in maps]
        chosen = correspondence.anchor_grid(*self.cells, view.n)[anchor].numpy()[None]
        for tile in self.sheet.tiles:
            frame = self._frame(tile, view)
            if frame == view.frame:
                mark("query", tile, np.array([[view.y, view.x]]))
            if tile.band >= 0 and view.show != "dominant":
                mark("match", tile, best[tile.band][frame, 1:])
                mark("best", tile, best[tile.band][frame, :1])
            if frame == 0 and view.show != "affinity":
                mark("anchor", tile, chosen)
        return {kind: np.concatenate(places) for kind, places in marks.items()}

    def _dots(self, view: View) -> tuple[np.ndarray, np.ndarray]:
        grid = correspondence.anchor_grid(*self.cells, view.n).numpy()
        tiles = [tile for tile in self.sheet.tiles if view.grid and self._frame(tile, view) == 0 and tile.width >= 150]
        places = [np.stack(self.sheet.centres(tile, grid), 1) for tile in tiles]
        return np.reshape(places, (-1, 2)), np.tile(anchor_colours(view.n) / 255, (len(tiles), 1))

    def _frame(self, tile: sheet.Tile, view: View) -> int:
        return {QUERY: view.frame, TIME: view.time}.get(tile.frame, tile.frame)


def stretch(cosine: np.ndarray, frame: int) -> tuple[float, float]:
    """The ends of a scale of cosines (T, h, w) with a cell of `frame`: their median, below which lies what does not match, and
    the best match in the other frames."""
    others = np.delete(cosine, frame, 0) if len(cosine) > 1 else cosine
    low, high = float(np.median(cosine)), float(others.max())
    return low, max(high, low + 1e-3)


def _scale(pixels: np.ndarray, tile: sheet.Tile, low: float, high: float) -> list[tuple[float, float, str, str]]:
    """Draw the scale of colours above the right end of a tile, and return what is written beside it."""
    top, right, wide = tile.top - 14, tile.left + tile.width - 30, 80
    pixels[top: top + 8, right - wide: right, :3] = 255 * matplotlib.colormaps["viridis"](np.linspace(0, 1, wide))[:, :3]
    pixels[top: top + 8, right - wide: right, 3] = 255
    return [(right - wide - 4, tile.top - 4, f"{low:.2f}", "right"), (right + 4, tile.top - 4, f"{high:.2f}", "left")]


def _label(checkpoint: str) -> str:
    path = Path(checkpoint)
    return path.parent.name + "/" + path.stem if path.suffix else checkpoint
