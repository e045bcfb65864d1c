"""Bad input gives a right result or one clear line: the corpus, damaged files, random settings and masks.

--slow tries the longest cases too, and more damage; `python -m tests.trust` counts.
"""

import contextlib
import dataclasses
import functools
import json
import math
import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dulvos.checkpoints import load_encoder
from dulvos.datasets import load_davis, load_youtube_vos
from dulvos.errors import InputError
from dulvos.inference import SegmentSettings, colour_features, segment
from dulvos.masks import write_mask
from dulvos.study.rows import ROOT
from dulvos.study.steps import check_parameters
from dulvos.training import TrainSettings
from tests.corpus import CASES, TARGETS, Case, check, collect, damages, put
from tests.corpus_files import put_encoder, put_row, rows_of
from tests.corpus_frames import picture
from tests.corpus_masks import command, make_clip, write_davis

collect()


@pytest.mark.parametrize("case", [
    pytest.param(case, id=f"{case.part}: {case.name}".encode("unicode_escape").decode(),
                 marks=[pytest.mark.slow] * case.slow) for case in CASES])
def test_the_corpus(case: Case, tmp_path: Path, record_property) -> None:
    outcome = check(lambda: case.act(tmp_path), case.expect)
    record_property("inputs", [case.part, {outcome: 1}])


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.part)
def test_damage_gives_a_result_or_one_line(target, tmp_path, slow, record_property):
    source = random.Random(None if slow else 0)
    outcomes = dict(Counter(damages(target, tmp_path, 500 if slow else 20, source)))  # as xdist can send it
    record_property("inputs", [f"random damage: {target.part}", outcomes])


def fail(error: BaseException) -> Any:
    raise error


@pytest.mark.parametrize(("act", "expect", "ends"), [
    (lambda: 3, [3].__contains__, "results"), (lambda: fail(InputError("xy")), "Y", "errors"),
    (lambda: 4, [3].__contains__, AssertionError), (lambda: 3, "words", AssertionError),
    (lambda: fail(InputError("x")), "y", AssertionError), (lambda: fail(KeyError("x")), "x", KeyError),
    (lambda: fail(InputError("x")), [3].__contains__, AssertionError)])
def test_the_judge(act: Any, expect: Any, ends: Any) -> None:
    with contextlib.nullcontext() if isinstance(ends, str) else pytest.raises(ends):
        assert check(act, expect) == ends


def test_an_error_is_one_line_whatever_a_file_is_called() -> None:
    assert str(InputError("a\nb\x1b[31m\udcff\u2028é 视")) == r"a\nb\x1b[31m\udcff\u2028é 视"


# any content: of JSON files, settings, words of a command
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
JSON = st.recursive(SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    st.text(max_size=4), inner, max_size=3), max_leaves=5)
ANY = SCALAR | st.lists(st.integers(), max_size=2) | st.sampled_from(
    [math.nan, math.inf, -math.inf, 0, 1, 8, 256, 2**63, 10**400])


def fields(*names: str) -> st.SearchStrategy:
    return st.dictionaries(st.sampled_from(names), JSON, max_size=len(names)) | JSON


def settings_of(kind: type) -> st.SearchStrategy:
    names = [field.name for field in dataclasses.fields(kind)]
    return st.dictionaries(st.sampled_from(names), ANY, max_size=4)


@functools.cache
def scratch() -> tuple[Path, tempfile.TemporaryDirectory]:
    """A folder for all examples, and the object that deletes it in the end."""
    kept = tempfile.TemporaryDirectory(prefix="dulvos-")
    folder = Path(kept.name)
    write_davis(folder)
    make_clip(folder, 2)
    make_clip(folder / "valid/JPEGImages", 2)
    write_mask(folder / "mask.png", np.eye(48, 64, dtype=np.uint8))
    write_mask(folder / "valid/Annotations/clip/00000.png", np.ones((48, 64), np.uint8))
    return folder, kept


