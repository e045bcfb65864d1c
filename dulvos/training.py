"""Training: the loop that reads clips, takes steps, saves and resumes, and what each step consists of."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import pickle
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from dulvos import clips, devices, encoder
from dulvos.checkpoints import save_encoder
from dulvos.errors import InputError
from dulvos.files import replacing
from dulvos.objectives import OBJECTIVES, TrainSettings, training_loss
from dulvos.videos import Video, fingerprint

__all__ = ["NO_NUMBERS", "TrainSettings", "clip_numbers", "make_clips", "make_parts", "parameter_groups",
           "train", "training_step"]

NO_NUMBERS = ("workers", "checkpoint_minutes", "snapshot_every")  # settings that change no number
COLUMNS = ("iteration", "loss", "loss_st", "loss_cv", "lr", "seconds")  # of the history
TERMS = ("total", "space_time", "cross_view")  # of a loss, for the columns loss, loss_st, loss_cv


def parameter_groups(net: nn.Module, settings: TrainSettings) -> list[dict]:
    """Weights, with weight decay; biases (BatchNorm's too), with twice the learning rate and no decay."""
    named = list(net.named_parameters())
    return [{"params": [p for name, p in named if not name.endswith(".bias")], "lr": settings.lr,
             "weight_decay": settings.weight_decay},
            {"params": [p for name, p in named if name.endswith(".bias")], "lr": 2 * settings.lr,
             "weight_decay": 0.0}]


def make_clips(settings: TrainSettings, videos: Sequence[Video]) -> clips.Clips:
    """The clips that these settings draw from the videos."""
    ordered = settings.ordered or OBJECTIVES[settings.objective].ordered
    return clips.Clips(videos, frames=settings.frames, gap=settings.gap, crop=settings.crop,
                       scale=(settings.scale_min, settings.scale_max), centre=settings.centre,
                       ordered=ordered, photometric=settings.photometric, seed=settings.seed)


def clip_numbers(settings: TrainSettings, iteration: int, *, rank: int = 0, processes: int = 1) -> range:
    """The clips that a process takes in an iteration; batches cross epochs, and no clip is dropped."""
    share = settings.batch // processes
    return range(start := iteration * settings.batch + rank * share, start + share)


def make_parts(settings: TrainSettings, device: torch.device) -> dict:
    """The parts "net" (in training mode, initialised from the seed), "optimiser" and "scheduler"."""
    colour = OBJECTIVES[settings.objective].colour
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        net = encoder.Encoder(settings.dim, settings.norm, settings.stride, colour)
    net = net.to(device, memory_format=torch.channels_last).train()
    groups = parameter_groups(net, settings)
    optimiser = (torch.optim.Adam(groups, betas=(0.5, 0.999)) if settings.optimiser == "adam"
                 else torch.optim.SGD(groups, momentum=0.9))
    return {"net": net, "optimiser": optimiser,
            "scheduler": torch.optim.lr_scheduler.StepLR(optimiser, settings.lr_every, settings.lr_decay)}


def training_step(model: nn.Module, parts: dict, batch: Tensor, settings: TrainSettings, iteration: int, *,
                  rank: int = 0, processes: int = 1) -> tuple[float, ...]:
    """One iteration: loss, gradient, step. Every draw is a function of the seed and the iteration.

    Arguments:
        model: the network of `parts`, or DistributedDataParallel around it.
        parts: of `make_parts`.
        batch: (B / processes, T, 3, S, S) uint8 RGB, the clips of `clip_numbers`, on the device.

    Returns:
        loss, L_ST and L_CV (means over the processes; NaN if the objective has no such term), learning rate.

    Raises:
        FloatingPointError: the loss is NaN or infinite; no step was made.
    """
    state = np.random.SeedSequence((settings.seed, 2, iteration)).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(state >> 1))
    output = training_loss(model, encoder.prepare_frames(batch), settings, generator,
                           partial(devices.autocast, batch.device, settings.precision), iteration=iteration,
                           rank=rank, processes=processes)
    terms = (getattr(output, name, output.total.new_tensor(math.nan)) for name in TERMS)
    values = torch.stack([term.detach() for term in terms])
    if processes > 1:
        distributed.all_reduce(values)
    total, space_time, cross_view = (values / processes).tolist()
    if not math.isfinite(total):
        raise FloatingPointError(f"loss {total}")
    lr = parts["optimiser"].param_groups[0]["lr"]
    parts["optimiser"].zero_grad()
    output.total.backward()
    parts["optimiser"].step()
    parts["scheduler"].step()
    return total, space_time, cross_view, lr


