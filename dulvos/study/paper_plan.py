"""The rows of the paper's Tables 1 and 2 as commands: what each needs, what is missing here, and its steps."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from dulvos import devices
from dulvos.checkpoints import load_encoder
from dulvos.clips import usable_videos
from dulvos.datasets import Dataset, load_davis
from dulvos.errors import InputError
from dulvos.released import FOLDER, RELEASES, locate
from dulvos.study import paper, runs, youtube_vos
from dulvos.study.collections import SOURCES, Collection, paper_settings
from dulvos.study.plans import evaluate_step, train_step
from dulvos.study.rows import SUFFIX, Study, kind, newest, state
from dulvos.study.steps import Step, run_steps
from dulvos.study.tables import write_tables
from dulvos.training import TrainSettings, train

__all__ = ["ROWS", "Here", "PaperRow", "row_steps", "rows_table", "run_paper", "what_is_missing"]

COLLECTIONS = ("oxuva", "youtube-vos", "trackingnet", "kinetics-400")  # of Table 1; Table 2 has all but OxUvA
SNAPSHOTS = 50  # encoders kept of a training, to select from; the authors looked at one an epoch
PROBED = 2  # iterations that measure time and memory
MB_A_MASK, GB_AN_ENCODER, GB_A_TRAINING = 0.02, 0.045, 0.3
DAVIS_2017_VAL = {"sequences": 30, "objects": 61, "frames": 1999}


@dataclass(frozen=True)
class PaperRow:
    """A row of Table 1 (DAVIS-2017 val) or Table 2 (YouTube-VOS 2018 val, scored by its server).

    Arguments:
        name: as given to `--rows`.
        table: 1 or 2.
        features: "random", "imagenet", the name of a release, or "trained".
        collection: the training data, a key of `SOURCES`; "" if it is not trained here.
        layer: the layer that label propagation compares.
    """

    name: str
    table: int
    features: str
    collection: str = ""
    layer: str = "res4"

    @property
    def line(self) -> tuple[str, str | None]:
        """Method and training data of its line in the paper's table."""
        if self.features in RELEASES:
            return RELEASES[self.features].method, RELEASES[self.features].data
        return (paper.OURS, SOURCES[self.collection].title) if self.collection else (paper.RANDOM, None)

    @property
    def words(self) -> str:
        """What it is."""
        if not self.collection and self.features not in RELEASES:
            return {"random": paper.RANDOM, "imagenet": "ImageNet features (not in the paper)"}[self.features]
        method, data = self.line
        return f"{paper.method_name(method)}, {data}, {'trained here' if self.collection else 'released weights'}"

    @property
    def needs(self) -> str:
        """What must lie in the data folder, and whether it needs a GPU."""
        data = "DAVIS-2017" if self.table == 1 else "YouTube-VOS `valid`, `valid_all_frames`"
        release = f"`weights/{RELEASES[self.features].file}`" if self.features in RELEASES else ""
        training = f"{SOURCES[self.collection].title}, a GPU" if self.collection else ""
        return ", ".join(filter(None, [data, release, training]))


def _rows() -> dict[str, PaperRow]:
    first = [PaperRow("random", 1, "random"), PaperRow("imagenet", 1, "imagenet"),
             *(PaperRow(name, 1, name, layer=release.layer) for name, release in RELEASES.items()),
             *(PaperRow(name, 1, "trained", name) for name in COLLECTIONS)]
    second = [dataclasses.replace(row, name=f"table2-{row.name}", table=2) for row in first[2:] if "oxuva" not in row.name]
    return {row.name: row for row in [*first, *second]}


ROWS = _rows()


@dataclass(frozen=True)
class Here:
    """The data and the options of one call.

    Arguments:
        data: folder that holds davis-2017, youtube-vos, oxuva, trackingnet, kinetics-400 and weights.
        device: as `find_device` takes it.
        released: train as long as the authors' snapshots were trained, instead of the whole schedule.
        selected: besides the last checkpoint, evaluate the one chosen on five sequences, as the paper did.
        incomplete: accept data of which videos or frames are missing; tables keep such rows apart.
        training, inference: settings that differ from the paper's, for a trial: such rows fill no table.
    """

    data: Path
    device: str | None = None
    released: bool = False
    selected: bool = False
    incomplete: bool = False
    training: dict = field(default_factory=dict, hash=False)
    inference: dict = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", Path(self.data).resolve())
        if not self.data.is_dir():
            raise InputError(f"{self.data}: no such folder; --data names the folder that holds davis-2017, youtube-vos, ...")
        # the notebooks run in processes of their own
        os.environ |= {"DULVOS_DATA_DIR": str(self.data), "DULVOS_DAVIS": str(self.data / "davis-2017")}
        os.environ.setdefault(FOLDER, str(self.data / "weights"))

    def study(self, collection: str) -> Study:
        """The study of a collection's rows; "" for features that are not trained here."""
        return Study("-".join(filter(None, ["paper", collection, "released" if collection and self.released else ""])))

    def settings(self, name: str) -> TrainSettings:
        """The paper's settings for a collection, its epochs as iterations over the videos that are here."""
        videos, _ = usable_videos(open_collection(self, name).videos, self.training.get("frames", TrainSettings.frames))
        workers = devices.reading_processes(devices.find_device(self.device))
        settings = paper_settings(name, len(videos), released=self.released, workers=workers, **self.training)
        return dataclasses.replace(settings, snapshot_every=math.ceil(settings.iterations / SNAPSHOTS))


