"""Settings, notebooks' parameters and command lines: of the wrong type, unknown, out of range, not a number.

An error must name the setting: a case expects its name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dulvos.checkpoints import load_encoder
from dulvos.devices import find_device
from dulvos.inference import SegmentSettings, colour_features, encode, segment
from dulvos.study.evaluation import evaluation_run
from dulvos.study.rows import ROOT, Study
from dulvos.study.runs import training_run
from dulvos.study.steps import check_parameters
from dulvos.training import TrainSettings, train
from dulvos.videos import find_videos
from tests.corpus import Case
from tests.corpus_frames import picture
from tests.corpus_masks import command, make_clip

__all__ = ["CASES"]

CASES: list[Case] = []
NAN, INF = math.nan, math.inf


def short(value: Any) -> str:
    return repr(value)[:40]


def refuse(part: str, act: Callable, cases: dict[str, list]) -> None:
    """For each setting, the values that `act({setting: value})` must refuse by its name."""
    for name, values in cases.items():
        for value in values:
            CASES.append(Case(part, short({name: value}), lambda folder, given={name: value}: act(given), str(name)))


# training
refuse("training settings", TrainSettings.from_dict, {
    "seed": [1.5, True, -1, 10**30, np.int64(3)], "iterations": [0, "5", None], "batch": [0], "frames": [-1], "gap": [0],
    "lr": [NAN, INF, "1e-4", 0, True, 10**400], "lr_decay": [-1], "tau": [-1], "lam": [-0.1, 1e300], "crop": [100, 0],
    "grid": [7], "scale_min": [9], "scale_max": [5], "view_scale": [0, 2], "centre": [1, "yes"], "jitter": ["x", None, []],
    "norm": ["instance"], "stride": [16], "objective": ["moco"], "precision": ["fp16"], "workers": [-1], "dim": [0], "checkpoint_minutes": [INF],
    "photometric": ["all"], "learning_rate": [1], "lr ": [1], 1: [2]})
for values in (None, [], 3, "abc", [("lr", 1)]):
    CASES.append(Case("training settings", short(values), lambda folder, values=values: TrainSettings.from_dict(values),
                      "settings"))
for values in ({}, {"lr": 1}, {"frames": 1}, {"seed": 2**62}, {"view_scale": 1, "view_flip": False}):
    CASES.append(Case("training settings", short(values), lambda folder, values=values: TrainSettings.from_dict(values),
                      lambda made, values=values: all(getattr(made, name) == value for name, value in values.items())))
TINY = {"iterations": 1, "batch": 2, "frames": 3, "gap": 1, "crop": 32, "scale_min": 32, "scale_max": 40, "grid": 2,
        "cross_grid": 2, "precision": "fp32"}


def train_on(folder: Path, length: int, **changes: Any) -> float:
    make_clip(folder / "videos", length)
    return train(TrainSettings.from_dict(TINY | changes), find_videos(folder / "videos"), folder / "run", device="cpu")["loss"]


for name, act, expect in (
        ("videos shorter than a clip", lambda folder: train_on(folder, 2), "frames=3"),
        ("no videos", lambda folder: train(TrainSettings.from_dict(TINY), [], folder), "frames=3"),
        ("a gap longer than the video", lambda folder: train_on(folder, 4, gap=10**6), math.isfinite),
        ("a clip of one frame", lambda folder: train_on(folder, 1, frames=1), math.isfinite)):
    CASES.append(Case("training settings", name, act, expect))

# inference
MASK = np.zeros((48, 64), np.uint8)
MASK[10:30, 10:40] = 1
MANY = np.tile(np.arange(64, dtype=np.uint8), (48, 1))
FRAMES = [picture(seed) for seed in range(3)]


def carry(mask: Any = MASK, frames: list = FRAMES, **settings: Any) -> list[np.ndarray]:
    return list(segment(frames, mask, colour_features, SegmentSettings(**settings)))


def ids_of(masks: list[np.ndarray], *allowed: int) -> bool:
    return len(masks) == 3 and all(mask.shape == (48, 64) and set(np.unique(mask)) <= {0, *allowed} for mask in masks)


def dark(folder: Path) -> Any:
    encoder = load_encoder("random")
    encoder.backbone.layer3[1].bn2.running_var.fill_(-1)
    return list(segment(FRAMES, MASK, lambda frames, settings: encode(encoder, frames, settings)))


refuse("inference settings", lambda given: carry(**given), {
    "topk": ["10", 2.5, True, -1, 49, 10**30], "context": [2.5, None, 0, 10**12], "radius": [NAN, INF, "12", 0],
    "tau": [NAN, 1e-300, 10**400, None], "layer": [None, "res9"], "precision": [[], "fp8"],
    "shorter_side": [NAN, 24.5, -24, True]})
for values in ({"radius": 1e9}, {"radius": 1}, {"tau": 1e-6}, {"tau": 10**9}, {"shorter_side": 24}, {"context": 10**4},
               {"topk": 48}):
    CASES.append(Case("inference settings", short(values), lambda folder, values=values: carry(**values),
                      lambda masks: ids_of(masks, 1)))
for name, mask, named in (
        ("halves", MASK / 2, "float64"), ("NaN", MASK * NAN, "float64"), ("None", None, "object"), ("text", "mask", "<U4"),
        ("negative", -MASK.astype(int), "-1"), ("300", MASK.astype(int) * 300, "300"), ("255", MASK * 255, "255"),
        ("three channels", np.dstack([MASK] * 3), "mask"), ("a line", MASK[0], "mask"), ("another size", MASK[:9], "9, 64"),
        ("none at all", {}, "mask"), ("before the first frame", {-1: MASK}, "-1"), ("after the last frame", {9: MASK}, "9")):
    CASES.append(Case("inference settings", f"mask: {name}", lambda folder, mask=mask: carry(mask), named))
for name, mask in (("bool", MASK > 0), ("a list", MASK.tolist()), ("64 objects", MANY),
                   ("ids 1, 4, 9", MANY % 3 * 4 + (MANY % 3 > 1))):
    CASES.append(Case("inference settings", f"mask: {name}", lambda folder, mask=mask: carry(mask), lambda masks, mask=mask:
                      ids_of(masks, *np.unique(mask)) and np.array_equal(masks[0], mask)))
for name, frames, named in (("floats", [frame / 255 for frame in FRAMES], "float64"), ("grey", [MASK] * 3, "uint8"),
                            ("RGBA", [np.dstack([frame, MASK]) for frame in FRAMES], "4"), ("none", [], "0 frames"),
                            ("of two sizes", [FRAMES[0], FRAMES[1][:40]], "frame 1 is .*40, 64")):
    CASES.append(Case("inference settings", f"frames: {name}", lambda folder, frames=frames: carry(frames=frames), named))
CASES.append(Case("inference settings", "weights that give no numbers", dark, "frame 0"))
for device in ("abacus", "meta", "", "cuda:99"):
    CASES.append(Case("inference settings", f"device {device!r}", lambda folder, device=device: find_device(device),
                      f"'{device}'"))
for seed in (-1, "x", 1.5, 2**64):
    CASES.append(Case("inference settings", f"seed {seed!r}", lambda folder, seed=seed: load_encoder("random", seed=seed), "seed"))


# notebooks and studies
def check(notebook: str) -> Callable:
    return lambda given: check_parameters(ROOT / "notebooks" / f"{notebook}.ipynb", given)


for notebook, wrong in (
        ("06_your_video", {"video": [3], "frames": ["3", True], "tau": ["x"], "topk": [2.0], "device": [None], "vidoe": ["x"]}),
        ("01_train", {"centre": [1], "lr": [NAN, INF], 1: [2]}), ("02_evaluate", {"radius": ["12"]}),
        ("04_features", {"points": ["x"]}), ("03_ablation", {"scale": [1]})):
    refuse("notebook parameters", check(notebook), wrong)
for notebook in ("99_none", "../x"):
    CASES.append(Case("notebook parameters", notebook, lambda folder, name=notebook: check(name)({}), f"{notebook}.ipynb"))
CASES.append(Case("notebook parameters", "a whole number for a float", lambda folder: check("06_your_video")({"tau": 1}),
                  lambda result: result is None))
for name in ("", "..", ".", "a/b", "/a", "a\0b", "a\nb", "x" * 300, None, 5):
    CASES.append(Case("notebook parameters", f"study {short(name)}", lambda folder, name=name: Study(name, folder), "study"))
for name in ("../a", "a/b", ""):
    for what, act in (("training", lambda study, name: training_run(study, name, "cutouts", TrainSettings())),
                      ("evaluation", lambda study, name: evaluation_run(study, name, "cutouts", "copy"))):
        CASES.append(Case("notebook parameters", f"{what} called {name!r}",
                          lambda folder, act=act, name=name: act(Study("s", folder), name), "name"))

# the command line; what tests/test_main.py does not try
for name, named, arguments in (
        ("an index of a name that is too long", "x", lambda folder: ["index", "x" * 300]),
        ("an index of frames", "clip", lambda folder: ["index", make_clip(folder)]),
        ("an index of nothing", "absent", lambda folder: ["index", folder / "absent"]),
        ("a download into a file", "text", lambda folder: ["download", "davis2017", "--to",
                                                           (folder / "text").touch() or folder / "text"]),
        ("training on what is not there", "absent", lambda folder: ["train", folder / "absent", "--study", "s"]),
        ("training with crop='256'", "crop", lambda folder: ["train", "cutouts", "--study", "s", "--crop", "250"]),
        ("training at lr 1e999", "lr", lambda folder: ["train", "cutouts", "--study", "s", "--lr", "1e999"]),
        ("a grid of -1 workers", "workers", lambda folder: ["grid", "--run", "--workers", "-1"]),
        ("the paper's rows without data", "absent", lambda folder: ["paper", "--data", folder / "absent", "--dry-run"])):
    CASES.append(Case("commands", name, lambda folder, arguments=arguments: command(*arguments(folder)), named))
