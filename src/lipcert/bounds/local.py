"""Local bounds: how far a difference of logits can fall within an ℓ2 ball around one sample.

Each activation is replaced by a line of its own through the sample, φ(z+Δ) − φ(z) = c·Δ + e(Δ). The rest is affine, so

    (y_a − y_b)(x′) = (y_a − y_b)(x) + row_0·Δx + Σ_k row_k·e_k,        rows = (e_a − e_b)ᵀ of the affine map,

exactly, and one backward pass makes all rows and picks each line when its row is there (:mod:`lipcert.bounds.lines`).
What all of layer k can cost is bounded under |Δz_k,i| ≤ δ_i (:mod:`lipcert.bounds.movement`) and the global
‖Δz_k‖₂ ≤ m_k·ε together (:mod:`lipcert.bounds.budget`). As ε → 0 the fall becomes ε·‖∇(y_a − y_b)(x)‖ where
all activations are linear on either side of a kink that x does not hit.

Rounding is accounted for: z is enclosed, rows err by at most γ_n times those of |T|, and sums are rounded up.

Source: lines chosen entry by entry in a backward pass are CROWN's (Zhang et al. 2018); a common ℓ2 budget for each
layer, taken from the global Lipschitz constants, and the choice of the lines by its price are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lipcert.bounds.lines import Place, Sides, kinked_line, plain_line
from lipcert.bounds.movement import LEAST, SAFE, Movement, flat
from lipcert.bounds.narrow import NarrowLayer
from lipcert.errors import BoundError
from lipcert.graph.types import Elementwise, Nonlinear, VectorMap
from lipcert.loop import LoopMap
from lipcert.norms.dense import chunk, rows_error
from lipcert.norms.errors import path_error, underflow
from lipcert.norms.scaling import row_norms

__all__ = ["LocalBound"]

_TINY = 2.0**-900
_FLUSHED = 2.0**-1000  # per unit of ‖Δz‖: more than what products of a row's entries can lose by underflow
_CHOSEN = 2.0**-48  # of |c|: what the rounding of a slope can change in it


class LocalBound:
    """Bounds of one network on balls.

    Args:
        loop: T in float64.
        hidden: for each k = 1…K a Lipschitz constant m_k of x ↦ z_k, from above
            (:attr:`lipcert.bounds.UpperBound.hidden`).

    Raises:
        BoundError: a constant is missing, or the loop is not in float64.

    Example:
        For a linear classifier the fall is ε times the norm of a difference of rows:

        >>> import torch, lipcert
        >>> net = torch.nn.Linear(2, 2).double().eval()
        >>> local = LocalBound(LoopMap(lipcert.trace(net, (2,))), {})
        >>> x, a, b = torch.rand(1, 2, dtype=torch.float64), torch.tensor([0]), torch.tensor([1])
        >>> fall = local.fall(x, a, b, torch.tensor([0.5], dtype=torch.float64))
        >>> torch.allclose(fall, 0.5 * (net.weight[0] - net.weight[1]).norm().detach())
        True
    """

    def __init__(self, loop: LoopMap, hidden: Mapping[int, float]) -> None:
        if not set(range(1, loop.depth + 1)) <= set(hidden):
            raise BoundError(
                "this bound does not say what it is made of, which local bounds need: make it with lipcert.lipschitz."
            )
        if loop.resolved.dtype != torch.float64:
            raise BoundError("local bounds are computed in float64: resolve the graph with dtype=torch.float64.")
        self.loop, self.graph, self.resolved = loop, loop.graph, loop.resolved
        self.constants = {n.index: float(hidden[k]) for k, n in enumerate(loop.nonlinear, start=1)}
        with torch.no_grad():
            self.movement = Movement(loop, hidden)
            self.sides = {
                n.index: Sides.of(n, self.resolved)
                for n in loop.nonlinear
                if isinstance(n, Elementwise) and n.homogeneous
            }
            self.narrow = self._narrow(hidden)
            for node, layer in self.narrow.items():
                self.movement.rates[node] = torch.minimum(self.movement.rates[node], layer.rates)
            self.relative = path_error(loop)
            self.rounding = self._rounding()

    def _narrow(self, hidden: Mapping[int, float]) -> dict[int, NarrowLayer]:
        """By node, the layers of kinked activations of which rows can be afforded."""
        centred, constants = LoopMap(self.graph, self.resolved), {0: 1.0, **hidden}
        found = {
            n.index: NarrowLayer.of(centred, k, constants)
            for k, n in enumerate(centred.nonlinear, start=1)
            if n.index in self.sides
        }
        return {i: layer for i, layer in found.items() if layer is not None}

    def _rounding(self) -> Tensor:
        """(C,): what the rounding of the rows of each logit can hide, per unit of ε.

        Passes here have coefficients |c| ≤ ℓ and take e_k as it is, so they are bounded by |T| with ℓ in place of c and
        1 in place of r; and ‖e_k‖ ≤ (β − α)·m_k·ε.
        """
        loop = LoopMap(self.graph, self.resolved.steepest())  # not self.loop.at: where its c is 0 it sees no path
        last, lost, step = loop.depth + 1, underflow(loop), chunk(loop)
        classes, sources = loop.target_shape(last)[0], [j for j in range(last) if loop.connected(last, j)]
        total = loop.resolved.scalar(0.0).expand(classes).clone()
        for start in range(0, classes, step):
            stop = min(start + step, classes)
            for j, error in rows_error(loop, last, sources, start, stop, lost).items():
                total[start:stop] += error * self._reach(j)
        return total * SAFE

    def _reach(self, j: int) -> float:
        """‖e_j‖/ε at most; T's own rows of a vector map have its constant in them."""
        node = self.loop.nonlinear[j - 1] if j else None
        if node is None:
            return 1.0
        if not isinstance(node, Elementwise):
            return self.constants[node.index]
        slopes = self.resolved.slopes[node.index]
        spread = torch.as_tensor(slopes.upper, dtype=torch.float64) - torch.as_tensor(slopes.lower, dtype=torch.float64)
        return float(spread.max()) * SAFE * self.constants[node.index]

    def fall(self, x: Tensor, a: Tensor, b: Tensor, radius: Tensor) -> Tensor:
        """How much y_a − y_b can fall at most from x to any x′ with ‖x′ − x‖₂ ≤ ε.

        Args:
            x: (R, *input_shape) float64, finite.
            a, b: (R,) classes.
            radius: (R,) float64, ε > 0.

        Returns:
            (R,) float64, from above; not finite where nothing is known.
        """
        if not len(x):
            return radius.new_zeros(0)
        with torch.no_grad():
            largest = x.abs().amax(0, keepdim=True)
            sizes = self.graph.sizes(largest, self.resolved, per_rounding=self.relative)
        ball = _Ball(self, radius, [self.relative * size for size in sizes])
        with torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            y = self.graph.evaluate(leaf, self.resolved, activate=ball.enter)
            with torch.no_grad():
                ball.moved = self.movement.within(radius, ball.passes)
            which = torch.arange(len(x), device=x.device)
            (row,) = torch.autograd.grad((y[which, a] - y[which, b]).sum(), leaf)
        total = radius * row_norms(flat(row))
        for cost in ball.costs:
            total = total + cost
        fall: Tensor = (total + (self.rounding[a] + self.rounding[b]) * radius) * SAFE + _TINY
        return fall