@cache
def open_table(here: Here, table: int) -> Dataset:
    """What a table is measured on: DAVIS-2017 val (1), or YouTube-VOS 2018 val with all frames (2).

    Raises:
        InputError: it is missing, or not whole.
    """
    if table == 2:
        dataset = youtube_vos.open_split("youtube-vos", "valid")
        _count(here, "YouTube-VOS 2018 val", {"sequences": paper.YOUTUBE_VOS_VALID}, {"sequences": len(dataset.sequences)})
        if any(sequence.saved is None for sequence in dataset.sequences):
            raise InputError(f"{dataset.root / 'valid_all_frames' / 'JPEGImages'}: no such folder; masks are carried "
                             "through every frame")
        return dataset
    folder = here.data / "davis-2017"
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; run 'dulvos download davis2017 --to {here.data}', or link the folder "
                         "that holds JPEGImages, Annotations and ImageSets to this name")
    dataset = load_davis(folder, "val", year=2017)
    objects = sum(len(np.setdiff1d(sequence.mask(0), 0)) for sequence in dataset.sequences)
    _count(here, "DAVIS-2017 val", DAVIS_2017_VAL,
           {"sequences": len(dataset.sequences), "objects": objects, "frames": _frames(dataset)})
    return dataset


@cache
def open_collection(here: Here, name: str) -> Collection:
    """A training collection; an InputError if it is missing or not whole."""
    found = runs.open_training(name)
    if found.miscounted and not here.incomplete:
        raise InputError(f"{found.root}: {'; '.join(found.miscounted)}; --incomplete trains on the videos that are there")
    return found


def _count(here: Here, what: str, expected: dict[str, int], found: dict[str, int]) -> None:
    wrong = [f"{found[unit]:,} {unit} instead of {count:,}" for unit, count in expected.items() if found[unit] != count]
    if wrong and not here.incomplete:
        raise InputError(f"{what}: {', '.join(wrong)}")


def _frames(dataset: Dataset) -> int:
    return sum(len(sequence.video) for sequence in dataset.sequences)


@cache
def probe(here: Here, name: str) -> dict:
    """Train for a few iterations at a row's own settings: seconds an iteration and peak memory.

    Raises:
        InputError: the device has too little memory.
    """
    settings, collection = here.settings(name), open_collection(here, name)
    device = devices.find_device(here.device)
    short = dataclasses.replace(settings, iterations=PROBED, snapshot_every=0)
    with tempfile.TemporaryDirectory() as folder:
        try:
            outcome = train(short, collection.videos, folder, device=str(device), data=collection.fingerprint)
        except torch.OutOfMemoryError:
            raise InputError(f"{device}: too little memory for B={settings.batch}, T={settings.frames} at {settings.crop}x"
                             f"{settings.crop}; the paper's runs took 12 GB (Table 3)") from None
        seconds = pd.read_csv(Path(folder) / "history.csv")["seconds"].to_numpy()
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the notebooks' processes need the memory
    return {"seconds": float(np.diff(seconds, prepend=0)[-1]), "peak_memory_mb": outcome["peak_memory_mb"]}


def what_is_missing(row: PaperRow, here: Here) -> list[str]:
    """All that a row needs and that is not here, a line each; the training is probed only if nothing else is missing."""
    needs: list[Callable[[], object]] = [lambda: devices.find_device(here.device)]
    if row.features in RELEASES:
        needs.append(lambda: load_encoder(locate(row.features)))
    if row.collection:
        needs.append(lambda: open_collection(here, row.collection))
    tables = {row.table, 1} if row.collection and here.selected else {row.table}
    needs += [lambda table=table: open_table(here, table) for table in sorted(tables)]
    missing = _refusals(needs)
    return missing if missing or not row.collection else _refusals([lambda: probe(here, row.collection)])


