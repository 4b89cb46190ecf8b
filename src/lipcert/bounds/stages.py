"""Weights of a small-gain bound to start from, block by block: for deep residual networks.

Cut where all of the network passes through one value, it is a row of parts. If D_i and P_i prove part i by itself,
``P_i²·‖Δx_{i+1}‖² + ‖D_i·Δz‖² ≤ ‖Δx_i‖² + ‖D_i·Δw‖²``, then these inequalities, each multiplied by what those before
it leave of ‖Δx‖², add up to one of the whole: with D_i times the product of the P of the parts before it, the whole has
the product of what its parts have. The start that LipLT gives is far from that where it grows from block to block.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from torch import Tensor

from lipcert.bounds.evidence import KINDS, Scaling
from lipcert.graph.parts import merges, part
from lipcert.loop import LoopMap

__all__ = ["staged_start"]

_FEW = 8  # blocks: from LipLT's start fewer are searched in the time that their parts take
_PATIENCE = 2.0  # by how much the time that was given may be exceeded

Find = Callable[[LoopMap, float], tuple[Scaling | None, float]]
"""From T of a part, and the seconds there are, D (None if it has no activation) and its Lipschitz constant by it."""


def staged_start(loop: LoopMap, find: Find, deadline: float) -> Scaling | None:
    """D of the whole from those of its parts; None where it has few, or where the first ones take too long.

    Args:
        loop: T in float64.
        find: finds them for a part.
        deadline: of ``time.monotonic()``.

    Raises:
        BoundError: as ``find`` does.
    """
    ends = [n for n in merges(loop.graph) if n != loop.graph.output]
    if len(ends) < _FEW:
        return None
    ends.append(loop.graph.output)
    found: list[tuple[LoopMap, Scaling, float]] = []
    constant, first = 1.0, 0
    began = time.monotonic()
    for i, last in enumerate(ends):
        left, spent = deadline - time.monotonic(), time.monotonic() - began
        if i and spent / i * len(ends) > _PATIENCE * (deadline - began):  # at this pace it takes far too long
            return None
        piece = LoopMap(*part(loop.graph, loop.resolved, first, last))
        scaling, factor = find(piece, max(left, 0.0) / (len(ends) - i))
        if scaling is not None:
            found.append((piece, scaling, constant))
        constant, first = constant * factor, last
        if not 0 < constant < math.inf:
            return None
    if sum(piece.depth for piece, _, _ in found) != loop.depth:  # the output does not depend on some activation
        return None
    kind = max((s.kind for _, s, _ in found), key=KINDS.index)
    weights: list[Tensor] = []
    for piece, scaling, before in found:
        weights += [d / before for d in scaling.refined(piece, kind).weights]
    return Scaling(kind, tuple(weights))
