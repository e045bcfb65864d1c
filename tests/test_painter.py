"""Painting masks: every edit does what it says and can be undone; the widget's clicks land where they were made."""

from __future__ import annotations

import datetime
import io
import sys

import numpy as np
import pytest
from matplotlib.backend_bases import MouseButton, MouseEvent
from PIL import Image

from dulvos.errors import InputError
from dulvos.interactive.painter import MaskEditor, Painter
from dulvos.masks import PALETTE


def editor(height=40, width=60):
    return MaskEditor(np.zeros((height, width), np.uint8))


def test_a_dot_is_a_disk_around_its_point():
    edit = editor()
    edit.stroke([(10, 30)], 5, 3)
    y, x = np.mgrid[:40, :60]
    distance = np.hypot(y - 10, x - 30)
    assert (edit.ids[distance <= 4.5] == 3).all() and not edit.ids[distance > 6].any()


def test_radius_zero_is_one_pixel_at_row_and_column():
    edit = editor()
    edit.stroke([(7, 21)], 0, 254)
    assert edit.ids[7, 21] == 254 and np.count_nonzero(edit.ids) == 1


@pytest.mark.parametrize("radius", [1, 2, 6])
def test_a_stroke_joins_its_points_at_one_thickness(radius):
    edit = editor()
    edit.stroke([(20, 10), (20, 50)], radius, 1)
    assert (edit.ids[20, 10:51] == 1).all()
    assert set((edit.ids[:, 20:41] > 0).sum(0).tolist()) == {2 * radius + 1}


def test_strokes_outside_the_frame_are_cut():
    edit = editor()
    edit.stroke([(-30, -30), (5, 5), (5, 500)], 1, 2)
    assert edit.ids[5, 59] == 2 and edit.ids.shape == (40, 60)


def test_a_polygon_is_filled_with_its_rim():
    edit = editor()
    edit.polygon([(5, 10), (5, 30), (25, 30), (25, 10)], 7)
    expected = np.zeros((40, 60), np.uint8)
    expected[5:26, 10:31] = 7
    assert np.array_equal(edit.ids, expected)


def test_objects_paint_over_each_other_and_zero_erases():
    edit = editor()
    edit.polygon([(5, 10), (5, 30), (25, 30), (25, 10)], 1)
    edit.stroke([(15, 20)], 3, 2)
    assert edit.ids[15, 20] == 2 and edit.ids[6, 11] == 1
    edit.stroke([(15, 20)], 1, 0)
    assert edit.ids[15, 20] == 0 and edit.ids[15, 17] == 2
    edit.clear(1)
    assert set(np.unique(edit.ids)) == {0, 2}
    edit.clear()
    assert not edit.ids.any()


def test_undo_and_redo_walk_through_every_state():
    edit, states = editor(), []
    states.append(edit.ids.copy())
    for name in (1, 2, 3):
        edit.stroke([(10 * name, 10 * name)], 3, name)
        edit.stroke([(10 * name, 10 * name), (5, 50)], 3, name, goes_on=True)
        states.append(edit.ids.copy())
    for state in states[-2::-1]:
        assert edit.undo() and np.array_equal(edit.ids, state)
    assert not edit.undo()
    for state in states[1:]:
        assert edit.redo() and np.array_equal(edit.ids, state)
    assert not edit.redo()
    edit.undo()
    edit.stroke([(1, 1)], 1, 4)  # a new edit closes the way forward
    assert not edit.redo()
    edit.undo()
    assert np.array_equal(edit.ids, states[2])


def test_undo_remembers_a_bounded_number_of_edits():
    edit = editor()
    for number in range(70):
        edit.stroke([(number % 40, number % 60)], 1, 1)
    assert sum(edit.undo() for _ in range(70)) == 50


def test_wrong_edits_change_nothing_and_are_named():
    edit = editor()
    edit.stroke([(5, 5)], 2, 1)
    before = edit.ids.copy()
    for wrong, match in ((lambda: edit.stroke([(5, 5)], 2, 255), "1 to 254"), (lambda: edit.stroke([(5, 5)], -1, 1), "radius"),
                         (lambda: edit.polygon([(1, 1), (2, 2)], 1), "3 points"),
                         (lambda: edit.polygon([(1, 1)] * 3, -1), "1 to 254"),
                         (lambda: edit.replace(np.zeros((60, 40), np.uint8)), "40x60 .*60x40")):
        with pytest.raises(InputError, match=match):
            wrong()
    assert np.array_equal(edit.ids, before) and edit.undo() and not edit.undo()
    with pytest.raises(InputError, match="uint8"):
        MaskEditor(np.zeros((4, 4)))


def test_the_given_array_is_not_painted_on():
    given = np.zeros((40, 60), np.uint8)
    edit = MaskEditor(given)
    edit.stroke([(5, 5)], 2, 1)
    edit.replace(given)
    edit.stroke([(5, 5)], 2, 1)
    assert not given.any()


@pytest.fixture
def painter():
    pytest.importorskip("ipympl", reason="drawing needs ipympl")
    frame = np.random.default_rng(0).integers(0, 255, (120, 200, 3), np.uint8)
    return Painter(frame)


