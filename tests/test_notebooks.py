"""Each notebook is clean in the repository, and runs from top to bottom at its own small setting."""

import ast
from pathlib import Path

import nbformat
import papermill
import pytest

from dulvos.study.evaluation import evaluation_run
from dulvos.study.rows import ROOT, Study

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@each
def test_source_notebooks_are_clean(path: Path) -> None:
    """A title, one cell of parameters that papermill can read line by line, short cells, no outputs."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert all(cell.source.count("\n") < 30 and "sys.path" not in cell.source for cell in code)
    parameters, = (cell.source for cell in code if "parameters" in cell.metadata.get("tags", []))
    lines = {node.target.id: node.lineno for node in ast.parse(parameters).body}
    assert set(papermill.inspect_notebook(str(path))) == set(lines)
    assert all("#" in parameters.splitlines()[number - 1] or name == "seed" for name, number in lines.items())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


@each
def test_notebooks_run_from_top_to_bottom(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With default parameters, in order, in one results folder that was empty, as if opened from notebooks/.

    Then the first cells run again, as after a change of a parameter, and must print the same.
    """
    monkeypatch.setenv("DULVOS_RESULTS", str(folder))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(path, as_version=4)
    first = [cell for cell in notebook.cells if cell.cell_type == "code"][:2]
    notebook.cells += [nbformat.v4.new_code_cell(cell.source) for cell in first]
    twice, out = folder / f"twice-{path.name}", folder / path.name
    nbformat.write(notebook, twice)
    papermill.execute_notebook(twice, out, cwd=str(path.parent), kernel_name="python3", progress_bar=False)
    assert out.stat().st_size < 2_000_000
    ran = [cell for cell in nbformat.read(out, as_version=4).cells if cell.cell_type == "code"]
    once, again = (["".join(output.get("text", "") or str(output.data) for output in cell.outputs)
                    for cell in cells] for cells in (ran[:2], ran[-2:]))
    assert once == again


def test_results_are_shown_with_masks_and_the_frame_where_they_are_lost(tiny, folder, monkeypatch):
    monkeypatch.setenv("DULVOS_RESULTS", str(folder))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    study = Study("tiny", folder)
    evaluation_run(study, "random", str(tiny), "random")
    papermill.execute_notebook(ROOT / "notebooks/07_results.ipynb", folder / "shown.ipynb",
                               {"study": "tiny", "data": str(tiny)}, cwd=str(ROOT / "notebooks"),
                               kernel_name="python3", progress_bar=False)
    assert {"montage.png", "worst_sequence.png", "failure.png"} <= {
        file.name for file in (study.folder / "figures").iterdir()}
