"""Evaluation: features and a dataset in, palette PNGs and J&F scores out, a sequence at a time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from dulvos.checkpoints import load_encoder
from dulvos.datasets import Dataset, Sequence, read_predictions
from dulvos.masks import write_mask
from dulvos.devices import peak_memory
from dulvos.errors import InputError
from dulvos.inference import SegmentSettings, colour_features, encode, segment
from dulvos.metrics import STATS_COLUMNS, SequenceScores, score_sequence
from dulvos.study.results import write_json

__all__ = ["BASELINES", "evaluate", "object_table", "read_finished"]

BASELINES = ("copy", "colour")  # the first mask copied; raw colours as features
SCORED = ("ids", "j", "f")  # of a finished sequence, besides its cost


def evaluate(dataset: Dataset, features: str, folder: Path, *, settings: SegmentSettings = SegmentSettings(),
             device: str = "cpu", seed: int = 0) -> tuple[list[SequenceScores], dict]:
    """Propagate and score every sequence of a dataset, skipping those that an earlier call with this folder finished.

    Writes `folder/<sequence>/<frame>.png` (palette PNGs in DAVIS's layout) and, when a sequence is whole, `folder/<sequence>.json`
    with its scores and seconds.

    Arguments:
        dataset: with an annotation for every frame.
        features: "copy", "colour", or what `load_encoder` takes: "random", "davis2016", a .safetensors file.
        folder: of this run alone: another checkpoint or setting needs another.
        device: for the encoder and the propagation, such as "cpu" or "cuda".
        seed: of random features.

    Returns:
        Scores in the dataset's order; and seconds, frames, peak_memory_mb, device.

    Raises:
        InputError: wrong input, named; every video is checked before the first is propagated.
    """
    folder = Path(folder)
    predict = _predictor(features, settings, device, seed)
    todo = [sequence for sequence in dataset.sequences if read_finished(folder, sequence, *SCORED) is None]
    for sequence in todo:
        sequence.video.verify()
        if len(sequence.video) < 3 or not any(ids.any() for ids in sequence.first_masks().values()):
            raise InputError(f"{sequence.video.path}: {len(sequence.video)} frame(s); to be scored a video needs at least 3, and "
                             "an object in its first annotation")
        lacking = set(range(len(sequence.video))) - sequence.masks.keys()
        if lacking:
            sequence.mask(min(lacking))  # says which is missing
    total = sum(len(sequence.video) for sequence in todo)
    with tqdm(total=total, desc=Path(features).name, unit="frame", mininterval=5.0) as bar:
        for sequence in todo:
            bar.set_postfix_str(sequence.name, refresh=False)
            started = time.monotonic()
            for index, ids in enumerate(predict(sequence)):
                write_mask(folder / sequence.name / f"{sequence.video.frame_name(index)}.png", ids)
                bar.update()
            seconds = time.monotonic() - started
            scores = score_sequence(sequence.truth(), read_predictions(folder, sequence))
            write_json(folder / f"{sequence.name}.json", {
                "ids": scores.ids, "j": scores.j, "f": scores.f, "seconds": seconds, "frames": len(sequence.video),
                "peak_memory_mb": peak_memory(torch.device(device))})
    finished = [read_finished(folder, sequence, *SCORED) for sequence in dataset.sequences]
    scores = [SequenceScores(tuple(item["ids"]), np.array(item["j"], float), np.array(item["f"], float)) for item in finished]
    return scores, {"seconds": sum(item["seconds"] for item in finished), "frames": sum(item["frames"] for item in finished),
                    "peak_memory_mb": max(item["peak_memory_mb"] for item in finished), "device": device}


def read_finished(folder: Path, sequence: Sequence, *fields: str) -> dict | None:
    """What a finished sequence left in its JSON; None where there is none with these fields, or where a power cut left half."""
    try:
        item = json.loads((folder / f"{sequence.name}.json").read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return item if isinstance(item, dict) and item.keys() >= {"seconds", "frames", "peak_memory_mb", *fields} else None


def _predictor(features: str, settings: SegmentSettings, device: str, seed: int) -> Callable[[Sequence], Iterator[np.ndarray]]:
    """A function from a sequence to its masks, frame by frame."""
    if features == "copy":
        def copy(sequence: Sequence) -> Iterator[np.ndarray]:
            ids = sequence.mask(0)
            for _ in range(len(sequence.video)):
                yield ids
        return copy
    if features == "colour":
        source = colour_features
    else:
        encoder = load_encoder(features, seed=seed).to(device, memory_format=torch.channels_last)
        source = partial(encode, encoder)
    return lambda sequence: segment(sequence.video.frames(), sequence.first_masks(), source, settings)


def object_table(dataset: Dataset, scores: list[SequenceScores]) -> pd.DataFrame:
    """A row an object: sequence, object and `STATS_COLUMNS`, in [0, 1]."""
    rows = [(sequence.name, name, *stats) for sequence, score in zip(dataset.sequences, scores, strict=True)
            for name, stats in zip(score.ids, score.stats, strict=True)]
    return pd.DataFrame(rows, columns=["sequence", "object", *STATS_COLUMNS])
