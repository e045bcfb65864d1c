"""The explorer without a browser: what it packs, refuses and saves, and its JavaScript under node."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from dulvos import correspondence
from dulvos.encoder import LAYERS
from dulvos.errors import InputError

widgets = pytest.importorskip("dulvos.widgets.explorer", exc_type=ImportError)  # without anywidget
T, CELLS, OTHERS, N, TAU = 3, (7, 9), ((6, 8), (7, 5)), 4, 0.1


def write_clip(folder: Path, frames: int, size: tuple[int, int]) -> Path:
    """A clip whose frames are one coarse picture that moves by 2 pixels a frame."""
    folder.mkdir(parents=True)
    height, width = size
    coarse = np.random.default_rng(len(folder.name)).integers(0, 256, (8, 8, 3), np.uint8)
    picture = Image.fromarray(coarse).resize((width + 2 * frames, height), Image.Resampling.BICUBIC)
    for t in range(frames):
        picture.crop((2 * t, 0, 2 * t + width, height)).save(folder / f"{t:05d}.png")
    return folder


class Patches(nn.Module):
    """An encoder without training: random projections of patches, as a vision transformer cuts them."""

    def __init__(self, stride: int, channels: int = 40):
        super().__init__()
        self.multiple, self.project = stride, nn.Conv2d(3, channels, stride, stride)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.project(images)


def low_rank(cells: int, channels: int, rank: int = 24) -> torch.Tensor:
    """Features with a mean, as those of networks have, whose first components hold most."""
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
    return write_clip(tmp_path_factory.mktemp("clips") / "clip", frames=9, size=(56, 70))


@pytest.mark.parametrize("stride, cells", [(4, (14, 18)), (8, (7, 9)), (14, (4, 5)), (16, (4, 4))])
def test_the_geometry_is_the_encoder_s(clip, stride, cells):
    """Patches tile the frame, whose sides of 56 and 70 become multiples of theirs."""
    explorer = widgets.Explorer(clip, ["random", Patches(stride)], layer="res3", frames=2)
    (own, _), (patches, packed) = explorer.packed().values()
    assert (own["cells"], own["stride"], own["offset"]) == ((7, 9), [8, 8], [0, 0])
    assert patches["cells"] == cells and len(packed.codes) == 2 * cells[0] * cells[1]
    assert patches["stride"] == [56 / cells[0], 70 / cells[1]]
    assert patches["offset"] == [(56 / cells[0] - 1) / 2, (70 / cells[1] - 1) / 2]


def test_packed_features_are_those_of_the_frames_and_of_the_others(clip, tmp_path):
    other = write_clip(tmp_path / "other", frames=1, size=(32, 48))
    encoder = Patches(8)
    explorer = widgets.Explorer(clip, encoder, others=[other], frames=3, gap=3, layer="res3")
    [(head, packed)] = explorer.packed().values()
    assert explorer.indices == (0, 3, 6) and head["others"] == [(4, 6)]
    for video, start, cells in ((clip, 3, slice(63, 126)), (other, 0, slice(3 * 63, None))):
        alone = widgets.Explorer(video, encoder, frames=1, start=start, layer="res3")
        [(_, expected)] = alone.packed().values()
        assert np.abs(packed.cosines(cells.start)[cells] - expected.cosines(0)).max() < 0.02


@pytest.mark.parametrize("options, line", [
    ({"layer": "res9"}, "res3, res4, key"), ({"frames": 10}, "1 to 9"), ({"gap": 0}, "gap"),
    ({"tau": 0.0}, "tau"), ({"n": 40}, "n"), ({"shown": 1}, "shown"), ({"x": "a"}, "x"),
    ({"show": "all"}, "show"), ({"encoders": ()}, "one or two"), ({"encoders": "nowhere"}, "nowhere"),
    ({"video": "nowhere.mp4"}, "nowhere.mp4"), ({"channels": 40}, "channels"),
    ({"others": ["nowhere"]}, "nowhere"),
])
def test_a_wrong_input_is_one_clear_line(clip, options, line):
    with pytest.raises(InputError, match=line) as error:
        widgets.Explorer(**{"video": clip, "encoders": "random", "layer": "res3", **options})
    assert "\n" not in str(error.value)


def test_a_layer_is_computed_when_the_browser_asks_for_it(clip):
    explorer, sent = widgets.Explorer(clip, "random", layer="res3", frames=2), []
    explorer.send = lambda content, buffers=None: sent.append((content, buffers))
    for want in ("clip", "key", "res9"):
        explorer._handle_custom_msg({"want": want}, [])
    (head, files), (features, (codes, bias)), (failure, _) = sent
    assert head["layers"] == LAYERS and head["numbers"] == (0, 4) and len(files) == 2 + 2
    assert features["layer"] == "key"
    assert len(codes) == 2 * 63 * features["channels"] and len(bias) == 2 * 63 * 4
    assert failure["kind"] == "error" and "res9" in failure["text"]


def test_a_saved_page_loads_nothing_from_elsewhere(clip, tmp_path):
    explorer = widgets.Explorer(clip, "random", layer="res3", frames=2)
    page = explorer.save_html(tmp_path / "new" / "page.html", layers=("res3", "key")).read_text()
    assert "http" not in page.replace("http-equiv", "") and "src=" not in page and "import " not in page
    assert explorer.save_html(tmp_path / "again.html", layers=("res3", "key")).read_text() == page


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """Runs a function's body on `data`, with explorer.js imported as `js`, and gives back what it returns."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("node is not installed: apt-get install nodejs")
    folder = tmp_path_factory.mktemp("node")
    shutil.copy(widgets.SCRIPT, folder / "explorer.mjs")

    def run(body: str, **data):
        script = f"""import * as js from "./explorer.mjs"; import fs from "node:fs";
            const {{{", ".join(data)}}} = JSON.parse(fs.readFileSync(0, "utf8"));
            const list = (x) => ArrayBuffer.isView(x) ? Array.from(x) : x;
            console.log(JSON.stringify(await (async () => {{{body}}})(), (key, value) => list(value)));"""
        (folder / "test.mjs").write_text(script)
        done = subprocess.run([program, "test.mjs"], cwd=folder, input=json.dumps(data), text=True,
                              capture_output=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout)

    return run


