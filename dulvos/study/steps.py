"""A study: notebooks run by papermill in order, each once, into `results/<study>`."""

from __future__ import annotations

import ast
import contextlib
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError

from dulvos.study import results, runs, tables
from dulvos.checkpoints import is_whole
from dulvos.datasets import Dataset
from dulvos.errors import InputError, check_type
from dulvos.files import replacing
from dulvos.study.rows import CURVE, Study

__all__ = ["Step", "check_parameters", "davis_steps", "demo_steps", "execute", "executed_copy", "lock", "refuse_unknown"]
__all__ += ["run_study", "with_others"]

NOTEBOOKS = results.ROOT / "notebooks"
METHODS = ("copy", "colour", "random", "trained")
CURVE_SIDE = 240  # pixels of the shorter side: a fifth of the time of 480

# CPU-sized training: small crops, few clips, a schedule of its own; the method's settings (N, M, τ, λ) are the paper's
DEMO = {"iterations": 750, "batch": 8, "frames": 5, "gap": 2, "crop": 128, "scale_min": 144, "scale_max": 208, "lr": 3e-4,
        "lr_every": 400}
# crop, scale and batch were chosen on the training split: benchmarks/choose_training.py
DAVIS_CPU = {"iterations": 8500, "batch": 8, "frames": 5, "gap": 4, "crop": 128, "scale_min": 256, "scale_max": 384, "lr": 3e-4,
             "lr_every": 6000, "workers": 1, "snapshot_every": 1000}
# B, T, crop and schedule of the paper's YouTube-VOS runs, on DAVIS's frames
DAVIS_PAPER = {"iterations": 100_000, "batch": 16, "frames": 5, "gap": 2, "crop": 256, "scale_min": 256, "scale_max": 319,
               "lr": 1e-4, "lr_every": 21_700, "workers": 4}


@dataclass(frozen=True)
class Step:
    """One papermill run.

    Arguments:
        notebook: stem of a file in `notebooks/`.
        name: of the executed copy, `results/<study>/notebooks/<name>.ipynb`.
        parameters: for its `parameters` cell.
        minutes: about how long it takes on two cores.
        needs: names of the steps that must have succeeded.
        row: (kind, name) of the row that it leaves, if any.
    """

    notebook: str
    name: str
    parameters: dict = field(default_factory=dict)
    minutes: float = 0.5
    needs: tuple[str, ...] = ()
    row: tuple[str, str] | None = None


def _steps(study: str, data: str, training: dict, segment: dict, minutes: dict[str, float]) -> list[Step]:
    common = {"study": study, "data": data}
    evaluations = [Step("02_evaluate_davis", f"02_evaluate_davis-{name}", {**common, "name": name, "features": name, **segment},
                        minutes[name], ("01_train",) if name == "trained" else (), ("evaluate", name)) for name in METHODS]
    return [
        Step("01_train", "01_train", {**common, "name": "trained", **training}, minutes["train"], (), ("train", "trained")),
        *evaluations,
        Step("00_the_method", "00_the_method", {**common, "checkpoint": "trained"}, 1, ("01_train",)),
        Step("04_features", "04_features", {**common, "checkpoint": "trained"}, 1, ("01_train",)),
        Step("07_results", "07_results", common, 0.5, tuple(step.name for step in evaluations)),
    ]


def demo_steps() -> list[Step]:
    """The study at demo scale on the embedded benchmark: about twelve minutes on two cores."""
    return _steps("demo", "cutouts", DEMO, {}, {"train": 10, "copy": 0.2, "colour": 0.5, "random": 0.5, "trained": 0.5})


def davis_steps(setting: str) -> list[Step]:
    """The real study on DAVIS; `setting` is "cpu" (hours on two cores) or "paper" (a GPU)."""
    if setting not in ("cpu", "paper"):
        raise InputError(f"--setting must be 'cpu' or 'paper', not {setting!r}")
    minutes = {"train": 120, "copy": 2, "colour": 15, "random": 17, "trained": 17}
    training = DAVIS_CPU if setting == "cpu" else DAVIS_PAPER
    study = "davis" if setting == "cpu" else "davis-paper"
    steps = _steps(study, "davis", training, {}, minutes if setting == "cpu" else {**minutes, "train": 360})
    return steps[:-3] + (_curve_steps(study, training) if setting == "cpu" else []) + steps[-3:]


def _curve_steps(study: str, training: dict) -> list[Step]:
    """Evaluations on the way, at 240p: what more training brings (`dulvos.study.tables.score_curve`)."""
    last, every = training["iterations"], training["snapshot_every"]
    kept = [i for i in (every, 2 * every, 4 * every) if i < last]
    features = {"0": "random"} | {str(i): f"trained:trained@{i}" for i in kept} | {str(last): "trained"}
    common = {"study": study, "data": "davis", "shorter_side": CURVE_SIDE}
    return [Step("02_evaluate_davis", f"02_evaluate_davis-{CURVE}{i}", {**common, "name": f"{CURVE}{i}", "features": source}, 4,
                 ("01_train",), ("evaluate", f"{CURVE}{i}")) for i, source in features.items()]


