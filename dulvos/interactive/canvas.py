"""A picture in a notebook that answers to clicks and keys (by ipympl), or a still one where ipympl is not installed."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence

import cv2
import ipywidgets
import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from dulvos.errors import InputError
from dulvos.study.figures import VERMILLION

__all__ = ["MARKS", "Canvas"]

DPI = 100  # of the figure: a pixel of the picture is a pixel of the canvas
# marker, size in points, width of its line, its colour; each is drawn on a wider black one
MARKS = {"match": ("o", 3, 0.7, "white"), "match-large": ("o", 6, 1.2, "white"), "best": ("o", 4, 1.0, VERMILLION),
         "best-large": ("o", 9, 1.8, VERMILLION), "query": ("+", 6, 1.2, "white"), "query-large": ("+", 13, 2.0, "white"),
         "anchor": ("s", 5, 1.0, VERMILLION), "anchor-large": ("s", 11, 2.0, VERMILLION)}


class _Pixels(Artist):
    """RGBA pixels put down one to one; imshow would resample them, for 30 to 50 ms a click."""

    pixels = np.zeros((1, 1, 4), np.uint8)

    def draw(self, renderer) -> None:
        size = int(renderer.width), int(renderer.height)
        pixels = self.pixels if self.pixels.shape[1::-1] == size else cv2.resize(self.pixels, size)
        renderer.draw_image(renderer.new_gc(), 0, 0, np.ascontiguousarray(pixels[::-1]))  # Agg counts rows from below


class Canvas:
    """A matplotlib figure whose background is drawn once and whose pixels, marks and captions change quickly.

    What is drawn stands at pixels (x, y), the middle of the upper left one being (0, 0).

    Arguments:
        interactive: False gives a still picture; True asks for ipympl; None takes ipympl where it is installed.

    Fields:
        figure: the matplotlib figure. widget: what a notebook shows. interactive: whether clicks arrive.
    """

    def __init__(self, interactive: bool | None = None):
        self.figure = Figure((4, 1), dpi=DPI)
        self.interactive, self.widget, self._background = interactive is not False, None, None
        if self.interactive:
            try:
                from dulvos.interactive.live import LiveCanvas
            except ModuleNotFoundError as error:
                if interactive:
                    raise InputError(f"interactive=True needs the package {error.name}: install it, or give None") from None
                self.interactive = False
        if self.interactive:
            self.widget = LiveCanvas.of(self.figure)
        else:
            FigureCanvasAgg(self.figure)
            self.widget = ipywidgets.Image(format="jpeg")
        self.figure.canvas.mpl_connect("draw_event", self._on_draw)
        self.layout((100, 400), [])

    def layout(self, size: tuple[int, int], labels: Sequence[tuple[float, float, str]]) -> None:
        """Begin anew with a picture of (height, width) pixels and texts (x, y, text) that stay, y being their lower edge."""
        height, width = self.size = size
        self.figure.clear()
        axes = self.figure.add_axes((0, 0, 1, 1), xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
        axes.set_axis_off()
        for x, y, text in labels:
            axes.text(x, y, text, fontsize=6.5, color="0.3", va="bottom")
        self._pixels = axes.add_artist(_Pixels())
        self._pixels.pixels = np.zeros((*size, 4), np.uint8)
        self._dots = axes.scatter([], [], s=9, edgecolor="black", linewidth=0.5)
        self._lines = {}
        for kind, (marker, points, line, colour) in MARKS.items():
            wider = line if marker == "+" else 0
            halo = axes.plot([], [], marker, ms=points + wider, mfc="none", mec="black", mew=line + 1.2)[0]
            self._lines[kind] = halo, axes.plot([], [], marker, ms=points, mfc="none", mec=colour, mew=line)[0]
        self._captions = [axes.text(0, 0, "", fontsize=8, va="bottom") for _ in range(12)]
        self._changing = [self._pixels, self._dots, *(line for pair in self._lines.values() for line in pair), *self._captions]
        for artist in self._changing:
            artist.set_animated(True)
        self.figure.set_size_inches(width / DPI, height / DPI)
        self._background = None

    def update(self, pixels: np.ndarray, marks: Mapping[str, np.ndarray], dots: tuple[np.ndarray, np.ndarray],
               captions: Sequence[tuple[float, float, str, str]]) -> None:
        """Change what changes, and draw.

        Arguments:
            pixels: (height, width, 4) uint8 RGBA; the background shows where they are transparent.
            marks: places (n, 2) [x, y] of each kind of `MARKS`.
            dots: places (n, 2) [x, y] and colours (n, 3) in [0, 1] of dots.
            captions: at most 12 of x, y, text, alignment ("left", "center" or "right"); y is their lower edge.
        """
        self._pixels.pixels = pixels
        for kind, lines in self._lines.items():
            places = np.reshape(marks.get(kind, ()), (-1, 2)) - 0.5  # Agg rounds the middle of a pixel to the next one
            for line in lines:
                line.set_data(places[:, 0], places[:, 1])
        self._dots.set_offsets(np.reshape(dots[0], (-1, 2)))
        self._dots.set_facecolor(dots[1])
        for text, caption in zip(self._captions, [*captions, *[(0, 0, "", "left")] * len(self._captions)]):
            text.set(x=caption[0], y=caption[1], text=caption[2], ha=caption[3])
        self.draw()

    def complain(self, message: str) -> None:
        """Show a line of text instead of a picture."""
        self.layout((40, 1100), [(8, 26, message)])
        self.draw()

    def draw(self) -> None:
        """Draw, in full only where the background is not there yet, and show."""
        canvas = self.figure.canvas
        if self._background is None:
            canvas.draw()
        else:
            canvas.restore_region(self._background)
            self._draw_changing()
            if self.interactive:
                canvas.blit()
        if not self.interactive:
            self.widget.value = self.jpeg()

    def jpeg(self) -> bytes:
        """The picture as it is, as a JPEG."""
        stream = io.BytesIO()
        Image.fromarray(np.asarray(self.figure.canvas.buffer_rgba())[..., :3]).save(stream, "jpeg", quality=80)
        return stream.getvalue()

    def on_click(self, answer: Callable[[float, float], None]) -> None:
        """Call `answer(x, y)` at each click, (x, y) in pixels from the upper left corner; without ipympl none comes."""
        def press(event) -> None:
            ratio = self.figure.canvas.device_pixel_ratio
            answer(event.x / ratio, self.size[0] - event.y / ratio)

        self.figure.canvas.mpl_connect("button_press_event", press)

    def on_key(self, answer: Callable[[str], None]) -> None:
        """Call `answer(key)` with matplotlib's name of each key that is pressed on the canvas."""
        self.figure.canvas.mpl_connect("key_press_event", lambda event: answer(event.key or ""))

    def _on_draw(self, event) -> None:
        if not event.canvas.is_saving():  # a saved figure draws all of it in one go
            self._background = event.canvas.copy_from_bbox(self.figure.bbox)
            self._draw_changing()

    def _draw_changing(self) -> None:
        for artist in self._changing:
            artist.draw(self.figure.canvas.get_renderer())
