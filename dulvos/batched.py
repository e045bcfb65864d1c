"""Label propagation for devices with many processors: all tiles of a frame in one batched product (App. C)."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Attention"]

TILE = 12  # side of a tile of queries, in cells
AT_ONCE = 2**26  # similarities to a reference: 0.25 GB in float32, all of them at 480p


class Attention:
    """A video's recent frames and references, and what they predict for the next frame (Eqs. 7, 8). Not measured on a GPU.

    For each recent frame all tiles meet their windows in one product, of which each query keeps its topk; a reference, every
    cell of which counts, is met by some queries at a time. Memory is that of one such product.

    Arguments:
        first: (h, w, K) float, L2-normalised over K: the video's first frame.
        context: slots of the ring of recent frames.
        radius, topk, tau: as `dulvos.propagation.propagate` takes them.
    """

    def __init__(self, first: Tensor, context: int, radius: float, topk: int, tau: float):
        self.context, self.radius, self.topk, self.tau = context, radius, topk, tau
        self.ring = first.new_empty(context, *first.shape)
        self.references: list[Tensor] = []

    def put(self, slot: int, keys: Tensor) -> None:
        """Keep a recent frame (h, w, K) in a slot of the ring."""
        self.ring[slot] = keys

    def add_reference(self, keys: Tensor) -> None:
        """Keep a reference frame (h, w, K) for good."""
        self.references.append(keys)

    def attend(self, query: Tensor, slots: Tensor, counts: Tensor, number: int, table: Tensor) -> Tensor:
        """One context's prediction for a frame.

        Arguments:
            query: (h, w, K) float, the frame.
            slots: (n,) int64, rising: the recent frames to look at.
            counts: (n,) int64, how often each counts; the one that counts more than once is the reference itself.
            number: of the reference, every cell of which is looked at.
            table: (context + references, h·w, M) float32: masks of the ring's slots, then of the references.

        Returns:
            (h·w, M) float32.
        """
        height, width, channels = query.shape
        cells, topk = height * width, self.topk
        tiles, windows, far = _plan(height, width, self.radius, query.device)
        queries = query.view(cells, channels)[tiles]  # [n, Q, K]
        values, indices = [], []
        for slot, count in zip(slots.tolist(), counts.tolist()):
            keys = self.ring[slot].view(cells, channels)[windows]  # [n, W, K]
            affinity = torch.bmm(queries, keys.transpose(1, 2)).masked_fill_(far, -torch.inf)  # [n, Q, W]
            value, best = affinity.topk(min(topk, windows.shape[1]), 2)
            cell = windows[:, None].expand(-1, tiles.shape[1], -1).gather(2, best)
            values += [value] * min(count, topk)
            indices += [slot * cells + cell] * min(count, topk)
        keys = self.references[number].view(cells, channels).t()
        parts = [(part @ keys).topk(topk, 1) for part in query.view(cells, channels).split(max(1, AT_ONCE // cells))]
        value, best = (torch.cat(part) for part in zip(*parts))
        value = torch.cat([*values, value[tiles]], 2)
        index = torch.cat([*indices, (self.context + number) * cells + best[tiles]], 2)
        value, chosen = value.topk(topk, 2)
        weight = (value / self.tau).softmax(2).float()
        carried = F.embedding_bag(index.gather(2, chosen).flatten(0, 1), table.flatten(0, 1),
                                  per_sample_weights=weight.flatten(0, 1), mode="sum")
        out = table.new_empty(cells, table.shape[-1])
        out[tiles.flatten()] = carried
        return out


@lru_cache(maxsize=8)
def _plan(height: int, width: int, radius: float, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Cells of each tile (n, Q) and of its window (n, W), and which of these lie at d >= radius from which query (n, Q, W).

    All tiles have one size and all windows too: at the border they are moved into the map, where they overlap.
    """
    reach = min(math.ceil(min(radius, height + width)) - 1, max(height, width))

    def cut(length: int) -> tuple[Tensor, Tensor]:
        side = min(TILE, length)
        start = (torch.arange(-(-length // side)) * side).clamp(max=length - side)
        wide = min(length, side + 2 * reach)
        first = (start - reach).clamp(0, length - wide)
        return start[:, None] + torch.arange(side), first[:, None] + torch.arange(wide)

    (rows, near_rows), (columns, near_columns) = cut(height), cut(width)
    dy = (rows[:, :, None] - near_rows[:, None]).square()[:, None, :, None, :, None]
    dx = (columns[:, :, None] - near_columns[:, None]).square()[None, :, None, :, None, :]
    count = len(rows) * len(columns)
    tiles, windows = ((y[:, None, :, None] * width + x[None, :, None, :]).reshape(count, -1)
                      for y, x in ((rows, columns), (near_rows, near_columns)))
    far = (dy + dx >= radius**2).reshape(count, tiles.shape[1], windows.shape[1])
    return tiles.to(device), windows.to(device), far.to(device)
