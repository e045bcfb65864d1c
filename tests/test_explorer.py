"""The explorer without a browser: packed features, errors, the saved page."""

import base64
import gzip
import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dulvos.encoder import LAYERS
from dulvos.errors import InputError
from dulvos.widgets import explorer as widgets
from tests.oracles import write_textures


class Patches(nn.Module):
    """An untrained encoder: random projections of patches, cut as a vision transformer does."""

    def __init__(self, stride: int, channels: int = 40):
        super().__init__()
        self.multiple, self.project = stride, nn.Conv2d(3, channels, stride, stride)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.project(images)


def low_rank(cells: int, channels: int, rank: int = 24) -> torch.Tensor:
    """Features as networks have them: with a mean, and mostly in the first components."""
    generator = torch.Generator().manual_seed(cells)
    spread = torch.randn(cells, rank, generator=generator) * torch.logspace(0, -2, rank)
    axes, mean = (torch.randn(size, channels, generator=generator) for size in (rank, 1))
    return F.normalize(spread @ axes + mean, dim=1)


@pytest.mark.parametrize("cells, channels", [(500, 200), (40, 20), (300, 4)])
def test_packed_cosines_are_right_within_the_error_that_is_told(cells, channels):
    features = low_rank(cells, channels)
    packed = widgets.pack(features, 64)
    assert packed.codes.dtype == np.int8 and packed.codes.shape[1] % 16 == 0 and packed.codes.shape[1] <= 64
    off = np.abs(np.stack([packed.cosines(cell) for cell in range(cells)]) - (features @ features.T).numpy())
    assert np.quantile(off, 0.99) < 1.5 * packed.error and np.quantile(off, 0.9) < packed.error < 0.02
    errors = [widgets.pack(low_rank(500, 200, rank=100), channels).error for channels in (16, 48, 128)]
    assert errors[0] > 1.5 * errors[1] > 1.5 * errors[2], "fewer channels tell less"


@pytest.mark.parametrize("given, indices", [
    ((24, 5, 0, 4), (0, 4, 8, 12, 16)), ((24, 5, 20, 4), (7, 11, 15, 19, 23)),
    ((10, 5, 3, 100), (1, 3, 5, 7, 9)), ((3, 3, 2, 9), (0, 1, 2)), ((7, 1, 6, 4), (6,))])
def test_a_clip_fits_into_its_video(given, indices):
    assert widgets.clip_indices(*given) == indices


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_textures(tmp_path_factory.mktemp("clips"), ["clip"], 9, (56, 70)) / "clip"


@pytest.mark.parametrize("stride, cells", [(4, (14, 18)), (8, (7, 9)), (14, (4, 5)), (16, (4, 4))])
def test_the_geometry_is_the_encoder_s(clip, stride, cells):
    """Patches tile the frame, whose sides of 56 and 70 pixels become multiples of the patch."""
    explorer = widgets.Explorer(clip, ["random", Patches(stride)], layer="res3", frames=2)
    (own, _), (patches, packed) = explorer.packed().values()
    assert (own["cells"], own["stride"], own["offset"]) == ((7, 9), [8, 8], [0, 0])
    assert patches["cells"] == cells and len(packed.codes) == 2 * cells[0] * cells[1]
    assert patches["stride"] == [56 / cells[0], 70 / cells[1]]
    assert patches["offset"] == [(56 / cells[0] - 1) / 2, (70 / cells[1] - 1) / 2]


def test_packed_features_are_those_of_the_frames_and_of_the_others(clip, tmp_path):
    other = write_textures(tmp_path, ["other"], 1, (32, 48)) / "other"
    encoder = Patches(8)
    explorer = widgets.Explorer(clip, [encoder], others=[other], frames=3, gap=3, layer="res3")
    [(head, packed)] = explorer.packed().values()
    assert explorer.indices == (0, 3, 6) and head["others"] == [(4, 6)]
    for video, start, cells in ((clip, 3, slice(63, 126)), (other, 0, slice(3 * 63, None))):
        alone = widgets.Explorer(video, [encoder], frames=1, start=start, layer="res3")
        [(_, expected)] = alone.packed().values()
        assert np.abs(packed.cosines(cells.start)[cells] - expected.cosines(0)).max() < 0.02


def test_an_encoder_may_stand_alone_and_functions_have_their_names(clip):
    def ones(images):
        return torch.ones(len(images), 3, 7, 9)

    def ramp(images):
        return torch.arange(189.0).view(3, 7, 9).expand(len(images), -1, -1, -1)

    assert list(widgets.Explorer(clip, "random", layer="res3", frames=2).packed()) == ["random"]
    assert list(widgets.Explorer(clip, [ones, ramp], frames=2).packed()) == ["ones", "ramp"]
    assert len(widgets.Explorer(clip, [ones, ones], frames=2).packed()) == 2, "the second is not lost"


@pytest.mark.parametrize("options, line", [
    ({"layer": "res9"}, "res9"), ({"frames": 10}, "1 to 9"), ({"gap": 0}, "gap"),
    ({"tau": 0.0}, "tau"), ({"n": 40}, "'n'"), ({"shown": 1}, "shown"), ({"x": "a"}, "'x'"),
    ({"show": "all"}, "show"), ({"encoders": ()}, "one or two"), ({"encoders": ["nowhere"]}, "nowhere"),
    ({"video": "nowhere.mp4"}, "nowhere.mp4"), ({"channels": 40}, "channels"),
    ({"others": ["nowhere"]}, "nowhere"),
])
def test_a_wrong_input_is_one_clear_line(clip, options, line):
    with pytest.raises(InputError, match=line):
        widgets.Explorer(**{"video": clip, "encoders": ["random"], "layer": "res3", **options})


def test_a_layer_is_computed_when_the_browser_asks_for_it(clip):
    explorer, sent = widgets.Explorer(clip, ["random"], layer="res3", frames=2), []
    explorer.send = lambda content, buffers=None: sent.append((content, buffers))
    for want in ("clip", "key", "res9"):
        explorer.receive({"want": want})
    (head, files), (features, (codes, bias)), (failure, _) = sent
    assert head["layers"] == LAYERS and head["numbers"] == (0, 4) and len(files) == 2 + 2
    assert features["layer"] == "key"
    assert len(codes) == 2 * 63 * features["channels"] and len(bias) == 2 * 63 * 4
    assert failure["kind"] == "error" and "res9" in failure["text"]


def test_a_saved_page_loads_nothing_from_elsewhere(clip, tmp_path):
    explorer = widgets.Explorer(clip, ["random"], layer="res3", frames=2)
    page = explorer.save_html(tmp_path / "new" / "page.html", layers=("res3", "key")).read_text()
    words = re.sub('id="saved">[^<]*', "", page).replace("http-equiv", "")  # without the base64
    assert "http" not in words and "src=" not in words and "import " not in words
    assert explorer.save_html(tmp_path / "again.html", layers=("res3", "key")).read_text() == page


def test_a_saved_page_begins_with_a_layer_that_it_holds(clip, tmp_path):
    explorer = widgets.Explorer(clip, ["random"], layer="res3", frames=2)
    page = explorer.save_html(tmp_path / "page.html", layers=["key"]).read_text()
    data = page.partition('id="saved">')[2].partition("<")[0]
    assert json.loads(gzip.decompress(base64.b64decode(data)).partition(b"\n")[0])["view"]["layer"] == "key"
