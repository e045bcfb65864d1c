"""Each notebook: clean in the repository, and running from top to bottom at its smallest setting."""

from __future__ import annotations

import ast

import nbformat
import papermill
import pytest

from dulvos.study import results

NOTEBOOKS = sorted((results.ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_source_notebooks_carry_no_outputs_and_one_cell_of_parameters(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert all(cell.source.count("\n") < 30 for cell in code)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_papermill_knows_every_parameter(path):
    """It leaves out a line that it cannot parse, one with two equals signs for instance, and no run could set it."""
    cell = next(cell for cell in nbformat.read(path, as_version=4).cells if "parameters" in cell.metadata.get("tags", []))
    assigned = {node.target.id for node in ast.parse(cell.source).body}
    assert set(papermill.inspect_notebook(str(path))) == assigned


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_from_top_to_bottom(path, folder, monkeypatch):
    """With their own default parameters, in order, in one empty results folder."""
    monkeypatch.setenv("DULVOS_RESULTS", str(folder))
    monkeypatch.setenv("PYTHONPATH", str(results.ROOT))
    out = folder / path.name
    papermill.execute_notebook(str(path), str(out), cwd=str(results.ROOT), kernel_name="python3", progress_bar=False)
    assert out.stat().st_size < 2_000_000
