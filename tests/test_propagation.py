"""Label propagation: the released scripts' numbers, a dense oracle, and what each rule means."""

import gc
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dulvos.errors import InputError
from dulvos.propagation import PROTOCOLS, Plain, object_ids, propagate, to_labels
from dulvos.tiled import Preselected
from tests.oracles import blobs, propagation_oracle, random_features, resize

ENGINES = {"default": None, "plain": Plain, "float32": partial(Preselected, coarse=torch.float32),
           "bfloat16": partial(Preselected, coarse=torch.bfloat16)}
every_engine = pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)


def correlated(seed: int, *shape: int, change: float = 0.7, dtype: torch.dtype = torch.float64) -> Tensor:
    """Features (T, K, h, w) that change a little from frame to frame, as a video's do."""
    noise = random_features(seed, *shape)
    return F.normalize(noise[:1] + change * noise, dim=1).to(dtype)


def run(features: Tensor, masks: np.ndarray | dict, **settings) -> Tensor:
    """Soft masks of all frames, (T, M, h, w)."""
    return torch.stack(list(propagate(features, masks, **settings)))


@every_engine
@pytest.mark.parametrize("case", ["propagate_small", "propagate_late_objects", "propagate_paper"])
def test_golden(golden: Path, case: str, engine) -> None:
    expected = dict(np.load(golden / f"{case}.npz"))
    late = "annotations" in expected
    masks = (dict(zip(expected["annotated_frames"].tolist(), expected["annotations"])) if late
             else expected["first_mask"])
    settings = {name: expected[name].item() for name in ("context", "radius", "topk", "tau")}
    ids = object_ids(masks)
    assert not late or ids == tuple(expected["ids"])
    soft = run(torch.from_numpy(expected["features"]), masks, engine=engine, **settings)[expected["frames"]]
    theirs = torch.from_numpy(expected["soft"])
    torch.testing.assert_close(soft, theirs, rtol=0, atol=1e-4)
    best = resize(theirs, *expected["argmax"].shape[1:]).topk(2, 1).values
    clear = best[:, 0] - best[:, 1] > 1e-5  # the two best channels are more than a rounding error apart
    assert clear.double().mean() > 0.99
    for frame, labels, pixels in zip(soft, torch.from_numpy(expected["argmax"]).long(), clear):
        assert torch.equal(to_labels(frame, labels.shape, ids)[pixels], labels[pixels])


@every_engine
@pytest.mark.parametrize("case", ["dino_small", "dino_protocol"])
def test_golden_dino(golden: Path, case: str, engine) -> None:
    expected = np.load(golden / f"{case}.npz")
    mask, labels = expected["first_segmentation"], expected["labels"].astype(int)
    features = F.normalize(torch.from_numpy(expected["features"]), dim=1)
    soft = run(features, mask, protocol=PROTOCOLS["dino"], engine=engine, topk=expected["topk"].item(),
               context=expected["n_last_frames"].item(), radius=expected["size_mask_neighborhood"].item(),
               tau=expected["tau"].item())
    torch.testing.assert_close(soft[1:], torch.from_numpy(expected["soft"]), rtol=0, atol=1e-5)
    up = partial(to_labels, ids=object_ids(mask), enlarge="normalised", stride=int(expected["patch"]))
    for frame, ids in zip(soft[1:], labels):
        small = up(frame, ids.shape).numpy()
        assert (small != ids).mean() < 1e-4  # ties
        picture = Image.fromarray(small.astype(np.uint8)).resize((854, 480), Image.NEAREST)
        assert np.array_equal(up(frame, (480, 854)).numpy(), np.asarray(picture))


