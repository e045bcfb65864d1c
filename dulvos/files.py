"""Files written whole or not at all, whatever happens meanwhile: a kill, a power cut, a full disk."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from dulvos.errors import InputError

__all__ = ["cannot_write", "replacing"]


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A stream whose content becomes the file whole or not at all.

    The folders above it are made. A temporary name beside the file, synced, then renamed; the folder is synced too, or a power
    cut might undo the renaming.

    Raises:
        InputError: the disk is full, or the folder cannot be written; what was there before is left as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except Exception as error:
        trouble = _trouble(error, temporary)
        if trouble is None:
            raise
        raise cannot_write(path, trouble) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def cannot_write(path: Path, number: int | None) -> InputError:
    """What is said of a file or folder that cannot be written, from the system's number of the reason."""
    return InputError(f"{path}: cannot be written ({os.strerror(number or errno.EIO)}); make room or give another folder, and the same call "
                      "continues")


def _trouble(error: BaseException | None, temporary: Path) -> int | None:
    """The system's number of what went wrong in writing; None where it was something else."""
    written = (None, str(temporary), *map(str, temporary.parents))  # what cannot be read has another name
    while error is not None and not isinstance(error, InputError):  # torch says in words of its own that a stream took no more
        if isinstance(error, OSError) and error.errno and error.filename in written:
            return error.errno
        error = error.__context__
    return None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # not every file system can
        pass
    finally:
        os.close(descriptor)
