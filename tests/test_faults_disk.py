"""Disks that are full, read-only, or lost half of a file in a power cut: one clear line, or the work is done again."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest

from dulvos import download, results, runs, study, synthetic
from dulvos.ablation import states
from dulvos.checkpoints import load_encoder
from dulvos.datasets import read_predictions
from dulvos.errors import InputError
from dulvos.indexing import index_videos
from dulvos.inference import SegmentSettings
from dulvos.runs import evaluation_run, training_run
from tests import fake_grid
from tests.test_download import archive, server  # noqa: F401
from tests.test_evaluation import dataset  # noqa: F401
from tests.test_runs import SETTINGS, data, folder  # noqa: F401
from tests.test_study import bench  # noqa: F401

PACKAGE = Path(results.__file__).parent


# power cuts: no code of ours leaves half a file, but a power cut or a disk can

@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_half_a_row(data, folder, share, record_property):  # noqa: F811
    record_property("fault", "truncated: row")
    evaluation_run("s", "copy", data, "copy", SegmentSettings())
    path, = (folder / "rows").iterdir()
    whole = path.read_text()
    path.write_text(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=r"evaluate-copy-\w+\.json: not a result row .*; restore it or delete it to run again"):
        evaluation_run("s", "copy", data, "copy", SegmentSettings())
    path.unlink()
    evaluation_run("s", "copy", data, "copy", SegmentSettings())
    again = json.loads(next((folder / "rows").iterdir()).read_text())
    assert again["scores"] == json.loads(whole)["scores"]


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_half_a_sequences_scores_are_made_again(data, folder, share, record_property):  # noqa: F811
    record_property("fault", "truncated: scores of a sequence")
    row = evaluation_run("s", "copy", data, "copy", SegmentSettings())
    next((folder / "rows").iterdir()).unlink()  # the evaluation was cut off just before its row
    path = folder / f"masks/copy-{row['key']}/translation.json"
    path.write_text(path.read_text()[: int(share * path.stat().st_size)])
    assert evaluation_run("s", "copy", data, "copy", SegmentSettings())["scores"] == row["scores"]


def test_half_a_mask_is_named_and_never_scored(data, folder, record_property):  # noqa: F811
    row = evaluation_run("s", "copy", data, "copy", SegmentSettings())
    masks = folder / f"masks/copy-{row['key']}"
    path = masks / "translation/00003.png"
    whole = path.read_bytes()
    sequence = runs.open_data(data, "val").sequences[0]
    data_end = whole.index(b"IEND") - 8  # what is missing behind the pixels makes no other mask
    for length in (0, 20, data_end // 2, data_end - 20):
        record_property("fault", "truncated: mask")
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"00003\.png: unreadable mask"):
            read_predictions(masks, sequence)


def test_half_an_encoder_is_made_again_from_its_checkpoint(data, folder, record_property, capsys):  # noqa: F811
    row = training_run("s", "trained", data, SETTINGS, device="cpu")
    path = folder / row["encoder"]
    weights, sidecar = path.read_bytes(), path.with_suffix(".json").read_text()
    for length in (0, 100, len(weights) - 1):
        record_property("fault", "truncated: encoder")
        path.write_bytes(weights[:length])
        with pytest.raises(InputError, match=r"encoder\.safetensors: truncated"):
            load_encoder(path)
        training_run("s", "trained", data, SETTINGS, device="cpu")
        assert path.read_bytes() == weights
    record_property("fault", "truncated: sidecar")
    path.with_suffix(".json").write_text(sidecar[:-20])
    with pytest.raises(InputError, match=r"encoder\.json: not a sidecar"):
        load_encoder(path)
    path.with_suffix(".json").unlink()
    training_run("s", "trained", data, SETTINGS, device="cpu")
    assert json.loads(path.with_suffix(".json").read_text())["architecture"] == json.loads(sidecar)["architecture"]
    assert "trained already" not in capsys.readouterr().out


def test_half_an_index_is_made_anew(tmp_path, dataset, record_property):  # noqa: F811
    root, cache = dataset.root / "JPEGImages" / "480p", tmp_path / "index.json"
    first = index_videos(root, [""], cache)
    whole = cache.read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        record_property("fault", "truncated: index")
        cache.write_bytes(whole[:length])
        assert index_videos(root, [""], cache).fingerprint == first.fingerprint and cache.read_bytes() == whole


@pytest.mark.parametrize("share", [pytest.param(0.0, marks=pytest.mark.slow), 0.5, pytest.param(0.999, marks=pytest.mark.slow)])
def test_half_an_executed_notebook_is_executed_again(bench, share, record_property):  # noqa: F811
    record_property("fault", "truncated: executed notebook")
    steps = [study.Step("good", "first", {"word": "a"})]
    assert study.run_study("s", steps, "x") == 0
    path = results.study_folder("s") / "notebooks/first.ipynb"
    path.write_text(path.read_text()[: int(share * path.stat().st_size)])
    assert study.run_study("s", steps, "x") == 0 and (bench / "ran").read_text() == "aa"
    nbformat.read(path, as_version=4)


def test_half_a_history_does_not_stop_the_list_of_the_grid(tmp_path, monkeypatch, record_property):
    record_property("fault", "truncated: history")
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    grid = fake_grid.tiny_grid(fake_grid.write_data(tmp_path / "data"))
    run = next(run for run in states.grid_runs(grid) if run.training)
    history = results.study_folder(grid.folder) / "runs" / f"{run.training}-0" / "history.csv"
    history.parent.mkdir(parents=True)
    for text, count in (("", 0), ("itera", 0), ("iteration,loss\n1,2\n2,", 1)):
        history.write_text(text)
        with states.lock_step(grid, states.train_step(grid, run)):
            assert f"{count} of {run.settings['iterations']} iterations" in states.listing(grid, states.grid_runs(grid))


# full and read-only disks: a file system in memory where one may be mounted

@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system in memory with these options."""
    mounted = []

    def mount(options: str) -> Path:
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, text=True, check=False) \
            if shutil.which("mount") else None
        if done is None or done.returncode:
            pytest.skip(f"no file system can be mounted here ({done.stderr.strip() if done else 'no mount'})")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)


