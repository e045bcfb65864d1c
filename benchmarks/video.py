"""A 480p frame from file to file (read, encode, carry, write); memory: `python -m benchmarks.video DAVIS`.

Ours encodes four frames at once in bfloat16, channels last, up to res4. The plain way encodes one at a time
in float32 with all layers, and propagates densely (benchmarks/propagation.py).
Memory is the peak of a process that carries a mask through 100 and through 1,000 frames of random features.
"""

import argparse
import itertools
import json
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.measure import own_process, peak, report
from benchmarks.propagation import CONTEXT, plain
from dulvos.checkpoints import load_encoder
from dulvos.datasets import load_davis
from dulvos.encoder import prepare_frames
from dulvos.inference import encode, segment
from dulvos.masks import write_mask
from dulvos.propagation import object_ids, propagate, to_labels


def frames_from_file(davis: str, name: str, runs: int) -> None:
    sequence = next(s for s in load_davis(davis, "val").sequences if s.name == name)
    count, ids = CONTEXT + 4 * (runs + 2), object_ids(sequence.first_masks())
    encoder = load_encoder("davis2016")
    keys = partial(encode, load_encoder("davis2016").to(memory_format=torch.channels_last))
    masks = enumerate(segment(itertools.islice(sequence.video.frames(), count), sequence.first_masks(), keys))
    features = list(keys(sequence.video.read(t) for t in range(CONTEXT + 1)))
    softs, turn = list(propagate(torch.stack(features), sequence.mask(0))), itertools.count(CONTEXT + 1)

    def ours(folder: Path) -> None:
        for t, found in itertools.islice(masks, 4):  # the encoder takes four frames at once
            write_mask(folder / f"{t:05d}.png", found)

    def theirs(folder: Path) -> None:
        t = next(turn)
        image = prepare_frames(torch.from_numpy(sequence.video.read(t)).permute(2, 0, 1)[None])
        with torch.inference_mode():
            features.append(encoder(image).res4[0])
            entries = [0, *range(t - CONTEXT, t)]
            soft = plain([features[j] for j in entries], [softs[j] for j in entries], features[t])
            softs.append(soft.unflatten(1, features[t].shape[1:]))
            found = to_labels(softs[t], sequence.video.size, ids)
        write_mask(folder / f"{t:05d}.png", found.numpy().astype(np.uint8))

    times = {"ours": [], "plain": []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range((CONTEXT + 4) // 4):  # until the context is full
            ours(Path(folder))
        for _ in range(runs + 1):
            for way, call, frames in (("ours", ours, 4), ("plain", theirs, 1)):
                started = time.perf_counter()
                call(Path(folder))
                times[way].append((time.perf_counter() - started) / frames)
    times = {way: spent[1:] for way, spent in times.items()}  # the first one warms up
    report("a frame from file to file", f"480p, {name}", times)


def memory(length: int) -> float:
    """The process's peak, in MB, after it carried a mask through `length` frames."""
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
    few, many = (own_process("video", options.davis, "--memory", length) for length in (100, 1000))
    report("memory against length (MB of the process)", "1,000 frames (ours) beside 100 (plain)",
           {"ours": [many], "plain": [few]}, "MB")
    frames_from_file(options.davis, options.sequence, options.runs)


if __name__ == "__main__":
    main()
