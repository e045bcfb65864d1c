"""Label propagation of one frame, ours beside the plain way: `python -m benchmarks.propagation [--size 720p] [--runs 5]`.

The plain way follows the description word by word: affinities of all pairs of cells in chunks of 100 queries, a radius mask, a
top-k over all keys. Features are those of a DAVIS video with `--davis DIR`, else random numbers that change a little.
"""

from __future__ import annotations

import argparse
import itertools

import torch
import torch.nn.functional as F

from benchmarks.measure import added_memory, compare, profile
from dulvos.checkpoints import load_encoder
from dulvos.datasets import load_davis
from dulvos.inference import encode
from dulvos.propagation import propagate

SIZES = {"480p": (60, 107), "720p": (90, 160)}
CONTEXT = 20


def plain(keys: list[torch.Tensor], masks: list[torch.Tensor], query: torch.Tensor, *, radius: float = 12, topk: int = 10,
          tau: float = 0.05, cells: torch.Tensor | None = None) -> torch.Tensor:
    """One frame from the reference (first of the lists) and the recent entries: (K, h, w) features, (M, h, w) masks.

    Returns (M, h·w), or (M, n) for the n flat indices `cells`.
    """
    channels, height, width = query.shape
    y, x = (grid.flatten() for grid in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    every = torch.stack(keys).flatten(2)  # [n, K, h·w]
    labels = torch.stack(masks).flatten(2).transpose(1, 2).flatten(0, 1)  # [n·h·w, M]
    out = []
    for chunk in (torch.arange(height * width) if cells is None else cells).split(100):
        affinity = torch.einsum("kq,nkc->qnc", query.flatten(1)[:, chunk], every)
        far = (y[chunk, None] - y).square() + (x[chunk, None] - x).square() >= radius**2  # [q, h·w]
        affinity[:, 1:].masked_fill_(far[:, None], -torch.inf)
        value, index = affinity.flatten(1).topk(topk, 1)
        out.append(((value / tau).softmax(1)[..., None] * labels[index]).sum(1))
    return torch.cat(out).t()


def video_features(davis: str, sequence: str, size: tuple[int, int], count: int) -> list[torch.Tensor]:
    """res4 of consecutive frames, enlarged to `size` cells where that is another."""
    video = next(s.video for s in load_davis(davis, "val").sequences if s.name == sequence)
    frames = (video.read(t) for t in range(count))
    found = list(encode(load_encoder("davis2016"), frames))
    return [F.normalize(F.interpolate(f[None], size, mode="bilinear")[0], dim=0) if f.shape[1:] != size else f for f in found]


def drifting_features(size: tuple[int, int], count: int, channels: int = 512) -> list[torch.Tensor]:
    """Random features that change a little from frame to frame."""
    generator = torch.Generator().manual_seed(0)
    still = torch.rand(channels, *size, generator=generator)
    return [F.normalize(still + 0.1 * torch.randn(channels, *size, generator=generator), dim=0) for _ in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="480p")
    parser.add_argument("--davis", help="folder in DAVIS's layout: real features instead of random ones")
    parser.add_argument("--sequence", default="breakdance")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="where the time of one frame goes")
    options = parser.parse_args()
    size, count = SIZES[options.size], CONTEXT + options.runs + 2
    frames = video_features(options.davis, options.sequence, size, count) if options.davis else drifting_features(size, count)
    mask = torch.zeros(8 * size[0], 8 * size[1], dtype=torch.long)
    mask[: 4 * size[0], : 4 * size[1]] = 1

    stream, softs, turn = propagate(iter(frames), mask, context=CONTEXT), [], itertools.count(CONTEXT + 1)

    def ours() -> torch.Tensor:
        softs.append(next(stream))
        return softs[-1].flatten(1)

    def theirs() -> torch.Tensor:
        t = next(turn)
        recent = range(t - CONTEXT, t)
        return plain([frames[0], *(frames[j] for j in recent)], [softs[0], *(softs[j] for j in recent)], frames[t])

    _, memory = added_memory(lambda: [ours() for _ in range(CONTEXT + 1)])  # the context, too, which is kept from then on
    if options.profile:
        profile(ours)
        return
    source = options.sequence if options.davis else "random features"
    compare("propagate a frame", f"{options.size} ({size[0]}x{size[1]}x512), 21 entries, {source}", ours, theirs, runs=options.runs,
            difference=lambda a, b: (a - b).abs().max().item(),
            ours_mb=memory)


if __name__ == "__main__":
    main()
