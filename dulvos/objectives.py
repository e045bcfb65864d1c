"""Objectives: the settings of a training, and the loss of one iteration.

The method is "dense" (Sec. 3, App. B). The others are baselines of Table 1 with the same encoder, videos and
optimiser, but another loss and frames in order (see `dulvos.baselines`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dulvos import baselines, clips, encoder, losses, views
from dulvos.devices import autocast
from dulvos.errors import InputError, check_choices, check_types

__all__ = ["OBJECTIVES", "Iteration", "Objective", "TrainSettings", "forward_views"]

EDGE_DROPOUT = 0.1  # of CRW's walks
KEPT_COPIES = (0.1, 0.4)  # CorrFlow's share of copies that are passed on: at first, and from lr_every on
LEAST = {
    **dict.fromkeys(("seed", "lam", "weight_decay", "workers", "checkpoint_minutes", "snapshot_every"), 0),
    **dict.fromkeys(("iterations", "batch", "gap", "crop", "grid", "cross_grid", "dim", "lr_every"), 1),
    "tau": 1e-6, "lr": 1e-12, "lr_decay": 1e-12, "view_scale": 0.01,
}
Output = losses.LossOutput | baselines.WalkOutput | baselines.ColourOutput


@dataclass(frozen=True)
class TrainSettings(clips.ClipSettings):
    """Settings of a training; lengths are in pixels.

    The defaults are the paper's for YouTube-VOS, except `iterations` and `lr_every`, which depend on the
    number of videos (`dulvos.study.collections.paper_settings`). A baseline takes its frames in order and
    ignores the settings that only the method uses (views, grids, jitter, lam, second_forward, alignment);
    all but CRW also ignore tau.

    Raises:
        InputError: a value of the wrong type or out of range.
    """

    objective: str = "dense"  # the method; or crw, crw-dense-nodes, mast, corrflow, colorize, contrastcorr
    iterations: int = 100_000
    batch: int = 16  # B, clips per batch, over all processes
    view_scale: float = 0.5  # view 2 is a crop of relative size U(view_scale, 1)
    view_flip: bool = True  # flip view 2 with p = 0.5; False with view_scale=1: no regularising branch
    grid: int = 8  # N, anchors per side
    cross_grid: int = 4  # M, cross-view features per side
    tau: float = 0.05  # τ
    lam: float = 0.1  # λ, weight of the cross-view loss
    jitter: str = "common"  # of the grids: common (the release), independent (the paper's words), none
    second_forward: str = "train"  # BatchNorm in forward 2: train (the release), eval (the paper's words)
    alignment: str = "published"  # of features and 𝒯: published, corrected (ours)
    dim: int = 128  # K, channels of the head
    norm: str = "batch"  # in the head: batch, layer
    stride: int = 8  # of the encoder, in pixels: 8, or 4 ("x2" in Table 1)
    padding: str = "zeros"  # of the encoder's convolutions: zeros, reflect (CRW's)
    optimiser: str = "adam"  # adam (β = .5, .999), sgd (momentum .9)
    lr: float = 1e-4
    lr_every: int = 30_000  # iterations between decays
    lr_decay: float = 0.5
    weight_decay: float = 5e-4
    precision: str = "bf16"  # of the encoder: bf16 (autocast), fp32; losses are float32
    workers: int = 0  # processes that read clips
    checkpoint_minutes: float = 3.0
    snapshot_every: int = 0  # iterations between the encoders that are kept; 0 keeps only the last one

    def __post_init__(self) -> None:
        check_types(self)
        check_choices(self, objective=OBJECTIVES, jitter=losses.JITTER, second_forward=("train", "eval"),
                      alignment=("published", "corrected"), norm=("batch", "layer"), stride=(4, 8),
                      padding=encoder.PADDING, optimiser=("adam", "sgd"), photometric=clips.PHOTOMETRIC,
                      precision=("bf16", "fp32"))
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise InputError(f"{name} must be >= {least}, not {getattr(self, name)}")
        frames, cells = OBJECTIVES[self.objective].frames, self.crop // self.stride
        rules = {f"frames >= {frames} for objective={self.objective!r}": self.frames >= frames,
                 "crop <= scale_min <= scale_max": self.crop <= self.scale_min <= self.scale_max,
                 "dim <= 65536": self.dim <= 2**16,
                 "view_scale <= 1": self.view_scale <= 1,
                 "crop >= 40 for objective='crw' with padding='reflect'":
                     (self.objective, self.padding) != ("crw", "reflect") or self.crop >= 40,
                 "a crop that is a multiple of 8, at least 16": self.crop % 8 == 0 and self.crop >= 16,
                 f"grid and cross_grid that divide the {cells}x{cells} cells of a crop":
                     self.objective != "dense" or cells % self.grid == cells % self.cross_grid == 0}
        for rule, kept in rules.items():
            if not kept:
                values = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if name in rule)
                raise InputError(f"settings must have {rule}, not {values}")

    @classmethod
    def from_dict(cls, values: dict) -> TrainSettings:
        """Settings from a mapping; unknown names raise an InputError that lists the known ones."""
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(map(str, values.keys() - set(known))):
            raise InputError(f"unknown setting {', '.join(unknown)}; the settings are {', '.join(known)}")
        return cls(**values)


def _key(net: nn.Module, images: Tensor, precision: str, **options: object) -> Tensor:
    """The "key" features (n, K, h, w) float32 of images (n, 3, H, W)."""
    with autocast(images.device, precision):
        return net(images.contiguous(memory_format=torch.channels_last), ("key",), **options).key


def forward_views(net: nn.Module, frames: Tensor, frames_view2: Tensor, *, second_forward: str = "train",
                  precision: str = "fp32") -> tuple[Tensor, Tensor]:
    """The memory trick (App. B.1): one forward with gradient, one without.

    Forward 1 encodes the main view and view 2's reference frames in one batch, forward 2 the other frames of
    view 2 in a batch of their own. Each has its own BatchNorm statistics and updates the running ones.

    Arguments:
        net: an Encoder, or DistributedDataParallel around one.
        frames, frames_view2: (B, T, 3, S, S) float; frame 0 is the reference.
        second_forward: mode of BatchNorm in forward 2, "train" or "eval".
        precision: of the encoder, "bf16" or "fp32".

    Returns:
        The "key" features of both views, (B, T, K, h, w) float32.
    """
    batch, count = frames.shape[:2]
    key = _key(net, torch.cat([frames.flatten(0, 1), frames_view2[:, 0]]), precision)
    features, reference = key[: batch * count].unflatten(0, (batch, count)), key[batch * count:, None]
    if count == 1:
        return features, reference
    training = net.training
    net.train(training and second_forward == "train")
    plain = getattr(net, "module", net)  # DistributedDataParallel expects a backward pass for each forward
    with torch.no_grad():
        rest = _key(plain, frames_view2[:, 1:].flatten(0, 1), precision)
    net.train(training)
    return features, torch.cat([reference, rest.unflatten(0, (batch, count - 1))], 1)


@dataclass(frozen=True)
class Iteration:
    """One iteration of training, with what several objectives compute from it.

    Arguments:
        net: an Encoder, or DistributedDataParallel around one.
        frames: (B, T, 3, S, S) float, from `dulvos.encoder.prepare_frames`; with several processes, the
            B / processes clips of this one.
        settings: of the training.
        generator: a CPU generator that all draws come from, in the same state in every process.
        number: of the iteration, for schedules.
        rank, processes: number of this process, and how many there are.
    """

    net: nn.Module
    frames: Tensor
    settings: TrainSettings
    generator: torch.Generator
    number: int = 0
    rank: int = 0
    processes: int = 1

    def loss(self) -> Output:
        """What the objective's loss returns; its `total` is to be minimised."""
        return OBJECTIVES[self.settings.objective].loss(self)

    @property
    def batch(self) -> int:
        """B, for which every process draws, to take its `own` part of the draws."""
        return self.processes * len(self.frames)

    @property
    def own(self) -> slice:
        """The clips of this process among all B."""
        return slice(self.rank * len(self.frames), (self.rank + 1) * len(self.frames))

    def encode(self, **options: object) -> Tensor:
        """The "key" features of this process's frames, (B / processes, T, K, h, w) float32."""
        key = _key(self.net, self.frames.flatten(0, 1), self.settings.precision, **options)
        return key.unflatten(0, self.frames.shape[:2])

    def lab(self) -> Tensor:
        """The frames' colours in Lab, (B / processes, T, 3, S, S); a and b in about [-100, 100]."""
        return baselines.rgb_to_lab(encoder.restore_rgb(self.frames))

    def classes(self, centres: tuple) -> tuple[Tensor, Tensor]:
        """The frames' colour classes: shares in each cell (·, T, C, h, w), and of pixels (·, T, S, S)."""
        classes = baselines.colour_classes(self.lab(), centres)
        return baselines.one_hot_cells(classes, len(centres), self.settings.stride), classes


