"""The norm of a scaled map S, proved: one number on which a whole small-gain bound stands.

How far a pass of S errs is followed segment by segment, as in :class:`lipcert.norms.errors.BlockErrors`, but in scaled
units, where everything is about 1: with σ = ‖S‖, B_ki = ‖D_k·|S_ki|·ℓ_i/D_i‖ for the affine map S_ki from activation i
to z_k, and γ_k for its roundings,

    ‖fl(S p) − S p‖ ≤ Σ_k (1 + max|c_k/r_k|·σ)·γ_k·Σ_i B_ki·(max|c_i|/ℓ_i·(σ + E) + max r_i/ℓ_i) · ‖p‖,

as an error η of z_k acts like a change c_k/r_k·η of w_k, which goes through S once more. The adjoint obeys the same
bound. σ is not known beforehand: a first, coarse test gives a bound, with which a finer one is made. Of deep networks
the triangle inequality says too little even for that. Norms of blocks that are proved say more, ‖S‖² being at most
Σ (max D_k·‖A_kj‖/min D_j)²; and of an explicit matrix its rows say it of one another (:func:`_explicit`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lipcert.errors import BoundError
from lipcert.graph.capture import ordinary_mode
from lipcert.loop import Group, LoopMap, Pair
from lipcert.norms.cholesky import cholesky_norms, proved
from lipcert.norms.confirm import FINEST, MOST
from lipcert.norms.dense import ROOM, block, spectral_norm_upper
from lipcert.norms.errors import UNIT, BlockErrors, absolute_norm, gamma, relative_error, underflow
from lipcert.norms.lanczos import estimate_norms
from lipcert.norms.randomised import probable_norms
from lipcert.norms.result import Norm
from lipcert.norms.upper import DENSE
from lipcert.scaled import ScaledMap

__all__ = ["ScaledErrors", "confirm_scaled", "prove_scaled", "scaled_segments"]

_BLOCK: Pair = (1, 0)
_COARSE = 0.1
_ROOM = 0.5  # of the room, aimed at by a test that confirms: what rounding may do to the test takes of it too
_STEPS = 2  # towards the vector at which |S_ki| has its norm; more gain nothing to speak of
_LEAST = 1e-4  # of the entries of a vector for Schur's test


class ScaledErrors:
    """What a pass of S, or of its adjoint, may lose; the interface of :class:`BlockErrors` for its one block.

    Args:
        scaled: S in float64.
        norms: upper bounds on norms of blocks A_kj of T, those that are known.

    Attributes:
        known: a bound on ‖S‖, by the key (1, 0), once there is one.
    """

    def __init__(self, scaled: ScaledMap, norms: Mapping[Pair, float] | None = None) -> None:
        self.loop, self.known = scaled, dict[Pair, float]()
        loop = scaled.loop
        segments = BlockErrors(loop, {})
        own = gamma(4 * scaled.overhead)  # the weights, and the products with P
        self._gammas = {k: v + own for k, v in segments.relative.items()}
        self._segments = scaled_segments(scaled, steps=_STEPS)
        self._shares = [(0.0, 1.0), *(loop.shares(j) for j in range(1, loop.depth + 1))]
        self._ratios = [0.0, *(loop.ratios(j)[0] for j in range(1, loop.depth + 1)), 0.0]
        self._absolute = absolute_norm(scaled, _BLOCK, underflow(scaled))
        self._crude = min(self._triangle(norms or {}), self._absolute)

    def _triangle(self, norms: Mapping[Pair, float]) -> float:
        """A bound on ‖S‖ from its segments, by the triangle inequality, and from norms of blocks."""
        last, size = self.loop.loop.depth + 1, dict[int, float]()
        for k in range(1, last + 1):
            size[k] = sum(
                b * (self._shares[i][0] * size.get(i, 0.0) + self._shares[i][1])
                for i in range(k)
                if (b := self._segments.get((k, i))) is not None
            )
            size[k] = min(size[k], self._row(k, norms))
        total = math.sqrt(sum(v * v for v in size.values()))
        return total * (1 + 2.0**-30)

    def _row(self, k: int, norms: Mapping[Pair, float]) -> float:
        """‖D_k·z_k‖ by norms of the blocks that lead there, if all are known."""
        loop = self.loop.loop
        blocks = [(k, j) for j in range(k) if loop.connected(k, j)]
        if k > loop.depth or not all(p in norms for p in blocks):
            return math.inf
        least = [1.0, *(float(d.min()) for d in self.loop.weights)]
        most = float(self.loop.weights[k - 1].max())
        return math.sqrt(sum((most * norms[k, j] / least[j]) ** 2 for _, j in blocks))

    def norm(self, pair: Pair) -> float:
        """A bound on ‖S‖: what is known, or a crude one."""
        return min(self.known.get(pair, math.inf), self._crude)

    def error(self, pair: Pair) -> float:
        """A bound on ‖fl(S p) − S p‖/‖p‖, and on the same of the adjoint."""
        sigma = self.norm(pair)
        crude = relative_error(self.loop) * self._absolute
        return min(self.error_at(sigma), crude)

    def error_at(self, sigma: float) -> float:
        """The same if ‖S‖ ≤ sigma: a polynomial in it with positive coefficients, or infinite."""
        supposed = sigma * (1 + 1e-3)  # σ + E, which is checked
        total = sum(
            (1 + self._ratios[k] * supposed)
            * self._gammas[k]
            * b
            * (self._shares[i][0] * supposed + self._shares[i][1])
            for (k, i), b in self._segments.items()
        ) * (1 + 2.0**-10)
        return total if total < 1e-3 * sigma else math.inf


def scaled_segments(scaled: ScaledMap, *, steps: int = 0) -> dict[Pair, float]:
    """B_ki = ‖D_k·|S_ki|·ℓ_i/D_i‖₂ from above, in scaled units: ``√(max (Mv)/u · max (Mᵀu)/v)`` for positive u and v.

    (Schur's test.) They are ones, or what some steps of power iteration make of these.
    """
    flat = LoopMap(scaled.loop.graph, scaled.loop.resolved, centred=False).absolute()
    like = torch.zeros((), dtype=torch.float64, device=flat.resolved.device)
    last, found, lost = flat.depth + 1, dict[Pair, float](), underflow(flat)
    weights = [like.new_ones(()), *scaled.weights]
    for k, i in flat.pairs():
        if k == last and scaled.output is None:
            continue
        plan = flat.plan([Group(1, frozenset({i}), frozenset({k}))])
        v = like.new_ones((1, *flat.source_shape(i)))
        for step in range(steps + 1):
            with torch.enable_grad():
                seed = (v / weights[i]).requires_grad_()
                value = flat.run(plan, {i: seed})[k]
                value = _outer_absolute(value, scaled.output) if k == last else value * weights[k]
                rows = value.detach()
                u = _positive(rows) if steps else torch.ones_like(rows)
                (columns,) = torch.autograd.grad(value, seed, u)
            columns = columns / weights[i]
            if step < steps:
                v = _positive(columns)
        # what underflows on the way must not be missing
        grown = float(_outer_size(scaled.output)) if k == last else float(weights[k].max())
        row = float(((rows + lost[0][k] * grown) / u).max())
        column = float(((columns + lost[1][i] * float((1 / weights[i]).max())) / v).max())
        found[k, i] = math.sqrt(row) * math.sqrt(column) * (1 + 2.0**-20)
    return found


def _positive(value: Tensor) -> Tensor:
    """The direction of something that is not negative, with no entry near zero."""
    top = float(value.max())
    return (value / top).clamp_min(_LEAST) if 0 < top < math.inf else torch.ones_like(value)


def _outer_absolute(y: Tensor, output: Tensor | float | None) -> Tensor:
    """|P|·y."""
    return y.reshape(1, -1) @ output.abs().T if isinstance(output, Tensor) else y * abs(float(output or 0))


def _outer_size(output: Tensor | float | None) -> float:
    return float(output.abs().sum(1).max()) if isinstance(output, Tensor) else abs(float(output or 0.0))


def _explicit(scaled: ScaledMap, errors: ScaledErrors) -> Norm:
    """From the explicit matrix, formed with an error of E(σ) in each of n rows, if ‖S‖ = σ.

    σ ≤ seen + √n·E(σ); as E is convex, that rules out everything between two values of σ that it rules out.

    That σ is not beyond both is shown row by row (or column by column, where the adjoint made them): what the rows of
    z_k lose depends on the norms of those before them. If these are at most 2·seen, and √n·E(2·seen) at most seen, then
    σ_k ≤ seen + √n·(η_k + σ_k·Σ_l c_l/r_l·η_l) for what is lost in k and in l < k, whose weighted sum is within E, and
    so σ_k ≤ 2·seen again: σ ≤ √(K + 1)·2·seen.
    """
    matrix = block(scaled, _BLOCK)
    lost = underflow(scaled)
    rest = math.sqrt(matrix.numel()) * max(lost[0][1], lost[1][0])
    seen, size, most = spectral_norm_upper(matrix), math.sqrt(len(matrix)), errors.norm(_BLOCK)
    forming = size * errors.error(_BLOCK)
    likely = size * errors.error_at(2 * seen) + rest
    if likely < seen:
        most = min(most, 2 * seen * math.sqrt(scaled.loop.depth + 1) * (1 + 2.0**-30))
        forming = min(forming, size * errors.error_at(most))
    worst = size * errors.error_at(most) + rest
    if 0 < seen < most / 2 and likely < seen and seen + worst < most:
        forming = size * errors.error_at(2 * seen)
    # as much more as a Cholesky factorisation of the Gram matrix needs to show it too
    confirmable = (seen + (1 + math.sqrt(2)) * forming + rest) * (1 + ROOM * (len(matrix) + 4) ** 2 * UNIT)
    return Norm(confirmable, min(seen, seen + forming), "dense")


def prove_scaled(
    scaled: ScaledMap,
    *,
    dense: int,
    limit: int,
    failure: float,
    slack: float,
    seed: int | None = None,
    norms: Mapping[Pair, float] | None = None,
) -> Norm:
    """An upper bound on ‖S‖₂.

    Args:
        scaled: in float64.
        dense: the largest smaller side of S of which the matrix itself is formed.
        limit: the largest of which its Gram matrix is formed, where ``failure`` is 0.
        failure: the probability with which the bound may be too small; 0 allows no randomised test.
        slack: relative excess to aim at.
        seed: of the randomised test; None draws one that nobody could foresee.
        norms: upper bounds on norms of blocks of T, those that are known: of deep networks they show what may be lost.

    Raises:
        BoundError: S is too large for a deterministic bound and ``failure`` is 0, or its rounding is beyond proof.
    """
    errors = ScaledErrors(scaled, norms)
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
    return _by_test(errors, estimates[_BLOCK], slack, failure, seed, None)


def _by_test(
    errors: ScaledErrors, seen: float, slack: float, failure: float, seed: int | None, most: int | None
) -> Norm:
    """A coarse randomised test, with whose result the rounding of a finer one is known well."""
    options: dict[str, int] = {} if most is None else {"most": most}
    coarse = probable_norms(
        errors, [_BLOCK], {_BLOCK: seen}, {_BLOCK: max(slack, _COARSE)}, failure=failure / 2, seed=seed, **options
    )[_BLOCK]
    errors.known[_BLOCK] = coarse.upper
    seed = None if seed is None else seed + 1000
    seen = max(seen, coarse.lower)
    fine = probable_norms(errors, [_BLOCK], {_BLOCK: seen}, {_BLOCK: slack}, failure=failure / 2, seed=seed, **options)[
        _BLOCK
    ]
    upper = min(fine.upper, coarse.upper)
    return Norm(upper, min(max(fine.lower, coarse.lower), upper), "chebyshev", failure)


def confirm_scaled(
    scaled: ScaledMap,
    claim: Norm,
    *,
    limit: int,
    failure: float,
    seed: int | None = None,
    norms: Mapping[Pair, float] | None = None,
) -> str | None:
    """Prove afresh, by another method than ``claim.method``, that ‖S‖₂ ≤ claim.upper.

    Args:
        scaled: in float64.
        claim: of which ``upper`` and ``method`` are looked at.
        limit: the largest smaller side of S of which a matrix may be formed.
        failure: the probability with which a wrong claim may be confirmed; 0 allows no randomised test.
        seed: of the randomised test; None draws one that nobody could foresee.
        norms: upper bounds on norms of blocks of T, those that are confirmed.

    Returns:
        the method by which it was confirmed, or None if it could neither be confirmed nor refuted.

    Raises:
        BoundError: the claim is refuted: the norm was seen to be larger.
    """
    with ordinary_mode(), torch.no_grad(), torch.backends.cudnn.flags(enabled=False):
        errors = ScaledErrors(scaled, norms)
        side = min(scaled.source_shape(0)[0], scaled.target_shape(1)[0])
        seen = float(estimate_norms(scaled, [_BLOCK])[_BLOCK])
        if not seen <= claim.upper * (1 + 1e-9):  # nor where it overflows
            raise BoundError(f"the scaled map's norm is at least {seen:.9g}, but {claim.upper:.9g} is claimed.")
        try:
            if side <= limit and claim.method != "cholesky" and proved(errors, _BLOCK, claim.upper):
                return "cholesky"
            if side <= min(limit, DENSE) and claim.method != "dense":
                return "dense" if _explicit(scaled, errors).upper <= claim.upper else None
            room = claim.upper / seen - 1 if seen > 0 else 1.0
            if not failure or room < FINEST:
                return None
            norm = _by_test(errors, seen, min(_ROOM * room, _COARSE), failure, seed, MOST)
        except BoundError:
            return None
        return "chebyshev" if norm.upper <= claim.upper else None
