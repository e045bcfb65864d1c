"""Movies: what was written can be read, by browsers too, and nothing is left of what failed."""

from __future__ import annotations

import av
import numpy as np
import pytest

from dulvos import movies, videos
from dulvos.errors import InputError

COLOURS = [(220, 30, 30), (30, 200, 30), (30, 30, 220), (128, 128, 128)]


def flat(size=(48, 64), colours=COLOURS):
    return [np.full((*size, 3), colour, np.uint8) for colour in colours]


@pytest.mark.parametrize("size", [(48, 64), (49, 64), (48, 65), (33, 17), (1, 1)])
def test_frames_come_back_in_order_and_colour_at_any_size(tmp_path, size):
    path = movies.write_mp4(tmp_path / "new" / "movie.mp4", iter(flat(size)), 12.5)
    video = videos.open_video(path)
    assert len(video) == len(COLOURS) and video.size == (size[0] + size[0] % 2, size[1] + size[1] % 2)
    assert movies.frame_rate(video) == 12.5
    for frame, colour in zip(video.frames(), COLOURS):
        assert np.abs(frame[: size[0], : size[1]].astype(int) - colour).max() <= 6
    with av.open(str(path)) as container:  # what browsers play
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt, context.colorspace) == ("h264", "yuv420p", 6)
    assert 0 < path.read_bytes().index(b"moov") < path.read_bytes().index(b"mdat")


def test_a_side_of_odd_length_repeats_its_edge(tmp_path):
    frame = np.tile(np.linspace(20, 235, 41, dtype=np.uint8)[None, :, None], (41, 1, 3))
    path = movies.write_mp4(tmp_path / "movie.mp4", [frame] * 3, 10, quality=1)
    last = videos.open_video(path).read(0).astype(int)
    assert np.abs(last[:, 41] - frame[0, 40]).max() <= 8 and np.abs(last[41, :41] - frame[40]).max() <= 8


@pytest.mark.parametrize("rate", [29.97, 24000 / 1001, 0.1, 60.0])
def test_rates_of_television_are_kept_and_folders_have_that_of_davis(tmp_path, rate):
    video = videos.open_video(movies.write_mp4(tmp_path / "movie.mp4", flat((16, 16)), rate))
    assert movies.frame_rate(video) == pytest.approx(rate, rel=1e-4)
    assert movies.frame_rate(videos.Video("v", tmp_path, 2, (4, 4), ("0.jpg", "1.jpg"))) == 24


def test_what_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = movies.write_mp4(tmp_path / "movie.mp4", flat(), 10)
    before = path.read_bytes()
    with pytest.raises(InputError, match="frame 1 is .*one size"):
        movies.write_mp4(path, [*flat()[:1], *flat((50, 64))], 10)
    with pytest.raises(InputError, match="no frames"):
        movies.write_mp4(path, [], 10)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["movie.mp4"]


@pytest.mark.parametrize(("name", "fps", "quality", "match"), [
    ("movie.avi", 10, 20, "ends in .mp4"), ("movie.mp4", 0, 20, "fps"),
    ("movie.mp4", float("nan"), 20, "fps"), ("movie.mp4", 10, 52, "quality")])
def test_wrong_arguments_are_named(tmp_path, name, fps, quality, match):
    with pytest.raises(InputError, match=match):
        movies.write_mp4(tmp_path / name, flat(), fps, quality=quality)
    assert not list(tmp_path.iterdir())
