"""LipSDP (Fazlyab, Robey, Hassani, Morari, Pappas, NeurIPS 2019), written from its formula, by a general SDP solver.

For weights W_1 … W_l with an activation of slopes in [0, 1] between them, A = diag(W_1 … W_{l−1}) followed by zero
columns for the last hidden layer, and B = [0 I], find the smallest ρ with T = diag(λ) ≥ 0 and

    [A; B]ᵀ·[0, T; T, −2T]·[A; B] + diag(−ρ·I, 0, …, 0, W_lᵀ·W_l) ⪯ 0;          L = √ρ.

*Neuron* has a λ for each neuron, *layer* one for each layer. The constant does not change when W_1 is replaced by the
triangular factor of W_1ᵀ, nor does the bound, so a wide input costs nothing. For one functional c of the output (a
difference of two logits) W_l becomes the row cᵀ·W_l.

A solver's ρ may be a little too small. ``Solution.value`` is what its multipliers give when ρ is computed again from
them by ``closed_forms.through``, after shrinking them as little as it takes to be feasible.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from closed_forms import from_multipliers

__all__ = ["Solution", "lipsdp"]

_SHRINK = (0.0, *(10.0**-k for k in range(10, 1, -1)), 0.03, 0.1)


@dataclass(frozen=True)
class Solution:
    """What a solver found.

    Attributes:
        value: L by its multipliers; infinite where none of them is feasible.
        claimed: √ρ as the solver has it.
        status: ``"optimal"``, ``"optimal_inaccurate"`` where it stopped early, or what else it says.
        multipliers: λ of each hidden layer, scaled to an input block of I.
    """

    value: float
    claimed: float
    status: str
    multipliers: tuple[np.ndarray, ...]


def lipsdp(
    weights: Sequence[np.ndarray],
    *,
    per: str = "neuron",
    functional: Sequence[float] | None = None,
    solver: str = "CLARABEL",
    seconds: float | None = None,
    eps: float = 1e-6,
) -> Solution:
    """Solve LipSDP for a chain of matrices, each (outputs, inputs).

    Args:
        per: ``"neuron"`` or ``"layer"``.
        functional: c, for the constant of c·f instead of that of f.
        solver: ``"CLARABEL"`` (exact, for a hundred neurons or so) or ``"SCS"`` (first order).
        seconds: time limit of the solver; what it has by then is used, if anything.
        eps: tolerance of SCS.
    """
    weights = [np.asarray(w, dtype=float) for w in weights]
    if functional is not None:
        weights[-1] = np.asarray(functional, dtype=float)[None] @ weights[-1]
    if len(weights) == 1:
        norm = float(np.linalg.norm(weights[0], 2))
        return Solution(norm, norm, "optimal", ())
    # Norms of 1 for the solver: ReLU does not mind, and neither do activations with the same slopes as far as LipSDP
    # can tell.
    norms = [float(np.linalg.norm(w, 2)) for w in weights]
    if min(norms) == 0:
        return Solution(0.0, 0.0, "optimal", ())
    unit = [w / n for w, n in zip(weights, norms, strict=True)]
    if unit[0].shape[1] > len(unit[0]):
        unit[0] = np.linalg.qr(unit[0].T, mode="r").T
    found, claimed, status = _solve(unit, per, solver, seconds, eps)
    value, used = math.inf, found
    for shrink in _SHRINK if found else ():
        some = [m * (1 - shrink) ** (i + 1) for i, m in enumerate(found)]
        new = from_multipliers(unit, some)
        if new < value:
            value, used = new, some
    scale = math.prod(norms)
    return Solution(value * scale, claimed * scale, status, tuple(used))


def _solve(
    weights: Sequence[np.ndarray], per: str, solver: str, seconds: float | None, eps: float
) -> tuple[list[np.ndarray], float, str]:
    """The multipliers, scaled by 1/ρ, and √ρ."""
    import cvxpy as cp

    hidden = [len(w) for w in weights[:-1]]
    rho = cp.Variable(nonneg=True)
    if per == "neuron":
        parts = [cp.Variable(n, nonneg=True) for n in hidden]
    else:
        assert per == "layer"
        parts = [cp.Variable(nonneg=True) * np.ones(n) for n in hidden]
    sizes = [weights[0].shape[1], *hidden]
    grid: list[list[object]] = [[np.zeros((a, b)) for b in sizes] for a in sizes]
    grid[0][0] = -rho * np.eye(sizes[0])
    for i, (w, part) in enumerate(zip(weights[:-1], parts, strict=True)):
        grid[i + 1][i] = cp.diag(part) @ w
        grid[i][i + 1] = w.T @ cp.diag(part)
        grid[i + 1][i + 1] = -2 * cp.diag(part)
    grid[-1][-1] = grid[-1][-1] + weights[-1].T @ weights[-1]
    problem = cp.Problem(cp.Minimize(rho), [cp.bmat(grid) << 0])
    options: dict[str, object] = {"eps": eps, "max_iters": 100_000} if solver == "SCS" else {}
    if seconds is not None:
        options["time_limit_secs" if solver == "SCS" else "time_limit"] = seconds
    try:
        problem.solve(solver=solver, **options)
    except cp.SolverError as error:
        return [], math.nan, f"failed: {error}"
    if rho.value is None or not float(rho.value) > 0:
        return [], math.nan, str(problem.status)
    return [np.asarray(p.value).ravel() / float(rho.value) for p in parts], math.sqrt(float(rho.value)), problem.status
