"""P of a small-gain bound, from the gain matrix and back to it.

P = N^{-1/2} makes ‖S‖ = 1, S being the whole scaled map: the bound ‖P⁻ᵀh‖ = √(hᵀNh) of every functional h of the output
rests on that one norm. Where N was found a little too small, ‖S‖ > 1, which counts level(y) times over in the bound. So
P is made smaller. The largest eigenvalue of PNPᵀ is that of a fractional program,

    s² = max_v ‖P·y(v)‖²/(‖v‖² − ‖S_z·v‖²),

solved as Dinkelbach did: v is the leading vector of S with P/s for the last s, until that S has norm 1. With
u = P·y(v)/|P·y(v)|, P ← (I − (1 − 1/s)·uuᵀ)·P makes up for what was missing in that direction alone.

Source: Dinkelbach, "On nonlinear fractional programming" (1967).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipcert.bounds.result import Scope
from lipcert.errors import BoundError
from lipcert.norms.errors import TINY, gamma
from lipcert.norms.lanczos import leading_vectors
from lipcert.scaled import ScaledMap

__all__ = ["fitted", "functional_norms", "whitening"]

_FLOOR = 1e-9  # of the mean of N's diagonal is added to it, so that it can be inverted
_DIRECTIONS, _ROUNDS = 8, 4  # in which P is made smaller one by one, before it is as a whole; of Dinkelbach's method
_ENOUGH = 1e-5  # by which ‖S‖ may be above 1
_SENSELESS = 1e100
_LOOKS, _CLOSE = 60, 1e-4  # products for each, and how close to the norm


def whitening(gain: Tensor | float) -> Tensor | float:
    """P with PᵀP ≈ N⁻¹.

    Raises:
        BoundError: N is zero, or not what it should be.
    """
    if not isinstance(gain, Tensor):
        if not 0 < gain < math.inf:
            raise BoundError(f"there is no small-gain bound where the gain is {gain:g}: use method='liplt'.")
        return 1 / math.sqrt(gain)
    floor, eye = _FLOOR * float(gain.diagonal().mean()), torch.eye(len(gain), dtype=gain.dtype)
    while floor < float(gain.diagonal().sum()):
        root, info = torch.linalg.cholesky_ex(gain + floor * eye)
        if not int(info):
            found: Tensor = torch.linalg.solve_triangular(root, eye, upper=False)
            return found
        floor *= 4
    raise BoundError("the gain matrix is not what it should be: use method='liplt'.")


def fitted(scaled: ScaledMap, output: Tensor | float) -> Tensor | float:
    """P made smaller until ‖S‖ ≤ 1, as far as some steps of Lanczos see; not a proof.

    Args:
        scaled: S without y, in the dtype to compute in.
        output: P, (m, C) float64, or a number.
    """
    for _ in range(_DIRECTIONS if isinstance(output, Tensor) else 0):
        square, u = _worst(scaled, output)
        if u is None:
            return output
        assert isinstance(output, Tensor)
        output = output - (1 - square**-0.5) * torch.outer(u, u @ output)
    square, _ = _worst(scaled, output)
    return output / math.sqrt(square)


def _worst(scaled: ScaledMap, output: Tensor | float) -> tuple[float, Tensor | None]:
    """s² and u, the leading eigenpair of PNPᵀ; 1 and None if s² is not above 1, or nothing can be told."""
    like, square, start = scaled.divisors, 1.0, None
    u: Tensor | None = None
    for attempt in range(_ROUNDS):
        part = output / math.sqrt(square)
        whole = ScaledMap(scaled.loop, scaled.weights, part.to(like) if isinstance(part, Tensor) else part)
        found = leading_vectors(whole, [(1, 0)], tolerance=_CLOSE, max_products=_LOOKS, seed=attempt, start=start)[1, 0]
        if not 1 + _ENOUGH < float(found.norm) < _SENSELESS:
            break
        z, y = whole.values(found.vector[None])
        room = 1 - float(z.double().square().sum())
        if y is None or not room > _ENOUGH:  # ‖S_z‖ is what is too large
            break
        flat = y.double().reshape(-1).cpu()
        out = output @ flat if isinstance(output, Tensor) else output * flat
        square, start, u = max(float(out.square().sum()) / room, square), {(1, 0): found.vector}, out / out.norm()
    return square, u


def _times_power(value: Tensor, exponent: int) -> Tensor:
    """``value·2^exponent``, in two halves, of which none overflows."""
    return value * math.ldexp(1.0, exponent // 2) * math.ldexp(1.0, exponent - exponent // 2)


def functional_norms(output: Tensor, scope: Scope) -> Tensor:
    """Upper bounds on ‖P⁻ᵀh‖ for the functionals h of a scope.

    With X ≈ P⁻¹ and F = I − XP: h·y = (Xᵀh)·(Py) + h·Fy, and ‖y‖ ≤ ‖X‖/(1 − ‖F‖)·‖Py‖.
    """
    size = len(output)
    # at a scale at which no square of what matters underflows
    exponent = -math.frexp(float(output.abs().max()))[1]
    output = _times_power(output, exponent)
    inverse, info = torch.linalg.inv_ex(output)
    if int(info) or not bool(torch.isfinite(inverse).all()):
        raise BoundError("the matrix P of a small-gain bound has no inverse.")
    eye = torch.eye(size, dtype=output.dtype)
    residual = float((eye - inverse @ output).norm()) + 4 * gamma(size + 4) * float(inverse.norm() * output.norm())
    residual *= 1 + 2.0**-30
    if not residual < 0.5:
        raise BoundError("the gain matrix is too ill-conditioned for a proof: use method='liplt'.")
    rest = residual / (1 - residual) * float(inverse.norm()) * (1 + 2.0**-30)
    if scope == "class":
        norms: Tensor = inverse.norm(dim=1) * (1 + 2 * gamma(size + 8)) + rest
        return _times_power(norms, exponent).clamp_min(TINY)
    # row a of X is Xᵀe_a
    differences = torch.cdist(inverse, inverse, compute_mode="donot_use_mm_for_euclid_dist")
    values = differences * (1 + 2 * gamma(size + 8)) + (math.sqrt(2) * rest + 4 * 2.0**-53 * float(inverse.abs().max()))
    return _times_power(values, exponent).clamp_min(TINY).fill_diagonal_(0.0)
