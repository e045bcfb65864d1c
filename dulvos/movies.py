"""Write frames as an mp4 that every browser plays, and read the frame rate of a video file."""

from __future__ import annotations

import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Colorspace

from dulvos.errors import InputError
from dulvos.files import SIGNATURE, AnyPath, replacing
from dulvos.videos import Video

__all__ = ["frame_rate", "write_mp4"]

FPS = 24.0  # of DAVIS, and of videos that state no rate
_BT601 = 6  # SMPTE 170M in H.264's table of matrices (ITU-T H.264, Table E-5)


def frame_rate(video: Video) -> float:
    """Frames per second that a video file states; 24 if it states none, and for a folder of frames."""
    if video.files:
        return FPS
    try:
        with av.open(os.path.abspath(video.path)) as container:
            return float(container.streams.video[0].average_rate or FPS)
    except (av.FFmpegError, IndexError):  # OpenCV, which reads the frames, opens more broken files
        return FPS


def write_mp4(path: AnyPath, frames: Iterable[np.ndarray], fps: float = FPS, *,
              quality: int = 20) -> Path:
    """Write frames as an mp4 that every browser plays (H.264, yuv420p, index in front), whole or not at all.

    Arguments:
        path: the file, with suffix .mp4; the folders above it are made.
        frames: (H, W, 3) uint8 RGB of one size; a last odd row or column is repeated, as yuv420p needs it.
        fps: frames per second, in 0.1..1000.
        quality: x264's constant rate factor in 0..51; lower is better and larger.

    Raises:
        InputError: another suffix, no frames, frames of differing size, fps or quality out of range.
    """
    path = Path(path)
    if path.suffix != ".mp4":
        raise InputError(f"{path}: movies are mp4 files; expected a name that ends in .mp4")
    if not 0.1 <= fps <= 1000 or not 0 <= quality <= 51:
        raise InputError(f"{path}: fps must lie in 0.1..1000 and quality in 0..51, not fps={fps}, "
                         f"quality={quality}")
    shape, number = None, 0
    # FFmpeg opens the file again to move the index, so it needs a name; what precedes a colon in a relative
    # one would be a protocol
    with (replacing(path) as stream,
          av.open(os.path.abspath(stream.name), "w", "mp4", options={"movflags": "faststart"}) as container):
        container.metadata["comment"] = SIGNATURE
        track = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), pix_fmt="yuv420p",
                                     options={"crf": str(quality), "preset": "veryfast"})
        for number, frame in enumerate(frames, 1):
            if shape is None:
                shape = frame.shape
                track.height, track.width = (side + side % 2 for side in shape[:2])
                track.codec_context.colorspace = _BT601
            if frame.shape != shape:
                raise InputError(f"{path}: frame {number - 1} is {frame.shape}, frame 0 {shape}; all frames "
                                 "of a movie must have one size")
            even = np.pad(frame, [(0, shape[0] % 2), (0, shape[1] % 2), (0, 0)], mode="edge")
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), "rgb24")
            container.mux(track.encode(picture.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU601)))
        if not number:
            raise InputError(f"{path}: no frames to write; a movie needs at least one")
        container.mux(track.encode())
    return path