class _Ball:
    """One backward pass for R balls: picks the lines as rows arrive, and collects what they cost."""

    def __init__(self, local: LocalBound, radius: Tensor, errors: list[Tensor]) -> None:
        self.local, self.radius, self.errors = local, radius, errors
        self.places: dict[int, Place] = {}
        self.moved: dict[int, Tensor] = {}
        self.costs: list[Tensor] = []

    def enter(self, node: Nonlinear, z: Tensor) -> Tensor:
        """The value of a nonlinear node at the samples; its cotangent will come to :meth:`line`."""
        with torch.no_grad():
            value = node.function(z.detach(), self.local.resolved.live)
            if node.index in self.local.sides:
                sides, error = self.local.sides[node.index], self.errors[node.inputs[0]]
                self.places[node.index] = Place.of(sides, z.detach(), error)
        out: Tensor = _Chosen.apply(z, value, lambda row: self.line(node, row))  # type: ignore[no-untyped-call]
        return out

    def passes(self, node: Elementwise, moved: Tensor) -> Tensor:
        """A bound on |Δa| from one on |Δz|."""
        steepest, place = self.local.resolved.slopes[node.index].lipschitz, self.places.get(node.index)
        return moved * steepest * SAFE if place is None else place.passed(moved, steepest)

    def line(self, node: Nonlinear, row: Tensor) -> Tensor:
        """From the row of a node's value to that of its operand; what the line costs is noted."""
        budget = self.local.constants[node.index] * self.radius * SAFE + LEAST
        length = row_norms(flat(row))
        if isinstance(node, VectorMap):
            self.costs.append((length * node.constant + _FLUSHED) * budget)
            return row.new_zeros((len(row), *self.local.graph.nodes[node.inputs[0]].shape))
        slopes, place = self.local.resolved.slopes[node.index], self.places.get(node.index)
        moved = self.moved[node.index]
        if place is None:
            slope, cost = plain_line(slopes, row, moved, budget)
        else:
            narrow, radius = self.local.narrow.get(node.index), self.radius

            def together(at: Tensor, entry: Tensor) -> Tensor:
                if narrow is None:
                    return budget
                return torch.minimum(budget, narrow.norms(at, entry, len(radius)) * radius * SAFE + LEAST)

            slope, cost = kinked_line(place, row, moved, together)
        steepest = float(torch.as_tensor(slopes.lipschitz).max())
        self.costs.append(cost + (_CHOSEN * steepest * length + _FLUSHED) * budget)
        return slope * row


class _Chosen(torch.autograd.Function):
    """A value whose derivative is whatever ``answer`` makes of its cotangent."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, value: Tensor, answer: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.answer = answer
        return value.view_as(value)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, row: Tensor) -> tuple[Tensor, None, None]:
        return ctx.answer(row), None, None
