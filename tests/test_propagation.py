"""Label propagation: the release's numbers, a dense oracle, and what each rule of the context means."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.propagation import plain
from dulvos import batched, propagation, tiled
from dulvos.errors import InputError
from dulvos.propagation import object_ids, propagate, to_labels
from tests.oracles import blobs, propagation_oracle, random_features, resize


def correlated(seed: int, *shape: int, change: float = 0.7, dtype: torch.dtype = torch.float64) -> Tensor:
    """Features (T, K, h, w) that change a little from frame to frame, as a video's do."""
    noise = random_features(seed, *shape)
    return F.normalize(noise[:1] + change * noise, dim=1).to(dtype)


def distinct(soft: Tensor, size: tuple[int, int]) -> Tensor:
    """Pixels whose two best channels are more than a rounding error apart: (n, H, W)."""
    best = resize(soft, *size).topk(2, 1).values
    return best[:, 0] - best[:, 1] > 1e-5


@pytest.fixture(params=["float32", "bfloat16", "batched"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each way in which cells are compared: by tiles, first in float32 or bfloat16, and as on a GPU."""
    if request.param == "batched":
        monkeypatch.setattr(propagation, "_engine", lambda device: batched.Attention)
    else:
        monkeypatch.setattr(tiled, "_coarse_dtype", lambda *_: getattr(torch, request.param))
    return request.param


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("case", ["propagate_small", "propagate_late_objects", "propagate_paper"])
def test_golden(golden: Path, case: str) -> None:
    expected = np.load(golden / f"{case}.npz")
    late = "annotations" in expected
    masks = dict(zip(expected["annotated_frames"].tolist(), expected["annotations"])) if late else expected["first_mask"]
    settings = {name: expected[name].item() for name in ("context", "radius", "topk", "tau")}
    ids = object_ids(masks)
    if late:
        assert ids == tuple(expected["ids"])
    soft = torch.stack(list(propagate(torch.from_numpy(expected["features"]), masks, **settings)))[expected["frames"]]
    theirs = torch.from_numpy(expected["soft"])
    torch.testing.assert_close(soft, theirs, rtol=0, atol=1e-4)
    clear = distinct(theirs, expected["argmax"].shape[1:])
    assert clear.double().mean() > 0.99
    for frame, labels, pixels in zip(soft, torch.from_numpy(expected["argmax"]).long(), clear):
        assert torch.equal(to_labels(frame, labels.shape, ids)[pixels], labels[pixels])


FRAMES = random_features(0, 4, 8, 6, 7)
MASK = blobs(0, (1,), 12, 14)

CASES = {  # h, w, T, context, radius, topk, objects annotated at each frame
    "short context": (9, 13, 8, 4, 3, 3, {0: (1,)}),
    "smaller than the radius": (5, 7, 25, 20, 12, 10, {0: (1, 2)}),
    "one row": (1, 19, 7, 4, 3, 5, {0: (1,)}),
    "several tiles, four objects": (20, 35, 4, 2, 12, 10, {0: (1, 2, 3, 4)}),
    "tall, ids with gaps, fractional radius": (33, 6, 6, 3, 4.5, 5, {0: (3, 7)}),
    "radius of one cell": (7, 9, 6, 3, 1, 4, {0: (2,)}),
    "radius below one cell": (6, 9, 5, 2, 0.5, 4, {0: (1,)}),
    "diagonal distances": (12, 12, 4, 2, 5, 10, {0: (1,)}),
    "every cell in the top-k": (4, 5, 9, 3, 2, 20, {0: (1,)}),
    "nearest neighbour": (8, 8, 24, 20, 12, 1, {0: (1, 2)}),
    "two references within a context, two objects in one frame": (18, 17, 25, 20, 5, 10, {0: (1,), 3: (2,), 9: (5, 6)}),
    "references further apart than a context": (8, 9, 16, 4, 3, 5, {0: (1,), 7: (2,), 8: (3,)}),
    "first mask late": (11, 8, 25, 20, 3, 10, {2: (4,), 4: (2, 9)}),
    "corrections": (8, 11, 14, 20, 12, 10, {0: (1, 2), 4: (1,), 6: (3, 1), 9: (2,)}),
    "a reference without objects": (8, 11, 8, 4, 12, 10, {0: (1, 2), 3: ()}),
    "t = 1 to 25, ten objects": (9, 20, 26, 20, 4, 10, {0: tuple(range(1, 11))}),
}


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_a_dense_oracle(case: str, way: str) -> None:
    """In float64, where no two similarities are so close that rounding could choose between them.

    In bfloat16 hundreds of entries of a nearly still video look alike; none that counts may be left out.
    """
    height, width, frames, context, radius, topk, objects = CASES[case]
    features = correlated(len(case), frames, 8, height, width, change=0.02 if way == "bfloat16" else 0.7)
    masks = {t: blobs(t, ids, 8 * height - 3, 8 * width + 5) for t, ids in objects.items()}
    ids = object_ids(masks)
    assert ids == tuple(sorted({0}.union(*objects.values())))
    soft = torch.stack(list(propagate(features, masks, context=context, radius=radius, topk=topk)))
    assert soft.dtype == torch.float32
    expected = propagation_oracle(features, masks, ids, context, radius, topk)
    torch.testing.assert_close(soft.double(), expected, rtol=0, atol=1e-4)


@pytest.mark.usefixtures("way")
def test_agrees_with_the_plain_way_at_720p() -> None:
    features, mask = correlated(0, 3, 16, 90, 160, change=0.05), blobs(0, (1, 2), 720, 1280)
    soft = list(propagate(features, mask, context=2))
    cells = torch.arange(0, 90 * 160, 7)
    expected = plain([features[j] for j in (0, 0, 1)], [soft[j].double() for j in (0, 0, 1)], features[2], cells=cells)
    torch.testing.assert_close(soft[2].flatten(1)[:, cells].double(), expected, rtol=0, atol=1e-4)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("radius", [1e5, float("inf")])
def test_a_radius_beyond_the_map_restricts_nothing(radius: float) -> None:
    features, mask = correlated(1, 5, 8, 6, 9), blobs(0, (1,), 48, 72)
    for ours, theirs in zip(propagate(features, mask, radius=radius), propagate(features, mask, radius=12), strict=True):
        torch.testing.assert_close(ours, theirs)


def precision_case() -> tuple[Tensor, np.ndarray, Tensor]:
    """float32 features of two frames, a mask, and the cells whose tenth neighbour stands clear of the eleventh."""
    features = random_features(3, 2, 64, 16, 20, dtype=torch.float32)
    keys = features.double().flatten(2)
    # at t = 1 all neighbours lie in the reference, which counts 21 times near by and once elsewhere
    similarity = (keys[0].T @ keys[1]).topk(12, 0).values
    return features, blobs(0, (1, 2), 128, 160), (similarity[:-1] - similarity[1:]).min(0).values.view(16, 20) > 1e-5


def test_float32_is_exact() -> None:
    """Similarities rounded to 8 or 11 bits would copy from other cells."""
    features, mask, clear = precision_case()
    assert clear.double().mean() > 0.9
    soft = list(propagate(features, mask, context=1))[1]
    expected = propagation_oracle(features, {0: mask}, (0, 1, 2), 1, 12, 10)[1]
    torch.testing.assert_close(soft[:, clear].double(), expected[:, clear], rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_are_compared_exactly(dtype: torch.dtype) -> None:
    features, mask, _ = precision_case()
    features = features.to(dtype)
    for ours, exact in zip(propagate(features, mask), propagate(features.float(), mask), strict=True):
        torch.testing.assert_close(ours, exact, rtol=0, atol=1e-5)


def test_autocast_does_not_reach_the_top_k() -> None:
    features, mask, _ = precision_case()
    exact = list(propagate(features, mask))
    with torch.autocast("cpu", torch.bfloat16):
        ours = list(propagate(features, mask))
    torch.testing.assert_close(ours, exact, rtol=0, atol=1e-5)


def test_duplicates_of_the_reference_count() -> None:
    """At t = 1 the reference stands in the context 21 times, so that the ten best near by are one cell."""
    features = random_features(4, 2, 16, 5, 30)
    mask = blobs(1, (1, 2), 40, 240)
    first, second = propagate(features, mask)
    keys = features.flatten(2)
    nearest = (keys[0].T @ keys[1]).argmax(0)
    y, x = torch.arange(150) // 30, torch.arange(150) % 30
    near = (y - y[nearest]) ** 2 + (x - x[nearest]) ** 2 < 144
    assert 0.5 < near.double().mean() < 1
    torch.testing.assert_close(second.flatten(1)[:, near], first.flatten(1)[:, nearest][:, near], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("dy", "dx", "reached"), [(0, 12, False), (12, 0, False), (0, 11, True), (8, 9, False), (8, 8, True),
                                                   (11, 11, False), (6, 10, True), (-4, 11, True), (-5, -11, False)])
def test_recent_frames_reach_less_than_12_cells(dy: int, dx: int, reached: bool) -> None:
    """A cell of frame 1 calls from (dy, dx) away: heard at d < 12, not at 12, and not from the corners of a box."""
    background, source, query = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0.1, 0, 1]])
    features = background.view(1, 3, 1, 1).repeat(3, 1, 30, 30)
    features[0, :, 0, 0] = source  # the object, which the caller resembles, but the query does not
    features[1, :, 15, 15] = 0.8 * source + torch.tensor([0, 0, 0.6])
    features[2, :, 15 + dy, 15 + dx] = query / query.norm()
    mask = np.zeros((30, 30), int)
    mask[0, 0] = 1
    _, second, third = propagate(features, mask, topk=1)
    assert second[1, 15, 15] == pytest.approx(1)
    assert third[1, 15 + dy, 15 + dx] == pytest.approx(float(reached))


def test_the_reference_reaches_everywhere() -> None:
    """An object that jumps across the frame is found again, by the reference alone."""
    features = torch.zeros(2, 2, 10, 40)
    features[:, 0] = 1
    features[0, :, 4, 2] = features[1, :, 6, 37] = torch.tensor([0.0, 1])
    mask = np.zeros((10, 40), int)
    mask[4, 2] = 1
    soft = list(propagate(features, mask, topk=1))[1]
    assert soft[1, 6, 37] == pytest.approx(1)
    assert soft[1].sum() == pytest.approx(1)


def test_softmax_runs_over_the_top_k() -> None:
    """Weights sum to one over the ten chosen, so that each cell's masks do too, at any temperature."""
    features = correlated(5, 6, 8, 9, 12)
    for tau in (0.05, 10.0):
        for soft in propagate(features, blobs(2, (1, 2, 3), 72, 96), tau=tau):
            torch.testing.assert_close(soft.sum(0), torch.ones(9, 12))


def test_masks_are_reduced_as_one_hot_channels() -> None:
    """Between the objects 1 and 5 there is no 3, and masks stay soft."""
    mask = np.zeros((15, 21), np.uint8)
    mask[3:10, 4:11], mask[5:13, 11:18] = 1, 5
    ids = object_ids(mask)
    assert ids == (0, 1, 5)
    soft = next(propagate(random_features(0, 1, 4, 6, 8), mask, topk=1))
    expected = resize(torch.stack([torch.from_numpy(mask) == i for i in ids]), 6, 8)
    torch.testing.assert_close(soft.double(), expected, rtol=0, atol=1e-6)
    assert ((soft > 0.01) & (soft < 0.99)).any()
    labels = to_labels(soft, (15, 21), ids)
    assert labels.dtype == torch.int64 and labels.shape == (15, 21)
    assert set(labels.unique().tolist()) == {0, 1, 5}


def test_labels_are_chosen_at_full_size() -> None:
    """Soft masks are enlarged and then compared, and not the other way round."""
    soft, ids = torch.rand(1, 4, 6, 9, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2, 3, 9])
    expected, clear = ids[resize(soft, 41, 75).argmax(1)], distinct(soft, (41, 75))
    assert torch.equal(to_labels(soft[0], (41, 75), tuple(ids.tolist()))[clear[0]], expected[clear])


def test_an_object_that_enters_late_stays() -> None:
    """In a still video every object keeps its place from the frame of its annotation on."""
    still = random_features(1, 1, 32, 8, 10).expand(12, -1, -1, -1)
    masks = {t: np.zeros((8, 10), int) for t in (0, 3, 6)}
    masks[0][:, :3], masks[3][2:5, 5:8], masks[6][6:, 8:] = 7, 2, 4
    assert object_ids(masks) == (0, 2, 4, 7)
    for t, soft in enumerate(propagate(still, masks)):
        for channel, (start, i) in zip(soft[1:], ((3, 2), (6, 4), (0, 7))):
            expected = torch.from_numpy(masks[start] == i) * (t >= start)
            torch.testing.assert_close(channel, expected.float(), rtol=0, atol=1e-3, msg=f"object {i}, frame {t}")


def test_a_reference_that_carries_nothing_any_more_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its object was given anew; only the first still carries the background."""
    asked = []
    original = tiled.Attention.attend
    monkeypatch.setattr(tiled.Attention, "attend", lambda self, keys, slots, counts, number, table:
                        asked.append(number) or original(self, keys, slots, counts, number, table))
    mask = np.zeros((48, 64), int)
    mask[10:30, 10:40] = 1
    frames = torch.stack([F.normalize(torch.randn(16, 6, 8, generator=torch.Generator().manual_seed(t)), dim=0) for t in range(7)])
    list(propagate(frames, {0: mask, 2: mask, 4: mask}, context=3))
    assert asked == [0, 0, 0, 1, 0, 1, 0, 2, 0, 2]


def test_a_correction_owns_its_object() -> None:
    """Object 1 as first drawn is forgotten, object 2 is left alone."""
    still = random_features(2, 1, 32, 8, 10).expand(9, -1, -1, -1)
    first, second = np.zeros((8, 10), int), np.zeros((8, 10), int)
    first[:3, :3], first[5:, 5:], second[:2, 6:9] = 1, 2, 1
    for t, soft in enumerate(propagate(still, {0: first, 4: second})):
        expected = torch.from_numpy(np.stack([(first if t < 4 else second) == 1, first == 2])).float()
        torch.testing.assert_close(soft[1:], expected, rtol=0, atol=1e-3, msg=f"frame {t}")


def test_rows_and_columns_are_not_swapped() -> None:
    features, mask = correlated(6, 5, 8, 20, 9), blobs(3, (1, 2), 160, 72)
    upright = propagate(features, mask, context=2, radius=4)
    turned = propagate(features.transpose(2, 3), mask.T, context=2, radius=4)
    for ours, theirs in zip(upright, turned, strict=True):
        torch.testing.assert_close(ours, theirs.transpose(1, 2), rtol=0, atol=1e-5)


def tensor_bytes() -> int:
    """Memory of all tensors alive, each storage once."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) is Tensor:
            storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    return sum(storages.values())


def test_streams_a_long_video() -> None:
    """Frames are asked for one by one, none is kept, and memory is that of a context."""
    read: list[weakref.ref] = []

    def frames() -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(200):
            frame = F.normalize(torch.randn(8, 6, 7, generator=generator), dim=0)
            read.append(weakref.ref(frame))
            yield frame
            del frame

    masks = {0: blobs(0, (1,), 24, 28), 30: blobs(1, (2,), 24, 28)}
    stream, used = propagate(frames(), masks, context=5), {}
    assert not read
    for t, soft in enumerate(stream):
        assert len(read) == t + 1
        assert sum(frame() is not None for frame in read) <= 2
        assert soft.shape == (3, 6, 7)
        if t in (40, 199):
            used[t] = tensor_bytes()
    assert len(read) == 200
    assert used[199] <= used[40]


def test_a_tensor_and_an_iterator_give_the_same() -> None:
    features, mask = correlated(7, 6, 8, 7, 9, dtype=torch.float32), blobs(4, (1,), 56, 72)
    whole = list(propagate(features, mask))
    again = []
    for soft in propagate(iter(features), torch.from_numpy(mask)):
        again.append(soft.clone())
        soft.zero_()  # what a caller does with a frame's masks is no concern of the next frame's
    torch.testing.assert_close(again, whole, rtol=0, atol=0)


CONTINUED = {  # first unknown frame, annotated frames, ended objects
    "at the first mask": (1, {0: (1, 2)}, {}),
    "the first mask is kept, the frames between are not": (11, {0: (1, 2)}, {}),
    "a correction at the first unknown frame": (9, {0: (1, 2), 9: (1,)}, {}),
    "references in the history": (10, {0: (1,), 3: (2,), 8: (3,)}, {}),
    "first mask late": (8, {2: (1,), 9: (2,)}, {}),
    "before the first mask": (1, {2: (1,)}, {}),
    "ended in the history": (9, {0: (1, 2)}, {5: (2,)}),
    "ended and brought back, in the history and after it": (8, {0: (1, 2), 6: (2,), 11: (1,)}, {3: (2,), 9: (1,)}),
    "all is known": (14, {0: (1,)}, {}),
}


@pytest.mark.parametrize("case", CONTINUED)
@pytest.mark.usefixtures("way")
def test_a_run_that_goes_on_equals_an_uninterrupted_one_to_the_bit(case: str) -> None:
    known, objects, ended = CONTINUED[case]
    features, context = correlated(0, 14, 16, 9, 20, dtype=torch.float32), 4
    masks = {t: blobs(t, ids, 72, 160) for t, ids in objects.items()}
    whole = list(propagate(features, masks, context=context, ended=ended))
    needed = [None if t < known - context and t not in masks else frame for t, frame in enumerate(features)]
    rest = list(propagate(needed, masks, context=context, ended=ended, history=whole[:known]))
    assert len(rest) == len(whole) - known
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(rest, whole[known:]))


