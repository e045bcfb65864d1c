"""Notebooks in a real JupyterLab and a real browser: formulas are typeset; errors out of sight are found."""

from __future__ import annotations

import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from dulvos.study.rows import ROOT
from tests import browser

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

pytestmark = pytest.mark.skipif(browser.lacking() is not None, reason=str(browser.lacking()))


def _notebook(*cells: str) -> nbformat.NotebookNode:
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    made = [new_markdown_cell("# Made by a test"), *map(new_code_cell, cells)]
    return new_notebook(cells=made, metadata=kernel)


def test_the_harness_finds_red_cells_console_errors_and_requests_that_leave_the_machine(lab):
    code = "console.error('seen'); fetch('https://example.org')"
    script = f"from IPython.display import Javascript\nJavascript({code!r})"
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
        assert [text for text in rendered.all_text_contents() if "$" in text] == [], "formulas stand as typed"
        formulas = notebook.page.locator(".jp-MarkdownOutput mjx-container").all_text_contents()
        assert len(formulas) > 20
        # after one backslash too many, a command's name is set like a product of letters
        names = "mathcal|hat|frac|lambda|tau|theta|cdot|sum"
        assert [formula for formula in formulas if re.search(names, formula)] == []
        assert notebook.page.locator("mjx-merror, [data-mjx-error]").all_text_contents() == []
        assert notebook.console == []