FULL = r"cannot be written \((No space left on device|File too large)\); make room"


@pytest.mark.parametrize("megabytes", [pytest.param(5, marks=pytest.mark.slow), 150])
def test_a_full_disk_ends_training_in_one_line_and_with_room_it_continues(data, folder, disk, monkeypatch, megabytes,  # noqa: F811
                                                                         record_property):
    """At the checkpoint, at the encoder."""
    record_property("fault", "disk full: training")
    whole = training_run("s", "trained", data, SETTINGS, device="cpu")
    place = disk(f"size={megabytes}m")
    monkeypatch.setattr(results, "RESULTS", place)
    with pytest.raises(InputError, match=FULL) as caught:
        training_run("s", "trained", data, SETTINGS, device="cpu")
    assert "\n" not in str(caught.value) and not list(place.rglob("*.tmp")) and not list(place.glob("s/rows/*"))
    subprocess.run(["mount", "-o", "remount,size=1g", str(place)], check=True)
    row = training_run("s", "trained", data, SETTINGS, device="cpu")
    assert (place / "s" / row["encoder"]).read_bytes() == (folder / whole["encoder"]).read_bytes()


def test_a_full_disk_ends_evaluation_in_one_line_and_with_room_it_continues(data, folder, disk, monkeypatch,  # noqa: F811
                                                                           record_property):
    record_property("fault", "disk full: evaluation")
    whole = evaluation_run("s", "colour", data, "colour", SegmentSettings(), device="cpu")
    place = disk("size=1m,nr_inodes=12")
    monkeypatch.setattr(results, "RESULTS", place)
    with pytest.raises(InputError, match=FULL):
        evaluation_run("s", "colour", data, "colour", SegmentSettings(), device="cpu")
    assert not list(place.rglob("*.tmp")) and not list(place.glob("s/rows/*"))
    subprocess.run(["mount", "-o", "remount,nr_inodes=1000", str(place)], check=True)
    assert evaluation_run("s", "colour", data, "colour", SegmentSettings(), device="cpu")["scores"] == whole["scores"]


LIMITED = """
import resource, sys
from pathlib import Path
from dulvos import results
from dulvos.inference import SegmentSettings
from dulvos.runs import evaluation_run, training_run
from tests.test_runs import SETTINGS
results.RESULTS = Path(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]),) * 2)
if sys.argv[3] == "train":
    training_run("s", "trained", sys.argv[1], SETTINGS, device="cpu")
else:
    evaluation_run("s", "copy", sys.argv[1], "copy", SegmentSettings())
"""


@pytest.mark.parametrize(("what", "size"), [pytest.param("train", 1_000_000, marks=pytest.mark.slow), ("evaluate", 300)])
def test_the_stand_in_for_a_full_disk(data, tmp_path, what, size, record_property):  # noqa: F811
    """Files may not grow beyond a size: what needs no right to mount."""
    record_property("fault", f"file too large: {what}")
    done = subprocess.run([sys.executable, "-c", LIMITED, data, str(tmp_path), what, str(size)], capture_output=True, text=True,
                          cwd=results.ROOT, check=False)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("dulvos.errors.InputError: ") and "cannot be written (File too large); make room" in last
    assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.glob("s/rows/*"))


