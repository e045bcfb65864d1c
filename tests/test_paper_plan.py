"""The rows of the paper's tables as commands: what is missing is named before anything runs."""

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest
import torch

from dulvos.checkpoints import load_encoder
from dulvos.errors import InputError
from dulvos.released import RELEASES
from dulvos.study import paper
from dulvos.study.collections import SOURCES
from dulvos.study.paper_plan import ROWS, Here, row_steps, rows_table, run_paper, what_is_missing
from dulvos.study.rows import SUFFIX, Study, all_rows
from dulvos.study.runner import Workers
from dulvos.study.steps import check_parameters
from tests.miniature import draw_video, write_davis, write_youtube_vos
from tests.test_collections import make_layout
from tests.test_released import snapshot, walk

TRAINING = {"iterations": 2, "batch": 2, "frames": 3, "crop": 64, "scale_min": 64, "scale_max": 72, "grid": 4,
            "cross_grid": 2}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Small copies of every layout and file of weights that the rows need."""
    root = tmp_path_factory.mktemp("data")
    write_youtube_vos(root / "youtube-vos")
    write_davis(root / "davis-2017", {name: draw_video([(24, 28, 0, 1, 0), (40, 66, 0, -1, 0)], seed=seed)
                                      for seed, name in enumerate(("v1", "v2"))})
    for name in ("oxuva", "trackingnet", "kinetics-400"):
        make_layout(name, root / name)
    (root / "weights").mkdir()
    encoder = load_encoder("random", seed=5)
    for name, release in RELEASES.items():
        state = walk(encoder, layer4=False) if name == "crw" else snapshot(encoder)
        torch.save(state, root / "weights" / release.file)
    return root


@pytest.fixture
def small(monkeypatch) -> Callable[..., Here]:
    """Makes a `Here` that accepts incomplete data; trainings are short."""
    for name, source in SOURCES.items():
        short = replace(source, settings=source.settings | TRAINING)
        monkeypatch.setitem(SOURCES, name, short)
    return partial(Here, device="cpu", incomplete=True)


def test_with_everything_here_every_row_has_steps_that_fit_their_notebooks(whole, small, capsys):
    here = small(whole, selected=True)
    assert run_paper([], here, dry=True) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in ROWS) and "MISSING" not in told
    every: dict = {}
    for row in ROWS.values():
        steps = row_steps(row, here)
        for place, step in enumerate(steps):
            check_parameters(step.source, step.parameters)
            assert set(step.needs) <= {before.full_name for before in steps[:place]}
            # a step that two rows share is the same in both
            assert every.setdefault((step.study.name, step.full_name), asdict(step)) == asdict(step)
        layer = RELEASES[row.features].layer if row.features in RELEASES else "res4"
        assert steps[-1].given["layer"] == layer
        assert any(step.name == f"trained{SUFFIX}" for step in steps) == bool(row.collection)
    assert not list(Study("paper").results.glob("*/rows"))


def test_settings_are_the_papers_and_lengths_count_the_videos_that_are_here(whole):
    here, released = (Here(whole, "cpu", incomplete=True, released=length) for length in (False, True))
    assert here.settings("oxuva").iterations == -(-500 * 2 // 16)
    assert here.settings("kinetics-400").lr_every == -(-20 * 3 // 16)
    assert released.settings("oxuva").iterations == -(-430 * 2 // 16)
    assert released.study("oxuva").name == "paper-oxuva-released" and released.study(None).name == "paper"


@pytest.mark.parametrize(("row", "gone", "named"), [
    ("random", "davis-2017", "davis-2017"), ("random", "davis-2017/ImageSets/2017/val.txt", "val"),
    ("random", "davis-2017/Annotations/480p/v1/00000.png", "00000.png"),
    ("crw", "weights/pretrained.pth", "pretrained.pth"), ("oxuva", "oxuva", "images/dev"),
    ("trackingnet", "trackingnet/TRAIN_*", "TrackingNet"), ("table2-crw", "youtube-vos/valid", "valid"),
    ("table2-crw", "youtube-vos/valid_all_frames", "valid_all_frames")])
def test_the_missing_thing_is_named_and_nothing_runs(whole, small, tmp_path, capsys, row, gone, named):
    copy = shutil.copytree(whole, tmp_path / "data", copy_function=os.link)
    for path in copy.glob(gone):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    missing = what_is_missing(ROWS[row], small(copy))
    assert len(missing) == 1 and named in missing[0]
    assert run_paper([row, "araslanov-oxuva"], small(copy)) == 1
    told = capsys.readouterr().out
    assert named in told and ("complete" in told) == (row != "random") and not Study("paper").results.exists()


@pytest.mark.parametrize(("row", "named"), [("random", "30"), ("oxuva", "OxUvA"), ("table2-crw", "474")])
def test_incomplete_data_are_refused_unless_they_are_accepted(whole, small, row, named):
    assert any(named in line for line in what_is_missing(ROWS[row], Here(whole, "cpu")))
    assert not what_is_missing(ROWS[row], small(whole))


def test_the_rows_cover_the_papers_tables(study, write_row):
    table = rows_table(all_rows(Path("absent")))
    for number, lines in ((1, paper.TABLE1), (2, paper.TABLE2)):
        words = [row.words for row in ROWS.values() if row.table == number]
        own = lines[lines["method"].isin([paper.OURS, "CRW"])]
        for line in own["method"] + ", " + own["train data"] + ", ":
            assert any(text.startswith(line) for text in words)
    write_row("evaluate", "random", "e", data="DAVIS-2016", study="paper")
    assert "| `random` | DAVIS-2017 | not run |" in rows_table(all_rows(study.results))
    write_row("evaluate", "random", "e1", study="paper", settings={"shorter_side": 64})
    assert "| `random` | DAVIS-2017 | not run |" in rows_table(all_rows(study.results))
    write_row("evaluate", "random", "e2", study="paper")
    assert "| `random` | DAVIS-2017 | run |" in rows_table(all_rows(study.results))
    assert all(f"`{name}`" in table for name in ROWS) and table.count("not run") == len(ROWS)
    with pytest.raises(InputError, match="absent"):
        Here(Path("absent"))


@pytest.mark.slow
def test_a_row_runs_from_training_to_its_evaluations(whole, small):
    assert run_paper(["oxuva", "random"], small(whole), Workers(threads=1)) == 0
    rows = Study("paper-oxuva").rows()
    assert set(rows["kind"]) == {"train", "evaluate"} and Study("paper").rows()["name"].tolist() == ["random"]
    assert (Study("paper").folder / "tables" / "table1.csv").is_file()
