"""Training: a step, and the loop that reads clips, takes steps, saves and resumes."""

import contextlib
import dataclasses
import io
import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
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
from dulvos.files import expand, make_folder, write_file
from dulvos.objectives import OBJECTIVES, Iteration, TrainSettings
from dulvos.videos import Video, fingerprint

__all__ = ["NO_NUMBERS", "TrainSettings", "clip_numbers", "make_clips", "make_parts", "parameter_groups",
           "train", "training_step"]

NO_NUMBERS = ("workers", "checkpoint_minutes", "snapshot_every")  # settings that change no number
LOSSES = {"loss": "total", "loss_st": "space_time", "loss_cv": "cross_view"}  # column -> term of the loss
COLUMNS = ("iteration", *LOSSES, "lr", "seconds")  # of history.csv


def parameter_groups(net: nn.Module, settings: TrainSettings) -> list[dict]:
    """Two groups: weights, with weight decay; biases, with twice the learning rate and without decay."""
    weights = [value for name, value in net.named_parameters() if not name.endswith(".bias")]
    biases = [value for name, value in net.named_parameters() if name.endswith(".bias")]
    return [{"params": weights, "lr": settings.lr, "weight_decay": settings.weight_decay},
            {"params": biases, "lr": 2 * settings.lr, "weight_decay": 0.0}]


def make_clips(settings: TrainSettings, videos: Sequence[Video]) -> clips.Clips:
    """The clips that are drawn from the videos; baselines take their frames in order."""
    ordered = settings.ordered or settings.objective != "dense"
    return clips.Clips(videos, dataclasses.replace(settings, ordered=ordered))


def clip_numbers(settings: TrainSettings, iteration: int, *, rank: int = 0, processes: int = 1) -> range:
    """The numbers of a process's clips in an iteration; no clip is dropped at the end of an epoch."""
    share = settings.batch // processes
    return range(start := iteration * settings.batch + rank * share, start + share)


def make_parts(settings: TrainSettings, device: torch.device) -> dict:
    """Make the "net" (in training mode, initialised from the seed), its "optimiser" and "scheduler"."""
    colour = OBJECTIVES[settings.objective].colour
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        net = encoder.Encoder(settings.dim, settings.norm, settings.stride, colour, settings.padding)
    net = net.to(device, memory_format=torch.channels_last).train()
    groups = parameter_groups(net, settings)
    optimiser = (torch.optim.Adam(groups, betas=(0.5, 0.999)) if settings.optimiser == "adam"
                 else torch.optim.SGD(groups, momentum=0.9))
    scheduler = torch.optim.lr_scheduler.StepLR(optimiser, settings.lr_every, settings.lr_decay)
    return {"net": net, "optimiser": optimiser, "scheduler": scheduler}


def training_step(model: nn.Module, parts: dict, batch: Tensor, settings: TrainSettings, iteration: int, *,
                  rank: int = 0, processes: int = 1) -> tuple[float, ...]:
    """Run one iteration: loss, gradient, step. All draws depend on the seed and the iteration alone.

    Arguments:
        model: the network of `parts`, or DistributedDataParallel around it.
        parts: what `make_parts` returns.
        batch: (B / processes, T, 3, S, S) uint8 RGB, the clips of `clip_numbers`, on the device.

    Returns:
        loss, L_ST, L_CV (means over the processes; NaN if the objective has no such term); learning rate.

    Raises:
        FloatingPointError: the loss is NaN or infinite; the weights have not changed.
    """
    state = np.random.SeedSequence((settings.seed, 2, iteration)).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(state >> 1))
    output = Iteration(model, encoder.prepare_frames(batch), settings, generator, iteration, rank,
                       processes).loss()
    values = torch.stack([getattr(output, term, output.total.new_tensor(math.nan)).detach()
                          for term in LOSSES.values()])
    if processes > 1:
        distributed.all_reduce(values)
    values = (values / processes).tolist()
    if not math.isfinite(values[0]):
        raise FloatingPointError(f"loss {values[0]}")
    lr = parts["optimiser"].param_groups[0]["lr"]
    parts["optimiser"].zero_grad()
    output.total.backward()
    parts["optimiser"].step()
    parts["scheduler"].step()
    return *values, lr


