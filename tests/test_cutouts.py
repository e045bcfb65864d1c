"""The embedded videos: their layout, their masks, and the script in benchmarks/ that made them."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.render_cutouts import LENGTH, SIZE, list_videos, rail, render_video
from dulvos.study.runs import data_fingerprint, open_data

VIDEOS = list_videos()
SPLITS = {split: open_data("cutouts", split) for split in ("train", "val")}


@pytest.mark.parametrize(("split", "mark"), [("train", "7cd28f16e26aee46"), ("val", "66184cedb4e1e281")])
def test_they_have_davis_2017_s_layout_and_objects_start_in_sight(split, mark):
    dataset = SPLITS[split]
    assert dataset.name == "cutouts" and data_fingerprint(dataset, masks=True) == mark  # the rows' data
    assert [s.name for s in dataset.sequences] == [n for n, v in VIDEOS.items() if v["split"] == split]
    for sequence in dataset.sequences:
        sequence.video.verify()
        masks, video = sequence.truth(), VIDEOS[sequence.name]
        assert masks.shape == (LENGTH, *SIZE) and sequence.video.size == SIZE
        objects = len(video["objects"].split()) + (video["background"] == "stereo")
        assert 1 <= objects <= 3 and np.unique(masks[0]).tolist() == list(range(objects + 1))
        shares = np.bincount(masks[0].ravel())[1:] / masks[0].size
        assert shares.min() > 0.01 and shares.max() < 0.5 and shares.sum() < 0.6


@pytest.mark.parametrize("name", ["garage", "riders", "herd", "galaxies"])
def test_the_script_makes_these_videos(name):
    """Another processor may round single pixels differently; JPEG smooths the noise, by 4 on average."""
    frames, masks = render_video(name, 2)
    sequence = next(s for data in SPLITS.values() for s in data.sequences if s.name == name)
    for t in range(2):
        assert np.abs(frames[t].astype(int) - sequence.video.read(t)).mean() < 4.5
        assert (masks[t] != sequence.mask(t)).mean() < 1e-3


def test_splits_share_no_photograph():
    used = {"train": set(), "val": set()}
    for video in VIDEOS.values():
        for name in f"{video['background']} {video['objects']} {video['distractors']}".split():
            used[video["split"]].add("motorcycle" if name == "stereo" else name.split("/")[0])
    assert len(used["train"]) > 9 and not used["train"] & used["val"]


def test_no_object_jumps_further_than_propagation_looks_and_one_is_covered():
    least = []
    for sequence in SPLITS["val"].sequences:
        masks = sequence.truth()
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
