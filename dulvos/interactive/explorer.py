"""The explorer of notebook 05: click a cell of a clip, and see where else its features are found."""

from __future__ import annotations

import base64
import dataclasses
import html
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import ipywidgets
from IPython.display import Image
from torch import Tensor

from dulvos.encoder import LAYERS
from dulvos.errors import InputError
from dulvos.files import replacing
from dulvos.interactive.canvas import Canvas
from dulvos.interactive.scene import Scene, View, encode_clip
from dulvos.study.runs import open_data
from dulvos.videos import open_video

__all__ = ["Explorer"]

OPENS = ("video", "checkpoint", "beside", "layer", "frames", "start", "gap")  # fields that a new scene is opened for
KEYS = {"left": ("x", -1), "right": ("x", 1), "up": ("y", -1), "down": ("y", 1), "pageup": ("frame", -1),
        "pagedown": ("frame", 1), ",": ("time", -1), ".": ("time", 1)}
HINT = ("Click a cell in any picture. Keys on the picture: arrows move the cell, page up and down its frame, comma and full "
        "stop the time; the sliders do the same.")
TAUS = (0.01, 0.02, 0.05, 0.07, 0.1, 0.2, 0.5, 1.0)


class Explorer:
    """Click a cell of a clip and see at once where else its features are found: the last line of a notebook's cell.

        Explorer("cutouts", video="riders", beside="random")

    Whatever is wrong with an input is said in one line inside the widget, and the last good picture stays.

    Arguments:
        data: see `dulvos.study.runs.open_data`; its val split is the list of videos and gives the other clips of the batch.
        batch: B, clips whose anchors compete where `clips` is "all".
        shorter_side: to which frames are reduced for the encoder; 0 keeps them.
        width: of the picture in pixels.
        device: None takes a CUDA GPU where there is one. seed: of random features.
        interactive: see `dulvos.interactive.canvas.Canvas`.
        features: makes features as `dulvos.interactive.scene.encode_clip` does.
        view: fields of `dulvos.interactive.scene.View`.

    Fields:
        view: what is shown. message: the line that says what is wrong, "" if nothing is.
        maps: for each encoder (T, h, w) float32: cosines, shares, or confidences of the dominant anchors.
        anchor: number of the anchor that the cell stands for.
        seconds: what the last answer took: {"compute": maps and pixels, "draw": the picture}.
    """

    def __init__(self, data: str = "cutouts", *, batch: int = 4, shorter_side: int = 256, width: int = 1100,
                 device: str | None = None, seed: int = 0, interactive: bool | None = None,
                 features: Callable[..., Tensor] = encode_clip, **view):
        self.batch, self.width, self.shorter_side = batch, width, shorter_side
        self.features = partial(features, shorter_side=shorter_side, device=device, seed=seed)
        self.view, self.message, self.maps, self.anchor, self.seconds = View(), "", [], 0, {}
        self.videos, self.scene = {}, None
        self.canvas = Canvas(interactive)
        self.canvas.on_click(self.click)
        self.canvas.on_key(self.key)
        self.panel = _Panel(self)
        self.widget = ipywidgets.VBox([self.panel.above, self.panel.message, self.canvas.widget, self.panel.below])
        try:
            if batch < 1 or shorter_side < 0 or width < 300:
                raise InputError(f"batch must be >= 1, shorter_side >= 0 and width >= 300, not {batch}, {shorter_side} and "
                                 f"{width}")
            self.videos = {sequence.name: sequence.video for sequence in open_data(data, "val").sequences}
        except InputError as error:
            self._say(error)
            return
        self.set(**{"video": "", **view})

    def set(self, **changes) -> Explorer:
        """Change fields of the view and draw; a wrong value changes nothing and is said in `message`."""
        try:
            if not changes.get("video", True):
                changes["video"] = next(iter(self.videos))
            view = dataclasses.replace(self.view, **changes)
            if self.scene is None or any(getattr(view, name) != getattr(self.view, name) for name in OPENS):
                self.panel.busy()
            self._show(view)
        except InputError as error:
            self._say(error)
        except TypeError as error:
            self._say(f"{error}; the fields are {', '.join(field.name for field in dataclasses.fields(View))}")
        except (RuntimeError, MemoryError, OSError) as error:  # out of memory, a disk that is gone
            self._say(f"{type(error).__name__}: {(str(error) or 'out of memory').splitlines()[0]}")
        self.panel.sync()
        return self

    def click(self, x: float, y: float) -> None:
        """Ask about the cell at (x, y) of the picture; in the reference frame, with the grid shown, the nearest anchor."""
        cell = self.scene and self.scene.sheet.cell_at(x, y, self.view.frame, self.view.time)
        if cell:
            self.set(**dict(zip(("frame", "y", "x"), self.scene.snap(self.view, *cell))))

    def key(self, key: str) -> None:
        """Arrows move the cell, comma and full stop the time, page up and page down the frame that is asked about."""
        name, step = KEYS.get(key, ("", 0))
        if name and self.scene:
            self.set(**{name: max(0, getattr(self.view, name) + step)})

    def pixel_of(self, frame: int, y: int, x: int) -> tuple[float, float]:
        """Where on the canvas a click asks about a cell: (x, y) in CSS pixels from the upper left corner."""
        return self.scene.sheet.pixel_of(frame, y, x, self.view.frame, self.view.time)

    def state(self) -> dict:
        """The view's fields, with `query` (frame, y, x), `affinity` (T, h, w) of the first encoder, `anchor` and `message`."""
        return {**dataclasses.asdict(self.view), "query": (self.view.frame, self.view.y, self.view.x),
                "affinity": self.maps[0] if self.maps else None, "anchor": self.anchor, "message": self.message}

    def snapshot(self, path: str | os.PathLike | None = None) -> Image:
        """The picture as it is now, to be shown; also written, as a JPEG, if there is a path.

        Raises an InputError with what `message` says where a picture is to be written and no clip could be opened.
        """
        if path is not None and self.scene is None:
            raise InputError(self.message)
        picture = self.canvas.jpeg()
        if path is not None:
            path = Path(path).with_suffix(".jpg")
            with replacing(path) as stream:
                stream.write(picture)
        return Image(picture, format="jpeg")

    def _repr_mimebundle_(self, **options) -> dict:
        bundle = self.widget._repr_mimebundle_(**options)
        return {**bundle, "image/jpeg": base64.b64encode(self.canvas.jpeg()).decode()}  # where no widgets are shown

    def _show(self, view: View) -> None:
        started = time.perf_counter()
        scene = self.scene
        if scene is None or any(getattr(view, name) != getattr(self.view, name) for name in OPENS):
            video = self.videos[view.video] if view.video in self.videos else open_video(view.video)
            others = [other for other in self.videos.values() if other.path != video.path][: self.batch - 1]
            scene = Scene(view, video, others, width=self.width, shorter_side=self.shorter_side, features=self.features)
        view = scene.fit(view)
        picture = scene.picture(view)
        computed = time.perf_counter()
        if scene is not self.scene:
            self.canvas.layout(scene.sheet.size, scene.labels())
        self.canvas.update(picture.pixels, picture.marks, picture.dots, picture.captions)
        self.seconds = {"compute": computed - started, "draw": time.perf_counter() - computed}
        self.view, self.maps, self.anchor, self.scene = view, picture.maps, picture.anchor, scene
        self._say("")

    def _say(self, message: str | InputError) -> None:
        self.message = str(message)
        self.panel.say(self.message)
        if self.message and self.scene is None:
            self.canvas.complain(self.message)


