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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.graph.types import Affine, Coefficient, Elementwise, Graph, Nonlinear, Resolved

__all__ = ["Group", "LoopMap", "Pair", "Plan"]

Pair = tuple[int, int]
"""A block of T: (target, source)."""


@dataclass(frozen=True)
class Group:
    """Rows of a batch that enter at the same sources and are wanted at the same targets."""

    rows: int
    sources: frozenset[int]
    targets: frozenset[int]


@dataclass(frozen=True)
class _Gather:
    """How to bring rows from one node's group order into another's: runs of (start, rows), start None for zeros."""

    runs: tuple[tuple[int | None, int], ...]
    whole: bool

    def __call__(self, value: Tensor | None, shape: tuple[int, ...], like: Tensor) -> Tensor:
        if self.whole and value is not None:
            return value
        parts = []
        for start, rows in self.runs:
            if start is None or value is None:
                parts.append(like.new_zeros((rows, *shape)))
            else:
                parts.append(value.narrow(0, start, rows))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _gather(wanted: Sequence[int], present: Sequence[int], groups: Sequence[Group]) -> _Gather:
    starts, at = {}, 0
    for g in present:
        starts[g] = at
        at += groups[g].rows
    runs: list[tuple[int | None, int]] = []
    for g in wanted:
        start, rows = starts.get(g), groups[g].rows
        if runs:
            last, count = runs[-1]
            if (start is None and last is None) or (start is not None and last is not None and last + count == start):
                runs[-1] = (last, count + rows)
                continue
        runs.append((start, rows))
    return _Gather(tuple(runs), whole=tuple(wanted) == tuple(present))


