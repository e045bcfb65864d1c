"""Files are written whole or not at all: if writing fails, the old content stays and one line says why."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from dulvos.errors import InputError
from dulvos.files import locked, replacing


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_bytes(b"old")
    return tmp_path / "a.txt"


def test_what_is_written_is_there_and_folders_are_made(tmp_path: Path) -> None:
    with replacing(tmp_path / "new/er/a.txt") as stream:
        stream.write(b"whole")
        assert not (tmp_path / "new/er/a.txt").exists()
    assert [file.read_bytes() for file in (tmp_path / "new/er").iterdir()] == [b"whole"]


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_the_system_says_no(path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int) -> None:
    def refuse(*names: object, **_: object) -> None:
        raise OSError(number, os.strerror(number), str(names[0]) if isinstance(names[0], Path) else None)

    monkeypatch.setattr("builtins.open" if call == "open" else f"os.{call}", refuse)
    with pytest.raises(InputError, match=rf"a\.txt.*{os.strerror(number)}"):
        with replacing(path) as stream:
            stream.write(b"new")
    monkeypatch.undo()
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


def test_a_folder_is_locked_where_locks_are_known(tmp_path, monkeypatch, capsys):
    """Some network file systems have no locks, which must not look like another process."""
    with locked(tmp_path / "a"):
        with pytest.raises(InputError, match="in use"), locked(tmp_path / "a"):
            pass
    for number in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
        monkeypatch.setattr(fcntl, "flock", lambda *_: fail(OSError(number, os.strerror(number))))  # noqa: B023
        with locked(tmp_path / str(number)):
            pass
    assert capsys.readouterr().out.count("no locks") >= 2


def fail(error: OSError) -> None:
    raise error