def train(settings: TrainSettings, videos: Sequence[Video], folder: str | os.PathLike, *,
          device: str | None = None, data: str | None = None) -> dict:
    """Train an encoder, or resume an earlier call with the same settings and data.

    Every few minutes and at the end it writes `checkpoint.pt` and `history.csv` (one line an iteration), at
    the end `encoder.safetensors`, and `snapshots/encoder-<iteration>.safetensors` if `snapshot_every` is set.
    On the CPU with a fixed number of threads, a resumed run equals an uninterrupted one to the bit.

    Under torchrun, each process takes its share of every batch. The loss is that of the whole batch, but
    BatchNorm normalises each share by itself. Process 0 writes; all resume with its running statistics.

    Arguments:
        videos: those with fewer than T frames are left out, and a line names each of them.
        folder: for the files of this run.
        device: "cpu", "cuda", ...; None chooses a CUDA GPU if there is one.
        data: fingerprint of the videos; None computes it.

    Returns:
        encoder (path), iterations, videos, device, computed_in (bf16 or fp32), processes; loss, loss_st,
        loss_cv (means of the last 100 iterations, or None); seconds, cpu_seconds (workers included),
        seconds_per_iteration, peak_memory_mb.

    Raises:
        InputError: wrong input, a checkpoint that is damaged or of another run, frames that cannot be read.
        FloatingPointError: the loss or a weight became NaN or infinite; the last checkpoint is kept.
        ChildProcessError: a worker was killed; the last checkpoint is kept.
    """
    folder = make_folder(expand(folder))
    rank, processes, place = devices.joined_processes(device)
    if settings.batch % processes:
        raise InputError(f"batch={settings.batch} cannot be shared by {processes} processes; choose a "
                         f"multiple of {processes}")
    kept, lines = clips.usable_videos(videos, settings.frames)
    if settings.batch > len(kept):
        lines.append(f"batch={settings.batch} exceeds the {len(kept)} videos: a batch holds several clips of "
                     "a video, which are false negatives of each other")
    if rank == 0 and lines:
        print(*lines, sep="\n")
    dataset = make_clips(settings, kept)
    run = _Run(folder, settings, data or fingerprint(kept), place, rank, processes)
    model = run.parts["net"]
    if processes > 1:  # each process keeps its own BatchNorm statistics; those of process 0 are saved
        model = DistributedDataParallel(model, broadcast_buffers=False)
    own = [clip_numbers(settings, i, rank=rank, processes=processes)
           for i in range(len(run.history), settings.iterations)]
    share = settings.batch // processes
    workers = devices.fitting_processes(settings.workers, share * settings.frames * 3 * settings.crop**2)
    batches = DataLoader(dataset, batch_sampler=own, num_workers=workers,
                         multiprocessing_context="spawn" if workers else None)
    bar = tqdm(batches, "training", settings.iterations, initial=len(run.history), unit="it", mininterval=5.0,
               disable=rank > 0)
    saved = time.monotonic()
    try:
        for batch in _received(bar):
            values = training_step(model, run.parts, batch.to(place), settings, len(run.history), rank=rank,
                                   processes=processes)
            run.add(values)
            bar.set_postfix(loss=f"{values[0]:.3f}", refresh=False)
            if settings.snapshot_every and len(run.history) % settings.snapshot_every == 0:
                run.save_encoder(f"snapshots/encoder-{len(run.history)}.safetensors")
            if time.monotonic() - saved > 60 * settings.checkpoint_minutes:
                run.save()
                saved = time.monotonic()
        run.save()
    except FloatingPointError as error:
        done = len(run.history)
        names = {dataset.video_of(number).name for number in clip_numbers(settings, done)}
        raise FloatingPointError(f"{error} after iteration {done} (next: clips of {', '.join(sorted(names))})"
                                 f"; lr={settings.lr} may be too high: start again with a lower one, in "
                                 f"another folder than {folder}") from None
    except InputError as error:  # a frame cannot be read; a worker puts its traceback before the message
        run.save()
        raise InputError(str(error).rpartition("InputError: ")[2].removesuffix("\\n")) from None
    # a worker was killed, perhaps while it sent a batch, perhaps during a step: so nothing is saved
    except (RuntimeError, ConnectionError, EOFError) as error:
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise ChildProcessError("a process that reads clips was killed (out of memory?); give fewer workers, "
                                f"and the same call resumes from {run.path}") from None
    run.save_encoder("encoder.safetensors")
    if processes > 1:
        distributed.barrier()  # no process returns before the encoder is written
    means = run.table().tail(100).mean()
    return {"encoder": folder / "encoder.safetensors", "iterations": len(run.history),
            **{name: None if math.isnan(means[name]) else float(means[name]) for name in LOSSES},
            "seconds": run.taken["seconds"], "cpu_seconds": run.taken["cpu_seconds"],
            "seconds_per_iteration": run.taken["seconds"] / len(run.history),
            "peak_memory_mb": run.taken["peak"], "device": str(place),
            "computed_in": devices.computed_in(place.type, settings.precision), "processes": processes,
            "videos": len(kept)}


