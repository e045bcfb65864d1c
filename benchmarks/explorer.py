"""A click in the explorer, from the mouse to the bytes that go to the browser: `python -m benchmarks.explorer [--clicks 20]`.

At 5 frames of 256x256 and at 21 frames of 854x480, with one encoder and with two side by side. The features are random
numbers of the right shapes, since a click does not encode. Wall time counts; processor time tells it on a busy machine.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from dulvos.masks import write_mask
from dulvos.encoder import STRIDE
from dulvos.interactive.explorer import Explorer

SETTINGS = ((5, (256, 256)), (21, (480, 854)))  # frames, (H, W)


def make_data(root: Path, frames: int, size: tuple[int, int]) -> None:
    """One video of noise in DAVIS's layout."""
    for folder in ("JPEGImages/480p/noise", "Annotations/480p/noise", "ImageSets/2017"):
        (root / folder).mkdir(parents=True)
    generator = np.random.default_rng(0)
    for index in range(frames):
        coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), np.uint8))
        coarse.resize(size[::-1], Image.Resampling.BICUBIC).save(root / f"JPEGImages/480p/noise/{index:05d}.jpg")
    write_mask(root / "Annotations/480p/noise/00000.png", np.eye(*size, dtype=np.uint8))
    (root / "ImageSets/2017/val.txt").write_text("noise\n")


def random_features(video, indices, checkpoint, layer, **_) -> torch.Tensor:
    cells = [-(-side // STRIDE) for side in video.size]
    generator = torch.Generator().manual_seed(len(checkpoint))
    return F.normalize(torch.randn(len(indices), 512, *cells, generator=generator), dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clicks", type=int, default=20)
    clicks, draw = parser.parse_args().clicks, random.Random(0)
    for frames, size in SETTINGS:
        with tempfile.TemporaryDirectory() as folder:
            make_data(Path(folder), frames, size)
            for beside in ("", "random"):
                explorer = Explorer(folder, shorter_side=0, features=random_features, beside=beside, frames=frames, gap=1)
                height, width = explorer.scene.cells
                wall, processor, parts = [], [], []
                for _ in range(clicks):
                    place = explorer.pixel_of(draw.randrange(frames), draw.randrange(height), draw.randrange(width))
                    started = time.perf_counter(), time.process_time()
                    explorer.click(*place)
                    wall.append(time.perf_counter() - started[0])
                    processor.append(time.process_time() - started[1])
                    parts.append(tuple(explorer.seconds.values()))
                compute, shown = (statistics.median(part) for part in zip(*parts))
                values = (statistics.median(wall), compute, shown, max(wall), statistics.median(processor))
                median, compute, shown, most, processor = (round(1e3 * value) for value in values)
                print(f"{frames:2d} frames of {size[1]}x{size[0]}, {1 + bool(beside)} encoder(s), {torch.get_num_threads()} "
                      f"threads: median {median} ms (maps and pixels {compute}, drawing and sending {shown}), greatest {most}; "
                      f"processor {processor} ms")


if __name__ == "__main__":
    main()
