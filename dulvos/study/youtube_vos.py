"""YouTube-VOS 2018 (Xu et al., arXiv:1809.03327): its splits, our local split, submissions to its server."""

import os
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from dulvos.datasets import Dataset, load_youtube_vos, read_predictions
from dulvos.errors import InputError
from dulvos.files import expand, read_json, replacing
from dulvos.masks import as_png
from dulvos.study.collections import SOURCES

__all__ = ["CLASS_COLUMNS", "LOCAL", "SPLITS", "LocalSplit", "class_scores", "local_split",
           "object_categories", "open_split", "write_submission"]

SPLITS = ("valid", "local")
LOCAL = "YouTube-VOS local split"  # scored here, not by the server, so it is in no column of the paper
CLASS_COLUMNS = ("seen J_m", "seen F_m", "unseen J_m", "unseen F_m", "mean")


def open_split(data: str, split: str) -> Dataset:
    """The videos of a split.

    Arguments:
        data: "youtube-vos" (the folder of that name in DULVOS_DATA_DIR), or a folder in its layout.
        split: "valid", which only the server can score, or "local", the validation videos of `local_split`.

    Raises:
        InputError: there is no such folder or split, or a file in it is missing or wrong.
    """
    if split not in SPLITS:
        raise InputError(f"split of YouTube-VOS must be 'valid' or 'local', not {split!r}")
    base = os.environ.get("DULVOS_DATA_DIR", "$DULVOS_DATA_DIR")
    root = expand(Path(base, data) if data == "youtube-vos" else data)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; expected YouTube-VOS 2018 with valid, valid_all_frames "
                         f"and train in it (from {SOURCES['youtube-vos'].origin})")
    if split == "valid":
        return load_youtube_vos(root, split)
    names, whole = local_split(root).val, load_youtube_vos(root, "train")
    return Dataset(LOCAL, root, split, [sequence for sequence in whole.sequences if sequence.name in names])


class LocalSplit(NamedTuple):
    """A division of the training set: unseen categories, training videos and validation videos."""

    unseen: tuple[str, ...]
    train: tuple[str, ...]
    val: tuple[str, ...]


def local_split(root: Path, *, seed: int = 0) -> LocalSplit:
    """Divide the labelled training set by `train/meta.json`, to score results without the server.

    A random 30 % of the categories are unseen: no training video has an object of these. There are 200
    validation videos, or a third of all videos if that is fewer. One half of them have unseen objects, the
    other half do not. (The official validation set has 65 seen and 26 unseen categories.)

    Raises:
        InputError: meta.json is missing or wrong, or has too few categories or videos.
    """
    videos, generator = object_categories(root), np.random.default_rng(seed)

    def draw(names: list[str], count: int) -> set[str]:
        return {*generator.permutation(names)[:count].tolist()}

    categories = sorted({category for own in videos.values() for category in own.values()})
    unseen = draw(categories, max(1, round(0.3 * len(categories))))
    holding = sorted(name for name, own in videos.items() if not unseen.isdisjoint(own.values()))
    others = sorted(videos.keys() - holding)
    half = min(200, max(2, len(videos) // 3)) // 2
    if len(unseen) == len(categories) or not holding or len(others) <= half:
        raise InputError(f"{Path(root) / 'train/meta.json'}: {len(videos)} videos of {len(categories)} "
                         "categories are too few to be divided into seen and unseen ones")
    val_unseen, val_seen = draw(holding, half), draw(others, half)
    train, val = {*others} - val_seen, val_unseen | val_seen
    return LocalSplit(*(tuple(sorted(names)) for names in (unseen, train, val)))


def object_categories(root: Path) -> dict[str, dict[int, str]]:
    """Video -> object -> category, from `train/meta.json`; raises InputError if it is missing or wrong."""
    expected = '{"videos": {name: {"objects": {id: {"category": ...}}}}}'
    return read_json(Path(root) / "train" / "meta.json", expected, lambda content: {
        name: {int(i): item["category"] for i, item in video["objects"].items()}
        for name, video in content["videos"].items()})


def class_scores(table: pd.DataFrame, root: Path) -> dict[str, float]:
    """The columns of Table 2, in [0, 1], for the validation videos of the local split.

    They are means over the objects of seen and of unseen categories, and the mean of these four.

    Arguments:
        table: a line for each object, with columns sequence, object, J mean and F mean.
        root: the folder of YouTube-VOS.
    """
    categories, unseen = object_categories(root), local_split(root).unseen
    objects = [*zip(table["sequence"], table["object"])]
    if lost := [f"{name}: {i}" for name, i in objects if i not in categories[name]]:
        raise InputError(f"{root}/train/meta.json: lacks the object {lost[0]}, which the masks show")
    new = [categories[name][i] in unseen for name, i in objects]
    means = table.groupby(new)[["J mean", "F mean"]].mean().to_numpy().ravel()
    return dict(zip(CLASS_COLUMNS, [*means, means.mean()], strict=True))


def write_submission(dataset: Dataset, folder: Path, path: Path) -> None:
    """Pack the masks `folder/<video>/<frame>.png` that `evaluate` wrote into a zip for the server.

    Raises:
        InputError: names the first mask that is missing, damaged or of another size. No zip is written.
    """
    # uncompressed, because PNGs do not shrink further; without dates, so that two zips can be compared
    with replacing(Path(path)) as stream, zipfile.ZipFile(stream, "w") as archive:
        for sequence in dataset.sequences:
            for index, ids in zip(sequence.handed_in, read_predictions(folder, sequence)):
                name = f"Annotations/{sequence.name}/{sequence.video.frame_name(index)}.png"
                archive.writestr(zipfile.ZipInfo(name), as_png(ids))
