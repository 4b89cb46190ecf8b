"""Euclidean norms of rows that neither underflow nor overflow on the way.

The square of 1e-170 is 0 in float64. A norm that is lost in this way makes a bound too small, so rows whose norm
comes out very small or very large are scaled by a power of two, which is exact, and measured again.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["row_differences", "row_norms"]

_SAFE = 2.0**-450, 2.0**450  # squares of norms in between, and of what matters in them, are normal numbers
_CHUNK = 2**24


def _power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent exactly, for exponents in −1022…1023 (``torch.exp2`` may err in the last digit)."""
    return ((exponent.long() + 1023) << 52).view(torch.float64)


def _scaled_norms(rows: Tensor) -> Tensor:
    largest = rows.abs().amax(dim=1)
    exponent = torch.frexp(largest).exponent.long()
    half = exponent.div(2, rounding_mode="floor")
    factors = _power_of_two(half), _power_of_two(exponent - half)
    shrink = _power_of_two(-half), _power_of_two(half - exponent)
    norms = ((rows * shrink[0][:, None]) * shrink[1][:, None]).norm(dim=1) * factors[0] * factors[1]
    norms = torch.where(largest > 0, norms.clamp_min(torch.finfo(torch.float64).tiny), norms)
    return torch.where(torch.isfinite(largest), norms, largest)


def _unsafe(norms: Tensor) -> Tensor:
    return (norms < _SAFE[0]) | ~(norms < _SAFE[1])


def row_norms(rows: Tensor) -> Tensor:
    """``‖row‖₂`` of each row of a float64 matrix, (m, n) → (m,); a subnormal result is raised to the least normal.

    Example:
        >>> norms = row_norms(torch.tensor([[3e-200, 4e-200], [3e200, 4e200], [0.0, 0.0]], dtype=torch.float64))
        >>> [f"{norm:.9g}" for norm in norms]
        ['5e-200', '5e+200', '0']
    """
    norms: Tensor = rows.norm(dim=1)
    odd = _unsafe(norms)
    if bool(odd.any()):
        norms[odd] = _scaled_norms(rows[odd])
    return norms


def row_differences(left: Tensor, right: Tensor) -> Tensor:
    """``‖left_a − right_b‖₂`` for all rows of two float64 matrices, each difference formed: (A, n), (B, n) → (A, B).

    Example:
        >>> rows = torch.tensor([[1e-200], [3e-200], [1e-200]], dtype=torch.float64)
        >>> row_differences(rows, rows)[0].tolist()
        [0.0, 2e-200, 0.0]
    """
    if left is right and len(left) > 1:  # each difference once
        distances = left.new_zeros((len(left), len(left)))
        a, b = torch.triu_indices(len(left), len(left), 1, device=left.device)
        distances[a, b] = distances[b, a] = torch.pdist(left)
    else:
        distances = torch.cdist(left, right, compute_mode="donot_use_mm_for_euclid_dist")
    if not bool(left.any()) and not bool(right.any()):
        return distances
    a, b = torch.nonzero(_unsafe(distances), as_tuple=True)
    step = max(1, _CHUNK // left.shape[1])
    for i in range(0, len(a), step):
        some = slice(i, i + step)
        distances[a[some], b[some]] = _scaled_norms(left[a[some]] - right[b[some]])
    return distances
