"""A grid that costs nothing: a data set of two tiny videos, rows out of thin air, notebooks that only count and sleep."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import cv2
import nbformat
import numpy as np
from dulvos.study.ablation_states import Run

from dulvos.inference import SegmentSettings
from dulvos.masks import write_mask
from dulvos.study import results, runs
from dulvos.study.ablation import Scale as GridStudy
from dulvos.study.steps import Step
from dulvos.training import TrainSettings
from dulvos.videos import fingerprint
from tests.oracles import texture

TRAINING = {"iterations": 8, "batch": 8, "frames": 5, "gap": 1, "crop": 128, "scale_min": 128, "scale_max": 128}


def write_data(root: Path) -> Path:
    """DAVIS's layout, one video for training and one for validation, of 16 frames of 32x48 pixels."""
    for seed, (name, split) in enumerate((("a", "train"), ("b", "val"))):
        for t in range(16):
            path = root / "JPEGImages/480p" / name / f"{t:05d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), texture(seed, 32, 48))
            write_mask(root / "Annotations/480p" / name / f"{t:05d}.png", np.eye(32, 48, dtype=np.uint8))
        (root / "ImageSets/2017").mkdir(parents=True, exist_ok=True)
        (root / f"ImageSets/2017/{split}.txt").write_text(f"{name}\n")
    (root / "benchmark.json").write_text(json.dumps({"name": "tiny"}))
    return root


def tiny_grid(data: Path, **changes) -> GridStudy:
    """The grid on that data."""
    return GridStudy(**{"name": "tiny", "train": str(data), "evaluate": str(data), "training": TRAINING, "seeds": (3, 1, 1),
                        "words": "tiny"} | changes)


def marks(grid: GridStudy) -> dict[str, str]:
    """Fingerprint and code of the rows that count now, by kind."""
    train, val = runs.open_data(grid.train, "train"), runs.open_data(grid.evaluate, "val")
    found = {"train": fingerprint([s.video for s in train.sequences]), "evaluate": runs.dataset_fingerprint(val)}
    return {kind: {"fingerprint": found[kind], "version": results.VERSIONS[kind]} for kind in found}


def write_rows(grid: GridStudy, run: Run, score: float, *, minutes: float = 1.0, **changes) -> None:
    """The rows of a run that reached a J&F (in percent)."""
    plain, trained_key = {"study": grid.folder, "date": "2026-01-01", "seconds": 60 * minutes, "commit": "0123456789",
                          "data": "tiny"}, ""
    mark = marks(grid)
    if run.training:
        trained_key = hashlib.sha256(run.training.encode()).hexdigest()[:12]
        results.write_row(grid.folder, {**plain, "kind": "train", "name": run.training, "key": trained_key, "seed": run.seed,
                                        "parameters": run.settings, **mark["train"], **changes})
    key = hashlib.sha256(run.name.encode()).hexdigest()[:12]
    results.write_row(grid.folder, {**plain, "kind": "evaluate", "name": run.name, "key": key, "seed": run.seed,
                                    "scores": {"J&F-Mean": score / 100},
                                    "features": f"trained:{trained_key}" if run.training else "random",
                                    "trained_key": trained_key, "parameters": run.inference, **mark["evaluate"], **changes})


# a notebook that takes up its count where it stopped, and leaves a row that says nothing but what it was given
SOURCE = """
import hashlib, json, os, pathlib, time
assert "MALLOC_TRIM_THRESHOLD_" not in os.environ, "Dask's: it makes training 1.5 times slower"
given = {parameters}
values = {{name: globals()[name] for name in given["names"]}}
key = hashlib.sha256(json.dumps([given["kind"], values, globals().get("features")]).encode()).hexdigest()[:12]
base = pathlib.Path(os.environ["DULVOS_RESULTS"]) / study
folder = base / "runs" / f"{{name}}-{{key}}"
(base / "rows").mkdir(parents=True, exist_ok=True)
folder.mkdir(parents=True, exist_ok=True)
with open(base / "started", "a") as stream:
    stream.write(f"{{given['kind']}} {{name}}\\n")
history = folder / "history.csv"
if not history.exists():
    history.write_text("iteration\\n")
for count in range(len(history.read_text().split()), given["steps"] + 1):
    if name == given["bad"]:
        raise RuntimeError("no luck")
    time.sleep(given["seconds"])
    with open(history, "a") as stream:
        stream.write(f"{{count}}\\n")
score = int(hashlib.sha256(key.encode()).hexdigest()[:4], 16) / 65536
row = {{"kind": given["kind"], "study": study, "name": name, "key": key, "date": "2026-01-01", "seconds": 1.0, "seed": seed,
       "parameters": values, "scores": {{"J&F-Mean": score}}, "features": globals().get("features", ""),
       "trained_key": globals().get("features", "").partition(":")[2], **given["mark"]}}
temporary = base / "rows" / f".{{key}}"
temporary.write_text(json.dumps(row))
temporary.rename(base / "rows" / f"{{given['kind']}}-{{name}}-{{key}}.json")
"""


def run_in_place(folder: Path, step: Step) -> None:
    """What a notebook of `write_notebooks` does for a step, without a kernel: the row that any other way must end in, too."""
    parameters, body = (cell.source for cell in nbformat.read(folder / f"{step.notebook}.ipynb", as_version=4).cells)
    names: dict = {}
    exec(parameters, names)
    exec(body.replace("time.sleep", "float"), names | step.parameters)


def write_notebooks(folder: Path, grid: GridStudy, *, steps: int = 8, seconds: float = 0.1, bad: str = "") -> None:
    """`01_train` and `02_evaluate` that sleep `steps` times; the run called `bad` fails."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, stem, settings in (("train", "01_train", TrainSettings()), ("evaluate", "02_evaluate", SegmentSettings())):
        values = dataclasses.asdict(settings)
        parameters = {"study": "", "data": "", "name": "", "seed": 0, **values}
        if kind == "evaluate":
            parameters["features"] = ""
        given = {"kind": kind, "names": sorted(values), "steps": steps, "seconds": seconds, "bad": bad,
                 "mark": marks(grid)[kind]}
        cells = [nbformat.v4.new_code_cell("\n".join(f"{name} = {value!r}" for name, value in parameters.items()),
                                           metadata={"tags": ["parameters"]}),
                 nbformat.v4.new_code_cell(SOURCE.format(parameters=repr(given)))]
        metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), folder / f"{stem}.ipynb")


