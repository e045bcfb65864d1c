"""The painter without a browser: how the kernel answers its messages."""

import threading
import time
import zlib
from collections import deque

import cv2
import numpy as np
import pytest

from dulvos.errors import InputError
from dulvos.masks import read_mask, write_mask
from dulvos.session import Session
from dulvos.videos import open_video
from dulvos.widgets import Painter
from tests.test_session import LENGTH, SETTINGS, SIZE, Counted, block, write_clip


class Quiet(Painter):
    """Keeps what it sends to the browser."""

    def __init__(self, *arguments, **options):
        self.sent = []
        super().__init__(*arguments, **options)

    def send(self, content, buffers=None):
        self.sent.append((content, buffers))


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def painter(video, tmp_path):
    (tmp_path / "out").mkdir()
    return Quiet(Session(video, Counted(), SETTINGS), tmp_path / "out")


def painted(frame, ids, ended=(), before=None):
    """What the browser sends after a stroke; by default, every pixel has changed."""
    masks = (~ids if before is None else before, ids)
    head = {"kind": "paint", "frame": frame, "ended": ended}
    return head, [zlib.compress(mask.tobytes()) for mask in masks]


def test_a_stroke_on_an_older_mask_changes_its_own_pixels_only(painter):
    """The mask of the frame was found while the user painted on the empty frame."""
    painter.receive(*painted(0, block(1)))
    deque(painter.carry(), maxlen=0)
    found, blank = painter.session.labels(4), np.zeros(SIZE, np.uint8)
    painter.receive(*painted(4, block(2, 60), before=blank))
    merged = np.where(block(2, 60) > 0, 2, found)
    assert np.array_equal(painter.session.labels(4), merged) and 1 in merged and not painter.session.ended
    content, (packed,) = painter.sent[-1]
    assert content["from"] == -1 and zlib.decompress(packed) == merged.tobytes()  # for all views


def test_a_stroke_reaches_the_session_and_masks_are_found_shown_and_saved(painter):
    painter.receive(*painted(0, block(1)))
    assert painter.state["given"] == [0] and painter.state["objects"] == [1] and not painter.state["done"]
    for count, t in enumerate(painter.carry(), 1):
        assert t == count - 1 and painter.state["running"] and painter.state["done"] == count
        content, (packed,) = painter.sent[-1]
        assert (content["kind"], content["frame"]) == ("mask", t)
        assert zlib.decompress(packed) == painter.session.labels(t).tobytes()
    assert painter.state["done"] == LENGTH and not painter.state["running"]
    movie = open_video(painter.out / "overlay.mp4")
    assert len(movie) == LENGTH and movie.size == SIZE

    kept = (painter.out / "00004.png").stat().st_mtime_ns
    ids = painter.session.labels(5) | block(2, 60, 30)
    painter.receive(*painted(5, np.where(ids == 1, 0, ids), [1]))
    assert painter.state["done"] == 5 and painter.state["ended"] == {"5": [1]}
    assert next(carried := painter.carry()) == 5
    names = sorted(str(path.relative_to(painter.out)) for path in painter.out.rglob("[!.]*.*"))
    given = ["given/00000.png", "given/00005.png", "given/ended.json"]
    assert names == [*(f"{i:05d}.png" for i in range(6)), *given], "later masks and the movie are out of date"
    assert list(carried) == [6, 7, 8] and (painter.out / "00004.png").stat().st_mtime_ns == kept
    saved = [read_mask(painter.out / f"{t:05d}.png") for t in range(LENGTH)]
    assert all(np.array_equal(ids, painter.session.labels(t)) for t, ids in enumerate(saved))
    painter.receive(*painted(5, ids))
    list(painter.carry())
    assert not list(painter.out.glob("given-*")), "corrections of this session replace each other"
    write_mask(painter.out / "given/00007.png", block(3))  # by hand, for the command
    list(painter.carry())
    assert np.array_equal(read_mask(painter.out / "given-1/00007.png"), block(3)), "it is kept"


def test_a_search_stops_when_told_or_painted_on_and_there_is_one_at_a_time(painter, tmp_path):
    painter.session.given[0] = block(1)
    carried = painter.carry()
    assert [next(carried), next(carried), list(painter.carry())] == [0, 1, []]
    painter.receive({"kind": "stop"})
    assert list(carried) == [] and painter.state["done"] == 2 and not painter.state["running"]
    carried = painter.carry()
    assert next(carried) == 2
    painter.receive(*painted(1, block(3, 60)))
    assert list(carried) == [] and painter.state["done"] == 1
    assert list(painter.carry()) == [*range(1, LENGTH)] and painter.state["start"] == 1
    assert painter.state["run"] == 3, "what a view paints is told from the masks of an earlier search"
    painter.session.given[4] = block(2, 60, 30)
    for t in painter.carry():
        if t == LENGTH - 1:
            painter.receive({"kind": "stop"})  # before the movie
    assert painter.state["done"] == LENGTH and not (painter.out / "overlay.mp4").exists()
    assert "overlay.mp4" in painter.state["message"]
    assert list(painter.carry()) == [] and (painter.out / "overlay.mp4").exists()


