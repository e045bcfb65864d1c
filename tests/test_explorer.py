"""The explorer without a browser: what clicks, sliders and keys compute; one line for whatever is wrong; pictures."""

from __future__ import annotations

import io
from importlib import util

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from dulvos import correspondence, inference
from dulvos.masks import write_mask
from dulvos.errors import InputError
from dulvos.interactive.explorer import Explorer
from dulvos.interactive.scene import View, clip_indices, encode_clip, seen_size, stretch
from dulvos.videos import open_video, shrunk_size

SIZE, CELLS = (64, 96), (8, 12)
needs_ipympl = pytest.mark.skipif(util.find_spec("ipympl") is None, reason="ipympl is not installed")


def features(video, indices, checkpoint, layer, *, shorter_side, device, seed):
    """Random ones, for each video, encoder and layer its own."""
    if checkpoint == "broken":
        raise InputError("broken.safetensors: no such checkpoint")
    generator = torch.Generator().manual_seed(sum(map(ord, video.name + checkpoint + layer)))
    return F.normalize(torch.randn(len(indices), 16, *CELLS, generator=generator), dim=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two videos of 12 frames in DAVIS's layout."""
    root, generator = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / "JPEGImages/480p" / name).mkdir(parents=True)
        for index in range(12):
            picture = generator.integers(0, 256, (*SIZE, 3), np.uint8)
            Image.fromarray(picture).save(root / "JPEGImages/480p" / name / f"{index:05d}.png")
        (root / "Annotations/480p" / name).mkdir(parents=True)
        write_mask(root / "Annotations/480p" / name / "00000.png", np.eye(*SIZE, dtype=np.uint8))
    (root / "ImageSets/2017").mkdir(parents=True)
    (root / "ImageSets/2017/val.txt").write_text("cat\ndog\n")
    return root


@pytest.fixture
def explore(data):
    return lambda **options: Explorer(**{"data": str(data), "shorter_side": 0, "width": 600, "interactive": False,
                                         "features": features, "gap": 2, "n": 4, **options})


def pixels(explorer: Explorer) -> np.ndarray:
    return np.asarray(explorer.canvas.figure.canvas.buffer_rgba()).copy()


def test_a_click_shows_the_affinity_of_its_cell(explore):
    explorer = explore(beside="random")
    assert explorer.message == "" and explorer.scene.indices == (0, 2, 4, 6, 8)
    video, before = open_video(explorer.scene.video.path), pixels(explorer)
    for query in ((0, 3, 7), (3, 7, 0), (2, 0, 11)):
        explorer.click(*explorer.pixel_of(*query))
        state = explorer.state()
        assert state["query"] == query
        for name, shown in zip(("davis2016", "random"), explorer.maps):
            cells = features(video, explorer.scene.indices, name, "res4", shorter_side=0, device=None, seed=0)
            assert np.allclose(shown, correspondence.affinity(cells, *query).numpy(), atol=1e-6)
        assert state["affinity"] is explorer.maps[0] and state["affinity"][query] == pytest.approx(1)
        assert (pixels(explorer) != before).any()


def test_a_click_between_the_pictures_changes_nothing(explore):
    explorer = explore()
    before = explorer.view
    explorer.click(2, 2)
    assert explorer.view == before


def test_share_and_dominant_follow_the_anchor_and_the_clips(explore):
    explorer = explore(show="share", tau=0.2)
    explorer.click(*explorer.pixel_of(0, 5, 10))
    own = explorer.maps[0]
    assert explorer.anchor == 11 and own.max() <= 1
    explorer.set(clips="all")
    assert (explorer.maps[0] < own).all()
    explorer.set(show="dominant")
    assert explorer.maps[0].shape == (5, *CELLS) and explorer.message == ""


def test_with_the_grid_a_click_in_the_reference_takes_the_nearest_anchor(explore):
    explorer = explore(grid=True, frame=1)
    explorer.click(*explorer.pixel_of(2, 4, 4))
    assert explorer.state()["query"] == (2, 4, 4)
    x, y = explorer.pixel_of(0, 4, 5)
    explorer.click(x, y)
    assert explorer.state()["query"] in [(0, *anchor) for anchor in correspondence.anchor_grid(*CELLS, 4).tolist()]


def test_sliders_and_keys_do_what_clicks_do(explore):
    explorer = explore()
    for name, value in (("frame", 2), ("y", 6), ("x", 9), ("time", 4)):
        explorer.panel.fields[name].value = value
    assert explorer.state()["query"] == (2, 6, 9) and explorer.view.time == 4
    for key in ("left", "left", "up", "pagedown", ",", "nothing"):
        explorer.key(key)
    assert explorer.state()["query"] == (3, 5, 7) and explorer.view.time == 3
    assert [explorer.panel.fields[name].value for name in ("frame", "y", "x", "time")] == [3, 5, 7, 3]
    for _ in range(6):
        explorer.key("right")
    assert explorer.view.x == CELLS[1] - 1 and explorer.message == ""


