"""Strokes in the painter, in JupyterLab in a browser: `python -m benchmarks.painter [--moves 200]`.

At 1280x720 and at 3840x2160. A brush moves once for each frame that the browser shows, in a slow spiral.

    processor: processor time of the page's thread for a move and all that it draws.
    shown: from one painted frame to the next; at 60 frames a second no less than 17 ms.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.measure import report, thread_clock
from tests.browser import of_cells, serve, start

SIZES = ((720, 1280), (2160, 3840))  # (H, W)
CELL = """import numpy as np
from dulvos.masks import check_folder
from dulvos.session import Session
from dulvos.videos import open_video
from dulvos.widgets import Painter
from PIL import Image
from pathlib import Path
folder = Path("{height}")
folder.mkdir()
for t in range(3):
    noise = np.random.default_rng(t).integers(0, 256, ({height}, {width}, 3), np.uint8)
    Image.fromarray(noise).save(folder / f"{{t}}.jpg")
video = open_video(folder)
session = Session(video, None)
painter = Painter(session, check_folder("masks-{height}", video))
painter"""
STROKE = """async ([moves]) => {
  const canvas = document.querySelector(".dulvos-painter canvas"), box = canvas.getBoundingClientRect();
  const send = (type, i) => {
    const angle = i / 8, radius = 0.4 * i / moves, buttons = type === "pointerup" ? 0 : 1;
    canvas.dispatchEvent(new PointerEvent(type, {
      bubbles: true, pointerId: 1, isPrimary: true, button: 0, buttons,
      clientX: box.left + box.width * (0.5 + radius * Math.cos(angle)),
      clientY: box.top + box.height * (0.5 + radius * Math.sin(angle))}));
  };
  const frame = () => new Promise(requestAnimationFrame), times = [];
  send("pointerdown", 0);
  for (let i = 1; i <= moves; i += 1) {
    const started = performance.now();
    send("pointermove", i);
    await frame();
    times.push(performance.now() - started);
  }
  send("pointerup", moves);
  return times;
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moves", type=int, default=200)
    moves = parser.parse_args().moves
    with tempfile.TemporaryDirectory() as root, start() as chrome, serve(Path(root) / "lab", chrome) as lab:
        for height, width in SIZES:
            cell = CELL.format(height=height, width=width)
            with lab.open(of_cells(cell), f"painter-{height}") as notebook:
                notebook.run(120)
                assert notebook.red_cells() == [], notebook.red_cells()
                page = notebook.page
                page.wait_for_selector(".dulvos-painter canvas")
                page.evaluate("document.querySelector('.dulvos-painter').painter.settled()")
                page.locator(".dulvos-painter canvas").scroll_into_view_if_needed()
                clock = thread_clock(page)
                page.evaluate(STROKE, [20])  # the page's script is still being compiled during the first ones
                before = clock()
                shown = page.evaluate(STROKE, [moves])
                processor = (clock() - before) / moves
                assert notebook.wait_for("int(session.labels(0).any())"), "no stroke reached the kernel"
                case = f"{width}x{height}"
                report("a move of the brush, processor time", case, {"ours": [processor]}, "ms")
                middle, late = np.quantile(shown, (0.5, 0.95))
                print(f"{case}: processor {processor:.1f} ms; shown p50 {middle:.1f} ms, p95 {late:.1f} ms")


if __name__ == "__main__":
    main()
