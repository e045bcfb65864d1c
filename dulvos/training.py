"""Training: two views, two forwards, one loss (Sec. 3, App. B), resumable to the bit."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from dulvos import clips, devices, encoder, losses, views
from dulvos.checkpoints import TrainingState, save_encoder
from dulvos.errors import InputError
from dulvos.videos import Video, fingerprint

__all__ = ["TrainSettings", "forward_views", "parameter_groups", "train", "training_loss"]


@dataclass(frozen=True)
class TrainSettings:
    """Every setting of a training run; the defaults are the paper's for YouTube-VOS, but for `iterations`.

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
    view_scale: float = 0.5  # view 2 is a crop of relative size U(view_scale, 1)
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
    checkpoint_minutes: float = 3.0

    def __post_init__(self) -> None:
        def need(condition: bool, message: str) -> None:
            if not condition:
                raise InputError(message)

        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            kind = type(field.default)
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            right = number if kind is float else isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
            need(right, f"{field.name} must be {kind.__name__}, not {value!r}")
        for name in ("iterations", "batch", "frames", "gap", "crop", "grid", "cross_grid", "dim", "lr_every"):
            need(getattr(self, name) >= 1, f"{name} must be >= 1, not {getattr(self, name)}")
        for name in ("seed", "lam", "weight_decay", "workers", "checkpoint_minutes"):
            need(getattr(self, name) >= 0, f"{name} must be >= 0, not {getattr(self, name)}")
        for name in ("tau", "lr", "lr_decay"):
            need(getattr(self, name) > 0, f"{name} must be > 0, not {getattr(self, name)}")
        for name, allowed in (("jitter", losses.JITTER), ("second_forward", ("train", "eval")), ("norm", ("batch", "layer")),
                              ("alignment", ("published", "corrected")), ("optimiser", ("adam", "sgd")),
                              ("precision", ("bf16", "fp32"))):
            need(getattr(self, name) in allowed, f"{name} must be one of {allowed}, not {getattr(self, name)!r}")
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
        unknown = sorted(set(values) - set(known))
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
    similarity = views.sample_similarity(batch, settings.crop, generator, scale=(settings.view_scale, 1.0))[own]
    anchor_index, cross_index = (
        losses.sample_grid(batch, cells, cells, n, generator, jitter=settings.jitter)[own].to(frames.device)
        for n in (settings.grid, settings.cross_grid))
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


def _generator(*numbers: int) -> torch.Generator:
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> 1))


