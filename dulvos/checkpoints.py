"""Save and load encoders: weights as safetensors, and a JSON sidecar with the network's options."""

import json
import os
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import torchvision
from torch import nn

from dulvos.encoder import Encoder
from dulvos.errors import InputError
from dulvos.files import AnyPath, expand, read_json, write_file
from dulvos.released import FOLDER, RELEASES, load_weights, read_released, read_weights

__all__ = ["encoder_file", "is_whole", "load_encoder", "save_encoder"]


def save_encoder(encoder: Encoder, path: AnyPath, **notes: Any) -> Path:
    """Write an encoder's weights as safetensors, and a JSON sidecar of the same stem.

    Arguments:
        path: the file, with suffix .safetensors.
        notes: JSON values for the sidecar, such as the weights' origin and licence.

    Raises:
        InputError: the files cannot be written.
    """
    path = expand(path)
    weights = {name: value.cpu().contiguous() for name, value in encoder.state_dict().items()}
    write_file(path.with_suffix(".json"), json.dumps({**encoder.config, **notes}, indent=1) + "\n")
    return write_file(path, safetensors.torch.save(weights))  # last, so that weights never lack their sidecar


def is_whole(path: Path) -> bool:
    """Whether a .safetensors file has its full length and a sidecar; reads no weights."""
    try:
        with safetensors.safe_open(path, "pt"):
            return path.with_suffix(".json").is_file()
    except (safetensors.SafetensorError, OSError):
        return False


def encoder_file(name: str) -> Path:
    """The file that a name for `load_encoder` stands for, else the name as a path.

    Raises:
        InputError: released weights are not there.
    """
    if name == "davis2016":
        return Path(__file__).with_name("weights") / "davis2016.safetensors"
    if name not in RELEASES:
        file = name.partition("=")[2] if name.startswith("timm:") else name
        return expand(file or name)
    path = expand(os.environ.get(FOLDER, f"${FOLDER}")) / RELEASES[name].file
    if not path.is_file():
        raise InputError(f"{name!r} needs {path}; download it from {RELEASES[name].source}, and set {FOLDER} "
                         "to its folder")
    return path


def load_encoder(path_or_name: AnyPath, *, seed: int = 0) -> nn.Module:
    """Load an encoder in evaluation mode, on the CPU, in float32.

    Arguments:
        path_or_name: one of
            "random": initialised from `seed`;
            "davis2016": this study's weights, trained on CC BY-NC videos;
            "imagenet": torchvision's ResNet-18, downloaded on first use, with a random head;
            a .safetensors file with its JSON sidecar;
            a released torch file (see `dulvos.released.read_released`), or its name in `RELEASES`;
            "timm:MODEL": a network of timm (see `dulvos.timm_encoders.TimmEncoder`).
        seed: of the random weights, 0 to 2^63 - 1.

    Raises:
        InputError: wrong name or seed; a file that is missing, damaged or of another network.
    """
    name = os.fspath(path_or_name)
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise InputError(f"seed must be a whole number from 0 to 2^63 - 1, not {seed!r}")
    if name.startswith("timm:"):
        from dulvos.timm_encoders import TimmEncoder  # importing timm takes seconds
        return TimmEncoder(name, seed)
    if name in ("random", "imagenet"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder = Encoder()
        if name == "imagenet":
            try:
                weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.get_state_dict(check_hash=True)
            except Exception as error:  # no network; or the unpickler, in many ways, on a damaged file
                raise InputError(f"'imagenet' cannot be downloaded, or its file in {torch.hub.get_dir()} is "
                                 f"damaged ({error}); delete that file, or give 'davis2016'") from None
            load_weights(encoder.backbone, weights, Path(name))
        return encoder.eval()
    path = encoder_file(name)
    if path.suffix not in (".safetensors", ".pth", ".pt", ".tar") or not os.path.isfile(path):
        raise InputError(f"{path}: no such checkpoint; give a .safetensors file beside its .json, 'random', "
                         f"'davis2016', 'imagenet', timm:MODEL or a release (.pth, {', '.join(RELEASES)})")
    if path.suffix != ".safetensors":
        return read_released(path)
    # old sidecars lack stride, colour and padding
    encoder = read_json(path.with_suffix(".json"), "the sidecar of the checkpoint", lambda config: Encoder(
        config["dim"], config["norm"], config.get("stride", 8), config.get("colour", "rgb"),
        config.get("padding", "zeros")))
    load_weights(encoder, read_weights(path)[0], path, strict=True)
    return encoder.eval()
