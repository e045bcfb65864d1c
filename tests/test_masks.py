"""Masks are read as written, an overlay mixes the right pixels, results never replace what a user gives.

Other kinds of masks, and broken ones, are in the corpus.
"""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dulvos import masks
from dulvos.errors import InputError
from dulvos.masks import OBJECT_COLOURS, PALETTE, overlay, read_mask, write_mask
from dulvos.movies import write_mp4
from dulvos.videos import Video, open_video
from tests.corpus_masks import SIZE, blocks

LENGTH = 6


def save(path: Path, picture: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    return path


def test_palette_is_the_voc_colour_map() -> None:
    expected = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128)]
    expected += [(128, 128, 128), (64, 0, 0), (192, 0, 0), (64, 128, 0)]
    assert PALETTE[:11].tolist() == [list(colour) for colour in expected]
    assert PALETTE[[21, 64, 255]].tolist() == [[128, 64, 128], [32, 0, 0], [224, 224, 192]]
    assert PALETTE.dtype == np.uint8 and len(np.unique(PALETTE, axis=0)) == 256


def test_masks_are_read_as_written(tmp_path: Path) -> None:
    ids = np.arange(255, dtype=np.uint8).reshape(15, 17)
    write_mask(tmp_path / "new" / "a.png", ids)
    assert np.array_equal(read_mask(tmp_path / "new" / "a.png"), ids)
    with Image.open(tmp_path / "new" / "a.png") as image:
        assert image.mode == "P" and np.array_equal(np.asarray(image.convert("RGB")), PALETTE[ids])


@pytest.mark.parametrize("ids", [blocks(1).astype(np.int64), blocks(1)[None], blocks(1, 255)])
def test_what_is_no_mask_is_not_written(tmp_path: Path, ids: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"a\.png"):
        write_mask(tmp_path / "a.png", ids)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_overlay_is_the_mixture_of_every_pixel(dtype: type) -> None:
    """The rim is opaque on the inner side of each object, but not where an object leaves the frame."""
    frame, ids = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8), np.zeros((60, 80), dtype)
    ids[5:30, 10:50], ids[20:50, 40:80], ids[55:, :9] = 1, 7, 200
    edge = np.zeros(ids.shape, bool)
    for y, x in np.ndindex(ids.shape):
        edge[y, x] = len(np.unique(ids[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2])) > 1
    strength = np.where(ids > 0, np.where(edge, 1, 0.5), 0)[..., None]
    colour = OBJECT_COLOURS[(ids.astype(int) - 1) % 7].astype(float)
    before = frame.copy()
    mixed = overlay(frame, ids)
    assert mixed.dtype == np.uint8
    assert np.array_equal(mixed, np.rint(frame + strength * (colour - frame)).astype(np.uint8))
    assert np.array_equal(frame, before)
    with pytest.raises(InputError, match="59, 80"):
        overlay(frame, ids[1:])


@pytest.fixture
def video(tmp_path: Path) -> Video:
    """Frames called 10 to 15."""
    for index in range(LENGTH):
        save(tmp_path / "clip" / f"{index + 10}.png", np.full((*SIZE, 3), 9 * index, np.uint8))
    return open_video(tmp_path / "clip")


def test_a_mask_is_a_file_a_numbered_file_or_a_folder(video: Video, tmp_path: Path) -> None:
    first, later = save(tmp_path / "a.png", blocks(1, 7)), save(tmp_path / "b=c.png", blocks(0, 9))
    given = masks.given_masks(video, [f"4={later}", first])
    assert list(given) == [0, 4]
    assert np.array_equal(given[0], blocks(1, 7)) and np.array_equal(given[4], blocks(0, 9))
    save(tmp_path / "given" / "10.png", blocks(1)), save(tmp_path / "given" / "13.png", blocks(2))
    assert list(masks.given_masks(video, [tmp_path / "given"])) == [0, 3]
    (tmp_path / "given" / "13.png").rename(tmp_path / "given" / "14.PNG")
    assert list(masks.given_masks(video, [tmp_path / "given"])) == [0, 4]
    twin = save(tmp_path / "given" / "14.png", blocks(3))
    with pytest.raises(InputError, match=r"14\.(png|PNG)"):
        masks.given_masks(video, [twin.parent])
    assert list(masks.given_masks(video, [later])) == [0]  # "b=c.png" is a name
    among = later.rename(video.path / later.name)  # the frames
    (tmp_path / "link").symlink_to(video.path)
    for item in (among, f"4={among}", tmp_path / "link" / among.name):
        assert len(open_video(video.path, [item])) == len(open_video(tmp_path / "link", [item])) == LENGTH


