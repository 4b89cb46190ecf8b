"""The norm of a scaled map S, proved: one number on which a whole small-gain bound stands.

How far a pass of S errs is followed segment by segment, as in :class:`lipcert.norms.errors.BlockErrors`, but in scaled
units, where everything is about 1: with σ = ‖S‖, B_ki = ‖D_k·|S_ki|·ℓ_i/D_i‖ for the affine map S_ki from activation i to
z_k, and γ_k for its roundings,

    ‖fl(S p) − S p‖ ≤ Σ_k (1 + max|c_k/r_k|·σ)·γ_k·Σ_i B_ki·(max|c_i|/ℓ_i·(σ + E) + max r_i/ℓ_i) · ‖p‖,

as an error η of z_k acts like a change c_k/r_k·η of w_k, which goes through S once more. The adjoint obeys the same with
the two shares exchanged. σ is not known beforehand: a first, coarse test gives a bound, with which a finer one is made.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipcert.errors import BoundError
from lipcert.loop import Group, LoopMap, Pair
from lipcert.norms.cholesky import cholesky_norms
from lipcert.norms.dense import block, spectral_norm_upper
from lipcert.norms.errors import UNIT, BlockErrors, absolute_norm, gamma, relative_error, underflow
from lipcert.norms.power import estimate_norms
from lipcert.norms.randomised import probable_norms
from lipcert.norms.result import Norm
from lipcert.scaled import ScaledMap

__all__ = ["ScaledErrors", "prove_scaled"]

_BLOCK: Pair = (1, 0)
_COARSE = 0.1
_CONDITION = 1e6


class ScaledErrors:
    """What a pass of S, or of its adjoint, may lose; the interface of :class:`BlockErrors` for its one block.

    Args:
        scaled: S in float64.
        known: a bound on ‖S‖, by the key (1, 0), once there is one.
    """

    def __init__(self, scaled: ScaledMap) -> None:
        self.loop, self.known = scaled, dict[Pair, float]()
        loop = scaled.loop
        segments = BlockErrors(loop, {})
        self._gammas = segments.relative
        self._segments = _segments(scaled)
        self._shares = [(0.0, 1.0), *(loop.shares(j) for j in range(1, loop.depth + 1))]
        self._ratios = [0.0, *(loop.ratios(j)[0] for j in range(1, loop.depth + 1)), 0.0]
        self._crude = self._triangle()

    def _triangle(self) -> float:
        """A bound on ‖S‖ from its segments by the triangle inequality, or from |S|."""
        last, size = self.loop.loop.depth + 1, dict[int, float]()
        for k in range(1, last + 1):
            size[k] = sum(
                b * (self._shares[i][0] * size.get(i, 0.0) + self._shares[i][1])
                for i in range(k)
                if (b := self._segments.get((k, i))) is not None
            )
        total = math.sqrt(sum(v * v for v in size.values()))
        return min(total * (1 + 2.0**-30), absolute_norm(self.loop, _BLOCK, underflow(self.loop)))

    def norm(self, pair: Pair) -> float:
        """A bound on ‖S‖: what is known, or a crude one."""
        return min(self.known.get(pair, math.inf), self._crude)

    def error(self, pair: Pair) -> float:
        """A bound on ‖fl(S p) − S p‖/‖p‖, and on the same of the adjoint."""
        sigma = self.norm(pair)
        crude = relative_error(self.loop) * absolute_norm(self.loop, pair)
        # E stands on both sides: it is supposed to be below σ/1000, which is checked.
        supposed = sigma * (1 + 1e-3)
        total = 0.0
        for (k, i), b in self._segments.items():
            (centre, radius), ratio = self._shares[i], self._ratios[k]
            forward = centre * supposed + radius
            backward = max(centre, radius * self._ratios[i]) * supposed + max(radius, 1.0)
            total += (1 + ratio * supposed) * self._gammas[k] * b * max(forward, backward) * (1 + self._ratios[i] * supposed)
        total = (total + gamma(self.loop.overhead + 8) * _condition(self.loop.output) * supposed) * (1 + 2.0**-10)
        return min(total, crude) if total < 1e-3 * sigma else crude


def _condition(output: Tensor | float | None) -> float:
    """At most ``‖|P|·|P⁻¹|‖``: how much larger the terms of P·y may be than the result."""
    if not isinstance(output, Tensor):
        return 1.0
    return float(output.abs().norm() * torch.linalg.inv(output).norm()) * 1.01


def _segments(scaled: ScaledMap) -> dict[Pair, float]:
    """B_ki = ‖D_k·|S_ki|·ℓ_i/D_i‖₂ from above, by row and column sums in scaled units."""
    flat = LoopMap(scaled.loop.graph, scaled.loop.resolved, centred=False).absolute()
    like = torch.zeros((), dtype=torch.float64, device=flat.resolved.device)
    last, found = flat.depth + 1, dict[Pair, float]()
    weights = [like.new_ones(()), *scaled.weights]
    for k, i in flat.pairs():
        if k == last and scaled.output is None:
            continue
        enters = (1 / weights[i]).expand(flat.source_shape(i)).clone()[None]
        plan = flat.plan([Group(1, frozenset({i}), frozenset({k}))])
        with torch.enable_grad():
            seed = enters.requires_grad_()
            value = flat.run(plan, {i: seed})[k]
            if k == last:
                out = scaled.output
                value = value.reshape(1, -1) @ out.abs().T if isinstance(out, Tensor) else value * abs(float(out or 0))
            else:
                value = value * weights[k]
            (columns,) = torch.autograd.grad(value.sum(), seed)
        columns = columns / weights[i]
        found[k, i] = math.sqrt(float(value.detach().max())) * math.sqrt(float(columns.max())) * (1 + 2.0**-20)
    return found


def _explicit(scaled: ScaledMap, errors: ScaledErrors) -> Norm:
    """From the explicit matrix."""
    matrix = block(scaled, _BLOCK)
    lost, entries = underflow(scaled), float(matrix.numel())
    seen = spectral_norm_upper(matrix)
    errors.known[_BLOCK] = min(errors.norm(_BLOCK), 2 * seen)  # if the error is at most seen, as is checked here
    forming = math.sqrt(len(matrix)) * errors.error(_BLOCK)
    if not forming <= seen:
        del errors.known[_BLOCK]
        forming = min(math.sqrt(len(matrix)) * errors.error(_BLOCK), relative_error(scaled) * absolute_norm(scaled, _BLOCK))
    upper = seen + forming + math.sqrt(entries) * max(lost[0][1], lost[1][0])
    return Norm(upper * (1 + 4 * UNIT), min(seen, upper), "dense")


def prove_scaled(
    scaled: ScaledMap, *, dense: int, limit: int, failure: float, slack: float, seed: int | None = None
) -> Norm:
    """An upper bound on ‖S‖₂.

    Args:
        scaled: in float64.
        dense: the largest smaller side of S of which the matrix itself is formed.
        limit: the largest of which its Gram matrix is formed, where ``failure`` is 0.
        failure: the probability with which the bound may be too small; 0 allows no randomised test.
        slack: relative excess to aim at.
        seed: of the randomised test; None draws one that nobody could foresee.

    Raises:
        BoundError: S is too large for a deterministic bound and ``failure`` is 0, or its rounding is beyond proof.
    """
    errors = ScaledErrors(scaled)
    side = min(scaled.source_shape(0)[0], scaled.target_shape(1)[0])
    if side <= dense:
        return _explicit(scaled, errors)
    estimates = {p: float(v) for p, v in estimate_norms(scaled, [_BLOCK], tolerance=slack / 100).items()}
    if side <= limit:
        return cholesky_norms(errors, [_BLOCK], estimates, {_BLOCK: slack})[_BLOCK]
    if not failure:
        raise BoundError(
            f"a deterministic small-gain bound needs a matrix of side {side}, beyond the limit of {limit}. Allow a "
            "probability of failure, such as failure=1e-12, or raise dense_limit (memory grows with the square of it)."
        )
    coarse = probable_norms(errors, [_BLOCK], estimates, {_BLOCK: _COARSE}, failure=failure / 2, seed=seed)[_BLOCK]
    errors.known[_BLOCK] = coarse.upper
    seed = None if seed is None else seed + 1000
    estimates[_BLOCK] = max(estimates[_BLOCK], coarse.lower)
    fine = probable_norms(errors, [_BLOCK], estimates, {_BLOCK: slack}, failure=failure / 2, seed=seed)[_BLOCK]
    upper = min(fine.upper, coarse.upper)
    return Norm(upper, min(max(fine.lower, coarse.lower), upper), "chebyshev", failure)
