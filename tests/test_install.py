"""Installing: in place, from a wheel, and with the lowest versions that pyproject.toml allows."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import numpy as np
import pytest

from dulvos.masks import read_mask, write_mask
from dulvos.study.rows import ROOT
from tests.corpus_masks import make_clip

TRAIN = "train cutouts --study s --iterations 2 --batch 2 --frames 2 --crop 64 --scale-min 64 --scale-max 72"
USE = f"""
import dulvos.widgets
from dulvos.__main__ import main
for words in ("{TRAIN}", "segment clip mask.png out --no-mp4"):
    assert main(words.split()) == 0
"""


def run(*words: object, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """Run a command that does not know this checkout."""
    known = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([*map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=300,
                          env={**known, "DULVOS_RESULTS": str(cwd / "results")})


@pytest.fixture
def python(tmp_path):
    """The Python of a new environment, which finds this environment's packages after its own."""
    venv.create(tmp_path / "environment")
    site, = (tmp_path / "environment").glob("lib/python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))
    return tmp_path / "environment/bin/python"


@pytest.fixture
def clip(tmp_path):
    """A folder with a clip of three frames and a mask of its first."""
    write_mask(tmp_path / "mask.png", np.eye(48, 64, dtype=np.uint8))
    return make_clip(tmp_path, 3).parent


def pip(python, *words):
    """Install without the network; hatchling comes from this environment."""
    pytest.importorskip("hatchling")
    done = run(sys.executable, "-m", "pip", "--python", python, *words, "--no-deps", "--no-build-isolation",
               "--no-index")
    assert done.returncode == 0, done.stderr


def test_in_place_it_is_found_from_the_folder_above_the_clone(python, tmp_path):
    """There, the clone is a folder with the package's name, as in notebooks on Colab."""
    pip(python, "install", "--editable", ROOT)
    (tmp_path / "dulvos").symlink_to(ROOT)
    asked = "import importlib.util as found; print(found.find_spec('dulvos.losses').origin)"
    done = run(python, "-c", asked, cwd=tmp_path)
    assert done.stdout.strip() == str(ROOT / "dulvos/losses.py"), done.stderr


def test_a_wheel_holds_every_file_and_works_away_from_the_checkout(python, clip):
    pip(python, "install", ROOT)
    done = run(clip / "environment/bin/dulvos", "segment", "clip", "mask.png", "out", cwd=clip)
    assert done.returncode == 0, done.stderr
    assert read_mask(clip / "out/00002.png").shape == (48, 64)
    package, = (clip / "environment").glob("lib/python*/site-packages/dulvos")
    held = {file.relative_to(package) for file in package.rglob("*") if file.suffix not in (".pyc", "")}
    listed = run("git", "ls-files", "dulvos").stdout.split()
    assert held == {Path(file).relative_to("dulvos") for file in listed if Path(file).suffix}


@pytest.mark.slow
def test_the_lowest_versions_work_together(python, clip):
    """All but PyTorch, whose oldest release brings 3 GB of CUDA; 2.6 with torchvision 0.21 works, too."""
    pytest.importorskip("uv")
    (clip / "overrides").write_text("torch; python_version < '3'\ntorchvision; python_version < '3'\n")
    done = run(sys.executable, "-m", "uv", "pip", "install", "--python", python, "--no-build", "--resolution",
               "lowest-direct", "--override", clip / "overrides", "-r", ROOT / "pyproject.toml")
    if "Failed to fetch" in done.stderr:
        pytest.skip(f"the package registry does not answer: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    (clip / "dulvos").symlink_to(ROOT / "dulvos")
    done = run(python, "-c", USE, cwd=clip)
    assert done.returncode == 0, done.stderr
    assert read_mask(clip / "out/00002.png").shape == (48, 64)
