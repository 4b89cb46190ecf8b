"""Deterministic upper bounds of blocks of up to some ten thousand rows: a Gram matrix and one Cholesky factorisation.

G = AᵀA (or AAᵀ, on the smaller side) is formed column by column, by one pass of the block and one of its adjoint for
each; for convolutions that is far less work than the product of two explicit matrices, and A itself is never held.
If the Cholesky factorisation of b·I − G runs to its end, then

    λ_max(G) ≤ b + γ_{n+2}·trace(b·I − G) + ‖fl(G) − G‖₂,

whatever the order of its sums: the computed factor R has RᵀR = b·I − G + E with |E_ij| ≤ γ_{n+1}·√(m_ii m_jj)/(1 − γ).
A multiple of that is allowed for libraries that divide by multiplying with a reciprocal. Where it breaks off, b was too
small, and a larger one is tried, from steps that grow; between the last two it is then bisected to the slack asked for.

Sources: Higham, *Accuracy and Stability of Numerical Algorithms*, Theorem 10.3; Rump, "Verification of positive
definiteness", BIT 46 (2006), for the use of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from lipcert.errors import BoundError
from lipcert.loop import BlockMap, Pair
from lipcert.norms.dense import basis, chunk
from lipcert.norms.errors import TINY, UNIT, Errors, Lost, absolute_norm, gamma, relative_error, underflow
from lipcert.norms.power import gram_products, product_plan
from lipcert.norms.result import Norm

__all__ = ["cholesky_norms", "proved"]

_AIM, _CLOSEST = 0.25, 1e-10  # of the slack: closer costs nothing here, but whoever confirms the norm by the test
_ALLOWED = 8.0  # times the error of a textbook factorisation
_GROWTH = 6.0
_ATTEMPTS = 12  # factorisations of one block
_RANGE = 2.0**-400, 2.0**400  # squares of norms in between, and of what matters in them, are normal numbers


def _gram(loop: BlockMap, pair: Pair) -> Tensor:
    """The Gram matrix on the block's smaller side, as computed."""
    k, j = pair
    n_in, n_out = math.prod(loop.source_shape(j)), math.prod(loop.target_shape(k))
    shape = loop.source_shape(j) if n_in <= n_out else loop.target_shape(k)
    size, step = min(n_in, n_out), chunk(loop)
    gram = torch.empty((size, size), dtype=torch.float64, device=loop.resolved.device)
    products: Callable[[Tensor], Tensor] | None = None
    for start in range(0, size, step):
        stop = min(start + step, size)
        if products is None or stop - start < step:
            products = _products(loop, pair, stop - start, adjoint=n_in > n_out)
        gram[start:stop] = products(basis(start, stop, shape, loop)).reshape(stop - start, size)
    return gram


def _products(loop: BlockMap, pair: Pair, rows: int, *, adjoint: bool) -> Callable[[Tensor], Tensor]:
    """A function of so many rows v: ``AᵀA·v``, or ``AAᵀ·v``, for which Aᵀ is recorded only once."""
    k, j = pair
    start = torch.zeros((rows, *loop.source_shape(j)), dtype=loop.resolved.dtype, device=loop.resolved.device)
    plan = product_plan(loop, {pair: start})
    if not adjoint:
        return lambda some: gram_products(loop, plan, {pair: some})[pair]
    start.requires_grad_()
    with torch.enable_grad():
        out = loop.run(plan, {j: start})[k]

    def run(some: Tensor) -> Tensor:
        (back,) = torch.autograd.grad(out, start, some, retain_graph=True)
        with torch.no_grad():
            return loop.run(plan, {j: back})[k]

    return run


def _scaled(value: float, exponent: int) -> float:
    """``value·2^exponent``, infinite where that overflows."""
    try:
        return math.ldexp(value, exponent)
    except OverflowError:
        return math.inf


def _gram_error(errors: Errors, pair: Pair, lost: Lost, norm: float) -> float:
    """A bound on ``‖fl(G) − G‖₂``, where G is what its lower or its upper triangle says and ‖A‖ ≤ norm.

    Entry by entry it is (2ρ + ρ²)·|A|ᵀ|A|, or column by column E·(2‖A‖ + E); and what underflows.
    """
    (k, j), loop = pair, errors.loop
    n_in, n_out = math.prod(loop.source_shape(j)), math.prod(loop.target_shape(k))
    size, rho = absolute_norm(loop, pair), relative_error(loop)
    most, least = max(n_in, n_out), min(n_in, n_out)
    column = errors.error(pair)
    gone = max(lost[0][k], lost[1][j])
    still = gone * (math.sqrt(float(least) * most) * size * (1 + rho) + least)
    return min((2 * rho + rho * rho) * size * size, math.sqrt(2 * least) * column * (2 * norm + column)) + 2 * still


def _factorises(gram: Tensor, bound: float) -> bool:
    """Whether bound·I − gram has a Cholesky factor; ``gram`` is the same before and after."""
    diagonal = gram.diagonal().clone()
    gram.neg_()
    gram.diagonal().add_(bound)
    _, info = torch.linalg.cholesky_ex(gram)
    gram.neg_()
    gram.diagonal().copy_(diagonal)
    return int(info) == 0


