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

    |(ŷ_a − ŷ_b)(x′) − (y_a − y_b)(x)| ≤ e′_ab + σ′^level(y)·‖P⁻ᵀ(e_a − e_b)‖·R,

where e′_ab is what the losses at x, δ_k of z_k and θ_k of activation k, come to behind f′. An activation that is not
computed exactly changes by a_j·ℓ_j·|Δz_j| more than it should, which adds a_i·B_ki·‖D_i·z_i‖ to η_k.

*Losses at x* are bounded by the same certificate. A loss of z_k is one of w_k, of (1 + ρ)(1 + a_k)·δ_k + θ_k/min r_k at
most: ε_k. With weights D_k·t^level(k), for which ‖S′‖ ≤ s = t·σ′ < 1 by Schwarz's lemma, ‖w‖ ≤ ‖z‖ + ε makes
‖z‖² + ‖y‖² ≤ s²(‖z‖ + ε)², where ‖y‖ is s·ε/√(1 − s²) at most. So, with F for what the last segment adds,

    e′_ab = min_t ‖P⁻ᵀ(e_a − e_b)‖·s/√(1 − s²)·√(Σ_k t^{2(level(k) − level(y))}·‖D_k·ε_k‖²) + F_a + F_b.

E at R = 0 will do as well: the losses at x go through f′ as E has them go through the execution.

Where E adds ‖|S_k|‖ times LipLT's constant of all layers before, nothing here is LipLT's: of networks that are trained
with small gain it takes off far less. Which takes off less is different from network to network; both hold.

Source: ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lipcert.bounds.result import UpperBound
from lipcert.bounds.smallgain import evidence_value, feasible_value
from lipcert.certify.arithmetic import Arithmetic, at_zero, count, gamma, segment_roundings
from lipcert.errors import BoundError
from lipcert.graph.types import Elementwise
from lipcert.loop import LoopMap
from lipcert.norms.errors import TINY
from lipcert.norms.scaled import scaled_segments
from lipcert.scaled import ScaledMap, levels

if TYPE_CHECKING:
    from lipcert.certify.rounding import Errors

__all__ = ["Around", "Perturbed"]

_STEPS = 4  # towards the vector at which |S_ki| has its norm
_FAR = 2.0  # ‖S‖ beyond which nothing is to be gained
_SAFE = 1 + 2.0**-45  # the float64 arithmetic of this file
_SQUARES = 32  # so many values of s² are tried
_SAFE_SUM = 1 + 2.0**-20  # of losses, which come from a sum in the execution's own arithmetic


@dataclass(frozen=True, eq=False)
class Around:
    """How far an execution's differences of logits may be from the right ones at the sample: e′_ab + (L_ab + …)·R.

    Attributes:
        steeper: in the bound's shape, by how much f′ may be steeper than the bound.
        carried: in the bound's shape, ‖P⁻ᵀh‖: what a logit, or a pair, takes of ``lost``.
        lost: (N,), what the losses at each sample come to in scaled units behind f′; infinite where nothing is known.
        last: (N, C), what the last segment loses of each logit.
    """

    steeper: Tensor
    carried: Tensor
    lost: Tensor
    last: Tensor

    def to(self, like: Tensor) -> Around:
        """On its device, in its dtype."""
        return Around(self.steeper.to(like), self.carried.to(like), self.lost.to(like), self.last.to(like))


