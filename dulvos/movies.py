"""Write frames as an mp4 that every browser plays."""

import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Colorspace

from dulvos.errors import InputError
from dulvos.files import SIGNATURE, AnyPath, expand, replacing
from dulvos.videos import RATE

__all__ = ["write_mp4"]

LARGEST = 16384  # pixels of a side, which libx264 can encode


def write_mp4(path: AnyPath, frames: Iterable[np.ndarray], fps: float = RATE,
              aspect: Fraction = Fraction(1)) -> Path:
    """Write frames as an mp4 that every browser plays (H.264, yuv420p, index in front), whole or not at all.

    Arguments:
        path: the file, with suffix .mp4; the folders above it are made.
        frames: (H, W, 3) uint8 RGB of one size; an odd side is padded by repeating its edge (for yuv420p).
        fps: frames per second; a value outside 0.1..1000 is moved to the nearer end, and a note says so.
        aspect: width / height of a pixel when the movie is shown.

    Raises:
        InputError: no frames, frames of differing size, or a side of more than 16,384 pixels.
    """
    path = expand(path)
    rate = min(max(0.1, fps), 1000)  # 0.1 if fps is NaN
    if rate != fps:
        print(f"note: {path} plays {rate:g} frames a second instead of {fps:g}, which players cannot do")
    number = 0
    # FFmpeg opens the file again to move the index, so it needs a name. The name is absolute, because what
    # precedes a colon in a relative one would be a protocol.
    with (replacing(path) as stream,
          av.open(os.path.abspath(stream.name), "w", "mp4", options={"movflags": "faststart"}) as container):
        container.metadata["comment"] = SIGNATURE
        track = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1001),
                                     pix_fmt="yuv420p", options={"crf": "20", "preset": "veryfast"})
        for number, frame in enumerate(frames, 1):
            if number == 1:
                shape = frame.shape
                if max(shape[:2]) > LARGEST:
                    raise InputError(f"{path}: frames of {shape[1]}x{shape[0]} pixels; H.264 allows "
                                     f"{LARGEST} a side; leave out the movie (--no-mp4)")
                track.height, track.width = (side + side % 2 for side in shape[:2])
                track.codec_context.colorspace = 6  # SMPTE 170M (ITU-T H.264, Table E-5)
                track.codec_context.sample_aspect_ratio = aspect
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
