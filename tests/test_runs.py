"""Trainings of a study: done once, with rows that say what was read."""

import dataclasses
import shutil
from functools import partial

import numpy as np
import pandas as pd
import pytest

from dulvos.errors import InputError
from dulvos.masks import read_mask, write_mask
from dulvos.study.runs import data_fingerprint, open_data, training_run
from dulvos.training import TrainSettings

SETTINGS = TrainSettings(iterations=2, batch=2, frames=2, crop=32, scale_min=32, scale_max=40, grid=4,
                         cross_grid=2, precision="fp32")


def test_a_training_leaves_a_row_and_files_and_runs_once(tiny, study):
    run = partial(training_run, study, "trained", str(tiny), device="cpu")
    row = run(SETTINGS)
    encoder = study.folder / row["encoder"]
    assert encoder.is_file() and study.rows().current.all()
    assert len(pd.read_csv(study.path(row, "history", ".csv"))) == 2
    assert (row["data"], row["videos"], row["parameters.batch"], row["seed"]) == ("tiny", 2, 2, 0)
    assert {"commit", "dirty", "fingerprint", "seconds", "cpu_seconds", "peak_memory_mb", "device",
            "threads"} <= set(row)
    written = encoder.stat().st_mtime_ns
    # how often checkpoints are written changes no number
    assert row == run(SETTINGS) == run(dataclasses.replace(SETTINGS, checkpoint_minutes=9.0))
    assert encoder.stat().st_mtime_ns == written
    assert run(dataclasses.replace(SETTINGS, lam=0.5))["key"] != row["key"]
    for path in encoder.parent.iterdir():  # weights are not committed
        path.unlink()
    again = run(SETTINGS)
    assert (again["key"], again["loss"]) == (row["key"], row["loss"]) and encoder.is_file()


@pytest.mark.parametrize(("data", "split", "match"), [
    ("davis", "val", "DULVOS_DAVIS"), ("youtube-vos", "train", "DULVOS_DATA_DIR"),
    ("youtube-vos", "val", "youtube-vos"), ("youtube-vos-local", "val", "youtube-vos-local"),
    ("nowhere", "val", "nowhere"), ("nowhere", "train", "nowhere")])
def test_data_that_are_not_here_are_named(data, split, match):
    with pytest.raises(InputError, match=match):
        open_data(data, split)


def test_fingerprints_follow_frames_and_masks(tiny, tmp_path):
    copy = shutil.copytree(tiny, tmp_path / "changed")
    val, changed = (open_data(str(root), "val") for root in (tiny, copy))

    def same(masks: bool) -> bool:
        return data_fingerprint(changed, masks=masks) == data_fingerprint(val, masks=masks)

    assert same(masks=True)  # the folder's place does not matter
    mask = changed.sequences[0].masks[3]
    write_mask(mask, np.roll(read_mask(mask), 1))
    assert not same(masks=True) and same(masks=False)  # training reads no masks
    frames = changed.sequences[0].video
    frame = frames.path / frames.files[3]
    frame.write_bytes(frame.read_bytes() + b"\0")
    assert not same(masks=False)
