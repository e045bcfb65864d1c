"""The explorer in a real browser: as a saved page by file://, and in JupyterLab (notebook 05)."""

import base64
import io
import os
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from dulvos.correspondence import anchor_grid, best_matches
from dulvos.study.rows import ROOT
from dulvos.widgets import explorer as explorers
from tests import browser
from tests.oracles import write_textures
from tests.test_explorer import Patches

SCREENSHOTS = os.environ.get("DULVOS_SCREENSHOTS")
ELEMENT = "document.querySelector('.dulvos-explorer')?.parentElement"
COMMITTED = ROOT / "results/explorer.html"
SCRIPT = explorers.SCRIPT  # for the fixture `js`
T = 4

pytestmark = browser.MARKS


class Shown:
    """An explorer in a page: its state, and the places of its cells for the mouse."""

    def __init__(self, page):
        self.page, self.errors, self.requests = page, [], []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        page.on("request", lambda request: self.requests.append(request.url))

    def state(self, **expected) -> dict:
        """Wait, at most 10 s, until all is drawn and the fields have these values; the state."""
        for _ in range(200):
            state = self.page.evaluate(f"{ELEMENT}?.dulvos.state()") or {}
            if state.get("ready") and expected.items() <= state.items():
                return state
            self.page.wait_for_timeout(50)
        raise AssertionError(f"expected {expected}, found {state}")

    def values(self, encoder: int, shape: tuple[int, ...]) -> np.ndarray:
        values = self.page.evaluate(f"Array.from({ELEMENT}.dulvos.values({encoder}))")
        return np.array(values, np.float32).reshape(shape)

    def set(self, fields: str) -> None:
        self.page.evaluate(f"{ELEMENT}.dulvos.set({{{fields}}})")

    def place(self, frame: int, y: int, x: int, cells: tuple[int, int]) -> tuple[float, float]:
        """Position in the window of a cell in the first encoder's small picture of a frame."""
        canvas = self.page.locator(".strip").first.locator("canvas").nth(frame)
        canvas.scroll_into_view_if_needed()
        box = None
        while box != (box := canvas.bounding_box()):  # JupyterLab goes on laying out its cells
            self.page.wait_for_timeout(100)
        return box["x"] + (x + 0.5) / cells[1] * box["width"], box["y"] + (y + 0.5) / cells[0] * box["height"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The saved page of an explorer of frames of 64x96, two encoders of different strides, and their data."""
    folder, _ = tmp_path_factory.mktemp("clips"), torch.manual_seed(0)
    clip, other = (write_textures(folder, [name], frames, size) / name for name, frames, size in
                   (("clip", 9, (64, 96)), ("another", 1, (64, 64))))
    encoders = Patches(8), Patches(16)  # whose names are equal
    explorer = explorers.Explorer(clip, encoders, layer="res3", frames=T, gap=2, others=[other])
    packed = [packed for _, packed in explorer.packed().values()]
    frames = [explorer.video.read(t) for t in explorer.indices]
    return SimpleNamespace(page=explorer.save_html(folder / "saved.html"), packed=packed, frames=frames)


def cosines(packed, cell: int, area: int) -> np.ndarray:
    """Cosines of a cell with the clip's, (T·area,); in the browser it is exactly 1 with itself."""
    values = packed.cosines(cell)[: T * area]
    if cell < len(values):
        values[cell] = 1
    return values


@pytest.fixture
def saved(chromium, made, request):
    """The saved page in a window of its own; it must raise no error and load nothing."""
    options = {"viewport": {"width": 1200, "height": 900}, **getattr(request, "param", {})}
    context = chromium.context.browser.new_context(**options)
    shown = Shown(context.new_page())
    shown.page.goto(made.page.as_uri())
    shown.state()
    yield shown
    context.close()
    assert shown.errors == []
    assert {url.partition(":")[0] for url in shown.requests} <= {"file", "blob", "data"}


def test_hovering_shows_the_affinity_of_the_cell_under_the_mouse_in_both_encoders(saved, made):
    """A click pins the cell until it is clicked again."""
    frame, y, x = 2, 5, 9
    place = saved.place(frame, y, x, (8, 12))
    saved.page.mouse.move(*place)
    saved.state(frame=frame, y=y, x=x, pinned=False)
    for index, (h, w, i, j) in enumerate([(8, 12, y, x), (4, 6, y // 2, x // 2)]):
        right = cosines(made.packed[index], frame * h * w + i * w + j, h * w)
        assert np.allclose(saved.values(index, (-1,)), right, atol=1e-6)
    for pinned, seen in ((True, frame), (False, 1)):
        saved.page.mouse.click(*place)
        saved.state(pinned=pinned)
        saved.page.mouse.move(*saved.place(1, 6, 8, (8, 12)))
        saved.state(frame=seen)


def test_what_is_drawn_is_the_map_over_the_grey_frame(saved, made):
    saved.page.mouse.move(*saved.place(0, 4, 6, (8, 12)))
    time = saved.state(frame=0, y=4, x=6)["time"]
    url = saved.page.locator(".large canvas").nth(1).evaluate("canvas => canvas.toDataURL()")
    picture = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")
    seen, values = np.array(picture, float), saved.values(0, (T, 8, 12))
    low, high = np.median(values), max(values[1:].max(), np.median(values) + 0.001)
    best = best_matches(torch.from_numpy(values), 10)[0].numpy()[time].tolist()
    cells = {(i, j) for i in range(1, 7) for j in range(1, 11)}
    for y, x in (*best, (4, 6)):  # rings and the cross lie there
        cells -= {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
    assert len(cells) > 10
    scale = seen.shape[0] / 64
    for cell in cells:
        share = np.clip((values[time, *cell] - low) / (high - low), 0, 1)
        colour, alpha = 255 * np.array(matplotlib.colormaps["viridis"](share)[:3]), 0.85 * share**0.7
        under = made.frames[time][tuple(slice(8 * i, 8 * i + 8) for i in cell)].mean((0, 1))
        grey = 0.73 * (under @ [0.3, 0.59, 0.11])
        inner = tuple(slice(round((8 * i + 1) * scale), round((8 * i + 7) * scale)) for i in cell)
        assert np.abs(seen[inner].mean((0, 1)) - (alpha * colour + (1 - alpha) * grey)).max() < 20
    top, left = ((8 * i + 4) * scale for i in best[0])
    ring = seen[round(top) - 20: round(top) + 20, round(left) - 20: round(left) + 20]
    assert (np.abs(ring - [230, 159, 0]).sum(-1) < 30).any(), "the best match has no orange ring"


@pytest.mark.parametrize("clips", ["own", "all"])
def test_anchors_compete(saved, made, clips):
    """Eqs. 1 and 2: the shares of the dominant anchors, and of the anchor of the cell under the mouse.

    In the reference frame that is the nearest anchor, in other frames the dominant one of this clip.
    """
    n, tau, count, shares = 4, 0.2, 16 if clips == "own" else 32, []
    for packed, (h, w), (height, width) in zip(made.packed, ((8, 12), (4, 6)), ((8, 8), (4, 4))):
        own, other = anchor_grid(h, w, n), anchor_grid(height, width, n)
        cells = [*(own @ torch.tensor([w, 1])), *(T * h * w + other @ torch.tensor([width, 1]))]
        values = np.stack([cosines(packed, int(cell), h * w) for cell in cells[:count]])
        shares.append(torch.from_numpy(values / tau).softmax(0))
        if len(shares) == 1:  # choose a cell where the nearest and the dominant anchor differ
            nearest = np.square(np.argwhere(np.ones((h, w)))[:, None] - own.numpy()).sum(-1).argmin(1)
            dominant, of_all = (part.argmax(0).reshape(T, -1) for part in (values[: n * n], values))
            telling = (dominant[[0, 2]] != nearest).all(0) & ((of_all[2] >= n * n) | (clips == "own"))
            cell = int(np.flatnonzero(telling)[0])
            (y, x), number = divmod(cell, w), {0: nearest[cell], 2: dominant[2, cell]}
    for frame, show in ((0, "share"), (2, "share"), (2, "dominant")):
        saved.set(f"show: '{show}', clips: '{clips}', n: {n}, tau: {tau}, frame: {frame}, y: {y}, x: {x}")
        saved.state(show=show, clips=clips, n=n, frame=frame)
        for i, share in enumerate(shares):
            right = share[number[frame]] if show == "share" else share.max(0).values
            assert np.allclose(saved.values(i, (-1,)), right, rtol=1e-3), (i, frame, show)


def test_best_matches_and_the_ends_of_the_scale(js):
    values = torch.rand(4, 6, 5, generator=torch.Generator().manual_seed(0)) * 2 - 1
    values *= torch.tensor([0.9, 0.5, 0.7, 0.6])[:, None, None]
    body = """const x = Float32Array.from(values), best = js.bestMatches(x, 30, 10);
        return [best, js.stretch(x, best, 30, 0), js.stretch(x.subarray(0, 30), best.slice(0, 1), 30, 0)];"""
    best, ends, alone = js(body, values=values.flatten().tolist())
    assert best == (best_matches(values, 10)[0] @ torch.tensor([5, 1])).tolist()
    assert ends["low"] == pytest.approx(float(values.median()), abs=1e-3)
    assert ends["high"] == pytest.approx(float(values[1:].max()))  # the cell's own frame does not count
    assert alone["high"] == pytest.approx(float(values[0].max()))


@pytest.mark.parametrize("stride, offset", [((8, 8), (0, 0)), ((14, 15), (6.5, 7)), ((4, 4), (1.5, 1.5))])
def test_cells_and_pixels_are_each_other_s_inverse(js, stride, offset):
    body = """const head = {cells: [5, 6], frames: 1, others: [], channels: 16, scale: 1, stride, offset};
        const f = new js.Features(head, new Int8Array(480), new Float32Array(30));
        const there = (cell) => [f.pixelOf(cell), f.cellAt(...f.pixelOf(cell)), f.cellAt(-99, 999)];
        return Array.from({length: 30}, (_, cell) => there(cell));"""
    for cell, (pixel, again, outside) in enumerate(js(body, stride=stride, offset=offset)):
        assert pixel == [offset[0] + stride[0] * (cell // 6) + 0.5, offset[1] + stride[1] * (cell % 6) + 0.5]
        assert (again, outside) == (cell, 5)


KEYS = [("ArrowRight", "x", 5), ("ArrowLeft", "x", 3), ("ArrowUp", "y", 2), ("ArrowDown", "y", 4),
        ("PageDown", "frame", 2), ("PageUp", "frame", 0), (".", "time", 2), (",", "time", 0),
        ("s", "show", "share"), ("c", "clips", "all"), ("+", "n", 4), ("-", "n", 2),
        ("]", "tau", 0.07), ("[", "tau", 0.03), ("Enter", "pinned", False), (" ", "playing", True)]


def test_everything_can_be_done_with_the_keyboard(saved):
    start = "frame: 1, y: 3, x: 4, time: 1, show: 'affinity', clips: 'own', n: 3, tau: 0.05, pinned: true"
    saved.page.locator(".dulvos-explorer").focus()
    for key, field, value in KEYS:
        saved.set(start)
        saved.page.keyboard.press(key)
        saved.state(**{field: value})
    saved.page.keyboard.press("Space")
    for _ in range(30):
        saved.page.keyboard.press("ArrowLeft")
    saved.state(playing=False, x=0)  # and no further
    saved.page.locator("select").first.focus()
    saved.page.keyboard.press("ArrowDown")
    saved.state(show="share", y=3)  # a control that has the keyboard keeps its own keys
    saved.page.get_by_role("slider", name="time").fill("3")
    saved.state(time=3)
    saved.page.get_by_role("button", name="play").click()
    saved.state(time=0)  # round the clip
    saved.page.get_by_role("button", name="pause").click()
    saved.state(playing=False)


PHONE = {"has_touch": True, "viewport": {"width": 400, "height": 800}, "color_scheme": "dark"}


@pytest.mark.parametrize("saved", [PHONE, {"color_scheme": "light"}], indirect=True)
def test_a_narrow_window_a_finger_and_either_theme_suffice(saved):
    style = f"getComputedStyle({ELEMENT}.firstChild)"
    colour, dark = saved.page.evaluate(f"[{style}.color, matchMedia('(prefers-color-scheme: dark)').matches]")
    light = sum(map(float, colour.removeprefix("rgb(").rstrip(")").split(",")))
    assert light > 600 if dark else light < 150
    if dark:
        saved.page.touchscreen.tap(*saved.place(3, 2, 10, (8, 12)))
        saved.state(frame=3, y=2, x=10, pinned=False)
        assert saved.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.skipif(not COMMITTED.exists(), reason="results/explorer.html is not here")
def test_the_committed_page_works(chromium):
    shown = Shown(chromium.context.new_page())
    shown.page.goto(COMMITTED.as_uri())
    shown.state()
    shown.page.mouse.move(*shown.place(3, 10, 20, (24, 32)))
    shown.state(frame=3, y=10, x=20)
    assert shown.values(0, (5, 24, 32)).argmax() == (3 * 24 + 10) * 32 + 20 and shown.errors == []
    shown.page.close()


SMALL = {"frames": 3, "batch": 2, "checkpoint": "random", "beside": "", "shorter_side": 96, "y": 4, "x": 9}


def test_notebook_05_in_jupyterlab(lab):
    """From top to bottom; then mouse, keyboard and kernel act on the widget. Screenshots need all of it."""
    source = ROOT / "notebooks/05_explore_anchors.ipynb"
    with lab.open(source, source.stem, {} if SCREENSHOTS else SMALL) as notebook:
        notebook.run(300)
        assert notebook.red_cells() == [] and notebook.console == []
        shown, packed = Shown(notebook.page), "next(iter(explorer.packed().values()))"
        cells = tuple(notebook.evaluate(f"{packed}[0]['cells']"))
        shown.state()
        shown.page.mouse.click(*shown.place(2, 5, 11, cells))
        shown.state(pinned=True, frame=2)
        right = notebook.evaluate(f"{packed}[1].cosines((2 * {cells[0]} + 5) * {cells[1]} + 11)")
        drawn = shown.values(0, (-1, *cells))
        assert len(drawn) == notebook.evaluate("len(explorer.indices)")
        assert np.quantile(np.abs(drawn.ravel() - right[: drawn.size]), 0.99) < 1e-5
        assert notebook.wait_for("explorer.pinned and [explorer.frame, explorer.y, explorer.x]") == [2, 5, 11]
        shown.page.keyboard.press("ArrowRight")
        shown.state(x=12)
        assert notebook.wait_for("explorer.x == 12")
        notebook.evaluate("explorer.set_trait('layer', 'key')")  # the kernel must compute it first
        shown.state(layer="key")
        notebook.evaluate("explorer.set_trait('show', 'dominant')")
        shown.state(show="dominant")
        notebook.evaluate("explorer.set_trait('tau', 0.06)")  # the menu gets it
        shown.state(tau=0.06)
        assert shown.page.locator(".dulvos-explorer option:checked", has_text="0.06").count() == 1
        assert notebook.console == [] and shown.errors == []
        if SCREENSHOTS:
            shown.set("layer: 'res4', show: 'affinity', frame: 0, y: 11, x: 26, time: 2, pinned: false")
            shown.state(layer="res4")
            notebook.page.locator(".dulvos-explorer").evaluate("element => element.scrollIntoView()")
            notebook.page.wait_for_timeout(500)
            Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
            notebook.page.screenshot(path=str(Path(SCREENSHOTS) / "05_explore_anchors.jpg"), quality=88)
