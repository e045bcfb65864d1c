"""Trainings of a study, and the data that its runs read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path

from dulvos.checkpoints import encoder_file, is_whole
from dulvos.datasets import Dataset, below, load_davis
from dulvos.errors import InputError
from dulvos.files import expand, replacing
from dulvos.study import youtube_vos
from dulvos.study.collections import SOURCES, Collection, open_collection
from dulvos.study.rows import ROOT, Study, find_training, once
from dulvos.training import NO_NUMBERS, TrainSettings, train
from dulvos.videos import fingerprint

__all__ = ["data_fingerprint", "find_features", "open_data", "open_training", "trained_encoder",
           "training_run"]

LOCAL_TRAINING = "youtube-vos-local"
CUTOUTS = Path(__file__).with_name("cutouts")


def open_data(data: str, split: str) -> Dataset:
    """A split of a data set.

    Arguments:
        data: "cutouts" (the embedded videos), "davis" (in the folder DULVOS_DAVIS), or a folder in DAVIS's
            layout. For training also what `open_training` takes.
        split: "train" or "val"; or "valid" or "local" of YouTube-VOS, as `youtube_vos.open_split` takes it.

    Raises:
        InputError: no such data set, or something in it is missing or wrong.
    """
    if split in youtube_vos.SPLITS:
        return youtube_vos.open_split(data, split)
    if data == "cutouts":
        return load_davis(CUTOUTS, split)
    if data == "davis":
        holds = "JPEGImages, Annotations and ImageSets (or give --davis DIR to a command)"
        return load_davis(_variable("DULVOS_DAVIS", data, holds), split)
    collected, folder = data in (*SOURCES, LOCAL_TRAINING), expand(data)
    in_layout = (folder / "ImageSets").is_dir() or below(folder, "ImageSets")  # then `load_davis` says where
    if split == "train" and (collected or folder.is_dir() and not in_layout):
        return open_training(data)
    if collected or not folder.is_dir():
        raise InputError(f"data={data!r}: no such data for split {split!r}; give 'cutouts', 'davis' or a "
                         f"folder in DAVIS's layout; for training also a folder of videos or one of "
                         f"{', '.join(SOURCES)}")
    return load_davis(data, split)


def open_training(data: str) -> Collection:
    """A collection of training videos, by its index.

    Arguments:
        data: a key of `dulvos.study.collections.SOURCES` (the folder of that name in DULVOS_DATA_DIR),
            "youtube-vos-local" (without the classes and videos that `local_split` keeps back), or any folder
            of videos.

    Raises:
        InputError: DULVOS_DATA_DIR is not set, or the videos are not there.
    """
    if data == LOCAL_TRAINING:
        whole = open_training("youtube-vos")
        names = set(youtube_vos.local_split(whole.root).train)
        sequences = [sequence for sequence in whole.sequences if Path(sequence.name).name in names]
        mark = hashlib.sha256(repr((whole.fingerprint, sorted(names))).encode()).hexdigest()[:16]
        return dataclasses.replace(whole, name=youtube_vos.LOCAL, sequences=sequences, fingerprint=mark)
    cache = expand(os.environ.get("DULVOS_CACHE", ROOT / "data")) / "indexes"
    if data not in SOURCES:
        return open_collection("", data, cache)
    holds = f"{data}/{SOURCES[data].layout} (from {SOURCES[data].origin})"
    return open_collection(data, Path(_variable("DULVOS_DATA_DIR", data, holds)) / data, cache)


def _variable(name: str, data: str, holds: str) -> str:
    """The folder that a variable of the environment names."""
    if not os.environ.get(name):
        raise InputError(f"data={data!r} needs the environment variable {name}: the folder that has {holds}")
    return os.environ[name]


def training_run(study: Study, name: str, data: str, settings: TrainSettings, *,
                 device: str | None = None) -> dict:
    """Train on the frames of a train split and write the row; the row of a finished run is returned as it is.

    Files go to the study's `runs/<name>-<key>`, the losses to `history/<name>-<key>.csv`. Masks are not read.

    Raises:
        InputError: bad data or settings.
    """
    dataset = open_data(data, "train")
    videos = [sequence.video for sequence in dataset.sequences]
    told = {name: getattr(dataset, name, []) for name in ("notes", "miscounted")}
    for line in told["notes"]:
        print(line)
    if not isinstance(dataset, Collection):  # a collection has too many frames to look at each
        for video in videos:
            video.verify()
    mark, rank = data_fingerprint(dataset, masks=False), int(os.environ.get("RANK", 0))  # torchrun sets RANK
    wanted = {f"parameters.{field}": value for field, value in dataclasses.asdict(settings).items()
              if field not in NO_NUMBERS}
    wanted |= {"processes": int(os.environ.get("WORLD_SIZE", 1)), "fingerprint": mark}

    def compute(row: dict) -> dict:
        folder = study.path(row, "runs")
        outcome = train(settings, videos, folder, device=device, data=mark)
        if rank == 0:
            with replacing(study.path(row, "history", ".csv")) as stream:
                stream.write((folder / "history.csv").read_bytes())
        encoder = str(outcome["encoder"].relative_to(study.folder))
        return {"parameters": dataclasses.asdict(settings), **outcome, "encoder": encoder,
                "seed": settings.seed, "data": dataset.name, "split": "train",
                "frames": sum(map(len, videos)), **told}

    return once(study, "train", name, wanted, compute, write=rank == 0,
                whole=lambda row: is_whole(study.folder / row["encoder"]))


def trained_encoder(study: Study, name: str = "trained") -> Path:
    """The encoder of the newest training of that name or of that key; "NAME@1000" is its snapshot.

    Raises:
        InputError: there is none, or its file is not on this machine: rows are committed, weights are not.
    """
    name, _, iteration = name.partition("@")
    row = find_training(study.rows(), name)
    if row is None:
        raise InputError(f"study {study.name!r} has no trained encoder called {name!r}; run 01_train first, "
                         "or give 'random', 'davis2016' or a .safetensors file")
    path = study.folder / row["encoder"]
    if iteration:
        path = path.parent / "snapshots" / f"encoder-{iteration}.safetensors"
    if not path.exists():
        raise InputError(f"{path}: not on this machine; run 01_train again (with snapshot_every > 0 for "
                         "snapshots), or give 'trained:KEY' of another training, or 'random'")
    return path


def find_features(study: Study, features: str) -> tuple[str, dict]:
    """What `evaluate` takes for some features, and what a row says about them.

    Arguments:
        features: "trained" (this study's training of that name), "trained:KEY" (its training with that key),
            "trained:KEY@1000" (a snapshot of it), or what `dulvos.study.evaluation.evaluate` takes.

    Returns:
        the source; and features, weights (12 hex digits of the file's hash, or a name), trained_key, snapshot
        (its iteration, or None) and, of this study's trainings, training_iteration, training_seconds and
        training_cpu_seconds: what the features cost.

    Raises:
        InputError: they are not there.
    """
    trained, iteration = features.split(":")[0] == "trained", features.partition("@")[2]
    path = trained_encoder(study, features.rpartition(":")[2]) if trained else encoder_file(features)
    weights = hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.is_file() else features
    if features.startswith("timm:") and path.is_file():  # one file may serve several layers
        weights = f"{features.partition('=')[0]}={weights}"
    said = {"features": features, "weights": weights, "trained_key": "", "snapshot": None}
    if trained:
        run, notes = path.parents[bool(iteration)], json.loads(path.with_suffix(".json").read_bytes())
        said |= {f"training_{name}": notes.get(name) for name in ("iteration", "seconds", "cpu_seconds")}
        said["trained_key"] = run.name.rpartition("-")[2]
        said["snapshot"] = int(iteration) if iteration else None
    return str(path) if trained else features, said


def data_fingerprint(dataset: Dataset, *, masks: bool) -> str:
    """16 hex digits for what a run reads: frames (names and sizes) and, with `masks`, their masks (bytes).

    A training collection has one of its own, from its index.
    """
    if isinstance(dataset, Collection):
        return dataset.fingerprint
    mark = fingerprint([sequence.video for sequence in dataset.sequences])
    if not masks:
        return mark
    read = [(sequence.name, path.name, hashlib.sha256(path.read_bytes()).hexdigest())
            for sequence in dataset.sequences for path in sequence.masks.values()]
    return hashlib.sha256(f"{mark} {read}".encode()).hexdigest()[:16]
