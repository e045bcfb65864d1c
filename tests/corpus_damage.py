"""What is damaged at random: a whole file of each kind that is read, and the public entry that reads it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

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


def picture_file(suffix: str, **options: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / f"0.{suffix}"
        path.write_bytes(encoded(Image.fromarray(picture()), suffix.replace("jpg", "jpeg"), **options))
        return path
    return make


def video_file(name: str, codec: str, pixels: str = "yuv420p") -> Target:
    return Target(f"random damage: {name.partition('.')[2]} of {codec}",
                  lambda folder: write_video(folder / name, FRAMES[:4], codec, pixels),
                  lambda folder: read_all(folder / name))


def first_mask(folder: Path) -> Path:
    masks.write_mask(folder / "mask.png", np.random.default_rng(0).integers(0, 5, (48, 64), np.uint8))
    return folder / "mask.png"


def read_mask(folder: Path) -> Any:
    ids = masks.read_mask(folder / "mask.png")
    assert ids.dtype == np.uint8 and ids.max() < 255
    return digest(ids)


def json_file(name: str, content: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = write_davis(folder) / name
        path.write_text(json.dumps(content))
        return path
    return make


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


def row_file(folder: Path) -> Path:
    return put_row(folder, json.dumps(ROW).encode())


TARGETS = [
    *(Target(f"random damage: {suffix}", picture_file(suffix, **options), lambda folder: digest(*read_all(folder)),
             suffix == "png")
      for suffix, options in (("jpg", {"quality": 95}), ("png", {}), ("bmp", {}), ("webp", {}))),
    video_file("a.mp4", "libx264"), video_file("a.mp4", "mpeg4"), video_file("a.mkv", "ffv1", "bgr0"),
    video_file("a.avi", "mjpeg", "yuvj420p"),
    video_file("a.webm", "libvpx-vp9"),
    Target("random damage: mask", first_mask, read_mask, True),
    Target("random damage: list of sequences", lambda folder: write_davis(folder) / LIST, look),
    Target("random damage: benchmark.json", json_file("benchmark.json", {"name": "own"}), look),
    Target("random damage: row", row_file, rows_of),
    Target("random damage: index", index_file, read_index),
    Target("random damage: released weights", released_file, lambda folder: load_encoder(folder / "x.pth")),
    Target("random damage: sidecar", lambda folder: put_encoder(folder).with_suffix(".json"),
           lambda folder: load_encoder(folder / "x.safetensors")),
    Target("random damage: safetensors", put_encoder, lambda folder: load_encoder(folder / "x.safetensors")),
]
