"""The encoder: a ResNet-18 at stride 8 with a projection head (Sec. 4, App. B)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from dulvos.errors import InputError

__all__ = ["LAYERS", "IMAGE_MEAN", "IMAGE_STD", "STRIDE", "Encoder", "Features", "prepare_frames"]

LAYERS = ("res3", "res4", "key")
STRIDE = 8
ARCHITECTURE = "resnet18-stride8"
IMAGE_MEAN = (0.485, 0.456, 0.406)  # ImageNet's, for RGB in [0, 1]
IMAGE_STD = (0.229, 0.224, 0.225)


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


def prepare_frames(frames: Tensor, mean: tuple[float, ...] = IMAGE_MEAN,
                   std: tuple[float, ...] = IMAGE_STD) -> Tensor:
    """(..., 3, H, W) uint8 RGB to float32, normalised by a mean and a deviation of RGB in [0, 1]."""
    mean, std = (frames.new_tensor(values, dtype=torch.float32)[:, None, None] for values in (mean, std))
    return (frames.float() / 255 - mean) / std
