"""The numbers of training and evaluation stand still while their version does.

Small runs on the CPU (float32, one thread) give what they gave when the version was set (`digests.json`). A
failure here means that a change moved the numbers: undo it, or raise the version in `dulvos.study.rows` and
write the file anew (`python -m tests.digests > tests/digests.json`).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dulvos.study.rows import version
from tests.digests import EVALUATION_CASES, SMALL, TRAINING_CASES, evaluation_digest, training_digest

RECORDED = json.loads(Path(__file__).with_name("digests.json").read_text())
# another processor rounds otherwise, and Adam's first steps follow the signs of small gradients
CLOSE = {"train": {"rtol": 5e-3, "atol": 1e-5}, "evaluate": {"rtol": 1e-3, "atol": 1e-4}}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("kind", "case"), [("train", case) for case in TRAINING_CASES]
                         + [("evaluate", case) for case in EVALUATION_CASES])
def test_numbers_changed_raise_the_version_or_undo(kind, case):
    settings = {**SMALL, **TRAINING_CASES[case]} if kind == "train" else {}
    changes = {f"parameters.{name}": value for name, value in settings.items()}
    recorded = RECORDED[kind][str(version(kind, changes))][case]
    made = training_digest(case) if kind == "train" else evaluation_digest(case)
    np.testing.assert_allclose(made, recorded, **CLOSE[kind])


def test_cases_tell_settings_apart():
    """A setting without effect on the digest would guard nothing."""
    numbers = [tuple(values) for cases in RECORDED["train"].values() for values in cases.values()]
    assert len(set(numbers)) == len(TRAINING_CASES)
