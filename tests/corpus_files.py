"""Encoders, released weights and rows whose files are cut, changed, or written by something else."""

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
from tests.corpus import TARGETS, Expected, Target, add, put
from tests.corpus_masks import write_davis

ROW = {"kind": "evaluate", "study": "s", "name": "n", "key": "k" * 12, "version": 1,
       "date": "2026-01-01T00:00:00+00:00", "data": "x", "split": "val", "features": "f", "sequences": 1,
       "objects": 1, "frames": 2, "seconds": 1.0, "seconds_per_frame": 0.5,
       "scores": dict.fromkeys(SUMMARY_COLUMNS, 0.5)}
DEEP = b"[" * 100_000


def as_bytes(content: Any) -> bytes:
    return content if isinstance(content, bytes) else json.dumps(content).encode()


# encoders
@functools.cache
def intact() -> tuple[bytes, dict]:
    """The bytes of an encoder's file, in half precision, and the content of its sidecar."""
    with tempfile.TemporaryDirectory() as folder:
        path = save_encoder(load_encoder("random").half(), Path(folder) / "e.safetensors")
        return path.read_bytes(), json.loads(path.with_suffix(".json").read_text())


def put_encoder(folder: Path, data: bytes | None = None, sidecar: Any = None) -> Path:
    """Write x.safetensors and x.json: the intact ones, or others in their place."""
    put(folder / "x.json", as_bytes(intact()[1] if sidecar is None else sidecar))
    return put(folder / "x.safetensors", intact()[0] if data is None else data)


def is_encoder(result: Any) -> bool:
    return isinstance(result, Encoder) and not result.training


def encoder(name: str, expect: Expected, data: Callable[[bytes], bytes] = bytes, sidecar: Any = None,
            **more: Any) -> None:
    """A case of an encoder with another sidecar, or with a file that `data` makes of the intact one."""
    add("checkpoints", name, expect,
        lambda folder: load_encoder(put_encoder(folder, data(intact()[0]), sidecar)), **more)


encoder("as it should be", is_encoder)
for length in (0, 1, 8, 100, 5000, 10**7, -1):
    encoder(f"cut to {length} bytes", r"x\.safetensors: damaged",
            lambda whole, length=length: whole[:length])
for name, change in (("longer than it says", lambda whole: whole + b"x"),
                     ("a header of 2^64 bytes", lambda whole: b"\xff" * 8 + whole[8:]),
                     ("a header of zeros", lambda whole: bytes(1000)),
                     ("a header that is a list", lambda whole: (3).to_bytes(8, "little") + b"[1]")):
    encoder(name, r"x\.safetensors: damaged", change)
encoder("no weights", "another network", lambda whole: (2).to_bytes(8, "little") + b"{}")
NAME, WRONG = "head.0.weight", r"head.0.weight holds infinite values or no floating-point"
for name, change, expect in (
        ("NaN", lambda x: {NAME: x.fill_(math.nan)}, WRONG),
        ("infinite", lambda x: {NAME: x.fill_(math.inf)}, WRONG),
        ("whole numbers", lambda x: {NAME: x.char()}, WRONG), ("bool", lambda x: {NAME: x.bool()}, WRONG),
        ("complex", lambda x: {NAME: x.to(torch.complex64)}, WRONG),
        ("in double precision", lambda x: {NAME: x.double()}, is_encoder),
        ("one too many", lambda x: {NAME: x, "z": torch.zeros(1)}, "another network: .*\"z\""),
        ("one missing", lambda x: {}, f"another network: .*{NAME}"),
        ("of another shape", lambda x: {NAME: x[:1].clone()}, f"another network: .*{NAME}")):
    def change_one(whole: bytes, change: Callable[[Tensor], dict[str, Tensor]] = change) -> bytes:
        state = safetensors.torch.load(whole)
        return safetensors.torch.save(state | change(state.pop(NAME)))
    encoder(f"weights: {name}", expect, change_one, slow=name != "NaN")
for field, values, words in (
        ("dim", ("128", 128.0, None, 0, -1, 10**12, [1], math.nan), "wrong content"),
        ("norm", (None, "x", ["batch"], 3, {}), "norm")):
    for value in values:
        encoder(f"sidecar: {field}={value!r}", rf"x\.json: .*{words}", lambda whole: b"",
                {**intact()[1], field: value})
