"""The painter in a real browser and JupyterLab: what the mouse paints reaches the kernel exactly."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.path import Path as Outline
from PIL import Image

from dulvos import widgets
from dulvos.masks import read_mask, write_mask
from dulvos.study.rows import ROOT
from tests import browser
from tests.test_session import LENGTH, SIZE, block

pytestmark = browser.MARKS

SCRIPT = Path(widgets.__file__).with_name("painter.js")  # for the fixture `js`
CELL = """from dataclasses import replace
from pathlib import Path
from dulvos.masks import check_folder
from dulvos.session import Session
from dulvos.widgets import Painter
from tests.test_session import SETTINGS, Counted, write_clip
Path("clip").mkdir(exist_ok=True)
video, count = replace(write_clip(Path("clip")), rate=12.0), Counted()
session = Session(video, count, SETTINGS)
painter = Painter(session, check_folder("out", video))
painter"""
SEARCH = """import asyncio
if session.given:
    await asyncio.to_thread(list, painter.carry())"""
HOOK = "document.querySelector('.dulvos-painter').painter"


class Page:
    """The painter in an open notebook; places are pixels [x, y] of the frame."""

    def __init__(self, notebook, size=SIZE):
        self.notebook, self.page, self.kernel, self.size = notebook, notebook.page, notebook.evaluate, size
        self.keyboard, self.mouse = self.page.keyboard, self.page.mouse
        self.canvas = self.page.locator(".dulvos-painter canvas")

    def place(self, x, y):
        return self.page.evaluate(f"{HOOK}.onPage({x}, {y})")

    def within(self, x, y):
        """A place on the canvas; playwright waits until the canvas is in view, at rest and uncovered."""
        return dict(zip("xy", self.page.evaluate(f"{HOOK}.inView([{x}, {y}])")))

    def click(self, x, y):
        self.canvas.click(position=self.within(x, y))

    def drag(self, *points):
        self.canvas.hover(position=self.within(*points[0]))
        self.mouse.down()
        for point in points[1:]:
            self.mouse.move(*self.place(*point), steps=5)
        self.mouse.up()

    def press(self, *keys):
        for key in keys:
            self.keyboard.press(key)
        self.page.evaluate(f"{HOOK}.settled()")

    def button(self, name):
        self.page.get_by_role("button", name=name, exact=True).click()
        self.page.evaluate(f"{HOOK}.settled()")

    def ids(self):
        """The mask that the browser shows."""
        self.page.evaluate(f"{HOOK}.settled()")
        return np.array(self.page.evaluate(f"[...{HOOK}.ids]"), np.uint8).reshape(self.size)

    def reaches_the_kernel(self, frame, ids):
        return self.notebook.wait_for(f"session.labels({frame}).tolist() == {ids.tolist()}")

    def run(self):
        before = self.kernel("painter.state['run']")
        self.page.locator(".dulvos-painter .run button:enabled:not(:has-text('Stop'))").wait_for()
        self.press("r")
        ended = f"painter.state['run'] > {before} and not painter.state['running']"
        assert self.notebook.wait_for(f"{ended} and session.done == len(session.video)", 120)

    def to(self, frame):
        self.page.locator(".dulvos-painter .frame").fill(str(frame))
        self.page.wait_for_function(f"{HOOK}.frame === {frame}")
        return self.ids()


@pytest.fixture(scope="module")
def opened(lab):
    with lab.open(browser.of_cells(CELL, SEARCH), "painting") as notebook:
        yield notebook


@pytest.fixture
def page(opened):
    """A new painter; at the end, the console must hold no error and no request that left the machine."""
    opened.run(120)
    assert opened.red_cells() == []
    opened.page.wait_for_selector(".dulvos-painter")
    opened.page.evaluate(f"{HOOK}.settled()")
    yield Page(opened)
    assert opened.console == []


def near(points, radius, size=SIZE):
    """Which pixels lie within a radius of a line through points [x, y]."""
    y, x = np.mgrid[: size[0], : size[1]]
    found = np.zeros(size, bool)
    for a, b in zip(np.array(points, float), np.array(points[1:] or points, float)):
        (u, v), square = b - a, max(1e-9, ((b - a) ** 2).sum())
        along = np.clip(((x - a[0]) * u + (y - a[1]) * v) / square, 0, 1)
        found |= np.hypot(x - a[0] - along * u, y - a[1] - along * v) <= radius
    return found


def test_a_stroke_gives_the_expected_pixels_and_edits_are_undone_and_redone(page):
    states = [page.ids()]
    assert not states[0].any()
    page.click(70, 40)  # an object 1, which takes the focus
    page.press("Control+z", "2", "]", "]")
    assert not page.ids().any()
    page.drag((10, 20), (50, 20), (50, 30))
    states.append(page.ids())
    assert np.array_equal(states[1], 2 * near([(10, 20), (50, 20), (50, 30)], 2.5))
    assert page.reaches_the_kernel(0, states[1])
    page.press("0", "1", "2")
    page.click(30, 40)
    states.append(page.ids())
    assert np.array_equal(states[2], states[1] + 12 * near([(30, 40)], 2.5))
    page.press("e")
    page.drag((20, 10), (20, 30))
    states.append(page.ids())
    assert np.array_equal(states[3], np.where(near([(20, 10), (20, 30)], 2.5), 0, states[2]))
    assert page.reaches_the_kernel(0, states[3])
    for state in states[-2::-1]:
        page.press("Control+z")
        assert np.array_equal(page.ids(), state)
    for state in states[1:]:
        page.press("Control+Shift+z")
        assert np.array_equal(page.ids(), state)
    assert page.reaches_the_kernel(0, states[3])
    page.mouse.click(*page.place(30, 30), button="right")  # the page's menu
    page.keyboard.press("Escape")
    assert np.array_equal(page.ids(), states[3])
    other = block(9, 30)
    masks = [(~other).ravel().tolist(), other.ravel().tolist()]  # before and after
    page.kernel(f"""painter.receive({{"kind": "paint", "view": 0.5, "frame": 0, "ended": []}}, [
        __import__("zlib").compress(bytes(ids)) for ids in {masks}])""")
    page.page.wait_for_function(f"{HOOK}.ids.includes(9)")
    assert np.array_equal(page.ids(), other), "painted in another view"
    assert page.page.locator(".jp-Cell").count() == 2, "keys are the painter's: in JupyterLab, B adds a cell"


def test_what_is_painted_while_the_picture_is_decoded_stays(page):
    page.page.evaluate(f"""() => {{
      const decode = createImageBitmap, held = new Promise((done) => {{ window.release = done; }});
      window.createImageBitmap = (data) => held.then(() => (window.createImageBitmap = decode)(data));
      {HOOK.removesuffix(".painter")}.focus(); }}""")
    page.keyboard.press("ArrowLeft")  # shows frame 0 again
    page.click(60, 40)
    page.page.evaluate("release()")
    assert page.ids()[40, 60] and page.reaches_the_kernel(0, page.ids())


def test_polygons_close_fills_stop_at_edges_and_pngs_are_saved_and_loaded(page, tmp_path):
    page.click(5, 5)
    page.press("Control+z", "p", "4")
    for corner in ((20, 10), (60, 10), (60, 40), (20, 40), (20, 10)):
        page.click(*corner)
    drawn = page.ids() == 4
    assert drawn[12:39, 22:59].all() and drawn.sum() < 33 * 43  # its rim is where the mouse was
    page.press("f", "7")
    page.click(40, 25)
    page.press("Escape", "p")
    page.click(3, 3)
    page.click(9, 3)
    page.press("Escape", "Enter")  # no polygon is left to be closed
    filled = np.where(drawn, 7, 0)
    assert np.array_equal(page.ids(), filled) and page.reaches_the_kernel(0, filled)

    with page.page.expect_download() as download:
        page.button("Save PNG")
    assert np.array_equal(read_mask(download.value.path()), filled)
    assert download.value.suggested_filename == "00000.png" and Image.open(download.value.path()).mode == "P"
    mask = block(1) + block(200, 60)
    write_mask(tmp_path / "mask.png", mask)
    (tmp_path / "<b>.png").write_bytes(b"no picture")
    for name in ("mask.png", "<b>.png"):
        with page.page.expect_file_chooser() as chooser:
            page.button("Load PNG")
        chooser.value.set_files(tmp_path / name)
        assert page.reaches_the_kernel(0, mask) and np.array_equal(page.ids(), mask)
    page.page.get_by_text("unreadable mask").wait_for(timeout=10_000)
    assert "<b>.png" in page.page.locator(".dulvos-painter [role=status]").inner_text()
    page.press("Control+z")
    assert np.array_equal(page.ids(), filled) and page.reaches_the_kernel(0, filled)


def test_zoomed_in_the_mouse_and_fingers_paint_where_they_are(page):
    for size in ({"width": 500, "height": 900}, browser.SIZE):  # the whole picture is shown at any width
        page.page.set_viewport_size(size)
        page.page.wait_for_timeout(500)
        box = page.canvas.bounding_box()
        left, right = page.place(0, 0)[0], page.place(79, 0)[0]
        assert 0 < left - box["x"] < box["x"] + box["width"] - left and right < box["x"] + box["width"]
    page.click(40, 24)
    page.press("Control+z", "[", "[")
    page.mouse.move(*page.place(60, 30))
    page.mouse.wheel(0, -800)
    page.page.wait_for_timeout(100)
    assert page.place(60, 30)[0] - page.place(50, 30)[0] > 2 * (right - left) / 79 * 10
    page.click(61, 31)
    assert np.argwhere(page.ids()).tolist() == [[31, 61]] and page.ids()[31, 61] == 1
    page.press("m")
    before = page.place(61, 31)
    page.drag((61, 31), (58, 30))
    page.press("b")
    assert page.place(61, 31) != before and np.count_nonzero(page.ids()) == 1, "moved, not painted"
    page.press("w")
    assert page.place(0, 0)[0] == pytest.approx(left) and page.place(79, 0)[0] == pytest.approx(right)

    touch = page.page.context.new_cdp_session(page.page)
    def fingers(kind, *places):
        points = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(places)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    (x, y), (u, v) = page.place(10, 10), page.place(30, 10)
    for kind, *places in (("touchStart", (x, y)), ("touchMove", (u, v)), ("touchEnd",)):
        fingers(kind, *places)
    assert page.ids()[10, 10:31].all() and np.count_nonzero(page.ids()) == 22
    for tools in "b", "f", "p", "", "":  # three corners would make a polygon
        page.press("w", *tools)
        for kind, *places in (("touchStart", (x, v + 90)), ("touchMove", (x + 60, v + 90)),
                              ("touchStart", (x + 60, v + 90), (x + 160, v + 90)),
                              ("touchMove", (x, v + 90), (x + 220, v + 90)), ("touchEnd",)):
            fingers(kind, *places)
        page.page.wait_for_timeout(100)
    page.press("Enter")
    assert np.count_nonzero(page.ids()) == 22, "two fingers paint nothing"
    assert page.place(79, 0)[0] - page.place(0, 0)[0] > 1.8 * (right - left)


def test_a_correction_changes_later_frames_only_and_encodes_nothing_again(page):
    page.page.locator(".dulvos-painter .run button").wait_for()
    assert page.page.get_by_role("button", name="Find masks").is_disabled(), "nothing is painted"
    page.click(40, 24)
    page.press("Control+z", "]", "]", "]", "]", "f", "b")
    page.drag((8, 20), (16, 20))
    page.run()
    assert page.kernel("count.frames") == LENGTH and page.ids().any()
    found = [page.to(t) for t in range(LENGTH)]
    assert all(page.reaches_the_kernel(t, found[t]) for t in (0, 4, 8)) and all(1 in ids for ids in found)
    red = page.page.evaluate("""() => {  // of a pixel in the square, which the mask covers by half
        const canvas = document.querySelector(".dulvos-painter canvas"), box = canvas.getBoundingClientRect();
        const [x, y] = document.querySelector(".dulvos-painter").painter.onPage(30, 14);
        const ratio = canvas.width / box.width;
        const place = [(x - box.left) * ratio, (y - box.top) * ratio];
        return canvas.getContext("2d").getImageData(...place, 1, 1).data[0]; }""")
    assert red > 180

    page.to(5)
    page.press("2")
    page.drag((64, 38), (72, 38))
    assert page.notebook.wait_for("painter.state['done'] == 5")
    assert page.page.get_by_role("button", name="Go on from frame 5").is_enabled()
    page.press("Control+z")
    assert page.notebook.wait_for("painter.state['done'] == len(video)"), "taken back: nothing to find anew"
    page.press("Control+Shift+z")
    page.run()
    assert page.kernel("count.frames") == LENGTH, "features are not computed again"
    again = [page.to(t) for t in range(LENGTH)]
    assert all(np.array_equal(found[t], again[t]) for t in range(5))
    assert [2 in ids for ids in again] == [False] * 5 + [True] * 4

    page.to(7)
    page.press("1")
    page.button("Gone from here on")
    page.run()
    ended = [page.to(t) for t in range(LENGTH)]
    assert [1 in ids for ids in ended] == [True] * 7 + [False] * 2 and all(2 in ids for ids in ended[5:])
    assert page.kernel("count.frames") == LENGTH and page.kernel("session.ended") == {"7": [1]}
    assert page.page.locator(".dulvos-painter .marks b").all_inner_texts() == ["▼", "▼", "✕"]
    names = page.kernel("sorted(str(path) for path in Path('out').rglob('*.*') if path.name[0] != '.')")
    given = [f"out/given/{name}" for name in ("00000.png", "00005.png", "ended.json")]
    assert names == [*(f"out/{t:05d}.png" for t in range(LENGTH)), *given, "out/overlay.mp4"]


def test_a_search_that_a_cell_awaits_stops_and_goes_on_and_is_played(page):
    """The kernel answers the painter while the cell runs."""
    page.kernel("(setattr(count, 'pause', 0.3), None)[1]")
    page.click(12, 20)
    page.press("]", "]", "]", "]")
    page.drag((8, 20), (16, 20))
    assert page.ids().any()
    assert page.notebook.wait_for("bool(session.given)"), "the search needs the paint"
    page.page.evaluate("""() => {
      window.jupyterapp.shell.currentWidget.content.activeCellIndex = 1;
      window.jupyterapp.commands.execute("notebook:run-cell"); }""")
    status = "document.querySelector('.dulvos-painter [role=status]').textContent"
    page.page.wait_for_function(f"/: [2-6] of/.test({status})")
    page.button("■ Stop")
    page.page.get_by_role("button", name="Go on from frame").wait_for(timeout=10_000)
    done = page.kernel("session.done")
    assert 2 <= done < LENGTH
    page.kernel("(setattr(count, 'pause', 0), None)[1]")
    page.to(done)
    page.press("2")
    page.drag((60, 40), (70, 40))
    page.run()
    assert page.kernel("count.frames") == LENGTH
    page.to(0)
    assert {1, 2} < {*page.to(done).flat}
    page.press("Control+z")  # not this stroke: the empty mask before it would end object 1 here
    assert page.notebook.wait_for("session.done == 0") and not page.kernel("session.ended")
    page.press("Control+Shift+z")
    page.press(" ")
    page.page.wait_for_function(f"{HOOK}.frame === {LENGTH - 1}", timeout=10_000)


def test_notebook_06_finds_masks_and_a_new_object_is_followed_from_where_it_is_painted(lab):
    """For the README's picture: DULVOS_SCREENSHOTS=results/screenshots bash run_all.sh test FILE."""
    pictures, count = os.environ.get("DULVOS_SCREENSHOTS"), 4
    small = {"frames": count, "shorter_side": 0 if pictures else 96, "out": "own"}  # beside the notebook
    with lab.open(ROOT / "notebooks" / "06_your_video.ipynb", "06_your_video", small) as notebook:
        notebook.run(300)
        assert notebook.red_cells() == []
        folder = lab.folder / "notebooks" / "own"
        files = [folder / f"{t:05d}.png" for t in range(count)]
        before = [read_mask(path) for path in files]
        page, (height, width) = Page(notebook, before[0].shape), before[0].shape
        page.to(3)
        page.press("5")
        page.drag((0.7 * width, 0.05 * height), (0.75 * width, 0.12 * height))
        page.run()
        found = [read_mask(path) for path in files]
        assert all((found[t] == before[t]).all() for t in range(3))
        assert [5 in ids for ids in found] == [False] * 3 + [True]
        assert notebook.console == [] and (folder / "overlay.mp4").exists()
        if pictures:
            page.page.locator(".dulvos-painter").evaluate("element => element.scrollIntoView()")
            page.page.wait_for_timeout(500)
            page.page.screenshot(path=Path(pictures) / "06_your_video.jpg", quality=88)


