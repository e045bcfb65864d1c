"""Movies can be read again, by browsers too, and a movie that fails leaves nothing behind."""

from fractions import Fraction

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
    assert (video.rate, video.aspect) == (12.5, 1)
    for frame, colour in zip(video.frames(), COLOURS):
        assert np.abs(frame[: size[0], : size[1]].astype(int) - colour).max() <= 6
    with av.open(str(path)) as container:  # what browsers play
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt, context.colorspace) == ("h264", "yuv420p", 6)
    assert 0 < path.read_bytes().index(b"moov") < path.read_bytes().index(b"mdat")


def test_a_side_of_odd_length_repeats_its_edge(tmp_path):
    frame = np.tile(np.linspace(20, 235, 41, dtype=np.uint8)[None, :, None], (41, 1, 3))
    path = movies.write_mp4(tmp_path / "movie.mp4", [frame] * 3, 10)
    last = videos.open_video(path).read(0).astype(int)
    assert np.abs(last[:, 41] - frame[0, 40]).max() <= 8 and np.abs(last[41, :41] - frame[40]).max() <= 8


@pytest.mark.parametrize(("stated", "rate"), [
    (29.97, 29.97), (24000 / 1001, 24000 / 1001), (0.1, 0.1), (60, 60), (1 / 600, 0.1), (90_000, 1000),
    (float("inf"), 1000), (0, 0.1), (float("nan"), 0.1)])
def test_rates_are_kept_and_those_that_no_player_has_are_changed_with_a_note(tmp_path, capsys, stated, rate):
    aspect = Fraction(64, 45)
    video = videos.open_video(movies.write_mp4(tmp_path / "movie.mp4", flat((16, 16)), stated, aspect))
    assert video.rate == pytest.approx(rate, rel=1e-4) and video.aspect == aspect
    assert ("movie.mp4" in capsys.readouterr().out) == (stated != rate)


def test_what_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = movies.write_mp4(tmp_path / "movie.mp4", flat(), 10)
    before = path.read_bytes()
    with pytest.raises(InputError, match="frame 1"):
        movies.write_mp4(path, [*flat()[:1], *flat((50, 64))], 10)
    with pytest.raises(InputError, match="16386x2"):
        movies.write_mp4(path, [np.zeros((2, 16386, 3), np.uint8)], 10)
    with pytest.raises(InputError, match="no frames"):
        movies.write_mp4(path, [], 10)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["movie.mp4"]
