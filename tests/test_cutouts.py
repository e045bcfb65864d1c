"""The embedded videos: they are the rows' data, and the script in benchmarks/ makes them."""

import cv2
import numpy as np
import pytest

from benchmarks.render_cutouts import list_videos, render_video
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
        off = frames[t].astype(float) - sequence.video.read(t)
        assert np.abs(off).mean() < 4.5 and np.abs(cv2.blur(off, (9, 9))).max() < 10
        assert (masks[t] != sequence.mask(t)).mean() < 1e-3


def test_splits_share_no_photograph():
    used = {"train": set(), "val": set()}
    for video in VIDEOS.values():
        for name in f"{video['background']} {video['objects']} {video['distractors']}".split():
            used[video["split"]].add("motorcycle" if name == "stereo" else name.split("/")[0])
    assert len(used["train"]) > 9 and not used["train"] & used["val"]
