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

TILE = 12  # side of a tile of queries, in cells: larger tiles look at more cells in vain, smaller ones feed the GEMM badly


@dataclass(frozen=True)
class _Keys:
    """Cells to compare with: exactly, and coarsely in half the bits with a mean μ taken out of keys and queries.

    q·(k - μ) ranks the keys of a query as q·k does. It is (q - μ)·(k - μ) + μ·(k - μ): shorter vectors, whose roundings are
    smaller, and a number a key, which stands in two further channels (what the first leaves of it in the second).
    """

    exact: Tensor  # [F, h, w, K]
    coarse: Tensor  # [F, h, w, K + 2 and padding]
    norm: Tensor  # [F], greatest norm of k - μ in each frame
    residual: Tensor  # [F], greatest norm of what coarse leaves of it

    @classmethod
    def room(cls, frames: int, like: Tensor, dtype: torch.dtype) -> _Keys:
        """Room for frames [h, w, K] such as `like`."""
        channels = like.shape[-1] + 2
        channels += -channels % 32 if dtype == torch.bfloat16 else 0  # what the processor multiplies at once
        return cls(like.new_empty(frames, *like.shape), like.new_zeros(frames, *like.shape[:2], channels, dtype=dtype),
                   like.new_zeros(frames), like.new_zeros(frames))

    def put(self, slot: int, keys: Tensor, mean: Tensor) -> None:
        channels = len(mean)
        self.exact[slot] = keys
        centred, coarse = keys - mean, self.coarse[slot]
        constant = centred @ mean
        coarse[..., :channels] = centred
        coarse[..., channels] = constant
        coarse[..., channels + 1] = constant - coarse[..., channels]
        self.norm[slot] = centred.norm(dim=-1).max()
        self.residual[slot] = centred.sub_(coarse[..., :channels]).norm(dim=-1).max()


@dataclass(frozen=True)
class _Reference:
    """An annotated frame: one context of propagation (Sec. 4.2; App. C, footnote)."""

    frame: int
    keys: _Keys  # of one frame


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
    if (not masks or min(masks) < 0 or any(mask.ndim != 2 for mask in masks.values())
            or len({mask.shape for mask in masks.values()}) > 1):
        raise InputError("first_mask needs at least one mask (H, W) of ids, at frame numbers >= 0 and of one size, not "
                         + str({t: tuple(mask.shape) for t, mask in masks.items()}))
    ids = object_ids(masks)
    if ids[0] < 0:
        raise InputError(f"ids in a mask must be >= 0, not {ids[0]}")
    return _propagate(features, masks, ids, context, radius, topk, tau)


def _propagate(features: Iterable[Tensor], masks: dict[int, Tensor], ids: tuple[int, ...],
               context: int, radius: float, topk: int, tau: float) -> Iterator[Tensor]:
    start = min(masks)
    references: list[_Reference] = []
    owner = torch.full((len(ids),), -1)  # number of the reference that carries a channel
    shape = None
    t = -1
    for t, frame in enumerate(features):
        if shape is None:
            shape = channels, height, width = frame.shape
            if topk > height * width:
                raise InputError(f"topk={topk} exceeds the {height}x{width} cells of a frame")
            cells = height * width
            dtype = _coarse_dtype(frame.device, channels)
        if frame.shape != shape:
            raise InputError(f"frame {t} has features of shape {tuple(frame.shape)}, frame 0 of {tuple(shape)}")
        # similarities rounded to half precision, by the features or by autocast, would choose other cells
        keys = frame.to(torch.promote_types(frame.dtype, torch.float32)).permute(1, 2, 0).contiguous()  # [h, w, K]
        if t == 0:
            mean = keys.mean((0, 1))
            ring = _Keys.room(context, keys, dtype)
            # masks of the ring's frames, then those of the references
            table = keys.new_zeros(context + len(masks), cells, len(ids), dtype=torch.float32)
            scratch = _Scratch(keys, ring.coarse.shape[-1], dtype, context, radius)

        soft = table.new_zeros(cells, len(ids))
        if t < start:
            soft[:, 0] = 1
        for number, reference in enumerate(references):
            with torch.autocast(frame.device.type, enabled=False):
                carried = _attend(keys, mean, ring, reference, table, context + number, scratch, t, start, radius, topk, tau)
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
            references.append(_Reference(t, _Keys.room(1, keys, dtype)))
            references[-1].keys.put(0, keys, mean)
        if t >= start:
            slot = (t - start) % context
            ring.put(slot, keys, mean)
            table[slot] = soft
        yield soft.t().reshape(len(ids), height, width)
    if t < max(masks):
        raise InputError(f"a mask is given for frame {max(masks)}, but the video has {t + 1} frames (numbered from 0)")


