"""Disks that are full or read-only: one clear line, nothing finished lost, and with room the next call continues.

A file system in memory stands for the disk, where one may be mounted; elsewhere a limit on the size of files.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dulvos.study import results, steps as study, cutouts as synthetic
from dulvos.errors import InputError
from dulvos.study import download
from dulvos.inference import SegmentSettings
from dulvos.study.runs import evaluation_run, training_run
from tests.test_download import archive, server  # noqa: F401
from tests.test_runs import SETTINGS, data, folder  # noqa: F401
from tests.test_study import bench  # noqa: F401


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system in memory with these options."""
    mounted = []

    def mount(options: str) -> Path:
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        if not shutil.which("mount"):
            pytest.skip("no file system can be mounted here (no mount)")
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, text=True,
                              check=False)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here ({done.stderr.strip()})")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)


FULL = r"cannot be written \((No space left on device|File too large)\); make room"


@pytest.mark.parametrize("megabytes", [pytest.param(5, marks=pytest.mark.slow), 150])
def test_a_full_disk_ends_training_in_one_line_and_with_room_it_continues(data, folder, disk, monkeypatch,  # noqa: F811
                                                                         megabytes, record_property):
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
from dulvos.study import results
from dulvos.inference import SegmentSettings
from dulvos.study.runs import evaluation_run, training_run
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


def test_a_study_that_turns_read_only_meanwhile_ends_in_one_line(bench, disk, monkeypatch, capsys,  # noqa: F811
                                                                 record_property):
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
