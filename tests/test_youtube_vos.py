"""YouTube-VOS: seen and unseen classes are scored apart; masks that the server would reject are named."""

import io
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dulvos.datasets import Dataset
from dulvos.errors import InputError
from dulvos.inference import SegmentSettings
from dulvos.masks import PALETTE, as_png
from dulvos.study import runs
from dulvos.study import youtube_vos as vos
from dulvos.study.evaluation import evaluate
from dulvos.study.youtube_vos import class_scores, local_split, object_categories, open_split
from tests.corpus_frames import encoded
from tests.miniature import FRAMES, STEP

NAMES = [f"Annotations/{video}/{t:05d}.png" for video in ("v1", "v2") for t in range(0, FRAMES, STEP)]


def test_the_local_split_hides_classes_from_training(youtube_vos):
    classes = {name: set(own.values()) for name, own in object_categories(youtube_vos).items()}
    for seed in range(6):
        split = local_split(youtube_vos, seed=seed)
        assert split == local_split(youtube_vos, seed=seed) and split.unseen
        assert not set(split.train) & set(split.val) and set(split.train) | set(split.val) <= set(classes)
        assert not any(classes[name] & set(split.unseen) for name in split.train)
        assert {bool(classes[name] & set(split.unseen)) for name in split.val} == {False, True}
    assert len({local_split(youtube_vos, seed=seed).unseen for seed in range(6)}) > 1


def test_training_on_the_split_reads_its_training_videos_only(youtube_vos, tmp_path, monkeypatch):
    monkeypatch.setenv("DULVOS_DATA_DIR", str(tmp_path))
    (tmp_path / "youtube-vos").symlink_to(youtube_vos)
    whole, part = (runs.open_data(name, "train") for name in ("youtube-vos", "youtube-vos-local"))
    split = local_split(youtube_vos)
    names = [{video.path.name for video in data.videos} for data in (part, whole)]
    assert names[0] == set(split.train) < names[1]
    assert part.name == vos.LOCAL and part.fingerprint != whole.fingerprint
    assert {s.name for s in open_split("youtube-vos", "local").sequences} == set(split.val)


@pytest.mark.parametrize(("meta", "fact"), [
    (None, "missing"), ('{"videos": {"a": {"objects": {"1": {}}}}}', "category"),
    ('{"videos": {"a": {"objects": {"1": {"category": "x"}}}}}', "1 videos of 1 categories"),
    ("[" * 100_000, "category"),
], ids=["missing", "no category", "too few", "nested"])
def test_a_set_that_cannot_be_divided_is_named(tmp_path, meta, fact):
    if meta:
        (tmp_path / "train").mkdir()
        (tmp_path / "train/meta.json").write_text(meta)
    with pytest.raises(InputError, match=f"train/meta.json.*{fact}"):
        local_split(tmp_path)


@pytest.mark.parametrize(("data", "split", "named"), [
    ("youtube-vos", "valid", "DULVOS_DATA_DIR"), ("nowhere", "local", "nowhere"),
    ("nowhere", "test", "'test'")])
def test_what_cannot_be_opened_is_said(data, split, named):
    with pytest.raises(InputError, match=named):
        open_split(data, split)


def test_scores_are_means_over_the_objects_of_seen_and_of_unseen_classes(youtube_vos, tmp_path):
    local, unseen = open_split(str(youtube_vos), "local"), local_split(youtube_vos).unseen
    categories = object_categories(youtube_vos)
    table = pd.DataFrame([(s.name, name, *np.random.default_rng(seed).random(2))
                          for seed, s in enumerate(local.sequences) for name in categories[s.name]],
                         columns=["sequence", "object", "J mean", "F mean"])
    scores = class_scores(table, youtube_vos)
    new = [categories[line.sequence][line.object] in unseen for line in table.itertuples()]
    assert tuple(scores) == vos.CLASS_COLUMNS
    assert scores["unseen J_m"] == pytest.approx(table["J mean"][new].mean())
    assert scores["seen F_m"] == pytest.approx(table["F mean"][np.invert(new)].mean())
    assert scores["mean"] == pytest.approx(np.mean(list(scores.values())[:4]))
    with pytest.raises(InputError, match=f"lacks the object {table['sequence'][0]}: 99"):
        class_scores(table.assign(object=[99, *table["object"][1:]]), youtube_vos)


# submissions

@pytest.fixture(scope="module")
def valid(youtube_vos) -> Dataset:
    return open_split(str(youtube_vos), "valid")


@pytest.fixture(scope="module")
def masks(valid, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("masks")
    evaluate(valid, "copy", folder, SegmentSettings())
    return folder


def test_the_submission_is_what_the_server_takes(valid, masks, tmp_path):
    path = tmp_path / "submission.zip"
    vos.write_submission(valid, masks, path)
    with zipfile.ZipFile(path) as archive:
        assert sorted(archive.namelist()) == sorted(NAMES)
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        image = Image.open(io.BytesIO(archive.read("Annotations/v1/00006.png")))
    assert image.mode == "P" and image.getpalette()[:18] == PALETTE[:6].ravel().tolist()
    assert set(np.unique(image)) == {0, 1, 5}


M, IDS = "v1/00003.png", np.ones((64, 96), np.uint8)


@pytest.mark.parametrize(("content", "fact"), [
    (None, "missing"), (as_png(IDS)[:60], "unreadable"), (as_png(IDS[:-1]), "96x63.*96x64"),
    (encoded(IDS, "gif"), "GIF"), (encoded(PALETTE[IDS], "jpg"), "JPEG"),
], ids="missing cut size gif jpeg".split())
def test_what_the_server_rejects_is_named_and_no_zip_is_written(valid, masks, tmp_path, content, fact):
    shutil.copytree(masks, tmp_path / "masks")
    (tmp_path / "masks" / M).unlink()
    if content is not None:
        (tmp_path / "masks" / M).write_bytes(content)
    with pytest.raises(InputError, match=f"{M}.*{fact}"):
        vos.write_submission(valid, tmp_path / "masks", tmp_path / "own.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["masks"]
