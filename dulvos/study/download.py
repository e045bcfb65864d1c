"""Downloads of data sets that need no form: resumed where they broke off, checked, unpacked safely."""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import re
import shutil
import stat
import time
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from dulvos.datasets import load_davis
from dulvos.errors import InputError
from dulvos.files import cannot_write

__all__ = ["ARCHIVES", "Archive", "check", "download", "fetch", "unpack"]

BLOCK = 1 << 20  # bytes
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)  # what trying again does not mend
PAUSE = 2.0  # seconds before the second attempt, doubled for each that brings nothing


@dataclass(frozen=True)
class Archive:
    """A data set as its authors offer it.

    Arguments:
        title: its name. year: which DAVIS.
        url: on the official site.
        licence: said before the download begins.
        folder: what it is called once unpacked, the name that `dulvos.study.collections` knows it by.
        counts: {split: (sequences, frames, objects)}; None is not checked.
        size, sha256: bytes and checksum; None where they are not known.
    """

    title: str
    year: int
    url: str
    licence: str
    folder: str
    counts: dict[str, tuple[int, int, int | None]]
    size: int | None = None
    sha256: str | None = None


ARCHIVES = {
    "davis2017": Archive(
        "DAVIS-2017 trainval, 480p", 2017, "https://data.vision.ee.ethz.ch/csergi/share/davis/DAVIS-2017-trainval-480p.zip",
        "CC BY-NC 4.0", "davis-2017", {"train": (60, 4_209, None), "val": (30, 1_999, 61)}, 832_766_765,
        "e3d0b5b77c3d031b000a19e0e25e3e2cac65d183755601bc2cf066df1a2aa492"),
    "davis2016": Archive(
        "DAVIS-2016", 2016, "https://graphics.ethz.ch/Downloads/Data/Davis/DAVIS-data.zip", "CC BY-NC 4.0", "davis-2016",
        {"train": (30, 2_079, 30), "val": (20, 1_376, 20)}),  # about 1.9 GB; the archive was replaced several times
}


def download(name: str, to: str | os.PathLike[str]) -> Path:
    """Fetch an archive, unpack and check it, and leave `<to>/<folder>`; what is there already is only checked.

    Broken off, the same call goes on where it was. The archive is removed once its content is found right.

    Raises:
        InputError: no such data set, no connection, too little space, or an archive that is not what it should be.
    """
    if name not in ARCHIVES:
        raise InputError(f"{name!r}: no such download; choose one of {', '.join(ARCHIVES)}")
    archive, to = ARCHIVES[name], Path(to)
    folder, unpacking, file = to / archive.folder, to / f".{archive.folder}.unpacking", to / archive.url.rpartition("/")[2]
    if folder.exists():
        check(folder, archive)
        shutil.rmtree(unpacking, ignore_errors=True)  # of a call that was killed at its very end
        file.unlink(missing_ok=True)
        print(f"{folder}: {archive.title} is there and complete")
        return folder
    print(f"{archive.title}, {archive.licence}: {archive.url}")
    try:
        to.mkdir(parents=True, exist_ok=True)
        fetch(archive.url, file, size=archive.size, sha256=archive.sha256)
        unpack(file, unpacking)
        inner = next((path for path in (unpacking, *sorted(unpacking.iterdir())) if (path / "ImageSets").is_dir()), None)
        if inner is None:
            raise InputError(f"{file}: holds no folder ImageSets; expected {archive.title}; delete it and download it again")
        check(inner, archive)
        os.sync()  # what the name promises must be on the disk before the name
        os.replace(inner, folder)
    except OSError as error:
        if error.errno is None:
            raise
        raise cannot_write(to, error.errno) from None
    finally:
        shutil.rmtree(unpacking, ignore_errors=True)
    file.unlink()
    print(f"{folder}: {archive.title} is complete")
    return folder


def check(folder: str | os.PathLike[str], archive: Archive) -> None:
    """Count sequences, frames, masks and objects of the first masks.

    Raises:
        InputError: a file that the lists name is missing, or a count differs.
    """
    for split, expected in archive.counts.items():
        sequences = load_davis(folder, split, archive.year).sequences
        frames, masks = (sum(map(len, things)) for things in ([s.video for s in sequences], [s.masks for s in sequences]))
        objects = sum(int(sequence.mask(0).max()) for sequence in sequences) if expected[2] is not None else None
        if (len(sequences), frames, objects) != expected or masks != frames:
            found = _counts(len(sequences), frames, objects)
            raise InputError(f"{folder}: {split} has {found}, {masks:,} masks; {archive.title} has "
                             f"{_counts(*expected)} and a mask for each frame; remove the folder and download it again")


