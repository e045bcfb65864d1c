"""Correspondence: what dense features match across the frames of a video and across views, and what propagation copies."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dulvos.errors import InputError

__all__ = ["Equivariance", "Sources", "affinity", "anchor_grid", "best_matches", "cycle_error", "dominant_anchors"]
__all__ += ["equivariance_error", "principal_components", "sources", "tracks"]

CHUNK = 2**24  # similarities alive at once: 64 MB in float32


class Sources(NamedTuple):
    """The cells that one cell copies its label from, the most similar first.

    Fields:
        frames: (topk,) int64; a frame that stands in the context several times may come several times.
        positions: (topk, 2) int64 [y, x].
        weights: (topk,) float, > 0, of sum 1.
    """

    frames: Tensor
    positions: Tensor
    weights: Tensor


class Equivariance(NamedTuple):
    """Where the cells of view 2 find themselves in the main view, and how far that is from where 𝒯 leads. In cells.

    Fields:
        expected: (h, w, 2) float [y, x], where 𝒯 leads.
        found: (h, w, 2) int64 [y, x], the most similar cell of the main view.
        error: (h, w) float, the distance between the two.
        position_error: (h, w) float, the same if every cell matched the cell of its own place: what a network does that has
            learned places instead of content.
    """

    expected: Tensor
    found: Tensor
    error: Tensor
    position_error: Tensor


def affinity(features: Tensor, frame: int, y: int, x: int) -> Tensor:
    """Cosine similarity of one cell with all cells of all frames.

    Arguments:
        features: (T, K, h, w) float, L2-normalised over K.
        frame, y, x: the cell, in [0, T), [0, h), [0, w).

    Returns:
        (T, h, w) in [-1, 1], up to rounding.

    Raises:
        InputError: a cell outside the features.
    """
    _check_cells(features, frame, torch.tensor([[y, x]]))
    return (features[frame, :, y, x] @ features.flatten(2)).view(-1, *features.shape[2:])  # einsum would copy the features


def best_matches(affinity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k most similar cells of every frame, the most similar first.

    Arguments:
        affinity: (T, h, w), as `affinity` gives it.
        k: in [1, h·w].

    Returns:
        Positions (T, k, 2) int64 [y, x] and their values (T, k).

    Raises:
        InputError: k out of range.
    """
    frames, height, width = affinity.shape
    if not 1 <= k <= height * width:
        raise InputError(f"k must lie in [1, {height * width}], the cells of a {height}x{width} map, not {k}")
    values, index = affinity.flatten(1).topk(k, 1)
    return _positions(index, width), values


