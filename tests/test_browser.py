"""Notebooks in a real JupyterLab and a real browser: formulas, clicks, and that nothing goes wrong out of sight.

The README's pictures: DULVOS_SCREENSHOTS=results/screenshots bash run_all.sh test tests/test_browser.py
"""

from __future__ import annotations

import base64
import io
import os
import re
from pathlib import Path

import av
import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from PIL import Image

from dulvos.masks import read_mask
from dulvos.study import results
from tests import browser

FOLDER = results.ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SCREENSHOTS = os.environ.get("DULVOS_SCREENSHOTS")

pytestmark = pytest.mark.skipif(browser.lacking() is not None, reason=str(browser.lacking()))


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with browser.serve(tmp_path_factory.mktemp("lab") / "served") as served:
        yield served


def _notebook(*cells: str) -> nbformat.NotebookNode:
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return new_notebook(cells=[new_markdown_cell("# Made by a test"), *map(new_code_cell, cells)], metadata=kernel)


CLICKABLE = """%matplotlib widget
import matplotlib.pyplot as plt
import numpy as np
clicked = []
figure, axes = plt.subplots(figsize=(4, 3))
picture = axes.imshow(np.zeros((6, 8)), vmin=0, vmax=1)
def colour(event):
    clicked.append([round(event.ydata), round(event.xdata)])
    picture.set_data(np.ones((6, 8)))
    figure.canvas.draw_idle()
figure.canvas.mpl_connect("button_press_event", colour)"""
CANVAS = browser.canvas("clicked = []")
PIXEL = "(lambda p: (p[0], figure.bbox.height - p[1]))(axes.transData.transform(({x}, {y})))"


def test_the_harness_clicks_where_it_says_and_sees_the_answer(lab):
    with lab.open(_notebook(CLICKABLE), "clickable") as notebook:
        notebook.run(120)
        assert notebook.red_cells() == [] and notebook.console == []
        first, last = notebook.click(CANVAS, *notebook.evaluate(PIXEL.format(y=2, x=5)))
        assert 0 < first <= last
        assert notebook.click(CANVAS, *notebook.evaluate(PIXEL.format(y=4, x=0)), limit=1500) is None  # already coloured
        assert notebook.wait_for("clicked if len(clicked) == 2 else None") == [[2, 5], [4, 0]]


def test_the_harness_finds_red_cells_console_errors_and_requests_that_leave_the_machine(lab):
    script = "from IPython.display import Javascript\nJavascript(\"console.error('seen'); fetch('https://example.org')\")"
    with lab.open(_notebook(script, "value = 6 * 7", "1 / 0", "'never'"), "failing") as notebook:
        notebook.run(120)
        assert notebook.red_cells() == ["ZeroDivisionError: division by zero", "not run: 'never'"]
        assert notebook.evaluate("value") == 42
        with pytest.raises(RuntimeError, match="NameError"):
            notebook.evaluate("values")
        notebook.page.wait_for_timeout(500)
        errors = "\n".join(notebook.console)
        assert "seen" in errors and "example.org" in errors


def test_formulas_of_all_notebooks_are_typeset(lab):
    """All prose in one page, before anything is run: what a reader sees first."""
    cells = [cell for path in NOTEBOOKS for cell in nbformat.read(path, as_version=4).cells]
    prose = [new_markdown_cell(cell.source) for cell in cells if cell.cell_type == "markdown"]
    together = _notebook()
    together.cells = prose
    with lab.open(together, "prose") as notebook:
        rendered = notebook.page.locator(".jp-MarkdownOutput")
        for i in range(len(prose)):
            rendered.nth(i).scroll_into_view_if_needed()  # offscreen, nothing is typeset
        for _ in range(50):  # typesetting comes after rendering
            if "$" not in "".join(rendered.all_text_contents()):
                break
            notebook.page.wait_for_timeout(200)
        assert [text for text in rendered.all_text_contents() if "$" in text] == [], "formulas stand there as they were typed"
        formulas = notebook.page.locator(".jp-MarkdownOutput mjx-container").all_text_contents()
        assert len(formulas) > 20
        # a backslash too many breaks the line, and the command's name is set as if it were a product of letters
        assert [formula for formula in formulas if re.search("mathcal|hat|frac|lambda|tau|theta|cdot|sum", formula)] == []
        assert notebook.page.locator("mjx-merror, [data-mjx-error]").all_text_contents() == []
        assert notebook.console == []


def _keep(notebook, cell: str) -> None:
    """A picture of the window with a cell's output at its top."""
    if SCREENSHOTS:
        output = notebook.page.locator(f".jp-CodeCell:has-text({cell!r}) .jp-Cell-outputWrapper")
        output.evaluate("element => element.scrollIntoView()")
        notebook.page.wait_for_timeout(500)
        Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
        notebook.page.screenshot(path=str(Path(SCREENSHOTS) / f"{notebook.path.stem}.jpg"), quality=88)


def _seen(notebook, selector: str) -> np.ndarray:
    """A canvas's pixels as the browser holds them, (H, W, 3) int."""
    url = notebook.page.locator(selector).first.evaluate("canvas => canvas.toDataURL()")
    return _decode(url.partition(",")[2])