# the functions that draw

HEIGHT, WIDTH = 40, 60
DRAW = """const ids = Uint8Array.from(mask.flat()), box = js[tool](ids, mask[0].length, mask.length, ...rest);
    return [[...ids], box ?? null];"""


def draw(js, tool, mask, *rest):
    """The mask after a function of painter.js drew on it, and the function's value."""
    ids, value = js(DRAW, tool=tool, mask=mask.tolist(), rest=rest)
    return np.array(ids, np.uint8).reshape(mask.shape), value


STROKES = [([[30, 10]], 5), ([[21, 7]], 0.5), ([[10, 20], [50, 20]], 3),
           ([[5.3, 4.2], [40.7, 33.1], [55.5, 12]], 2.5),
           ([[-30, -30], [5, 5], [500, 5]], 1.5), ([[-20, 10], [-9, 10]], 4)]


@pytest.mark.parametrize(("points", "radius"), STROKES)
def test_a_stroke_paints_the_pixels_within_its_radius_and_names_their_box(js, points, radius):
    ids, box = draw(js, "stroke", np.full((HEIGHT, WIDTH), 9), points, radius, 3)
    assert np.array_equal(ids, np.where(near(points, radius, (HEIGHT, WIDTH)), 3, 9))
    left, top, right, bottom = box or (0, 0, 0, 0)
    assert (ids[top:bottom, left:right] == 3).sum() == (ids == 3).sum()
    assert right <= WIDTH and bottom <= HEIGHT


