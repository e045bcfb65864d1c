"""Numbers that can be relied on: none that is no number, the same from the same seed, none of other code or other data."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from dulvos import losses, training

from dulvos.study import evaluation, results, rows
from dulvos.masks import write_mask
from dulvos.inference import SegmentSettings, encode, segment
from dulvos.study.runs import evaluation_run
from dulvos.study.tables import study_table
from dulvos.trainer import train
from dulvos.training import training_loss
from tests.test_faults import TINY, videos, weights  # noqa: F401
from tests.test_runs import data, folder  # noqa: F401


def test_the_checkpoint_before_a_loss_that_is_no_number_resumes(videos: list, weights: bytes, tmp_path: Path,  # noqa: F811
                                                                monkeypatch: pytest.MonkeyPatch,
                                                                record_property: Callable) -> None:
    record_property("fault", "NaN: loss")
    real, calls = training_loss, []

    def spoil(*arguments: object, **named: object) -> losses.LossOutput:
        output = real(*arguments, **named)
        calls.append(1)
        return output if len(calls) < 3 else dataclasses.replace(output, total=output.total * float("inf"))

    monkeypatch.setattr(training, "training_loss", spoil)
    with pytest.raises(FloatingPointError, match=r"at iteration 2, clips of [a-d], [a-d]; the last good checkpoint is "):
        train(dataclasses.replace(TINY, checkpoint_minutes=0.0), videos, tmp_path, device="cpu")
    monkeypatch.undo()
    assert train(TINY, videos, tmp_path, device="cpu")["encoder"].read_bytes() == weights, "had it been a passing fault"


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_same_seed_gives_the_same_weights_with_any_number_of_workers(videos: list, weights: bytes, tmp_path: Path,  # noqa: F811
                                                                         workers: int) -> None:
    assert train(dataclasses.replace(TINY, workers=workers), videos, tmp_path, device="cpu")["encoder"].read_bytes() == weights


def test_the_same_seed_gives_the_same_weights_again(videos: list, weights: bytes, tmp_path: Path) -> None:  # noqa: F811
    torch.manual_seed(1234)  # no draw comes from here
    np.random.seed(1234)
    assert train(TINY, videos, tmp_path, device="cpu")["encoder"].read_bytes() == weights
    other = train(dataclasses.replace(TINY, seed=1), videos, tmp_path / "other", device="cpu")["encoder"].read_bytes()
    assert other != weights


def test_masks_do_not_depend_on_how_many_frames_are_encoded_at_once(dataset) -> None:  # noqa: F811
    sequence = dataset.sequences[1]
    encoder = evaluation.load_encoder("random")
    settings = SegmentSettings(precision="fp32")
    carried = []
    for batch in (1, 2, 5):
        features = lambda frames, given, batch=batch: encode(encoder, frames, given, batch=batch)  # noqa: E731
        carried.append(np.stack(list(segment(sequence.video.frames(), sequence.first_masks(), features, settings))))
    assert np.array_equal(carried[0], carried[1]) and np.array_equal(carried[0], carried[2])


def test_a_score_of_other_code_or_other_data_is_never_shown_as_fresh(data: str, folder: Path, tmp_path: Path,  # noqa: F811
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    def shown() -> pd.Series:
        table = study_table(results.read_rows("s"))
        return table[table.method == "first mask copied"].iloc[-1]

    first = evaluation_run("s", "copy", data, "copy", SegmentSettings())
    assert shown().state == "run"
    changed = shutil.copytree(data, tmp_path / "changed")
    write_mask(changed / "Annotations/480p/late-entry/00003.png", np.eye(64, 96, dtype=np.uint8))
    second = evaluation_run("s", "copy", str(changed), "copy", SegmentSettings())
    assert second["key"] != first["key"] and second["fingerprint"] != first["fingerprint"], "evaluated anew"
    shutil.copy(changed / "Annotations/480p/late-entry/00000.png", changed / "Annotations/480p/late-entry/00003.png")
    third = evaluation_run("s", "copy", str(changed), "copy", SegmentSettings())
    assert third["key"] not in (first["key"], second["key"]), "a mask of as many bytes is another mask"
    monkeypatch.setattr(rows, "EVALUATION_VERSION", 99)
    assert shown().state.startswith("† made by earlier code")
    assert evaluation_run("s", "copy", data, "copy", SegmentSettings())["key"] != first["key"]
