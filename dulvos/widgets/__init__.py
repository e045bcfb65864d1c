"""The widgets of the notebooks."""

from dulvos.widgets.explorer import Explorer
from dulvos.widgets.painter import Painter

__all__ = ["Explorer", "Painter"]
