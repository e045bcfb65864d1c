"""Label propagation: masks carried through a video by its features (Eqs. 7, 8; App. C)."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dulvos.errors import InputError, check_choices
from dulvos.tiled import Preselected, Window, windows

__all__ = ["PROTOCOLS", "Plain", "Protocol", "entries", "most_similar", "nearest", "object_ids", "propagate",
           "to_labels"]

Masks = Tensor | np.ndarray | Mapping[int, Tensor | np.ndarray]


@dataclass(frozen=True)
class Protocol:
    """The rules of label propagation; the defaults are the release's for DAVIS-2017 (Sec. 4, App. C).

    By the paper's text (P = 25), a cell would look at a box of 25x25 cells only, in the reference too.

    Raises:
        InputError: a value out of range or unknown.
    """

    context: int = 20  # recent frames to copy from, besides the reference
    radius: float = 12.0  # of the neighbourhood in recent frames, in cells
    neighbourhood: str = "disc"  # disc: distance < radius; box: |dy| and |dx| <= radius
    restrict_reference: bool = False  # copy from the reference within the neighbourhood only
    repeat_reference: bool = True  # at first, let the reference replace missing recent frames
    topk: int = 10  # number of most similar cells to copy from
    ties: bool = False  # also copy from all cells that tie with the last
    tau: float = 0.05  # temperature τ of the softmax over their cosines
    shrink: str = "bilinear"  # masks to cells: bilinear (corners aligned) or nearest
    enlarge: str = "bilinear"  # cells to pixels: bilinear (corners aligned) or normalised (DINO's)

    def __post_init__(self) -> None:
        # similarities / τ overflow if tau is smaller
        if self.context < 1 or self.topk < 1 or not self.radius > 0 or not self.tau >= 1e-6:
            raise InputError("context and topk must be >= 1, radius > 0 and tau >= 1e-6, not "
                             f"context={self.context}, topk={self.topk}, radius={self.radius}, "
                             f"tau={self.tau}")
        check_choices(self, neighbourhood=("disc", "box"), shrink=("bilinear", "nearest"),
                      enlarge=("bilinear", "normalised"))


# of CRW (Jabri et al., NeurIPS 2020), which the paper uses, and of DINO (Caron et al., ICCV 2021)
PROTOCOLS = {
    "crw": Protocol(),
    "dino": Protocol(context=7, neighbourhood="box", restrict_reference=True, repeat_reference=False, topk=5,
                     ties=True, tau=0.1, shrink="nearest", enlarge="normalised"),
}


class Plain:
    """Compares each cell of a frame with all cells of remembered frames that it may copy from.

    Arguments:
        first: (h, w, K) float, the first frame to be remembered.
        slots: number of frames to remember.
        topk: number of the largest similarities that must be found; this class finds all.
    """

    def __init__(self, first: Tensor, slots: int, topk: int):
        self.keys = first.new_empty(slots, *first.shape)

    def put(self, slot: int, keys: Tensor) -> None:
        """Remember a frame (h, w, K)."""
        self.keys[slot] = keys

    def similarities(self, query: Tensor, tiles: Sequence[Window], near: Sequence[int],
                     everywhere: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """Similarities of a frame's cells with remembered cells, tile by tile.

        Arguments:
            query: (h, w, K) float, the frame.
            tiles: the frame's tiles, of Q cells each.
            near: slots to compare with within the windows; a slot that is listed n times counts n times.
            everywhere: slots to compare with as a whole.

        Yields:
            For each tile, similarities (Q, n), -inf where too far away, and the numbers (n,) of these
            remembered cells, in [0, slots·h·w).
        """
        numbers = torch.arange(self.keys[..., 0].numel(), device=query.device).view(self.keys.shape[:3])
        for rows, columns, near_rows, near_columns, far in tiles:
            tile = query[rows, columns].flatten(0, 1)  # [Q, K]
            keys = self.keys[:, near_rows, near_columns][near].flatten(1, 2)  # [F, W, K]
            value = torch.einsum("qk,fwk->qfw", tile, keys).masked_fill(far.t()[:, None], -torch.inf)
            values, cells = [value.flatten(1)], [numbers[:, near_rows, near_columns][near].flatten()]
            for slot in everywhere:
                values.append(tile @ self.keys[slot].flatten(0, 1).t())  # [Q, h·w]
                cells.append(numbers[slot].flatten())
            yield torch.cat(values, 1), torch.cat(cells)


def most_similar(similarity: Tensor, protocol: Protocol) -> tuple[Tensor, Tensor]:
    """The topk most similar of n cells, and their weights: softmax(cosine / τ) over these topk (Eq. 7).

    Arguments:
        similarity: (Q, n) float.

    Returns:
        Weights (Q, k) float and indices (Q, k) int64; k = min(topk, n), or more with `protocol.ties`.
    """
    value, index = similarity.topk(min(protocol.topk, similarity.shape[1]), 1, sorted=False)
    if protocol.ties:
        least = value.amin(1, keepdim=True).clamp(min=torch.finfo(value.dtype).min)
        count = int((similarity >= least).sum(1).max())
        value, index = similarity.topk(count, 1)
        value = value.masked_fill(value < least, -torch.inf)
    return (value / protocol.tau).softmax(1), index


def entries(t: int, reference: int, protocol: Protocol) -> tuple[list[int], list[int]]:
    """The frames that frame t > reference copies from: within the neighbourhood, and as a whole."""
    recent = range(t - protocol.context, t)
    near = [max(j, reference) for j in recent if protocol.repeat_reference or j > reference]
    return ([reference, *near], []) if protocol.restrict_reference else (near, [reference])


def object_ids(first_mask: Masks) -> tuple[int, ...]:
    """Ids of the channels that `propagate` yields: 0 (background), then the objects' ids, ascending.

    Soft masks of C channels have the ids 0 ... C - 1.

    Raises:
        InputError: no mask, one of another kind or with a negative id, or masks of different sizes.
    """
    return _read(first_mask)[1]


def _read(first_mask: Masks) -> tuple[dict[int, Tensor], tuple[int, ...]]:
    given = first_mask if isinstance(first_mask, Mapping) else {0: first_mask}
    arrays = {int(t): np.asarray(mask.detach().cpu() if isinstance(mask, Tensor) else mask)
              for t, mask in given.items()}
    kinds = {(mask.shape, mask.dtype.kind in "biu") for mask in arrays.values()}
    shape, integer = kinds.pop() if len(kinds) == 1 else ((), False)
    if len(shape) != (2 if integer else 3) or min(arrays) < 0:
        shapes = {t: f"{mask.dtype} {mask.shape}" for t, mask in arrays.items()}
        raise InputError("masks must be (H, W) integer ids or (C, H, W) floats, at least one, all of one "
                         f"size, at frames >= 0, not {shapes}")
    kind = np.int64 if integer else np.float32
    masks = {t: torch.from_numpy(mask.astype(kind)) for t, mask in arrays.items()}
    if not integer:
        return masks, tuple(range(shape[0]))
    ids = tuple(sorted({0}.union(*(mask.unique().tolist() for mask in masks.values()))))
    if ids[0] < 0:
        raise InputError(f"ids in a mask must be >= 0, not {ids[0]}")
    return masks, ids


def nearest(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., H, W) resized to (..., h, w): the pixel at the centre of each cell, exactly as PIL's NEAREST."""
    # summed like PIL: where a centre lies between two pixels, the rounding of the sum decides
    rows, columns = (np.cumsum([old / new / 2] + [old / new] * (new - 1)).astype(int)
                     for new, old in zip(size, maps.shape[-2:]))
    return maps[..., rows[:, None], columns]


