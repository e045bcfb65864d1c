"""The README files: their tables agree with the rows, their links exist, their code runs."""

import re
import subprocess

import cv2
import numpy as np
import pytest

from dulvos.study import ablation
from dulvos.study.readme import FILES, fill
from dulvos.study.rows import ROOT, Study
from dulvos.study.tables import write_tables
from tests.test_videos import make_file

DOCUMENTS = (*FILES, "tests/README.md")


@pytest.mark.parametrize("name", FILES)
def test_tables_are_those_of_the_rows(name):
    """`python -m dulvos.study.readme` writes them again."""
    text = (ROOT / name).read_text()
    assert "<!-- table:" in text and fill(text, ROOT / "results") == text


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_and_named_files_exist(name):
    text = (ROOT / name).read_text()
    folder = (ROOT / name).parent
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("http") or (folder / link).exists(), link
    for path in re.findall(r"`((?:dulvos|tests|results|benchmarks|notebooks)/[\w/.-]+\.\w+)`", text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("name", ["demo", "davis"])
def test_committed_tables_are_those_of_the_committed_rows(name, tmp_path):
    """Table 3 of each study also shows the others' trainings, so a demo that was run here changes them."""
    changed = subprocess.run(["git", "status", "--porcelain", "--", "results/*/rows/*"], cwd=ROOT,
                             capture_output=True, text=True).stdout
    if changed:
        pytest.skip(f"rows were run here since the commit: {changed.splitlines()[0]}")
    study, scale = Study(name, ROOT / "results"), ablation.find_scale(name)
    write_tables(study, tmp_path / name)
    grid = Study(scale.folder, ROOT / "results")
    ablation.write_tables(grid, scale, tmp_path / grid.name)
    for written in tmp_path.rglob("*.*"):
        committed = ROOT / "results" / written.parent.name / "tables" / written.name
        assert committed.read_text() == written.read_text(), committed


def test_the_code_as_printed_carries_a_mask(tmp_path, monkeypatch):
    """With the most common kind of mask, 0 and 255."""
    code, = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    make_file(tmp_path / "clip.mp4", 3, "mp4v")
    mask = np.zeros((48, 64), np.uint8)
    mask[8:30, 10:40] = 255
    cv2.imwrite(str(tmp_path / "first.png"), mask)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code, names)
    assert len(names["masks"]) == 3 and np.array_equal(names["masks"][0], mask > 0)
