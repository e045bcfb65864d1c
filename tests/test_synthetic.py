"""The rendered benchmark: its layout, the exactness of its masks, its special videos, its determinism."""

from __future__ import annotations

import errno
import json

import numpy as np
import pytest
from PIL import Image

from dulvos.study import cutouts as synthetic
from dulvos.datasets import load_davis
from dulvos.errors import InputError
from dulvos.study.cutouts import LATE_ENTRY, SPECIAL, TRAIN, TRANSLATION, VAL, Scene, render, render_video

SMALL = {"size": (64, 96), "frames": (2, 3), "progress": False}


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    return render(tmp_path_factory.mktemp("rendered") / "deep" / "cutouts", **SMALL)


def test_layout_is_that_of_davis_2017(benchmark):
    for split, scenes, length in (("train", TRAIN, 2), ("val", VAL, 3)):
        dataset = load_davis(benchmark, split)
        assert dataset.name == "cutouts"
        assert [sequence.name for sequence in dataset.sequences] == list(scenes)
        for sequence in dataset.sequences:
            assert sequence.truth().shape == (length, 64, 96)
            assert sequence.video.read(length - 1).shape == (64, 96, 3)
    with Image.open(benchmark / "Annotations/480p/herd/00000.png") as mask:
        assert mask.mode == "P"
    assert not [path for path in benchmark.parent.iterdir() if path != benchmark]  # nothing half rendered is left


def test_splits_share_neither_names_nor_photographs():
    def photographs(scenes):
        names = {name for s in scenes.values() for name in (s.background, *s.objects, *s.distractors)}
        return {"motorcycle" if name == "stereo" else name.split("/")[0] for name in names}

    assert not set(TRAIN) & set(VAL) and not (set(TRAIN) | set(VAL)) & set(SPECIAL)
    assert not photographs(TRAIN) & photographs(VAL)


@pytest.mark.parametrize("name", [*TRAIN, *VAL])
def test_objects_start_in_sight(name):
    scene = (TRAIN | VAL)[name]
    _, masks = render_video(name, size=(96, 128), frames=1)
    objects = len(scene.objects) + (scene.background == "stereo")
    assert 1 <= objects <= 3
    assert np.unique(masks[0]).tolist() == list(range(objects + 1))
    shares = np.bincount(masks[0].ravel())[1:] / masks[0].size
    assert shares.min() > 0.01 and shares.max() < 0.5 and shares.sum() < 0.6


def test_no_object_jumps_further_than_propagation_looks():
    for name in ("astronauts", "riders"):
        _, masks = render_video(name, size=(96, 128), frames=12)
        for id in np.unique(masks[0])[1:]:
            centres = np.array([np.argwhere(mask == id).mean(0) for mask in masks if (mask == id).sum() > 50])
            assert np.linalg.norm(np.diff(centres, axis=0), axis=1).max() < 12 * 8 / 2  # at half of the usual size


def test_same_seed_same_pixels_other_seed_others():
    one, again, other = (render_video("garage", seed=seed, size=(64, 96), frames=2) for seed in (3, 3, 4))
    for a, b, c in zip(one, again, other):
        assert a.dtype == np.uint8
        np.testing.assert_array_equal(a, b)
        assert (a != c).any()


def test_a_longer_video_begins_with_the_shorter_one():
    short, long = (render_video("cups", size=(64, 96), frames=n) for n in (2, 4))
    for a, b in zip(short, long):
        np.testing.assert_array_equal(a, b[:2])


def test_translation_moves_object_and_mask_by_whole_pixels():
    frames, masks = render_video("translation", size=(128, 192), frames=6)
    dy, dx = TRANSLATION
    assert 0.02 < (masks[0] == 1).mean() < 0.1
    for t in range(1, 6):
        np.testing.assert_array_equal(masks[t], np.roll(masks[0], (t * dy, t * dx), (0, 1)))
        inside = np.roll(masks[0], 3, 0) & np.roll(masks[0], -3, 0) & np.roll(masks[0], 3, 1) & np.roll(masks[0], -3, 1)
        y, x = np.nonzero(inside)
        np.testing.assert_array_equal(frames[t, y + t * dy, x + t * dx], frames[0, y, x])
    rest = ~masks.any(0) & ~np.roll(masks, 3, 1).any(0) & ~np.roll(masks, -3, 1).any(0)
    rest &= ~np.roll(masks, 3, 2).any(0) & ~np.roll(masks, -3, 2).any(0)
    assert (frames[:, rest] == frames[0, rest]).all()


def test_static_noise_does_not_move():
    frames, masks = render_video("static-noise", size=(64, 96), frames=4)
    assert (frames == frames[0]).all() and (masks == masks[0]).all() and masks.max() == 1
    assert frames[0].std() > 60 and abs(np.corrcoef(frames[0, :, 1:].ravel(), frames[0, :, :-1].ravel())[0, 1]) < 0.05


@pytest.mark.parametrize("frames", [12, 24])
def test_occlusion_hides_the_object_wholly_and_gives_it_back(frames):
    _, masks = render_video("occlusion", frames=frames)
    area = (masks == 1).sum((1, 2))
    hidden = np.flatnonzero(area == 0)
    assert len(hidden) >= 2 and (np.diff(hidden) == 1).all()
    assert 0 < hidden[0] and hidden[-1] < frames - 1
    assert abs(area[0] - area[-1]) < 0.02 * area[0]
    assert ((0 < area) & (area < 0.9 * area[0])).any()  # covered in part on the way


