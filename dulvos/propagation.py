"""Label propagation: the masks of annotated frames carried through a video by its features (App. C)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dulvos.errors import InputError

__all__ = ["object_ids", "propagate", "to_labels"]

TILE = 16  # side of a tile of queries, in cells: larger tiles look at more cells in vain, smaller ones feed the GEMM badly


@dataclass(frozen=True)
class _Reference:
    """An annotated frame: one context of propagation (Sec. 4.2; App. C, footnote)."""

    frame: int
    keys: Tensor  # [h·w, K]


def object_ids(first_mask: Tensor | np.ndarray | Mapping[int, Tensor | np.ndarray]) -> tuple[int, ...]:
    """Ids of the channels that `propagate` gives for these masks: 0 (background), then the objects' ids, rising."""
    masks = first_mask.values() if isinstance(first_mask, Mapping) else [first_mask]
    return tuple(sorted({0}.union(*(np.unique(np.asarray(mask)).tolist() for mask in masks))))


def to_labels(soft: Tensor, size: tuple[int, int], ids: tuple[int, ...]) -> Tensor:
    """Ids at full size: soft masks enlarged bilinearly (align_corners=True), then the argmax.

    Arguments:
        soft: (M, h, w) float, background first.
        size: (H, W) in pixels.
        ids: of the M channels, as `object_ids` gives them.

    Returns:
        (H, W) int64 on the device of `soft`.
    """
    large = F.interpolate(soft[None], size, mode="bilinear", align_corners=True)[0]
    return torch.as_tensor(ids, device=soft.device)[large.argmax(0)]


def propagate(features: Iterable[Tensor], first_mask: Tensor | np.ndarray | Mapping[int, Tensor | np.ndarray], *,
              context: int = 20, radius: float = 12, topk: int = 10, tau: float = 0.05) -> Iterator[Tensor]:
    """Carry masks through a video; soft masks come out frame by frame, the annotated frames' own included.

    Each cell of frame t is compared with the reference frame t₀ (every cell of it) and with frames max(j, t₀), j = t - context
    … t - 1 (cells at Euclidean distance d < radius), so that before t₀ + context the reference counts more than once. Its mask
    is the convex combination of the masks at the topk most similar cells, weighted by softmax(cosine / τ) over those (Eqs. 7, 8).
    Each annotated frame is a reference with a context of its own; a channel is carried by the newest reference that
    annotates it, the background by the first, and the merged mask is what all contexts remember.

    Memory does not depend on the length of the video: `context` frames and the references are kept.

    Arguments:
        features: (T, K, h, w) float, L2-normalised over K; or an iterable of (K, h, w) frames.
        first_mask: (H, W) integer ids of frame 0, 0 being background; or a mapping from frame number to such ids, where each
            holds the objects that are new (or corrected) in that frame. Ids may have gaps. Frames before the first are background.
        context: number of recent entries, >= 1; the reference comes on top.
        radius: exclusive bound on the distance to recent cells, in cells, > 0.
        topk: number of cells a label is copied from, in [1, h·w].
        tau: temperature τ, > 0.

    Yields:
        (M, h, w) float32, channels as in `object_ids(first_mask)`.

    Raises:
        InputError: a parameter out of range, masks of differing size or frame numbers outside the video, frames of
            differing shape.
    """
    if context < 1 or topk < 1 or not radius > 0 or not tau > 0:
        raise InputError(f"context and topk must be >= 1, radius and tau > 0, not context={context}, topk={topk}, "
                         f"radius={radius}, tau={tau}")
    masks = dict(first_mask) if isinstance(first_mask, Mapping) else {0: first_mask}
    masks = {int(t): torch.as_tensor(np.asarray(mask).astype(np.int64)) for t, mask in masks.items()}
    if not masks or min(masks) < 0 or len({mask.shape for mask in masks.values()}) > 1:
        raise InputError("first_mask needs at least one mask, at frame numbers >= 0 and of one size, not "
                         + str({t: tuple(mask.shape) for t, mask in masks.items()}))
    return _propagate(features, masks, object_ids(masks), context, radius, topk, tau)


