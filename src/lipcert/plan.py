"""Plans: which rows of a batch travel through which nodes, worked out once for many passes.

The norms of all blocks are iterated in one batch of a few rows, each of which is computed only between its source and
its target. A plan says for each node which rows are alive there, and how they get there from the nodes before.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from lipcert.graph.types import Graph, Node, Nonlinear

__all__ = ["Gather", "Group", "Pair", "Plan", "Planner", "Routes", "Step"]

Pair = tuple[int, int]
"""A block of T: (target, source)."""


@dataclass(frozen=True)
class Group:
    """Rows of a batch that enter at the same sources and are wanted at the same targets."""

    rows: int
    sources: frozenset[int]
    targets: frozenset[int]


@dataclass(frozen=True)
class Gather:
    """Which pieces of a value to join, in order; a piece that is not there is that many rows of zeros."""

    pieces: tuple[tuple[int | None, int], ...]
    whole: bool = False


@dataclass(frozen=True)
class Step:
    """What happens at one node.

    ``sizes`` cuts the node's value into the pieces that its users ask for. At a nonlinear node ``operands`` brings
    the rows that go on through it and ``merge`` orders the two piles, what goes on (0) and what is injected (1).
    """

    operands: tuple[Gather, ...]
    sizes: tuple[int, ...]
    results: tuple[tuple[int, Gather], ...]
    inject: bool = False
    merge: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Plan:
    """Which rows travel through which nodes: each row is computed only between its sources and its targets."""

    groups: tuple[Group, ...]
    steps: dict[int, Step]
    last_use: dict[int, int]

    def rows(self, target: int) -> list[int]:
        """The groups whose rows :meth:`lipcert.loop.LoopMap.run` returns at a target, in order."""
        return list(self.delivered.get(target, ()))

    delivered: dict[int, tuple[int, ...]] = field(default_factory=dict)


class Routes(Protocol):
    """What a planner asks of a loop map: :class:`lipcert.loop.LoopMap`."""

    @property
    def walked(self) -> Graph: ...  # noqa: D102
    @property
    def depth(self) -> int: ...  # noqa: D102
    def connected(self, k: int, j: int) -> bool: ...  # noqa: D102
    def reach(self, j: int) -> set[int]: ...  # noqa: D102
    def need(self, k: int) -> set[int]: ...  # noqa: D102
    def passes(self, node: Nonlinear) -> bool: ...  # noqa: D102
    def number(self, node: Node) -> int: ...  # noqa: D102
    def target_node(self, k: int) -> int: ...  # noqa: D102


class Planner:
    """Works out a :class:`Plan`: which groups are alive at which node, and how their rows get from node to node."""

    def __init__(self, loop: Routes, groups: Sequence[Group]) -> None:
        self.loop, self.groups = loop, tuple(groups)
        for g in self.groups if len(self.groups) > 1 else ():
            lost = [j for j in g.sources if not any(loop.connected(k, j) for k in g.targets)]
            if lost:  # its rows would be missing from the middle of a seed
                raise ValueError(f"no path from sources {lost} to any of the targets {sorted(g.targets)}")
        empty: set[int] = set()
        self.reach = [empty.union(*(loop.reach(s) for s in g.sources)) for g in groups]
        self.need = [empty.union(*(loop.need(t) for t in g.targets)) for g in groups]
        self.active: dict[int, tuple[int, ...]] = {}
        for node in loop.walked.nodes:
            alive = tuple(
                g for g in range(len(self.groups)) if node.index in self.reach[g] and node.index in self.need[g]
            )
            if alive:
                self.active[node.index] = alive

    def plan(self) -> Plan:
        """The plan of these groups."""
        loop = self.loop
        targets: dict[int, list[int]] = {}
        for k in range(1, loop.depth + 2):
            targets.setdefault(loop.target_node(k), []).append(k)
        wanted: dict[int, list[tuple[int, ...]]] = {i: [] for i in self.active}  # what users ask of each node, in order
        for index in self.active:
            node = loop.walked.nodes[index]
            for i in node.inputs:
                if i in self.active:
                    wanted[i].append(self._carried(index, i) if isinstance(node, Nonlinear) else self.active[index])
        delivered: dict[int, tuple[int, ...]] = {}
        for index, here in self.active.items():
            for k in targets.get(index, ()):
                delivered[k] = tuple(g for g in here if k in self.groups[g].targets)
                wanted[index].append(delivered[k])
        cuts = {index: self._cut(index, asked) for index, asked in wanted.items()}
        steps = {index: self._step(index, cuts, targets.get(index, ()), delivered) for index in self.active}
        last_use = {i: index for index in self.active for i in loop.walked.nodes[index].inputs}
        delivered = {k: v for k, v in delivered.items() if v}
        return Plan(self.groups, steps, last_use, delivered)

    def _carried(self, index: int, source: int) -> tuple[int, ...]:
        """The groups whose z goes on through a nonlinear node."""
        node = self.loop.walked.nodes[index]
        assert isinstance(node, Nonlinear)
        if not self.loop.passes(node):
            return ()
        return tuple(g for g in self.active[index] if g in self.active.get(source, ()))

    def _cut(self, index: int, asked: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """The coarsest cut of a node's groups from which every user can be served by whole pieces."""
        here, order = self.active[index], {g: i for i, g in enumerate(self.active[index])}
        cut = set[int]()
        for groups in asked:
            # A piece ends where its next group is not what the user wants next (rows of zeros may come in between).
            places: list[int | None] = [None, *(order.get(g) for g in groups), None]
            for last, place in itertools.pairwise(places):
                if last is not None and place != last + 1:
                    cut.add(last + 1)
                if place is not None and last != place - 1:
                    cut.add(place)
        edges = sorted(cut | {0, len(here)})
        return [here[a:b] for a, b in itertools.pairwise(edges)]

    def _gather(self, groups: tuple[int, ...], index: int, cuts: Mapping[int, Sequence[tuple[int, ...]]]) -> Gather:
        pieces = cuts.get(index, ())
        if groups and groups == self.active.get(index):
            return Gather((), whole=True)
        where = {g: at for at, piece in enumerate(pieces) for g in piece}
        found: list[tuple[int | None, int]] = []
        for g in groups:
            at, rows = where.get(g), self.groups[g].rows
            if found and found[-1][0] == at:  # the rest of the same piece, or more zeros
                found[-1] = (at, found[-1][1] + rows)
            else:
                found.append((at, rows))
        return Gather(tuple(found))

    def _step(
        self,
        index: int,
        cuts: Mapping[int, Sequence[tuple[int, ...]]],
        targets: Sequence[int],
        delivered: Mapping[int, tuple[int, ...]],
    ) -> Step:
        node, here = self.loop.walked.nodes[index], self.active[index]
        sizes = tuple(sum(self.groups[g].rows for g in piece) for piece in cuts[index])
        results = tuple((k, self._gather(delivered[k], index, cuts)) for k in targets if delivered[k])
        if not isinstance(node, Nonlinear):
            operands = tuple(self._gather(here, i, cuts) for i in node.inputs)
            return Step(operands, sizes, results)
        source, number = node.inputs[0], self.loop.number(node)
        carried = self._carried(index, source)
        injected = [g for g in here if number in self.groups[g].sources]
        own = (self._gather(carried, source, cuts),) if carried else ()
        merge: list[tuple[int, int]] = []
        if carried and injected and (list(carried) != injected or list(here) != injected):
            for g in here:
                pile = 2 if g in carried and g in injected else (0 if g in carried else 1)
                if merge and merge[-1][0] == pile:
                    merge[-1] = (pile, merge[-1][1] + self.groups[g].rows)
                else:
                    merge.append((pile, self.groups[g].rows))
        return Step(own, sizes, results, bool(injected), tuple(merge))
