"""Anchors, the space-time self-training loss and the cross-view loss (Sec. 3.3)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, distributed
from torch.distributed.nn.functional import all_gather

from dulvos.errors import InputError
from dulvos.views import warp

__all__ = ["LossOutput", "dense_loss", "gather_cells", "gather_processes", "sample_grid"]

JITTER = ("common", "independent", "none")
CHUNK = 2**22  # logits computed at once: 16 MB in float32, part of which stays in the processor's caches


@dataclass(frozen=True)
class LossOutput:
    """Result of `dense_loss`."""

    total: Tensor  # scalar, L = L_ST + λ·L_CV (Eq. 6)
    space_time: Tensor  # scalar, L_ST (Eq. 3)
    cross_view: Tensor  # scalar, L_CV (Eq. 5)
    # (B, T, h, w) int64, û of every view-2 cell (Eq. 2): b·N² + n for anchor n of the cell's own clip b,
    # where b counts the clips of all processes
    pseudo_labels: Tensor


def sample_grid(batch: int, height: int, width: int, n: int, generator: torch.Generator, *,
                jitter: str = "common") -> Tensor:
    """Positions of an n x n grid on each clip's feature map (𝒢 of Sec. 3.3).

    Arguments:
        batch: number of clips B.
        height, width: the feature map's h and w, both divisible by n.
        n: grid size (N for the anchors, M for the cross-view features).
        generator: a CPU generator.
        jitter: "common" shifts a clip's whole grid by one random offset in [0, h/n) x [0, w/n) (the release);
            "independent" draws one sample in each grid cell (the paper's words); "none" has no offset, which
            allows a shortcut (Sec. 3.5).

    Returns:
        (B, n, n) int64 flat indices y·w + x.

    Raises:
        InputError: n does not divide h and w, or the jitter is unknown.
    """
    if jitter not in JITTER:
        raise InputError(f"jitter must be one of {JITTER}, not {jitter!r}")
    if n < 1 or height % n or width % n:
        allowed = [k for k in range(1, min(height, width) + 1) if height % k == 0 and width % k == 0]
        raise InputError(f"a grid of {n} does not divide the {height}x{width} feature map; choose one of "
                         f"{allowed}")
    stride_y, stride_x = height // n, width // n
    side = n if jitter == "independent" else 1
    draw = torch.rand(2, batch, side, side, generator=generator, dtype=torch.float64) * (jitter != "none")
    y = torch.arange(n)[:, None] * stride_y + (draw[0] * stride_y).long()
    x = torch.arange(n)[None, :] * stride_x + (draw[1] * stride_x).long()
    return (y * width + x).expand(batch, n, n).contiguous()


def gather_cells(features: Tensor, index: Tensor) -> Tensor:
    """The cells of feature maps (B, K, h, w) at flat indices (B, n, n): (B, n², K)."""
    return torch.take_along_dim(features.flatten(2), index.flatten(1)[:, None], 2).mT


class _AnchorCrossEntropy(torch.autograd.Function):
    """Mean of -log softmax(k·qᵀ/τ)[û] over cells, with its gradient from the same pass.

    Each chunk of logits gives its part of the loss and of both gradients and is then dropped, so memory never
    holds the logits of all cells.
    """

    @staticmethod
    def forward(ctx, cells: Tensor, anchors: Tensor, labels: Tensor, tau: float) -> Tensor:
        # cells [n, K], anchors [B·N², K], labels [n]
        grads = (torch.empty_like(cells), torch.zeros_like(anchors)) if any(ctx.needs_input_grad) else ()
        loss = cells.new_zeros(())
        step = max(1, CHUNK // len(anchors))
        for start in range(0, len(cells), step):
            part = slice(start, start + step)
            logits = (cells[part] / tau) @ anchors.t()
            target = labels[part, None]
            chosen, top = logits.gather(1, target), logits.amax(1, keepdim=True)
            slope = logits.sub_(top).exp_()  # in place: a pass over the logits costs as much as the product
            total = slope.sum(1, keepdim=True)
            loss += (total.log() + top - chosen).sum()
            if grads:
                scale = tau * len(cells)
                slope.div_(total.mul_(scale))  # softmax / scale
                slope.scatter_add_(1, target, slope.new_full((1, 1), -1 / scale).expand_as(target))
                torch.mm(slope, anchors, out=grads[0][part])
                grads[1].addmm_(slope.t(), cells[part])
        ctx.save_for_backward(*grads)
        return loss / len(cells)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return *(slope * grad for slope in ctx.saved_tensors), None, None


def _pseudo_labels(features_view2: Tensor, anchors: Tensor) -> Tensor:
    """û of every view-2 cell (Eq. 2), b·N² + n: the anchor of its own clip that is most similar."""
    affinities = (q @ queries for q, queries in zip(anchors, features_view2.flatten(3)))  # [T, N², h·w]
    labels = [affinity.argmax(1) + b * anchors.shape[1] for b, affinity in enumerate(affinities)]
    return torch.stack(labels).unflatten(2, features_view2.shape[3:])


def gather_processes(rows: Tensor) -> tuple[Tensor, int]:
    """The rows (n, K) of all processes in order, with gradient, and the index of this process's first row."""
    if not (distributed.is_initialized() and distributed.get_world_size() > 1):
        return rows, 0
    return torch.cat(all_gather(rows.contiguous())), distributed.get_rank() * len(rows)


def dense_loss(features: Tensor, features_view2: Tensor, theta: Tensor, anchor_index: Tensor,
               cross_index: Tensor, *, tau: float = 0.05, lam: float = 0.1,
               corrected_stride: int | None = None) -> LossOutput:
    """L = L_ST + λ·L_CV (Eqs. 1-6), exactly, without holding the B·T·h·w x B·N² affinities in memory.

    𝒯 warps the main view's K-channel features instead of its B·N²-channel affinities, which is the same for
    nearest-neighbour sampling. Frame 0 is the reference 𝓡: the anchors q come from it, L_ST leaves it out,
    and L_CV compares it alone. At T = 1 there is no other frame, so L_ST = 0 (Fig. 5b).

    With several processes (torch.distributed), which must hold equally many clips, anchors and r̂ come from
    all of them. The mean of their losses is then the loss of all clips.

    Arguments:
        features: (B, T, K, h, w) float, main view, L2-normalised over K.
        features_view2: (B, T, K, h, w), view 2, L2-normalised; only its frame 0 gets a gradient, from L_CV.
        theta: (B, 2, 3), 𝒯 from view-2 to main-view coordinates.
        anchor_index: (B, N, N) int64 flat indices y·w + x into the main view's reference, before the warp.
        cross_index: (B, M, M) int64 flat indices into both references, that of the main view warped.
        tau: temperature τ of both losses, > 0.
        lam: λ, weight of L_CV, >= 0.
        corrected_stride: see `dulvos.views.warp`.

    Raises:
        InputError: shapes that do not fit, or tau out of range.
    """
    if features.ndim != 5 or features.shape != features_view2.shape:
        raise InputError(f"features of both views must share one shape (B, T, K, h, w), not "
                         f"{tuple(features.shape)} and {tuple(features_view2.shape)}")
    batch, frames, channels, height, width = features.shape
    if theta.shape != (batch, 2, 3) or len(anchor_index) != batch or len(cross_index) != batch:
        raise InputError(f"theta, anchor_index and cross_index must hold {batch} clips, not shapes "
                         f"{tuple(theta.shape)}, {tuple(anchor_index.shape)} and {tuple(cross_index.shape)}")
    if not tau > 0:
        raise InputError(f"tau must be positive, not {tau}")

    with torch.autocast(features.device.type, enabled=False):
        anchors = gather_cells(features[:, 0], anchor_index)  # q [B, N², K]
        all_anchors, first = gather_processes(anchors.flatten(0, 1))
        with torch.no_grad():
            pseudo_labels = _pseudo_labels(features_view2, anchors) + first
        warped = warp(features, theta, corrected_stride=corrected_stride)

        space_time = features.new_zeros(())
        if frames > 1:  # i ∉ 𝓡
            cells = warped[:, 1:].movedim(2, -1).reshape(-1, channels)
            space_time = _AnchorCrossEntropy.apply(cells, all_anchors, pseudo_labels[:, 1:].reshape(-1), tau)

        r = gather_cells(warped[:, 0], cross_index).flatten(0, 1)  # [B·M², K]
        r_hat, first = gather_processes(gather_cells(features_view2[:, 0], cross_index).flatten(0, 1))
        logits = r @ r_hat.t() / tau
        targets = first + torch.arange(len(logits), device=logits.device)
        cross_view = F.cross_entropy(logits, targets)  # Eqs. 4, 5

        return LossOutput(space_time + lam * cross_view, space_time, cross_view, pseudo_labels)
