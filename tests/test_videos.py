"""Reading videos: all ways of reading give the same frames. Broken and odd input is in the corpus."""

import csv
import multiprocessing
import pickle
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from dulvos.errors import InputError
from dulvos.videos import Video, open_video, resize, shrink, shrunk_size
from tests.corpus_frames import picture


def make_folder(folder: Path, names: list[str], size: tuple[int, int] = (48, 64)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        Image.fromarray(picture(seed, *size)).save(folder / name)
    return folder


def make_file(path: Path, length: int = 30, codec: str = "MJPG") -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 10, (64, 48))
    for seed in range(length):
        writer.write(picture(seed)[..., ::-1])
    writer.release()
    return path


def test_frames_and_read_agree_and_survive_pickling(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "a", ["0.png", "1.jpg", "2.webp", "3.bmp"])
    for path in (folder, make_file(tmp_path / "b.avi")):
        video = pickle.loads(pickle.dumps(open_video(path)))
        frames = list(video.frames())
        assert len(frames) == len(video) == video.length
        for index in (2, 3, 3, 1, 0, len(video) - 1):
            assert np.array_equal(video.read(index), frames[index])
        assert all(np.array_equal(*pair) for pair in zip(video.frames(2), frames[2:], strict=True))
        assert {(frame.shape, frame.dtype.name) for frame in frames} == {((48, 64, 3), "uint8")}
        assert np.array_equal(video.read(-1), frames[-1])
        for action in (video.read, video.frame_name):
            with pytest.raises(IndexError):
                action(len(video))
    assert video.frame_name(7) == "00007"


def test_increasing_reads_decode_a_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video, opened, open_ = open_video(make_file(tmp_path / "clip.avi")), [], av.open
    monkeypatch.setattr(av, "open", lambda *arguments: opened.append(1) or open_(*arguments))
    for index in (0, 3, 3, 4, 29):
        video.read(index)
    assert len(opened) == 1
    video.read(28)
    assert len(opened) == 2


def _child(video: Video, index: int, pipe: multiprocessing.connection.Connection) -> None:
    pipe.send(video.read(index))


def test_a_forked_worker_and_its_parent_do_not_disturb_each_other(tmp_path: Path) -> None:
    video = open_video(make_file(tmp_path / "clip.avi", 200))
    frames = list(video.frames())
    video.read(5)
    here, there = multiprocessing.Pipe()
    worker = multiprocessing.get_context("fork").Process(target=_child, args=(video, 150, there),
                                                          daemon=True)
    worker.start()
    assert here.poll(60), "the worker hangs"
    assert np.array_equal(here.recv(), frames[150])
    worker.join(20)
    assert worker.exitcode == 0
    assert np.array_equal(video.read(160), frames[160])


def test_verify_names_the_first_wrong_frame(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "own", ["0.jpg", "1.jpg", "2.jpg"])
    video, path = open_video(folder), folder / "1.jpg"
    video.verify()
    whole, other = path.read_bytes(), make_folder(tmp_path / "other", ["0.jpg"]) / "0.jpg"
    Image.fromarray(picture(0, 32, 40)).save(other)
    for wrong in (other.read_bytes(), whole[: len(whole) * 8 // 10], b""):  # the cut one's header is whole
        path.write_bytes(wrong)
        with pytest.raises(InputError, match=r"1\.jpg"):
            video.verify()


@pytest.mark.parametrize("size", [(96, 130), (130, 96)])
def test_frames_are_shrunk_with_antialiasing_as_pillow_does(size: tuple[int, int]) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    small = shrink(frame, 48)
    assert small.dtype == np.uint8 and small.shape[:2] == shrunk_size(size, 48) == tuple(s // 2 for s in size)
    expected = Image.fromarray(frame).resize(small.shape[1::-1], Image.Resampling.BILINEAR)
    assert np.abs(small.astype(int) - np.asarray(expected)).max() <= 1
    assert np.array_equal(small, resize(frame, small.shape[:2]))
    for side in (0, 96, 200):
        assert shrink(frame, side) is frame and shrunk_size(size, side) == size


def test_shared_clips_open_and_read_as_they_run(shared_data: Path) -> None:
    """Seeking misses frames of one of these clips, and another one ends before its header says."""
    with open(shared_data / "clips" / "manifest.csv", newline="") as file:
        rows = {row["clip"]: row for row in csv.DictReader(file)}
    assert len(rows) == 37
    for name, row in rows.items():
        video = open_video(shared_data / "clips" / name)
        assert (len(video), *video.size) == tuple(int(row[key]) for key in ("frames", "height", "width")), row
        if name in ("Video-LLaVA__videollava_serve_examples_sample_demo_22.mp4", "tree.avi"):
            wanted = [len(video) * 2 // 3, len(video) - 1, len(video) // 3]
            frames = {index: frame for index, frame in enumerate(video.frames()) if index in wanted}
            assert all(np.array_equal(video.read(index), frames[index]) for index in wanted)
