"""Hovers in the explorer, in a browser: `python -m benchmarks.explorer [--hovers 200]`.

At 5 frames of 256x256 and at 21 frames of 854x480, with two encoders side by side and 128 channels. Frames
are noise and features random numbers; the time does not depend on them. The mouse jumps to random cells.

    computed: cosines, best matches and all pictures of a hover, as the page measures it.
    processor: processor time of the page's thread for all of it, whatever else the machine does.
    shown: from the mouse's event until the browser has painted.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from playwright.sync_api import Page
from torch import nn

from benchmarks.measure import report, thread_clock
from dulvos.encoder import STRIDE
from dulvos.widgets import Explorer
from tests.browser import start

SIZES = ((5, (256, 256)), (21, (480, 854)))  # frames, (H, W)
READY = "document.getElementById('explorer').dulvos?.state().ready"
HOVER = """async ([frame, y, x]) => {
  const picture = document.querySelectorAll(".strip canvas")[frame], box = picture.getBoundingClientRect();
  const place = {clientX: box.left + x * box.width, clientY: box.top + y * box.height, bubbles: true};
  const started = performance.now();
  picture.dispatchEvent(new PointerEvent("pointermove", place));
  await new Promise((done) => requestAnimationFrame(() => {
    const painted = new MessageChannel();
    painted.port1.onmessage = done;
    painted.port2.postMessage(0);
  }));
  return [document.getElementById("explorer").dulvos.state().ms, performance.now() - started];
}"""


class Noise(nn.Module):
    """Random features of the encoder's shape."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.stride, self.unused = name, STRIDE, nn.Parameter(torch.zeros(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.randn(len(images), 512, *(-(-side // STRIDE) for side in images.shape[2:]))


def hover(page: Page, frames: int, hovers: int) -> np.ndarray:
    """(hovers, 3) milliseconds: computed, processor, shown."""
    clock, generator, times = thread_clock(page), np.random.default_rng(0), []
    for _ in range(hovers + 20):  # the page's script is still being compiled during the first ones
        place = [int(generator.integers(frames)), float(generator.random()), float(generator.random())]
        before, (computed, shown), after = clock(), page.evaluate(HOVER, place), clock()
        times.append((computed, after - before, shown))
    return np.array(times[20:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hovers", type=int, default=200)
    hovers, generator = parser.parse_args().hovers, np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as root, start() as chromium:
        for frames, (height, width) in SIZES:
            folder = Path(root) / str(frames)
            folder.mkdir()
            for t in range(frames):
                coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), np.uint8))
                coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{t:05d}.jpg")
            explorer = Explorer(folder, [Noise("one"), Noise("two")], frames=frames, gap=1, shorter_side=0)
            page = chromium.context.new_page()
            page.goto(explorer.save_html(folder / "explorer.html").as_uri())
            page.wait_for_function(READY)
            case, times = f"{frames} frames of {width}x{height}, two encoders", hover(page, frames, hovers)
            report("hover, processor time", case, {"ours": times[:, 1].tolist()}, "ms")
            for name, values in zip(("computed", "processor", "shown"), times.T):
                middle, late = np.quantile(values, (0.5, 0.95))
                print(f"{case}, {name}: p50 {middle:.1f} ms, p95 {late:.1f} ms")
            page.close()


if __name__ == "__main__":
    main()
