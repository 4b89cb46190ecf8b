"""The table of ONNX operators, and what they work with: tensors, whole numbers, constant arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from lipcert.errors import ImportFileError

__all__ = ["OPERATORS", "VALUES", "Attributes", "Operator", "Result", "Sizes", "numbers", "operator", "refuse"]

Attributes: TypeAlias = "dict[str, Any]"
Result: TypeAlias = Any
"""A tensor, whole numbers (:class:`Sizes`), a constant array where an operator asks for its values, or a tuple."""

Operator: TypeAlias = Callable[..., Result]
OPERATORS: dict[str, Operator] = {}


def operator(*names: str) -> Callable[[Operator], Operator]:
    """Register what ONNX operators compute; called with their inputs (None where one is left out) and attributes."""

    def register(function: Operator) -> Operator:
        for name in names:
            OPERATORS[name] = function
        return function

    return register


VALUES: dict[str, tuple[int, ...]] = {"Clip": (1, 2), "Pad": (2,), "Pow": (1,), "Resize": (1, 2, 3), "Upsample": (1,)}
"""Which inputs of an operator must be constants, given to it as arrays."""


class Sizes(list[Any]):
    """Whole numbers that shapes and indices are made of; the size of the batch among them may be a symbol.

    Args:
        values: in a row.
        shape: of the array that they are the entries of.
    """

    def __init__(self, values: Sequence[Any], shape: tuple[int, ...] | None = None) -> None:
        super().__init__(values)
        self.shape = (len(self),) if shape is None else shape


def numbers(value: Any) -> list[Any]:
    """The entries of whole numbers."""
    if not isinstance(value, Sizes):
        raise refuse("a shape, an axis or an index that is computed from the signal")
    return list(value)


def refuse(what: str) -> ImportFileError:
    """The error for something that an operator may have and this importer does not read."""
    return ImportFileError(f"{what} is not supported by lipcert's ONNX importer.")
