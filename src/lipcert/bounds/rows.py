"""A network as a row of parts, and what is known of all up to a cut between two of them, and of all behind it.

Cut where all of the network passes through one value, y = f_N(…f_1(x)): behind part p there is b_p = f_N∘…∘f_{p+1},
up to its end u_p = f_p∘…∘f_1. Of both the constants of the parts say something, by their product. Where layers keep no
distances that is far too much, and a small-gain bound of u_p or b_p itself much less: ``until`` and ``behind`` of a
part (:class:`~lipcert.bounds.UpperBound`) are what proves those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.bounds.result import Scope, UpperBound
from lipcert.bounds.smallgain import evidence_value
from lipcert.graph.parts import merges, part
from lipcert.loop import LoopMap
from lipcert.norms.errors import TINY

__all__ = ["Piece", "constants_behind", "constants_until", "product", "row"]

UP = 1 + 2.0**-48


@dataclass(frozen=True, eq=False)
class Piece:
    """A part of a network: T of it, and the node of the whole whose value it ends with.

    Attributes:
        whole: T of the network.
    """

    loop: LoopMap
    end: int
    whole: LoopMap

    def behind(self) -> LoopMap:
        """T of all that comes behind the part."""
        return _between(self.whole, self.end, self.whole.graph.output)

    def until(self) -> LoopMap:
        """T of all up to the part's end."""
        return _between(self.whole, 0, self.end)


def _between(loop: LoopMap, first: int, last: int) -> LoopMap:
    return LoopMap(*part(loop.graph, loop.resolved, first, last), centred=loop.centred)


def row(loop: LoopMap) -> list[Piece]:
    """The parts of a network, in order; none where it cannot be cut, or where an activation is in none of them."""
    graph = loop.graph
    ends = [n for n in merges(graph) if n != graph.output]
    if not ends:
        return []
    ends.append(graph.output)
    pieces = [Piece(_between(loop, a, b), b, loop) for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    return pieces if sum(piece.loop.depth for piece in pieces) == loop.depth else []


def product(one: float, other: float) -> float:
    """From above, where it is below the range of floats too."""
    return max(one * other * UP, TINY)


def constants_until(pieces: Sequence[Piece], parts: Sequence[UpperBound]) -> list[float]:
    """Lipschitz constants of all up to the end of each part but the last.

    Args:
        pieces: the parts, in float64.
        parts: their bounds.

    Raises:
        BoundError: what is said to prove one of them proves nothing.
    """
    found, constant = list[float](), 1.0
    for piece, one in zip(pieces[:-1], parts[:-1], strict=True):
        constant = product(constant, float(one.value))
        if one.until is not None:
            constant = min(constant, float(evidence_value(piece.until(), one.until, "global")))
        found.append(constant)
    return found


def constants_behind(pieces: Sequence[Piece], parts: Sequence[UpperBound], scope: Scope) -> list[Tensor]:
    """Lipschitz constants of what comes behind each part but the last, in the scope of the whole.

    Args:
        pieces, parts: as for :func:`constants_until`.
        scope: of the whole.

    Raises:
        BoundError: what is said to prove one of them proves nothing.
    """
    found = [parts[-1].value]
    for piece, one, following in reversed(list(zip(pieces[:-2], parts[:-2], parts[1:-1], strict=True))):
        value = found[-1]
        value = (value * float(following.value) * UP).clamp_min(TINY).where(value > 0, value)
        if one.behind is not None:
            value = torch.minimum(value, evidence_value(piece.behind(), one.behind, scope))
        found.append(value)
    return found[::-1]
