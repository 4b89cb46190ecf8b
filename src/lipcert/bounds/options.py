"""What options of bounds may be, and what is said of others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

from lipcert.bounds.result import Scope
from lipcert.errors import BoundError, ShapeError
from lipcert.graph import Graph

__all__ = ["check_choice", "check_scope", "check_seconds"]


def check_choice(name: str, value: object, allowed: Iterable[str]) -> None:
    """Refuse a word that is none of those allowed.

    >>> check_choice("scope", "pair", ["class", "pairwise"])
    Traceback (most recent call last):
    ...
    lipcert.errors.BoundError: scope must be one of 'class', 'pairwise'; got 'pair'.
    """
    allowed = tuple(allowed)
    if value not in allowed:
        raise BoundError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}.")


def check_scope(scope: str, graph: Graph) -> None:
    """Refuse an unknown scope, and one that asks for logits of a network whose output is not a vector.

    Raises:
        BoundError: it is unknown.
        ShapeError: the output does not fit.
    """
    check_choice("scope", scope, get_args(Scope))
    if scope != "global" and len(graph.output_shape) != 1:
        raise ShapeError(
            f"scope={scope!r} needs an output of logits, one number a class; this module's has shape "
            f"{graph.output_shape}. Use scope='global'."
        )


def check_seconds(seconds: float) -> None:
    """Refuse a time that is negative, or not a number. 0 leaves things as they start."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds >= 0:
        raise BoundError(f"seconds must be a number that is not negative; got {seconds!r}.")
