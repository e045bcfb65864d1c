"""Masks of your own video are read or refused in one line; results never replace what they are made from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dulvos import masks
from dulvos.errors import InputError
from dulvos.videos import Video, open_video
from tests.test_masks import H, W, blocks, save

LENGTH = 6


@pytest.fixture
def video(tmp_path: Path) -> Video:
    """Frames called 10 to 15."""
    for index in range(LENGTH):
        save(tmp_path / "clip" / f"{index + 10}.png", np.full((H, W, 3), 9 * index, np.uint8))
    return open_video(tmp_path / "clip")


def test_a_mask_is_a_file_a_numbered_file_or_a_folder(video: Video, tmp_path: Path) -> None:
    first, later = save(tmp_path / "a.png", blocks(1, 7)), save(tmp_path / "b=c.png", blocks(0, 9))
    given = masks.given_masks(video, [f"4={later}", first])
    assert list(given) == [0, 4]
    assert np.array_equal(given[0], blocks(1, 7)) and np.array_equal(given[4], blocks(0, 9))
    save(tmp_path / "given" / "10.png", blocks(1)), save(tmp_path / "given" / "13.png", blocks(2))
    assert list(masks.given_masks(video, [tmp_path / "given"])) == [0, 3]
    assert list(masks.given_masks(video, [later])) == [0]  # "b=c.png" is a name


def test_results_never_replace_what_they_are_made_from(video: Video, tmp_path: Path) -> None:
    mask = save(tmp_path / "masks" / "10.png", blocks(1))
    (tmp_path / "file").touch()
    for out, given in ((video.path, []), (mask.parent, [mask]), (mask.parent, [f"2={mask}"]),
                       (mask.parent, [mask.parent]), (tmp_path / "file", []), (tmp_path / "file/out", [])):
        with pytest.raises(InputError, match=str(out)):
            masks.check_folder(out, video, given)
    out = tmp_path / "new" / "out"
    save(out / "given" / "10.png", blocks(1))  # masks of an earlier session lie in a folder of their own
    assert masks.check_folder(out, video, [mask, out / "given"]).is_dir()
    assert [path.name for path in out.iterdir()] == ["given"]


def numbers(folder: Path) -> list[int]:
    return sorted(int(file.stem) - 10 for file in folder.glob("[0-9]*.png"))


def test_masks_are_written_as_they_come_and_those_of_an_earlier_run_go_first(video: Video,
                                                                             tmp_path: Path) -> None:
    out = masks.check_folder(tmp_path / "out", video)
    save(out / "15.png", blocks(3)), save(out / "notes.png", blocks(3)), (out / masks.MOVIE).touch()
    found = [(t, blocks(1, t)) for t in range(LENGTH)]
    saved = masks.save_masks(found, video, out)
    assert numbers(out) == [5]  # nothing was done yet
    for t, ids in saved:
        assert numbers(out) == [*range(t + 1)] and np.array_equal(masks.read_mask(out / f"{10 + t}.png"), ids)
    assert (out / "notes.png").exists() and not (out / masks.MOVIE).exists()
    (out / masks.MOVIE).touch()
    next(masks.save_masks(found[3:], video, out))  # a correction: what lies before it stays
    assert numbers(out) == [0, 1, 2, 3] and not (out / masks.MOVIE).exists()
    assert (out / "notes.png").exists(), "files of others stay"


def test_given_masks_are_kept_as_they_are_now(video: Video, tmp_path: Path) -> None:
    """A correction of an earlier session would count as one of these objects."""
    folder = tmp_path / "out" / "given"
    masks.save_given(folder, video, {0: blocks(1), 4: blocks(2)}, {3: [1]})
    assert masks.given_masks(video, [folder]).keys() == {0, 4}
    for number, first in ((1, blocks(3)), (2, blocks(4))):
        masks.save_given(folder, video, {0: first}, {2: (5, 6)})
        given = masks.given_masks(video, [folder])
        assert given.keys() == {0} and np.array_equal(given[0], first)
        assert (folder / f"earlier-{number}" / "10.png").exists(), "drawn by hand: never deleted"
    masks.save_given(folder, video, given, {2: (5, 6)})
    assert np.array_equal(masks.read_mask(folder / "earlier-1" / "14.png"), blocks(2))
    assert not (folder / "earlier-3").exists()
    assert masks.read_ended(video, [folder / "10.png", folder]) == {2: (5, 6)}
    assert masks.read_ended(video, [folder / "earlier-1"]) == {3: (1,)}
    for wrong in ('{"99": [1]}', '{"10": ["a"]}', "[1]", "{"):
        (folder / "ended.json").write_text(wrong)
        with pytest.raises(InputError, match="ended.json"):
            masks.read_ended(video, [folder])
    masks.save_given(folder, video, given, {})
    assert masks.read_ended(video, [folder]) == {}
