"""Products of blocks with their adjoints, all in one batch, and the power iteration of training.

Each row travels only between its source and its target; one product of all blocks is one pass and one vector-Jacobian
product. What is found from them is an estimate from below, never a certificate; ``lanczos.py`` makes it a good one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from lipcert.loop import BlockMap, Group, Pair, Plan

__all__ = [
    "gram_products",
    "next_vectors",
    "normalised",
    "product_plan",
    "random_seeds",
    "row_norms",
]


def row_norms(value: Tensor) -> Tensor:
    """The 2-norm of each row of (N, *shape), whatever its memory layout."""
    if value.ndim == 1:  # one number a row
        return value.abs()
    norms: Tensor = torch.linalg.vector_norm(value, dim=tuple(range(1, value.ndim)))
    return norms


def normalised(value: Tensor) -> tuple[Tensor, Tensor]:
    """Each row divided by its norm (a zero row stays zero), and the norms, at any scale."""
    norms, shape = row_norms(value), (-1, *(1,) * (value.ndim - 1))
    tiny = torch.finfo(value.dtype).tiny
    if not bool(((norms > tiny**0.25) & (norms < tiny**-0.25)).all()):  # else squares may have left the range of floats
        largest = value.abs().reshape(len(value), -1).amax(1)
        value = value / torch.where(largest > 0, largest, 1.0).reshape(shape)
        lengths = row_norms(value)
        return value / lengths.clamp_min(tiny).reshape(shape), lengths * largest
    return value / norms.reshape(shape), norms


_MOMENTUM = 0.98**2 / 4


def next_vectors(
    gradient: Tensor, vectors: Tensor, memory: Tensor, signs: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One step of power iteration with momentum: x' = Bx − βy, where B = AᵀA and y is the vector before x.

    With β = (cλ)²/4, λ being the Rayleigh quotient at x, an eigenvalue μ ≤ cλ fades by c/(1 + √(1−c²)) a step
    relative to the leading one, instead of by c (for c = 0.98: by 0.82), for the price of an addition. As λ never
    exceeds the leading eigenvalue, β is never so large that the iteration would lose it. (De Sa et al. 2018,
    "Accelerated stochastic power iteration".)

    Args:
        gradient: a positive multiple of Bx, row by row.
        vectors: x, of unit norm.
        memory: y in the scale in which λ = 1; zero at the start.
        signs: (rows,), where the multiple may be negative: its sign; a row with 0 stays as it is.

    Returns:
        The new x, of unit norm, and the new y. A row whose gradient is zero or not finite stays as it is.
    """
    shape, tiny = (-1, *(1,) * (vectors.ndim - 1)), torch.finfo(vectors.dtype).tiny
    length = row_norms(gradient)
    scale = (1 if signs is None else signs) / length.clamp_min(tiny)
    products = gradient * vectors
    quotient = (products if products.ndim == 1 else products.sum(tuple(range(1, products.ndim)))) * scale
    quotient = quotient.clamp_min(0)  # λ/‖Bx‖, in rounding ≥ 0
    following = (gradient * scale.reshape(shape)).addcmul_(memory, (-_MOMENTUM * quotient).reshape(shape))
    size = row_norms(following)
    moved = torch.isfinite(length) & (size > 0)
    inverse = 1 / size.clamp_min(tiny)
    following.mul_(inverse.reshape(shape))
    remembered = vectors * (quotient * inverse).reshape(shape)
    if moved.is_cpu and bool(moved.all()):  # a GPU would have to be waited for
        return following, remembered
    rows = moved.reshape(shape)
    return torch.where(rows, following, vectors), torch.where(rows, remembered, memory)


def random_seeds(loop: BlockMap, pairs: Iterable[Pair], *, seed: int, rows: int = 1) -> dict[Pair, Tensor]:
    """A Gaussian start of unit norm for each block, the same for the same seed on every device."""
    generator = torch.Generator().manual_seed(seed)
    starts = {}
    for k, j in pairs:
        value = torch.randn((rows, *loop.source_shape(j)), generator=generator, dtype=torch.float64)
        starts[k, j] = normalised(value.to(dtype=loop.resolved.dtype, device=loop.resolved.device))[0]
    return starts


def product_plan(loop: BlockMap, vectors: Mapping[Pair, Tensor]) -> Plan:
    """The plan of :func:`gram_products` for these blocks, in this order, and with as many rows of each."""
    return loop.plan([Group(len(rows), frozenset({j}), frozenset({k})) for (k, j), rows in vectors.items()])


def gram_products(
    loop: BlockMap,
    plan: Plan,
    vectors: Mapping[Pair, Tensor],
    *,
    unit: bool = False,
    scales: Mapping[Pair, float] | None = None,
) -> dict[Pair, Tensor]:
    """``AᵀA·v`` for each row of each block, all in one pass and one vector-Jacobian product.

    With ``unit`` it is divided by ‖Av‖, and its norm is then at most ‖A‖ for a v of unit norm, at any scale; with
    ``scales`` by the square of the block's, half of it on the way.
    """
    leaves = {pair: rows.detach().requires_grad_() for pair, rows in vectors.items()}
    with torch.enable_grad():
        seeds = {j: torch.cat([v for (_, i), v in leaves.items() if i == j]) for _, j in leaves}
        images = loop.run(plan, seeds)
        cotangents = [normalised(v.detach())[0] if unit else v.detach() for v in images.values()]
        if scales is not None:
            by_group = [v.new_full((len(v),), scales[pair]) for pair, v in leaves.items()]
            divisors = [torch.cat([by_group[g] for g in plan.rows(k)]) for k in images]
            cotangents = [v / s.reshape(-1, *(1,) * (v.ndim - 1)) for v, s in zip(cotangents, divisors, strict=True)]
        back = torch.autograd.grad(list(images.values()), list(leaves.values()), cotangents)
    if scales is not None:
        back = tuple(v / scales[pair] for pair, v in zip(leaves, back, strict=True))
    return dict(zip(leaves, back, strict=True))