BOX = {"neighbourhood": "box"}
CASES = {  # h, w, T, context, radius, topk, objects annotated at each frame, other settings
    "smaller than the radius": (5, 7, 25, 20, 12, 10, {0: (1, 2)}, {}),
    "one row": (1, 19, 7, 4, 3, 5, {0: (1,)}, {}),
    "tiles, four objects": (41, 35, 4, 2, 12, 10, {0: (1, 2, 3, 4)}, {}),
    "tall, ids with gaps, fractional radius": (33, 6, 6, 3, 4.5, 5, {0: (3, 7)}, {}),
    "radius of one cell": (7, 9, 6, 3, 1, 4, {0: (2,)}, {}),
    "radius below one cell": (6, 9, 5, 2, 0.5, 4, {0: (1,)}, {}),
    "diagonal distances": (12, 12, 4, 2, 5, 10, {0: (1,)}, {}),
    "every cell in the top-k": (4, 5, 9, 3, 2, 20, {0: (1,)}, {}),
    "nearest neighbour": (8, 8, 24, 20, 12, 1, {0: (1, 2)}, {}),
    "two references within a context, two objects in one frame":
        (18, 17, 25, 20, 5, 10, {0: (1,), 3: (2,), 9: (5, 6)}, {}),
    "references further apart than a context": (8, 9, 16, 4, 3, 5, {0: (1,), 7: (2,), 8: (3,)}, {}),
    "first mask late": (11, 8, 25, 20, 3, 10, {2: (4,), 4: (2, 9)}, {}),
    "corrections, and a reference without objects":
        (8, 11, 14, 20, 12, 10, {0: (1, 2), 3: (), 4: (1,), 6: (3, 1), 9: (2,)}, {}),
    "a disc without end": (6, 9, 5, 20, float("inf"), 10, {0: (1,)}, {}),
    "a box beyond the map": (6, 9, 5, 20, 1e5, 10, {0: (1,)}, BOX),
    "box, fractional radius": (20, 27, 6, 3, 2.5, 7, {0: (1, 2)}, BOX),
    "restricted reference": (13, 17, 6, 3, 4, 7, {0: (1, 2), 3: (3,)}, {"restrict_reference": True}),
    "the reference counts once": (13, 17, 6, 3, 4, 7, {0: (1, 2), 3: (3,)}, {"repeat_reference": False}),
    "DINO's rules": (13, 28, 11, 7, 5, 5, {0: (1, 2), 4: (3, 1)},
                     BOX | {"restrict_reference": True, "repeat_reference": False, "ties": True, "tau": 0.1}),
}


