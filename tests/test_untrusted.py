"""Untrusted files and neighbours: no file that is read runs code, no archive writes outside its folder."""

import contextlib
import json
import os
import re
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from dulvos.checkpoints import load_encoder
from dulvos.errors import InputError
from dulvos.study.download import unpack
from dulvos.study.rows import ROOT
from dulvos.training import train
from tests.oracles import open_videos, write_textures
from tests.test_training import SMALL


@pytest.mark.parametrize("words", [
    # readers that would run what they read; ruff finds others (`tests/test_house.py`)
    r"weights_only=False|allow_pickle|unpack_archive|torch\.(jit|hub(?!\.get_dir)|package)\b|joblib",
    # Jupyter's doors: by itself it listens on this machine alone and asks for its token
    r"--ip[ =](?!127\.0\.0\.1|localhost)|0\.0\.0\.0|token=(''|\"\"|\s)|password=(''|\"\")"
    r"|disable_check_xsrf|allow_origin|allow_remote_access|--NotebookApp|--ServerApp"])
def test_no_source_runs_data_or_opens_jupyter_to_others(words: str) -> None:
    files = [ROOT / name for name in ("run_all.sh", "README.md", ".ci/run", "tests/browser.py")]
    files += [*ROOT.glob("dulvos/**/*.py"), *ROOT.glob("benchmarks/*.py"), *ROOT.glob("notebooks/*.ipynb")]
    assert not [path.name for path in files if re.search(words, path.read_text())]


class Harmful:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize(("name", "place"), [
    ("checkpoint.pt", "settings"), ("checkpoint.pt", "net"), ("checkpoint.pt", ""), ("own.pth", "model"),
    ("own.pth", ""), ("own.safetensors", "model")])
def test_files_that_hold_code_run_none_of_it(tmp_path, name, place, record_property):
    record_property("fault", f"malicious: {name}")
    harmful = Harmful(tmp_path / "made")
    content = {"settings": {}, "data": "", "iteration": 1, "net": {}, "optimiser": {}, "scheduler": {}}
    torch.save(content | {place: harmful} if place else harmful, tmp_path / name)
    sidecar = {"architecture": "resnet18-stride8", "dim": 128, "norm": "batch"}
    (tmp_path / "own.json").write_text(json.dumps(sidecar))
    with pytest.raises(InputError, match=re.escape(name)):
        if name == "checkpoint.pt":
            train(SMALL, open_videos(write_textures(tmp_path / "videos", "abcd")), tmp_path, device="cpu")
        else:
            load_encoder(tmp_path / name)
    assert not harmful.target.exists()


def link(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.create_system, entry.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return entry


@pytest.mark.parametrize("entries", [
    {"../out.txt": "x"}, {"a/../../out.txt": "x"}, {"/tmp/dulvos-out.txt": "x"}, {"..\\out.txt": "x"},
    {"C:\\out.txt": "x"}, {"good.txt": "x", "../../out.txt": "x"},
    {link("door"): "..", "door/out.txt": "x"}, {link("door"): "/etc", "door/out.txt": "x"}], ids=str)
def test_no_archive_writes_outside_of_its_folder(tmp_path, entries, record_property):
    record_property("fault", "malicious: archive")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for entry, content in entries.items():
            file.writestr(entry, content)
    with contextlib.suppress(OSError):
        unpack(tmp_path / "a.zip", tmp_path / "in/folder")
    outside = {path.name for path in tmp_path.rglob("*") if tmp_path / "in/folder" not in path.parents}
    assert outside == {"a.zip", "in", "folder"} and not Path("/tmp/dulvos-out.txt").exists()
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


GRID = """
import json, psutil
from dulvos.study import runner
if __name__ == '__main__':
    with runner.open_client(runner.Workers({0}, 1), 0) as (client, threads):
        client.wait_for_workers({0})
        own = [psutil.Process(), *psutil.Process().children(recursive=True)]
        sockets = [c for p in own for c in p.net_connections('inet') if c.status == 'LISTEN']
        print(json.dumps([socket.laddr.ip for socket in sockets]))
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_the_runner_listens_on_this_machine_alone(workers) -> None:
    """Dask runs whatever it is sent."""
    script = GRID.format(workers)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    addresses = json.loads(done.stdout.splitlines()[-1])
    assert len(addresses) >= workers and set(addresses) <= {"127.0.0.1", "::1"}
