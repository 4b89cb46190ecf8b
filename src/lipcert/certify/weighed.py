"""E in the units of a small-gain certificate, where no stretch of the network makes anything larger.

A certificate D, P with ‖S‖ ≤ 1 (:mod:`lipcert.scaled`) says more than what it was made for. With rows of S left out and
columns set to zero, it is about a part of the network. Of all z_k of a level (the length of the longest chain from x)
together, ‖D·Δz‖ ≤ ‖Δx‖. If the activations of level m, and nothing else, are changed by r·w̃, the z_k of any level
behind, together, have ‖D·Δz‖ ≤ ‖D·w̃‖, and ‖P·Δy‖ ≤ ‖D·w̃‖. With ‖S‖ ≤ σ that holds times σ for each level between.

So E (:mod:`lipcert.certify.rounding`) has a second account, in which all norms and constants are powers of σ. Let δ_k
be what the sum of z_k loses at x itself, entry by entry, θ_k what activation k does, B_ki = ‖D_k·|S_ki|·ℓ_i/D_i‖ (with
|P| for D_y) and γ_k as there. Let the losses enter level after level, each time in the network that executes the levels
before and is exact behind:

    ζ_k = σ^level(k)·R + Σ_{m < level(k)} σ^{level(k) − m}·G_m      how far z_k may be, its own loss aside,
    η_k = ‖D_k·δ_k‖ + γ_k·Σ_i B_ki·ν_i                              what it loses, and
    g_k = (1 + max|c_k/r_k|)·η_k + ‖D_k·θ_k‖/min r_k                what that is as a change of w_k, both at x′,
    ν_k = ζ_k + η_k + ‖D_k·θ_k‖/min r_k,     ν_0 = R                how far the value behind it may be,
    G_m = √(Σ_{level(k) = m} g_k²),
    E_ab = ‖P⁻ᵀ(e_a − e_b)‖·(Σ_m σ^{level(y) − m}·G_m + γ_y·Σ_i B_yi·ν_i) + F_a + F_b,

where F is what the last segment loses at x. Where all that is rounded in a segment to a z_k is one sum,
½(Σ_i B_ki·ν_i + ζ_k) takes the place of Σ_i B_ki·ν_i: the sums of positive and of negative terms grow by the mean of
those of all terms' absolute changes and of the change of the sum, and that is ζ_k.

What an entry of z_k loses where activation k is flat changes nothing while it stays there: in balls with R ≤ R̄ it may
be left out of ‖D_k·δ_k‖ in g_k and ν_k, if D_k·|z_k| is larger there than ζ_k + η_k at R̄
(:mod:`lipcert.certify.resting`).

In networks that are trained with small gain LipLT's constants, which the first account multiplies, are far too large.
Elsewhere |S| may be larger in these units than in others. Both hold, and as they are linear the best of each
coefficient does: what is lost at x and what is lost by moving away can be carried by different accounts.

Source: ours.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipcert.bounds.result import UpperBound
from lipcert.bounds.smallgain import feasible_value
from lipcert.certify.arithmetic import Arithmetic, at_zero, count, gamma, segment_roundings
from lipcert.certify.rounding import Account, Errors
from lipcert.graph.types import Elementwise
from lipcert.loop import LoopMap
from lipcert.norms.errors import TINY
from lipcert.norms.scaled import scaled_segments
from lipcert.scaled import levels

__all__ = ["Weighed"]

_STEPS = 4  # towards the vector at which |S_ki| has its norm
_SAFE = 1 + 2.0**-20  # covers the float64 arithmetic of this file, and what float64 does to the values at x


class Weighed:
    """What of the second account does not depend on the sample, of a network, its bound and an arithmetic.

    Attributes:
        weights: D_1…D_K, by which what is lost in z_k is to be weighed; empty along a row of parts, where errors are
            watched part by part: what is lost at x is for the first account then.
        head: ‖P⁻ᵀh‖, in the bound's shape.
    """

    def __init__(self, loop: LoopMap, bound: UpperBound, arithmetic: Arithmetic) -> None:
        """As :meth:`of`, which see.

        Raises:
            BoundError: a sum has too many terms for this arithmetic.
        """
        evidence = bound.evidence
        assert evidence is not None
        assert evidence.norm is not None
        scaled, last = evidence.map(loop), loop.depth + 1
        self.loop, self.arithmetic = loop, arithmetic
        self.levels, self.sigma = levels(loop), torch.tensor(max(evidence.norm.upper, 1.0), dtype=torch.float64)
        self.segments = scaled_segments(scaled, steps=_STEPS)
        roundings = {k: segment_roundings(loop, k) for k in range(1, last + 1)}
        self.gammas = {k: gamma(n, arithmetic.unit) if n else 0.0 for k, (n, _) in roundings.items()}
        # of y |P||SΔv| would count, of which S says nothing
        self.halved = {k for k in range(1, last) if roundings[k][1] == 1 and self._size(k) > self._power(k, 0)}
        self.head = feasible_value(loop, evidence.output, bound.scope)
        self.weights = [] if bound.parts else scaled.weights
        self.most = [float(d.max()) for d in scaled.weights]
        self.still = [at_zero(loop, k) for k in range(1, last)]

    @staticmethod
    def of(loop: LoopMap, bound: UpperBound, arithmetic: Arithmetic) -> Weighed | None:
        """None where there is no such account: the bound is not by small gain.

        Args:
            loop: T in float64, centred.
            bound: of this network.
            arithmetic: of the execution.
        """
        evidence = bound.evidence
        return None if evidence is None or evidence.norm is None else Weighed(loop, bound, arithmetic)

    def _size(self, k: int) -> float:
        """Σ_i B_ki."""
        return sum(b for (to, _), b in self.segments.items() if to == k)

    def _power(self, k: int, level: int) -> float:
        """σ^{level(k) − level}."""
        return float(self.sigma ** (self.levels[k] - level))

    def account(self, errors: Errors, final: Tensor | None, rows: Tensor) -> Account:
        """E after an evaluation that was watched with :attr:`weights`; ``rows`` is the output (N, C), for its shape.

        ``final`` is what the last segment loses at x, of each logit; None: nothing.
        """
        return self._account(self._carried(errors, rows), final, rows)

    def near(self, errors: Errors, final: Tensor | None, rows: Tensor, within: Tensor) -> tuple[Account, Tensor] | None:
        """:meth:`account` for balls with R ≤ ``within`` (N,), without what rests there; None if nothing can."""
        if not errors.resting:
            return None
        return self._account(self._carried(errors, rows, within), final, rows), within

    def _account(self, carried: Tensor, final: Tensor | None, rows: Tensor) -> Account:
        last = torch.zeros((*rows.shape, 2), dtype=torch.float64, device=rows.device)
        if final is not None:
            last[..., 0] = final.double()
        return Account({0: carried}, {0: self.head}, (last + TINY) * _SAFE)

    def _carried(self, errors: Errors, rows: Tensor, within: Tensor | None = None) -> Tensor:
        """What ‖P⁻ᵀ(e_a − e_b)‖ is to be multiplied by, (N, 2): the last dimension is for 1 and R."""
        nothing = torch.zeros((len(rows), 2), dtype=torch.float64, device=rows.device)
        ball = nothing + torch.tensor([0.0, 1.0], dtype=torch.float64, device=rows.device)
        moved, gained = {0: ball}, dict[int, Tensor]()  # ν_i, and G_m of the layers so far

        def carried(k: int) -> Tensor:
            return sum((self._power(k, m) * g for m, g in gained.items() if m < self.levels[k]), start=nothing)

        def away(k: int) -> Tensor:
            return sum((self.segments[k, i] * v for i, v in moved.items() if (k, i) in self.segments), start=nothing)

        for k in range(1, self.loop.depth + 1):
            zeta, sums = carried(k) + self._power(k, 0) * ball + TINY, away(k)
            own = self.gammas[k] * ((sums + zeta) / 2 if k in self.halved else sums) + TINY
            if self.weights:
                own[:, 0] += self._lost(errors, k, zeta + own, within)
            ratio, inverse = self.loop.ratios(k)
            departs = inverse * self._departs(errors, k, zeta + own) + TINY
            level, g = self.levels[k], (1 + ratio) * own + departs
            gained[level] = torch.hypot(gained[level], g) + TINY if level in gained else g
            moved[k] = zeta + own + departs
        last = self.loop.depth + 1
        found = carried(last) + self.gammas[last] * away(last)
        found = found.mul(_SAFE).add(TINY).nan_to_num(math.inf, math.inf)
        if not self.weights:
            found[:, 0] = math.inf
        return found

    def _lost(self, errors: Errors, k: int, away: Tensor, within: Tensor | None) -> Tensor:
        """‖D_k·δ_k‖ (N,), without what rests in balls with R ≤ ``within``.

        ``away`` (N, 2) is how far D_k·z_k may be from its value at x, but for δ_k.
        """
        lost = errors.weighed[k]
        if within is None or k not in errors.resting:
            return lost
        still, growing = away[:, 0] + lost, away[:, 1]
        # what is lost counts twice, for z(x) as it was evaluated may be off by as much
        reach = (2 * still + growing * within) * (1 + errors.caution)
        return torch.minimum(lost, errors.resting[k].rest(reach * _SAFE))

    def _departs(self, errors: Errors, k: int, away: Tensor) -> Tensor:
        """‖D_k·θ_k‖ if D_k·z_k is so far from its value at x, (N, 2)."""
        node, most = self.loop.nonlinear[k - 1], self.most[k - 1]
        found, each = torch.zeros_like(away), 4 * self.arithmetic.tiny  # of what underflows
        if isinstance(node, Elementwise):
            steep = float(torch.as_tensor(self.loop.resolved.slopes[node.index].lipschitz).max())
            # even a comparison may take a subnormal number for zero, at any slope
            each = each * max(1.0, steep) + node.departure
            if roundings := count(self.loop, node):
                size = steep * away
                if self.weights:
                    size[:, 0] += most * self.still[k - 1] + steep * errors.weighed_sizes[k]
                found = roundings * self.arithmetic.unit * size
        found[:, 0] += most * math.sqrt(math.prod(node.shape)) * each
        return found
