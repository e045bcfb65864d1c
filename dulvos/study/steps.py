"""The steps of a study: notebooks run by papermill, each once, carried by Dask.

A step is a notebook with parameters. One that leaves a row is done when its row is there, of today's version, on
today's data; any other is done when its executed copy was made from the same notebook, parameters and rows.

Without an address, a scheduler and its workers start on this machine. With `--scheduler ADDRESS`, the steps go to the
workers of a running Dask scheduler, which need one thread each and see this folder, the data and the results under
the same paths. On Slurm, for instance, with dask-jobqueue installed, in a Python session that stays open:

    from dask_jobqueue import SLURMCluster
    cluster = SLURMCluster(cores=1, processes=1, memory="16GB", walltime="08:00:00",
                           job_extra_directives=["--gres=gpu:1"])
    cluster.scale(8)
    print(cluster.scheduler_address)

If a worker dies, another one takes its step and continues from the last checkpoint. If everything dies, the same
command continues.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import cache, cached_property
from pathlib import Path

import dask
import nbformat
import papermill
import psutil
import torch
from distributed import Client, LocalCluster, as_completed, get_worker
from filelock import FileLock, Timeout
from nbclient.exceptions import DeadKernelError

from dulvos.checkpoints import is_whole
from dulvos.errors import InputError, check_type
from dulvos.files import make_folder, replacing
from dulvos.inference import SegmentSettings
from dulvos.study import evaluation, runs
from dulvos.study.rows import ROOT, Study, newest, version
from dulvos.training import NO_NUMBERS, TrainSettings

__all__ = ["STALE", "State", "Step", "check_parameters", "defaults", "execute", "find_state", "list_states",
           "open_client", "run_steps"]

WORKER_MEMORY = 3 * 2**30  # bytes; a training at 128x128 crops peaks at 2.1 GB
CONNECT = 20  # seconds to wait for a scheduler
ATTEMPTS = 3  # at a step whose worker dies
HOST = "127.0.0.1"  # a scheduler runs whatever it is sent, so only this machine may send


@dataclass(frozen=True)
class Step:
    """One papermill run.

    Arguments:
        study: the study it belongs to.
        notebook: stem of a file in `notebooks/`.
        name: of the executed copy, `<notebook>-<name>.ipynb`; "" takes the notebook's.
        parameters: for the notebook's `parameters` cell; `study` is added.
        minutes: about how long it takes on two cores.
        needs: the steps of this study, by their `full_name`, that must have succeeded.
        row: kind of the row that it leaves under its name; "" for none.
        files: whether it counts as done only while the checkpoint or masks of its row are on this machine.
        last: whether it waits until all other steps have ended, well or not: it shows what they left.
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
        """What it is called in lists, logs and `needs`."""
        return f"{self.notebook}-{self.name}" if self.name else self.notebook

    @property
    def source(self) -> Path:
        """The notebook."""
        return self.study.notebooks / f"{self.notebook}.ipynb"

    @property
    def copy(self) -> Path:
        """Where its executed notebook lies."""
        return self.study.folder / "notebooks" / f"{self.full_name}.ipynb"

    @property
    def failure(self) -> Path:
        """Where the executed notebook lies if it failed."""
        return self.copy.with_suffix(".failed.ipynb")

    @cached_property
    def given(self) -> dict:
        """All parameters of the notebook, its own values for those not set; settings in `others` count as parameters."""
        given = {**defaults(self.source), **self.parameters, "study": self.study.name}
        return {**given, **given.pop("others", {})}

    def lock(self) -> FileLock:
        """Held by the process that runs the step; the system frees it when that process dies."""
        path = self.study.folder / "runs" / f"{self.full_name}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path)


@dataclass(frozen=True)
class State:
    """What became of a step: done, `STALE`, running, failed or missing, and the row that it left."""

    word: str
    row: dict | None = None


STALE = "done by earlier code"