def fetch(url: str, target: Path, *, size: int | None = None, sha256: str | None = None, attempts: int = 6,
          timeout: float = 60.0) -> Path:
    """Download a file by HTTP, going on where an earlier attempt or call broke off.

    The part that is there lies beside the target, as `<name>.part`, with `<name>.part.tag` to know the same file again. A
    server that ignores the request for a part, or has another file by now, is read from the beginning.

    Arguments:
        target: the file; one that is there already is only checked.
        size, sha256: what is expected of it.
        attempts: in a row that bring nothing before giving up.
        timeout: seconds of silence after which a connection is given up.

    Raises:
        InputError: the server refuses, is out of reach, or sends another file; or there is too little space.
    """
    part = target.with_name(target.name + ".part")
    if not target.exists():
        failures = 0
        while True:
            before = _size(part)
            try:
                _continue(url, part, size, timeout)
                break
            except (OSError, http.client.HTTPException) as error:
                if isinstance(error, OSError) and error.errno in DISK:
                    raise cannot_write(part, error.errno) from None
                code = error.code if isinstance(error, urllib.error.HTTPError) else 0
                if 400 <= code < 500 and code not in (408, 416, 429):
                    raise InputError(f"{url}: the server answers {code} ({error.reason}); look for the file on its site "
                                     f"and put it at {target}") from None
                failures = failures + 1 if _size(part) <= before else 1
                if failures >= attempts:
                    raise InputError(f"{url}: {failures} attempts in a row brought nothing ({error}); {_size(part):,} bytes "
                                     f"are kept in {part}: the same command goes on from there") from None
                time.sleep(PAUSE * 2 ** (failures - 1))
    found = part if part.exists() and not target.exists() else target
    if size is not None and found.stat().st_size != size:
        _refuse(found, part, f"has {found.stat().st_size:,} bytes, expected {size:,}")
    if sha256 is not None:
        with open(found, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if digest != sha256:
            _refuse(found, part, f"has the SHA-256 {digest}, expected {sha256}")
    if found != target:
        os.replace(part, target)
        _tag(part).unlink(missing_ok=True)
    return target


def unpack(archive: str | os.PathLike[str], folder: str | os.PathLike[str]) -> None:
    """Unpack a zip file into a folder, which is emptied first; every checksum is compared.

    Raises:
        InputError: an entry that would lie outside the folder or is a link (nothing is written then), too little space, or a
            damaged archive.
    """
    folder = Path(folder)
    try:
        with zipfile.ZipFile(archive) as file:
            entries = file.infolist()
            for entry in entries:
                path = PurePosixPath(entry.filename.replace("\\", "/"))
                link = stat.S_ISLNK(entry.external_attr >> 16)
                if link or path.is_absolute() or ".." in path.parts or ":" in entry.filename:
                    raise InputError(f"{archive}: the entry {entry.filename!r} leads out of the folder; do not use this file")
            folder.parent.mkdir(parents=True, exist_ok=True)
            _need_space(folder.parent, sum(entry.file_size for entry in entries))
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for entry in tqdm(entries, desc="unpacking", unit=" files", mininterval=5.0):
                file.extract(entry, folder)
    except (zipfile.BadZipFile, EOFError) as error:
        raise InputError(f"{archive}: damaged or not a zip file ({error}); delete it and download it again") from None


def _continue(url: str, part: Path, size: int | None, timeout: float) -> None:
    """One connection: append to the part, or write it anew."""
    have, tag = _size(part), _tag(part)
    request = urllib.request.Request(url, headers={"User-Agent": "dulvos", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        if tag.exists():
            request.add_header("If-Range", tag.read_text())
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing after the part: it is whole, or of another file
            if size is not None and have == size:
                return
            part.unlink(missing_ok=True)
        raise
    with response:
        total = response.headers.get("Content-Length")
        total = int(total) if total else None
        if response.status == 206:
            span = re.fullmatch(r"bytes ([0-9]+)-[0-9]+/([0-9]+)", response.headers.get("Content-Range", ""))
            if not span or int(span[1]) != have:
                part.unlink()
                raise OSError("the server sent another part than the one asked for")
            total = int(span[2])
        else:
            have = 0
        if size is not None and total is not None and total != size:
            part.unlink(missing_ok=True)
            raise InputError(f"{url}: the server offers {total:,} bytes, expected {size:,}; the file is not the one known")
        _need_space(part.parent, (total or 0) - have)
        validator = response.headers.get("ETag", "")
        if not validator or validator.startswith("W/"):
            validator = response.headers.get("Last-Modified")
        if validator:
            tag.write_text(validator)
        else:
            tag.unlink(missing_ok=True)
        with open(part, "ab" if have else "wb") as stream, tqdm(
                desc=part.stem, initial=have, total=total, unit="B", unit_scale=True, mininterval=5.0) as bar:
            while block := response.read(BLOCK):
                stream.write(block)
                bar.update(len(block))
    if total is not None and _size(part) < total:
        raise ConnectionError(f"broke off after {_size(part):,} of {total:,} bytes")


def _refuse(file: Path, part: Path, what: str) -> None:
    if file == part:
        part.unlink()
        _tag(part).unlink(missing_ok=True)
    raise InputError(f"{file}: {what}; " + ("it was removed: download again" if file == part else "remove it to download it"))


def _need_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(f"{folder}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")


def _counts(sequences: int, frames: int, objects: int | None) -> str:
    return f"{sequences} sequences, {frames:,} frames" + (f", {objects} objects" if objects is not None else "")


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _tag(part: Path) -> Path:
    return part.with_name(part.name + ".tag")
