"""What is damaged at random: a whole file of each kind that is read, and the public entry that reads it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dulvos import masks
from dulvos.checkpoints import load_encoder
from dulvos.study.collections import index_videos
from tests.corpus import Target
from tests.corpus_files import ROW, put_encoder, put_row, rows_of
from tests.corpus_frames import encoded, picture, read_all
from tests.corpus_masks import LIST, look, make_clip, write_davis
from tests.corpus_videos import FRAMES, write_video

__all__ = ["TARGETS"]


def digest(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def write(content: Callable[[], bytes], name: str, folder: Path) -> Path:
    (folder / name).write_bytes(content())
    return folder / name


def first_mask() -> bytes:
    ids = np.random.default_rng(0).integers(0, 5, (48, 64), np.uint8)
    return encoded(ids)


def read_mask(folder: Path) -> Any:
    ids = masks.read_mask(folder / "mask.png")
    assert ids.dtype == np.uint8 and ids.max() < 255
    return digest(ids)


def own_name(folder: Path) -> Path:
    return write(lambda: b'{"name": "own"}', "benchmark.json", write_davis(folder))


def index_file(folder: Path) -> Path:
    make_clip(folder / "videos")
    index_videos(folder / "videos", ["."], folder / "index.json")
    return folder / "index.json"


def read_index(folder: Path) -> Any:
    index = index_videos(folder / "videos", ["."], folder / "index.json")
    assert [(video.name, len(video), video.size) for video in index.videos] == [("./clip", 4, (48, 64))]


def released_file(folder: Path) -> Path:
    torch.save({"model": {f"layer{n}": torch.zeros(3) for n in range(9)}}, folder / "x.pth")
    return folder / "x.pth"


def video_target(name: str, codec: str, pixels: str = "yuv420p") -> Target:
    return Target(f"random damage: {name.partition('.')[2]} of {codec}",
                  lambda folder: write_video(folder / name, FRAMES[:4], codec, pixels),
                  lambda folder: read_all(folder / name))


TARGETS = [
    *(Target(f"random damage: {kind}",
             partial(write, partial(encoded, picture(), kind, **options), f"0.{kind}"),
             lambda folder: digest(*read_all(folder)), kind == "png")
      for kind, options in (("jpg", {"quality": 95}), ("png", {}), ("bmp", {}), ("webp", {}))),
    video_target("a.mp4", "libx264"), video_target("a.mp4", "mpeg4"), video_target("a.mkv", "ffv1", "bgr0"),
    video_target("a.avi", "mjpeg", "yuvj420p"), video_target("a.webm", "libvpx-vp9"),
    *(Target(f"random damage: {name}", make, read, guarded) for name, make, read, guarded in (
        ("mask", partial(write, first_mask, "mask.png"), read_mask, True),
        ("list of sequences", lambda folder: write_davis(folder) / LIST, look, False),
        ("benchmark.json", own_name, look, False),
        ("row", lambda folder: put_row(folder, json.dumps(ROW).encode()), rows_of, False),
        ("index", index_file, read_index, False),
        ("released weights", released_file, lambda folder: load_encoder(folder / "x.pth"), False),
        ("sidecar", lambda folder: put_encoder(folder).with_suffix(".json"),
         lambda folder: load_encoder(folder / "x.safetensors"), False),
        ("safetensors", put_encoder, lambda folder: load_encoder(folder / "x.safetensors"), False))),
]
