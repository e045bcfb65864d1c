"""The local split: what training sees holds neither its unseen classes nor its validation videos."""

from __future__ import annotations

import json

import pytest

from dulvos.study import runs
from dulvos.errors import InputError
from dulvos.study.local_split import LOCAL, local_split
from tests.test_youtube_vos import root  # noqa: F401


def test_the_local_split_hides_classes_from_training(root):  # noqa: F811
    meta = json.loads((root / "train/meta.json").read_text())["videos"]
    for seed in range(6):
        split = local_split(root, unseen=0.4, videos=4, seed=seed)
        assert split == local_split(root, unseen=0.4, videos=4, seed=seed) and len(split.unseen) == 2
        assert not set(split.train) & set(split.val) and set(split.train) | set(split.val) <= set(meta)
        classes = {name: {item["category"] for item in video["objects"].values()} for name, video in meta.items()}
        assert not any(classes[name] & set(split.unseen) for name in split.train)
        assert any(classes[name] & set(split.unseen) for name in split.val)
        assert any(not classes[name] & set(split.unseen) for name in split.val)
    assert len({local_split(root, seed=seed).unseen for seed in range(6)}) > 1


def test_a_set_that_cannot_be_divided_is_named(root, tmp_path):  # noqa: F811
    with pytest.raises(InputError, match="train/meta.json: no such file"):
        local_split(tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / "train/meta.json").write_text(json.dumps({"videos": {"a": {"objects": {"1": {"category": "x"}}}}}))
    with pytest.raises(InputError, match="1 videos of 1 categories are too few"):
        local_split(tmp_path)
    (tmp_path / "train/meta.json").write_text('{"videos": {"a": {"objects": {"1": {}}}}}')
    with pytest.raises(InputError, match="meta.json: not what it should hold"):
        local_split(tmp_path)


def test_training_on_the_split_reads_its_training_videos_alone(root, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(runs, "INDEXES", tmp_path / "indexes")
    monkeypatch.setenv("DULVOS_DATA_DIR", str(tmp_path))
    (tmp_path / "youtube-vos").symlink_to(root)
    whole, part = (runs.open_data(name, "train") for name in ("youtube-vos", "youtube-vos-local"))
    split = local_split(root)
    assert {video.path.name for video in part.videos} == set(split.train) < {video.path.name for video in whole.videos}
    assert part.name == LOCAL and part.fingerprint != whole.fingerprint
    with pytest.raises(InputError, match="for training"):
        runs.open_data("youtube-vos-local", "val")
