"""Compares settings on training videos alone: `python -m benchmarks.choose_training DAVIS NAME ...`.

Trains each candidate for the same few iterations on four fifths of DAVIS's training videos, and scores it on
the others, enlarged to the 480p of the evaluation. Rows go to results/selection.
"""

import argparse
from pathlib import Path

import cv2

from dulvos.datasets import load_davis
from dulvos.inference import SegmentSettings
from dulvos.masks import write_mask
from dulvos.study.evaluation import evaluation_run
from dulvos.study.rows import ROOT, Study
from dulvos.study.runs import training_run
from dulvos.training import TrainSettings

COMMON = {"frames": 5, "lr": 3e-4, "lr_every": 10_000}
CANDIDATES = {
    "small": {"crop": 128, "scale_min": 144, "scale_max": 288, "batch": 8, "gap": 4},
    "near": {"crop": 128, "scale_min": 256, "scale_max": 384, "batch": 8, "gap": 4},
    "wide": {"crop": 192, "scale_min": 192, "scale_max": 320, "batch": 4, "gap": 4},
}
FRAMES, EVERY = 40, 5  # frames of a held-out video; every fifth video is held out


def split(davis: str, folder: Path) -> Path:
    """The training split as a data set in DAVIS's layout: links, and enlarged copies of held-out videos."""
    places = [folder / kind / "480p" for kind in ("JPEGImages", "Annotations", "ImageSets")]
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
    images, annotations, sets = places
    lists = {"train": [], "val": []}
    for number, sequence in enumerate(load_davis(davis, "train").sequences):
        held_out = number % EVERY == 0
        name, video = sequence.name, sequence.video
        lists["val" if held_out else "train"].append(
            f"/JPEGImages/480p/{name}/00000.jpg /Annotations/480p/{name}/00000.png\n")
        if (images / name).exists() and (annotations / name).exists():
            continue
        if not held_out:
            (images / name).symlink_to(video.path.resolve())
            (annotations / name).symlink_to(next(iter(sequence.masks.values())).resolve().parent)
            continue
        (images / name).mkdir()
        for index in range(min(FRAMES, len(video))):
            frame, file = video.read(index)[..., ::-1], video.frame_name(index)
            size = (round(480 * frame.shape[1] / frame.shape[0]), 480)
            frame = cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(images / name / f"{file}.jpg"), frame)
            mask = cv2.resize(sequence.mask(index), size, interpolation=cv2.INTER_NEAREST)
            write_mask(annotations / name / f"{file}.png", mask)
    for name, lines in lists.items():
        (sets / f"{name}.txt").write_text("".join(lines))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("davis", help="folder in DAVIS's layout")
    parser.add_argument("names", nargs="+", choices=CANDIDATES)
    parser.add_argument("--iterations", type=int, default=300)
    options = parser.parse_args()
    data = str(split(options.davis, ROOT / "data" / "selection"))
    study = Study("selection")
    for name in options.names:
        settings = TrainSettings(iterations=options.iterations, **COMMON, **CANDIDATES[name])
        row = training_run(study, name, data, settings)
        result = evaluation_run(study, name, data, f"trained:{row['key']}", SegmentSettings())
        print(f"{name}: {options.iterations} iterations in {row['seconds'] / 60:.1f} min, "
              f"J&F {100 * result['scores.J&F-Mean']:.1f}")


if __name__ == "__main__":
    main()