class _Panel:
    """The controls around the picture: each changes one field of the view, and shows it."""

    def __init__(self, explorer: Explorer):
        self.explorer, self.syncing = explorer, False
        self.videos, self.checkpoints = {}, dict.fromkeys(("davis2016", "random", "imagenet"))  # in the order of the lists
        short, slider = {"width": "215px"}, {"width": "232px"}
        style = {"description_width": "80px"}

        def drop(label: str) -> ipywidgets.Dropdown:
            return ipywidgets.Dropdown(description=label, layout=short, style=style)

        def slide(label: str, least: int, most: int, tip: str) -> ipywidgets.IntSlider:
            return ipywidgets.IntSlider(0, least, most, description=label, layout=slider, style=style, tooltip=tip)

        def pick(options: list, width: str) -> ipywidgets.ToggleButtons:
            return ipywidgets.ToggleButtons(options=options, layout={"width": "auto"}, style={"button_width": width})

        def label(text: str) -> ipywidgets.Label:
            return ipywidgets.Label(text, layout={"width": "80px", "justify_content": "flex-end"})

        def count(label: str, least: int) -> ipywidgets.BoundedIntText:
            return ipywidgets.BoundedIntText(least, least, 10**6, description=label, layout={"width": "112px"},
                                            style={"description_width": "50px"})

        self.fields = {
            "video": drop("video"), "checkpoint": drop("encoder"), "beside": drop("beside it"),
            "frames": count("T", 1), "gap": count("gap", 1), "start": count("start", 0),
            "show": pick([("affinity of the cell", "affinity"), ("share of its anchor", "share"),
                          ("dominant anchors", "dominant")], "145px"),
            "layer": pick(list(LAYERS), "50px"),
            "clips": pick([("own clip", "own"), ("all clips", "all")], "75px"),
            "grid": ipywidgets.ToggleButton(description="anchor grid", layout={"width": "110px", "margin": "2px 0 0 20px"}),
            "n": slide("grid N", 1, 16, "N² anchors"),
            "tau": ipywidgets.SelectionSlider(options=TAUS, description="τ", layout=slider, style=style),
            "time": slide("time", 0, 1, "the frame shown large at the right"),
            "frame": slide("cell: frame", 0, 1, "frame of the cell that is asked about"),
            "y": slide("cell: row", 0, 1, "y"), "x": slide("cell: column", 0, 1, "x"),
        }
        self.path = ipywidgets.Text(placeholder="your own: a folder of frames, a video, a .safetensors file",
                                    continuous_update=False, layout={"width": "440px"})
        self.path.observe(self._open, "value")
        for name, control in self.fields.items():
            control.observe(partial(self._change, name), "value")
        # every cell's softmax is computed anew: at the end of a drag, not along it
        self.fields["n"].continuous_update = self.fields["tau"].continuous_update = False
        self.message, box = ipywidgets.HTML(), self._box
        self.above = ipywidgets.VBox([box("video", "checkpoint", "beside", self.path),
                                      box(label("show"), "show", label("anchors of"), "clips", "grid"),
                                      box(label("layer"), "layer", "n", "tau", "frames", "gap", "start")])
        self.below = box("time", "frame", "y", "x")

    def say(self, message: str) -> None:
        """One line in red; without one, what a click does."""
        colour, text = ("#b00020", message) if message else ("#555", HINT)
        self.message.value = f"<span style='color:{colour};line-height:1.4'>{html.escape(text)}</span>"

    def busy(self) -> None:
        self.message.value = "<span style='color:#555'>encoding the frames …</span>"

    def sync(self) -> None:
        """Show the explorer's view in the controls."""
        view, scene = self.explorer.view, self.explorer.scene
        self.syncing = True
        try:
            self.checkpoints |= dict.fromkeys(filter(None, (view.checkpoint, view.beside)))
            labels = [(Path(name).stem, name) for name in self.checkpoints]
            self.fields["checkpoint"].options, self.fields["beside"].options = labels, [("nothing", ""), *labels]
            self.videos |= dict.fromkeys([*self.explorer.videos, view.video])
            self.fields["video"].options = [(Path(name).name, name) for name in self.videos]
            self.fields["tau"].options = sorted({*TAUS, view.tau})
            if scene:
                last = {"frame": len(scene.indices), "time": len(scene.indices), "y": scene.cells[0], "x": scene.cells[1]}
                for name, count in last.items():
                    self.fields[name].max = count - 1
                self.fields["n"].max = max(min(16, *scene.cells), view.n)
            for name, control in self.fields.items():
                control.value = getattr(view, name)
        finally:
            self.syncing = False

    def _change(self, name: str, change) -> None:
        if not self.syncing:
            self.explorer.set(**{name: change.new})

    def _open(self, change) -> None:
        path = change.new.strip()
        if path:
            kind = "checkpoint" if path.endswith(".safetensors") else "video"
            self.explorer.set(**{kind: path})

    def _box(self, *items: str | ipywidgets.Widget) -> ipywidgets.HBox:
        controls = [self.fields[item] if isinstance(item, str) else item for item in items]
        return ipywidgets.HBox(controls, layout={"flex_flow": "row wrap"})
