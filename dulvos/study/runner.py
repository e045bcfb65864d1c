"""Runs the steps of a study on Dask's workers, several at a time, in the order of their needs.

By default, a scheduler and its workers start on this machine. With `--scheduler ADDRESS`, the workers of a
running Dask scheduler run the steps (on Slurm, dask-jobqueue starts one). They must have one thread each, and
find this folder, the data and the results under the same paths. If a worker dies, another one takes its step
and continues from the last checkpoint. If everything dies, the same command continues.
"""

import contextlib
import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from unittest import mock

import torch
from dask.system import CPU_COUNT
from distributed import Client, LocalCluster, get_worker, wait
from distributed.system import MEMORY_LIMIT

from dulvos.errors import InputError
from dulvos.files import expand, locked, make_folder
from dulvos.study.runs import open_data
from dulvos.study.steps import Step, check_parameters, execute, find_state, list_states

__all__ = ["Workers", "minutes_left", "open_client", "run_steps"]

WORKER_MEMORY = 3 * 2**30  # bytes; a training at 128x128 crops peaks at 3 GB (T = 15)
FOLDERS = ("DULVOS_DATA_DIR", "DULVOS_WEIGHTS", "DULVOS_CACHE")  # the notebooks run in another folder
CONNECT = 10  # seconds to wait for a scheduler
HOST = "127.0.0.1"  # a scheduler runs whatever it receives, so only this machine may reach it
BAR = re.compile(r"\b(?:[3-9]|\d\d+)/\d+ \[[\d:]+<([\d:]+)")  # tqdm's "done/all [spent<left", done >= 3
SLOW = 2  # times the planned minutes: then the advice is printed
ADVICE = ("this takes {:.1f} times as long as on two quiet cores: close other programs, or stop (Ctrl-C) and "
          "continue later with the same command")


@dataclass(frozen=True)
class Workers:
    """How the steps are run; 0 chooses by the machine's cores, memory and GPUs."""

    workers: int = 0  # steps at a time; 0: one for each GPU, or what a CPU's cores and memory allow
    threads: int = 0  # of each worker; by default the workers share the cores
    scheduler: str = ""  # address of a running Dask scheduler, whose workers run the steps instead


def run_steps(steps: Sequence[Step], how: Workers = Workers()) -> int:
    """Run the steps that are not done; the exit status is 1 if one failed or was left out, else 0.

    Raises:
        InputError: a wrong parameter, missing data, a study in use by another process, a scheduler that
            does not answer.
    """
    for step in steps:
        check_parameters(step.source, step.parameters)
    if how.workers < 0 or how.threads < 0:
        raise InputError(f"workers and threads must be >= 0, not {how.workers} and {how.threads}")
    with contextlib.ExitStack() as stack:
        for study in dict.fromkeys(step.study for step in steps):
            stack.enter_context(locked(study.folder))
        todo, new = [], set()  # new: the steps whose results will be others, not only made again
        for step in sorted(steps, key=lambda step: step.last):
            state, row = find_state(step)
            needs_new = new & {(step.study, need) for need in step.needs}
            shows_new = step.last and any(other.study == step.study for other in todo if not other.last)
            if state != "done" or needs_new or shows_new:
                todo.append(step)
                if row is None:
                    new.add((step.study, step.full_name))
        for data, split in dict.fromkeys(step.reads for step in todo if step.row):
            open_data(data, split)  # says what is missing now, not in each step
        print(list_states(steps), flush=True)
        ended = _carry_all(todo, how) if todo else {}
    troubles = {step: trouble for step, trouble in ended.items() if trouble}
    for step, trouble in troubles.items():
        print(f"FAILED {step.full_name}: {trouble}")
    if troubles:
        print("the same command continues from here")
    return int(bool(troubles))


def minutes_left(waiting: Sequence[Step], begun: dict[Step, float], taken: dict[Step, float],
                 count: int) -> tuple[float, float]:
    """Estimate the minutes left, and how many times longer steps take than planned.

    Steps that have ended are measured, as are running ones whose log has a progress bar. One minute that went
    as planned is added, so that a single short step says little.

    Arguments:
        waiting: the steps that have not begun.
        begun: `time.monotonic()` at the start of those that run.
        taken: minutes of those that have ended.
        count: steps at a time.
    """
    spent = {step: (time.monotonic() - start) / 60 for step, start in begun.items()}
    measured = taken | {step: spent[step] + rest for step in spent if (rest := _rest(step)) is not None}
    slow = (1 + sum(measured.values())) / (1 + sum(step.minutes for step in measured))
    slow = max(1.0, slow)  # a step that was resumed takes less than planned, which says nothing of the others
    rests = [max(0.0, measured.get(step, slow * step.minutes) - spent[step]) for step in spent]
    shared = (sum(rests) + slow * sum(step.minutes for step in waiting)) / count
    return max([shared, *rests]), slow


def _rest(step: Step) -> float | None:
    """The minutes left by the last progress bar in a step's log; None without a bar."""
    with contextlib.suppress(OSError, IndexError):
        rest = BAR.findall(step.log.read_text(errors="replace"))[-1]
        hours, minutes, seconds = map(int, f"0:{rest}".split(":")[-3:])
        return 60 * hours + minutes + seconds / 60
    return None


