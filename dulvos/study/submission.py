"""What one hands in to YouTube-VOS' server: a zip of masks, and a check for whatever the server rejects."""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from dulvos.datasets import Dataset, Sequence
from dulvos.errors import InputError
from dulvos.files import replacing

__all__ = ["check_submission", "handed_in", "mask_file", "write_submission"]


def handed_in(sequence: Sequence) -> tuple[int, ...]:
    """Indices of the frames whose masks are handed in: every 5th of all frames, or all where only those are there."""
    return tuple(range(len(sequence.video))) if sequence.saved is None else sequence.saved


def mask_file(folder: Path, sequence: Sequence, index: int) -> Path:
    """Where the mask of a frame lies in a folder of masks."""
    return folder / "Annotations" / sequence.name / f"{sequence.video.frame_name(index)}.png"


def write_submission(dataset: Dataset, folder: Path, path: Path) -> dict[str, int]:
    """Pack the masks of `dulvos.study.youtube_vos.predict` into the zip that the server takes, and check it.

    Returns:
        videos and masks in it.

    Raises:
        InputError: a mask is missing, or what `check_submission` finds.
    """
    path = Path(path)
    with replacing(path) as stream:
        with zipfile.ZipFile(stream, "w") as archive:  # PNGs do not shrink further
            for sequence in dataset.sequences:
                for index in handed_in(sequence):
                    file = mask_file(Path(folder), sequence, index)
                    if not file.is_file():
                        raise InputError(f"{file}: missing; expected a mask of each frame that is handed in")
                    # a fixed date: equal masks give an equal file
                    archive.writestr(zipfile.ZipInfo(str(file.relative_to(folder).as_posix())), file.read_bytes())
    try:
        return check_submission(path, dataset)
    except InputError:
        path.unlink()  # what would be rejected is not left to be handed in
        raise


def check_submission(path: Path, dataset: Dataset) -> dict[str, int]:
    """Look for everything for which the server rejects a submission.

    That is: another folder than Annotations, a mask that is missing or of no frame to hand in, other files (what macOS adds to
    zips, too), a mask that is no palette PNG, has another size than its frame, or ids of no object of its video.

    Returns:
        videos and masks in it.

    Raises:
        InputError: the first thing that is wrong, by name, and how many more there are.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{path}: not a zip ({error})") from None
    with archive:
        expected = {f"Annotations/{s.name}/{s.video.frame_name(i)}.png": s for s in dataset.sequences for i in handed_in(s)}
        names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
        wrong = [f"{name}: listed twice" for name, count in sorted(Counter(names).items()) if count > 1]
        wrong += [f"{name}: not to be handed in; expected Annotations/<video>/<frame>.png of the frames in "
                  f"{dataset.split}/JPEGImages" for name in sorted(set(names) - set(expected))]
        wrong += [f"{name}: missing" for name in sorted(set(expected) - set(names))]
        objects = {sequence.name: _objects(sequence) for sequence in dataset.sequences}
        for name in sorted(set(expected) & set(names)):
            problem = _wrong_mask(archive, name, expected[name], objects[expected[name].name])
            wrong += [f"{name}: {problem}"] if problem else []
    if wrong:
        raise InputError(f"{path}: {wrong[0]}" + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""))
    return {"videos": len(dataset.sequences), "masks": len(expected)}


def _objects(sequence: Sequence) -> set[int]:
    return {0, *np.unique(list(sequence.objects or [])).tolist(),
            *(int(name) for mask in sequence.first_masks().values() for name in np.unique(mask))}


def _wrong_mask(archive: zipfile.ZipFile, name: str, sequence: Sequence, objects: set[int]) -> str | None:
    try:
        with Image.open(io.BytesIO(archive.read(name))) as image:
            values, mode, kind = np.asarray(image), image.mode, image.format
    except Exception as error:
        return f"not a complete image ({type(error).__name__})"
    height, width = sequence.video.size
    if kind != "PNG" or mode != "P":
        return f"a {kind} of mode {mode}; expected a palette PNG (mode P)"
    if values.shape != (height, width):
        return f"{values.shape[1]}x{values.shape[0]} (width x height); expected {width}x{height} as its frame is"
    stray = sorted(set(np.unique(values).tolist()) - objects)
    return f"holds id {stray[0]}; expected {', '.join(map(str, sorted(objects)))}" if stray else None