def mouse(painter, kind, y, x):
    canvas = painter.figure.canvas
    left, bottom = painter.axes.transData.transform((x, y))
    buttons = [MouseButton.LEFT] if kind == "motion_notify_event" else ()
    button = None if kind == "motion_notify_event" else MouseButton.LEFT
    canvas.callbacks.process(kind, MouseEvent(kind, canvas, left, bottom, button, buttons=buttons))


def drag(painter, *points):
    mouse(painter, "button_press_event", *points[0])
    for point in points[1:]:
        mouse(painter, "motion_notify_event", *point)
    mouse(painter, "button_release_event", *points[-1])


def test_a_drag_paints_along_its_way_and_is_one_edit(painter):
    painter.object.value, painter.size.value = 4, 3
    drag(painter, (60, 20), (60, 100), (90, 100))
    assert (painter.ids[60, 20:101] == 4).all() and (painter.ids[60:91, 100] == 4).all()
    assert not painter.ids[30].any() and not painter.ids[100].any()
    mouse(painter, "motion_notify_event", 10, 10)  # the button is up
    assert not painter.ids[10].any()
    painter.tool.value = "erase"
    drag(painter, (60, 50))
    assert painter.ids[60, 50] == 0
    painter.editor.undo()
    assert painter.editor.undo() and not painter.editor.undo() and not painter.ids.any()


def test_clicks_make_a_polygon_that_closes_on_its_first_corner(painter):
    painter.tool.value, painter.object.value = "polygon", 2
    corners = [(20, 30), (20, 150), (100, 150), (100, 30)]
    for point in (*corners, corners[0]):
        mouse(painter, "motion_notify_event", *point)
        drag(painter, point)
    expected = np.zeros((120, 200), np.uint8)
    expected[20:101, 30:151] = 2
    assert np.count_nonzero(painter.ids != expected) < 300  # a pixel of rim at most
    for point in ((5, 5), (5, 20), (15, 20), (5, 5)):  # and the next one
        mouse(painter, "motion_notify_event", *point)
        drag(painter, point)
    assert painter.ids[7, 16] == 2 and painter.ids[60, 90] == 2
    painter.tool.value = "brush"
    drag(painter, (110, 190))
    assert painter.ids[110, 190] == 2


def test_zoom_enlarges_what_is_dragged_and_paints_nothing(painter):
    painter.tool.value = "zoom"
    drag(painter, (40, 50), (60, 80), (80, 130))
    left, right = painter.axes.get_xlim()
    assert 40 < left < right < 140 and not painter.ids.any()
    painter.tool.value = "brush"
    drag(painter, (60, 90))
    assert painter.ids[60, 90] == 1 and painter.axes.get_xlim() == (left, right)
    painter.tools.children[1].children[4].click()  # the whole picture
    assert painter.axes.get_xlim() == (-0.5, 199.5)


def test_pixel_of_is_where_the_mouse_hits_the_point(painter):
    left, top = painter.pixel_of(30, 70)
    height = painter.figure.bbox.height
    assert painter.axes.transData.inverted().transform((left, height - top)) == pytest.approx((70, 30))
    assert painter.pixel_of(0, 0)[0] < painter.pixel_of(0, 100)[0] and painter.pixel_of(0, 0)[1] < painter.pixel_of(50, 0)[1]


def png(ids):
    image, stream = Image.fromarray(ids), io.BytesIO()
    image.putpalette(PALETTE.tobytes())
    image.save(stream, "PNG")
    return stream.getvalue()


def offer(painter, content, name="mask.png"):
    painter.upload.value = ({"name": name, "content": memoryview(content), "type": "image/png", "size": len(content),
                             "last_modified": datetime.datetime.now()},)


def test_a_png_is_loaded_and_a_wrong_one_is_refused_in_words(painter):
    ids = np.zeros((120, 200), np.uint8)
    ids[10:20, 30:50] = 6
    offer(painter, png(ids))
    assert np.array_equal(painter.ids, ids)
    offer(painter, png(ids.T.copy()))
    assert "120x200" in painter.message.value and np.array_equal(painter.ids, ids)
    offer(painter, b"no picture", "../bad.png")
    assert painter.message.value.startswith("bad.png: unreadable mask")
    offer(painter, b"no picture", "<b>.png")
    assert painter.message.value.startswith("&lt;b&gt;.png: unreadable mask")


def test_without_ipympl_masks_are_loaded_and_seen(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipympl.backend_nbagg", None)
    frame = np.full((120, 200, 3), 90, np.uint8)
    painter = Painter(frame)
    assert "pip install ipympl" in painter.message.value
    before, ids = painter.canvas.value, np.zeros((120, 200), np.uint8)
    ids[10:60, 30:90] = 1
    offer(painter, png(ids))
    assert np.array_equal(painter.ids, ids) and painter.canvas.value != before and painter.tool.disabled


def test_a_mask_to_begin_with_has_the_frames_size():
    with pytest.raises(InputError, match="one size"):
        Painter(np.zeros((10, 20, 3), np.uint8), np.zeros((20, 10), np.uint8))
