"""`python -m tests.trust [--slow]`: injects every fault, tries every bad input, and writes the tables of tests/README.md.

Tests say what they did by pytest's `record_property`: "fault" ("<kind>: <where>"), or "faults" ([the same, how many]). What a
failed test did counts as not survived. Inputs are counted by `tests.corpus`.
"""

from __future__ import annotations

import argparse
import re
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
MODULES = ("test_files.py", "test_faults.py", "test_faults_disk.py", "test_faults_kill.py", "test_faults_power.py",
           "test_numbers.py", "test_untrusted.py", "test_soak.py")
# faults in tests of single modules, which say nothing of them
ELSEWHERE = {
    "test_trainer.py::test_a_run_that_was_killed_goes_on_to_the_bit": ("kill -9: training", 1),
    "test_trainer.py::test_a_frame_that_vanishes_ends_the_run_in_one_line": ("vanished frame: training", 1),
    "test_trainer.py::test_truncated_checkpoint": ("truncated: checkpoint.pt", 1),
    "test_trainer.py::test_a_loss_that_is_not_a_number_stops_and_keeps_the_checkpoint": ("NaN: loss", 1),
    "test_grid_work.py::test_killed_workers_and_a_killed_command_end_in_the_same_rows": ("kill -9: grid", 2),
    "test_grid_work.py::test_a_running_scheduler_is_used_and_may_be_killed": ("kill -9: grid", 1),
    "test_main.py::test_killed_in_the_middle_it_leaves_whole_masks_and_the_same_command_ends_well": ("kill -9: segment", 1),
    "test_study.py::test_two_at_once_on_one_folder_the_second_says_who_holds_it": ("two at once: study", 1),
    "test_files.py::test_the_system_says_no": ("disk full, read-only or broken: any file", 1),
    "test_download.py::test_a_damaged_archive_is_noticed": ("truncated: archive", 3),
    "test_download.py::test_no_entry_leads_out_of_the_folder": ("malicious: archive", 1),
    "test_released.py::test_no_code_is_run_and_damage_is_named": ("malicious: released weights", 2),
}


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
        known = ELSEWHERE.get(re.sub(r"\[.*", "", report.nodeid).removeprefix("tests/"))
        for kind, count in [*faults, *([known] if known else [])]:
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
    parser.add_argument("--slow", action="store_true", help="twenty kills each, the soak, more damaged files")
    parser.add_argument("--print", action="store_true", help="leave tests/README.md as it is")
    options = parser.parse_args(arguments)
    counts = Counts()
    chosen = [str(FOLDER / name) for name in MODULES if (FOLDER / name).is_file()]
    chosen += [str(FOLDER / name) for name in ELSEWHERE if name.partition("::")[0] not in MODULES]
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
