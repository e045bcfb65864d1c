"""The steps of a study: notebooks with parameters, which papermill runs (`dulvos.study.runner` runs many).

A step that leaves a row is done if its row is there, of today's version and on today's data. Any other step
is done if its executed copy was made from today's notebook, parameters and rows.
"""

import ast
import contextlib
import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TextIO
from unittest import mock

import nbformat
import papermill
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager

from dulvos.checkpoints import is_whole
from dulvos.errors import InputError, check_type
from dulvos.files import write_file
from dulvos.inference import SegmentSettings
from dulvos.study import runs
from dulvos.study.rows import ROOT, Study, find_training
from dulvos.training import NO_NUMBERS, TrainSettings

__all__ = ["Step", "check_parameters", "defaults", "execute", "find_state", "list_states"]


@dataclass(frozen=True, eq=False)
class Step:
    """One papermill run.

    Arguments:
        notebook: stem of a file in `notebooks/`.
        name: of the executed copy, `<notebook>-<name>.ipynb`; "" takes the notebook's.
        parameters: for the notebook's `parameters` cell; `study` is added.
        minutes: about how long it takes with its share of two cores.
        needs: the steps of this study, by their `full_name`, that must succeed first.
        row: kind of the row that it leaves; "" for none.
        files: whether it is done only while the checkpoint or masks of its row are on this machine.
        last: whether it waits until all others have ended, successful or not, because it shows their results.
    """

    study: Study
    notebook: str
    name: str = ""
    parameters: dict = field(default_factory=dict)
    minutes: float = 0.5
    needs: Sequence[str] = ()
    row: str = ""
    files: bool = True
    last: bool = False

    @property
    def full_name(self) -> str:  # in lists, logs and `needs`
        return f"{self.notebook}-{self.name}" if self.name else self.notebook

    @property
    def source(self) -> Path:
        return self.study.notebooks / f"{self.notebook}.ipynb"

    @property
    def copy(self) -> Path:  # executed
        return self.study.folder / "notebooks" / f"{self.full_name}.ipynb"

    @property
    def failure(self) -> Path:  # the copy if it failed
        return self.copy.with_suffix(".failed.ipynb")

    @property
    def log(self) -> Path:  # of its progress
        return self.study.folder / "logs" / f"{self.full_name}.log"

    @property
    def reads(self) -> tuple[str, str]:  # data and split of a step that leaves a row
        return self.given["data"], "train" if self.row == "train" else self.given["split"]

    @cached_property
    def given(self) -> dict:
        """The notebook's parameters with the values that it will have; those in `others` are among them."""
        given = {**defaults(self.source), **self.parameters, "study": self.study.name}
        return given | given.pop("others", {})


def check_parameters(notebook: Path, parameters: dict) -> None:
    """Raise an InputError if there is no such notebook, or a parameter is unknown or of the wrong type."""
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

    Raises:
        InputError: a newer training of this name had other settings; evaluations would take that one.
    """
    row = _find_row(step) if step.row else None
    done = row is not None if step.row else _is_shown(step)
    if row and step.files:
        if step.row == "train":
            done = is_whole(step.study.folder / row["encoder"])
        else:
            carried = [*step.study.path(row, "masks").glob("*.json")]  # written when a video is finished
            product = step.study.folder / row.get("submission", "")
            done = len(carried) == row["sequences"] and product.exists()
    return "done" if done else "failed" if step.failure.is_file() else "missing", row


def _find_row(step: Step) -> dict | None:
    settings = asdict(TrainSettings() if step.row == "train" else SegmentSettings())
    given = settings | step.given
    wanted = {f"parameters.{name}": given[name] for name in settings.keys() - set(NO_NUMBERS)}
    wanted["name"] = given["name"]
    folders = map(os.environ.get, ("DULVOS_DAVIS", "DULVOS_DATA_DIR"))
    if found := _mark(*step.reads, step.row != "train", *folders):
        wanted |= found
    features = given.get("features", "")
    made, _, run = features.partition("@")[0].partition(":")
    if made == "random":
        wanted["seed"] = given["seed"]
    if made in ("trained", "selected"):
        training = find_training(step.study.rows(), run or "trained")
        if training is None or not training["current"]:
            return None
        wanted["trained_key"] = training["key"]
        if made == "trained" and not given["select"]:
            iteration = features.partition("@")[2]
            wanted["snapshot"] = int(iteration) if iteration else None
    elif features:
        wanted["features"] = features
    if given.get("select") or made in ("selected", "timm"):  # the layer is selected, or the model names it
        del wanted["parameters.layer"]
    row = step.study.find(step.row, wanted)
    if row and step.row == "train":
        newer = find_training(step.study.rows(), row["name"])["key"]
        if newer != row["key"]:
            raise InputError(f"{step.study.folder}/rows/train-{row['name']}-{newer}.json: a newer training "
                             "of this name had other settings; give one another name, or delete that row")
    return row


def _is_shown(step: Step) -> bool:
    """Whether the executed copy shows what the notebook would show now."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):  # no copy, or a damaged one
        return json.loads(step.copy.read_bytes())["metadata"]["dulvos"]["key"] == _key(step)
    return False


