"""DAVIS-2017's csv: the names, columns and numbers that its own tool writes."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from dulvos.study import results
from dulvos.datasets import load_davis
from dulvos.study.official import write_davis_csv
from dulvos.inference import SegmentSettings
from dulvos.metrics import SequenceScores, summarise
from dulvos.study.runs import evaluation_run
from tests.test_datasets import blocks, make_davis17

GLOBAL = "J&F-Mean,J-Mean,J-Recall,J-Decay,F-Mean,F-Recall,F-Decay"


@pytest.fixture
def dataset(tmp_path):
    masks = {"b": [blocks(1, 2)] * 4, "a": [blocks(1)] * 5}
    return load_davis(make_davis17(tmp_path / "data", masks), "val")


def test_two_files_as_the_tool_writes_them(dataset, tmp_path):
    j = [np.array([[1.0, 0.5], [0.25, 0.25]]), np.array([[0.125, 0.5, 1 / 3]])]
    scores = [SequenceScores(ids, values, values / 2) for ids, values in zip(((1, 2), (1,)), j)]
    whole, each = write_davis_csv(dataset, scores, tmp_path)
    assert [whole.name, each.name] == ["global_results-val.csv", "per-sequence_results-val.csv"]
    lines = whole.read_text().splitlines()
    assert lines[0] == GLOBAL and lines[1] == ",".join(f"{value:.3f}" for value in summarise(scores).values())
    # of objects, in the list's order; sequences are not averaged
    assert each.read_text() == "Sequence,J-Mean,F-Mean\nb_1,0.750,0.375\nb_2,0.250,0.125\na_1,0.319,0.160\n"


def test_an_evaluation_of_davis_2017_leaves_them_beside_its_masks(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    row = evaluation_run("s", "copy", str(dataset.root), "copy", SegmentSettings(), device="cpu")
    assert row["data"] == "DAVIS-2017" and row["objects"] == 3
    folder = tmp_path / "results/s/masks" / f"copy-{row['key']}"
    table = pd.read_csv(folder / "per-sequence_results-val.csv")
    assert list(table["Sequence"]) == ["b_1", "b_2", "a_1"] and (table["J-Mean"] == 1).all()
    assert (folder / "a/00004.png").is_file() and json.loads((folder / "a.json").read_text())["ids"] == [1]