def check_parameters(notebook: Path, parameters: dict) -> None:
    """Compare parameters with the notebook's `parameters` cell.

    Raises:
        InputError: no such notebook, an unknown parameter, or a value of another type.
    """
    known = defaults(notebook)
    unknown = sorted(map(str, set(parameters) - set(known)))
    if unknown:
        raise InputError(f"{notebook.name}: unknown parameter {', '.join(unknown)}; it has {', '.join(known)}")
    for name, value in parameters.items():
        check_type(name, value, known[name])


@cache
def defaults(notebook: Path) -> dict:
    """The values in a notebook's `parameters` cell, by name."""
    if not notebook.is_file():
        raise InputError(f"{notebook}: no such notebook")
    return {name: ast.literal_eval(item["default"]) for name, item in papermill.inspect_notebook(str(notebook)).items()}


def find_state(step: Step, *, check_data: bool = True) -> State:
    """Whether a step is done, and its row.

    Arguments:
        check_data: compare the row's data with the data on this machine, if they are here.
    """
    row = _find_row(step, check_data) if step.row else None
    if row is not None and row["current"] and (not step.files or _has_files(step, row)):
        return State("done", row)
    if not step.row and _key_of(step.copy) == _drawing_key(step):
        return State("done")
    if (step.study.folder / "runs" / f"{step.full_name}.lock").exists() and _is_locked(step):
        return State("running", row)
    if step.failure.is_file():
        return State("failed", row)
    return State("missing" if row is None or row["current"] else STALE, row)


def _find_row(step: Step, check_data: bool) -> dict | None:
    """The row that counts for a step, with `current`: also whether the training it rests on is current."""
    rows = step.study.rows()
    found = rows[(rows["kind"] == step.row) & (rows["name"] == step.given["name"])]
    settings = TrainSettings if step.row == "train" else SegmentSettings
    for setting in fields(settings):
        if setting.name in step.given and setting.name not in NO_NUMBERS:
            held = found.get(f"parameters.{setting.name}", found["name"].map(lambda _: None))
            found = found[held.where(held.notna(), setting.default) == step.given[setting.name]]
    folders = os.environ.get("DULVOS_DAVIS", ""), os.environ.get("DULVOS_DATA_DIR", "")
    mark = _mark(step.row, step.given["data"], step.given.get("split", ""), folders) if check_data else None
    if mark is not None and len(found):
        found = found[found["fingerprint"] == mark]
    features = step.given.get("features", "")
    if len(found) and features and features.split(":")[0] not in ("trained", "selected"):
        found = found[found["features"] == features]
    if len(found) and features.split(":")[0] == "trained":
        name = (features.partition(":")[2] or "trained").partition("@")[0]
        trained = newest(rows[(rows["kind"] == "train") & ((rows["name"] == name) | (rows["key"] == name))])
        found = found[found["trained_key"] == (trained["key"] if trained is not None else None)]
        found = found.assign(current=found["current"] & (trained is not None and bool(trained["current"])))
    row = newest(found)
    return None if row is None else {name: value for name, value in row.items() if not _is_nan(value)}


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and value != value


@cache
def _mark(kind: str, data: str, split: str, folders: tuple[str, str]) -> str | None:
    """Fingerprint of the data of a run, None if they are not on this machine."""
    if data == "cutouts" and not runs.cutouts_folder().is_dir():  # opening it would render it
        return None
    try:
        if kind == "train":
            return runs.training_fingerprint(runs.open_data(data, "train"))
        return runs.dataset_fingerprint(evaluation.open_split(data, split or "val"))
    except InputError:
        return None


def _has_files(step: Step, row: dict) -> bool:
    if step.row == "train":
        return is_whole(step.study.folder / row["encoder"])
    return step.study.path(row, "masks").is_dir()


