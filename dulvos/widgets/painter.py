"""The painter of notebook 06: paint objects in the browser, and see, correct and play their masks there."""

from __future__ import annotations

import io
import tempfile
import threading
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import anywidget
import cv2
import numpy as np
import traitlets
from PIL import Image

from dulvos.errors import InputError
from dulvos.masks import MOVIE, OBJECT_COLOURS, PALETTE, overlay, own_mask, save_given, save_masks
from dulvos.movies import write_mp4
from dulvos.session import Session

__all__ = ["Painter"]

LONGER_SIDE = 1920  # pixels of a frame in the browser at most; masks are painted at full size


class Painter(anywidget.AnyWidget):
    """A video to paint objects on, and a timeline that shows their masks as they are found.

    Painting, zooming and playing happen in the browser. When a stroke ends, the frame's mask reaches the
    session: a search for masks that is going on stops, and the next one goes on from the corrected frame.

    Arguments:
        session: the video and its masks.
        out: folder, as `check_folder` returns it. It gets `<frame>.png` as masks are found, `overlay.mp4` at
            the end, and the painted masks in `given/`. None saves nothing.
        fps: frames a second, of playing and of the mp4.
    """

    _esm, _css = (Path(__file__).with_name(f"painter.{suffix}") for suffix in ("js", "css"))
    size = traitlets.List().tag(sync=True)  # [H, W]
    length = traitlets.Int().tag(sync=True)
    fps = traitlets.Float().tag(sync=True)
    colours = traitlets.List().tag(sync=True)  # (7, 3), of objects
    palette = traitlets.Bytes().tag(sync=True)  # 768, of PNGs
    state = traitlets.Dict().tag(sync=True)

    def __init__(self, session: Session, out: Path | None = None, fps: float = 24.0):
        self.session, self.out = session, out
        self._busy, self._stop, self._searches, self._start = threading.Lock(), threading.Event(), 0, 0
        self._kept: set[Path] = set()  # painted masks that this painter saved
        super().__init__(size=list(session.video.size), length=len(session.video), fps=fps,
                         palette=PALETTE.tobytes(), colours=OBJECT_COLOURS.tolist(), state=self._state())
        self.on_msg(lambda _, content, buffers: self.receive(content, buffers))

    def carry(self) -> Iterator[int]:
        """Find the masks that are missing or out of date, show and save them, and write the movie.

        The widget's button runs this in a thread. While one search goes on, another does nothing.

        Yields:
            numbers of the frames, each once its mask is found.

        Raises:
            InputError: what `Session.run` raises; a folder that cannot be written.
        """
        if not self._busy.acquire(blocking=False):
            return
        try:
            self._stop.clear()
            self._searches, self._start = self._searches + 1, self.session.done
            self._tell(running=True)
            masks = self.session.run()
            if self.out:
                for path in self._kept:
                    path.unlink(missing_ok=True)
                self._kept = save_given(self.out / "given", self.session.video, self.session.given)
                masks = save_masks(masks, self.session.video, self.out)
            for t, _ in masks:
                self._show(t)
                self._tell(running=True)
                yield t
                if self._stop.is_set():
                    return
            if self.out:
                self._tell(f"Writing {MOVIE} …", running=True)
                write_mp4(self.out / MOVIE, self._pictures(), self.fps)
        except _Stopped:
            pass
        finally:
            self._busy.release()
            complete = self.out and self.session.done == self.length
            self._tell(f"All masks are in {self.out}." if complete else "")

    def _pictures(self) -> Iterator[np.ndarray]:
        for t, frame in enumerate(self.session.video.frames()):
            if self._stop.is_set():
                raise _Stopped
            yield overlay(frame, self.session.labels(t))

    def _carry_on(self) -> None:
        try:
            deque(self.carry(), maxlen=0)
        except (InputError, OSError, RuntimeError) as error:  # RuntimeError: out of memory
            self._tell(str(error).splitlines()[0])

    def receive(self, content: Mapping[str, Any], buffers: Sequence[bytes] = ()) -> None:
        """Answer the browser; what is wrong shows as the widget's message.

        Arguments:
            content: "kind" is "hello" (a new view), "frame" (its picture is wanted), "paint" (its mask as a
                PNG), "load" (a mask file), "run" or "stop"; "frame" is a number. "paint" has "ended" objects,
                "load" a file's "name".
            buffers: bytes of the PNG.
        """
        t = content.get("frame", 0)
        try:
            match content["kind"]:
                case "hello":
                    for known in sorted({*range(self.session.found), *self.session.given}):
                        self._show(known)
                case "frame":
                    self._send_frame(t)
                case "paint":
                    self._stop.set()
                    with Image.open(io.BytesIO(buffers[0])) as image:
                        self.session.paint(t, np.asarray(image), content["ended"])
                    self._tell()
                case "load":
                    self._load(t, content["name"], bytes(buffers[0]))
                case "run":
                    threading.Thread(target=self._carry_on, daemon=True).start()
                case "stop":
                    self._stop.set()
        except InputError as error:
            self._tell(str(error))

    def _load(self, t: int, name: str, content: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(name).name
            path.write_bytes(content)
            try:
                ids = own_mask(path)
            except InputError as error:
                raise InputError(str(error).replace(f"{folder}/", "")) from None
        if ids.shape != tuple(self.size):
            mask, size = (f"{width}x{height}" for height, width in (ids.shape, self.size))
            raise InputError(f"{path.name} is {mask} (width x height), the frames are {size}; they must have "
                             "one size")
        self.send({"kind": "load", "frame": t}, [zlib.compress(ids.tobytes(), 1)])
        self._tell()

    def _send_frame(self, t: int) -> None:
        frame = cv2.cvtColor(self.session.video.read(t), cv2.COLOR_RGB2BGR)
        scale = LONGER_SIDE / max(self.size)
        if scale < 1:
            frame = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        jpeg = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
        self.send({"kind": "frame", "frame": t}, [jpeg])

    def _show(self, t: int) -> None:
        ids = zlib.compress(self.session.labels(t).tobytes(), 1)
        self.send({"kind": "mask", "frame": t, "run": self._searches}, [ids])

    def _state(self, message: str = "", running: bool | None = None) -> dict[str, Any]:
        session, running = self.session, self._busy.locked() if running is None else running
        objects = {0}.union(*(np.unique(ids).tolist() for ids in session.given.values())) - {0}
        ended = {str(t): list(ids) for t, ids in session.ended.items()}
        return {"message": message, "running": running, "run": self._searches, "start": self._start,
                "done": session.done, "found": session.found, "given": sorted(session.given), "ended": ended,
                "objects": sorted(objects)}

    def _tell(self, message: str = "", running: bool | None = None) -> None:
        self.state = self._state(message, running)


class _Stopped(Exception):
    """The movie was left unfinished."""
