"""The picture in a notebook: pixels and marks stand where they were put, quickly drawn or in full, on dense screens too."""

from __future__ import annotations

from importlib import util

import numpy as np
import pytest

from dulvos.errors import InputError
from dulvos.interactive.canvas import MARKS, Canvas

needs_ipympl = pytest.mark.skipif(util.find_spec("ipympl") is None, reason="ipympl is not installed")
NONE = np.zeros((0, 2)), np.zeros((0, 3))


def buffer(canvas: Canvas) -> np.ndarray:
    return np.asarray(canvas.figure.canvas.buffer_rgba())[..., :3].astype(int)


@pytest.fixture
def canvas() -> Canvas:
    canvas = Canvas(interactive=False)
    canvas.layout((80, 120), [(60, 20, "text")])
    return canvas


def test_pixels_stand_upright_one_to_one_and_the_background_shows_through(canvas):
    pixels = np.zeros((80, 120, 4), np.uint8)
    pixels[30:, :] = np.random.default_rng(0).integers(0, 256, (50, 120, 4))
    pixels[30:, :, 3] = 255
    for _ in range(2):  # in full, then quickly
        canvas.update(pixels, {}, NONE, [])
        assert (buffer(canvas)[30:] == pixels[30:, :, :3]).all()
        assert (buffer(canvas)[:30, :50] == 255).all() and buffer(canvas)[:30, 60:].min() < 150


@pytest.mark.parametrize("kind", MARKS)
def test_a_mark_is_centred_on_its_pixel_and_goes_away(canvas, kind):
    clear = np.zeros((80, 120, 4), np.uint8)
    canvas.update(clear, {}, NONE, [])
    before = buffer(canvas)
    canvas.update(clear, {kind: np.array([[40, 55]])}, NONE, [])
    changed = np.argwhere((buffer(canvas) != before).any(2))
    assert len(changed) and np.abs(changed.mean(0) - (55, 40)).max() < 0.7
    canvas.update(clear, {}, NONE, [])
    assert (buffer(canvas) == before).all()


def test_the_still_picture_follows(canvas):
    canvas.update(np.zeros((80, 120, 4), np.uint8), {}, NONE, [])
    before = canvas.widget.value
    canvas.update(np.full((80, 120, 4), 255, np.uint8), {}, NONE, [(10, 70, "caption", "left")])
    assert bytes(before[:3]) == b"\xff\xd8\xff" and canvas.widget.value != before


@needs_ipympl
def test_on_a_dense_screen_the_picture_grows_and_clicks_keep_their_place():
    canvas, clicks, keys = Canvas(interactive=True), [], []
    canvas.layout((80, 120), [])
    canvas.on_click(lambda *place: clicks.append(place))
    canvas.on_key(keys.append)
    canvas.figure.canvas._set_device_pixel_ratio(2)
    canvas.update(np.full((80, 120, 4), 255, np.uint8), {}, NONE, [])
    assert buffer(canvas).shape == (160, 240, 3)
    for message in ({"type": "button_press", "x": 61, "y": 31, "button": 0, "buttons": 1, "modifiers": []},
                    {"type": "key_press", "key": "kArrowLeft"}):
        canvas.widget._handle_message(canvas.widget, message, [])
    assert clicks == [(30.5, 15.5)] and keys == ["left"]


def test_interactive_needs_ipympl(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ipympl", None)
    monkeypatch.delitem(__import__("sys").modules, "dulvos.interactive.live", raising=False)
    monkeypatch.delitem(__import__("sys").modules, "ipympl.backend_nbagg", raising=False)
    assert not Canvas().interactive
    with pytest.raises(InputError, match="ipympl"):
        Canvas(interactive=True)
