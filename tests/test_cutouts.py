"""The embedded benchmark: its layout, its pixels, exact masks, parallax in the stereo video."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from dulvos.datasets import load_davis
from dulvos.errors import InputError
from dulvos.study.cutouts import SIZE, list_videos, rail, render, render_video

LENGTHS = {"train": 1, "val": 2}
VIDEOS = list_videos()


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    root = tmp_path_factory.mktemp("rendered") / "deep" / "cutouts"
    root.mkdir(parents=True)  # an empty folder will do
    return render(root, tuple(LENGTHS.values()))


def test_the_layout_is_that_of_davis_2017_and_objects_start_in_sight(benchmark):
    for split, length in LENGTHS.items():
        dataset = load_davis(benchmark, split)
        assert dataset.name == "cutouts"
        names = [name for name in VIDEOS if VIDEOS[name]["split"] == split]
        assert [sequence.name for sequence in dataset.sequences] == names
        for sequence in dataset.sequences:
            masks, video = sequence.truth(), VIDEOS[sequence.name]
            assert masks.shape == (length, *SIZE) and sequence.video.read(length - 1).shape == (*SIZE, 3)
            objects = len(video["objects"].split()) + (video["background"] == "stereo")
            assert 1 <= objects <= 3 and np.unique(masks[0]).tolist() == list(range(objects + 1))
            shares = np.bincount(masks[0].ravel())[1:] / masks[0].size
            assert shares.min() > 0.01 and shares.max() < 0.5 and shares.sum() < 0.6
    with Image.open(benchmark / "Annotations/480p/herd/00000.png") as mask:
        assert mask.mode == "P"
    assert os.listdir(benchmark.parent) == ["cutouts"], "nothing half rendered is left"


@pytest.mark.parametrize(("name", "expected"), [
    ("garage", (96.8585, 60.4686, 0.568349)), ("riders", (102.975, 57.1637, 0.508087)),
    ("herd", (115.352, 47.1155, 0.708883)), ("galaxies", (31.3333, 42.9315, 0.346741))])
def test_the_videos_are_those_that_were_published(name, expected):
    """The demo's scores are measured on them. Another processor may round single pixels differently."""
    frames, masks = render_video(name, 2)
    assert (frames.mean(), frames.std(), masks.mean()) == pytest.approx(expected, rel=1e-3)
    first, mask = render_video(name, 1)
    assert np.array_equal(first, frames[:1]) and np.array_equal(mask, masks[:1])


def test_splits_share_no_photograph():
    used = {"train": set(), "val": set()}
    for video in VIDEOS.values():
        for name in f"{video['background']} {video['objects']} {video['distractors']}".split():
            used[video["split"]].add("motorcycle" if name == "stereo" else name.split("/")[0])
    assert len(used["train"]) > 9 and not used["train"] & used["val"]


def test_no_object_jumps_further_than_propagation_looks_and_one_is_covered():
    least = []
    for name in ("astronauts", "riders"):
        _, masks = render_video(name, 12)
        for i in np.unique(masks[0])[1:]:
            areas = (masks == i).sum((1, 2))
            least.append(areas.min() / areas.max())
            centres = [np.argwhere(mask == i).mean(0) for mask, area in zip(masks, areas) if area > 200]
            assert np.linalg.norm(np.diff(centres, axis=0), axis=1).max() < 12 * 8
    assert min(least) < 0.7


def test_the_rail_draws_the_near_before_the_far():
    """A block of disparity 20 in front of a wall of disparity 4, seen from halfway."""
    columns, wall = np.arange(120), 40 + np.arange(140)  # the wall's grey tells its place
    left, right = np.zeros((2, 40, 120, 4), np.uint8)
    disparity = np.full((40, 120), 4.0)
    left[..., :3], right[..., :3] = wall[columns, None], wall[columns + 4, None]
    left[10:30, 60:80], right[10:30, 40:60, :3], disparity[10:30, 60:80] = 255, 255, 20
    half = rail(left, right, disparity.astype(np.float32), 0.5)
    block = np.zeros((40, 120), bool)
    block[10:30, 50:70] = True
    np.testing.assert_array_equal(half[14:26, :, 3] > 127, block[14:26])
    assert (half[14:26, 51:69] == 255).all()
    apart = ~np.any([np.roll(block, shift, axis) for shift in (-2, 0, 2) for axis in (0, 1)], axis=0)
    assert (half[..., 0] == wall[columns + 2])[apart].all()  # also where only one camera sees it


def test_a_benchmark_that_is_there_is_taken_as_it_is(benchmark):
    file = benchmark / "JPEGImages/480p/herd/00000.jpg"
    before = file.stat().st_mtime_ns
    assert render(benchmark) == benchmark and file.stat().st_mtime_ns == before


@pytest.mark.parametrize("content", [None, b"\xff", b'{"name": "cutouts", "version": 1}'])
def test_a_folder_of_something_else_is_left_alone(tmp_path, content):
    (tmp_path / "photo.txt").write_text("mine")
    if content:
        (tmp_path / "benchmark.json").write_bytes(content)
    with pytest.raises(InputError, match=str(tmp_path)):
        render(tmp_path)
    assert (tmp_path / "photo.txt").read_text() == "mine"


def test_a_failed_rendering_leaves_nothing(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file/cutouts"):
        render(tmp_path / "file" / "cutouts")
    assert os.listdir(tmp_path) == ["file"]
