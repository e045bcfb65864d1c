"""Slow, plain versions of the method, written from its description, and inputs to compare with."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dulvos.videos import Video, open_video


@dataclass(frozen=True)
class ArrayVideo:
    """A video in memory, with what `dulvos.clips` and `dulvos.inference` use of one."""

    name: str
    array: np.ndarray  # (T, H, W, 3) uint8

    def __len__(self) -> int:
        return len(self.array)

    def read(self, index: int) -> np.ndarray:
        return self.array[index]


def random_features(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal noise (..., K, h, w) of L2 norm 1 over K."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(noise, dim=-3).to(dtype)


def texture(seed: int, *size: int, sigma: float = 6.0) -> np.ndarray:
    """A smooth random picture that uses all of 0..255: (H, W, 3) uint8."""
    noise = np.random.default_rng(seed).normal(size=(*size, 3))
    smooth = cv2.GaussianBlur(noise, (0, 0), sigma)
    return np.clip(128 + 60 * (smooth - smooth.mean((0, 1))) / smooth.std((0, 1)), 0, 255).astype(np.uint8)


def blobs(seed: int, ids: tuple[int, ...], height: int, width: int) -> np.ndarray:
    """A mask in which each id and the background hold a random smooth region: (H, W) uint8."""
    noise = np.random.default_rng(seed).normal(size=(height, width, len(ids) + 1))
    smooth = cv2.GaussianBlur(noise, (0, 0), height / 8).reshape(noise.shape)
    return np.array([0, *ids], np.uint8)[smooth.argmax(-1)]


def write_textures(root: Path, names: Iterable[str], frames: int = 8,
                   size: tuple[int, int] = (72, 96)) -> Path:
    """A folder of videos, each a random texture that moves by two pixels a frame."""
    for seed, name in enumerate(names):
        picture = texture(seed, size[0], size[1] + 2 * frames)
        (root / name).mkdir(parents=True)
        for t in range(frames):
            cv2.imwrite(str(root / name / f"{t:05d}.png"), picture[:, 2 * t : 2 * t + size[1]])
    return root


def open_videos(root: Path) -> list[Video]:
    """The videos in a folder that holds nothing else."""
    return [open_video(path) for path in sorted(root.iterdir())]


def warp_oracle(maps: Tensor, theta: Tensor) -> Tensor:
    """(B, T, C, h, w) sampled at theta's positions, frame by frame, to the nearest cell."""
    grid = F.affine_grid(theta.to(maps.dtype), [len(maps), 1, *maps.shape[-2:]], align_corners=False)
    return torch.stack([F.grid_sample(frame, grid, mode="nearest", align_corners=False)
                        for frame in maps.unbind(1)], 1)