def _propagate(features: Iterable[Tensor], masks: dict[int, Tensor], ids: tuple[int, ...],
               context: int, radius: float, topk: int, tau: float) -> Iterator[Tensor]:
    start = min(masks)
    references: list[_Reference] = []
    owner = torch.full((len(ids),), -1)  # number of the reference that carries a channel
    shape = ring = table = scratch = None
    t = -1
    for t, frame in enumerate(features):
        if shape is None:
            shape = channels, height, width = frame.shape
            if topk > height * width:
                raise InputError(f"topk={topk} exceeds the {height}x{width} cells of a frame")
            cells = height * width
            ring = frame.new_empty(context, height, width, channels)
            # a fresh allocation for each tile's keys would cost more than filling it
            scratch = frame.new_empty(context * (TILE + 2 * int(np.ceil(radius))) ** 2 * channels)
            # masks of the ring's frames, then those of the references
            table = frame.new_zeros(context + len(masks), cells, len(ids), dtype=torch.float32)
        if frame.shape != shape:
            raise InputError(f"frame {t} has features of shape {tuple(frame.shape)}, frame 0 of {tuple(shape)}")
        keys = frame.permute(1, 2, 0).contiguous()  # [h, w, K]

        soft = table.new_zeros(cells, len(ids))
        if t < start:
            soft[:, 0] = 1
        for number, reference in enumerate(references):
            reference_table = table[context + number]
            carried = _attend(keys, ring, scratch, table[:context], reference, reference_table, t, start, radius, topk, tau)
            soft += carried * (owner == number).to(soft)
        if t in masks:
            annotated = _one_hot(masks[t], ids, height, width).to(soft)  # [h·w, M]
            held = torch.tensor([i in masks[t].unique().tolist() for i in ids])
            if references:
                held[0], annotated[:, 0] = False, 0
                soft[:, held] = 0  # a correction replaces what older references carried
                s = annotated.sum(1, keepdim=True)
                soft = (1 - s) * soft + s * annotated
            else:
                held[0], soft = True, annotated
            owner[held] = len(references)
            table[context + len(references)] = soft
            references.append(_Reference(t, keys.flatten(0, 1)))
        if t >= start:
            slot = (t - start) % context
            ring[slot], table[slot] = keys, soft
        yield soft.t().reshape(len(ids), height, width)
    if t < max(masks):
        raise InputError(f"a mask is given for frame {max(masks)}, but the video has {t + 1} frames (numbered from 0)")


def _one_hot(mask: Tensor, ids: tuple[int, ...], height: int, width: int) -> Tensor:
    """(H, W) ids -> (h·w, M) soft masks, reduced bilinearly (align_corners=True)."""
    one_hot = torch.stack([mask == i for i in ids]).float()
    return F.interpolate(one_hot[None], (height, width), mode="bilinear", align_corners=True)[0].flatten(1).t()


