"""Where a network is steepest, as far as a search finds: points with large Jacobians, pairs with large quotients.

A *goal* is what is to rise: ‖y‖ (global), or one number c·y with a covector c (a logit, a difference of two). Its
direction v at a point is the leading right singular vector of the Jacobian J, or Jᵀc. The Jacobian of a piecewise
linear network is constant almost everywhere, so its norm has no gradient to follow; what has one is the quotient
``‖f(x) − f(x')‖/‖x − x'‖`` of two points some way apart. Adam moves both ends, from x ± h·v/2; by the mean value
theorem some point of the segment between them has a Jacobian at least as large, so a few points of it are tried, and
the best begin the next round with another h.

Nothing here is a bound: what is found is measured by ``lower.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lipcert.graph.types import Graph, Resolved
from lipcert.norms.power import normalised, row_norms

__all__ = ["Search", "rises"]

_ENTRIES = 2**23  # of the widest layer, in flight at once
_ROWS = 32  # a Jacobian of up to this many rows is formed; of others the leading direction is iterated
_PRODUCTS = 30  # of JᵀJ with a vector, there
_SPANS = (1.0, 0.3, 0.1, 0.03, 0.01)  # h, relative to √n times the scale of the inputs
_MOVE = 0.7  # what an entry may move in a step, relative to h/√n
_FAR = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # of random points, relative to the scale of the inputs
_SAMPLES = (0.0, 0.5, 1.0)  # the points of a segment that are tried


def rises(change: Tensor, covectors: Tensor | None) -> Tensor:
    """How much the goals rise: ‖Δy‖ of each row of (R, C), or |c·Δy| with the covector (R, C) of each row: (R,)."""
    return row_norms(change) if covectors is None else (change * covectors).sum(1).abs()


def _spread(v: Tensor, like: Tensor) -> Tensor:
    """(R,) as a factor of the rows of (R, *shape)."""
    return v.reshape(-1, *(1,) * (like.ndim - 1))


class Search:
    """Looks for where a network is steepest.

    Args:
        graph: the network.
        resolved: its numbers, in float64.
        scale: how far apart inputs are, entry by entry.
        box: smallest and largest value that an input may have, if it is restricted.
        generator: of starts and directions, on the CPU.
    """

    def __init__(
        self,
        graph: Graph,
        resolved: Resolved,
        *,
        scale: float,
        box: tuple[float, float] | None,
        generator: torch.Generator,
    ) -> None:
        self.graph, self.resolved, self.scale, self.box = graph, resolved, scale, box
        self._generator = generator
        self._inputs, self.outputs = math.prod(graph.input_shape), math.prod(graph.output_shape)
        self.rows = max(1, _ENTRIES // max(math.prod(node.shape) for node in graph.nodes))

    def values(self, x: Tensor) -> Tensor:
        """The network at a batch: (N, *input_shape) to (N, C), the output flat."""
        return self.graph.evaluate(x, self.resolved).flatten(1)

    def inside(self, x: Tensor) -> Tensor:
        """The nearest points that are allowed."""
        return x if self.box is None else x.clamp(*self.box)

    def pair(self, x: Tensor, v: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """The ends x ± h·v/2 for each row, x first moved as little as it takes for both to be allowed."""
        step = _spread(h, v) * v / 2
        if self.box is not None:
            low, high = self.box
            size = step.abs().clamp_max((high - low) / 2)
            x = torch.maximum(torch.minimum(x, high - size), low + size)
        return self.inside(x - step), self.inside(x + step)

    # --- Jacobians ----------------------------------------------------------------------------------------
    def jacobians(self, x: Tensor) -> Iterator[Tensor]:
        """J at each point, in batches (n, C, inputs): C backward passes each."""
        step = max(1, min(self.rows, 2**26 // (self.outputs * self._inputs)))
        for batch in torch.split(x, step):
            leaf = batch.detach().requires_grad_()
            y = self.values(leaf)
            rows = [
                torch.autograd.grad(y[:, c].sum(), leaf, retain_graph=True, materialize_grads=True)[0].flatten(1)
                for c in range(self.outputs)
            ]
            yield torch.stack(rows, 1)

    def directions(self, x: Tensor, covectors: Tensor | None) -> tuple[Tensor, Tensor]:
        """For each point ‖J‖ and the steepest direction, or ‖Jᵀc‖ and its direction: (R,) and (R, *input_shape)."""
        if covectors is None and self.outputs <= _ROWS:
            parts = [self._leading(rows) for rows in self.jacobians(x)]
        elif covectors is None:
            parts = [self._iterated(batch) for batch in torch.split(x, self.rows)]
        else:
            batches = (torch.split(v, self.rows) for v in (x, covectors))
            parts = [self._gradient(*batch) for batch in zip(*batches, strict=True)]
        found = torch.cat(parts).nan_to_num(0.0, 0.0, 0.0)
        v, norms = normalised(found)
        return norms, v.reshape(x.shape)

    def _leading(self, rows: Tensor) -> Tensor:
        """σ·v of the leading singular triple of each of (n, C, inputs), by the Gram matrix: (n, inputs)."""
        rows = rows.nan_to_num(0.0, 0.0, 0.0)
        size = rows.abs().amax((1, 2), keepdim=True).clamp_min(1e-300)
        _, left = torch.linalg.eigh((rows / size) @ (rows / size).mT)
        return torch.einsum("nc,nci->ni", left[:, :, -1], rows)

    def _gradient(self, x: Tensor, covectors: Tensor) -> Tensor:
        leaf = x.detach().requires_grad_()
        (g,) = torch.autograd.grad((self.values(leaf) * covectors).sum(), leaf, materialize_grads=True)
        return g.flatten(1)

    def _iterated(self, x: Tensor) -> Tensor:
        """Power iteration; J·v is the derivative of Jᵀu, which is linear in u."""
        leaf = x.detach().requires_grad_()
        y = self.values(leaf)
        u = torch.zeros_like(y, requires_grad=True)
        (pulled,) = torch.autograd.grad(y, leaf, u, create_graph=True, materialize_grads=True)
        v = torch.randn(x.shape, generator=self._generator, dtype=x.dtype).to(x.device)
        found = torch.zeros_like(v)
        for _ in range(_PRODUCTS if pulled.requires_grad else 0):
            (image,) = torch.autograd.grad(pulled, u, normalised(v)[0], retain_graph=True, materialize_grads=True)
            (found,) = torch.autograd.grad(y, leaf, normalised(image)[0], retain_graph=True, materialize_grads=True)
            v = found
        return found.flatten(1)

    # --- ascent -------------------------------------------------------------------------------------------
    def around(self, x: Tensor, count: int) -> Tensor:
        """Points at random, nearer to the given ones and farther: (count, *input_shape)."""
        some = torch.arange(count, device=x.device) % len(x)
        noise = torch.randn((count, *x.shape[1:]), generator=self._generator, dtype=x.dtype).to(x.device)
        far = self.scale * torch.tensor([_FAR[i % len(_FAR)] for i in range(count)], dtype=x.dtype, device=x.device)
        return self.inside(x[some] + _spread(far, x) * noise)

    def climb(self, x: Tensor, covectors: Tensor | None, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """From each point to a steeper one.

        Args:
            x: (R, *input_shape).
            covectors: the goal of each row, (R, C), or None for the whole output.
            steps: of Adam, over all rounds.

        Returns:
            the points (R, *input_shape), and the steepest pair of points that each row met.
        """
        norms, v = self.directions(x, covectors)
        ends = torch.stack(self.pair(x, v, torch.full_like(norms, self.scale)))
        steepest = torch.zeros_like(norms)
        length = math.sqrt(self._inputs) * self.scale
        rounds = max(1, min(len(_SPANS), steps // 10))
        for turn in range(rounds if steps else 0):
            share = steps // rounds + (turn < steps % rounds)
            spans = norms.new_tensor([_SPANS[(turn + i) % len(_SPANS)] for i in range(len(x))]) * length
            found, pairs = self._ascend(x, v, spans, covectors, share)
            better = found > steepest
            steepest = torch.where(better, found, steepest)
            ends = torch.where(_spread(better, x), pairs, ends)
            for t in _SAMPLES:
                others = pairs[0] + t * (pairs[1] - pairs[0])
                new, directions = self.directions(others, covectors)
                better = new > norms
                norms = torch.where(better, new, norms)
                x, v = (torch.where(_spread(better, x), a, b) for a, b in ((others, x), (directions, v)))
        return x, ends[0], ends[1]

    def _ascend(
        self, x: Tensor, v: Tensor, spans: Tensor, covectors: Tensor | None, steps: int
    ) -> tuple[Tensor, Tensor]:
        """Adam on both ends of x ± span·v/2: the steepest quotients on the way (R,), and where: (2, R, *shape)."""
        quotients, pairs = [], []
        for some in torch.split(torch.arange(len(x)), max(1, self.rows // 2)):
            start = torch.stack(self.pair(x[some], v[some], spans[some]))
            goals = None if covectors is None else covectors[some]
            unit = _spread(spans[some], x) * (_MOVE / math.sqrt(self._inputs))
            moves = torch.zeros_like(start, requires_grad=True)
            optimiser = torch.optim.Adam([moves], lr=1.0, maximize=True)
            best, kept = spans.new_zeros(len(some)), start
            for step in range(steps + 1):
                ends = self.inside(start + unit * moves)
                left, right = self.values(ends.flatten(0, 1)).chunk(2)
                run = row_norms(ends[0] - ends[1]).clamp_min(1e-6 * spans[some])
                quotient = rises(left - right, goals) / run
                seen = quotient.detach().nan_to_num(0.0, 0.0, 0.0)
                better = seen > best
                best = torch.where(better, seen, best)
                kept = torch.where(_spread(better, x), ends.detach(), kept)
                if step == steps:
                    break
                optimiser.param_groups[0]["lr"] = 1 - step / (steps + 1)
                (slope,) = torch.autograd.grad(quotient.clamp_min(1e-300).log().sum(), moves, materialize_grads=True)
                moves.grad = slope.nan_to_num(0.0, 0.0, 0.0)
                optimiser.step()
            quotients.append(best)
            pairs.append(kept)
        return torch.cat(quotients), torch.cat(pairs, 1)
