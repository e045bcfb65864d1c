"""YouTube-VOS 2018 (Xu et al., arXiv:1809.03327): its splits, a local one, and submissions to its server."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from dulvos.datasets import Dataset, Sequence, load_youtube_vos
from dulvos.errors import InputError
from dulvos.files import replacing
from dulvos.study.collections import SOURCES

__all__ = [
    "CLASS_COLUMNS", "LOCAL", "SPLITS", "LocalSplit", "check_submission", "class_scores", "local_split",
    "object_categories", "open_split", "write_submission",
]  # fmt: skip

SPLITS = ("valid", "local")
LOCAL = "YouTube-VOS local split"  # its scores are not the server's, so no column of the paper shows them
CLASS_COLUMNS = ("seen J_m", "seen F_m", "unseen J_m", "unseen F_m", "mean")


def open_split(data: str, split: str) -> Dataset:
    """The videos of a split.

    Arguments:
        data: "youtube-vos" (the folder of that name in DULVOS_DATA_DIR), or a folder in its layout.
        split: "valid", which only the server can score, or "local", the validation videos of `local_split`.

    Raises:
        InputError: no such folder or split, or a file in it is missing or wrong.
    """
    if split not in SPLITS:
        raise InputError(f"split of YouTube-VOS must be 'valid' or 'local', not {split!r}")
    base = os.environ.get("DULVOS_DATA_DIR")
    if data == "youtube-vos" and not base:
        raise InputError("data='youtube-vos' needs the environment variable DULVOS_DATA_DIR, its folder")
    root = Path(base) / data if data == "youtube-vos" else Path(data)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; expected YouTube-VOS 2018 with valid, valid_all_frames "
                         f"and train in it (from {SOURCES['youtube-vos'].origin})")
    if split == "valid":
        return load_youtube_vos(root, split)
    names, whole = local_split(root).val, load_youtube_vos(root, "train")
    return Dataset(LOCAL, root, split, [sequence for sequence in whole.sequences if sequence.name in names])


@dataclass(frozen=True)
class LocalSplit:
    """A division of the training set.

    Fields:
        unseen: categories without an object in any training video.
        train, val: names of videos.
    """

    unseen: tuple[str, ...]
    train: tuple[str, ...]
    val: tuple[str, ...]


def local_split(root: Path, *, unseen: float = 0.3, videos: int = 200, seed: int = 0) -> LocalSplit:
    """Divide the labelled training set by `train/meta.json`, to score results without the server.

    A random share of the categories is unseen: videos with an object of these are not trained on. Half of the
    validation videos hold unseen objects; the others are a random choice that training leaves out. (The
    official validation set has 65 seen and 26 unseen classes.)

    Arguments:
        unseen: share of the categories, in (0, 1).
        videos: number of validation videos; at most a third of all.

    Raises:
        InputError: no meta.json, or too few categories or videos to divide.
    """
    videos_of = object_categories(root)
    ordered = sorted({category for own in videos_of.values() for category in own.values()})
    generator = np.random.default_rng(seed)
    chosen = {ordered[i] for i in generator.permutation(len(ordered))[: max(1, round(unseen * len(ordered)))]}
    holding = [name for name in sorted(videos_of) if chosen & set(videos_of[name].values())]
    others = [name for name in sorted(videos_of) if name not in holding]
    half = min(videos, max(2, len(videos_of) // 3)) // 2
    if len(chosen) == len(ordered) or not holding or len(others) <= half:
        raise InputError(f"{Path(root) / 'train/meta.json'}: {len(videos_of)} videos of {len(ordered)} "
                         "categories are too few to be divided into seen and unseen ones")
    val = [[group[i] for i in generator.permutation(len(group))[:half]] for group in (holding, others)]
    train = set(others) - set(val[1])
    return LocalSplit(*(tuple(sorted(names)) for names in (chosen, train, val[0] + val[1])))


def object_categories(root: Path) -> dict[str, dict[int, str]]:
    """Video -> object -> category, from `train/meta.json`; an InputError if it is missing or wrong."""
    file = Path(root) / "train" / "meta.json"
    try:
        videos = json.loads(file.read_text())["videos"]
        return {name: {int(i): item["category"] for i, item in video["objects"].items()}
                for name, video in videos.items()}
    except FileNotFoundError:
        raise InputError(f"{file}: no such file; it holds the videos' objects and their categories") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        expected = '{"videos": {name: {"objects": {id: {"category": ...}}}}}'
        raise InputError(f"{file}: not what it should hold; expected {expected}") from None


def class_scores(table: pd.DataFrame, root: Path) -> dict[str, float]:
    """Table 2's columns, in [0, 1], of objects in the local split's validation videos.

    They are means over the objects of seen and of unseen classes, and the mean of these four.

    Arguments:
        table: a line for each object with its sequence, object, J mean and F mean.
        root: the folder of YouTube-VOS.
    """
    categories, unseen = object_categories(root), local_split(root).unseen
    new = np.array([categories[line.sequence].get(line.object) in unseen for line in table.itertuples()])
    means = [table.loc[new == which, f"{measure} mean"].mean() for which in (False, True) for measure in "JF"]
    return dict(zip(CLASS_COLUMNS, [*means, float(np.mean(means))], strict=True))


def write_submission(dataset: Dataset, folder: Path, path: Path) -> int:
    """Pack the masks `folder/<video>/<frame>.png` into the zip that the server takes; check and count them.

    Raises:
        InputError: a mask is missing, or `check_submission` finds a fault; then no zip is left.
    """
    path = Path(path)
    with replacing(path) as stream, zipfile.ZipFile(stream, "w") as archive:  # PNGs do not shrink further
        for name, sequence in _entries(dataset).items():
            file = Path(folder) / sequence.name / Path(name).name
            if not file.is_file():
                raise InputError(f"{file}: missing; expected a mask of each frame that is handed in")
            archive.writestr(zipfile.ZipInfo(name), file.read_bytes())  # undated, so that it can be compared
    try:
        return check_submission(path, dataset)
    except InputError:
        path.unlink()
        raise


def check_submission(path: Path, dataset: Dataset) -> int:
    """Look for every reason for which the server rejects a submission, and count the masks.

    That is: a mask that is missing, additional or listed twice; other files, such as those that macOS adds; a
        mask
    that is not a palette PNG, has another size than its frame, or holds ids of no object of its video.

    Raises:
        InputError: the first fault, by name, and the number of other faults.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{path}: not a zip ({error})") from None
    with archive:
        expected = _entries(dataset)
        names = Counter(entry.filename for entry in archive.infolist() if not entry.is_dir())
        wrong = [f"{name}: listed twice" for name in sorted(names) if names[name] > 1]
        wrong += [f"{name}: not to be handed in; expected Annotations/<video>/<frame>.png of the frames in "
                  f"{dataset.split}/JPEGImages" for name in sorted(names.keys() - expected)]
        wrong += [f"{name}: missing" for name in sorted(expected.keys() - names)]
        objects = {s.name: {0, *(s.objects or ())}.union(*map(np.ravel, s.first_masks().values()))
                   for s in dataset.sequences}
        for name in sorted(expected.keys() & names):
            problem = _fault(archive, name, expected[name], objects[expected[name].name])
            wrong += [f"{name}: {problem}"] if problem else []
    if wrong:
        raise InputError(f"{path}: {wrong[0]}" + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""))
    return len(expected)


def _entries(dataset: Dataset) -> dict[str, Sequence]:
    """Names in the zip of all masks that are handed in, each with its video."""
    return {f"Annotations/{sequence.name}/{sequence.video.frame_name(index)}.png": sequence
            for sequence in dataset.sequences for index in sequence.handed_in}


def _fault(archive: zipfile.ZipFile, name: str, sequence: Sequence, objects: set[int]) -> str | None:
    try:
        with Image.open(io.BytesIO(archive.read(name))) as image:
            values, mode, kind = np.asarray(image), image.mode, image.format
    except Exception as error:
        return f"not a complete image ({type(error).__name__})"
    height, width = sequence.video.size
    if kind != "PNG" or mode != "P":
        return f"a {kind} of mode {mode}; expected a palette PNG (mode P)"
    if values.shape != (height, width):
        return f"{values.shape[1]}x{values.shape[0]} (width x height); expected {width}x{height}"
    stray = sorted(set(np.unique(values).tolist()) - objects)
    return f"holds id {stray[0]}; expected {', '.join(map(str, sorted(objects)))}" if stray else None