def test_masks_of_another_video_are_named(video: Video, tmp_path: Path) -> None:
    for _ in masks.save_masks([(5, blocks(1))], video, tmp_path):
        assert masks.check_folder(tmp_path, video) == tmp_path
    (tmp_path / "15.png").rename(tmp_path / "99.png")
    with pytest.warns(UserWarning, match="99.png"):
        masks.check_folder(tmp_path, video)


def test_results_never_replace_what_they_are_made_from(video: Video, tmp_path: Path) -> None:
    mask = save(tmp_path / "masks" / "10.png", blocks(1))
    (tmp_path / "file").touch()
    for out in (video.path, mask.parent, tmp_path / "file", tmp_path / "file/out"):
        with pytest.raises(InputError, match=str(out)):
            masks.check_folder(out, video)
    for item in (mask, f"3={mask}", mask.parent):  # even with overwrite, a given mask stays
        with pytest.raises(InputError, match=str(mask)):
            masks.check_folder(mask.parent, video, True, [item])
    out = tmp_path / "new" / "out"
    seen = write_mp4(out / masks.MOVIE, video.frames())  # of an earlier run, and now the video
    with pytest.raises(InputError, match=str(seen)):
        masks.check_folder(out, open_video(seen))
    seen.unlink()
    save(out / "given" / "10.png", blocks(1))  # masks of an earlier session lie in a folder of their own
    assert masks.check_folder(out, video).is_dir()
    assert [path.name for path in out.iterdir()] == ["given"]


def numbers(folder: Path) -> list[int]:
    return sorted(int(file.stem) - 10 for file in folder.glob("[0-9]*.png"))


def test_masks_are_written_as_they_come_and_those_of_an_earlier_run_go_first(video, tmp_path):
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


def test_given_masks_are_kept_as_they_are_now(video: Video, tmp_path: Path, monkeypatch) -> None:
    """A correction of an earlier session would count as one of these objects."""
    folder = tmp_path / "out" / "given"
    masks.save_given(folder, video, {0: blocks(1), 4: blocks(2)}, {3: [1]})
    assert masks.given_masks(video, [folder]).keys() == {0, 4}
    for number, first in ((1, blocks(3)), (2, blocks(4))):
        masks.save_given(folder, video, {0: first}, {2: (5, 6)})
        given = masks.given_masks(video, [folder])
        assert given.keys() == {0} and np.array_equal(given[0], first)
        assert (tmp_path / "out" / f"given-{number}" / "10.png").exists(), "drawn by hand: never deleted"
    (folder / ".DS_Store").touch()  # of a file manager
    masks.save_given(folder, video, given, {2: (5, 6)})
    assert np.array_equal(masks.read_mask(tmp_path / "out" / "given-1" / "14.png"), blocks(2))
    assert not (tmp_path / "out" / "given-3").exists()
    assert masks.read_ended(video, [folder / "10.png", folder]) == {2: (5, 6)}
    assert masks.read_ended(video, [tmp_path / "out" / "given-1"]) == {3: (1,)}
    own = masks.save_given(folder, video, given | {3: blocks(1)}, {})
    with monkeypatch.context() as changed:  # as if it was killed
        changed.setattr("os.replace", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            masks.save_given(folder, video, {4: blocks(2)}, {}, own)
    assert masks.given_masks(video, [folder]).keys() == {0, 3}
    masks.save_given(folder, video, {4: blocks(2)}, {}, own)
    assert masks.given_masks(video, [folder]).keys() == {4}
    for wrong in ('{"99": [1]}', '{"10": ["a"]}', "[1]", "{"):
        (folder / "ended.json").write_text(wrong)
        with pytest.raises(InputError, match="ended.json"):
            masks.read_ended(video, [folder])
    masks.save_given(folder, video, given, {})
    assert masks.read_ended(video, [folder]) == {}
