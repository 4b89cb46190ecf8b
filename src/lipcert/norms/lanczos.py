"""Norms from below by subspaces: a restarted Lanczos iteration of all blocks side by side. Never a certificate.

For each block a small orthonormal basis V and W = BV are kept, B = AᵀA/s². The leading Ritz pair (θ, x) of VᵀW gives
‖AᵀAx‖/‖Ax‖ ≤ ‖A‖, and its residual Bx − θx, made orthogonal to V, is the next basis vector. Where V is full, its
leading Ritz vectors stay, and with them the leading one of the step before, which makes up for most of what a restart
forgets. Each step is one pass of one row a block and its adjoint, all blocks in one batch. V begins with two random
vectors, so that one that happens to miss the leading vector does no harm.

s is a power of two near ‖A‖, so that nothing leaves the range of floats at any scale.

Sources: Davidson, "The iterative calculation of a few of the lowest eigenvalues" (1975); Stathopoulos and Saad,
"Restarting techniques for the (Jacobi-)Davidson symmetric eigenvalue methods" (1998), for what is kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.loop import BlockMap, Pair
from lipcert.norms.power import gram_products, normalised, product_plan, random_seeds

__all__ = ["Leading", "estimate_norms", "leading_vectors"]

_LARGEST, _SMALLEST = 16, 8  # vectors in a basis
_MEMORY = 2**28  # entries of all bases and images together, where that leaves each the smallest size
_PATIENCE = 8  # steps over which a block that is to settle must hardly have grown


@dataclass(frozen=True)
class Leading:
    """The norm of one block, from below.

    Attributes:
        norm: float64 scalar, at most ‖A‖ but for rounding in the loop's precision.
        vector: (*source_shape), of unit norm, with ‖A·vector‖ ≈ norm.
    """

    norm: Tensor
    vector: Tensor


class _Subspace:
    """V, W and VᵀW of one block, and its leading Ritz pair.

    Args:
        starts: (2, *source_shape); the first two vectors of V, before they are made orthogonal.
        capacity: the most vectors that V may hold.
    """

    def __init__(self, starts: Tensor, capacity: int) -> None:
        flat = starts.reshape(2, -1)
        self.dimension = flat.shape[1]
        self.capacity, self.size = min(capacity, self.dimension), 0
        self._basis, self._images = (flat.new_empty((self.capacity, self.dimension)) for _ in "VW")
        self._matrix = torch.zeros((self.capacity, self.capacity), dtype=torch.float64)
        self._weights = self._matrix[:0, 0]  # the leading Ritz vector, in terms of V
        self.vector, self._residual, self._spare = flat[0], flat[0], flat[1]
        self.values = [0.0]  # ‖AᵀAx‖/(s·‖Ax‖), step by step
        self._missing = math.inf  # in the last of them, relatively, as far as can be told

    def following(self) -> Tensor | None:
        """What V is to be extended by; None where nothing but rounding is left."""
        vector, basis = self._residual, self._basis[: self.size]
        length = float(vector.norm())
        for _ in range(3):
            vector = vector - (basis @ vector) @ basis
            left = float(vector.norm())
            if not 0 < left < math.inf:
                return None
            vector = vector / left
            if left > 0.5 * length:
                return vector
            length = 1.0
        return None

    def extend(self, vector: Tensor, image: Tensor) -> None:
        """Add a vector of unit norm that is orthogonal to V, and its product with B; find the leading Ritz pair."""
        last = self.size
        self._basis[last], self._images[last] = vector, image
        self.size += 1
        row = (self._basis[: self.size] @ image).double().cpu()
        self._matrix[last, : self.size] = self._matrix[: self.size, last] = row
        if self.size == 1 < self.dimension:
            self._residual = self._spare
            return
        previous = torch.nn.functional.pad(self._weights, (0, self.size - len(self._weights)))
        theta, ritz = torch.linalg.eigh(self._matrix[: self.size, : self.size])
        self._weights = ritz[:, -1]
        weights = self._weights.to(self._basis)
        self.vector, image = weights @ self._basis[: self.size], weights @ self._images[: self.size]
        along, length = float(self.vector @ image), float(image.norm())
        self.values.append(length / math.sqrt(along) if along > 0 else 0.0)
        self._residual = image - along * self.vector
        rest = float(self._residual.norm()) / length if length > 0 else 0.0
        gap = 1 - float(theta[-2] / theta[-1]) if self.size > 1 and theta[-1] > 0 else 1.0
        self._missing = rest / 2 * min(1.0, rest / gap if gap > 0 else 1.0)
        if self.size == self.capacity < self.dimension:
            self._restart(ritz, previous)

    def _restart(self, ritz: Tensor, previous: Tensor) -> None:
        kept, length = ritz[:, -max(1, self.capacity // 3) :].flip(1), 0.0
        for _ in range(2):
            previous = previous - kept @ (kept.T @ previous)
            length = float(previous.norm())
            previous = previous / max(length, 1e-300)
        if length > 0.5:  # else it was in their span
            kept = torch.cat([kept, previous[:, None]], 1)
        change, count = kept.T.to(self._basis), kept.shape[1]
        self._basis[:count], self._images[:count] = change @ self._basis, change @ self._images
        self._matrix[:count, :count] = kept.T @ self._matrix @ kept
        self.size, self._weights = count, torch.eye(count, dtype=torch.float64)[0]

    def settled(self, tolerance: float) -> bool:
        """Whether little is missing, as the residual says and the last steps do."""
        if self.size == self.dimension:
            return True
        known, *_ = recent = self.values[: -_PATIENCE - 2 : -1]
        return self._missing <= tolerance and len(recent) > _PATIENCE and known - recent[-1] <= tolerance * known


def leading_vectors(
    loop: BlockMap,
    pairs: Iterable[Pair],
    *,
    seed: int = 0,
    tolerance: float = 1e-6,
    max_products: int = 1000,
    start: Mapping[Pair, Tensor] | None = None,
) -> dict[Pair, Leading]:
    """Estimate ‖A_kj‖ from below for each block, with the vectors at which it is reached.

    Args:
        loop: T, in float32 or float64.
        pairs: the blocks; one that has settled is dropped from the batch.
        seed: of the random starts: the same result for the same seed.
        tolerance: relative error to aim at, as told from the residual, from the distance between the first two Ritz
            values, and from what the last steps brought.
        max_products: of AᵀA with a vector, for each block.
        start: (*source_shape) vectors to begin with, for blocks of which something is known.

    Returns:
        for each block its norm, not finite where a product was not.
    """
    seeds = random_seeds(loop, pairs, seed=seed, rows=2)
    for pair in seeds.keys() & (start or {}).keys():
        seeds[pair][:1] = normalised((start or {})[pair].detach().to(seeds[pair])[None])[0]
    if not seeds:
        return {}
    first = {pair: rows[:1] for pair, rows in seeds.items()}
    capacity = _MEMORY // (2 * sum(rows[0].numel() for rows in first.values()))
    capacity = min(max(capacity, _SMALLEST), _LARGEST)
    spaces, scales, found = dict[Pair, _Subspace](), dict[Pair, float](), dict[Pair, Leading]()
    for pair, gradient in gram_products(loop, product_plan(loop, first), first, unit=True).items():
        vector, norms = normalised(gradient)
        norm = float(norms[0])
        found[pair] = Leading(norms[0].double(), seeds[pair][0])
        if 0 < norm < math.inf:
            scales[pair] = max(math.ldexp(0.5, math.frexp(norm)[1]), torch.finfo(vector.dtype).tiny)
            spaces[pair] = _Subspace(torch.cat([vector, seeds[pair][1:]]), capacity)
    plan, planned, tolerance = None, None, max(tolerance, 4 * torch.finfo(loop.resolved.dtype).eps)
    for _ in range(1, max_products):
        new = {pair: v for pair, space in spaces.items() if (v := space.following()) is not None}
        if not new:
            break
        vectors = {pair: v.reshape(1, *loop.source_shape(pair[1])) for pair, v in new.items()}
        if list(new) != planned:
            plan, planned = product_plan(loop, vectors), list(new)
        assert plan is not None
        images = gram_products(loop, plan, vectors, scales=scales)
        spaces = {pair: spaces[pair] for pair in new}
        for pair, image in images.items():
            space, flat = spaces[pair], image.reshape(-1)
            length = flat.norm()
            if not bool(torch.isfinite(length)):
                found[pair] = Leading(length.double(), found[pair].vector)
                del spaces[pair]
                continue
            space.extend(new[pair], flat)
            value = max(float(found[pair].norm), space.values[-1] * scales[pair])
            found[pair] = Leading(length.new_tensor(value, dtype=torch.float64), space.vector.reshape(image.shape[1:]))
            if space.settled(tolerance):
                del spaces[pair]
    return found


def estimate_norms(
    loop: BlockMap, pairs: Iterable[Pair], *, seed: int = 0, tolerance: float = 1e-6, max_products: int = 1000
) -> dict[Pair, Tensor]:
    """Estimate ‖A_kj‖ from below for each block: the norms of :func:`leading_vectors`, float64 scalars."""
    found = leading_vectors(loop, pairs, seed=seed, tolerance=tolerance, max_products=max_products)
    return {pair: leading.norm for pair, leading in found.items()}
