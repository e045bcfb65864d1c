"""Untrained networks of timm as encoders: features at any stride, normalisation, weights, errors."""

from functools import partial

import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F

from dulvos.checkpoints import encoder_file, load_encoder
from dulvos.errors import InputError
from dulvos.inference import SegmentSettings, encode, segment
from tests.miniature import draw_video

SIZE = (61, 83)
FRAMES, MASKS = draw_video([(28, 20, 0, 8, 0)], size=SIZE, frames=3)  # a disc moves by a cell a frame
EXACT = SegmentSettings(precision="fp32")


@pytest.mark.parametrize(("name", "stride", "cells"), [
    ("resnet18@layer1", 4, (16, 21)), ("resnet18@layer2", 8, (8, 11)), ("convnext_atto@stages.1", 8, (7, 10)),
    ("vit_small_patch14_dinov2@blocks.0", 14, (4, 6)), ("vit_tiny_patch16_224", 16, (4, 5)),
    ("swin_tiny_patch4_window7_224@layers.1", 8, (8, 12))])
def test_every_stride_gives_unit_features_that_carry_masks(name, stride, cells):
    encoder = load_encoder(f"timm:{name}=random")
    found = list(encode(encoder, FRAMES, EXACT))
    assert encoder.stride == stride and not encoder.training
    assert {tuple(features.shape) for features in found} == {(encoder.channels, *cells)}
    assert torch.allclose(found[0].norm(dim=0), torch.ones(cells), atol=1e-5)
    masks = list(segment(FRAMES, MASKS[0], partial(encode, encoder)))
    assert len(masks) == 3 and all(ids.shape == SIZE and set(np.unique(ids)) <= {0, 1} for ids in masks)


@pytest.mark.parametrize("layer", [11, 4])
def test_a_transformer_gives_its_patch_tokens_after_the_norm(layer):
    """At its own size they are what timm computes, without the class token."""
    suffix = "" if layer == 11 else f"@blocks.{layer}"
    encoder = load_encoder(f"timm:vit_tiny_patch16_224{suffix}=random", seed=5)
    frame = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    plain.load_state_dict(encoder.network.state_dict())
    with torch.inference_mode():
        x = (torch.from_numpy(frame).permute(2, 0, 1)[None] / 255 - 0.5) / 0.5  # its own mean and deviation
        x = plain.patch_embed(x)
        x = torch.cat([plain.cls_token, x], 1) + plain.pos_embed
        for block in plain.blocks[: layer + 1]:
            x = block(x)
        expected = F.normalize(plain.norm(x)[:, 1:].transpose(1, 2).unflatten(2, (14, 14)), dim=1)
    torch.testing.assert_close(next(encode(encoder, [frame], EXACT))[None], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["safetensors", "model", "teacher"])
def test_weights_of_ones_own(tmp_path, kind):
    """Their names may have a prefix, and the network may have had a head."""
    name = "vit_tiny_patch16_224"
    network = timm.create_model(name, num_classes=7)
    state, path = network.state_dict(), tmp_path / "own.pth"
    if kind == "safetensors":
        path = tmp_path / "own.safetensors"
        safetensors.torch.save_file(state, path)
    else:
        torch.save({kind: {f"module.backbone.{key}": value for key, value in state.items()}}, path)
    encoder = load_encoder(f"timm:{name}@blocks.1={path}")
    assert torch.equal(encoder.network.blocks[1].mlp.fc1.weight, network.blocks[1].mlp.fc1.weight)
    assert encoder_file(f"timm:{name}@blocks.1={path}") == path
    with pytest.raises(InputError, match=path.name):
        load_encoder(f"timm:resnet10t={path}")


@pytest.mark.parametrize(("name", "words"), [
    ("timm:vit_tiny_patch16_2240", "vit_tiny_patch16_224"), ("timm:", "timm"),
    ("timm:resnet10t@layer9=random", "layer4"), ("timm:resnet10t.none", "resnet10t.c3_in1k"),
    ("timm:resnet10t=absent.pth", "absent.pth")])
def test_a_wrong_name_is_answered_with_the_right_ones(name, words):
    with pytest.raises(InputError, match=words):
        load_encoder(name)


def test_weights_that_cannot_be_downloaded_are_one_line_that_says_how(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # else it tries for a minute
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="timm:vit_tiny_patch16_224=FILE"):
        load_encoder("timm:vit_tiny_patch16_224")


@pytest.mark.parametrize(("name", "size"), [
    ("convit_tiny", "80x64"), ("levit_128", "83x61"), ("mixer_s16_224", "83x61")])
def test_a_network_of_one_size_says_so_and_which_take_any(name, size):
    with pytest.raises(InputError, match=f"{name}.*{size}.*ResNet"):
        next(encode(load_encoder(f"timm:{name}=random"), FRAMES))


def test_any_function_is_an_encoder():
    """Without attributes it gets ImageNet's normalisation on the CPU; its features are normalised."""
    seen = []

    def brightness(images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        cells = F.avg_pool2d(images.mean(1, keepdim=True), 4)
        return torch.cat([cells, torch.ones_like(cells)], 1)

    masks = list(segment(FRAMES, MASKS[0], partial(encode, brightness)))
    std, mean = torch.tensor([0.229, 0.224, 0.225]), torch.tensor([0.485, 0.456, 0.406])
    colours = 255 * (seen[0][0].permute(1, 2, 0) * std + mean)
    assert torch.allclose(colours, torch.from_numpy(FRAMES[0]).float(), atol=1e-3)
    assert (masks[2] & MASKS[2]).sum() / (masks[2] | MASKS[2]).sum() > 0.7


def test_a_video_is_encoded_in_smaller_batches_if_memory_is_short():
    sizes = []

    def short(images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError
        return images[:, :, ::8, ::8]

    many = [frame + t for t in range(3) for frame in FRAMES]
    found = list(encode(short, many, batch=5))
    expected = list(encode(lambda images: images[:, :, ::8, ::8], many, batch=1))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert max(sizes[2:]) == 2