def loss_oracle(features: Tensor, features_view2: Tensor, theta: Tensor, anchor_index: Tensor,
                cross_index: Tensor, tau: float, lam: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """L, L_ST, L_CV and pseudo labels, with all B·N² affinities of every cell alive and warped as such."""
    clips, frames = features.shape[:2]

    def pick(maps: Tensor, index: Tensor) -> Tensor:  # [B, n², K]
        return torch.stack([m.flatten(1)[:, i.flatten()].T for m, i in zip(maps, index)])

    q = pick(features[:, 0], anchor_index)
    affinity = torch.einsum("btkyx,cnk->btcnyx", features, q).flatten(2, 3)  # [B, T, B·N², h, w]
    logits = warp_oracle(affinity, theta) / tau
    own = torch.einsum("btkyx,bnk->btnyx", features_view2, q).argmax(2)
    labels = own + q.shape[1] * torch.arange(clips).view(-1, 1, 1, 1)
    space_time = (F.cross_entropy(logits[:, 1:].flatten(0, 1), labels[:, 1:].flatten(0, 1)) if frames > 1
                  else features.new_zeros(()))

    r, r_hat = (pick(maps[:, 0], cross_index).flatten(0, 1)
                for maps in (warp_oracle(features, theta), features_view2))
    pairs = torch.log_softmax(r @ r_hat.T / tau, 1)
    cross_view = -pairs.diagonal().mean()
    return space_time + lam * cross_view, space_time, cross_view, labels


def resize(maps: Tensor, height: int, width: int) -> Tensor:
    """(..., H, W) -> (..., height, width), linear between pixels, with aligned corners."""
    def matrix(old: int, new: int) -> Tensor:
        at = torch.arange(new, dtype=torch.float64) * (old - 1) / max(new - 1, 1)
        return (1 - (at[:, None] - torch.arange(old)).abs()).clamp(min=0)
    return matrix(maps.shape[-2], height) @ maps.double() @ matrix(maps.shape[-1], width).T


def propagation_oracle(features: Tensor, masks: dict[int, np.ndarray], ids: tuple[int, ...], *,
                       context: int = 20, radius: float = 12, topk: int = 10, tau: float = 0.05,
                       neighbourhood: str = "disc", restrict_reference: bool = False,
                       repeat_reference: bool = True) -> Tensor:
    """Soft masks (T, M, h, w) by comparing every cell with every cell of all entries, copies and all."""
    frames, _, height, width = features.shape
    keys = features.double().flatten(2)  # [T, K, h·w]
    place = torch.cartesian_prod(torch.arange(height), torch.arange(width)).double()
    if neighbourhood == "disc":
        far = torch.cdist(place, place) >= radius - 1e-9
    else:
        far = torch.cdist(place, place, p=torch.inf) > radius + 1e-9
    start, references, soft = min(masks), [], []
    owner = dict.fromkeys(range(len(ids)), start)
    for t in range(frames):
        p = torch.zeros(len(ids), height * width, dtype=torch.float64)
        p[0] = float(t < start)
        for t0 in references:
            entries = [t0] + [max(j, t0) for j in range(t - context, t) if repeat_reference or j > t0]
            similarity = [(keys[j].T @ keys[t]).masked_fill(far, -torch.inf) for j in entries]  # [h·w, h·w]
            if not restrict_reference:
                similarity[0] = keys[t0].T @ keys[t]
            best, where = torch.cat(similarity).topk(topk, 0)
            carried = torch.cat([soft[j] for j in entries], 1)[:, where]  # [M, topk, h·w]
            own = [c for c in owner if owner[c] == t0]
            p[own] += (carried * torch.softmax(best / tau, 0)).sum(1)[own]
        if t in masks:
            mask = torch.from_numpy(masks[t].astype(int))
            m = resize(torch.stack([mask == i for i in ids]), height, width).flatten(1)
            new = [c for c, i in enumerate(ids) if c and (mask == i).any()]
            if t == start:
                p, new = m, [0, *new]
            else:
                m[0], p[new] = 0, 0
                p = (1 - m.sum(0)) * p + m.sum(0) * m
            owner |= dict.fromkeys(new, t)
            references.append(t)
        soft.append(p)
    return torch.stack(soft).view(frames, len(ids), height, width)


def score_oracle(truth: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """J and F (objects, T - 2) word by word: one frame and object at a time, on whole masks."""
    radius = int(np.ceil(0.008 * np.hypot(*truth.shape[1:])))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = (y**2 + x**2 <= radius**2).astype(np.uint8)

    def boundary(mask: np.ndarray) -> np.ndarray:
        wide = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
        return (mask != wide[:-1, 1:]) | (mask != wide[1:, :-1]) | (mask != wide[1:, 1:])

    ids = [i for i in np.unique(truth[0]) if i not in (0, 255)]
    j, f = np.ones((2, len(ids), len(truth) - 2))
    for row, i in enumerate(ids):
        for t in range(1, len(truth) - 1):
            a, b = truth[t] == i, prediction[t] == i
            if union := (a | b).sum():
                j[row, t - 1] = (a & b).sum() / union
            edge_a, edge_b = boundary(a), boundary(b)
            near_a, near_b = (cv2.dilate(edge.astype(np.uint8), disk) > 0 for edge in (edge_a, edge_b))
            if edge_a.any() or edge_b.any():
                precision = (edge_b & near_a).sum() / max(edge_b.sum(), 1)
                recall = (edge_a & near_b).sum() / max(edge_a.sum(), 1)
                f[row, t - 1] = 2 * precision * recall / (precision + recall) if precision + recall else 0
    return j, f
