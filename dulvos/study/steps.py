"""The steps of a study: notebooks that papermill runs, each once, carried by Dask.

A step is a notebook with parameters. One that leaves a row is done when its row is there, of today's version
and on today's data; any other is done when its executed copy was made from the same notebook, parameters and
rows.

By default, a scheduler and its workers start on this machine. With `--scheduler ADDRESS`, the steps go to the
workers of a running Dask scheduler (on Slurm, dask-jobqueue starts one). These need one thread each and see
this folder, the data and the results under the same paths. If a worker dies, another one takes its step and
continues from the last checkpoint. If everything dies, the same command continues.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import logging
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import cache, cached_property
from pathlib import Path
from typing import TextIO

import nbformat
import papermill
import torch
from dask.system import CPU_COUNT
from distributed import Client, LocalCluster, get_worker, wait
from distributed.system import MEMORY_LIMIT
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager

from dulvos.checkpoints import is_whole
from dulvos.errors import InputError, check_type
from dulvos.files import locked, make_folder, replacing
from dulvos.inference import SegmentSettings
from dulvos.study import runs
from dulvos.study.rows import ROOT, Study
from dulvos.training import NO_NUMBERS, TrainSettings

__all__ = ["Step", "check_parameters", "defaults", "execute", "find_state", "list_states",
           "open_client", "run_steps"]

WORKER_MEMORY = 3 * 2**30  # bytes; a training at 128x128 crops peaks at 2.1 GB
CONNECT = 10  # seconds to wait for a scheduler
HOST = "127.0.0.1"  # a scheduler runs whatever it is sent, so only this machine may send


@dataclass(frozen=True, eq=False)
class Step:
    """One papermill run.

    Arguments:
        notebook: stem of a file in `notebooks/`.
        name: of the executed copy, `<notebook>-<name>.ipynb`; "" takes the notebook's.
        parameters: for the notebook's `parameters` cell; `study` is added.
        minutes: about how long it takes on two cores.
        needs: the steps of this study, by their `full_name`, that must have succeeded.
        row: kind of the row that it leaves under its name; "" for none.
        files: whether it is done only while the checkpoint or masks of its row are on this machine.
        last: whether it waits until all others have ended, well or not, because it shows what they left.
    """

    study: Study
    notebook: str
    name: str = ""
    parameters: dict = field(default_factory=dict)
    minutes: float = 0.5
    needs: tuple[str, ...] = ()
    row: str = ""
    files: bool = True
    last: bool = False

    @property
    def full_name(self) -> str:
        """The name in lists, logs and `needs`."""
        return f"{self.notebook}-{self.name}" if self.name else self.notebook

    @property
    def source(self) -> Path:
        return self.study.notebooks / f"{self.notebook}.ipynb"

    @property
    def copy(self) -> Path:  # the executed notebook
        return self.study.folder / "notebooks" / f"{self.full_name}.ipynb"

    @property
    def failure(self) -> Path:  # the same if it failed
        return self.copy.with_suffix(".failed.ipynb")

    @cached_property
    def given(self) -> dict:
        """All parameters of the notebook, by default with its own values; those in `others` count as well."""
        given = {**defaults(self.source), **self.parameters, "study": self.study.name}
        return {**given, **given.pop("others", {})}


def check_parameters(notebook: Path, parameters: dict) -> None:
    """Compare parameters with the notebook's `parameters` cell.

    Raises:
        InputError: no such notebook, an unknown parameter, or a value of another type.
    """
    known = defaults(notebook)
    unknown = sorted(map(str, set(parameters) - set(known)))
    if unknown:
        raise InputError(f"{notebook.name}: no parameter {', '.join(unknown)}; it has {', '.join(known)}")
    for name, value in parameters.items():
        check_type(name, value, known[name])


@cache
def defaults(notebook: Path) -> dict:
    """The values in a notebook's `parameters` cell, by name."""
    if not notebook.is_file():
        raise InputError(f"{notebook}: no such notebook")
    found = papermill.inspect_notebook(str(notebook))
    return {name: ast.literal_eval(item["default"]) for name, item in found.items()}


def find_state(step: Step) -> tuple[str, dict | None]:
    """The state of a step (done, failed or missing), and the row that it left.

    If the data are on this machine, only a row of the same data counts.
    """
    word, row = _find_row(step) if step.row else ("done" if _is_shown(step) else "missing", None)
    return "failed" if word != "done" and step.failure.is_file() else word, row


