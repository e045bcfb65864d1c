"""The losses, forward and backward, ours beside the dense way: `python -m benchmarks.loss [--figure]`.

The dense way computes the affinities of every cell with all B·N² anchors and warps those (Eqs. 1-5 word by
word). --figure measures time and memory of both ways against N, B and T at 32x32 cells (Sec. 3.5: anchors
save T·h·w / N²) and writes results/loss_complexity.png and .csv.
"""

import argparse
import json
import time

import matplotlib.pyplot as plt
import pandas as pd
import torch
import torch.nn.functional as F

from benchmarks.measure import added_memory, compare, own_process, profile
from dulvos.losses import dense_loss, gather_cells, sample_grid
from dulvos.study.rows import Study
from dulvos.views import sample_similarity

AT = {"batch": 16, "frames": 5, "grid": 8}
SWEEP = {"grid": (4, 8, 16, 32), "batch": (4, 8, 16, 32), "frames": (2, 5, 10)}


def plain(features, features_view2, theta, anchor_index, cross_index, *, tau: float = 0.05,
          lam: float = 0.1) -> torch.Tensor:
    """The total loss, from the affinities of all cells; arguments as in `dense_loss`."""
    batch, frames, channels, height, width = features.shape
    anchors = gather_cells(features[:, 0], anchor_index)
    grid = F.affine_grid(theta, [batch, 1, height, width], align_corners=False)

    def warp(maps: torch.Tensor) -> torch.Tensor:
        return F.grid_sample(maps.flatten(1, 2), grid, mode="nearest", align_corners=False).view_as(maps)

    logits = torch.einsum("btkhw,nk->btnhw", features, anchors.flatten(0, 1)) / tau  # [B, T, B·N², h, w]
    logits = warp(logits)
    with torch.no_grad():
        own = torch.stack([torch.einsum("tkhw,nk->tnhw", f, a) for f, a in zip(features_view2, anchors)])
        labels = own.argmax(2) + anchors.shape[1] * torch.arange(batch).view(-1, 1, 1, 1)
    space_time = F.cross_entropy(logits[:, 1:].flatten(0, 1), labels[:, 1:].flatten(0, 1))
    r, r_hat = (gather_cells(f[:, 0], cross_index).flatten(0, 1) for f in (warp(features), features_view2))
    return space_time + lam * F.cross_entropy(r @ r_hat.t() / tau, torch.arange(len(r)))


def inputs(batch: int, frames: int, grid: int, side: int = 32) -> tuple:
    generator = torch.Generator().manual_seed(0)
    views = [F.normalize(torch.randn(batch, frames, 128, side, side, generator=generator), dim=2)
             for _ in range(2)]
    theta = sample_similarity(batch, 8 * side, generator).theta()
    grids = [sample_grid(batch, side, side, n, generator) for n in (grid, 4)]
    return views[0].requires_grad_(), views[1], theta, *grids


def step(way, arguments: tuple) -> float:
    arguments[0].grad = None
    output = way(*arguments)
    total = getattr(output, "total", output)
    total.backward()
    return total.item()


def probe(way: str, batch: int, frames: int, grid: int) -> dict:
    """Least time of three, and added memory, of one setting."""
    arguments, times = inputs(batch, frames, grid), []

    def timed() -> None:
        started = time.perf_counter()
        step({"ours": dense_loss, "plain": plain}[way], arguments)
        times.append(time.perf_counter() - started)

    _, memory = added_memory(lambda: [timed() for _ in range(3)])
    return {"way": way, "batch": batch, "frames": frames, "grid": grid, "seconds": min(times), "mb": memory}


def figure() -> None:
    """Measure each setting of the sweep in a process of its own, then draw."""
    rows = []
    for name, values in SWEEP.items():
        for value in values:
            at = {**AT, name: value}
            logits = 4 * at["batch"] ** 2 * at["frames"] * 32**2 * at["grid"] ** 2 / 2**30  # GB of float32
            ways = ("ours", "plain") if logits <= 2 else ("ours",)  # several such tensors live at once
            for way in ways:
                found = own_process("loss", "--probe", way, *at.values())
                rows.append({"sweep": name, "value": value, **found})
            print(name, value, *ways)
    table = pd.DataFrame(rows)
    table.to_csv(Study("benchmarks").results / "loss_complexity.csv", index=False, float_format="%.4g")
    draw(table)


def draw(table: pd.DataFrame) -> None:
    """The figure of a table such as results/loss_complexity.csv."""
    names = {"grid": "N (anchors a side)", "batch": "B (clips)", "frames": "T (frames)"}
    quantities = {"seconds": "forward + backward (s)", "mb": "added memory (MB)"}
    ways = {"plain": ("#D55E00", "dense (if its logits fit in 2 GB)"),
            "ours": ("#0072B2", "ours: warped features")}
    table = table.assign(mb=table["mb"].clip(lower=1))  # on a logarithmic axis
    figure, axes = plt.subplots(2, 3, figsize=(9, 4.6), sharey="row", layout="constrained")
    for line, (quantity, label) in zip(axes, quantities.items()):
        line[0].set_ylabel(label)
        for axis, name in zip(line, names):
            for way, (colour, text) in ways.items():
                part = table[(table["sweep"] == name) & (table["way"] == way)]
                axis.plot(part["value"], part[quantity], "o-", color=colour, label=text)
            axis.set(xscale="log", yscale="log")
            axis.set_xticks(SWEEP[name], map(str, SWEEP[name]))
            axis.minorticks_off()
    for axis, text in zip(axes[1], names.values()):
        axis.set_xlabel(text)
    axes[0, 0].legend(frameon=False, fontsize=8)
    axes[0, 1].set_title("what is not varied: B=16, T=5, N=8, 32x32 cells", fontsize=9)
    figure.savefig(Study("benchmarks").results / "loss_complexity.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--figure", action="store_true")
    parser.add_argument("--profile", action="store_true", help="where the time of one step goes")
    parser.add_argument("--probe", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.probe:
        print(json.dumps(probe(options.probe[0], *map(int, options.probe[1:]))))
    elif options.profile:
        arguments = inputs(**AT)
        step(dense_loss, arguments)  # warm
        profile(lambda: step(dense_loss, arguments))
    elif options.figure:
        figure()
    else:
        arguments = inputs(**AT)
        compare("loss, forward and backward", "B=16, T=5, N=8, 32x32 cells",
                lambda: step(dense_loss, arguments), lambda: step(plain, arguments),
                lambda a, b: abs(a - b), runs=options.runs)


if __name__ == "__main__":
    main()
