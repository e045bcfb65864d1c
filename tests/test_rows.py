"""Rows: flat, with provenance, found by what determines them, and marked if earlier code made them."""

import json

import numpy as np
import pandas as pd
import pytest

from dulvos.study import rows
from dulvos.study.rows import ROOT, TRAINING_VERSION, Study, all_rows, newest, once, run_key, state

WANTED = {"parameters.lr": 1e-4, "fingerprint": "f"}


def row(name="trained", key="0123456789ab", kind="train", **more):
    return {"kind": kind, "name": name, "key": key, "study": "study", **rows.provenance(kind, more), **more}


def test_a_row_is_written_flat_with_its_provenance(study):
    path = study.write(row(loss=np.float32(1.5), parameters={"lr": 1e-4}, folder=ROOT, array=np.arange(3)))
    written = json.loads(path.read_text())
    assert rows.flat(written) == written and written["array"] == [0, 1, 2]
    table = study.rows("train")
    assert table.loss[0] == 1.5 and table["parameters.lr"][0] == 1e-4 and table.current.all()
    assert {"commit", "dirty", "version", "versions.torch", "threads", "cores", "gpu", "date",
            "source"} <= set(table)
    assert study.rows("evaluate").empty and Study("other", study.results).rows().empty


def test_rows_of_another_version_are_neither_current_nor_found(study):
    study.write(row("old", "0" * 12, version=TRAINING_VERSION - 1, **WANTED))
    assert study.find("train", WANTED) is None
    for key, date in (("1" * 12, "2026-02"), ("2" * 12, "2026-01")):
        study.write(row("new", key, date=date, **WANTED))
    assert study.find("train", WANTED)["key"] == "1" * 12
    assert dict(study.rows().groupby("name").current.all()) == {"old": False, "new": True}


@pytest.mark.parametrize(("wanted", "found"), [
    (WANTED, True), ({"parameters.lr": 2e-4}, False), ({"fingerprint": "g"}, False),
    ({"parameters.norm": "batch"}, True), ({"parameters.norm": "layer"}, False),  # the row had the default
    ({"processes": 1}, True), ({"processes": 2}, False), ({"name": "other"}, False),
])
def test_a_row_is_found_by_what_determines_it(study, wanted, found):
    study.write(row(**WANTED))
    assert (study.find("train", wanted) is not None) == found
    assert study.find("evaluate", wanted) is None


def test_once_computes_once_and_again_if_files_are_missing(study, monkeypatch):
    calls = []

    def compute(row):
        calls.append(row["key"])
        return {"data": "x", "loss": len(calls)}

    first = once(study, "train", "a", WANTED, compute)
    assert once(study, "train", "a", WANTED, compute) == first and len(calls) == 1
    assert first["version"] == TRAINING_VERSION and first["study"] == study.name
    again = once(study, "train", "a", WANTED, compute, whole=lambda row: False)
    assert calls[0] == calls[1] and again["loss"] == 2 and len(study.rows()) == 1  # the same key, one row
    once(study, "train", "b", WANTED, compute)
    once(study, "train", "a", WANTED | {"parameters.lr": 1.0}, compute)
    once(study, "train", "c", WANTED, compute, write=False)
    assert len(study.rows()) == 3 and len(set(calls)) == 2

    def late(row):
        monkeypatch.setenv("DULVOS_SOURCE", "after")  # as if somebody committed other code meanwhile
        return {"data": "x", "loss": 1.0}

    monkeypatch.setenv("DULVOS_SOURCE", "before")
    assert once(study, "train", "d", WANTED, late)["source"] == "before"


def test_the_key_depends_on_what_determines_a_run_and_on_nothing_else():
    key = run_key("train", WANTED)
    assert key == run_key("train", dict(reversed(WANTED.items()))) and len(key) == 12
    assert key == run_key("train", WANTED | {"parameters.norm": "batch", "processes": 1})  # named defaults
    others = {"parameters.lr": 2e-4, "fingerprint": "g", "parameters.frames": 1}
    keys = {run_key("train", WANTED | {name: value}) for name, value in others.items()}
    assert len({key, run_key("evaluate", WANTED), *keys}) == 5


def test_the_environment_moves_the_results(monkeypatch, tmp_path):
    assert Study("s").folder == tmp_path / "results/s"
    monkeypatch.delenv("DULVOS_RESULTS")
    assert Study("s").folder == ROOT / "results" / "s"


def test_an_evaluation_is_as_old_as_its_training(study, write_row):
    write_row("train", "trained", "t1", stale=True)
    write_row("evaluate", "random", "e1")
    write_row("evaluate", "trained", "e2", trained_key="t1")
    table = study.rows()
    assert state(None, table) == rows.NOT_RUN and newest(table[:0]) is None
    made = {one["name"]: one for _, one in table[table["kind"] == "evaluate"].iterrows()}
    assert state(made["random"], table) == "run"
    assert state(made["trained"], table).startswith("†") and "1234567" in state(made["trained"], table)
    write_row("train", "trained", "t1")
    assert state(made["trained"], study.rows()) == "run"


def test_the_newest_current_row_counts(study, write_row):
    for key, stale, counts in (("a", False, "a"), ("bbb", True, "a"), ("bb", False, "bb")):
        write_row("evaluate", "trained", key, stale=stale)
        assert newest(study.rows())["key"] == rows.counting(study.rows(), "name")["key"].item() == counts


def test_labels_say_how_a_checkpoint_was_chosen():
    plain = pd.Series({"name": "trained", "snapshot": None})
    assert (rows.remark(plain), rows.label(plain)) == ("", "trained")
    assert "1,000" in rows.label(pd.Series({"name": "trained", "snapshot": 1000.0, "selected": ""}))
    chosen = pd.Series({"name": "trained-selected", "snapshot": 5.0, "selected": "selected on 5"})
    assert rows.label(chosen) == "trained, selected on 5"


def test_all_rows_leave_the_ablation_grids_out(study, write_row):
    write_row("evaluate", "a", "k", date="2026")
    write_row("evaluate", f"{rows.CURVE}0", "k", study="ablation-x")
    assert list(all_rows(study.results)["name"]) == ["a"] and all_rows(study.results / "absent").empty
    assert rows.benchmarks(all_rows(study.results)) == [("DAVIS-2017", "val")]
