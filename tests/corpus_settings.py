"""Settings, notebooks' parameters and the command line, of the wrong type, unknown, out of range, and no numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dulvos.study import steps as study
from dulvos.checkpoints import load_encoder
from dulvos.devices import find_device
from dulvos.inference import SegmentSettings, colour_features, segment
from dulvos.study.results import study_folder
from dulvos.study.runs import evaluation_run, training_run
from dulvos.trainer import train
from dulvos.training import TrainSettings
from dulvos.videos import find_videos
from tests.corpus import Case
from tests.corpus_frames import picture
from tests.corpus_masks import command, make_clip

__all__ = ["CASES"]

CASES: list[Case] = []
NAN, INF = math.nan, math.inf
FINITE = "must be a finite number"


def short(value: Any) -> str:
    return repr(value)[:40]


# training
for values, words in (
        ({"seed": 1.5}, "seed must be int, not 1.5"), ({"seed": True}, "seed must be int, not True"),
        ({"seed": -1}, "seed must be >= 0"), ({"seed": 10**30}, f"seed {FINITE}"),
        ({"iterations": 0}, "iterations must be >= 1"), ({"iterations": "5"}, "iterations must be int"),
        ({"iterations": None}, "iterations must be int"), ({"batch": 0}, "batch must be >= 1"),
        ({"frames": -1}, "frames must be >= 1"), ({"gap": 0}, "gap must be >= 1"), ({"lr": NAN}, "lr must be"),
        ({"lr": INF}, "lr must be"), ({"lr": "1e-4"}, "lr must be float"), ({"lr": 0}, "lr must be > 0"),
        ({"lr": True}, "lr must be float"), ({"lr": 10**400}, f"lr {FINITE}"), ({"lr_decay": -1}, "lr_decay must be"),
        ({"tau": -1}, "tau must be"), ({"lam": -0.1}, "lam must be >= 0"), ({"lam": 1e300}, f"lam {FINITE}"),
        ({"crop": 100}, "multiple of 8"), ({"crop": 0}, "crop must be >= 1"), ({"crop": 8}, "grid=8 does not divide"),
        ({"grid": 7}, "grid=7 does not divide"), ({"scale_min": 9, "scale_max": 5}, "crop <= scale_min"),
        ({"view_scale": 0}, "view_scale must lie in"), ({"view_scale": 2}, "view_scale must"),
        ({"centre": 1}, "centre must be bool"), ({"centre": "yes"}, "centre must be bool"),
        ({"compile": "no"}, "compile must be bool"), ({"jitter": "x"}, "jitter must be one of .*common"),
        ({"jitter": None}, "jitter must be str"), ({"jitter": []}, "jitter must be str"),
        ({"norm": "instance"}, "norm must be one of"), ({"precision": "fp16"}, "precision must be one of"),
        ({"workers": -1}, "workers must be >= 0"), ({"dim": 0}, "dim must be"),
        ({"checkpoint_minutes": INF}, "checkpoint_minutes must be"), ({"seed": np.int64(3)}, "seed must be int"),
        ({"photometric": "all"}, "photometric must be one of"),
        ({"learning_rate": 1}, "unknown setting learning_rate; the settings are seed"), ({"lr ": 1}, "unknown setting lr"),
        ({1: 2}, "unknown setting 1"), (None, "mapping"), ([], "mapping"), (3, "mapping"), ("abc", "mapping"),
        ([("lr", 1)], "mapping")):
    CASES.append(Case("training settings", short(values), lambda folder, values=values: TrainSettings.from_dict(values), words))
for values in ({}, {"lr": 1}, {"frames": 1}, {"seed": 2**62}, {"view_scale": 1, "view_flip": False}):
    CASES.append(Case("training settings", short(values), lambda folder, values=values: TrainSettings.from_dict(values),
                      lambda settings, values=values: all(getattr(settings, name) == value for name, value in values.items())))
TINY = {"iterations": 1, "batch": 2, "frames": 3, "gap": 1, "crop": 32, "scale_min": 32, "scale_max": 40, "grid": 2,
        "cross_grid": 2,
        "precision": "fp32"}


def train_on(folder: Path, length: int, **changes: Any) -> float:
    make_clip(folder / "videos", length)
    return train(TrainSettings.from_dict(TINY | changes), find_videos(folder / "videos"), folder / "run", device="cpu")["loss"]


CASES.append(Case("training settings", "videos shorter than a clip", lambda folder: train_on(folder, 2),
                  "frames=3; the longest of 1 has 2"))
CASES.append(Case("training settings", "no videos", lambda folder: train(TrainSettings.from_dict(TINY), [], folder),
                  "no video is as long"))
CASES.append(Case("training settings", "a gap longer than the video", lambda folder: train_on(folder, 4, gap=10**6),
                  math.isfinite))
CASES.append(Case("training settings", "a clip of one frame", lambda folder: train_on(folder, 1, frames=1), math.isfinite))


# inference
MASK = np.zeros((48, 64), np.uint8)
MASK[10:30, 10:40] = 1
FRAMES = [picture(seed) for seed in range(3)]


def carry(mask: Any = MASK, frames: list = FRAMES, **settings: Any) -> list[np.ndarray]:
    return list(segment(frames, mask, colour_features, SegmentSettings(**settings)))


def ids_of(masks: list[np.ndarray], *allowed: int) -> bool:
    return len(masks) == 3 and all(mask.shape == (48, 64) and set(np.unique(mask)) <= {0, *allowed} for mask in masks)


for values, words in (
        ({"topk": "10"}, "topk must be int"), ({"topk": 2.5}, "topk must be int"), ({"topk": True}, "topk must be int"),
        ({"topk": -1}, "topk must be >= 1|topk=-1"), ({"topk": 49}, "topk=49 exceeds the 6x8 cells"),
        ({"topk": 10**30}, f"topk {FINITE}"), ({"context": 2.5}, "context must be int"),
        ({"context": None}, "context must be int"), ({"context": 0}, "context and topk must be"),
        ({"context": 10**12}, "context=.*memory"), ({"radius": NAN}, f"radius {FINITE}"), ({"radius": INF}, f"radius {FINITE}"),
        ({"radius": "12"}, "radius must be float"), ({"radius": 0}, "radius > 0"), ({"tau": NAN}, f"tau {FINITE}"),
        ({"tau": 1e-300}, "tau >= 1e-6"), ({"tau": 10**400}, f"tau {FINITE}"), ({"tau": None}, "tau must be float"),
        ({"layer": None}, "layer must be str"), ({"layer": "res9"}, "layer must be one of"),
        ({"precision": []}, "precision must be str"), ({"precision": "fp8"}, "precision must be"),
        ({"shorter_side": NAN}, "shorter_side must be int"), ({"shorter_side": 24.5}, "shorter_side must be int"),
        ({"shorter_side": -24}, "shorter_side must be 0"), ({"shorter_side": True}, "shorter_side must be int")):
    CASES.append(Case("inference settings", short(values), lambda folder, values=values: carry(**values), words))
for values in ({"radius": 1e9}, {"radius": 1}, {"tau": 1e-6}, {"tau": 10**9}, {"shorter_side": 24}, {"context": 10**4},
               {"topk": 48}):
    CASES.append(Case("inference settings", short(values), lambda folder, values=values: carry(**values),
                      lambda masks: ids_of(masks, 1)))
for name, mask, words in (
        ("halves", MASK / 2, "whole numbers, not float64"), ("NaN", MASK * NAN, "whole numbers, not float64"),
        ("None", None, "whole numbers"), ("text", "mask", "whole numbers"), ("negative", -MASK.astype(int), "must be >= 0"),
        ("300", MASK.astype(int) * 300, "<= 254, not 300"), ("255", MASK * 255, "<= 254, not 255"),
        ("three channels", np.dstack([MASK] * 3), "at least one mask"), ("a line", MASK[0], "at least one"),
        ("another size", MASK[:9], "64x48 .*the mask 64x9"), ("none at all", {}, "at least one mask"),
        ("before the first frame", {-1: MASK}, "frame numbers >= 0"),
        ("after the last frame", {9: MASK}, "frame 9, but the video has 3 frames")):
    CASES.append(Case("inference settings", f"mask: {name}", lambda folder, mask=mask: carry(mask), words))
for name, frames, words in (("floats", [frame / 255 for frame in FRAMES], "expected uint8 RGB"),
                            ("grey", [MASK] * 3, "expected uint8 RGB"),
                            ("RGBA", [np.dstack([frame, MASK]) for frame in FRAMES], "expected uint8 RGB"),
                            ("none", [], "has 0 frames"),
                            ("of two sizes", [FRAMES[0], FRAMES[1][:40]], "frame 1 is 64x40")):
    CASES.append(Case("inference settings", f"frames: {name}", lambda folder, frames=frames: carry(frames=frames), words))
MANY = np.tile(np.arange(64, dtype=np.uint8), (48, 1))
for name, mask in (("bool", MASK > 0), ("a list", MASK.tolist()), ("64 objects", MANY),
                   ("ids 1, 4, 9", MANY % 3 * 4 + (MANY % 3 > 1))):
    CASES.append(Case("inference settings", f"mask: {name}", lambda folder, mask=mask: carry(mask), lambda masks, mask=mask:
                      ids_of(masks, *np.unique(mask)) and np.array_equal(masks[0], mask)))


def dark(folder: Path) -> Any:
    encoder = load_encoder("random")
    encoder.backbone.layer3[1].bn2.running_var.fill_(-1)
    from dulvos.inference import encode
    return list(segment(FRAMES, MASK, lambda frames, settings: encode(encoder, frames, settings)))


CASES.append(Case("inference settings", "weights that give no numbers", dark, "features of frame 0 .*damaged"))

for device in ("abacus", "meta", "", "cuda:99"):
    CASES.append(Case("inference settings", f"device {device!r}", lambda folder, device=device: find_device(device),
                      f"'{device}'"))


# notebooks
for notebook, values, words in (
        ("06_your_video", {"video": 3}, "video must be str"), ("06_your_video", {"frames": "3"}, "frames must be int"),
        ("06_your_video", {"tau": "x"}, "tau must be float"), ("06_your_video", {"topk": 2.0}, "topk must be int"),
        ("06_your_video", {"frames": True}, "frames must be int"), ("06_your_video", {"device": None}, "device must be str"),
        ("06_your_video", {"vidoe": "x"}, "unknown parameter vidoe; its parameters are video"),
        ("01_train", {"centre": 1}, "centre must be bool"), ("01_train", {"lr": NAN}, f"lr {FINITE}"),
        ("01_train", {"lr": INF}, f"lr {FINITE}"), ("01_train", {1: 2}, "unknown parameter 1"),
        ("02_evaluate", {"radius": "12"}, "radius must be float"),
        ("04_features", {"points": "x"}, "points must be list"), ("03_ablation", {"run": "yes"}, "run must be bool"),
        ("99_none", {}, "99_none.ipynb: no such notebook"), ("../x", {}, "no such notebook")):
    CASES.append(Case("notebook parameters", f"{notebook} {short(values)}", lambda folder, notebook=notebook, values=values:
                      study.check_parameters(notebook, values), words))
CASES.append(Case("notebook parameters", "a whole number for a float",
                  lambda folder: study.check_parameters("06_your_video", {"tau": 1}),
                  lambda result: result is None))
for name in ("", "..", ".", "a/b", "/a", "a\0b", "a\nb", "x" * 300, None, 5):
    CASES.append(Case("notebook parameters", f"study {short(name)}", lambda folder, name=name: study_folder(name),
                      "study must be a plain"))
for name in ("../a", "a/b", ""):
    CASES.append(Case("notebook parameters", f"training called {name!r}", lambda folder, name=name: training_run(
        "demo", name, "cutouts", TrainSettings()), "name must be a plain"))
    CASES.append(Case("notebook parameters", f"evaluation called {name!r}", lambda folder, name=name: evaluation_run(
        "demo", name, "cutouts", "copy", SegmentSettings()), "name must be a plain"))
for seed in (-1, "x", 1.5, 2**64):
    CASES.append(Case("notebook parameters", f"seed {seed!r}", lambda folder, seed=seed: load_encoder("random", seed=seed),
                      "seed must be a whole"))


# the command line
def line(name: str, words: str, arguments: Callable[[Path], list]) -> None:
    CASES.append(Case("commands", name, lambda folder: command(*arguments(folder)), words))


line("no command", "arguments are required: command", lambda folder: [])
line("an unknown command", "invalid choice: 'frobnicate'", lambda folder: ["frobnicate"])
line("segment of nothing", "required: VIDEO, MASK, OUT", lambda folder: ["segment"])
line("an unknown study", "invalid choice: 'x'", lambda folder: ["study", "x"])
line("a study without its data", "absent: no such folder; --davis",
     lambda folder: ["study", "davis", "--davis", folder / "absent"])
for option, words in (("lr", "'lr' is no setting; expected NAME=VALUE"), ("lr=nan", "lr must be float"),
                      ("lr=1e999", f"lr {FINITE}"),
                      ("frobnicate=1", "unknown setting frobnicate"), ("=1", "unknown setting"),
                      ("crop='256'", "crop must be int"),
                      ("lr=" + "-" * 20_000 + "1", "lr must be float")):
    line(f"training with {option[:20]}", words, lambda folder,
         option=option: ["train", "cutouts", "--study", "s", "--set", option])
line("training of nothing", "required: DATA, --study", lambda folder: ["train"])
line("training into another folder", "study must be a plain", lambda folder: ["train", folder, "--study", "../s"])
line("training on what is not there", "neither 'cutouts' nor 'davis' nor a folder",
     lambda folder: ["train", folder / "absent", "--study", "s"])
line("a grid of -1 workers", "--workers must be >= 0", lambda folder: ["grid", "--run", "--workers", "-1"])
line("a list of -1 workers", "--workers must be >= 0", lambda folder: ["grid", "--workers", "-1"])
line("a list of runs that are none", "no run lam7-0 in ablation-demo; the runs are baseline-0", lambda folder: ["grid", "--only", "lam7-0"])
line("a place to index, and no name", "which of its collections", lambda folder: ["index", "--data", str(folder)])
line("what only training does, without data", "--data DIR is missing", lambda folder: ["paper", "--selected"])
line("a grid of x workers", "--workers: invalid int", lambda folder: ["grid", "--workers", "x"])
line("a grid on a folder that is not there", "absent: no such folder", lambda folder: ["grid", "--study", "davis", "--davis", folder / "absent"])
line("a grid that has its own videos", "has its own videos", lambda folder: ["grid", "--davis", folder])
line("a demo on DAVIS", "belong to the study 'davis'", lambda folder: ["study", "demo", "--davis", folder])
line("a demo at the paper's setting", "belong to the study 'davis'", lambda folder: ["study", "--setting", "paper"])
line("an index of nothing", "absent: no such folder", lambda folder: ["index", folder / "absent"])
line("an index of a name that is too long", "x: File name too long", lambda folder: ["index", "x" * 300])
line("an index of frames", "it holds frames itself", lambda folder: ["index", make_clip(folder)])
line("a download of something else", "invalid choice: 'davis2018'", lambda folder: ["download", "davis2018", "--to", folder])
line("a download to nowhere", "required: --to", lambda folder: ["download", "davis2017"])
line("a download into a file", "text: .*File exists",
     lambda folder: ["download", "davis2017", "--to", (folder / "text").touch() or folder / "text"])
line("the paper's rows without data", "absent: no such folder; --data",
     lambda folder: ["paper", "--data", folder / "absent", "--dry-run"])
line("a row that the paper has not", "--rows none: no such row; the rows are",
     lambda folder: ["paper", "--data", folder, "--rows", "none"])
line("a probe of no iterations", "--probe must be >= 1", lambda folder: ["paper", "--data", folder, "--probe", "0"])