def test_what_is_known_is_believed() -> None:
    """Later frames depend on the history that is given, and on all `context` frames of it."""
    features, mask = correlated(0, 7, 16, 9, 12, dtype=torch.float32), blobs(0, (1, 2), 72, 96)
    whole = torch.stack(list(propagate(features, mask, context=3)))
    for t in range(2, 6):
        other = whole[:6].clone()
        other[t] = other[t].flip(0)
        changed = next(propagate(features, mask, context=3, history=other)) - whole[6]
        assert (changed.abs().max() > 0.01) == (t >= 3)


def test_an_ended_object_goes_to_the_background_until_it_is_annotated_again() -> None:
    still = random_features(2, 1, 32, 8, 10).expand(9, -1, -1, -1)
    first, again = np.zeros((8, 10), int), np.zeros((8, 10), int)
    first[:3, :3], first[5:, 5:], again[:2, 6:9] = 3, 5, 3
    softs = list(propagate(still, {0: first, 6: again}, ended={2: [3]}))
    for t, soft in enumerate(softs):
        place = first == 3 if t < 2 else again == 3 if t >= 6 else first == 9
        expected = torch.from_numpy(np.stack([~(place | (first == 5)), place, first == 5])).float()
        first_channel = int(t >= 6)  # after a correction the background is not renormalised
        torch.testing.assert_close(soft[first_channel:], expected[first_channel:], rtol=0, atol=1e-3, msg=f"frame {t}")
        if 2 <= t < 6:
            assert (soft[1] == 0).all()


