"""Floating-point formats, and how many roundings an execution makes: what all of rounding's analysis counts with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from lipcert.errors import BoundError
from lipcert.graph.forms import Sum
from lipcert.graph.types import Affine, Elementwise, Node
from lipcert.loop import LoopMap
from lipcert.norms.errors import roundings_at, segment_path
from lipcert.norms.scaling import row_norms

__all__ = ["ARITHMETICS", "Arithmetic", "Precision", "at_zero", "count", "gamma", "granted", "segment_roundings"]

Precision = Literal["real", "float32", "float64"]

_ACTIVATION = 16  # roundings


@dataclass(frozen=True)
class Arithmetic:
    """A floating-point format: unit roundoff, smallest normal number, and what no node's value may exceed.

    The limit leaves room for sums of up to 2²³ terms that are divided at their end only.
    """

    name: Precision
    unit: float
    tiny: float
    limit: float


ARITHMETICS = {
    torch.float32: Arithmetic("float32", 2.0**-24, 2.0**-126, 2.0**100),
    torch.float64: Arithmetic("float64", 2.0**-53, 2.0**-1022, 2.0**990),
}


def gamma(roundings: int, unit: float) -> float:
    """``γ_n = n·u/(1 − n·u)``, the relative error of n roundings.

    Raises:
        BoundError: there are too many to say anything.
    """
    if roundings * unit >= 0.5:
        raise BoundError(f"a sum of {roundings} terms has no error bound in this dtype: certify with precision='real'.")
    return roundings * unit / (1 - roundings * unit)


def count(loop: LoopMap, node: Affine | Elementwise) -> int:
    """Roundings of an entry of the node's result; where nobody has counted those of an execution, of float64 here.

    There its weights, whatever expression they come from, are numbers.
    """
    if node.roundings is not None:
        return node.roundings
    return 2 * roundings_at(loop, node) if isinstance(node, Affine) else _ACTIVATION


def granted(loop: LoopMap, node: Affine) -> int:
    """The n of the γ_n by which an affine node errs, of the larger of its positive and its negative terms' sum.

    Two more than its roundings for a sum of products; for a sum of two signals, which is rounded once, 1: it errs by
    u·|a + b|.
    """
    roundings = count(loop, node)
    return roundings if not roundings or isinstance(node.form, Sum) else roundings + 2


def at_zero(loop: LoopMap, k: int) -> float:
    """‖φ_k(0)‖; 0 for a map that is not elementwise."""
    node = loop.nonlinear[k - 1]
    if not isinstance(node, Elementwise):
        return 0.0
    zero = torch.zeros((1, *node.shape), dtype=loop.resolved.dtype, device=loop.resolved.device)
    return float(row_norms(node.function(zero, loop.resolved.live).reshape(1, -1).double())) * (1 + 2.0**-20)


def segment_roundings(loop: LoopMap, k: int) -> tuple[int, int]:
    """Roundings since the activations before z_k (or y): the most on any path, and how many affine nodes there round.

    Each such node makes as many as are :func:`granted`.
    """

    def weigh(node: Node) -> int:
        return granted(loop, node) if isinstance(node, Affine) else 0

    return segment_path(loop, k, weigh, loop.graph)
