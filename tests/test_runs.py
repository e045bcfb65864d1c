"""Runs are keyed by what determines them, done once, and leave a row with its provenance."""

from __future__ import annotations

import dataclasses
import json

import pandas as pd
import pytest

from dulvos.study import results, runs, cutouts as synthetic
from dulvos.errors import InputError
from dulvos.inference import SegmentSettings
from dulvos.study.runs import evaluation_run, open_data, trained_encoder, training_run
from dulvos.training import TrainSettings

SETTINGS = TrainSettings(iterations=2, batch=2, frames=2, crop=32, scale_min=32, scale_max=40, grid=4, cross_grid=2, precision="fp32")


@pytest.fixture
def data(tiny):
    """The tiny data set, whose splits train and val are the same."""
    return str(tiny)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    return tmp_path / "s"


def test_a_training_leaves_a_row_and_files_and_runs_once(data, folder, monkeypatch):
    row = training_run("s", "trained", data, SETTINGS, device="cpu")
    assert (folder / row["encoder"]).is_file() and trained_encoder("s") == folder / row["encoder"]
    assert len(pd.read_csv(folder / f"history/trained-{row['key']}.csv")) == 2
    assert (row["data"], row["videos"], row["parameters.batch"]) == ("tiny", 2, 2)
    assert evaluation_run("s", "trained", data, "trained", SegmentSettings(), device="cpu")["trained_key"] == row["key"]
    assert results.read_rows("s").current.all()

    def never(*arguments, **more):
        raise AssertionError("a finished run ran again")

    monkeypatch.setattr(runs, "train", never)
    assert training_run("s", "trained", data, SETTINGS, device="cpu")["key"] == row["key"]
    # how clips are read changes no number
    assert training_run("s", "trained", data, dataclasses.replace(SETTINGS, checkpoint_minutes=9.0), device="cpu")["key"] == row["key"]
    with pytest.raises(AssertionError):
        training_run("s", "trained", data, dataclasses.replace(SETTINGS, lam=0.5), device="cpu")


def test_a_training_has_one_name(data, folder):
    """Under a second one its cost would count twice, or its encoder would not be found."""
    training_run("s", "quick", data, SETTINGS, device="cpu")
    with pytest.raises(InputError, match="name='mine': study 's' has this very training as 'quick'"):
        training_run("s", "mine", data, SETTINGS, device="cpu")


@pytest.mark.parametrize(("name", "message"), [("davis", "DULVOS_DAVIS"), ("no such folder", "no such folder")])
def test_data_that_is_not_there_is_named(name, message, monkeypatch):
    monkeypatch.delenv("DULVOS_DAVIS", raising=False)
    with pytest.raises(InputError, match=message):
        open_data(name, "val")


def test_the_embedded_benchmark_is_rendered_on_first_use(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(runs, "CUTOUTS", tmp_path / "cutouts")
    monkeypatch.setattr(synthetic, "render", lambda root: calls.append(root) or root)
    with pytest.raises(InputError):  # nothing was rendered into it here
        open_data("cutouts", "val")
    assert calls == [tmp_path / "cutouts"]


def test_rows_of_training_name_their_data_and_code(data, folder):
    training_run("s", "trained", data, SETTINGS, device="cpu")
    row = json.loads(next((folder / "rows").glob("train-trained-*.json")).read_text())
    assert {"commit", "dirty", "version", "seed", "fingerprint", "seconds", "peak_memory_mb", "device", "threads", "versions.torch"} <= set(row)