def to_labels(soft: Tensor, size: tuple[int, int], ids: tuple[int, ...], *, enlarge: str = "bilinear",
              stride: int = 8) -> Tensor:
    """Ids at full size: the argmax over enlarged soft masks.

    Arguments:
        soft: (M, h, w) float, background first.
        size: (H, W) in pixels.
        ids: the M channels' ids, as `object_ids` returns them.
        enlarge: "bilinear" enlarges to `size`, with aligned corners, before the argmax. "normalised"
            enlarges `stride` times (bilinear, corners not aligned), stretches each channel to [0, 1], takes
            the argmax and resizes the ids to `size` by nearest neighbours.
        stride: pixels per cell; only "normalised" needs it.

    Returns:
        (H, W) int64 on the device of `soft`.
    """
    names = torch.as_tensor(ids, device=soft.device)
    if enlarge == "bilinear":
        return names[F.interpolate(soft[None], size, mode="bilinear", align_corners=True)[0].argmax(0)]
    large = F.interpolate(soft[None], scale_factor=stride, mode="bilinear", align_corners=False)[0]
    low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
    # a constant channel stays as it is; stretching would show its rounding errors
    large = torch.where(high - low > 1e-6 * high, (large - low) / (high - low), large)
    return nearest(names[large.argmax(0)], size)


