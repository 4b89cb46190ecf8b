"""Checks that several models' options need."""

from __future__ import annotations

from collections.abc import Sequence

from lipcert.errors import ConfigError

__all__ = ["is_positive_integer", "positive_integers"]


def is_positive_integer(value: object) -> bool:
    """Whether a value is an integer from 1 on; ``True`` is none.

    >>> [is_positive_integer(value) for value in (1, 0, True, 1.0)]
    [True, False, False, False]
    """
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def positive_integers(name: str, value: object, *, length: int | None = None) -> tuple[int, ...]:
    """Check that an option is a list of positive integers, of the length if one is given, and return it.

    Raises:
        ConfigError: it is anything else; the message calls it ``name``.

    >>> positive_integers("widths", [4, 2])
    (4, 2)
    """
    items = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (None,)
    if not all(map(is_positive_integer, items)) or length not in (None, len(items)):
        count = "" if length is None else f"{length} "
        raise ConfigError(f"{name} must be a list of {count}positive integers; got {value!r}")
    return items
