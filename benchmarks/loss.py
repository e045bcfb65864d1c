"""The losses, forward and backward, ours beside the dense way: `python -m benchmarks.loss [--figure]`.

The dense way computes the affinities of every cell with all B·N² anchors and warps those (Eqs. 1-5 word by
word). --figure measures time and memory of both ways against N, B and T at 32x32 cells (Sec. 3.5: anchors
save T·h·w / N²) and writes results/loss_complexity.png and .csv.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

import matplotlib.pyplot as plt
import pandas as pd
import torch
import torch.nn.functional as F

from benchmarks.measure import added_memory, compare, profile
from dulvos.losses import dense_loss, gather_cells, sample_grid
from dulvos.study.rows import Study
from dulvos.views import sample_similarity

AT = {"batch": 16, "frames": 5, "grid": 8}
SWEEP = {"grid": (4, 8, 16, 32), "batch": (4, 8, 16, 32), "frames": (2, 5, 10)}


def plain(
    features, features_view2, theta, anchor_index, cross_index, *, tau: float = 0.05, lam: float = 0.1
) -> torch.Tensor:
    """The loss with every affinity alive."""
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
    views = [
        F.normalize(torch.randn(batch, frames, 128, side, side, generator=generator), dim=2) for _ in range(2)
    ]
    theta = sample_similarity(batch, 8 * side, generator).theta()
    grids = [sample_grid(batch, side, side, n, generator) for n in (grid, 4)]
    return views[0].requires_grad_(), views[1], theta, *grids


def step(way, arguments: tuple) -> float:
    features = arguments[0]
    features.grad = None
    output = way(*arguments)
    total = getattr(output, "total", output)
    total.backward()
    return total.item()


def logits_bytes(batch: int, frames: int, grid: int, side: int = 32) -> int:
    """Of the float32 affinities of all cells with all anchors."""
    return 4 * batch * frames * side**2 * batch * grid**2


def probe(way: str, batch: int, frames: int, grid: int) -> dict:
    """Least time of three, and added memory, of one setting; in a process of its own for the peak."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.loss", "--probe", way, str(batch), str(frames), str(grid)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def run_probe(way: str, batch: int, frames: int, grid: int) -> None:
    arguments, times = inputs(batch, frames, grid), []

    def timed() -> None:
        started = time.perf_counter()
        step({"ours": dense_loss, "plain": plain}[way], arguments)
        times.append(time.perf_counter() - started)

    _, memory = added_memory(lambda: [timed() for _ in range(3)])
    print(
        json.dumps(
            {"way": way, "batch": batch, "frames": frames, "grid": grid, "seconds": min(times), "mb": memory}
        )
    )


def figure() -> None:
    rows = []
    for name, values in SWEEP.items():
        for value in values:
            for way in ("ours", "plain"):
                at = {**AT, name: value}
                if way == "plain" and logits_bytes(**at) > 2 * 2**30:  # several such tensors live at once
                    print(
                        f"plain, {name}={value}: not run, its logits take {logits_bytes(**at) / 2**30:.1f} GB"
                    )
                    continue
                rows.append({"sweep": name, "value": value, **probe(way, **at)})
                print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    table.to_csv(Study("benchmarks").results / "loss_complexity.csv", index=False, float_format="%.4g")
    draw(table)


def draw(table: pd.DataFrame) -> None:
    """The figure from results/loss_complexity.csv."""
    labels = {"grid": "N (anchors a side)", "batch": "B (clips)", "frames": "T (frames)"}
    _, axes = plt.subplots(2, 3, figsize=(9, 4.6), sharey="row", layout="constrained")
    for column, name in enumerate(SWEEP):
        for row, (quantity, label) in enumerate(
            (("seconds", "forward + backward (s)"), ("mb", "added memory (MB)"))
        ):
            ax = axes[row, column]
            for way, colour, text in (
                ("plain", "#D55E00", "dense (if its logits fit in 2 GB)"),
                ("ours", "#0072B2", "ours: warped features"),
            ):
                part = table[(table.sweep == name) & (table.way == way)]
                ax.plot(
                    part.value,
                    part[quantity].clip(lower=1 if quantity == "mb" else 0),
                    "o-",
                    color=colour,
                    label=text,
                )
            ax.set(
                xscale="log", yscale="log", xlabel=labels[name] if row else "", ylabel="" if column else label
            )
            ax.set_xticks(SWEEP[name], [str(v) for v in SWEEP[name]], minor=False)
            ax.minorticks_off()
    axes[0, 0].legend(frameon=False, fontsize=8)
    axes[0, 1].set_title("what is not varied: B=16, T=5, N=8, 32x32 cells", fontsize=9)
    plt.savefig(Study("benchmarks").results / "loss_complexity.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--figure", action="store_true")
    parser.add_argument("--profile", action="store_true", help="where the time of one step goes")
    parser.add_argument("--probe", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.probe:
        run_probe(options.probe[0], *map(int, options.probe[1:]))
    elif options.profile:
        arguments = inputs(**AT)
        step(dense_loss, arguments)  # warm
        profile(lambda: step(dense_loss, arguments))
    elif options.figure:
        figure()
    else:
        arguments = inputs(**AT)
        compare(
            "loss, forward and backward",
            "B=16, T=5, N=8, 32x32 cells",
            lambda: step(dense_loss, arguments),
            lambda: step(plain, arguments),
            runs=options.runs,
            difference=lambda a, b: abs(a - b),
        )


if __name__ == "__main__":
    main()
