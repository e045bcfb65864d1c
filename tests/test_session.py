"""A session: after corrections, ends, stops and undoing, its masks are those of a run from the start."""

import errno
import itertools
import tempfile
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from dulvos import videos
from dulvos.checkpoints import load_encoder
from dulvos.encoder import Encoder
from dulvos.errors import InputError
from dulvos.inference import SegmentSettings, carry, check_memory, colour_features, encode
from dulvos.session import Session

SIZE, LENGTH = (48, 80), 9
SETTINGS = SegmentSettings(context=3, radius=4.0, topk=4, precision="fp32")


def write_clip(folder):
    """A red square that moves to the right over noise; a blue and a green square stay."""
    random = np.random.default_rng(1)
    background = random.integers(0, 255, (*SIZE, 3), np.uint8)
    for t in range(LENGTH):
        frame = np.roll(background, 3 * t, 1)
        squares = (4 + 3 * t, 12, (250, 60, 60)), (60, 30, (40, 200, 60)), (60, 12, (60, 60, 250))
        for left, top, colour in squares:
            frame[top : top + 16, left : left + 16] = colour
        Image.fromarray(frame).save(folder / f"{t:05d}.png")
    return videos.open_video(folder)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"))


class Counted:
    """Colour features, each after a pause in seconds; `frames` counts the encoded frames."""

    def __init__(self):
        self.frames, self.pause = 0, 0

    def __call__(self, frames, settings):
        for frame in frames:
            self.frames += 1
            time.sleep(self.pause)
            yield from colour_features([frame], settings)


def block(name, left=4, top=12):
    ids = np.zeros(SIZE, np.uint8)
    ids[top : top + 16, left : left + 16] = name
    return ids


def fresh(video, given, ended=None):
    """Masks of a run from the start, without a session."""
    features = torch.stack(list(colour_features(video.frames(), SETTINGS)))
    return [ids for _, ids in carry(features, given, SETTINGS, ended=ended)]


def finish(session):
    return [t for t, _ in session.run()]


def same(session, masks):
    equal = [np.array_equal(session.labels(t), ids) for t, ids in enumerate(masks)]
    return session.done == len(masks) and all(equal)


def test_a_correction_goes_on_from_its_frame_and_encodes_nothing_again(video):
    count = Counted()
    session = Session(video, count, SETTINGS, {0: block(1)})
    assert session.done == 0 and finish(session) == [*range(LENGTH)] and count.frames == LENGTH
    assert same(session, fresh(video, {0: block(1)}))
    painted = np.where(block(2, 60, 30) > 0, 2, session.labels(5)).astype(np.uint8)
    session.paint(5, painted)
    assert (session.done, session.found) == (5, LENGTH) and np.array_equal(session.labels(5), painted)
    assert np.array_equal(session.given[5], np.where(painted == 2, 2, 0)), "untouched objects go on as before"
    assert finish(session) == [5, 6, 7, 8] and count.frames == LENGTH
    assert same(session, fresh(video, session.given)) and 2 in session.labels(8)


def test_it_stops_and_continues_at_any_moment(video):
    count = Counted()
    session = Session(video, count, SETTINGS, {0: block(1)})
    assert [t for t, _ in itertools.islice(session.run(), 3)] == [0, 1, 2]
    assert session.done == 3 and count.frames < LENGTH
    session.paint(7, block(5))  # not found yet: a new object
    assert [t for t, _ in itertools.islice(session.run(), 2)] == [3, 4]
    session.paint(1, np.zeros(SIZE, np.uint8))
    session.paint(1, session.labels(1) + block(3, 60))
    assert finish(session) == [*range(1, LENGTH)] and count.frames == LENGTH
    assert same(session, fresh(video, session.given, session.ended)) and session.ended == {1: (1,)}


def test_an_object_ends_where_it_is_erased_or_said_to_end_until_it_is_painted_again(video):
    given = block(1) + block(2, 60)
    given[-1, 4] = 4  # between two cells: too small to be found again
    session = Session(video, Counted(), SETTINGS, {0: given})
    finish(session)
    ids = session.labels(3)
    session.paint(3, np.where(ids == 1, 0, ids).astype(np.uint8))
    assert session.ended == {3: (1,)} and 3 not in session.given and finish(session) == [*range(3, LENGTH)]
    assert same(session, fresh(video, session.given, session.ended))
    assert [1 in session.labels(t) for t in (2, 3, 8)] == [True, False, False] and 2 in session.labels(8)
    session.paint(6, session.labels(6) + block(1, 20))
    finish(session)
    assert [1 in session.labels(t) for t in (5, 6, 7)] == [False, True, True]
    assert 4 not in session.labels(7)
    session.paint(2, session.labels(2) + block(3, 30, 30))  # an earlier correction keeps the end
    finish(session)
    assert session.ended == {3: (1,)}
    session.paint(7, session.labels(7), ended=[4, 99])  # 99 is nowhere
    assert session.ended == {3: (1,), 7: (4,)} and finish(session) == [7, 8]
    assert same(session, fresh(video, session.given, session.ended))
    again = Session(video, Counted(), SETTINGS, session.given, session.ended)
    assert finish(again) == [*range(LENGTH)] and same(again, fresh(video, session.given, session.ended))


