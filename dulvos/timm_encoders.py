"""Networks of timm (PyTorch Image Models) as encoders."""

import difflib
import sys
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from dulvos.errors import InputError
from dulvos.files import expand
from dulvos.released import load_weights, read_weights, without_prefix

__all__ = ["TimmEncoder"]

_ADVICE = "choose another network, such as a ViT (vit_*, deit_*, eva02_*), a Swin, a ConvNeXt or a ResNet"


class TimmEncoder(nn.Module):
    """A network of timm as an encoder, in evaluation mode.

    A transformer gives its last block's patch tokens after the final norm, without CLS and register tokens.
    Frames may have any size, since timm resamples the position embeddings. A CNN gives its last stage.

    Arguments:
        name: "timm:ARCHITECTURE[@LAYER][=WEIGHTS]". LAYER, such as layer3 or blocks.9, replaces the last one.
            WEIGHTS is "random" or a file (.safetensors or torch); without it timm's pretrained weights are
            used, and downloaded on first use.
        seed: of the random weights.

    Attributes:
        stride: pixels a cell. channels: K.
        multiple: frames are resized to sides that are multiples of this (a transformer's patches).
        mean, std: the normalisation of RGB in [0, 1] that the network was trained with.

    Raises:
        InputError: unknown architecture, layer or weights; weights that cannot be downloaded or do not fit.
    """

    def __init__(self, name: str, seed: int = 0):
        super().__init__()
        architecture, _, weights = name.removeprefix("timm:").partition("=")
        architecture, _, layer = architecture.partition("@")
        self.name = name
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = _create(architecture, pretrained=not weights)
        if weights not in ("", "random"):
            _load(self.network, expand(weights))
        stages, config = self.network.feature_info, self.network.pretrained_cfg
        names = [stage["module"] for stage in stages]
        if layer and layer not in names:
            raise InputError(f"{name!r}: the network has no layer {layer!r}; it has {', '.join(names)}")
        self.index = names.index(layer) if layer else len(names) - 1
        self.stride, self.channels = (stages[self.index][key] for key in ("reduction", "num_chs"))
        patches = hasattr(self.network, "patch_embed")
        self.multiple = max(stage["reduction"] for stage in stages) if patches else 1
        self.mean, self.std = config["mean"], config["std"]
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Encode images, (n, 3, H, W) float RGB, normalised by `mean` and `std`: (n, K, h, w) float.

        Raises:
            InputError: the network takes images of one size only.
        """
        try:
            return self.network.forward_intermediates(images, [self.index], norm=True, stop_early=True,
                                                      output_fmt="NCHW", intermediates_only=True)[0]
        except torch.OutOfMemoryError:
            raise
        except (AssertionError, RuntimeError) as error:  # timm refuses the size, or its tensors do not match
            height, width = images.shape[2:]
            raise InputError(f"{self.name!r} does not take frames of {width}x{height} ({_line(error)}); "
                             f"{_ADVICE}") from error


def _create(architecture: str, pretrained: bool) -> nn.Module:
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), 3)
        raise InputError(f"'timm:{architecture}': timm has no such network; similar names: "
                         f"{', '.join(near) or 'none, see timm.list_models()'}")
    try:
        try:
            network = timm.create_model(architecture, pretrained, num_classes=0, dynamic_img_size=True)
        except TypeError:  # a network without position embeddings
            network = timm.create_model(architecture, pretrained, num_classes=0)
    except OSError as error:
        raise InputError(f"'timm:{architecture}': its weights cannot be downloaded ({_line(error)}); fetch "
                         f"them from huggingface.co elsewhere, and give 'timm:{architecture}=FILE'") from None
    except RuntimeError as error:
        known = timm.list_pretrained(f"{architecture.partition('.')[0]}.*")
        raise InputError(f"'timm:{architecture}': timm has no such weights ({_line(error)}); it has "
                         f"{', '.join(known) or 'none'}; add =FILE for your own, or =random") from None
    if not hasattr(network, "forward_intermediates"):
        raise InputError(f"'timm:{architecture}' gives no feature maps; {_ADVICE}")
    return network


def _load(network: nn.Module, path: Path) -> None:
    """Load weights from a file; names may have a prefix, and timm converts the releases that it knows."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected weights (.safetensors, or a torch file)")
    state = without_prefix(read_weights(path)[0], next(iter(network.state_dict())))
    convert: Any = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if convert is not None:
        try:
            state = convert(state, network)
        except Exception as error:  # it fails in many ways on another architecture's weights
            raise InputError(f"{path}: holds weights of another network ({_line(error)})") from None
    load_weights(network, state, path)


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