class _Run:
    """The state of a run, which `checkpoint.pt` keeps; `load` resumes it."""

    def __init__(self, folder: Path, settings: TrainSettings, data: str, place: torch.device, rank: int,
                 processes: int) -> None:
        self.folder, self.path, self.place, self.rank = folder, folder / "checkpoint.pt", place, rank
        self.parts = make_parts(settings, place)
        self.notes = {"settings": dataclasses.asdict(settings), "data": data}
        # must be the same when the run is resumed, except that iterations may grow
        self.determining = {name: value for name, value in self.notes["settings"].items()
                            if name not in NO_NUMBERS} | {"processes": processes, "data": data}
        self.history: list[tuple[float, ...]] = []  # `COLUMNS` of each iteration done
        self.taken = {"seconds": 0.0, "cpu_seconds": 0.0, "peak": 0.0}  # by all calls; peak memory in MB
        if self.path.exists():
            self.load()
        # as if all calls were one
        self.begun = time.monotonic() - self.taken["seconds"]
        self.cpu_begun = _cpu_seconds() - self.taken["cpu_seconds"]

    def add(self, values: tuple[float, ...]) -> None:
        """Count an iteration, for which `training_step` returned these values."""
        self.taken["seconds"] = time.monotonic() - self.begun
        self.history.append((len(self.history) + 1, *values, self.taken["seconds"]))

    def measure(self) -> None:
        """Update the processor time and the peak memory."""
        self.taken["cpu_seconds"] = _cpu_seconds() - self.cpu_begun
        self.taken["peak"] = max(self.taken["peak"], devices.peak_memory(self.place))

    def table(self) -> pd.DataFrame:
        """The history, one line an iteration."""
        return pd.DataFrame(self.history, columns=COLUMNS)

    def save_encoder(self, name: str) -> None:
        """Write the network as it is now."""
        self.measure()
        if self.rank == 0:
            save_encoder(self.parts["net"], self.folder / name, **self.notes, iteration=len(self.history),
                         **self.taken)

    def save(self) -> None:
        """Write the checkpoint and the history; FloatingPointError if a weight is NaN or infinite."""
        if not all(value.isfinite().all() for value in self.parts["net"].state_dict().values()):
            raise FloatingPointError("a weight is NaN or infinite")
        self.measure()
        if self.rank:
            return
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state |= {"settings": self.determining, "iteration": len(self.history), **self.taken,
                  "history": torch.tensor(self.history, dtype=torch.float64)}
        content = io.BytesIO()  # because torch would not say that a disk is full
        torch.save(state, content)
        write_file(self.path, content.getbuffer())
        write_file(self.folder / "history.csv", self.table().to_csv(index=False, float_format="%.7g"))

    def load(self) -> None:
        """Load the checkpoint; InputError if it is damaged or belongs to another run."""
        try:
            saved = torch.load(self.path, map_location="cpu", weights_only=True)
            self.history = [tuple(row) for row in saved["history"].tolist()]
            self.taken = {name: saved[name] for name in self.taken}
            # old checkpoints lack new settings, which then had their defaults
            theirs = {**dataclasses.asdict(TrainSettings()), "processes": 1, "data": saved.get("data"),
                      **saved["settings"]}
            theirs["iterations"] = max(self.determining["iterations"], len(self.history))  # may only grow
            other = [f"{name}={theirs[name]!r}, now {value!r}" for name, value in self.determining.items()
                     if theirs[name] != value]
            if not other:
                for name, part in self.parts.items():
                    part.load_state_dict(saved[name])
        except (PermissionError, torch.OutOfMemoryError):
            raise  # the checkpoint may be whole
        except Exception as error:  # the unpickler fails in many ways on random bytes
            raise InputError(f"{self.path}: truncated or not a checkpoint of this program; delete it to "
                             f"start anew ({type(error).__name__})") from None
        if other:
            raise InputError(f"{self.path}: belongs to a run with other settings or data "
                             f"({'; '.join(other)}); give another folder, or delete it")


def _received(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """The batches; when a worker's connection breaks, wait for the signal that it was killed."""
    try:
        yield from batches
    except (ConnectionError, EOFError):
        time.sleep(1)  # PyTorch's handler of the signal raises RuntimeError
        raise


def _cpu_seconds() -> float:
    """Processor time of this process and its workers, running or ended."""
    total, own = 0.0, psutil.Process()
    for process in (own, *own.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            total += sum(process.cpu_times()[:4])  # user and system, then those of its ended children
    return total
