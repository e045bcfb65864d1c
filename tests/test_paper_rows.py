"""The list of the paper's rows: every row of its tables, in the README as the command prints it, with the rows' states."""

from __future__ import annotations

from dulvos.study import paper, results
from dulvos.__main__ import main
from dulvos.study import collections as sources
from dulvos.study.paper_rows import ROWS, rows_table, study_name


def test_the_rows_are_those_of_the_tables():
    assert len([row for row in ROWS.values() if row.table == 1]) == 11 and len(ROWS) == 18
    assert {row.collection for row in ROWS.values()} - {""} < set(sources.SOURCES)
    assert ROWS["crw"].layer == "res3" and ROWS["trackingnet"].layer == "res4"
    assert "table2-oxuva" not in ROWS and "table2-araslanov-oxuva" not in ROWS


def test_the_readme_lists_every_row_as_the_command_does(capsys, monkeypatch):
    """`python -m dulvos paper` prints the README's table: what each row needs, and its state by the rows in results/."""
    monkeypatch.setattr(results, "RESULTS", results.ROOT / "results")
    assert main(["paper"]) == 0
    printed = capsys.readouterr().out
    assert printed in (results.ROOT / "README.md").read_text(), f"put this table into README.md:\n{printed}"
    for name in ROWS:
        assert printed.count(f"| `{name}` |") == 1 + (name in ("youtube-vos", "trackingnet", "kinetics-400"))
    for table, number in ((paper.TABLE1, 1), (paper.TABLE2, 2), (paper.TABLE3, 3)):
        lines = [line for line in printed.splitlines() if line.startswith(f"| {number} |")]
        methods = {method.replace(paper.OURS, "the paper's method") for method in table["method"]}
        assert all(any(method in line for line in lines) for method in methods)


def test_what_was_run_is_listed_as_run(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    results.write_row("paper", {"kind": "evaluate", "name": "crw", "key": "k", "study": "paper", "date": "2026",
                                "features": "crw", "scores": {"J&F-Mean": 0.5},
                                "version": results.VERSIONS["evaluate"]})
    states = {line.split(" | ")[2]: line.split(" | ")[4] for line in rows_table().splitlines()[2:]}
    assert states["`crw`"] == "run" and set(states.values()) == {"run", "not run", "never run here"}


def test_studies_of_other_lengths_and_sizes_have_other_names():
    names = {study_name(name, released=released, miniature=miniature)
             for name in ("", "oxuva") for released in (False, True) for miniature in (False, True)}
    assert names == {"paper", "miniature", "paper-oxuva", "miniature-oxuva", "paper-oxuva-released", "miniature-oxuva-released"}
