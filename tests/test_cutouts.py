"""The embedded videos: they are the rows' data, and the script in benchmarks/ makes them."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.render_cutouts import list_videos, rail, render_video
from dulvos.study.runs import data_fingerprint, open_data

VIDEOS = list_videos()
SPLITS = {split: open_data("cutouts", split) for split in ("train", "val")}


@pytest.mark.parametrize(("split", "mark"), [("train", "7cd28f16e26aee46"), ("val", "66184cedb4e1e281")])
def test_they_are_the_data_of_the_rows_and_the_videos_of_the_list(split, mark):
    dataset = SPLITS[split]
    assert dataset.name == "cutouts" and data_fingerprint(dataset, masks=True) == mark
    assert [s.name for s in dataset.sequences] == [n for n, v in VIDEOS.items() if v["split"] == split]


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
