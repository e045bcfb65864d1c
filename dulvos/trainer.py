"""Training from start to end: batches read, steps made, checkpoints written, resumable to the bit."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import psutil
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from dulvos import clips, devices
from dulvos.checkpoints import TrainingState, save_encoder
from dulvos.errors import InputError
from dulvos.training import NO_NUMBERS, TrainSettings, clip_numbers, make_clips, make_parts, training_step
from dulvos.videos import Video, fingerprint

__all__ = ["train"]


def train(settings: TrainSettings, videos: Sequence[Video], folder: str | os.PathLike, *, device: str | None = None,
          data: str | None = None) -> dict:
    """Train an encoder, or continue where an earlier call with the same settings and data was cut off.

    Writes `checkpoint.pt` every few minutes and at the end (a temporary file, synced and renamed), `history.csv` (a row an
    iteration) and, at the end, `encoder.safetensors`; with `snapshot_every`, also `snapshots/encoder-<iteration>.safetensors` with
    the row of the history in its sidecar. Every draw is a function of the seed and the iteration, so that a resumed
    run is the uninterrupted one, to the bit on the CPU at a fixed number of threads.

    Started by torchrun, each process takes its share of every batch; anchors and cross-view features are gathered over all of
    them, so that the loss is that of the whole batch. BatchNorm's statistics are those of each process's clips. Process 0 writes;
    with second_forward="eval", where running statistics count, all go on with its own after a stop.

    Arguments:
        videos: those shorter than T are left out with a line each.
        folder: for this run's files.
        device: "cpu", "cuda" …; None takes what there is.
        data: fingerprint of the videos; None computes it.

    Returns:
        encoder (path), iterations, videos, device, computed_in (bf16 or fp32), processes; loss, loss_st, loss_cv (means of the last
        100 iterations); seconds and cpu_seconds (of this process and its readers), seconds_per_iteration, peak_memory_mb.

    Raises:
        InputError: wrong input, a checkpoint that is damaged or of another run, or frames that cannot be read any more.
        FloatingPointError: the loss became NaN or infinite; the last checkpoint is kept.
        ChildProcessError: a process that reads clips was killed; the last checkpoint is kept.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    place = devices.find_device(device)
    world = devices.joined_processes(device)
    processes, rank = world.num_processes, world.process_index
    place = world.device if processes > 1 else place
    if settings.batch % processes:
        raise InputError(f"batch={settings.batch} cannot be shared by {processes} processes; choose a multiple of {processes}")
    say = print if rank == 0 else (lambda line: None)
    kept, lines = clips.usable_videos(videos, settings.frames)
    for line in lines:
        say(line)
    if settings.batch > len(kept):
        say(f"batch={settings.batch} exceeds the {len(kept)} videos: a batch holds several clips of a video, "
            "which are false negatives of each other")
    dataset, parts = make_clips(settings, kept), make_parts(settings, place)
    net = parts["net"]
    # the settings left out change no number up to a given iteration
    determining = {name: value for name, value in dataclasses.asdict(settings).items() if name not in ("iterations", *NO_NUMBERS)}
    determining |= {"processes": processes} if processes > 1 else {}
    data = data or fingerprint(kept)
    state = TrainingState(folder / "checkpoint.pt", determining, data, settings.iterations, parts)
    state.resume()
    if settings.compile and (reason := devices.cannot_compile(place)):
        say(f"compile=True has no effect here: {reason}")
    elif settings.compile:
        net.compile()
    # local statistics: each process keeps its own, and those of process 0 are saved
    model = net if processes == 1 else DistributedDataParallel(net, broadcast_buffers=False)

    def save() -> None:
        if not all(value.isfinite().all() for value in net.state_dict().values()):
            raise diverged("weights are NaN or infinite")
        state.peak, state.cpu_seconds = max(state.peak, devices.peak_memory(place)), before[1] + _cpu_seconds() - worked[1]
        if rank == 0:
            state.save()

    def save_snapshot(path: Path) -> Path:
        if rank == 0:
            path.parent.mkdir(exist_ok=True)
            save_encoder(net, path, settings=dataclasses.asdict(settings), data=data, iteration=state.iteration,
                         seconds=state.seconds, cpu_seconds=before[1] + _cpu_seconds() - worked[1])
        return path

    def diverged(what: str) -> FloatingPointError:
        numbers = clip_numbers(settings, state.iteration)
        names = sorted({dataset.video_of(number).name for number in numbers})
        kept = f"the last good checkpoint is {state.path}" if state.path.exists() else "no checkpoint was written yet"
        return FloatingPointError(f"{what} at iteration {state.iteration}, clips of {', '.join(names)}; {kept}; lr="
                                  f"{settings.lr} may be too high: start again with a lower one, in another folder")

    own = [clip_numbers(settings, i, rank=rank, processes=processes) for i in range(state.iteration, settings.iterations)]
    loader = DataLoader(dataset, batch_sampler=own, num_workers=settings.workers, persistent_workers=settings.workers > 0,
                        multiprocessing_context="spawn" if settings.workers else None)
    before, worked = (state.seconds, state.cpu_seconds), (time.monotonic(), _cpu_seconds())
    saved = worked[0]
    bar = tqdm(total=settings.iterations, initial=state.iteration, desc="training", unit="it", mininterval=5.0, disable=rank > 0)
    with _killed_readers(state.path):
        for batch in _read(loader, save):
            try:
                values = training_step(model, parts, batch.to(place), settings, state.iteration, rank=rank, processes=processes)
            except FloatingPointError as error:
                raise diverged(str(error)) from None
            now = time.monotonic()
            state.iteration += 1
            state.seconds = before[0] + now - worked[0]
            state.add(state.iteration, *values, state.seconds)
            bar.update()
            bar.set_postfix(loss=f"{values[0]:.3f}", st=f"{values[1]:.3f}", cv=f"{values[2]:.3f}", refresh=False)
            if settings.snapshot_every and state.iteration % settings.snapshot_every == 0:
                save_snapshot(folder / "snapshots" / f"encoder-{state.iteration}.safetensors")
            if now - saved > 60 * settings.checkpoint_minutes and state.iteration < settings.iterations:
                save()
                saved = now
    bar.close()
    save()
    path = save_snapshot(folder / "encoder.safetensors")
    world.wait_for_everyone()
    last = state.table().tail(100)
    return {"encoder": path, "iterations": state.iteration, "loss": last.loss.mean(), "loss_st": last.loss_st.mean(),
            "loss_cv": last.loss_cv.mean(), "seconds": state.seconds, "cpu_seconds": state.cpu_seconds,
            "seconds_per_iteration": state.seconds / state.iteration, "peak_memory_mb": state.peak, "device": str(place),
            "computed_in": devices.computed_in(place.type, settings.precision), "processes": processes, "videos": len(kept)}


def _read(loader: Iterable[Tensor], save: Callable[[], None]) -> Iterator[Tensor]:
    """The loader's batches; where one cannot be had, what was trained is saved and one line says why."""
    try:
        yield from loader
    except InputError as error:
        save()
        # a worker's message is its traceback, which ends with the error
        told = str(error).rpartition("InputError: ")[2].removesuffix("\\n").rstrip()
        raise InputError(f"{told}. What was trained is saved and goes on once the file is as it was; with another file the data are "
                         "other data, and training starts anew") from None


@contextlib.contextmanager
def _killed_readers(path: Path) -> Iterator[None]:
    """One line where a reader was killed. The system tells it wherever this process is: in the middle of a step nothing is saved."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        kept = f"{path} is kept" if path.exists() else "no checkpoint was written yet"
        raise ChildProcessError(f"a process that reads clips was killed (out of memory?); {kept}, the same call continues; give fewer "
                                "workers") from None


def _cpu_seconds() -> float:
    """Processor time of this process, of those that read for it, and of those that have ended."""
    own = psutil.Process()
    times = [own.cpu_times()]
    for child in own.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            times.append(child.cpu_times())
    return sum(time.user + time.system + time.children_user + time.children_system for time in times)