def _dense(it: Iteration) -> losses.LossOutput:
    """Draw 𝒯 and the grids, encode both views, compare."""
    s, device, cells = it.settings, it.frames.device, it.settings.crop // it.settings.stride
    similarity = views.sample_similarity(it.batch, s.crop, it.generator, scale=(s.view_scale, 1.0),
                                         flip=s.view_flip)[it.own]
    anchor_index, cross_index = (
        losses.sample_grid(it.batch, cells, cells, n, it.generator, jitter=s.jitter)[it.own].to(device)
        for n in (s.grid, s.cross_grid))
    features, features_view2 = forward_views(it.net, it.frames, similarity.frames(it.frames),
                                             second_forward=s.second_forward, precision=s.precision)
    return losses.dense_loss(features, features_view2, similarity.theta().to(device), anchor_index,
                             cross_index, tau=s.tau, lam=s.lam,
                             corrected_stride=s.stride if s.alignment == "corrected" else None)


def _walk(it: Iteration, nodes: Tensor) -> baselines.WalkOutput:
    # a seed for each process, since the loss draws for this process's clips alone
    seeds = torch.randint(2**62, (it.processes,), generator=it.generator)
    generator = torch.Generator().manual_seed(int(seeds[it.rank]))
    return baselines.walk_loss(nodes, tau=it.settings.tau, dropout=EDGE_DROPOUT, generator=generator)


