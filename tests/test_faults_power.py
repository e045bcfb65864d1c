"""Power cuts: no code of ours leaves half a file, but a power cut or a disk can; then one clear line, or it is made again."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import nbformat
import pytest

from dulvos.study import results, runs, steps as study
from dulvos.study import ablation_states as states
from dulvos.checkpoints import load_encoder
from dulvos.datasets import read_predictions
from dulvos.errors import InputError
from dulvos.study.collections import index_videos
from dulvos.inference import SegmentSettings
from dulvos.study.runs import evaluation_run, training_run
from tests import fake_grid
from tests.test_runs import SETTINGS, data, folder  # noqa: F401
from tests.test_study import bench  # noqa: F401

PACKAGE = Path(results.__file__).parent


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_half_a_row(data, folder, share, record_property):  # noqa: F811
    record_property("fault", "truncated: row")
    evaluation_run("s", "copy", data, "copy", SegmentSettings())
    path, = (folder / "rows").iterdir()
    whole = path.read_text()
    path.write_text(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=r"evaluate-copy-\w+\.json: not a result row .*; restore it or delete it to run again"):
        evaluation_run("s", "copy", data, "copy", SegmentSettings())
    path.unlink()
    evaluation_run("s", "copy", data, "copy", SegmentSettings())
    again = json.loads(next((folder / "rows").iterdir()).read_text())
    assert again["scores"] == json.loads(whole)["scores"]


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_half_a_sequences_scores_are_made_again(data, folder, share, record_property):  # noqa: F811
    record_property("fault", "truncated: scores of a sequence")
    row = evaluation_run("s", "copy", data, "copy", SegmentSettings())
    next((folder / "rows").iterdir()).unlink()  # the evaluation was cut off just before its row
    path = folder / f"masks/copy-{row['key']}/translation.json"
    path.write_text(path.read_text()[: int(share * path.stat().st_size)])
    assert evaluation_run("s", "copy", data, "copy", SegmentSettings())["scores"] == row["scores"]


def test_half_a_mask_is_named_and_never_scored(data, folder, record_property):  # noqa: F811
    row = evaluation_run("s", "copy", data, "copy", SegmentSettings())
    masks = folder / f"masks/copy-{row['key']}"
    path = masks / "translation/00003.png"
    whole = path.read_bytes()
    sequence = runs.open_data(data, "val").sequences[0]
    data_end = whole.index(b"IEND") - 8  # what is missing behind the pixels makes no other mask
    for length in (0, 20, data_end // 2, data_end - 20):
        record_property("fault", "truncated: mask")
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"00003\.png: unreadable mask"):
            read_predictions(masks, sequence)


def test_half_an_encoder_is_made_again_from_its_checkpoint(data, folder, record_property, capsys):  # noqa: F811
    row = training_run("s", "trained", data, SETTINGS, device="cpu")
    path = folder / row["encoder"]
    weights, sidecar = path.read_bytes(), path.with_suffix(".json").read_text()
    for length in (0, 100, len(weights) - 1):
        record_property("fault", "truncated: encoder")
        path.write_bytes(weights[:length])
        with pytest.raises(InputError, match=r"encoder\.safetensors: truncated"):
            load_encoder(path)
        training_run("s", "trained", data, SETTINGS, device="cpu")
        assert path.read_bytes() == weights
    record_property("fault", "truncated: sidecar")
    path.with_suffix(".json").write_text(sidecar[:-20])
    with pytest.raises(InputError, match=r"encoder\.json: not a sidecar"):
        load_encoder(path)
    path.with_suffix(".json").unlink()
    training_run("s", "trained", data, SETTINGS, device="cpu")
    assert json.loads(path.with_suffix(".json").read_text())["architecture"] == json.loads(sidecar)["architecture"]
    assert "trained already" not in capsys.readouterr().out


def test_half_an_index_is_made_anew(tmp_path, dataset, record_property):  # noqa: F811
    root, cache = dataset.root / "JPEGImages" / "480p", tmp_path / "index.json"
    first = index_videos(root, [""], cache)
    whole = cache.read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        record_property("fault", "truncated: index")
        cache.write_bytes(whole[:length])
        assert index_videos(root, [""], cache).fingerprint == first.fingerprint and cache.read_bytes() == whole


@pytest.mark.parametrize("share", [pytest.param(0.0, marks=pytest.mark.slow), 0.5, pytest.param(0.999, marks=pytest.mark.slow)])
def test_half_an_executed_notebook_is_executed_again(bench, share, record_property):  # noqa: F811
    record_property("fault", "truncated: executed notebook")
    steps = [study.Step("good", "first", {"word": "a"})]
    assert study.run_study("s", steps, "x") == 0
    path = results.study_folder("s") / "notebooks/first.ipynb"
    path.write_text(path.read_text()[: int(share * path.stat().st_size)])
    assert study.run_study("s", steps, "x") == 0 and (bench / "ran").read_text() == "aa"
    nbformat.read(path, as_version=4)


def test_half_a_history_does_not_stop_the_list_of_the_grid(tmp_path, monkeypatch, record_property):
    record_property("fault", "truncated: history")
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    grid = fake_grid.tiny_grid(fake_grid.write_data(tmp_path / "data"))
    run = next(run for run in states.grid_runs(grid) if run.training)
    history = results.study_folder(grid.folder) / "runs" / f"{run.training}-0" / "history.csv"
    history.parent.mkdir(parents=True)
    for text, count in (("", 0), ("itera", 0), ("iteration,loss\n1,2\n2,", 1)):
        history.write_text(text)
        with states.lock_step(grid, states.train_step(grid, run)):
            assert f"{count} of {run.settings['iterations']} iterations" in states.listing(grid, states.grid_runs(grid))


def test_every_file_is_written_by_the_one_that_writes_whole_files():
    """Other ways of writing are listed here with what makes up for it."""
    allowed = {
        "files": "it", "study": "the lock; papermill's running copy has another name",
        "download": "the part goes on where it was, its content is checked; unpacked beside its place and renamed whole",
        "synthetic": "rendered beside its place and renamed whole", "miniature": "copies for tests", "work": "a log",
        "states": "a lock", "painter": "a file that lives for a moment", "canvas": "in memory", "player": "in memory",
    }
    names = {"write_text", "write_bytes", "to_csv", "savefig", "save", "imwrite", "to_json", "save_file"}
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            first = node.args[0] if node.args else None
            in_stream = isinstance(first, ast.Name) and first.id in ("stream", "png", "jpeg", "weights") or \
                len(node.args) > 1 and isinstance(node.args[1], ast.Name) and node.args[1].id == "stream"
            modes = [arg.value for arg in node.args[1:] if isinstance(arg, ast.Constant)]
            opened = name == "open" and any(set(str(mode)) & set("wax+") for mode in modes)
            opened &= "stream.name" not in ast.unparse(node)
            if (name in names and node.args and not in_stream or opened) and path.stem not in allowed:
                found[f"{path.stem}:{node.lineno}"] = ast.unparse(node)[:90]
    assert not found