@pytest.mark.parametrize(("changes", "message"), [
    ({"ended": {2: [1]}, "masks": {0: MASK, 2: MASK}}, "frame 2 ends the object 1 and annotates it"),
    ({"ended": {2: [7]}}, r"frame 2 ends the objects \[7\].*among \(1,\)"),
    ({"ended": {2: [0]}}, "frame 2"),
    ({"ended": {-1: [1]}}, "frame -1"),
    ({"ended": {4: [1]}}, "frame 4.*4 frames"),
    ({"history": torch.zeros(2, 3, 6, 7)}, r"history.*frame 0.*\(3, 6, 7\).*2 channels"),
    ({"history": torch.zeros(2, 2, 7, 6)}, r"history.*frame 0.*\(7, 6\).*\(6, 7\)"),
    ({"history": torch.zeros(5, 2, 6, 7)}, "frame 4.*4 frames"),
    ({"history": torch.zeros(3, 2, 6, 7), "context": 1, "features": [None, *FRAMES[1:]]}, "frame 0 has no features"),
    ({"history": torch.zeros(3, 2, 6, 7), "context": 1, "features": [*FRAMES[:2], None, FRAMES[3]]}, "frame 2 has no features"),
    ({"features": [*FRAMES[:3], None]}, "frame 3 has no features"),
])
def test_wrong_histories_and_ends(changes: dict, message: str) -> None:
    arguments = {"features": FRAMES, "masks": MASK} | changes
    with pytest.raises(InputError, match=message):
        list(propagate(arguments.pop("features"), arguments.pop("masks"), **arguments))