class Perturbed:
    """f′ of a network, its bound and an arithmetic: what does not depend on the sample.

    Attributes:
        weights: D_1…D_K, by which what is lost in z_k is to be weighed; empty where E has to say what comes of it.
    """

    def __init__(self, loop: LoopMap, bound: UpperBound, arithmetic: Arithmetic) -> None:
        """As :meth:`of`, which see.

        Raises:
            BoundError, OverflowError: γ is too large for these weights, or a sum has too many terms.
        """
        evidence = bound.evidence
        assert evidence is not None
        assert evidence.norm is not None
        sigma = max(1.0, evidence.norm.upper)
        self.loop, self.arithmetic = loop, arithmetic
        self.levels = levels(loop)
        self.sigma = _norm(evidence.map(loop), sigma, arithmetic)
        if not self.sigma < _FAR:
            raise BoundError("the execution may be far steeper than the network.")
        sharp = evidence_value(loop, evidence, bound.scope) * (self.sigma / sigma) ** self.levels[-1]
        self.steeper = ((sharp * _SAFE - bound.value.to(sharp)) * _SAFE).clamp_min(0.0)
        self.carried = feasible_value(loop, evidence.output, bound.scope)
        # along a row of parts errors are followed part by part, by E
        self.weights = [] if bound.parts else evidence.map(loop).weights

    @staticmethod
    def of(loop: LoopMap, bound: UpperBound, arithmetic: Arithmetic) -> Perturbed | None:
        """None where this account says nothing: the bound is not by small gain, or γ is too large for its weights.

        Args:
            loop: T in float64, centred.
            bound: of this network.
            arithmetic: of the execution.
        """
        evidence = bound.evidence
        if evidence is None or evidence.norm is None or evidence.norm.upper > _FAR:
            return None
        try:
            return Perturbed(loop, bound, arithmetic)
        except (BoundError, OverflowError):  # the other account of rounding says so
            return None

    def around(self, errors: Errors, final: Tensor | None, rows: Tensor) -> Around:
        """After an evaluation that was watched with these weights; ``rows`` is the output (N, C), for its shape."""
        last = torch.zeros_like(rows, dtype=torch.float64)
        if final is not None:
            last = last + final.double()
        return Around(self.steeper, self.carried, self._lost(errors, last), (last + TINY) * _SAFE_SUM)

    def _lost(self, errors: Errors, like: Tensor) -> Tensor:
        """The best of some t: s/√(1 − s²)·√(Σ_k t^{2(level(k) − level(y))}·‖D_k·ε_k‖²)."""
        if not self.weights:
            return like.new_full((len(like),), math.inf)
        squares = torch.arange(1, _SQUARES, dtype=like.dtype, device=like.device) / _SQUARES
        losses = torch.stack([self._loss(errors, k) for k in range(1, self.loop.depth + 1)])
        most = losses.amax(0)  # taken out: squares of small losses would underflow
        total = like.new_zeros((len(like), 1))
        for level, loss in zip(self.levels[1:-1], losses, strict=True):
            # at least 1; infinite where t is too small for a deep network
            rises = (self.sigma * self.sigma / squares) ** (self.levels[-1] - level)
            total = total + (loss / most).square()[:, None] * rises
        found = (total * (squares / (1 - squares))).sqrt().nan_to_num(math.inf, math.inf).amin(1)
        return (found * most * _SAFE_SUM).nan_to_num(math.inf, math.inf)

    def _loss(self, errors: Errors, k: int) -> Tensor:
        """‖D_k·ε_k‖ of each sample, (N,)."""
        node, (ratio, inverse) = self.loop.nonlinear[k - 1], self.loop.ratios(k)
        top, size = float(self.weights[k - 1].max()), math.sqrt(math.prod(node.shape))
        own, each = errors.weighed[k] * (1 + ratio), 4 * self.arithmetic.tiny
        if isinstance(node, Elementwise):
            own = own * (1 + _activation(self.loop, k, self.arithmetic.unit))
            steep = float(torch.as_tensor(self.loop.resolved.slopes[node.index].lipschitz).max())
            # even a comparison may take a subnormal number for zero, at any slope
            each = each * max(1.0, steep) + node.departure
            if roundings := count(self.loop, node):
                size_of = top * at_zero(self.loop, k) + steep * errors.weighed_sizes[k]
                own = own + inverse * roundings * self.arithmetic.unit * size_of
        return own + inverse * (top * size * each) + TINY


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
