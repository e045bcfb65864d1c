"""Label propagation of one frame, ours beside the plain way: `python -m benchmarks.propagation [--height 60 --width 107]`.

The plain way follows the description word by word: affinities of all pairs of cells in chunks of 100 queries, a radius mask, a
top-k over all keys. Both run in turn on the same features; medians, their ratio and the peak memory above the features are printed.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import statistics
import time

import torch
import torch.nn.functional as F

from dulvos.propagation import propagate


def plain(keys: list[torch.Tensor], masks: list[torch.Tensor], query: torch.Tensor, *, radius: float = 12, topk: int = 10,
          tau: float = 0.05) -> torch.Tensor:
    """One frame from the reference (first of the lists) and the recent entries: (K, h, w) features, (M, h, w) masks."""
    channels, height, width = query.shape
    y, x = (grid.flatten() for grid in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    every = torch.stack(keys).flatten(2)  # [n, K, h·w]
    labels = torch.stack(masks).flatten(2).transpose(1, 2).flatten(0, 1)  # [n·h·w, M]
    out = []
    for chunk in torch.arange(height * width).split(100):
        affinity = torch.einsum("kq,nkc->qnc", query.flatten(1)[:, chunk], every)
        far = (y[chunk, None] - y).square() + (x[chunk, None] - x).square() >= radius**2  # [q, h·w]
        affinity[:, 1:].masked_fill_(far[:, None], -torch.inf)
        value, index = affinity.flatten(1).topk(topk, 1)
        out.append(((value / tau).softmax(1)[..., None] * labels[index]).sum(1))
    return torch.cat(out).t().unflatten(1, (height, width))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--height", type=int, default=60)
    parser.add_argument("--width", type=int, default=107)
    parser.add_argument("--channels", type=int, default=512)
    parser.add_argument("--context", type=int, default=20)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    shape = (options.channels, options.height, options.width)
    still = torch.rand(shape, generator=generator)
    length = options.context + 1 + options.runs
    frames = [F.normalize(still + 0.1 * torch.randn(shape, generator=generator), dim=0) for _ in range(length)]
    mask = torch.zeros(8 * options.height, 8 * options.width, dtype=torch.long)
    mask[: 4 * options.height, : 4 * options.width] = 1

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    stream, softs, ours, theirs, worst = propagate(iter(frames), mask, context=options.context), [], [], [], 0.0
    for _ in range(options.context + 1):
        softs.append(next(stream))
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    for t in itertools.islice(itertools.count(options.context + 1), options.runs):
        started = time.perf_counter()
        softs.append(next(stream))
        ours.append(time.perf_counter() - started)
        recent = range(t - options.context, t)
        started = time.perf_counter()
        expected = plain([frames[0], *(frames[j] for j in recent)], [softs[0], *(softs[j] for j in recent)], frames[t])
        theirs.append(time.perf_counter() - started)
        worst = max(worst, (expected - softs[t]).abs().max().item())
    print(f"{options.height}x{options.width} cells, {options.channels} channels, {options.context + 1} entries, "
          f"{torch.get_num_threads()} threads, torch {torch.__version__}, {options.runs} runs in turn")
    for name, times in (("ours", ours), ("plain", theirs)):
        print(f"{name:6s} median {statistics.median(times):.3f} s, from {min(times):.3f} to {max(times):.3f}")
    print(f"ratio {statistics.median(theirs) / statistics.median(ours):.1f}, greatest difference of soft masks {worst:.1e}, "
          f"ours took {memory:.0f} MB above the features")


if __name__ == "__main__":
    main()