class CASE:
    """Features of a clip and of other clips' first frames, exact and packed."""

    features = low_rank(T * CELLS[0] * CELLS[1] + sum(h * w for h, w in OTHERS), 60)
    packed = widgets.pack(features, 48)
    own = T * CELLS[0] * CELLS[1]
    head = {"cells": CELLS, "frames": T, "others": OTHERS, "channels": packed.codes.shape[1],
            "stride": [8, 8], "offset": [0, 0], "scale": packed.scale}
    data = {"head": head, "codes": packed.codes.tolist(), "bias": packed.bias.tolist()}
    clip = features[:own].view(T, *CELLS, -1).movedim(3, 1)  # [T, K, h, w]
    LOAD = "const f = new js.Features(head, Int8Array.from(codes.flat()), Float32Array.from(bias));"

    @classmethod
    def anchors(cls, n: int, clips: str) -> torch.Tensor:
        starts = np.cumsum([cls.own, *(h * w for h, w in OTHERS)]).tolist()
        grids = [(0, CELLS), *(zip(starts, OTHERS) if clips == "all" else ())]
        places = [start + correspondence.anchor_grid(h, w, n) @ torch.tensor([w, 1])
                  for start, (h, w) in grids]
        return cls.features[torch.cat(places)]


@pytest.mark.parametrize("cell", [40, T * 63 - 1, T * 63 + 5])
def test_cosines_are_those_of_dulvos_within_the_error(node, cell):
    shown = np.array(node(CASE.LOAD + "return f.cosines(cell);", cell=cell, **CASE.data))
    exact = (CASE.features[: CASE.own] @ CASE.features[cell]).numpy()
    packed = CASE.packed.cosines(cell)[: CASE.own]
    if cell < CASE.own:
        packed[cell] = 1  # the browser knows
    assert np.allclose(shown, packed, atol=1e-6)
    assert np.quantile(np.abs(shown - exact), 0.95) < CASE.packed.error


