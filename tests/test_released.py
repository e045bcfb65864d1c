"""Released weights: files with the same names and shapes give back the encoder that they were made from."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dulvos import released
from dulvos.checkpoints import load_encoder
from dulvos.encoder import Encoder
from dulvos.errors import InputError
from dulvos.study import paper

HEADS = {"named": ("conv1", "bn1", "conv2"), "numbered": ("0", "1", "3")}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    """With different statistics in each layer, as after a training."""
    encoder, generator = load_encoder("random", seed=3), torch.Generator().manual_seed(3)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
    return encoder


def snapshot(encoder: Encoder, head: tuple[str, str, str] = HEADS["named"], module: str = "") -> dict:
    """As the authors' training saves: weights, optimiser, epoch, a score that is a numpy number."""
    names = dict(zip("013", head))  # our head's layers with weights -> theirs
    model = {}
    for name, value in encoder.state_dict().items():
        part, _, rest = name.partition(".")
        if part == "head":
            layer, _, field = rest.partition(".")
            rest = f"{names[layer]}.{field}"
        model[f"{module}fast_net.{'backbone' if part == 'backbone' else 'emb_q'}.{rest}"] = value
    optimiser = {"state": {}, "param_groups": [{"lr": 1e-4}]}
    return {"model": model, "opt": optimiser, "epoch": 60, "score": np.float64(0.69)}


def walk(encoder: Encoder, *, layer4: bool = True, wrapped: bool = False, model_type: str = "") -> dict:
    """As CRW's training saves: `encoder.model.*`, another head, the options."""
    model = {}
    for name, value in encoder.backbone.state_dict().items():
        if wrapped and "conv" in name:
            name = name.replace(".weight", ".1.weight") if "." in name else name
        if layer4 or not name.startswith("layer4"):
            model[f"encoder.model.{name}"] = value
    model |= {"selfsim_fc.0.weight": torch.zeros(128, 512), "selfsim_fc.0.bias": torch.zeros(128)}
    options = {"args": argparse.Namespace(model_type=model_type)} if model_type else {}
    return {"model": model, "epoch": 24} | options


def save(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize(("head", "module", "norm"), [
    ("named", "", "batch"), ("numbered", "module.", "batch"), ("named", "", "layer")])
def test_the_authors_snapshots(encoder, tmp_path, head, module, norm):
    encoder = encoder if norm == "batch" else Encoder(dim=64, norm="layer")
    loaded = load_encoder(save(snapshot(encoder, HEADS[head], module), tmp_path / "ytvos_e060_res4.pth"))
    assert not loaded.training and loaded.config == encoder.config
    ours = encoder.state_dict()
    assert loaded.state_dict().keys() == ours.keys()
    assert all(torch.equal(value, ours[name]) for name, value in loaded.state_dict().items())
    assert loaded.backbone.layer4[0].conv1.stride == (1, 1)


@pytest.mark.parametrize(("layer4", "has", "lacks"), [
    (True, ("res3", "res4"), "key"), (False, ("res3",), "res4")])
def test_the_random_walk_has_no_head_and_perhaps_no_layer4(encoder, images, tmp_path, layer4, has, lacks):
    loaded = load_encoder(save(walk(encoder, layer4=layer4), tmp_path / "pretrained.pth"))
    with torch.no_grad():
        ours, theirs = encoder(images), loaded(images, has)
    assert all(torch.equal(getattr(ours, layer), getattr(theirs, layer)) for layer in has)
    with pytest.raises(InputError, match=r"pretrained\.pth.*layer='res3'"):
        loaded(images, (lacks,))


@pytest.mark.parametrize(("options", "mode"), [
    ({"wrapped": True}, "reflect"), ({"model_type": "scratch"}, "reflect"),
    ({"model_type": "scratch_zeropad"}, "zeros"), ({}, "zeros")], ids=str)
def test_the_random_walk_pads_as_its_file_says(encoder, images, tmp_path, options, mode):
    loaded = load_encoder(save(walk(encoder, **options), tmp_path / "pretrained.pth"))
    convolutions = [module for module in loaded.modules() if isinstance(module, nn.Conv2d)]
    assert {module.padding_mode for module in convolutions if sum(module.padding)} == {mode}
    with torch.no_grad():
        theirs, ours = loaded(images, ("res3",)).res3, encoder(images, ("res3",)).res3
    assert theirs.isfinite().all() and torch.equal(theirs, ours) == (mode == "zeros")


def test_torchvisions_file(encoder, images, tmp_path):
    """An old one has no counts of batches."""
    state = encoder.backbone.state_dict() | {"fc.weight": torch.zeros(9, 512), "fc.bias": torch.zeros(9)}
    state = {name: value for name, value in state.items() if "num_batches_tracked" not in name}
    loaded = load_encoder(save(state, tmp_path / "resnet18-f37072fd.pth"))
    with torch.no_grad():
        assert torch.equal(loaded(images, ("res4",)).res4, encoder(images, ("res4",)).res4)


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda model: model.pop("fast_net.backbone.layer4.1.bn2.bias"), r"layer4\.1\.bn2\.bias"),
    (lambda model: model.pop("fast_net.emb_q.conv2.bias"), r"head\.3\.bias"),
    (lambda model: model.pop("fast_net.emb_q.bn1.weight"), r"head\.1\.weight"),
    (lambda model: model.update({"fast_net.backbone.conv1.weight": torch.zeros(64, 1, 7, 7)}),
     r"conv1\.weight.*\[64, 1, 7, 7\].*\[64, 3, 7, 7\]"),
    (lambda model: [model.pop(name) for name in list(model)], "ResNet-18"),
], ids=["backbone", "bias", "norm", "shape", "empty"])
def test_what_is_missing_is_named(encoder, tmp_path, spoil, message):
    content = snapshot(encoder)
    spoil(content["model"])
    with pytest.raises(InputError, match=rf"own\.pth.*{message}"):
        load_encoder(save(content, tmp_path / "own.pth"))


def test_releases_are_found_by_name(encoder, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"DULVOS_WEIGHTS.*ytvos_e060_res4\.pth.*visinf"):
        load_encoder("araslanov-youtube-vos")
    monkeypatch.setenv(released.FOLDER, str(tmp_path))
    with pytest.raises(InputError, match=r"pretrained\.pth.*videowalk"):
        load_encoder("crw")
    save(snapshot(encoder), tmp_path / "ytvos_e060_res4.pth")
    assert torch.equal(load_encoder("araslanov-youtube-vos").head[3].weight, encoder.head[3].weight)


def test_releases_belong_to_rows_of_the_papers_table():
    rows = list(zip(paper.TABLE1["method"], paper.TABLE1["train data"]))
    assert all(rows.count((release.method, release.data)) == 1 for release in released.RELEASES.values())