def _drawing_key(step: Step) -> str:
    """What an executed copy without a row was made from: the notebook, its parameters, the study's rows."""
    notebook = nbformat.read(step.source, as_version=4)
    cells = [(cell.cell_type, cell.source) for cell in notebook.cells]
    rows = [[row["kind"], row["key"], row["date"], version(row["kind"], row)]
            for row in step.study.rows().to_dict("records")]
    content = json.dumps([cells, step.given, rows], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _key_of(copy: Path) -> str | None:
    """The key in an executed copy; None without one, or if a power cut left only half of the file."""
    try:
        return json.loads(copy.read_text())["metadata"]["dulvos"]["key"]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _is_locked(step: Step) -> bool:
    try:
        with step.lock().acquire(timeout=0):
            return False
    except Timeout:
        return True


def list_states(steps: Sequence[Step], *, check_data: bool = True) -> str:
    """A line for each step: its state, and its J&F, progress or time; at the end the sums and the time left."""
    lines, counts, left, planned, taken = [], {}, 0.0, 0.0, 0.0
    for step in steps:
        state = find_state(step, check_data=check_data)
        counts[state.word] = counts.get(state.word, 0) + 1
        told = f"about {step.minutes:.3g} min"
        if state.word == "running":
            told = _progress(step)
        elif state.word == "failed":
            told = os.path.relpath(step.failure, step.study.results)
        elif state.row is not None:
            score = state.row.get("scores.J&F-Mean")
            told = "" if score is None else f"J&F {100 * score:.1f}"
        lines.append(f"  {step.full_name:34s} {state.word:22s} {told}".rstrip())
        if state.word != "done":
            left += step.minutes
        elif state.row is not None and state.row.get("seconds"):
            planned, taken = planned + step.minutes, taken + state.row["seconds"] / 60
    left *= taken / planned if planned and taken else 1  # what the finished steps took corrects the plan
    lines.append(", ".join(f"{count} {word}" for word, count in counts.items()) + f"; left: about {left:.0f} min, one by one")
    return "\n".join(lines)


def _progress(step: Step) -> str:
    if step.row != "train":
        return ""
    histories = (step.study.folder / "runs").glob(f"{step.given['name']}-*/history.csv")
    done = max((path.read_text().count("\n") - 1 for path in histories), default=0)
    return f"{max(0, done)} of {step.given['iterations']} iterations"


def run_steps(steps: Sequence[Step], *, workers: int = 0, threads: int = 0, scheduler: str = "",
              several: bool = False) -> int:
    """Run the steps that are not done, in order of their needs, and say what failed.

    Arguments:
        steps: each after those that it needs.
        workers: steps at a time on this machine; 0 takes one for each GPU. Without a GPU, it takes one, or, if
            `several`, as many as cores and memory allow.
        threads: of each worker's computations; 0 shares the cores among the workers.
        scheduler: address of a running Dask scheduler; "" starts one here.

    Returns:
        exit status: 1 if a step failed or was left out.

    Raises:
        InputError: a wrong parameter, a study in use by another process, too little disk space, a scheduler that
            does not answer.
    """
    for step in steps:
        check_parameters(step.source, step.parameters)
    if workers < 0 or threads < 0:
        raise InputError(f"workers and threads must be >= 0, not {workers} and {threads}")
    with contextlib.ExitStack() as stack:
        for study in dict.fromkeys(step.study for step in steps):
            stack.enter_context(_only_here(study))
        print(list_states(steps), flush=True)
        todo = [step for step in steps if find_state(step).word != "done"]
        troubles = _carry_all(todo, workers, threads, scheduler, several) if todo else {}
    for name, trouble in troubles.items():
        print(f"FAILED {name}: {trouble}")
    if troubles:
        print("the same command continues from here")
    return int(bool(troubles))


@contextlib.contextmanager
def _only_here(study: Study) -> Iterator[None]:
    """One command at a time in a study's folder."""
    try:
        lock = FileLock(make_folder(study.folder) / ".lock").acquire(timeout=0)
    except Timeout:
        raise InputError(f"{study.folder}: in use by another process; wait for it, or stop it") from None
    with lock:
        if shutil.disk_usage(study.folder).free < 2**30:
            raise InputError(f"{study.folder}: less than 1 GB is free on this disk; a study writes checkpoints and masks")
        yield


def _carry_all(todo: list[Step], workers: int, threads: int, scheduler: str, several: bool) -> dict[str, str]:
    """What went wrong, by the steps' names."""
    environment = {name: value for name, value in os.environ.items() if name.startswith("DULVOS_")}
    troubles: dict[str, str] = {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    gpus = [] if scheduler else [gpu for gpu in visible.split(",") if gpu]
    with open_client(workers, threads, scheduler, several) as (client, threads):
        count = len(client.scheduler_info(n_workers=-1)["workers"])
        print(f"{len(todo)} steps to run, {count} at a time, about {sum(step.minutes for step in todo) / count:.0f} min; "
              "Ctrl-C is safe: the same command continues", flush=True)
        futures: dict[tuple[Study, str], object] = {}
        for number, step in enumerate(todo):
            needs = [futures[step.study, name] for name in step.needs if (step.study, name) in futures]
            before = [future for other, future in zip(todo, futures.values()) if step.last and not other.last]
            futures[step.study, step.full_name] = client.submit(
                _carry, step, environment, threads, gpus, count > 1, needs, before, pure=False, priority=-number)
        names = {future: name for (_, name), future in futures.items()}
        for done, future in enumerate(as_completed(list(names)), 1):
            trouble = future.result() if future.status == "finished" else f"its worker ended ({future.status})"
            troubles |= {names[future]: trouble} if trouble else {}
            if count > 1:
                print(f"{time.strftime('%H:%M:%S')} [{done}/{len(todo)}] {names[future]}: {trouble or 'done'}", flush=True)
    return troubles


def _carry(step: Step, environment: dict[str, str], threads: int, gpus: list[str], quiet: bool, needs: list[str],
           before: list[str]) -> str:
    """One step, in a worker: "" if it succeeded, else one line; `before` are outcomes that it only waits for."""
    if any(needs):
        return "left out: a step that it needs failed"
    os.environ.update(environment | {f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "MKL", "OPENBLAS") if threads})
    os.environ.pop("MALLOC_TRIM_THRESHOLD_", None)  # Dask sets it; with it, training takes 1.5 times as long
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[int(get_worker().name) % len(gpus)]
    log = step.study.folder / "logs" / f"{step.full_name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with step.lock(), contextlib.ExitStack() as stack:
        if find_state(step).word == "done":  # by a worker that was given up for dead
            return ""
        if quiet:
            stream = stack.enter_context(open(log, "a"))
            stack.enter_context(contextlib.redirect_stdout(stream))
            stack.enter_context(contextlib.redirect_stderr(stream))
        return execute(step)


@contextlib.contextmanager
def open_client(workers: int, threads: int, scheduler: str, several: bool) -> Iterator[tuple[Client, int]]:
    """A Dask client, and the threads of each of its workers (0: as many as the worker likes)."""
    if scheduler:
        if workers or threads:
            raise InputError(f"scheduler={scheduler}: its own workers run; leave out workers and threads")
        try:
            client = Client(scheduler, timeout=CONNECT)
        except (OSError, ValueError) as error:
            raise InputError(f"scheduler={scheduler}: no Dask scheduler answers there ({error})") from None
        with client:
            found = client.scheduler_info(n_workers=-1)["workers"]
            unfit = [address for address, worker in found.items() if worker["nthreads"] != 1]
            if unfit or not found:
                raise InputError(f"scheduler={scheduler}: it needs workers of one thread each (--nthreads 1), and "
                                 f"{f'{unfit[0]} has more' if unfit else 'it has none'}")
            yield client, 0
        return
    gpus = torch.cuda.device_count()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    fitting = min(cores // (threads or 1), psutil.virtual_memory().total // WORKER_MEMORY) if several else 1
    workers = workers or gpus or max(1, fitting)
    dask.config.set({"distributed.scheduler.allowed-failures": ATTEMPTS})
    # no memory limit: the notebook's kernel, not the worker, needs the memory
    place = {"host": HOST} if workers > 1 else {}  # a single worker is a thread of this process
    with (LocalCluster(n_workers=workers, threads_per_worker=1, processes=workers > 1, memory_limit=0, **place,
                       dashboard_address=f"{HOST}:0", silence_logs=logging.CRITICAL) as cluster,
          Client(cluster) as client):
        yield client, threads or max(1, cores // workers)


def execute(step: Step) -> str:
    """Run one notebook: "" if it ran to its end, else what went wrong. A failed copy ends in .failed.ipynb."""
    running = step.copy.with_suffix(".running.ipynb")
    running.parent.mkdir(parents=True, exist_ok=True)
    print(f"\n[{step.full_name}] {time.strftime('%H:%M:%S')}, about {step.minutes:.3g} min", flush=True)
    started, environment = time.monotonic(), dict(os.environ)
    os.environ |= {"DULVOS_SOURCE": f"notebooks/{step.notebook}.ipynb", "DULVOS_RESULTS": str(step.study.results.absolute()),
                   "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    try:
        papermill.execute_notebook(
            str(step.source), str(running), kernel_name="python3", cwd=str(ROOT),
            parameters={"study": step.study.name, **step.parameters}, progress_bar=False, stderr_file=sys.stderr,
            extra_arguments=["--log-level=CRITICAL"])
    except (papermill.PapermillExecutionError, RuntimeError, OSError) as error:
        trouble = _trouble(error, running)
        print(f"\n[{step.full_name}] FAILED: {trouble}", flush=True)
        with contextlib.suppress(OSError, ValueError):  # there may be no copy, or no room for it
            _tidy(running, step.failure)
            trouble += f"; see {os.path.relpath(step.failure, step.study.results)}"
        return trouble
    finally:
        os.environ.clear()
        os.environ.update(environment)
    minutes = (time.monotonic() - started) / 60
    _tidy(running, step.copy, {"key": _drawing_key(step), "minutes": round(minutes, 2)})
    step.failure.unlink(missing_ok=True)
    print(f"\n[{step.full_name}] done in {minutes:.1f} min", flush=True)
    return ""


def _trouble(error: Exception, running: Path) -> str:
    if isinstance(error, papermill.PapermillExecutionError):
        return f"{error.ename}: {error.evalue}"
    if isinstance(error, DeadKernelError):
        return "its kernel was killed (out of memory?)"
    return f"{running}: {error.strerror}" if isinstance(error, OSError) else str(error)


def _tidy(running: Path, final: Path, mark: dict | None = None) -> None:
    """Rename an executed copy: keep the last state of each progress bar, and no path of this machine."""
    notebook = nbformat.read(running, as_version=4)
    for cell in notebook.cells:
        outputs = cell.get("outputs", [])
        bars = [output for output in outputs if output.output_type == "stream" and output.name == "stderr"]
        for output in bars[1:]:  # each state of a progress bar is an output of its own
            bars[0].text += output.text
            outputs.remove(output)
        for output in bars[:1]:
            output.text = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in output.text.split("\n"))
    for name in ("input_path", "output_path"):
        notebook.metadata.get("papermill", {}).pop(name, None)
    if mark:
        notebook.metadata["dulvos"] = mark
    private = {os.environ.get(f"DULVOS_{name}"): name for name in ("DAVIS", "WEIGHTS", "DATA_DIR")}
    private |= {str(ROOT): ".", os.path.expanduser("~"): "."}
    folders = sorted((folder for folder in private if folder and len(Path(folder).parts) > 1), key=len, reverse=True)
    patterns = [(re.compile(r"(?:(?<![\w.])|(?<=[0-9]m))" + re.escape(folder) + r"(?![\w+-])"), private[folder])
                for folder in folders]
    with replacing(final) as stream:
        stream.write(nbformat.writes(nbformat.from_dict(_without(notebook, patterns))).encode())
    running.unlink()


def _without(value: object, patterns: list[tuple[re.Pattern, str]]) -> object:
    """A notebook in which no text names a private folder; its pictures are left as they are."""
    if isinstance(value, dict):
        return {key: item if key.startswith("image/") else _without(item, patterns) for key, item in value.items()}
    if isinstance(value, list):
        return [_without(item, patterns) for item in value]
    if isinstance(value, str):
        for pattern, word in patterns:
            value = pattern.sub(word, value)
    return value
