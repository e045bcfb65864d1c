"""A 480p frame from file to file (read, encode, propagate, write), and memory against length: `python -m benchmarks.video DAVIS`.

The plain way encodes one frame at a time in float32 with all layers, propagates densely (benchmarks/propagation.py) and writes.
Memory: peak of the process that carries a mask through 100 and through 1,000 frames, of which the features are drawn anew.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.measure import peak, report
from benchmarks.propagation import CONTEXT, plain
from dulvos.checkpoints import load_encoder
from dulvos.datasets import load_davis, write_mask
from dulvos.encoder import prepare_frames
from dulvos.inference import encode, segment
from dulvos.propagation import object_ids, propagate, to_labels


def frames_from_file(davis: str, sequence: str, runs: int) -> None:
    sequence = next(s for s in load_davis(davis, "val").sequences if s.name == sequence)
    encoder, times = load_encoder("davis2016"), {"ours": [], "plain": []}
    with tempfile.TemporaryDirectory() as folder:
        def written(t: int, ids: np.ndarray) -> float:
            write_mask(Path(folder) / f"{t:05d}.png", ids)
            return time.perf_counter()

        channels_last = encoder.to(memory_format=torch.channels_last)
        count = CONTEXT + 4 * runs + 1
        masks = segment(itertools.islice(sequence.video.frames(), count), sequence.first_masks(), partial(encode, channels_last))
        stamps = [written(t, ids) for t, ids in enumerate(masks)]
        # the encoder takes four frames at once, so four at a time
        times["ours"] = [(b - a) / 4 for a, b in zip(stamps[CONTEXT::4], stamps[CONTEXT + 4:: 4])]

        encoder = load_encoder("davis2016")
        ids = object_ids(sequence.first_masks())
        mask = sequence.mask(0)
        keys = list(encode(encoder, (sequence.video.read(t) for t in range(CONTEXT + 1))))
        softs = list(propagate(torch.stack(keys), mask))
        for t in range(CONTEXT + 1, CONTEXT + 1 + runs):
            started = time.perf_counter()
            image = prepare_frames(torch.from_numpy(sequence.video.read(t)).permute(2, 0, 1)[None])
            with torch.inference_mode():
                keys.append(encoder(image).res4[0])
                recent = range(t - CONTEXT, t)
                soft = plain([keys[0], *(keys[j] for j in recent)], [softs[0], *(softs[j] for j in recent)], keys[t])
                softs.append(soft.unflatten(1, keys[t].shape[1:]))
                labels = to_labels(softs[t], sequence.video.size, ids)
            times["plain"].append(written(t, labels.numpy().astype(np.uint8)) - started)
    report("a frame from file to file", f"480p, {sequence.name}", times, {})


def memory(length: int) -> float:
    generator = torch.Generator().manual_seed(0)
    features = (F.normalize(torch.rand(128, 30, 54, generator=generator), dim=0) for _ in range(length))
    for _ in propagate(features, torch.eye(240, 432, dtype=torch.long)):
        pass
    return peak()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("davis", help="folder in DAVIS's layout")
    parser.add_argument("--sequence", default="breakdance")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print(json.dumps(memory(options.memory)))
        return
    for length in (100, 1000):
        done = subprocess.run([sys.executable, "-m", "benchmarks.video", options.davis, "--memory", str(length)], stdout=subprocess.PIPE,
                              text=True, check=True)
        report("memory of the process, propagation", f"{length:,} frames", {"ours": [json.loads(done.stdout)]}, {}, "MB")
    frames_from_file(options.davis, options.sequence, options.runs)


if __name__ == "__main__":
    main()
