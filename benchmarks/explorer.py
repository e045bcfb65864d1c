"""Hovers in the explorer, in a browser: `python -m benchmarks.explorer [--hovers 200]`.

At 5 frames of 256x256 and at 21 frames of 854x480, with two encoders side by side and 128 channels. Frames
are noise and features random numbers; the time does not depend on them. The mouse jumps to random cells.

    computed: cosines, best matches and all pictures of a hover, as the page measures it.
    shown: from the mouse's event until the browser has painted; at 60 frames a second no less than 17 ms.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from playwright.sync_api import sync_playwright
from torch import nn

from benchmarks.measure import report
from dulvos.encoder import STRIDE
from dulvos.widgets import Explorer
from tests.browser import FLAGS, find_browser

SIZES = ((5, (256, 256)), (21, (480, 854)))  # frames, (H, W)
READY = "document.getElementById('explorer').dulvos?.state().ready"
HOVER = """async ([frames, cells, hovers]) => {
  const explorer = document.getElementById("explorer"), pictures = explorer.querySelectorAll(".strip canvas");
  const painted = () => new Promise((done) => requestAnimationFrame(() => {
    const channel = new MessageChannel();
    channel.port1.onmessage = done;
    channel.port2.postMessage(0);
  }));
  const draw = (count) => Math.floor(Math.random() * count), times = [];
  for (let i = 0; i < hovers + 20; i++) {
    const picture = pictures[draw(frames)], box = picture.getBoundingClientRect();
    const [y, x] = cells.map((count) => (draw(count) + 0.5) / count);
    const place = {clientX: box.left + x * box.width, clientY: box.top + y * box.height, bubbles: true};
    const started = performance.now();
    picture.dispatchEvent(new PointerEvent("pointermove", place));
    await painted();
    times.push([explorer.dulvos.state().ms, performance.now() - started]);
  }
  return times.slice(20); // the first ones compile
}"""


class Noise(nn.Module):
    """Random features of the encoder's shape."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.unused, self.generator = nn.Parameter(torch.zeros(1)), torch.Generator().manual_seed(seed)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        cells = [-(-side // STRIDE) for side in images.shape[2:]]
        return torch.randn(len(images), 512, *cells, generator=self.generator)


class OtherNoise(Noise):
    """A second one, with a name of its own."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hovers", type=int, default=200)
    hovers, generator = parser.parse_args().hovers, np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as root, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=list(FLAGS))
        for frames, (height, width) in SIZES:
            folder = Path(root) / str(frames)
            folder.mkdir()
            for t in range(frames):
                coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), np.uint8))
                coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{t:05d}.jpg")
            explorer = Explorer(folder, [Noise(0), OtherNoise(1)], frames=frames, gap=1, shorter_side=0)
            page = browser.new_page(viewport={"width": 1280, "height": 1000})
            page.goto(explorer.save_html(folder / "explorer.html").as_uri())
            page.wait_for_function(READY)
            cells = next(iter(explorer.packed().values()))[0]["cells"]
            times = np.array(page.evaluate(HOVER, [frames, cells, hovers]))
            for name, values in zip(("computed", "shown"), times.T):
                case = f"{frames} frames of {width}x{height}, two encoders"
                report(f"hover, {name}", case, {"ours": values.tolist()}, {}, "ms")
                middle, late = np.quantile(values, (0.5, 0.95))
                print(f"{case}, {name}: p50 {middle:.1f} ms, p95 {late:.1f} ms")
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