def propagate(features: Iterable[Tensor | None], first_mask: Masks, protocol: Protocol = PROTOCOLS["crw"], *,
              history: Sequence[Tensor] = (), ended: Mapping[int, Collection[int]] | None = None,
              engine: Callable[[Tensor, int, int], Any] | None = None, **changes: Any) -> Iterator[Tensor]:
    """Carry masks through a video; yields soft masks frame by frame, those of annotated frames included.

    Each cell of frame t is compared with every cell of the reference frame t₀, and with the cells at distance
    d < radius in the frames max(j, t₀), j = t - context … t - 1, so that t₀ counts several times at first.
    The cell's mask is the mean of the masks at the topk most similar cells, weighted by softmax(cosine / τ)
    over those (Eqs. 7, 8). Other protocols change these rules.
    Each annotated frame is a reference with a context of its own. A channel is carried from the newest
    reference that annotates it, the background from the first one, and all contexts hold the merged masks.
    Memory holds `context` frames and the references, however long the video is.

    Arguments:
        features: (T, K, h, w) float, L2-normalised over K; or an iterable of (K, h, w) frames.
        first_mask: the mask of frame 0, or a mapping from frame numbers to masks, each with the objects that
            are new (or corrected) in that frame. A mask is (H, W) integer ids, with or without gaps, where 0
            is background; or (C, H, W) float soft masks of any C channels. In a mapping of soft masks,
            channel 0 is the background, and a channel that is 0 everywhere is not annotated. Frames before
            the first mask are background.
        protocol: the rules, such as `PROTOCOLS["dino"]`.
        history: soft masks (M, h, w) of the first frames, as an earlier call yielded them. They are not
            yielded again, and later frames equal those of an uninterrupted run to the bit. `features` may
            give None for frames of the history that are neither annotated nor among its last `context`.
        ended: frame number -> ids of the objects that are gone from that frame on. They become background,
            until an annotation of that frame or a later one brings them back.
        engine: compares the cells: `Plain` or `dulvos.tiled.Preselected`, with the same result; None takes
            the faster one.
        changes: fields of the protocol to replace, such as `topk=5`.

    Yields:
        (M, h, w) float32 of the frames from len(history) on; channels as in `object_ids(first_mask)`.

    Raises:
        InputError: a setting out of range; masks of different sizes or of frames outside the video; frames
            of different shapes; features that are not finite; too little memory for `context` frames.
    """
    protocol = replace(protocol, **changes)
    masks, ids = _read(first_mask)
    return _propagate(features, masks, ids, protocol, history, ended or {}, engine or _fastest)


def _propagate(features: Iterable[Tensor | None], masks: dict[int, Tensor], ids: tuple[int, ...],
               protocol: Protocol, history: Sequence[Tensor], ended: Mapping[int, Collection[int]],
               engine: Callable) -> Iterator[Tensor]:
    start, known, context = min(masks), len(history), protocol.context
    references = sorted(masks)  # each annotated frame has a context of its own (Sec. 4.2; App. C, footnote)
    owner = torch.full((len(ids),), -1)  # the reference that carries a channel
    gone: set[int] = set()  # channels of ended objects
    shape, t = None, -1

    def slot(frame: int) -> int:  # of the memory: references stay there, recent frames take turns
        return references.index(frame) if frame in masks else len(masks) + (frame - start - 1) % context

    for t, frame in enumerate(features):
        gone |= {ids.index(i) for i in ended.get(t, ()) if i in ids[1:]}
        if t < known - context and t not in masks:
            continue
        assert frame is not None, f"frame {t} is needed, though its soft mask is known"
        shape = shape or frame.shape
        keys = _checked(frame, t, shape, protocol)
        size = height, width = keys.shape[0], keys.shape[1]
        with torch.autocast(keys.device.type, enabled=False):
            if t == start:
                slots = len(masks) + context
                # copies of the reference are ties, which all count
                topk = max(protocol.topk, context + 1) if protocol.ties else protocol.topk
                try:
                    memory = engine(keys, slots, topk)
                    table = keys.new_zeros(slots, height * width, len(ids), dtype=torch.float32)  # soft masks
                except RuntimeError as error:
                    raise InputError(f"context={context} needs too much memory; give less") from error
                tiles = windows(height, width, protocol.radius, protocol.neighbourhood, keys.device)

            if t < known:
                soft = history[t].to(keys.device, torch.float32).flatten(1).t()  # [h·w, M]
            else:
                soft = keys.new_zeros(height * width, len(ids), dtype=torch.float32)
                if t < start:
                    soft[:, 0] = 1
                for reference in references:
                    own = owner == reference
                    if not own.any():  # it comes later, or newer references carry all its channels
                        continue
                    near, everywhere = ([slot(j) for j in js] for js in entries(t, reference, protocol))
                    found = memory.similarities(keys, tiles, near, everywhere)
                    soft += _mix(found, tiles, table, size, protocol) * own.to(soft)
                for channel in gone:
                    soft[:, 0] += soft[:, channel]
                    soft[:, channel] = 0
            if t in masks:
                mask = masks[t]  # channels, or ids
                maps = mask if mask.ndim == 3 else torch.stack([mask == i for i in ids]).float()  # [M, H, W]
                held = maps.flatten(1).any(1)  # the channels that it annotates
                held[0] = t == start
                if t >= known:
                    soft = _annotated(soft, maps, size, held, protocol)
                gone -= set(held.nonzero()[:, 0].tolist())
                owner[held] = t
            if t >= start:
                memory.put(slot(t), keys)
                table[slot(t)] = soft
        if t >= known:
            yield soft.t().reshape(len(ids), height, width)
    if t < (last := max(*masks, *ended, known - 1)):
        raise InputError(f"a mask, an end or the history names frame {last}, but the video has {t + 1} "
                         "frames (numbered from 0)")