def _attend(query: Tensor, ring: Tensor, scratch: Tensor, ring_table: Tensor, reference: _Reference, reference_table: Tensor,
            t: int, start: int, radius: float, topk: int, tau: float) -> Tensor:
    """One context's prediction for frame t: (h·w, M)."""
    context, height, width, channels = ring.shape
    cells = height * width
    used = min(t - start, context)
    first = t - used  # oldest frame in the ring
    age = torch.arange(first, t)
    slots = ((age[age >= reference.frame] - start) % context).sort().values
    leading = len(slots) == int(slots[-1]) + 1  # a plain slice will do
    # how often the reference stands among the recent entries: frames max(j, t₀) for j <= t₀
    repeats = reference.frame - (t - context) + 1
    home = int((reference.frame - start) % context)
    out = query.new_empty(height, width, ring_table.shape[-1], dtype=torch.float32)
    table = torch.cat([ring_table.flatten(0, 1), reference_table])

    for rows, columns in _tiles(height, width):
        tile = query[rows, columns].reshape(-1, channels)  # [Q, K]
        top, left, window, far = _window(rows, columns, height, width, radius)
        size = far.shape[1]
        near = ring[:, window[0], window[1]]
        near = near[: len(slots)] if leading else near[slots]
        near = scratch[: near.numel()].view(near.shape).copy_(near).view(-1, channels)  # [F·W, K]
        affinity = (tile @ near.t()).view(len(tile), len(slots), size)  # [Q, F, W]

        # the best cells lie among those whose best frame is best, so the mask and the selection see F times fewer numbers
        best = affinity.amax(1).masked_fill_(far.to(affinity.device), -torch.inf)
        best, cell = best.topk(min(topk, size), 1, sorted=False)  # [Q, k]
        value = affinity.gather(2, cell[:, None].expand(-1, len(slots), -1))  # [Q, F, k]
        value = value.masked_fill(best[:, None] == -torch.inf, -torch.inf)
        y, x = top + cell // (window[1].stop - left), left + cell % (window[1].stop - left)
        index = slots.to(cell.device)[:, None] * cells + (y * width + x)[:, None]  # [Q, F, k] into table
        values, indices = [value.flatten(1)], [index.flatten(1)]
        if repeats > 1:
            position = int((slots == home).nonzero())
            copies = min(repeats, topk) - 1
            values.append(value[:, position].repeat(1, copies))
            indices.append(index[:, position].repeat(1, copies))

        value, cell = _grouped_topk((tile @ reference.keys.t()).view(len(tile), height, width), topk)
        values.append(value)
        indices.append(cell + context * cells)

        value, chosen = torch.cat(values, 1).topk(topk, 1, sorted=False)
        weight = (value / tau).softmax(1).float()
        index = torch.cat(indices, 1).gather(1, chosen)
        out[rows, columns] = F.embedding_bag(index, table, per_sample_weights=weight, mode="sum").view(
            rows.stop - rows.start, columns.stop - columns.start, -1)
    return out.flatten(0, 1)


def _grouped_topk(affinity: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    """Top-k over (Q, h, w) by columns first: the k greatest lie in the k columns with the greatest maxima."""
    queries, height, width = affinity.shape
    _, column = affinity.amax(1).topk(min(topk, width), 1, sorted=False)  # [Q, k]
    value = affinity.gather(2, column[:, None].expand(-1, height, -1)).flatten(1)  # [Q, h·k]
    value, chosen = value.topk(topk, 1, sorted=False)
    count = column.shape[1]
    return value, chosen // count * width + column.gather(1, chosen % count)


def _tiles(height: int, width: int) -> list[tuple[slice, slice]]:
    """The map cut into nearly equal tiles of at most TILE x TILE cells."""
    def cut(length: int) -> list[slice]:
        count = -(-length // TILE)
        edges = [length * i // count for i in range(count + 1)]
        return [slice(a, b) for a, b in zip(edges, edges[1:])]
    return [(rows, columns) for rows in cut(height) for columns in cut(width)]


@lru_cache(maxsize=1024)
def _far(tile: tuple[int, int], offset: tuple[int, int], window: tuple[int, int], radius: float) -> Tensor:
    """(Q, W) bool: which window cells lie at d >= radius from which tile cells."""
    y, x = torch.arange(tile[0]) + offset[0], torch.arange(tile[1]) + offset[1]
    dy = (y[:, None] - torch.arange(window[0])[None]).square()[:, None, :, None]
    dx = (x[:, None] - torch.arange(window[1])[None]).square()[None, :, None, :]
    return (dy + dx >= radius**2).view(tile[0] * tile[1], window[0] * window[1])


def _window(rows: slice, columns: slice, height: int, width: int,
            radius: float) -> tuple[int, int, tuple[slice, slice], Tensor]:
    """The box of cells that a tile can reach, its corner, and which of its cells are too far from which query."""
    reach = int(np.ceil(radius)) - 1
    top, bottom = max(0, rows.start - reach), min(height, rows.stop + reach)
    left, right = max(0, columns.start - reach), min(width, columns.stop + reach)
    far = _far((rows.stop - rows.start, columns.stop - columns.start), (rows.start - top, columns.start - left),
               (bottom - top, right - left), radius)
    return top, left, (slice(top, bottom), slice(left, right)), far