def test_what_is_erased_or_taken_back_is_gone_before_the_masks_are_found_again(video):
    session = Session(video, Counted(), SETTINGS, {0: block(1) + block(2, 60)})
    finish(session)
    before = session.labels(5)
    session.paint(5, before + block(3, 30, 30))
    finish(session)
    session.paint(5, before)  # 3 was known nowhere else, so nothing given says that it is gone
    session.paint(0, block(1))
    assert np.array_equal(session.labels(5), before) and np.array_equal(session.labels(0), block(1))
    session.paint(0, block(1) + block(4, 30, 30))
    assert session.given[0].max() == 4 and not (session.given[0] == 2).any(), "nor is it given again"
    session.given[0] = block(1)
    assert 4 not in session.labels(0), "what is given counts"


def test_a_given_mask_that_changes_is_noticed(video):
    session = Session(video, Counted(), SETTINGS, {0: block(1)})
    finish(session)
    session.given[0][block(2, 60) > 0] = 2
    assert finish(session) == [*range(LENGTH)] and same(session, fresh(video, session.given))


def test_taking_a_correction_back_makes_the_masks_valid_again(video):
    session = Session(video, Counted(), SETTINGS, {0: block(1)})
    finish(session)
    before = session.labels(4)
    for wrong in (before + block(2, 60, 30), np.zeros(SIZE, np.uint8)):
        session.paint(4, wrong)
        assert session.done == 4
        session.paint(4, before)
        assert session.done == LENGTH and session.given.keys() == {0} and not session.ended
        assert finish(session) == []
    session.paint(4, before + block(2, 60, 30))
    finish(session)
    session.paint(4, before)  # also after it was carried on
    assert finish(session) == [4, 5, 6, 7, 8] and same(session, fresh(video, {0: block(1)}))


def test_a_second_correction_of_a_frame_keeps_the_first(video):
    session = Session(video, Counted(), SETTINGS, {0: block(1) + block(2, 60)})
    finish(session)
    ids = session.labels(5)
    ids[30:34, 30:34] = 1
    session.paint(5, ids)
    finish(session)
    session.paint(2, session.labels(2) + block(3, 30, 30))  # which gives frame 5 another mask to compare with
    finish(session)
    ids = session.labels(5)
    ids[40:44, 4:8] = 2
    session.paint(5, ids)
    assert np.array_equal(session.given[5], np.where(np.isin(ids, [1, 2]), ids, 0))


def test_a_full_folder_of_temporary_files_is_named_and_the_run_goes_on(video, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    session = Session(video, Counted(), SETTINGS, {0: block(1)})
    with monkeypatch.context() as changed:
        changed.setattr("numpy.save", full)
        with pytest.raises(InputError, match=tempfile.gettempdir()):
            finish(session)
    assert len(finish(session)) == LENGTH


def test_features_are_those_of_the_encoder_and_an_interrupted_run_goes_on(video):
    encoder = load_encoder("random")
    settings = SegmentSettings(shorter_side=24, context=3, precision="fp32")
    calls = []

    def features(frames, settings):
        calls.append(0)
        for number, found in enumerate(encode(encoder, frames, settings)):
            if len(calls) == 1 and number == 5:
                raise KeyboardInterrupt
            yield found

    session = Session(video, features, settings, {0: block(1)})
    with pytest.raises(KeyboardInterrupt):
        finish(session)
    assert session.done == 5 and finish(session) == [5, 6, 7, 8]
    whole = Session(video, partial(encode, encoder), settings, {0: block(1)})
    finish(whole)
    different = [(session.labels(t) != whole.labels(t)).mean() for t in range(LENGTH)]
    assert max(different) < 0.02  # rounding depends on the batches


def test_wrong_masks_are_refused_before_anything_is_encoded(video):
    count = Counted()
    for given, match in (({}, "no object"), ({0: block(0)}, "no object"), ({LENGTH: block(1)}, "frame 9"),
                         ({0: block(1)[1:]}, r"\(47, 80\)")):
        with pytest.raises(InputError, match=match):
            finish(Session(video, count, SETTINGS, given))
    session = Session(video, count, SETTINGS)
    for t, ids, match in ((LENGTH, block(1), "frame 9"), (0, block(1)[1:], "47"), (0, block(255), "254"),
                          (0, block(1).astype(int), "int64")):
        with pytest.raises(InputError, match=match):
            session.paint(t, ids)
    assert not session.given and not count.frames


def test_frames_that_would_not_fit_are_refused_before_the_first(tmp_path, monkeypatch):
    """Otherwise the system kills the process after some frames, without a message."""
    monkeypatch.setattr("dulvos.inference.free_memory", lambda place: 8 * 2**30)
    needs = videos.Video("large", tmp_path, 9, (2**16, 2**16), ("0.png",) * 9)
    with pytest.raises(InputError, match="65536x65536.*shorter_side"):
        check_memory(needs, {}, SegmentSettings(), Encoder())
    few, many = {0: np.eye(2, dtype=np.uint8)}, {0: np.eye(2, dtype=np.uint8), 3: np.arange(250)[None]}
    small, needs = SegmentSettings(shorter_side=48), replace(needs, size=(2**13, 2**13))
    check_memory(needs, few, small, Encoder())
    with pytest.raises(InputError, match="249 objects"):  # their masks have the frames' size
        check_memory(needs, many, small, Encoder())