def check_parameters(notebook: str, parameters: dict) -> None:
    """Raise an InputError for a parameter that the notebook's `parameters` cell does not set, or sets to another type."""
    path = NOTEBOOKS / f"{notebook}.ipynb"
    if not path.is_file():
        raise InputError(f"{path}: no such notebook")
    known = papermill.inspect_notebook(str(path))
    unknown = sorted(map(str, set(parameters) - set(known)))
    if unknown:
        raise InputError(f"{path.name}: unknown parameter {', '.join(unknown)}; its parameters are {', '.join(known)}")
    for name, value in parameters.items():
        check_type(name, value, ast.literal_eval(known[name]["default"]))


def with_others(notebook: str, parameters: dict) -> dict:
    """Parameters for a notebook that takes the settings which stand in no line of its cell as one mapping, `others`."""
    known = papermill.inspect_notebook(str(NOTEBOOKS / f"{notebook}.ipynb"))
    others = {name: value for name, value in parameters.items() if name not in known}
    return {name: value for name, value in parameters.items() if name in known} | ({"others": others} if others else {})


def refuse_unknown(notebook: str, names: dict) -> None:
    """The same for a notebook run by hand: call it with globals() in the first cell after the parameters."""
    plain = (bool, int, float, str, list, tuple, dict, type(None))
    given = {name: value for name, value in names.items()
             if isinstance(value, plain) and not name.startswith("_") and name not in ("In", "Out")}
    check_parameters(notebook, given)


def run_study(study: str, steps: list[Step], data: str | Sequence[Dataset]) -> int:
    """Say what will run, run what is not done, and print the summary; the exit status counts failed steps as 1.

    A step is done when its executed copy carries the key of its notebook, parameters, data and code, and its row is there.

    Arguments:
        data: what the steps read: data sets, or the name of one whose train and val splits they are.
    """
    for step in steps:
        check_parameters(step.notebook, step.parameters)
    folder = results.study_folder(study)
    with lock(folder):
        read = [runs.open_data(data, split) for split in ("train", "val")] if isinstance(data, str) else data
        marks = [runs.dataset_fingerprint(dataset) for dataset in read]
        keys: dict[str, str] = {}
        for step in steps:
            keys[step.name] = _key(step, marks, keys)
        done = {step.name for step in steps if _is_done(study, step, keys[step.name])}
        _announce(study, steps, done, read)
        failed: list[str] = []
        for step in steps:
            if step.name in done:
                continue
            lacking = [name for name in step.needs if name in failed]
            if lacking:
                print(f"[{step.name}] left out: it needs {', '.join(lacking)}")
                failed.append(step.name)
            elif not execute(study, step, keys[step.name]):
                failed.append(step.name)
        print("\n" + tables.summary(Study(study, results.RESULTS)))
        if failed:
            print(f"failed or left out: {', '.join(failed)}; the same command continues where this one stopped")
        return 1 if failed else 0


def _announce(study: str, steps: list[Step], done: set[str], read: Sequence[Dataset]) -> None:
    for dataset in read:
        frames = sum(len(sequence.video) for sequence in dataset.sequences)
        use = "train without masks" if dataset.split == "train" else "evaluate"
        print(f"study {study!r}: {use} on {dataset.name} {dataset.split}, {len(dataset.sequences)} videos, {frames} frames")
    for step in steps:
        state = "done already" if step.name in done else f"about {step.minutes:.3g} min"
        print(f"  {step.name:28s} {state}")
    minutes = sum(step.minutes for step in steps if step.name not in done)
    print(f"to run: about {minutes:.0f} min; results in results/{study}; Ctrl-C is safe, the same command continues", flush=True)


