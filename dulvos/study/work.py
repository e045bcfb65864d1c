"""Runs of the grid carried out by Dask: on this machine, or on a cluster that is there already.

Without an address, a scheduler and its workers start here: a worker for each GPU, without one a worker for each core that the
memory allows. With `--scheduler ADDRESS` the runs go to the workers of that scheduler. On Slurm, for instance, with
dask-jobqueue installed (not a dependency), in a Python that stays open:

    from dask_jobqueue import SLURMCluster
    cluster = SLURMCluster(cores=1, processes=1, memory="16GB", walltime="08:00:00",
                           job_extra_directives=["--gres=gpu:1"])
    cluster.scale(8)
    print(cluster.scheduler_address)  # python -m dulvos grid --study paper --run --scheduler tcp://...

Workers have one thread each and see this folder, the data and the results under the same paths. A worker that dies loses
nothing: its run goes to another one, which goes on from the last checkpoint. Should the scheduler or everything die, the same
command continues.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dask
import psutil
import torch
from distributed import Client, Nanny, Scheduler, SpecCluster, as_completed

from dulvos.study import results, runs, steps as study
from dulvos.study.ablation import GridStudy, find_study
from dulvos.study.ablation_states import Run, check_names, evaluate_step, failure_of, grid_runs, listing, lock_step
from dulvos.study.ablation_states import minutes_left, train_step
from dulvos.errors import InputError

__all__ = ["Outcome", "carry", "draw", "local_cluster", "run_grid"]

WORKER_MEMORY = 3 * 2**30  # bytes; a training at 128² crops peaks at 2.1 GB
CONNECT = 20  # seconds to wait for a scheduler
ATTEMPTS = 3  # of a run whose worker dies
HOST = "127.0.0.1"  # Dask runs whatever it is sent, so none but this machine may send


@dataclass(frozen=True)
class Outcome:
    """What became of a step: `trouble` is "" if it ran to its end, else one line."""

    name: str
    trouble: str = ""


def run_grid(grid: GridStudy, *, workers: int = 0, threads: int = 1, scheduler: str = "", only: tuple[str, ...] = ()) -> int:
    """Run what is missing, say what failed, and return 1 if anything did.

    Arguments:
        workers: on this machine; 0 takes one a GPU, without one as many as cores and memory allow.
        threads: of each worker's computations.
        scheduler: address of a running Dask scheduler; "" starts one here.
        only: names of runs; none means all.

    Raises:
        InputError: data that is not there, an unknown run, a scheduler that does not answer or has unfit workers.
    """
    for data, split in ((grid.train, "train"), (grid.evaluate, "val")):
        runs.open_data(data, split)
    with study.lock(results.study_folder(grid.folder)):
        every = grid_runs(grid)
        check_names(grid, every, only)
        todo = [run for run in every if run.state != "done" and (not only or run.name in only)]
        print(listing(grid, every), flush=True)
        outcomes = _carry_all(grid, todo, workers, threads, scheduler) if todo else []
        after = grid_runs(grid)
        print("\n" + listing(grid, after))
    troubles = [outcome for outcome in outcomes if outcome.trouble]
    for outcome in troubles:
        print(f"FAILED {outcome.name}: {outcome.trouble}")
    unfinished = {run.name for run in todo} - {run.name for run in after if run.state == "done"}
    if troubles or unfinished:
        print(f"{len(unfinished)} runs are not done; the same command runs them again")
    return int(bool(troubles or unfinished))


def draw(name: str) -> int:
    """Execute `03_ablation` for the study of that name; 1 if it failed."""
    step = study.Step("03_ablation", "03_ablation", {"study": name})
    return int(not study.execute(find_study(name).folder, step, "drawn"))


def _carry_all(grid: GridStudy, todo: list[Run], workers: int, threads: int, scheduler: str) -> list[Outcome]:
    for run in todo:
        for step in [train_step(grid, run)] * (run.training != "") + [evaluate_step(grid, run, "")]:
            study.check_parameters(step.notebook, step.parameters)
    place = {"results": str(results.RESULTS), "notebooks": str(study.NOTEBOOKS),
             "environment": {name: value for name, value in os.environ.items() if name.startswith("DULVOS_")}}
    outcomes: list[Outcome] = []
    with _client(workers, threads, scheduler) as client:
        count = max(1, len(client.scheduler_info(n_workers=-1)["workers"]))
        print(f"{len(todo)} runs to do with {count} workers: {minutes_left(grid, todo, count) / 60:.1f} h; Ctrl-C is safe",
              flush=True)
        trainings: dict[str, object] = {}
        names: dict[object, str] = {}
        for run in todo:
            if run.training and run.training not in trainings and not _is_trained(grid, run):
                future = client.submit(carry, grid, run.name, "train", place, pure=False, priority=-len(names))
                trainings[run.training], names[future] = future, f"01_train-{run.training}"
            future = client.submit(carry, grid, run.name, "evaluate", place, trainings.get(run.training), pure=False,
                                   priority=-len(names))  # in the order of the list
            names[future] = f"02_evaluate_davis-{run.name}"
        for future in as_completed(list(names)):
            outcome = _outcome(future, names[future])
            outcomes.append(outcome)
            print(f"{time.strftime('%H:%M:%S')} [{len(outcomes)}/{len(names)}] {outcome.name}: "
                  f"{'FAILED, ' + outcome.trouble if outcome.trouble else 'done'}", flush=True)
    return outcomes


def _is_trained(grid: GridStudy, run: Run) -> bool:
    """Whether the weights are there, too: rows are committed, and weights are not."""
    row = run.trained
    return row is not None and bool(row.current) and (results.study_folder(grid.folder) / row.get("encoder", "")).exists()


def _outcome(future, name: str) -> Outcome:
    if future.status == "finished":
        return future.result()
    if future.status == "error":
        error = future.exception()
        return Outcome(name, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    return Outcome(name, f"{future.status}: the scheduler is gone")


def carry(grid: GridStudy, name: str, stage: str, place: dict, training: Outcome | None = None) -> Outcome:
    """One step of a run, in a worker.

    Arguments:
        name: of the run.
        stage: "train" or "evaluate".
        place: where the caller has results, notebooks and data.
        training: what became of the training that the evaluation rests on.
    """
    os.environ.update(place["environment"])
    os.environ.pop("MALLOC_TRIM_THRESHOLD_", None)  # Dask's; with it every tensor is mapped anew, and training 1.5 times slower
    results.RESULTS, study.NOTEBOOKS = Path(place["results"]), Path(place["notebooks"])
    run = next(run for run in grid_runs(grid) if run.name == name)
    step = train_step(grid, run) if stage == "train" else evaluate_step(grid, run, "")
    if training is not None and training.trouble:
        return Outcome(step.name, f"left out: {training.name} failed")
    log = results.study_folder(grid.folder) / "logs" / f"{step.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with (lock_step(grid, step), open(log, "a") as stream, contextlib.redirect_stdout(stream),
          contextlib.redirect_stderr(stream)):
        run = next(run for run in grid_runs(grid) if run.name == name)  # a worker given up for dead may have done it meanwhile
        if stage == "evaluate":
            step = evaluate_step(grid, run, run.trained.key if run.training else "")
        if study.execute(grid.folder, step, run.name):
            return Outcome(step.name)
    return Outcome(step.name, f"see {failure_of(grid, step).relative_to(results.RESULTS)}")


@contextlib.contextmanager
def _client(workers: int, threads: int, scheduler: str) -> Iterator[Client]:
    if scheduler and (workers or threads != 1):
        raise InputError(f"--scheduler {scheduler}: its workers run, as many as it has; leave --workers and --threads out")
    if not scheduler:
        with local_cluster(workers, threads) as cluster, Client(cluster) as client:
            client.wait_for_workers(1)
            yield client
        return
    try:
        client = Client(scheduler, timeout=CONNECT)
    except (OSError, ValueError) as error:
        raise InputError(f"--scheduler {scheduler}: no Dask scheduler answers there ({error})") from None
    with client:
        found = client.scheduler_info(n_workers=-1)["workers"]
        unfit = [address for address, worker in found.items() if worker["nthreads"] != 1]
        if unfit:
            raise InputError(f"--scheduler {scheduler}: workers need one thread each (--nthreads 1), but {unfit[0]} has not")
        yield client


def worker_environment(index: int, threads: int, gpus: int) -> dict[str, str]:
    """Variables of a worker: its threads, and one GPU of those that CUDA_VISIBLE_DEVICES leaves to this process."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
    return {name: str(threads) for name in names} | ({"CUDA_VISIBLE_DEVICES": visible.split(",")[index % gpus]} if gpus else {})


def local_cluster(workers: int = 0, threads: int = 1) -> SpecCluster:
    """A scheduler and workers on this machine: each has a GPU of its own, or `threads` threads on the CPU.

    Arguments:
        workers: 0 takes one a GPU, without one as many as cores and memory allow.
    """
    gpus = torch.cuda.device_count()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = workers or gpus or max(1, min(cores // threads, psutil.virtual_memory().total // WORKER_MEMORY))
    specs = {}
    for index in range(workers):
        environment = worker_environment(index, threads, gpus)
        # 0: a kernel's memory is not the worker's
        specs[index] = {"cls": Nanny, "options": {"nthreads": 1, "memory_limit": 0, "env": environment, "dashboard": False,
                                                  "host": HOST, "dashboard_address": f"{HOST}:0",
                                                  "silence_logs": logging.ERROR}}
    dask.config.set({"distributed.scheduler.allowed-failures": ATTEMPTS})
    local = {"cls": Scheduler, "options": {"dashboard": False, "dashboard_address": f"{HOST}:0", "host": HOST,
                                           "port": 0}}
    return SpecCluster(workers=specs, scheduler=local, name="dulvos", silence_logs=logging.ERROR)
