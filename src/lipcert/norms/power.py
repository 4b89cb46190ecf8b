"""Power iteration: cheap, and an estimate from below. Never a certificate.

All blocks are iterated together in one batch, each row travelling only between its source and its target; one
iteration of all of them is one pass and one vector-Jacobian product.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lipcert.loop import Group, LoopMap, Pair

__all__ = ["estimate_norms", "normalised", "random_seeds", "row_norms"]


def row_norms(value: Tensor) -> Tensor:
    """The 2-norm of each row of (N, *shape), whatever its memory layout."""
    if value.ndim == 1:  # one number a row
        return value.abs()
    norms: Tensor = torch.linalg.vector_norm(value, dim=tuple(range(1, value.ndim)))
    return norms


def normalised(value: Tensor) -> tuple[Tensor, Tensor]:
    """Each row divided by its norm (a zero row stays zero), and the norms."""
    norms = row_norms(value)
    shape = (-1, *(1,) * (value.ndim - 1))
    return value / norms.clamp_min(torch.finfo(value.dtype).tiny).reshape(shape), norms


def random_seeds(loop: LoopMap, pairs: Iterable[Pair], *, seed: int, rows: int = 1) -> dict[Pair, Tensor]:
    """A Gaussian start of unit norm for each block, the same for the same seed on every device."""
    generator = torch.Generator().manual_seed(seed)
    starts = {}
    for k, j in pairs:
        value = torch.randn((rows, *loop.source_shape(j)), generator=generator, dtype=torch.float64)
        starts[k, j] = normalised(value.to(dtype=loop.resolved.dtype, device=loop.resolved.device))[0]
    return starts


def estimate_norms(
    loop: LoopMap,
    pairs: Iterable[Pair],
    *,
    seed: int = 0,
    tolerance: float = 1e-6,
    max_iterations: int = 1000,
    check_every: int = 20,
) -> dict[Pair, Tensor]:
    """Estimate ‖A_kj‖ from below for each block, to a relative change under ``tolerance`` an iteration.

    A block that has settled is dropped from the batch. Returns float64 scalars.
    """
    vectors = random_seeds(loop, pairs, seed=seed)
    known: dict[Pair, Tensor] = {}
    done = 0
    while vectors and done < max_iterations:
        names = list(vectors)
        plan = loop.plan([Group(1, frozenset({j}), frozenset({k})) for k, j in names])
        settled = dict.fromkeys(names, False)
        for _ in range(check_every):
            leaves = [vectors[name].requires_grad_() for name in names]
            with torch.enable_grad():
                seeds = {j: torch.cat([v for v, (_, i) in zip(leaves, names, strict=True) if i == j]) for _, j in names}
                images = loop.run(plan, seeds)
                directions = [normalised(v.detach())[0] for v in images.values()]
                back = torch.autograd.grad(list(images.values()), leaves, directions)
            for name, gradient in zip(names, back, strict=True):
                vector, norm = normalised(gradient)
                value = norm[0].double()
                before = known.get(name)
                settled[name] = before is not None and bool(value - before <= tolerance * value)
                known[name] = value if before is None else torch.maximum(value, before)
                # A start that the block maps to zero would stay there: keep it, its norm is then zero.
                vectors[name] = vector if bool(norm > 0) else vectors[name].detach()
        vectors = {name: v for name, v in vectors.items() if not settled[name]}
        done += check_every
    return known
