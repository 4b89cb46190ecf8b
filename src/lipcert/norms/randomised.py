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
from lipcert.loop import BlockMap, Pair
from lipcert.norms.errors import UNIT, Errors, Lost, underflow
from lipcert.norms.power import gram_products, product_plan
from lipcert.norms.result import Norm

__all__ = ["probable_norms"]

_SAFE = 1 + 2.0**-20  # covers the rounding of norms, of hyperbolic functions and of sums of a few hundred terms
_COLUMNS = (2, 3, 4, 6, 8, 12, 16, 24)
_HUGE = 1e100  # beyond this the recurrence stops: λ lies far above c, and the growth so far says how far
_RANGE = 1e-70, 1e100  # norms whose squares, and those of what matters beside them, are normal numbers
_ATTEMPTS = 4
_CENTRE = 0.05  # of the slack, by which the test is centred beyond the scale: that may be a little low


@dataclass(frozen=True)
class _Block:
    """What the test of one block is to be."""

    pair: Pair
    alpha: float  # 4/c
    error: tuple[float, float]  # ‖fl(Bp) − Bp‖ ≤ error[0]·‖p‖ + error[1]
    columns: int
    steps: int


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


def _describe(errors: Errors, pair: Pair, scale: float, failure: float, slack: float, lost: Lost) -> _Block:
    """What the test of one block will be: of all numbers of columns that bear its rounding, the cheapest."""
    if scale > _RANGE[1]:
        raise BoundError("a block's norm exceeds 1e100: scale the weights, or form it (raise dense_limit).")
    (k, j), loop = pair, errors.loop
    slack /= 1 + _CENTRE  # what is ruled out begins at so much beyond the centre, which is itself beyond the scale
    centre = max(scale * (1 + _CENTRE * slack), _RANGE[0]) ** 2
    n_in, n_out = math.prod(loop.source_shape(j)), math.prod(loop.target_shape(k))
    error, most = errors.error(pair), errors.norm(pair)
    # forward E·‖p‖ + lost, then through Aᵀ, ‖A‖ ≤ N; backward the same of what came forward
    each = error * (2 * most + error) * _SAFE
    still = (math.sqrt(n_out) * lost[0][k] * (most + error) + math.sqrt(n_in) * lost[1][j]) * _SAFE
    phi, alpha = math.acosh(1 + 2 * ((1 + slack) ** 2 - 1)), 4 / centre
    found: list[tuple[int, int]] = []
    for columns in _COLUMNS:
        delta, size = _least_projection(columns, failure), math.sqrt(n_in * columns)
        steps = math.ceil(math.acosh(4 / 3 * size / delta) / phi)
        if ((alpha * each + 32 * UNIT) * size + alpha * still) / (phi * math.sinh(phi)) <= delta / 4:
            found.append((columns, steps))
    columns, steps = min(found, key=lambda f: f[0] * f[1]) if found else (columns, steps)
    return _Block(pair, alpha, (each, still), columns, steps)


def _start(loop: BlockMap, block: _Block, columns: int, generator: torch.Generator) -> Tensor:
    """G, transposed: a Gaussian of shape (columns, *source_shape)."""
    shape = (columns, *loop.source_shape(block.pair[1]))
    return torch.randn(shape, generator=generator, dtype=loop.resolved.dtype)


