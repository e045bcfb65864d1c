"""What is here for the paper's rows: data, weights, device, time; each looked at once."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from dulvos import devices

from dulvos.study import paper, results, runs
from dulvos.checkpoints import load_encoder
from dulvos.clips import usable_videos
from dulvos.datasets import Dataset, load_davis
from dulvos.errors import InputError
from dulvos.study import youtube_vos
from dulvos.released import FOLDER
from dulvos.study.collections import Collection, paper_settings
from dulvos.inference import SegmentSettings, encode, segment
from dulvos.study.paper_rows import study_name
from dulvos.trainer import train
from dulvos.training import TrainSettings

__all__ = ["MINIATURE_SEGMENT", "PROBED_FRAMES", "SNAPSHOTS", "Machine", "training_probe"]

PROBED_FRAMES = 6
SNAPSHOTS = 50  # encoders kept of a training, for `--selected`; the authors looked at one an epoch

# tries the whole path: numbers from it mean nothing, and its studies are called miniature-*
MINIATURE = {"iterations": 2, "batch": 2, "frames": 3, "crop": 64, "scale_min": 64, "scale_max": 72, "grid": 4, "cross_grid": 2}
MINIATURE_SEGMENT = {"shorter_side": 48, "context": 2}


@dataclass
class Machine:
    """What is here; what is missing raises an InputError that names it.

    Arguments:
        data: folder that holds davis-2017, youtube-vos, oxuva, trackingnet, kinetics-400, and weights (released files).
        device: as `devices.find_device` takes it.
        iterations: of the training probe.
        released: train as long as the authors' snapshots were trained, instead of the whole schedule.
        selected: besides the last checkpoint, evaluate what `dulvos.study.evaluation.selection_run` chooses as the paper did.
        incomplete: train on collections of which videos or frames are missing; tables say so.
        miniature: tiny settings, and copies of the data that are incomplete.
    """

    data: Path
    device: str | None = None
    iterations: int = 2
    released: bool = False
    selected: bool = False
    incomplete: bool = False
    miniature: bool = False
    remarks: list[str] = field(default_factory=list)
    probes: dict[str, dict] = field(default_factory=dict)
    _seen: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.data = Path(self.data).resolve()
        if not self.data.is_dir():
            raise InputError(f"{self.data}: no such folder; --data names the folder that holds davis-2017, youtube-vos, ...")
        # the notebooks run in processes of their own
        os.environ |= {"DULVOS_DATA_DIR": str(self.data), "DULVOS_DAVIS": str(self.data / "davis-2017")}
        os.environ.setdefault(FOLDER, str(self.data / "weights"))

    @cached_property
    def place(self) -> torch.device:
        """Where tensors live."""
        return devices.find_device(self.device)

    def dataset(self, table: int) -> Dataset:
        """What a table is measured on, whole: DAVIS-2017 val (1), or YouTube-VOS 2018 val with all frames (2)."""
        return self._once(f"table {table}", self._open_davis if table == 1 else self._open_youtube_vos)

    def collection(self, name: str) -> Collection:
        """A training collection."""
        return self._once(name, partial(self._open_collection, name))

    def settings(self, name: str) -> TrainSettings:
        """The paper's for a collection, its epochs in iterations of the videos that are here."""
        changes = MINIATURE if self.miniature else {}
        kept, _ = usable_videos(self.collection(name).videos, changes.get("frames", TrainSettings.frames))
        workers = 0 if self.miniature else devices.reading_processes(self.place)
        settings = paper_settings(name, len(kept), released=self.released, workers=workers, **changes)
        return dataclasses.replace(settings, snapshot_every=math.ceil(settings.iterations / SNAPSHOTS))

    def probe(self, name: str) -> dict:
        """What `training_probe` measures on a collection; of the whole schedule also written to `results/paper/probes`."""
        if name not in self.probes:
            found = self._once(f"probe of {name}", lambda: training_probe(
                self.collection(name), self.settings(name), self.iterations, self.place))
            if not self.released:
                results.write_json(results.study_folder(self.study("")) / "probes" / f"{name}.json", found)
            self.probes[name] = found
        return self.probes[name]

    def seconds_a_frame(self, table: int) -> float:
        """Of inference at full size, from the first frames of a table's data; the memory of recent frames is not full yet."""
        return self._once(f"frames of table {table}", partial(self._time_frames, self.dataset(table)))

    def study(self, collection: str) -> str:
        """`dulvos.study.paper_rows.study_name`, for this machine's settings."""
        return study_name(collection, released=self.released, miniature=self.miniature)

    def _once(self, name: str, look: Callable[[], Any]) -> Any:
        if name not in self._seen:
            try:
                self._seen[name] = look()
            except InputError as error:
                self._seen[name] = error
        if isinstance(self._seen[name], InputError):
            raise self._seen[name]
        return self._seen[name]

    def _open_davis(self) -> Dataset:
        folder = self.data / "davis-2017"
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; python -m dulvos download davis2017 --to {self.data} makes it, or "
                             "a link of that name to the folder that holds JPEGImages, Annotations and ImageSets")
        dataset = load_davis(folder, "val", year=2017)
        objects = sum(len(np.setdiff1d(sequence.mask(0), 0)) for sequence in dataset.sequences)
        self._count("DAVIS-2017 val", paper.DAVIS_2017_VAL,
                    {"sequences": len(dataset.sequences), "objects": objects, "frames": _frames(dataset)})
        return dataset

    def _open_youtube_vos(self) -> Dataset:
        dataset = youtube_vos.open_split("youtube-vos", "valid")
        self._count("YouTube-VOS 2018 val", {"sequences": paper.YOUTUBE_VOS_VALID}, {"sequences": len(dataset.sequences)})
        if any(sequence.saved is None for sequence in dataset.sequences):
            folder = dataset.root / "valid_all_frames" / "JPEGImages"
            raise InputError(f"{folder}: no such folder; masks are carried through every frame")
        return dataset

    def _open_collection(self, name: str) -> Collection:
        found = runs.open_training(name)
        if found.miscounted and not (self.miniature or self.incomplete):
            raise InputError(f"{found.root}: {'; '.join(found.miscounted)}; --incomplete trains on what is there")
        self.remarks += found.notes
        if not all(video.files for video in found.videos):
            self.remarks.append(f"{name}: a video file that does not decode ends a training; python -m dulvos index {name} "
                                f"--data {self.data} --decode, once (hours for Kinetics-400), leaves such files out")
        return found

    def _count(self, what: str, expected: dict[str, int], found: dict[str, int]) -> None:
        wrong = [f"{found[unit]:,} {unit}, expected {count:,}" for unit, count in expected.items() if found[unit] != count]
        if wrong and not self.miniature:
            raise InputError(f"{what}: {'; '.join(wrong)}")
        self.remarks += [f"{what}: {line}" for line in wrong]

    def _time_frames(self, dataset: Dataset) -> float:
        sequence = dataset.sequences[0]
        settings = SegmentSettings(**MINIATURE_SEGMENT if self.miniature else {})
        source = partial(encode, load_encoder("random").to(self.place), batch=1)
        first = next(iter(sequence.first_masks().values()))
        masks = segment(itertools.islice(sequence.video.frames(), PROBED_FRAMES), first, source, settings)
        next(masks)
        started = time.monotonic()
        return (len(list(masks)) and (time.monotonic() - started)) / max(1, min(PROBED_FRAMES, len(sequence.video)) - 1)


