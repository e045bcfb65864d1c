"""From the mouse button to the changed pixels in a real browser: `python -m benchmarks.clicks [--clicks 10]`.

Clicks the explorer at 5 frames of 256x256 and at 21 frames of 854x480, two encoders side by side, and the painter at 854x480,
in a JupyterLab of its own (see tests/browser.py). Pixels are of noise and features random numbers of the right shapes, since a
click does not encode. A time ends when the canvas has changed for the last time.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from pathlib import Path

from nbformat.v4 import new_code_cell, new_notebook

from benchmarks.explorer import SETTINGS, make_data
from tests import browser

EXPLORE = """from benchmarks.explorer import random_features
from dulvos.interactive.explorer import Explorer
widget = Explorer({folder!r}, shorter_side=0, features=random_features, beside="random", frames={frames}, gap=1)
widget"""
PAINT = """import numpy as np
from dulvos.interactive.painter import Painter
widget = Painter(np.random.default_rng(0).integers(0, 256, (480, 854, 3), np.uint8))
widget"""


def measure(lab: browser.Lab, name: str, code: str, places: list[str], seconds: str) -> None:
    """Click places of the widget that a cell shows, and print what it took; `seconds` is the kernel's own part, if it tells."""
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    seen, kernels = [], []
    with lab.open(new_notebook(cells=[new_code_cell(code)], metadata=kernel), "clicks") as notebook:
        notebook.run(120)
        if notebook.red_cells():
            raise RuntimeError(notebook.red_cells()[0])
        canvas = browser.canvas("widget")
        for place in places:
            times = notebook.click(canvas, *notebook.evaluate(f"widget.pixel_of{place}"))
            if times:  # the same cell twice changes nothing
                seen.append(times[1])
                kernels.append(1e3 * notebook.evaluate(seconds))
    print(f"{name}: median {statistics.median(seen):.0f} ms, greatest {max(seen):.0f} ms, of {len(seen)} clicks"
          + f"; in the kernel {statistics.median(kernels):.0f} ms" * any(kernels), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clicks", type=int, default=10)
    clicks, draw = parser.parse_args().clicks, random.Random(0)
    if lacking := browser.lacking():
        raise SystemExit(lacking)
    with tempfile.TemporaryDirectory() as root, browser.serve(Path(root) / "served") as lab:
        for frames, (height, width) in SETTINGS:
            folder = Path(root) / str(frames)
            make_data(folder, frames, (height, width))
            limits = frames, height // 8, width // 8
            places = [str(tuple(draw.randrange(limit) for limit in limits)) for _ in range(clicks)]
            measure(lab, f"explorer, {frames} frames of {width}x{height}", EXPLORE.format(folder=str(folder), frames=frames),
                    places, "sum(widget.seconds.values())")
        places = [str((draw.randrange(480), draw.randrange(854))) for _ in range(clicks)]
        measure(lab, "painter, a dot on 854x480", PAINT, places, "0")


if __name__ == "__main__":
    main()