encoder("sidecar: with a byte-order mark", is_encoder, sidecar=b"\xef\xbb\xbf" + as_bytes(intact()[1]))
encoder("sidecar: dim=64", r"another network: .*head\.3", sidecar={**intact()[1], "dim": 64})
for name, content in (("a list", []), ("text", "x"), ("null", b"null"), ("no text", b"\xff\xfe"),
                      ("empty", b""), ("nested 10^5 deep", DEEP), ("without fields", {})):
    encoder(f"sidecar: {name}", r"x\.json: missing or wrong content", lambda whole: b"", content)
add("checkpoints", "sidecar: missing", r"x\.json: ", lambda folder: load_encoder(
    put_encoder(folder).with_suffix(".json").unlink() or folder / "x.safetensors"))
add("checkpoints", "a folder", "no such", lambda folder: load_encoder(
    (folder / "x.safetensors").mkdir() or folder / "x.safetensors"))


# released weights
def released(folder: Path, content: Any) -> Any:
    """A .pth file of bytes, or of what torch.save writes."""
    if isinstance(content, bytes):
        put(folder / "x.pth", content)
    else:
        torch.save(content, folder / "x.pth")
    return load_encoder(folder / "x.pth")


DAMAGED, NONE = "damaged, or holds more than weights", "holds no ResNet-18"
for name, content, words in (
        ("empty", b"", DAMAGED), ("text", b"hello", DAMAGED), ("a pickle", b"\x80\x04]\x94.", DAMAGED),
        ("half a zip", b"PK\x03\x04" + bytes(50), DAMAGED), ("code", Path("x"), DAMAGED),
        ("a list", [1], NONE), ("None", None, NONE), ("nothing", {}, NONE),
        ("a number for a model", {"model": 3}, NONE),
        ("a list for a model", {"model": []}, NONE), ("None for a model", {"model": None}, NONE),
        ("a tensor", torch.zeros(3), NONE), ("numbered", {1: torch.zeros(1)}, NONE),
        ("of another shape", {"model": {"conv1.weight": torch.zeros(2)}}, "another network: .*bn1")):
    add("released weights", name, rf"x\.pth: .*{words}", released, content)


# rows, and the finished sequences of an evaluation
def rows_of(folder: Path) -> str:
    """The rows of study s read, and their summary."""
    study = Study("s", folder)
    study.rows()
    return summary(study)


def put_row(folder: Path, content: bytes) -> Path:
    return put(folder / "s/rows/evaluate-n-k.json", content)


def finish_again(folder: Path, content: bytes) -> Any:
    put(folder / "out/a.json", content)
    return evaluate(load_davis(write_davis(folder)), "copy", folder / "out", settings=SegmentSettings())


def row(name: str, content: Any, expect: Expected) -> None:
    add("rows", name, expect, lambda folder: rows_of(put_row(folder, as_bytes(content)).parents[2]))


row("as it should be", ROW, lambda said: "50.0" in said)
row("with a byte-order mark", b"\xef\xbb\xbf" + as_bytes(ROW), lambda said: "50.0" in said)
NAMED = r"evaluate-n-\w+\.json.*delete it to run again"
for field, value in (("key", None), ("scores", "x"), ("scores", {}), ("scores", {"J&F-Mean": []}),
                     ("kind", "z"), ("kind", []), ("date", 5), ("name", None), ("version", "1"), ("data", []),
                     ("trained_key", 5)):
    row(f"{field}: {value!r}", ROW | {field: value}, NAMED)
for field in ("kind", "version", "name", "date"):
    row(f"without {field}", {name: value for name, value in ROW.items() if name != field}, NAMED)
for content in (b"", b"[]", b"null", b'"x"', b"{}", b"\xff\xfe\0", DEEP):
    row(f"content {content[:9]!r}", content, NAMED)
for name, content in (("a list", b"[]"), ("null", b"null"), ("no text", b"\xff\xfe"), ("cut", b'{"ids": [1'),
                      ("without fields", b"{}"), ("nested 10^5 deep", DEEP)):
    add("rows", f"a finished sequence: {name}", r"a\.json: .*delete this file", finish_again, content)


# files to be damaged at random
def weights(folder: Path) -> Path:
    torch.save({"model": {f"layer{n}": torch.zeros(3) for n in range(9)}}, folder / "x.pth")
    return folder / "x.pth"


def load(folder: Path) -> Encoder:
    return load_encoder(folder / "x.safetensors")


TARGETS += [Target("row", lambda folder: put_row(folder, as_bytes(ROW)), rows_of),
            Target("released weights", weights, lambda folder: load_encoder(folder / "x.pth")),
            Target("sidecar", lambda folder: put_encoder(folder).with_suffix(".json"), load),
            Target("safetensors", put_encoder, load)]
