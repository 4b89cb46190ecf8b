"""LipLT's recursion: from the norms of the blocks of T to Lipschitz constants of its targets.

    m_k = ‖A_k0‖ + Σ_{0<j<k} ‖A_kj‖ · m_j

is a Lipschitz constant of x ↦ z_k, by the triangle inequality and |Δw_j| ≤ |Δz_j|. On a map that is not centred
(c = 0) the same recursion is the product bound: on a chain only ‖A_k,k−1‖ is left, and where branches meet their
products are added. Source: Fazlyab et al., NeurIPS 2023, Theorem 1; the form for any DAG is ours.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lipcert.loop import LoopMap, Pair

__all__ = ["combine", "hidden_bounds", "hidden_pairs"]


def hidden_pairs(loop: LoopMap) -> list[Pair]:
    """The blocks that the bounds of the hidden z_k need."""
    return loop.pairs(targets=range(1, loop.depth + 1))


def hidden_bounds(loop: LoopMap, norms: Mapping[Pair, Tensor], *, floor: float = 0.0) -> dict[int, Tensor]:
    """``m_0 = 1`` for x and m_k for each hidden z_k. Differentiable in the norms; ``floor`` as in :func:`combine`."""
    like = next(iter(norms.values())) if norms else torch.ones((), dtype=torch.float64)
    bounds = {0: torch.ones_like(like)}
    for k in range(1, loop.depth + 1):
        own = {j: norms[k, j] for j in range(k) if (k, j) in norms}
        bounds[k] = combine(own, bounds, torch.zeros_like(like), floor=floor)
    return bounds


def combine(norms: Mapping[int, Tensor], bounds: Mapping[int, Tensor], zero: Tensor, *, floor: float = 0.0) -> Tensor:
    """``Σ_j norms[j]·m_j`` over the sources, for norms of any one shape.

    Args:
        floor: what a product of a positive norm is raised to at least, so that none is lost to underflow.
    """
    total = zero
    for j, norm in norms.items():
        product = norm * bounds[j]
        if floor:
            product = torch.where(norm > 0, product.clamp_min(floor), product)
        total = total + product
    return total
