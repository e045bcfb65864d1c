"""Every row of the paper's Tables 1 and 2 that can be run: what it needs, how long it will take, and its steps."""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pandas as pd
import papermill
import torch
import torchvision

from dulvos import devices, paper, results, runs, tables, youtube_vos
from dulvos.checkpoints import load_encoder
from dulvos.clips import usable_videos
from dulvos.datasets import Dataset, load_davis
from dulvos.errors import InputError
from dulvos.inference import SegmentSettings, encode, segment
from dulvos.released import FOLDER, RELEASES, locate
from dulvos.sources import Collection, paper_settings
from dulvos.study import NOTEBOOKS, Step, run_study
from dulvos.trainer import train
from dulvos.training import TrainSettings

__all__ = ["ROWS", "Machine", "Row", "prepare", "row_steps", "run_paper", "training_probe"]

COLLECTIONS = ("oxuva", "youtube-vos", "trackingnet", "kinetics-400")  # Table 1's; all but OxUvA are Table 2's too
PROBED_FRAMES = 6
IMAGENET = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
MB_A_MASK, GB_A_TRAINING = 0.02, 0.3

# tries the whole path: numbers from it mean nothing, and its studies are called miniature-*
MINIATURE = {"iterations": 2, "batch": 2, "frames": 3, "crop": 64, "scale_min": 64, "scale_max": 72, "grid": 4, "cross_grid": 2}
MINIATURE_SEGMENT = {"shorter_side": 48, "context": 2}


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


def _rows() -> dict[str, Row]:
    rows = [Row("random", 1, "random"), Row("imagenet", 1, "imagenet")]
    rows += [Row(name, 1, name, layer=release.layer) for name, release in RELEASES.items()]
    rows += [Row(name, 1, "trained", collection=name) for name in COLLECTIONS]
    rows += [Row(f"table2-{row.name}", 2, row.features, row.collection, row.layer)
             for row in rows[2:] if "oxuva" not in row.name]
    return {row.name: row for row in rows}


ROWS = _rows()
"""By name; rows of Table 2 begin with "table2-". OxUvA is not in the paper's Table 2."""


@dataclass
class Machine:
    """What is here: data, weights, device; each is looked at once.

    Arguments:
        data: folder that holds davis-2017, youtube-vos, oxuva, trackingnet, kinetics-400, and weights (released files).
        device: as `devices.find_device` takes it.
        iterations: of the training probe.
        released: train as long as the authors' snapshots were trained, instead of the whole schedule.
        miniature: tiny settings, and copies of the data that are incomplete.
    """

    data: Path
    device: str | None = None
    iterations: int = 2
    released: bool = False
    miniature: bool = False
    remarks: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.data = Path(self.data).resolve()
        if not self.data.is_dir():
            raise InputError(f"{self.data}: no such folder; --data names the folder that holds davis-2017, youtube-vos, ...")
        # the notebooks run in processes of their own
        os.environ |= {"DULVOS_DATA_DIR": str(self.data), "DULVOS_DAVIS": str(self.data / "davis-2017")}
        os.environ.setdefault(FOLDER, str(self.data / "weights"))
        self.place = devices.find_device(self.device)
        self._collections: dict[str, Collection] = {}
        self._probes: dict[str, dict] = {}

    @cached_property
    def davis(self) -> Dataset:
        """DAVIS-2017 val, whole."""
        folder = self.data / "davis-2017"
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; python -m dulvos download davis2017 --to {self.data} makes it")
        dataset = load_davis(folder, "val", year=2017)
        objects = sum(len(np.setdiff1d(sequence.mask(0), 0)) for sequence in dataset.sequences)
        frames = sum(len(sequence.video) for sequence in dataset.sequences)
        self._count("DAVIS-2017 val", paper.DAVIS_2017_VAL,
                    {"sequences": len(dataset.sequences), "objects": objects, "frames": frames})
        return dataset

    @cached_property
    def youtube_vos(self) -> Dataset:
        """YouTube-VOS 2018 val with all frames."""
        dataset = youtube_vos.open_split(youtube_vos.open_root("youtube-vos"), "valid")
        self._count("YouTube-VOS 2018 val", {"sequences": paper.YOUTUBE_VOS_VALID}, {"sequences": len(dataset.sequences)})
        if any(sequence.saved is None for sequence in dataset.sequences):
            folder = dataset.root / "valid_all_frames" / "JPEGImages"
            raise InputError(f"{folder}: no such folder; masks are carried through every frame")
        return dataset

    def collection(self, name: str) -> Collection:
        """A training collection; one with another number of videos or frames is an error."""
        if name not in self._collections:
            found = runs.open_training(name)
            if found.miscounted and not self.miniature:
                raise InputError(f"{found.root}: {'; '.join(found.miscounted)}")
            self.remarks += found.notes
            self._collections[name] = found
        return self._collections[name]

    def settings(self, name: str) -> TrainSettings:
        """The paper's for a collection, its epochs in iterations of the videos that are here."""
        changes = MINIATURE if self.miniature else {}
        kept, _ = usable_videos(self.collection(name).videos, changes.get("frames", TrainSettings.frames))
        workers = 0 if self.place.type == "cpu" or self.miniature else min(8, max(1, (os.cpu_count() or 2) - 1))
        return paper_settings(name, len(kept), released=self.released, workers=workers, **changes)

    def probe(self, name: str) -> dict:
        """What `training_probe` measures on a collection, written to `results/paper/probes`."""
        if name not in self._probes:
            collection = self.collection(name)
            self._probes[name] = found = training_probe(collection, self.settings(name), self.iterations, self.place)
            results.write_json(results.study_folder(self.study("")) / "probes" / f"{name}.json", found)
        return self._probes[name]

    @cached_property
    def seconds_a_frame(self) -> float:
        """Of inference at full size, from a few frames of DAVIS; the memory of recent frames is not full yet."""
        sequence = self.davis.sequences[0]
        settings = SegmentSettings(**MINIATURE_SEGMENT if self.miniature else {})
        source = partial(encode, load_encoder("random").to(self.place), batch=1)
        masks = segment(itertools.islice(sequence.video.frames(), PROBED_FRAMES), sequence.first_masks(), source, settings)
        next(masks)
        started = time.monotonic()
        return (len(list(masks)) and (time.monotonic() - started)) / max(1, min(PROBED_FRAMES, len(sequence.video)) - 1)

    def study(self, collection: str) -> str:
        """The study that a collection's rows belong to; "" for features that are not trained here."""
        return "-".join(filter(None, ["miniature" if self.miniature else "paper", collection,
                                      "released" if collection and self.released else ""]))

    def _count(self, what: str, expected: dict[str, int], found: dict[str, int]) -> None:
        wrong = [f"{found[unit]:,} {unit}, expected {count:,}" for unit, count in expected.items() if found[unit] != count]
        if wrong and not self.miniature:
            raise InputError(f"{what}: {'; '.join(wrong)}")
        self.remarks += [f"{what}: {line}" for line in wrong]


