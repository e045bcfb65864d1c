"""Rows and keys: nothing stale shown as current, nothing half written."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dulvos.study import results
from dulvos.errors import InputError


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    return "demo"


def row(name="trained", key="0123456789ab", **more):
    return {"kind": "train", "name": name, "key": key, **results.provenance("train", seed=0, data="x", fingerprint="f"), **more}


def test_rows_come_back_with_their_provenance(study):
    results.write_row(study, row(loss=np.float32(1.5), parameters={"lr": 1e-4}))
    frame = results.read_rows(study, "train")
    assert frame.loss[0] == 1.5 and frame["parameters.lr"][0] == 1e-4
    assert {"commit", "dirty", "version", "seed", "versions.torch", "threads", "date", "fingerprint", "source"} <= set(frame.columns)
    assert results.find_row(study, "train", "0123456789ab")["name"] == "trained"
    assert results.find_row(study, "train", "another") is None


def test_rows_of_an_earlier_version_are_not_current(study):
    results.write_row(study, row("old", "0" * 12, version=0))
    results.write_row(study, row("new", "1" * 12))
    assert dict(results.read_rows(study).set_index("name").current) == {"old": False, "new": True}


def test_a_study_without_rows_is_an_empty_table(study):
    assert results.read_rows(study).empty


def test_a_damaged_row_is_named(study):
    path = results.write_row(study, row())
    path.write_text(path.read_text()[:40])
    with pytest.raises(InputError, match=path.name):
        results.read_rows(study)


def test_nothing_half_written_is_left(study, tmp_path):
    with pytest.raises(TypeError):
        results.write_json(tmp_path / "row.json", {("a", "tuple"): 1})
    assert not (tmp_path / "row.json").exists()


def test_the_key_depends_on_what_determines_a_run_and_on_nothing_else(monkeypatch):
    key = results.run_key("train", {"lr": 1e-4, "seed": 0}, "data")
    assert key == results.run_key("train", {"seed": 0, "lr": 1e-4}, "data")
    assert len({key, results.run_key("train", {"lr": 2e-4, "seed": 0}, "data"),
                results.run_key("train", {"lr": 1e-4, "seed": 0}, "other data"),
                results.run_key("evaluate", {"lr": 1e-4, "seed": 0}, "data")}) == 4
    monkeypatch.setitem(results.VERSIONS, "train", 99)
    assert key != results.run_key("train", {"lr": 1e-4, "seed": 0}, "data")


@pytest.mark.parametrize("name", ["", "a/b", "../up"])
def test_a_study_is_a_plain_folder_name(name):
    with pytest.raises(InputError, match="study"):
        results.study_folder(name)


def test_rows_are_plain_json(study):
    json.loads(results.write_row(study, row(path=results.ROOT, array=np.arange(3))).read_text())