@pytest.mark.parametrize("change, line", [
    ({"video": "nowhere.mp4"}, "nowhere.mp4"), ({"checkpoint": "broken"}, "broken.safetensors"), ({"n": 9}, "grid of 9"),
    ({"frames": 13}, "choose 1 to 12"), ({"layer": "res9"}, "res3, res4, key"), ({"tau": 0.0}, "tau"), ({"gap": 0}, "gap"),
    ({"shown": 1}, "shown"), ({"x": "a"}, "x must be"), ({"checkpoint": ""}, "checkpoint"),
])
def test_a_wrong_input_is_one_line_and_the_last_picture_stays(explore, change, line):
    explorer = explore()
    view, before = explorer.view, pixels(explorer)
    explorer.set(**change)
    assert line in explorer.message and "\n" not in explorer.message
    assert line in explorer.panel.message.value
    assert explorer.view == view and (pixels(explorer) == before).all()
    assert explorer.set(x=3).message == ""


@pytest.mark.parametrize("options, line", [({"data": "nowhere"}, "nowhere"), ({"video": "nowhere"}, "nowhere"),
                                           ({"batch": 0}, "batch"), ({"checkpoint": "broken"}, "broken")])
def test_what_is_wrong_at_the_start_is_said_in_place_of_the_picture(explore, options, line):
    explorer = explore(**options)
    assert line in explorer.message
    assert Image.open(io.BytesIO(explorer.snapshot().data)).size[0] > 100
    with pytest.raises(InputError, match=line):  # no figure of an error message
        explorer.snapshot("figure")
    explorer.click(10, 10)
    explorer.key("left")
    assert explorer.state()["affinity"] is None


def test_an_own_video_and_an_own_encoder_come_into_the_lists(explore, data, tmp_path):
    explorer = explore()
    explorer.panel.path.value = str(data / "JPEGImages/480p/dog/../cat")
    assert explorer.message == "" and explorer.view.video.endswith("cat")
    explorer.panel.path.value = str(tmp_path / "own.safetensors")
    assert explorer.view.checkpoint.endswith("own.safetensors")
    assert ("own", explorer.view.checkpoint) in explorer.panel.fields["checkpoint"].options


def test_a_quick_drawing_is_the_full_drawing(explore):
    explorer = explore(beside="random", show="share")
    explorer.set(frame=1, y=2, x=3, time=3, grid=True)
    quick = pixels(explorer)
    explorer.canvas.figure.canvas.draw()
    assert (pixels(explorer) == quick).all()


def test_a_snapshot_is_written_and_a_saved_figure_holds_all_of_it(explore, tmp_path):
    explorer = explore()
    explorer.snapshot(tmp_path / "new" / "picture")
    assert Image.open(tmp_path / "new" / "picture.jpg").size == explorer.scene.sheet.size[::-1]
    explorer.canvas.figure.savefig(tmp_path / "saved.png", dpi="figure")
    saved = np.asarray(Image.open(tmp_path / "saved.png").convert("RGB"))
    assert (saved == pixels(explorer)[..., :3]).all()


@needs_ipympl
def test_a_mouse_press_on_ipympl_s_canvas_is_a_click(explore):
    explorer = explore(interactive=True)
    canvas = explorer.canvas.widget
    x, y = explorer.pixel_of(3, 2, 9)
    canvas._handle_message(canvas, {"type": "button_press", "x": x, "y": y, "button": 0, "buttons": 1, "modifiers": []}, [])
    assert explorer.state()["query"] == (3, 2, 9)
    assert canvas.get_diff_image() is None  # sent already
    explorer.canvas.figure.canvas._png_is_old = True
    assert Image.open(io.BytesIO(canvas.get_diff_image())).format == "JPEG"
    assert {"image/jpeg", "application/vnd.jupyter.widget-view+json"} <= explorer._repr_mimebundle_().keys()


def test_a_clip_fits_into_its_video():
    assert clip_indices(24, 5, 0, 4) == (0, 4, 8, 12, 16)
    assert clip_indices(24, 5, 20, 4) == (7, 11, 15, 19, 23)
    assert clip_indices(10, 5, 3, 100) == (1, 3, 5, 7, 9)
    assert clip_indices(3, 3, 2, 9) == (0, 1, 2) and clip_indices(7, 1, 6, 4) == (6,)
    with pytest.raises(InputError, match="choose 1 to 4"):
        clip_indices(4, 5, 0, 1)


@pytest.mark.parametrize("size, side", [((480, 854), 256), ((854, 480), 255), ((192, 256), 0), ((192, 256), 400)])
def test_the_size_that_the_encoder_sees_is_inference_s(size, side):
    assert seen_size(size, side) == shrunk_size(size, side)


def test_the_scale_ends_at_the_best_match_in_another_frame():
    cosine = np.zeros((2, 2, 2))
    cosine[0, 0, 0], cosine[1, 1, 1] = 1, 0.7
    assert stretch(cosine, 0) == (0, 0.7)
    assert stretch(cosine[:1], 0) == (0, 1)
    assert stretch(np.ones((2, 2, 2)), 0)[1] > 1 - 1e-9


def test_a_view_refuses_what_no_video_can_have():
    with pytest.raises(InputError, match="show must be one of affinity, share, dominant"):
        View(show="all")


def test_clips_are_encoded_once(data):
    video = open_video(data / "JPEGImages/480p/cat")
    first = encode_clip(video, (0, 5), "random", "res3", shorter_side=0, device="cpu", seed=3)
    assert first.shape == (2, 256, *CELLS)
    assert encode_clip(video, (0, 5), "random", "res3", shorter_side=0, device="cpu", seed=3) is first
    settings = inference.SegmentSettings(layer="res3")
    from dulvos import load_encoder
    again = list(inference.encode(load_encoder("random", seed=3), [video.read(0), video.read(5)], settings))
    assert torch.allclose(first[1], again[1])
