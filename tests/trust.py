"""`python -m tests.trust [--slow]` injects every fault, tries every bad input, and counts in tests/README.md.

The tests report what they tried by pytest's `record_property`: "fault" is "<kind>: <where>", survived if the
test passed; "inputs" is a part of the corpus and how many of its inputs gave results and errors.
"""

import datetime
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
MODULES = ("bad_input", "faults", "untrusted", "run_all")


class Counts:
    """A plugin that sums what the tests report."""

    def __init__(self) -> None:
        self.faults, self.inputs = defaultdict(lambda: [0, 0]), defaultdict(lambda: [0, 0, 0])
        self.outcomes, self.skipped = Counter(), Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped:
            self.outcomes["skipped"] += 1
            self.skipped[str(report.longrepr[2]).removeprefix("Skipped: ")] += 1
        elif report.when == "call" or report.failed:
            self.outcomes[report.outcome] += 1
            for name, value in report.user_properties:
                if name == "fault":
                    injected, survived = self.faults[value]
                    self.faults[value] = [injected + 1, survived + report.passed]
                elif name == "inputs":
                    part, told = value
                    new = (sum(told.values()), told.get("results", 0), told.get("errors", 0))
                    self.inputs[part] = [old + more for old, more in zip(self.inputs[part], new)]


def table(lines: dict[str, list[int]], *heads: str) -> str:
    """Counts as Markdown, with their sum."""
    together = {"**total**": [sum(column) for column in zip(*lines.values())]}
    text = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    text += [f"| {name} | {' | '.join(map(str, numbers))} |" for name, numbers in [
        *sorted(lines.items()), *together.items()]]
    return "\n".join(text)


def main(slow: bool) -> int:
    """Run the tests and put what they counted into tests/README.md; their exit status."""
    counts, options = Counts(), ["--slow"] * slow
    status = pytest.main(["-q", "-rf", *options, *(str(FOLDER / f"test_{name}.py") for name in MODULES)],
                         plugins=[counts])
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.outcomes.items()))
    told = [f"Tests of these files: {outcomes}."]
    told += [f"Skipped ({count}): {reason}." for reason, count in sorted(counts.skipped.items())]
    tables = [table(counts.faults, "fault", "injected", "survived"), "\n".join(told),
              table(counts.inputs, "input", "tried", "right results", "one clear line")]
    made = f"`{' '.join(['python -m tests.trust', *options])}` on {datetime.date.today()}:"
    counted = "\n\n".join([made, *tables])
    print(counted)
    head, mark, rest = (FOLDER / "README.md").read_text().partition("<!-- counts -->\n")
    _, end, rest = rest.partition("<!-- /counts -->")
    (FOLDER / "README.md").write_text(f"{head}{mark}{counted}\n{end}{rest}")
    return int(status)


if __name__ == "__main__":
    sys.exit(main("--slow" in sys.argv[1:]))
