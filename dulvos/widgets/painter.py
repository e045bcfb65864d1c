"""The painter of notebook 06: paint objects in the browser; see, correct and play their masks there."""

import tempfile
import threading
import warnings
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import anywidget
import cv2
import numpy as np
import traitlets

from dulvos.errors import InputError
from dulvos.masks import MOVIE, OBJECT_COLOURS, as_png, given_masks, overlay, save_given, save_masks
from dulvos.movies import write_mp4
from dulvos.session import Session, objects
from dulvos.videos import shrink

__all__ = ["Painter"]

LONGER_SIDE = 1920  # of frames in the browser, at most, in pixels; masks are painted at full size


class Painter(anywidget.AnyWidget):
    """A video to paint objects on, and a timeline that shows their masks as they are found.

    Painting, zooming and playing happen in the browser. After each stroke the session gets the frame's mask.
    A search for masks that is going on then stops, and the next one starts at the corrected frame.

    Arguments:
        session: the video and its masks.
        out: folder for the results, as `check_folder` returns it: `<frame>.png` as masks are found,
            `overlay.mp4` at the end, and in `given/` what was painted and where objects end. None saves
            nothing.
    """

    _esm, _css = (Path(__file__).with_name(f"painter.{suffix}") for suffix in ("js", "css"))
    size = traitlets.List().tag(sync=True)  # [H, W]
    length = traitlets.Int().tag(sync=True)
    fps = traitlets.Float().tag(sync=True)
    colours = traitlets.List().tag(sync=True)  # (7, 3), of objects
    state = traitlets.Dict().tag(sync=True)

    def __init__(self, session: Session, out: Path | None = None):
        self.session, self.out = session, out
        self._busy, self._stop, self._telling = threading.Lock(), threading.Event(), threading.Lock()
        self._searches = self._start = 0  # number of searches so far, first frame of the latest one
        self._kept: set[Path] = set()  # files in given/ that this painter wrote
        self._loaded: np.ndarray | None = None  # the ids of the latest mask file
        super().__init__(size=list(session.video.size), length=len(session.video), fps=session.video.rate,
                         colours=OBJECT_COLOURS.tolist(), state=self._state())
        self.on_msg(lambda _, content, buffers: self.receive(content, buffers))

    def carry(self) -> Iterator[int]:
        """Find the masks that are missing or out of date, show and save them, and write the movie.

        Run it in a thread, as the widget's button does, so that the kernel can still answer the browser:
        `await asyncio.to_thread(list, painter.carry())`. It does nothing while another search goes on.

        Yields:
            number of each frame whose mask was found.

        Raises:
            InputError: what `Session.run` raises; a folder that cannot be written.
        """
        if not self._busy.acquire(blocking=False):
            return
        message = ""
        try:
            self._stop.clear()
            self._searches, self._start = self._searches + 1, self.session.done
            self._tell()
            masks = self.session.run()
            if self.out:
                self._kept = save_given(self.out / "given", self.session.video, dict(self.session.given),
                                        dict(self.session.ended), self._kept)
                masks = save_masks(masks, self.session.video, self.out)
            for t, _ in masks:
                self._show(t)
                self._tell()
                yield t
                if self._stop.is_set() and self.session.done < self.length:
                    return
            if self.out:
                self._tell(f"Writing {MOVIE} …")
                write_mp4(self.out / MOVIE, self._pictures(), self.fps, self.session.video.aspect)
                message = f"All masks are in {self.out}."
        except _Stopped:
            if self.session.done == self.length:
                message = f"All masks are in {self.out}, but {MOVIE} was stopped: press R to write it."
        finally:
            self._busy.release()
            self._tell(message)

    def _pictures(self) -> Iterator[np.ndarray]:
        for t, frame in enumerate(self.session.video.frames()):
            if self._stop.is_set():
                raise _Stopped
            yield overlay(frame, self.session.labels(t))

    def _carry_on(self) -> None:
        try:
            deque(self.carry(), maxlen=0)
        except Exception as error:  # otherwise nobody would see it
            self._tell(str(error).partition("\n")[0] or type(error).__name__)

    def receive(self, content: Mapping[str, Any], buffers: Sequence[bytes] = ()) -> None:
        """Answer a message of the browser; the widget shows what is wrong with it.

        Arguments:
            content: "kind" is "hello" (from a new view), "frame" (wants the picture), "paint" (sends a mask),
                "load" (sends a mask file), "save" (wants one), "run" or "stop"; "frame" is a number, "ended"
                the objects that end in a painted frame, "view" the number of the view that paints or saves,
                "name" the file's.
            buffers: the ids before and after painting, compressed by zlib, or the file's bytes.
        """
        t, video = content.get("frame", 0), self.session.video
        try:
            match content["kind"]:
                case "hello":
                    for known in sorted({*range(self.session.found), *self.session.given}):
                        self._show(known)
                case "frame":
                    frame = shrink(video.read(t), LONGER_SIDE * min(self.size) // max(self.size))
                    quality = [cv2.IMWRITE_JPEG_QUALITY, 90]
                    jpeg = cv2.imencode(".jpg", frame[..., ::-1], quality)[1].tobytes()
                    self.send({"kind": "frame", "frame": t}, [jpeg])
                case "paint":
                    self._stop.set()
                    before, after = (np.frombuffer(zlib.decompress(part), np.uint8).reshape(self.size)
                                     for part in buffers)
                    ids = np.where(before != after, after, self.session.labels(t))  # may be newer than before
                    self.session.paint(t, ids, content["ended"])
                    self._show(t, content.get("view") if np.array_equal(ids, after) else -1)
                    # the browser paints what it loaded, and what was said about the file stays
                    self._tell(self.state["message"] if np.array_equal(after, self._loaded) else "")
                case "load":
                    self._load(t, content["name"], buffers[0])
                case "save":
                    head = {"kind": "save", "from": content.get("view"), "name": f"{video.frame_name(t)}.png"}
                    self.send(head, [as_png(self.session.labels(t))])
                case "run":
                    threading.Thread(target=self._carry_on, daemon=True).start()
                case "stop":
                    self._stop.set()
        except InputError as error:
            self._tell(str(error))

    def _load(self, t: int, name: str, content: bytes) -> None:
        """Send the ids in a mask file; the widget shows what is wrong with it."""
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always")
            path = Path(folder) / Path(name).name
            path.write_bytes(content)
            try:
                ids = self._loaded = given_masks(self.session.video, [f"{t}={path}"])[t]
                self.send({"kind": "load", "frame": t}, [zlib.compress(ids.tobytes(), 1)])
                said = " ".join(str(note.message) for note in notes)
            except InputError as error:
                said = str(error)
        self._tell(said.replace(f"{folder}/", ""))

    def _show(self, t: int, view: float | None = None) -> None:
        """Send a mask that was found, or painted: then not to the `view` that has it already (-1: none)."""
        packed = zlib.compress(self.session.labels(t).tobytes(), 1)
        self.send({"kind": "mask", "frame": t, "run": self._searches, "from": view}, [packed])

    def _state(self, message: str = "") -> dict[str, Any]:
        session, given, ended = self.session, dict(self.session.given), dict(self.session.ended)
        return {"message": message, "running": self._busy.locked(), "run": self._searches,
                "start": self._start, "done": session.done, "found": session.found, "given": sorted(given),
                "ended": {str(t): list(ids) for t, ids in ended.items()},
                "objects": sorted(set().union(*map(objects, given.values())))}

    def _tell(self, message: str = "") -> None:
        with self._telling:  # so that an older state never replaces a newer one
            self.state = self._state(message)


class _Stopped(Exception):
    """The movie is not finished."""
