"""Correspondence: which cells match across frames, and which cells label propagation copies from.

Features are (T, K, h, w) float, L2-normalised over K. Positions are [y, x] int64. A cell, frame, grid or
temperature out of range raises an InputError.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dulvos.errors import InputError
from dulvos.propagation import PROTOCOLS, Protocol, entries, most_similar

__all__ = ["Sources", "affinity", "anchor_grid", "best_matches", "dominant_anchors", "principal_components",
           "sources"]


class Sources(NamedTuple):
    """The cells that one cell copies its label from, the most similar first."""

    frames: Tensor  # (k,) int64; a frame that counts several times may be listed several times
    positions: Tensor  # (k, 2)
    weights: Tensor  # (k,) float; their sum is 1


def affinity(features: Tensor, frame: int, y: int, x: int) -> Tensor:
    """Cosine similarity of the cell (y, x) of a frame with all cells of all frames: (T, h, w) in [-1, 1]."""
    frames, _, height, width = features.shape
    if not (0 <= frame < frames and 0 <= y < height and 0 <= x < width):
        raise InputError(f"frame {frame}, cell [y, x] = {[y, x]} is outside the {frames} frames of "
                         f"{height}x{width} cells")
    return (features[frame, :, y, x] @ features.flatten(2)).view(frames, height, width)  # einsum would copy


def best_matches(affinity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k <= h·w most similar cells of each frame of an affinity (T, h, w), the most similar first.

    Returns:
        Positions (T, k, 2) and their values (T, k).
    """
    values, index = affinity.flatten(1).topk(k, 1)
    return torch.stack(torch.unravel_index(index, affinity.shape[1:]), -1), values


def anchor_grid(height: int, width: int, n: int) -> Tensor:
    """Positions (n·n, 2) of the middles of n x n blocks of a map, row by row; n in [1, min(h, w)].

    Training draws random grids instead (`dulvos.losses.sample_grid`).
    """
    if not 1 <= n <= min(height, width):
        raise InputError(f"a grid of {n} does not fit a map of {height}x{width} cells; n may be 1 to "
                         f"{min(height, width)}")
    middles = 2 * torch.arange(n) + 1
    return torch.cartesian_prod(middles * height // (2 * n), middles * width // (2 * n))


def dominant_anchors(features: Tensor, anchors: Tensor, tau: float = 0.05) -> tuple[Tensor, Tensor]:
    """The anchor û most similar to each cell, and its share v in a softmax over all anchors (Eqs. 1, 2).

    Arguments:
        anchors: (n, K) float, L2-normalised.
        tau: temperature τ, > 0.

    Returns:
        Labels (T, h, w) int64 in [0, n) and shares (T, h, w) in [1/n, 1].
    """
    if not tau > 0:
        raise InputError(f"tau must be positive, not {tau}")
    labels = torch.empty_like(features[:, 0], dtype=torch.long)
    shares = torch.empty_like(features[:, 0])
    for t, frame in enumerate(features):  # n·h·w logits at a time
        logits = torch.einsum("nk,khw->nhw", anchors, frame) / tau
        best, labels[t] = logits.max(0)
        shares[t] = (best - logits.logsumexp(0)).exp()
    return labels, shares


def principal_components(features: Tensor) -> Tensor:
    """The first three principal components of all cells of a video as colours: similar features look alike.

    Each component is stretched from its 1st to its 99th percentile. Its sign is the one that skews it to the
    right, so rotating or reordering the channels does not change the colours.

    Returns:
        (T, h, w, 3) float in [0, 1].
    """
    frames, _, height, width = features.shape
    cells = features.transpose(0, 1).flatten(1)  # [K, T·h·w]
    axes = torch.linalg.eigh(torch.cov(cells)).eigenvectors[:, -3:].flip(1)  # [K, 3]
    values = axes.t() @ (cells - cells.mean(1, keepdim=True))  # [3, T·h·w]
    values = values * values.double().pow(3).mean(1, keepdim=True).sign().to(values)
    low, high = (values.kthvalue(1 + round(share * (values.shape[1] - 1)), 1, keepdim=True).values
                 for share in (0.01, 0.99))
    values = ((values - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return values.t().reshape(frames, height, width, 3)


def sources(features: Tensor, frame: int, y: int, x: int, protocol: Protocol = PROTOCOLS["crw"], *,
            reference: int = 0, **changes: Any) -> Sources:
    """The cells that `dulvos.propagation.propagate` copies one cell's label from (Eqs. 7, 8).

    Arguments:
        frame, y, x: the cell that copies; frame > reference.
        protocol, changes: as in `propagate`.
        reference: number of the annotated frame.
    """
    protocol = replace(protocol, **changes)
    if not 0 <= reference < frame:
        raise InputError(f"frame {frame} has no sources: the reference, frame {reference}, must come before")
    near, everywhere = entries(frame, reference, protocol)
    # a frame is listed as often as it counts
    shown = torch.tensor([*near, *everywhere], device=features.device)  # [n]
    cosine = affinity(features, frame, y, x)[shown].flatten(1)  # [n, h·w]
    cells = torch.cartesian_prod(*(torch.arange(n, device=features.device) for n in features.shape[2:]))
    offset = cells - cells[y * features.shape[3] + x]
    box = protocol.neighbourhood == "box"
    far = (offset.abs() > protocol.radius).any(1) if box else offset.square().sum(1) >= protocol.radius**2
    cosine[: len(near), far] = -torch.inf
    weight, index = (part[0] for part in most_similar(cosine.view(1, -1), protocol))
    order = weight.argsort(descending=True)
    index = index[order]
    return Sources(shown[index // len(cells)], cells[index % len(cells)], weight[order])
