"""A faster comparison of cells for CPUs: a coarse product, then an exact one of the cells that it keeps."""

from collections.abc import Iterator, Sequence
from functools import cache
from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Preselected", "Window", "windows"]

TILE = 12  # side of a tile in cells: larger tiles compare too many far cells, smaller ones make slow products


class Window(NamedTuple):
    """A tile of a feature map, the box of cells near it, and which of these are too far from which cell."""

    rows: slice  # of the tile, Q cells
    columns: slice
    near_rows: slice  # of the box, W cells
    near_columns: slice
    far: Tensor  # (W, Q) bool


def windows(height: int, width: int, radius: float, neighbourhood: str, device: torch.device) -> list[Window]:
    """Cut a map into nearly equal tiles of at most TILE x TILE cells, each with its window.

    Arguments:
        radius: in cells, > 0.
        neighbourhood: "disc" (distance < radius) or "box" (|dy| and |dx| <= radius).
    """
    radius, box = min(radius, height + width), neighbourhood == "box"
    reach = int(radius) if box else ceil(radius) - 1

    def cut(length: int) -> list[tuple[slice, slice]]:
        count = ceil(length / TILE)
        edges = [length * i // count for i in range(count + 1)]
        return [(slice(a, b), slice(max(0, a - reach), min(length, b + reach)))
                for a, b in zip(edges, edges[1:])]

    @cache  # most windows have the same shape
    def far(*sides: tuple[int, int, int]) -> Tensor:
        dy, dx = ((torch.arange(*near)[:, None] - torch.arange(own)).abs() for own, *near in sides)
        dy, dx = dy[:, None, :, None], dx[:, None]
        beyond = (dy > radius) | (dx > radius) if box else dy.square() + dx.square() >= radius**2
        return beyond.flatten(2).flatten(0, 1).to(device)

    def side(own: slice, near: slice) -> tuple[int, int, int]:
        return own.stop - own.start, near.start - own.start, near.stop - own.start

    return [Window(rows, columns, near_rows, near_columns,
                   far(side(rows, near_rows), side(columns, near_columns)))
            for rows, near_rows in cut(height) for columns, near_columns in cut(width)]


class Preselected:
    """Compares cells as `dulvos.propagation.Plain` does, but leaves out most cells that no query can choose.

    First it compares coarsely, in bfloat16 if the processor multiplies that fast. To keep rounding errors
    small, the mean μ of the first frame's cells is taken out of keys and queries: q·k = (q - μ)·(k - μ) +
    μ·(k - μ) + q·μ. The last term is the same for all keys of a query. The second is a number for each key,
    kept in two more channels (one for its rounding error). A bound on the error then shows which cells cannot
    be among the topk of any query of the tile; the others are compared exactly.

    Arguments:
        first: (h, w, K) float, the first frame to be remembered.
        slots: number of frames to remember.
        topk: number of the largest similarities that must be found.
        coarse: dtype of the coarse product; None chooses it.
    """

    def __init__(self, first: Tensor, slots: int, topk: int, coarse: torch.dtype | None = None):
        height, width, channels = first.shape
        if coarse is None:
            fast = first.device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
            coarse = torch.bfloat16 if fast and channels >= 64 else torch.float32
        padded = channels + 2
        padded += -padded % 32 if coarse == torch.bfloat16 else 0  # the processor multiplies 32 at a time
        self.topk, self.mean = topk, first.mean((0, 1))
        self.keys = first.new_empty(slots, height, width, channels)
        self.coarse = first.new_zeros(slots, height, width, padded, dtype=coarse)
        self.norm = first.new_zeros(slots)  # largest norm of k - μ in each frame
        self.residual = first.new_zeros(slots)  # largest norm of what rounding to `coarse` takes away
        self.queries = first.new_zeros(TILE**2, padded, dtype=coarse)
        self.queries[:, channels: channels + 2] = 1
        self.rooms: dict[str, Tensor] = {}

    def put(self, slot: int, keys: Tensor) -> None:
        """Remember a frame (h, w, K)."""
        channels = len(self.mean)
        self.keys[slot] = keys
        centred, coarse = keys - self.mean, self.coarse[slot]
        constant = centred @ self.mean
        coarse[..., :channels] = centred
        coarse[..., channels] = constant
        coarse[..., channels + 1] = constant - coarse[..., channels]
        self.norm[slot] = centred.norm(dim=-1).max()
        self.residual[slot] = centred.sub_(coarse[..., :channels]).norm(dim=-1).max()

    def similarities(self, query: Tensor, tiles: Sequence[Window], near: Sequence[int],
                     everywhere: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """See `dulvos.propagation.Plain.similarities`; here n is smaller."""
        height, width, channels = query.shape
        keys = self.keys.flatten(0, 2)  # [S·h·w, K]
        cell = torch.arange(height * width, device=query.device).view(height, width)
        slots, counts = torch.tensor(near, dtype=torch.long, device=query.device).unique(return_counts=True)
        repeats = min(int(counts.max()), self.topk) if near else 1
        recent: Tensor | slice = slots
        if near and max(near) - min(near) < len(slots):
            recent = slice(min(near), max(near) + 1)  # a view, without a copy
        used = [*near, *everywhere]
        norm, residual = self.norm[used].max(), self.residual[used].max()
        for rows, columns, near_rows, near_columns, far in tiles:
            tile = query[rows, columns].flatten(0, 1)  # [Q, K]
            centred, coarse = tile - self.mean, self.queries[: len(tile)]
            coarse[:, :channels] = centred
            # coarse similarities [A, B, Q], the cells' numbers as sums of [A] and [B], and `far` [B, Q]
            parts = []
            if near:
                window = self.coarse[:, near_rows, near_columns][recent]
                window = self._room("keys", window.shape).copy_(window).flatten(1, 2)
                place = cell[near_rows, near_columns].flatten()
                parts.append((self._product("near", window, coarse), slots * cell.numel(), place, far))
            for slot in everywhere:
                parts.append((self._product("everywhere", self.coarse[slot], coarse),
                              slot * cell.numel() + cell[:, 0], cell[0], far.new_zeros(width, len(tile))))

            # a lower bound on the topk-th similarity
            best = [affinity.amax(0).masked_fill_(far, -torch.inf) for affinity, _, _, far in parts]  # [B, Q]
            high = torch.cat([_high(part[0], part[3], top, self.topk) for part, top in zip(parts, best)])
            high = high.float().topk(min(self.topk, len(high)), 0).values  # [k, Q]
            least = high[-1] if len(high) == self.topk else high[-1] - torch.inf
            # |coarse - exact| <= error where coarse >= least; the terms come from rounded queries, rounded
            # keys, sums in float32 and rounded results
            size, lost = centred.norm(dim=1), centred.sub_(coarse[:, :channels]).norm(dim=1)
            rounding = torch.finfo(coarse.dtype).eps
            error = lost * norm + (size + lost) * residual
            error += (size + self.mean.norm()) * norm * (channels * 2**-23 + 2**-16)
            error += rounding / 2 * torch.maximum(high[0].abs(), least.abs())
            least = (least - 2 * error - rounding / 4 * least.abs()).nan_to_num(nan=-torch.inf)
            least = least.to(coarse.dtype)

            found = [_survivors(part[0], part[3], top, least) for part, top in zip(parts, best)]
            index = torch.cat([part[1][a] + part[2][b] for part, (a, b) in zip(parts, found)])
            far = torch.cat([part[3][b] for part, (_, b) in zip(parts, found)])
            value = (tile @ keys[index].t()).masked_fill_(far.t(), -torch.inf)  # [Q, n]
            if repeats > 1:
                again = (counts[found[0][0]] > 1).nonzero()[:, 0].repeat(repeats - 1)
                value, index = torch.cat([value, value[:, again]], 1), torch.cat([index, index[again]])
            yield value, index

    def _room(self, name: str, shape: Sequence[int]) -> Tensor:
        """Memory that is used again, because allocating this much takes longer than filling it."""
        size = torch.Size(shape).numel()
        if name not in self.rooms or self.rooms[name].numel() < size:
            self.rooms[name] = self.coarse.new_empty(2 * size)  # windows grow
        return self.rooms[name][:size].view(shape)

    def _product(self, name: str, keys: Tensor, queries: Tensor) -> Tensor:
        """(A, B, K) times (Q, K): (A, B, Q)."""
        out = self._room(name, (*keys.shape[:2], len(queries)))
        torch.mm(keys.flatten(0, 1), queries.t(), out=out.flatten(0, 1))
        return out


def _high(affinity: Tensor, far: Tensor, best: Tensor, topk: int) -> Tensor:
    """Large similarities (n, Q) of (A, B, Q): all A at each query's topk places b of `best` (B, Q).

    `best` is the maximum over A.
    """
    place = best.t().contiguous().topk(min(topk, len(best)), 1, sorted=False).indices.t()  # [k, Q]
    values = affinity.gather(1, place.expand(len(affinity), -1, -1))
    return values.masked_fill(far.gather(0, place), -torch.inf).flatten(0, 1)


def _survivors(affinity: Tensor, far: Tensor, best: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
    """Places (a, b) of (A, B, Q) that reach `least` (Q,) for any query; `best` (B, Q): maximum over A."""
    place = (best >= least).any(1).nonzero()[:, 0]  # few b hold such a place
    bound = least.expand(len(place), -1).masked_fill(far[place], torch.inf)
    # a difference and its maximum are faster than a comparison and any()
    a, b = ((affinity.index_select(1, place) - bound).amax(2) >= 0).nonzero().unbind(1)
    return a, place[b]
