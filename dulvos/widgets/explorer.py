"""The explorer: point at a cell of a clip and see in the browser where else its features are found."""

import base64
import gzip
import html
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import anywidget
import cv2
import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
import traitlets
from torch import Tensor, nn

from dulvos.checkpoints import load_encoder
from dulvos.devices import find_device
from dulvos.encoder import LAYERS, Encoder
from dulvos.errors import InputError
from dulvos.files import AnyPath, expand, write_file
from dulvos.inference import SegmentSettings, encode
from dulvos.study.figures import anchor_colours
from dulvos.videos import Video, open_video, shrink, shrunk_size

__all__ = ["Explorer", "Packed", "clip_indices", "pack"]

GREATEST_N = 16
SCRIPT = Path(__file__).with_name("explorer.js")
STYLE = SCRIPT.with_suffix(".css")
PAGE = SCRIPT.with_suffix(".html")  # for `str.format`


class Packed(NamedTuple):
    """Features k, packed for a browser: cos(k, q) ≈ bias_k + bias_q + scale · codes_k·codes_q.

    Fields:
        codes: (cells, C) int8, the first C principal components of k - m, where m is the mean of all k.
        bias: (cells,) float32, k·m - m·m / 2.
        scale: > 0.
        error: 99 % of the cosines differ from the exact ones by less than this.
    """

    codes: np.ndarray
    bias: np.ndarray
    scale: float
    error: float

    def cosines(self, cell: int) -> np.ndarray:
        """The cosines of a cell with all cells, (cells,) float32, as the browser computes them."""
        products = self.codes.astype(np.float32) @ self.codes[cell].astype(np.float32)
        return np.float32(self.bias[cell]) + self.bias + np.float32(self.scale) * products


def pack(features: Tensor, channels: int = 128) -> Packed:
    """Reduce features by principal component analysis and round them to int8.

    Arguments:
        features: (cells, K) float, L2-normalised over K.
        channels: number of components to keep, if there are so many.

    Raises:
        InputError: `channels` is not a multiple of 16 in [16, 128].
    """
    if channels not in range(16, 129, 16):
        raise InputError(f"channels must be a multiple of 16 between 16 and 128, not {channels!r}")
    mean = features.mean(0)
    centred = features - mean
    axes = torch.linalg.eigh((centred.T @ centred).double()).eigenvectors  # [K, K], the greatest last
    values = centred @ axes.flip(1)[:, :channels].to(features)
    values = F.pad(values, (0, -values.shape[1] % 16)).cpu()  # the browser needs a multiple of 16
    step = max(float(values.abs().max()), 1e-6) / 127
    bias = (features @ mean - mean @ mean / 2).cpu().numpy()
    packed = Packed((values / step).round().to(torch.int8).numpy(), bias, step**2, 0.0)
    drawn = torch.randint(len(features), (32,), generator=torch.Generator().manual_seed(0)).tolist()
    off = [np.abs(packed.cosines(cell) - (features @ features[cell]).cpu().numpy()) for cell in drawn]
    return packed._replace(error=float(np.quantile(off, 0.99)))