def _key(step: Step, marks: list[str], keys: dict[str, str]) -> str:
    notebook = nbformat.read(NOTEBOOKS / f"{step.notebook}.ipynb", as_version=4)
    cells = [(cell.cell_type, cell.source) for cell in notebook.cells]
    content = [cells, step.parameters, marks, results.VERSIONS, [keys[name] for name in step.needs]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _is_done(study: str, step: Step, key: str) -> bool:
    if _key_of(executed_copy(study, step)) != key:
        return False
    if step.row is None:
        return True
    rows = results.read_rows(study, step.row[0])
    rows = rows[(rows.name == step.row[1]) & rows.current]
    folder = results.study_folder(study)
    # the row is committed; what it speaks of is not
    product = folder / (rows.encoder.iloc[-1] if step.row[0] == "train" else f"masks/{step.row[1]}-{rows.key.iloc[-1]}") \
        if len(rows) else None
    return product is not None and (is_whole(product) if step.row[0] == "train" else product.exists())


def _key_of(copy: Path) -> str | None:
    """The key that an executed copy carries; None without one, or where a power cut left half of it."""
    try:
        return json.loads(copy.read_text())["metadata"]["dulvos"]["key"]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def executed_copy(study: str, step: Step) -> Path:
    """Where the executed notebook of a step lies."""
    return results.study_folder(study) / "notebooks" / f"{step.name}.ipynb"


def execute(study: str, step: Step, key: str) -> bool:
    """Run one notebook; True if it ran to its end. Its executed copy carries the key; a failure's ends in .failed.ipynb."""
    final = executed_copy(study, step)
    final.parent.mkdir(parents=True, exist_ok=True)
    running, failure = final.with_name(f"{step.name}.running.ipynb"), final.with_name(f"{step.name}.failed.ipynb")
    print(f"\n[{step.name}] {time.strftime('%H:%M:%S')}, about {step.minutes:.3g} min", flush=True)
    started, environment = time.monotonic(), dict(os.environ)
    os.environ["DULVOS_SOURCE"] = f"notebooks/{step.notebook}.ipynb"
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(results.ROOT), os.environ.get("PYTHONPATH")]))
    try:
        papermill.execute_notebook(str(NOTEBOOKS / f"{step.notebook}.ipynb"), str(running), parameters=step.parameters,
                                   kernel_name="python3", cwd=str(results.ROOT), progress_bar=False, stderr_file=_Progress(),
                                   extra_arguments=["--log-level=CRITICAL"])  # quiet about TCP, and about its end at Ctrl-C
    except (papermill.PapermillExecutionError, RuntimeError, OSError) as error:
        told = f"{error.ename}: {error.evalue}" if isinstance(error, papermill.PapermillExecutionError) else \
            "its kernel was killed (out of memory?)" if isinstance(error, DeadKernelError) else \
            f"{running}: {error.strerror}" if isinstance(error, OSError) else str(error)  # a kernel that does not start
        print(f"\n[{step.name}] FAILED: {told}", flush=True)
        with contextlib.suppress(OSError, ValueError):  # there may be none, or no room for it
            _tidy(running, failure)
            print(f"  the executed copy shows where: {_shown(failure)}", flush=True)
        return False
    finally:
        os.environ.clear()
        os.environ.update(environment)
    _tidy(running, final, {"key": key, "minutes": round((time.monotonic() - started) / 60, 2)})
    failure.unlink(missing_ok=True)
    print(f"\n[{step.name}] done in {(time.monotonic() - started) / 60:.1f} min: {_shown(final)}", flush=True)
    return True


class _Progress(io.TextIOBase):
    """What a notebook writes to stderr, shown at once: a progress bar ends no line."""

    def write(self, text: str) -> int:
        sys.stderr.write(text)
        sys.stderr.flush()
        return len(text)


def _shown(path: Path) -> str:
    return os.path.relpath(path, results.ROOT)


def _tidy(running: Path, final: Path, mark: dict | None = None) -> None:
    """Rename an executed copy; keep the last state of each progress bar, leave this machine's paths out, add the key."""
    notebook = nbformat.read(running, as_version=4)
    for cell in notebook.cells:
        outputs = cell.get("outputs", [])
        told = [output for output in outputs if output.output_type == "stream" and output.name == "stderr"]
        for output in told[1:]:  # each state of a progress bar is one
            told[0].text += output.text
            outputs.remove(output)
        for output in outputs:
            if output.output_type == "stream":
                lines = output.text.split("\n")
                output.text = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)
    if mark:
        notebook.metadata["dulvos"] = mark
    private = {os.environ.get(f"DULVOS_{name}"): name for name in ("DAVIS", "WEIGHTS", "DATA_DIR")}
    private |= {str(results.ROOT): ".", os.path.expanduser("~"): "."}
    private = {folder: private[folder] for folder in sorted(filter(None, private), key=len, reverse=True)  # one may lie in another
               if len(Path(folder).parts) > 1}  # not "/", which a user without a home has
    with replacing(final) as stream:
        stream.write(nbformat.writes(nbformat.from_dict(_without(notebook, private))).encode())
    running.unlink()


def _without(value: object, private: dict[str, str]) -> object:
    """A notebook whose texts name no private folder; its pictures are left as they are."""
    if isinstance(value, dict):
        return {key: item if key.startswith("image/") else _without(item, private) for key, item in value.items()}
    if isinstance(value, list):
        return [_without(item, private) for item in value]
    if isinstance(value, str):
        for folder, word in private.items():
            value = re.sub(r"(?:(?<![\w.])|(?<=[0-9]m))" + re.escape(folder) + r"(?![\w+-])", word, value)  # 0m: of a coloured traceback
    return value


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """One study at a time in a folder; the system frees the lock when its holder dies, however it dies."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = open(folder / ".lock", "a+")
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); set DULVOS_RESULTS to a folder that can") from None
    if shutil.disk_usage(folder).free < 2**30:
        raise InputError(f"{folder}: less than 1 GB is free on this disk; a study writes checkpoints and masks")
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            stream.seek(0)
            raise InputError(f"{folder}: in use by process {stream.read().strip()}; wait for it or stop it") from None
        stream.truncate(0)
        stream.write(f"{os.getpid()}\n")
        stream.flush()
        yield