def train(settings: TrainSettings, videos: Sequence[Video], folder: str | os.PathLike, *,
          device: str | None = None, data: str | None = None) -> dict:
    """Train an encoder, or resume where an earlier call with the same settings and data was cut off.

    Writes `checkpoint.pt` every few minutes and at the end, `history.csv` (a row an iteration),
    `encoder.safetensors` at the end and, with `snapshot_every`, `snapshots/encoder-<iteration>.safetensors`.
    A resumed run equals an uninterrupted one: to the bit on the CPU at a fixed number of threads.

    Under torchrun, each process takes its share of every batch, and the loss is that of the whole batch:
    anchors and cross-view features are gathered from all processes. BatchNorm's statistics are those of each
    process's clips. Process 0 writes; after a stop, all resume with its running statistics, which matter for
    second_forward="eval".

    Arguments:
        videos: those with fewer than T frames are left out, with a line each.
        folder: for this run's files.
        device: "cpu", "cuda" …; None chooses a CUDA GPU if there is one.
        data: fingerprint of the videos; None computes it.

    Returns:
        encoder (path), iterations, videos, device, computed_in (bf16 or fp32), processes; loss, loss_st,
        loss_cv (means of the last 100 iterations, or None); seconds, cpu_seconds (with the processes that
        read), seconds_per_iteration, peak_memory_mb.

    Raises:
        InputError: wrong input, a checkpoint that is damaged or of another run, frames that cannot be read.
        FloatingPointError: the loss became NaN or infinite; the last checkpoint is kept.
        ChildProcessError: a process that reads clips was killed; the last checkpoint is kept.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rank, processes, place = devices.joined_processes(device)
    if settings.batch % processes:
        raise InputError(f"batch={settings.batch} cannot be shared by {processes} processes; choose a "
                         f"multiple of {processes}")
    kept, lines = clips.usable_videos(videos, settings.frames)
    if settings.batch > len(kept):
        lines.append(f"batch={settings.batch} exceeds the {len(kept)} videos: a batch holds several clips of "
                     "a video, which are false negatives of each other")
    for line in lines if rank == 0 else ():
        print(line)
    dataset, parts = make_clips(settings, kept), make_parts(settings, place)
    net = parts["net"]
    state = _State(folder, settings, processes, data or fingerprint(kept), parts)
    state.resume()
    # each process keeps its own BatchNorm statistics, and those of process 0 are saved
    model = net if processes == 1 else DistributedDataParallel(net, broadcast_buffers=False)
    own = [clip_numbers(settings, i, rank=rank, processes=processes)
           for i in range(state.iteration, settings.iterations)]
    loader = DataLoader(dataset, batch_sampler=own, num_workers=settings.workers,
                        persistent_workers=settings.workers > 0,
                        multiprocessing_context="spawn" if settings.workers else None)

    def diverged(what: str) -> FloatingPointError:
        names = {dataset.video_of(number).name for number in clip_numbers(settings, state.iteration)}
        return FloatingPointError(
            f"{what} at iteration {state.iteration}, clips of {', '.join(sorted(names))}; {state.kept}; "
            f"lr={settings.lr} may be too high: start again with a lower one, in another folder")

    def save() -> None:
        if not all(value.isfinite().all() for value in net.state_dict().values()):
            raise diverged("weights are NaN or infinite")
        state.measure(place)
        if rank == 0:
            state.save()

    def save_network(path: Path) -> Path:
        state.measure(place)
        if rank == 0:
            save_encoder(net, path, settings=dataclasses.asdict(settings), data=state.data,
                         iteration=state.iteration, seconds=state.seconds, cpu_seconds=state.cpu_seconds)
        return path

    state.start()
    saved = time.monotonic()
    bar = tqdm(total=settings.iterations, initial=state.iteration, desc="training", unit="it",
               mininterval=5.0, disable=rank > 0)
    with _killed_readers(state):
        for batch in _read(loader, save):
            try:
                values = training_step(model, parts, batch.to(place), settings, state.iteration, rank=rank,
                                       processes=processes)
            except FloatingPointError as error:
                raise diverged(str(error)) from None
            state.add(values)
            bar.update()
            shown = {name: f"{v:.3f}" for name, v in zip(COLUMNS[1:4], values) if not math.isnan(v)}
            bar.set_postfix(shown, refresh=False)
            if settings.snapshot_every and state.iteration % settings.snapshot_every == 0:
                save_network(folder / "snapshots" / f"encoder-{state.iteration}.safetensors")
            if (time.monotonic() - saved > 60 * settings.checkpoint_minutes
                    and state.iteration < settings.iterations):
                save()
                saved = time.monotonic()
    bar.close()
    save()
    path = save_network(folder / "encoder.safetensors")
    if processes > 1:
        distributed.barrier()  # the encoder is there when any process returns
    means = state.table().tail(100).mean()
    return {"encoder": path, "iterations": state.iteration,
            **{name: None if math.isnan(means[name]) else float(means[name]) for name in COLUMNS[1:4]},
            "seconds": state.seconds, "cpu_seconds": state.cpu_seconds,
            "seconds_per_iteration": state.seconds / state.iteration, "peak_memory_mb": state.peak,
            "device": str(place), "computed_in": devices.computed_in(place.type, settings.precision),
            "processes": processes, "videos": len(kept)}


class _State:
    """What a training needs to resume exactly: no generator, since draws follow from seed and iteration.

    Fields:
        determining: settings that must not change between calls; a run can be prolonged, so not `iterations`.
        iteration: iterations done. seconds, cpu_seconds: the time they took. peak: peak memory in MB.
        history: a tuple an iteration, in the order of `COLUMNS`.
    """

    PLAIN = ("iteration", "seconds", "cpu_seconds", "peak")

    def __init__(self, folder: Path, settings: TrainSettings, processes: int, data: str, parts: dict):
        self.path, self.data, self.last = folder / "checkpoint.pt", data, settings.iterations
        self.parts = parts
        self.determining = {name: value for name, value in dataclasses.asdict(settings).items()
                            if name not in ("iterations", *NO_NUMBERS)} | {"processes": processes}
        self.iteration, self.seconds, self.cpu_seconds, self.peak = 0, 0.0, 0.0, 0.0
        self.history: list[tuple[float, ...]] = []

    @property
    def kept(self) -> str:
        """What is left after a failure, in words."""
        return f"{self.path} is kept" if self.path.exists() else "no checkpoint was written yet"

    def start(self) -> None:
        """Let the clocks run, from where an earlier call stopped."""
        self.zero = time.monotonic() - self.seconds, _cpu_seconds() - self.cpu_seconds

    def add(self, values: tuple[float, ...]) -> None:
        """Count an iteration with its loss, L_ST, L_CV and learning rate."""
        self.iteration += 1
        self.seconds = time.monotonic() - self.zero[0]
        self.history.append((self.iteration, *values, self.seconds))

    def measure(self, place: torch.device) -> None:
        """Read the processor's clock and the peak memory."""
        self.cpu_seconds = _cpu_seconds() - self.zero[1]
        self.peak = max(self.peak, devices.peak_memory(place))

    def table(self) -> pd.DataFrame:
        """The history, a row an iteration."""
        return pd.DataFrame(self.history, columns=COLUMNS)

    def save(self) -> None:
        """Replace the checkpoint, then the history."""
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state |= {name: getattr(self, name) for name in self.PLAIN}
        state |= {"settings": self.determining, "data": self.data,
                  "history": torch.tensor(self.history, dtype=torch.float64)}
        with replacing(self.path) as stream:
            torch.save(state, stream)
        with replacing(self.path.with_name("history.csv")) as stream:
            self.table().to_csv(stream, index=False, float_format="%.7g")

    def resume(self) -> None:
        """Load the checkpoint, if there is one; InputError if it is damaged, of another run or too long."""
        for orphan in self.path.parent.glob(".*.tmp"):  # of a call that was killed while it wrote
            orphan.unlink(missing_ok=True)
        if not self.path.exists():
            return
        try:
            saved = torch.load(self.path, map_location="cpu", weights_only=True)
            saved = {name: saved[name] for name in ("settings", "data", "history", *self.PLAIN, *self.parts)}
            # settings that came later had their defaults
            theirs = {**dataclasses.asdict(TrainSettings()), "processes": 1, **saved["settings"]}
        except (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, LookupError, TypeError,
                ValueError) as error:
            raise InputError(f"{self.path}: truncated or not a checkpoint of this program; delete it to "
                             f"start anew ({type(error).__name__})") from None
        other = {name: theirs[name] for name, value in self.determining.items() if theirs[name] != value}
        if saved["data"] != self.data:
            other |= {"data": saved["data"]}
        if other:
            raise InputError(f"{self.path}: belongs to a run with other settings or data ({other}); give "
                             "another folder, or delete it")
        if saved["iteration"] > self.last:
            raise InputError(f"{self.path}: has {saved['iteration']} iterations already, more than "
                             f"iterations={self.last}")
        try:
            for name, part in self.parts.items():
                part.load_state_dict(saved[name])
        except (RuntimeError, ValueError, KeyError) as error:
            raise InputError(f"{self.path}: weights of another network; delete it to start anew "
                             f"({str(error).splitlines()[0]})") from None
        for name in self.PLAIN:
            setattr(self, name, saved[name])
        self.history = [tuple(row) for row in saved["history"].tolist()]


def _read(loader: Iterable[Tensor], save: Callable[[], None]) -> Iterator[Tensor]:
    """The loader's batches; one that cannot be read ends the training in one line, after it is saved."""
    try:
        yield from loader
    except InputError as error:
        save()
        # a worker's message is its traceback, which ends with the error
        told = str(error).rpartition("InputError: ")[2].removesuffix("\\n").rstrip()
        raise InputError(f"{told}. The training up to here is saved; restore the file and the same call "
                         "resumes (other files are other data)") from None


@contextlib.contextmanager
def _killed_readers(state: _State) -> Iterator[None]:
    """One line where a reader was killed; that may be told in the middle of a step, so nothing is saved."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ChildProcessError(f"a process that reads clips was killed (out of memory?); {state.kept}, and "
                                "the same call resumes; give fewer workers") from None


def _cpu_seconds() -> float:
    """Processor time of this process and of those that read for it, also of those that have ended."""
    own = psutil.Process()
    times = [own.cpu_times()]
    for child in own.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            times.append(child.cpu_times())
    return sum(time.user + time.system + time.children_user + time.children_system for time in times)