def dataset(file: str, load: Any) -> Any:
    """A function that loads a data set and its first masks, after `file` got the content that it is given."""
    def act(content: Any) -> None:
        put(scratch()[0] / file, json.dumps(content))
        for sequence in load(scratch()[0]).sequences:
            sequence.first_masks()
    return act


def inference(values: dict) -> None:
    frames = [picture(seed, 16, 24) for seed in range(2)]
    list(segment(frames, np.eye(16, 24, dtype=np.uint8), colour_features, SegmentSettings(**values)))


def words(given: list[str]) -> None:
    with contextlib.chdir(scratch()[0]):
        command("segment", *given, "--checkpoint", "random", "--no-mp4")


ROWS = fields("kind", "name", "key", "date", "version", "scores", "data", "split", "frames")
USUAL = {"kind": "evaluate", "version": 1} | dict.fromkeys(("study", "name", "key", "date"), "s")
VIDEOS = st.dictionaries(st.sampled_from(["a", "..", "/", "clip"]), fields("objects"))
NOTEBOOKS = st.sampled_from(["01_train", "02_evaluate", "06_your_video"])
PARAMETERS = st.sampled_from(["video", "frames", "tau", "topk", "lr", "study", "centre", "x"])
WORDS = st.sampled_from("--topk,0,5,--tau,nan,0.1,--layer,res3,key,clip,mask.png,absent,out,--device,"
                        "cpu,1=mask.png,".split(","))
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), max_size=6)


@pytest.mark.parametrize(("act", "contents"), [
    (lambda content: load_encoder(put_encoder(scratch()[0], b"", content)),
     fields("architecture", "dim", "norm")),
    (lambda content: rows_of(put_row(scratch()[0], json.dumps(content).encode()).parents[2]),
     ROWS | ROWS.filter(lambda row: isinstance(row, dict)).map(lambda row: USUAL | row)),
    (dataset("valid/meta.json", load_youtube_vos),
     fields("videos") | st.fixed_dictionaries({"videos": VIDEOS})),
    (dataset("benchmark.json", load_davis), fields("name")),
    (TrainSettings.from_dict, settings_of(TrainSettings) | st.dictionaries(st.text(max_size=5), ANY)),
    (inference, settings_of(SegmentSettings)),
    (lambda given: check_parameters(ROOT / "notebooks" / f"{given[0]}.ipynb", given[1]),
     st.tuples(NOTEBOOKS, st.dictionaries(PARAMETERS, ANY, max_size=3))),
    (words, st.lists(WORDS | TEXT, max_size=6))],
    ids=["sidecar", "row", "meta.json", "benchmark.json", "training", "inference", "notebook", "command"])
@given(data=st.data())
def test_any_content_gives_a_result_or_one_line(act: Any, contents: st.SearchStrategy, data: Any) -> None:
    content = data.draw(contents)
    check(lambda: act(content), lambda result: True, either=True)


# masks
MASKS = st.builds(
    lambda mask, kind: mask.astype(kind),
    arrays.arrays(np.uint8, st.tuples(st.sampled_from([16, 16, 15]), st.just(24)),
                  elements=st.integers(0, 1) | st.integers(0, 255)),
    st.sampled_from([np.uint8, np.uint8, np.int64, bool, np.float32]))


@given(first=MASKS, later=MASKS, frame=st.integers(-1, 4))
def test_any_masks_are_kept_as_given_or_refused(first: np.ndarray, later: np.ndarray, frame: int) -> None:
    frames, masks = [picture(seed, 16, 24) for seed in range(3)], {0: first} | {frame: later}

    def kept(found: list[np.ndarray]) -> bool:
        allowed = {0}.union(*(np.unique(mask).tolist() for mask in masks.values()))
        return (len(found) == 3 and allowed.issuperset(np.unique(found).tolist())
                and all(mask.shape == (16, 24) and mask.dtype == np.uint8 for mask in found)
                and all(np.array_equal(found[t][mask > 0], mask[mask > 0]) for t, mask in masks.items()))

    check(lambda: list(segment(frames, masks, colour_features, SegmentSettings(topk=3))), kept, either=True)
