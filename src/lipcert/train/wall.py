"""What keeps D where it is when weights move: how near the wall ‖S_z‖ = 1 is, and what that is worth to a loss."""

from __future__ import annotations

import torch
from torch import Tensor

from lipcert.bounds.gain import leading_part
from lipcert.scaled import ScaledMap, levels

__all__ = ["wall"]


def wall(
    scaled: ScaledMap,
    weight: Tensor,
    rows: tuple[Tensor, Tensor, Tensor],
    probes: tuple[Tensor, Tensor, Tensor],
    limit: float,
) -> tuple[Tensor, Tensor]:
    """How near ‖S_z‖ = 1 is, differentiable in the weights, and its price: what as much of it is worth to the loss.

    It is Σ log 1/(1 − ‖S_z·v‖²) over the leading vectors v, to first order, by which the search for D keeps away
    (:func:`lipcert.bounds.scaling.balance`). D gives way by t^level, which makes every block, and each term, smaller
    (:func:`lipcert.bounds.scaling.looser`). The price is the loss's derivative by t over that of the sum; both are sums
    of D·z and of D·w against their cotangents.

    Args:
        scaled: S at the present weights.
        weight: twice the loss's derivative in N, symmetric.
        rows: V; S_z·V; and Sᵀ of (1, S_z·V).
        probes: orthonormal; S_z, differentiable, and S_zᵀS_z of them.
        limit: ‖S_z·v‖² from which on the wall counts as no nearer.
    """
    mine, hidden, back = rows
    vectors, images, returned = probes
    leading = leading_part(vectors, images.detach(), len(images))[0]
    top = leading @ vectors.T
    image = top @ images
    with torch.no_grad():
        rate = 1 / (1 - image.square().sum(1, keepdim=True)).clamp_min(1 - limit)
        along = _by_level(scaled, (weight @ hidden) * hidden, (weight @ back) * mine)
        moved = _by_level(scaled, rate * image.square(), rate * (top @ returned) * leading)
        price = torch.where(moved > 0, along / (2 * moved), 0.0)  # where nothing moves, nothing is near
    return (rate * image.square()).sum(), price


def _by_level(scaled: ScaledMap, results: Tensor, sources: Tensor) -> Tensor:
    """What rows of entries of S_z·V, less those of V, sum to, each times the level of its D."""
    ups = scaled.group_sums(results.sum(0, keepdim=True), results=True)
    downs = scaled.group_sums(sources.sum(0, keepdim=True), results=False)
    parts = [n * (u.sum() - d.sum()) for n, u, d in zip(levels(scaled.loop)[1:-1], ups, downs, strict=True)]
    return torch.stack(parts).sum()