def _least_bound(gram: Tensor, least: float, slack: float) -> float:
    """A b for which b·I − gram has a Cholesky factor, and not for b·(1 − 2·slack), where attempts suffice.

    ``least`` is an estimate of the least, from below.
    """
    failed, excess, growth = 0.0, max(_AIM * slack, _CLOSEST), _GROWTH
    largest = float(gram.diagonal().sum()) * 1.01 / least / 2 - 0.5  # no eigenvalue exceeds the trace
    found = math.inf
    for _ in range(_ATTEMPTS):
        if _factorises(gram, least * (1 + 2 * excess)):
            found = excess
        elif excess == largest:
            raise BoundError("the Gram matrix of a block is not what it should be: this is a bug in lipcert.")
        else:
            failed = excess
        if found - failed <= slack:
            break
        if found < math.inf:
            excess = math.sqrt(failed * found)
        else:
            excess, growth = min(excess * growth, largest), growth * _GROWTH
    return least * (1 + 2 * found)


class _Test:
    """The Gram matrix of one block, scaled by a power of four to about 1, and what its rounding allows."""

    def __init__(self, errors: Errors, pair: Pair, lost: Lost) -> None:
        gram = _gram(errors.loop, pair).cpu()  # LAPACK's factorisation, whose error is the one allowed for
        if not bool(torch.isfinite(gram).all()):
            raise BoundError("the bound is not finite: the weights are so large that a block overflows float64.")
        error = _gram_error(errors, pair, lost, errors.norm(pair))
        largest = float(gram.diagonal().max()) or error  # a block that cancels may come out as nothing at all
        if not _RANGE[0] < largest < _RANGE[1]:
            raise BoundError("a block's norm is beyond 2^±200: scale the weights, or lower dense_limit.")
        self.exponent = 2 * (math.frexp(largest)[1] // 2)
        self.gram = gram.mul_(math.ldexp(1.0, -self.exponent))
        self._errors, self._pair, self._lost = errors, pair, lost
        self.error = _scaled(error, -self.exponent)

    def excess(self, bound: float, error: float) -> float:
        """What is added to b when b·I − G has a factor: rounding of it, of its diagonal, of G."""
        n = len(self.gram)
        return (_ALLOWED * gamma(n + 2) * n * bound + 2 * UNIT * bound + error) * (1 + 2.0**-20)

    def proves(self, norm: float) -> bool:
        """Whether ‖A‖₂ ≤ norm can be shown."""
        scaled = _scaled(norm, -self.exponent // 2)
        if not 0 < scaled < _RANGE[1]:
            return False
        # If it were larger, ‖A‖ = σ > norm, then σ² ≤ b + … + e·(2σ + E), and σ² − 2e·σ grows with σ beyond e: to rule
        # σ out it is enough to do so at norm, with norm for ‖A‖ in the error.
        error = min(self.error, _scaled(_gram_error(self._errors, self._pair, self._lost, norm), -self.exponent))
        square = scaled * scaled * (1 - 4 * UNIT)
        bound = square - self.excess(square, error)
        return bound > 0 and _factorises(self.gram, bound)

    def norm(self, bound: float) -> float:
        """The norm that is shown when b·I − G has a factor."""
        return math.ldexp(math.sqrt(bound + self.excess(bound, self.error)), self.exponent // 2) * (1 + 4 * UNIT)


def proved(errors: Errors, pair: Pair, norm: float) -> bool:
    """Whether it could be shown that ‖A_kj‖₂ ≤ norm."""
    lost = underflow(errors.loop)
    return norm >= absolute_norm(errors.loop, pair, lost) or _Test(errors, pair, lost).proves(norm)


def cholesky_norms(
    errors: Errors, pairs: Iterable[Pair], estimates: Mapping[Pair, float], slack: Mapping[Pair, float]
) -> dict[Pair, Norm]:
    """Upper bounds on ‖A_kj‖₂ from Gram matrices; deterministic.

    Args:
        errors: of T in float64; the norms that are found are made known to it.
        pairs: the blocks.
        estimates: of the norms, from below.
        slack: relative excess to aim at.

    Raises:
        BoundError: a block that is not finite, or beyond the range in which its square can be trusted.
    """
    norms, lost = {}, underflow(errors.loop)
    for pair in sorted(pairs, key=lambda p: p[0] - p[1]):
        crude = absolute_norm(errors.loop, pair, lost)
        if crude < 2.0**-900:  # zero, as a rule
            norms[pair] = Norm(max(crude, TINY), min(estimates[pair], crude), "cholesky")
            continue
        test = _Test(errors, pair, lost)
        least = max(math.ldexp(estimates[pair], -test.exponent // 2) ** 2, float(test.gram.diagonal().max()))
        bound = _least_bound(test.gram, least or test.error, slack[pair])
        upper = test.norm(bound)
        norms[pair] = Norm(upper, min(estimates[pair], upper), "cholesky")
        errors.known[pair] = upper
        del test
    return norms
