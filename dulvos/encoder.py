"""The encoder: a ResNet-18 at stride 8 with a projection head, and its files."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from dulvos.errors import InputError

__all__ = ["LAYERS", "IMAGE_MEAN", "IMAGE_STD", "Encoder", "Features", "load_encoder", "prepare_frames", "save"]

LAYERS = ("res3", "res4", "key")
STRIDE = 8
ARCHITECTURE = "resnet18-stride8"
IMAGE_MEAN = (0.485, 0.456, 0.406)  # ImageNet's, for RGB in [0, 1]
IMAGE_STD = (0.229, 0.224, 0.225)
WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Features:
    """Dense features of n images, each cell of L2 norm 1 over its channels; None where not asked for.

    Fields:
        res3: (n, 256, h, w), output of `layer3`.
        res4: (n, 512, h, w), output of `layer4`, which label propagation uses.
        key: (n, dim, h, w), output of the head, which the losses use.
    """

    res3: Tensor | None = None
    res4: Tensor | None = None
    key: Tensor | None = None


class Encoder(nn.Module):
    """ResNet-18 whose last two stages keep their resolution, and a 1x1 MLP head (Sec. 4, App. B).

    256x256 pixels give 32x32 cells, 480x854 give 60x107.

    Arguments:
        dim: channels K of the head's output.
        norm: normalisation in the head, "batch" (the method) or "layer" (App. B's variant).
    """

    def __init__(self, dim: int = 128, norm: str = "batch"):
        super().__init__()
        if norm not in ("batch", "layer"):
            raise InputError(f"norm must be 'batch' or 'layer', not {norm!r}")
        self.config = {"architecture": ARCHITECTURE, "dim": dim, "norm": norm}
        backbone = torchvision.models.resnet18(weights=None)
        del backbone.avgpool, backbone.fc
        for stage in (backbone.layer3, backbone.layer4):
            for module in stage.modules():
                if isinstance(module, nn.Conv2d):
                    module.stride = (1, 1)
        self.backbone = backbone
        self.head = nn.Sequential(
            nn.Conv2d(512, 512, 1),
            nn.BatchNorm2d(512) if norm == "batch" else nn.GroupNorm(1, 512),
            nn.ReLU(inplace=True),
            nn.Conv2d(512, dim, 1),
        )

    def forward(self, images: Tensor, layers: tuple[str, ...] = LAYERS) -> Features:
        """Encode images and stop at the last layer asked for.

        Arguments:
            images: (n, 3, H, W) float RGB, normalised by `IMAGE_MEAN` and `IMAGE_STD`.
            layers: the fields of `Features` to compute.

        Raises:
            InputError: a layer outside `LAYERS`.
        """
        unknown = set(layers) - set(LAYERS)
        if unknown or not layers:
            raise InputError(f"layers must be among {LAYERS}, not {tuple(layers)!r}")
        net = self.backbone
        x = net.maxpool(net.relu(net.bn1(net.conv1(images))))
        x = out = net.layer3(net.layer2(net.layer1(x)))
        features = {"res3": out}
        if "res4" in layers or "key" in layers:
            x = features["res4"] = net.layer4(x)
        if "key" in layers:
            features["key"] = self.head(x)
        # float32, since bf16 norms would move cosines by more than top-k tells apart
        return Features(**{name: F.normalize(features[name].float(), dim=1) for name in layers})


def prepare_frames(frames: Tensor) -> Tensor:
    """(..., 3, H, W) uint8 RGB -> float32, ImageNet's mean and deviation taken out."""
    mean, std = (frames.new_tensor(values, dtype=torch.float32)[:, None, None]
                 for values in (IMAGE_MEAN, IMAGE_STD))
    return (frames.float() / 255 - mean) / std


def save(encoder: Encoder, path: str | os.PathLike, *, dtype: torch.dtype = torch.float32, **notes) -> Path:
    """Write an encoder's weights as safetensors with a JSON sidecar of the same stem.

    Both are written under temporary names, synced and renamed, the weights last.

    Arguments:
        path: the file, with suffix .safetensors.
        dtype: of the floating-point weights in the file; float16 halves it.
        notes: JSON values kept in the sidecar (where the weights come from, their licence).
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: encoders are saved as .safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {
        name: value.detach().cpu().to(dtype if value.is_floating_point() else value.dtype).contiguous()
        for name, value in encoder.state_dict().items()
    }
    sidecar = json.dumps({**encoder.config, **notes}, indent=1) + "\n"
    data = safetensors.torch.save(weights)
    for file, content in ((path.with_suffix(".json"), sidecar.encode()), (path, data)):
        temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        with open(temporary, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    return path


def load_encoder(path_or_name: str | os.PathLike, *, seed: int = 0) -> Encoder:
    """Load an encoder in evaluation mode, on the CPU, in float32.

    Arguments:
        path_or_name: a .safetensors file with its JSON sidecar; or "random" (initialised from `seed`), "davis2016"
            (this study's weights, from CC BY-NC videos), "imagenet" (torchvision's ResNet-18, fetched on first use).
        seed: of the random initialisation ("random", and the head of "imagenet").

    Raises:
        InputError: no such name or file, a truncated file, another architecture.
    """
    name = os.fspath(path_or_name)
    if name in ("random", "imagenet"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder = Encoder()
        if name == "imagenet":
            weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.get_state_dict(check_hash=True)
            encoder.backbone.load_state_dict({k: v for k, v in weights.items() if not k.startswith("fc.")})
        return encoder.eval()
    path = WEIGHTS / f"{name}.safetensors" if name == "davis2016" else Path(name)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; give a .safetensors file, 'random', 'davis2016' or 'imagenet'")
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: an encoder is a .safetensors file with a .json sidecar beside it")
    sidecar = path.with_suffix(".json")
    try:
        config = json.loads(sidecar.read_text())
        architecture, dim, norm = config["architecture"], config["dim"], config["norm"]
    except FileNotFoundError:
        raise InputError(f"{sidecar}: the checkpoint's sidecar is missing; it lies beside {path.name}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise InputError(f"{sidecar}: not a sidecar with 'architecture', 'dim' and 'norm'; save the encoder again") from None
    if architecture != ARCHITECTURE:
        raise InputError(f"{sidecar}: architecture {architecture!r}, but this package builds {ARCHITECTURE!r}")
    encoder = Encoder(dim, norm)
    try:
        state = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path}: truncated or not a safetensors file ({error}); copy or train it again") from None
    expected = encoder.state_dict()
    wrong = sorted(k for k in expected.keys() | state.keys()
                   if k not in state or k not in expected or state[k].shape != expected[k].shape)
    if wrong:
        raise InputError(f"{path}: weights of another architecture than {ARCHITECTURE} with dim={dim}, norm={norm!r}: "
                         f"{wrong[0]} and {len(wrong) - 1} more differ")
    encoder.load_state_dict(state)
    return encoder.eval()