def _find_row(step: Step) -> tuple[str, dict | None]:
    given = step.given
    settings = {item.name for item in fields(TrainSettings if step.row == "train" else SegmentSettings)}
    wanted = {f"parameters.{name}": given[name] for name in given.keys() & settings - {*NO_NUMBERS}}
    wanted["name"] = given["name"]
    folders = os.environ.get("DULVOS_DAVIS"), os.environ.get("DULVOS_DATA_DIR")
    split = "train" if step.row == "train" else given.get("split", "val")
    if mark := _mark(given["data"], split, *folders):
        wanted["fingerprint"] = mark
    features, _, trained = given.get("features", "").partition(":")
    if features == "trained":
        training = step.study.find_training(trained.partition("@")[0] or "trained")
        if training is None or not training["current"]:
            return "missing", None
        wanted["trained_key"] = training["key"]
    elif features not in ("", "selected"):
        wanted["features"] = given["features"]
    row = step.study.find(step.row, wanted)
    if row is None or not step.files:
        return "done" if row else "missing", row
    whole = is_whole(step.study.folder / row["encoder"]) if step.row == "train" else \
        step.study.path(row, "masks").is_dir()
    return "done" if whole else "missing", row


def _is_shown(step: Step) -> bool:
    """Whether the executed copy shows what the notebook would show now."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):  # no copy, or half of one
        return json.loads(step.copy.read_text())["metadata"]["dulvos"]["key"] == _key(step)
    return False


@cache
def _mark(data: str, split: str, *folders: str | None) -> str | None:
    """Fingerprint of a run's data, None if they are not on this machine; `folders` are where data lie."""
    try:
        dataset = runs.open_data(data, split)
        return (runs.training_fingerprint if split == "train" else runs.dataset_fingerprint)(dataset)
    except InputError:
        return None


