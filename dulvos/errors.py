"""The one error for everything a user can put right: a path, a file, a setting."""

from __future__ import annotations

__all__ = ["InputError"]


class InputError(ValueError):
    """An input, file or setting given by the user is wrong; the message is one line and says what would be right."""