def _one_hot(mask: Tensor, ids: tuple[int, ...], height: int, width: int) -> Tensor:
    """(H, W) ids -> (h·w, M) soft masks, reduced bilinearly (align_corners=True)."""
    one_hot = torch.stack([mask == i for i in ids]).float()
    return F.interpolate(one_hot[None], (height, width), mode="bilinear", align_corners=True)[0].flatten(1).t()


def _coarse_dtype(device: torch.device, channels: int) -> torch.dtype:
    """bfloat16 where the processor multiplies it fast with sums in float32, and where there is enough to multiply."""
    fast = device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
    return torch.bfloat16 if fast and channels >= 64 else torch.float32


class _Scratch:
    """Room for a tile's keys and affinities: fresh allocations of this size would cost more than filling them."""

    def __init__(self, keys: Tensor, channels: int, dtype: torch.dtype, context: int, radius: float):
        height, width, _ = keys.shape
        window = min(height, TILE + 2 * _reach(radius, height)) * min(width, TILE + 2 * _reach(radius, width))
        self.keys = keys.new_empty(context * window * channels, dtype=dtype)
        self.queries = keys.new_zeros(TILE**2, channels, dtype=dtype)
        self.queries[:, keys.shape[-1]: keys.shape[-1] + 2] = 1
        self.products = [keys.new_empty(count * TILE**2, dtype=dtype) for count in (context * window, height * width)]

    def product(self, keys: Tensor, queries: Tensor, number: int) -> Tensor:
        """(n, K) times (Q, K): [n, Q] in room of that number."""
        shape = len(keys), len(queries)
        return torch.mm(keys, queries.t(), out=self.products[number][: shape[0] * shape[1]].view(shape))


