"""How far each entry of each pre-activation can move while the input stays within an ℓ2 ball.

With m_k a Lipschitz constant of x ↦ z_k, ‖Δz_k‖ ≤ m_k·ε holds of every entry too, and so do

    |Δz_k,i| ≤ Σ_j ‖row i of |S_kj|·ℓ_j‖₂·m_j·ε,        |Δz_k| ≤ Σ_j |S_kj|·|Δa_j|,

with S_kj the affine map from activation j (or x) to z_k. The first is the same in every ball and made once; the second
is interval arithmetic on changes, which knows that an activation far from its kink passes little on. The least of all
holds.

Source: norms of rows and intervals are those of any linear relaxation (Zhang et al., CROWN, 2018, for ℓ2 balls); taking
the global m_j into them is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lipcert.graph.forms import Convolution
from lipcert.graph.types import Affine, Elementwise, Nonlinear, VectorMap
from lipcert.loop import LoopMap
from lipcert.norms.scaling import row_norms

__all__ = ["LEAST", "SAFE", "Movement", "flat", "norms_of_rows"]

SAFE = 1 + 2.0**-24  # covers the rounding of sums of up to 2²⁵ terms that are not negative
LEAST = 2.0**-990
"""More than what underflow can take from a sum of such terms, however small a movement is."""
_LEAST = 2.0**-400  # more than what underflow can take from the norm of a row


def flat(rows: Tensor) -> Tensor:
    """(R, *shape) → (R, n), a shape without dimensions included."""
    return rows.reshape(len(rows), -1)


def norms_of_rows(loop: LoopMap, k: int, j: int) -> Tensor:
    """``‖row i of S_kj·ℓ_j‖₂`` from above, for every entry i of z_k: (1, *target_shape(k)).

    While entries are only moved and scaled, rows have one entry each and no two share one; the first convolution or
    matrix product after that sums squares, and whatever follows obeys the triangle inequality.

    Args:
        loop: T without centres (``centred=False``), in float64.
        k, j: a target and a source that a path joins.

    Example:
        >>> import torch, lipcert
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3)).double().eval()
        >>> loop = LoopMap(lipcert.trace(net, (2, 2)), centred=False)
        >>> torch.allclose(norms_of_rows(loop, 1, 0), net[1].weight.norm(dim=1))
        True
    """
    absolute, like = loop.absolute(), loop.resolved.scalar(0.0)
    source = 0 if j == 0 else loop.nonlinear[j - 1].index
    radius = 1.0 if j == 0 else torch.as_tensor(loop.radius(j), dtype=like.dtype, device=like.device)
    norms = {source: like.new_ones((1, *loop.source_shape(j))) * radius}
    apart = {source}  # nodes whose rows have one entry each, at different places
    for node in loop.between(k, j):
        if not isinstance(node, Affine):
            continue
        inputs = [norms.get(i, like.new_zeros((1, *loop.graph.nodes[i].shape))) for i in node.inputs]
        own, alone = absolute.coefficients(node), len(node.inputs) == 1 and node.inputs[0] in apart
        if alone and isinstance(node.form, Convolution) and len(own) == 1 and node.terms != (1, 1):
            squares = [torch.as_tensor(c, dtype=like.dtype, device=like.device).square() for c in own]
            value = node.apply([inputs[0].square()], squares).sqrt()
        else:
            value = node.apply(inputs, own)
            if alone and node.terms == (1, 1):
                apart.add(node.index)
        norms[node.index] = value * SAFE + _LEAST
    return norms[loop.target_node(k)]


class Movement:
    """Bounds on |Δz_k| in balls, for one network.

    Args:
        loop: T of the network in float64.
        hidden: for each k = 1…K a Lipschitz constant m_k of x ↦ z_k, from above.
    """

    def __init__(self, loop: LoopMap, hidden: Mapping[int, float]) -> None:
        self.graph, self.absolute = loop.graph, loop.resolved.absolute()
        opened = LoopMap(loop.graph, loop.resolved, centred=False)
        constants, least = {0: 1.0, **hidden}, loop.resolved.scalar(2.0**-900)
        self.constants = {node.index: constants[k] for k, node in enumerate(loop.nonlinear, start=1)}
        self.rates: dict[int, Tensor] = {}  # by node: per unit of ε, (1, *shape of z)
        for k, node in enumerate(loop.nonlinear, start=1):
            rows = [norms_of_rows(opened, k, j) * constants[j] for j in range(k) if opened.connected(k, j)]
            total = sum(rows, start=torch.zeros_like(least)) * SAFE + least
            self.rates[node.index] = total.clamp_max(constants[k] * SAFE).expand(1, *loop.target_shape(k))

    def within(self, radius: Tensor, passes: Callable[[Elementwise, Tensor], Tensor]) -> dict[int, Tensor]:
        """Bounds on |Δz_k| for R balls at once.

        Args:
            radius: (R,), ε of each.
            passes: from a bound on |Δz| of an elementwise node, (R, *shape), one on |Δa|.

        Returns:
            by index of the nonlinear node: (R, *shape).
        """
        moved: dict[int, Tensor] = {}

        def activate(node: Nonlinear, reached: Tensor) -> Tensor:
            size = radius.reshape(-1, *(1,) * (reached.ndim - 1))
            found = torch.minimum(reached, self.rates[node.index] * size) * SAFE + LEAST
            moved[node.index] = found
            if isinstance(node, Elementwise):
                return passes(node, found)
            assert isinstance(node, VectorMap)
            most = torch.minimum(row_norms(flat(found)), self.constants[node.index] * radius) * SAFE + LEAST
            return (node.constant * most).reshape(-1, *(1,) * len(node.shape)).expand(-1, *node.shape)

        ball = radius.reshape(-1, *(1,) * len(self.graph.input_shape)).expand(-1, *self.graph.input_shape)
        self.graph.evaluate(ball, self.absolute, activate=activate, offsets=False)
        return moved
