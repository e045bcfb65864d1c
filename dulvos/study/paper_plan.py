"""The rows of the paper's Tables 1 and 2 as commands: what each needs, what is missing, and its steps."""

import dataclasses
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import pandas as pd
import torch

from dulvos import devices
from dulvos.checkpoints import load_encoder
from dulvos.clips import usable_videos
from dulvos.datasets import load_davis
from dulvos.errors import InputError
from dulvos.files import expand
from dulvos.released import FOLDER, RELEASES
from dulvos.study import paper, runs, youtube_vos
from dulvos.study.collections import Collection, paper_settings
from dulvos.study.download import check_counts
from dulvos.study.plans import evaluate_step, train_step
from dulvos.study.rows import SUFFIX, Study, newest, state
from dulvos.study.runner import Workers, run_steps
from dulvos.study.steps import Step
from dulvos.study.tables import write_tables
from dulvos.training import TrainSettings, train

__all__ = ["ROWS", "Here", "PaperRow", "row_steps", "rows_table", "run_paper", "what_is_missing"]

# parameters of the evaluations that each table shows; they take about so many minutes on a GPU
TABLES = {1: {"kind": "evaluate", "data": "davis", "minutes": 4},
          2: {"kind": "youtube-vos", "data": "youtube-vos", "split": "valid", "minutes": 120}}
SNAPSHOTS = 50  # encoders that a training keeps to select from; the authors kept one an epoch
ACCEPT = "--incomplete accepts that"
PROBED = 2  # iterations of the trial that measures time and memory


@dataclass(frozen=True)
class PaperRow:
    """A row of Table 1 (DAVIS-2017 val) or Table 2 (YouTube-VOS 2018 val, scored by its server)."""

    name: str  # as given to `--rows`
    table: int
    words: str  # method and training data, for readers
    needs: str  # what must lie in the data folder, for readers
    features: str  # "random", "imagenet", the name of a release, or "trained"
    collection: str | None  # the training data, a key of `SOURCES`; None if it is not trained here
    layer: str  # the layer that label propagation compares


ROWS = {line["name"]: PaperRow(**line) for line in paper.read_csv("paper_rows.csv").to_dict("records")}


@dataclass(frozen=True)
class Here:
    """The data and the options of one call. Sets the environment variables that name the data's folders."""

    data: Path  # folder that holds davis-2017, youtube-vos, oxuva, trackingnet, kinetics-400 and weights
    device: str | None = None
    released: bool = False  # train as long as the authors' snapshots, not to the end of the schedule
    selected: bool = False  # also evaluate the checkpoint that five sequences select, as the paper did
    incomplete: bool = False  # accept data that lack videos or frames; tables keep such rows apart

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", expand(self.data).resolve())
        if not self.data.is_dir():
            raise InputError(f"{self.data}: no such folder; --data names the one that holds davis-2017, ...")
        os.environ |= {"DULVOS_DATA_DIR": str(self.data), "DULVOS_DAVIS": str(self.data / "davis-2017")}
        os.environ.setdefault(FOLDER, str(self.data / "weights"))

    def study(self, collection: str | None) -> Study:
        """The study that holds the rows of a training collection, or those of features not trained here."""
        return Study(f"paper-{collection}{'-released' * self.released}" if collection else "paper")

    def settings(self, name: str) -> TrainSettings:
        """The paper's settings for a collection, with epochs of the videos that are here."""
        videos, _ = usable_videos(open_collection(self, name).videos, TrainSettings.frames)
        workers = devices.reading_processes(devices.find_device(self.device))
        settings = paper_settings(name, len(videos), released=self.released, workers=workers)
        return dataclasses.replace(settings, snapshot_every=math.ceil(settings.iterations / SNAPSHOTS))


@cache
def open_table(here: Here, table: int) -> None:
    """Raise an InputError if a table's data are missing or incomplete.

    These are DAVIS-2017 val for Table 1, and YouTube-VOS 2018 val with all frames for Table 2.
    """
    if table == 2:
        dataset, expected = youtube_vos.open_split("youtube-vos", "valid"), paper.YOUTUBE_VOS_VALID
        if any(sequence.saved is None for sequence in dataset.sequences):
            raise InputError(f"{dataset.root}: no valid_all_frames/JPEGImages; masks are carried through "
                             "every frame")
    else:
        dataset, expected = load_davis(here.data / "davis-2017", "val", year=2017), paper.DAVIS_2017_VAL
    if not here.incomplete:
        check_counts(dataset, expected, ACCEPT)


