"""The worst that a layer's entries can do together: each within its own limit, all within one ℓ2 budget.

    max Σ_i max(first_i·v_i, second_i·v_i − drop_i)   over   0 ≤ v_i ≤ far_i,  ‖v‖₂ ≤ B

is at most ``μ·B² + Σ_i max_v (… − μ·v²)`` for every price μ ≥ 0 (weak duality), and each maximum has a closed form.
Some prices are tried; whichever proves least is kept, so none of them has to be right.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["most_harm"]

_PRICES = 12
_DEAREST = 2.0**500
_UP, _DOWN = 1 + 2.0**-45, 1 - 2.0**-45
_SAFE = 1 + 2.0**-24


def most_harm(
    first: Tensor, second: Tensor, drop: Tensor, far: Tensor, row: Tensor, budget: Tensor
) -> tuple[Tensor, Tensor]:
    """Upper bounds of R such maxima at once, and the prices that prove them.

    Args:
        first, second, drop, far: (n,) float64, none negative: the entries of all problems, one after the other.
        row: (n,) int64, which problem each entry is of.
        budget: (R,), B of each.

    Returns:
        (R,) bounds, from above with rounding, and (R,) prices.

    Example:
        Two entries of slope 1 with room enough share a budget of 1 evenly: √2.

        >>> one, row = torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)
        >>> most_harm(one, 0 * one, 0 * one, 9 * one, row, one[:1])[0].round(decimals=6).tolist()
        [1.414214]
    """
    tiny, nothing = torch.finfo(first.dtype).tiny, torch.zeros_like(budget)
    total = nothing.index_add(0, row, torch.maximum(first, second).square()).sqrt()
    price = (total / (2 * budget).clamp_min(tiny)).clamp(tiny, _DEAREST)
    best, proof = torch.full_like(budget, torch.inf), price
    for _ in range(_PRICES):
        each = price[row]
        one = torch.minimum(first / (2 * each), far)
        two = torch.minimum(second / (2 * each), far)
        harm = torch.maximum(
            one * (first * _UP - each * one * _DOWN), two * (second * _UP - each * two * _DOWN) - drop * _DOWN
        )
        value = (price * budget * budget).index_add(0, row, harm.clamp_min(0.0))
        proof = torch.where(value < best, price, proof)
        best = torch.minimum(best, value)
        price = (price * 0.5**0.5).clamp_min(tiny)
    return best * _SAFE, proof
