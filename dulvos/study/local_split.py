"""A split of YouTube-VOS' labelled training set with classes that training does not see, as its server's validation set has."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dulvos.errors import InputError

__all__ = ["LOCAL", "LocalSplit", "local_split", "object_categories"]

LOCAL = "YouTube-VOS local split"  # its numbers are not the server's and stand in no column of the paper's


@dataclass(frozen=True)
class LocalSplit:
    """Two parts of the training set.

    Fields:
        unseen: categories of which no object is in a training video.
        train, val: names of videos.
    """

    unseen: tuple[str, ...]
    train: tuple[str, ...]
    val: tuple[str, ...]


def local_split(root: Path, *, unseen: float = 0.3, videos: int = 200, seed: int = 0) -> LocalSplit:
    """Divide the training set by its `train/meta.json`, so that one can score without the server.

    A random share of the categories is unseen: videos with such an object are not trained on. Half of the validation videos
    hold unseen objects, half are others taken from training at random. (The real one has 65 seen and 26 unseen classes.)

    Arguments:
        unseen: share of the categories, in (0, 1).
        videos: how many to validate on, at most a third of all.

    Raises:
        InputError: no meta.json, or too few categories or videos to divide.
    """
    videos_of, categories = object_categories(Path(root)), set()
    for own in videos_of.values():
        categories |= set(own.values())
    generator = np.random.default_rng(seed)
    ordered = sorted(categories)
    chosen = {ordered[i] for i in generator.permutation(len(ordered))[: max(1, round(unseen * len(ordered)))]}
    holding = [name for name in sorted(videos_of) if chosen & set(videos_of[name].values())]
    others = [name for name in sorted(videos_of) if name not in holding]
    half = min(videos, max(2, len(videos_of) // 3)) // 2
    if len(chosen) == len(ordered) or not holding or len(others) <= half:
        raise InputError(f"{Path(root) / 'train/meta.json'}: {len(videos_of)} videos of {len(ordered)} categories are too few "
                         "to be divided into seen and unseen ones")
    val = [[group[i] for i in generator.permutation(len(group))[:half]] for group in (holding, others)]
    return LocalSplit(tuple(sorted(chosen)), tuple(sorted(set(others) - set(val[1]))), tuple(sorted(val[0] + val[1])))


def object_categories(root: Path) -> dict[str, dict[int, str]]:
    """Video -> object -> category, from `train/meta.json`; raises InputError where it is not there or holds something else."""
    file = root / "train" / "meta.json"
    try:
        videos = json.loads(file.read_text())["videos"]
        return {name: {int(i): item["category"] for i, item in video["objects"].items()} for name, video in videos.items()}
    except FileNotFoundError:
        raise InputError(f"{file}: no such file; it holds the videos' objects and their categories") from None
    except (ValueError, LookupError, TypeError, AttributeError):
        expected = '{"videos": {name: {"objects": {id: {"category": ...}}}}}'
        raise InputError(f"{file}: not what it should hold; expected {expected}") from None
