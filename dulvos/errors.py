"""The one error for everything a user can put right: a path, a file, a setting."""

from __future__ import annotations

import dataclasses

__all__ = ["InputError", "check_type", "check_types"]


class InputError(ValueError):
    """An input, file or setting given by the user is wrong; the message is one line and says what would be right."""

    def __init__(self, message: object) -> None:
        # names of files may hold line breaks, commands to the terminal and bytes that are no text
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in str(message)))


def check_type(name: str, value: object, default: object) -> None:
    """Compare the type of a value with that of its default; a whole number passes for a float, a bool for no number.

    Raises:
        InputError: another type, or a number that is infinite, NaN or beyond 64 bits.
    """
    kind = type(default)
    if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool) != (kind is bool):
        raise InputError(f"{name} must be {kind.__name__}, not {value!r}")
    if kind in (int, float) and not -(2**63) <= value < 2**63:
        raise InputError(f"{name} must be a finite number of at most 64 bits, not {str(value)[:20]}")


def check_types(settings: object) -> None:
    """The same for every field of a dataclass of settings, each of which has a default."""
    for field in dataclasses.fields(settings):
        check_type(field.name, getattr(settings, field.name), field.default)
