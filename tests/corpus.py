"""The corpus of bad input: named cases, each made in an empty folder and given to what a user calls.

`python -m tests.trust` runs all of them, damages files at random besides, and counts what comes of it.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import random
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dulvos.errors import InputError

__all__ = ["Case", "Target", "add", "add_target", "all_cases", "all_targets", "counts", "damages", "judge",
           "put", "table"]

OUTCOMES = ("results", "errors", "crashes", "wrong")
COUNTED = ("tried", *OUTCOMES)
CASES: list[Case] = []
TARGETS: list[Target] = []


@dataclass(frozen=True)
class Case:
    """One input.

    Arguments:
        part: line of the table of counts.
        name: of the case.
        act: makes the input in an empty folder and gives it to a public entry.
        expect: words of the one line of an error, a regular expression; or a check of the result.
        slow: takes seconds.
        either: an error of any words will do as well as a result.
    """

    part: str
    name: str
    act: Callable[[Path], Any]
    expect: str | Callable[[Any], bool]
    slow: bool = False
    either: bool = False


@dataclass(frozen=True)
class Target:
    """A kind of file that is damaged at random.

    Arguments:
        part: line of the table of counts.
        make: writes an intact file in an empty folder.
        read: gives the folder to a public entry, and checks what comes back.
        guarded: the format has checksums, so that what comes back must be what was there before.
    """

    part: str
    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    guarded: bool = False


def add(part: str, name: str, expect: str | Callable[[Any], bool], act: Callable, *given: Any,
        slow: bool = False) -> None:
    """Add the case `act(folder, *given)` to the corpus."""
    CASES.append(Case(part, name, lambda folder: act(folder, *given), expect, slow))


def add_target(name: str, make: Callable, read: Callable, guarded: bool = False) -> None:
    """Add a kind of file to those that are damaged at random."""
    TARGETS.append(Target(f"random damage: {name}", make, read, guarded))


def put(path: Path, content: bytes | str) -> Path:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def all_cases() -> list[Case]:
    """The named cases of every part."""
    for module in ("frames", "videos", "masks", "settings", "files"):
        importlib.import_module(f"tests.corpus_{module}")
    return CASES


def all_targets() -> list[Target]:
    """What is damaged at random."""
    all_cases()
    return TARGETS


def judge(case: Case, folder: Path) -> tuple[str, str]:
    """What came of a case: one of OUTCOMES, and what was said.

    An error that is not one line, or lacks the words that are expected, is "wrong", and so is a result where
    an error is expected.
    """
    expected = case.expect if isinstance(case.expect, str) else "" if case.either else None
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            result = case.act(folder)
    except InputError as error:
        line = str(error)
        clear = expected is not None and re.search(expected, line, re.IGNORECASE)
        return "errors" if clear and line and line.isprintable() else "wrong", line
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return "crashes", f"{type(error).__name__}: {error}"
    right = not isinstance(case.expect, str) and case.expect(result)
    return "results" if right else "wrong", f"{result!r:.200}"


def damages(target: Target, folder: Path, examples: int, generator: random.Random) -> Iterator[Case]:
    """Write the file and damage it again and again: cut it, change bytes, add some.

    Each case passes an error of one line, and a result too, unless the format has checksums and it differs.
    """
    path = target.make(folder)
    before = repr(target.read(folder)) if target.guarded else ""
    case = Case(target.part, target.part, target.read,
                lambda after: not target.guarded or repr(after) == before, either=True)
    whole = path.read_bytes()
    for _ in range(examples):
        data = bytearray(whole[: round(len(whole) * generator.choice((1.0, 1.0, generator.random())))])
        # where heads are short, most damage would fall on what is hardly looked at
        reach = generator.choice((len(data), len(data), min(len(data), 600)))
        for _ in range(generator.choice((0, 1, 3, 30)) if data else 0):
            data[generator.randrange(reach)] = generator.randrange(256)
        path.write_bytes(data + generator.randbytes(generator.choice((0, 0, 20))))
        yield case


def counts(examples: int = 200) -> list[dict]:
    """Run the corpus and that many random damages of each kind of file; a line a part."""
    lines: dict[str, dict] = {}
    generator = random.Random(0)
    inputs = [lambda folder, case=case: [case] for case in all_cases()]
    inputs += [lambda folder, target=target: damages(target, folder, examples, generator)
               for target in all_targets()]
    for make in inputs:
        with tempfile.TemporaryDirectory() as folder:
            for case in make(Path(folder)):
                line = lines.setdefault(case.part, {"what": case.part, **dict.fromkeys(COUNTED, 0)})
                outcome, said = judge(case, Path(folder))
                line["tried"] += 1
                line[outcome] += 1
                if outcome in ("crashes", "wrong"):
                    print(f"{case.part}, {case.name}: {outcome}: {said}", flush=True)
    return list(lines.values())


def table(lines: list[dict]) -> str:
    """The counts as Markdown, with their sum."""
    total = {"what": "together"} | {name: sum(line[name] for line in lines) for name in COUNTED}
    rows = ["| input | tried | results | one clear line | crashes | silently wrong |",
            "| --- | ---: | ---: | ---: | ---: | ---: |"]
    rows += [f"| {line['what']} | " + " | ".join(str(line[name]) for name in COUNTED) + " |"
             for line in [*lines, total]]
    return "\n".join(rows)
