"""Lines in place of activations: what each costs, and which to take when its row is known.

A positively homogeneous activation has slopes l and r left and right of 0. At z, with s the slope on its side, o the
other, κ = r − l and t = |z|, and a line of slope c = s + d·(o − s), 0 ≤ d ≤ ½,

    φ(z+Δ) − φ(z) = c·Δ + κ·e,     −d·min(|Δ|, t) ≤ e ≤ max(d·|Δ|, (1 − d)·|Δ| − t).

So an entry of a row with row·κ ≥ 0 is free with the tangent, d = 0. Where the side of z is not certain, d = ½ has
|e| ≤ |Δ|/2. Of any other activation with difference quotients in [α, β] the line of slope (α + β)/2 is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.bounds.budget import most_harm
from lipcert.bounds.movement import SAFE, flat
from lipcert.graph.types import Elementwise, Resolved, Slopes

__all__ = ["Place", "Sides", "kinked_line", "plain_line"]

_UP, _DOWN = 1 + 2.0**-45, 1 - 2.0**-45


@dataclass(frozen=True)
class Sides:
    """The slopes l and r of a homogeneous activation: (1, *shape) each."""

    left: Tensor
    right: Tensor

    @staticmethod
    def of(node: Elementwise, resolved: Resolved) -> Sides:
        """φ(1) and −φ(−1)."""
        one = torch.ones((1, *node.shape), dtype=resolved.dtype, device=resolved.device)
        return Sides(-node.function(-one, resolved.live), node.function(one, resolved.live))


@dataclass(frozen=True)
class Place:
    """Where homogeneous activations are at R samples: (R, *shape) each.

    Attributes:
        near, far: between these is the true distance |z| to the kink.
        sure: whether it is certain on which side z is; where it is not, ``near`` is 0.
        own, other: slopes on this side and on the other.
        bend: κ.
    """

    near: Tensor
    far: Tensor
    sure: Tensor
    own: Tensor
    other: Tensor
    bend: Tensor

    @staticmethod
    def of(sides: Sides, z: Tensor, error: Tensor) -> Place:
        """From z as it was computed, and how far that may be from the true one."""
        right, size, error = z > 0, z.abs(), error * SAFE
        own, other = torch.where(right, sides.right, sides.left), torch.where(right, sides.left, sides.right)
        near = ((size - error) * _DOWN).clamp_min(0.0)
        return Place(near, (size + error) * _UP, size > error, own, other, sides.right - sides.left)

    def passed(self, moved: Tensor, steepest: Tensor | float) -> Tensor:
        """A bound on |Δa| from one on |Δz|."""
        own, other = self.own.abs(), self.other.abs()
        across = own * torch.minimum(moved, self.far) + other * (moved - self.near).clamp_min(0.0)
        return torch.where(self.sure, torch.maximum(own * moved, across), steepest * moved) * SAFE


def kinked_line(
    place: Place, row: Tensor, moved: Tensor, budget: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Lines for homogeneous activations.

    d is such that both branches of e agree where |Δ| = v, the v that an entry would have at the price of the budget if
    all lines were tangents: d = (1 − t/v)/2, or 0 where t ≥ v.

    Args:
        place: where they are.
        row: (R, *shape), cotangents of their values.
        moved: (R, *shape), bounds on |Δz|.
        budget: from the entries that cost anything (which row, which entry; (n,) each) bounds on ‖Δz‖₂ of these: (R,).

    Returns:
        slopes c (R, *shape), and what Σ row·κ·e can fall to below 0 at most, (R,).
    """
    weight = flat(row * place.bend)
    sure, near, reach = flat(place.sure), flat(place.near), flat(moved)
    active = torch.where(sure, (weight < 0) & (near < reach), weight != 0)
    at, entry = torch.nonzero(active, as_tuple=True)
    size, near, reach = weight[at, entry].abs() * _UP, near[at, entry], reach[at, entry]
    drop, most = size * near * _DOWN, budget(at, entry)
    _, price = most_harm(torch.zeros_like(size), size, drop, reach, at, most)
    likely = torch.minimum(size / (2 * price[at]), reach)
    share = ((1 - near / likely) / 2).nan_to_num(0.0).clamp(0.0, 0.5)
    share = torch.where(sure[at, entry], share, 0.5)
    cost, _ = most_harm(size * share * _UP, size * (1 - share) * _UP, drop, reach, at, most)
    towards = torch.zeros_like(weight)
    towards[at, entry] = share
    return place.own + towards.reshape(row.shape) * (place.other - place.own), cost


def plain_line(slopes: Slopes, row: Tensor, moved: Tensor, budget: Tensor) -> tuple[Tensor, Tensor]:
    """Lines for activations of which only the difference quotients are known; ``budget`` (R,) bounds ‖Δz‖₂."""
    like = torch.zeros((), dtype=row.dtype, device=row.device)
    low, high = (torch.as_tensor(v, dtype=row.dtype, device=row.device) for v in (slopes.lower, slopes.upper))
    centre = (low + high) / 2
    size = flat(row.abs() * torch.maximum(high - centre, centre - low) * _UP)
    at, entry = torch.nonzero(size, as_tuple=True)
    size, reach = size[at, entry], flat(moved)[at, entry]
    cost, _ = most_harm(size, torch.zeros_like(size), torch.zeros_like(size), reach, at, budget)
    return centre.expand(row.shape) + like, cost