@cache
def _mark(data: str, split: str, masks: bool, *folders: str | None) -> dict[str, str]:
    """Fingerprint and, with masks, name of a run's data; nothing if they are not on this machine.

    The folders that hold data are arguments only because the result depends on them.
    """
    try:
        dataset = runs.open_data(data, split)
    except InputError:
        return {}
    found = {"fingerprint": runs.data_fingerprint(dataset, masks=masks)}
    return found | {"data": dataset.name} if masks else found


def _key(step: Step) -> str:
    """12 hex digits of what an executed copy depends on: notebook, parameters, rows and CSV files."""
    cells = [cell["source"] for cell in json.loads(step.source.read_bytes())["cells"]]
    rows = step.study.rows()[["kind", "key", "date", "current"]].to_csv()
    files = [path.read_text("utf-8") for path in sorted(Path(__file__).parent.glob("*.csv"))]
    content = json.dumps([cells, step.given, rows, files], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def list_states(steps: Sequence[Step]) -> str:
    """A line for each step (its state, and its J&F, failure or time), then the counts and the time left."""
    lines, counts, left = [], Counter(), 0.0
    for step in steps:
        word, row = find_state(step)
        told = f"about {step.minutes:.3g} min"
        if word == "failed":
            told = os.path.relpath(step.failure, step.study.results)
        elif row:
            score = row.get("scores.J&F-Mean")
            told = "" if score is None else f"J&F {100 * score:.1f}"
        lines.append(f"  {step.full_name:34s} {word:7s} {told}".rstrip())
        counts[word] += 1
        left += step.minutes * (word != "done")
    counted = ", ".join(f"{count} {word}" for word, count in counts.items())
    return "\n".join([*lines, f"{counted}; left: about {left:.0f} min, one by one"])


class _Kernel(AsyncKernelManager):
    """A kernel of this Python, because the kernel that Jupyter knows as python3 may be another one."""

    kernel_spec = KernelSpec(**get_kernel_dict())


def execute(step: Step, stream: TextIO | None = None) -> str:
    """Run one notebook and return what went wrong, "" for nothing. The copy of a failure is `step.failure`.

    Arguments:
        stream: for the notebook's progress; stderr by default.
    """
    running, stream = step.copy.with_suffix(".running.ipynb"), stream or sys.stderr
    running.parent.mkdir(parents=True, exist_ok=True)
    variables = {"DULVOS_SOURCE": f"notebooks/{step.notebook}.ipynb",
                 "DULVOS_RESULTS": str(step.study.results.absolute())}
    try:
        with mock.patch.dict(os.environ, variables):
            papermill.execute_notebook(
                str(step.source), str(running), kernel_name="python3", cwd=str(ROOT), progress_bar=False,
                kernel_manager_class=_Kernel,
                parameters={"study": step.study.name, **step.parameters}, stderr_file=stream,
                extra_arguments=["--log-level=CRITICAL"], coalesce_streams=True)  # keeps a bar's last state
        _publish(running, step.copy, _key(step))
        step.failure.unlink(missing_ok=True)
        return ""
    except Exception as error:  # whatever it was, the other steps go on
        trouble = f"{getattr(error, 'ename', type(error).__name__)}: {getattr(error, 'evalue', error)}"
        with contextlib.suppress(OSError, ValueError):  # no copy was made, or the disk is full
            _publish(running, step.failure, "")
            trouble += f"; see {os.path.relpath(step.failure, step.study.results)}"
        return trouble


def _publish(running: Path, final: Path, key: str) -> None:
    """Give an executed copy its final name, and replace the paths of this machine's folders in it."""
    notebook = nbformat.read(running, as_version=4)
    notebook.metadata["dulvos"] = {"key": key}
    given = {value: f"${name}" for name, value in os.environ.items() if name.startswith("DULVOS_")}
    private = {str(ROOT): ".", **given, os.path.expanduser("~"): "~"}
    private = {folder: word for folder, word in private.items() if os.path.isabs(folder) and len(folder) > 1}
    folders = "|".join(map(re.escape, sorted(private, key=len, reverse=True)))  # the innermost first
    # a path begins a word, or follows a colour code (\x1b[0m) or a line break as JSON writes it
    path = re.compile(rf"(?:(?<![\w.])|(?<=\dm)|(?<=\\n))({folders})(?![\w+-])")
    write_file(final, path.sub(lambda found: private[found[1]], nbformat.writes(notebook)))
    running.unlink()
