"""Trainings of a study, and the data and features that its runs read."""

import dataclasses
import hashlib
import os
from pathlib import Path

from dulvos.checkpoints import encoder_file, is_whole
from dulvos.datasets import Dataset, below, load_davis
from dulvos.errors import InputError
from dulvos.files import expand, read_json, write_file
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
        data: "cutouts" (the embedded videos), "davis" (the folder DULVOS_DAVIS), or a folder in DAVIS's
            layout; for training, also what `open_training` takes.
        split: "train" or "val"; for YouTube-VOS, "valid" or "local" (`youtube_vos.open_split`).

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
    folder = expand(data)
    if data in (*SOURCES, LOCAL_TRAINING):
        if split == "train":
            return open_training(data)
    elif folder.is_dir():
        in_layout = (folder / "ImageSets").is_dir() or below(folder, "ImageSets")  # `load_davis` says where
        return load_davis(folder, split) if in_layout or split != "train" else open_training(data)
    raise InputError(f"data={data!r}: no such data for split {split!r}; give 'cutouts', 'davis' or a folder "
                     "in DAVIS's layout; for training also a folder of videos or one of "
                     + ", ".join(SOURCES))


def open_training(data: str) -> Collection:
    """A collection of training videos, by its index.

    Arguments:
        data: a key of `dulvos.study.collections.SOURCES` (the folder of that name in DULVOS_DATA_DIR),
            "youtube-vos-local" (without the classes and videos that `local_split` holds out), or any folder
            of videos.

    Raises:
        InputError: DULVOS_DATA_DIR is not set, or no video is there.
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
    """The folder that an environment variable names; an InputError says what this folder should hold."""
    if not os.environ.get(name):
        raise InputError(f"data={data!r} needs the environment variable {name}: the folder that has {holds}")
    return os.environ[name]


def training_run(study: Study, name: str, data: str, settings: TrainSettings, *,
                 device: str | None = None) -> dict:
    """Train on a train split and write the row; the row of a finished run is returned as it is.

    Files go to the study's `runs/<name>-<key>`, the losses to `history/<name>-<key>.csv`. No mask is read.

    Arguments:
        data: as `open_data` takes it.
        device: None chooses a CUDA GPU if there is one.

    Raises:
        InputError: bad data or settings.
    """
    dataset = open_data(data, "train")
    videos = [sequence.video for sequence in dataset.sequences]
    rank, notes, miscounted = int(os.environ.get("RANK", 0)), [], []  # torchrun sets RANK
    if isinstance(dataset, Collection):  # it has too many frames to look at each
        notes, miscounted = dataset.notes, dataset.miscounted
        if rank == 0:
            print(*notes, sep="\n", end="\n" * bool(notes))
    else:
        for video in videos:
            video.verify()
    mark = data_fingerprint(dataset, masks=False)
    wanted = {f"parameters.{field}": value for field, value in dataclasses.asdict(settings).items()
              if field not in NO_NUMBERS}
    wanted |= {"processes": int(os.environ.get("WORLD_SIZE", 1)), "fingerprint": mark}

    def compute(row: dict) -> dict:
        folder = study.path(row, "runs")
        outcome = train(settings, videos, folder, device=device, data=mark)
        if rank == 0:
            write_file(study.path(row, "history", ".csv"), (folder / "history.csv").read_bytes())
        encoder = str(outcome["encoder"].relative_to(study.folder))
        return {"parameters": dataclasses.asdict(settings), **outcome, "encoder": encoder,
                "seed": settings.seed, "data": dataset.name, "split": "train",
                "frames": sum(map(len, videos)), "notes": notes, "miscounted": miscounted}

    return once(study, "train", name, wanted, compute, write=rank == 0,
                whole=lambda row: is_whole(study.folder / row["encoder"]))


def trained_encoder(study: Study, name: str = "trained") -> Path:
    """The encoder of the training of that name or key; "NAME@1000" is its snapshot after 1000 iterations.

    Raises:
        InputError: there is no such training, or its weights, which are not committed, are not here.
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
        again = ("delete the training's row and folder, and run 01_train again with snapshot_every > 0"
                 if iteration else "run 01_train again")
        raise InputError(f"{path}: not on this machine; {again}, or give 'trained:KEY' of another training, "
                         "or 'random'")
    return path


def find_features(study: Study, features: str) -> tuple[str, dict]:
    """Find the file of some features, and what a row says about them.

    Arguments:
        features: "trained" (this study's training of that name), "trained:NAME" (its training of that name or
            key), "trained:NAME@1000" (a snapshot of it), or a name that `dulvos.study.evaluation.evaluate`
            takes.

    Returns:
        the file or name that `evaluate` takes; and the row's fields features, weights (12 hex digits of the
        file's hash, or the name), trained_key and snapshot (its iteration, or None). For trained features
        also what they cost: training_iteration, training_seconds and training_cpu_seconds.

    Raises:
        InputError: they are not there.
    """
    name, _, iteration = features.partition("@")
    trained = name.partition(":")[0] == "trained"
    path = trained_encoder(study, features.rpartition(":")[2]) if trained else encoder_file(features)
    of_a_file = path.is_file() and features not in ("random", "imagenet", "copy", "colour")
    weights = hashlib.sha256(path.read_bytes()).hexdigest()[:12] if of_a_file else features
    if features.startswith("timm:") and of_a_file:  # one file may serve several layers
        weights = f"{features.partition('=')[0]}={weights}"
    said = {"features": features, "weights": weights, "trained_key": "", "snapshot": None}
    if not trained:
        return features, said
    run, notes = path.parents[bool(iteration)], read_json(path.with_suffix(".json"), "its sidecar", dict)
    said |= {f"training_{name}": notes.get(name) for name in ("iteration", "seconds", "cpu_seconds")}
    said |= {"trained_key": run.name.rpartition("-")[2], "snapshot": int(iteration) if iteration else None}
    return str(path), said


def data_fingerprint(dataset: Dataset, *, masks: bool) -> str:
    """16 hex digits of what a run reads: the frames' names and sizes and, with `masks`, the masks' bytes.

    A training collection has a fingerprint of its own, from its index.
    """
    if isinstance(dataset, Collection):
        return dataset.fingerprint
    mark = fingerprint([sequence.video for sequence in dataset.sequences])
    if not masks:
        return mark
    read = [(sequence.name, path.name, hashlib.sha256(path.read_bytes()).hexdigest())
            for sequence in dataset.sequences for path in sequence.masks.values()]
    read += [(sequence.objects, sequence.saved) for sequence in dataset.sequences if sequence.objects]
    return hashlib.sha256(f"{mark} {read}".encode()).hexdigest()[:16]
