"""The corpus of bad input: named cases, each made in an empty folder and given to what a user calls, and what is to come of it.

`python -m tests.corpus --examples 200` runs all of them, damages files at random besides, and prints the counts.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import random
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dulvos.errors import InputError

__all__ = ["Case", "Target", "all_cases", "all_targets", "counts", "damaged", "judge", "prepare", "table"]

MODULES = ("frames", "videos", "masks", "settings", "files")
OUTCOMES = ("results", "errors", "crashes", "wrong")


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
        make: an intact file, written once, in an empty folder.
        read: gives the folder to a public entry; what comes back is checked by it.
        guarded: the format has checksums, so that what comes back must be what was there before.
    """

    part: str
    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    guarded: bool = False


def judge(case: Case, folder: Path) -> tuple[str, str]:
    """What came of a case: one of OUTCOMES, and what was said.

    An error that is not one line, or lacks the words that are expected, is "wrong", as a result is where an error is expected.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            result = case.act(folder)
    except InputError as error:
        line = str(error)
        clear = (case.either or isinstance(case.expect, str) and re.search(case.expect, line, re.IGNORECASE)) and line and line.isprintable()
        return "errors" if clear else "wrong", line
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "crashes", f"{type(error).__name__}: {error}"
    if isinstance(case.expect, str):
        return "wrong", f"no error, but {result!r:.200}"
    return ("results" if case.expect(result) else "wrong"), f"{result!r:.200}"


def damaged(data: bytes, cut: float, edits: list[tuple[float, int]], added: bytes = b"") -> bytes:
    """A file's bytes cut at a share of its length, with bytes replaced at shares of what is left, and some added."""
    kept = bytearray(data[: round(len(data) * cut)])
    for place, value in edits:
        if kept:
            kept[min(int(place * len(kept)), len(kept) - 1)] = value
    return bytes(kept) + added


def all_cases() -> list[Case]:
    """The named cases of every part."""
    return [case for module in MODULES for case in importlib.import_module(f"tests.corpus_{module}").CASES]


def all_targets() -> list[Target]:
    """What is damaged at random."""
    return importlib.import_module("tests.corpus_damage").TARGETS


def counts(examples: int = 200) -> list[dict]:
    """Run the corpus and that many random damages of each kind of file, in temporary folders; a line a part."""
    lines: dict[str, dict] = {}

    def count(part: str, run: Callable[[Path], tuple[str, str]], folder: Path) -> None:
        line = lines.setdefault(part, {"what": part, "tried": 0, **dict.fromkeys(OUTCOMES, 0), "seconds": 0.0})
        started = time.monotonic()
        outcome, said = run(folder)
        line["seconds"] += time.monotonic() - started
        line["tried"] += 1
        line[outcome] += 1
        if outcome in ("crashes", "wrong"):
            print(f"{part}: {outcome}: {said}", flush=True)

    for case in all_cases():
        with tempfile.TemporaryDirectory() as folder:
            count(case.part, lambda folder, case=case: judge(case, folder), Path(folder))
    generator = random.Random(0)
    for target in all_targets():
        with tempfile.TemporaryDirectory() as folder:
            path, damage = prepare(target, Path(folder))
            whole = path.read_bytes()
            for _ in range(examples):
                # where heads are short, most damage would fall on what is hardly looked at
                reach = generator.choice((1.0, 1.0, min(1.0, 600 / len(whole))))
                edits = [(generator.random() * reach, generator.randrange(256)) for _ in range(generator.choice((0, 1, 3, 30)))]
                path.write_bytes(damaged(whole, generator.choice((1.0, 1.0, generator.random())), edits,
                                         generator.randbytes(generator.choice((0, 0, 20)))))
                count(target.part, lambda folder, damage=damage: judge(damage, folder), Path(folder))
    return list(lines.values())


def prepare(target: Target, folder: Path) -> tuple[Path, Case]:
    """Write the intact file; and the case that any error of one line passes, and any result where there are no checksums."""
    path = target.make(folder)
    before = repr(target.read(folder)) if target.guarded else ""
    return path, Case(target.part, target.part, target.read, lambda after: not target.guarded or repr(after) == before,
                      either=True)


def table(lines: list[dict]) -> str:
    """The counts as Markdown, with their sum."""
    total = {"what": "together"} | {name: sum(line[name] for line in lines) for name in ("tried", *OUTCOMES)}
    rows = ["| input | tried | results | one clear line | crashes | silently wrong |",
            "| --- | ---: | ---: | ---: | ---: | ---: |"]
    rows += ["| " + " | ".join(str(line[name]) for name in ("what", "tried", *OUTCOMES)) + " |" for line in [*lines, total]]
    return "\n".join(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.corpus", description=__doc__)
    parser.add_argument("--examples", type=int, default=200, help="random damages of each kind of file (default 200)")
    print(table(counts(parser.parse_args().examples)))
