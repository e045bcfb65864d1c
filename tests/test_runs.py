"""Runs are keyed by what determines them, done once, and leave a row with its provenance."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pandas as pd
import pytest
import torch

from dulvos import checkpoints

from dulvos.study import results, runs, cutouts as synthetic
from dulvos.errors import InputError
from dulvos.inference import SegmentSettings
from dulvos.study.runs import evaluation_run, open_data, trained_encoder, training_run
from dulvos.training import TrainSettings
from tests.test_evaluation import dataset  # noqa: F401

SETTINGS = TrainSettings(iterations=2, batch=2, frames=2, crop=32, scale_min=32, scale_max=40, grid=4, cross_grid=2, precision="fp32")


@pytest.fixture(scope="module")
def data(dataset, tmp_path_factory):  # noqa: F811
    """The tiny data set, its val split serving as train split too."""
    root = tmp_path_factory.mktemp("data") / "tiny"
    shutil.copytree(dataset.root, root)
    shutil.copy(root / "ImageSets/2017/val.txt", root / "ImageSets/2017/train.txt")
    return str(root)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    return tmp_path / "s"


def test_training_and_evaluation_leave_rows_and_files_and_run_once(data, folder, monkeypatch):
    row = training_run("s", "trained", data, SETTINGS, device="cpu")
    assert (folder / row["encoder"]).is_file() and trained_encoder("s") == folder / row["encoder"]
    assert len(pd.read_csv(folder / f"history/trained-{row['key']}.csv")) == 2
    assert (row["data"], row["videos"], row["parameters.batch"]) == ("tiny", 2, 2)
    scored = evaluation_run("s", "trained", data, "trained", SegmentSettings(), device="cpu")
    assert scored["trained_key"] == row["key"] and scored["objects"] == len(pd.read_csv(folder / f"scores/trained-{scored['key']}.csv"))
    assert (folder / f"masks/trained-{scored['key']}/translation/00005.png").is_file()
    assert set(results.read_rows("s").kind) == {"train", "evaluate"} and results.read_rows("s").current.all()

    def never(*arguments, **more):
        raise AssertionError("a finished run ran again")

    monkeypatch.setattr(runs, "train", never)
    monkeypatch.setattr(runs, "evaluate", never)
    assert training_run("s", "trained", data, SETTINGS, device="cpu")["key"] == row["key"]
    # how clips are read changes no number
    assert training_run("s", "trained", data, dataclasses.replace(SETTINGS, checkpoint_minutes=9.0), device="cpu")["key"] == row["key"]
    assert evaluation_run("s", "trained", data, "trained", SegmentSettings(), device="cpu")["key"] == scored["key"]
    with pytest.raises(AssertionError):
        training_run("s", "trained", data, dataclasses.replace(SETTINGS, lam=0.5), device="cpu")
    with pytest.raises(AssertionError):
        evaluation_run("s", "trained", data, "trained", SegmentSettings(topk=5), device="cpu")


def test_a_baseline_runs_on_the_processor_and_says_so(data, folder, monkeypatch):
    monkeypatch.setattr(runs.devices, "find_device", lambda name: torch.device(name or "cuda"))
    row = evaluation_run("s", "copy", data, "copy", SegmentSettings())
    assert (row["device"], row["computed_in"]) == ("cpu", "fp32") and row["peak_memory_mb"] > 0


def test_a_training_has_one_name(data, folder):
    """Under a second one its cost would count twice, or its encoder would not be found."""
    training_run("s", "quick", data, SETTINGS, device="cpu")
    with pytest.raises(InputError, match="name='mine': study 's' has this very training as 'quick'"):
        training_run("s", "mine", data, SETTINGS, device="cpu")


def test_another_checkpoint_or_other_masks_are_another_run(data, folder, tmp_path):
    keys = [evaluation_run("s", "random", data, "random", SegmentSettings(), device="cpu", seed=seed)["key"] for seed in (0, 1)]
    assert keys[0] != keys[1]
    other = tmp_path / "other"
    shutil.copytree(data, other)
    shutil.copy(other / "Annotations/480p/late-entry/00005.png", other / "Annotations/480p/late-entry/00000.png")
    assert evaluation_run("s", "copy", str(other), "copy", SegmentSettings())["fingerprint"] != \
        evaluation_run("s", "copy", data, "copy", SegmentSettings())["fingerprint"]


def test_a_study_without_a_trained_encoder_says_how_to_get_one(data, folder):
    with pytest.raises(InputError, match="01_train"):
        evaluation_run("s", "trained", data, "trained", SegmentSettings())


def test_an_encoder_that_is_not_here_is_not_replaced_by_an_older_one(data, folder):
    """Rows are committed, and weights are not."""
    first = training_run("s", "trained", data, SETTINGS, device="cpu")
    second = training_run("s", "trained", data, dataclasses.replace(SETTINGS, seed=1), device="cpu")
    path = folder / second["encoder"]
    results.write_row("s", {**second, "date": "2999-01-01"})
    path.unlink()
    with pytest.raises(InputError, match=rf"{path}: .*not on this machine.*run 01_train again"):
        trained_encoder("s")
    assert trained_encoder("s", first["key"]) == folder / first["encoder"]


def test_features_are_known_by_the_bytes_of_their_weights(tmp_path, monkeypatch):
    """Also those that come with the package, which a later training replaces."""
    source, said = runs.find_features("s", "davis2016")
    shutil.copytree(checkpoints.WEIGHTS, tmp_path / "weights")
    path = tmp_path / "weights" / "davis2016.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    monkeypatch.setattr(checkpoints, "WEIGHTS", tmp_path / "weights")
    again = runs.find_features("s", "davis2016")
    assert source == again[0] == "davis2016" and len(said["weights"]) == 12 and said["weights"] != again[1]["weights"]


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
    assert {"commit", "dirty", "version", "seed", "fingerprint", "seconds", "peak_memory_mb", "device", "threads", "versions"} <= set(row)
