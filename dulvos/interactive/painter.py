"""Painting masks: edits of an array of ids that can be undone, and a widget that makes them with the mouse."""

from __future__ import annotations

import html
import tempfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import ipywidgets
import numpy as np
from matplotlib.backend_bases import MouseEvent
from matplotlib.figure import Figure
from matplotlib.widgets import PolygonSelector

from dulvos.errors import InputError
from dulvos.interactive.player import fit, jpeg
from dulvos.masks import OBJECT_COLOURS, overlay, own_mask

__all__ = ["MaskEditor", "Painter"]

UNDO = 50  # edits that are remembered


class MaskEditor:
    """A mask, its edits, and the way back; points are [y, x] in pixels, the centre of the first pixel being [0, 0].

    Arguments:
        ids: (H, W) uint8 to begin with; it is copied.
    """

    def __init__(self, ids: np.ndarray):
        if ids.ndim != 2 or ids.dtype != np.uint8:
            raise InputError(f"a mask to edit is (H, W) uint8 ids, not {ids.shape} {ids.dtype}")
        self.ids = ids.copy()
        self._before: list[np.ndarray] = []
        self._after: list[np.ndarray] = []

    def stroke(self, points: Sequence[Sequence[float]], radius: float, name: int, *, goes_on: bool = False) -> None:
        """Paint a line of round brush marks with an object's id; 0 erases.

        Arguments:
            points: (n, 2) [y, x], n >= 1; they may lie outside.
            radius: of the brush in pixels, >= 0: 0 is one pixel.
            name: id in 0..254.
            goes_on: whether this is part of the edit before, to be undone with it.
        """
        if radius < 0:
            raise InputError(f"the brush's radius must be >= 0, not {radius}")
        line = self._integer(points)
        if not goes_on:
            self._remember(name)
        cv2.polylines(self.ids, [line], False, int(name), max(1, 2 * round(radius)))
        for x, y in line:  # ends are to be round, and of one point there is no line
            cv2.circle(self.ids, (int(x), int(y)), round(radius), int(name), -1)

    def polygon(self, points: Sequence[Sequence[float]], name: int) -> None:
        """Fill a polygon, its rim included, with an object's id; 0 erases.

        Arguments:
            points: (n, 2) [y, x], n >= 3, in order; the last one is joined with the first.
            name: id in 0..254.
        """
        if len(points) < 3:
            raise InputError(f"a polygon has at least 3 points, not {len(points)}")
        corners = self._integer(points)
        self._remember(name)
        cv2.fillPoly(self.ids, [corners], int(name))

    def replace(self, ids: np.ndarray) -> None:
        """Put another mask in place of this one, as one edit; raises InputError if its size differs."""
        if ids.shape != self.ids.shape:
            mask, size = (f"{shape[1]}x{shape[0]}" for shape in (ids.shape, self.ids.shape))
            raise InputError(f"the mask is {mask} (width x height), the frame {size}; they must have one size")
        self._remember(int(ids.max()))
        self.ids = ids.astype(np.uint8)

    def clear(self, name: int | None = None) -> None:
        """Erase one object, or all of them."""
        self.replace(np.where(self.ids == name, 0, self.ids) if name is not None else np.zeros_like(self.ids))

    def undo(self) -> bool:
        """Take the last edit back; False if there is none (the last 50 are remembered)."""
        return self._step(self._before, self._after)

    def redo(self) -> bool:
        """Make the edit again that was taken back last; False if there is none."""
        return self._step(self._after, self._before)

    def _step(self, source: list[np.ndarray], target: list[np.ndarray]) -> bool:
        if source:
            target.append(self.ids)
            self.ids = source.pop()
            return True
        return False

    def _remember(self, name: int) -> None:
        if not 0 <= name <= 254:
            raise InputError(f"object ids are 1 to 254, and 0 erases, not {name}")
        self._before = [*self._before, self.ids.copy()][-UNDO:]
        self._after = []

    @staticmethod
    def _integer(points: Sequence[Sequence[float]]) -> np.ndarray:
        """(n, 2) int32 [x, y], as OpenCV has them."""
        return np.rint(np.asarray(points, float).reshape(-1, 2)[:, ::-1]).astype(np.int32)


