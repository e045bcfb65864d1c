"""Trainings of a study: done once, under one name, with rows that say what was read."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pandas as pd
import pytest

from dulvos.errors import InputError
from dulvos.masks import read_mask, write_mask
from dulvos.study.rows import Study
from dulvos.study.runs import dataset_fingerprint, open_data, training_fingerprint, training_run
from dulvos.training import TrainSettings

SETTINGS = TrainSettings(iterations=2, batch=2, frames=2, crop=32, scale_min=32, scale_max=40, grid=4, cross_grid=2,
                         precision="fp32")


def test_a_training_leaves_a_row_and_files_and_runs_once(tiny, study):
    row = training_run(study, "trained", str(tiny), SETTINGS, device="cpu")
    assert (study.folder / row["encoder"]).is_file() and study.rows().current.all()
    assert len(pd.read_csv(study.path(row, "history", ".csv"))) == 2
    assert (row["data"], row["videos"], row["parameters.batch"], row["seed"]) == ("tiny", 2, 2, 0)
    assert {"commit", "dirty", "fingerprint", "seconds", "cpu_seconds", "peak_memory_mb", "device", "threads"} <= set(row)
    written = (study.folder / row["encoder"]).stat().st_mtime_ns
    # how clips are read and how often checkpoints are written changes no number
    for settings in (SETTINGS, dataclasses.replace(SETTINGS, checkpoint_minutes=9.0)):
        assert training_run(study, "trained", str(tiny), settings, device="cpu") == row
    assert (study.folder / row["encoder"]).stat().st_mtime_ns == written
    assert training_run(study, "trained", str(tiny), dataclasses.replace(SETTINGS, lam=0.5), device="cpu")["key"] != row["key"]


def test_a_training_whose_weights_are_missing_is_run_again(tiny, study):
    row = training_run(study, "trained", str(tiny), SETTINGS, device="cpu")
    for path in (study.folder / row["encoder"]).parent.iterdir():
        path.unlink()
    again = training_run(study, "trained", str(tiny), SETTINGS, device="cpu")
    assert again["key"] == row["key"] and again["loss"] == row["loss"] and (study.folder / again["encoder"]).is_file()


def test_a_training_has_one_name(tiny, study):
    """Under a second name its cost would count twice."""
    training_run(study, "quick", str(tiny), SETTINGS, device="cpu")
    with pytest.raises(InputError, match="'mine'.*'quick'"):
        training_run(study, "mine", str(tiny), SETTINGS, device="cpu")


@pytest.mark.parametrize(("data", "split", "match"), [
    ("davis", "val", "DULVOS_DAVIS"), ("youtube-vos", "train", "DULVOS_DATA_DIR"), ("youtube-vos", "val", "training"),
    ("no such folder", "val", "no such folder"), ("no such folder", "train", "no such folder")])
def test_data_that_are_not_here_are_named(data, split, match, monkeypatch):
    for variable in ("DULVOS_DAVIS", "DULVOS_DATA_DIR"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(InputError, match=match):
        open_data(data, split)


def test_fingerprints_follow_frames_and_masks(tiny, tmp_path):
    val = open_data(str(tiny), "val")
    changed = open_data(shutil.copytree(tiny, tmp_path / "changed"), "val")
    assert dataset_fingerprint(changed) == dataset_fingerprint(val)  # the folder's place does not matter
    mask = changed.sequences[0].masks[3]
    write_mask(mask, np.roll(read_mask(mask), 1))
    assert dataset_fingerprint(changed) != dataset_fingerprint(val)
    assert training_fingerprint(changed) == training_fingerprint(val)  # training reads no masks
    frames = changed.sequences[0].video
    frame = frames.path / frames.files[3]
    frame.write_bytes(frame.read_bytes() + b"\0")
    assert training_fingerprint(changed) != training_fingerprint(val)


def test_a_bad_name_is_refused_before_training(tiny, tmp_path):
    with pytest.raises(InputError, match="name"):
        training_run(Study("s", tmp_path), "../up", str(tiny), SETTINGS, device="cpu")
    assert not list(tmp_path.iterdir())