def test_late_entry_has_object_2_from_its_frame_on():
    _, masks = render_video("late-entry", frames=8)
    present = (masks == 2).any((1, 2))
    assert not present[:LATE_ENTRY].any() and present[LATE_ENTRY:].all()
    assert (masks == 1).any((1, 2)).all() and (masks[LATE_ENTRY] == 2).mean() > 0.02


def test_rail_shows_the_left_photograph_at_0_and_the_right_one_at_1():
    """The near part moves by more than what is behind it: parallax, in the direction of the true pair."""
    left, right, _ = synthetic.skimage.data.stereo_motorcycle()
    disparity, near = synthetic._motorcycle()
    view = synthetic._rail(np.dstack([left, 255 * np.uint8(near)]), np.dstack([right, 0 * left[..., :1]]), disparity)
    assert np.abs(view(0.0)[..., :3].astype(int) - left).mean() < 2
    still, moved = (np.abs(image[..., :3].astype(int) - right).mean() for image in (view(0.0), view(1.0)))
    assert moved < 0.35 * still
    shift = np.argwhere(near)[:, 1].mean() - np.argwhere(view(1.0)[..., 3] > 127)[:, 1].mean()
    assert shift == pytest.approx(disparity[near].mean(), abs=4)
    assert disparity[near].mean() > disparity[~near].mean() + 10


def test_rail_puts_the_near_before_the_far():
    """A block of disparity 20 before a wall of disparity 4, seen from halfway."""
    columns, wall = np.arange(120), 40 + np.arange(140)  # the wall's grey values tell its place
    left, right, disparity = np.zeros((40, 120, 4), np.uint8), np.zeros((40, 120, 4), np.uint8), np.full((40, 120), 4.0)
    left[..., :3], right[..., :3] = wall[columns, None], wall[columns + 4, None]
    left[10:30, 60:80], right[10:30, 40:60, :3], disparity[10:30, 60:80] = 255, 255, 20
    half = synthetic._rail(left, right, disparity.astype(np.float32))(0.5)
    block = np.zeros((40, 120), bool)
    block[10:30, 50:70] = True
    np.testing.assert_array_equal(half[14:26, :, 3] > 127, block[14:26])
    assert (half[14:26, 51:69] == 255).all()
    shown = np.broadcast_to(wall[columns + 2], (40, 120))
    apart = ~block & ~np.roll(block, 2, 1) & ~np.roll(block, -2, 1) & ~np.roll(block, 2, 0) & ~np.roll(block, -2, 0)
    assert (half[..., 0][apart] == shown[apart]).all()  # where one camera alone sees it, too


def test_own_scene_with_occlusion_keeps_ids_exact():
    """Of two cut-outs the upper one hides the lower one; ids stay 0, 1, 2, whatever the blur mixes."""
    _, masks = render_video(Scene("coffee", ("chelsea/head", "coffee/cup")), size=(96, 128), frames=20)
    assert set(np.unique(masks)) == {0, 1, 2}
    areas = [(masks == id).sum((1, 2)) for id in (1, 2)]
    assert min(area.min() / area.max() for area in areas) < 0.7


def test_existing_benchmark_is_taken_as_it_is(benchmark):
    file = benchmark / "JPEGImages/480p/herd/00000.jpg"
    before = file.stat().st_mtime_ns
    assert render(benchmark, **SMALL) == benchmark
    assert file.stat().st_mtime_ns == before


def test_other_settings_or_another_folder_are_an_error(benchmark, tmp_path):
    with pytest.raises(InputError, match="'seed': 0.*'seed': 1"):
        render(benchmark, seed=1, **SMALL)
    (tmp_path / "photo.txt").write_text("mine")
    with pytest.raises(InputError, match="holds no rendered benchmark"):
        render(tmp_path, **SMALL)
    assert (tmp_path / "photo.txt").read_text() == "mine"
    (tmp_path / "benchmark.json").write_text(json.dumps(["something"]))
    with pytest.raises(InputError, match="holds no rendered benchmark"):
        render(tmp_path, **SMALL)


def test_a_failed_rendering_leaves_nothing(tmp_path, monkeypatch):
    def fail(path, ids):
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr(synthetic, "write_mask", fail)
    with pytest.raises(InputError, match=r"cutouts: cannot be written \(No space left"):
        render(tmp_path / "cutouts", **SMALL)
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_will_do(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "TRAIN", {"cats": TRAIN["cats"]})
    monkeypatch.setattr(synthetic, "VAL", {"gravel": VAL["gravel"]})
    root = tmp_path / "cutouts"
    root.mkdir()
    assert load_davis(render(root, **SMALL)).sequences[0].name == "gravel"


@pytest.mark.parametrize("arguments, message", [
    ({"scene": "dogs"}, "no video 'dogs'; there are static-noise.*riders"),
    ({"scene": "cats", "size": (32, 96)}, "at least 64x64"),
    ({"scene": "cats", "frames": 0}, "at least one frame"),
])
def test_settings_out_of_range_are_errors(arguments, message):
    with pytest.raises(InputError, match=message):
        render_video(**arguments)
