"""Correspondence: what features match across frames and views, and what label propagation copies.

Throughout, `features` are (T, K, h, w) float, L2-normalised over K; maps of one frame lack T. Positions are
[y, x] int64, and distances are in cells. A value out of range raises an InputError.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dulvos.errors import InputError
from dulvos.propagation import PROTOCOLS, Plain, Protocol, entries, most_similar
from dulvos.tiled import windows

__all__ = ["Equivariance", "Sources", "affinity", "anchor_grid", "best_matches", "cycle_error",
           "dominant_anchors", "equivariance_error", "principal_components", "sources", "tracks"]

CHUNK = 2**24  # similarities in memory at once: 64 MB in float32


class Sources(NamedTuple):
    """The cells that one cell copies its label from, the most similar first."""

    frames: Tensor  # (k,) int64; a frame that counts several times may stand here several times
    positions: Tensor  # (k, 2)
    weights: Tensor  # (k,) float with the sum 1


class Equivariance(NamedTuple):
    """Where the cells of view 2 match the main view, and where 𝒯 leads."""

    expected: Tensor  # (h, w, 2) float, where 𝒯 leads
    found: Tensor  # (h, w, 2), the most similar cell of the main view
    error: Tensor  # (h, w), the distance between the two
    position_error: Tensor  # (h, w), the error of features that know places only: each cell matches itself


def affinity(features: Tensor, frame: int, y: int, x: int) -> Tensor:
    """Cosine similarity of the cell (y, x) of a frame with all cells of all frames: (T, h, w) in [-1, 1]."""
    _check_cells(features, frame, torch.tensor([[y, x]]))
    return (features[frame, :, y, x] @ features.flatten(2)).view(-1, *features.shape[2:])  # einsum would copy


def best_matches(affinity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k most similar cells of each frame, the most similar first.

    Arguments:
        affinity: (T, h, w).
        k: in [1, h·w].

    Returns:
        Positions (T, k, 2) and their values (T, k).
    """
    cells = affinity.flatten(1)
    if not 1 <= k <= cells.shape[1]:
        raise InputError(f"k must lie in [1, {cells.shape[1]}], the cells of a map, not {k}")
    values, index = cells.topk(k, 1)
    return _positions(index, affinity.shape[2]), values


