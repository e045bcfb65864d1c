"""Weights that others released: the authors' four snapshots, and the contrastive random walk (CRW)."""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from dulvos.encoder import Encoder
from dulvos.errors import InputError

__all__ = ["FOLDER", "RELEASES", "Release", "load_weights", "read_released", "read_weights", "without_prefix"]

FOLDER = "DULVOS_WEIGHTS"


@dataclass(frozen=True)
class Release:
    """A file of released weights; `method` and `data` name its row in the paper's Table 1."""

    file: str
    data: str
    source: str = "github.com/visinf/dense-ulearn-vos"  # web page with the download
    method: str = "the paper's method"
    layer: str = "res4"  # for label propagation


# `load_encoder` takes these names if the environment variable DULVOS_WEIGHTS names the files' folder.
RELEASES = {
    "araslanov-oxuva": Release("oxuva_e430_res4.pth", "OxUvA"),
    "araslanov-youtube-vos": Release("ytvos_e060_res4.pth", "YouTube-VOS"),
    "araslanov-trackingnet": Release("trackingnet_e088_res4.pth", "TrackingNet"),
    "araslanov-kinetics": Release("kinetics_e026_res4.pth", "Kinetics-400"),
    "crw": Release("pretrained.pth", "Kinetics-400", "github.com/ajabri/videowalk", "CRW", "res3"),
}

# Training scripts save these beside the weights: their options, and a score as a numpy number.
_HARMLESS = [argparse.Namespace, np.dtype, type(np.dtype(np.float64)), type(np.dtype(np.float32)),
             (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
             (np._core.multiarray.scalar, "numpy._core.multiarray.scalar")]


class _Absent(nn.Module):
    """Stands for a part that a file lacks; using it is an error."""

    def __init__(self, message: str):
        super().__init__()
        self.message = message

    def forward(self, images: Tensor) -> Tensor:
        raise InputError(self.message)


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict]:
    """The weights in a .safetensors or torch file, by name; then a torch file's whole content, else {}.

    A torch file has them at the top level or under `model`, `state_dict` or `teacher` (DINO). The `module.`
    that parallel training adds to names is removed. Only tensors and plain values are unpickled.

    Raises:
        InputError: the file is damaged, or would run code.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path), {}
        with torch.serialization.safe_globals(_HARMLESS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler fails in many ways on random bytes
        raise InputError(f"{path}: damaged, or holds more than weights ({type(error).__name__}); copy it "
                         "again from where it came") from None
    content = content if isinstance(content, dict) else {}
    state = next((content[key] for key in ("model", "state_dict", "teacher") if key in content), content)
    state = state if isinstance(state, dict) else {}
    return {str(k).replace("module.", ""): v for k, v in state.items() if isinstance(v, Tensor)}, content


def without_prefix(state: dict[str, Tensor], known: str) -> dict[str, Tensor]:
    """Remove from all names the prefix that a file puts before `known`; drop names without it."""
    prefix = min((name for name in state if name.endswith(known)), key=len, default=known)[: -len(known)]
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def read_released(path: Path) -> Encoder:
    """Build an encoder, in evaluation mode, from a released torch file.

    Reads the authors' snapshots (`fast_net.backbone.*`, `fast_net.emb_q.*`), CRW's (`encoder.model.*`) and
    any other ResNet-18 with torchvision's names. A file may lack the head or layer4, as CRW's do; using the
    missing part raises an InputError. CRW's network pads by reflection if its file says so.

    Raises:
        InputError: the file is damaged, would run code or holds another network.
    """
    state, content = read_weights(path)
    # in old PyTorch, padding by reflection was a layer of its own: conv1.weight became conv1.1.weight
    renamed = {re.sub(r"(conv\d)\.1\.weight$", r"\1.weight", name): value for name, value in state.items()}
    backbone = without_prefix(renamed, "layer1.0.conv1.weight")
    if "conv1.weight" not in backbone:
        raise InputError(f"{path}: holds no ResNet-18 (conv1.weight, layer1.0.conv1.weight, ..., after any "
                         f"prefix); the file's first names are {', '.join([*state][:3]) or 'none'}")
    weights = {f"backbone.{name}": value for name, value in backbone.items()}
    reflects = renamed.keys() != state.keys() or getattr(content.get("args"), "model_type", "") == "scratch"
    padding = "reflect" if reflects else "zeros"
    head = [name for name in state if name.startswith("fast_net.emb_q.")]
    if head:  # convolution, normalisation, convolution, whatever their names
        layers = dict.fromkeys(name.rpartition(".")[0] for name in head)
        for theirs, ours in zip(layers, ("head.0", "head.1", "head.3")):
            weights |= {name.replace(theirs, ours): value for name, value in state.items()
                        if name.startswith(f"{theirs}.")}
        norm = "batch" if "head.1.running_mean" in weights else "layer"
        dim = len(weights.get("head.3.weight", [0]))  # without it, `load_weights` complains
        encoder = Encoder(dim, norm, padding=padding)
    else:
        encoder = Encoder(padding=padding)
        encoder.head = _Absent(f"{path.name} has no head for dense features; give layer='res3' or 'res4'")
        if not any(name.startswith("layer4.") for name in backbone):
            encoder.backbone.layer4 = _Absent(f"{path.name} ends with layer3; give layer='res3'")
    load_weights(encoder, weights, path)
    return encoder.eval()


def load_weights(network: nn.Module, weights: dict[str, Tensor], path: Path, *, strict: bool = False) -> None:
    """Load weights into a network.

    Arguments:
        path: their file, for messages.
        strict: refuse weights that the network does not have; else ignore them.

    Raises:
        InputError: a weight is missing or has a wrong shape or values; the message names it.
    """
    wanted = network.state_dict()
    # old files lack BatchNorm's counts of batches, on which no feature depends
    counts = {name: count for name, count in wanted.items() if "num_batches_tracked" in name}
    weights = counts | {name: value for name, value in weights.items() if strict or name in wanted}
    for name, value in weights.items():
        if wanted.get(name, value).is_floating_point() and not (
                value.is_floating_point() and value.isfinite().all()):
            raise InputError(f"{path}: {name} holds infinite values or no floating-point numbers; copy or "
                             "train it again")
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).split("\n\t")[1][:200]
        raise InputError(f"{path}: holds weights of another network: {first}") from None