def _test(loop: BlockMap, blocks: Sequence[_Block], failure: float, seed: int) -> list[tuple[float, float]]:
    """Run the recurrence for several blocks side by side; returns for each norm what was seen, and an upper bound."""
    device = loop.resolved.device
    generator = torch.Generator().manual_seed(seed)
    present: dict[Pair, Tensor] = {}
    before: dict[Pair, Tensor] = {}
    errors: dict[Pair, list[float]] = {b.pair: [] for b in blocks}
    norms: dict[Pair, float] = {}
    for b in blocks:
        start = _start(loop, b, b.columns, generator)
        present[b.pair] = start.to(device)
        norms[b.pair] = float(start.norm()) * _SAFE
    last, seen = dict.fromkeys(norms, 0.0), dict.fromkeys(norms, 0.0)
    running, plan = list(blocks), product_plan(loop, present)
    for step in range(max(b.steps for b in blocks)):
        images = gram_products(loop, plan, {b.pair: present[b.pair] for b in running})
        for b in running:
            p, image = b.pair, images[b.pair]
            if norms[p] > 0:
                seen[p] = max(seen[p], math.sqrt(float(image.norm()) / norms[p]))  # ‖BP‖ ≤ λ‖P‖
            following = image * (b.alpha / 2 if step == 0 else b.alpha)
            rounding = 8 * UNIT * (float(following.norm()) * _SAFE + 2 * norms[p] + last[p])
            following = following.sub_(present[p]) if step == 0 else following.sub_(present[p], alpha=2).sub_(before[p])
            forming = b.alpha * (b.error[0] * norms[p] + math.sqrt(b.columns) * b.error[1])
            errors[p].append((forming + rounding) * _SAFE)
            before[p], present[p], last[p] = present[p], following, norms[p]
            norms[p] = float(following.norm()) * _SAFE
            if not math.isfinite(norms[p]):
                raise BoundError("a block overflows float64: the weights are not finite or too large.")
        still = [b for b in running if norms[b.pair] < _HUGE and step + 1 < b.steps]
        if len(still) < len(running):
            running = still
            present = {b.pair: present[b.pair] for b in still}
            plan = product_plan(loop, present)
        if not running:
            break
    bounds = []
    for b in blocks:
        phi = _least_phi(norms[b.pair], errors[b.pair], _least_projection(b.columns, failure))
        bounds.append((seen[b.pair], math.sqrt(2 * (1 + math.cosh(phi)) / b.alpha) * (1 + 2.0**-40)))
    return bounds


def probable_norms(
    errors: Errors,
    pairs: Iterable[Pair],
    estimates: Mapping[Pair, float],
    slack: Mapping[Pair, float],
    *,
    failure: float,
    seed: int | None = None,
    most: float = math.inf,
) -> dict[Pair, Norm]:
    """Upper bounds on ‖A_kj‖₂ that hold all together except with probability ``failure``; nothing is formed.

    Args:
        errors: of T in float64, at weights that were fixed before the seed was drawn; the norms that are found are
            made known to it.
        pairs: the blocks.
        estimates: of the norms: the scale of the test. A wrong one costs accuracy, or a second test, and nothing else.
        slack: relative excess to aim at; what comes out may be a little more or less.
        failure: probability over the Gaussian start that any of them is below the norm (shared out equally).
        seed: of the Gaussian start; drawn from the operating system if None. A seed that the weights' author could
            foresee voids the probability.
        most: products of AᵀA with a vector that may be spent on a block, by all of its tests together.

    Raises:
        BoundError: weights that are not finite, a block of norm beyond 1e100, or one whose first test would take more
            than ``most`` products.
    """
    distances: dict[int, list[Pair]] = {}
    for k, j in pairs:
        distances.setdefault(k - j, []).append((k, j))
    total = sum(map(len, distances.values()))
    seed, loop = secrets.randbits(62) if seed is None else seed, errors.loop
    lost, norms = underflow(loop) if total else ([], []), dict[Pair, Norm]()
    for _, together in sorted(distances.items()):
        open_pairs, least, spent = together, {p: estimates[p] for p in together}, dict.fromkeys(together, 0)
        each = failure / (total * _ATTEMPTS)
        for _ in range(_ATTEMPTS):
            blocks = [_describe(errors, p, least[p], each, slack[p], lost) for p in open_pairs]
            for b in blocks:
                spent[b.pair] += b.columns * b.steps
                if spent[b.pair] > most and b.pair not in norms:
                    raise BoundError(f"the randomised test of a block would take {spent[b.pair]} products, not {most}.")
            blocks = [b for b in blocks if spent[b.pair] <= most]
            if not blocks:
                break
            open_pairs = [b.pair for b in blocks]
            seed += 1
            for (seen, upper), pair in zip(_test(loop, blocks, each, seed), open_pairs, strict=True):
                least[pair] = max(least[pair], seen) if least[pair] <= upper else seen
                upper = min(upper, norms[pair].upper) if pair in norms else upper
                norms[pair] = Norm(upper, min(least[pair], upper), "chebyshev", failure / total)
                errors.known[pair] = upper
            # where the scale was off, once more with a better one
            open_pairs = [p for p in open_pairs if norms[p].upper > (1 + 2 * slack[p]) * norms[p].lower > _RANGE[0]]
            if not open_pairs:
                break
    return norms
