"""Weights that others released: the authors' four snapshots, and the contrastive random walk (CRW)."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from dulvos.encoder import Encoder
from dulvos.errors import InputError
from dulvos.files import AnyPath

__all__ = ["FOLDER", "RELEASES", "Release", "load_weights", "read_released", "read_weights"]

FOLDER = "DULVOS_WEIGHTS"


@dataclass(frozen=True)
class Release:
    """A file of released weights."""

    file: str
    data: str  # with the method: the row of the paper's tables that it belongs to
    source: str = "github.com/visinf/dense-ulearn-vos"  # the page that offers it
    method: str = "the paper's method"
    layer: str = "res4"  # that its label propagation uses


# Names that `load_encoder` takes if the file is in the folder that DULVOS_WEIGHTS names.
RELEASES = {
    "araslanov-oxuva": Release("oxuva_e430_res4.pth", "OxUvA"),
    "araslanov-youtube-vos": Release("ytvos_e060_res4.pth", "YouTube-VOS"),
    "araslanov-trackingnet": Release("trackingnet_e088_res4.pth", "TrackingNet"),
    "araslanov-kinetics": Release("kinetics_e026_res4.pth", "Kinetics-400"),
    "crw": Release("pretrained.pth", "Kinetics-400", "github.com/ajabri/videowalk", "CRW", "res3"),
}

# How the names of the backbone and of the head begin in a file. CRW's own head compares patches, not cells.
_PREFIXES = {"fast_net.backbone.": "fast_net.emb_q.", "encoder.model.": None, "": None}

# Training scripts save these beside the weights: their options, and a score that is a numpy number.
_HARMLESS = [argparse.Namespace, np.dtype, type(np.dtype(np.float64)), type(np.dtype(np.float32)),
             (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
             (np._core.multiarray.scalar, "numpy._core.multiarray.scalar")]


class _Absent(nn.Module):
    """A part that a file lacks: using it is an error, since random weights would pass for the file's own."""

    def __init__(self, message: str):
        super().__init__()
        self.message = message

    def forward(self, images: Tensor) -> Tensor:
        raise InputError(self.message)


def read_weights(path: AnyPath) -> dict[str, Tensor]:
    """Read the weights in a .safetensors or a torch file.

    In a torch file they stand at the top level or under `model`, `state_dict` or `teacher` (DINO's).
    `module.`, which parallel trainings add to names, is removed.

    Raises:
        InputError: the file is damaged, or would run code.
    """
    if Path(path).suffix != ".safetensors":
        return _read_torch(path)[0]
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path}: truncated or not a safetensors file ({error}); replace it") from None


def _read_torch(path: AnyPath) -> tuple[dict[str, Tensor], dict]:
    """The weights in a torch file, and its whole content; only tensors and plain values are unpickled."""
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler fails in many ways on random bytes
        raise InputError(f"{path}: damaged, or holds more than weights ({type(error).__name__}); copy it "
                         "again from where it was released") from None
    content = content if isinstance(content, dict) else {}
    state = next((content[key] for key in ("model", "state_dict", "teacher") if key in content), content)
    state = state if isinstance(state, dict) else {}
    return {str(k).replace("module.", ""): v for k, v in state.items() if isinstance(v, Tensor)}, content


def read_released(path: AnyPath) -> Encoder:
    """Build an encoder, in evaluation mode, from a released torch file.

    Reads the authors' snapshots (`fast_net.backbone.*`, `fast_net.emb_q.*`), CRW's (`encoder.model.*`) and
    torchvision's ResNet-18 (`conv1.weight`, ...). CRW has no head for dense features and may end with layer3;
    using the missing part raises an InputError. CRW pads by reflection if its file says so.

    Raises:
        InputError: the file is damaged or would run code, or holds another network.
    """
    path = Path(path)
    state, content = _read_torch(path)
    for prefix, head in _PREFIXES.items():  # noqa: B007
        found = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        # older PyTorch padded by reflection in a layer of its own, which made conv1.weight conv1.1.weight
        backbone = {re.sub(r"(conv\d)\.1\.weight$", r"\1.weight", k): value for k, value in found.items()}
        if "conv1.weight" in backbone:
            break
    else:
        expected = " or ".join(f"{prefix}conv1.weight" for prefix in _PREFIXES)
        raise InputError(f"{path}: holds no ResNet-18 (expected {expected}); its first names are "
                         f"{', '.join(list(state)[:3]) or 'none'}")
    weights = {f"backbone.{name}": value for name, value in backbone.items()}
    if head:
        weights |= _head_weights(path, state, head)
        norm = "batch" if "head.1.running_mean" in weights else "layer"
        encoder = Encoder(len(weights["head.3.weight"]), norm)
    else:
        encoder = Encoder()
        encoder.head = _Absent(f"{path.name} has no head for dense features; give layer='res3' or 'res4'")
        if not any(name.startswith("layer4.") for name in backbone):
            encoder.backbone.layer4 = _Absent(f"{path.name} ends with layer3; give layer='res3'")
    load_weights(encoder, weights, path)
    scratch = getattr(content.get("args"), "model_type", "") == "scratch"
    if prefix == "encoder.model." and (scratch or found.keys() != backbone.keys()):
        for module in encoder.modules():
            if isinstance(module, nn.Conv2d) and sum(module.padding):
                module.padding_mode = "reflect"
    return encoder.float().eval()


def load_weights(network: nn.Module, weights: dict[str, Tensor], path: Path, *, strict: bool = False) -> None:
    """Load weights into a network.

    Arguments:
        path: the file that they come from, for messages.
        strict: refuse weights that the network does not have; else they are ignored.

    Raises:
        InputError: names the first weight that is missing or has a wrong shape or values.
    """
    wanted = network.state_dict()
    # old files lack BatchNorm's counts, which no feature depends on
    weights = {name: count for name, count in wanted.items() if "num_batches_tracked" in name} | weights
    for name, value in wanted.items():
        found = weights.get(name)
        if found is None or found.shape != value.shape:
            problem = "missing" if found is None else f"{tuple(found.shape)}, not {tuple(value.shape)}"
            raise InputError(f"{path}: holds weights of another network: {name} is {problem}")
        if value.is_floating_point() and not (found.is_floating_point() and found.isfinite().all()):
            raise InputError(f"{path}: {name} holds infinite values or no floating-point numbers; copy or "
                             "train it again")
    if strict and (more := sorted(weights.keys() - wanted.keys())):
        raise InputError(f"{path}: holds weights of another network: {more[0]} is unknown")
    network.load_state_dict({name: weights[name] for name in wanted})


def _head_weights(path: Path, state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights of the head under our names; its layers are recognised by their order and shapes."""
    layers: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        if name.startswith(prefix):
            layer, _, field = name.removeprefix(prefix).rpartition(".")
            layers.setdefault(layer, {})[field] = value
    if [layer["weight"].ndim if "weight" in layer else 0 for layer in layers.values()] != [4, 1, 4]:
        raise InputError(f"{path}: expected a convolution, a normalisation and a convolution in {prefix}*; "
                         f"it holds {', '.join(layers) or 'nothing'}")
    return {f"head.{ours}.{field}": value for ours, layer in zip("013", layers.values())
            for field, value in layer.items()}
