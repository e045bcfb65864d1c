"""Label propagation of one frame, ours beside a plain way: `python -m benchmarks.propagation [--size 720p]`.

The plain way is a script that follows the protocol's description word by word, comparing all pairs of cells;
with `--engine` it is our plain engine. Features are those of a DAVIS video with `--davis DIR`, else random
numbers that change a little. Other counts of channels than 512 are random projections of these.
"""

import argparse
import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import added_memory, compare, profile
from dulvos.checkpoints import load_encoder
from dulvos.datasets import load_davis
from dulvos.inference import encode
from dulvos.propagation import PROTOCOLS, Plain, propagate

SIZES = {"480p": (60, 107), "720p": (90, 160), "480p-stride16": (30, 53)}
CONTEXT = PROTOCOLS["crw"].context


def plain(keys: list[Tensor], masks: list[Tensor], query: Tensor, *, radius: float = 12, topk: int = 10,
          tau: float = 0.05) -> Tensor:
    """CRW's protocol for one frame, 100 cells at a time: affinities, a radius mask, a top-k over all keys.

    Arguments:
        keys: features (K, h, w) of the reference, then of the recent frames.
        masks: of the same frames, (M, h, w).
        query: features of the new frame, (K, h, w).

    Returns:
        Its masks, (M, h·w).
    """
    _, height, width = query.shape
    y, x = torch.cartesian_prod(torch.arange(height), torch.arange(width)).t()
    every = torch.stack(keys).flatten(2)  # [n, K, h·w]
    labels = torch.stack(masks).flatten(2).transpose(1, 2).flatten(0, 1)  # [n·h·w, M]
    out = []
    for chunk in torch.arange(height * width).split(100):
        affinity = torch.einsum("kq,nkc->qnc", query.flatten(1)[:, chunk], every)
        far = (y[chunk, None] - y).square() + (x[chunk, None] - x).square() >= radius**2  # [q, h·w]
        affinity[:, 1:].masked_fill_(far[:, None], -torch.inf)
        value, index = affinity.flatten(1).topk(topk, 1)
        out.append(((value / tau).softmax(1)[..., None] * labels[index]).sum(1))
    return torch.cat(out).t()


def plain_dino(keys: list[Tensor], masks: list[Tensor], query: Tensor, *, radius: int = 12, topk: int = 5,
               tau: float = 0.1) -> Tensor:
    """DINO's protocol for one frame, with the arguments of `plain`.

    Weights are exp(cosine / τ) of all pairs, times a box mask. For each query, those below its topk-th value
    become 0, and the others are normalised and multiply the masks.
    """
    channels, height, width = query.shape
    y, x = torch.cartesian_prod(torch.arange(height), torch.arange(width)).t()
    box = ((y[:, None] - y).abs() <= radius) & ((x[:, None] - x).abs() <= radius)  # [h·w, h·w]
    sources = torch.stack(keys).flatten(2).transpose(1, 2)  # [n, h·w, K]
    affinity = torch.exp(torch.bmm(sources, query.view(1, channels, -1).expand(len(keys), -1, -1)) / tau)
    affinity = (affinity * box).flatten(0, 1)  # [n·h·w, h·w]
    affinity[affinity < affinity.topk(topk, 0).values[-1]] = 0
    affinity /= affinity.sum(0)
    return torch.stack(masks, 1).flatten(1) @ affinity


def video_features(davis: str, sequence: str, size: tuple[int, int], count: int) -> list[Tensor]:
    """res4 of consecutive frames, (512, h, w) each, resized to `size` cells."""
    video = next(s.video for s in load_davis(davis, "val").sequences if s.name == sequence)
    features = encode(load_encoder("davis2016"), (video.read(t) for t in range(count)))
    resized = (F.interpolate(f[None], size, mode="bilinear", antialias=True)[0] for f in features)
    return [F.normalize(f, dim=0) for f in resized]


def drifting_features(size: tuple[int, int], count: int) -> list[Tensor]:
    """Random features (512, h, w) that change a little from frame to frame."""
    generator = torch.Generator().manual_seed(0)
    still = torch.rand(512, *size, generator=generator)
    noise = (torch.randn(512, *size, generator=generator) for _ in range(count))
    return [F.normalize(still + 0.1 * change, dim=0) for change in noise]


def project(features: list[Tensor], channels: int) -> list[Tensor]:
    """The same with another number of channels, by a random matrix, which keeps cosines nearly or exactly."""
    matrix = torch.randn(channels, len(features[0]), generator=torch.Generator().manual_seed(1))
    if channels > len(features[0]):
        matrix = torch.linalg.qr(matrix).Q
    return [F.normalize(torch.einsum("jk,khw->jhw", matrix, frame), dim=0) for frame in features]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="480p")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="crw")
    parser.add_argument("--channels", type=int, default=512)
    parser.add_argument("--davis", help="folder in DAVIS's layout: real features instead of random ones")
    parser.add_argument("--sequence", default="breakdance")
    parser.add_argument("--engine", action="store_true", help="compare with our own plain engine")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="where the time of one frame goes")
    options = parser.parse_args()
    size, protocol = SIZES[options.size], PROTOCOLS[options.protocol]
    context, count = protocol.context, protocol.context + options.runs + 2
    frames = (video_features(options.davis, options.sequence, size, count) if options.davis
              else drifting_features(size, count))
    if options.channels != 512:
        frames = project(frames, options.channels)
    mask = torch.zeros(8 * size[0], 8 * size[1], dtype=torch.long)
    mask[: 4 * size[0], : 4 * size[1]] = 1

    stream, engine = (propagate(iter(frames), mask, protocol, engine=way) for way in (None, Plain))
    softs: list[Tensor] = []
    turn = itertools.count(context + 1)

    def ours() -> Tensor:
        softs.append(next(stream))
        return softs[-1].flatten(1)

    def script() -> Tensor:
        t = next(turn)
        entries = [0, *range(t - context, t)]
        way = plain if options.protocol == "crw" else plain_dino
        return way([frames[j] for j in entries], [softs[j] for j in entries], frames[t])

    # fills the context, which is kept from then on and so belongs to the memory
    _, memory = added_memory(lambda: [ours() for _ in range(context + 1)])
    if options.profile:
        profile(ours)
        return
    case = (f"{options.size} ({size[0]}x{size[1]}x{options.channels}), {context + 1} entries, "
            + (options.sequence if options.davis else "random features")
            + ", DINO's protocol" * (options.protocol == "dino"))
    other = script
    if options.engine:
        case += ", beside our plain engine"
        for _ in range(context + 1):
            next(engine)

        def other() -> Tensor:
            return next(engine).flatten(1)

    compare("propagate a frame", case, ours, other, lambda a, b: (a - b).abs().max().item(),
            runs=options.runs, ours_mb=memory)


if __name__ == "__main__":
    main()
