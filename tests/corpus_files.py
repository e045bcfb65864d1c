"""Files that the package itself writes, cut, changed and of other makers: encoders, their sidecars, released weights, rows."""

from __future__ import annotations

import functools
import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from dulvos.checkpoints import load_encoder, save_encoder
from dulvos.datasets import load_davis
from dulvos.encoder import Encoder
from dulvos.inference import SegmentSettings
from dulvos.metrics import SUMMARY_COLUMNS
from dulvos.study.evaluation import evaluate
from dulvos.study.rows import Study
from dulvos.study.tables import summary
from tests.corpus import Case
from tests.corpus_masks import write_davis

__all__ = ["CASES", "ROW", "put_encoder", "put_row", "rows_of"]

CASES: list[Case] = []
ROW = {"kind": "evaluate", "study": "s", "name": "n", "key": "k" * 12, "version": 1, "date": "2026-01-01T00:00:00+00:00",
       "data": "x", "split": "val", "features": "f", "sequences": 1, "objects": 1, "frames": 2, "seconds": 1.0,
       "seconds_per_frame": 0.5, "scores": dict.fromkeys(SUMMARY_COLUMNS, 0.5)}


@functools.cache
def intact() -> tuple[bytes, dict]:
    """An encoder's file, in half precision, and its sidecar."""
    with tempfile.TemporaryDirectory() as folder:
        path = save_encoder(load_encoder("random"), Path(folder) / "e.safetensors", dtype=torch.float16)
        return path.read_bytes(), json.loads(path.with_suffix(".json").read_text())


def put_encoder(folder: Path, data: bytes | None = None, sidecar: Any = None) -> Path:
    """Write x.safetensors and x.json: the intact ones, or others in their place."""
    path = folder / "x.safetensors"
    path.write_bytes(intact()[0] if data is None else data)
    path.with_suffix(".json").write_bytes(sidecar if isinstance(sidecar, bytes) else json.dumps(
        intact()[1] if sidecar is None else sidecar).encode())
    return path


def is_encoder(result: Any) -> bool:
    return isinstance(result, Encoder) and not result.training


def encoder(name: str, expect: str | Callable[[Any], bool], data: Callable[[], bytes] | None = None,
            sidecar: Any = None) -> None:
    slow = name.startswith("weights") and "NaN" not in name
    CASES.append(Case("checkpoints", name, lambda folder: load_encoder(put_encoder(folder, data() if data else None, sidecar)),
                      expect, slow))


def changed(change: Callable[[dict[str, Tensor]], Any]) -> bytes:
    state = safetensors.torch.load(intact()[0])
    change(state)
    return safetensors.torch.save(state)


encoder("as it should be", is_encoder)
for length in (0, 1, 8, 100, 5000, 10**7, -1):
    encoder(f"cut to {length} bytes", r"x\.safetensors: truncated or not a safetensors file",
            lambda length=length: intact()[0][:length])
encoder("longer than it says", r"x\.safetensors: truncated or not", lambda: intact()[0] + b"x")
encoder("a header of 2^64 bytes", r"x\.safetensors: truncated or not", lambda: b"\xff" * 8 + intact()[0][8:])
encoder("a header of zeros", r"x\.safetensors: truncated or not", lambda: bytes(1000))
encoder("a header that is a list", r"x\.safetensors: truncated or not", lambda: (3).to_bytes(8, "little") + b"[1]")
encoder("no weights", "another network", lambda: (2).to_bytes(8, "little") + b"{}")
NAME = "head.0.weight"
for name, value in (("NaN", lambda x: x.fill_(math.nan)), ("infinite", lambda x: x.fill_(math.inf)),
                    ("whole numbers", Tensor.char),
                    ("bool", Tensor.bool), ("complex", lambda x: x.to(torch.complex64))):
    encoder(f"weights: {name}", rf"{NAME} holds infinite values or no floating-point", lambda value=value: changed(
        lambda state: state.update({NAME: value(state[NAME])})))
encoder("weights: in double precision", is_encoder, lambda: changed(lambda state: state.update({NAME: state[NAME].double()})))
encoder("weights: one too many", "another network: z", lambda: changed(lambda state: state.update(z=torch.zeros(1))))
encoder("weights: one missing", f"another network: {NAME}", lambda: changed(lambda state: state.pop(NAME)))
encoder("weights: of another shape", f"another network: {NAME}",
        lambda: changed(lambda state: state.update({NAME: state[NAME][:1].clone()})))
for field, values, words in (("dim", ("128", 128.0, None, True, 0, -1, 10**12, [1], math.nan), "dim must be a whole number"),
                             ("norm", (None, "x", ["batch"], 3, {}), "norm"),
                             ("architecture", (None, 3, [], "vit"), "builds")):
    for value in values:
        encoder(f"sidecar: {field}={value!r}", rf"x\.json: .*{words}", bytes, {**intact()[1], field: value})