@pytest.mark.parametrize("corners", [
    [[2.8, 3.1], [55, 10], [20.2, 38]], [[-9, -9], [70, 20], [-9, 60]],
    [[10, 5], [50, 35], [50, 5], [10, 35]]])  # the last one crosses itself
def test_a_polygon_is_filled_with_its_rim(js, corners):
    ids, _ = draw(js, "polygon", np.zeros((HEIGHT, WIDTH), int), corners, 7)
    x, y = np.meshgrid(range(WIDTH), range(HEIGHT))
    inside = Outline([*corners, corners[0]], closed=True).contains_points(np.stack([x.ravel(), y.ravel()], 1))
    rim = np.zeros((HEIGHT + 200, WIDTH + 200), np.uint8)
    cv2.polylines(rim, [np.rint(corners).astype(np.int32) + 100], True, 1, 3)
    sure = rim[100:-100, 100:-100] == 0
    assert np.array_equal(ids[sure], np.where(inside.reshape(HEIGHT, WIDTH), 7, 0)[sure])
    assert set(np.unique(ids)) <= {0, 7}
    assert all(ids[round(y), round(x)] == 7 for x, y in corners if 0 <= x < WIDTH and 0 <= y < HEIGHT)


@pytest.mark.parametrize("place", [(0, 0), (30, 20), (59, 39), (-1, 5), (60, 5), (5, 40)])
def test_a_fill_is_the_connected_area_of_one_id(js, place):
    mask = (np.random.default_rng(3).random((HEIGHT, WIDTH)) < 0.35).astype(np.uint8) * 5
    mask[39, 59] = mask[20, 30] = mask[0, 0] = 0
    expected = mask.copy()
    if 0 <= place[0] < WIDTH and 0 <= place[1] < HEIGHT:
        cv2.floodFill(expected, None, place, 9)
    assert np.array_equal(draw(js, "fill", mask, *place, 9)[0], expected)
