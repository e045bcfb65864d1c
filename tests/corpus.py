"""The corpus of bad input: named cases, each made in an empty folder and given to a function that users call.

`tests/test_bad_input.py` tries them, and files with random damage; `python -m tests.trust` counts both.
"""

import contextlib
import importlib
import io
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dulvos.errors import InputError

Expected = str | Callable[[Any], bool]  # words of an error's one line (a regular expression), or a check


class Case(NamedTuple):
    """One input, which `act` makes in an empty folder and gives to a public function."""

    part: str  # its line in the table of counts
    name: str
    act: Callable[[Path], Any]
    expect: Expected
    slow: bool = False  # takes seconds


class Target(NamedTuple):
    """A kind of file that is damaged at random.

    `make` writes an intact one into a folder, `read` gives the folder to a public function. `guarded` formats
    have checksums, so a result must equal that of the intact file.
    """

    part: str
    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    guarded: bool = False


CASES: list[Case] = []
TARGETS: list[Target] = []


def add(part: str, name: str, expect: Expected, act: Callable, *given: Any, slow: bool = False) -> None:
    """Add the case `act(folder, *given)` to the corpus."""
    CASES.append(Case(part, name, lambda folder: act(folder, *given), expect, slow))


def put(path: Path, content: bytes | str = b"") -> Path:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def collect() -> None:
    """Fill CASES and TARGETS."""
    for part in ("frames", "videos", "masks", "settings", "files"):
        importlib.import_module(f"tests.corpus_{part}")


def check(act: Callable[[], Any], expect: Expected, either: bool = False) -> str:
    """Whether an input gave a right result or one clear error: "results" or "errors".

    Raises AssertionError if the result is not as expected, or the error is not one line with the expected
    words. With `either`, the expected result and an error of any words are right. Other exceptions pass.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            result = act()
    except InputError as error:
        line = str(error)
        clear = re.search(expect, line, re.IGNORECASE) if isinstance(expect, str) else either
        assert clear and line and line.isprintable(), line
        return "errors"
    assert not isinstance(expect, str) and expect(result), f"{result!r:.200}"
    return "results"


def damages(target: Target, folder: Path, examples: int, generator: random.Random) -> Iterator[str]:
    """Damage the file at random (cut it, change bytes, add some), many times; yields what `check` returns.

    Each time there must be one clear error or a result, which may be any unless the format has checksums.
    """
    path = target.make(folder)
    whole, before = path.read_bytes(), target.read(folder) if target.guarded else None
    for _ in range(examples):
        data = bytearray(whole[: round(len(whole) * generator.choice((1.0, 1.0, generator.random())))])
        # now and then only near the start, as the headers, which are checked most, are short
        reach = generator.choice((len(data), len(data), min(len(data), 600)))
        for _ in range(generator.choice((0, 1, 3, 30)) if data else 0):
            data[generator.randrange(reach)] = generator.randrange(256)
        path.write_bytes(data + generator.randbytes(generator.choice((0, 0, 20))))
        yield check(lambda: target.read(folder),
                    lambda after: not target.guarded or after == before, either=True)
