"""What kind of map an affine node is, where somebody needs to know: to bound its norm at any size, to join blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["CircularPadding", "Convolution", "Form", "Section", "Sum"]


@dataclass(frozen=True)
class Convolution:
    """``y[m] = Σ_t w[t]·x[s·m + δ·t − p]`` with zeros around x, or its adjoint (which has the same norm).

    The kernel w, (C_out, C_in/groups, *k), is the first coefficient of the map. One number for each axis of space; a
    matrix is a convolution without any.

    Attributes:
        reads: how many entries x has along each axis.
        writes: how many y has.
        stride: s.
        padding: p, the zeros in front.
        dilation: δ.
        groups: into how many parts the channels fall that do not mix.
        kernel: how many entries w has along each axis.
    """

    reads: tuple[int, ...] = ()
    writes: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    kernel: tuple[int, ...] = ()


@dataclass(frozen=True)
class Section:
    """The entries from ``start`` to before ``stop`` along a dimension of a sample."""

    dimension: int
    start: int
    stop: int


@dataclass(frozen=True)
class Sum:
    """The sum of its inputs, which all have its shape."""


@dataclass(frozen=True)
class CircularPadding:
    """Each axis of space goes on at its other end: by how many entries in front and behind, axis by axis."""

    amounts: tuple[tuple[int, int], ...]


Form: TypeAlias = Convolution | CircularPadding | Section | Sum
