"""The rows of the paper's Tables 1 and 2 that can be run here: what each is, what it needs, what stands in for it."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from dulvos.study import paper, results
from dulvos.released import RELEASES
from dulvos.study.collections import SOURCES
from dulvos.study.paper import table3
from dulvos.study.rows import all_rows, kind, newest, state

__all__ = ["COLLECTIONS", "ROWS", "Row", "rows_table", "study_name"]

COLLECTIONS = ("oxuva", "youtube-vos", "trackingnet", "kinetics-400")  # Table 1's; all but OxUvA are Table 2's too
DATA = {1: "DAVIS-2017", 2: "YouTube-VOS `valid`, `valid_all_frames`"}  # evaluated on
MINIATURE = "miniature (tests)"


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Fields:
        name: as given to `--rows`. table: 1 (DAVIS-2017 val) or 2 (YouTube-VOS 2018 val, scored by its server).
        features: "random", "imagenet", the name of a release, or "trained".
        collection: what they are trained on here, a key of `SOURCES`; "" where they are not trained here.
        layer: which label propagation uses.
    """

    name: str
    table: int
    features: str
    collection: str = ""
    layer: str = "res4"

    @property
    def line(self) -> tuple[str, str | None]:
        """Method and training data of the line of the paper's table that it belongs to."""
        if self.features in RELEASES:
            return RELEASES[self.features].method, RELEASES[self.features].data
        return (paper.OURS, SOURCES[self.collection].title) if self.collection else (paper.RANDOM, None)

    @property
    def what(self) -> str:
        """What it is, in words."""
        if not self.collection and self.features not in RELEASES:
            return {"random": paper.RANDOM, "imagenet": "ImageNet features (no row of the paper's)"}[self.features]
        method, data = self.line
        return f"{_method(method)}, {data}, {'trained here' if self.collection else 'released weights'}"

    @property
    def needs(self) -> str:
        """What must lie below the folder of the data, and whether a GPU is wanted."""
        release = RELEASES.get(self.features)
        return ", ".join(filter(None, [DATA[self.table], f"`weights/{release.file}`" if release else "",
                                       f"{SOURCES[self.collection].title}, a GPU" if self.collection else ""]))

    @property
    def meanwhile(self) -> str:
        """What stands in for it until it is run."""
        if self.table == 2:
            return f"local split, {MINIATURE}"
        if self.collection:
            return f"DAVIS-2016 (`results/davis`, `trained`), {MINIATURE}"
        return {"random": "DAVIS-2016 (`results/davis`, `random`)", "imagenet": "-"}.get(self.features, "key mapping (tests)")


def _rows() -> dict[str, Row]:
    rows = [Row("random", 1, "random"), Row("imagenet", 1, "imagenet")]
    rows += [Row(name, 1, name, layer=release.layer) for name, release in RELEASES.items()]
    rows += [Row(name, 1, "trained", collection=name) for name in COLLECTIONS]
    rows += [Row(f"table2-{row.name}", 2, row.features, row.collection, row.layer)
             for row in rows[2:] if "oxuva" not in row.name]
    return {row.name: row for row in rows}


ROWS = _rows()
"""By name; rows of Table 2 begin with "table2-". OxUvA is not in the paper's Table 2."""


def study_name(collection: str, *, released: bool = False, miniature: bool = False) -> str:
    """The study that a collection's rows belong to; "" for features that are not trained here."""
    parts = ["miniature" if miniature else "paper", collection, "released" if collection and released else ""]
    return "-".join(filter(None, parts))


def rows_table() -> str:
    """Every row of Tables 1, 2 and 3 in Markdown: its name for `--rows`, what it needs, its state, what stands in meanwhile."""
    lines = ["| table | row | `--rows` | needs | state | meanwhile |", "|---|---|---|---|---|---|"]
    found = all_rows(results.RESULTS)
    for number, table in ((1, paper.TABLE1), (2, paper.TABLE2)):
        pairs = list(zip(table["method"], table["data"]))
        mine = [row for pair in pairs for row in ROWS.values() if row.table == number and row.line == pair]
        lines += [_line(number, row.what, f"`{row.name}`", row.needs, _state(row, found), row.meanwhile) for row in mine]
        lines.append(_others(number, [pair for pair in pairs if pair not in [row.line for row in mine]]))
    pairs = list(zip(paper.TABLE3["method"], paper.TABLE3["data"]))
    for (method, data), cost in zip(pairs, table3(found)["state"]):
        name = next((row.name for row in ROWS.values() if row.collection and row.line == (method, data)), None)
        lines += [_line(3, f"{_method(method)}, {data}", f"`{name}`", f"{data}, a GPU", cost,
                        "-")] if name else []
    lines.append(_others(3, [pair for pair in pairs if pair[0] != paper.OURS]))
    return "\n".join(lines)


def _state(row: Row, found: pd.DataFrame) -> str:
    run = kind(found, "evaluate" if row.table == 1 else "youtube-vos")
    return state(newest(run[(run["study"] == study_name(row.collection)) & (run["name"] == row.features)]), found)


def _others(table: int, pairs: list[tuple[str, str | None]]) -> str:
    return _line(table, ", ".join(dict.fromkeys(method for method, _ in pairs)), "-", "others' code", "never run here", "-")


def _method(method: str) -> str:
    return "the paper's method" if method == paper.OURS else method


def _line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"