def _checked(frame: Tensor, t: int, shape: torch.Size, protocol: Protocol) -> Tensor:
    """A frame's features (h, w, K), in float32 or more: half precision would choose other cells."""
    if frame.ndim != 3 or frame.shape != shape:
        raise InputError(f"features of frame {t} have the shape {tuple(frame.shape)}, the first ones "
                         f"{tuple(shape)}; all must have one shape (K, h, w)")
    height, width = frame.shape[1:]
    if protocol.topk > height * width:
        raise InputError(f"topk={protocol.topk} exceeds the {height}x{width} cells of a frame; give at most "
                         f"{height * width}")
    keys = frame.to(torch.promote_types(frame.dtype, torch.float32)).permute(1, 2, 0).contiguous()
    if not keys.isfinite().all():
        raise InputError(f"features of frame {t} are infinite or not numbers: the weights are damaged, or "
                         "bf16 fails (it does on frames 8 pixels wide); try precision='fp32'")
    return keys


def _mix(found: Iterable[tuple[Tensor, Tensor]], tiles: Sequence[Window], table: Tensor,
         size: tuple[int, int], protocol: Protocol) -> Tensor:
    """Eq. 8: each cell's mask, mixed from the masks (S, h·w, M) of the most similar cells: (h·w, M)."""
    mixed = table.new_empty(*size, table.shape[-1])
    for (similarity, cells), window in zip(found, tiles):  # `found` first, so that it ends and frees memory
        weight, index = most_similar(similarity, protocol)
        tile = mixed[window.rows, window.columns]
        tile.copy_(F.embedding_bag(cells[index], table.flatten(0, 1), per_sample_weights=weight.float(),
                                   mode="sum").view(tile.shape))
    return mixed.flatten(0, 1)


def _annotated(soft: Tensor, maps: Tensor, size: tuple[int, int], held: Tensor, protocol: Protocol) -> Tensor:
    """Carried masks p (h·w, M) after an annotation m (M, H, W): (1 - s)·p + s·m, where s sums m's objects."""
    small = (nearest(maps, size) if protocol.shrink == "nearest" else
             F.interpolate(maps[None], size, mode="bilinear", align_corners=True)[0])
    m = small.flatten(1).t().to(soft)
    if held[0]:  # the first annotation, which also holds the background
        return m
    m[:, 0] = 0
    soft[:, held] = 0  # a correction replaces what older references carry
    s = m.sum(1, keepdim=True)
    return (1 - s) * soft + s * m


def _fastest(first: Tensor, slots: int, topk: int) -> Plain | Preselected:
    # measured on a CPU: on maps below about 400 cells, the preselection takes longer than it saves
    large = first.shape[0] * first.shape[1] >= 400
    return (Preselected if large and first.device.type == "cpu" else Plain)(first, slots, topk)
