"""The encoder: a ResNet-18 at stride 8 with a projection head (Sec. 4, App. B)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from dulvos.baselines import rgb_to_lab, scale_lab
from dulvos.errors import InputError, check_choices

__all__ = ["COLOURS", "IMAGE_MEAN", "IMAGE_STD", "LAYERS", "PADDING", "STRIDE", "Encoder", "Features",
           "prepare_frames", "restore_rgb"]

LAYERS = ("res3", "res4", "key")
STRIDE = 8  # the method's, in pixels; other encoders have their own `stride`
COLOURS = ("rgb", "lab", "grey")
PADDING = ("zeros", "reflect")
IMAGE_MEAN = (0.485, 0.456, 0.406)  # ImageNet's, for RGB in [0, 1]
IMAGE_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Features:
    """Dense features of n images, of the layers asked for; by default, each cell has the L2 norm 1."""

    res3: Tensor | None = None  # (n, 256, h, w), output of `layer3`
    res4: Tensor | None = None  # (n, 512, h, w), output of `layer4`, which label propagation uses
    key: Tensor | None = None  # (n, dim, h, w), output of the head, which the losses use


class Encoder(nn.Module):
    """ResNet-18 whose last two stages keep their resolution, and a 1x1 MLP head (Sec. 4, App. B).

    256x256 pixels give 32x32 cells, 480x854 give 60x107.

    Arguments:
        dim: channels K of the head's output.
        norm: normalisation in the head, "batch" (the method) or "layer" (App. B's variant).
        stride: pixels per cell, 8 (the method) or 4 ("x2" in Table 1: `layer2` keeps its resolution too).
        colour: what the network turns its RGB images into first: "rgb" leaves them (the method), "lab" is
            scaled Lab (MAST and ContrastCorr), "grey" the same channel three times (Colorize).
        padding: of the 3x3 and 7x7 convolutions, "zeros" (the method) or "reflect" (CRW).

    Raises:
        InputError: dim out of range, or another option unknown.
    """

    def __init__(self, dim: int = 128, norm: str = "batch", stride: int = STRIDE, colour: str = "rgb",
                 padding: str = "zeros"):
        super().__init__()
        if dim not in range(1, 2**16 + 1):
            raise InputError(f"dim must be a whole number from 1 to 65536, not {dim!r}")
        self.norm, self.stride, self.colour, self.padding = norm, stride, colour, padding
        check_choices(self, norm=("batch", "layer"), stride=(4, 8), colour=COLOURS, padding=PADDING)
        self.config = {"architecture": f"resnet18-stride{stride}", "dim": dim, "norm": norm, "stride": stride,
                       "colour": colour, "padding": padding}
        backbone = torchvision.models.resnet18(weights=None)
        del backbone.avgpool, backbone.fc
        for module in backbone.modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
                module.padding_mode = "reflect" if padding == "reflect" else "zeros"
        for stage in (backbone.layer2, backbone.layer3, backbone.layer4)[stride == 8:]:
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

    def forward(self, images: Tensor, layers: tuple[str, ...] = LAYERS, *, factors: Tensor | None = None,
                pool: bool = False, normalise: bool = True) -> Features:
        """Encode images, up to the last layer asked for.

        Arguments:
            images: (n, 3, H, W) float RGB, normalised by `IMAGE_MEAN` and `IMAGE_STD`.
            layers: the fields of `Features` to compute.
            factors: (3,) by which the input channels are multiplied; 0 drops one (the baselines' dropout).
            pool: average each map over space before the head; key is then (n, dim, 1, 1) (CRW's nodes).
            normalise: False omits the L2 normalisation, for losses that compare plain dot products.

        Raises:
            InputError: a layer outside `LAYERS`, or images too small to be padded by reflection.
        """
        unknown = set(layers) - set(LAYERS)
        if unknown or not layers:
            raise InputError(f"layers must be among {LAYERS}, not {tuple(layers)!r}")
        if self.padding == "reflect" and min(images.shape[-2:]) <= self.stride:
            raise InputError(f"images of {tuple(images.shape[-2:])} are too small for padding by reflection; "
                             f"both sides must exceed {self.stride} pixels")
        net, images = self.backbone, _recoloured(images, self.colour)
        if factors is not None:
            images = images * factors.to(images)[:, None, None]
        x = net.maxpool(net.relu(net.bn1(net.conv1(images))))
        x = net.layer3(net.layer2(net.layer1(x)))
        features = {"res3": x}
        if "res4" in layers or "key" in layers:
            x = features["res4"] = net.layer4(x)
        if "key" in layers:
            features["key"] = self.head(x.mean((2, 3), keepdim=True) if pool else x)
        # float32, because norms in bf16 would change which cells are among the top k
        chosen = {name: features[name].float() for name in layers}
        return Features(**{name: F.normalize(x, dim=1) if normalise else x for name, x in chosen.items()})


def prepare_frames(frames: Tensor, mean: tuple[float, ...] = IMAGE_MEAN,
                   std: tuple[float, ...] = IMAGE_STD) -> Tensor:
    """(..., 3, H, W) uint8 RGB to float32, normalised by a mean and a deviation of RGB in [0, 1]."""
    return (frames.float() / 255 - _channels(mean, frames)) / _channels(std, frames)


def restore_rgb(images: Tensor) -> Tensor:
    """The inverse of `prepare_frames`: (..., 3, H, W) float to RGB in [0, 1]."""
    return (images * _channels(IMAGE_STD, images) + _channels(IMAGE_MEAN, images)).clamp(0, 1)


def _channels(values: tuple[float, ...], like: Tensor) -> Tensor:
    """(3, 1, 1) float32 on the device of another tensor."""
    return like.new_tensor(values, dtype=torch.float32)[:, None, None]


def _recoloured(images: Tensor, colour: str) -> Tensor:
    """Normalised RGB images (n, 3, H, W) in a colour space of `COLOURS`: (n, 3, H, W)."""
    if colour == "rgb":
        return images
    rgb = restore_rgb(images)
    if colour == "lab":
        return scale_lab(rgb_to_lab(rgb))
    grey = (rgb * _channels((0.299, 0.587, 0.114), rgb)).sum(-3, keepdim=True)
    return (grey - _channels(IMAGE_MEAN, rgb)) / _channels(IMAGE_STD, rgb)
