"""Download the data sets that need no registration: DAVIS-2016 and DAVIS-2017."""

import shutil
import tomllib
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pooch

from dulvos.datasets import Dataset, load_davis
from dulvos.errors import InputError
from dulvos.files import AnyPath, cannot_write, expand

__all__ = ["ARCHIVES", "Archive", "check", "check_counts", "download", "unpack"]


@dataclass(frozen=True)
class Archive:
    """The zip file of a data set, a section of `archives.toml`."""

    title: str
    year: int  # of DAVIS
    url: str
    counts: dict[str, dict[str, int]]  # expected counts of each split
    sha256: str | None = None  # None if unknown


_TABLES = tomllib.loads(Path(__file__).with_name("archives.toml").read_text("utf-8"))
ARCHIVES = {name: Archive(**fields) for name, fields in _TABLES.items()}


def download(name: str, to: AnyPath) -> Path:
    """Download an archive, check it and unpack it to `<to>/davis-<year>`.

    A folder that exists is only checked. After a stop, the same call starts again, but it does not download
    a complete archive twice.

    Raises:
        InputError: the name is unknown, the download fails, the disk is full, or the archive is not as
            expected.
    """
    if name not in ARCHIVES:
        raise InputError(f"{name!r}: no such download; choose one of {', '.join(ARCHIVES)}")
    archive, to = ARCHIVES[name], expand(to)
    folder, work = to / f"davis-{archive.year}", to / f".davis-{archive.year}"
    unpacked = work / "unpacked"
    if folder.exists():
        check(folder, archive)
    else:
        print(f"{archive.title}: {archive.url}")
        try:
            work.mkdir(parents=True, exist_ok=True)
            unpack(_fetch(archive, work), unpacked)
            root = next(unpacked.rglob("ImageSets"), unpacked / "ImageSets").parent
            check(root, archive)
            root.rename(folder)
            shutil.rmtree(work)
        except OSError as error:
            raise cannot_write(to, error.errno) from None
    print(f"{folder}: {archive.title} is complete")
    return folder


def _fetch(archive: Archive, folder: Path) -> Path:
    """Download the archive's file; it gets its name only when it is complete and its checksum is right."""
    file = folder / archive.url.rpartition("/")[2]
    pooch.get_logger().setLevel("WARNING")
    try:
        pooch.retrieve(archive.url, archive.sha256, file.name, folder,
                       downloader=pooch.HTTPDownloader(progressbar=True, timeout=60))
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno:  # of the disk, not of the server
            raise
        raise InputError(f"{archive.url}: cannot be downloaded ({' '.join(str(error).split())}); try again "
                         f"later, or put the file at {file} and repeat the command") from None
    return file


def check(folder: AnyPath, archive: Archive) -> None:
    """Count what a folder holds; raises InputError if a file is missing or a count differs."""
    for split, expected in archive.counts.items():
        dataset = load_davis(folder, split, archive.year)
        check_counts(dataset, {**expected, "masks": expected["frames"]}, "remove it and download it again")


def check_counts(dataset: Dataset, expected: dict[str, int], advice: str) -> None:
    """Count sequences, frames, masks, and objects in the first masks; raises InputError if a count differs.

    Arguments:
        expected: some or all of these counts.
        advice: what the user should do if one differs.
    """
    sequences = dataset.sequences
    found = {"sequences": len(sequences), "frames": sum(len(s.video) for s in sequences),
             "masks": sum(len(s.masks) for s in sequences),
             "objects": sum(len(np.setdiff1d(s.mask(min(s.masks)), 0)) for s in sequences)}
    if not expected.items() <= found.items():
        raise InputError(f"{dataset.root}: {dataset.split} has {found}; expected {expected}; {advice}")


def unpack(archive: AnyPath, folder: AnyPath) -> None:
    """Unpack a zip file into a folder, which is emptied first.

    Python's zipfile verifies every checksum, writes no file outside the folder and makes no links.

    Raises:
        InputError: the archive is damaged.
    """
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as file:
            file.extractall(folder)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputError(f"{archive}: damaged or not a zip file ({error}); remove it and download it "
                         "again") from None
