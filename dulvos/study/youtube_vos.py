"""YouTube-VOS 2018 (Xu et al., arXiv:1809.03327): masks of every frame, and scores by class on a split of ours."""

from __future__ import annotations

import dataclasses
import os
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from dulvos.study import results, runs
from dulvos.checkpoints import load_encoder
from dulvos.datasets import Dataset, load_youtube_vos
from dulvos.masks import read_mask, write_mask
from dulvos.devices import find_device, peak_memory
from dulvos.errors import InputError
from dulvos.study.evaluation import read_finished
from dulvos.study import miniature
from dulvos.study.local_split import LOCAL, local_split, object_categories
from dulvos.study.collections import SOURCES
from dulvos.study.submission import handed_in, mask_file, write_submission
from dulvos.files import replacing
from dulvos.inference import SegmentSettings, colour_features, encode, segment
from dulvos.metrics import score_sequence
from dulvos.study.selection import find_selected

__all__ = ["CLASS_COLUMNS", "class_scores", "open_root", "open_split", "predict", "score", "youtube_vos_run"]

MINIATURE = results.ROOT / "data" / "miniature"
CLASS_COLUMNS = ("seen J_m", "seen F_m", "unseen J_m", "unseen F_m", "mean")


def open_root(data: str) -> Path:
    """The folder of YouTube-VOS.

    Arguments:
        data: "youtube-vos" (the folder of that name in the one that DULVOS_DATA_DIR names), "miniature" (rendered on first use,
            in its layout), or a folder in its layout.

    Raises:
        InputError: no such folder.
    """
    if data == "miniature":
        return miniature.write_youtube_vos(MINIATURE, size=(96, 128))
    base = os.environ.get("DULVOS_DATA_DIR")
    if data == "youtube-vos" and not base:
        raise InputError("data='youtube-vos' needs the environment variable DULVOS_DATA_DIR: the folder that holds youtube-vos")
    root = Path(base) / data if data == "youtube-vos" else Path(data)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; expected valid, valid_all_frames and train of YouTube-VOS 2018 in it (from "
                         f"{SOURCES['youtube-vos'].origin})")
    return root


def open_split(root: Path, split: str) -> Dataset:
    """"valid", whose masks are handed in, or "local", the validation videos of `local_split` under the name `LOCAL`.

    Raises:
        InputError: another split, or something in it is missing or wrong.
    """
    if split not in ("valid", "local"):
        raise InputError(f"split must be 'valid' or 'local', not {split!r}")
    if split == "valid":
        return load_youtube_vos(root, split)
    names, whole = local_split(root).val, load_youtube_vos(root, "train")
    return Dataset(LOCAL, whole.root, "val", [sequence for sequence in whole.sequences if sequence.name in names])


def predict(dataset: Dataset, features: str, folder: Path, *, settings: SegmentSettings = SegmentSettings(),
            device: str = "cpu", seed: int = 0) -> dict:
    """Carry the given masks through every frame of every video; what an earlier call with this folder finished is left.

    Writes `folder/Annotations/<video>/<frame>.png` for the frames that are handed in and, when a video is whole,
    `folder/<video>.json`.

    Arguments:
        dataset: as `load_youtube_vos` gives it; objects may enter at any frame.
        features: "colour", or what `load_encoder` takes.
        folder: of this run alone.
        device: for the encoder and the propagation. seed: of random features.

    Returns:
        seconds, frames (all that were carried through), saved (masks handed in), peak_memory_mb, device.

    Raises:
        InputError: a frame or an annotation is missing or wrong.
    """
    folder = Path(folder)
    source = colour_features
    if features != "colour":
        source = partial(encode, load_encoder(features, seed=seed).to(device, memory_format=torch.channels_last))
    todo = [sequence for sequence in dataset.sequences if read_finished(folder, sequence, "saved") is None]
    for sequence in todo:
        sequence.first_masks()
    with tqdm(total=sum(len(s.video) for s in todo), desc=Path(features).name, unit="frame", mininterval=5.0) as bar:
        for sequence in todo:
            started, given, saved = time.monotonic(), sequence.first_masks(), set(handed_in(sequence))
            for index, ids in enumerate(segment(sequence.video.frames(), given, source, settings)):
                if index in saved:
                    write_mask(mask_file(folder, sequence, index), ids)
                bar.update()
            results.write_json(folder / f"{sequence.name}.json", {
                "seconds": time.monotonic() - started, "frames": len(sequence.video), "saved": len(saved),
                "peak_memory_mb": peak_memory(torch.device(device))})
    finished = [read_finished(folder, sequence, "saved") for sequence in dataset.sequences]
    return {**{name: sum(item[name] for item in finished) for name in ("seconds", "frames", "saved")},
            "peak_memory_mb": max(item["peak_memory_mb"] for item in finished), "device": device}


