"""`python -m tests.trust [--slow]`: injects every fault, tries every bad input, writes the tables of tests/README.md.

Tests name their fault by pytest's `record_property`: "fault" ("<kind>: <where>"), or "faults" ([the same, how many]).
A fault counts as survived if its test passed. `tests.corpus` counts the inputs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from dulvos.files import replacing
from tests import corpus

__all__ = ["Counts", "faults_table", "main"]

FOLDER = Path(__file__).parent
README = FOLDER / "README.md"
MODULES = ("test_faults.py", "test_untrusted.py", "test_files.py", "test_steps.py", "test_main.py", "test_download.py")


class Counts:
    """A plugin that sums what the tests report."""

    def __init__(self) -> None:
        self.injected: Counter[str] = Counter()
        self.survived: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped:
            self.outcomes["skipped"] += 1
            self.skipped[str(report.longrepr[2]).removeprefix("Skipped: ")] += 1
        if report.when != "call" or report.skipped:
            return
        self.outcomes[report.outcome] += 1
        faults = [value if name == "faults" else (value, 1) for name, value in report.user_properties
                  if name in ("fault", "faults")]
        for kind, count in faults:
            self.injected[kind] += count
            self.survived[kind] += count if report.passed else 0


def faults_table(counts: Counts) -> str:
    """The counts as Markdown: a line a kind and place."""
    lines = ["| fault | where | injected | survived |", "|---|---|---:|---:|"]
    for name in sorted(counts.injected):
        kind, _, where = name.partition(": ")
        lines.append(f"| {kind} | {where} | {counts.injected[name]} | {counts.survived[name]} |")
    lines += [f"| **together** | | **{counts.injected.total()}** | **{counts.survived.total()}** |", "",
              "By " + ", ".join(f"{count} tests {outcome}" for outcome, count in sorted(counts.outcomes.items())) + "."]
    lines += [f"Skipped ({count}): {reason}." for reason, count in sorted(counts.skipped.items()) if "--slow" not in reason]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Run the tests and the corpus, print both tables, and put them into tests/README.md; 1 if anything was not survived."""
    parser = argparse.ArgumentParser(prog="python -m tests.trust", description=__doc__)
    parser.add_argument("--slow", action="store_true", help="twenty kills each, more damaged files")
    parser.add_argument("--print", action="store_true", help="leave tests/README.md as it is")
    options = parser.parse_args(arguments)
    counts = Counts()
    chosen = [str(FOLDER / name) for name in MODULES]
    status = pytest.main(["-q", "-rf", *["--slow"] * options.slow, *chosen], plugins=[counts])
    print(faults_table(counts), flush=True)
    inputs = corpus.counts(200 if options.slow else 20)
    print(corpus.table(inputs))
    if not options.print:
        command = "python -m tests.trust" + " --slow" * options.slow
        commit = subprocess.run(["git", "-C", str(FOLDER), "rev-parse", "--short", "HEAD"], capture_output=True, text=True,
                                check=False).stdout.strip() or "unknown"
        text = README.read_text()
        head, _, rest = text.partition("<!-- counts -->\n")
        tail = rest.partition("<!-- /counts -->\n")[2]
        with replacing(README) as stream:
            made = f"`{command}`, after commit {commit}:\n\n{faults_table(counts)}\n{corpus.table(inputs)}\n"
            stream.write(f"{head}<!-- counts -->\n{made}<!-- /counts -->\n{tail}".encode())
    return int(status != 0 or any(line["crashes"] or line["wrong"] for line in inputs))


if __name__ == "__main__":
    sys.exit(main())
