"""Runs the steps of a study in the order of their needs, several at a time, carried by Dask.

By default, a scheduler and its workers start on this machine. With `--scheduler ADDRESS`, the steps go to the
workers of a running Dask scheduler (on Slurm, dask-jobqueue starts one). These need one thread each and see
this folder, the data and the results under the same paths. If a worker dies, another one takes its step and
continues from the last checkpoint. If everything dies, the same command continues.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from dask.system import CPU_COUNT
from distributed import Client, LocalCluster, get_worker, wait
from distributed.system import MEMORY_LIMIT

from dulvos.errors import InputError
from dulvos.files import locked, make_folder
from dulvos.study.steps import Step, check_parameters, environment, execute, find_state, list_states

__all__ = ["Progress", "open_client", "run_steps"]

WORKER_MEMORY = 3 * 2**30  # bytes; a training at 128x128 crops peaks at 2.1 GB
CONNECT = 10  # seconds to wait for a scheduler
HOST = "127.0.0.1"  # a scheduler runs whatever it is sent, so only this machine may send
BAR = re.compile(r"(\d+)/(\d+) \[[\d:]+<(?:(\d+):)?(\d+):(\d+)")  # tqdm's: done/all [spent<h:m:s left
SLOW = 2  # times the planned minutes: then the machine is called slow


def run_steps(steps: Sequence[Step], *, workers: int = 0, threads: int = 0, scheduler: str = "") -> int:
    """Run the steps that are not done, in the order of their needs: 0, or 1 if one failed or was left out.

    Arguments:
        workers, threads, scheduler: as `open_client` takes them.

    Raises:
        InputError: a wrong parameter, a study in use by another process, a scheduler that does not answer.
    """
    for step in steps:
        check_parameters(step.source, step.parameters)
    if workers < 0 or threads < 0:
        raise InputError(f"workers and threads must be >= 0, not {workers} and {threads}")
    with contextlib.ExitStack() as stack:
        for study in dict.fromkeys(step.study for step in steps):
            stack.enter_context(locked(study.folder))
        print(list_states(steps), flush=True)
        todo = [step for step in steps if find_state(step)[0] != "done"]
        troubles = _carry_all(todo, workers, threads, scheduler) if todo else {}
    for step, trouble in troubles.items():
        print(f"FAILED {step.full_name}: {trouble}")
    if troubles:
        print("the same command continues from here")
    return int(bool(troubles))


@dataclass
class Progress:
    """Which steps wait, run or have ended, and the minutes left, corrected by what was measured.

    Arguments:
        waiting: the steps to run.
        count: steps at a time.
    """

    waiting: list[Step]
    count: int
    begun: dict[Step, float] = field(default_factory=dict)  # time.monotonic() at the start of those that run
    ended: dict[Step, str] = field(default_factory=dict)  # what went wrong, "" for nothing
    planned: float = 0.0  # minutes of those that have ended
    taken: float = 0.0  # and what they took
    told: bool = False  # that the machine is slow

    def begin(self, step: Step) -> None:
        self.waiting.remove(step)
        self.begun[step] = time.monotonic()

    def end(self, step: Step, trouble: str) -> str:
        """A line about a step that has ended, or is left out."""
        if step in self.begun:
            self.planned += step.minutes
            self.taken += (time.monotonic() - self.begun.pop(step)) / 60
        else:
            self.waiting.remove(step)
        self.ended[step] = trouble
        total = len(self.waiting) + len(self.begun) + len(self.ended)
        return f"[{len(self.ended)}/{total}] {step.full_name}: {trouble or 'done'}"

    def left(self) -> tuple[float, float]:
        """Minutes left, and how many times longer steps take than planned.

        A running step tells by its bar how long it will take, as soon as three iterations are measured. One
        minute counts as if it had gone as planned, so that a single short step says little.
        """
        planned, taken, rests = 1 + self.planned, 1 + self.taken, {}
        for step, begun in self.begun.items():
            done, _, rest = _bar(step)
            if done >= 3:
                rests[step] = rest
                planned, taken = planned + step.minutes, taken + rest + (time.monotonic() - begun) / 60
        slow = taken / planned
        for step in self.begun.keys() - rests.keys():
            rests[step] = max(0.0, slow * step.minutes - (time.monotonic() - self.begun[step]) / 60)
        waiting = slow * sum(step.minutes for step in self.waiting)
        return max([(sum(rests.values()) + waiting) / self.count, *rests.values()]), slow

    def status(self) -> str:
        """What runs, and how long it will take; once, what to do on a slow machine."""
        (left, slow), running = self.left(), []
        for step in self.begun:
            done, count, _ = _bar(step)
            running.append(f"{step.full_name} {done}/{count}" if count else step.full_name)
        line = f"about {left:.0f} min left; running: {', '.join(running)}"
        if slow >= SLOW and not self.told:
            self.told = True
            line = (f"This takes {slow:.1f} times as long as on two quiet cores. Close other programs, or "
                    f"stop it (Ctrl-C) and continue later with the same command.\n{line}")
        return line


def _bar(step: Step) -> tuple[int, int, float]:
    """The last progress bar in a step's log: done, of how many, minutes left; zeros if there is none."""
    with contextlib.suppress(OSError), open(step.log, "rb") as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - 500))
        if found := BAR.findall(stream.read().decode(errors="replace")):
            done, count, hours, minutes, seconds = (int(number or 0) for number in found[-1])
            return done, count, 60 * hours + minutes + seconds / 60
    return 0, 0, 0.0


