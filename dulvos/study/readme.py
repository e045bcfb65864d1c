"""The tables in the README files, made from rows: `python -m dulvos.study.readme` writes them again."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pandas as pd

from dulvos.files import replacing
from dulvos.study import ablation, paper
from dulvos.study.comparison import comparison_table
from dulvos.study.paper_plan import rows_table
from dulvos.study.rows import ROOT, Study, all_rows
from dulvos.study.tables import study_table, to_markdown

__all__ = ["FILES", "fill"]

FILES = ("README.md", "benchmarks/README.md", "dulvos/weights/README.md", "results/README.md")
BLOCK = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(text: str, results: Path = ROOT / "results") -> str:
    """Put the table NAME between each `<!-- table: NAME -->` and `<!-- end -->` of a text."""
    return BLOCK.sub(lambda found: f"{found[1]}{_table(found[2], results)}\n{found[3]}", text)


def _table(name: str, results: Path) -> str:
    if name == "rows":
        return rows_table(all_rows(results))
    if name == "davis":
        table = study_table(Study("davis", results).rows())
        methods = table[table["sequences"].notna()]
        shown = methods[["method", "J&F", "J mean", "F mean", "state"]].rename(columns={"method": "features"})
        return to_markdown(shown if shown["state"].ne("run").any() else shown.drop(columns="state")).strip()
    if name in ("fig3", "claims"):
        scale = ablation.find_scale("davis")
        found = ablation.effects(Study(scale.folder, results), scale)
        return to_markdown(ablation.figure_table(found) if name == "fig3" else ablation.claims(found)).strip()
    if name == "comparison":
        return to_markdown(comparison_table(Study("comparison", results))).strip()
    if name == "benchmarks":
        measured = pd.read_csv(results / "benchmarks.csv")
        measured["what"] = measured["benchmark"] + ": " + measured["case"]
        for way, unit in (("ours", " " + measured["unit"]), ("plain", " " + measured["unit"]), ("ratio", "")):
            text = measured[way].map("{:.3g}".format) + unit
            measured[way] = text.where(measured[way].notna(), "")  # nothing to compare with
        measured["command"] = "`" + measured["command"] + "`"
        return to_markdown(measured[["what", "ours", "plain", "ratio", "runs", "command"]]).strip()
    return to_markdown({"table1": paper.table1}[name](all_rows(results))).strip()


def main() -> int:
    """Write the tables of `FILES` again."""
    for name in FILES:
        path = ROOT / name
        text = fill(path.read_text())
        with replacing(path) as stream:
            stream.write(text.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
