"""How far passes of T err in float64: relative errors, underflow, and norms of |T|.

A pass of T, or of its adjoint, sums products along paths; with N roundings on the longest of them it errs by at most
γ_N·|T| entry by entry, in whatever order sums are made, where |T| is the same map with all coefficients made positive.

For one block A_kj of a deep network that is far too much, as |T| multiplies at every layer what T does not. There the
error is followed segment by segment (the affine maps S between activations): what is lost at z_l is at most
ρ_l·‖|S_li|‖ times what enters (ρ_l is γ of the path through the segment with the most roundings), and goes on to z_k
through the rest of the network, so

    ‖fl(A_kj p) − A_kj p‖ ≤ Σ_l ‖A_kl‖·max|c_l/r_l| · ρ_l·Σ_i ‖|S_li|‖·max|c_i|·‖A_ij‖ · ‖p‖,

with the norms of blocks that are proved already. The adjoint obeys the same bound.

Source: Higham, *Accuracy and Stability of Numerical Algorithms*, ch. 3 (γ_n); the sum over segments is ours.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from lipcert.graph.types import Affine, Graph, Node
from lipcert.loop import BlockMap, Group, LoopMap, Pair

__all__ = [
    "TINY",
    "UNIT",
    "BlockErrors",
    "Errors",
    "Lost",
    "absolute_norm",
    "gamma",
    "path_error",
    "relative_error",
    "roundings_at",
    "segment_path",
    "underflow",
]

UNIT = 2.0**-53
TINY = 2.0**-1022


def gamma(n: float) -> float:
    """``γ_n = n·u/(1 − n·u)``, the relative error of n roundings in float64."""
    return n * UNIT / (1 - n * UNIT)


def _roundings(loop: BlockMap) -> int:
    """At most this many roundings lie on one path, of T or of its adjoint, in whatever order sums are made.

    Those of all nodes, blocks that passes join included: together they sum as many products, and more.
    """
    return loop.overhead + sum(roundings_at(loop, node) for node in loop.graph.nodes)


def roundings_at(loop: BlockMap, node: Node) -> int:
    """What one node of the graph, or of what passes travel through, adds to that."""
    total = 4 + loop.graph.users[node.index]  # the adjoint makes a sum where a value is used several times
    if isinstance(node, Affine):
        inputs = sum(math.prod(loop.graph.nodes[i].shape) for i in node.inputs)
        total += max(inputs, math.prod(node.shape)) if node.terms is None else max(node.terms)
        if node.terms is None and len(node.coefficients) > 1:  # an einsum may multiply its constants first
            weights = loop.resolved.coefficients[node.index]
            total += sum(w.numel() for w in weights if isinstance(w, Tensor))
    return total


def _further_users(loop: LoopMap) -> Counter[int]:
    """How much more often passes use the value of a node than the network does: layers in blocks may share sections."""
    needed, users = {loop.target_node(k) for k in range(1, loop.depth + 2)}, Counter[int]()
    for node in reversed(loop.walked.nodes):
        if node.index in needed:
            needed.update(node.inputs)
            users.update(node.inputs)
    return users - loop.graph.users


def segment_path(loop: LoopMap, k: int, weigh: Callable[[Node], int], graph: Graph) -> tuple[int, int]:
    """The most that nodes on one path to z_k (or y) weigh together, and how many nodes there weigh anything.

    Paths begin at the input and at the activations before, which are weighed too. Each term of the sum that z_k is goes
    along one path, and so does each of the adjoint's: it takes part in the roundings of the nodes on that. ``graph`` is
    what is walked: the network's, for an execution, or ``loop.walked``, for passes of T.
    """
    last, pending, segment = loop.target_node(k), [loop.target_node(k)], set[int]()
    while pending:
        node = graph.nodes[pending.pop()]
        if node.index not in segment:
            segment.add(node.index)
            pending += node.inputs if isinstance(node, Affine) else ()
    most, weights = dict[int, int](), {index: weigh(graph.nodes[index]) for index in segment}
    for index in sorted(segment):
        node = graph.nodes[index]
        before = node.inputs if isinstance(node, Affine) else ()
        most[index] = weights[index] + max((most[i] for i in before), default=0)
    return most[last], sum(weight > 0 for weight in weights.values())


Lost: TypeAlias = tuple[list[float], list[float]]


def underflow(loop: BlockMap) -> Lost:
    """At most this much of an entry is lost to underflow: in passes of T by target, of Tᵀ by source.

    Each entry of each node sums at most N products, and loses at most 2⁻¹⁰²² in each; the loss grows with |T|.
    """
    forward, back = loop.amplification()
    unit = 2 * TINY * _roundings(loop)
    return [0.0, *(unit * float(v.max()) for v in forward)], [unit * float(v.max()) for v in back]


def relative_error(loop: BlockMap) -> float:
    """A pass of T or of its adjoint errs by at most this times the same pass of |T|, entry by entry."""
    return gamma(2 * _roundings(loop)) * (1 + gamma(2 * _roundings(loop)))


def path_error(loop: LoopMap) -> float:
    """The whole network, activations included, errs by at most this times :meth:`Graph.sizes`, entry by entry.

    16 roundings are allowed for the evaluation of one activation.
    """
    return gamma(2 * (_roundings(loop) + 16 * len(loop.graph.nodes))) * (1 + 2.0**-10)


def absolute_norm(loop: BlockMap, pair: Pair, lost: Lost | None = None) -> float:
    """A bound on ``‖|A_kj|‖₂``, hence on ‖A_kj‖₂ too: ``√(‖|A|‖₁ ‖|A|‖_∞)`` costs two passes of |T|.

    ``lost`` is :func:`underflow`; with it the bound also holds where entries of |A| are below the range of floats.
    """
    k, j = pair
    sizes = loop.absolute()
    ones = torch.ones((1, *loop.source_shape(j)), dtype=loop.resolved.dtype, device=loop.resolved.device)
    plan = sizes.plan([Group(1, frozenset({j}), frozenset({k}))])
    with torch.no_grad():
        row_sums = sizes.run(plan, {j: ones})[k]
    cotangents: list[Tensor | None] = [None] * (loop.depth + 1)
    cotangents[k - 1] = torch.ones_like(row_sums)
    column_sums = sizes.adjoint(cotangents)[j]
    gone = (0.0, 0.0) if lost is None else (lost[0][k], lost[1][j])
    row, column = float(row_sums.max()) + gone[0], float(column_sums.max()) + gone[1]
    return math.sqrt(row) * math.sqrt(column) * (1 + relative_error(loop)) * (1 + 8 * UNIT)


class Errors(Protocol):
    """What a pass through one block of a map may lose, and how large its norm may be: see :class:`BlockErrors`."""

    known: dict[Pair, float]

    @property
    def loop(self) -> BlockMap: ...  # noqa: D102
    def norm(self, pair: Pair) -> float: ...  # noqa: D102
    def error(self, pair: Pair) -> float: ...  # noqa: D102


class BlockErrors:
    """What a pass through one block may lose, and how large its norm may be, from norms that are known already.

    Args:
        loop: T in float64.
        known: upper bounds on the norms of blocks, to which others add what they prove: the norms of near blocks make
            the errors of far ones good.
    """

    def __init__(self, loop: LoopMap, known: dict[Pair, float]) -> None:
        self.loop, self.known = loop, known
        flat = LoopMap(loop.graph, loop.resolved, centred=False)
        self._flat = set(flat.pairs())
        # What enters a segment may be far larger than the units that these are computed from, so what underflows there
        # must not be lost.
        self._lost, beneath = underflow(loop), underflow(flat)
        self._sizes = {p: absolute_norm(flat, p, beneath) for p in self._flat}  # ‖|S_li|·diag ℓ_i‖
        self._further = _further_users(loop)
        self.relative = {k: self._segment(k) for k in range(1, loop.depth + 2)}
        self._absolute: dict[Pair, float] = {}
        self._guessed: dict[Pair, float] = {}
        self._errors: dict[Pair, float] = {}
        # max |c|/ℓ, max r/ℓ and max |c|/r of each source
        self._shares = [(0.0, 1.0), *(loop.shares(j) for j in range(1, loop.depth + 1))]
        self._ratios = [0.0, *(loop.ratios(j)[0] for j in range(1, loop.depth + 1))]

    def _segment(self, k: int) -> float:
        def weigh(node: Node) -> int:
            return roundings_at(self.loop, node) + self._further[node.index]

        most, _ = segment_path(self.loop, k, weigh, self.loop.walked)
        return gamma(2 * most) * (1 + gamma(2 * most))

    def _crude(self, pair: Pair) -> float:
        if pair not in self._absolute:
            self._absolute[pair] = absolute_norm(self.loop, pair, self._lost)
        return self._absolute[pair]

    def norm(self, pair: Pair) -> float:
        """A bound on ‖A_kj‖: what is known, else the sum over the last segments of the paths, else ‖|A_kj|‖."""
        if pair in self.known or pair in self._guessed:
            return self.known[pair] if pair in self.known else self._guessed[pair]
        k, j = pair
        total = self._segment_norm((k, j)) * self._shares[j][1] if pair in self._flat else 0.0
        for i in range(j + 1, k):
            if (k, i) in self._flat and self.loop.connected(i, j):
                total += self._segment_norm((k, i)) * self._shares[i][0] * self.norm((i, j))
        self._guessed[pair] = min(total * (1 + 2.0**-40), self._crude(pair))
        return self._guessed[pair]

    def _segment_norm(self, pair: Pair) -> float:
        """‖S_ki·diag ℓ_i‖; where no path but the segment leads from i to k, it is the block itself, rescaled."""
        k, i = pair
        alone = not any((k, m) in self._flat and self.loop.connected(m, i) for m in range(i + 1, k))
        if alone and pair in self.known and math.isfinite(self._ratios[i]):
            return min(self._sizes[pair], self.known[pair] * (1 + self._ratios[i]) * (1 + 2.0**-40))
        return self._sizes[pair]

    def error(self, pair: Pair) -> float:
        """A bound on ‖fl(A_kj p) − A_kj p‖/‖p‖, and on the same of the adjoint."""
        if pair in self._errors:
            return self._errors[pair]
        k, j = pair
        total = 0.0
        for target in range(j + 1, k + 1):
            enters = self._sizes[target, j] * self._shares[j][1] if (target, j) in self._flat else 0.0
            for i in range(j + 1, target):
                if (target, i) in self._flat and self.loop.connected(i, j):
                    enters += self._sizes[target, i] * self._shares[i][0] * (self.norm((i, j)) + self.error((i, j)))
            if not enters or (target < k and not self.loop.connected(k, target)):
                continue
            tail = 1.0 if target == k else self._ratios[target] * self.norm((k, target))
            total += tail * self.relative[target] * enters
        crude = relative_error(self.loop) * self._crude(pair)
        total *= 1 + 2.0**-10
        self._errors[pair] = total if total < crude else crude  # the latter too where ∞·0 made the former no number
        return self._errors[pair]