@pytest.mark.parametrize(("setting", "value"), [("context", 0), ("topk", 0), ("radius", 0), ("radius", float("nan")),
                                                ("tau", 0), ("tau", -1.0)])
def test_settings_out_of_range(setting: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{setting}={value}"):
        propagate(FRAMES, MASK, **{setting: value})  # at once, before the first frame is asked for


@pytest.mark.parametrize(("features", "masks", "message"), [
    (FRAMES, {}, "at least one mask"),
    (FRAMES, {-1: MASK}, ">= 0"),
    (FRAMES, {0: MASK, 2: MASK[:6]}, r"\(12, 14\).*\(6, 14\)"),
    (FRAMES, {0: MASK, 4: MASK}, "frame 4.*4 frames"),
    (FRAMES[:0], MASK, "0 frames"),
    ([*FRAMES[:2], FRAMES[2, :, 1:]], MASK, r"frame 2.*\(8, 5, 7\).*\(8, 6, 7\)"),
])
def test_wrong_masks_and_frames(features: Tensor | list, masks: dict | np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(propagate(features, masks))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("t", [0, 2])
def test_features_that_are_no_numbers_are_refused_in_every_frame(t: int) -> None:
    """Else objects would vanish from there on."""
    features = FRAMES.clone()
    features[t, 3, 2, 5] = float("nan")
    soft = propagate(features, MASK)
    with pytest.raises(InputError, match=f"features of frame {t} are infinite or no numbers"):
        for _ in range(t + 1):
            next(soft)


def test_references_are_compared_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """All cells at once against all others would be 60 GB in a video of 3840x2160."""
    monkeypatch.setattr(propagation, "_engine", lambda device: batched.Attention)
    features, mask = correlated(2, 4, 8, 11, 9), blobs(0, (1, 2), 88, 72)
    whole = torch.stack(list(propagate(features, mask, context=2)))
    rows, split = [], Tensor.split
    monkeypatch.setattr(batched, "AT_ONCE", 5 * 99)
    monkeypatch.setattr(Tensor, "split", lambda self, size, *rest: rows.append(size) or split(self, size, *rest))
    torch.testing.assert_close(torch.stack(list(propagate(features, mask, context=2))), whole)
    assert set(rows) == {5}


def test_more_neighbours_than_cells() -> None:
    with pytest.raises(InputError, match="topk=43.*6x7"):
        list(propagate(FRAMES, MASK, topk=43))


@pytest.mark.parametrize("mask", [np.zeros((12, 14, 3), np.uint8), np.full((12, 14), -1)])
def test_masks_are_flat_and_ids_not_negative(mask: np.ndarray) -> None:
    with pytest.raises(InputError, match="ids"):
        list(propagate(FRAMES, mask))