def _tell(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", flush=True)


def _carry_all(todo: list[Step], how: Workers) -> dict[Step, str]:
    """Run the steps and return what went wrong with each, "" for nothing."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    gpus = [] if how.scheduler else [gpu for gpu in visible.split(",") if gpu]
    waiting, running = list(todo), {}  # running: each future's step
    begun, taken, ended = {}, {}, {}  # of each step: its start, its minutes, what went wrong
    shown, advised = 0.0, False
    with open_client(how, sum(step.row == "train" for step in todo)) as (client, threads):
        variables = {name: value for name, value in os.environ.items() if name.startswith("DULVOS_")}
        variables |= {name: str(expand(folder).absolute()) for name in FOLDERS
                      if (folder := variables.get(name))}
        variables |= {f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "MKL", "OPENBLAS") if threads}
        # threads that wait should sleep: if they spin beside another busy program, they block each other
        variables["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")
        print(f"{len(todo)} steps to run; Ctrl-C is safe: the same command continues", flush=True)
        while waiting or running:
            count = max(1, len(client.scheduler_info(n_workers=-1)["workers"]))  # they come and go
            for step in list(waiting):
                others = [other for other in todo if other.study == step.study]
                needs = [other for other in others if other.full_name in step.needs]
                before = needs + [other for other in others if step.last and not other.last]
                if any(map(ended.get, needs)):
                    waiting.remove(step)
                    ended[step] = "left out: a step that it needs failed"
                # no more than one for each worker, so that they start in this order
                elif len(running) < count and all(other in ended for other in before):
                    waiting.remove(step)
                    begun[step] = time.monotonic()
                    running[client.submit(_carry, step, variables, gpus, pure=False)] = step
            if running and time.monotonic() - shown >= 60:
                shown = time.monotonic()
                left, slow = minutes_left(waiting, begun, taken, count)
                if slow >= SLOW and not advised:
                    advised = True
                    _tell(ADVICE.format(slow))
                _tell(f"about {left:.0f} min left; running: {', '.join(s.full_name for s in begun)}")
            if running:
                with contextlib.suppress(TimeoutError):  # workers may have come meanwhile
                    wait(list(running), timeout=5, return_when="FIRST_COMPLETED")
            for future in [future for future in running if future.done()]:
                step, finished = running.pop(future), future.status == "finished"
                taken[step] = (time.monotonic() - begun.pop(step)) / 60
                ended[step] = (future.result() if finished
                               else f"its worker failed: {future.exception() or future.status}")
                _tell(f"[{len(ended)}/{len(todo)}] {step.full_name}: {ended[step] or 'done'}")
    return ended


def _carry(step: Step, variables: dict[str, str], gpus: list[str]) -> str:
    """`execute` in a worker; its progress goes to a log."""
    if gpus:
        variables = {**variables, "CUDA_VISIBLE_DEVICES": gpus[int(get_worker().name) % len(gpus)]}
    make_folder(step.log.parent)
    with mock.patch.dict(os.environ, variables), open(step.log, "w") as stream:
        os.environ.pop("MALLOC_TRIM_THRESHOLD_", None)  # set by Dask, it makes training 1.5 times slower
        return execute(step, stream)


@contextlib.contextmanager
def open_client(how: Workers, trainings: int) -> Iterator[tuple[Client, int]]:
    """A Dask client, and the threads of each of its workers (0 lets the worker decide).

    Without a GPU, there are as many workers as trainings, if cores and memory allow.
    """
    if how.scheduler:
        if how.workers or how.threads:
            raise InputError(f"scheduler={how.scheduler} has its own workers; leave out workers and threads")
        try:
            client = Client(how.scheduler, timeout=CONNECT)
        except (OSError, ValueError) as error:
            message = f"scheduler={how.scheduler}: no Dask scheduler answers there ({error})"
            raise InputError(message) from None
        with client:
            found = client.scheduler_info(n_workers=-1)["workers"].values()
            if {worker["nthreads"] for worker in found} != {1}:
                raise InputError(f"scheduler={how.scheduler}: start workers of one thread (--nthreads 1)")
            yield client, 0
        return
    fitting = min(trainings, CPU_COUNT // (how.threads or 1), int(MEMORY_LIMIT) // WORKER_MEMORY)
    workers = how.workers or torch.cuda.device_count() or max(1, fitting)
    # a single worker is a thread of this process; memory has no limit, because the kernels use it
    with (mock.patch.dict(os.environ),  # Dask sets variables in this process
          LocalCluster(n_workers=workers, threads_per_worker=1, processes=workers > 1, memory_limit=0,
                       host=HOST if workers > 1 else None, dashboard_address=f"{HOST}:0",
                       worker_dashboard_address=f"{HOST}:0",
                       silence_logs=logging.CRITICAL) as cluster,
          Client(cluster) as client):
        yield client, how.threads or max(1, CPU_COUNT // workers)
