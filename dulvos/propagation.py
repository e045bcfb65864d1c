"""Label propagation: the masks of annotated frames carried through a video by its features (App. C).

Which cells are similar enough, and how their labels are mixed, stands in `dulvos.batched` in a page and in `dulvos.tiled`, which a
processor takes and which leaves cells out by a bound that holds for cosines; `dulvos.correspondence.sources` repeats it for pictures.
To try another rule, change `batched` and let `_engine` give it everywhere.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dulvos import batched, tiled
from dulvos.errors import InputError

__all__ = ["object_ids", "propagate", "to_labels"]

def object_ids(first_mask: Tensor | np.ndarray | Mapping[int, Tensor | np.ndarray]) -> tuple[int, ...]:
    """Ids of the channels that `propagate` gives for these masks: 0 (background), then the objects' ids, rising.

    Raises:
        InputError: a mask that is not of whole numbers.
    """
    masks = first_mask.values() if isinstance(first_mask, Mapping) else [first_mask]
    masks = [np.asarray(mask) for mask in masks]
    wrong = [mask.dtype for mask in masks if mask.dtype.kind not in "biu"]
    if wrong:
        raise InputError(f"masks hold ids, whole numbers, not {wrong[0]}")
    return tuple(sorted({0}.union(*(np.unique(mask).tolist() for mask in masks))))


def to_labels(soft: Tensor, size: tuple[int, int], ids: tuple[int, ...]) -> Tensor:
    """Ids at full size: soft masks enlarged bilinearly (align_corners=True), then the argmax.

    Arguments:
        soft: (M, h, w) float, background first.
        size: (H, W) in pixels.
        ids: of the M channels, as `object_ids` gives them.

    Returns:
        (H, W) int64 on the device of `soft`.
    """
    large = F.interpolate(soft[None], size, mode="bilinear", align_corners=True)[0]
    return torch.as_tensor(ids, device=soft.device)[large.argmax(0)]


def propagate(features: Iterable[Tensor | None], first_mask: Tensor | np.ndarray | Mapping[int, Tensor | np.ndarray], *,
              context: int = 20, radius: float = 12, topk: int = 10, tau: float = 0.05, history: Sequence[Tensor] = (),
              ended: Mapping[int, Collection[int]] | None = None) -> Iterator[Tensor]:
    """Carry masks through a video; soft masks come out frame by frame, the annotated frames' own included.

    Each cell of frame t is compared with the reference frame t₀ (every cell of it) and with frames max(j, t₀), j = t - context
    … t - 1 (cells at Euclidean distance d < radius), so that before t₀ + context the reference counts more than once. Its mask
    is the convex combination of the masks at the topk most similar cells, weighted by softmax(cosine / τ) over those (Eqs. 7, 8).
    Each annotated frame is a reference with a context of its own; a channel is carried by the newest reference that
    annotates it, the background by the first, and the merged mask is what all contexts remember.

    Memory does not depend on the length of the video: `context` frames and the references are kept.

    Arguments:
        features: (T, K, h, w) float, L2-normalised over K; or an iterable of (K, h, w) frames.
        first_mask: (H, W) integer ids of frame 0, 0 being background; or a mapping from frame number to such ids, where each
            holds the objects that are new (or corrected) in that frame. Ids may have gaps. Frames before the first are background.
        context: number of recent entries, >= 1; the reference comes on top.
        radius: exclusive bound on the distance to recent cells, in cells, > 0.
        topk: number of cells a label is copied from, in [1, h·w].
        tau: temperature τ, >= 1e-6.
        history: soft masks (M, h, w) of the first frames, as an earlier call yielded them. They are remembered, neither computed
            nor yielded again, and the result is that of the uninterrupted run to the bit. `features` still begins with frame 0,
            but may give None for frames that are neither annotated nor among the last `context` of the history.
        ended: frame number -> ids of the objects that are gone from that frame on: their mask moves to the background there
            and in all later frames, until a later annotation brings the object back.

    Yields:
        (M, h, w) float32 of frames len(history), len(history) + 1, …; channels as in `object_ids(first_mask)`.

    Raises:
        InputError: a parameter out of range, masks of differing size or frame numbers outside the video, frames of
            differing shape, features that are no numbers, no room for `context` frames, a history of other channels or cells,
            an ended object that is in no mask or is annotated in the same frame.
    """
    if context < 1 or topk < 1 or not radius > 0 or not tau >= 1e-6:  # with less, similarities / τ overflow
        raise InputError(f"context and topk must be >= 1, radius > 0 and tau >= 1e-6, not context={context}, topk={topk}, "
                         f"radius={radius}, tau={tau}")
    masks = dict(first_mask) if isinstance(first_mask, Mapping) else {0: first_mask}
    ids = object_ids(masks)
    masks = {int(t): torch.as_tensor(np.asarray(mask).astype(np.int64)) for t, mask in masks.items()}
    if (not masks or min(masks) < 0 or any(mask.ndim != 2 for mask in masks.values())
            or len({mask.shape for mask in masks.values()}) > 1):
        raise InputError("first_mask needs at least one mask (H, W) of ids, at frame numbers >= 0 and of one size, not "
                         + str({t: tuple(mask.shape) for t, mask in masks.items()}))
    if ids[0] < 0:
        raise InputError(f"ids in a mask must be >= 0, not {ids[0]}")
    for t, soft in enumerate(history):
        if soft.ndim != 3 or len(soft) != len(ids):
            raise InputError(f"history: the soft mask of frame {t} is {tuple(soft.shape)}, but must have {len(ids)} channels "
                             f"(M, h, w), one for each of the ids {ids}")
    ended = {int(t): set(gone) for t, gone in (ended or {}).items()}
    for t, gone in ended.items():
        if t < 0 or not gone <= set(ids[1:]):
            raise InputError(f"ended: frame {t} ends the objects {sorted(gone)}; frame numbers must be >= 0, objects among {ids[1:]}")
        if again := gone.intersection(masks[t].unique().tolist() if t in masks else ()):
            raise InputError(f"ended: frame {t} ends the object {min(again)} and annotates it; remove one of the two")
    return _propagate(features, masks, ids, context, radius, topk, tau, history, ended)


def _propagate(features: Iterable[Tensor | None], masks: dict[int, Tensor], ids: tuple[int, ...], context: int, radius: float,
               topk: int, tau: float, history: Sequence[Tensor], ended: dict[int, set[int]]) -> Iterator[Tensor]:
    start, known = min(masks), len(history)
    references: list[int] = []  # annotated frames, each with a context of its own (Sec. 4.2; App. C, footnote)
    owner = torch.full((len(ids),), -1)  # number of the reference that carries a channel
    gone: set[int] = set()  # channels of ended objects
    shape = None
    t = -1
    for t, frame in enumerate(features):
        gone |= {ids.index(i) for i in ended.get(t, ())}
        if t < known - context and t not in masks:
            continue
        if frame is None:
            raise InputError(f"frame {t} has no features; leave out only frames of the history that are not annotated and not "
                             f"among its last {context}")
        if shape is None:
            shape = channels, height, width = frame.shape
            if topk > height * width:
                raise InputError(f"topk={topk} exceeds the {height}x{width} cells of a frame; give at most {height * width}")
        if frame.shape != shape:
            raise InputError(f"frame {t} has features of shape {tuple(frame.shape)}, the first of {tuple(shape)}")
        if t < known and history[t].shape[1:] != shape[1:]:
            raise InputError(f"history: the soft mask of frame {t} has {tuple(history[t].shape[1:])} cells, its features "
                             f"{tuple(shape[1:])}")
        # similarities rounded to half precision, by the features or by autocast, would choose other cells
        keys = frame.to(torch.promote_types(frame.dtype, torch.float32)).permute(1, 2, 0).contiguous()  # [h, w, K]
        if not keys.isfinite().all():
            raise InputError(f"features of frame {t} are infinite or no numbers: the weights are damaged, or bf16 fails here "
                             "(as it does on frames 8 pixels wide); try precision='fp32'")
        if t == start:
            try:
                with torch.autocast(frame.device.type, enabled=False):
                    attention = _engine(frame.device)(keys, context, radius, topk, tau)
                # masks of the ring's frames, then those of the references
                table = keys.new_zeros(context + len(masks), height * width, len(ids), dtype=torch.float32)
            except RuntimeError as error:
                raise InputError(f"context={context} needs more memory than there is; give less") from error

        if t < known:
            soft = history[t].to(keys.device, torch.float32).flatten(1).t()  # [h·w, M]
        else:
            soft = torch.zeros(height * width, len(ids), device=keys.device)
            if t < start:
                soft[:, 0] = 1
            for number, reference in enumerate(references):
                if not (owner == number).any():  # later masks gave all its channels anew
                    continue
                with torch.autocast(frame.device.type, enabled=False):
                    carried = attention.attend(keys, *_recent(t, start, reference, context), number, table)
                soft += carried * (owner == number).to(soft)
            for channel in gone:
                soft[:, 0] += soft[:, channel]
                soft[:, channel] = 0
        if t in masks:
            held = torch.tensor([i in masks[t].unique().tolist() for i in ids])
            held[0] = not references
            if t >= known:
                annotated = _one_hot(masks[t], ids, height, width).to(soft)  # [h·w, M]
                if references:
                    annotated[:, 0] = 0
                    soft[:, held] = 0  # a correction replaces what older references carried
                    s = annotated.sum(1, keepdim=True)
                    annotated = (1 - s) * soft + s * annotated
                soft = annotated
            gone -= set(held.nonzero()[:, 0].tolist())
            owner[held] = len(references)
            table[context + len(references)] = soft
            references.append(t)
            attention.add_reference(keys)
        if t >= start:
            slot = (t - start) % context
            attention.put(slot, keys)
            table[slot] = soft
        if t >= known:
            yield soft.t().reshape(len(ids), height, width)
    if t < max(*masks, *ended, known - 1):
        raise InputError(f"a mask, an end or the history needs frame {max(*masks, *ended, known - 1)}, but the video has {t + 1} "
                         "frames (numbered from 0)")


def _one_hot(mask: Tensor, ids: tuple[int, ...], height: int, width: int) -> Tensor:
    """(H, W) ids -> (h·w, M) soft masks, reduced bilinearly (align_corners=True)."""
    one_hot = torch.stack([mask == i for i in ids]).float()
    return F.interpolate(one_hot[None], (height, width), mode="bilinear", align_corners=True)[0].flatten(1).t()


def _recent(t: int, start: int, reference: int, context: int) -> tuple[Tensor, Tensor]:
    """Slots of the ring that hold frames max(j, t₀), j = t - context … t - 1, and how often each of these counts."""
    age = torch.arange(max(start, t - context, reference), t)
    slots = ((age - start) % context).sort().values
    counts = torch.where(slots == (reference - start) % context, max(reference - (t - context) + 1, 1), 1)
    return slots, counts


def _engine(device: torch.device) -> type:
    """Elsewhere than on a processor, many small steps would wait for each other."""
    return tiled.Attention if device.type == "cpu" else batched.Attention
