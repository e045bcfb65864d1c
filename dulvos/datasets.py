"""Read DAVIS and YouTube-VOS; nothing else knows their layouts."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from dulvos.errors import InputError
from dulvos.files import AnyPath, expand, read_json
from dulvos.masks import mask_files, read_mask
from dulvos.videos import Video, open_video

__all__ = ["Dataset", "Sequence", "below", "load_davis", "load_youtube_vos", "read_predictions"]


@dataclass(frozen=True)
class Sequence:
    """A video with its annotations.

    Arguments:
        name: name of the sequence in its dataset.
        video: its frames.
        masks: {frame index: annotation file}, in increasing order.
        merged: all objects count as one (DAVIS-2016).
        objects: ids that enter at some frame (YouTube-VOS; () without meta.json); None if frame 0 holds them
            all (DAVIS).
        saved: indices of the frames whose masks are handed in; None for all.
    """

    name: str
    video: Video
    masks: dict[int, Path]
    merged: bool = False
    objects: tuple[int, ...] | None = None
    saved: tuple[int, ...] | None = None

    def mask(self, index: int) -> np.ndarray:
        """Annotation of a frame, (H, W) uint8 ids; raises InputError if it is missing or wrong."""
        if index not in self.masks:
            missing = self.masks[min(self.masks)].with_stem(self.video.frame_name(index))
            raise InputError(f"{missing}: no such annotation; expected a mask of this frame")
        return self.read(self.masks[index])

    @property
    def handed_in(self) -> tuple[int, ...]:
        """Indices of the frames whose masks are scored, or submitted to a server."""
        return tuple(range(len(self.video))) if self.saved is None else self.saved

    def truth(self) -> np.ndarray:
        """Annotations of the frames `handed_in`, (T, H, W) uint8 ids; raises InputError as `mask` does."""
        return np.stack([self.mask(index) for index in self.handed_in])

    def first_masks(self) -> dict[int, np.ndarray]:
        """The masks that inference starts from: {frame index: (H, W) uint8 ids}.

        For DAVIS, the annotation of frame 0; for YouTube-VOS, the new objects of each frame that has some.

        Raises:
            InputError: no annotations, an unreadable one, or an object of meta.json is annotated nowhere.
        """
        if not self.masks:
            raise InputError(f"{self.video.path}: no masks; give data in the layout of DAVIS or YouTube-VOS")
        if self.objects is None:
            return {0: self.mask(0)}
        given, seen = {}, {0}
        for index in self.masks:
            ids = self.mask(index)
            if new := set(np.unique(ids).tolist()) - seen:
                given[index] = np.where(np.isin(ids, list(new)), ids, 0).astype(np.uint8)
                seen |= new
        absent = {*self.objects} - seen
        if absent or not given:
            wanted = f"object {min(absent)} of meta.json" if absent else "an object; at least one is needed"
            raise InputError(f"{self.masks[min(self.masks)].parent}: no annotation holds {wanted}")
        return given

    def read(self, path: Path) -> np.ndarray:
        """Read a mask of this sequence, (H, W) uint8 ids; raises InputError if it is wrong."""
        ids = read_mask(path)
        self.video.check_size(ids.shape, path)
        return (ids > 0).astype(np.uint8) if self.merged else ids


@dataclass(frozen=True)
class Dataset:
    """The sequences of one split; `name` is the benchmark whose numbers they give."""

    name: str
    root: Path
    split: str
    sequences: list[Sequence]


def load_davis(root: AnyPath, split: str = "val", year: int | None = None) -> Dataset:
    """Load a split of DAVIS-2016, of DAVIS-2017, or of any data in their layout, at 480p.

    `ImageSets/2017/<split>.txt` lists DAVIS-2017, with a name in each line. `ImageSets/2016/<split>.txt`, or
    `ImageSets/480p/<split>.txt` with "/image /mask" in each line, lists DAVIS-2016, whose objects are merged
    into one. {"name": ...} in `benchmark.json` names your own data.

    Arguments:
        root: folder that holds ImageSets, JPEGImages and Annotations.
        year: 2016 or 2017; None takes 2017 if its list exists, else 2016.

    Raises:
        InputError: there is no such list, or a sequence, frame or first mask in it is missing or wrong.
    """
    root = expand(root)
    lists = {root / "ImageSets" / folder / f"{split}.txt": listed_year
             for folder, listed_year in (("2017", 2017), ("480p", 2016), ("2016", 2016))}
    listed = next((file for file in lists if year in (None, lists[file]) and os.path.isfile(file)), None)
    if listed is None:
        raise InputError(f"{root}: no split {split!r} of DAVIS (year {year or 'any'}) in here; expected "
                         f"ImageSets/2017/{split}.txt (DAVIS-2016: ImageSets/480p or ImageSets/2016)"
                         + below(root, "ImageSets"))
    year, own, sequences = lists[listed], _own_name(root), []
    for name, count in _read_list(listed).items():
        frames, annotations = (root / kind / "480p" / name for kind in ("JPEGImages", "Annotations"))
        for path in (frames, annotations):
            if not os.path.exists(path):
                raise InputError(f"{path}: missing on disk; expected it because {listed} lists it")
        video = open_video(frames)
        if len(video) < count:
            raise InputError(f"{frames}: holds {len(video)} frames, but {listed} lists {count} of them")
        sequence = Sequence(name, video, mask_files(video, annotations), merged=year == 2016)
        sequence.mask(0)
        if year == 2017 and own is None and np.unique(
                cv2.imread(os.fspath(sequence.masks[0]), cv2.IMREAD_GRAYSCALE)).tolist() == [0, 255]:
            raise InputError(f"{sequence.masks[0]}: a 0/255 mask, not of DAVIS-2017; set year=2016, or name "
                             'your data in benchmark.json: {"name": ...}')
        sequences.append(sequence)
    return Dataset(own or f"DAVIS-{year}", root, split, sequences)


def load_youtube_vos(root: AnyPath, split: str = "valid") -> Dataset:
    """Load a split of YouTube-VOS (Xu et al., arXiv:1809.03327), whose objects enter at any frame.

    Reads `<split>/JPEGImages/<video>/<frame>.jpg`, `<split>/Annotations/<video>/<frame>.png` and, if present,
    `<split>/meta.json` with the videos and their objects. If `<split>_all_frames/JPEGImages` exists, the
    videos come from there, and only the masks of the frames in `<split>` are handed in.

    Raises:
        InputError: a folder, a video of meta.json, a frame or an annotation is missing or wrong.
    """
    root = expand(root)
    frames, annotations = root / split / "JPEGImages", root / split / "Annotations"
    dense, meta = root / f"{split}_all_frames" / "JPEGImages", root / split / "meta.json"
    for folder in (frames, annotations):
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; expected {split}/JPEGImages and {split}/Annotations"
                             + below(root, split))
    if meta.exists():
        objects = read_json(meta, '{"videos": {name: {"objects": {id: ...}}}}', lambda content: {
            name: tuple(map(int, video["objects"].keys())) for name, video in content["videos"].items()})
    else:
        objects = {folder.name: () for folder in annotations.glob("[!.]*") if folder.is_dir()}
    if not objects:
        raise InputError(f"{annotations}: no sequences; expected a folder of annotations for each video, and "
                         "the videos in meta.json, if that exists")
    sequences = []
    for name in sorted(objects):
        video, saved = open_video(frames / _plain(name, meta)), None
        if dense.is_dir():
            names = video.numbers()
            video = open_video(dense / name)
            saved = tuple(number for name, number in video.numbers().items() if name in names)
            if len(saved) < len(names):
                raise InputError(f"{video.path}: lacks frames of {frames / name}; expected all frames")
        masks = mask_files(video, annotations / name)
        if saved and (lost := sorted(masks.keys() - {*saved})):
            raise InputError(f"{frames / name}: lacks {video.frame_name(lost[0])}, which has an annotation")
        sequences.append(Sequence(name, video, masks, objects=objects[name], saved=saved))
        sequences[-1].mask(min(masks))
    return Dataset(_own_name(root) or "YouTube-VOS", root, split, sequences)


def read_predictions(folder: AnyPath, sequence: Sequence) -> np.ndarray:
    """Read `<folder>/<sequence>/<frame>.png`, (T, H, W) uint8 ids of the frames `sequence.handed_in`.

    Raises:
        InputError: names the first mask that is missing, belongs to no frame, or has another size.
    """
    folder = expand(folder) / sequence.name
    files = [folder / f"{sequence.video.frame_name(index)}.png" for index in sequence.handed_in]
    for file in sorted(set(folder.glob("[!.]*.png")) ^ set(files)):
        raise InputError(f"{file}: {'missing' if file in files else 'misnamed'}; expected {files[0].name} to "
                         f"{files[-1].name}, a mask for each frame of {sequence.name!r}")
    return np.stack([sequence.read(file) for file in files])


def below(root: Path, *patterns: str) -> str:
    """A hint for an error, if a folder one level below holds what was looked for; else ""."""
    found = next((path for pattern in patterns for path in root.glob(f"*/{pattern}")), None)
    return f"; {root / found.relative_to(root).parts[0]} has it: give that folder" if found else ""


def _read_list(listed: Path) -> Counter[str]:
    """How many lines of a list, with a name or "/image /mask" in each, belong to each sequence."""
    try:
        lines = [line.strip() for line in listed.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"{listed}: not a list of sequences; expected a name in each line") from error
    names = [Path(line).parent.name or line if line.startswith("/") else line for line in lines if line]
    if not names:
        raise InputError(f"{listed}: an empty list; expected a name, or '/image /mask', in each line")
    return Counter(_plain(name, listed) for name in names)


def _plain(name: str, source: Path) -> str:
    """The name; raises InputError if it would lead out of the folders that are read and written."""
    if Path(name).name != name or name == "..":
        raise InputError(f"{source}: {name!r} cannot name a sequence; expected the name of a folder")
    return name


def _own_name(root: Path) -> str | None:
    file = root / "benchmark.json"
    return read_json(file, '{"name": "..."}', lambda made: str.strip(made["name"])) if file.exists() else None
