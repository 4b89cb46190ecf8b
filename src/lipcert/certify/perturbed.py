"""How much steeper an execution may be than the network: rounding as a change of weights that are known to within γ.

Let x be a sample, x′ another input, û the execution's values at x′ and u those of the real-arithmetic network at x.
What the affine map S_k to z_k loses at x′ is at most what E is made of at x (:mod:`lipcert.certify.rounding`) and
γ_k·½(|S_k|·|û − u| + |S_k(û − u)|) more, entry by entry: sums of positive and of negative terms grow by no more than
those of the change. The latter is ΔS_k·(û − u) for some matrix ΔS_k, so that the execution at x′ is, but for losses
at x, a network f′ with the segments S_k + ΔS_k about u, and f′(x) = f(x). It has the same activations, and the weights
D and P of a small-gain certificate of f bound it too. In scaled units, with σ = ‖S‖, ρ = max|c_k/r_k|,
B_ki = ‖D_k·|S_ki|·ℓ_i/D_i‖ and G the (K + 1)×(K + 1) matrix of γ_k·B_ki,

    ‖S′‖ ≤ σ′ = σ + (1 + ρσ)·‖G‖·(max|c|/ℓ·σ′ + max r/ℓ),

as a loss η_k of z_k acts like a change c_k/r_k·η_k of w_k, which goes through S once more. So

    |(ŷ_a − ŷ_b)(x′) − (y_a − y_b)(x)| ≤ e_ab + σ′^level(y)·‖P⁻ᵀ(e_a − e_b)‖·R,

where e_ab is E at R = 0: the losses at x go through f′ as E has them go through the execution. An activation that is
not computed exactly changes by a_j·ℓ_j·|Δz_j| more than it should, which adds a_i·B_ki·‖D_i·z_i‖ to η_k.

Where E adds ‖|S_k|‖ times LipLT's constant of all layers before, nothing here is LipLT's: of networks that are trained
with small gain it takes off far less. Which takes off less is different from network to network; both hold.

Source: ours.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipcert.bounds.result import UpperBound
from lipcert.bounds.smallgain import evidence_value
from lipcert.certify.arithmetic import Arithmetic, count, gamma, segment_roundings
from lipcert.errors import BoundError
from lipcert.graph.types import Elementwise
from lipcert.loop import LoopMap
from lipcert.norms.scaled import scaled_segments
from lipcert.scaled import ScaledMap, levels

__all__ = ["steeper"]

_STEPS = 4  # towards the vector at which |S_ki| has its norm
_FAR = 2.0  # ‖S‖ beyond which nothing is to be gained
_SAFE = 1 + 2.0**-45  # the float64 arithmetic of this file


def steeper(loop: LoopMap, bound: UpperBound, arithmetic: Arithmetic) -> Tensor | None:
    """By how much the execution's Lipschitz constant about a sample may be above ``bound.value``, in its shape.

    Args:
        loop: T in float64, centred.
        bound: of this network.
        arithmetic: of the execution.

    Returns:
        None where this says nothing: the bound is not by small gain, or γ is too large for its weights.
    """
    evidence = bound.evidence
    if evidence is None or evidence.norm is None or evidence.norm.upper > _FAR:
        return None
    sigma = max(1.0, evidence.norm.upper)
    try:
        perturbed = _norm(evidence.map(loop), sigma, arithmetic)
        if not perturbed < _FAR:
            return None
        sharp = evidence_value(loop, evidence, bound.scope) * (perturbed / sigma) ** levels(loop)[-1]
    except (BoundError, OverflowError):  # a sum of too many terms; the other account of rounding says so
        return None
    return ((sharp * _SAFE - bound.value.to(sharp)) * _SAFE).clamp_min(0.0)


def _norm(scaled: ScaledMap, sigma: float, arithmetic: Arithmetic) -> float:
    """σ′ from σ ≥ ‖S‖; infinite where 1 − (1 + ρσ)·… is not positive."""
    loop, last = scaled.loop, scaled.loop.depth + 1
    ratios = [0.0, *(loop.ratios(j)[0] for j in range(1, last))]
    losses = [0.0, *(_activation(loop, j, arithmetic.unit) for j in range(1, last))]
    segments = scaled_segments(scaled, steps=_STEPS)
    sums, others = (torch.zeros((last, last), dtype=torch.float64) for _ in range(2))
    for k in range(1, last + 1):
        roundings = segment_roundings(loop, k)
        own = gamma(sum(roundings), arithmetic.unit) if roundings else 0.0
        sources = [i for i in range(k) if (k, i) in segments]
        for i in sources:
            size = segments[k, i]
            # ½(|S||Δu| + |SΔu|), where one sum is all that is rounded, and the block of T is this segment alone; of y
            # |P||SΔu| would count, of which S says nothing
            alone = not any((k, m) in segments and loop.connected(m, i) for m in range(i + 1, k))
            halved = alone and k < last and len(roundings) == 1
            both = (size + min(size, sigma * (1 + ratios[i]))) / 2 if halved else size
            sums[k - 1, i] = own * both
            others[k - 1, i] = (1 + own) * size * losses[i]
    if not bool(torch.isfinite(sums).all() and torch.isfinite(others).all()):
        return math.inf
    grows, moves = (float(torch.linalg.matrix_norm(m, 2)) * _SAFE for m in (sums, others))
    shares = [(0.0, 1.0), *(loop.shares(j) for j in range(1, last))]
    centre, radius = max(s[0] for s in shares), max(s[1] for s in shares)
    through = 1 + max(ratios) * sigma
    left = 1 - through * (grows * centre + moves) * _SAFE
    return (sigma + through * grows * radius) / left * _SAFE if left > 0 else math.inf


def _activation(loop: LoopMap, j: int, unit: float) -> float:
    """a_j: an execution of activation j loses at most a_j·ℓ_j·|Δz_j| for a change Δz_j, beside what it does at x."""
    node = loop.nonlinear[j - 1]
    if not isinstance(node, Elementwise) or not (roundings := count(loop, node)):
        return 0.0
    slopes = torch.as_tensor(loop.resolved.slopes[node.index].lipschitz, dtype=torch.float64)
    return roundings * unit * float(slopes.max() / slopes.min()) if float(slopes.min()) > 0 else math.inf
