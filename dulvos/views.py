"""The similarity transform 𝒯 that relates the two views of a clip (Sec. 3.3, Fig. 2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dulvos.errors import InputError

__all__ = ["Similarity", "sample_similarity", "warp"]


@dataclass(frozen=True)
class Similarity:
    """A flip and a crop for each of B clips: the main view is flipped, then cropped, then resized back.

    Fields:
        size: side S of the square frames, in pixels.
        flip: (B,) bool, horizontal flip.
        top, left: (B,) int64, corner of the crop in the (flipped) main view, in pixels.
        side: (B,) int64, side of the crop, in pixels.
    """

    size: int
    flip: Tensor
    top: Tensor
    left: Tensor
    side: Tensor

    def __getitem__(self, clips: slice) -> Similarity:
        return Similarity(self.size, self.flip[clips], self.top[clips], self.left[clips], self.side[clips])

    def theta(self) -> Tensor:
        """𝒯 as (B, 2, 3) float32 matrices from view-2 to main-view coordinates.

        Coordinates are (x, y) in [-1, 1], align_corners=False: θ = [[f·s, 0, f·dx], [0, s, dy]].
        """
        half = self.size / 2
        s = self.side / self.size
        dx = (self.left + self.side / 2 - half) / half
        dy = (self.top + self.side / 2 - half) / half
        f = 1 - 2 * self.flip.to(s.dtype)
        zero = torch.zeros_like(s)
        return torch.stack([torch.stack([f * s, zero, f * dx], 1), torch.stack([zero, s, dy], 1)], 1).float()

    def frames(self, frames: Tensor) -> Tensor:
        """View 2 of the main view's frames (B, T, C, S, S) float; bilinear, align_corners=False."""
        views = []
        draws = zip(frames, self.flip, self.top, self.left, self.side, strict=True)
        for clip, flip, top, left, side in draws:
            clip = clip.flip(-1) if flip else clip
            crop = clip[..., int(top): int(top + side), int(left): int(left + side)]
            views.append(F.interpolate(crop, (self.size, self.size), mode="bilinear", align_corners=False))
        return torch.stack(views)


def sample_similarity(batch: int, size: int, generator: torch.Generator, *,
                      scale: tuple[float, float] = (0.5, 1.0), flip: bool = True) -> Similarity:
    """Draw 𝒯 for each clip: flip with p = 0.5, a square crop of relative size U(scale), at integer offsets.

    Arguments:
        batch: number of clips B.
        size: side S of the square frames, in pixels.
        generator: a CPU generator.
        scale: smallest and largest relative size of the crop, in (0, 1].
        flip: False never flips; with scale (1, 1), 𝒯 is then the identity.

    Raises:
        InputError: scale out of range.
    """
    if not 0 < scale[0] <= scale[1] <= 1:
        raise InputError(f"scale must satisfy 0 < low <= high <= 1, not {scale}")
    draw = torch.rand(4, batch, generator=generator, dtype=torch.float64)
    side = ((scale[0] + (scale[1] - scale[0]) * draw[0]) * size).floor().long().clamp(1, size)
    room = size - side + 1
    return Similarity(size, (draw[1] < 0.5) & flip, (draw[2] * room).long(), (draw[3] * room).long(), side)


def warp(features: Tensor, theta: Tensor, *, corrected_stride: int | None = None) -> Tensor:
    """Apply 𝒯 to the main view's features by nearest-neighbour sampling, so that their cells match view 2's.

    Arguments:
        features: (B, T, K, h, w) of the main view.
        theta: (B, 2, 3), view-2 to main-view coordinates, (x, y) in [-1, 1].
        corrected_stride: the release assumes that cell i is centred at pixel stride·(i + ½) - ½, although it
            is centred at stride·i. None does the same; the encoder's stride corrects it (our ablation).

    Returns:
        (B, T, K, h, w).
    """
    batch, frames, channels, height, width = features.shape
    if corrected_stride is not None:
        # pixel p = stride·i lies (stride - 1)/2 before the assumed centre, on both sides of the map
        shift = theta.new_tensor([(1 - 1 / corrected_stride) / side for side in (width, height)])
        offset = theta[:, :, 2] - (theta[:, :, :2] @ shift) + shift
        theta = torch.cat([theta[:, :, :2], offset[:, :, None]], 2)
    grid = F.affine_grid(theta.to(features.dtype), [batch, 1, height, width], align_corners=False)
    flat = features.reshape(batch, frames * channels, height, width)
    # the release's samples all lie inside the map; the corrected ones may leave it by a cell under a flip
    warped = F.grid_sample(flat, grid, mode="nearest", padding_mode="border", align_corners=False)
    return warped.view_as(features)
