"""The layouts of DAVIS and YouTube-VOS; more broken ones stand in the corpus."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dulvos.datasets import load_davis, load_youtube_vos, read_predictions
from dulvos.errors import InputError
from dulvos.masks import write_mask
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
    sequence = dataset.sequences[0]
    assert np.array_equal(sequence.truth(), np.stack(masks["b"]))
    assert np.array_equal(sequence.mask(1), blocks(2))
    given = sequence.first_masks()
    assert list(given) == [0] and np.array_equal(given[0], blocks(1, 2))


def test_the_name_says_which_benchmark_it_is(tmp_path: Path) -> None:
    both = make_davis17(make_davis16(tmp_path / "both", ["old", "a"]), {"new": [blocks(1, 2)] * 3})
    assert load_davis(both).name == load_davis(both, year=2017).name == "DAVIS-2017"
    older = load_davis(both, year=2016)
    assert older.name == "DAVIS-2016" and [sequence.name for sequence in older.sequences] == ["old", "a"]
    assert np.array_equal(older.sequences[1].truth(), np.stack([blocks(1)] * 3))

    own = make_davis17(tmp_path / "own", {"new": [blocks(1, 2)] * 3})
    (own / "ImageSets/2016").mkdir()
    (own / "ImageSets/2016/val.txt").write_text("new\n")
    merged = load_davis(own, year=2016)
    assert merged.name == "DAVIS-2016" and np.array_equal(merged.sequences[0].mask(0), blocks(1, 1))
    (own / "benchmark.json").write_text('{"name": "cutouts", "seed": 0}')
    assert load_davis(own).name == load_davis(own, year=2017).name == "cutouts"


def test_masks_of_davis_2016_never_pass_as_davis_2017(tmp_path: Path) -> None:
    root = make_davis16(tmp_path, ["a"])
    (root / "ImageSets/2017").mkdir()
    (root / "ImageSets/2017/val.txt").write_text("a\n")
    with pytest.raises(InputError, match=r"00000\.png"):
        load_davis(root)
    assert load_davis(root, year=2016).name == "DAVIS-2016"
    (root / "benchmark.json").write_text('{"name": "own"}')
    assert np.array_equal(load_davis(root).sequences[0].mask(0), blocks(1))


@pytest.mark.parametrize("gone", ["JPEGImages/480p/a/00002.jpg", "Annotations/480p/a/00001.png"])
def test_what_a_list_of_davis_2016_names_must_be_on_disk(tmp_path: Path, gone: str) -> None:
    (make_davis16(tmp_path, ["a"]) / gone).unlink()
    with pytest.raises(InputError, match=gone):
        load_davis(tmp_path)


def test_annotations_must_fit_their_frames(tmp_path: Path) -> None:
    root = make_davis17(tmp_path, {"a": [blocks(1)] * 3})
    annotations = root / "Annotations/480p/a"
    write_mask(annotations / "00001.png", blocks(1, height=H + 1))
    sequence = load_davis(root).sequences[0]
    for action in (lambda: sequence.mask(1), sequence.truth):
        with pytest.raises(InputError, match=r"00001\.png is 16x13 .*16x12"):
            action()
    (annotations / "00001.png").unlink()
    with pytest.raises(InputError, match=r"a/00001\.png"):
        load_davis(root).sequences[0].truth()
    write_mask(annotations / "00007.png", blocks(1))
    with pytest.raises(InputError, match=r"00007\.png"):
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
    with pytest.raises(InputError, match=r"a/00005\.png"):
        sequence.truth()


def test_youtube_vos_runs_on_all_frames_and_submits_its_own(tmp_path: Path) -> None:
    sequence = load_youtube_vos(make_youtube_vos(tmp_path, dense=True)).sequences[0]
    assert len(sequence.video) == 21 and sequence.saved == (0, 5, 10, 15, 20)
    assert list(sequence.first_masks()) == [0, 10]
    (tmp_path / "valid_all_frames/JPEGImages/a/00015.jpg").unlink()
    with pytest.raises(InputError, match="valid_all_frames/JPEGImages/a"):
        load_youtube_vos(tmp_path)


def test_what_youtube_vos_lacks_is_named(tmp_path: Path) -> None:
    root = make_youtube_vos(tmp_path)
    with pytest.raises(InputError, match="test/JPEGImages"):
        load_youtube_vos(root, "test")
    for videos, named in (({"a": {"objects": {"1": {}, "3": {}}}}, "Annotations/a: .*object 3"),
                          ({"b": {"objects": {"1": {}}}}, "JPEGImages/b")):
        (root / "valid/meta.json").write_text(json.dumps({"videos": videos}))
        with pytest.raises(InputError, match=named):
            load_youtube_vos(root).sequences[0].first_masks()


def test_predictions_are_read_or_named(tmp_path: Path) -> None:
    sequence = load_davis(make_davis17(tmp_path / "data", {"a": [blocks(1, 2)] * 3})).sequences[0]
    results = tmp_path / "results"
    for i in range(3):
        write_mask(results / f"a/0000{i}.png", blocks(2, i))
    prediction = read_predictions(results, sequence)
    assert prediction.dtype == np.uint8
    assert np.array_equal(prediction, np.stack([blocks(2, i) for i in range(3)]))
    write_mask(results / "a/00001.png", blocks(1, height=H + 4))
    with pytest.raises(InputError, match=r"a/00001\.png is 16x16"):
        read_predictions(results, sequence)
    (results / "a/00001.png").rename(results / "a/3.png")
    (results / "a/00002.png").rename(results / "a/00001.png")
    for named in (r"a/00002\.png: missing", r"a/3\.png"):
        with pytest.raises(InputError, match=named):
            read_predictions(results, sequence)
        write_mask(results / "a/00002.png", blocks(1))


@pytest.mark.parametrize(("split", "sequences", "frames"), [("train", 30, 2079), ("val", 20, 1376)])
def test_shared_davis_is_whole(shared_data: Path, split: str, sequences: int, frames: int) -> None:
    dataset = load_davis(shared_data / "DAVIS", split)
    assert dataset.name == "DAVIS-2016" and len(dataset.sequences) == sequences
    assert sum(len(sequence.video) for sequence in dataset.sequences) == frames
    assert sum(len(sequence.masks) for sequence in dataset.sequences) == frames
    for sequence in dataset.sequences:
        assert np.unique(sequence.first_masks()[0]).tolist() == [0, 1]
        if sequence.name == "bear":  # one of its masks is RGBA
            mask = sequence.mask(77)
            assert mask.shape == sequence.video.size and np.unique(mask).tolist() == [0, 1]
            assert (mask != sequence.mask(76)).mean() < 0.05
