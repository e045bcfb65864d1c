"""The error for whatever users can correct, such as a path, a file or a setting, and checks of settings."""

import dataclasses
from collections.abc import Iterable

__all__ = ["InputError", "check_choices", "check_type", "check_types"]


class InputError(ValueError):
    """An input, file or setting is wrong. The message is one line: what is wrong, where, what is right."""

    def __init__(self, message: object) -> None:
        # File names may hold line breaks, terminal commands and bytes that are not text.
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in str(message)))


def check_type(name: str, value: object, default: object) -> None:
    """Raise an InputError unless a value has its default's type; int passes as float, bool is no number."""
    kind = type(default)
    kinds = (int, float) if kind is float else kind
    if not isinstance(value, kinds) or isinstance(value, bool) != (kind is bool):
        raise InputError(f"{name} must be {kind.__name__}, not {value!r}")
    if kind in (int, float) and not -(2**63) <= value < 2**63:
        raise InputError(f"{name} must be a finite number of at most 64 bits, not {str(value)[:20]}")


def check_types(settings: object) -> None:
    """`check_type` for every field of a dataclass; each field must have a default."""
    for field in dataclasses.fields(settings):
        check_type(field.name, getattr(settings, field.name), field.default)


def check_choices(settings: object, **choices: Iterable) -> None:
    """Raise an InputError unless each of these fields has one of its allowed values."""
    for name, allowed in choices.items():
        if getattr(settings, name) not in allowed:
            raise InputError(f"{name} must be one of {tuple(allowed)}, not {getattr(settings, name)!r}")
