"""Weights that others released: the four snapshots of the paper's authors, and the contrastive random walk (CRW)."""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dulvos.encoder import Encoder
from dulvos.errors import InputError

__all__ = ["FOLDER", "RELEASES", "Release", "check_numbers", "locate", "read_released"]

FOLDER = "DULVOS_WEIGHTS"
AUTHORS = "github.com/visinf/dense-ulearn-vos"
WALK = "github.com/ajabri/videowalk"


@dataclass(frozen=True)
class Release:
    """A file of released weights.

    Fields:
        file: its name where it is released. source: where that is.
        method, data: the line of `paper.TABLE1` and of `paper.TABLE2` that it belongs to.
        layer: which its label propagation uses.
    """

    file: str
    source: str
    method: str
    data: str
    layer: str = "res4"


RELEASES = {
    "araslanov-oxuva": Release("oxuva_e430_res4.pth", AUTHORS, "Ours", "OxUvA"),
    "araslanov-youtube-vos": Release("ytvos_e060_res4.pth", AUTHORS, "Ours", "YouTube-VOS"),
    "araslanov-trackingnet": Release("trackingnet_e088_res4.pth", AUTHORS, "Ours", "TrackingNet"),
    "araslanov-kinetics": Release("kinetics_e026_res4.pth", AUTHORS, "Ours", "Kinetics-400"),
    "crw": Release("pretrained.pth", WALK, "CRW", "Kinetics-400", layer="res3"),
}
"""What `load_encoder` takes by name once the file lies in the folder that the environment variable DULVOS_WEIGHTS names."""

# (backbone, head) in a state dict; CRW's own head compares patches and has no place here
PREFIXES = (("fast_net.backbone.", "fast_net.emb_q."), ("encoder.model.", None), ("", None))
HEAD = ("0", "1", "3")  # of `Encoder.head`; the ReLU has no weights

# what training scripts save beside the weights: their options, and a score that is a numpy number
HARMLESS = [argparse.Namespace, np.dtype, type(np.dtype(np.float64)), type(np.dtype(np.float32)),
            (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
            (np._core.multiarray.scalar, "numpy._core.multiarray.scalar")]


class _Absent(nn.Module):
    """Stands for a part that a file does not have: features from random weights there would pass for its own."""

    def __init__(self, message: str):
        super().__init__()
        self.message = message

    def forward(self, images: Tensor) -> Tensor:
        raise InputError(self.message)


def locate(name: str) -> str:
    """The file of a release's name, in the folder DULVOS_WEIGHTS; any other name as it is.

    Raises:
        InputError: the variable is not set, or the file is not there.
    """
    release = RELEASES.get(name)
    if release is None:
        return name
    folder = os.environ.get(FOLDER)
    if not folder:
        raise InputError(f"{name!r} needs the environment variable {FOLDER}: the folder that holds {release.file}, released at "
                         f"{release.source}")
    path = Path(folder) / release.file
    if not path.is_file():
        raise InputError(f"{path}: no such file; it is released at {release.source}")
    return str(path)


def read_released(path: str | os.PathLike) -> Encoder:
    """An encoder in evaluation mode with the weights of a released torch file.

    Reads the authors' snapshots (`model`: `fast_net.backbone.*`, `fast_net.emb_q.*`), CRW's (`model`: `encoder.model.*`) and
    torchvision's ResNet-18 (`conv1.weight` …), with or without `module.` of a parallel training. The head's three layers are
    told by their order and shapes. Parts that the file has not (CRW has no head for dense features, and may end with layer3)
    raise an InputError when asked for. CRW pads by reflection where the file says so. Nothing but tensors and plain values is
    unpickled.

    Raises:
        InputError: a damaged file, one that would run code, or weights of another network; it names what is missing.
    """
    path = Path(path)
    try:
        with torch.serialization.safe_globals(HARMLESS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes at random make the unpickler fail in every way
        raise InputError(f"{path}: damaged, or holds more than weights ({type(error).__name__}); copy it anew from where it "
                         "was released") from None
    state = content.get("model", content) if isinstance(content, dict) else {}
    state = state if isinstance(state, dict) else {}
    state = {str(name).replace("module.", ""): value for name, value in state.items() if isinstance(value, Tensor)}
    for backbone, head in PREFIXES:
        # older PyTorch padded by reflection in a layer of its own: conv1.1.weight
        found = {re.sub(r"(conv\d)\.1\.weight$", r"\1.weight", name.removeprefix(backbone)): value
                 for name, value in state.items() if name.startswith(backbone)}
        if "conv1.weight" in found:
            break
    else:
        raise InputError(f"{path}: holds no ResNet-18 (expected {' or '.join(b + 'conv1.weight' for b, _ in PREFIXES)}); "
                         f"its first names are {', '.join(list(state)[:3]) or 'none'}")
    weights = _head(path, state, head) if head else {}
    shape = (len(weights["head.3.weight"]), "batch" if "head.1.running_mean" in weights else "layer") if head else ()
    encoder = Encoder(*shape)
    wanted = encoder.state_dict()
    weights |= {f"backbone.{name}": value for name, value in found.items() if f"backbone.{name}" in wanted}
    if not head:
        encoder.head = _Absent(f"{path.name} has no head for dense features; give layer='res3' or 'res4'")
    if not head and not any(name.startswith("layer4.") for name in found):
        encoder.backbone.layer4 = _Absent(f"{path.name} ends with layer3; give layer='res3'")
    wrong = [name for name, value in encoder.state_dict().items() if name not in weights or weights[name].shape != value.shape]
    if wrong:
        part = wrong[0].replace("backbone.", backbone)  # the head's layers have names of their own in each file
        what = "is missing"
        if wrong[0] in weights:
            what = f"is {tuple(weights[wrong[0]].shape)}, not {tuple(wanted[wrong[0]].shape)}"
        raise InputError(f"{path}: not a ResNet-18 as released: {part} {what} (and {len(wrong) - 1} more)")
    check_numbers(path, {name: weights[name] for name in encoder.state_dict()})
    encoder.load_state_dict({name: weights[name] for name in encoder.state_dict()})
    options = content.get("args")
    if backbone == "encoder.model." and (getattr(options, "model_type", "") == "scratch"
                                         or any(re.search(r"conv\d\.1\.weight$", name) for name in state)):
        for module in encoder.modules():
            if isinstance(module, nn.Conv2d) and sum(module.padding):
                module.padding_mode = "reflect"
    return encoder.float().eval()


def check_numbers(path: Path, weights: dict[str, Tensor]) -> None:
    """Raise an InputError for weights that are no finite floating-point numbers: features from them would be silently wrong."""
    for name, value in weights.items():
        if not name.endswith("num_batches_tracked") and not (value.is_floating_point() and value.isfinite().all()):
            raise InputError(f"{path}: {name} holds infinite values or no floating-point numbers; copy or train it again")


def _head(path: Path, state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The head's weights under our names."""
    layers: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        if name.startswith(prefix):
            layer, _, field = name.removeprefix(prefix).rpartition(".")
            layers.setdefault(layer, {})[field] = value
    ranks = [layer["weight"].ndim if "weight" in layer else 0 for layer in layers.values()]
    if ranks != [4, 1, 4]:
        raise InputError(f"{path}: expected in {prefix}* a convolution, a normalisation and a convolution; it holds "
                         f"{', '.join(layers) or 'nothing'}")
    return {f"head.{ours}.{field}": value for ours, layer in zip(HEAD, layers.values()) for field, value in layer.items()}
