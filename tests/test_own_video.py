"""A video of yours: masks in every form are read or refused in one line; what is written can be trusted."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from dulvos import movies, own_video, videos
from dulvos.checkpoints import load_encoder
from dulvos.errors import InputError
from dulvos.masks import read_mask, write_mask
from dulvos.inference import SegmentSettings

SIZE, LENGTH = (48, 80), 6


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("random")


@pytest.fixture
def video(tmp_path):
    frames = np.random.default_rng(1).integers(0, 255, (LENGTH, *SIZE, 3), np.uint8)
    (tmp_path / "clip").mkdir()
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / "clip" / f"{index + 10}.png")
    return videos.open_video(tmp_path / "clip")


def block(*names, size=SIZE):
    ids = np.zeros(size, np.uint8)
    for place, name in enumerate(names):
        ids[10:30, 20 * place : 20 * place + 15] = name
    return ids


def save(path, ids):
    write_mask(path, ids)
    return path


def test_a_mask_is_a_file_a_numbered_file_or_a_folder(video, tmp_path):
    first, later = save(tmp_path / "a.png", block(1, 7)), save(tmp_path / "b=c.png", block(0, 9))
    masks = own_video.given_masks(video, [f"4={later}", first])
    assert list(masks) == [0, 4] and np.array_equal(masks[0], block(1, 7)) and np.array_equal(masks[4], block(0, 9))
    save(tmp_path / "given" / "10.png", block(1)), save(tmp_path / "given" / "13.png", block(2))
    assert list(own_video.given_masks(video, [tmp_path / "given"])) == [0, 3]
    assert list(own_video.given_masks(video, [later])) == [0]  # "b=c.png" is a name


def test_the_first_frames_are_a_video_too(video):
    assert [len(own_video.first_frames(video, count)) for count in (0, 1, 4, 99)] == [LENGTH, 1, 4, LENGTH]
    with pytest.raises(InputError, match="frames must be >= 0"):
        own_video.first_frames(video, -1)


def test_masks_of_0_and_255_are_object_1(video, tmp_path):
    Image.fromarray(block(255)).save(tmp_path / "binary.png")
    assert np.array_equal(own_video.given_masks(video, [tmp_path / "binary.png"])[0], block(1))


def test_wrong_masks_are_named_in_one_line(video, tmp_path):
    good, small = save(tmp_path / "good.png", block(1)), save(tmp_path / "small.png", block(1, size=SIZE[::-1]))
    empty, stray = save(tmp_path / "empty.png", block()), save(tmp_path / "stray" / "00003.png", block(1)).parent
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "nothing").mkdir()
    Image.fromarray(block(1).astype(np.uint16) * 300).save(tmp_path / "large.png")
    for given, match in (([tmp_path / "absent.png"], "absent.png.*no such file"), ([small], "small.png is 48x80.*80x48"),
                         ([empty], "empty.png.*no object"), ([good, f"0={good}"], "second mask of frame 0"),
                         ([f"6={good}"], "frame 6.*0 to 5"), ([tmp_path / "text.png"], "text.png.*not a complete PNG"),
                         ([tmp_path / "large.png"], "large.png.*300"), ([stray], "00003.png.*10.png"),
                         ([tmp_path / "nothing"], "no masks.*10.png")):
        with pytest.raises(InputError, match=match) as error:
            own_video.given_masks(video, given)
        assert "\n" not in str(error.value)


def test_results_never_replace_what_they_are_made_from(video, tmp_path):
    mask = save(tmp_path / "masks" / "first.png", block(1))
    with pytest.raises(InputError, match="video's frames"):
        own_video.check_folder(video.path, video)
    for given in (mask, f"2={mask}", mask.parent):
        with pytest.raises(InputError, match="give another folder"):
            own_video.check_folder(mask.parent, video, [given])
    (tmp_path / "file").touch()
    for wrong in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(InputError, match="cannot be written"):
            own_video.check_folder(wrong, video)
    (tmp_path / "new" / "out" / "given").mkdir(parents=True)  # masks of an earlier session lie in their own folder
    assert own_video.check_folder(tmp_path / "new" / "out", video, [mask, tmp_path / "new" / "out" / "given"]).is_dir()
    (tmp_path / "new" / "out" / "given").rmdir()
    assert not list((tmp_path / "new" / "out").iterdir())


def test_masks_are_written_as_they_come_and_old_ones_go_first(video, tmp_path, encoder):
    out = own_video.check_folder(tmp_path / "out", video)
    save(out / "15.png", block(3)), save(out / "notes.png", block(3)), (out / own_video.MOVIE).touch()
    first = block(1, 0, 200)
    pictures = own_video.carry(video, {0: first}, encoder, SegmentSettings(), out)
    assert (out / "15.png").exists()  # nothing was done yet
    for count in range(1, LENGTH + 1):
        picture = next(pictures)
        assert picture.shape == (*SIZE, 3)
        assert sorted(file.stem for file in out.glob("[0-9]*.png")) == [str(10 + index) for index in range(count)]
    assert next(pictures, None) is None
    assert np.array_equal(read_mask(out / "10.png"), first)
    assert all(set(np.unique(read_mask(out / f"{10 + t}.png"))) <= {0, 1, 200} for t in range(LENGTH))
    assert (out / "notes.png").exists() and not (out / own_video.MOVIE).exists()
    list(own_video.carry(own_video.first_frames(video, 2), {0: first}, encoder, SegmentSettings(), out))
    assert sorted(file.stem for file in out.glob("*.png")) == ["10", "11", "notes"], "the longer run's masks are gone, others' files stay"
    list(own_video.carry(video, {0: first}, encoder, SegmentSettings(), out))
    shown, titles = own_video.look(video, out, 3)
    assert titles == ["frame 0", "frame 2", "frame 5"] and len(shown) == 3


@pytest.mark.parametrize("wrong", [{"topk": 0}, {"context": 0}, {"tau": 0.0}, {"radius": -1.0}])
def test_wrong_settings_are_refused_before_anything_is_touched(video, tmp_path, encoder, wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        own_video.carry(video, {0: block(1)}, encoder, SegmentSettings(**wrong), tmp_path)
    for nothing in ({}, {0: block()}):
        with pytest.raises(InputError, match="no object is marked in frame 0"):
            own_video.carry(video, nothing, encoder, SegmentSettings(), tmp_path)


def test_a_correction_holds_the_touched_objects_only():
    carried = block(1, 2, 5)
    given = {0: block(1, 2, 5)}
    assert own_video.corrected(given, 3, carried, carried.copy()) is given
    hole = carried.copy()
    hole[12, 3] = 0
    once = own_video.corrected(given, 3, carried, hole)
    assert np.array_equal(once[3], np.where(hole == 1, 1, 0)) and given.keys() == {0}
    over = carried.copy()
    over[12:14, 20:24], over[40:, :] = 1, 9  # one object over another, and a new one
    assert set(np.unique(own_video.corrected(given, 3, carried, over)[3])) == {0, 1, 2, 9}


def test_a_second_correction_of_a_frame_keeps_the_first():
    carried = block(1, 2)
    first, second = carried.copy(), carried.copy()
    first[12, 3] = 0
    second[12, 3], second[12, 23] = 0, 0
    given = own_video.corrected({0: carried}, 3, carried, first)
    given = own_video.corrected(given, 3, first, second)
    assert np.array_equal(given[3], second)


def test_a_correction_leaves_the_frames_before_it_alone(video, tmp_path, encoder):
    truth = {0: block(1, 2), 3: block(0, 0, 1)}
    for name, masks in (("a", {0: truth[0]}), ("b", truth)):
        (tmp_path / name).mkdir()
        for _ in own_video.carry(video, masks, encoder, SegmentSettings(), tmp_path / name):
            pass
    a, b = ([read_mask(tmp_path / name / f"{10 + t}.png") for t in range(LENGTH)] for name in "ab")
    assert all(np.array_equal(a[t], b[t]) for t in range(3))
    assert np.array_equal(b[3] == 1, truth[3] == 1) and not np.array_equal(a[4], b[4])


def test_frames_that_would_not_fit_are_told_before_the_first(video, monkeypatch):
    """A system short of memory kills without a word, after some frames."""
    large = dataclasses.replace(video, size=(2160, 3840))
    monkeypatch.setattr(own_video, "free_memory", lambda device: 8 * 2**30)
    with pytest.raises(InputError, match=r"frames of 3840x2160 need about 1\d GB with a context of 20, and 8 GB are free; give shorter_side"):
        own_video.check_memory(large, 1, SegmentSettings(), torch.device("cpu"))
    own_video.check_memory(large, 1, SegmentSettings(shorter_side=480), torch.device("cpu"))
    own_video.check_memory(video, 1, SegmentSettings(), torch.device("cpu"))


def test_given_masks_are_kept_as_they_are_now(video, tmp_path):
    """A correction of an earlier session would count as one of these objects."""
    folder = tmp_path / "out" / "given"
    own_video.write_given(folder, video, {0: block(1), 4: block(2)})
    assert own_video.given_masks(video, [folder]).keys() == {0, 4}
    for number, first in ((1, block(3)), (2, block(4))):
        own_video.write_given(folder, video, {0: first})
        given = own_video.given_masks(video, [folder])
        assert given.keys() == {0} and np.array_equal(given[0], first)
        assert (folder / f"earlier-{number}" / "10.png").exists(), "drawn by hand: never deleted"
    own_video.write_given(folder, video, given)
    assert np.array_equal(read_mask(folder / "earlier-1" / "14.png"), block(2)) and not (folder / "earlier-3").exists()


def test_a_movie_of_the_result_has_the_videos_length(video, tmp_path, encoder):
    path = movies.write_mp4(tmp_path / "o.mp4", own_video.carry(video, {0: block(1)}, encoder, SegmentSettings(), tmp_path))
    assert len(videos.open_video(path)) == LENGTH