def _changes(notebook, selector: str, before: np.ndarray, seconds: float = 10) -> bool:
    """Whether a canvas comes to show something else than before."""
    for _ in range(round(10 * seconds)):
        if (_seen(notebook, selector) != before).any():
            return True
        notebook.page.wait_for_timeout(100)
    return False


def _decode(picture: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")).astype(int)


PARAMETERS = {"06_your_video": {"frames": 6, "out": "own"}}  # out lies in the lab's folder
paints = pytest.mark.parametrize("opened", ["06_your_video"], indirect=True)


@pytest.fixture(scope="module")
def opened(lab, request):
    """A notebook that was run from top to bottom; pytest ends it, and frees its memory, before the next one."""
    with lab.open(FOLDER / f"{request.param}.ipynb", request.param, PARAMETERS[request.param]) as notebook:
        notebook.run(300)
        yield notebook


PAINTER, CORRECTOR = browser.canvas("painter = Painter("), browser.canvas("corrector = Painter(")


@paints
def test_own_video_runs_from_top_to_bottom(opened):
    assert opened.red_cells() == [] and opened.console == []
    assert len(list((opened.lab.folder / "own").glob("*.png"))) == 6


def _stroke(notebook, selector: str, painter: str, points: list[tuple[float, float]]) -> None:
    """Draw with the mouse through points [y, x] of the painter's frame; one point is a click."""
    notebook.drag(selector, notebook.evaluate(f"[{painter}.pixel_of(y, x) for y, x in {points}]"))


def _choose(notebook, cell: str, tool: str, number: int | None = None) -> None:
    """A tool of the painter that a cell shows, and the object to paint."""
    tools = notebook.page.locator(f".jp-CodeCell:has-text({cell!r})")
    tools.get_by_role("button", name=tool, exact=True).click()
    if number is not None:
        tools.locator("input[type=number]").first.fill(str(number))
        tools.locator("input[type=number]").first.press("Enter")


@paints
def test_masks_are_painted_with_the_mouse(opened):
    """Object 3 with the brush, object 4 with the polygon, a hole with the eraser."""
    cell, before = "painter = Painter(", np.array(opened.evaluate("painter.ids"))
    height, width = before.shape
    zigzag = (0.25, 0.1), (0.33, 0.05), (0.33, 0.18), (0.43, 0.08), (0.43, 0.18), (0.5, 0.12)
    line = [(y * height, x * width) for y, x in zigzag]
    _choose(opened, cell, "brush", 3)
    seen = _seen(opened, PAINTER)
    _stroke(opened, PAINTER, "painter", line)
    assert opened.wait_for(f"all(painter.ids[round(y), round(x)] == 3 for y, x in {line})")
    ids = np.array(opened.evaluate("painter.ids"))
    assert (ids == before)[round(0.65 * height):].all() and (ids == before)[:, round(0.3 * width):].all()
    assert _changes(opened, PAINTER, seen)

    _choose(opened, cell, "undo")
    assert opened.wait_for("not (painter.ids == 3).any()") and opened.evaluate("painter.ids") == before.tolist()
    _choose(opened, cell, "redo")
    assert opened.wait_for("bool((painter.ids == 3).any())") and opened.evaluate("painter.ids") == ids.tolist()
    _keep(opened, cell)

    corners = [(y * height, x * width) for y, x in ((0.7, 0.05), (0.95, 0.05), (0.95, 0.25))]
    _choose(opened, cell, "polygon", 4)
    for corner in [*corners, corners[0]]:
        _stroke(opened, PAINTER, "painter", [corner])
        opened.page.wait_for_timeout(300)
    middle = np.rint(np.mean(corners, 0)).astype(int).tolist()
    assert opened.wait_for(f"bool(painter.ids[{middle[0]}, {middle[1]}] == 4)"), "the polygon was not filled"

    _choose(opened, cell, "erase")
    _stroke(opened, PAINTER, "painter", [line[3]])
    assert opened.wait_for(f"bool(painter.ids[{round(line[3][0])}, {round(line[3][1])}] == 0)")
    assert opened.console == []


@paints
def test_painted_masks_are_carried_and_a_later_frame_is_put_right(opened):
    """Needs what the test before has painted."""
    folder = opened.lab.folder / "own"
    first = np.array(opened.evaluate("painter.ids"))
    opened.run(300, "session.paint(0")
    assert opened.red_cells() == [] and opened.console == []
    names = sorted(folder.glob("*.png"))
    masks = [read_mask(name) for name in names]
    assert (masks[0] == first).all() and {3, 4} <= set(np.unique(masks[-1]))
    with av.open(str(folder / "overlay.mp4")) as movie:
        assert sum(1 for _ in movie.decode(video=0)) == len(masks) == 6

    height, width = first.shape
    place = [0.1 * height, 0.8 * width]
    _choose(opened, "corrector = Painter(", "brush", 5)
    _stroke(opened, CORRECTOR, "corrector", [place])
    assert opened.wait_for("bool((corrector.ids == 5).any())")
    opened.run(300, "session.paint(number")
    assert opened.red_cells() == [] and opened.console == []
    held = [5 in read_mask(name) for name in names]
    assert held == [False] * 3 + [True] * 3, "frame 3 was corrected: object 5 is there from then on"