def anchor_grid(height: int, width: int, n: int) -> Tensor:
    """The middles of the n x n blocks of a feature map of any size; training's random grids are `dulvos.losses.sample_grid`'s.

    Returns:
        (n·n, 2) int64 [y, x], row by row.

    Raises:
        InputError: n outside [1, min(h, w)].
    """
    if not 1 <= n <= min(height, width):
        raise InputError(f"a grid of {n} does not fit a {height}x{width} feature map; choose 1 to {min(height, width)}")
    middles = 2 * torch.arange(n) + 1
    return torch.cartesian_prod(middles * height // (2 * n), middles * width // (2 * n))


def dominant_anchors(features: Tensor, anchors: Tensor, tau: float = 0.05) -> tuple[Tensor, Tensor]:
    """û, the anchor that each cell resembles most, and its share v of the softmax over all anchors (Eqs. 1, 2; Fig. 2).

    Arguments:
        features: (T, K, h, w) float, L2-normalised over K.
        anchors: (n, K) float, L2-normalised.
        tau: temperature τ, > 0.

    Returns:
        Labels (T, h, w) int64 in [0, n) and confidences (T, h, w) in [1/n, 1].

    Raises:
        InputError: anchors of another number of channels, τ <= 0.
    """
    if anchors.ndim != 2 or anchors.shape[1] != features.shape[1] or not len(anchors):
        raise InputError(f"anchors must be (n, {features.shape[1]}), as the features are, not {tuple(anchors.shape)}")
    if not tau > 0:
        raise InputError(f"tau must be positive, not {tau}")
    maps = []
    for frame in features:  # one frame's n·h·w logits at a time
        logits = torch.einsum("nk,khw->nhw", anchors, frame) / tau
        best, label = logits.max(0)
        maps.append((label, (best - logits.logsumexp(0)).exp()))
    labels, confidence = zip(*maps)
    return torch.stack(labels), torch.stack(confidence)


def principal_components(features: Tensor, count: int = 3) -> Tensor:
    """The first principal components of all cells of all frames, in one basis, so that equal values mean alike features.

    Each component is stretched from its 1st to its 99th percentile, and of its two signs takes the one that makes it skewed to
    the right: neither depends on how the channels are ordered or rotated.

    Arguments:
        features: (T, K, h, w) float.
        count: in [1, K].

    Returns:
        (T, count, h, w) float32 in [0, 1].

    Raises:
        InputError: count out of range.
    """
    channels = features.shape[1]
    if not 1 <= count <= channels:
        raise InputError(f"count must lie in [1, {channels}], the channels of the features, not {count}")
    number = features.shape[0] * features.shape[2] * features.shape[3]
    mean = features.mean((0, 2, 3), dtype=torch.float64)
    # frame by frame: a float64 copy of a video's features would be large
    second = sum(cells @ cells.t() for cells in (frame.flatten(1).double() for frame in features)) / number
    axes = torch.linalg.eigh(second - torch.outer(mean, mean)).eigenvectors.flip(1)[:, :count]  # [K, count]
    values = torch.einsum("tkhw,kc->tchw", features, axes.to(features)) - (mean @ axes).to(features)[:, None, None]
    values = values.float() * values.double().pow(3).mean((0, 2, 3)).sign().float()[:, None, None]
    ordered = values.transpose(0, 1).flatten(1).sort(1).values  # torch.quantile takes 2²⁴ values at most
    low, high = (ordered[:, round(share * (number - 1))][:, None, None] for share in (0.01, 0.99))
    return ((values - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)


def tracks(features: Tensor, points: Tensor, radius: float, *, start: int = 0) -> Tensor:
    """Points followed by nearest neighbours from frame to frame, forwards and backwards from frame `start`.

    Arguments:
        features: (T, K, h, w) float, L2-normalised over K.
        points: (n, 2) int64 [y, x], cells of frame `start`.
        radius: exclusive bound on the step between neighbouring frames, in cells, > 0; may be infinite.
        start: in [0, T).

    Returns:
        (T, n, 2) int64 [y, x]; row `start` holds `points`.

    Raises:
        InputError: points outside the frame, radius <= 0.
    """
    if not radius > 0:
        raise InputError(f"radius must be positive, not {radius}")
    _check_cells(features, start, points)
    found = {start: points.to(features.device)}
    for step, last in ((1, len(features)), (-1, -1)):
        for t in range(start + step, last, step):
            before = found[t - step]
            cosine = torch.einsum("kn,khw->nhw", features[t - step][:, before[:, 0], before[:, 1]], features[t])
            for point, similarity in zip(before, cosine):
                similarity.masked_fill_(_distance(point, *similarity.shape) >= radius, -torch.inf)
            found[t] = _positions(cosine.flatten(1).argmax(1), features.shape[3])
    return torch.stack([found[t] for t in range(len(features))])


def cycle_error(a: Tensor, b: Tensor) -> Tensor:
    """Forward-backward consistency: each cell of a goes to its nearest neighbour in b, and from there to that one's in a.

    Arguments:
        a, b: (K, h, w) float, L2-normalised over K.

    Returns:
        (h, w) float32, the distance between where a cell began and where it came back, in cells; 0 is consistent.

    Raises:
        InputError: maps of differing shape.
    """
    if a.shape != b.shape or a.ndim != 3:
        raise InputError(f"both maps must share one shape (K, h, w), not {tuple(a.shape)} and {tuple(b.shape)}")
    height, width = a.shape[1:]
    forth = _nearest(a.flatten(1), b.flatten(1))
    back = _nearest(b.flatten(1)[:, forth], a.flatten(1))
    begun = _positions(torch.arange(height * width, device=a.device), width)
    return (_positions(back, width) - begun).float().norm(dim=1).view(height, width)


def equivariance_error(features: Tensor, features_view2: Tensor, theta: Tensor, *,
                       corrected_stride: int | None = None) -> Equivariance:
    """How far the matches of view 2's cells in the main view are from where 𝒯 leads (Assumption 4).

    Arguments:
        features, features_view2: (K, h, w) float, L2-normalised over K, of one frame's two views.
        theta: (2, 3), 𝒯 from view-2 to main-view coordinates, (x, y) in [-1, 1].
        corrected_stride: None takes the centres of cells as the release does, the encoder's stride where they are; see
            `dulvos.views.warp`.

    Raises:
        InputError: views of differing shape.
    """
    if features.shape != features_view2.shape or features.ndim != 3:
        raise InputError(f"features of both views must share one shape (K, h, w), not {tuple(features.shape)} and "
                         f"{tuple(features_view2.shape)}")
    channels, height, width = features.shape
    size = theta.new_tensor([width, height], dtype=torch.float64)
    # cell i is taken to be centred at (2i + 1)/n - 1 by the release, and is centred at (2i + 1/s)/n - 1: pixel s·i of s·n
    lead = 1.0 if corrected_stride is None else 1 / corrected_stride
    own = torch.cartesian_prod(torch.arange(height), torch.arange(width)).to(theta.device)  # [h·w, 2]
    place = (2 * own.flip(1) + lead) / size - 1  # (x, y)
    place = place @ theta[:, :2].double().t() + theta[:, 2].double()
    expected = ((place + 1) * size - lead).flip(1) / 2
    found = _positions(_nearest(features_view2.flatten(1), features.flatten(1)), width).to(theta.device)
    error, position_error = ((expected - other).norm(dim=1).float().view(height, width) for other in (found, own))
    return Equivariance(expected.float().view(height, width, 2), found.view(height, width, 2), error, position_error)


def sources(features: Tensor, frame: int, y: int, x: int, *, context: int = 20, radius: float = 12, topk: int = 10,
            tau: float = 0.05, reference: int = 0) -> Sources:
    """Which cells `dulvos.propagation.propagate` copies one cell's label from, and with what weights (Eqs. 7, 8; App. C).

    The context holds the reference, every cell of it, and the cells at distance d < radius in frames max(j, reference),
    j = frame - context … frame - 1; so a cell of the reference may count several times.

    Arguments:
        features: (T, K, h, w) float, L2-normalised over K.
        frame, y, x: the cell that asks; frame > reference.
        context, radius, topk, tau: as in `propagate`.
        reference: number of the annotated frame.

    Raises:
        InputError: a cell outside the features, a frame that has no reference before it, a parameter out of range.
    """
    _check_cells(features, frame, torch.tensor([[y, x]]))
    height, width = features.shape[2:]
    if not 0 <= reference < frame:
        raise InputError(f"frame {frame} copies from no frame: the reference, frame {reference}, must come before it")
    if context < 1 or not 1 <= topk <= height * width or not radius > 0 or not tau > 0:
        raise InputError(f"context must be >= 1, topk in [1, {height * width}], radius and tau > 0, not context={context}, "
                         f"topk={topk}, radius={radius}, tau={tau}")
    entries = torch.tensor([reference, *(max(j, reference) for j in range(frame - context, frame))], device=features.device)
    first = int(entries[1])
    query = features[frame, :, y, x]
    recent = torch.einsum("k,tkhw->thw", query, features[first:frame])[entries[1:] - first]  # [context, h, w]
    near = _distance(torch.tensor([y, x], device=features.device), height, width) < radius
    cosine = torch.cat([torch.einsum("k,khw->hw", query, features[reference])[None],
                        recent.masked_fill(~near, -torch.inf)])
    value, index = cosine.flatten().topk(topk)
    return Sources(entries[index // (height * width)], _positions(index % (height * width), width), F.softmax(value / tau, 0))


def _check_cells(features: Tensor, frame: int, points: Tensor) -> None:
    frames, _, height, width = features.shape
    inside = ((points >= 0) & (points < torch.tensor([height, width], device=points.device))).all()
    if points.ndim != 2 or points.shape[1] != 2 or not inside or not 0 <= frame < frames:
        raise InputError(f"frame {frame}, cells [y, x] {points.tolist()}: outside {frames} frames of {height}x{width} cells")


def _positions(index: Tensor, width: int) -> Tensor:
    """Flat indices y·w + x (…) to positions (…, 2) [y, x]."""
    return torch.stack([index // width, index % width], -1)


def _distance(point: Tensor, height: int, width: int) -> Tensor:
    """(h, w) Euclidean distances of all cells from one."""
    y, x = torch.arange(height, device=point.device), torch.arange(width, device=point.device)
    return torch.hypot((y - point[0]).float()[:, None], (x - point[1]).float()[None])


def _nearest(queries: Tensor, keys: Tensor) -> Tensor:
    """For each of the queries (K, n) the number of the most similar of the keys (K, m): (n,) int64."""
    step = max(1, CHUNK // keys.shape[1])
    return torch.cat([(part.t() @ keys).argmax(1) for part in queries.split(step, 1)])
