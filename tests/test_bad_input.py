"""Bad input gives a right result or one clear line: the corpus, files damaged at random, settings and masks drawn at random.

Without --slow what takes longest is sampled, and few damages are drawn; `python -m tests.corpus` counts.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
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
from tests.corpus import Case, Target, all_cases, all_targets, damaged, judge, prepare, table
from tests.corpus_files import put_encoder, put_row, rows_of
from tests.corpus_frames import picture
from tests.corpus_masks import command, make_clip, write_davis

HEAVY = "segment command"  # sampled without --slow


def cases() -> list:
    """Every case; of commands that load an encoder only each sixth without --slow."""
    seen: dict[str, int] = {}
    params = []
    for case in all_cases():
        seen[case.part] = seen.get(case.part, -1) + 1
        slow = case.slow or case.part == HEAVY and seen[case.part] % 6
        params.append(pytest.param(case, id=f"{case.part}: {case.name}".encode("unicode_escape").decode(),
                                   marks=[pytest.mark.slow] * bool(slow)))
    return params


@pytest.mark.parametrize("case", cases())
def test_the_corpus(case: Case, tmp_path: Path) -> None:
    outcome, said = judge(case, tmp_path)
    assert outcome == ("errors" if isinstance(case.expect, str) else "results"), said


def test_a_judge_tells_a_crash_a_silent_error_and_an_unclear_one_apart(tmp_path: Path) -> None:
    def fail(error: Exception) -> Any:
        raise error

    right = Case("x", "x", lambda folder: 3, lambda result: result == 3)
    for change, outcome in (({}, "results"), ({"act": lambda folder: 4}, "wrong"), ({"expect": "words"}, "wrong"),
                            ({"act": lambda folder: fail(InputError("x"))}, "wrong"),
                            ({"act": lambda folder: fail(KeyError("x"))}, "crashes"),
                            ({"act": lambda folder: fail(InputError("x")), "expect": "y"}, "wrong"),
                            ({"act": lambda folder: fail(InputError("xy")), "expect": "y"}, "errors"),
                            ({"act": lambda folder: fail(SystemExit(1)), "expect": "1"}, "crashes")):
        assert judge(dataclasses.replace(right, **change), tmp_path)[0] == outcome, change
    assert "| together | 3 | 1 | 2 | 0 | 0 |" in table([{"what": "a", "tried": 3, "results": 1, "errors": 2, "crashes": 0,
                                                         "wrong": 0}])


def test_an_error_is_one_line_whatever_a_file_is_called() -> None:
    assert str(InputError("a\nb\x1b[31m\udcff\u2028é 视")) == r"a\nb\x1b[31m\udcff\u2028é 视"


# files damaged at random
@functools.cache
def prepared(target: Target) -> tuple[Path, Path, bytes, Case]:
    folder = Path(tempfile.mkdtemp(prefix="dulvos-"))
    path, damage = prepare(target, folder)
    return folder, path, path.read_bytes(), damage


SHARE = st.floats(0, 1)
EDITS = st.lists(st.tuples(SHARE, st.integers(0, 255)),
                 max_size=20) | st.lists(st.tuples(SHARE.map(lambda x: x / 20), st.integers(0, 255)), max_size=4)


@pytest.mark.parametrize("target", [pytest.param(target, id=target.part) for target in all_targets()])
@given(cut=st.just(1.0) | SHARE, edits=EDITS, added=st.just(b"") | st.binary(max_size=30))
def test_damage_gives_a_result_or_one_line(target: Target, cut: float, edits: list, added: bytes) -> None:
    folder, path, whole, damage = prepared(target)
    path.write_bytes(damaged(whole, cut, edits, added))
    outcome, said = judge(damage, folder)
    assert outcome in ("results", "errors"), said


@pytest.mark.parametrize("target", [pytest.param(target, id=target.part) for target in all_targets()])
@given(data=st.binary(max_size=300))
def test_any_bytes_give_a_result_or_one_line(target: Target, data: bytes) -> None:
    folder, path, _, damage = prepared(target)
    path.write_bytes(data)
    outcome, said = judge(dataclasses.replace(damage, expect=lambda result: True), folder)
    assert outcome in ("results", "errors"), said


# JSON of any content where some content is expected
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
JSON = st.recursive(SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
                    max_leaves=5)


def fields(*names: str) -> st.SearchStrategy:
    return st.dictionaries(st.sampled_from(names), JSON, max_size=len(names)) | JSON


@functools.cache
def scratch(what: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="dulvos-"))
    if what == "davis":
        write_davis(folder)
    if what == "youtube":
        clip = make_clip(folder)
        (folder / "valid" / "JPEGImages").mkdir(parents=True)
        clip.rename(folder / "valid" / "JPEGImages" / "a")
        write_mask(folder / "valid" / "Annotations" / "a" / "00000.png", np.ones((48, 64), np.uint8))
    return folder


def survive(act: Any) -> None:
    outcome, said = judge(Case("", "", lambda folder: act(), lambda result: True, either=True), Path())
    assert outcome in ("results", "errors"), said


@given(content=fields("architecture", "dim", "norm"))
def test_any_sidecar(content: Any) -> None:
    survive(lambda: load_encoder(put_encoder(scratch("encoder"), b"", content)))


@given(content=fields("kind", "name", "key", "date", "version", "scores", "data", "split", "frames"), usual=st.booleans())
def test_any_row(content: Any, usual: bool) -> None:
    if usual and isinstance(content, dict):
        content = {"kind": "evaluate", "study": "s", "name": "n", "key": "k", "date": "d", "version": 1} | content
    survive(lambda: rows_of(put_row(scratch("rows"), json.dumps(content).encode()).parents[2]))


@given(content=fields("videos", "name") | st.fixed_dictionaries({"videos": st.dictionaries(st.sampled_from(["a", "..", "/",
    "b"]), fields("objects"))}))
def test_any_meta_json(content: Any) -> None:
    (scratch("youtube") / "valid" / "meta.json").write_text(json.dumps(content))
    survive(lambda: [sequence.first_masks() for sequence in datasets.load_youtube_vos(scratch("youtube")).sequences])
    (scratch("davis") / "benchmark.json").write_text(json.dumps(content))
    survive(lambda: datasets.load_davis(scratch("davis")))


# settings
ANY = SCALAR | st.lists(st.integers(), max_size=2) | st.sampled_from([math.nan, math.inf, -math.inf, 0, 1, 8, 256, 2**63,
    10**400])


@given(values=st.dictionaries(st.sampled_from([field.name
                                               for field in dataclasses.fields(TrainSettings)]) | st.text(max_size=5), ANY,
                                               max_size=4) | ANY)
def test_any_training_settings(values: Any) -> None:
    survive(lambda: TrainSettings.from_dict(values))


@given(values=st.dictionaries(st.sampled_from([field.name for field in dataclasses.fields(SegmentSettings)]), ANY, max_size=3))
def test_any_inference_settings(values: dict) -> None:
    frames = [picture(seed, 16, 24) for seed in range(2)]
    survive(lambda: list(segment(frames, np.eye(16, 24, dtype=np.uint8), colour_features, SegmentSettings(**values))))


@given(notebook=st.sampled_from(["01_train", "02_evaluate", "06_your_video"]), values=st.dictionaries(
    st.sampled_from(["video", "frames", "tau", "topk", "lr", "study", "centre", "x"]), ANY, max_size=3))
def test_any_notebook_parameters(notebook: str, values: dict) -> None:
    survive(lambda: check_parameters(ROOT / "notebooks" / f"{notebook}.ipynb", values))


WORDS = ["--topk", "0", "5", "--tau", "nan", "0.1", "--layer", "res3", "key", "clip", "mask.png", "absent", "out", "--fps",
         "--device", "cpu", "1=mask.png", ""]


@given(words=st.lists(st.sampled_from(WORDS) | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"),
                                                       max_size=6), max_size=6))
def test_any_arguments(words: list[str]) -> None:
    folder = scratch("command")
    if not (folder / "clip").exists():
        make_clip(folder, 2)
        write_mask(folder / "mask.png", np.eye(48, 64, dtype=np.uint8))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        survive(lambda: command("segment", *words, "--checkpoint", "random", "--no-mp4"))


# masks
MASKS = st.builds(lambda mask, kind: mask.astype(kind),
                  arrays.arrays(np.uint8, st.tuples(st.sampled_from([16, 16, 15]), st.just(24)),
                  elements=st.integers(0, 1) | st.integers(0, 255)),
                  st.sampled_from([np.uint8, np.uint8, np.int64, bool, np.float32]))


@given(first=MASKS, later=MASKS, frame=st.integers(-1, 4))
def test_any_masks_are_kept_as_given_or_refused(first: np.ndarray, later: np.ndarray, frame: int) -> None:
    frames = [picture(seed, 16, 24) for seed in range(3)]
    try:
        found = list(segment(frames, {0: first, frame: later}, colour_features, SegmentSettings(topk=3)))
    except InputError as error:
        assert str(error).isprintable()
        return
    masks = {0: first} | {frame: later}
    allowed = {0}.union(*(set(np.unique(mask).tolist()) for mask in masks.values()))
    assert len(found) == 3 and all(mask.shape == (16, 24) and mask.dtype == np.uint8
                                   and set(np.unique(mask).tolist()) <= allowed for mask in found)
    for place, mask in masks.items():
        assert np.array_equal(np.where(mask > 0, found[place], 0), mask)


@given(ids=arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_any_mask_that_is_written_reads_back(ids: np.ndarray) -> None:
    path = scratch("mask") / "mask.png"
    if (ids == 255).any():
        with pytest.raises(InputError, match="255"):
            write_mask(path, ids)
    else:
        write_mask(path, ids)
        assert np.array_equal(read_mask(path), ids)
