"""Anchors in competition: an anchor's share among its own clip's anchors or those of all clips (Eqs. 1-3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dulvos import correspondence

__all__ = ["Contrast", "anchor_features", "chosen_anchor", "log_sum"]


def anchor_features(reference: Tensor, n: int) -> Tensor:
    """Anchors of a clip, (n², K), from its reference frame (K, h, w), on the middles of an n x n grid."""
    y, x = correspondence.anchor_grid(*reference.shape[1:], n).unbind(1)
    return reference[:, y, x].t().contiguous()


def log_sum(features: Tensor, anchors: Tensor, tau: float) -> Tensor:
    """The logarithm of the denominator of Eq. 1 at each cell: log Σ exp(k·q/τ) over anchors q (n, K); (T, h, w)."""
    return torch.stack([((anchors @ frame.flatten(1)) / tau).logsumexp(0).view(frame.shape[1:]) for frame in features])


def chosen_anchor(features: Tensor, anchors: Tensor, frame: int, y: int, x: int) -> int:
    """The anchor that a click means: in the reference frame (0) the nearest one, elsewhere the cell's dominant one."""
    if frame:
        return int((anchors @ features[frame, :, y, x]).argmax())
    grid = correspondence.anchor_grid(*features.shape[2:], round(len(anchors) ** 0.5)).float()
    return int((grid - grid.new_tensor([y, x])).square().sum(1).argmin())


class Contrast:
    """Maps of one encoder's features of a clip; what all clicks share is computed once.

    Arguments:
        features: (T, K, h, w), L2-normalised over K; frame 0 is the reference.
        others: gives the references (K, h', w') of the batch's other clips, when they are first asked for.
    """

    def __init__(self, features: Tensor, others: Callable[[], list[Tensor]] = list):
        self.features, self.others, self._kept = features, others, {}

    def affinity(self, frame: int, y: int, x: int) -> Tensor:
        """(T, h, w), cosine of a cell with all cells."""
        return correspondence.affinity(self.features, frame, y, x)

    def share(self, anchor: int, n: int, tau: float, clips: str) -> Tensor:
        """(T, h, w) in [0, 1], an anchor's part in the softmax over the anchors of the own clip or of all clips (Eq. 1)."""
        y, x = correspondence.anchor_grid(*self.features.shape[2:], n)[anchor].tolist()
        denominator = self._keep(("sum", n, tau, clips), lambda: log_sum(self.features, self.anchors(n, clips), tau))
        return (self.affinity(0, y, x) / tau - denominator).exp()

    def dominant(self, n: int, tau: float, clips: str) -> tuple[Tensor, Tensor]:
        """Labels (T, h, w), below n² for anchors of the own clip, and their shares (Eqs. 1, 2)."""
        return self._keep(("dominant", n, tau, clips),
                          lambda: correspondence.dominant_anchors(self.features, self.anchors(n, clips), tau))

    def chosen(self, n: int, frame: int, y: int, x: int) -> int:
        """See `chosen_anchor`."""
        return chosen_anchor(self.features, self.anchors(n, "own"), frame, y, x)

    def anchors(self, n: int, clips: str) -> Tensor:
        """(n², K) of the own clip, or (B·n², K) with those of the other clips after them."""
        others = self._keep(("others",), self.others) if clips == "all" else []
        return torch.cat([anchor_features(reference, n) for reference in [self.features[0], *others]])

    def _keep(self, key: tuple, compute: Callable[[], Any]) -> Any:
        if key not in self._kept:
            while len(self._kept) > 8:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = compute()
        return self._kept[key]
