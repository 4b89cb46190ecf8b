"""Upper bounds on the norms of blocks of any size: the one place that chooses how each is proved."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from lipcert.errors import BoundError
from lipcert.loop import LoopMap, Pair
from lipcert.norms.dense import dense_norms, smaller_side
from lipcert.norms.randomised import probable_norms
from lipcert.norms.result import Norm

__all__ = ["upper_norms"]


def upper_norms(
    loop: LoopMap,
    pairs: Iterable[Pair],
    *,
    limit: int,
    failure: float = 0.0,
    slack: float = 1e-3,
    seed: int | None = None,
) -> dict[Pair, Norm]:
    """Upper bounds on ‖A_kj‖₂: by explicit matrix where that is small enough, else by the randomised test.

    Args:
        loop: T in float64.
        pairs: the blocks.
        limit: the largest smaller side of a matrix that may be formed.
        failure: the probability with which any of the bounds may be too small; with 0 they are deterministic.
        slack: relative excess that the randomised test aims at.
        seed: of its random start; None draws one that nobody could foresee, which its probability presumes.

    Raises:
        BoundError: a block is larger than ``limit`` and ``failure`` is 0 (nothing is computed then), weights that
            are not finite, or an option out of range.
    """
    if loop.resolved.dtype != torch.float64:
        raise BoundError("upper bounds are computed in float64: resolve the graph with dtype=torch.float64.")
    if not 0 <= failure < 0.1:
        raise BoundError(f"failure is a probability, such as 1e-12, and less than 0.1; got {failure}.")
    if not 1e-9 <= slack <= 1:
        raise BoundError(f"slack is a relative excess between 1e-9 and 1, such as 0.001; got {slack}.")
    pairs = list(pairs)
    large = [pair for pair in pairs if smaller_side(loop, pair) > limit]
    if large and not failure:
        k, j = large[0]
        source = "the input" if j == 0 else loop.nonlinear[j - 1].describe()
        target = "the output" if k == loop.depth + 1 else loop.nonlinear[k - 1].describe()
        raise BoundError(
            f"a deterministic upper bound needs the block from {source} to {target} as an explicit matrix, and its "
            f"smaller side of {smaller_side(loop, large[0])} exceeds the limit of {limit}. Allow a probability of "
            "failure, such as failure=1e-12, raise dense_limit (memory grows with the square of that side, time with "
            "its cube), or ask for guarantee='estimate', which is not a certificate."
        )
    norms = dense_norms(loop, [pair for pair in pairs if pair not in large])
    return norms | probable_norms(loop, large, failure=failure, slack=slack, seed=seed)