encoder("sidecar: dim=64", r"another network: head\.3", None, {**intact()[1], "dim": 64})
for name, content in (("a list", []), ("text", "x"), ("null", b"null"), ("no text", b"\xff\xfe"), ("empty", b""),
                      ("nested 10^5 deep", b"[" * 100_000),
                      ("without fields", {})):
    encoder(f"sidecar: {name}", r"x\.json: not a sidecar", bytes, content)
CASES.append(Case("checkpoints", "sidecar: missing",
                  lambda folder: load_encoder(put_encoder(folder).with_suffix(".json").unlink() or
             folder / "x.safetensors"), r"x\.json: "))
CASES.append(Case("checkpoints", "a folder",
                  lambda folder: (folder / "x.safetensors").mkdir() or load_encoder(folder / "x.safetensors"), "no such"))


class Evil:
    """Would leave a file behind if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def released(name: str, content: Any, words: str) -> None:
    """A case of a .pth file: bytes, or what torch.save writes."""
    def act(folder: Path) -> Any:
        if isinstance(content, bytes):
            (folder / "x.pth").write_bytes(content)
        else:
            torch.save(content(folder) if callable(content) else content, folder / "x.pth")
        try:
            return load_encoder(folder / "x.pth")
        finally:
            assert not (folder / "evil").exists(), "code was run"
    CASES.append(Case("released weights", name, act, rf"x\.pth: .*{words}"))


for name, content in (("empty", b""), ("text", b"hello"), ("half a zip", b"PK\x03\x04" + bytes(50)),
                      ("a pickle", b"\x80\x04]\x94.")):
    released(name, content, "damaged, or holds more than weights")
released("code", lambda folder: {"model": Evil(folder / "evil")}, "damaged, or holds more than weights")
for name, content in (("a list", [1]), ("None", None), ("nothing", {}), ("a number for a model", {"model": 3}),
                      ("a list for a model", {"model": []}),
                      ("None for a model", {"model": None}), ("a tensor", torch.zeros(3)), ("numbered", {1: torch.zeros(1)})):
    released(name, content, "holds no ResNet-18")
released("of another shape", {"model": {"conv1.weight": torch.zeros(2)}}, r"conv1\.weight is \(2,\)")


# rows, and what an evaluation keeps
def rows_of(folder: Path) -> str:
    """The rows of study s read, and their summary."""
    study = Study("s", folder)
    study.rows()
    return summary(study)


def put_row(folder: Path, content: bytes) -> Path:
    path = folder / "s" / "rows" / "evaluate-n-k.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


for name, content, expect in (
        ("as it should be", ROW, lambda said: "50.0" in said), ("empty", b"", ""), ("a list", [], ""), ("null", None, ""),
        ("text", "x", ""), ("without fields", {}, ""), ("without version", {k: v for k, v in ROW.items() if k != "version"}, ""),
        ("of another kind", {**ROW, "kind": "z"}, ""), ("kind: a list", {**ROW, "kind": []}, ""),
        ("date: None", {**ROW, "date": None}, ""), ("date: 5", {**ROW, "date": 5}, ""), ("name: 5", {**ROW, "name": 5}, ""),
        ("key: None", {**ROW, "key": None}, ""), ("version: {}", {**ROW, "version": {}}, ""),
        ("data: a list", {**ROW, "data": []}, ""), ("scores: text", {**ROW, "scores": "x"}, ""),
        ("scores: none", {**ROW, "scores": {}}, ""), ("scores: a list", {**ROW, "scores": {"J&F-Mean": []}}, ""),
        ("no text", b"\xff\xfe\0", ""), ("nested 10^5 deep", b"[" * 100_000, ""), ("cut", json.dumps(ROW)[:100].encode(), "")):
    CASES.append(Case("rows", name, lambda folder,
                      content=content: rows_of(put_row(folder, content if isinstance(content, bytes) else json.dumps(
        content).encode()).parents[2]), expect if callable(expect) else r"evaluate-n-\w+\.json.*delete it to run again"))


def finish_again(folder: Path, content: bytes) -> float:
    dataset = load_davis(write_davis(folder))
    (folder / "out").mkdir()
    (folder / "out" / "a.json").write_bytes(content)
    scores, _ = evaluate(dataset, "copy", folder / "out", settings=SegmentSettings())
    return sum(float(score.j.mean()) for score in scores)


for name, content in (("a list", b"[]"), ("null", b"null"), ("no text", b"\xff\xfe"), ("cut", b'{"ids": [1'),
                      ("without fields", b"{}"),
                      ("nested 10^5 deep", b"[" * 100_000)):
    CASES.append(Case("rows", f"a finished sequence: {name}", lambda folder, content=content: finish_again(folder, content),
                      lambda sum: sum == 2.0))