def _refusals(needs: Sequence[Callable[[], object]]) -> list[str]:
    lines = []
    for need in needs:
        try:
            need()
        except InputError as error:
            lines.append(str(error))
    return lines


def row_steps(row: PaperRow, here: Here) -> list[Step]:
    """The notebooks of a row, in order: training, evaluation and, with `selected`, the paper's choice."""
    study, device = here.study(row.collection), {"device": here.device or ""}
    steps, needs = [], ()
    if row.collection:
        settings = here.settings(row.collection)
        minutes = probe(here, row.collection)["seconds"] * settings.iterations / 60
        steps.append(train_step(study, "trained", row.collection, dataclasses.asdict(settings), minutes, **device))
        needs = (steps[0].full_name,)

    def evaluation(table: int, name: str, features: str, **parameters) -> Step:
        source = {"data": "davis"} if table == 1 else {"data": "youtube-vos", "split": "valid"}
        seconds = 1.2 if devices.find_device(here.device).type == "cpu" else 0.1  # a frame, about
        return evaluate_step(study, name, features=features, minutes=seconds * _frames(open_table(here, table)) / 60,
                             needs=needs, kind="evaluate" if table == 1 else "youtube-vos", **source, **parameters,
                             **here.inference, **device)

    steps.append(evaluation(row.table, row.features, row.features, layer=row.layer))
    if row.collection and here.selected:
        steps.append(evaluation(1, f"trained{SUFFIX}", "trained", select=paper.SELECTED_ON))
        if row.table == 2:
            needs += (steps[-1].full_name,)
            steps.append(evaluation(2, f"trained{SUFFIX}", "selected"))
    return steps


def run_paper(names: Sequence[str], here: Here, *, dry: bool = False, **options) -> int:
    """Say what is missing and how long the rows would take, and run them unless `dry` or something is missing.

    Arguments:
        names: of `ROWS`; none means all.
        options: of `run_steps`.

    Returns:
        exit status: 1 if something is missing or a step failed.
    """
    unknown = sorted(set(names) - set(ROWS))
    if unknown:
        raise InputError(f"no row {unknown[0]!r}; the rows are {', '.join(ROWS)}")
    rows = [ROWS[name] for name in names or ROWS]
    missing = {row.name: what_is_missing(row, here) for row in rows}
    steps: dict[tuple[str, str], Step] = {}
    print(f"data: {here.data}")
    for row in rows:
        told = f"MISSING: {'; '.join(missing[row.name])}"
        if not missing[row.name]:
            own = row_steps(row, here)
            steps |= {(step.study.name, step.full_name): step for step in own}
            told = f"about {sum(step.minutes for step in own) / 60:.1f} h"
            if row.collection:
                settings, cost = here.settings(row.collection), probe(here, row.collection)
                told += (f"; {settings.iterations:,} iterations of {cost['seconds']:.2f} s, peak memory "
                         f"{cost['peak_memory_mb']:,.0f} MB, both from {PROBED} iterations")
        print(f"  {row.name:30s} Table {row.table}  {told}")
    short = _too_little_space(steps.values(), here)
    if short:
        print(f"MISSING: {short}")
    if dry or short or any(missing.values()):
        print("nothing was run" + "; --rows chooses rows" * any(missing.values()))
        return int(bool(short) or any(missing.values()))
    status = run_steps(list(steps.values()), **options)
    write_tables(here.study(""))
    return status


def _too_little_space(steps: Sequence[Step], here: Here) -> str:
    needed = 0.0  # GB
    for step in steps:
        if step.row == "train":
            needed += GB_A_TRAINING + GB_AN_ENCODER * SNAPSHOTS
        else:
            needed += 2 * MB_A_MASK / 1024 * _frames(open_table(here, 1 if step.row == "evaluate" else 2))
    folder = next(place for place in (Study("paper").folder.absolute(), *Study("paper").folder.absolute().parents)
                  if place.is_dir())
    free = shutil.disk_usage(folder).free / 2**30
    return f"{folder}: {free:.1f} GB are free, and the rows write about {needed:.1f} GB" if needed > free else ""


def rows_table(found: pd.DataFrame) -> str:
    """The rows of Tables 1 and 2 in Markdown: the name for `--rows`, what each needs, and its state in `all_rows`."""
    lines = ["| table | row | `--rows` | needs | state |", "|---|---|---|---|---|"]
    for row in ROWS.values():
        run = kind(found, "evaluate" if row.table == 1 else "youtube-vos")
        study = "paper" + f"-{row.collection}" * (row.collection != "")
        told = state(newest(run[(run["study"] == study) & (run["name"] == row.features)]), found)
        lines.append(f"| {row.table} | {row.words} | `{row.name}` | {row.needs} | {told} |")
    return "\n".join(lines)
