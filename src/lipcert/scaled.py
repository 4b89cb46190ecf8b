"""The scaled map S: T with weights on its free inputs and on its results, as one matrix on flat vectors.

    S : (x, p_1, …, p_K) ↦ (P·y, D_1·z_1, …, D_K·z_K),        w_j = p_j / D_j,

for positive D_j (a number for the layer, one for each channel, or one for each neuron) and a matrix P. The true w_j of
the network have ‖D_j·Δw_j‖ ≤ ‖D_j·Δz_j‖, so ‖S‖₂ ≤ 1 makes ‖P·Δy‖ ≤ ‖Δx‖: the one norm that proves a whole
small-gain bound (:mod:`lipcert.bounds.smallgain`). S looks to the norms like a :class:`lipcert.loop.LoopMap` of a
network without activations: it has one block, (1, 0).

Source: method of multipliers for repeated slope-restricted nonlinearities (LipSDP, Fazlyab et al. 2019, is ‖S‖ ≤ 1 with
a D for each neuron); the matrix-free form is ours.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lipcert.graph.types import Graph, Resolved, VectorMap
from lipcert.loop import Group, LoopMap, Pair, Plan

__all__ = ["ScaledMap", "levels", "weight_shapes"]


def levels(loop: LoopMap) -> list[int]:
    """For x, each w_k and y the length of the longest chain of blocks that leads to it: 0 for x.

    With t < 1, weights t^level on results and its inverse on inputs multiply block (k, j) by t^{level_k − level_j}.
    """
    found = [0]
    for k in range(1, loop.depth + 2):
        found.append(max((found[j] + 1 for j in range(k) if loop.connected(k, j)), default=1))
    return found


def weight_shapes(loop: LoopMap, scaling: str) -> list[tuple[int, ...]]:
    """The shape of D_k for k = 1…K.

    With ``"layer"`` one number, with ``"channel"`` one for each index of a sample's first dimension, with ``"neuron"``
    one for each entry. A map that is not elementwise has one for each part that it keeps apart
    (:attr:`lipcert.graph.types.VectorMap.apart`).
    """
    shapes = []
    for k, node in enumerate(loop.nonlinear, start=1):
        shape = loop.target_shape(k)
        apart = node.apart if isinstance(node, VectorMap) else tuple(range(len(shape)))
        if scaling == "layer":
            apart = ()
        elif scaling == "channel":
            apart = tuple(i for i in apart if i == 0)
        if len(loop.source_shape(k)) != len(shape):  # a maximum over a dimension: one number broadcasts against both
            assert not apart
            shape = ()
        shapes.append(tuple(n if i in apart else 1 for i, n in enumerate(shape)))
    return shapes


@dataclass(frozen=True)
class _Cut:
    """Where the parts of a flat vector begin and end, and their shapes."""

    shapes: tuple[tuple[int, ...], ...]

    @property
    def sizes(self) -> list[int]:
        return [math.prod(s) for s in self.shapes]

    def split(self, flat: Tensor) -> list[Tensor]:
        parts = flat.split_with_sizes(self.sizes, dim=1)
        return [p.reshape(len(flat), *s) for p, s in zip(parts, self.shapes, strict=True)]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([p.reshape(len(p), -1) for p in parts], dim=1)


def _spread(weights: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> Tensor:
    """Weights for each entry, one after the other: (n,), or (rows, n) if there are some for each row."""
    rows = [d.shape[:1] for d, s in zip(weights, shapes, strict=True) if d.ndim > len(s)]
    front = tuple(rows[0]) if rows else ()
    spread = [d.expand((*front, *s)).reshape((*front, math.prod(s))) for d, s in zip(weights, shapes, strict=True)]
    return torch.cat(spread, dim=-1)


class ScaledMap:
    """S of a network, at given weights.

    Args:
        loop: T.
        weights: D_1…D_K, positive, each broadcasting against z_k and w_k (:func:`weight_shapes`); or with one more
            dimension in front, where each row is to have weights of its own.
        output: P, a number (for any output) or a matrix (m, C) for an output of C logits; None leaves y out.

    Example:
        For the network x ↦ W2·relu(W1·x) and D = 1, S is ``[[W2 W1/2, W2/2], [W1, 0]]``:

        >>> import torch, lipcert
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)).eval()
        >>> scaled = ScaledMap(LoopMap(lipcert.trace(net, (3,))), [torch.ones(4)], 1.0)
        >>> columns = scaled.apply(torch.eye(7))
        >>> torch.allclose(columns[:3, 2:], net[0].weight.T), columns.shape
        (True, torch.Size([7, 6]))
    """

    depth: ClassVar[int] = 0

    def __init__(self, loop: LoopMap, weights: Sequence[Tensor], output: Tensor | float | None) -> None:
        self.loop, self.weights = loop, list(weights)
        self.output = output
        like = torch.zeros((), dtype=loop.resolved.dtype, device=loop.resolved.device)
        sources = [loop.source_shape(j) for j in range(loop.depth + 1)]
        self.sources = _Cut(tuple(sources))
        self.results = _Cut(tuple(loop.target_shape(k) for k in range(1, loop.depth + 1)))
        self.divisors = _spread([like.new_ones(()), *self.weights], sources)
        self.factors = _spread(self.weights, self.results.shapes) if self.weights else like.new_zeros(0)
        self._plans: dict[int, Plan] = {}

    # --- what the norms ask of a loop map ----------------------------------------------------------------
    @property
    def graph(self) -> Graph:
        """The network."""
        return self.loop.graph

    @property
    def resolved(self) -> Resolved:
        """Its numbers."""
        return self.loop.resolved

    @property
    def overhead(self) -> int:
        """Roundings on a path beyond those of T: the weights, and the products with P."""
        return 8 + (max(self.output.shape) if isinstance(self.output, Tensor) else 0)

    def at(self, resolved: Resolved) -> ScaledMap:
        """The same weights with other numbers of the same graph (in another dtype, say)."""
        output = self.output.to(resolved.dtype) if isinstance(self.output, Tensor) else self.output
        return ScaledMap(self.loop.at(resolved), [d.to(resolved.dtype) for d in self.weights], output)

    def absolute(self) -> ScaledMap:
        """|T| with the same weights, and |P|: not below S in any entry."""
        other = copy.copy(self)
        other.loop = self.loop.absolute()
        if isinstance(self.output, Tensor):
            other.output = self.output.abs()
        elif self.output is not None:
            other.output = abs(self.output)
        return other

    def source_shape(self, j: int) -> tuple[int, ...]:
        """Shape of (x, p), flat."""
        return (self.divisors.shape[-1],)

    def target_shape(self, k: int) -> tuple[int, ...]:
        """Shape of S(x, p), flat."""
        return (self._outputs() + self.factors.shape[-1],)

    def connected(self, k: int, j: int) -> bool:
        """S has one block."""
        return (k, j) == (1, 0)

    def pairs(self, *, targets: Sequence[int] | None = None) -> list[Pair]:
        """S has one block."""
        return [(1, 0)]

    def plan(self, groups: Sequence[Group]) -> Plan:
        """A plan for as many rows as the groups have together."""
        return self._plan(sum(g.rows for g in groups))

    def _plan(self, rows: int) -> Plan:
        if rows not in self._plans:
            last = self.loop.depth + 1
            wanted = range(1, last + (self.output is not None))
            sources = [j for j in range(last) if any(self.loop.connected(k, j) for k in wanted)]
            self._plans[rows] = self.loop.plan([Group(rows, frozenset(sources), frozenset(wanted))])
        return self._plans[rows]

    def run(self, plan: Plan, seeds: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """As :meth:`lipcert.loop.LoopMap.run`, of the one block."""
        return {1: self.apply(seeds[0])}

    def adjoint(self, cotangents: Sequence[Tensor | None]) -> list[Tensor]:
        """As :meth:`lipcert.loop.LoopMap.adjoint`, of the one block."""
        (given,) = cotangents
        assert given is not None
        with torch.enable_grad():
            seed = given.new_zeros((len(given), self.divisors.shape[-1])).requires_grad_()
            (back,) = torch.autograd.grad(self.apply(seed), seed, given)
        return [back]

    def amplification(self) -> tuple[list[Tensor], list[Tensor]]:
        """As :meth:`lipcert.loop.LoopMap.amplification`: how errors of size 1 grow, the scaled entries among them."""
        forward, back = self.loop.amplification()
        top = max([1.0, *(float(torch.as_tensor(self.loop.radius(j)).max()) for j in range(1, self.loop.depth + 1))])
        *hidden, output = forward
        parts = [1 + top * self._outer(output.abs().reshape(1, -1), absolute=True)] if self.output is not None else []
        if hidden:
            parts.append(1 + top * self.factors * self.results.join(hidden))
        amplified = self.sources.join(back) / self.divisors
        if self.output is not None:
            size = float(self.output.abs().sum()) if isinstance(self.output, Tensor) else abs(self.output)
            amplified = amplified * max(1.0, size)
        return [torch.cat(parts, dim=1)], [1 + top * amplified * max(1.0, float(self.factors.max()) if hidden else 1)]

    # --- the map -----------------------------------------------------------------------------------------
    def _outputs(self) -> int:
        if self.output is None:
            return 0
        if isinstance(self.output, Tensor):
            return len(self.output)
        return math.prod(self.loop.target_shape(self.loop.depth + 1))

    def _outer(self, y: Tensor, *, absolute: bool = False) -> Tensor:
        if isinstance(self.output, Tensor):
            return y @ (self.output.abs() if absolute else self.output).T
        assert self.output is not None
        return y * self.output

    def values(self, p: Tensor) -> tuple[Tensor, Tensor | None]:
        """D·z, flat (rows, Σ|z_k|), and y, (rows, *output_shape), at rows of (x, p)."""
        loop, rows = self.loop, len(p)
        plan = self._plan(rows)
        parts = self.sources.split(p / self.divisors)
        (group,) = plan.groups
        out = loop.run(plan, {j: parts[j] for j in group.sources})
        empty = [p.new_zeros((rows, *s)) for s in self.results.shapes]
        hidden = [out.get(k, e) for k, e in enumerate(empty, start=1)]
        z = self.results.join(hidden) * self.factors if hidden else p.new_zeros((rows, 0))
        return z, out.get(loop.depth + 1)

    def apply(self, p: Tensor) -> Tensor:
        """S at rows of (x, p): (rows, n) → (rows, m), y first."""
        z, y = self.values(p)
        if self.output is None:
            return z
        if y is None:
            y = p.new_zeros((len(p), *self.loop.target_shape(self.loop.depth + 1)))
        return torch.cat([self._outer(y.reshape(len(p), -1)), z], dim=1)

    def group_sums(self, flat: Tensor, *, results: bool) -> list[Tensor]:
        """Sums of a (1, n) or (1, m) vector of squares over the entries that share a weight: like the weights."""
        parts = (self.results if results else self.sources).split(flat)
        parts = parts if results else parts[1:]
        return [p[0].sum_to_size(d.shape) for p, d in zip(parts, self.weights, strict=True)]

    def loosened(self, t: float) -> ScaledMap:
        """The weights D_k·t^level: for t < 1 the norm of S without y shrinks by t at least (Schwarz's lemma)."""
        steps = levels(self.loop)[1:]
        return ScaledMap(self.loop, [d * t**n for d, n in zip(self.weights, steps, strict=False)], self.output)
