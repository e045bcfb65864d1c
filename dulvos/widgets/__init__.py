"""Widgets for notebooks; they are imported when first used, so that the package needs no browser stack."""

from __future__ import annotations

import importlib

__all__ = ["Explorer", "Painter"]


def __getattr__(name: str) -> type:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{name.lower()}"), name)