def _carry_all(todo: list[Step], workers: int, threads: int, scheduler: str) -> dict[Step, str]:
    """What went wrong with which steps."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    gpus = [] if scheduler else [gpu for gpu in visible.split(",") if gpu]
    several = sum(step.row == "train" for step in todo) > 1
    with open_client(workers, threads, scheduler, several) as (client, threads):
        variables = {name: value for name, value in os.environ.items() if name.startswith("DULVOS_")}
        variables |= {f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "MKL", "OPENBLAS") if threads}
        # threads that wait sleep: beside another busy program, those that spin would hold each other up
        variables["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")
        now = Progress(list(todo), len(client.scheduler_info(n_workers=-1)["workers"]))
        running = {}
        print(f"{len(todo)} steps to run, {now.count} at a time, about {now.left()[0]:.0f} min; "
              "Ctrl-C is safe: the same command continues", flush=True)
        terminal, shown = sys.stdout.isatty(), time.monotonic()
        while now.waiting or running:
            for step in list(now.waiting):
                others = [other for other in todo if other.study == step.study]
                needs = [other for other in others if other.full_name in step.needs]
                before = needs + [other for other in others if step.last and not other.last]
                if any(map(now.ended.get, needs)):
                    _tell(now.end(step, "left out: a step that it needs failed"))
                # one for each worker and no more, so that they start in this order
                elif len(running) < now.count and all(other in now.ended for other in before):
                    now.begin(step)
                    running[client.submit(_carry, step, variables, gpus, pure=False)] = step
            if running:
                with contextlib.suppress(TimeoutError):  # workers may have come meanwhile
                    wait(list(running), timeout=5, return_when="FIRST_COMPLETED")
            now.count = max(1, len(client.scheduler_info(n_workers=-1)["workers"]))
            for future in [future for future in running if future.done()]:
                good = future.status == "finished"
                _tell(now.end(running.pop(future), future.result() if good else
                              f"its worker ended ({future.status})"))
            if running and (terminal or time.monotonic() - shown >= 60):
                shown = time.monotonic()
                _tell(now.status(), "" if terminal else "\n")
    return {step: trouble for step, trouble in now.ended.items() if trouble}


def _tell(what: str, end: str = "\n") -> None:
    """Print a line with the time, over the last one if that had no end."""
    clear = "\r\x1b[K" if sys.stdout.isatty() else ""
    print(f"{clear}{time.strftime('%H:%M:%S')} {what}", end=end, flush=True)


def _carry(step: Step, variables: dict[str, str], gpus: list[str]) -> str:
    """`execute` in a worker; its progress goes to a log."""
    if gpus:
        variables = {**variables, "CUDA_VISIBLE_DEVICES": gpus[int(get_worker().name) % len(gpus)]}
    make_folder(step.log.parent)
    with environment(variables), open(step.log, "w") as stream:
        os.environ.pop("MALLOC_TRIM_THRESHOLD_", None)  # set by Dask, it makes training 1.5 times slower
        return execute(step, stream)


@contextlib.contextmanager
def open_client(workers: int, threads: int, scheduler: str, several: bool) -> Iterator[tuple[Client, int]]:
    """A Dask client, and the threads of each of its workers (0 leaves them to the worker).

    Arguments:
        workers: steps at a time on this machine; 0 takes one for each GPU. Without a GPU, it takes one, or,
            if `several`, as many as cores and memory allow.
        threads: of each worker's computations; 0 shares the cores among the workers.
        scheduler: address of a running Dask scheduler; "" starts one here.
    """
    if scheduler:
        if workers or threads:
            raise InputError(f"scheduler={scheduler}: its own workers run; leave out workers and threads")
        try:
            client = Client(scheduler, timeout=CONNECT)
        except (OSError, ValueError) as error:
            raise InputError(f"scheduler={scheduler}: no Dask scheduler answers there ({error})") from None
        with client:
            found = {worker["nthreads"] for worker in client.scheduler_info(n_workers=-1)["workers"].values()}
            if found != {1}:
                raise InputError(f"scheduler={scheduler}: start its workers with one thread (--nthreads 1)")
            yield client, 0
        return
    fitting = max(1, min(CPU_COUNT // (threads or 1), int(MEMORY_LIMIT) // WORKER_MEMORY))
    workers = workers or torch.cuda.device_count() or (fitting if several else 1)
    # one worker is a thread of this process; no memory limit, because the kernels need the memory;
    # Dask sets variables in this process, too
    with (environment({}),
          LocalCluster(n_workers=workers, threads_per_worker=1, processes=workers > 1, memory_limit=0,
                       host=HOST if workers > 1 else None, dashboard_address=f"{HOST}:0",
                       worker_dashboard_address=f"{HOST}:0",
                       silence_logs=logging.CRITICAL) as cluster,
          Client(cluster) as client):
        yield client, threads or max(1, CPU_COUNT // workers)
