"""The rows of the paper's Tables 1 and 2, planned and run: what is missing, how long it takes, the notebooks in order."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import papermill
import torch
import torchvision

from dulvos.study import paper, results, tables
from dulvos.checkpoints import load_encoder
from dulvos.errors import InputError
from dulvos.released import RELEASES, locate
from dulvos.study.machine import MINIATURE_SEGMENT, PROBED_FRAMES, Machine
from dulvos.study.paper_rows import Row
from dulvos.study.rows import SUFFIX, Study
from dulvos.study.evaluation import draw_sequences
from dulvos.study.steps import NOTEBOOKS, Step, run_study
from dulvos.training import TrainSettings

__all__ = ["prepare", "row_steps", "run_paper"]

IMAGENET = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
MB_A_MASK, GB_AN_ENCODER, GB_A_TRAINING = 0.02, 0.045, 0.3
NOTEBOOK = {1: "02_evaluate_davis", 2: "02_evaluate_youtube_vos"}


def row_steps(row: Row, machine: Machine) -> list[Step]:
    """The notebooks of a row, in order, with estimated minutes."""
    common = {"study": machine.study(row.collection), "device": machine.device or ""}
    steps: list[Step] = []
    if row.collection:
        settings, known = machine.settings(row.collection), papermill.inspect_notebook(str(NOTEBOOKS / "01_train.ipynb"))
        values = dataclasses.asdict(settings)
        unheard = [name for name, value in values.items() if name not in known and value != getattr(TrainSettings(), name)]
        if unheard:
            raise InputError(f"01_train.ipynb has no parameter {', '.join(unheard)}, which {row.collection} needs")
        parameters = {name: value for name, value in values.items() if name in known}
        steps.append(Step("01_train", "01_train", {**common, "data": row.collection, "name": "trained", **parameters},
                          machine.probe(row.collection)["seconds"] / 60, (), ("train", "trained")))
    segment, needs = MINIATURE_SEGMENT if machine.miniature else {}, tuple(step.name for step in steps)

    def evaluation(table: int, name: str, features: str, frames: float = 0, **parameters) -> Step:
        frames += sum(len(sequence.video) for sequence in machine.dataset(table).sequences)
        parameters |= {"data": "davis"} if table == 1 else {"data": "youtube-vos", "split": "valid"}
        return Step(NOTEBOOK[table], f"{NOTEBOOK[table]}-{name}",
                    {**common, "name": name, "features": features, **parameters, **segment},
                    machine.seconds_a_frame(table) * frames / 60, needs,
                    ("evaluate" if table == 1 else "youtube-vos", name))

    steps.append(evaluation(row.table, row.features, row.features, layer=row.layer))
    if row.collection and machine.selected:
        few = sum(len(sequence.video) for sequence in draw_sequences(machine.dataset(1), paper.SELECTED_ON).sequences)
        tried = -(-settings.iterations // settings.snapshot_every) * len(paper.SELECTED_LAYERS)
        steps.append(evaluation(1, f"trained{SUFFIX}", "trained", tried * few, select=paper.SELECTED_ON))
        if row.table == 2:
            needs += (steps[-1].name,)
            steps.append(evaluation(2, f"trained{SUFFIX}", "selected"))
    return steps


def prepare(rows: Sequence[Row], machine: Machine) -> tuple[dict[str, list[Step]], dict[str, list[str]], list[str]]:
    """Look for all that the rows need; nothing is tried out for a row of which something is missing.

    Returns:
        the steps of each row that is ready; all that each other row lacks; the plan as lines of text.
    """
    ready: dict[str, list[Step]] = {}
    missing = {row.name: _lacking(_needs(row, machine)) for row in rows}
    for row in rows:
        if not missing[row.name]:
            missing[row.name] = _lacking([lambda row=row: ready.update({row.name: row_steps(row, machine)})])
    missing = {name: what for name, what in missing.items() if what}
    gigabytes = _gigabytes(ready, machine)
    folder = next(place for place in (results.RESULTS.absolute(), *results.RESULTS.absolute().parents) if place.is_dir())
    free = shutil.disk_usage(folder).free / 2**30
    if gigabytes > free:
        missing["space"] = [f"{folder}: {free:.1f} GB are free on this disk, and the rows write about {gigabytes:.1f} GB"]
    unique = {(step.parameters["study"], step.name): step.minutes for steps in ready.values() for step in steps}
    lines = [f"data: {machine.data}; device: {machine.place}"]
    lines += [f"note: {line}" for line in dict.fromkeys(machine.remarks)]
    for name, probe in machine.probes.items():
        settings = probe["parameters"]
        lines.append(f"probe: {name}: B = {settings['batch']}, T = {settings['frames']}, crop {settings['crop']}: "
                     f"{probe['seconds_per_iteration']:.2f} s an iteration, peak memory {probe['peak_memory_mb']:,.0f} MB; "
                     f"{probe['iterations']:,} iterations")
    lines.append(f"{'row':32s} {'table':5s} {'hours (estimate)':>16s}  state")
    for row in rows:
        hours = f"{sum(step.minutes for step in ready[row.name]) / 60:.2f}" if row.name in ready else "-"
        lines.append(f"{row.name:32s} {row.table:<5d} {hours:>16s}  {'ready' if row.name in ready else 'MISSING, see below'}")
    lines.append(f"together: about {sum(unique.values()) / 60:.2f} h and {gigabytes:.1f} of the {free:.0f} GB that are free, "
                 f"for {len(ready)} of {len(rows)} rows, shared trainings once: an estimate from {machine.iterations} "
                 f"iterations and {PROBED_FRAMES} frames")
    return ready, missing, lines


def run_paper(rows: Sequence[Row], machine: Machine, *, dry: bool = False) -> int:
    """Print the plan, and run it unless `dry` or something is missing, which is said and makes the exit status 1.

    Tables are written at the end.
    """
    ready, missing, lines = prepare(rows, machine)
    print("\n".join(lines))
    for what in dict.fromkeys(what for faults in missing.values() for what in faults):
        print(f"missing for {', '.join(name for name, faults in missing.items() if what in faults)}: {what}")
    if missing or dry:
        print("nothing was run" + "; --rows chooses rows" * bool(missing))
        return 1 if missing else 0
    studies: dict[str, dict[str, Step]] = {}
    for steps in ready.values():
        for step in steps:
            studies.setdefault(step.parameters["study"], {}).setdefault(step.name, step)
    status = 0
    for study, steps in studies.items():
        mine = [row for row in rows if machine.study(row.collection) == study]
        read = [machine.collection(mine[0].collection)] if mine[0].collection else []
        read += [machine.dataset(table) for table, notebook in NOTEBOOK.items()
                 if any(step.notebook == notebook for step in steps.values())]
        status |= run_study(study, list(steps.values()), read)
    tables.write_tables(Study(machine.study(""), results.RESULTS))
    return status


def _needs(row: Row, machine: Machine) -> list[Callable]:
    """What must be there, each as a function that raises an InputError where it is not."""
    needs: list[Callable] = [lambda: machine.place]
    if row.features in RELEASES:
        needs.append(lambda: load_encoder(locate(row.features)))
    if row.features == "imagenet" and not (Path(torch.hub.get_dir()) / "checkpoints" / IMAGENET).is_file():
        machine.remarks.append(f"imagenet: torchvision's {IMAGENET} (45 MB) will be fetched, which needs a network")
    if row.collection:
        needs.append(partial(machine.collection, row.collection))
    selecting = machine.selected and row.collection
    return needs + [partial(machine.dataset, table) for table in sorted({row.table, 1} if selecting else {row.table})]


def _lacking(needs: Sequence[Callable]) -> list[str]:
    lacking = []
    for need in needs:
        try:
            need()
        except InputError as error:
            lacking.append(str(error))
    return lacking


def _gigabytes(ready: dict[str, list[Step]], machine: Machine) -> float:
    """What the steps have still to write, about: masks (of YouTube-VOS also zipped), encoders and checkpoints."""
    steps = {(step.parameters["study"], step.name): step for steps in ready.values() for step in steps}.values()
    total = 0.0
    for step in steps:
        if step.notebook == NOTEBOOK[1]:
            needed = MB_A_MASK / 1024 * sum(len(sequence.video) for sequence in machine.dataset(1).sequences)
        elif step.notebook == NOTEBOOK[2]:
            needed = MB_A_MASK / 1024 * 2 * sum(len(sequence.saved) for sequence in machine.dataset(2).sequences)
        else:
            needed = GB_A_TRAINING + GB_AN_ENCODER * -(-step.parameters["iterations"] // step.parameters["snapshot_every"])
        total += max(0.0, needed - _written(step))
    return total


def _written(step: Step) -> float:
    """GB in the newest folder of that step's name."""
    below = results.study_folder(step.parameters["study"]) / ("masks" if step.notebook in NOTEBOOK.values() else "runs")
    folders = sorted(below.glob(f"{step.parameters['name']}-*"), key=lambda folder: folder.stat().st_mtime)
    return sum(path.stat().st_size for path in folders[-1].rglob("*") if path.is_file()) / 2**30 if folders else 0.0
