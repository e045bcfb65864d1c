"""The encoder: its shape and what it returns."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from dulvos.baselines import rgb_to_lab, scale_lab
from dulvos.encoder import COLOURS, LAYERS, PADDING, Encoder, prepare_frames, restore_rgb
from dulvos.errors import InputError


@pytest.mark.parametrize(("norm", "stride", "size", "cells"), [
    ("batch", 8, (256, 256), (32, 32)), ("layer", 8, (480, 854), (60, 107)), ("batch", 8, (64, 8), (8, 1)),
    ("batch", 4, (64, 90), (16, 23))])
def test_shapes(norm, stride, size, cells):
    with torch.device("meta"):
        encoder = Encoder(norm=norm, stride=stride)
        features = encoder(torch.empty(2, 3, *size))
    assert encoder.stride == encoder.config["stride"] == stride
    assert sum(p.numel() for p in encoder.parameters()) == 11_505_856
    shapes = [tuple(getattr(features, layer).shape) for layer in LAYERS]
    assert shapes == [(2, channels, *cells) for channels in (256, 512, 128)]


@torch.no_grad()
@pytest.mark.parametrize("stride", [8, 4])
def test_is_a_resnet_with_strides_taken_out(images, stride):
    """res3 and res4 are torchvision's layers with stride 1; the head reads res4 before it is normalised."""
    encoder, net = Encoder(stride=stride).eval(), torchvision.models.resnet18()
    for block in (net.layer3[0], net.layer4[0], net.layer2[0])[:2 if stride == 8 else 3]:
        block.conv1.stride = block.downsample[0].stride = (1, 1)
    net.fc = nn.Identity()
    net.load_state_dict(encoder.backbone.state_dict())
    net.eval()
    seen = {}
    for name in ("layer3", "layer4"):
        getattr(net, name).register_forward_hook(lambda *io, name=name: seen.update({name: io[2].clone()}))
    net(images)
    conv1, norm, _, conv2 = encoder.head
    key, pooled = (conv2(norm(conv1(x)).clamp(min=0))
                   for x in (seen["layer4"], seen["layer4"].mean((2, 3), keepdim=True)))
    features, plain = encoder(images), encoder(images, normalise=False)
    for ours, raw, as_it_is in ((features.res3, seen["layer3"], plain.res3), (features.key, key, plain.key),
                                (features.res4, seen["layer4"], plain.res4),
                                (encoder(images, ("key",), pool=True).key, pooled, pooled)):
        torch.testing.assert_close(ours, F.normalize(raw, dim=1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(as_it_is, raw, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("colour", COLOURS)
def test_what_the_network_sees(encoder, colour):
    """Lab and grey are made from the same normalised RGB; factors then scale or drop channels."""
    frames = torch.randint(0, 256, (1, 3, 16, 16), generator=torch.Generator().manual_seed(0)).byte()
    rgb, images = frames / 255, prepare_frames(frames)
    grey = torch.einsum("nchw,c->nhw", rgb, torch.tensor([0.299, 0.587, 0.114]))[:, None].expand_as(rgb)
    expected = {"rgb": images, "lab": scale_lab(rgb_to_lab(rgb)), "grey": prepare_frames(grey * 255)}[colour]
    torch.testing.assert_close(restore_rgb(images), rgb)
    net, factors = Encoder(colour=colour).eval(), torch.tensor([1.5, 0, 1.5])
    net.load_state_dict(encoder.state_dict())
    for given, seen in ((None, expected), (factors, expected * factors[:, None, None])):
        ours, theirs = net(images, ("res3",), factors=given).res3, encoder(seen, ("res3",)).res3
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("padding", PADDING)
def test_padding_by_reflection_does_not_show_where_the_frame_ends(padding):
    flat = torch.full((1, 3, 32, 48), 0.5)
    features = Encoder(padding=padding).eval()(flat)
    for layer in LAYERS:
        feature = getattr(features, layer)
        alike = torch.allclose(feature, feature[..., :1, :1].expand_as(feature), atol=1e-5)
        assert alike == (padding == "reflect")
    if padding == "reflect":
        with pytest.raises(InputError, match="8, 32"):  # one row of cells has nothing to reflect
            Encoder(padding=padding)(flat[..., :8, :32])


@torch.no_grad()
def test_norms_are_one_in_float32(encoder, images):
    """A norm taken in bf16 would be off by half a per cent, more than the top-k tells apart."""
    with torch.autocast("cpu", torch.bfloat16):
        features = encoder(images)
    for layer in LAYERS:
        feature = getattr(features, layer)
        assert feature.dtype == torch.float32
        torch.testing.assert_close(feature.norm(dim=1), torch.ones(2, 6, 8), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("layers", "runs"), [(("res3",), []), (("res4",), ["layer4"]),
                                              (("key", "res3"), ["layer4", "head"])])
def test_stops_at_the_last_layer_asked_for(encoder, images, layers, runs):
    ran, everything = [], encoder(images)
    hooks = [module.register_forward_hook(lambda *_, name=name: ran.append(name))
             for name, module in (("layer4", encoder.backbone.layer4), ("head", encoder.head))]
    features = encoder(images, layers)
    for hook in hooks:
        hook.remove()
    assert ran == runs
    for layer in LAYERS:
        ours, theirs = getattr(features, layer), getattr(everything, layer)
        assert torch.equal(ours, theirs) if layer in layers else ours is None


@pytest.mark.parametrize(("options", "layers", "allowed"), [
    *[({}, layers, "res3.*res4.*key") for layers in (("res5",), ("res4", "layer4"), ())],
    ({"norm": "instance"}, LAYERS, "batch.*layer"), ({"stride": 16}, LAYERS, "4, 8"),
    ({"colour": "hsv"}, LAYERS, "rgb.*lab.*grey"), ({"padding": "same"}, LAYERS, "zeros.*reflect")])
def test_unknown_layers_and_options(images, options, layers, allowed):
    with pytest.raises(InputError, match=allowed):
        Encoder(**options)(images, layers)
