"""Paths, locks, and files that are written whole or not at all, even if the program is killed."""

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from dulvos.errors import InputError

__all__ = ["SIGNATURE", "AnyPath", "cannot_write", "expand", "locked", "make_folder", "read_json",
           "replacing", "write_file"]

AnyPath = str | os.PathLike[str]
SIGNATURE = "written by dulvos"  # in masks and movies: the next run may replace them


def expand(path: AnyPath) -> Path:
    """The path; a leading ~ is the user's folder."""
    return Path(os.path.expanduser(path))


def read_json(file: Path, expected: str, pick: Callable[[Any], Any]) -> Any:
    """What `pick` takes from the JSON in a file; raises an InputError that says what was expected."""
    try:
        return pick(json.loads(file.read_bytes()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{file}: missing or wrong content ({error}); expected {expected}") from None


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A stream whose content replaces the file in the end, whole or not at all; makes the folders above it.

    Raises:
        InputError: the disk is full or the folder cannot be written to; the file keeps its old content.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.filename not in (None, *map(str, (temporary, *temporary.parents))):
            raise  # it is about another file
        raise cannot_write(path, error.errno) from error
    finally:
        with suppress(OSError):  # the folder may be missing or read-only
            temporary.unlink()


def write_file(path: Path, content: str | bytes | memoryview) -> Path:
    """Write a file, text as UTF-8, whole or not at all; raises what `replacing` raises."""
    with replacing(path) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)
    return path


def make_folder(path: Path) -> Path:
    """Make a folder and those above it; raises InputError if it cannot be made or written to."""
    probe = path / f".{os.getpid()}.tmp"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)  # another thread may have removed it
    except OSError as error:
        raise cannot_write(path, error.errno) from None
    return path


def locked(folder: Path) -> AbstractContextManager:
    """Lock a folder, made if it is missing, against other processes, if its file system has locks.

    Raises:
        InputError: it is in use by another process, or cannot be written to.
    """
    try:
        return FileLock(make_folder(folder) / ".lock").acquire(timeout=0)
    except Timeout:
        raise InputError(f"{folder}: in use by another process; wait for it, or stop it") from None
    except (OSError, NotImplementedError) as error:  # the second from older versions of filelock
        print(f"note: {folder}: this file system has no locks ({error}); run one process at a time there")
        return nullcontext()


def cannot_write(path: Path, number: int | None) -> InputError:
    """The error for a file or folder that cannot be written, from the system's error number."""
    reason = os.strerror(number or errno.EIO)
    return InputError(f"{path}: cannot be written ({reason}); make room or give another folder, and the same "
                      "call continues")
