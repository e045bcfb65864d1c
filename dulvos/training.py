"""What one training iteration computes: two views, two forwards, one loss, one step (Sec. 3, App. B)."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from accelerate.utils import reduce
from torch import Tensor, nn

from dulvos import clips, devices, encoder, losses, views
from dulvos.errors import InputError, check_types
from dulvos.videos import Video

__all__ = ["NO_NUMBERS", "TrainSettings", "clip_numbers", "forward_views", "make_clips", "make_parts", "parameter_groups"]
__all__ += ["training_loss", "training_step"]

NO_NUMBERS = ("workers", "checkpoint_minutes", "snapshot_every")  # settings that change no number


@dataclass(frozen=True)
class TrainSettings:
    """Every setting of a training run; the defaults are the paper's for YouTube-VOS, but for `iterations` and
    `lr_every`, which depend on the number of videos (`dulvos.study.collections.paper_settings`).

    Lengths are in pixels, `lr_every` in iterations. An unknown name or a value out of range raises an InputError.
    """

    seed: int = 0
    iterations: int = 100_000
    batch: int = 16  # B, clips a batch, over all processes
    frames: int = 5  # T, frames a clip
    gap: int = 2  # frames between sampled frames, plus one
    crop: int = 256  # side of the square crops
    scale_min: int = 256  # the shorter side is scaled to U{scale_min..scale_max} before cropping
    scale_max: int = 319
    centre: bool = False  # crop at the centre
    ordered: bool = False  # keep the frames of a clip in order
    photometric: str = "none"  # colour augmentation of the clips (App. B.2): none (the method), video, frame
    view_scale: float = 0.5  # view 2 is a crop of relative size U(view_scale, 1)
    view_flip: bool = True  # and flipped with p = 0.5; False with view_scale=1 leaves no regularising branch (Sec. 3.5)
    grid: int = 8  # N, anchors a side
    cross_grid: int = 4  # M, cross-view features a side
    tau: float = 0.05  # τ
    lam: float = 0.1  # λ, weight of the cross-view loss
    jitter: str = "common"  # of the grids: common (the release), independent (the paper's words), none
    second_forward: str = "train"  # BatchNorm in the second forward: train (the release), eval (the paper's words)
    alignment: str = "published"  # of features and 𝒯: published, corrected (ours)
    dim: int = 128  # K, channels of the head
    norm: str = "batch"  # in the head: batch, layer
    optimiser: str = "adam"  # adam (β = .5, .999), sgd (momentum .9)
    lr: float = 1e-4
    lr_every: int = 30_000  # iterations between decays
    lr_decay: float = 0.5
    weight_decay: float = 5e-4
    precision: str = "bf16"  # of the encoder: bf16 (autocast), fp32; losses are float32
    workers: int = 0  # processes that read clips
    compile: bool = False  # the encoder by torch.compile
    checkpoint_minutes: float = 3.0
    snapshot_every: int = 0  # iterations between encoders that are kept; 0 keeps the last one only

    def __post_init__(self) -> None:
        def need(condition: bool, message: str) -> None:
            if not condition:
                raise InputError(message)

        check_types(self)
        for name in ("iterations", "batch", "frames", "gap", "crop", "grid", "cross_grid", "dim", "lr_every"):
            need(getattr(self, name) >= 1, f"{name} must be >= 1, not {getattr(self, name)}")
        for name in ("seed", "lam", "weight_decay", "workers", "checkpoint_minutes", "snapshot_every"):
            need(getattr(self, name) >= 0, f"{name} must be >= 0, not {getattr(self, name)}")
        for name in ("tau", "lr", "lr_decay"):
            need(getattr(self, name) > 0, f"{name} must be > 0, not {getattr(self, name)}")
        for name, allowed in (("jitter", losses.JITTER), ("second_forward", ("train", "eval")), ("norm", ("batch", "layer")),
                              ("alignment", ("published", "corrected")), ("optimiser", ("adam", "sgd")),
                              ("photometric", clips.PHOTOMETRIC),
                              ("precision", ("bf16", "fp32"))):
            need(getattr(self, name) in allowed, f"{name} must be one of {allowed}, not {getattr(self, name)!r}")
        need(self.tau >= 1e-6 and self.dim <= 2**16,
             f"tau must be >= 1e-6 and dim <= 65536, not tau={self.tau}, dim={self.dim}")
        need(self.crop % encoder.STRIDE == 0, f"crop must be a multiple of {encoder.STRIDE}, not {self.crop}")
        need(self.crop <= self.scale_min <= self.scale_max, "scale_min and scale_max must satisfy crop <= scale_min <= "
             f"scale_max, not crop={self.crop}, scale_min={self.scale_min}, scale_max={self.scale_max}")
        need(0 < self.view_scale <= 1, f"view_scale must lie in (0, 1], not {self.view_scale}")
        cells = self.crop // encoder.STRIDE
        for name in ("grid", "cross_grid"):
            need(cells % getattr(self, name) == 0, f"{name}={getattr(self, name)} does not divide the {cells}x{cells} "
                 f"feature map of crop={self.crop}; choose a divisor of {cells}")

    @classmethod
    def from_dict(cls, values: dict) -> TrainSettings:
        """Settings from a mapping.

        Raises:
            InputError: unknown names (the message lists the known ones).
        """
        known = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(values, dict):
            raise InputError(f"settings must be a mapping of names to values, not {values!r}")
        unknown = sorted(map(str, values.keys() - set(known)))
        if unknown:
            raise InputError(f"unknown setting {', '.join(unknown)}; the settings are {', '.join(known)}")
        return cls(**values)


def forward_views(net: nn.Module, frames: Tensor, frames_view2: Tensor, *, second_forward: str = "train",
                  autocast: Callable = contextlib.nullcontext) -> tuple[Tensor, Tensor]:
    """The memory trick (App. B.1): one forward with gradient, one without.

    Forward 1 takes the main view and view 2 of the reference frames in one batch, forward 2 the other frames of view 2 in a
    batch of their own, and so with BatchNorm statistics of their own and a second update of the running ones.

    Arguments:
        net: an Encoder.
        frames, frames_view2: (B, T, 3, S, S) float, frame 0 being the reference.
        second_forward: BatchNorm in forward 2, "train" or "eval".
        autocast: makes the context in which the encoder runs.

    Returns:
        The "key" features of both views, (B, T, K, h, w) float32.
    """
    batch, count = frames.shape[:2]
    images = torch.cat([frames.flatten(0, 1), frames_view2[:, 0]])
    with autocast():
        key = net(images.contiguous(memory_format=torch.channels_last), ("key",)).key
    features = key[: batch * count].unflatten(0, (batch, count))
    reference = key[batch * count:, None]
    if count == 1:
        return features, reference
    training = net.training
    net.train(training and second_forward == "train")
    plain = getattr(net, "module", net)  # without gradient there is nothing to average over processes
    with torch.no_grad(), autocast():
        rest = plain(frames_view2[:, 1:].flatten(0, 1).contiguous(memory_format=torch.channels_last), ("key",)).key
    net.train(training)
    return features, torch.cat([reference, rest.unflatten(0, (batch, count - 1))], 1)


def training_loss(net: nn.Module, frames: Tensor, settings: TrainSettings, generator: torch.Generator,
                  autocast: Callable = contextlib.nullcontext, *, rank: int = 0, processes: int = 1) -> losses.LossOutput:
    """One iteration's loss: draws 𝒯 and the grids, encodes both views, compares.

    Arguments:
        net: an Encoder, or DistributedDataParallel around one.
        frames: (B, T, 3, S, S) float, as `dulvos.encoder.prepare_frames` gives them; with several processes, this one's
            B / processes clips.
        generator: a CPU generator, the source of all that is drawn; the same in every process.
        rank, processes: number of this process, and of all.
    """
    cells, batch = settings.crop // encoder.STRIDE, processes * len(frames)
    own = slice(rank * len(frames), (rank + 1) * len(frames))  # every process draws for the whole batch
    similarity = views.sample_similarity(batch, settings.crop, generator, scale=(settings.view_scale, 1.0),
                                           flip=settings.view_flip)[own]
    anchor_index, cross_index = (
        losses.sample_grid(batch, cells, cells, n, generator, jitter=settings.jitter)[own].to(frames.device)
        for n in (settings.grid, settings.cross_grid))
    # frames are normalised here: what changes colours takes bytes, and comes before `encoder.prepare_frames`
    features, features_view2 = forward_views(net, frames, similarity.frames(frames),
                                             second_forward=settings.second_forward, autocast=autocast)
    return losses.dense_loss(features, features_view2, similarity.theta().to(frames.device), anchor_index, cross_index,
                             tau=settings.tau, lam=settings.lam,
                             corrected_stride=encoder.STRIDE if settings.alignment == "corrected" else None)


def parameter_groups(net: nn.Module, settings: TrainSettings) -> list[dict]:
    """Weights with weight decay; biases (BatchNorm's too) with twice the learning rate and none."""
    named = list(net.named_parameters())
    return [{"params": [p for name, p in named if not name.endswith(".bias")], "lr": settings.lr,
             "weight_decay": settings.weight_decay},
            {"params": [p for name, p in named if name.endswith(".bias")], "lr": 2 * settings.lr, "weight_decay": 0.0}]


def make_clips(settings: TrainSettings, videos: Sequence[Video]) -> clips.Clips:
    """The clips that these settings draw from the videos."""
    return clips.Clips(videos, frames=settings.frames, gap=settings.gap, crop=settings.crop,
                       scale=(settings.scale_min, settings.scale_max), centre=settings.centre, ordered=settings.ordered,
                       photometric=settings.photometric, seed=settings.seed)


def clip_numbers(settings: TrainSettings, iteration: int, *, rank: int = 0, processes: int = 1) -> range:
    """Numbers of the clips that a process takes in an iteration: batches cross epochs, nothing is dropped."""
    share = settings.batch // processes
    return range(start := iteration * settings.batch + rank * share, start + share)


def make_parts(settings: TrainSettings, device: torch.device) -> dict:
    """The network, initialised from the seed and in training mode, its optimiser and its schedule, by these names."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        net = encoder.Encoder(settings.dim, settings.norm)
    net = net.to(device, memory_format=torch.channels_last).train()
    groups = parameter_groups(net, settings)
    optimiser = (torch.optim.Adam(groups, betas=(0.5, 0.999)) if settings.optimiser == "adam"
                 else torch.optim.SGD(groups, momentum=0.9))
    return {"net": net, "optimiser": optimiser,
            "scheduler": torch.optim.lr_scheduler.StepLR(optimiser, settings.lr_every, settings.lr_decay)}


def training_step(model: nn.Module, parts: dict, batch: Tensor, settings: TrainSettings, iteration: int, *, rank: int = 0,
                  processes: int = 1) -> tuple[float, ...]:
    """One iteration: loss, gradient, step. Every draw is a function of the seed and the iteration.

    Arguments:
        model: the network of `parts`, or DistributedDataParallel around it.
        parts: of `make_parts`.
        batch: (B / processes, T, 3, S, S) uint8 RGB, the clips of `clip_numbers`, on the device.

    Returns:
        loss, L_ST, L_CV (means over the processes), learning rate: the columns of the history but the first and the last
        (`dulvos.checkpoints.TrainingState.COLUMNS`).

    Raises:
        FloatingPointError: the loss is NaN or infinite; no step was made.
    """
    state = np.random.SeedSequence((settings.seed, 2, iteration)).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(state >> 1))
    output = training_loss(model, encoder.prepare_frames(batch), settings, generator,
                           partial(devices.autocast, batch.device, settings.precision), rank=rank, processes=processes)
    values = torch.stack([output.total.detach(), output.space_time.detach(), output.cross_view.detach()])
    total, space_time, cross_view = reduce(values, "mean").tolist()
    if not math.isfinite(total):
        raise FloatingPointError(f"loss {total}")
    lr = parts["optimiser"].param_groups[0]["lr"]
    parts["optimiser"].zero_grad()
    output.total.backward()
    parts["optimiser"].step()
    parts["scheduler"].step()
    return total, space_time, cross_view, lr
