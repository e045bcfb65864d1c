"""The training collections of the paper: where each comes from, its layout and size, and the settings it was trained with."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dulvos import datasets
from dulvos.datasets import Dataset
from dulvos.errors import InputError
from dulvos.study.indexing import index_videos
from dulvos.training import TrainSettings
from dulvos.videos import Video

__all__ = ["SOURCES", "Collection", "Schedule", "Source", "open_collection", "paper_settings", "sources_table"]


@dataclass(frozen=True)
class Schedule:
    """Lengths in epochs, an epoch being one clip a video.

    Arguments:
        epochs: of the whole run.
        decay: epochs between decays of the learning rate.
        released: after how many the authors' snapshot was taken.
    """

    epochs: int
    decay: int
    released: int


@dataclass(frozen=True)
class Source:
    """A training collection. Its masks, boxes and labels, where it has some, are not read.

    Arguments:
        title: its name in tables.
        origin: where one gets it, and under what terms.
        layout: of one frame or file, below the collection's folder.
        places: the folders that hold its videos, as patterns; the first that matches counts.
        videos: expected number. frames: the same; None where no public page states it.
        about: the numbers are approximate, because copies differ.
        settings: what differs from the defaults of `TrainSettings`, which are YouTube-VOS's.
        schedule: None where the paper did not train on it: then lengths are the defaults, in iterations.
        listed: file with the names of the videos to take.
        remark: what a user should know besides.
    """

    title: str
    origin: str
    layout: str
    places: tuple[str, ...]
    videos: int
    frames: int | None
    about: bool = False
    settings: dict = field(default_factory=dict)
    schedule: Schedule | None = None
    listed: str = ""
    remark: str = ""


_LARGE = {"gap": 10, "optimiser": "sgd", "lr": 1e-3, "scale_max": 256, "centre": True}

SOURCES = {
    "youtube-vos": Source(
        "YouTube-VOS", "youtube-vos.org, version 2018, CC BY 4.0, after registering", "train/JPEGImages/<video>/<frame>.jpg",
        ("train/JPEGImages",), 3_471, None, settings={"gap": 2}, schedule=Schedule(500, 100, 60),
        remark="6 frames a second, not train_all_frames"),
    "oxuva": Source(
        "OxUvA", "oxuva.github.io/long-term-tracking-benchmark, after a form", "images/dev/<video>/<frame>.jpeg",
        ("images/dev",), 185, None, about=True, settings={"gap": 10}, schedule=Schedule(500, 100, 430),
        remark="the release names images/dev, 200 tracks; the paper's 366 count images/test too"),
    "trackingnet": Source(
        "TrackingNet", "github.com/SilvioGiancola/TrackingNet-devkit; 1.1 TB", "TRAIN_<0..11>/frames/<video>/<frame>.jpg",
        ("TRAIN_*/frames", "Train_*/frames", "train/jpegs"), 30_132, 14_205_677, settings={**_LARGE, "lr_decay": 0.9},
        schedule=Schedule(250, 20, 88)),
    "kinetics-400": Source(
        "Kinetics-400", "github.com/cvdfoundation/kinetics-dataset; about 0.4 TB with all splits, as video files",
        "train/<class>/<clip>.mp4, or <clip>/<frame>.jpg in its place", ("train", "video_jpeg/train"), 240_000, None,
        about=True, settings={**_LARGE, "lr_decay": 0.5}, schedule=Schedule(80, 20, 26),
        remark="clips vanish from YouTube; the paper's 300K count all splits"),
    "davis-2017": Source(
        "DAVIS-2017", "davischallenge.org, or python -m dulvos download davis2017; CC BY-NC 4.0; 0.8 GB",
        "JPEGImages/480p/<sequence>/<frame>.jpg", ("JPEGImages/480p",), 60, 4_209, settings={"gap": 2},
        listed="ImageSets/2017/train.txt", remark="the training sequences only; not among the paper's"),
}


@dataclass(frozen=True)
class Collection(Dataset):
    """A data set for training alone: videos without masks.

    Arguments:
        fingerprint: of the index, see `dulvos.study.indexing.Index`.
        miscounted: a line for each count that is not as expected: the copy is incomplete, or holds another split.
        notes: those lines, and what is unreadable in the tree and so left out.
    """

    fingerprint: str
    miscounted: list[str]
    notes: list[str]

    @property
    def videos(self) -> list[Video]:
        return [sequence.video for sequence in self.sequences]


def open_collection(
    name: str, folder: str | os.PathLike[str], cache: str | os.PathLike[str], *, decode: bool = False
) -> Collection:
    """Index a collection, or any folder of videos.

    Arguments:
        name: a key of SOURCES, or "" for a folder of frame folders and video files, at any depth up to four.
        folder: the collection's own folder, in which `layout` begins.
        cache: folder for index files.
        decode: see `dulvos.study.indexing.index_videos`.

    Raises:
        InputError: no such collection, or its videos are not there; the message says what is expected and where it comes from.
    """
    root = Path(folder)
    source = _source(name) if name else None
    if not root.is_dir():
        raise InputError(f"{root}: no such folder" + (f"; {_expectation(source, root)}" if source else ""))
    try:
        places = _places(source, root) if source else [""]
        index = index_videos(root, places, _cache_file(name, root, Path(cache)), decode=decode)
    except InputError as error:
        raise InputError(f"{error}; {_expectation(source, root)}" if source else str(error)) from None
    miscounted = _miscounted(source, index.videos) if source else []
    sequences = [datasets.Sequence(video.name, video, {}) for video in index.videos]
    title = source.title if source else root.resolve().name
    if not source and title in {other.title for other in SOURCES.values()}:
        title += " (own folder)"  # tables know collections by their titles
    return Collection(title, root, "train", sequences, index.fingerprint, miscounted, miscounted + index.notes)


def paper_settings(name: str, videos: int, *, released: bool = False, **changes) -> TrainSettings:
    """The settings which the paper trained a collection with; epochs become iterations of this many videos.

    Batches cross epoch borders, so an epoch is videos / B iterations, and lengths are rounded up.

    Arguments:
        videos: how many there are, those shorter than a clip not counted.
        released: as long as the authors' snapshot was trained, instead of the whole schedule.
        changes: other values of `TrainSettings`.

    Raises:
        InputError: no such collection, or a wrong setting.
    """
    source = _source(name)
    settings = {**source.settings, **changes}
    if source.schedule:
        batch = TrainSettings.from_dict(settings).batch
        epochs = source.schedule.released if released else source.schedule.epochs
        lengths = {"iterations": epochs, "lr_every": source.schedule.decay}
        settings = {name: max(1, math.ceil(count * videos / batch)) for name, count in lengths.items()} | settings
    return TrainSettings.from_dict(settings)


def sources_table(names: Sequence[str] = tuple(SOURCES)) -> str:
    """Two tables in Markdown: what is expected on disk, and the settings; iterations hold for the expected number of videos."""
    lines = ["| data | expected below `DULVOS_DATA_DIR` | videos | frames | from |", "|---|---|---:|---:|---|"]
    for name in names:
        source = SOURCES[name]
        videos, frames = (f"{'about ' if source.about else ''}{count:,}" if count else "not stated"
                          for count in (source.videos, source.frames))
        origin = source.origin + (f" ({source.remark})" if source.remark else "")
        lines.append(f"| {source.title} | `{name}/{source.layout}` | {videos} | {frames} | {origin} |")
    lines += ["", "| data | optimiser | lr | decay | gap | shorter side, crop | epochs (released) | iterations (released) |",
              "|---|---|---:|---|---:|---|---:|---:|"]
    for name in names:
        source, whole = SOURCES[name], paper_settings(name, SOURCES[name].videos)
        crop = f"{whole.scale_min}..{whole.scale_max}, {'centre' if whole.centre else 'random'} {whole.crop}"
        decay, epochs, iterations = f"{whole.lr_every:,} iterations", "-", f"{whole.iterations:,}"
        if source.schedule:
            decay, epochs = f"{source.schedule.decay} epochs", f"{source.schedule.epochs} ({source.schedule.released})"
            iterations += f" ({paper_settings(name, source.videos, released=True).iterations:,})"
        cells = (source.title, whole.optimiser, f"{whole.lr:g}", f"×{whole.lr_decay:g} every {decay}", whole.gap, crop, epochs,
                 iterations)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _source(name: str) -> Source:
    if name not in SOURCES:
        raise InputError(f"{name!r}: no such training collection; choose one of {', '.join(SOURCES)}")
    return SOURCES[name]


def _expectation(source: Source, root: Path) -> str:
    about = "about " if source.about else ""
    return (f"{source.title} is expected as {root}/{source.layout}, {about}{source.videos:,} videos"
            + (f" ({source.remark})" if source.remark else "") + f"; from {source.origin}")


def _places(source: Source, root: Path) -> list[str]:
    """Folders to index, relative to root."""
    for pattern in source.places:
        found = sorted(path.relative_to(root).as_posix() for path in root.glob(pattern) if path.is_dir())
        if found and source.listed:
            return [f"{place}/{name}" for place in found for name in _names(root / source.listed)]
        if found:
            return found
    raise InputError(f"{root}: no folder {' or '.join(source.places)} in here")


def _names(listed: Path) -> list[str]:
    try:
        names = listed.read_text().split()
    except OSError:
        raise InputError(f"{listed}: no such file; it names the videos to train on") from None
    if not names:
        raise InputError(f"{listed}: an empty list; expected the name of a video in each line")
    return names


def _cache_file(name: str, root: Path, cache: Path) -> Path:
    mark = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:8]
    return cache / f"{name or root.resolve().name}-{mark}.json"


def _miscounted(source: Source, videos: list[Video]) -> list[str]:
    """A line for each count that is not as expected; approximate ones may lack a tenth."""
    lines = []
    counts = [("videos", source.videos, len(videos)), ("frames", source.frames, sum(map(len, videos)))]
    for what, expected, found in counts:
        if expected and found < expected * (0.9 if source.about else 1):
            lines.append(f"{source.title}: {found:,} {what} found, {'about ' if source.about else ''}{expected:,} expected: "
                         f"the copy is incomplete, {expected - found:,} are missing")
        elif expected and found > expected and not source.about:
            lines.append(f"{source.title}: {found:,} {what} found, more than the {expected:,} expected: "
                         "does another split lie there?")
    return lines
