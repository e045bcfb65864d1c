"""Runs: one training or one evaluation of a study, keyed by what determines it, never done twice, ended by a row."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path

from dulvos import devices, results, synthetic
from dulvos.datasets import Dataset, load_davis
from dulvos.errors import InputError
from dulvos.evaluation import BASELINES, evaluate, object_table
from dulvos.inference import SegmentSettings
from dulvos.metrics import summarise
from dulvos.official import write_davis_csv
from dulvos.released import locate
from dulvos.training import TrainSettings, train
from dulvos.videos import fingerprint

__all__ = ["dataset_fingerprint", "evaluation_run", "open_data", "trained_encoder", "training_run"]

CUTOUTS = results.ROOT / "data" / "cutouts"


def open_data(data: str, split: str) -> Dataset:
    """A split of a data set.

    Arguments:
        data: "cutouts" (the embedded benchmark, rendered on first use), "davis" (the folder that the environment variable
            DULVOS_DAVIS names), or a folder in DAVIS's layout.
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
                             "Annotations and ImageSets (or: bash run_all.sh davis --davis DIR)")
        return load_davis(folder, split)
    if not Path(data).is_dir():
        raise InputError(f"data={data!r}: neither 'cutouts' nor 'davis' nor a folder in DAVIS's layout")
    return load_davis(data, split)


def training_run(study: str, name: str, data: str, settings: TrainSettings, *, device: str | None = None) -> dict:
    """Train on the train split's frames, without their masks, and write the row; a finished run is returned as it is.

    Files go to `results/<study>/runs/<name>-<key>`, the losses to `results/<study>/history/<name>-<key>.csv`.
    """
    dataset = open_data(data, "train")
    videos = [sequence.video for sequence in dataset.sequences]
    for video in videos:
        video.verify()
    mark = fingerprint(videos)
    parameters = dataclasses.asdict(settings)
    determining = {k: v for k, v in parameters.items() if k not in ("workers", "checkpoint_minutes")}
    key = results.run_key("train", determining, mark)
    row, base = results.find_row(study, "train", key), results.study_folder(study)
    if row and (base / row["encoder"]).exists():
        print(f"{name} ({key}) is trained already: {row['iterations']} iterations in {row['seconds'] / 60:.1f} min")
        return row
    folder = base / "runs" / f"{name}-{key}"
    outcome = train(settings, videos, folder, device=device, data=mark)
    history = base / "history" / f"{name}-{key}.csv"
    history.parent.mkdir(exist_ok=True)
    history.write_bytes((folder / "history.csv").read_bytes())
    row = {"kind": "train", "study": study, "name": name, "key": key, **outcome,
           "encoder": str(outcome["encoder"].relative_to(base)), "frames": sum(map(len, videos)), "split": "train",
           "parameters": parameters,
           **results.provenance("train", seed=settings.seed, data=dataset.name, fingerprint=mark)}
    results.write_row(study, row)
    return row


def trained_encoder(study: str, name: str = "trained") -> Path:
    """The encoder of the newest training run of that name.

    Raises:
        InputError: there is none.
    """
    rows = results.read_rows(study, "train")
    for row in rows[rows.name == name].sort_values(["current", "date"]).to_dict("records")[::-1]:
        path = results.study_folder(study) / row["encoder"]
        if path.exists():
            return path
    raise InputError(f"study {study!r} has no trained encoder called {name!r}; run notebooks/01_train.ipynb first, or give "
                     "'random', 'davis2016' or a .safetensors file")


def evaluation_run(study: str, name: str, data: str, features: str, settings: SegmentSettings, *, device: str | None = None,
                   seed: int = 0) -> dict:
    """Propagate and score the val split and write the row; a finished run is returned as it is.

    Masks go to `results/<study>/masks/<name>-<key>`, a row an object to `results/<study>/scores/<name>-<key>.csv`.

    Arguments:
        features: "trained" (of this study), or what `dulvos.evaluation.evaluate` takes.
        device: None takes a GPU where there is one.
    """
    device = str(devices.find_device(device))
    dataset = open_data(data, "val")
    source = str(trained_encoder(study)) if features == "trained" else locate(features)
    weights = hashlib.sha256(Path(source).read_bytes()).hexdigest()[:12] if Path(source).is_file() else source
    mark = dataset_fingerprint(dataset)
    parameters = dataclasses.asdict(settings)
    key = results.run_key("evaluate", {**parameters, "weights": weights, "seed": seed}, mark)
    row, base = results.find_row(study, "evaluate", key), results.study_folder(study)
    folder = base / "masks" / f"{name}-{key}"
    if row and all((folder / f"{sequence.name}.json").exists() for sequence in dataset.sequences):
        print(f"{name} ({key}) is evaluated already: J&F {100 * row['scores']['J&F-Mean']:.1f}")
        return row
    scores, outcome = evaluate(dataset, source, folder, settings=settings, device=device, seed=seed)
    table = object_table(dataset, scores)
    path = base / "scores" / f"{name}-{key}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False, float_format="%.6f")
    write_davis_csv(dataset, scores, folder)
    row = {"kind": "evaluate", "study": study, "name": name, "key": key, "features": features, "weights": weights,
           "trained_key": Path(source).parent.name.rpartition("-")[2] if features == "trained" else "", "split": "val",
           "scores": summarise(scores), "sequences": len(scores), "objects": len(table), **outcome,
           "seconds_per_frame": outcome["seconds"] / outcome["frames"], "parameters": parameters,
           **results.provenance("evaluate", seed=None if features in BASELINES else seed, data=dataset.name, fingerprint=mark)}
    results.write_row(study, row)
    return row


def dataset_fingerprint(dataset: Dataset) -> str:
    """Short fingerprint of the frames and the masks, by names and sizes."""
    masks = [(sequence.name, path.name, path.stat().st_size) for sequence in dataset.sequences for path in sequence.masks.values()]
    content = f"{fingerprint([sequence.video for sequence in dataset.sequences])} {masks}"
    return hashlib.sha256(content.encode()).hexdigest()[:16]
