"""Training clips: their frames, crops and order."""

import numpy as np
import pytest
import torch
from PIL import Image

from dulvos.clips import Clips, ClipSettings, frame_indices
from tests.oracles import ArrayVideo, texture


def still(picture: np.ndarray, length: int = 9, name: str = "a") -> ArrayVideo:
    return ArrayVideo(name, np.broadcast_to(picture, (length, *picture.shape)))


def stills(count: int) -> list[ArrayVideo]:
    return [still(texture(i, 40, 56, sigma=2), 12, f"video{i}") for i in range(count)]


def clips(videos: list[ArrayVideo], seed: int = 0, crop: int = 32, scale: tuple[int, int] = (32, 48),
          **keywords: bool) -> Clips:
    return Clips(videos, ClipSettings(seed, 3, 2, crop, *scale, **keywords))


@pytest.mark.parametrize(("length", "frames", "gap", "taken"), [
    (100, 5, 2, 2), (100, 5, 10, 10), (50, 5, 10, 10), (49, 5, 10, 9), (14, 5, 10, 2), (10, 5, 2, 2),
    (9, 5, 2, 1), (5, 5, 2, 1), (3, 3, 1, 1), (7, 1, 2, 2), (1, 1, 10, 1), (20, 2, 10, 10),
])
def test_frames_stand_a_gap_apart_from_any_start(length: int, frames: int, gap: int, taken: int) -> None:
    generator = np.random.default_rng(0)
    drawn = np.stack([frame_indices(length, frames, gap, generator) for _ in range(2000)])
    assert drawn.shape == (2000, frames)
    ordered = np.sort(drawn, 1)
    assert (np.diff(ordered) == taken).all()
    assert set(ordered[:, 0]) == set(range(length - taken * (frames - 1)))


def test_each_epoch_shows_each_video_once() -> None:
    dataset = clips(stills(7))
    epochs = [[dataset.video_of(7 * epoch + i).name for i in range(7)] for epoch in range(6)]
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 3
    other = clips(stills(7), seed=1)
    assert [other.video_of(i).name for i in range(7)] != epochs[0]


def test_a_clip_comes_from_its_video_and_its_frames() -> None:
    """Its frames come in the order drawn, not in the order read; each frame shows twice its number."""
    numbers = np.broadcast_to(2 * np.arange(12, dtype=np.uint8)[:, None, None, None], (12, 40, 56, 3))
    dataset, forwards = clips([ArrayVideo("a", numbers)]), 0
    for number in range(60):
        clip = dataset[number]
        assert clip.shape == (3, 3, 32, 32) and clip.dtype == torch.uint8
        indices = clip[:, 0, 0, 0].long() // 2
        assert sorted(indices - indices.min()) == [0, 2, 4]
        assert torch.equal(clip, (2 * indices.byte()).view(-1, 1, 1, 1).expand_as(clip))
        forwards += indices.tolist() == sorted(indices.tolist())
    assert 2 <= forwards <= 25
    ordered = clips([ArrayVideo("a", numbers)], ordered=True)
    assert all((ordered[i][:, 0, 0, 0].diff() == 4).all() for i in range(20))


def test_colours_change_alike_in_a_clip_or_anew_in_each_frame() -> None:
    """Of a still video, all frames of a clip share crop and flip; only the colours change."""
    plain, video, frame = ([clips(stills(1), photometric=how)[number].float() for number in range(6)]
                           for how in ("none", "video", "frame"))
    assert len({clip.numpy().tobytes() for clip in plain}) == 6
    for number in range(6):
        assert torch.equal(plain[number], plain[number][:1].expand_as(plain[number]))
        assert torch.equal(video[number], video[number][:1].expand_as(video[number]))
        assert not torch.equal(frame[number][0], frame[number][1])
        for changed in (video[number][0], *frame[number]):
            assert not torch.equal(changed, plain[number][0])
            greys = torch.stack([changed.mean(0).flatten(), plain[number][0].mean(0).flatten()])
            assert torch.corrcoef(greys)[0, 1] > 0.9
    brighter = torch.stack([changed.mean() / before.mean() for changed, before in zip(video, plain)])
    assert 0.4 < brighter.min() < 0.95 and 1.02 < brighter.max() < 1.5


def test_crops_and_flips_are_what_is_drawn() -> None:
    """At the picture's own scale each clip is found in it: flipped half the time, at any place."""
    picture = texture(0, 40, 56, sigma=2)
    windows = {}
    for flip in (False, True):
        for y in range(9):
            for x in range(25):
                window = picture[y : y + 32, x : x + 32]
                windows[(window[:, ::-1] if flip else window).transpose(2, 0, 1).tobytes()] = flip, y, x
    dataset = clips([still(picture)], scale=(40, 40))
    found = [windows[dataset[number][0].numpy().tobytes()] for number in range(400)]
    assert not torch.equal(clips([still(picture)], seed=1, scale=(40, 40))[0], dataset[0])
    flips, ys, xs = map(np.array, zip(*found))
    assert 0.4 < flips.mean() < 0.6
    assert set(ys) == set(range(9)) and set(xs) == set(range(25))
    assert set(xs[flips]) == set(range(25))
    centred = clips([still(picture)], scale=(40, 40), centre=True)
    drawn = {windows[centred[number][0].numpy().tobytes()] for number in range(30)}
    assert drawn == {(False, 4, 12), (True, 4, 12)}


@pytest.mark.parametrize("size", [(96, 130), (130, 96)])
def test_resizing_is_antialiased_and_keeps_the_shape(size: tuple[int, int]) -> None:
    """The crop is what it would be if the shorter side had been scaled first."""
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    clip = clips([still(picture)], scale=(44, 44), crop=33, centre=True)[0][0]
    clip = clip.permute(1, 2, 0).numpy().astype(int)
    top, left = ((length - 72) // 2 for length in size)  # 33 of 44 pixels are 72 of 96
    assert clips([still(picture)], scale=(9999, 9999))[0].shape == (3, 3, 32, 32)  # from less than a pixel
    window = Image.fromarray(picture[top : top + 72, left : left + 72])
    small = np.asarray(window.resize((33, 33), Image.Resampling.BILINEAR)).astype(int)
    assert min(np.abs(clip - expected).max() for expected in (small, small[:, ::-1])) <= 2


def test_scales_are_uniform_and_include_both_ends() -> None:
    """Read off a ramp: n pixels of a picture scaled to side s hold n/s of it."""
    ramp = np.broadcast_to(np.arange(128, dtype=np.uint8)[:, None, None] * 2, (128, 128, 3)).copy()
    dataset = clips([still(ramp)], scale=(64, 68))
    columns = np.stack([dataset[number][0, 0, 2:-2, 5].numpy() for number in range(200)])
    sides = np.round(256 / np.polyfit(np.arange(28), columns.T, 1)[0]).astype(int)
    assert set(sides) == set(range(64, 69))
