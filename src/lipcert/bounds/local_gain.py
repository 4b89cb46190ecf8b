"""Small gain within a ball: what a certificate's own inequality leaves where activations are linear.

A small-gain certificate (:mod:`lipcert.bounds.smallgain`) says of T that Q(p) = ‖Δx‖² + Σ‖D·Δw‖² − Σ‖D·Δz‖² ≥ 0
for all p = (Δx, Δw), and of the network that ‖D·Δw‖ ≤ ‖D·Δz‖. Of an activation with slopes l and r on either side of 0,
at the distance t from there, more is known. With κ = r − l, and e = Δv − s·Δz for what the line with the slope s on the
side of z misses,

    |D·Δz|² − |D·Δw|² = D²·|κ|·t·|e|/r₀²,       0 ≤ e/κ ≤ max(0, |Δz| − t),        r₀ = |κ|/2,

so crossing 0 costs as much of ‖Δx‖² as is lost at the right: Q(p) + Σ γ·|D·e| ≤ R², with γ = |κ|·D·t/r₀². For any
vector u, numbers η for the entries of such activations and μ > 0, and with ε for what is left of the functional h,

    h·Δy = μ·uᵀQ·p + Σ η·(D·e)(p) + ε·p
         ≤ ½·μ·(Q(u) + R²) + Σ max(0, η·sign κ − ½·μ·γ)·|D·e| + R·Σ_k ‖ε_k‖,

as uᵀQp ≤ √(Q(u)·Q(p)) ≤ ½(Q(u) + R² − Σ γ·|D·e|). Whatever u, η and μ are, this is proved by one pass of the
certificate's scaled map S and one of its adjoint. A search finds good ones (:mod:`lipcert.bounds.reweighted`): as R → 0
the bound becomes R·‖∇(h·y)‖ where no activation is at its kink, and it is never far above R·L of the certificate.

Source: ours. γ·|D·e| is the slack of the sector condition of LipSDP (Fazlyab et al. 2019), which global bounds give
away; the multipliers η are those of an ℓ1 term in Lagrangian duality.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from lipcert.bounds.evidence import Evidence
from lipcert.bounds.lines import Place, Sides
from lipcert.bounds.movement import SAFE, flat
from lipcert.bounds.output import functional_norms
from lipcert.bounds.result import UpperBound
from lipcert.errors import BoundError
from lipcert.graph.types import Elementwise, Node, Slopes
from lipcert.loop import LoopMap
from lipcert.norms.errors import path_error, underflow
from lipcert.norms.scaled import ScaledErrors
from lipcert.norms.scaling import row_norms
from lipcert.scaled import ScaledMap, levels

__all__ = ["Dual", "Kink", "LocalGain", "rows_of"]

_UP, _DOWN = 1 + 2.0**-40, 1 - 2.0**-40  # of a few operations
_LESS = 1 - 2.0**-24  # of a norm: sums of up to 2²⁵ terms, as in SAFE
_ELEMENTWISE = 2.0**-48  # more than what a few operations on each entry of a vector lose, relative to its norm
_TINY, _LEAST = 2.0**-900, 2.0**-400


@dataclass(frozen=True)
class Kink:
    """An activation that is linear on either side of 0, around R samples.

    Attributes:
        own: s; the centre of the global slopes where the side is not certain.
        sign: of κ, 0 where the side is not certain.
        bend: |κ|, likewise 0 there.
        distance: D·t, from below.
        toll: γ, from below.
        centre, radius: of the global slopes, (1, *shape); all others are (R, *shape).
    """

    own: Tensor
    sign: Tensor
    bend: Tensor
    distance: Tensor
    toll: Tensor
    centre: Tensor
    radius: Tensor

    def farthest(self, radius: Tensor) -> Tensor:
        """The most that |D·e| can be in balls of these radii, (R,)."""
        return self.bend * (rows_of(radius, self.bend) * _UP - self.distance).clamp_min(0.0) * _UP

    def cost(self, eta: Tensor, price: Tensor, radius: Tensor) -> Tensor:
        """Σ max(0, η·sign κ − ½·μ·γ)·|D·e| at most, (R,): entry by entry, or as ‖D·e‖ ≤ max|κ|·R."""
        over = flat((eta * self.sign - 0.5 * rows_of(price, eta) * self.toll * _DOWN).clamp_min(0.0))
        entries = (over * flat(self.farthest(radius))).sum(1)
        together = row_norms(over.double()).to(over) * flat(self.bend).amax(1) * radius * _UP
        return torch.minimum(entries, together) * SAFE

    def part(self, rows: Tensor) -> Kink:
        """Around some of the samples."""
        names = ("own", "sign", "bend", "distance", "toll")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    def to(self, dtype: torch.dtype) -> Kink:
        """In another precision, to search with."""
        return Kink(*(getattr(self, f.name).to(dtype) for f in fields(self)))


@dataclass(frozen=True)
class Dual:
    """u, η and μ, for R balls.

    Attributes:
        vector: u in scaled units, (R, n).
        tolls: for the number k of each kinked activation η, (R, *shape).
        price: μ, (R,).
    """

    vector: Tensor
    tolls: dict[int, Tensor]
    price: Tensor

    def part(self, rows: Tensor) -> Dual:
        """For some of the balls."""
        return Dual(self.vector[rows], {k: v[rows] for k, v in self.tolls.items()}, self.price[rows])


def rows_of(value: Tensor, like: Tensor) -> Tensor:
    """A number for each row, (R,), shaped to broadcast against rows."""
    return value.reshape(-1, *(1,) * (like.ndim - 1))


class LocalGain:
    """Bounds of one network on balls, from one small-gain certificate.

    Args:
        loop: T in float64, centred.
        evidence: with its norm.

    Raises:
        BoundError: its numbers are beyond what floats can tell.

    Attributes:
        scaled: S with weights with which ‖S‖ ≤ 1; its output is y times a power of two.
        rough: T in float32, to search with; z passes through all kinked activations, whatever their slopes become.
    """

    @torch.no_grad()
    def __init__(self, loop: LoopMap, evidence: Evidence) -> None:
        assert evidence.norm is not None
        self.loop, device = loop, loop.resolved.device
        # weights t^level with t = 1/σ make σ 1, and a hair less, for the rounding of the products
        shrink, steps = (1 - 2.0**-30) / max(1.0, evidence.norm.upper), levels(loop)
        weights = [d.to(device) * shrink**n for d, n in zip(evidence.scaling.weights, steps[1:], strict=False)]
        assert isinstance(evidence.output, Tensor)
        size = float(row_norms(functional_norms(evidence.output, "class")[None])) * SAFE
        least = shrink ** steps[-1] / size if _LEAST < size < 1 / _LEAST else 0.0
        if least < _LEAST:
            raise BoundError("the scaled map of this certificate is too large, or too small, for local bounds.")
        self._unit = 2.0 ** (math.frexp(least)[1] - 1)  # ‖unit·y‖ ≤ ‖P·y‖
        self.scaled = ScaledMap(loop, weights, self._unit)
        errors, lost = ScaledErrors(self.scaled), underflow(self.scaled)
        errors.known[1, 0] = 1.0
        self._error = errors.error((1, 0))
        wide = math.sqrt(self.scaled.source_shape(0)[0] + self.scaled.target_shape(1)[0])
        self._lost = (lost[0][1] + lost[1][0]) * wide
        self._relative = path_error(loop)
        self.sides = {
            k: Sides.of(node, loop.resolved)
            for k, node in enumerate(loop.nonlinear, start=1)
            if isinstance(node, Elementwise) and node.homogeneous
        }
        self.rough = self._rough()

    def _rough(self) -> LoopMap:
        resolved = self.loop.graph.resolve(torch.float32)
        slopes = dict(resolved.slopes)
        for k in self.sides:
            node = self.loop.nonlinear[k - 1]
            whole = torch.ones((1, *node.shape), dtype=resolved.dtype, device=resolved.device)
            slopes[node.index] = Slopes.about(whole, whole)
        return LoopMap(self.loop.graph, replace(resolved, slopes=slopes))

    @staticmethod
    def of(loop: LoopMap, bound: UpperBound) -> LocalGain | None:
        """None where the bound is not of classes by small gain, or no activation is linear on either side of 0.

        Args:
            loop: T in float64, centred.
            bound: of this network.
        """
        evidence = bound.evidence
        if evidence is None or evidence.norm is None or not isinstance(evidence.output, Tensor):
            return None
        if not any(isinstance(n, Elementwise) and n.homogeneous for n in loop.nonlinear):
            return None
        try:
            found = LocalGain(loop, evidence)
        except BoundError:
            return None
        return found if math.isfinite(found._error) else None

    @torch.no_grad()
    def kinks(self, x: Tensor) -> dict[int, Kink]:
        """Where the activations are at samples (R, *input_shape), by number."""
        loop, found = self.loop, dict[int, Kink]()
        numbers = {loop.nonlinear[k - 1].index: k for k in self.sides}
        sizes = loop.graph.sizes(x.abs().amax(0, keepdim=True), loop.resolved, per_rounding=self._relative)

        def watch(node: Node, operands: Sequence[Tensor], value: Tensor) -> None:
            if node.index in numbers:
                k, error = numbers[node.index], self._relative * sizes[node.inputs[0]]
                found[k] = self._kink(k, Place.of(self.sides[k], operands[0], error))

        loop.graph.evaluate(x, loop.resolved, watch)
        return found

    def _kink(self, k: int, place: Place) -> Kink:
        loop = self.loop
        slopes = loop.resolved.slopes[loop.nonlinear[k - 1].index]
        like = place.near
        centre, radius = (
            torch.as_tensor(v, dtype=like.dtype, device=like.device).expand(1, *like.shape[1:])
            for v in (slopes.centre, slopes.radius)
        )
        known = place.sure & (place.bend != 0) & (radius > 0)
        bend = torch.where(known, place.bend.abs(), 0.0)
        distance = self.scaled.weights[k - 1] * place.near * _DOWN
        toll = torch.where(known, bend * distance / radius.clamp_min(1e-300).square(), 0.0) * _DOWN
        own = torch.where(known, place.own, centre)
        return Kink(own, torch.where(known, place.bend.sign(), 0.0), bend, distance, toll, centre, radius)

    def head(self, a: Tensor, b: Tensor) -> Tensor:
        """How y_a − y_b falls: h = e_b − e_a, (R, C)."""
        classes = self.loop.graph.output_shape[0]
        head = torch.zeros((len(a), classes), dtype=torch.float64, device=self.loop.resolved.device)
        rows = torch.arange(len(a), device=head.device)
        head[rows, b] += 1.0
        head[rows, a] -= 1.0
        return head

    @torch.no_grad()
    def proved(self, kinks: dict[int, Kink], head: Tensor, radius: Tensor, dual: Dual) -> Tensor:
        """A bound on h·Δy in balls, rounding included, (R,); not finite where nothing is known.

        Args:
            kinks: around the samples, (R, …) each.
            head: h, (R, C).
            radius: R, (R,).
            dual: in float64; any, if μ > 0.
        """
        scaled, u, mu = self.scaled, dual.vector, dual.price
        steepest = 2 * max([1.0, *(float((k.centre.abs() + k.radius).max()) for k in kinks.values())])
        images = scaled.apply(u)
        images = images[:, len(images[0]) - len(scaled.factors) :]
        slipped = self._error * row_norms(u) + self._lost  # of S·u
        parts = scaled.results.split(images)
        cotangents, pulls, costs, sizes = (
            list[Tensor](),
            dict[int, Tensor](),
            torch.zeros_like(mu),
            torch.zeros_like(mu),
        )
        for k, z in enumerate(parts, start=1):
            own = rows_of(mu, z) * z
            if k in dual.tolls:
                kink, eta = kinks[k], dual.tolls[k]
                eta = torch.where(kink.sign != 0, eta, 0.0)
                pulls[k] = eta * kink.radius
                own = own - eta * (kink.centre - kink.own)
                costs = costs + kink.cost(eta, mu, radius)
                sizes = sizes + row_norms(flat(eta))
            cotangents.append(own)
        cotangent = torch.cat([head / self._unit, scaled.results.join(cotangents)], dim=1)
        (back,) = scaled.adjoint([cotangent])
        rest = scaled.sources.split(back - mu[:, None] * u)
        left = torch.zeros_like(mu)  # Σ ‖ε_k‖
        for k, part in enumerate(rest):
            left = left + row_norms(flat(part - pulls[k] if k in pulls else part))
        sizes = sizes * steepest
        squares = (row_norms(u) * SAFE).square() - (row_norms(images) * _LESS - slipped).clamp_min(0.0).square() * _DOWN
        # of what enters T in the ball ‖(Δx, D·Δw)‖ ≤ √(K + 1)·R, and of each of its parts ‖·‖ ≤ R
        rounded = mu * slipped + self._error * row_norms(cotangent) + self._lost
        rounded = rounded + _ELEMENTWISE * (row_norms(back) + mu * (row_norms(u) + row_norms(images)) + sizes)
        total = 0.5 * mu * (squares + radius.square() * _UP).clamp_min(0.0)
        total = total + costs + radius * (left + math.sqrt(self.loop.depth + 1) * rounded)
        total = (total * SAFE + _TINY).nan_to_num(math.inf, math.inf)
        # squares of what is far smaller would underflow
        return torch.where((radius >= _LEAST) & (mu > 0) & (mu <= 1 / _LEAST), total, math.inf)