def anchor_grid(height: int, width: int, n: int) -> Tensor:
    """The middles of n x n blocks of a map, (n·n, 2) positions row by row; n in [1, min(h, w)].

    Training draws random grids instead (`dulvos.losses.sample_grid`).
    """
    if not 1 <= n <= min(height, width):
        raise InputError(f"a grid of {n} does not fit a map of {height}x{width} cells; n may be 1 to "
                         f"{min(height, width)}")
    middles = 2 * torch.arange(n) + 1
    return torch.cartesian_prod(middles * height // (2 * n), middles * width // (2 * n))


def dominant_anchors(features: Tensor, anchors: Tensor, tau: float = 0.05) -> tuple[Tensor, Tensor]:
    """The anchor û that each cell resembles most, and its share v of a softmax over all anchors (Eqs. 1, 2).

    Arguments:
        anchors: (n, K) float, L2-normalised.
        tau: temperature τ, > 0.

    Returns:
        Labels (T, h, w) int64 in [0, n) and shares (T, h, w) in [1/n, 1].
    """
    if anchors.ndim != 2 or anchors.shape[1] != features.shape[1] or not len(anchors):
        raise InputError(f"anchors must be (n, {features.shape[1]}), not {tuple(anchors.shape)}")
    if not tau > 0:
        raise InputError(f"tau must be positive, not {tau}")
    labels = torch.empty_like(features[:, 0], dtype=torch.long)
    shares = torch.empty_like(features[:, 0])
    for t, frame in enumerate(features):  # n·h·w logits at a time
        logits = torch.einsum("nk,khw->nhw", anchors, frame) / tau
        best, labels[t] = logits.max(0)
        shares[t] = (best - logits.logsumexp(0)).exp()
    return labels, shares


def principal_components(features: Tensor, count: int = 3) -> Tensor:
    """The first principal components of all cells of a video; equal values mean similar features.

    Each component is stretched from its 1st to its 99th percentile, with the sign that skews it to the right:
    the result does not change if channels are reordered or rotated.

    Arguments:
        count: in [1, K].

    Returns:
        (T, count, h, w) float32 in [0, 1].
    """
    frames, channels, height, width = features.shape
    if not 1 <= count <= channels:
        raise InputError(f"count must lie in [1, {channels}], the channels of the features, not {count}")
    number = frames * height * width
    mean = features.mean((0, 2, 3), dtype=torch.float64)
    # frame by frame: a float64 copy of a whole video would be large
    second = sum(cells @ cells.t() for cells in (frame.flatten(1).double() for frame in features)) / number
    axes = torch.linalg.eigh(second - torch.outer(mean, mean)).eigenvectors.flip(1)[:, :count]  # [K, count]
    values = torch.einsum("tkhw,kc->cthw", features, axes.to(features)).flatten(1)  # [count, T·h·w]
    values = (values - (mean @ axes).to(features)[:, None]).float()
    values = values * values.double().pow(3).mean(1, keepdim=True).sign().float()
    ordered = values.sort(1).values  # torch.quantile takes 2²⁴ values at most
    low, high = (ordered[:, round(share * (number - 1)), None] for share in (0.01, 0.99))
    values = ((values - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return values.view(count, frames, height, width).transpose(0, 1)


def tracks(features: Tensor, points: Tensor, radius: float, *, start: int = 0) -> Tensor:
    """Points followed by nearest neighbours from frame to frame, forwards and backwards.

    Arguments:
        points: (n, 2) positions in frame `start`.
        radius: exclusive limit of a step from one frame to the next; > 0, may be infinite.

    Returns:
        (T, n, 2) positions; row `start` holds `points`.
    """
    if not radius > 0:
        raise InputError(f"radius must be positive, not {radius}")
    _check_cells(features, start, points)
    height, width = features.shape[2:]
    cells = _positions(torch.arange(height * width, device=features.device), width)  # [h·w, 2]
    found = {start: points.to(features.device)}
    for step, last in ((1, len(features)), (-1, -1)):
        for t in range(start + step, last, step):
            before = found[t - step]
            query = features[t - step][:, before[:, 0], before[:, 1]]  # [K, n]
            cosine = query.t() @ features[t].flatten(1)  # [n, h·w]
            far = (before[:, None] - cells).float().norm(dim=2) >= radius
            found[t] = _positions(cosine.masked_fill(far, -torch.inf).argmax(1), width)
    return torch.stack([found[t] for t in range(len(features))])


def cycle_error(a: Tensor, b: Tensor) -> Tensor:
    """How far from itself a cell of map a ends after a step to its nearest neighbour in b, and one back to a.

    Returns:
        (h, w) float32; 0 is consistent.
    """
    _check_pair(a, b)
    height, width = a.shape[1:]
    forth = _nearest(a.flatten(1), b.flatten(1))
    back = _nearest(b.flatten(1)[:, forth], a.flatten(1))
    begun = torch.arange(height * width, device=a.device)
    return (_positions(back, width) - _positions(begun, width)).float().norm(dim=1).view(height, width)


def equivariance_error(features: Tensor, features_view2: Tensor, theta: Tensor, *,
                       corrected_stride: int | None = None) -> Equivariance:
    """How far the matches of view 2's cells in the main view are from where 𝒯 leads (Assumption 4).

    Arguments:
        features, features_view2: (K, h, w), of one frame's two views.
        theta: (2, 3), 𝒯 from view-2 to main-view coordinates, (x, y) in [-1, 1].
        corrected_stride: the encoder's stride places cells where they are, None where the release does (see
            `dulvos.views.warp`).
    """
    _check_pair(features, features_view2)
    _, height, width = features.shape
    size = theta.new_tensor([width, height], dtype=torch.float64)
    # the release places cell i at (2i + 1)/n - 1; its centre is at (2i + 1/s)/n - 1, pixel s·i of s·n
    lead = 1.0 if corrected_stride is None else 1 / corrected_stride
    own = _positions(torch.arange(height * width), width).to(theta.device)  # [h·w, 2]
    place = (2 * own.flip(1) + lead) / size - 1  # (x, y)
    place = place @ theta[:, :2].double().t() + theta[:, 2].double()
    expected = ((place + 1) * size - lead).flip(1) / 2
    found = _positions(_nearest(features_view2.flatten(1), features.flatten(1)), width).to(theta.device)
    errors = ((expected - other).norm(dim=1).float().view(height, width) for other in (found, own))
    return Equivariance(expected.float().view(height, width, 2), found.view(height, width, 2), *errors)


def sources(features: Tensor, frame: int, y: int, x: int, protocol: Protocol = PROTOCOLS["crw"], *,
            reference: int = 0, **changes: Any) -> Sources:
    """The cells that `dulvos.propagation.propagate` copies one cell's label from (Eqs. 7, 8).

    Arguments:
        frame, y, x: the cell that copies; frame > reference.
        protocol, changes: as in `propagate`.
        reference: number of the annotated frame.
    """
    protocol = replace(protocol, **changes)
    _check_cells(features, frame, torch.tensor([[y, x]]))
    height, width = features.shape[2:]
    if not 0 <= reference < frame:
        raise InputError(f"frame {frame} has no sources: the reference, frame {reference}, must come before")
    if protocol.topk > height * width:
        raise InputError(f"topk must be at most {height * width}, the cells of a frame, not {protocol.topk}")
    near, everywhere = entries(frame, reference, protocol)
    frames = sorted({*near, *everywhere})
    maps = features.permute(0, 2, 3, 1)  # [T, h, w, K]
    memory = Plain(maps[0], len(frames), protocol.topk)
    for slot, t in enumerate(frames):
        memory.put(slot, maps[t])
    tile = next(tile for tile in windows(height, width, protocol.radius, protocol.neighbourhood, maps.device)
                if y < tile.rows.stop and x < tile.columns.stop)
    slots = ([frames.index(t) for t in group] for group in (near, everywhere))
    similarity, cells = next(memory.similarities(maps[frame], [tile], *slots))
    row = (y - tile.rows.start) * (tile.columns.stop - tile.columns.start) + x - tile.columns.start
    weight, index = (part[0] for part in most_similar(similarity[row, None], protocol))
    order = weight.argsort(descending=True)
    cell = cells[index[order]]  # slot·h·w + y·w + x
    source = torch.tensor(frames, device=cell.device)[cell // (height * width)]
    return Sources(source, _positions(cell % (height * width), width), weight[order])


def _check_cells(features: Tensor, frame: int, points: Tensor) -> None:
    frames, _, height, width = features.shape
    inside = ((points >= 0) & (points < torch.tensor([height, width], device=points.device))).all()
    if points.ndim != 2 or points.shape[1] != 2 or not inside or not 0 <= frame < frames:
        raise InputError(f"frame {frame}, cells [y, x] {points.tolist()}: outside {frames} frames of "
                         f"{height}x{width} cells")


def _check_pair(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape or a.ndim != 3:
        raise InputError(f"both maps must have one shape (K, h, w), not {tuple(a.shape)}, {tuple(b.shape)}")


def _positions(index: Tensor, width: int) -> Tensor:
    """Flat indices y·w + x (…) as positions (…, 2) [y, x]."""
    return torch.stack([index // width, index % width], -1)


def _nearest(queries: Tensor, keys: Tensor) -> Tensor:
    """For each of the queries (K, n) the index of the most similar of the keys (K, m): (n,) int64."""
    step = max(1, CHUNK // keys.shape[1])
    return torch.cat([(part.t() @ keys).argmax(1) for part in queries.split(step, 1)])
