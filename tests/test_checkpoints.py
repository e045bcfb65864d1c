"""Encoders on disk: a round trip changes nothing, and errors name the file (the corpus has more of them)."""

import copy
import json
from pathlib import Path

import pytest
import torch
import torchvision

from dulvos.checkpoints import is_whole, load_encoder, save_encoder
from dulvos.encoder import Encoder
from dulvos.errors import InputError


@pytest.mark.parametrize("name", ["random", "timm:resnet10t=random"])
def test_random_depends_on_the_seed_alone(name: str) -> None:
    before = torch.get_rng_state()
    one, again, other = (load_encoder(name, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, again[key]) for key, value in one.items())
    assert not any(torch.equal(value, other[key]) for key, value in one.items() if value.ndim == 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_round_trip(encoder: Encoder, tmp_path: Path, dtype: torch.dtype) -> None:
    saved = copy.deepcopy(encoder).to(dtype)
    path = save_encoder(saved, tmp_path / "new" / "own.safetensors", licence="CC0-1.0")
    loaded = load_encoder(path)
    assert not loaded.training and is_whole(path)
    for name, value in encoder.state_dict().items():
        expected = value.to(dtype).float() if value.is_floating_point() else value
        assert loaded.state_dict()[name].dtype == value.dtype
        assert torch.equal(loaded.state_dict()[name], expected), name
    assert path.stat().st_size < 1.02 * 11_520_000 * dtype.itemsize
    assert json.loads(path.with_suffix(".json").read_text())["licence"] == "CC0-1.0"
    assert sorted(file.name for file in path.parent.iterdir()) == ["own.json", "own.safetensors"]


def test_a_sidecar_from_before_stride_colour_and_padding_came(encoder: Encoder, tmp_path: Path) -> None:
    saved = save_encoder(encoder, tmp_path / "own.safetensors")
    sidecar = saved.with_suffix(".json")
    config = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps({name: config[name] for name in ("architecture", "dim", "norm")}))
    assert load_encoder(saved).config == config
    for wrong, named in (({"stride": 16}, "json"), ({"stride": [8]}, "json"), ({"colour": "hsv"}, "json"),
                         ({"norm": "layer"}, "safetensors.*head")):  # that takes a BatchNorm's weights
        sidecar.write_text(json.dumps(config | wrong))
        with pytest.raises(InputError, match=rf"own\.{named}"):
            load_encoder(saved)


def test_weights_that_cannot_be_fetched_or_are_damaged_are_one_line(monkeypatch, tmp_path: Path) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")
    with monkeypatch.context() as changed:
        changed.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", offline)
        with pytest.raises(InputError, match="imagenet.*no network.*davis2016"):
            load_encoder("imagenet")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    url = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url
    file = tmp_path / "hub/checkpoints" / Path(url).name
    file.parent.mkdir(parents=True)
    for content in (b"", b"no weights"):  # as after a download that was cut
        file.write_bytes(content)
        with pytest.raises(InputError, match=str(tmp_path)):
            load_encoder("imagenet")