@dataclass(frozen=True)
class _Step:
    active: tuple[int, ...]
    gathers: tuple[_Gather, ...]
    injected: tuple[int, ...] = ()
    carried: tuple[int, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Which rows travel through which nodes: each row is computed only between its sources and its targets."""

    groups: tuple[Group, ...]
    steps: dict[int, _Step]


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

    def __init__(self, graph: Graph, resolved: Resolved | None = None, *, centred: bool = True) -> None:
        self.graph, self.centred = graph, centred
        self.resolved = graph.resolve() if resolved is None else resolved
        self.nonlinear: tuple[Nonlinear, ...] = graph.nonlinear
        self.depth = len(self.nonlinear)
        self._number = {node.index: k for k, node in enumerate(self.nonlinear, start=1)}
        self._reach = [self._reachable(j) for j in range(self.depth + 1)]
        self._need = [set[int]()] + [self._needed(k) for k in range(1, self.depth + 2)]

    def at(self, resolved: Resolved) -> LoopMap:
        """The same map at other numbers of the same graph; plans made for one serve the other."""
        other = copy.copy(self)
        other.resolved = resolved
        return other

    # --- shapes and structure -----------------------------------------------------------------------------
    def source_shape(self, j: int) -> tuple[int, ...]:
        """Shape of one x (j = 0) or w_j."""
        return self.graph.input_shape if j == 0 else self.nonlinear[j - 1].shape

    def target_shape(self, k: int) -> tuple[int, ...]:
        """Shape of one z_k, or y (k = K + 1)."""
        return self.graph.nodes[self._target_node(k)].shape

    def connected(self, k: int, j: int) -> bool:
        """Whether block A_kj has a path at all; if not it is exactly zero."""
        return self._target_node(k) in self._reach[j]

    def pairs(self, *, targets: Sequence[int] | None = None) -> list[Pair]:
        """The blocks (k, j) that are not structurally zero, by target."""
        wanted = range(1, self.depth + 2) if targets is None else targets
        return [(k, j) for k in wanted for j in range(self.depth + 1) if self.connected(k, j)]

    def _source_node(self, j: int) -> int:
        return 0 if j == 0 else self.nonlinear[j - 1].index

    def _target_node(self, k: int) -> int:
        return self.graph.output if k == self.depth + 1 else self.nonlinear[k - 1].inputs[0]

    def _passes(self, node: Nonlinear) -> bool:
        """Whether z goes on through the activation, scaled by c."""
        if not self.centred or not isinstance(node, Elementwise):
            return False
        centre = self.resolved.slopes[node.index].centre
        return isinstance(centre, Tensor) or centre != 0.0

    def _reachable(self, j: int) -> set[int]:
        found = {self._source_node(j)}
        for node in self.graph.nodes[self._source_node(j) + 1 :]:
            opened = isinstance(node, Nonlinear) and not self._passes(node)
            if not opened and any(i in found for i in node.inputs):
                found.add(node.index)
        return found

    def _needed(self, k: int) -> set[int]:
        found = {self._target_node(k)}
        for node in reversed(self.graph.nodes[: self._target_node(k) + 1]):
            opened = isinstance(node, Nonlinear) and not self._passes(node)
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
        return node.constant  # type: ignore[attr-defined, no-any-return]

    # --- plans --------------------------------------------------------------------------------------------
    def plan(self, groups: Sequence[Group]) -> Plan:
        """Work out where each group's rows have to travel."""
        reach = [set().union(*(self._reach[s] for s in g.sources)) for g in groups]
        need = [set().union(*(self._need[t] for t in g.targets)) for g in groups]
        steps: dict[int, _Step] = {}
        for node in self.graph.nodes:
            active = tuple(g for g in range(len(groups)) if node.index in reach[g] and node.index in need[g])
            if not active:
                continue
            if isinstance(node, Nonlinear):
                number, before = self._number[node.index], steps.get(node.inputs[0])
                injected = tuple(g for g in active if number in groups[g].sources)
                present = before.active if before is not None and self._passes(node) else ()
                carried = tuple(g for g in active if g in present)
                own = (_gather(carried, present, groups),) if carried else ()
                steps[node.index] = _Step(active, own, injected, carried)
            else:
                gathers = tuple(_gather(active, steps[i].active if i in steps else (), groups) for i in node.inputs)
                steps[node.index] = _Step(active, gathers)
        return Plan(tuple(groups), steps)

    # --- the map ------------------------------------------------------------------------------------------
    def run(self, plan: Plan, seeds: Mapping[tuple[int, int], Tensor]) -> dict[tuple[int, int], Tensor]:
        """Send rows through T.

        Args:
            plan: from :meth:`plan`.
            seeds: for each (group, source) of the plan a tensor (rows, *source_shape).

        Returns:
            for each (group, target) that has a path a tensor (rows, *target_shape).
        """
        like = next(iter(seeds.values()))
        values: dict[int, Tensor] = {}
        results: dict[tuple[int, int], Tensor] = {}
        wanted = {self._target_node(k): [] for k in range(1, self.depth + 2)}  # type: dict[int, list[int]]
        for k in range(1, self.depth + 2):
            wanted[self._target_node(k)].append(k)
        last_use = {i: node.index for node in self.graph.nodes for i in node.inputs if node.index in plan.steps}
        for node in self.graph.nodes:
            step = plan.steps.get(node.index)
            if step is not None:
                values[node.index] = self._evaluate(node.index, step, plan, values, seeds, like)
                self._collect(node.index, step, plan, values[node.index], wanted, results)
            for i in node.inputs:
                if last_use.get(i) == node.index:
                    values.pop(i, None)
        return results

    def _evaluate(
        self,
        index: int,
        step: _Step,
        plan: Plan,
        values: Mapping[int, Tensor],
        seeds: Mapping[tuple[int, int], Tensor],
        like: Tensor,
    ) -> Tensor:
        node = self.graph.nodes[index]
        if isinstance(node, Affine):
            operands = [
                gather(values.get(i), self.graph.nodes[i].shape, like)
                for i, gather in zip(node.inputs, step.gathers, strict=True)
            ]
            return node.apply(operands, self.resolved.coefficients[index])
        if not isinstance(node, Nonlinear):
            return _joined([seeds[g, 0] for g in step.active])
        radius, number = self._radius(node), self._number[index]
        fresh = [_times(seeds[g, number], radius) for g in step.injected]
        if not step.carried:
            return _joined(fresh)
        source = node.inputs[0]
        carried = _times(step.gathers[0](values[source], self.graph.nodes[source].shape, like), self._centre(node))
        if not fresh:
            return carried
        pieces: list[Tensor] = []
        new, at = dict(zip(step.injected, fresh, strict=True)), 0
        for g in step.active:
            rows = plan.groups[g].rows
            if g in step.carried:
                part = carried.narrow(0, at, rows)
                at += rows
                pieces.append(part + new[g] if g in new else part)
            else:
                pieces.append(new[g])
        return _joined(pieces)

    @staticmethod
    def _collect(
        index: int,
        step: _Step,
        plan: Plan,
        value: Tensor,
        wanted: Mapping[int, Sequence[int]],
        results: dict[tuple[int, int], Tensor],
    ) -> None:
        for k in wanted.get(index, ()):
            at = 0
            for g in step.active:
                rows = plan.groups[g].rows
                if k in plan.groups[g].targets:
                    results[g, k] = value.narrow(0, at, rows)
                at += rows

    def forward(self, inputs: Sequence[Tensor | None]) -> list[Tensor]:
        """T itself: from ``[x, w_1, …, w_K]`` (None for zero) to ``[z_1, …, z_K, y]``, all with N rows."""
        given = {j: v for j, v in enumerate(inputs) if v is not None}
        like = next(iter(given.values()))
        plan = self.plan([Group(len(like), frozenset(given), frozenset(range(1, self.depth + 2)))])
        out = self.run(plan, {(0, j): v for j, v in given.items()})
        return [
            out[0, k] if (0, k) in out else like.new_zeros((len(like), *self.target_shape(k)))
            for k in range(1, self.depth + 2)
        ]

    def adjoint(self, cotangents: Sequence[Tensor | None], *, create_graph: bool = False) -> list[Tensor]:
        """Tᵀ: from cotangents of ``[z_1, …, z_K, y]`` (None for zero) to those of ``[x, w_1, …, w_K]``."""
        given = {k: v for k, v in enumerate(cotangents, start=1) if v is not None}
        like = next(iter(given.values()))
        with torch.enable_grad():
            seeds = {
                (0, j): like.new_zeros((len(like), *self.source_shape(j))).requires_grad_()
                for j in range(self.depth + 1)
            }
            plan = self.plan([Group(len(like), frozenset(j for _, j in seeds), frozenset(given))])
            out = self.run(plan, seeds)
            reached = [(out[0, k], v) for k, v in given.items() if (0, k) in out]
            if not reached:
                return [s.detach() for s in seeds.values()]
            gradients = torch.autograd.grad(
                [o for o, _ in reached],
                list(seeds.values()),
                [v for _, v in reached],
                allow_unused=True,
                create_graph=create_graph,
            )
        return [torch.zeros_like(s) if g is None else g for s, g in zip(seeds.values(), gradients, strict=True)]


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _times(value: Tensor, factor: Coefficient) -> Tensor:
    return value if isinstance(factor, float) and factor == 1.0 else value * factor
