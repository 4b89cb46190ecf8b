"""What is lost where an activation is flat, and stays so: it changes nothing.

A ReLU gives 0 for every negative number, so that what rounding makes of one is lost on nobody, as long as it remains
negative. Networks have channels that are hardly ever active: these have nothing but their bias, hardly move with x, and
so have large weights D in a small-gain certificate, by which what they lose is multiplied in turn.

How far an entry is from where its activation bends is known as its sample is evaluated, how far it can come is not,
as that depends on what all are found to lose. So what is lost is summed up by that distance, and :meth:`Resting.rest`
leaves out what is farther away than anything can come.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipcert.bounds.lines import Sides
from lipcert.certify.arithmetic import count
from lipcert.graph.types import Elementwise
from lipcert.loop import LoopMap
from lipcert.norms.errors import TINY

__all__ = ["CAUTION", "Resting", "flat_sides"]

CAUTION = 2.0**-10
"""By how much more whoever certifies has entries come closer: so whoever verifies, on another machine, leaves out all
that was left out, and perhaps more. (In float64 z itself may differ by as much as it is said to lose; what margins are
lowered by for that, :mod:`lipcert.certify.contest`, is more then.)"""

_PARTS, _LOW, _HIGH = 4, -40, 40  # distances are told apart by a quarter of a power of two, between these powers
_SAFE = 1 + 2.0**-20
_LOG = 1 - 2.0**-30  # covers the rounding of a logarithm
_UNDERFLOWN = 2.0**-1000  # above the squares that underflow, of each entry


def flat_sides(loop: LoopMap, k: int) -> Sides | None:
    """Where activation k, executed as it is, gives exactly 0: slopes that are 0 on one side of 0, and exact.

    None where there is no such side, as of a leaky ReLU, or where the values that it selects are rounded.
    """
    node = loop.nonlinear[k - 1]
    if not isinstance(node, Elementwise) or not node.homogeneous or node.departure or count(loop, node):
        return None
    sides = Sides.of(node, loop.resolved)
    return sides if bool((sides.left == 0).any() or (sides.right == 0).any()) else None


class Resting:
    """What the entries of one z_k lose, by how far each is from where its activation bends.

    Args:
        lost: D·δ, float64 (N, *shape).
        z: as it was evaluated, D·z, likewise.
        sides: of the activation.
        caution: distances count as less by this share.
    """

    def __init__(self, lost: Tensor, z: Tensor, sides: Sides, caution: float = 0.0) -> None:
        flat = torch.where(z > 0, sides.right == 0, sides.left == 0)
        distance = torch.where(flat, z.abs(), 0.0).nan_to_num(0.0).flatten(1)
        bins = _PARTS * (_HIGH - _LOW) + 1  # the first is of those that are not left out at any distance
        place = (distance * (_LOG * (1 - caution))).log2_().mul_(_PARTS).floor_().sub_(_PARTS * _LOW - 1)
        place = place.clamp_(0, bins - 1).long()
        lost = lost.flatten(1)
        self.largest = lost.amax(1)
        share = (lost / self.largest.clamp_min(torch.finfo(torch.float64).tiny)[:, None]).square_().add_(_UNDERFLOWN)
        self.squares = share.new_zeros((len(share), bins)).scatter_add_(1, place, share)
        powers = torch.arange(bins - 1, dtype=torch.float64, device=z.device) / _PARTS + _LOW
        self.distances = torch.cat([powers.new_zeros(1), powers.exp2()])

    def rest(self, reach: Tensor) -> Tensor:
        """(N,), ‖D·δ‖ of the entries that D·z may bring to where their activation bends, if it moves by ``reach``."""
        near = ~(self.distances > reach[:, None])  # also where that is not a number
        return (self.largest * torch.where(near, self.squares, 0.0).sum(1).sqrt() * _SAFE + TINY).nan_to_num(torch.inf)
