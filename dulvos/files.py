"""Write files whole or not at all, also through a kill, a power cut or a full disk."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from dulvos.errors import InputError

__all__ = ["cannot_write", "make_folder", "replacing"]


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A stream whose content replaces the file at the end, whole or not at all; makes the folders above it.

    The content goes to a temporary name beside the file, is synced, then renamed. The folder is synced too,
    because a power cut might undo the renaming.

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
        with contextlib.suppress(OSError):  # not every file system can
            descriptor = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except Exception as error:
        number = _refusal(error, temporary)
        if number is None:
            raise
        raise cannot_write(path, number) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def make_folder(path: Path) -> Path:
    """Make a folder and those above it; an InputError if it cannot be made or written to."""
    probe = path / f".probe.{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise cannot_write(path, error.errno) from None
    return path


def cannot_write(path: Path, number: int | None) -> InputError:
    """The error for a file or folder that cannot be written, from the system's error number."""
    reason = os.strerror(number or errno.EIO)
    return InputError(f"{path}: cannot be written ({reason}); make room or give another folder, and the same "
                      "call continues")


def _refusal(error: BaseException | None, temporary: Path) -> int | None:
    """The system's error number if writing was refused; None for any other error, such as one of reading."""
    written = (None, str(temporary), *map(str, temporary.parents))
    # torch raises an error of its own when a stream refuses bytes; the system's stands behind it
    while error is not None and not isinstance(error, InputError):
        if isinstance(error, OSError) and error.errno and error.filename in written:
            return error.errno
        error = error.__context__
    return None