@every_engine
@pytest.mark.parametrize("case", CASES)
def test_agrees_with_a_dense_oracle(case: str, engine) -> None:
    """In float64, where no two similarities are so close that rounding could choose between them.

    In bfloat16 hundreds of entries of a nearly still video look alike; none that counts may be left out.
    """
    height, width, frames, context, radius, topk, objects, other = CASES[case]
    rules = {"context": context, "radius": radius, "topk": topk, **other}
    change = 0.02 if engine is ENGINES["bfloat16"] else 0.7
    features = correlated(len(case), frames, 8, height, width, change=change)
    masks = {t: blobs(t, ids, 8 * height - 3, 8 * width + 5) for t, ids in objects.items()}
    ids = object_ids(masks)
    assert ids == tuple(sorted({0}.union(*objects.values())))
    soft = run(features, masks, engine=engine, **rules)
    assert soft.dtype == torch.float32
    rules.pop("ties", None)  # there are none
    expected = propagation_oracle(features, masks, ids, **rules)
    torch.testing.assert_close(soft.double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("way", ["float32", "bfloat16", "float16", "autocast"])
def test_cells_are_chosen_by_float32_similarities(way: str) -> None:
    """Similarities rounded to 8 or 11 bits would copy from other cells."""
    features, mask = random_features(3, 2, 64, 16, 20, dtype=torch.float32), blobs(0, (1, 2), 128, 160)
    if way in ("bfloat16", "float16"):
        features = features.to(getattr(torch, way))
    keys = features.double().flatten(2)
    similarity = (keys[0].T @ keys[1]).topk(11, 0).values
    clear = (similarity[:-1] - similarity[1:]).min(0).values.view(16, 20) > 1e-5
    assert clear.double().mean() > 0.9
    with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
        soft = run(features, mask, context=1)[1]
    expected = propagation_oracle(features, {0: mask}, (0, 1, 2), context=1)[1]
    torch.testing.assert_close(soft[:, clear].double(), expected[:, clear], rtol=0, atol=1e-4)


@every_engine
def test_ties_are_all_kept(engine) -> None:
    """With one-hot features a cell copies from all cells of its kind, whatever topk is."""
    kind = torch.arange(63).view(7, 9) % 4  # the kinds' shares differ
    features = F.one_hot(kind, 4).permute(2, 0, 1).float().expand(3, -1, -1, -1)
    masks = torch.rand(2, 2, 7, 9, generator=torch.Generator().manual_seed(0))
    mean = torch.stack([masks[:, :, kind == k].mean(2) for k in range(4)])  # [kind, frame, M]
    rules = {"context": 3, "radius": 99, "tau": 0.001, "topk": 2, "ties": True, "engine": engine}
    for repeated, share in ((False, 1 / 2), (True, 1 / 4)):  # frame 1 among (0, 1) or among (0, 0, 0, 1)
        settings = rules | {"repeat_reference": repeated}
        *_, soft = propagate(features, masks[0].numpy(), history=masks, **settings)
        expected = ((1 - share) * mean[:, 0] + share * mean[:, 1])[kind].permute(2, 0, 1)
        torch.testing.assert_close(soft, expected)


def test_masks_are_reduced_to_nearest_pixels_and_a_constant_channel_is_not_stretched() -> None:
    mask = blobs(0, (1, 5), 15, 21)
    hard = run(random_features(0, 1, 4, 6, 8), mask, topk=1, shrink="nearest")[0]
    picture = np.asarray(Image.fromarray(mask).resize((8, 6), Image.NEAREST))
    assert np.array_equal(hard.numpy(), np.stack([picture == i for i in (0, 1, 5)]))
    flat = torch.tensor([0.9, 0.1]).view(2, 1, 1).expand(2, 2, 3)
    assert (to_labels(flat, (8, 12), (0, 4), enlarge="normalised", stride=4) == 0).all()


@pytest.mark.parametrize("size", [(40, 56), (5, 7)])
def test_soft_maps_are_carried_as_ids_are(size: tuple[int, int]) -> None:
    """Any number of channels, none of them special: keypoints, for example."""
    features, mask = correlated(2, 6, 8, 5, 7), blobs(0, (1, 2), *size)
    maps = np.stack([mask == i for i in range(3)]).astype(np.float32)
    assert object_ids(maps) == (0, 1, 2)
    learnt = torch.from_numpy(maps).requires_grad_()  # on a GPU it would be copied, too
    torch.testing.assert_close(run(features, learnt), run(features, mask))
    torch.testing.assert_close(run(features, 3 * maps[1:]), 3 * run(features, mask)[:, 1:])
    late = blobs(1, (2,), *size)
    later = np.stack([late == 0, late < 0, late == 2]).astype(np.float64)  # channel 1 is not annotated
    torch.testing.assert_close(run(features, {0: maps, 3: later}), run(features, {0: mask, 3: late}))


def test_a_correction_owns_its_object_and_an_ended_object_is_background() -> None:
    """Object 3 as first drawn ends or is drawn anew; object 5 is left alone."""
    still = random_features(2, 1, 32, 8, 10).expand(9, -1, -1, -1)
    first, again = np.zeros((8, 10), int), np.zeros((8, 10), int)
    first[:3, :3], first[5:, 5:], again[:2, 6:9] = 3, 5, 3
    for end in (6, 2):  # 6: the correction comes at once
        # a correction in the frame of an end wins; no object is called 0 or 9
        softs = run(still, {0: first, 6: again}, ended={2: [0, 3, 9]} if end == 2 else {6: [3]})
        for t, soft in enumerate(softs):
            place = again == 3 if t >= 6 else (first == 3) & (t < end)
            expected = torch.from_numpy(np.stack([~place & (first != 5), place, first == 5])).float()
            known = slice(int(t >= 6), None)  # after a correction the background is not renormalised
            torch.testing.assert_close(soft[known], expected[known], rtol=0, atol=1e-3, msg=f"frame {t}")
        assert (softs[end:6, 1] == 0).all()


def test_a_reference_that_carries_nothing_any_more_costs_nothing() -> None:
    """Its object was given anew; only the first still carries the background."""
    asked = []

    class Counted(Plain):
        def similarities(self, query, tiles, near, everywhere):
            asked.extend(everywhere)
            return super().similarities(query, tiles, near, everywhere)

    mask = np.zeros((48, 64), int)
    mask[10:30, 10:40] = 1
    run(correlated(0, 7, 16, 6, 8), {0: mask, 2: mask, 4: mask}, context=3, engine=Counted)
    assert sorted(asked) == [0] * 6 + [1] * 2 + [2] * 2  # the first in all frames, beside it the newest


@every_engine
def test_streams_a_long_video(engine) -> None:
    """Frames are asked for one by one, none is kept, and memory is that of a context."""
    read: list[weakref.ref] = []

    def frames() -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(120):
            frame = F.normalize(torch.randn(8, 6, 7, generator=generator), dim=0)
            read.append(weakref.ref(frame))
            yield frame
            del frame

    def bytes_of_tensors() -> int:  # each storage once
        gc.collect()
        storages = [thing.untyped_storage() for thing in gc.get_objects() if type(thing) is Tensor]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    masks = {0: blobs(0, (1,), 24, 28), 30: blobs(1, (2,), 24, 28)}
    stream, used = propagate(frames(), masks, context=5, engine=engine), {}
    assert not read
    for t, _ in enumerate(stream):
        assert len(read) == t + 1 and sum(frame() is not None for frame in read) <= 2
        if t in (40, 119):
            used[t] = bytes_of_tensors()
    assert used[119] <= used[40]


def test_a_tensor_and_an_iterator_give_the_same() -> None:
    features, mask = correlated(7, 6, 8, 7, 9, dtype=torch.float32), blobs(4, (1,), 56, 72)
    again = []
    for soft in propagate(iter(features), torch.from_numpy(mask)):
        again.append(soft.clone())
        soft.zero_()  # what a caller does with a frame's masks does not change the next frame's
    assert torch.equal(torch.stack(again), run(features, mask))


CONTINUED = {  # first unknown frame, annotated frames, ended objects
    "before the first mask": (1, {2: (1,)}, {}),
    "the first mask is kept, the frames between are not": (11, {0: (1, 2)}, {}),
    "a correction at the first unknown frame": (9, {0: (1, 2), 9: (1,)}, {}),
    "references in the history, first mask late": (10, {1: (1,), 3: (2,), 8: (3,)}, {}),
    "ended and brought back, in the history and after it":
        (8, {0: (1, 2), 6: (2,), 11: (1,)}, {3: (2,), 9: (1,)}),
    "all is known": (14, {0: (1,)}, {}),
}


@every_engine
@pytest.mark.parametrize("case", CONTINUED)
def test_a_run_that_goes_on_equals_an_uninterrupted_one_to_the_bit(case: str, engine) -> None:
    known, objects, ended = CONTINUED[case]
    features, context = correlated(0, 14, 16, 9, 20, dtype=torch.float32), 4
    masks = {t: blobs(t, ids, 72, 160) for t, ids in objects.items()}
    settings = {"context": context, "ended": ended, "engine": engine}
    whole = run(features, masks, **settings)
    needed = [None if t < known - context and t not in masks else frame for t, frame in enumerate(features)]
    rest = list(propagate(needed, masks, history=whole[:known], **settings))
    assert len(rest) == len(whole) - known
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(rest, whole[known:]))