def training_probe(collection: Collection, settings: TrainSettings, iterations: int, device: torch.device) -> dict:
    """Train for a few iterations at a row's own settings: seconds each (but the first), peak memory; the rest is an estimate.

    Raises:
        InputError: the device has not the memory.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    short = dataclasses.replace(settings, iterations=iterations)
    with tempfile.TemporaryDirectory() as folder:
        try:
            outcome = train(short, collection.videos, folder, device=str(device), data=collection.fingerprint)
        except torch.OutOfMemoryError:
            room = torch.cuda.get_device_properties(device).total_memory / 2**30
            raise InputError(f"{device}: its {room:.0f} GB do not hold a batch of B={settings.batch}, T={settings.frames} at "
                             f"{settings.crop}x{settings.crop}; share the batch among GPUs with torchrun") from None
        seconds = pd.read_csv(Path(folder) / "history.csv")["seconds"].to_numpy()
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the notebooks' processes need the memory
    each = float(np.diff(seconds).mean()) if len(seconds) > 1 else float(seconds[0])
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"data": collection.name, "probed": iterations, "seconds_per_iteration": each, "iterations": settings.iterations,
            "seconds": each * settings.iterations, "peak_memory_mb": outcome["peak_memory_mb"], "device": name,
            "parameters": dataclasses.asdict(settings),
            **results.provenance("train", seed=settings.seed, data=collection.name, fingerprint=collection.fingerprint)}


def row_steps(row: Row, machine: Machine) -> list[Step]:
    """The notebooks of a row, in order, with estimated minutes."""
    common = {"study": machine.study(row.collection), "device": machine.device or ""}
    steps: list[Step] = []
    if row.collection:
        settings, known = machine.settings(row.collection), papermill.inspect_notebook(str(NOTEBOOKS / "01_train.ipynb"))
        values = dataclasses.asdict(settings)
        unheard = [name for name, value in values.items() if name not in known and value != getattr(TrainSettings(), name)]
        if unheard:
            raise InputError(f"01_train.ipynb has no parameter {', '.join(unheard)}, which {row.collection} needs")
        parameters = {name: value for name, value in values.items() if name in known}
        steps.append(Step("01_train", "01_train", {**common, "data": row.collection, "name": "trained", **parameters},
                          machine.probe(row.collection)["seconds"] / 60, (), ("train", "trained")))
    notebook, data = ("02_evaluate_davis", "davis") if row.table == 1 else ("02_evaluate_youtube_vos", "youtube-vos")
    dataset = machine.davis if row.table == 1 else machine.youtube_vos
    parameters = {**common, "data": data, "name": row.features, "features": row.features, "layer": row.layer}
    parameters |= {"split": "valid"} if row.table == 2 else {}
    parameters |= MINIATURE_SEGMENT if machine.miniature else {}
    minutes = machine.seconds_a_frame * sum(len(sequence.video) for sequence in dataset.sequences) / 60
    kind = "evaluate" if row.table == 1 else "youtube-vos"
    steps.append(Step(notebook, f"{notebook}-{row.features}", parameters, minutes, tuple(step.name for step in steps),
                      (kind, row.features)))
    return steps


def prepare(rows: Sequence[Row], machine: Machine) -> tuple[dict[str, list[Step]], dict[str, str], list[str]]:
    """Look for all that the rows need.

    Returns:
        the steps of each row that is ready; what each other row lacks; the plan as lines of text.
    """
    ready: dict[str, list[Step]] = {}
    missing: dict[str, str] = {}
    for row in rows:
        try:
            if row.features in RELEASES:
                load_encoder(locate(row.features))
            if row.features == "imagenet" and not (Path(torch.hub.get_dir()) / "checkpoints" / IMAGENET).is_file():
                machine.remarks.append(f"imagenet: torchvision's {IMAGENET} (45 MB) will be fetched, which needs a network")
            ready[row.name] = row_steps(row, machine)
        except InputError as error:
            missing[row.name] = str(error)
    gigabytes = _gigabytes(ready, machine)
    folder = results.RESULTS if results.RESULTS.is_dir() else results.ROOT
    free = shutil.disk_usage(folder).free / 2**30
    if gigabytes > free:
        missing["space"] = f"{folder}: {free:.1f} GB are free on this disk, and the rows write about {gigabytes:.1f} GB"
    unique = {(step.parameters["study"], step.name): step.minutes for steps in ready.values() for step in steps}
    lines = [f"data: {machine.data}; device: {machine.place}"]
    lines += [f"note: {line}" for line in dict.fromkeys(machine.remarks)]
    for name, probe in machine._probes.items():
        settings = probe["parameters"]
        lines.append(f"probe: {name}: B = {settings['batch']}, T = {settings['frames']}, crop {settings['crop']}: "
                     f"{probe['seconds_per_iteration']:.2f} s an iteration, peak memory {probe['peak_memory_mb']:,.0f} MB; "
                     f"{probe['iterations']:,} iterations")
    lines.append(f"{'row':32s} {'table':5s} {'hours (estimate)':>16s}  state")
    for row in rows:
        hours = f"{sum(step.minutes for step in ready[row.name]) / 60:.2f}" if row.name in ready else "-"
        lines.append(f"{row.name:32s} {row.table:<5d} {hours:>16s}  {'ready' if row.name in ready else 'MISSING, see below'}")
    lines.append(f"together: about {sum(unique.values()) / 60:.2f} h and {gigabytes:.1f} of the {free:.0f} GB that are free, "
                 f"for {len(ready)} of {len(rows)} rows, shared trainings once: an estimate from {machine.iterations} "
                 f"iterations and {PROBED_FRAMES} frames")
    return ready, missing, lines


def run_paper(rows: Sequence[Row], machine: Machine, *, dry: bool = False) -> int:
    """Print the plan, and run it unless `dry` or something is missing, which is said and makes the exit status 1."""
    ready, missing, lines = prepare(rows, machine)
    print("\n".join(lines))
    for name, what in missing.items():
        print(f"missing for {name}: {what}")
    if missing or dry:
        print("nothing was run" + "; --rows chooses rows" * bool(missing))
        return 1 if missing else 0
    studies: dict[str, dict[str, Step]] = {}
    for steps in ready.values():
        for step in steps:
            studies.setdefault(step.parameters["study"], {}).setdefault(step.name, step)
    status = 0
    for study, steps in studies.items():
        mine = [row for row in rows if machine.study(row.collection) == study]
        read = [machine.collection(mine[0].collection)] if mine[0].collection else []
        read += [machine.davis] if any(row.table == 1 for row in mine) else []
        read += [machine.youtube_vos] if any(row.table == 2 for row in mine) else []
        status |= run_study(study, list(steps.values()), read)
    tables.write_tables(machine.study(""))
    return status


def _gigabytes(ready: dict[str, list[Step]], machine: Machine) -> float:
    tables = [ROWS[name].table for name in ready]
    masks = 0
    if 1 in tables:
        masks += tables.count(1) * sum(len(sequence.video) for sequence in machine.davis.sequences)
    if 2 in tables:  # the masks, and the zip of them
        masks += 2 * tables.count(2) * sum(len(sequence.saved) for sequence in machine.youtube_vos.sequences)
    return masks * MB_A_MASK / 1024 + GB_A_TRAINING * len({ROWS[name].collection for name in ready} - {""})
