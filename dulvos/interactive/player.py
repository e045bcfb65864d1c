"""A widget that shows pictures with a slider, while they are being made and after."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

import ipywidgets
import numpy as np
from PIL import Image

__all__ = ["Player", "fit", "jpeg"]

HEIGHT, WIDTH = 640, 860  # pixels that a notebook shows of a video at most


class Player(ipywidgets.VBox):
    """Pictures with a slider and a button that plays them; they can be watched while they are being made.

    Arguments:
        length: number of pictures to come.
        fps: at which they are played.
    """

    def __init__(self, length: int, fps: float = 24):
        self.pictures: list[bytes] = []
        self.image = ipywidgets.Image(format="jpeg")
        self.slider = ipywidgets.IntSlider(0, 0, max(0, length - 1), description="frame", layout={"width": "600px"})
        self.play = ipywidgets.Play(min=0, max=max(0, length - 1), interval=round(1000 / fps))
        ipywidgets.jslink((self.play, "value"), (self.slider, "value"))
        self.slider.observe(lambda change: self._show(change["new"]), "value")
        super().__init__([self.image, ipywidgets.HBox([self.play, self.slider])])

    def watch(self, pictures: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The same pictures, (H, W, 3) uint8, each shown as it passes."""
        self.pictures.clear()
        for index, picture in enumerate(pictures):
            self.image.height, self.image.width = map(str, fit(*picture.shape[:2]))
            self.pictures.append(jpeg(picture))
            self.slider.value = index
            self._show(index)
            yield picture

    def _show(self, index: int) -> None:
        if index < len(self.pictures):
            self.image.value = self.pictures[index]


def fit(height: int, width: int) -> tuple[int, int]:
    """Height and width of a picture as a notebook shows it, in CSS pixels."""
    scale = min(HEIGHT / height, WIDTH / width)
    return round(scale * height), round(scale * width)


def jpeg(picture: np.ndarray) -> bytes:
    """A picture (H, W, 3) uint8 as a JPEG file, reduced to what a notebook shows."""
    stream = io.BytesIO()
    image = Image.fromarray(picture)
    image.thumbnail((WIDTH, HEIGHT))
    image.save(stream, "jpeg", quality=85)
    return stream.getvalue()
