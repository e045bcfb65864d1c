"""The tables in the README files: `python -m dulvos.study.readme` makes them again from the rows."""

import re
from functools import partial
from pathlib import Path

import pandas as pd

from dulvos.files import write_file
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
    scale = ablation.SCALES["davis"]
    effects = partial(ablation.effects, Study(scale.folder, results), scale)
    make = {"table1": lambda: paper.table1(all_rows(results)),
            "davis": lambda: _davis(Study("davis", results)),
            "fig3": lambda: ablation.figure_table(effects()), "claims": lambda: ablation.claims(effects()),
            "comparison": lambda: comparison_table(Study("comparison", results)),
            "benchmarks": lambda: _benchmarks(results / "benchmarks.csv")}
    return to_markdown(make[name]()).strip()


def _davis(study: Study) -> pd.DataFrame:
    """Scores of the features on DAVIS; the state only if a row is missing or of earlier code."""
    table = study_table(study.rows()).rename(columns={"method": "features"})
    shown = table["sequences"].notna() & (table["data"] == "DAVIS-2016 val")
    table = table.loc[shown, ["features", "J&F", "J mean", "F mean", "state"]]
    return table if table["state"].ne("run").any() else table.drop(columns="state")


def _benchmarks(path: Path) -> pd.DataFrame:
    table = pd.read_csv(path)
    table["what"] = table["benchmark"] + ": " + table["case"]
    for way, unit in (("ours", " " + table["unit"]), ("plain", " " + table["unit"]), ("ratio", "")):
        text = table[way].map("{:.3g}".format) + unit
        table[way] = text.where(table[way].notna(), "")  # nothing to compare with
    table["command"] = "`" + table["command"] + "`"
    return table[["what", "ours", "plain", "ratio", "runs", "command"]]


def main() -> None:
    """Make the tables in `FILES` again."""
    for name in FILES:
        write_file(ROOT / name, fill((ROOT / name).read_text()))


if __name__ == "__main__":
    main()
