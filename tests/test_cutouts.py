"""The embedded benchmark: its layout, its pixels, exact masks, parallax in the stereo video."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import skimage.data
from PIL import Image

from dulvos.datasets import load_davis
from dulvos.errors import InputError
from dulvos.study.cutouts import list_videos, motorcycle, rail, render, render_video

SMALL = {"size": (64, 96), "frames": (2, 3), "progress": False}
VIDEOS = list_videos()


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    root = tmp_path_factory.mktemp("rendered") / "deep" / "cutouts"
    root.mkdir(parents=True)  # an empty folder will do
    return render(root, **SMALL)


def test_the_layout_is_that_of_davis_2017(benchmark):
    for split, length in (("train", 2), ("val", 3)):
        dataset = load_davis(benchmark, split)
        assert dataset.name == "cutouts"
        names = [name for name in VIDEOS if VIDEOS[name]["split"] == split]
        assert [sequence.name for sequence in dataset.sequences] == names
        for sequence in dataset.sequences:
            assert sequence.truth().shape == (length, 64, 96)
            assert sequence.video.read(length - 1).shape == (64, 96, 3)
    with Image.open(benchmark / "Annotations/480p/herd/00000.png") as mask:
        assert mask.mode == "P"
    assert list(benchmark.parent.iterdir()) == [benchmark], "nothing half rendered is left"


@pytest.mark.parametrize(("name", "expected"), [
    ("garage", (95.38, 54.35, 0.5464)),
    ("riders", (96.65, 49.84, 0.5387)),
    ("herd", (96.89, 41.56, 0.6016)),
    ("glands", (183.30, 48.44, 0.3167)),
])
def test_the_videos_are_those_that_were_published(name, expected):
    """The demo's scores are measured on them. Another processor may round single pixels differently."""
    frames, masks = render_video(name, size=(65, 97), frames=2)
    assert (frames.mean(), frames.std(), masks.mean()) == pytest.approx(expected, rel=1e-3)


def test_splits_share_no_photograph():
    used = {"train": set(), "val": set()}
    for video in VIDEOS.values():
        for name in f"{video['background']} {video['objects']} {video['distractors']}".split():
            used[video["split"]].add("motorcycle" if name == "stereo" else name.split("/")[0])
    assert len(used["train"]) > 9 and not used["train"] & used["val"]


@pytest.mark.parametrize("name", VIDEOS)
def test_objects_start_in_sight(name):
    _, masks = render_video(name, size=(96, 128), frames=1)
    objects = len(VIDEOS[name]["objects"].split()) + (VIDEOS[name]["background"] == "stereo")
    assert 1 <= objects <= 3 and np.unique(masks[0]).tolist() == list(range(objects + 1))
    shares = np.bincount(masks[0].ravel())[1:] / masks[0].size
    assert shares.min() > 0.01 and shares.max() < 0.5 and shares.sum() < 0.6


def test_no_object_jumps_further_than_propagation_looks_and_one_is_covered():
    least = []
    for name in ("astronauts", "riders"):
        _, masks = render_video(name, size=(96, 128), frames=12)
        for i in np.unique(masks[0])[1:]:
            areas = (masks == i).sum((1, 2))
            least.append(areas.min() / areas.max())
            centres = [np.argwhere(mask == i).mean(0) for mask, area in zip(masks, areas) if area > 50]
            # half of what propagation reaches, because the frames are of half the usual size
            assert np.linalg.norm(np.diff(centres, axis=0), axis=1).max() < 12 * 8 / 2
    assert min(least) < 0.7


def test_a_seed_gives_the_same_pixels_and_a_longer_video_begins_with_the_shorter_one():
    one, again, other = (render_video("garage", seed=seed, size=(64, 96), frames=n)
                         for seed, n in ((3, 2), (3, 4), (4, 2)))
    for a, b, c in zip(one, again, other):
        assert a.dtype == np.uint8 and (a != c).any()
        np.testing.assert_array_equal(a, b[:2])


def test_the_rail_leads_from_the_left_photograph_to_the_right_one():
    """Near things move further than far ones, in the direction of the true pair."""
    left, right, _ = skimage.data.stereo_motorcycle()
    disparity, near = motorcycle()
    view = rail(np.dstack([left, 255 * np.uint8(near)]), np.dstack([right, 0 * left[..., :1]]), disparity)
    assert np.abs(view(0.0)[..., :3].astype(int) - left).mean() < 2
    still, moved = (np.abs(image[..., :3].astype(int) - right).mean() for image in (view(0.0), view(1.0)))
    assert moved < 0.35 * still
    shift = np.argwhere(near)[:, 1].mean() - np.argwhere(view(1.0)[..., 3] > 127)[:, 1].mean()
    assert shift == pytest.approx(disparity[near].mean(), abs=4)
    assert disparity[near].mean() > disparity[~near].mean() + 10


def test_the_rail_draws_the_near_before_the_far():
    """A block of disparity 20 in front of a wall of disparity 4, seen from halfway."""
    columns, wall = np.arange(120), 40 + np.arange(140)  # the wall's grey tells its place
    left, right = np.zeros((2, 40, 120, 4), np.uint8)
    disparity = np.full((40, 120), 4.0)
    left[..., :3], right[..., :3] = wall[columns, None], wall[columns + 4, None]
    left[10:30, 60:80], right[10:30, 40:60, :3], disparity[10:30, 60:80] = 255, 255, 20
    half = rail(left, right, disparity.astype(np.float32))(0.5)
    block = np.zeros((40, 120), bool)
    block[10:30, 50:70] = True
    np.testing.assert_array_equal(half[14:26, :, 3] > 127, block[14:26])
    assert (half[14:26, 51:69] == 255).all()
    apart = ~np.any([np.roll(block, shift, axis) for shift in (-2, 0, 2) for axis in (0, 1)], axis=0)
    assert (half[..., 0] == wall[columns + 2])[apart].all()  # also where only one camera sees it


def test_a_benchmark_that_is_there_is_taken_as_it_is(benchmark):
    file = benchmark / "JPEGImages/480p/herd/00000.jpg"
    before = file.stat().st_mtime_ns
    assert render(benchmark, **SMALL) == benchmark and file.stat().st_mtime_ns == before
    with pytest.raises(InputError, match="'seed': 0.*'seed': 1"):
        render(benchmark, seed=1, **SMALL)


@pytest.mark.parametrize("content", [None, ["something"], {"name": "mine"}])
def test_a_folder_of_something_else_is_left_alone(tmp_path, content):
    (tmp_path / "photo.txt").write_text("mine")
    if content is not None:
        (tmp_path / "benchmark.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"{tmp_path}: holds"):
        render(tmp_path, **SMALL)
    assert (tmp_path / "photo.txt").read_text() == "mine"


@pytest.mark.parametrize(("arguments", "message"), [
    ({"name": "dogs"}, "no video 'dogs'.*riders"),
    ({"name": "cats", "size": (32, 96)}, "at least 64x64"),
    ({"name": "cats", "frames": 0}, "at least one frame"),
])
def test_settings_out_of_range_are_errors(arguments, message, tmp_path):
    with pytest.raises(InputError, match=message):
        render_video(**arguments)
    if "size" in arguments:
        with pytest.raises(InputError, match=message):
            render(tmp_path / "cutouts", size=(32, 96), progress=False)
        assert not os.listdir(tmp_path), "a failed rendering leaves nothing"
