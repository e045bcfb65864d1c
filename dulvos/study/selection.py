"""The paper's choice of a snapshot and a layer on a few validation sequences (App. B), as an option whose rows say so.

Without it the last checkpoint and res4 count. Whoever chooses on the sequences that are scored afterwards scores too high.
"""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pandas as pd

from dulvos import devices

from dulvos.study import paper, results, runs
from dulvos.datasets import Dataset
from dulvos.errors import InputError
from dulvos.study.evaluation import evaluate
from dulvos.inference import SegmentSettings
from dulvos.metrics import summarise
from dulvos.study.rows import SUFFIX

__all__ = ["draw_sequences", "find_selected", "list_snapshots", "selection_run"]


def draw_sequences(dataset: Dataset, count: int) -> Dataset:
    """The sequences to select on: drawn at random, always the same ones of a data set; all where there are no more."""
    chosen = np.random.default_rng(0).permutation(len(dataset.sequences))[:count]
    return dataclasses.replace(dataset, sequences=[dataset.sequences[i] for i in sorted(chosen)])


def list_snapshots(study: str, features: str) -> dict[int, str]:
    """The encoders that a training kept, the last one among them: {iteration: features, as `runs.find_features` takes them}.

    Arguments:
        features: "trained" or "trained:KEY".

    Raises:
        InputError: other features, no such training, or one that kept the last encoder alone.
    """
    if features.split(":")[0] != "trained" or "@" in features:
        raise InputError(f"features={features!r}: a snapshot is selected of a training; give 'trained' or 'trained:KEY'")
    encoder = runs.trained_encoder(study, features.rpartition(":")[2])
    key = encoder.parent.name.rpartition("-")[2]
    kept = sorted(int(path.stem.rpartition("-")[2]) for path in (encoder.parent / "snapshots").glob("encoder-*.safetensors"))
    if not kept:
        raise InputError(f"{encoder.parent}: no snapshot to select; remove this folder and train with snapshot_every > 0")
    last = json.loads(encoder.with_suffix(".json").read_text())["iteration"]
    return {iteration: f"trained:{key}@{iteration}" for iteration in kept if iteration != last} | {last: f"trained:{key}"}


def selection_run(study: str, name: str, data: str, features: str, settings: SegmentSettings, *, count: int = paper.SELECTED_ON,
                  device: str | None = None) -> tuple[dict, pd.DataFrame]:
    """Score every snapshot of a training at both layers on a few sequences, and the best of them on all.

    Writes a row of kind "select" for each snapshot and layer, then one of kind "evaluate", called `<name>-selected`, whose
    field `selected` says how it came about. What is done already is not done again.

    Arguments:
        data: as `runs.open_data` takes it. features: "trained" or "trained:KEY".
        settings: of inference; the layer is chosen.
        count: sequences to select on.
        device: None takes a CUDA GPU where there is one.

    Returns:
        the row of the best; J&F in percent of what it was chosen from, a line a snapshot (its iteration), a column a layer.

    Raises:
        InputError: count below 1; what `list_snapshots` raises.
    """
    if count < 1:
        raise InputError(f"sequences to select on must be >= 1, not {count}")
    dataset = runs.open_data(data, "val")
    few, kept = draw_sequences(dataset, count), list_snapshots(study, features)
    name = name.removesuffix(SUFFIX)
    rows = [_select_row(study, f"{name}-{iteration}-{layer}", few, source, iteration,
                        dataclasses.replace(settings, layer=layer), device)
            for iteration, source in kept.items() for layer in paper.SELECTED_LAYERS]
    best = max(rows, key=lambda row: row["scores.J&F-Mean"])  # the earliest of equals
    layer = best["parameters.layer"]
    label = (f"selected on {len(few.sequences)} sequences of {dataset.name} {dataset.split} "
             f"(iteration {best['iteration']:,}, {layer})")
    scores = pd.Series({(row["iteration"], row["parameters.layer"]): 100 * row["scores.J&F-Mean"] for row in rows})
    row = runs.evaluation_run(study, f"{name}{SUFFIX}", data, best["features"],
                              dataclasses.replace(settings, layer=layer), device=device, selected=label)
    return row, scores.unstack().rename_axis("iteration").round(1)


def find_selected(study: str, name: str) -> tuple[str, str, str]:
    """The features, the layer and the words of the newest row that `selection_run` left for the newest training of a name.

    Raises:
        InputError: there is none.
    """
    rows, trained = results.read_rows(study, "evaluate"), runs.trained_encoder(study, name).parent.name.rpartition("-")[2]
    rows = rows[rows["name"] == f"{name}{SUFFIX}"].sort_values(["current", "date"])
    rows = rows[rows["trained_key"] == trained] if len(rows) else rows
    if rows.empty:
        raise InputError(f"study {study!r}: nothing was selected for {name!r}; run 02_evaluate_davis with "
                         f"select={paper.SELECTED_ON}")
    row = rows.iloc[-1]
    return row["features"], row["parameters.layer"], row["selected"]


def _select_row(study: str, name: str, dataset: Dataset, features: str, iteration: int, settings: SegmentSettings,
                device: str | None) -> dict:
    device, (source, said) = str(devices.find_device(device)), runs.find_features(study, features)
    parameters, mark = dataclasses.asdict(settings), runs.dataset_fingerprint(dataset)
    key = results.run_key("select", {**parameters, "weights": said["weights"]}, mark)
    row, folder = results.find_row(study, "select", key), results.study_folder(study) / "masks" / f"{name}-{key}"
    if row is None:
        scores, outcome = evaluate(dataset, source, folder, settings=settings, device=device)
        row = {"kind": "select", "study": study, "name": name, "key": key, **said, "iteration": iteration,
               "split": dataset.split, "scores": summarise(scores), "objects": sum(len(score.ids) for score in scores),
               "sequences": [sequence.name for sequence in dataset.sequences], **outcome, "parameters": parameters,
               **results.provenance("select", seed=None, data=dataset.name, fingerprint=mark)}
        results.write_row(study, row)
        row = results.flat(row)
    shutil.rmtree(folder, ignore_errors=True)  # a hundred candidates' masks are of no use
    return row
