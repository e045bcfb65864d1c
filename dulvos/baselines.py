"""The losses of the methods that Table 1 compares with ours: random walks, and colours copied between frames.

CRW: Jabri et al., NeurIPS 2020. Colorize: Vondrick et al., ECCV 2018. CorrFlow: Lai and Xie, BMVC 2019. MAST:
Lai et al., CVPR 2020. ContrastCorr: Wang et al., AAAI 2021. Each docstring says how ours differs.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torchvision.ops import roi_align

from dulvos.errors import InputError
from dulvos.losses import gather_processes

__all__ = ["AB_CLASSES", "LAB_CLASSES", "ColourOutput", "WalkOutput", "channel_factors", "colorize_loss",
           "colour_classes", "contrast_loss", "copy_colours", "corrflow_loss", "cut_patches", "mast_loss",
           "one_hot_cells", "patch_boxes", "rgb_to_lab", "scale_lab", "walk_loss"]

RADIUS = 6  # in cells: MAST and CorrFlow train with windows of 13x13
GRID = 7  # CRW's patches per side
# Centres of colour classes: k-means over 208,000 random pixels of DAVIS-2016's training frames, rounded.
LAB_CLASSES = ((9, 0, 0), (23, 1, 2), (23, -9, 16), (35, -1, -6), (37, 7, -35), (39, 2, 9), (39, -14, 27),
               (48, 28, 28), (50, 1, -3), (54, -10, -18), (57, 1, 14), (59, -15, 41), (65, 2, -1),
               (77, 2, 17), (78, 1, -10), (86, 2, 2))
AB_CLASSES = ((-18, 46), (-15, -17), (-14, 32), (-12, 19), (-7, 7), (-3, -5), (0, 27), (0, -15),
              (1, 15), (1, 2), (4, -5), (4, 7), (7, -35), (15, 15), (26, 33), (48, 21))


class WalkOutput(NamedTuple):
    """Result of `walk_loss`: `walks` (T - 2,), the loss of each length, shortest first; `total`, the mean."""

    total: Tensor
    walks: Tensor


class ColourOutput(NamedTuple):
    """Result of the losses that copy colours.

    Fields:
        copied: scalar, compares the colours copied from each frame to the next with the true ones.
        rest: scalar, the other terms, weighted: CorrFlow's cycle, ContrastCorr's terms over the batch.
        total: their sum.
    """

    copied: Tensor
    rest: Tensor | float = 0.0

    @property
    def total(self) -> Tensor:
        return self.copied + self.rest


def walk_loss(nodes: Tensor, *, tau: float = 0.05, dropout: float = 0.0,
              generator: torch.Generator | None = None) -> WalkOutput:
    """The contrastive random walk (CRW): walk forwards in time, walk back, and arrive where you started.

    With A_t = q_tᵀ q_{t+1}, steps forwards and back are A⁺_t = softmax(A_t / τ) and A⁻_t = softmax(A_tᵀ / τ);
    each row sums to 1. Walk i = 1 … T - 2 is A⁺_0 … A⁺_i A⁻_i … A⁻_0; its loss is the mean of -log(diagonal).

    Differs from the original: the way back may use edges that were dropped on the way out.

    Arguments:
        nodes: (B, K, T, N) float q, L2-normalised over K, frames in temporal order, T >= 3.
        tau: temperature τ > 0 (the original's default is 0.07).
        dropout: probability in [0, 1) of removing an edge, drawn for each direction.
        generator: a CPU generator for the dropout.

    Raises:
        InputError: nodes of another shape, or tau or dropout out of range.
    """
    if nodes.ndim != 4 or nodes.shape[2] < 3:
        raise InputError(f"nodes must have the shape (B, K, T, N) with T >= 3, not {tuple(nodes.shape)}")
    if not tau > 0 or not 0 <= dropout < 1:
        raise InputError(f"tau must be > 0 and dropout in [0, 1), not tau={tau}, dropout={dropout}")
    affinity = torch.einsum("bktn,bktm->tbnm", nodes[:, :, :-1], nodes[:, :, 1:])
    affinity = torch.stack([affinity, affinity.mT]) / tau  # [2, T-1, B, N, N]: forward, backward
    if dropout:
        dropped = torch.rand(affinity.shape, generator=generator) < dropout
        # not -inf: a row may lose all its edges
        affinity = affinity.masked_fill(dropped.to(affinity.device), -1e20)
    forward, backward = affinity.softmax(-1)
    out, back, walks = forward[0], backward[0], []
    for there, here in zip(forward[1:], backward[1:]):
        out, back = out @ there, here @ back
        returned = torch.einsum("bnm,bmn->bn", out, back)  # the diagonal of the whole walk
        walks.append(-(returned + 1e-20).log().mean())
    losses = torch.stack(walks)
    return WalkOutput(losses.mean(), losses)


def patch_boxes(frames: int, size: int, generator: torch.Generator) -> Tensor:
    """CRW's 7x7 patches of each frame, each replaced by a random crop of itself.

    Patches have a side of S/4 and a stride of S/8. A crop keeps U(0.7, 0.9) of the patch's area. Its aspect
    ratio lies between 3/4 and 4/3, and is such that the crop fits into the patch.

    Arguments:
        frames, size: number n of frames, and their side S in pixels.
        generator: a CPU generator.

    Returns:
        (n, 49, 4) float32 boxes (left, top, right, bottom) in pixels.
    """
    side, corner = size / 4, torch.arange(GRID) * (size / 8)
    area, aspect, x, y = torch.rand(4, frames, GRID**2, generator=generator)
    area = 0.7 + 0.2 * area
    limit = (-area.log()).clamp(max=math.log(4 / 3))  # both sides of the crop stay within the patch
    aspect = ((2 * aspect - 1) * limit).exp()
    width, height = side * (area * aspect).sqrt(), side * (area / aspect).sqrt()
    left = corner.repeat(GRID) + x * (side - width)
    top = corner.repeat_interleave(GRID) + y * (side - height)
    return torch.stack([left, top, left + width, top + height], -1)


def cut_patches(frames: Tensor, boxes: Tensor) -> Tensor:
    """Patches (n·P, C, S/4, S/4) of frames (n, C, S, S), cut at boxes (n, P, 4) and resized bilinearly."""
    return roi_align(frames, list(boxes.to(frames)), frames.shape[-1] // 4, sampling_ratio=1, aligned=True)


def _copy_weights(reference: Tensor, target: Tensor, radius: int | None, border: str) -> Tensor:
    """Weights (B, h·w, R·h·w) of every target cell: a softmax over the reference cells."""
    refs, batch, channels, height, width = reference.shape
    logits = target.flatten(2).mT @ reference.permute(1, 2, 0, 3, 4).flatten(2)
    if radius is None:
        return logits.softmax(-1)
    place = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    near = (place[:, None] - place).abs().amax(-1) <= radius  # [h·w, h·w]
    logits = logits.masked_fill(~near.repeat(1, refs).to(logits.device), -torch.inf)
    if border == "exclude":
        return logits.softmax(-1)
    # each cell outside the frame only adds exp(0) to the denominator
    outside = refs * ((2 * radius + 1)**2 - near.sum(1))
    extra = outside.log().to(logits)[None, :, None].expand(batch, -1, 1)
    return torch.cat([logits, extra], -1).softmax(-1)[..., :-1]


def copy_colours(reference_features: Tensor, target_features: Tensor, reference_colours: Tensor, *,
                 radius: int | None = None, border: str = "zero") -> Tensor:
    """The target's colours, copied from the references with the weights softmax(similarity).

    The similarity is the dot product; for a temperature τ, divide the target's features by it. Memory grows
    with B·R·(h·w)²: 64 MB per tensor for B = 16, R = 1 and 32x32 cells.

    Arguments:
        reference_features: (R, B, K, h, w) float. target_features: (B, K, h, w).
        reference_colours: (R, B, C, h, w).
        radius: of the square window, in cells, >= 0; None copies from every cell.
        border: how the window's cells outside the frame count: "zero" (MAST) with similarity 0 and colour 0,
            "exclude" (CorrFlow) not at all.

    Returns:
        (B, C, h, w).

    Raises:
        InputError: shapes that do not fit, a negative radius, an unknown border.
    """
    given = reference_features, target_features, reference_colours
    reference, target, colours = (tuple(x.shape) for x in given)
    fitting = (*reference[:2], *colours[2:3], *reference[3:])
    if len(reference) != 5 or target != reference[1:] or colours != fitting:
        raise InputError("features and colours must be (R, B, K, h, w), (B, K, h, w) and (R, B, C, h, w), "
                         f"not {reference}, {target} and {colours}")
    if border not in ("zero", "exclude") or radius is not None and radius < 0:
        raise InputError(f"border must be zero or exclude, radius >= 0 or None, not {border!r}, {radius}")
    return _copy(reference_colours, _copy_weights(reference_features, target_features, radius, border))


def _copy(colours: Tensor, weights: Tensor) -> Tensor:
    """Colours (R, B, C, h, w) averaged with weights (B, h·w, R·h·w): (B, C, h, w)."""
    cells = colours.permute(1, 2, 0, 3, 4).flatten(2)  # [B, C, R·h·w]
    return (cells @ weights.mT).unflatten(2, colours.shape[3:])


def _copy_next(features: Tensor, colours: Tensor, radius: int | None = None,
               border: str = "exclude") -> Tensor:
    """Colours (B, T, C, h, w), copied from each frame to the next one: (B·(T-1), C, h, w)."""
    reference, target, known = (x.flatten(0, 1) for x in (features[:, :-1], features[:, 1:], colours[:, :-1]))
    return copy_colours(reference[None], target, known[None], radius=radius, border=border)


def _enlarge(copied: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(copied, like.shape[-2:], mode="bilinear", align_corners=False)


def _class_loss(copied: Tensor, classes: Tensor) -> Tensor:
    """Mean of -log(copy + 1e-8) at full size: copied (n, C, h, w), classes (n, H, W)."""
    return F.nll_loss((_enlarge(copied, classes) + 1e-8).log(), classes)


def mast_loss(features: Tensor, channel: Tensor) -> ColourOutput:
    """MAST: copy the colour channel that the input lacks from each frame to the next; smooth L1.

    Differs from the original: the encoder's stride may be 8 instead of 4. One reference, as in its release.

    Arguments:
        features: (B, T, K, h, w), not normalised.
        channel: (B, T, 1, H, W), a or b of scaled Lab; every (H/h)th pixel is copied.
    """
    stride = channel.shape[-1] // features.shape[-1]
    copied = _copy_next(features, channel[..., ::stride, ::stride], RADIUS, "zero")
    truth = channel[:, 1:].flatten(0, 1)
    return ColourOutput(F.smooth_l1_loss(20 * _enlarge(copied, truth), 20 * truth))


def colorize_loss(features: Tensor, cells: Tensor, classes: Tensor) -> ColourOutput:
    """Colorize: copy colour classes from each frame to the next, from every cell; cross-entropy.

    Differs from the original: one reference instead of three, and no 3D network on top of single frames.

    Arguments:
        features: (B, T, K, h, w), not normalised.
        cells: (B, T, C, h, w), of `one_hot_cells`. classes: (B, T, H, W) int64.
    """
    return ColourOutput(_class_loss(_copy_next(features, cells), classes[:, 1:].flatten(0, 1)))


def corrflow_loss(features: Tensor, cells: Tensor, classes: Tensor, keep_copy: Tensor) -> ColourOutput:
    """CorrFlow: copy colour classes along the clip, and (times 0.1) along each cycle 0 → … → t → … → 0.

    Differs from the original: T frames instead of three, means over steps and cycles instead of sums, and
    copies keep the features' size between steps.

    Arguments:
        features: (B, T, K, h, w), not normalised, in temporal order. cells, classes: see `colorize_loss`.
        keep_copy: (B, T) bool, scheduled sampling: True passes frame t's copied colours on to frame t + 1,
            False its true colours. The first and the last column have no effect.
    """
    pairs = list(zip(features.unbind(1), features[:, 1:].unbind(1)))
    there = [_copy_weights(a[None], b, RADIUS, "exclude") for a, b in pairs]
    back = [_copy_weights(b[None], a, RADIUS, "exclude") for a, b in pairs]
    steps, cycles = [], []
    colours = walk = cells[:, 0]
    for t, weights in enumerate(there):
        copied = _copy(colours[None], weights)
        steps.append(_class_loss(copied, classes[:, t + 1]))
        kept = keep_copy[:, t + 1, None, None, None].to(copied.device)
        colours = torch.where(kept, copied, cells[:, t + 1])
        home = walk = _copy(walk[None], weights)
        for return_weights in back[t::-1]:
            home = _copy(home[None], return_weights)
        cycles.append(_class_loss(home, classes[:, 0]))
    return ColourOutput(torch.stack(steps).mean(), 0.1 * torch.stack(cycles).mean())


def _copy_from_batch(target: Tensor, reference: Tensor, colours: Tensor, own: slice) -> tuple[Tensor, Tensor]:
    """Colours (n, C) that a clip's cells (n, K) copy from all clips (m, K), and the weight (n) of its own."""
    weights = (target @ reference.t()).softmax(-1)
    return weights @ colours, weights[:, own].sum(-1)


def _lab_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean L1 distance of scaled Lab (n, 3, …); a and b count ten times, as in ContrastCorr's release."""
    return (a - b).abs().transpose(0, 1).flatten(1).mean(1) @ a.new_tensor([1.0, 10.0, 10.0])


def contrast_loss(features: Tensor, lab: Tensor) -> ColourOutput:
    """ContrastCorr: copy Lab colours between neighbouring frames, from the own clip and from all clips.

    Three terms: L1 between copied and true colours, forwards and (times 0.1) backwards with the same weights,
    transposed; L1 between 1 and the weight that each cell gives to its own clip among all clips; L1 between
    the colours copied from its own clip and from all clips. With several processes (torch.distributed), "all"
    are the clips of all of them.

    Differs from the original, which copies features of a pretrained autoencoder and crops the target by
    tracking: we copy Lab colours of whole frames. We leave out its warm-up, which has the first term only;
    two further terms, one that copies a frame from itself and one that holds matches together; and its limit:
    it ignores clips whose loss exceeds 2.5.

    Arguments:
        features: (B, T, K, h, w), not normalised.
        lab: (B, T, 3, H, W), scaled Lab.
    """
    batch, frames, channels, height, width = features.shape
    cells = F.adaptive_avg_pool2d(lab.flatten(0, 1), (height, width)).unflatten(0, (batch, frames))
    before, after = ([x[:, part].flatten(0, 1) for x in (features, cells, lab)]
                     for part in (slice(-1), slice(1, None)))
    weights = _copy_weights(before[0][None], after[0], None, "exclude")  # [B·(T-1), h·w, h·w]
    copied, back = _copy(before[1][None], weights), _copy(after[1][None], weights.mT)
    there, back = (_lab_distance(_enlarge(copy, truth), truth)
                   for copy, truth in ((copied, after[2]), (back, before[2])))
    of_batch, own_weight = [], []
    flat, flat_cells = (x.flatten(3).mT for x in (features, cells))  # [B, T, h·w, ·]
    for t in range(frames - 1):
        reference, first = gather_processes(flat[:, t].flatten(0, 1))
        colours, _ = gather_processes(flat_cells[:, t].flatten(0, 1))
        for b in range(batch):
            start = first + b * height * width
            # recomputed in the backward pass; else all (B·h·w)² weights would stay in memory
            found, mass = checkpoint(_copy_from_batch, flat[b, t + 1], reference, colours,
                                     slice(start, start + height * width), use_reentrant=False,
                                     preserve_rng_state=False)
            of_batch.append(found.mT.unflatten(1, (height, width)))
            own_weight.append(mass)
    copied = copied.unflatten(0, (batch, -1)).transpose(0, 1).flatten(0, 1)  # in the order of the loop
    rest = (1 - torch.stack(own_weight)).mean() + _lab_distance(torch.stack(of_batch), copied)
    return ColourOutput(there + 0.1 * back, rest)


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """sRGB in [0, 1] to CIE Lab (D65): (…, 3, H, W) float to L in [0, 100], a and b in about [-100, 100]."""
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb.clamp(min=0) + 0.055) / 1.055)**2.4)
    matrix = rgb.new_tensor([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169],
                             [0.019334, 0.119193, 0.950227]])
    white = rgb.new_tensor([0.950456, 1.0, 1.088754])  # XYZ of D65
    # no matrix product: autocast would round it to bfloat16
    xyz = (linear.unsqueeze(-4) * (matrix / white[:, None])[:, :, None, None]).sum(-3)
    curved, straight = xyz.clamp(min=1e-6)**(1 / 3), (24389 / 27 * xyz + 16) / 116
    x, y, z = torch.where(xyz > 216 / 24389, curved, straight).unbind(-3)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -3)


