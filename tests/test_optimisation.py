"""Twenty steps of `train` beside a slow and literal re-statement of method.md: network, losses, statistics, optimiser.

Both run in float64 from equal weights on equal batches and draws, so that neither rounding nor chance can hide a difference:
were one pseudo label another, or one of BatchNorm's updates left out or taken twice, the weights would part.
"""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.resnet import BasicBlock, ResNet

from dulvos import training
from dulvos.encoder import Encoder
from dulvos.trainer import train
from dulvos.training import TrainSettings
from dulvos.videos import find_videos
from tests.oracles import write_textures

STEPS = 20
BLOCKS = 1  # a stage; ResNet-18 has 2, which takes twice as long
SETTINGS = {"iterations": STEPS, "batch": 2, "gap": 1, "crop": 32, "scale_min": 32, "scale_max": 40, "grid": 2,
            "cross_grid": 2, "lr_every": 6, "precision": "fp32", "seed": 4}


def network(images: Tensor, w: dict[str, Tensor]) -> Tensor:
    """The ResNet at stride 8 and its head: (n, 3, S, S) -> (n, K, S/8, S/8) of norm 1; updates the running statistics."""
    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        kernel = w[f"{name}.weight"]
        return F.conv2d(x, kernel, w.get(f"{name}.bias"), stride, padding=kernel.shape[2] // 2)

    def norm(x: Tensor, name: str) -> Tensor:
        count = x.numel() // x.shape[1]
        mean = x.sum((0, 2, 3)) / count
        centred = x - mean[:, None, None]
        variance = (centred**2).sum((0, 2, 3)) / count
        with torch.no_grad():
            for kind, value in (("mean", mean), ("var", variance * count / (count - 1))):
                w[f"{name}.running_{kind}"] = 0.9 * w[f"{name}.running_{kind}"] + 0.1 * value
            w[f"{name}.num_batches_tracked"] = w[f"{name}.num_batches_tracked"] + 1
        scaled = centred / (variance[:, None, None] + 1e-5).sqrt()
        return scaled * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]

    x = F.max_pool2d(F.relu(norm(conv(images, "backbone.conv1", 2), "backbone.bn1")), 3, 2, 1)
    for stage in (1, 2, 3, 4):
        for block in range(BLOCKS):
            name, stride = f"backbone.layer{stage}.{block}", 2 if (stage, block) == (2, 0) else 1
            y = F.relu(norm(conv(x, f"{name}.conv1", stride), f"{name}.bn1"))
            y = norm(conv(y, f"{name}.conv2"), f"{name}.bn2")
            if f"{name}.downsample.0.weight" in w:
                x = norm(conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
            x = F.relu(x + y)
    x = conv(F.relu(norm(conv(x, "head.0"), "head.1")), "head.3")
    return x / x.pow(2).sum(1, keepdim=True).sqrt()


def second_view(clip: Tensor, flip: bool, top: int, left: int, side: int) -> tuple[Tensor, Tensor]:
    """View 2 of one clip's frames (T, 3, S, S), and 𝒯 (1, 2, 3)."""
    size = clip.shape[-1]
    clip = clip.flip(-1) if flip else clip
    crop = F.interpolate(clip[..., top: top + side, left: left + side], (size, size), mode="bilinear", align_corners=False)
    s, f = side / size, -1 if flip else 1
    dx, dy = ((corner + side / 2 - size / 2) / (size / 2) for corner in (left, top))
    return crop, torch.tensor([[[f * s, 0, f * dx], [0, s, dy]]], dtype=clip.dtype)


def loss(frames: Tensor, similarity, anchors_at: Tensor, cross_at: Tensor, w: dict[str, Tensor], tau: float,
         lam: float) -> tuple[Tensor, list[int]]:
    """L of a batch, and the pseudo labels of its non-reference frames' cells; affinities are warped, as the release does."""
    count, length = frames.shape[:2]
    draws = zip(similarity.flip.tolist(), similarity.top.tolist(), similarity.left.tolist(), similarity.side.tolist())
    seconds, thetas = zip(*(second_view(clip, *draw) for clip, draw in zip(frames, draws)))
    first = network(torch.cat([*frames, *(view[:1] for view in seconds)]), w)  # B·T and B references, with gradient
    with torch.no_grad():
        rest = network(torch.cat([view[1:] for view in seconds]), w)
    main, reference2 = first[: count * length].unflatten(0, (count, length)), first[count * length:]
    rest = rest.unflatten(0, (count, length - 1))

    def cell(features: Tensor, place: int) -> Tensor:
        return features[:, place // features.shape[2], place % features.shape[2]]

    def warp(maps: Tensor, theta: Tensor) -> Tensor:
        grid = F.affine_grid(theta, [1, 1, *maps.shape[1:]], align_corners=False)
        return F.grid_sample(maps[None], grid, mode="nearest", align_corners=False)[0]

    anchors = [[cell(main[b, 0], place) for place in anchors_at[b].flatten().tolist()] for b in range(count)]
    every = torch.stack([anchor for own in anchors for anchor in own])
    terms, labels = [], []
    for b in range(count):
        for t in range(1, length):
            logits = warp(torch.einsum("nk,khw->nhw", every, main[b, t]), thetas[b]) / tau
            own = torch.einsum("nk,khw->nhw", torch.stack(anchors[b]), rest[b, t - 1])
            for y in range(logits.shape[1]):
                for x in range(logits.shape[2]):
                    label = b * len(anchors[b]) + int(own[:, y, x].argmax())
                    labels.append(label)
                    terms.append(logits[:, y, x].exp().sum().log() - logits[label, y, x])
    space_time = sum(terms) / len(terms)

    ours, theirs = [], []
    for b in range(count):
        warped = warp(main[b, 0], thetas[b])
        for place in cross_at[b].flatten().tolist():
            ours.append(cell(warped, place))
            theirs.append(cell(reference2[b], place))
    pairs = [[torch.dot(r, other) / tau for other in theirs] for r in ours]
    cross_view = sum(torch.stack(row).exp().sum().log() - row[i] for i, row in enumerate(pairs)) / len(pairs)
    return space_time + lam * cross_view, labels


def step(w: dict[str, Tensor], gradients: dict[str, Tensor], memory: dict, number: int, s: TrainSettings) -> None:
    """Adam (β = .5, .999) or SGD (momentum .9) at StepLR's rate: biases at twice the rate, weights with L2 decay."""
    rate = s.lr * s.lr_decay ** (number // s.lr_every)
    for name, gradient in gradients.items():
        bias = name.endswith(".bias")
        if not bias:
            gradient = gradient + s.weight_decay * w[name].detach()
        own = memory[name]
        if s.optimiser == "adam":
            own["m"] = 0.5 * own.get("m", 0) + 0.5 * gradient
            own["v"] = 0.999 * own.get("v", 0) + 0.001 * gradient**2
            change = own["m"] / (1 - 0.5 ** (number + 1)) / ((own["v"] / (1 - 0.999 ** (number + 1))).sqrt() + 1e-8)
        else:
            change = own["m"] = 0.9 * own["m"] + gradient if own else gradient
        w[name] = (w[name].detach() - (2 if bias else 1) * rate * change).requires_grad_()


@pytest.mark.parametrize(("optimiser", "lr", "frames"), [("adam", 1e-4, 3), ("sgd", 1e-3, 2)])
def test_twenty_steps_follow_the_description(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimiser: str, lr: float,
                                             frames: int) -> None:
    settings = TrainSettings(**SETTINGS, optimiser=optimiser, lr=lr, frames=frames)
    write_textures(tmp_path / "videos", "ab", frames=4, size=(40, 48))
    seen: dict[str, list] = defaultdict(list)

    def record(module, name: str) -> None:
        function = getattr(module, name)

        def recorded(*args, **kwargs):
            value = function(*args, **kwargs)
            seen[name].append((args, value))
            return value
        monkeypatch.setattr(module, name, recorded)

    monkeypatch.setattr("torchvision.models.resnet18", lambda weights: ResNet(BasicBlock, [BLOCKS] * 4))
    record(training.views, "sample_similarity")
    record(training.losses, "sample_grid")
    record(training.losses, "dense_loss")
    record(training, "training_loss")
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # the package asks for float32 by this call
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(settings.seed)
        initial = Encoder().state_dict()
        train(settings, find_videos(tmp_path / "videos"), tmp_path / "run", device="cpu")
    finally:
        torch.set_default_dtype(torch.float32)
    theirs = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)

    w = {name: value.clone().requires_grad_(value.is_floating_point() and "running" not in name)
         for name, value in initial.items()}
    memory: dict = defaultdict(dict)
    assert len(seen["training_loss"]) == STEPS and theirs["net"]["head.3.weight"].dtype == torch.float64
    for number in range(STEPS):
        batch = seen["training_loss"][number][0][1]
        similarity = seen["sample_similarity"][number][1]
        anchors_at, cross_at = (seen["sample_grid"][2 * number + i][1] for i in (0, 1))
        total, labels = loss(batch, similarity, anchors_at, cross_at, w, settings.tau, settings.lam)
        output = seen["dense_loss"][number][1]
        assert output.pseudo_labels[:, 1:].flatten().tolist() == labels, f"pseudo labels of step {number}"
        assert math.isclose(total.item(), output.total.item(), rel_tol=1e-4), f"loss of step {number}"
        named = [name for name, value in w.items() if value.requires_grad]
        gradients = dict(zip(named, torch.autograd.grad(total, [w[name] for name in named])))
        step(w, gradients, memory, number, settings)
    assert len(set(labels)) > 1
    for name, value in theirs["net"].items():
        assert torch.allclose(w[name].detach().double(), value.double(), rtol=1e-4, atol=1e-4 * lr), name
        assert name.endswith("tracked") or not torch.equal(value, initial[name]), f"{name} was not trained"
    assert w["head.1.num_batches_tracked"] == 2 * STEPS
