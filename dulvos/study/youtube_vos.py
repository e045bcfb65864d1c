"""YouTube-VOS 2018 (Xu et al., arXiv:1809.03327): its splits, a local one, and submissions to its server."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from dulvos.datasets import Dataset, Sequence, load_youtube_vos
from dulvos.errors import InputError
from dulvos.files import expand, replacing
from dulvos.study.collections import SOURCES

__all__ = ["CLASS_COLUMNS", "LOCAL", "SPLITS", "LocalSplit", "check_submission", "class_scores",
           "local_split", "object_categories", "open_split", "write_submission"]

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
    """A division of the training set: the unseen categories, videos to train on and videos to validate on."""

    unseen: tuple[str, ...]
    train: tuple[str, ...]
    val: tuple[str, ...]


def local_split(root: Path, *, seed: int = 0) -> LocalSplit:
    """Divide the labelled training set by `train/meta.json`, to score results without the server.

    A random 30 % of the categories are unseen: videos with an object of these are not trained on. Half of the
    200 validation videos (or of a third of all, if these are fewer) hold unseen objects; the others are a
    random choice that training leaves out. (The official validation set has 65 seen and 26 unseen classes.)

    Raises:
        InputError: no meta.json, or too few categories or videos to divide.
    """
    videos_of = object_categories(root)
    ordered = sorted({category for own in videos_of.values() for category in own.values()})
    generator = np.random.default_rng(seed)
    unseen = {ordered[i] for i in generator.permutation(len(ordered))[: max(1, round(0.3 * len(ordered)))]}
    holding = [name for name in sorted(videos_of) if unseen & set(videos_of[name].values())]
    others = [name for name in sorted(videos_of) if name not in holding]
    half = min(200, max(2, len(videos_of) // 3)) // 2
    if len(unseen) == len(ordered) or not holding or len(others) <= half:
        raise InputError(f"{Path(root) / 'train/meta.json'}: {len(videos_of)} videos of {len(ordered)} "
                         "categories are too few to be divided into seen and unseen ones")
    val = [[group[i] for i in generator.permutation(len(group))[:half]] for group in (holding, others)]
    train = set(others) - set(val[1])
    return LocalSplit(*(tuple(sorted(names)) for names in (unseen, train, val[0] + val[1])))


def object_categories(root: Path) -> dict[str, dict[int, str]]:
    """Video -> object -> category, from `train/meta.json`; an InputError if it is missing or wrong."""
    file = Path(root) / "train" / "meta.json"
    try:
        videos = json.loads(file.read_bytes())["videos"]
        return {name: {int(i): item["category"] for i, item in video["objects"].items()}
                for name, video in videos.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f'{file}: {type(error).__name__}; expected '
                         '{"videos": {name: {"objects": {id: {"category": ...}}}}}') from None


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
        InputError: `check_submission` finds a fault; then no zip is left.
    """
    path = Path(path)
    # uncompressed, because PNGs do not shrink further; undated, so that two zips can be compared
    with replacing(path) as stream, zipfile.ZipFile(stream, "w") as archive:
        for sequence in dataset.sequences:
            for name in _names(sequence):
                file = Path(folder) / sequence.name / Path(name).name
                if file.is_file():
                    archive.writestr(zipfile.ZipInfo(name), file.read_bytes())
    try:
        return check_submission(path, dataset)
    except InputError:
        path.unlink()
        raise


def check_submission(path: Path, dataset: Dataset) -> int:
    """Look for every reason for which the server rejects a submission, and count the masks.

    That is: a mask that is missing, additional or listed twice; other files, such as those that macOS adds; a
    mask that is not a palette PNG, has another size than its frame, or holds ids of no object of its video.

    Raises:
        InputError: the first fault, by name, and the number of other faults.
    """
    wanted = {}
    for sequence in dataset.sequences:
        objects = {0, *(sequence.objects or ())}.union(*map(np.ravel, sequence.first_masks().values()))
        wanted |= dict.fromkeys(_names(sequence), (sequence.video.size, objects))
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{path}: not a zip ({error})") from None
    faults = []
    with archive:
        found = Counter(entry.filename for entry in archive.infolist() if not entry.is_dir())
        for name in sorted(found.keys() | wanted.keys()):
            if name not in wanted:
                fault = ("not to be handed in; expected Annotations/<video>/<frame>.png of the frames in "
                         f"{dataset.split}/JPEGImages")
            elif found[name] != 1:
                fault = "listed twice" if found[name] else "missing"
            else:
                fault = _fault(archive, name, *wanted[name])
            faults += [f"{name}: {fault}"] if fault else []
    if faults:
        raise InputError(f"{path}: {faults[0]}" + (f" (and {len(faults) - 1} more)" if faults[1:] else ""))
    return len(wanted)


def _names(sequence: Sequence) -> list[str]:
    """Names in the zip of the masks of a video."""
    stems = map(sequence.video.frame_name, sequence.handed_in)
    return [f"Annotations/{sequence.name}/{stem}.png" for stem in stems]


def _fault(archive: zipfile.ZipFile, name: str, size: tuple[int, int], objects: set[int]) -> str:
    """What is wrong with a mask; "" if nothing is."""
    try:
        with Image.open(io.BytesIO(archive.read(name))) as image:
            values, mode, kind = np.asarray(image), image.mode, image.format
    except Exception as error:
        return f"not a complete image ({type(error).__name__})"
    if (kind, mode) != ("PNG", "P"):
        return f"a {kind} of mode {mode}; expected a palette PNG (mode P)"
    if values.shape != size:
        return f"{values.shape[1]}x{values.shape[0]} (width x height); expected {size[1]}x{size[0]}"
    stray = {*np.unique(values).tolist()} - objects
    return f"holds id {min(stray)}; expected {', '.join(map(str, sorted(objects)))}" if stray else ""