def test_a_search_that_ends_while_something_is_painted_is_not_told_to_go_on(video, tmp_path):
    """Otherwise the browser's only button would stay "Stop" for ever."""
    searching, over = threading.Event(), threading.Event()

    class Slow(Session):
        @property
        def done(self):
            if threading.current_thread() is threading.main_thread() and searching.is_set():
                over.wait(0.5)  # until the other thread has told that it ended, if it can
            return super().done

    painter = Quiet(Slow(video, Counted(), SETTINGS, {0: block(1)}))

    def search():
        for _ in painter.carry():
            searching.set()
            time.sleep(0.05)  # it is painted on in the meantime
        over.set()

    thread = threading.Thread(target=search, daemon=True)
    thread.start()
    assert searching.wait(60)
    painter.receive(*painted(4, block(2, 60)))
    thread.join()
    assert painter.state["given"] == [0, 4] and not painter.state["running"]


def test_a_new_view_gets_what_is_known_and_frames_of_4k_are_reduced_for_it(painter, tmp_path):
    painter.session.given[6] = block(2)
    painter.receive({"kind": "hello"})
    assert [content["frame"] for content, _ in painter.sent] == [6]
    painter.receive({"kind": "frame", "frame": 3})
    content, (jpeg,) = painter.sent[-1]
    frame = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert content == {"kind": "frame", "frame": 3}
    assert np.abs(frame[20, 21].astype(int) - (250, 60, 60)).max() < 25
    (tmp_path / "wide").mkdir()
    cv2.imwrite(str(tmp_path / "wide" / "0.png"), np.zeros((100, 3840, 3), np.uint8))
    wide = Quiet(Session(open_video(tmp_path / "wide"), Counted()))
    wide.receive({"kind": "frame", "frame": 0})
    assert cv2.imdecode(np.frombuffer(wide.sent[-1][1][0], np.uint8), 1).shape == (50, 1920, 3)
    assert wide.size == [100, 3840], "masks are painted at full size"


def test_mask_files_are_loaded_and_saved_and_what_is_wrong_is_the_widgets_message(painter, tmp_path):
    for name, ids in (("small", block(1)[1:]), ("right", block(4))):
        write_mask(tmp_path / f"{name}.png", ids)
    small, right = ((tmp_path / f"{name}.png").read_bytes() for name in ("small", "right"))
    for content, words in ((b"no picture", ""), (small, "80x47")):
        painter.receive({"kind": "load", "frame": 0, "name": "../b.png"}, [content])
        message = painter.state["message"]
        assert message.startswith("b.png") and words in message and not painter.sent
    painter.receive({"kind": "load", "frame": 2, "name": "c.png"}, [right])
    content, (packed,) = painter.sent[-1]
    assert content == {"kind": "load", "frame": 2} and zlib.decompress(packed) == block(4).tobytes()
    assert painter.state["message"] == ""
    write_mask(tmp_path / "full.png", np.ones_like(block(1)))
    painter.receive({"kind": "load", "frame": 2, "name": "full.png"}, [(tmp_path / "full.png").read_bytes()])
    assert "full.png" in painter.state["message"]
    painter.receive(*painted(2, np.ones_like(block(1))))  # as the browser answers
    assert "full.png" in painter.state["message"]
    painter.receive(*painted(2, block(0), before=np.ones_like(block(1))))
    assert painter.state["message"] == ""
    with pytest.raises(InputError, match="no object"):
        list(painter.carry())
    painter.receive({"kind": "run"})
    for _ in range(100):  # in a thread
        time.sleep(0.02)
        if painter.state["message"]:
            break
    assert "no object" in painter.state["message"] and not painter.state["running"]
    painter.receive(*painted(99, block(1)))
    assert "frame 99" in painter.state["message"]
    painter.receive(*painted(2, block(200)))
    painter.receive({"kind": "save", "frame": 2})
    content, (file,) = painter.sent[-1]
    (tmp_path / content["name"]).write_bytes(file)
    assert content["name"] == "00002.png" and np.array_equal(read_mask(tmp_path / "00002.png"), block(200))
