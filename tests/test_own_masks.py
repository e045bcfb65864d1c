"""Masks of your own video are read or refused in one line; results never replace what they are made from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dulvos import masks, videos
from dulvos.errors import InputError

SIZE, LENGTH = (48, 80), 6


@pytest.fixture
def video(tmp_path):
    (tmp_path / "clip").mkdir()
    for index in range(LENGTH):
        frame = Image.fromarray(np.full((*SIZE, 3), 9 * index, np.uint8))
        frame.save(tmp_path / "clip" / f"{index + 10}.png")
    return videos.open_video(tmp_path / "clip")


def block(*names, size=SIZE):
    ids = np.zeros(size, np.uint8)
    for place, name in enumerate(names):
        ids[10:30, 20 * place : 20 * place + 15] = name
    return ids


def save(path, ids):
    masks.write_mask(path, ids)
    return path


def test_a_mask_is_a_file_a_numbered_file_or_a_folder(video, tmp_path):
    first, later = save(tmp_path / "a.png", block(1, 7)), save(tmp_path / "b=c.png", block(0, 9))
    given = masks.given_masks(video, [f"4={later}", first])
    assert list(given) == [0, 4]
    assert np.array_equal(given[0], block(1, 7)) and np.array_equal(given[4], block(0, 9))
    save(tmp_path / "given" / "10.png", block(1)), save(tmp_path / "given" / "13.png", block(2))
    assert list(masks.given_masks(video, [tmp_path / "given"])) == [0, 3]
    assert list(masks.given_masks(video, [later])) == [0]  # "b=c.png" is a name
    Image.fromarray(block(255)).save(tmp_path / "binary.png")
    assert np.array_equal(masks.given_masks(video, [tmp_path / "binary.png"])[0], block(1))


def test_wrong_masks_are_named_in_one_line(video, tmp_path):
    good, empty = save(tmp_path / "good.png", block(1)), save(tmp_path / "empty.png", block())
    small = save(tmp_path / "small.png", block(1, size=SIZE[::-1]))
    stray = save(tmp_path / "stray" / "00003.png", block(1)).parent
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "nothing").mkdir()
    Image.fromarray(block(1).astype(np.uint16) * 300).save(tmp_path / "large.png")
    for given, match in (([tmp_path / "absent.png"], "absent.png.*No such file"),
                         ([small], "small.png is 48x80.*80x48"), ([empty], "no object.*empty.png"),
                         ([good, f"0={good}"], "second mask of frame 0"), ([f"6={good}"], "frame 6.*0 to 5"),
                         ([tmp_path / "text.png"], "text.png.*not a complete PNG"),
                         ([tmp_path / "large.png"], "large.png.*300"), ([stray], "00003.png.*10.png"),
                         ([tmp_path / "nothing"], "no masks.*10.png")):
        with pytest.raises(InputError, match=match) as error:
            masks.given_masks(video, given)
        assert "\n" not in str(error.value)


def test_results_never_replace_what_they_are_made_from(video, tmp_path):
    mask = save(tmp_path / "masks" / "10.png", block(1))
    with pytest.raises(InputError, match="video's frames"):
        masks.check_folder(video.path, video)
    for given in (mask, f"2={mask}", mask.parent):
        with pytest.raises(InputError, match="give another folder"):
            masks.check_folder(mask.parent, video, [given])
    (tmp_path / "file").touch()
    for wrong in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(InputError, match="cannot be written"):
            masks.check_folder(wrong, video)
    out = tmp_path / "new" / "out"
    save(out / "given" / "10.png", block(1))  # masks of an earlier session lie in a folder of their own
    assert masks.check_folder(out, video, [mask, out / "given"]).is_dir()
    assert [path.name for path in out.iterdir()] == ["given"]


def numbers(folder):
    return sorted(int(file.stem) - 10 for file in folder.glob("[0-9]*.png"))


def test_masks_are_written_as_they_come_and_those_of_an_earlier_run_go_first(video, tmp_path):
    out = masks.check_folder(tmp_path / "out", video)
    save(out / "15.png", block(3)), save(out / "notes.png", block(3)), (out / masks.MOVIE).touch()
    found = [(t, block(1, t)) for t in range(LENGTH)]
    saved = masks.save_masks(found, video, out)
    assert numbers(out) == [5]  # nothing was done yet
    for t, ids in saved:
        assert numbers(out) == [*range(t + 1)] and np.array_equal(masks.read_mask(out / f"{10 + t}.png"), ids)
    assert (out / "notes.png").exists() and not (out / masks.MOVIE).exists()
    (out / masks.MOVIE).touch()
    next(masks.save_masks(found[3:], video, out))  # a correction: what lies before it stays
    assert numbers(out) == [0, 1, 2, 3] and not (out / masks.MOVIE).exists()
    list(masks.save_masks(found[:2], replace(video, length=2), out))
    assert numbers(out) == [0, 1], "masks of a longer run are gone"
    assert (out / "notes.png").exists(), "files of others stay"


def test_given_masks_are_kept_as_they_are_now(video, tmp_path):
    """A correction of an earlier session would count as one of these objects."""
    folder = tmp_path / "out" / "given"
    masks.save_given(folder, video, {0: block(1), 4: block(2)}, {3: [1]})
    assert masks.given_masks(video, [folder]).keys() == {0, 4}
    for number, first in ((1, block(3)), (2, block(4))):
        masks.save_given(folder, video, {0: first}, {2: (5, 6)})
        given = masks.given_masks(video, [folder])
        assert given.keys() == {0} and np.array_equal(given[0], first)
        assert (folder / f"earlier-{number}" / "10.png").exists(), "drawn by hand: never deleted"
    masks.save_given(folder, video, given, {2: (5, 6)})
    assert np.array_equal(masks.read_mask(folder / "earlier-1" / "14.png"), block(2))
    assert not (folder / "earlier-3").exists()
    assert masks.read_ended(video, [folder / "10.png", folder]) == {2: (5, 6)}
    assert masks.read_ended(video, [folder / "earlier-1"]) == {3: (1,)}
    for wrong in ('{"99": [1]}', '{"10": ["a"]}', "[1]", "{"):
        (folder / "ended.json").write_text(wrong)
        with pytest.raises(InputError, match="ended.json"):
            masks.read_ended(video, [folder])
    masks.save_given(folder, video, given, {})
    assert masks.read_ended(video, [folder]) == {}
