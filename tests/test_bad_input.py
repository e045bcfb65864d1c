"""Bad input gives a right result or one clear line: the corpus, damaged files, random settings and masks.

Without --slow what takes longest is sampled, and few damages are drawn; `python -m tests.trust` counts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dulvos import datasets
from dulvos.checkpoints import load_encoder
from dulvos.errors import InputError
from dulvos.inference import SegmentSettings, colour_features, segment
from dulvos.masks import read_mask, write_mask
from dulvos.study.rows import ROOT
from dulvos.study.steps import check_parameters
from dulvos.training import TrainSettings
from tests.corpus import Case, Target, all_cases, all_targets, damages, judge
from tests.corpus_files import put_encoder, put_row, rows_of
from tests.corpus_frames import picture
from tests.corpus_masks import command, make_clip, write_davis


def cases() -> list:
    """Every case; of commands that load an encoder only each sixth without --slow."""
    params = []
    for number, case in enumerate(all_cases()):
        slow = case.slow or case.part == "segment command" and number % 6
        params.append(pytest.param(case, id=f"{case.part}: {case.name}".encode("unicode_escape").decode(),
                                   marks=[pytest.mark.slow] * bool(slow)))
    return params


@pytest.mark.parametrize("case", cases())
def test_the_corpus(case: Case, tmp_path: Path) -> None:
    outcome, said = judge(case, tmp_path)
    assert outcome == ("errors" if isinstance(case.expect, str) else "results"), said


def fail(error: BaseException) -> Any:
    raise error


@pytest.mark.parametrize(("act", "expect", "outcome"), [
    (lambda: 3, lambda result: result == 3, "results"), (lambda: 4, lambda result: result == 3, "wrong"),
    (lambda: 3, "words", "wrong"), (lambda: fail(InputError("x")), lambda result: True, "wrong"),
    (lambda: fail(InputError("x")), "y", "wrong"), (lambda: fail(InputError("xy")), "y", "errors"),
    (lambda: fail(KeyError("x")), "x", "crashes"), (lambda: fail(SystemExit(1)), "1", "crashes")])
def test_the_judge(act: Any, expect: Any, outcome: str) -> None:
    assert judge(Case("", "", lambda folder: act(), expect), Path())[0] == outcome


def test_an_error_is_one_line_whatever_a_file_is_called() -> None:
    assert str(InputError("a\nb\x1b[31m\udcff\u2028é 视")) == r"a\nb\x1b[31m\udcff\u2028é 视"


@pytest.mark.parametrize("target", all_targets(), ids=lambda target: target.part)
def test_damage_gives_a_result_or_one_line(target: Target, tmp_path: Path, slow: bool) -> None:
    for case in damages(target, tmp_path, 500 if slow else 20, random.Random(None if slow else 0)):
        outcome, said = judge(case, tmp_path)
        assert outcome in ("results", "errors"), said


# JSON of any content where some content is expected
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
JSON = st.recursive(SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    st.text(max_size=4), inner, max_size=3), max_leaves=5)


def fields(*names: str) -> st.SearchStrategy:
    return st.dictionaries(st.sampled_from(names), JSON, max_size=len(names)) | JSON


@functools.cache
def scratch(what: str) -> Path:
    """A folder that many examples share."""
    folder = Path(tempfile.mkdtemp(prefix="dulvos-"))
    if what == "davis":
        write_davis(folder)
    if what == "youtube":
        (folder / "valid/JPEGImages").mkdir(parents=True)
        make_clip(folder).rename(folder / "valid/JPEGImages/a")
        write_mask(folder / "valid/Annotations/a/00000.png", np.ones((48, 64), np.uint8))
    if what == "command":
        make_clip(folder, 2)
        write_mask(folder / "mask.png", np.eye(48, 64, dtype=np.uint8))
    return folder


def sidecar(content: Any) -> None:
    load_encoder(put_encoder(scratch("encoder"), b"", content))


def row(content: Any) -> None:
    rows_of(put_row(scratch("rows"), json.dumps(content).encode()).parents[2])


def meta_json(content: Any) -> None:
    (scratch("youtube") / "valid/meta.json").write_text(json.dumps(content))
    for sequence in datasets.load_youtube_vos(scratch("youtube")).sequences:
        sequence.first_masks()


def benchmark_json(content: Any) -> None:
    (scratch("davis") / "benchmark.json").write_text(json.dumps(content))
    datasets.load_davis(scratch("davis"))


def inference(values: dict) -> None:
    frames = [picture(seed, 16, 24) for seed in range(2)]
    list(segment(frames, np.eye(16, 24, dtype=np.uint8), colour_features, SegmentSettings(**values)))


def notebook(given: tuple[str, dict]) -> None:
    check_parameters(ROOT / "notebooks" / f"{given[0]}.ipynb", given[1])


def arguments(words: list[str]) -> None:
    with contextlib.chdir(scratch("command")):
        command("segment", *words, "--checkpoint", "random", "--no-mp4")


ROWS = fields("kind", "name", "key", "date", "version", "scores", "data", "split", "frames")
TEXTS = dict.fromkeys(("study", "name", "key", "date"), "s")
USUAL = ROWS.filter(lambda row: isinstance(row, dict)).map(
    lambda row: {"kind": "evaluate", "version": 1} | TEXTS | row)
VIDEOS = st.dictionaries(st.sampled_from(["a", "..", "/", "b"]), fields("objects"))
ANY = SCALAR | st.lists(st.integers(), max_size=2) | st.sampled_from(
    [math.nan, math.inf, -math.inf, 0, 1, 8, 256, 2**63, 10**400])
TRAINING, INFERENCE = (st.sampled_from([field.name for field in dataclasses.fields(settings)])
                       for settings in (TrainSettings, SegmentSettings))
PARAMETERS = st.sampled_from(["video", "frames", "tau", "topk", "lr", "study", "centre", "x"])
NOTEBOOKS = st.sampled_from(["01_train", "02_evaluate", "06_your_video"])
WORDS = st.sampled_from("--topk,0,5,--tau,nan,0.1,--layer,res3,key,clip,mask.png,absent,out,--device,"
                        "cpu,1=mask.png,".split(","))
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), max_size=6)


@pytest.mark.parametrize(("act", "contents"), [
    (sidecar, fields("architecture", "dim", "norm")), (row, ROWS | USUAL),
    (meta_json, fields("videos") | st.fixed_dictionaries({"videos": VIDEOS})),
    (benchmark_json, fields("name")),
    (TrainSettings.from_dict, st.dictionaries(TRAINING | st.text(max_size=5), ANY, max_size=4) | ANY),
    (inference, st.dictionaries(INFERENCE, ANY, max_size=3)),
    (notebook, st.tuples(NOTEBOOKS, st.dictionaries(PARAMETERS, ANY, max_size=3))),
    (arguments, st.lists(WORDS | TEXT, max_size=6))], ids=lambda given: getattr(given, "__name__", ""))
@given(data=st.data())
def test_any_content_gives_a_result_or_one_line(act: Any, contents: st.SearchStrategy, data: Any) -> None:
    content = data.draw(contents)
    case = Case("", "", lambda folder: act(content), lambda result: True, either=True)
    outcome, said = judge(case, Path())
    assert outcome in ("results", "errors"), said


# masks
MASKS = st.builds(
    lambda mask, kind: mask.astype(kind),
    arrays.arrays(np.uint8, st.tuples(st.sampled_from([16, 16, 15]), st.just(24)),
                  elements=st.integers(0, 1) | st.integers(0, 255)),
    st.sampled_from([np.uint8, np.uint8, np.int64, bool, np.float32]))


@given(first=MASKS, later=MASKS, frame=st.integers(-1, 4))
def test_any_masks_are_kept_as_given_or_refused(first: np.ndarray, later: np.ndarray, frame: int) -> None:
    frames, masks = [picture(seed, 16, 24) for seed in range(3)], {0: first} | {frame: later}
    try:
        found = list(segment(frames, masks, colour_features, SegmentSettings(topk=3)))
    except InputError as error:
        assert str(error).isprintable()
        return
    allowed = {0}.union(*(np.unique(mask).tolist() for mask in masks.values()))
    assert len(found) == 3 and allowed.issuperset(np.unique(found).tolist())
    assert all(mask.shape == (16, 24) and mask.dtype == np.uint8 for mask in found)
    for place, mask in masks.items():
        assert np.array_equal(np.where(mask > 0, found[place], 0), mask)


@given(ids=arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_any_mask_that_is_written_reads_back(ids: np.ndarray) -> None:
    path = scratch("mask") / "mask.png"
    with pytest.raises(InputError, match="255") if (ids == 255).any() else contextlib.nullcontext():
        write_mask(path, ids)
        assert np.array_equal(read_mask(path), ids)