def _key(step: Step) -> str:
    """12 hex digits of what an executed copy shows: the notebook's cells and parameters, the study's rows."""
    cells = [cell["source"] for cell in json.loads(step.source.read_text())["cells"]]
    rows = step.study.rows()[["kind", "key", "date", "current"]].to_csv()
    content = json.dumps([cells, step.given, rows], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def list_states(steps: Sequence[Step]) -> str:
    """A line for each step (its state, and its J&F, failure or time), then the sums and the time left."""
    lines, counts, left = [], Counter(), 0.0
    for step in steps:
        word, row = find_state(step)
        told = f"about {step.minutes:.3g} min"
        if word == "failed":
            told = os.path.relpath(step.failure, step.study.results)
        elif row:
            score = row.get("scores.J&F-Mean")
            told = "" if score is None else f"J&F {100 * score:.1f}"
        lines.append(f"  {step.full_name:34s} {word:22s} {told}".rstrip())
        counts[word] += 1
        left += step.minutes * (word != "done")
    counted = ", ".join(f"{count} {word}" for word, count in counts.items())
    return "\n".join([*lines, f"{counted}; left: about {left:.0f} min, one by one"])


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


def _carry_all(todo: list[Step], workers: int, threads: int, scheduler: str) -> dict[Step, str]:
    """What went wrong with which steps."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    gpus = [] if scheduler else [gpu for gpu in visible.split(",") if gpu]
    waiting, running, ended = list(todo), {}, {}  # ended: what went wrong, "" for nothing

    def end(step: Step, trouble: str) -> None:
        ended[step] = trouble
        told = f"[{len(ended)}/{len(todo)}] {step.full_name}: {trouble or 'done'}"
        print(f"{time.strftime('%H:%M:%S')} {told}", flush=True)

    several = sum(step.row == "train" for step in todo) > 1
    with open_client(workers, threads, scheduler, several) as (client, threads):
        environment = {name: value for name, value in os.environ.items() if name.startswith("DULVOS_")}
        environment |= {f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "MKL", "OPENBLAS") if threads}
        count = len(client.scheduler_info(n_workers=-1)["workers"])
        minutes = sum(step.minutes for step in todo) / count
        print(f"{len(todo)} steps to run, {count} at a time, about {minutes:.0f} min; "
              "Ctrl-C is safe: the same command continues", flush=True)
        while waiting or running:
            for step in list(waiting):
                others = [other for other in todo if other.study == step.study]
                needs = [other for other in others if other.full_name in step.needs]
                before = needs + [other for other in others if step.last and not other.last]
                if any(map(ended.get, needs)):
                    waiting.remove(step)
                    end(step, "left out: a step that it needs failed")
                # one for each worker and no more, so that they start in this order
                elif len(running) < count and all(other in ended for other in before):
                    waiting.remove(step)
                    running[client.submit(_carry, step, environment, gpus, count > 1, pure=False)] = step
            if running:
                with contextlib.suppress(TimeoutError):  # workers may have come meanwhile
                    wait(list(running), timeout=60, return_when="FIRST_COMPLETED")
            count = max(1, len(client.scheduler_info(n_workers=-1)["workers"]))
            for future in [future for future in running if future.done()]:
                good = future.status == "finished"
                end(running.pop(future), future.result() if good else f"its worker ended ({future.status})")
    return {step: trouble for step, trouble in ended.items() if trouble}


def _carry(step: Step, environment: dict[str, str], gpus: list[str], quiet: bool) -> str:
    """`execute` in a worker; if `quiet`, its progress goes to a log."""
    if gpus:
        environment = {**environment, "CUDA_VISIBLE_DEVICES": gpus[int(get_worker().name) % len(gpus)]}
    log = make_folder(step.study.folder / "logs") / f"{step.full_name}.log"
    with (_environment(environment),
          open(log, "a") if quiet else contextlib.nullcontext(sys.stderr) as stream):
        os.environ.pop("MALLOC_TRIM_THRESHOLD_", None)  # set by Dask, it makes training 1.5 times slower
        return execute(step, stream)


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Variables of the environment, which are as before at the end."""
    before = dict(os.environ)
    try:
        os.environ.update(variables)
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


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
    with (_environment({}),
          LocalCluster(n_workers=workers, threads_per_worker=1, processes=workers > 1, memory_limit=0,
                       host=HOST if workers > 1 else None, dashboard_address=f"{HOST}:0",
                       worker_dashboard_address=f"{HOST}:0",
                       silence_logs=logging.CRITICAL) as cluster,
          Client(cluster) as client):
        yield client, threads or max(1, CPU_COUNT // workers)


class _Kernel(AsyncKernelManager):
    """A kernel of this Python: the user's kernel called python3 may be another one."""

    kernel_spec = KernelSpec(**get_kernel_dict())


def execute(step: Step, stream: TextIO | None = None) -> str:
    """Run one notebook: "" if it ran to its end, else what went wrong. A failed copy ends in .failed.ipynb.

    Arguments:
        stream: for the notebook's progress; the terminal by default.
    """
    running, trouble, stream = step.copy.with_suffix(".running.ipynb"), "", stream or sys.stderr
    running.parent.mkdir(parents=True, exist_ok=True)

    def tell(what: str) -> None:
        print(f"\n[{step.full_name}] {what}", file=stream, flush=True)

    tell(f"{time.strftime('%H:%M:%S')}, about {step.minutes:.3g} min")
    started = time.monotonic()
    with _environment({"DULVOS_SOURCE": f"notebooks/{step.notebook}.ipynb",
                       "DULVOS_RESULTS": str(step.study.results.absolute())}):
        try:
            papermill.execute_notebook(
                str(step.source), str(running), kernel_name="python3", cwd=str(ROOT), progress_bar=False,
                kernel_manager_class=_Kernel,
                parameters={"study": step.study.name, **step.parameters}, stderr_file=stream,
                extra_arguments=["--log-level=CRITICAL"], coalesce_streams=True)  # one state of a bar
            minutes = (time.monotonic() - started) / 60
            _publish(running, step.copy, {"key": _key(step), "minutes": round(minutes, 2)})
            step.failure.unlink(missing_ok=True)
        except Exception as error:  # whatever it is, the other steps go on
            trouble = f"{getattr(error, 'ename', type(error).__name__)}: {getattr(error, 'evalue', error)}"
            with contextlib.suppress(OSError, ValueError):  # there may be no copy, or no room for it
                _publish(running, step.failure, {})
                trouble += f"; see {os.path.relpath(step.failure, step.study.results)}"
    tell(f"FAILED: {trouble}" if trouble else f"done in {minutes:.1f} min")
    return trouble


def _publish(running: Path, final: Path, mark: dict) -> None:
    """Give an executed copy its final name, and let its text name no folder of this machine."""
    notebook = nbformat.read(running, as_version=4)
    notebook.metadata["dulvos"] = mark
    given = {value: f"${name}" for name, value in os.environ.items() if name.startswith("DULVOS_")}
    private = {json.dumps(folder, ensure_ascii=False)[1:-1]: word
               for folder, word in {str(ROOT): ".", **given, os.path.expanduser("~"): "~"}.items()
               if os.path.isabs(folder) and len(folder) > 1}
    # a path begins a word, or follows a colour code (\x1b[0m) or a line break as JSON writes it
    path = re.compile(rf"(?:(?<![\w.])|(?<=\dm)|(?<=\\n))({'|'.join(map(re.escape, private))})(?![\w+-])")
    lines = [line if '"image/' in line else path.sub(lambda found: private[found[1]], line)
             for line in nbformat.writes(notebook).splitlines(keepends=True)]
    with replacing(final) as stream:
        stream.write("".join(lines).encode())
    running.unlink()
