"""The loop transformation: the one linear map T on which every bound of the library stands.

An activation whose slopes lie in [α, β] is ``φ(z) = c·z + r·ψ(z)`` with ``c = (α+β)/2``, ``r = (β−α)/2`` and ψ
elementwise 1-Lipschitz. With ``w_j = ψ_j(z_j)`` taken for a free input, all that is left of the network is affine,
and for differences of inputs it is one linear map

    T : (x, w_1, …, w_K) ↦ (z_1, …, z_K, y),        |Δw_j| ≤ |Δz_j| in every coordinate.

A map that is only Lipschitz as a whole (max pooling) enters with c = 0 and its constant for r. T is never formed:
it is one pass through the linearised network in which r_j·w_j is added at the activations, and its adjoint is one
vector-Jacobian product of that pass.

Numbering: *sources* are 0 (x) and 1…K (w_j); *targets* are 1…K (z_k) and K+1 (y). The block from source j to target
k is ``A_kj``. Source: Fazlyab et al., NeurIPS 2023, §3; the scaling of w_j by r_j is ours (it makes every ψ_j
1-Lipschitz and r a part of the map).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from lipcert.graph.types import Affine, Coefficient, Elementwise, Graph, Node, Nonlinear, Resolved, VectorMap
from lipcert.graph.unblocked import joined_weight, unblocked
from lipcert.plan import Gather, Group, Pair, Plan, Planner, Step

__all__ = ["BlockMap", "Group", "LoopMap", "Pair", "Plan"]


class BlockMap(Protocol):
    """What the norms ask of a map with blocks: :class:`LoopMap`, or :class:`lipcert.scaled.ScaledMap`.

    Its methods are described where they are written.
    """

    @property
    def overhead(self) -> int: ...  # noqa: D102
    @property
    def depth(self) -> int: ...  # noqa: D102
    @property
    def graph(self) -> Graph: ...  # noqa: D102
    @property
    def resolved(self) -> Resolved: ...  # noqa: D102
    def absolute(self) -> BlockMap: ...  # noqa: D102
    def source_shape(self, j: int) -> tuple[int, ...]: ...  # noqa: D102
    def target_shape(self, k: int) -> tuple[int, ...]: ...  # noqa: D102
    def connected(self, k: int, j: int) -> bool: ...  # noqa: D102
    def plan(self, groups: Sequence[Group]) -> Plan: ...  # noqa: D102
    def run(self, plan: Plan, seeds: Mapping[int, Tensor]) -> dict[int, Tensor]: ...  # noqa: D102
    def adjoint(self, cotangents: Sequence[Tensor | None]) -> list[Tensor]: ...  # noqa: D102
    def amplification(self) -> tuple[list[Tensor], list[Tensor]]: ...  # noqa: D102


class LoopMap:
    """T of a graph, at the weights it was resolved with.

    Args:
        graph: the network.
        resolved: its numbers; read from the module now if omitted.
        centred: with True the loop transformation (c, r as above); with False c = 0 and r the Lipschitz constant
            of each activation, which makes the same recursion the product bound.

    Example:
        A network with weights ``W1``, ``W2`` and ReLU has ``T = [[W1, 0], [W2 W1 / 2, W2 / 2]]``:

        >>> import torch, lipcert
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)).eval()
        >>> loop = LoopMap(lipcert.trace(net, (3,)))
        >>> x, w = torch.randn(5, 3), torch.randn(5, 4)
        >>> z, y = loop.forward([x, w])
        >>> torch.allclose(z, x @ net[0].weight.T, atol=1e-6)
        True
        >>> torch.allclose(y, (0.5 * z + 0.5 * w) @ net[2].weight.T, atol=1e-6)
        True
    """

    overhead: int = 0
    """Roundings on a path beyond those of the network's nodes."""

    def __init__(self, graph: Graph, resolved: Resolved | None = None, *, centred: bool = True) -> None:
        self.graph, self.centred = graph, centred
        self.walked, self._blocks = unblocked(graph)  # what passes travel through, under the same numbers
        self._take(graph.resolve() if resolved is None else resolved)
        self.nonlinear: tuple[Nonlinear, ...] = graph.nonlinear
        self.depth = len(self.nonlinear)
        self._number = {node.index: k for k, node in enumerate(self.nonlinear, start=1)}
        self._reach = [self._reachable(j) for j in range(self.depth + 1)]
        self._need = [set[int]()] + [self._needed(k) for k in range(1, self.depth + 2)]

    def at(self, resolved: Resolved) -> LoopMap:
        """The same map at other numbers of the same graph; plans made for one serve the other."""
        other = copy.copy(self)
        other._take(resolved)
        return other

    def _take(self, resolved: Resolved) -> None:
        self.resolved = resolved
        joined = {i: joined_weight(self.walked.nodes[i], b, resolved.coefficients) for i, b in self._blocks.items()}
        self._joined = {i: (weight,) for i, weight in joined.items()}

    def coefficients(self, node: Node) -> tuple[Coefficient, ...]:
        """Those of a node of :attr:`walked`."""
        return self._joined.get(node.index) or self.resolved.coefficients[node.index]

    def absolute(self) -> LoopMap:
        """|T|: the same map with every coefficient made positive."""
        return self.at(self.resolved.absolute())

    # --- shapes and structure -----------------------------------------------------------------------------
    def source_shape(self, j: int) -> tuple[int, ...]:
        """Shape of one x (j = 0) or w_j."""
        return self.graph.input_shape if j == 0 else self.nonlinear[j - 1].shape

    def target_shape(self, k: int) -> tuple[int, ...]:
        """Shape of one z_k, or y (k = K + 1)."""
        return self.graph.nodes[self.target_node(k)].shape

    def connected(self, k: int, j: int) -> bool:
        """Whether block A_kj has a path at all; if not it is exactly zero."""
        return self.target_node(k) in self._reach[j]

    def pairs(self, *, targets: Sequence[int] | None = None) -> list[Pair]:
        """The blocks (k, j) that are not structurally zero, by target."""
        wanted = range(1, self.depth + 2) if targets is None else targets
        return [(k, j) for k in wanted for j in range(self.depth + 1) if self.connected(k, j)]

    def between(self, k: int, j: int) -> list[Node]:
        """The nodes of :attr:`walked` on the paths of block A_kj, in order."""
        return [self.walked.nodes[i] for i in sorted(self._reach[j] & self._need[k])]

    def _source_node(self, j: int) -> int:
        return 0 if j == 0 else self.nonlinear[j - 1].index

    def target_node(self, k: int) -> int:
        """Index of the node whose value is z_k, or y."""
        return self.graph.output if k == self.depth + 1 else self.nonlinear[k - 1].inputs[0]

    def reach(self, j: int) -> set[int]:
        """The nodes to which a path leads from source j."""
        return self._reach[j]

    def need(self, k: int) -> set[int]:
        """The nodes from which a path leads to target k."""
        return self._need[k]

    def number(self, node: Node) -> int:
        """k, of the k-th nonlinear node."""
        return self._number[node.index]

    def passes(self, node: Nonlinear) -> bool:
        """Whether z goes on through the activation, scaled by c."""
        if not self.centred or not isinstance(node, Elementwise):
            return False
        centre = self.resolved.slopes[node.index].centre
        return isinstance(centre, Tensor) or centre != 0.0

    def _reachable(self, j: int) -> set[int]:
        found = {self._source_node(j)}
        for node in self.walked.nodes[self._source_node(j) + 1 :]:
            opened = isinstance(node, Nonlinear) and not self.passes(node)
            if not opened and any(i in found for i in node.inputs):
                found.add(node.index)
        return found

    def _needed(self, k: int) -> set[int]:
        found = {self.target_node(k)}
        for node in reversed(self.walked.nodes[: self.target_node(k) + 1]):
            opened = isinstance(node, Nonlinear) and not self.passes(node)
            if node.index in found and not opened:
                found.update(node.inputs)
        return found

    # --- numbers ------------------------------------------------------------------------------------------
    def _centre(self, node: Nonlinear) -> Coefficient:
        return self.resolved.slopes[node.index].centre

    def _radius(self, node: Nonlinear) -> Coefficient:
        if isinstance(node, Elementwise):
            slopes = self.resolved.slopes[node.index]
            return slopes.radius if self.centred else slopes.lipschitz
        assert isinstance(node, VectorMap)
        return node.constant

    def shares(self, j: int) -> tuple[float, float]:
        """How much of source j's Lipschitz constant is centre, and how much radius: ``max |c|/ℓ`` and ``max r/ℓ``.

        (0.5, 0.5) for ReLU. They relate the blocks of this map to those of the map that is not centred.
        """
        node = self.nonlinear[j - 1] if j else None
        if not self.centred or not isinstance(node, Elementwise):
            return 0.0, 1.0
        slopes = self.resolved.slopes[node.index]
        centre, radius, top = (
            torch.as_tensor(v, dtype=torch.float64).detach() for v in (slopes.centre, slopes.radius, slopes.lipschitz)
        )
        top = torch.where(top > 0, top, torch.ones_like(top))
        return float((centre.abs() / top).max()), float((radius / top).max())

    def radius(self, j: int) -> Coefficient:
        """r_j, by which w_j is multiplied."""
        return self._radius(self.nonlinear[j - 1])

    def ratios(self, j: int) -> tuple[float, float]:
        """``max |c_j|/r_j`` and ``1/min r_j``: they turn a change of z_j, or of u_j, into one of w_j."""
        node = self.nonlinear[j - 1]
        radius = torch.as_tensor(self.radius(j), dtype=torch.float64).detach()
        inverse = float(1 / radius.min())
        if not self.passes(node):
            return 0.0, inverse
        centre = torch.as_tensor(self._centre(node), dtype=torch.float64).detach().abs()
        ratio = torch.where(centre > 0, centre / radius, torch.zeros_like(centre))
        return float(ratio.max()), inverse

    # --- plans --------------------------------------------------------------------------------------------
    def plan(self, groups: Sequence[Group]) -> Plan:
        """Work out where each group's rows have to travel."""
        return Planner(self, groups).plan()

    # --- the map ------------------------------------------------------------------------------------------
    def run(self, plan: Plan, seeds: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Send rows through T.

        Args:
            plan: from :meth:`plan`.
            seeds: for each source j a tensor (rows, *source_shape(j)): the rows of all groups that enter there,
                one group after the other.

        Returns:
            for each target k the rows of all groups that are wanted there and have a path, one group after the
            other (``plan.rows(k)`` says which), (rows, *target_shape(k)).
        """
        like = next(iter(seeds.values()))
        values: dict[int, Tensor] = {}
        pieces: dict[int, tuple[Tensor, ...]] = {}
        results: dict[int, Tensor] = {}

        def bring(index: int, gather: Gather) -> Tensor:
            if gather.whole:
                return values[index]
            shape = self.graph.nodes[index].shape
            parts = [like.new_zeros((rows, *shape)) if at is None else pieces[index][at] for at, rows in gather.pieces]
            return parts[0] if len(parts) == 1 else torch.cat(parts)

        for node in self.walked.nodes:
            step = plan.steps.get(node.index)
            if step is not None:
                if isinstance(node, Affine):
                    operands = [bring(i, g) for i, g in zip(node.inputs, step.operands, strict=True)]
                    value = node.apply(operands, self.coefficients(node))
                elif isinstance(node, Nonlinear):
                    value = self._activate(node, step, seeds, bring)
                else:
                    value = seeds[0]
                values[node.index] = value
                pieces[node.index] = torch.split_with_sizes(value, step.sizes) if len(step.sizes) > 1 else (value,)
                for k, gather in step.results:
                    results[k] = bring(node.index, gather)
            for i in node.inputs:
                if plan.last_use.get(i) == node.index:
                    values.pop(i, None)
                    pieces.pop(i, None)
        return results

    def _activate(
        self, node: Nonlinear, step: Step, seeds: Mapping[int, Tensor], bring: Callable[[int, Gather], Tensor]
    ) -> Tensor:
        """``c·z + r·w`` on the rows that carry z, w, or both."""
        radius = self._radius(node)
        new = seeds[self.number(node)] if step.inject else None
        if not step.operands:
            assert new is not None
            return _times(new, radius)
        carried, centre = bring(node.inputs[0], step.operands[0]), self._centre(node)
        if new is None:
            return _times(carried, centre)
        # ReLU and others with slopes in [0, β] have c = r: one product on the joined rows instead of two.
        common = isinstance(centre, float) and centre == radius
        if not common:
            carried, new = _times(carried, centre), _times(new, radius)
        joined = carried + new if not step.merge else _merged(carried, new, step.merge)
        return _times(joined, centre) if common else joined

    def forward(self, inputs: Sequence[Tensor | None]) -> list[Tensor]:
        """T itself: from ``[x, w_1, …, w_K]`` (None for zero) to ``[z_1, …, z_K, y]``, all with N rows."""
        given = {j: v for j, v in enumerate(inputs) if v is not None}
        like = next(iter(given.values()))
        plan = self.plan([Group(len(like), frozenset(given), frozenset(range(1, self.depth + 2)))])
        out = self.run(plan, given)
        return [
            out[k] if k in out else like.new_zeros((len(like), *self.target_shape(k))) for k in range(1, self.depth + 2)
        ]

    def adjoint(self, cotangents: Sequence[Tensor | None]) -> list[Tensor]:
        """Tᵀ: from cotangents of ``[z_1, …, z_K, y]`` (None for zero) to those of ``[x, w_1, …, w_K]``."""
        given = {k: v for k, v in enumerate(cotangents, start=1) if v is not None}
        like = next(iter(given.values()))
        with torch.enable_grad():
            seeds = {
                j: like.new_zeros((len(like), *self.source_shape(j))).requires_grad_() for j in range(self.depth + 1)
            }
            out = self.run(self.plan([Group(len(like), frozenset(seeds), frozenset(given))]), seeds)
            if not out:
                return [s.detach() for s in seeds.values()]
            gradients = torch.autograd.grad(
                list(out.values()), list(seeds.values()), [given[k] for k in out], allow_unused=True
            )
        return [torch.zeros_like(s) if g is None else g for s, g in zip(seeds.values(), gradients, strict=True)]

    def amplification(self) -> tuple[list[Tensor], list[Tensor]]:
        """How much an error of size 1 in every entry of every node can grow to: ``Σ_i |A_ki|·1`` over all nodes i.

        Returns:
            for each target k = 1…K+1 that sum, (1, *target_shape), and for each source j = 0…K the sum
            ``Σ_i |A_ij|ᵀ·1`` of the way back, (1, *source_shape). They bound what underflow can do to T.
        """
        sizes = self.absolute()
        like = torch.zeros((), dtype=self.resolved.dtype, device=self.resolved.device)
        with torch.enable_grad():
            sources = [like.new_zeros((1, *self.source_shape(j))).requires_grad_() for j in range(self.depth + 1)]
            values: list[Tensor] = []
            for node in self.graph.nodes:
                if isinstance(node, Affine):
                    out = node.apply([values[i] for i in node.inputs], sizes.resolved.coefficients[node.index])
                elif isinstance(node, Nonlinear):
                    out = _times(sources[self.number(node)], sizes._radius(node))
                    if self.passes(node):
                        out = out + _times(values[node.inputs[0]], sizes._centre(node))
                else:
                    out = sources[0]
                values.append(out + 1)
            back = torch.autograd.grad([v.sum() for v in values], sources)
        return [values[self.target_node(k)].detach() for k in range(1, self.depth + 2)], list(back)


def _merged(carried: Tensor, new: Tensor, merge: Sequence[tuple[int, int]]) -> Tensor:
    """Two piles of rows in one order; where both have the same row (pile 2) their sum."""
    piles = [
        iter(torch.split_with_sizes(carried, [rows for pile, rows in merge if pile != 1])),
        iter(torch.split_with_sizes(new, [rows for pile, rows in merge if pile != 0])),
    ]
    return torch.cat([next(piles[0]) + next(piles[1]) if pile == 2 else next(piles[pile]) for pile, _ in merge])


def _times(value: Tensor, factor: Coefficient) -> Tensor:
    return value if isinstance(factor, float) and factor == 1.0 else value * factor