@pytest.mark.parametrize("clips", ["own", "all"])
def test_anchors_compete_as_in_dulvos(node, clips):
    """Labels, shares of the dominant anchors and of each anchor: Eqs. 1 and 2."""
    body = CASE.LOAD + """const all = await js.compete(f, n, clips === "all", tau);
        const each = f.anchors(n, false).map((anchor) => js.shares(f.cosines(anchor), all.sum, tau));
        return {label: all.label, dominant: js.shares(all.best, all.sum, tau), each: each.map(list)};"""
    found = node(body, n=N, tau=TAU, clips=clips, **CASE.data)
    labels, confidence = correspondence.dominant_anchors(CASE.clip, CASE.anchors(N, clips), TAU)
    slack = 4 * CASE.packed.error / TAU  # how far the rounding of a cosine may move a share, relatively
    clear = torch.einsum("nk,tkhw->tnhw", CASE.anchors(N, clips), CASE.clip).topk(2, 1).values
    clear = (clear[:, 0] - clear[:, 1] > 4 * CASE.packed.error).numpy().ravel()  # no other anchor is as good
    assert clear.mean() > 0.5 and (np.array(found["label"]) == labels.numpy().ravel())[clear].all()
    assert np.allclose(found["dominant"], confidence.numpy().ravel(), rtol=slack)
    logits = torch.einsum("nk,tkhw->tnhw", CASE.anchors(N, clips), CASE.clip) / TAU
    exact = logits.softmax(1)[:, : N * N].movedim(1, 0).flatten(1).numpy()
    assert np.allclose(found["each"], exact, rtol=slack, atol=1e-4)


def test_a_cell_stands_for_the_nearest_anchor_or_beyond_the_reference_for_its_dominant_one(node):
    body = CASE.LOAD + """const {own: {label}} = await js.compete(f, n, true, tau);
        return [Array.from({length: f.own}, (_, cell) => f.anchorOf(cell, n, label)), label];"""
    found, label = map(np.array, node(body, n=N, tau=TAU, **CASE.data))
    grid = correspondence.anchor_grid(*CELLS, N).float()
    cells = torch.cartesian_prod(torch.arange(7), torch.arange(9)).float()
    apart = torch.cdist(cells, grid)
    assert np.allclose(apart.min(1).values, apart[torch.arange(63), torch.from_numpy(found[:63])])
    assert (found[63:] == label[63:]).all()


@pytest.mark.parametrize("height, width, n", [(60, 107, 16), (7, 9, 3), (5, 5, 5), (9, 4, 1)])
def test_anchor_grids_are_those_of_dulvos(node, height, width, n):
    exact = correspondence.anchor_grid(height, width, n) @ torch.tensor([width, 1])
    assert node("return js.grid(height, width, n);", height=height, width=width, n=n) == exact.tolist()


def test_best_matches_and_the_ends_of_the_scale(node):
    values = torch.rand(4, 6, 5, generator=torch.Generator().manual_seed(0)) * 2 - 1
    values *= torch.tensor([0.9, 0.5, 0.7, 0.6])[:, None, None]
    body = """const x = Float32Array.from(values), best = js.bestMatches(x, 30, 10);
        return [best, js.stretch(x, best, 30, 0), js.stretch(x.subarray(0, 30), best.slice(0, 1), 30, 0)];"""
    best, ends, alone = node(body, values=values.flatten().tolist())
    assert best == (correspondence.best_matches(values, 10)[0] @ torch.tensor([5, 1])).tolist()
    assert ends["low"] == pytest.approx(float(values.median()), abs=1e-3)
    assert ends["high"] == pytest.approx(float(values[1:].max()))  # the cell's own frame does not count
    assert alone["high"] == pytest.approx(float(values[0].max()))


@pytest.mark.parametrize("stride, offset", [((8, 8), (0, 0)), ((14, 15), (6.5, 7)), ((4, 4), (1.5, 1.5))])
def test_cells_and_pixels_are_each_other_s_inverse(node, stride, offset):
    body = """const head = {cells: [5, 6], frames: 1, others: [], channels: 16, scale: 1, stride, offset};
        const f = new js.Features(head, new Int8Array(480), new Float32Array(30));
        const there = (cell) => [f.pixelOf(cell), f.cellAt(...f.pixelOf(cell)), f.cellAt(-99, 999)];
        return Array.from({length: 30}, (_, cell) => there(cell));"""
    for cell, (pixel, again, outside) in enumerate(node(body, stride=stride, offset=offset)):
        assert pixel == [offset[0] + stride[0] * (cell // 6) + 0.5, offset[1] + stride[1] * (cell % 6) + 0.5]
        assert (again, outside) == (cell, 5)