def _attend(query: Tensor, mean: Tensor, ring: _Keys, reference: _Reference, table: Tensor, reference_slot: int,
            scratch: _Scratch, t: int, start: int, radius: float, topk: int, tau: float) -> Tensor:
    """One context's prediction for frame t: (h·w, M).

    A tile of queries is compared coarsely with all that it may look at. Cells that by a bound on the error of that cannot be among
    the topk of any of its queries are left out, and the rest is compared exactly: the result is that of comparing all exactly.
    """
    context, height, width, channels = ring.exact.shape
    cells = height * width
    used = min(t - start, context)
    age = torch.arange(t - used, t)  # frames in the ring
    slots = ((age[age >= reference.frame] - start) % context).sort().values
    leading = len(slots) == int(slots[-1]) + 1  # a plain slice will do
    # how often the reference stands among the recent entries: frames max(j, t₀) for j <= t₀
    repeats = reference.frame - (t - context) + 1
    home = int((reference.frame - start) % context)
    where = slots.to(query.device)
    norm = torch.stack([ring.norm[where].max(), reference.keys.norm[0]]).max()
    residual = torch.stack([ring.residual[where].max(), reference.keys.residual[0]]).max()
    rounding = torch.finfo(ring.coarse.dtype).eps
    table = table.flatten(0, 1)
    out = query.new_empty(height, width, table.shape[-1], dtype=torch.float32)

    for rows, columns in _tiles(height, width):
        tile = query[rows, columns].reshape(-1, channels)  # [Q, K]
        window, far = _window(rows, columns, height, width, radius, query.device)
        near = ring.coarse[:, window[0], window[1]]
        near = near[: len(slots)] if leading else near[where]
        near = scratch.keys[: near.numel()].view(near.shape).copy_(near).flatten(0, 2)  # [F·W, K and more]
        centred = tile - mean
        coarse = scratch.queries[: len(tile)]
        coarse[:, :channels] = centred
        recent = scratch.product(near, coarse, 0).view(len(slots), *far.shape)  # [F, W, Q]
        to_reference = scratch.product(reference.keys.coarse.view(cells, -1), coarse, 1).view(height, width, -1)  # [h, w, Q]

        # a lower bound on the topk-th similarity: the best entries lie in the cells whose best frame is best
        best, best_column = recent.amax(0).masked_fill_(far, -torch.inf), to_reference.amax(0)
        cell = best.t().contiguous().topk(min(topk, len(far)), 1, sorted=False).indices.t()  # [k, Q]
        high = recent.gather(1, cell.expand(len(slots), -1, -1)).masked_fill(far.gather(0, cell), -torch.inf)
        high = torch.cat([high.flatten(0, 1), best_column]).float()
        high = high.topk(min(topk, len(high)), 0).values  # [k, Q]
        least = high[-1] if len(high) == topk else high[-1] - torch.inf
        # |coarse - exact| <= error where coarse >= least: rounded queries, rounded keys, sums in float32, rounded results
        size, lost = centred.norm(dim=1), centred.sub_(coarse[:, :channels]).norm(dim=1)
        error = lost * norm + (size + lost) * residual + (size + mean.norm()) * norm * (channels * 2**-23 + 2**-16)
        error += rounding / 2 * torch.maximum(high[0].abs(), least.abs())
        least = (least - 2 * error - rounding / 4 * least.abs()).nan_to_num(nan=-torch.inf).to(near.dtype)
        slot, cell = _survivors(recent, best, least, far)
        row, column = _survivors(to_reference, best_column, least)

        wide = window[1].stop - window[1].start
        index = where[slot] * cells + (window[0].start + cell // wide) * width + window[1].start + cell % wide
        index_reference = row * width + column
        keys = torch.cat([ring.exact.view(-1, channels)[index], reference.keys.exact.view(-1, channels)[index_reference]])
        value = tile @ keys.t()  # [Q, n]
        value[:, : len(index)].masked_fill_(far[cell].t(), -torch.inf)
        index = torch.cat([index, reference_slot * cells + index_reference])
        if repeats > 1:
            copies = (where[slot] == home).nonzero()[:, 0].repeat(min(repeats, topk) - 1)
            value, index = torch.cat([value, value[:, copies]], 1), torch.cat([index, index[copies]])

        value, chosen = value.topk(topk, 1, sorted=False)
        weight = (value / tau).softmax(1).float()
        out[rows, columns] = F.embedding_bag(index[chosen], table, per_sample_weights=weight, mode="sum").view(
            rows.stop - rows.start, columns.stop - columns.start, -1)
    return out.flatten(0, 1)


def _survivors(affinity: Tensor, best: Tensor, least: Tensor, far: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Entries (first, second) of affinity [A, W, Q] that reach `least` [Q] for any query; `best` [W, Q] is the maximum over A."""
    cell = (best >= least).any(1).nonzero()[:, 0]  # first by cells, since few of them have such an entry
    bound = least.expand(len(cell), -1)
    if far is not None:
        bound = bound.masked_fill(far[cell], torch.inf)
    # a difference and its maximum cost less than a comparison and any()
    first, second = ((affinity.index_select(1, cell) - bound).amax(2) >= 0).nonzero().unbind(1)
    return first, cell[second]


def _tiles(height: int, width: int) -> list[tuple[slice, slice]]:
    """The map cut into nearly equal tiles of at most TILE x TILE cells."""
    def cut(length: int) -> list[slice]:
        count = -(-length // TILE)
        edges = [length * i // count for i in range(count + 1)]
        return [slice(a, b) for a, b in zip(edges, edges[1:])]
    return [(rows, columns) for rows in cut(height) for columns in cut(width)]


def _reach(radius: float, side: int) -> int:
    """Cells to either side that d < radius reaches, no more than there are."""
    return int(min(np.ceil(radius) - 1, side))


@lru_cache(maxsize=1024)
def _far(tile: tuple[int, int], offset: tuple[int, int], window: tuple[int, int], radius: float, device: torch.device) -> Tensor:
    """(W, Q) bool: which window cells lie at d >= radius from which tile cells."""
    y, x = torch.arange(tile[0]) + offset[0], torch.arange(tile[1]) + offset[1]
    dy = (y[None] - torch.arange(window[0])[:, None]).square()[:, None, :, None]
    dx = (x[None] - torch.arange(window[1])[:, None]).square()[None, :, None, :]
    return (dy + dx >= radius**2).view(window[0] * window[1], tile[0] * tile[1]).to(device)


def _window(rows: slice, columns: slice, height: int, width: int, radius: float,
            device: torch.device) -> tuple[tuple[slice, slice], Tensor]:
    """The box of cells that a tile can reach, and which of its cells are too far from which query."""
    reach = _reach(radius, height), _reach(radius, width)
    top, bottom = max(0, rows.start - reach[0]), min(height, rows.stop + reach[0])
    left, right = max(0, columns.start - reach[1]), min(width, columns.stop + reach[1])
    far = _far((rows.stop - rows.start, columns.stop - columns.start), (rows.start - top, columns.start - left),
               (bottom - top, right - left), radius, device)
    return (slice(top, bottom), slice(left, right)), far
