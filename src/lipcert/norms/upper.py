"""Upper bounds on the norms of blocks of any size: the one place that chooses how each is proved."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from lipcert.errors import BoundError
from lipcert.graph.types import Affine
from lipcert.loop import LoopMap, Pair
from lipcert.norms.chain import chain, chain_norms
from lipcert.norms.cholesky import cholesky_norms
from lipcert.norms.dense import dense_norms, matrix_norms, smaller_side
from lipcert.norms.errors import BlockErrors
from lipcert.norms.lanczos import leading_vectors
from lipcert.norms.randomised import probable_norms
from lipcert.norms.result import Norm

__all__ = ["DENSE", "Shares", "check_failure", "deterministic_limit", "upper_norms"]

DENSE = 2048
"""The largest smaller side of a block that is made explicit, if a probability of failure is allowed for the others."""
_CHOLESKY = 16384
_LOOKS = 320
_SINGLE = 1e-6  # the relative error that is within reach of float32
_CLOSE = 1e-3  # of the slack: so much too low may an estimate be
_GLANCES = 20  # at blocks whose bound does not depend on what is seen
_LARGEST_SLACK = 0.1
_LEFT = 0.25  # of the slack, for the norms that do not come from layers
_LEAST_SHARE = 0.1  # of the slack asked for: less costs steps and gains nothing

Shares = Callable[[Mapping[Pair, float]], Mapping[Pair, float]]
"""From the norms, how much a relative change of each changes the bound, relatively."""


def deterministic_limit(limit: int | None, failure: float) -> int:
    """The largest smaller side of a block that may be proved from its Gram matrix; where None is given, it is chosen.

    A Gram matrix of 16,384 rows takes 2 GiB, and its factorisation another 2.
    """
    if limit is not None:
        return limit
    return DENSE if failure else _CHOLESKY


def check_failure(failure: float) -> None:
    """Refuse what is no probability, or a large one."""
    if not 0 <= failure < 0.1:
        raise BoundError(f"failure is a probability, such as 1e-12, and less than 0.1; got {failure}.")


def _cost(loop: LoopMap, pair: Pair) -> float:
    """Multiplications of one pass through a block, roughly."""
    return 1.0 + sum(
        math.prod(node.shape) * (node.terms[0] if node.terms else 1)
        for node in loop.between(*pair)
        if isinstance(node, Affine)
    )


def _slacks(
    loop: LoopMap, pairs: Sequence[Pair], estimates: Mapping[Pair, float], slack: float, shares: Shares | None
) -> dict[Pair, float]:
    """The relative excess to aim at in each norm, so that that of the bound is ``slack`` at the least expense.

    A test's cost goes like c/√s with the excess s, and the bound's excess is Σ w·s: s ∝ (c/w)^{2/3}. Without shares
    every norm gets the same.
    """
    if shares is None:
        return dict.fromkeys(pairs, slack)
    weights = shares(estimates)
    ratio = {p: (_cost(loop, p) / max(weights[p], 1e-9)) ** (2 / 3) for p in pairs}
    total = sum(weights[p] * ratio[p] for p in pairs)
    if not (total > 0 and math.isfinite(total)):
        return dict.fromkeys(pairs, slack)
    return {p: min(max(slack * ratio[p] / total, _LEAST_SHARE * slack), _LARGEST_SLACK) for p in pairs}


def _estimates(
    loop: LoopMap, pairs: Sequence[Pair], tolerance: float, seed: int, looks: int = _LOOKS
) -> dict[Pair, float]:
    """Norms from below: in float32, which is several times as fast, and on in float64 where that is not enough."""
    single = loop.at(loop.graph.resolve(torch.float32))
    found = leading_vectors(single, pairs, seed=seed, tolerance=max(tolerance, _SINGLE), max_products=looks)
    odd = {p for p in pairs if not 1e-15 < float(found[p].norm) < 1e15}
    if odd or tolerance < _SINGLE:
        more = [p for p in pairs if p in odd or tolerance < _SINGLE]
        start = {p: found[p].vector for p in more if p not in odd}
        found |= leading_vectors(loop, more, seed=seed, tolerance=tolerance, max_products=looks, start=start)
    return {p: float(v.norm) for p, v in found.items()}


def _by_layers(
    loop: LoopMap, pairs: Sequence[Pair], estimates: Mapping[Pair, float], slack: float, shares: Shares | None
) -> tuple[dict[Pair, Norm], float]:
    """Norms from layers, in seconds, where they are within the slack; and what they leave of it to the others.

    Args:
        loop: T in float64.
        pairs: blocks of which a Gram matrix may be formed, which takes minutes where they are large.
        estimates: of all norms that ``shares`` wants.
        slack, shares: as for :func:`upper_norms`.
    """
    chains = {p: layers for p in pairs if estimates[p] > 0 and (layers := chain(loop, p, limit=DENSE)) is not None}
    try:
        found = chain_norms(loop, chains, estimates)
    except BoundError:  # a product overflows, which its block need not
        return {}, slack
    excess = {p: norm.upper / estimates[p] - 1 for p, norm in found.items()}
    if shares is None:
        return {p: norm for p, norm in found.items() if excess[p] <= slack}, slack
    weights, taken, left = shares(estimates), dict[Pair, Norm](), slack
    for p in sorted(found, key=lambda p: (-smaller_side(loop, p), p)):
        if left - weights[p] * excess[p] >= _LEFT * slack:
            taken[p], left = found[p], left - weights[p] * excess[p]
    return taken, left


def _closer(
    loop: LoopMap,
    values: Mapping[Pair, float],
    norms: Mapping[Pair, Norm],
    slack: float,
    errors: BlockErrors | None = None,
) -> dict[Pair, Norm]:
    """Norms of explicit matrices once more, where what forming them may lose counts, now that others are known."""
    loose = {p: v for p, v in values.items() if norms[p].upper > v * (1 + _LEAST_SHARE * slack)}
    if not loose:
        return {}
    errors = BlockErrors(loop, {p: n.upper for p, n in norms.items()}) if errors is None else errors
    found = dense_norms(loop, loose, values=loose, errors=errors)
    return {p: n for p, n in found.items() if n.upper < norms[p].upper}


def upper_norms(
    loop: LoopMap,
    pairs: Iterable[Pair],
    *,
    limit: int | None = None,
    failure: float = 0.0,
    slack: float = 1e-3,
    shares: Shares | None = None,
    seed: int | None = None,
) -> dict[Pair, Norm]:
    """Upper bounds on ‖A_kj‖₂: by explicit matrix, by Gram matrix, or by the randomised test, as their size allows.

    With ``failure`` 0 blocks that are too large for a matrix are bounded by the product of the norms of their layers,
    if they are chains of such, none of which needs a larger matrix (``chain.py``): looser than the others by what zero
    padding and the product give away. Where that is within ``slack``, as it is for single convolutions of large images
    or with a slack of some per cent, they take the place of Gram matrices too, and seconds instead of minutes.

    Args:
        loop: T in float64.
        pairs: the blocks.
        limit: the largest smaller side of a block of which a matrix may be formed; chosen if None.
        failure: the probability with which any of the bounds may be too small; with 0 they are deterministic.
        slack: relative excess to aim at: of each norm, or, with ``shares``, of the bound that is made from them.
        shares: how much each norm counts in that bound.
        seed: of the random start; None draws one that nobody could foresee, which the probability presumes.

    Raises:
        BoundError: a block is larger than ``limit``, no chain of layers, and ``failure`` is 0 (nothing is computed
            then), weights that are not finite, or an option out of range.
    """
    if loop.resolved.dtype != torch.float64:
        raise BoundError("upper bounds are computed in float64: resolve the graph with dtype=torch.float64.")
    check_failure(failure)
    if not 1e-9 <= slack <= 1:
        raise BoundError(f"slack is a relative excess between 1e-9 and 1, such as 0.001; got {slack}.")
    pairs, most = list(pairs), deterministic_limit(limit, failure)
    sides = {p: smaller_side(loop, p) for p in pairs}
    small = [p for p in pairs if sides[p] <= min(DENSE, most)]
    medium = [p for p in pairs if min(DENSE, most) < sides[p] <= most]
    large = [p for p in pairs if sides[p] > most]
    chains = {} if failure else {p: layers for p in large if (layers := chain(loop, p, limit=most)) is not None}
    refused = [] if failure else [p for p in large if p not in chains]
    if refused:
        k, j = refused[0]
        source = "the input" if j == 0 else loop.nonlinear[j - 1].describe()
        target = "the output" if k == loop.depth + 1 else loop.nonlinear[k - 1].describe()
        raise BoundError(
            f"a deterministic upper bound needs the block from {source} to {target} as an explicit matrix, and its "
            f"smaller side of {sides[refused[0]]} exceeds the limit of {most}. Allow a probability of failure, such as "
            "failure=1e-12, raise dense_limit (memory grows with the square of that side, time with its cube), or ask "
            "for guarantee='estimate', which is not a certificate."
        )
    values = matrix_norms(loop, small)
    norms = dense_norms(loop, small, values=values)
    if chains:
        norms |= chain_norms(loop, chains, _estimates(loop, list(chains), slack, (seed or 0) ^ 1, _GLANCES))
        large = []
    if not medium and not large:
        return norms | _closer(loop, values, norms, slack)
    estimates = _estimates(loop, medium + large, _CLOSE * slack, (seed or 0) ^ 1)
    known = {p: n.upper for p, n in norms.items()}
    if not failure:
        layered, slack = _by_layers(loop, medium, known | estimates, slack, shares)
        norms |= layered
        medium = [p for p in medium if p not in layered]
        known |= {p: n.upper for p, n in layered.items()}
    slacks = _slacks(loop, medium + large, known | estimates, slack, shares)
    errors = BlockErrors(loop, known)
    norms |= cholesky_norms(errors, medium, estimates, slacks)
    norms |= probable_norms(errors, large, estimates, slacks, failure=failure, seed=seed)
    return norms | _closer(loop, values, norms, slack, errors)
