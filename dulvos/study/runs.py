"""Runs: one training or one evaluation of a study, keyed by what determines it, never done twice, ended by a row."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path

from dulvos.study import results, cutouts as synthetic
from dulvos.checkpoints import is_whole
from dulvos.datasets import Dataset, load_davis
from dulvos.errors import InputError
from dulvos.study.collections import SOURCES, Collection, open_collection
from dulvos.study.youtube_vos import LOCAL, local_split
from dulvos.files import replacing
from dulvos.trainer import train
from dulvos.training import NO_NUMBERS, TrainSettings
from dulvos.videos import fingerprint

__all__ = ["dataset_fingerprint", "evaluation_run", "open_data", "open_training", "training_run"]

CUTOUTS = results.ROOT / "data" / "cutouts"
INDEXES = results.ROOT / "data" / "indexes"
LOCAL_TRAINING = "youtube-vos-local"


def open_data(data: str, split: str) -> Dataset:
    """A split of a data set.

    Arguments:
        data: "cutouts" (the embedded benchmark, rendered on first use), "davis" (the folder that the environment variable
            DULVOS_DAVIS names), or a folder in DAVIS's layout. For training alone: a key of `dulvos.study.collections.SOURCES`, such as
            "youtube-vos" (the folder of that name in the one that DULVOS_DATA_DIR names), "youtube-vos-local" (its videos
            without the classes and videos that `dulvos.study.youtube_vos.local_split` keeps back), or any folder of videos.
        split: "train" or "val".

    Raises:
        InputError: no such data set, or something in it is missing or wrong.
    """
    if data == "cutouts":
        return load_davis(synthetic.render(CUTOUTS), split)
    if data == "davis":
        folder = os.environ.get("DULVOS_DAVIS")
        if not folder:
            raise InputError("data='davis' needs the environment variable DULVOS_DAVIS: the folder that holds JPEGImages, "
                             "Annotations and ImageSets (export DULVOS_DAVIS=DIR; the commands study and grid take --davis DIR)")
        return load_davis(folder, split)
    collected = data in (*SOURCES, LOCAL_TRAINING)
    if collected and split != "train":
        raise InputError(f"data={data!r} is for training; evaluate on 'davis' or a folder in DAVIS's layout")
    if collected or split == "train" and Path(data).is_dir() and not (Path(data) / "ImageSets").is_dir():
        return open_training(data)
    if not Path(data).is_dir():
        raise InputError(f"data={data!r}: neither 'cutouts' nor 'davis' nor a folder in DAVIS's layout; for training also one "
                         f"of {', '.join(SOURCES)}, or a folder of videos")
    return load_davis(data, split)


def open_training(data: str, *, decode: bool = False) -> Collection:
    """A training collection, or any folder of videos, by its index; what `open_data` gives for these.

    Arguments:
        data: a key of `dulvos.study.collections.SOURCES`, "youtube-vos-local", or a folder.
        decode: count the frames of video files by decoding them, see `dulvos.study.indexing.index_videos`.

    Raises:
        InputError: DULVOS_DATA_DIR is not set, or the videos are not there.
    """
    if data == LOCAL_TRAINING:
        whole = open_training("youtube-vos", decode=decode)
        names = set(local_split(whole.root).train)
        sequences = [sequence for sequence in whole.sequences if Path(sequence.name).name in names]
        mark = hashlib.sha256(repr((whole.fingerprint, sorted(names))).encode()).hexdigest()[:16]
        return dataclasses.replace(whole, name=LOCAL, sequences=sequences, fingerprint=mark)
    if data not in SOURCES:
        return open_collection("", data, INDEXES, decode=decode)
    base, source = os.environ.get("DULVOS_DATA_DIR"), SOURCES[data]
    if not base:
        raise InputError(f"data={data!r} needs the environment variable DULVOS_DATA_DIR: the folder that holds "
                         f"{data}/{source.layout} (from {source.origin})")
    return open_collection(data, Path(base) / data, INDEXES, decode=decode)


def training_run(study: str, name: str, data: str, settings: TrainSettings, *, device: str | None = None) -> dict:
    """Train on the train split's frames, without their masks, and write the row; a finished run is returned as it is.

    Files go to `results/<study>/runs/<name>-<key>`, the losses to `results/<study>/history/<name>-<key>.csv`.
    """
    results.plain_name("name", name)
    results.study_folder(study)  # refused now, not after hours
    dataset = open_data(data, "train")
    videos = [sequence.video for sequence in dataset.sequences]
    notes = dataset.notes if isinstance(dataset, Collection) else []
    for line in notes:
        print(line)
    if isinstance(dataset, Collection):  # too many frames to look at each before training
        mark = dataset.fingerprint
    else:
        for video in videos:
            video.verify()
        mark = fingerprint(videos)
    parameters = dataclasses.asdict(settings)
    processes, rank = (int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", 1), ("RANK", 0)))  # of torchrun
    determining = {k: v for k, v in parameters.items() if k not in NO_NUMBERS} | ({"processes": processes} if processes > 1 else {})
    key = results.run_key("train", determining, mark)
    row, base = results.find_row(study, "train", key), results.study_folder(study)
    if row and row["name"] != name:
        raise InputError(f"name={name!r}: study {study!r} has this very training as {row['name']!r} ({key}); take that name, or change "
                         "a setting, such as seed")
    if row and is_whole(base / row["encoder"]):
        print(f"{name} ({key}) is trained already: {row['iterations']} iterations in {row['seconds'] / 60:.1f} min")
        return row
    folder = base / "runs" / f"{name}-{key}"
    outcome = train(settings, videos, folder, device=device, data=mark)
    if rank == 0:
        with replacing(base / "history" / f"{name}-{key}.csv") as stream:
            stream.write((folder / "history.csv").read_bytes())
    row = {"kind": "train", "study": study, "name": name, "key": key, **outcome,
           "encoder": str(outcome["encoder"].relative_to(base)), "frames": sum(map(len, videos)), "split": "train",
           "parameters": parameters, "notes": notes,
           "miscounted": dataset.miscounted if isinstance(dataset, Collection) else [],
           **results.provenance("train", seed=settings.seed, data=dataset.name, fingerprint=mark)}
    if rank == 0:
        results.write_row(study, row)
    return results.flat(row)


def evaluation_run(study: str, *arguments: object, **named: object) -> dict:
    """Deprecated: use `dulvos.study.evaluation.evaluation_run`, which takes a Study."""
    from dulvos.study import evaluation
    from dulvos.study.rows import Study

    return evaluation.evaluation_run(Study(study, results.RESULTS), *arguments, **named)


def trained_encoder(study: str, name: str = "trained") -> Path:
    """Deprecated: use `dulvos.study.evaluation.trained_encoder`, which takes a Study."""
    from dulvos.study import evaluation
    from dulvos.study.rows import Study

    return evaluation.trained_encoder(Study(study, results.RESULTS), name)


def dataset_fingerprint(dataset: Dataset) -> str:
    """Short fingerprint of the frames, by names and sizes, and of the masks, by their bytes; of a collection, that of its index."""
    if isinstance(dataset, Collection):
        return dataset.fingerprint
    masks = [(sequence.name, path.name, hashlib.sha256(path.read_bytes()).hexdigest())
             for sequence in dataset.sequences for path in sequence.masks.values()]
    content = f"{fingerprint([sequence.video for sequence in dataset.sequences])} {masks}"
    return hashlib.sha256(content.encode()).hexdigest()[:16]
