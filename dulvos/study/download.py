"""Download the data sets that need no form: DAVIS-2016 and DAVIS-2017."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import pooch

from dulvos.datasets import load_davis
from dulvos.errors import InputError
from dulvos.files import AnyPath, cannot_write, expand

__all__ = ["ARCHIVES", "Archive", "check", "download", "unpack"]


@dataclass(frozen=True)
class Archive:
    """A data set as its authors offer it."""

    title: str
    year: int  # which DAVIS
    url: str
    counts: dict[str, tuple[int, int, int | None]]  # {split: (sequences, frames, objects or unchecked)}
    sha256: str | None = None  # None if it is not known
    licence: str = "CC BY-NC 4.0"


ARCHIVES = {
    "davis2017": Archive(
        "DAVIS-2017 trainval, 480p (0.8 GB)", 2017,
        "https://data.vision.ee.ethz.ch/csergi/share/davis/DAVIS-2017-trainval-480p.zip",
        {"train": (60, 4_209, None), "val": (30, 1_999, 61)},
        "e3d0b5b77c3d031b000a19e0e25e3e2cac65d183755601bc2cf066df1a2aa492"),
    "davis2016": Archive(  # no checksum: the archive was replaced several times
        "DAVIS-2016 (1.9 GB)", 2016, "https://graphics.ethz.ch/Downloads/Data/Davis/DAVIS-data.zip",
        {"train": (30, 2_079, 30), "val": (20, 1_376, 20)}),
}


def download(name: str, to: AnyPath) -> Path:
    """Download an archive, unpack and check it as `<to>/davis-<year>`; if the folder exists, only check it.

    After a stop, the same call begins again, but keeps an archive that was complete.

    Raises:
        InputError: the name is unknown, the server refuses or is out of reach, the disk is full, or the
            archive is not as expected.
    """
    if name not in ARCHIVES:
        raise InputError(f"{name!r}: no such download; choose one of {', '.join(ARCHIVES)}")
    archive, to = ARCHIVES[name], expand(to)
    folder, work = to / f"davis-{archive.year}", to / f".davis-{archive.year}"
    unpacked = work / "unpacked"
    if folder.exists():
        check(folder, archive)
    else:
        print(f"{archive.title}, {archive.licence}: {archive.url}")
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
    """The archive's file in a folder, where it appears once it is complete and has its checksum."""
    file = folder / archive.url.rpartition("/")[2]
    pooch.get_logger().setLevel("WARNING")
    try:
        pooch.retrieve(archive.url, archive.sha256, file.name, folder,
                       downloader=pooch.HTTPDownloader(progressbar=True, timeout=60))
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise InputError(f"{archive.url}: cannot be downloaded ({' '.join(str(error).split())}); try again "
                         f"later, or put the file at {file} and repeat the command") from None
    return file


def check(folder: AnyPath, archive: Archive) -> None:
    """Count sequences, frames, masks, and the objects of the first masks.

    Raises:
        InputError: a file that the lists name is missing, or a count differs.
    """
    for split, expected in archive.counts.items():
        sequences = load_davis(folder, split, archive.year).sequences
        frames, masks = sum(len(s.video) for s in sequences), sum(len(s.masks) for s in sequences)
        objects = None if expected[2] is None else sum(int(s.mask(0).max()) for s in sequences)
        found = len(sequences), frames, objects
        if found != expected or masks != frames:
            raise InputError(f"{folder}: sequences, frames and objects of {split} are {found}, with {masks} "
                             f"masks; expected {expected} and a mask for each frame; remove the folder and "
                             "download it again")


def unpack(archive: AnyPath, folder: AnyPath) -> None:
    """Unpack a zip file into a folder, which is emptied first.

    Python's zipfile compares every checksum, keeps each file inside the folder whatever its name says, and
    makes no links.

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