def test_a_read_only_results_folder_is_said_before_anything_runs(bench, disk, monkeypatch, record_property):  # noqa: F811
    record_property("fault", "read-only: study")
    place = disk("size=1m")
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    monkeypatch.setattr(results, "RESULTS", place)
    with pytest.raises(InputError, match=r"s: cannot be written \(Read-only file system\); set DULVOS_RESULTS"):
        study.run_study("s", [study.Step("good", "first")], "x")
    assert not (bench / "ran").exists()


def test_a_study_that_turns_read_only_meanwhile_ends_in_one_line(bench, disk, monkeypatch, capsys, record_property):  # noqa: F811
    record_property("fault", "read-only: study, meanwhile")
    place = disk("size=4m")
    monkeypatch.setattr(results, "RESULTS", place)
    monkeypatch.setattr(study.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**40, 0, 2**40))
    real = study.papermill.execute_notebook

    def turn(*arguments, **named):
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=False)
        return real(*arguments, **named)

    monkeypatch.setattr(study.papermill, "execute_notebook", turn)
    with study.lock(results.study_folder("s")):
        pass
    step = study.Step("good", "first")
    try:
        done = study.execute("s", step, "key")
    except InputError as error:
        done, told = False, str(error)
    else:
        told = capsys.readouterr().out
    assert not done and "Read-only file system" in told


def test_nothing_runs_with_a_nearly_full_disk(bench, disk, monkeypatch, record_property):  # noqa: F811
    record_property("fault", "disk full: study")
    monkeypatch.setattr(results, "RESULTS", disk("size=5m"))
    with pytest.raises(InputError, match="less than 1 GB is free"):
        study.run_study("s", [study.Step("good", "first")], "x")
    assert not (bench / "ran").exists()


def test_evaluation_by_hand_into_a_read_only_folder(data, disk, monkeypatch, record_property):  # noqa: F811
    record_property("fault", "read-only: evaluation")
    place = disk("size=1m,ro")
    monkeypatch.setattr(results, "RESULTS", place)
    with pytest.raises(InputError, match=r"translation.00000\.png: cannot be written \(Read-only file system\)"):
        evaluation_run("s", "copy", data, "copy", SegmentSettings())


def test_rendering_into_a_read_only_folder(disk, record_property):
    record_property("fault", "read-only: rendering")
    with pytest.raises(InputError, match=r"cutouts: cannot be written \(Read-only file system\)"):
        synthetic.render(disk("size=1m,ro") / "cutouts", progress=False)


@pytest.mark.parametrize("options", ["size=1m,ro", "size=1m,nr_inodes=2", "size=1m,nr_inodes=9"])
def test_a_download_into_a_disk_that_takes_no_more_ends_in_one_line(disk, archive, options, record_property):  # noqa: F811
    """At its folder, at its first file, while unpacking."""
    record_property("fault", ("read-only" if "ro" in options else "disk full") + ": download")
    place = disk(options)
    with pytest.raises(InputError, match=r"cannot be written \((Read-only file system|No space left on device)\)") as caught:
        download.download("davis2017", place / "to")
    assert "\n" not in str(caught.value)
    if "ro" not in options:
        subprocess.run(["mount", "-o", "remount,nr_inodes=1000", str(place)], check=True)
        download.download("davis2017", place / "to")
        assert [path.name for path in (place / "to").iterdir()] == ["davis-2017"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_the_right_to_write(data, tmp_path, monkeypatch, record_property):  # noqa: F811
    record_property("fault", "read-only: evaluation")
    monkeypatch.setattr(results, "RESULTS", tmp_path / "locked")
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(InputError, match=r"cannot be written \(Permission denied\)"):
        evaluation_run("s", "copy", data, "copy", SegmentSettings())


def test_every_file_is_written_by_the_one_that_writes_whole_files():
    """Other ways of writing are listed here with what makes up for it."""
    allowed = {
        "files": "it", "study": "the lock; papermill's running copy has another name",
        "download": "the part goes on where it was, its content is checked; unpacked beside its place and renamed whole",
        "synthetic": "rendered beside its place and renamed whole", "miniature": "copies for tests", "work": "a log",
        "states": "a lock", "painter": "a file that lives for a moment", "canvas": "in memory", "player": "in memory",
    }
    names = {"write_text", "write_bytes", "to_csv", "savefig", "save", "imwrite", "to_json", "save_file"}
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            first = node.args[0] if node.args else None
            in_stream = isinstance(first, ast.Name) and first.id in ("stream", "png", "jpeg", "weights") or \
                len(node.args) > 1 and isinstance(node.args[1], ast.Name) and node.args[1].id == "stream"
            opened = name == "open" and any(isinstance(arg, ast.Constant) and set(str(arg.value)) & set("wax+") for arg in node.args[1:])
            opened &= not (node.args and ast.unparse(node.args[0]) == "stream.name")
            if (name in names and node.args and not in_stream or opened) and path.stem not in allowed:
                found[f"{path.stem}:{node.lineno}"] = ast.unparse(node)[:90]
    assert not found
