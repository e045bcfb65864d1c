"""The browser tests' own tools, and the formulas of all notebooks in JupyterLab."""

import re

import nbformat
import pytest
from nbformat.v4 import new_markdown_cell

from dulvos.study.rows import ROOT
from tests import browser

pytestmark = browser.MARKS


def test_the_harness_finds_red_cells_console_errors_and_requests_that_leave_the_machine(lab):
    code = "console.error('seen'); fetch('https://example.org')"
    script = f"from IPython.display import Javascript\nJavascript({code!r})"
    with lab.open(browser.of_cells(script, "value = 6 * 7", "1 / 0", "'never'"), "failing") as notebook:
        notebook.run(120)
        assert notebook.red_cells() == ["ZeroDivisionError: division by zero", "not run: 'never'"]
        assert notebook.evaluate("value") == 42
        with pytest.raises(RuntimeError, match="NameError"):
            notebook.evaluate("values")
        notebook.page.wait_for_timeout(500)
        errors = "\n".join(notebook.console)
        assert "seen" in errors and "example.org" in errors


def test_a_page_that_hangs_ends_and_the_next_one_works(chromium):
    """Otherwise a run of all tests would wait for ever, without naming one."""
    page = chromium.context.new_page()
    with pytest.raises(Exception, match="closed"), browser.limited(1):
        page.evaluate("() => { for (;;); }")
    assert chromium.context.new_page().evaluate("1 + 1") == 2


def test_formulas_of_all_notebooks_are_typeset(lab):
    """All text cells in one notebook, before anything is run."""
    cells = [cell for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
             for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    together = browser.of_cells()
    together.cells = [new_markdown_cell(cell.source) for cell in cells]
    with lab.open(together, "prose") as notebook:
        rendered = notebook.page.locator(".jp-MarkdownOutput")
        for i in range(len(cells)):
            rendered.nth(i).scroll_into_view_if_needed()  # offscreen, nothing is typeset
        prose = "[...document.querySelectorAll('.jp-MarkdownOutput')].map((one) => one.textContent).join()"
        notebook.page.wait_for_function(f"!{prose}.includes('$')", timeout=10_000)  # after rendering
        formulas = notebook.page.locator(".jp-MarkdownOutput mjx-container").all_text_contents()
        assert len(formulas) > 20
        # with one backslash too many, a command's name is typeset as letters
        names = "mathcal|hat|frac|lambda|tau|theta|cdot|sum"
        assert [formula for formula in formulas if re.search(names, formula)] == []
        assert notebook.page.locator("mjx-merror, [data-mjx-error]").all_text_contents() == []
        assert notebook.console == []
