"""Claimed upper bounds on norms, confirmed by another method than the one that made them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from lipcert.errors import BoundError
from lipcert.graph.capture import ordinary_mode
from lipcert.loop import LoopMap, Pair
from lipcert.norms.cholesky import proved
from lipcert.norms.dense import dense_norms, smaller_side
from lipcert.norms.errors import BlockErrors
from lipcert.norms.lanczos import estimate_norms
from lipcert.norms.randomised import probable_norms
from lipcert.norms.result import Norm
from lipcert.norms.upper import DENSE, check_failure

__all__ = ["FINEST", "MOST", "SHARE", "confirm_norms"]

_REFUTED = 1 + 1e-9  # beyond the rounding of what was seen
FINEST = 1e-5  # a test for less would take hours
MOST = 10_000  # products of a test, for each block: no claim makes its confirmation take longer
SHARE = 0.75  # of the room between what a norm was seen to be and what is claimed, aimed at by a new test
_LOOKS = 200


def confirm_norms(
    loop: LoopMap, claims: Mapping[Pair, Norm], *, limit: int, failure: float, seed: int | None = None
) -> dict[Pair, str]:
    """Prove afresh that no block's norm exceeds its claimed ``upper``.

    What came from an explicit matrix or from the randomised test is tried with a Gram matrix and a Cholesky
    factorisation; what came from those, or is too large for them, with the randomised test, from a new start. That
    takes a bounded number of products whatever is claimed: what would take more is left out. Of a claim only ``upper``
    and ``method`` are looked at.

    Args:
        loop: T in float64.
        claims: what is claimed of each block.
        limit: the largest smaller side of a block of which a matrix may be formed.
        failure: the probability with which a wrong claim may be confirmed; 0 allows no randomised test.
        seed: of the randomised test; None draws one that nobody could foresee.

    Returns:
        for each block the method by which its claim was confirmed: ``"cholesky"``, ``"dense"`` or ``"chebyshev"``; a
        block whose claim could neither be confirmed nor refuted is missing.

    Raises:
        BoundError: a claim is refuted (its norm was seen to be larger), or an option out of range.
    """
    check_failure(failure)
    if loop.resolved.dtype != torch.float64:
        raise BoundError("norms are confirmed in float64: resolve the graph with dtype=torch.float64.")
    claims = {p: claim for p, claim in claims.items() if math.isfinite(claim.upper)}
    with ordinary_mode(), torch.no_grad(), torch.backends.cudnn.flags(enabled=False):
        return _confirm(loop, claims, limit, max(failure, 1e-300) if failure else 0.0, seed)


def _confirm(
    loop: LoopMap, claims: Mapping[Pair, Norm], limit: int, failure: float, seed: int | None
) -> dict[Pair, str]:
    odd = [p for p in claims if p not in set(loop.pairs())]
    if odd:
        raise BoundError(f"there is no block {odd[0]} in this network.")
    seen = estimate_norms(loop, claims, seed=(seed or 0) ^ 1, max_products=_LOOKS)
    for pair, claim in claims.items():
        if float(seen[pair]) > claim.upper * _REFUTED:
            raise BoundError(
                f"the norm of block {pair} is at least {float(seen[pair]):.9g}, but {claim.upper:.9g} is claimed."
            )
    found: dict[Pair, str] = {}
    known: dict[Pair, float] = {}  # what is confirmed may be built upon
    errors = BlockErrors(loop, known)
    for pair in sorted(claims, key=lambda p: p[0] - p[1]):
        method = _by_matrix(errors, pair, claims[pair], limit)
        if method is None and failure:
            method = _by_test(errors, pair, claims[pair], float(seen[pair]), failure / len(claims), seed)
        if method is not None:
            found[pair] = method
            known[pair] = claims[pair].upper
    return found


def _by_matrix(errors: BlockErrors, pair: Pair, claim: Norm, limit: int) -> str | None:
    side = smaller_side(errors.loop, pair)
    if side > limit:
        return None
    if claim.method != "cholesky":
        try:
            return "cholesky" if proved(errors, pair, claim.upper) else None
        except BoundError:  # its square is beyond the range of floats
            return None
    if side <= DENSE and dense_norms(errors.loop, [pair])[pair].upper <= claim.upper:
        return "dense"
    return None


def _by_test(errors: BlockErrors, pair: Pair, claim: Norm, seen: float, failure: float, seed: int | None) -> str | None:
    room = claim.upper / seen - 1 if seen > 0 else 1.0
    if room < FINEST:
        return None
    aim = {pair: min(SHARE * room, 0.1)}
    try:
        norm = probable_norms(errors, [pair], {pair: seen}, aim, failure=failure, seed=seed, most=MOST)
    except BoundError:
        return None
    return "chebyshev" if norm[pair].upper <= claim.upper else None