FRAMES, MASK = random_features(0, 4, 8, 6, 7), blobs(0, (1,), 12, 14)
NAN = FRAMES.clone()
NAN[2, 3, 2, 5] = float("nan")


@pytest.mark.parametrize(("features", "masks", "settings", "named"), [
    (FRAMES, {0: MASK, 2: MASK[:6]}, {}, r"\(12, 14\).*\(6, 14\)"),
    (FRAMES, {0: MASK, 2: np.zeros((2, 12, 14))}, {}, r"\(12, 14\).*\(2, 12, 14\)"),
    ([*FRAMES[:2], FRAMES[2, :, 1:]], MASK, {}, r"frame 2.*\(8, 5, 7\).*\(8, 6, 7\)"),
    (NAN, MASK, {}, "frame 2"),
    (NAN[2:], MASK, {}, "frame 0"),
    (FRAMES, MASK, {"history": torch.zeros(5, 2, 6, 7)}, "frame 4.*4 frames"),
    (FRAMES, MASK, {"ended": {4: [1]}}, "frame 4.*4 frames"),
    *[(None, MASK, {name: value}, name) for name, value in (  # at once, before a frame is asked for
        ("context", 0), ("topk", 0), ("radius", 0), ("radius", float("nan")), ("tau", 0), ("tau", -1.0),
        ("neighbourhood", "square"), ("shrink", "area"), ("enlarge", "nearest"))]])
def test_wrong_inputs_are_named(features: Tensor | list | None, masks, settings: dict, named: str) -> None:
    with pytest.raises(InputError, match=named):
        list(propagate(features, masks, **settings))