def train(settings: TrainSettings, videos: Sequence[Video], folder: str | os.PathLike, *, device: str | None = None,
          data: str | None = None) -> dict:
    """Train an encoder, or continue where an earlier call with the same settings and data was cut off.

    Writes `checkpoint.pt` every few minutes and at the end (a temporary file, synced and renamed), `history.csv` (a row an
    iteration) and, at the end, `encoder.safetensors`. Every draw is a function of the seed and the iteration, so that a resumed
    run is the uninterrupted one, to the bit on the CPU at a fixed number of threads.

    Started by torchrun, each process takes its share of every batch; anchors and cross-view features are gathered over all of
    them, so that the loss is that of the whole batch. BatchNorm's statistics are those of each process's clips. Process 0 writes.

    Arguments:
        videos: those shorter than T are left out with a line each.
        folder: for this run's files.
        device: "cpu", "cuda" …; None takes what there is.
        data: fingerprint of the videos; None computes it.

    Returns:
        encoder (path), iterations, videos, device, processes; loss, loss_st, loss_cv (means of the last 100 iterations); seconds
        and cpu_seconds (of this process), seconds_per_iteration, peak_memory_mb.

    Raises:
        InputError: wrong input, or a checkpoint that is damaged or of another run.
        FloatingPointError: the loss became NaN or infinite; the last checkpoint is kept.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    processes = PartialState(cpu=device == "cpu")
    count, rank = processes.num_processes, processes.process_index
    place = processes.device if count > 1 else devices.find_device(device)
    if settings.batch % count:
        raise InputError(f"batch={settings.batch} cannot be shared by {count} processes; choose a multiple of {count}")
    say = print if rank == 0 else (lambda line: None)
    kept, lines = clips.usable_videos(videos, settings.frames)
    for line in lines:
        say(line)
    if settings.batch > len(kept):
        say(f"batch={settings.batch} exceeds the {len(kept)} videos: a batch holds several clips of a video, "
            "which are false negatives of each other")
    data = data or fingerprint(kept)
    dataset = clips.Clips(kept, frames=settings.frames, gap=settings.gap, crop=settings.crop,
                          scale=(settings.scale_min, settings.scale_max), centre=settings.centre, ordered=settings.ordered,
                          seed=settings.seed)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        net = encoder.Encoder(settings.dim, settings.norm)
    net = net.to(place, memory_format=torch.channels_last)
    groups = parameter_groups(net, settings)
    optimiser = (torch.optim.Adam(groups, betas=(0.5, 0.999)) if settings.optimiser == "adam"
                 else torch.optim.SGD(groups, momentum=0.9))
    scheduler = torch.optim.lr_scheduler.StepLR(optimiser, settings.lr_every, settings.lr_decay)
    # the settings left out change no number up to a given iteration
    determining = {name: value for name, value in dataclasses.asdict(settings).items()
                   if name not in ("iterations", "workers", "checkpoint_minutes")} | ({"processes": count} if count > 1 else {})
    state = TrainingState(folder / "checkpoint.pt", determining, data, settings.iterations,
                          {"net": net, "optimiser": optimiser, "scheduler": scheduler})
    state.resume()
    net.train()
    # local statistics: each process keeps its own, and those of process 0 are saved
    model = net if count == 1 else DistributedDataParallel(net, broadcast_buffers=False)

    def save() -> None:
        if not all(value.isfinite().all() for value in net.state_dict().values()):
            raise diverged("weights are NaN or infinite")
        state.peak = max(state.peak, devices.peak_memory(place))
        if rank == 0:
            state.save()

    def diverged(what: str) -> FloatingPointError:
        names = sorted({dataset.video_of(state.iteration * settings.batch + i).name for i in range(settings.batch)})
        kept = f"the last good checkpoint is {state.path}" if state.path.exists() else "no checkpoint was written yet"
        return FloatingPointError(f"{what} at iteration {state.iteration}, clips of {', '.join(names)}; {kept}; lr="
                                  f"{settings.lr} may be too high: start again with a lower one, in another folder")

    batches = _batches(settings, state.iteration, settings.batch // count, rank)
    loader = DataLoader(dataset, batch_sampler=batches, num_workers=settings.workers, persistent_workers=settings.workers > 0,
                        multiprocessing_context="spawn" if settings.workers else None)
    autocast = partial(devices.autocast, place, settings.precision)
    before, worked = (state.seconds, state.cpu_seconds), (time.monotonic(), _cpu_seconds())
    saved = worked[0]
    bar = tqdm(total=settings.iterations, initial=state.iteration, desc="training", unit="it", mininterval=5.0, disable=rank > 0)
    for batch in loader:
        frames = encoder.prepare_frames(batch.to(place))
        generator = _generator(settings.seed, 2, state.iteration)
        output = training_loss(model, frames, settings, generator, autocast, rank=rank, processes=count)
        values = torch.stack([output.total.detach(), output.space_time.detach(), output.cross_view.detach()])
        total, space_time, cross_view = reduce(values, "mean").tolist()
        if not math.isfinite(total):
            raise diverged(f"loss {total}")
        lr = optimiser.param_groups[0]["lr"]
        optimiser.zero_grad()
        output.total.backward()
        optimiser.step()
        scheduler.step()
        now = time.monotonic()
        state.iteration += 1
        state.seconds, state.cpu_seconds = before[0] + now - worked[0], before[1] + _cpu_seconds() - worked[1]
        state.history.append((state.iteration, total, space_time, cross_view, lr, state.seconds))
        bar.update()
        bar.set_postfix(loss=f"{total:.3f}", st=f"{space_time:.3f}", cv=f"{cross_view:.3f}", refresh=False)
        if now - saved > 60 * settings.checkpoint_minutes and state.iteration < settings.iterations:
            save()
            saved = now
    bar.close()
    save()
    path = folder / "encoder.safetensors"
    if rank == 0:
        save_encoder(net, path, settings=dataclasses.asdict(settings), data=data)
    processes.wait_for_everyone()
    last = state.table().tail(100)
    return {"encoder": path, "iterations": state.iteration, "loss": last.loss.mean(), "loss_st": last.loss_st.mean(),
            "loss_cv": last.loss_cv.mean(), "seconds": state.seconds, "cpu_seconds": state.cpu_seconds,
            "seconds_per_iteration": state.seconds / state.iteration, "peak_memory_mb": state.peak, "device": str(place),
            "processes": count, "videos": len(kept)}


def _batches(settings: TrainSettings, first: int, share: int, rank: int) -> list[range]:
    """Clip numbers of this process's share of each iteration's batch: batches cross epochs, nothing is dropped."""
    starts = (i * settings.batch + rank * share for i in range(first, settings.iterations))
    return [range(start, start + share) for start in starts]


def _cpu_seconds() -> float:
    """Processor time of this process and of the workers that have ended."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