@cache
def open_collection(here: Here, name: str) -> Collection:
    """A training collection; raises an InputError if it is missing or incomplete."""
    found = runs.open_training(name)
    if found.miscounted and not here.incomplete:
        raise InputError(f"{found.root}: {'; '.join(found.miscounted)}; {ACCEPT}")
    return found


@cache
def probe(here: Here, name: str) -> float:
    """Train for a few iterations at a row's settings, print the peak memory, return seconds an iteration."""
    settings, collection = here.settings(name), open_collection(here, name)
    short = dataclasses.replace(settings, iterations=PROBED, snapshot_every=0)
    with tempfile.TemporaryDirectory() as folder:
        outcome = train(short, collection.videos, folder, device=here.device, data=collection.fingerprint)
        seconds = pd.read_csv(Path(folder, "history.csv"))["seconds"].diff()
    torch.cuda.empty_cache()  # the notebooks' processes need the memory
    print(f"  {name}: the training takes {outcome['peak_memory_mb']:,.0f} MB of memory")
    return seconds.iloc[-1]


def what_is_missing(row: PaperRow, here: Here) -> list[str]:
    """A line for each thing that a row needs and that is missing or wrong."""
    needs = [partial(devices.find_device, here.device), partial(open_table, here, row.table)]
    if row.features in RELEASES:
        needs.append(partial(load_encoder, row.features))
    if row.collection:
        needs.append(partial(open_collection, here, row.collection))
        if here.selected:
            needs.append(partial(open_table, here, 1))
    lines = []
    for need in needs:
        try:
            need()
        except InputError as error:
            lines.append(str(error))
    return list(dict.fromkeys(lines))  # both tables may miss the same


def row_steps(row: PaperRow, here: Here) -> list[Step]:
    """The steps of a row: training, evaluation and, with `selected`, that of the selected checkpoint.

    A training is tried for a few iterations to estimate its time.
    """
    study, device, steps = here.study(row.collection), {"device": here.device or ""}, []
    if row.collection:
        settings = dataclasses.asdict(here.settings(row.collection))
        minutes = probe(here, row.collection) * settings["iterations"] / 60
        steps.append(train_step(study, "trained", row.collection, settings, minutes, **device))

    def evaluate(table: int, name: str, features: str, **parameters) -> None:
        steps.append(evaluate_step(study, "table2-" * (table == 2) + name, features=features,
                                   **TABLES[table], **parameters, **device))

    evaluate(row.table, row.features, row.features, layer=row.layer)
    if row.collection and here.selected:
        evaluate(1, f"trained{SUFFIX}", "trained", select=paper.SELECTED_ON)
        if row.table == 2:
            evaluate(2, f"trained{SUFFIX}", "selected")
    return steps


def run_paper(names: Sequence[str], here: Here, how: Workers = Workers(), *, dry: bool = False) -> int:
    """Say what is missing and how long the rows will take; run them unless `dry` or something is missing.

    Arguments:
        names: of `ROWS`; any other raises an InputError, and none means all.
        how: as `run_steps` takes it.

    Returns:
        exit status: 1 if something is missing or a step failed.
    """
    if unknown := sorted(set(names) - set(ROWS)):
        raise InputError(f"no row {unknown[0]!r}; the rows are {', '.join(ROWS)}")
    rows = [ROWS[name] for name in names or ROWS]
    missing = {row.name: what_is_missing(row, here) for row in rows}
    steps = {}  # by study and name, because rows share some
    for row in rows:
        told = f"MISSING: {'; '.join(missing[row.name])}" if missing[row.name] else "complete"
        if not any(missing.values()):
            own = row_steps(row, here)
            steps |= {(step.study.name, step.full_name): step for step in own}
            told = f"about {sum(step.minutes for step in own) / 60:.1f} h"
        print(f"  {row.name:30s} Table {row.table}  {told}")
    if dry or not steps:
        print("nothing was run" + "; --rows chooses rows" * (not steps))
        return int(not steps)
    status = run_steps(list(steps.values()), how)
    write_tables(here.study(None))
    return status


def rows_table(found: pd.DataFrame) -> str:
    """The rows of Tables 1 and 2 in Markdown: name for `--rows`, what it needs, its state in `found`."""
    lines = ["| table | row | `--rows` | needs | state |", "|---|---|---|---|---|"]
    for row in ROWS.values():
        run = paper.of_table(found, row.table)
        study = f"paper-{row.collection}" if row.collection else "paper"
        name = "table2-" * (row.table == 2) + row.features
        told = state(newest(run[(run["study"] == study) & (run["name"] == name)]), found)
        lines.append(f"| {row.table} | {row.words} | `{row.name}` | {row.needs} | {told} |")
    return "\n".join(lines)
