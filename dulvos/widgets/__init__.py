"""Widgets for notebooks, imported when they are first used, so that dulvos works without anywidget."""

from __future__ import annotations

import importlib

__all__ = ["Explorer", "Painter"]


def __getattr__(name: str) -> type:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{name.lower()}"), name)
