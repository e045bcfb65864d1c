"""Training clips in two views from 480p JPEG, ours beside Pillow: `python -m benchmarks.clips DAVIS`.

Each process has one thread. The frames are those of DAVIS's validation split, which are 480p.
"""

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import numpy as np
import torch
from PIL import Image

from benchmarks.measure import report
from dulvos.clips import Clips, ClipSettings, frame_indices
from dulvos.datasets import load_davis
from dulvos.encoder import prepare_frames
from dulvos.views import sample_similarity

FRAMES, CROP, SCALE = 5, 256, (256, 319)


def ours(davis: str, numbers: range) -> float:
    torch.set_num_threads(1)
    videos = [s.video for s in load_davis(davis, "val").sequences]
    settings = ClipSettings(frames=FRAMES, gap=2, crop=CROP, scale_min=SCALE[0], scale_max=SCALE[1])
    clips = Clips(videos, settings)
    started = time.perf_counter()
    for number in numbers:
        frames = prepare_frames(clips[number][None])
        sample_similarity(1, CROP, torch.Generator().manual_seed(number)).frames(frames)
    return time.perf_counter() - started


def plain(davis: str, numbers: range) -> float:
    torch.set_num_threads(1)
    videos = [s.video for s in load_davis(davis, "val").sequences]
    started = time.perf_counter()
    for number in numbers:
        generator = np.random.default_rng(number)
        video = videos[generator.integers(len(videos))]
        shorter = generator.integers(SCALE[0], SCALE[1] + 1)
        flip, flip2 = generator.random(2) < 0.5
        side = int(generator.uniform(0.5, 1) * CROP)
        x2, y2, x, y = generator.random(4)
        for index in frame_indices(len(video), FRAMES, 2, generator):
            image = Image.open(video.path / video.files[index]).convert("RGB")
            ratio = shorter / min(image.size)
            size = [max(shorter, round(length * ratio)) for length in image.size]
            image = image.resize(size, Image.Resampling.BILINEAR)
            left, top = int(x * (image.width - CROP + 1)), int(y * (image.height - CROP + 1))
            image = image.crop((left, top, left + CROP, top + CROP))
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image
            view = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip2 else image
            left, top = int(x2 * (CROP - side + 1)), int(y2 * (CROP - side + 1))
            view = view.crop((left, top, left + side, top + side))
            view = view.resize((CROP, CROP), Image.Resampling.BILINEAR)
            for picture in (image, view):
                prepare_frames(torch.from_numpy(np.array(picture)).permute(2, 0, 1))
    return time.perf_counter() - started


def decoding(davis: str, numbers: range) -> float:
    """Only read as many frames: neither way can be faster."""
    videos = [s.video for s in load_davis(davis, "val").sequences]
    started = time.perf_counter()
    for number in numbers:
        for index in range(FRAMES):
            videos[number % len(videos)].read(index)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("davis", help="folder in DAVIS's layout")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--clips", type=int, default=60, help="of each process")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="beside JPEG decoding alone, one process")
    options = parser.parse_args()
    if options.profile:
        for way in (decoding, ours, plain):
            way(options.davis, range(2))  # warm
            seconds = min(way(options.davis, range(options.clips)) for _ in range(options.runs))
            print(f"{way.__name__:8s} {1000 * seconds / (options.clips * FRAMES):.2f} ms a frame")
        return
    parts = [range(i * options.clips, (i + 1) * options.clips) for i in range(options.processes)]
    times = {"ours": [], "plain": []}
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        for way in (ours, plain):  # warm
            list(pool.map(partial(way, options.davis), [range(2)] * options.processes))
        for _ in range(options.runs):
            for way in (ours, plain):
                seconds = max(pool.map(partial(way, options.davis), parts))
                times[way.__name__].append(1000 * seconds / (len(parts) * options.clips * FRAMES))
    report("training clips, two views", f"480p JPEG, {options.processes} processes", times, "ms a frame")


if __name__ == "__main__":
    main()
