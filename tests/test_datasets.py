"""Layouts, masks and palette: what is written is read back, and whatever is missing or odd is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dulvos.datasets import load_davis, load_youtube_vos, read_predictions
from dulvos.masks import write_mask
from dulvos.errors import InputError
from tests.test_masks import H, W, blocks, save

def save_frames(folder: Path, names: list[str]) -> None:
    for name in names:
        save(folder / f"{name}.jpg", np.full((H, W, 3), 90, np.uint8))


def make_davis17(root: Path, masks: dict[str, list[np.ndarray]], split: str = "val") -> Path:
    """A DAVIS-2017 layout: the masks of each sequence, one a frame."""
    for name, sequence in masks.items():
        save_frames(root / "JPEGImages/480p" / name, [f"{i:05d}" for i in range(len(sequence))])
        for i, ids in enumerate(sequence):
            write_mask(root / "Annotations/480p" / name / f"{i:05d}.png", ids)
    lists = root / "ImageSets/2017"
    lists.mkdir(parents=True, exist_ok=True)
    (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in masks))
    return root


def make_davis16(root: Path, names: list[str], length: int = 3) -> Path:
    """A DAVIS-2016 layout: 0/255 masks and lists of pairs."""
    lines = []
    for name in names:
        frames = [f"{i:05d}" for i in range(length)]
        save_frames(root / "JPEGImages/480p" / name, frames)
        for frame in frames:
            save(root / "Annotations/480p" / name / f"{frame}.png", blocks(255))
            lines.append(f"/JPEGImages/480p/{name}/{frame}.jpg /Annotations/480p/{name}/{frame}.png \n")
    (root / "ImageSets/480p").mkdir(parents=True)
    (root / "ImageSets/480p/val.txt").write_text("".join(lines))
    return root


def make_youtube_vos(root: Path, meta: bool = True, dense: bool = False) -> Path:
    """Frames 00000 to 00020, every 5th; objects 1 and 4 enter at once, 2 at 00010 (with 4 again)."""
    coarse = [f"{i:05d}" for i in range(0, 25, 5)]
    save_frames(root / "valid/JPEGImages/a", coarse)
    write_mask(root / "valid/Annotations/a/00000.png", blocks(1, 4))
    write_mask(root / "valid/Annotations/a/00010.png", blocks(2, 4))
    if meta:
        objects = {i: {"category": "cat", "frames": coarse} for i in ("1", "2", "4")}
        (root / "valid/meta.json").write_text(json.dumps({"videos": {"a": {"objects": objects}}}))
    if dense:
        save_frames(root / "valid_all_frames/JPEGImages/a", [f"{i:05d}" for i in range(21)])
    return root


def test_davis_2017_keeps_objects_apart(tmp_path: Path) -> None:
    masks = {"b": [blocks(1, 2), blocks(2), blocks(1, 2, 3)], "a": [blocks(1)] * 2}
    dataset = load_davis(make_davis17(tmp_path, masks), "val")
    assert (dataset.name, dataset.split, dataset.root) == ("DAVIS-2017", "val", tmp_path)
    assert [sequence.name for sequence in dataset.sequences] == ["b", "a"]
    assert np.array_equal(dataset.sequences[0].truth(), np.stack(masks["b"]))
    assert np.array_equal(dataset.sequences[0].mask(1), blocks(2))
    given = dataset.sequences[0].first_masks()
    assert list(given) == [0] and np.array_equal(given[0], blocks(1, 2))


def test_davis_2016_has_one_object(tmp_path: Path) -> None:
    dataset = load_davis(make_davis16(tmp_path, ["b", "a"]))
    assert dataset.name == "DAVIS-2016"
    assert [sequence.name for sequence in dataset.sequences] == ["b", "a"]
    assert np.array_equal(dataset.sequences[1].truth(), np.stack([blocks(1)] * 3))


def test_the_name_says_which_benchmark_it_is(tmp_path: Path) -> None:
    both = make_davis17(make_davis16(tmp_path / "both", ["old"]), {"new": [blocks(1, 2)] * 3})
    assert load_davis(both).name == load_davis(both, year=2017).name == "DAVIS-2017"
    assert load_davis(both, year=2016).name == "DAVIS-2016"

    release = make_davis17(tmp_path / "release", {"new": [blocks(1, 2)] * 3})
    (release / "ImageSets/2016").mkdir()
    (release / "ImageSets/2016/val.txt").write_text("new\n")
    merged = load_davis(release, year=2016)
    assert merged.name == "DAVIS-2016"
    assert np.array_equal(merged.sequences[0].mask(0), blocks(1, 1))

    own = make_davis17(tmp_path / "own", {"new": [blocks(1, 2)] * 3})
    (own / "benchmark.json").write_text('{"name": "cutouts", "seed": 0}')
    assert load_davis(own).name == load_davis(own, year=2017).name == "cutouts"
    for content in ("{}", '{"name": 3}', "[]", "name"):
        (own / "benchmark.json").write_text(content)
        with pytest.raises(InputError, match=r'benchmark.json: .*expected \{"name"'):
            load_davis(own)


def test_masks_of_davis_2016_never_pass_as_davis_2017(tmp_path: Path) -> None:
    root = make_davis16(tmp_path, ["a"])
    (root / "ImageSets/2017").mkdir()
    (root / "ImageSets/2017/val.txt").write_text("a\n")
    with pytest.raises(InputError, match=r"00000\.png: 0/255 masks are not DAVIS-2017's"):
        load_davis(root)
    assert load_davis(root, year=2016).name == "DAVIS-2016"
    (root / "benchmark.json").write_text('{"name": "own"}')
    assert np.array_equal(load_davis(root).sequences[0].mask(0), blocks(1))


def test_whatever_davis_lacks_is_named(tmp_path: Path) -> None:
    root = make_davis17(tmp_path / "new", {"a": [blocks(1)] * 3, "b": [blocks(1)] * 3})
    with pytest.raises(InputError, match="split 'test'.*expected ImageSets/2017/test.txt or ImageSets/480p"):
        load_davis(root, "test")
    with pytest.raises(InputError, match="year 2018"):
        load_davis(root, year=2018)
    (root / "ImageSets/2017/val.txt").write_text("a\nbear\n")
    with pytest.raises(InputError, match=r"JPEGImages/480p/bear: missing on disk.*val.txt"):
        load_davis(root)
    (root / "ImageSets/2017/val.txt").write_text("\n")
    with pytest.raises(InputError, match="val.txt: an empty list"):
        load_davis(root)

    old = make_davis16(tmp_path / "old", ["a"])
    frame = (old / "JPEGImages/480p/a/00002.jpg").rename(tmp_path / "away.jpg")
    with pytest.raises(InputError, match=r"JPEGImages/480p/a/00002\.jpg: missing on disk"):
        load_davis(old)
    frame.rename(old / "JPEGImages/480p/a/00002.jpg")
    (old / "Annotations/480p/a/00001.png").unlink()
    with pytest.raises(InputError, match=r"Annotations/480p/a/00001\.png: missing on disk"):
        load_davis(old)


def test_annotations_must_fit_their_frames(tmp_path: Path) -> None:
    root = make_davis17(tmp_path, {"a": [blocks(1)] * 3})
    annotations = root / "Annotations/480p/a"
    write_mask(annotations / "00001.png", blocks(1, height=H + 1))
    sequence = load_davis(root).sequences[0]
    for action in (lambda: sequence.mask(1), sequence.truth):
        with pytest.raises(InputError, match=r"00001\.png is 16x13 .*16x12"):
            action()
    (annotations / "00001.png").unlink()
    with pytest.raises(InputError, match=r"a/00001\.png: no such annotation"):
        load_davis(root).sequences[0].truth()
    write_mask(annotations / "00000.png", blocks(1, width=W + 1))
    with pytest.raises(InputError, match=r"00000\.png is 17x12"):
        load_davis(root)
    (annotations / "00000.png").unlink()
    with pytest.raises(InputError, match=r"00000\.png: no such annotation"):
        load_davis(root)
    write_mask(annotations / "00007.png", blocks(1))
    with pytest.raises(InputError, match=r"00007\.png: an annotation of no frame"):
        load_davis(root)
    for file in annotations.iterdir():
        file.unlink()
    with pytest.raises(InputError, match=r"a: no annotations; expected 00000\.png"):
        load_davis(root)


@pytest.mark.parametrize("meta", [True, False])
def test_youtube_vos_gives_each_object_where_it_enters(tmp_path: Path, meta: bool) -> None:
    dataset = load_youtube_vos(make_youtube_vos(tmp_path, meta))
    assert dataset.name == "YouTube-VOS" and len(dataset.sequences) == 1
    sequence = dataset.sequences[0]
    given = sequence.first_masks()
    assert list(given) == [0, 2] and sequence.saved is None
    assert np.array_equal(given[0], blocks(1, 4))
    assert np.array_equal(given[2], blocks(2)), "an object that exists already is not given again"
    with pytest.raises(InputError, match=r"a/00005\.png: no such annotation"):
        sequence.truth()


def test_youtube_vos_runs_on_all_frames_and_hands_in_its_own(tmp_path: Path) -> None:
    sequence = load_youtube_vos(make_youtube_vos(tmp_path, dense=True)).sequences[0]
    assert len(sequence.video) == 21 and sequence.saved == (0, 5, 10, 15, 20)
    assert list(sequence.first_masks()) == [0, 10]
    (tmp_path / "valid_all_frames/JPEGImages/a/00015.jpg").unlink()
    with pytest.raises(InputError, match="valid_all_frames/JPEGImages/a: expected all frames of"):
        load_youtube_vos(tmp_path)


def test_whatever_youtube_vos_lacks_is_named(tmp_path: Path) -> None:
    root = make_youtube_vos(tmp_path)
    with pytest.raises(InputError, match="test/JPEGImages: no such folder; expected"):
        load_youtube_vos(root, "test")
    objects = {"1": {}, "2": {}, "3": {}, "4": {}}
    (root / "valid/meta.json").write_text(json.dumps({"videos": {"a": {"objects": objects}}}))
    with pytest.raises(InputError, match="Annotations/a: no annotation holds object 3"):
        load_youtube_vos(root).sequences[0].first_masks()
    (root / "valid/meta.json").write_text(json.dumps({"videos": {"b": {"objects": objects}}}))
    with pytest.raises(InputError, match="JPEGImages/b: no such file or folder"):
        load_youtube_vos(root)
    (root / "valid/meta.json").write_text('{"videos": ["a"]}')
    with pytest.raises(InputError, match=r'meta.json: .*expected \{"videos"'):
        load_youtube_vos(root)


def test_predictions_are_read_or_named(tmp_path: Path) -> None:
    sequence = load_davis(make_davis17(tmp_path / "data", {"a": [blocks(1, 2)] * 3})).sequences[0]
    results = tmp_path / "results"
    for i in range(3):
        write_mask(results / f"a/0000{i}.png", blocks(2, i))
    prediction = read_predictions(results, sequence)
    assert prediction.dtype == np.uint8
    assert np.array_equal(prediction, np.stack([blocks(2, i) for i in range(3)]))
    write_mask(results / "a/3.png", blocks(1))
    with pytest.raises(InputError, match=r"a/3\.png: misnamed; expected 00000\.png to 00002\.png"):
        read_predictions(results, sequence)
    (results / "a/3.png").unlink()
    (results / "a/00001.png").unlink()
    with pytest.raises(InputError, match=r"a/00001\.png: missing; expected 00000\.png to 00002\.png"):
        read_predictions(results, sequence)
    write_mask(results / "a/00001.png", blocks(1, height=H + 4))
    with pytest.raises(InputError, match=r"a/00001\.png is 16x16"):
        read_predictions(results, sequence)
    with pytest.raises(InputError, match=r"a/00000\.png: missing"):
        read_predictions(tmp_path / "elsewhere", sequence)


@pytest.mark.parametrize(("split", "sequences", "frames"), [("train", 30, 2079), ("val", 20, 1376)])
def test_shared_davis_is_whole(shared_data: Path, split: str, sequences: int, frames: int) -> None:
    dataset = load_davis(shared_data / "DAVIS", split)
    assert dataset.name == "DAVIS-2016"
    assert len(dataset.sequences) == sequences
    assert sum(len(sequence.video) for sequence in dataset.sequences) == frames
    assert sum(len(sequence.masks) for sequence in dataset.sequences) == frames
    for sequence in dataset.sequences:
        assert np.unique(sequence.first_masks()[0]).tolist() == [0, 1]


def test_the_rgba_mask_of_davis_2016_is_read_like_the_others(shared_data: Path) -> None:
    bear = next(s for s in load_davis(shared_data / "DAVIS", "train").sequences if s.name == "bear")
    mask = bear.mask(77)
    assert mask.shape == bear.video.size and np.unique(mask).tolist() == [0, 1]
    assert (mask != bear.mask(76)).mean() < 0.05