def score(dataset: Dataset, folder: Path, unseen: tuple[str, ...]) -> pd.DataFrame:
    """J and F of every object of a dataset with all annotations, from the masks of `predict`.

    Each object counts from the frame after its first annotation; the first and the last frame of a video do not.

    Returns:
        A row an object: sequence, object, category, unseen (bool), J mean, F mean in [0, 1].

    Raises:
        InputError: a mask is missing or of another size.
    """
    videos_of, rows = object_categories(dataset.root), []
    for sequence in dataset.sequences:
        frames = handed_in(sequence)
        truth = np.stack([sequence.mask(index) for index in frames])
        masks = [read_mask(mask_file(Path(folder), sequence, index)) for index in frames]
        entry = {name: frames.index(index) for index, mask in sequence.first_masks().items()
                 for name in np.unique(mask[mask > 0]).tolist()}
        entry = {name: index for name, index in entry.items() if index < len(frames) - 2}  # later ones have no frame to score
        if not entry:
            continue
        scores = score_sequence(truth, np.stack(masks), first_frame=entry)
        for name, stats in zip(scores.ids, scores.stats, strict=True):
            category = videos_of[sequence.name].get(name, "unknown")
            rows.append((sequence.name, name, category, category in unseen, stats[0], stats[3]))
    return pd.DataFrame(rows, columns=["sequence", "object", "category", "unseen", "J mean", "F mean"])


def class_scores(table: pd.DataFrame) -> dict[str, float]:
    """Table 2's columns, in [0, 1]: means over the objects of seen and of unseen classes, and the mean of these four."""
    means = [table.loc[table["unseen"] == unseen, f"{measure} mean"].mean() for unseen in (False, True) for measure in "JF"]
    return dict(zip(CLASS_COLUMNS, [*means, float(np.mean(means))], strict=True))


def youtube_vos_run(study: str, name: str, root: Path, features: str, settings: SegmentSettings, *, split: str = "valid",
                    device: str | None = None, seed: int = 0) -> dict:
    """Carry masks through a split and write the row; a finished run is returned as it is.

    Masks go to `results/<study>/masks/<name>-<key>`. "valid" leaves `submission.zip` there, for the server alone can score it;
    "local" is scored here, a row an object in `results/<study>/scores/<name>-<key>.csv`.

    Arguments:
        root: the folder of YouTube-VOS. features: as `dulvos.study.runs.find_features` takes them, or "selected" (what
            `dulvos.study.selection` chose on DAVIS in this study, with its layer).
        split: "valid" or "local" (`local_split` at its defaults).
        device: None takes a CUDA GPU where there is one.
    """
    device, root = str(find_device(device)), Path(root)
    dataset = open_split(root, split)
    selected = ""
    if features.split(":")[0] == "selected":
        features, layer, selected = find_selected(study, features.partition(":")[2] or "trained")
        settings = dataclasses.replace(settings, layer=layer)
    source, said = runs.find_features(study, features)
    mark, parameters = runs.dataset_fingerprint(dataset), dataclasses.asdict(settings)
    determining = {**parameters, "weights": said["weights"], "seed": seed, "split": split}
    key = results.run_key("youtube-vos", determining | ({"selected": selected} if selected else {}), mark)
    row, base = results.find_row(study, "youtube-vos", key), results.study_folder(study)
    folder = base / "masks" / f"{name}-{key}"
    if row and all((folder / f"{sequence.name}.json").exists() for sequence in dataset.sequences):
        print(f"{name} ({key}) is done already: {row['saved']} masks of {row['sequences']} videos")
        return row
    outcome = predict(dataset, source, folder, settings=settings, device=device, seed=seed)
    row = {"kind": "youtube-vos", "study": study, "name": name, "key": key, **said, "selected": selected, "split": split,
           "every_frame": all(sequence.saved is not None for sequence in dataset.sequences),
           "sequences": len(dataset.sequences)}
    if split == "local":
        unseen = local_split(root).unseen
        table = score(dataset, folder, unseen)
        with replacing(base / "scores" / f"{name}-{key}.csv") as stream:
            table.to_csv(stream, index=False, float_format="%.6f")
        row |= {"scores": class_scores(table), "objects": len(table), "unseen_classes": list(unseen)}
    else:
        row |= {"submission": str((folder / "submission.zip").relative_to(base)),
                **write_submission(dataset, folder, folder / "submission.zip")}
    row |= {**outcome, "seconds_per_frame": outcome["seconds"] / outcome["frames"], "parameters": parameters,
            **results.provenance("youtube-vos", seed=seed, data=dataset.name, fingerprint=mark)}
    results.write_row(study, row)
    return results.flat(row)
