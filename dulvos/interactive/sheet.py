"""The explorer's picture: where each frame of a clip lies on it, which cell is where, and its pixels from frames and maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import matplotlib
import numpy as np

from dulvos.encoder import STRIDE
from dulvos.study.figures import SKY, anchor_colours

__all__ = ["QUERY", "TIME", "Sheet", "Tile", "tint", "tint_labels"]

QUERY, TIME = -1, -2  # what a large tile shows: the frame of the cell that is asked about, the frame of the time slider
GAP, LABEL, TITLE = 6, 15, 30  # pixels between tiles, for the label above a small tile, and above large tiles and bands
LARGE, ROW = 300, 11  # greatest height of a large tile in pixels, most small tiles in a row
STRAY = (70, 70, 70)  # RGB of cells whose dominant anchor belongs to another clip
EDGE = tuple(bytes.fromhex(SKY[1:]))


@dataclass(frozen=True)
class Tile:
    """A frame on the sheet, in pixels from its upper left corner.

    Fields:
        frame: its place in the clip, or QUERY or TIME.
        band: which encoder's maps lie on it, counted from 0; -1 for none.
    """

    frame: int
    band: int
    top: int
    left: int
    height: int
    width: int


class Sheet:
    """Large tiles above bands of small ones.

    The large tiles show the frame asked about and, for each encoder, the frame of the slider; a band shows all frames for one
    encoder.

    Cell i of a map is centred at pixel 8·i of the frame that the encoder saw, as everywhere in this package.

    Arguments:
        frames: T.
        size: (H, W) of the frames that the encoder saw, in pixels.
        cells: (h, w) of its maps.
        bands: number of encoders side by side.
        width: of the sheet in pixels.

    Fields:
        tiles: all of them, the large ones first; size: (height, width) of the sheet in pixels.
    """

    def __init__(self, frames: int, size: tuple[int, int], cells: tuple[int, int], *, bands: int = 1, width: int = 1100):
        self.frames, self.seen, self.cells, self.bands = frames, size, cells, bands
        ratio, panels = size[1] / size[0], 1 + bands
        large = min(LARGE, int((width - (panels - 1) * GAP) / panels / ratio))
        large = large, int(large * ratio)
        self.tiles = [Tile(QUERY if panel == 0 else TIME, panel - 1, TITLE, panel * (large[1] + GAP), *large)
                      for panel in range(panels)]
        rows = -(-frames // ROW)
        columns = -(-frames // rows)
        wide = min((width - (columns - 1) * GAP) // columns, large[1])
        small, top = (int(wide / ratio), wide), TITLE + large[0]
        for band in range(bands):
            top += TITLE - LABEL
            for frame in range(frames):
                row, column = divmod(frame, columns)
                self.tiles.append(Tile(frame, band, top + LABEL + row * (small[0] + LABEL), column * (small[1] + GAP), *small))
            top += rows * (small[0] + LABEL)
        self.large, self.small, self.size = large, small, (top, width)

    def small_tiles(self, band: int) -> list[Tile]:
        """The tiles of all frames, in order, with the maps of one encoder."""
        start = 1 + self.bands + band * self.frames
        return self.tiles[start: start + self.frames]

    def cell_at(self, x: float, y: float, query: int, time: int) -> tuple[int, int, int] | None:
        """The cell (frame, y, x) at (x, y) in pixels from the sheet's upper left corner, None between tiles.

        `query` and `time` are the frames that the large tiles show.
        """
        for tile in self.tiles:
            if 0 <= y - tile.top < tile.height and 0 <= x - tile.left < tile.width:
                rows, columns = self._cells_of_pixels((tile.height, tile.width))
                return {QUERY: query, TIME: time}.get(tile.frame, tile.frame), int(rows[int(y - tile.top)]), \
                    int(columns[int(x - tile.left)])
        return None

    def pixel_of(self, frame: int, y: int, x: int, query: int, time: int) -> tuple[float, float]:
        """(x, y) of a cell's middle in the largest tile that shows its frame, as `cell_at` takes it, and inside the tile."""
        if frame == query:
            tile = self.tiles[0]
        else:
            tile = self.tiles[1] if frame == time else self.small_tiles(0)[frame]
        places = (float(place[0]) + 0.5 for place in self.centres(tile, np.array([[y, x]])))
        x, y = (min(max(place, start + 0.5), start + extent - 0.5) for place, start, extent in
                zip(places, (tile.left, tile.top), (tile.width, tile.height)))
        return x, y

    def centres(self, tile: Tile, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(x, y) of cells (n, 2) [y, x] on a tile, the middle of the sheet's first pixel being (0, 0)."""
        y, x = ((STRIDE * cells[:, axis] + 0.5) * extent / self.seen[axis] - 0.5
                for axis, extent in enumerate((tile.height, tile.width)))
        return tile.left + x, tile.top + y

    def paint(self, pictures: Pictures, colours: Sequence[np.ndarray], query: int, time: int) -> np.ndarray:
        """The sheet's pixels, (height, width, 4) uint8 RGBA, transparent between tiles.

        Arguments:
            pictures: of the clip, for this sheet.
            colours: for each encoder, (T, h, w, 4) uint8, RGB and opacity of each cell over the grey frame.
            query, time: frames that the large tiles show.
        """
        out = np.zeros((*self.size, 4), np.uint8)
        for tile in self.tiles[: 1 + self.bands]:
            if tile.frame == QUERY:
                self._put(out, tile, pictures.colour[query])
            else:
                one = slice(time, time + 1)
                self._put(out, tile, self._blend(pictures.grey[one], colours[tile.band][one])[0], edge=True)
        for band in range(self.bands):
            for tile, pixels in zip(self.small_tiles(band), self._blend(pictures.small, colours[band])):
                self._put(out, tile, pixels, edge=tile.frame == time)
        return out

    @staticmethod
    def _put(out: np.ndarray, tile: Tile, pixels: np.ndarray, *, edge: bool = False) -> None:
        """Put down a tile; the slider's frame has an edge, so that it is found among the small ones."""
        if edge:
            pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:] = (EDGE,) * 4
        where = out[tile.top: tile.top + tile.height, tile.left: tile.left + tile.width]
        where[..., :3], where[..., 3] = pixels, 255

    def _cells_of_pixels(self, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Which row and column of cells each row and column of pixels of a tile of this size belongs to."""
        found = []
        for extent, seen, count in zip(size, self.seen, self.cells):
            pixel = (np.arange(extent) + 0.5) * seen / extent - 0.5
            found.append(np.clip((pixel + STRIDE / 2) // STRIDE, 0, count - 1).astype(int))
        return found[0], found[1]

    def _blend(self, grey: np.ndarray, colours: np.ndarray) -> np.ndarray:
        """Colours (n, h, w, 4) of cells over grey pictures (n, H, W) uint8: (n, H, W, 3) uint8."""
        rows, columns = self._cells_of_pixels(grey.shape[1:])
        out = np.empty((*grey.shape, 3), np.uint8)
        for picture, cells, result in zip(grey, colours.astype(np.float32), out):
            alpha = cells[..., 3:] / 255
            scaled = np.concatenate([cells[..., :3] * alpha, 1 - alpha], 2)[rows][:, columns]  # [H, W, 4]
            np.rint(scaled[..., :3] + picture[..., None] * scaled[..., 3:], out=result, casting="unsafe")
        return out


class Pictures:
    """A clip's frames in the sizes of a sheet.

    Arguments:
        frames: of the clip, (H, W, 3) uint8 RGB.

    Fields:
        colour: (T, H', W', 3) uint8, large; grey: (T, H', W'), the same, dimmed; small: (T, H'', W''), dimmed.
    """

    def __init__(self, sheet: Sheet, frames: Sequence[np.ndarray]):
        self.colour = np.stack([cv2.resize(frame, sheet.large[::-1], interpolation=cv2.INTER_AREA) for frame in frames])
        self.grey = np.stack([_dim(frame) for frame in self.colour])
        self.small = np.stack([_dim(cv2.resize(frame, sheet.small[::-1], interpolation=cv2.INTER_AREA)) for frame in frames])


def tint(values: np.ndarray) -> np.ndarray:
    """Values in [0, 1], clipped, to (…, 4) uint8: viridis, the more opaque the greater, so that little is clear."""
    scale = np.linspace(0, 1, 256)
    table = matplotlib.colormaps["viridis"](scale)
    table[:, 3] = 0.85 * scale**0.7
    return np.rint(255 * table).astype(np.uint8)[np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8)]


def tint_labels(labels: np.ndarray, confidence: np.ndarray, n: int) -> np.ndarray:
    """Dominant anchors in their colours, opaque where confident, to (…, 4) uint8; labels of other clips (>= n²) are grey."""
    colours = np.concatenate([anchor_colours(n), [STRAY]]).astype(np.uint8)[np.minimum(labels, n * n)]
    return np.concatenate([colours, np.rint(255 * (0.2 + 0.75 * confidence))[..., None].astype(np.uint8)], -1)


def _dim(frame: np.ndarray) -> np.ndarray:
    return cv2.convertScaleAbs(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), alpha=0.75)