class Painter(ipywidgets.VBox):
    """A frame to paint a mask on: brush and polygon, several objects, undo and redo, and masks from PNG files.

    Drawing needs ipympl; without it the picture stands still and masks are loaded from files.

    Arguments:
        frame: (H, W, 3) uint8 RGB.
        ids: (H, W) uint8, the mask to begin with; None begins with an empty one.

    Fields:
        ids: (H, W) uint8, the mask as it is now.
        editor: the `MaskEditor` behind it; after an edit from code, `refresh` shows it.
    """

    def __init__(self, frame: np.ndarray, ids: np.ndarray | None = None):
        self.frame = frame
        self.editor = MaskEditor(np.zeros(frame.shape[:2], np.uint8) if ids is None else ids)
        if self.editor.ids.shape != frame.shape[:2]:
            raise InputError(f"the mask is {self.editor.ids.shape}, the frame {frame.shape[:2]}; they must have one size")
        self._last: tuple[float, float] | None = None  # [y, x] of the brush while the button is down
        self.message = ipywidgets.HTML()
        self._make_tools()
        self.canvas = self._make_canvas()
        super().__init__([self.tools, self.canvas, self.message])
        self.refresh()

    @property
    def ids(self) -> np.ndarray:
        return self.editor.ids

    def pixel_of(self, y: float, x: float) -> tuple[float, float]:
        """(from the left, from the top) in CSS pixels of the canvas, of the point [y, x] of the frame."""
        left, bottom = self.axes.transData.transform((x, y))
        ratio = self.figure.canvas.device_pixel_ratio
        return left / ratio, (self.figure.bbox.height - bottom) / ratio

    def refresh(self) -> None:
        """Show the mask as it is."""
        ids = self.editor.ids
        held = [name for name in np.unique(ids).tolist() if name]
        colours = {name: tuple(OBJECT_COLOURS[(name - 1) % len(OBJECT_COLOURS)].tolist()) for name in held}
        dots = " ".join(f'<span style="color:rgb{colour}">&#9632;</span> {name}' for name, colour in colours.items())
        hint = "" if self.figure else "; drawing needs ipympl (pip install ipympl, then restart)"
        self.message.value = (f"objects: {dots}" if held else "no object yet") + hint
        if self.figure is None:
            self.canvas.value = jpeg(overlay(self.frame, ids))
        else:
            self._picture.set_data(_tinted(self._shown, ids))
            self.figure.canvas.draw_idle()

    def _make_tools(self) -> None:
        narrow = {"width": "auto"}
        self.tool = ipywidgets.ToggleButtons(options=["brush", "polygon", "erase", "zoom"], style={"button_width": "80px"})
        self.object = ipywidgets.BoundedIntText(1, 1, 254, description="object", layout={"width": "150px"})
        size = max(4, min(self.frame.shape[:2]) // 40)
        self.size = ipywidgets.IntSlider(size, 1, 100, description="radius", layout={"width": "260px"})
        self.upload = ipywidgets.FileUpload(accept=".png", description="load PNG", layout=narrow)
        buttons = []
        for name, action in (("undo", self.editor.undo), ("redo", self.editor.redo), ("clear", self.editor.clear),
                             ("whole picture", self._show_all)):
            button = ipywidgets.Button(description=name, layout=narrow)
            button.on_click(lambda _, action=action: (action(), self.refresh()))
            buttons.append(button)
        self.tool.observe(self._choose, "value")
        self.upload.observe(self._load, "value")
        lines = ([self.tool, self.object], [self.size, *buttons, self.upload])
        self.tools = ipywidgets.VBox([ipywidgets.HBox(line) for line in lines])

    def _make_canvas(self) -> ipywidgets.DOMWidget:
        self.figure = None
        height, width = fit(*self.frame.shape[:2])
        try:
            from ipympl.backend_nbagg import Canvas, FigureManager
        except ImportError:
            self.tool.disabled = self.object.disabled = self.size.disabled = True
            return ipywidgets.Image(format="jpeg", height=str(height), width=str(width))
        self.figure = Figure((width / 100, height / 100), dpi=100)
        canvas = Canvas(self.figure)
        FigureManager(canvas, 0)
        # ipympl's own buttons would lie on the picture
        canvas.header_visible = canvas.footer_visible = canvas.resizable = canvas.toolbar_visible = False
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        # drawing the frame larger than the canvas would take too long to follow the mouse
        large = self.frame.shape[0] > height
        self._shown = cv2.resize(self.frame, (width, height), interpolation=cv2.INTER_AREA) if large else self.frame
        extent = (-0.5, self.frame.shape[1] - 0.5, self.frame.shape[0] - 0.5, -0.5)
        self._picture = self.axes.imshow(self._shown, extent=extent)
        self.axes.set_axis_off()
        self.selector = PolygonSelector(self.axes, self._fill, props={"color": "white", "linewidth": 1.5})
        for event, action in (("button_press_event", self._press), ("motion_notify_event", self._move),
                              ("button_release_event", self._release)):
            canvas.mpl_connect(event, action)
        self._choose(None)
        return canvas

    def _show_all(self) -> None:
        if self.figure is not None:
            self.figure.canvas.toolbar.home()

    def _choose(self, _) -> None:
        if self.figure is not None:
            toolbar, polygon = self.figure.canvas.toolbar, self.tool.value == "polygon"
            if (self.tool.value == "zoom") != bool(toolbar.mode):
                toolbar.zoom()  # which is a switch
            self.selector.clear()
            self.selector.set_active(polygon)
            self.selector.set_visible(polygon)  # else its first handle would lie in the corner

    def _press(self, event: MouseEvent) -> None:
        if self.tool.value in ("brush", "erase") and event.inaxes is self.axes and event.button == 1:
            self._paint((event.ydata, event.xdata), goes_on=False)

    def _move(self, event: MouseEvent) -> None:
        if self._last is not None and event.inaxes is self.axes:
            self._paint((event.ydata, event.xdata), goes_on=True)

    def _release(self, _) -> None:
        self._last = None

    def _paint(self, point: tuple[float, float], *, goes_on: bool) -> None:
        name = 0 if self.tool.value == "erase" else self.object.value
        self.editor.stroke([self._last, point] if goes_on else [point], self.size.value, name, goes_on=goes_on)
        self._last = point
        self.refresh()

    def _fill(self, corners: Sequence[tuple[float, float]]) -> None:
        self.selector.clear()
        self.editor.polygon([(y, x) for x, y in corners], self.object.value)
        self.refresh()

    def _load(self, _) -> None:
        for file in self.upload.value:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / Path(file["name"]).name
                path.write_bytes(bytes(file["content"]))
                try:
                    self.editor.replace(own_mask(path))
                    self.refresh()
                except InputError as error:
                    self.message.value = html.escape(str(error).replace(f"{folder}/", ""))


def _tinted(frame: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The frame half covered with its objects' colours, fast enough to follow the mouse; ids are taken at the frame's size."""
    ids = cv2.resize(ids, frame.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    marked, picture = ids > 0, frame.copy()
    picture[marked] = frame[marked] // 2 + OBJECT_COLOURS[(ids[marked] - 1) % len(OBJECT_COLOURS)] // 2
    return picture
