"""Label propagation on a processor: a tile of queries at a time, compared coarsely first and then, where it counts, exactly."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Attention"]

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


class Attention:
    """What `dulvos.batched.Attention` computes, with the same methods, in float32 or wider.

    A tile of queries is compared coarsely with all that it may look at. Cells that by a bound on the error of that cannot be among
    the topk of any of its queries are left out, and the rest is compared exactly: the result is that of comparing all exactly.
    """

    def __init__(self, first: Tensor, context: int, radius: float, topk: int, tau: float):
        self.height, self.width, self.channels = first.shape
        self.context, self.radius, self.topk, self.tau = context, radius, topk, tau
        self.mean, self.dtype = first.mean((0, 1)), _coarse_dtype(first.device, self.channels)
        self.ring = _Keys.room(context, first, self.dtype)
        self.references: list[_Keys] = []
        self.scratch = _Scratch(first, self.ring.coarse.shape[-1], self.dtype, context, radius)

    def put(self, slot: int, keys: Tensor) -> None:
        """Keep a recent frame (h, w, K) in a slot of the ring."""
        self.ring.put(slot, keys, self.mean)

    def add_reference(self, keys: Tensor) -> None:
        """Keep a reference frame (h, w, K) for good."""
        self.references.append(_Keys.room(1, keys, self.dtype))
        self.references[-1].put(0, keys, self.mean)

    def attend(self, query: Tensor, slots: Tensor, counts: Tensor, number: int, table: Tensor) -> Tensor:
        """See `dulvos.batched.Attention.attend`."""
        ring, reference, scratch = self.ring, self.references[number], self.scratch
        height, width, channels, topk = self.height, self.width, self.channels, self.topk
        cells = height * width
        leading = len(slots) == int(slots[-1]) + 1  # a plain slice will do
        repeats, where, counts = int(counts.max()), slots.to(query.device), counts.to(query.device)
        norm = torch.stack([ring.norm[where].max(), reference.norm[0]]).max()
        residual = torch.stack([ring.residual[where].max(), reference.residual[0]]).max()
        rounding = torch.finfo(ring.coarse.dtype).eps
        table = table.flatten(0, 1)
        out = query.new_empty(height, width, table.shape[-1], dtype=torch.float32)

        for rows, columns in _tiles(height, width):
            tile = query[rows, columns].reshape(-1, channels)  # [Q, K]
            window, far = _window(rows, columns, height, width, self.radius, query.device)
            near = ring.coarse[:, window[0], window[1]]
            near = near[: len(slots)] if leading else near[where]
            near = scratch.keys[: near.numel()].view(near.shape).copy_(near).flatten(0, 2)  # [F·W, K and more]
            centred = tile - self.mean
            coarse = scratch.queries[: len(tile)]
            coarse[:, :channels] = centred
            recent = scratch.product(near, coarse, 0).view(len(slots), *far.shape)  # [F, W, Q]
            to_reference = scratch.product(reference.coarse.view(cells, -1), coarse, 1).view(height, width, -1)  # [h, w, Q]

            # a lower bound on the topk-th similarity: the best entries lie in the cells whose best frame is best
            best, best_column = recent.amax(0).masked_fill_(far, -torch.inf), to_reference.amax(0)
            cell = best.t().contiguous().topk(min(topk, len(far)), 1, sorted=False).indices.t()  # [k, Q]
            high = recent.gather(1, cell.expand(len(slots), -1, -1)).masked_fill(far.gather(0, cell), -torch.inf)
            high = torch.cat([high.flatten(0, 1), best_column]).float()
            high = high.topk(min(topk, len(high)), 0).values  # [k, Q]
            least = high[-1] if len(high) == topk else high[-1] - torch.inf
            # |coarse - exact| <= error where coarse >= least: rounded queries, rounded keys, sums in float32, rounded results
            size, lost = centred.norm(dim=1), centred.sub_(coarse[:, :channels]).norm(dim=1)
            error = lost * norm + (size + lost) * residual + (size + self.mean.norm()) * norm * (channels * 2**-23 + 2**-16)
            error += rounding / 2 * torch.maximum(high[0].abs(), least.abs())
            least = (least - 2 * error - rounding / 4 * least.abs()).nan_to_num(nan=-torch.inf).to(near.dtype)
            slot, cell = _survivors(recent, best, least, far)
            row, column = _survivors(to_reference, best_column, least)

            wide = window[1].stop - window[1].start
            index = where[slot] * cells + (window[0].start + cell // wide) * width + window[1].start + cell % wide
            index_reference = row * width + column
            keys = torch.cat([ring.exact.view(-1, channels)[index], reference.exact.view(-1, channels)[index_reference]])
            value = tile @ keys.t()  # [Q, n]
            value[:, : len(index)].masked_fill_(far[cell].t(), -torch.inf)
            index = torch.cat([index, (self.context + number) * cells + index_reference])
            if repeats > 1:
                copies = (counts[slot] > 1).nonzero()[:, 0].repeat(min(repeats, topk) - 1)
                value, index = torch.cat([value, value[:, copies]], 1), torch.cat([index, index[copies]])

            value, chosen = value.topk(topk, 1, sorted=False)
            weight = (value / self.tau).softmax(1).float()
            out[rows, columns] = F.embedding_bag(index[chosen], table, per_sample_weights=weight, mode="sum").view(
                rows.stop - rows.start, columns.stop - columns.start, -1)
        return out.flatten(0, 1)


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