def clip_indices(length: int, frames: int, start: int, gap: int) -> tuple[int, ...]:
    """Frame numbers start, start + gap, ...; a gap or start that is too large for the video is reduced.

    Raises:
        InputError: the video has fewer frames, or a number is out of range.
    """
    if not 1 <= frames <= length or start < 0 or gap < 1:
        raise InputError(f"frames={frames}, start={start}, gap={gap}: frames must be in 1 to {length} (the "
                         "video's), start >= 0 and gap >= 1")
    gap = max(1, min(gap, (length - 1) // max(1, frames - 1)))
    start = min(start, length - 1 - gap * (frames - 1))
    return tuple(range(start, start + gap * frames, gap))


class Explorer(anywidget.AnyWidget):
    """A clip in a notebook: point at a cell and see where else its features are found.

        Explorer("clip.mp4")

    The browser receives frames and features once and computes the rest (explorer.js). The fields follow what
    the user does there; setting a field changes the view.

    Arguments:
        video: a folder of frames, a video file, or a `Video`.
        encoders: one or two, each a name for `dulvos.load_encoder` or an encoder for `dulvos.encode`.
        others: videos whose first frames give the anchors of other clips.
        frames, start, gap: number of frames T, the first frame, the step between frames.
        shorter_side: frames are reduced to this for the encoder; 0 keeps them.
        channels: a multiple of 16 up to 128; fewer make the data smaller and less exact (see `pack`).
        device: "cpu", "cuda", ...; None chooses a CUDA GPU if there is one.
        seed: of random features.
        view: initial values of the fields.

    Fields:
        frame, y, x: the cell: number of a frame in the clip, row and column in the first encoder's map.
        time: number of the large frame in the clip.
        layer, tau, n: res3, res4 or key (other encoders have one layer); τ; N.
        show: "affinity" (cosines with the cell), "share" (every cell's share of the chosen cell's anchor,
            Eq. 1) or "dominant" (every cell's dominant anchor, Eq. 2).
        clips: whose anchors compete: "own" (N²), or "all" (B·N², as in Eq. 3).
        pinned: whether the cell stays when the mouse moves.

    Raises:
        InputError: an unreadable video; an unknown encoder, layer or field; a clip that is too long.
    """

    FIELDS = ("frame", "y", "x", "time", "layer", "tau", "n", "show", "clips", "pinned")
    _esm, _css = SCRIPT, STYLE
    frame, y, x, time = (traitlets.Int(0, min=0).tag(sync=True) for _ in range(4))
    layer = traitlets.Unicode("res4").tag(sync=True)
    tau = traitlets.Float(0.05, min=0.01).tag(sync=True)
    n = traitlets.Int(8, min=1, max=GREATEST_N).tag(sync=True)
    show = traitlets.Enum(("affinity", "share", "dominant"), "affinity").tag(sync=True)
    clips = traitlets.Enum(("own", "all"), "own").tag(sync=True)
    pinned = traitlets.Bool(False).tag(sync=True)

    def __init__(self, video: AnyPath | Video,
                 encoders: str | Callable | Sequence[str | Callable] = ("davis2016", "random"), *,
                 others: Sequence[AnyPath | Video] = (), frames: int = 5, start: int = 0,
                 gap: int = 4, shorter_side: int = 256, channels: int = 128, device: str | None = None,
                 seed: int = 0, **view: object) -> None:
        encoders = [encoders] if isinstance(encoders, str) or callable(encoders) else list(encoders)
        if not 1 <= len(encoders) <= 2:
            raise InputError(f"the explorer shows one or two encoders, not {len(encoders)}")
        if unknown := set(view) - set(self.FIELDS):
            raise InputError(f"unknown field {sorted(unknown)[0]!r}; the fields are {', '.join(self.FIELDS)}")
        try:
            super().__init__(**view)
        except traitlets.TraitError as error:
            raise InputError(str(error).splitlines()[0]) from None
        self.video, *self.others = (v if isinstance(v, Video) else open_video(v) for v in (video, *others))
        self.indices = clip_indices(len(self.video), frames, start, gap)
        self._encoders = {}
        for encoder in encoders:
            network = load_encoder(encoder, seed=seed) if isinstance(encoder, str) else encoder
            if isinstance(network, nn.Module):
                network = network.to(find_device(device))
            label = _label(encoder)
            self._encoders[label + " (2)" * (label in self._encoders)] = network
        choice = any(isinstance(network, Encoder) for network in self._encoders.values())
        self._layers = LAYERS if choice else (self.layer,)  # other encoders have one, whatever its name
        self._side, self._channels, self._packed = shorter_side, channels, {}
        self.packed()  # raises here, not when the browser asks
        self.on_msg(lambda _, content, __: self.receive(content))

    def packed(self, layer: str = "") -> dict[str, tuple[dict, Packed]]:
        """Each encoder's features of a layer ("": the one shown), computed when they are first asked for.

        Cells are ordered by frame (the clip's, then the others' first ones), row and column. The dictionary
        has the maps' sizes in cells, `cells` (h, w) and `others` [(h, w), ...], and, in pixels (y, x) of the
        reduced frame, `stride` (from cell to cell) and `offset` (the middle of the first cell).
        """
        layer = layer or self.layer
        settings = SegmentSettings(layer=layer, shorter_side=self._side)
        for name, encoder in self._encoders.items():
            if (name, layer) not in self._packed:
                frames = [*map(self.video.read, self.indices), *(other.read(0) for other in self.others)]
                maps = [next(encode(encoder, [frame], settings)) for frame in frames]  # sizes may differ
                cells = [tuple(features.shape[1:]) for features in maps]
                head = {"cells": cells[0], "others": cells[len(self.indices):],
                        **_geometry(encoder, shrunk_size(self.video.size, self._side), cells[0])}
                packed = pack(torch.cat([features.flatten(1).T.float() for features in maps]), self._channels)
                self._packed[name, layer] = head, packed
        return {name: self._packed[name, layer] for name in self._encoders}

    def save_html(self, path: AnyPath, layers: Sequence[str] = ()) -> Path:
        """Write the explorer as one HTML file, which needs no kernel, server or network.

        It holds the features of these layers; () takes the one that is shown.
        """
        layers = list(layers) or [self.layer]
        messages = [message for want in ("clip", *layers) for message in self._messages(want)]
        messages[0][0]["layers"] = layers
        heads = [{"head": head, "sizes": list(map(len, buffers))} for head, buffers in messages]
        view = {name: getattr(self, name) for name in self.FIELDS}
        if self.layer not in layers:
            view["layer"] = layers[0]
        header = json.dumps({"view": view, "messages": heads}) + "\n"
        parts = [header.encode(), *(part for _, buffers in messages for part in buffers)]
        text = base64.b64encode(gzip.compress(b"".join(parts), mtime=0)).decode()
        title = html.escape(f"{self.video.name}: where are features found again?")
        page = PAGE.read_text().format(title=title, style=STYLE.read_text(), data=text,
                                       script=SCRIPT.read_text())
        return write_file(expand(path), page)

    def receive(self, content: Mapping[str, str]) -> None:
        """Send what the browser wants ("want": "clip" or a layer), or what is wrong."""
        try:
            for head, buffers in self._messages(content["want"]):
                self.send(head, buffers)
        except (InputError, RuntimeError, OSError) as error:
            self.send({"kind": "error", "text": str(error).partition("\n")[0]})

    def _messages(self, want: str) -> list[tuple[dict, list[bytes]]]:
        """What the browser wants, "clip" or a layer: descriptions, each with its bytes."""
        if want != "clip":
            return [({"kind": "features", "layer": want, "encoder": name, "frames": len(self.indices), **head,
                      "channels": packed.codes.shape[1], "scale": packed.scale, "error": packed.error},
                     [packed.codes.tobytes(), packed.bias.tobytes()])
                    for name, (head, packed) in self.packed(want).items()]
        pictures = [shrink(self.video.read(index), self._side)[..., ::-1] for index in self.indices]
        jpegs = [cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 88])[1] for picture in pictures]
        viridis = matplotlib.colormaps["viridis"](range(256), bytes=True)  # RGBA
        viridis[:, 3] = 217 * np.linspace(0, 1, 256)**0.7  # low values are transparent
        grids = np.concatenate([anchor_colours(n) for n in range(1, GREATEST_N + 1)])
        anchors = np.pad(grids, ((0, 0), (0, 1)))  # alpha 0: the browser sets it
        head = {"kind": "clip", "size": pictures[0].shape[:2], "numbers": self.indices,
                "encoders": list(self._encoders), "layers": self._layers}
        return [(head, [part.tobytes() for part in (viridis, anchors, *jpegs)])]


def _geometry(encoder: Callable, size: tuple[int, int], cells: tuple[int, int]) -> dict[str, list[float]]:
    """`stride` and `offset` of cells: convolutions centre them at multiples of the stride, patches tile."""
    if getattr(encoder, "stride", None) and getattr(encoder, "multiple", 1) == 1:
        return {"stride": [encoder.stride] * 2, "offset": [0, 0]}
    stride = [side / count for side, count in zip(size, cells)]
    return {"stride": stride, "offset": [(step - 1) / 2 for step in stride]}


def _label(encoder: str | Callable) -> str:
    if isinstance(encoder, str):
        return "/".join(Path(encoder).parts[-2:])  # a file's folder and name
    return getattr(encoder, "name", getattr(encoder, "__name__", type(encoder).__name__))
