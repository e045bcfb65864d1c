"""Settings, notebook parameters and command lines that are unknown, out of range or of the wrong type.

An error must name the setting, so a case expects its name.
"""

import math
from collections.abc import Callable
from functools import partial
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
from dulvos.videos import open_video
from tests.corpus import add, put
from tests.corpus_frames import picture
from tests.corpus_masks import command, make_clip

NAN, INF = math.nan, math.inf
TRAIN, INFER, NOTEBOOK = "training settings", "inference settings", "notebook parameters"


def short(value: Any) -> str:
    return repr(value)[:40]


def refuse(part: str, act: Callable, cases: dict) -> None:
    """Add cases, {setting: values}: `act({setting: value})` must raise an error that names the setting."""
    for name, values in cases.items():
        for value in values:
            add(part, short({name: value}), str(name), lambda folder, given: act(given), {name: value})


# training
make = TrainSettings.from_dict
refuse(TRAIN, make, {
    "seed": [1.5, True, -1, 10**30, np.int64(3)], "iterations": [0, "5", None], "batch": [0], "frames": [-1],
    "gap": [0], "lr": [NAN, INF, "1e-4", 0, True, 10**400], "lr_decay": [-1], "tau": [-1],
    "lam": [-0.1, 1e300], "crop": [100, 0], "grid": [7], "scale_min": [9], "scale_max": [5],
    "optimiser": ["lamb"], "second_forward": ["test"], "alignment": ["none"], "cross_grid": [5],
    "view_scale": [0, 2], "centre": [1, "yes"], "jitter": ["x", None, []], "norm": ["instance"],
    "stride": [16], "objective": ["moco"], "precision": ["fp16"], "workers": [-1], "dim": [0, 10**12],
    "checkpoint_minutes": [INF], "photometric": ["all"], "learning_rate": [1], "lr ": [1], 1: [2]})
for values, named in (
        ({"objective": "crw", "frames": 2}, "frames >= 3"),
        ({"objective": "mast", "frames": 1}, "frames >= 2"),
        ({"crop": 128, "grid": 32}, "16x16.*grid=32"), ({"lamda": 0.1, "iters": 5}, "iters, lamda; .*lam,")):
    add(TRAIN, short(values), named, lambda folder, values: make(values), values)
for values in ({}, {"lr": 1}, {"frames": 1}, {"seed": 2**62}, {"view_scale": 1, "view_flip": False}):
    add(TRAIN, short(values), lambda made, values=values: values.items() <= vars(made).items(),
        lambda folder, values: make(values), values)
TINY = {"iterations": 1, "batch": 2, "frames": 3, "gap": 1, "crop": 32, "scale_min": 32, "scale_max": 40,
        "grid": 2, "cross_grid": 2, "precision": "fp32"}


def train_on(folder: Path, length: int, **changes: Any) -> float:
    videos = [open_video(make_clip(folder, length))] if length else []
    return train(make(TINY | changes), videos, folder / "run", device="cpu")["loss"]


for name, expect, length, changes in (
        ("videos shorter than a clip", "frames=3", 2, {}), ("no videos", "frames=3", 0, {}),
        ("a gap longer than the video", math.isfinite, 4, {"gap": 10**6}),
        ("a clip of one frame", math.isfinite, 1, {"frames": 1})):
    add(TRAIN, name, expect, partial(train_on, length=length, **changes))

# inference
MASK = np.zeros((48, 64), np.uint8)
MASK[10:30, 10:40] = 1
MANY = np.tile(np.arange(64, dtype=np.uint8), (48, 1))
FRAMES = [picture(seed) for seed in range(3)]


def carry(folder: Path, mask: Any = MASK, frames: list = FRAMES, **settings: Any) -> list[np.ndarray]:
    return list(segment(frames, mask, colour_features, SegmentSettings(**settings)))


def ids_of(masks: list[np.ndarray], mask: Any = MASK) -> bool:
    allowed = {0, *np.unique(mask).tolist()}
    return len(masks) == 3 and np.array_equal(masks[0], mask) and all(
        found.shape == (48, 64) and set(np.unique(found).tolist()) <= allowed for found in masks)


def infinite(folder: Path) -> Any:
    encoder = load_encoder("random")
    encoder.backbone.layer3[1].bn2.running_var.fill_(-1)
    return list(segment(FRAMES, MASK, partial(encode, encoder)))


refuse(INFER, lambda given: carry(Path(), **given), {
    "topk": ["10", 2.5, True, -1, 49, 10**30], "context": [2.5, None, 0, 10**12],
    "radius": [NAN, INF, "12", 0], "tau": [NAN, 1e-300, 10**400, None], "layer": [None, "res9"],
    "precision": [[], "fp8"], "shorter_side": [NAN, 24.5, -24, True, 4]})
refuse(INFER, lambda given: SegmentSettings(**given), {
    "frames": ["davis"], "protocol": ["mast", "dino"]})  # it alone would leave the values of the other one
