"""Files whole or not at all: if writing fails, the old content stays and one line says why."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from dulvos.errors import InputError
from dulvos.files import replacing


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_bytes(b"old")
    return tmp_path / "a.txt"


def test_what_is_written_is_there_and_folders_are_made(tmp_path: Path) -> None:
    with replacing(tmp_path / "new/er/a.txt") as stream:
        stream.write(b"whole")
        assert not (tmp_path / "new/er/a.txt").exists()
    assert [file.read_bytes() for file in (tmp_path / "new/er").iterdir()] == [b"whole"]


def test_file_and_folder_reach_the_disk_in_this_order(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data, then the name, then its folder: in another order, a power cut loses files."""
    done: list[str] = []
    sync, rename = os.fsync, os.replace
    def noted(descriptor: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("name"), rename(*names)))
    with replacing(path) as stream:
        stream.write(b"new")
    assert done == ["file", "name", "folder"]


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_the_system_says_no(path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int) -> None:
    def refuse(*names: object, **_: object) -> None:
        raise OSError(number, os.strerror(number), str(names[0]) if isinstance(names[0], Path) else None)

    monkeypatch.setattr("builtins.open" if call == "open" else f"os.{call}", refuse)
    with pytest.raises(InputError, match=rf"a\.txt.*{os.strerror(number)}") as caught:
        with replacing(path) as stream:
            stream.write(b"new")
    monkeypatch.undo()
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"old" and len(list(path.parent.iterdir())) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("no luck"), InputError("another line"),
                                   FileNotFoundError(errno.ENOENT, "", "another file")])
def test_other_errors_pass_as_they_are(path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        with replacing(path) as stream:
            stream.write(b"half")
            raise error
    assert caught.value is error
    assert path.read_bytes() == b"old" and len(list(path.parent.iterdir())) == 1


CHILD = """
import resource, sys, torch
from pathlib import Path
from dulvos.files import replacing
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
with replacing(Path(sys.argv[1])) as stream:
    torch.save({"weights": torch.zeros(100_000)}, stream)
"""


def test_what_torch_says_of_a_full_disk_is_translated(path: Path) -> None:
    """Its own message speaks of an unexpected position."""
    done = subprocess.run([sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True,
                          cwd=Path(__file__).parent.parent)
    last = done.stderr.splitlines()[-1]
    assert "InputError" in last and f"{path}: " in last and "File too large" in last
    assert path.read_bytes() == b"old" and len(list(path.parent.iterdir())) == 1
