"""A submission to YouTube-VOS' server: what it takes passes, what it rejects is named."""

from __future__ import annotations

import io
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from dulvos.masks import PALETTE, write_mask
from dulvos.errors import InputError
from dulvos.study.miniature import FRAMES, STEP
from dulvos.study.submission import check_submission, write_submission
from tests.test_youtube_vos import folder, root, valid  # noqa: F401

NAMES = [f"Annotations/{video}/{t:05d}.png" for video in ("v1", "v2") for t in range(0, FRAMES, STEP)]


def test_the_submission_is_what_the_server_takes(valid, folder, tmp_path):  # noqa: F811
    path = tmp_path / "submission.zip"
    assert write_submission(valid, folder, path) == {"videos": 2, "masks": 10}
    with zipfile.ZipFile(path) as archive:
        assert sorted(archive.namelist()) == sorted(NAMES)
        image = Image.open(io.BytesIO(archive.read("Annotations/v1/00006.png")))
    assert image.mode == "P" and set(np.unique(image)) == {0, 1, 5} and image.getpalette()[:18] == PALETTE[:6].ravel().tolist()
    first = path.read_bytes()
    write_submission(valid, folder, path)
    assert path.read_bytes() == first


def png(ids: np.ndarray, palette: bool = True, kind: str = "PNG") -> bytes:
    image = Image.fromarray(ids)
    if palette:
        image.putpalette(PALETTE.tobytes())
    stream = io.BytesIO()
    image.save(stream, format=kind)
    return stream.getvalue()


M = "Annotations/v1/00003.png"
IDS = np.ones((64, 96), np.uint8)


@pytest.mark.parametrize(("change", "message"), [
    ({M: None}, r"Annotations/v1/00003\.png: missing$"),
    ({M: None, "Annotations/v2/00003.png": None}, r"00003\.png: missing \(and 1 more\)"),
    ({M: None, "Annotations/v1/3.png": png(IDS)}, r"v1/3\.png: not to be handed in.*\(and 1 more\)"),
    ({"Annotations/v1/00004.png": png(IDS)}, r"v1/00004\.png: not to be handed in; expected .* frames in valid/JPEGImages"),
    ({"__MACOSX/._v": b""}, "__MACOSX/._v: not to be handed in"),
    ({"Annotations/.DS_Store": b""}, ".DS_Store: not to be handed in"),
    ({"../v.png": b""}, r"\.\./v\.png: not to be handed in"),
    ({M: png(IDS[:-1])}, r"00003\.png: 96x63 \(width x height\); expected 96x64"),
    ({M: png(IDS, palette=False)}, r"a PNG of mode L; expected a palette PNG"),
    ({M: png(PALETTE[IDS], palette=False)}, "a PNG of mode RGB"),
    ({M: png(PALETTE[IDS], palette=False, kind="JPEG")}, "a JPEG of mode RGB"),
    ({M: png(IDS * 2)}, "holds id 2; expected 0, 1, 5"),
    ({M: png(IDS * 255)}, "holds id 255"),
    ({M: png(IDS)[:60]}, "not a complete image"),
], ids=["missing", "two missing", "renamed", "between", "macos", "ds_store", "outside", "size", "grey", "colour", "jpeg", "id",
        "void", "cut"])
def test_what_the_server_rejects_is_caught(valid, folder, tmp_path, change, message):  # noqa: F811
    path = tmp_path / "own.zip"
    entries = {name: (folder / name).read_bytes() for name in NAMES} | change
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            if content is not None:
                archive.writestr(name, content)
    with pytest.raises(InputError, match=rf"own\.zip: .*{message}"):
        check_submission(path, valid)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_that_is_none_or_lists_twice_or_has_another_folder(valid, folder, tmp_path):  # noqa: F811
    path = tmp_path / "own.zip"
    path.write_bytes(b"PK nonsense")
    with pytest.raises(InputError, match="not a zip"):
        check_submission(path, valid)
    write_submission(valid, folder, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(M, (folder / M).read_bytes())
    with pytest.raises(InputError, match="00003.png: listed twice"):
        check_submission(path, valid)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(M.removeprefix("Annotations/"), (folder / M).read_bytes())
    with pytest.raises(InputError, match=r"v1/00003\.png: not to be handed in.*\(and 10 more\)"):
        check_submission(path, valid)


def test_a_bad_submission_is_not_left_behind(valid, folder, tmp_path):  # noqa: F811
    shutil.copytree(folder, tmp_path / "masks")
    (tmp_path / "masks" / M).unlink()
    with pytest.raises(InputError, match=r"v1/00003\.png: missing"):
        write_submission(valid, tmp_path / "masks", tmp_path / "own.zip")
    write_mask(tmp_path / "masks" / M, IDS * 9)
    with pytest.raises(InputError, match="holds id 9"):
        write_submission(valid, tmp_path / "masks", tmp_path / "own.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["masks"]