def scale_lab(lab: Tensor) -> Tensor:
    """Lab (…, 3, H, W) to about [-1, 1]: (L - 50) / 50, a / 127, b / 127."""
    return lab / lab.new_tensor([50, 127, 127])[:, None, None] - lab.new_tensor([1, 0, 0])[:, None, None]


def colour_classes(lab: Tensor, centres: tuple[tuple[int, ...], ...]) -> Tensor:
    """The nearest of `LAB_CLASSES` or `AB_CLASSES` to every pixel: (…, 3, H, W) Lab to (…, H, W) int64."""
    points = lab.new_tensor(centres)
    pixels = lab.movedim(-3, -1)[..., -points.shape[1]:]
    with torch.autocast(lab.device.type, enabled=False):
        return (points.square().sum(1) - 2 * pixels @ points.t()).argmin(-1)


def one_hot_cells(classes: Tensor, count: int, stride: int) -> Tensor:
    """Shares of the classes in each cell: (B, T, H, W) int64 to (B, T, count, H/stride, W/stride)."""
    one_hot = F.one_hot(classes.flatten(0, 1), count).movedim(-1, 1).float()
    return F.avg_pool2d(one_hot, stride).unflatten(0, classes.shape[:2])


def channel_factors(generator: torch.Generator, droppable: tuple[int, ...] = (0, 1, 2), *, most: int = 2,
                    probability: float = 0.7) -> Tensor:
    """Factors (3,) of the input channels: 0 for dropped ones, 3 / (3 - number of dropped) for the others.

    With `probability`, one to `most` of the `droppable` channels are dropped. The defaults are CorrFlow's
    and ContrastCorr's; MAST always drops channel 1 or 2.
    """
    chance, count = torch.rand(2, generator=generator).tolist()
    order = torch.randperm(len(droppable), generator=generator).tolist()
    factors = torch.ones(3)
    if chance < probability:
        dropped = 1 + int(count * most)
        factors[[droppable[i] for i in order[:dropped]]] = 0
        factors *= 3 / (3 - dropped)
    return factors
