"""The layouts of DAVIS and YouTube-VOS; more broken ones are in the corpus."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from dulvos.datasets import load_davis, load_youtube_vos, read_predictions
from dulvos.errors import InputError
from dulvos.masks import read_mask, write_mask
from dulvos.study.runs import open_data
from tests.corpus_masks import SIZE, blocks
from tests.miniature import ENTRY, FRAMES, IDS, STEP, write_davis
from tests.test_masks import save


def make_davis17(root: Path, **masks: list[np.ndarray]) -> Path:
    """A DAVIS-2017 layout: the masks of each sequence, one a frame."""
    return write_davis(root, {name: (np.full((len(ids), *SIZE, 3), 90, np.uint8), np.stack(ids))
                              for name, ids in masks.items()})


def make_davis16(root: Path, *names: str) -> Path:
    """A DAVIS-2016 layout: 0/255 masks and lists of pairs."""
    lines = []
    for name in names:
        for frame in ("00000", "00001", "00002"):
            pair = f"JPEGImages/480p/{name}/{frame}.jpg", f"Annotations/480p/{name}/{frame}.png"
            save(root / pair[0], np.full((*SIZE, 3), 90, np.uint8)), save(root / pair[1], blocks(255))
            lines.append(f"/{pair[0]} /{pair[1]} \n")
    (root / "ImageSets/480p").mkdir(parents=True)
    (root / "ImageSets/480p/val.txt").write_text("".join(lines))
    return root


def test_davis_2017_keeps_objects_apart(tmp_path: Path) -> None:
    masks = {"b": [blocks(1, 2), blocks(2), blocks(1, 2, 3)], "a": [blocks(1)] * 2}
    dataset = load_davis(make_davis17(tmp_path, **masks), "val")
    assert (dataset.name, dataset.split, dataset.root) == ("DAVIS-2017", "val", tmp_path)
    assert [sequence.name for sequence in dataset.sequences] == ["b", "a"]
    sequence = dataset.sequences[0]
    assert np.array_equal(sequence.truth(), np.stack(masks["b"])) and sequence.handed_in == (0, 1, 2)
    given = sequence.first_masks()
    assert list(given) == [0] and np.array_equal(given[0], blocks(1, 2))
    with pytest.raises(InputError, match="JPEGImages.*masks"):
        replace(sequence, masks={}).first_masks()


def test_the_name_says_which_benchmark_it_is(tmp_path: Path) -> None:
    both = make_davis17(make_davis16(tmp_path / "both", "old", "a"), new=[blocks(1, 2)] * 3)
    assert load_davis(both).name == load_davis(both, year=2017).name == "DAVIS-2017"
    (both / "ImageSets/2017/train.txt").write_text("a\n")
    with pytest.raises(InputError, match=r"00000\.png"):  # masks of DAVIS-2016
        load_davis(both, "train")
    older = load_davis(both, year=2016)
    assert older.name == "DAVIS-2016" and [sequence.name for sequence in older.sequences] == ["old", "a"]
    assert np.array_equal(older.sequences[1].truth(), np.stack([blocks(1)] * 3))
    for folder, suffix in (("JPEGImages", "jpg"), ("Annotations", "png")):
        (both / folder / f"480p/old/00002.{suffix}").unlink()
    with pytest.raises(InputError, match="480p/old"):
        load_davis(both, year=2016)

    own = make_davis17(tmp_path / "own", new=[blocks(1, 2)] * 3)
    (own / "ImageSets/2016").mkdir()
    (own / "ImageSets/2016/val.txt").write_text("new\n")
    merged = load_davis(own, year=2016)
    (own / "ImageSets/2016/val.txt").write_text("new/clip\n")
    with pytest.raises(InputError, match="'new/clip'"):
        load_davis(own, year=2016)
    assert merged.name == "DAVIS-2016" and np.array_equal(merged.sequences[0].mask(0), blocks(1, 1))
    (own / "benchmark.json").write_text('{"name": "cutouts", "seed": 0}')
    write_mask(own / "Annotations/480p/new/00000.png", blocks(1))
    assert load_davis(own).name == load_davis(own, year=2017).name == "cutouts"


def test_names_may_hold_spaces_and_files_a_byte_order_mark(tmp_path: Path) -> None:
    new = make_davis17(tmp_path / "new", **{"my clip": [blocks(1, 2)] * 3, "b": [blocks(1)] * 3})
    (new / "benchmark.json").write_bytes(b'\xef\xbb\xbf{"name": "mine"}')
    for root, name in ((new, "mine"), (make_davis16(tmp_path / "old", "my clip", "b"), "DAVIS-2016")):
        dataset = load_davis(root)
        assert dataset.name == name and [sequence.name for sequence in dataset.sequences] == ["my clip", "b"]


def test_an_error_names_the_folder_below_that_holds_the_data(tmp_path: Path, youtube_vos: Path) -> None:
    make_davis17(tmp_path / "DAVIS", a=[blocks(1, 2)] * 3)
    (tmp_path / "vos").symlink_to(youtube_vos)
    train = partial(open_data, split="train")  # else all folders of pictures below would be its videos
    for load, name in ((load_davis, "DAVIS"), (load_youtube_vos, "vos"), (train, "DAVIS")):
        with pytest.raises(InputError, match=f"{tmp_path}/{name} has it"):
            load(str(tmp_path))


@pytest.mark.parametrize("meta", [True, False])
@pytest.mark.parametrize("dense", [True, False])
def test_youtube_vos_gives_each_object_where_it_enters(youtube_vos, tmp_path, meta, dense):
    root = shutil.copytree(youtube_vos, tmp_path, dirs_exist_ok=True)
    if not meta:
        (root / "valid/meta.json").unlink()
    if not dense:
        shutil.rmtree(root / "valid_all_frames")
    dataset = load_youtube_vos(root)
    assert dataset.name == "YouTube-VOS" and [sequence.name for sequence in dataset.sequences] == ["v1", "v2"]
    sequence, step = dataset.sequences[0], STEP if dense else 1
    coarse = tuple(range(0, FRAMES, STEP))
    assert len(sequence.video) == (FRAMES if dense else len(coarse))
    assert sequence.saved == (coarse if dense else None) and len(sequence.handed_in) == len(coarse)
    given, entry = sequence.first_masks(), ENTRY if dense else ENTRY // STEP
    assert list(given) == [0, entry] and set(np.unique(given[0])) == {0, IDS[0]}
    later = read_mask(root / f"valid/Annotations/v1/{ENTRY:05d}.png")
    assert set(np.unique(later)) == {0, *IDS}, "an object that exists already is not given again"
    assert np.array_equal(given[entry], np.where(later == IDS[1], later, 0))
    with pytest.raises(InputError, match=rf"v1/{STEP:05d}\.png"):
        sequence.mask(step)


def test_what_youtube_vos_lacks_is_named(youtube_vos: Path, tmp_path: Path) -> None:
    root = shutil.copytree(youtube_vos, tmp_path, dirs_exist_ok=True)
    with pytest.raises(InputError, match="test/JPEGImages"):
        load_youtube_vos(root, "test")
    (root / "valid/meta.json").write_text(json.dumps({"videos": {"b": {"objects": {"1": {}}}}}))
    with pytest.raises(InputError, match="JPEGImages/b"):
        load_youtube_vos(root)
    (root / f"valid_all_frames/JPEGImages/v1/{STEP:05d}.jpg").unlink()
    (root / "valid/meta.json").unlink()
    with pytest.raises(InputError, match="valid_all_frames/JPEGImages/v1"):
        load_youtube_vos(root)
    shutil.copytree(youtube_vos, root, dirs_exist_ok=True)
    (root / f"valid/JPEGImages/v1/{ENTRY:05d}.jpg").unlink()
    with pytest.raises(InputError, match=f"{ENTRY:05d}"):
        load_youtube_vos(root)


def test_predictions_are_read_or_named(tmp_path: Path) -> None:
    sequence = load_davis(make_davis17(tmp_path / "data", a=[blocks(1, 2)] * 3)).sequences[0]
    results = tmp_path / "results"
    for i in range(3):
        write_mask(results / f"a/0000{i}.png", blocks(2, i))
    prediction = read_predictions(results, sequence)
    assert prediction.dtype == np.uint8
    assert np.array_equal(prediction, np.stack([blocks(2, i) for i in range(3)]))
    for wrong in ("00003", "00001"):  # of no frame; of another size, then missing
        write_mask(results / f"a/{wrong}.png", blocks(1, size=(52, 64)))
        with pytest.raises(InputError, match=rf"a/{wrong}\.png"):
            read_predictions(results, sequence)
        (results / f"a/{wrong}.png").unlink()
    with pytest.raises(InputError, match=r"a/00001\.png"):
        read_predictions(results, sequence)


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
