"""Scores in the files that DAVIS-2017's own evaluation tool leaves, so that tools made for them read ours."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from dulvos.datasets import Dataset
from dulvos.files import replacing
from dulvos.metrics import SequenceScores, summarise

__all__ = ["write_davis_csv"]


def write_davis_csv(dataset: Dataset, scores: list[SequenceScores], folder: Path) -> tuple[Path, Path]:
    """Write `global_results-<split>.csv` and `per-sequence_results-<split>.csv`, beside the masks as the tool does.

    The first has a line of J&F-Mean, J-Mean, J-Recall, J-Decay, F-Mean, F-Recall, F-Decay; the second Sequence, J-Mean and
    F-Mean of each object, called `<sequence>_<number>`, its objects numbered from 1. Three decimals, in [0, 1].
    """
    rows = [(f"{sequence.name}_{number}", stats[0], stats[3]) for sequence, score in zip(dataset.sequences, scores, strict=True)
            for number, stats in enumerate(score.stats, 1)]
    tables = {"global": pd.DataFrame([summarise(scores)]),
              "per-sequence": pd.DataFrame(rows, columns=["Sequence", "J-Mean", "F-Mean"])}
    paths = []
    for name, table in tables.items():
        paths.append(Path(folder) / f"{name}_results-{dataset.split}.csv")
        with replacing(paths[-1]) as stream:
            table.to_csv(stream, index=False, float_format="%.3f")
    return paths[0], paths[1]
