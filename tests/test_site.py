"""The page of a study: everything that it links to exists, whether much or nothing was made."""

import os
import re
import shutil

import nbformat

from dulvos.study.rows import ROOT, Study, percent
from dulvos.study.site import write_site


def links(page) -> list[str]:
    return re.findall(r'(?:src|href)="(?!https:)([^"]+)"', page.read_text())


def test_an_empty_study_has_a_page_without_dead_links(tmp_path):
    page = write_site(Study("demo", tmp_path))
    assert not links(page) and "not run" in page.read_text()


def test_everything_that_a_page_links_to_is_there(tmp_path):
    """Names with a dot are copies that failed or still run; a page follows its notebook."""
    for name in ("demo", "ablation-davis", "davis", "comparison"):
        shutil.copytree(ROOT / "results" / name / "rows", tmp_path / name / "rows")
    for name in ("demo", "ablation-davis"):
        shutil.copytree(ROOT / "results" / name / "figures", tmp_path / name / "figures")
    study = Study("demo", tmp_path)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("first words")])
    (study.folder / "notebooks").mkdir()
    for name in ("01_train", "02_evaluate-x.failed"):
        nbformat.write(notebook, study.folder / "notebooks" / f"{name}.ipynb")
    (study.folder / "figures" / "features_masks.mp4").touch()
    (study.folder / "explorer.html").touch()
    page = write_site(study)
    found = links(page)
    assert all((study.folder / link).is_file() for link in found)
    assert {"pages/01_train.html", "explorer.html", "../demo/figures/features_masks.mp4",
            "../demo/figures/montage.png", "../ablation-davis/figures/fig3-star.png"} <= set(found)
    assert not any("failed" in link for link in found)
    scores = Study("davis", tmp_path).rows("evaluate").set_index("name")["scores.J&F-Mean"]
    assert str(percent(scores["trained"])) in page.read_text()
    notebook.cells[0].source = "other words"
    os.utime(study.folder / "pages" / "01_train.html", (1, 1))
    nbformat.write(notebook, study.folder / "notebooks" / "01_train.ipynb")
    write_site(study)
    assert "other words" in (study.folder / "pages" / "01_train.html").read_text()