def training_probe(collection: Collection, settings: TrainSettings, iterations: int, device: torch.device) -> dict:
    """Train for a few iterations at a row's own settings: seconds each (but the first), peak memory; the rest is an estimate.

    Raises:
        InputError: the device has not the memory.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    short = dataclasses.replace(settings, iterations=iterations, snapshot_every=0)
    with tempfile.TemporaryDirectory() as folder:
        try:
            outcome = train(short, collection.videos, folder, device=str(device), data=collection.fingerprint)
        except torch.OutOfMemoryError:
            room = torch.cuda.get_device_properties(device).total_memory / 2**30
            raise InputError(f"{device}: its {room:.0f} GB do not hold a batch of B={settings.batch}, T={settings.frames} at "
                             f"{settings.crop}x{settings.crop}; the paper's runs took 12 GB (Table 3)") from None
        seconds = pd.read_csv(Path(folder) / "history.csv")["seconds"].to_numpy()
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the notebooks' processes need the memory
    each = float(np.diff(seconds).mean()) if len(seconds) > 1 else float(seconds[0])
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"data": collection.name, "probed": iterations, "seconds_per_iteration": each, "iterations": settings.iterations,
            "seconds": each * settings.iterations, "peak_memory_mb": outcome["peak_memory_mb"], "device": name,
            "parameters": dataclasses.asdict(settings),
            **results.provenance("train", seed=settings.seed, data=collection.name, fingerprint=collection.fingerprint)}


def _frames(dataset: Dataset) -> int:
    return sum(len(sequence.video) for sequence in dataset.sequences)
