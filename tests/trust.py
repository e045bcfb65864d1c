"""`python -m tests.trust [--slow]`: injects every fault, tries every bad input, counts in tests/README.md.

Tests name their fault by pytest's `record_property`: "fault" ("<kind>: <where>"), or "faults" ([the same, how
many]). A fault counts as survived if its test passed. `tests.corpus` counts the inputs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests import corpus

__all__ = ["Counts", "faults_table", "main"]

FOLDER = Path(__file__).parent
README = FOLDER / "README.md"
MODULES = ("faults", "untrusted", "files", "steps", "main", "download")


class Counts:
    """A plugin that sums what the tests report."""

    def __init__(self) -> None:
        self.injected, self.survived, self.outcomes, self.skipped = (Counter() for _ in range(4))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped:
            self.outcomes["skipped"] += 1
            self.skipped[str(report.longrepr[2]).removeprefix("Skipped: ")] += 1
        elif report.when == "call":
            self.outcomes[report.outcome] += 1
            for name, value in report.user_properties:
                if name in ("fault", "faults"):
                    kind, count = value if name == "faults" else (value, 1)
                    self.injected[kind] += count
                    self.survived[kind] += count * report.passed


def faults_table(counts: Counts) -> str:
    """The counts as Markdown: a line a kind and place."""
    lines = ["| fault | where | injected | survived |", "|---|---|---:|---:|"]
    for name in sorted(counts.injected):
        kind, _, where = name.partition(": ")
        lines.append(f"| {kind} | {where} | {counts.injected[name]} | {counts.survived[name]} |")
    outcomes = ", ".join(f"{count} tests {outcome}" for outcome, count in sorted(counts.outcomes.items()))
    lines += [f"| **together** | | **{counts.injected.total()}** | **{counts.survived.total()}** |", "",
              f"By {outcomes}."]
    lines += [f"Skipped ({count}): {reason}." for reason, count in sorted(counts.skipped.items())
              if "--slow" not in reason]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Run the tests and the corpus, and put both tables into tests/README.md; 1 unless all is survived."""
    parser = argparse.ArgumentParser(prog="python -m tests.trust", description=__doc__)
    parser.add_argument("--slow", action="store_true", help="twenty kills each, more damaged files")
    options = parser.parse_args(arguments)
    counts, slow = Counts(), ["--slow"] * options.slow
    chosen = [str(FOLDER / f"test_{name}.py") for name in MODULES]
    status = pytest.main(["-q", "-rf", *slow, *chosen], plugins=[counts])
    inputs = corpus.counts(200 if options.slow else 20)
    tables = f"{faults_table(counts)}\n{corpus.table(inputs)}\n"
    print(tables)
    command = ["git", "-C", str(FOLDER), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"
    head, _, rest = README.read_text().partition("<!-- counts -->\n")
    tail = rest.partition("<!-- /counts -->\n")[2]
    made = f"`{' '.join(['python -m tests.trust', *slow])}`, after commit {commit}:\n\n{tables}"
    README.write_text(f"{head}<!-- counts -->\n{made}<!-- /counts -->\n{tail}")
    return int(status != 0 or any(line["crashes"] or line["wrong"] for line in inputs))


if __name__ == "__main__":
    sys.exit(main())
