"""The numbers of training and evaluation change only with their version.

Small runs on the CPU (float32, one thread) are compared with `digests.json`, written when the version was
set. A failure means that a change moved the numbers: undo it, or raise the version in `dulvos.study.rows` and
write the file again (`python -m tests.test_digests > tests/digests.json`).
"""

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from dulvos.checkpoints import load_encoder
from dulvos.inference import SegmentSettings, encode, segment
from dulvos.metrics import score_sequence
from dulvos.objectives import OBJECTIVES
from dulvos.propagation import propagate
from dulvos.study.rows import version
from dulvos.training import TrainSettings, clip_numbers, make_clips, make_parts, training_step
from tests.oracles import ArrayVideo

SMALL = {"batch": 2, "frames": 3, "gap": 2, "crop": 64, "scale_min": 64, "scale_max": 96, "grid": 4,
         "cross_grid": 2, "lr": 3e-4, "precision": "fp32"}
TRAINING_CASES = {
    "method": {}, "one frame": {"frames": 1},
    "sgd, centre": {"optimiser": "sgd", "centre": True, "lr_every": 1},
    "aligned": {"alignment": "corrected"}, "each cell": {"jitter": "independent"},
    "no jitter": {"jitter": "none"}, "second forward": {"second_forward": "eval"},
    "layer norm": {"norm": "layer"}, "in order": {"ordered": True},
    "colours a clip": {"photometric": "video"}, "colours a frame": {"photometric": "frame"},
    "no branch": {"view_scale": 1.0, "view_flip": False}, "lambda": {"lam": 1.0, "tau": 0.1},
    **{name: {"objective": name} for name in OBJECTIVES if name != "dense"},
}
EVALUATION_CASES = {"method": {}, "res3": {"layer": "res3"}, "key": {"layer": "key"},
                    "reduced": {"shorter_side": 48},
                    "other": {"context": 2, "radius": 3.0, "topk": 4, "tau": 0.1}}
# processors round differently, and Adam's first steps follow the signs of small gradients
CLOSE = {"train": {"rtol": 5e-3, "atol": 1e-5}, "evaluate": {"rtol": 1e-3, "atol": 1e-4}}


def moving_squares(seed: int, frames: int = 12,
                   size: tuple[int, int] = (96, 112)) -> tuple[np.ndarray, np.ndarray]:
    """Two textured squares that move over texture: (T, H, W, 3) uint8 frames and (T, H, W) uint8 ids."""
    generator = np.random.default_rng(seed)
    video = np.repeat(_texture(generator, size)[None], frames, 0)
    ids = np.zeros((frames, *size), np.uint8)
    for name, side in ((1, 36), (2, 28)):
        patch = _texture(generator, (side, side))
        start, step = generator.integers(0, 20, 2), generator.integers(1, 4, 2)
        for t in range(frames):
            y, x = start + t * step + (name - 1) * 16
            video[t, y: y + side, x: x + side] = patch
            ids[t, y: y + side, x: x + side] = name
    return video, ids


def training_digest(case: str) -> list[float]:
    """Losses of three iterations, and how far they moved the first and the last layer."""
    settings = TrainSettings.from_dict({**SMALL, **TRAINING_CASES[case]})
    clips = make_clips(settings, [ArrayVideo(f"v{i}", moving_squares(i)[0]) for i in range(3)])
    parts = make_parts(settings, torch.device("cpu"))
    first, last = (parts["net"].get_parameter(name) for name in ("backbone.conv1.weight", "head.3.weight"))
    before = first.detach().clone(), last.detach().clone()
    numbers = []
    for iteration in range(3):
        batch = torch.stack([clips[i] for i in clip_numbers(settings, iteration)])
        losses = training_step(parts["net"], parts, batch, settings, iteration)[:3]
        numbers += [loss for loss in losses if not math.isnan(loss)]  # a baseline has the total alone
    return [*numbers, *((now - then).norm().item() for now, then in zip((first, last), before))]


def evaluation_digest(case: str) -> list[float]:
    """J and F (mean, decay) of the masks that random features carry; mean squares of the last soft masks."""
    settings = SegmentSettings(**{"precision": "fp32", **EVALUATION_CASES[case]})
    frames, truth = moving_squares(7)
    net = load_encoder("random", seed=1)
    masks = np.stack(list(segment(frames, truth[0], partial(encode, net), settings)))
    scores = score_sequence(truth, masks)
    soft = list(propagate(encode(net, frames, settings), truth[0], context=settings.context,
                          radius=settings.radius, topk=settings.topk, tau=settings.tau))[-1]
    return [*scores.stats[:, [0, 2, 3, 5]].ravel().tolist(), *soft.square().mean((1, 2)).tolist()]


def _texture(generator: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    coarse = generator.integers(0, 256, (size[0] // 4, size[1] // 4, 3)).astype(np.uint8)
    return np.kron(coarse, np.ones((4, 4, 1), np.uint8))


CASES = [("train", case) for case in TRAINING_CASES] + [("evaluate", case) for case in EVALUATION_CASES]


def digest(kind: str, case: str) -> list[float]:
    return training_digest(case) if kind == "train" else evaluation_digest(case)


def version_of(kind: str, case: str) -> str:
    settings = SMALL | TRAINING_CASES[case] if kind == "train" else {}
    return str(version(kind, {f"parameters.{name}": value for name, value in settings.items()}))


def all_digests() -> dict:
    """Version and numbers of every case."""
    made = {"train": {}, "evaluate": {}}
    for kind, case in CASES:
        numbers = [float(f"{value:.6g}") for value in digest(kind, case)]
        made[kind].setdefault(version_of(kind, case), {})[case] = numbers
    return made


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def recorded() -> dict:
    return json.loads(Path(__file__).with_name("digests.json").read_text())


@pytest.mark.parametrize(("kind", "case"), CASES)
def test_numbers_changed_raise_the_version_or_undo(kind, case, recorded):
    expected = recorded[kind][version_of(kind, case)][case]
    np.testing.assert_allclose(digest(kind, case), expected, **CLOSE[kind])


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(all_digests(), indent=1))