def _crw(it: Iteration) -> baselines.WalkOutput:
    """Walks over patches, each encoded alone and averaged before the head."""
    clips, count = it.frames.shape[:2]
    boxes = baselines.patch_boxes(it.batch * count, it.settings.crop, it.generator)
    boxes = boxes.unflatten(0, (it.batch, count))[it.own].flatten(0, 1)
    patches = baselines.cut_patches(it.frames.flatten(0, 1), boxes)
    key = _key(it.net, patches, it.settings.precision, pool=True)  # [B·T·P, K, 1, 1]
    return _walk(it, key.flatten(1).unflatten(0, (clips, count, -1)).permute(0, 3, 1, 2))


def _crw_dense_nodes(it: Iteration) -> baselines.WalkOutput:
    """Walks over the cells of whole frames."""
    return _walk(it, it.encode().flatten(3).transpose(1, 2))


def _mast(it: Iteration) -> baselines.ColourOutput:
    factors = baselines.channel_factors(it.generator, (1, 2), most=1, probability=1)
    dropped = int(factors.argmin())
    truth = baselines.scale_lab(it.lab())[:, :, dropped:dropped + 1]
    return baselines.mast_loss(it.encode(factors=factors, normalise=False), truth)


def _corrflow(it: Iteration) -> baselines.ColourOutput:
    features = it.encode(factors=baselines.channel_factors(it.generator), normalise=False)
    low, high = KEPT_COPIES  # not over the iterations, whose number changes when a run is prolonged
    share = low + (high - low) * min(1, it.number / it.settings.lr_every)
    keep = torch.rand(it.batch, it.settings.frames, generator=it.generator)[it.own] < share
    return baselines.corrflow_loss(features, *it.classes(baselines.LAB_CLASSES), keep)


def _colorize(it: Iteration) -> baselines.ColourOutput:
    return baselines.colorize_loss(it.encode(normalise=False), *it.classes(baselines.AB_CLASSES))


def _contrastcorr(it: Iteration) -> baselines.ColourOutput:
    features = it.encode(factors=baselines.channel_factors(it.generator), normalise=False)
    return baselines.contrast_loss(features, baselines.scale_lab(it.lab()))


@dataclass(frozen=True)
class Objective:
    """What training needs of an objective: its loss, the least frames per clip, and the encoder's colours."""

    loss: Callable[[Iteration], Output]
    frames: int = 2
    colour: str = "rgb"


OBJECTIVES = {
    "dense": Objective(_dense, frames=1),
    "crw": Objective(_crw, frames=3),
    "crw-dense-nodes": Objective(_crw_dense_nodes, frames=3),
    "mast": Objective(_mast, colour="lab"),
    "corrflow": Objective(_corrflow),
    "colorize": Objective(_colorize, colour="grey"),
    "contrastcorr": Objective(_contrastcorr, colour="lab"),
}
