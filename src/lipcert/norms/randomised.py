"""Upper bounds that hold with a stated probability, of blocks too large to form: a Chebyshev test.

Let B = AᵀA be the block's n×n matrix, λ its largest eigenvalue and v the unit eigenvector. A Gaussian n×q matrix G,
drawn after the weights are fixed, has ‖vᵀG‖ ≥ δ except with probability

    P(χ_q < δ) ≤ δ^q / (2^{q/2} Γ(q/2 + 1)).

The recurrence P_0 = G, P_1 = XP_0, P_{i+1} = 2XP_i − P_{i−1} with X = (2/c)B − I gives P_k = T_k(X)·G, so that
‖P_k‖ ≥ ‖vᵀP_k‖ ≥ T_k(2λ/c − 1)·δ. T_k grows like cosh(kφ) at cosh φ > 1, but stays below 1 where the eigenvalues
are: for c ≈ λ the norm ‖P_k‖ that is seen remains that of a Gaussian, and any λ for which cosh(kφ)·δ exceeds it is
ruled out. The relative slack of √λ is about (ln(2√(nq)/δ)/k)²/8: 0.1 % takes some 150 steps, each one pass of the block
and one of its adjoint.

Rounding is a part of the proof. If each computed P_i differs from 2XP_{i−1} − P_{i−2} by at most ε_i (in the
Frobenius norm), its product with vᵀ follows the same recurrence with errors of at most ε_i, which grow with U_{k−i}:

    ‖P_k‖ ≥ T_k·(δ − Σ_i ε_i U_{k−i}/T_k),     U_{k−i}/T_k = sinh((k−i+1)φ)/(sinh φ · cosh kφ),

and that ratio falls as φ grows, so what is ruled out at one φ is ruled out at all larger ones. More columns q make δ
larger, and the test able to bear more rounding.

The probability is that of ideal Gaussian numbers, for which those of torch's generator, seeded by the operating system,
stand in. The growth of T_k beyond the spectrum is the argument of Kuczyński and Woźniakowski, "Estimating the largest
eigenvalue by the power and Lanczos algorithms with a random start" (1992), for Lanczos; the fixed recurrence and the
account of its rounding are ours.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.errors import BoundError
from lipcert.loop import LoopMap, Pair
from lipcert.norms.dense import absolute_norm, relative_error, underflow
from lipcert.norms.power import estimate_norms, gram_products, product_plan
from lipcert.norms.result import Norm

__all__ = ["probable_norms"]

_UNIT = 2.0**-53
_SAFE = 1 + 2.0**-20  # covers the rounding of norms, of hyperbolic functions and of sums of a few hundred terms
_COLUMNS = (2, 3, 4, 6, 8, 12, 16, 24)
_HUGE = 1e100  # beyond this the recurrence stops: λ lies far above c, and the growth so far says how far
_RANGE = 1e-70, 1e100  # norms whose squares, and those of what matters beside them, are normal numbers
_ATTEMPTS = 4
_ROUGH = 0.05
_LOOKS = 160


@dataclass(frozen=True)
class _Block:
    """What the test needs to know of one block before it starts."""

    pair: Pair
    size: int
    alpha: float  # 4/c
    error: tuple[float, float]  # ‖fl(Bp) − Bp‖ ≤ error[0]·‖p‖ + error[1]


def _least_projection(columns: int, failure: float) -> float:
    """δ with ``P(χ_q < δ) ≤ failure``, from the volume of the ball."""
    log = math.log(failure) + columns / 2 * math.log(2) + math.lgamma(columns / 2 + 1)
    return math.exp(log / columns) / _SAFE


def _growth(index: int, steps: int, phi: float) -> float:
    """``U_{k−i}/T_k`` at cosh φ for i = ``index``, k = ``steps``."""
    j = steps - index + 1
    top = math.exp((j - steps) * phi) * -math.expm1(-2 * j * phi)
    return top / (1 + math.exp(-2 * steps * phi)) / math.sinh(phi)


def _least_phi(norm: float, errors: Sequence[float], delta: float) -> float:
    """The least φ at which ``norm < cosh(kφ)·(δ − Σ ε_i U_{k−i}/T_k)`` is certain, by bisection."""
    steps = len(errors)

    def excluded(phi: float) -> bool:
        lost = sum(e * _growth(i, steps, phi) for i, e in enumerate(errors, start=1)) * _SAFE
        if lost >= delta:
            return False
        log_cosh = steps * phi + math.log1p(math.exp(-2 * steps * phi)) - math.log(2)
        return math.log(norm * _SAFE) + 1e-9 < log_cosh + math.log((delta - lost) / _SAFE)

    low, high = 0.0, 1e-3
    while not excluded(high):
        low, high = high, 2 * high
        if high > 600:  # cosh would overflow; no block in the range of floats gets here
            raise BoundError("the randomised test excluded nothing: a block's rounding error exceeds its norm.")
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if excluded(middle) else (middle, high)
    return high


def _columns_and_steps(block: _Block, failure: float, slack: float) -> tuple[int, int]:
    """The fewest columns at which rounding takes no more than a quarter of δ, and the steps to reach the slack."""
    phi = math.acosh(1 + 2 * ((1 + slack) ** 2 - 1))
    for columns in _COLUMNS:
        delta = _least_projection(columns, failure)
        size = math.sqrt(block.size * columns)
        each = (block.alpha * block.error[0] + 32 * _UNIT) * size + block.alpha * block.error[1]
        if each / (phi * math.sinh(phi)) <= delta / 4:
            break
    return columns, math.ceil(math.acosh(4 / 3 * size / delta) / phi)


def _segment_norms(loop: LoopMap, failure: float, seed: int) -> dict[Pair, float]:
    """Rough upper bounds on the affine maps between activations, of which the blocks are sums of products."""
    segments = LoopMap(loop.graph, loop.resolved, centred=False)
    found = probable_norms(segments, segments.pairs(), failure=failure, slack=_ROUGH, seed=seed)
    return {pair: norm.upper for pair, norm in found.items()}


def _rounding(loop: LoopMap, pairs: Sequence[Pair], failure: float, seed: int) -> dict[Pair, tuple[float, float]]:
    """For each block a bound E on ``‖fl(A p) − A p‖/‖p‖``, for Aᵀ too, and a bound N on its norm.

    Of a single segment S, E = γ‖|S|‖. A block of a centred map is a sum over paths of products of segments, and
    ``Π(‖S‖ + γ‖|S|‖) − Π‖S‖``, summed over paths, bounds its error: far better than γ‖|A|‖ where A is deep.
    """
    relative = relative_error(loop)
    if not loop.centred or loop.depth < 2:
        sizes = {p: absolute_norm(loop, p) for p in pairs}
        return {p: (relative * s, s) for p, s in sizes.items()}
    flat = LoopMap(loop.graph, loop.resolved, centred=False)
    norms = _segment_norms(loop, failure, seed)
    errors = {p: relative * absolute_norm(flat, p) for p in norms}
    shares = [loop.shares(j) for j in range(loop.depth + 1)]
    found: dict[Pair, tuple[float, float]] = {}
    for k in range(1, loop.depth + 2):
        for j in range(k):
            own, slip = norms.get((k, j), 0.0) * shares[j][1], errors.get((k, j), 0.0) * shares[j][1]
            for i in range(j + 1, k):
                if (k, i) in norms and (i, j) in found:
                    error, norm = found[i, j]
                    own += norms[k, i] * shares[i][0] * norm
                    slip += shares[i][0] * (norms[k, i] * error + errors[k, i] * (norm + error))
            if own or slip:
                found[k, j] = slip * _SAFE, own * _SAFE
    return {p: found.get(p, (0.0, 0.0)) for p in pairs}


def _describe(
    loop: LoopMap, rounding: Mapping[Pair, tuple[float, float]], scale: Mapping[Pair, float], slack: float
) -> list[_Block]:
    lost = underflow(loop)
    blocks = []
    for (k, j), (error, most) in rounding.items():
        norm = scale[k, j]
        if norm > _RANGE[1]:
            raise BoundError("a block's norm exceeds 1e100: scale the weights, or form it (raise dense_limit).")
        centre = max(norm * (1 + slack / 4), _RANGE[0]) ** 2
        n_in, n_out = math.prod(loop.source_shape(j)), math.prod(loop.target_shape(k))
        # forward E·‖p‖ + lost, then through Aᵀ, ‖A‖ ≤ N; backward the same of what came forward
        each = error * (2 * most + error)
        still = math.sqrt(n_out) * lost[0][k] * (most + error) + math.sqrt(n_in) * lost[1][j]
        blocks.append(_Block((k, j), n_in, 4 / centre, (each * _SAFE, still * _SAFE)))
    return blocks


def _start(loop: LoopMap, block: _Block, columns: int, generator: torch.Generator) -> Tensor:
    """G, transposed: a Gaussian of shape (columns, *source_shape)."""
    shape = (columns, *loop.source_shape(block.pair[1]))
    return torch.randn(shape, generator=generator, dtype=loop.resolved.dtype)


def _test(
    loop: LoopMap, blocks: Sequence[_Block], columns: int, steps: int, failure: float, seed: int
) -> list[tuple[float, float]]:
    """Run the recurrence for several blocks side by side; returns for each norm what was seen, and an upper bound."""
    device = loop.resolved.device
    generator = torch.Generator().manual_seed(seed)
    present: dict[Pair, Tensor] = {}
    before: dict[Pair, Tensor] = {}
    errors: dict[Pair, list[float]] = {b.pair: [] for b in blocks}
    norms: dict[Pair, float] = {}
    for b in blocks:
        start = _start(loop, b, columns, generator)
        present[b.pair] = start.to(device)
        norms[b.pair] = float(start.norm()) * _SAFE
    last, seen = dict.fromkeys(norms, 0.0), dict.fromkeys(norms, 0.0)
    running, plan = list(blocks), product_plan(loop, present)
    for step in range(steps):
        images = gram_products(loop, plan, {b.pair: present[b.pair] for b in running})
        for b in running:
            p, image = b.pair, images[b.pair]
            if norms[p] > 0:
                seen[p] = max(seen[p], math.sqrt(float(image.norm()) / norms[p]))  # ‖BP‖ ≤ λ‖P‖
            following = image * (b.alpha / 2 if step == 0 else b.alpha)
            rounding = 8 * _UNIT * (float(following.norm()) * _SAFE + 2 * norms[p] + last[p])
            following = following.sub_(present[p]) if step == 0 else following.sub_(present[p], alpha=2).sub_(before[p])
            forming = b.alpha * (b.error[0] * norms[p] + math.sqrt(columns) * b.error[1])
            errors[p].append((forming + rounding) * _SAFE)
            before[p], present[p], last[p] = present[p], following, norms[p]
            norms[p] = float(following.norm()) * _SAFE
            if not math.isfinite(norms[p]):
                raise BoundError("a block overflows float64: the weights are not finite or too large.")
        still = [b for b in running if norms[b.pair] < _HUGE]
        if len(still) < len(running):
            running, plan = still, product_plan(loop, {b.pair: present[b.pair] for b in still})
        if not running:
            break
    delta = _least_projection(columns, failure)
    bounds = []
    for b in blocks:
        phi = _least_phi(norms[b.pair], errors[b.pair], delta)
        bounds.append((seen[b.pair], math.sqrt(2 * (1 + math.cosh(phi)) / b.alpha) * (1 + 2.0**-40)))
    return bounds


def probable_norms(
    loop: LoopMap,
    pairs: Iterable[Pair],
    *,
    failure: float,
    slack: float = 1e-3,
    seed: int | None = None,
) -> dict[Pair, Norm]:
    """Upper bounds on ‖A_kj‖₂ that hold all together except with probability ``failure``; nothing is formed.

    Args:
        loop: T in float64, at weights that were fixed before the seed was drawn.
        pairs: the blocks.
        failure: probability over the Gaussian start that any of them is below the norm (shared out equally).
        slack: relative excess to aim at; what comes out may be a little more or less.
        seed: of the Gaussian start; drawn from the operating system if None. A seed that the weights' author could
            foresee voids the probability.

    Raises:
        BoundError: weights that are not finite, or a block of norm beyond 1e100.
    """
    pairs = list(pairs)
    if not pairs:
        return {}
    seed = secrets.randbits(62) if seed is None else seed
    # only the scale, and soon enough: a test whose scale was low sees a better one, and is made again
    estimates = estimate_norms(loop, pairs, seed=seed ^ 1, tolerance=slack / 1e5, max_iterations=_LOOKS)
    rounding = _rounding(loop, pairs, failure / 8, seed ^ 2)
    least = {p: float(v) for p, v in estimates.items()}
    norms: dict[Pair, Norm] = {}
    open_pairs, each = pairs, 7 / 8 * failure / (len(pairs) * _ATTEMPTS)
    for attempt in range(_ATTEMPTS):
        for (columns, steps), blocks in _grouped(
            _describe(loop, {p: rounding[p] for p in open_pairs}, least, slack), each, slack
        ).items():
            found = _test(loop, blocks, columns, steps, each, seed + 100 * attempt + columns)
            for (seen, upper), pair in zip(found, (b.pair for b in blocks), strict=True):
                least[pair] = max(least[pair], seen) if least[pair] <= upper else seen
                upper = min(upper, norms[pair].upper) if pair in norms else upper
                norms[pair] = Norm(upper, min(least[pair], upper), "chebyshev", failure / len(pairs))
        # where the scale was off, once more with a better one
        open_pairs = [p for p in open_pairs if norms[p].upper > (1 + 2 * slack) * norms[p].lower > _RANGE[0]]
        if not open_pairs:
            break
    return norms


def _grouped(blocks: Iterable[_Block], failure: float, slack: float) -> dict[tuple[int, int], list[_Block]]:
    """Blocks that take the same number of columns go side by side, for as many steps as the slowest needs."""
    by_columns: dict[int, list[tuple[_Block, int]]] = {}
    for block in blocks:
        columns, steps = _columns_and_steps(block, failure, slack)
        by_columns.setdefault(columns, []).append((block, steps))
    return {(q, max(steps for _, steps in found)): [b for b, _ in found] for q, found in sorted(by_columns.items())}
