"""The paper's choice of a snapshot and a layer on a few validation sequences (App. B), as an option."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pandas as pd

from dulvos.datasets import Dataset
from dulvos.errors import InputError
from dulvos.inference import SegmentSettings
from dulvos.study import paper
from dulvos.study.evaluation import DEFAULT, evaluation_run
from dulvos.study.rows import SUFFIX, Study
from dulvos.study.runs import open_data, trained_encoder

__all__ = ["draw_sequences", "selection_run"]


def draw_sequences(dataset: Dataset, count: int) -> Dataset:
    """A random choice of `count` sequences, always the same for a data set; all of them if it has no more."""
    chosen = np.random.default_rng(0).permutation(len(dataset.sequences))[:count]
    return dataclasses.replace(dataset, sequences=[dataset.sequences[i] for i in sorted(chosen)])


def selection_run(study: Study, name: str, data: str, features: str, settings: SegmentSettings = DEFAULT, *,
                  count: int = paper.SELECTED_ON, device: str | None = None,
                  processes: int = 1) -> tuple[dict, pd.DataFrame]:
    """The paper's choice of a checkpoint: the best snapshot and layer on a few sequences, scored on all.

    Its row says so, because choosing on sequences that are scored afterwards raises the score. Everywhere
    else the last checkpoint and res4 count. Each snapshot and layer leaves a row of kind "select", the best
    one a row of kind "evaluate" called `<name>-selected`.

    Arguments:
        features: "trained" or "trained:KEY".
        settings: of inference, but for the layer.
        count: number of sequences to select on.

    Returns:
        the row of the best; J&F in percent of what it was chosen from, by iteration and layer.

    Raises:
        InputError: count below 1, other features, no such training, or one that kept no snapshots.
    """
    if count < 1:
        raise InputError(f"number of sequences to select on must be >= 1, not {count}")
    dataset, kept = open_data(data, "val"), _snapshots(study, features)
    few, name, tried = draw_sequences(dataset, count), name.removesuffix(SUFFIX), []
    for iteration, source in kept.items():
        for layer in paper.SELECTED_LAYERS:
            row = evaluation_run(study, f"{name}-{iteration}-{layer}", few, source,
                                 dataclasses.replace(settings, layer=layer), device=device, seed=None,
                                 processes=processes, kind="select")
            tried.append((iteration, layer, source, 100 * row["scores.J&F-Mean"]))
    table = pd.DataFrame(tried, columns=["iteration", "layer", "features", "score"])
    best = table.loc[table["score"].idxmax()]  # the earliest of equals
    told = (f"selected on {len(few.sequences)} sequences of {dataset.name} {dataset.split} "
            f"(iteration {best.iteration:,}, {best.layer})")
    row = evaluation_run(study, f"{name}{SUFFIX}", dataset, best.features,
                         dataclasses.replace(settings, layer=best.layer), device=device, processes=processes,
                         selected=told)
    return row, table.pivot(index="iteration", columns="layer", values="score").round(1)


def _snapshots(study: Study, features: str) -> dict[int, str]:
    """The encoders that a training kept: {iteration: features}."""
    if features.split(":")[0] != "trained" or "@" in features:
        raise InputError(f"features={features!r}: only a training has snapshots to select; give 'trained' or "
                         "'trained:KEY'")
    encoder = trained_encoder(study, features.rpartition(":")[2])
    key = encoder.parent.name.rpartition("-")[2]
    numbers = [path.stem.rpartition("-")[2] for path in (encoder.parent / "snapshots").glob("*.safetensors")]
    if not numbers:
        raise InputError(f"{encoder.parent}: no snapshot to select; remove this folder and train with "
                         "snapshot_every > 0")
    last = json.loads(encoder.with_suffix(".json").read_bytes())["iteration"]
    return {i: f"trained:{key}@{i}" for i in sorted(map(int, numbers))} | {last: f"trained:{key}"}
