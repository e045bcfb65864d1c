"""The paper's training collections: its settings, miniatures of each layout, and what is said when something is missing."""

from __future__ import annotations

import dataclasses
import pickle
import sys
from pathlib import Path

import pytest

from dulvos.study import results, runs
from dulvos.__main__ import main
from dulvos.errors import InputError
from dulvos.study import collections as sources
from dulvos.study.collections import SOURCES, open_collection, paper_settings, sources_table
from dulvos.study.runs import open_data, training_run
from dulvos.training import TrainSettings
from tests.test_indexing import numbered, write_frames, write_video


def make_layout(name: str, root: Path) -> list[str]:
    """A miniature of a collection, with what lies beside its training videos; the names that belong to it."""
    if name == "youtube-vos":
        for video in ("003234408d", "0043f083b5"):
            write_frames(root / "train/JPEGImages" / video, numbered(6, step=5))
            write_frames(root / "train/Annotations" / video, ["00000.png"])
            write_frames(root / "train_all_frames/JPEGImages" / video, numbered(26))
        write_frames(root / "valid/JPEGImages/aaaa", numbered(6, step=5))
        return ["train/JPEGImages/003234408d", "train/JPEGImages/0043f083b5"]
    if name == "oxuva":
        for video in ("dev/vid0000", "dev/vid0042", "test/vid0001"):
            write_frames(root / "images" / video, [f"{t:06d}.jpeg" for t in range(12)])
        return ["images/dev/vid0000", "images/dev/vid0042"]
    if name == "trackingnet":
        for place in ("TRAIN_0/frames/x-1", "TRAIN_11/frames/y_2", "TEST/frames/z"):
            write_frames(root / place, [f"{t}.jpg" for t in range(12)])
        for chunk in ("TRAIN_0", "TRAIN_11"):
            (root / chunk / "anno").mkdir()
            (root / chunk / "zips").mkdir()
        return ["TRAIN_0/frames/x-1", "TRAIN_11/frames/y_2"]
    if name == "kinetics-400":
        write_video(root / "train/abseiling/-7kbO0v4hag_000107_000117.mp4", 20)
        write_video(root / "train/zumba/zz.mp4", 20)
        write_frames(root / "train/zumba/as-frames", [f"img_{t:05d}.jpg" for t in range(1, 13)])
        write_video(root / "val/abseiling/other.mp4", 20)
        return ["train/abseiling/-7kbO0v4hag_000107_000117.mp4", "train/zumba/as-frames", "train/zumba/zz.mp4"]
    for sequence in ("bear", "boat", "blackswan"):
        write_frames(root / "JPEGImages/480p" / sequence, numbered(8))
    (root / "ImageSets/2017").mkdir(parents=True)
    (root / "ImageSets/2017/train.txt").write_text("boat\nbear\n")  # blackswan is for validation
    return ["JPEGImages/480p/bear", "JPEGImages/480p/boat"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where DULVOS_DATA_DIR points; indexes and results stay in the test's folder."""
    monkeypatch.setenv("DULVOS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(runs, "INDEXES", tmp_path / "indexes")
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    return tmp_path / "data"


def test_a_folder_called_as_a_collection_is_not_it(tmp_path):
    write_frames(tmp_path / "YouTube-VOS/a", numbered(6))
    write_frames(tmp_path / "mine/a", numbered(6))
    names = [open_collection("", tmp_path / folder, tmp_path / "cache").name for folder in ("YouTube-VOS", "mine")]
    assert names == ["YouTube-VOS (own folder)", "mine"]


def test_settings_of_the_command_line_keep_the_schedule_in_epochs(folder, monkeypatch):
    """500 epochs of two videos, by a batch of 64 as by one of 16."""
    make_layout("youtube-vos", folder / "youtube-vos")
    given = []
    monkeypatch.setattr(runs, "training_run", lambda study, name, data, settings, device: given.append(settings) or sys.exit(0))
    for changes in (["batch=64"], ["batch=64", "lr_every=7"], ["gap=3"]):
        with pytest.raises(SystemExit):
            main(["train", "youtube-vos", "--study", "s", "--set", *changes])
    assert [(s.batch, s.iterations, s.lr_every, s.gap) for s in given] == [(64, 16, 4, 2), (64, 16, 7, 2), (16, 63, 13, 3)]
    assert main(["train", "youtube-vos", "--study", "s", "--set", "batch=x"]) == 2


@pytest.mark.parametrize("name", SOURCES)
def test_each_layout_gives_its_training_videos_and_no_others(name, folder):
    expected = make_layout(name, folder / name)
    collection = open_data(name, "train")
    assert [sequence.name for sequence in collection.sequences] == expected and collection.name == SOURCES[name].title
    assert all(len(video) >= 5 and video.read(0).ndim == 3 for video in collection.videos)
    assert len(pickle.dumps(collection.videos)) < 600 * len(expected)  # workers get a copy
    assert any(f"{len(expected)} videos found" in line for line in collection.notes)
    with pytest.raises(InputError, match="is for training"):
        open_data(name, "val")


@pytest.mark.parametrize(("name", "expected"), [
    ("youtube-vos", ("adam", 1e-4, 0.5, 2, False, 256, 319, 100, 500, 60)),
    ("oxuva", ("adam", 1e-4, 0.5, 10, False, 256, 319, 100, 500, 430)),
    ("trackingnet", ("sgd", 1e-3, 0.9, 10, True, 256, 256, 20, 250, 88)),
    ("kinetics-400", ("sgd", 1e-3, 0.5, 10, True, 256, 256, 20, 80, 26))])
def test_settings_are_the_papers(name, expected):
    settings = paper_settings(name, 16)  # an epoch is one iteration
    got = tuple(getattr(settings, field) for field in ("optimiser", "lr", "lr_decay", "gap", "centre", "scale_min", "scale_max",
                                                       "lr_every", "iterations"))
    assert (*got, paper_settings(name, 16, released=True).iterations) == expected
    assert (settings.batch, settings.frames, settings.crop, settings.weight_decay) == (16, 5, 256, 5e-4)


def test_epochs_become_iterations_of_the_videos_that_are_there():
    whole, released = (paper_settings("youtube-vos", 3_471, released=r) for r in (False, True))
    assert (whole.iterations, whole.lr_every, released.iterations) == (108_469, 21_694, 13_017)
    assert dataclasses.replace(released, iterations=whole.iterations) == whole  # nothing else differs
    assert paper_settings("youtube-vos", 3_471, batch=80).iterations == 21_694
    assert paper_settings("trackingnet", 30_132, iterations=50).iterations == 50
    assert paper_settings("davis-2017", 60) == TrainSettings()  # the paper has no schedule for it
    with pytest.raises(InputError, match="youtube-vos, oxuva"):
        paper_settings("imagenet", 3)
    with pytest.raises(InputError, match="unknown setting"):
        paper_settings("oxuva", 3, lambda_=1)


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_absent_is_named_with_where_it_comes_from(name, folder, monkeypatch):
    source = SOURCES[name]
    (folder / "wrong").mkdir(parents=True)
    for attempt in (lambda: open_data(name, "train"), lambda: open_collection(name, folder / "wrong", folder / "indexes")):
        with pytest.raises(InputError) as error:
            attempt()
        message = str(error.value)
        assert source.origin in message and source.layout in message and f"{source.videos:,}" in message and "\n" not in message
    monkeypatch.delenv("DULVOS_DATA_DIR")
    with pytest.raises(InputError, match="DULVOS_DATA_DIR"):
        open_data(name, "train")


def test_incomplete_and_overfull_copies_are_noticed(folder, monkeypatch):
    make_layout("trackingnet", folder / "trackingnet")

    def notes(**counts):
        monkeypatch.setitem(sources.SOURCES, "trackingnet", dataclasses.replace(SOURCES["trackingnet"], **counts))
        collection = open_data("trackingnet", "train")
        assert collection.notes == collection.miscounted
        return collection.notes

    assert notes(videos=2, frames=24) == []
    assert notes(videos=3, frames=None) == ["TrackingNet: 2 videos found, 3 expected: the copy is incomplete, 1 are missing"]
    assert "24 frames found, 25 expected" in notes(videos=2, frames=25)[0]
    assert "more than the 1 expected" in notes(videos=1, frames=None)[0]
    assert notes(videos=1, frames=None, about=True) == []
    assert "about 30 expected" in notes(videos=30, frames=None, about=True)[0]


def test_unreadable_files_are_noted_but_not_miscounted(folder, monkeypatch):
    make_layout("kinetics-400", folder / "kinetics-400")
    (folder / "kinetics-400/train/zumba/gone.mp4").write_bytes(b"video unavailable")
    monkeypatch.setitem(sources.SOURCES, "kinetics-400", dataclasses.replace(SOURCES["kinetics-400"], videos=3))
    collection = open_data("kinetics-400", "train")
    assert len(collection.videos) == 3 and collection.miscounted == [] and "gone.mp4" in collection.notes[0]


def test_a_sequence_of_the_list_that_is_not_there_is_an_error(folder):
    make_layout("davis-2017", folder / "davis-2017")
    (folder / "davis-2017/ImageSets/2017/train.txt").write_text("bear\nbus\n")
    with pytest.raises(InputError, match="480p/bus: no such folder"):
        open_data("davis-2017", "train")


def test_a_miniature_trains_with_the_papers_settings_made_small(folder, monkeypatch):
    name = "kinetics-400"  # frame folders and video files
    count = len(make_layout(name, folder / name))
    monkeypatch.setattr("dulvos.videos.Video.verify", lambda video: pytest.fail("looked at every frame"))
    settings = paper_settings(name, count, iterations=2, batch=2, frames=3, crop=32, scale_min=32, scale_max=32, grid=4,
                              cross_grid=2, precision="fp32")
    row = training_run("s", "trained", name, settings, device="cpu")
    assert (row["data"], row["videos"], row["iterations"]) == (SOURCES[name].title, count, 2) and row["notes"]
    assert row["fingerprint"] == open_data(name, "train").fingerprint == runs.dataset_fingerprint(open_data(name, "train"))
    assert row["parameters.centre"] and (results.study_folder("s") / row["encoder"]).is_file()


def test_any_folder_of_videos_trains(tmp_path, folder):
    write_video(tmp_path / "own/holiday.avi", 20)
    write_frames(tmp_path / "own/deeper/walk", numbered(6))
    collection = open_data(str(tmp_path / "own"), "train")
    assert [video.name for video in collection.videos] == ["deeper/walk", "holiday.avi"]
    assert (collection.name, collection.notes) == ("own", [])
    with pytest.raises(InputError, match="no split 'val'"):
        open_data(str(tmp_path / "own"), "val")


def test_the_table_and_the_command_show_what_is_expected_and_found(folder, tmp_path, capsys, monkeypatch):
    assert all(source.title in sources_table() and source.origin in sources_table() for source in SOURCES.values())
    assert main(["index"]) == 0 and capsys.readouterr().out == sources_table() + "\n"
    make_layout("youtube-vos", tmp_path / "elsewhere" / "youtube-vos")
    assert main(["index", "youtube-vos", "--data", str(tmp_path / "elsewhere")]) == 1  # incomplete
    out = capsys.readouterr().out
    assert "YouTube-VOS: 2 videos, 12 frames" in out and "63 iterations" in out and "3,469 are missing" in out
    assert main(["index", "oxuva"]) == 2 and "OxUvA is expected as" in capsys.readouterr().err