for values in ({"radius": 1e9}, {"radius": 1}, {"tau": 1e-6}, {"tau": 10**9}, {"shorter_side": 24},
               {"context": 10**4}, {"topk": 48}):
    add(INFER, short(values), ids_of, partial(carry, **values))
for name, mask, named in (
        ("halves", MASK / 2, "float64"), ("NaN", MASK * NAN, "float64"), ("None", None, "object"),
        ("text", "mask", "<U4"), ("negative", -MASK.astype(int), "-1"),
        ("300", MASK.astype(int) * 300, "300"), ("255", MASK * 255, "255"),
        ("three channels", np.dstack([MASK] * 3), "mask"), ("a line", MASK[0], "mask"),
        ("another size", MASK[:9], "9, 64"), ("none at all", {}, "mask"),
        ("before the first frame", {-1: MASK}, "-1"), ("after the last frame", {9: MASK}, "9")):
    add(INFER, f"mask: {name}", named, carry, mask)
for name, mask in (("bool", MASK > 0), ("a list", MASK.tolist()), ("64 objects", MANY),
                   ("ids 1, 4, 9", MANY % 3 * 4 + (MANY % 3 > 1))):
    add(INFER, f"mask: {name}", partial(ids_of, mask=mask), carry, mask)
for name, frames, named in (
        ("floats", [frame / 255 for frame in FRAMES], "float64"), ("grey", [MASK] * 3, "uint8"),
        ("RGBA", [np.dstack([frame, MASK]) for frame in FRAMES], "4"), ("none", [], "0 frames"),
        ("of two sizes", [FRAMES[0], FRAMES[1][:40]], "frame 1 is .*40, 64")):
    add(INFER, f"frames: {name}", named, carry, MASK, frames)
add(INFER, "weights that give no numbers", "frame 0", infinite)
for device in ("abacus", "meta", "", "cuda:99", "gpu", "GPU:0"):
    named = "unknown; a GPU is called 'cuda'" if "g" in device.lower() else f"'{device}'"
    add(INFER, f"device {device!r}", named, lambda folder, device: find_device(device), device)
for seed in (-1, "x", 1.5, 2**64):
    add(INFER, f"seed {seed!r}", "seed", lambda folder, seed: load_encoder("random", seed=seed), seed)


# notebooks and studies
def check(notebook: str, given: dict) -> None:
    check_parameters(ROOT / "notebooks" / f"{notebook}.ipynb", given)


for notebook, wrong in (
        ("06_your_video", {"video": [3], "frames": ["3", True], "tau": ["x"], "topk": [2.0], "device": [None],
                           "vidoe": ["x"]}),
        ("01_train", {"centre": [1], "lr": [NAN, INF], 1: [2]}), ("02_evaluate", {"radius": ["12"]}),
        ("04_features", {"points": ["x"]}), ("03_ablation", {"scale": [1]})):
    refuse(NOTEBOOK, partial(check, notebook), wrong)
for notebook in ("99_none", "../x"):
    add(NOTEBOOK, notebook, f"{notebook}.ipynb", lambda folder, notebook: check(notebook, {}), notebook)
add(NOTEBOOK, "a whole number for a float", lambda result: result is None,
    lambda folder: check("06_your_video", {"tau": 1}))
for name in ("", "..", ".", "a/b", "/a", "a\0b", "a\nb", "x" * 300, None, 5):
    add(NOTEBOOK, f"study {short(name)}", "study", lambda folder, name: Study(name, folder), name)
for name in ("../a", "a/b", ""):
    for what, run in (("training", partial(training_run, data="cutouts", settings=TrainSettings())),
                      ("evaluation", partial(evaluation_run, data="cutouts", features="copy"))):
        add(NOTEBOOK, f"{what} called {name!r}", "name",
            lambda folder, run, name: run(Study("s", folder), name), run, name)

# the command line; test_main.py tries others
for name, named, arguments in (
        ("an index of a name that is too long", "x", ["index", "x" * 300]),
        ("an index of frames", "clip", ["index", "clip"]),
        ("a download into a file", "text", ["download", "davis2017", "--to", "text"]),
        ("an index of a misspelt collection", "youtube-vos, .*davis-2017", ["index", "youtubevos"]),
        ("training on a misspelt one", "youtube-vos, .*davis-2017", ["train", "kinetics", "--study", "s"]),
        ("training with crop='256'", "crop", ["train", "cutouts", "--study", "s", "--crop", "250"]),
        ("training at lr 1e999", "lr", ["train", "cutouts", "--study", "s", "--lr", "1e999"]),
        ("a grid of -1 workers", "workers", ["grid", "--run", "--workers", "-1"])):
    def run(folder: Path, arguments: list[str]) -> str:
        make_clip(folder)
        put(folder / "text", "")
        return command(*(folder / word if word in ("clip", "text") else word for word in arguments))
    add("commands", name, named, run, arguments)
