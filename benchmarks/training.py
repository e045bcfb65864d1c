"""Time and peak memory of a training iteration at the paper's setting: `python -m benchmarks.training DAVIS [--precision fp32]`."""

from __future__ import annotations

import argparse
import tempfile

import pandas as pd

from dulvos.datasets import load_davis
from dulvos.training import TrainSettings, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("davis", help="folder in DAVIS's layout")
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    options = parser.parse_args()
    videos = [sequence.video for sequence in load_davis(options.davis, "train").sequences]
    with tempfile.TemporaryDirectory() as folder:
        row = train(TrainSettings(iterations=options.iterations, precision=options.precision), videos, folder)
        seconds = pd.read_csv(f"{folder}/history.csv").seconds.diff().dropna()
    print(f"B=16, T=5, 256², N=8, M=4, {options.precision} on {row['device']}: median {seconds.median():.1f} s an iteration, "
          f"peak {row['peak_memory_mb']:.0f} MB")


if __name__ == "__main__":
    main()
