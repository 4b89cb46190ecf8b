"""The Lipschitz bound inside a training step: one pass of a few rows, made during the backward pass.

A loss needs the value of the bound and, after its own backward pass, the gradient of the bound in the weights,
weighted by ``G = ∂loss/∂L``. :class:`TrainingBound` returns the value that the last step computed, and does all
its work when autograd hands it G. One forward and one backward pass of a handful of rows then gives

* the norms ``s_kj = ‖A_kj u_kj‖`` of the blocks at the present weights, u_kj being the leading vectors so far;
* the gradient of the loss in the weights through the bound, u_kj held fixed (no differentiating through power
  iterations: ∂‖A‖ = vᵀ(∂A)u);
* the next leading vectors: the gradient in u_kj is a positive multiple of Aᵀ(Au), one power iteration for free
  (with momentum, :func:`lipcert.norms.power.next_vectors`, which tracks a moving target better);
* the rows ``p_aj = A_yjᵀe_a`` of the head, exactly: they are the gradient in what is injected to differentiate
  the head, as the head is linear in it.

So the bound that a loss sees is one step old, which at training's step sizes is far below the bound's own error.
Several processes that train together share its rows: each sends its own pairs of blocks and classes of the head
through, adds what they make of the gradient, and tells the others the norms and the head's rows.
With ``every = n`` the pass is made in every n-th step, and its gradient is used again in between, scaled to the
size of the present G.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from lipcert.bounds.options import check_choice
from lipcert.bounds.recursion import combine, hidden_bounds, hidden_pairs
from lipcert.bounds.result import Scope
from lipcert.errors import BoundError
from lipcert.graph.capture import ordinary_mode
from lipcert.graph.types import Resolved
from lipcert.loop import Group, LoopMap, Pair, Plan
from lipcert.norms.lanczos import leading_vectors
from lipcert.norms.power import next_vectors, random_seeds, row_norms
from lipcert.parallel import ALONE, Ranks
from lipcert.train.deferred import DeferredBound, detached, in_layout, memory_layout

__all__ = ["TrainingBound"]

_SETTLED, _PRODUCTS = 1e-3, 100  # of Lanczos where the bound is looked at closely


Rows: TypeAlias = "Tensor | slice"
"""Some of the rows of a tensor, or all of them as they are."""


@dataclass(frozen=True)
class _Share:
    """The rows of a pass that one process sends: some pairs of blocks, and some classes of the head.

    Attributes:
        rows: for each source with such pairs, which of its vectors they are.
        pairs: the numbers of these pairs.
        order: where among the norms as they arrive each of these pairs is.
        classes: of the head.
        plan, pair_plan: for the rows of both, and of the pairs alone.
    """

    rows: dict[int, Rows]
    pairs: Rows
    order: Tensor
    classes: slice
    plan: Plan
    pair_plan: Plan


class TrainingBound(DeferredBound):
    """A differentiable Lipschitz estimate that stays warm from step to step. Not a certificate.

    Args:
        module: the network that is trained; its eval form is bounded, in train mode too.
        input_shape: shape of one input, without the batch dimension.
        method: ``"liplt"`` or ``"product"``.
        scope: ``"global"`` gives L of shape (), ``"class"`` (C,), ``"pairwise"`` (C, C).
        every: make the pass in every n-th backward pass only.
        iterations: power iterations in each pass; the first is part of the pass, each further one costs as much.
        warmup: power iterations at construction.
        seed: of their start.
        factor: a constant of what comes before the module, which its bound is multiplied by.

    All state is in buffers, so ``.to()``, ``state_dict()`` and resuming carry it.

    Example:
        Three lines in a loop of one's own:

        >>> import torch
        >>> from lipcert.train import TrainingBound, crm_loss
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x, y = torch.rand(16, 3), torch.randint(2, (16,))
        >>> bound = TrainingBound(net, (3,))                                              # once
        >>> loss = crm_loss(net(x), y, bound(), temperature=5, radius_cap=0.5, weight=1)  # each step
        >>> loss.backward()
    """

    norms: Tensor
    divides = True

    def __init__(
        self,
        module: nn.Module,
        input_shape: Sequence[int],
        *,
        method: Literal["product", "liplt"] = "liplt",
        scope: Scope = "pairwise",
        every: int = 1,
        iterations: int = 1,
        warmup: int = 30,
        seed: int = 0,
        factor: float = 1.0,
    ) -> None:
        if str(method) == "smallgain":
            raise BoundError("method='smallgain' is lipcert.train.GainBound.")
        check_choice("method", method, ("product", "liplt"))
        super().__init__(module, input_shape, scope, every, {"iterations": iterations, "warmup": warmup})
        self.iterations, self.factor, graph = iterations, factor, self.graph
        with torch.no_grad():
            self._loop = LoopMap(graph, graph.resolve(), centred=method != "product")
        loop, last = self._loop, self._loop.depth + 1
        pairs = loop.pairs() if scope == "global" else hidden_pairs(loop)
        self.pairs: list[Pair] = sorted(pairs, key=lambda pair: (pair[1], -pair[0]))
        self.heads = [] if scope == "global" else [j for j in range(last) if loop.connected(last, j)]
        self._mine = self._share(ALONE)
        self._create_state(seed)
        self._power_steps(warmup)

    def share(self, ranks: Ranks) -> None:
        """Make the passes together with other processes from now on; their states are to be the same."""
        super().share(ranks)
        self._mine = self._share(ranks)

    def _share(self, ranks: Ranks) -> _Share:
        loop, last = self._loop, self._loop.depth + 1
        numbers = [i for i in range(len(self.pairs)) if i % ranks.size == ranks.rank]
        pairs = [self.pairs[i] for i in numbers]
        groups = [Group(1, frozenset({j}), frozenset({k})) for k, j in pairs]
        classes = ranks.part(self.graph.output_shape[0] if self.heads else 0)
        if classes.start < classes.stop:
            groups.append(Group(classes.stop - classes.start, frozenset(self.heads), frozenset({last})))
        plan = loop.plan(groups)
        arrived = [g for k in plan.delivered for g in plan.rows(k) if g < len(pairs)]
        first = {j: min(i for i, p in enumerate(self.pairs) if p[1] == j) for _, j in pairs}
        alone = ranks.size == 1
        return _Share(
            {j: _those([i - first[j] for i in numbers if self.pairs[i][1] == j], alone) for j in first},
            _those(numbers, alone),
            torch.tensor([arrived.index(g) for g in range(len(pairs))], dtype=torch.int64, device=loop.resolved.device),
            classes,
            plan,
            loop.plan(groups[: len(pairs)]),
        )

    def _create_state(self, seed: int) -> None:
        loop, resolved = self._loop, self._loop.resolved
        self._layout = layout = memory_layout(self.graph.capture.module)
        starts = random_seeds(loop, self.pairs, seed=seed)
        for j in sorted({j for _, j in self.pairs}):
            rows = torch.cat([starts[p] for p in self.pairs if p[1] == j])
            self.register_buffer(f"vectors_{j}", in_layout(rows, layout))
            self.register_buffer(f"memory_{j}", torch.zeros_like(self.get_buffer(f"vectors_{j}")))
        classes = self.graph.output_shape[0]
        for j in self.heads:
            empty = torch.zeros((classes, *loop.source_shape(j)), dtype=resolved.dtype, device=resolved.device)
            self.register_buffer(f"rows_{j}", in_layout(empty, layout))
        shape = {"global": (), "class": (classes,), "pairwise": (classes, classes)}[self.scope]
        zeros = torch.zeros((), dtype=resolved.dtype, device=resolved.device)
        self.register_buffer("norms", zeros.new_zeros(len(self.pairs)))
        self.register_buffer("value", zeros.new_zeros(shape))
        self._register_counter(resolved)

    # --- the formula ------------------------------------------------------------------------------------
    def _formula(self, norms: Tensor, rows: dict[int, Tensor]) -> Tensor:
        """The bound from the norms of the hidden blocks and the rows of the head."""
        loop, last = self._loop, self._loop.depth + 1
        known = dict(zip(self.pairs, norms.unbind(), strict=True))
        inner = {p: n for p, n in known.items() if p[0] != last}
        hidden = hidden_bounds(loop, inner) if inner else {0: norms.new_ones(())}
        if self.scope == "global":
            final = {j: known[last, j] for j in range(last) if (last, j) in known}
        elif self.scope == "class":
            final = {j: row_norms(r) for j, r in rows.items()}
        else:
            final = {j: _distances(_flat(r)) for j, r in rows.items()}
        value = combine(final, hidden, torch.zeros_like(next(iter(final.values()))))
        return value if self.factor == 1 else value * self.factor

    def _vectors(self) -> dict[int, Tensor]:
        return {j: self.get_buffer(f"vectors_{j}") for j in sorted({j for _, j in self.pairs})}

    def _own_vectors(self, source: int) -> Tensor:
        vectors = self.get_buffer(f"vectors_{source}").detach()
        return in_layout(vectors[self._mine.rows[source]], self._layout)

    def _rows(self) -> dict[int, Tensor]:
        return {j: self.get_buffer(f"rows_{j}") for j in self.heads}

    # --- the pass ---------------------------------------------------------------------------------------
    def _pass(
        self, resolved: Resolved, leaves: Sequence[Tensor], weights: Tensor, injected: dict[int, Tensor]
    ) -> list[Tensor | None]:
        """One forward and backward pass; updates the state, returns the gradients in ``leaves``.

        Processes that share it get what their own rows make of the gradients.

        Args:
            weights: ∂/∂s for each block; where it is 0 the block's vector is left as it is.
            injected: for each source of the head ∂/∂p, which is what to inject there.
        """
        loop, last, mine = self._loop.at(resolved), self._loop.depth + 1, self._mine
        weights, heads = weights[mine.pairs], mine.classes.start < mine.classes.stop
        norms = weights.new_zeros(len(weights))
        with torch.enable_grad():
            vectors = {j: self._own_vectors(j).requires_grad_() for j in mine.rows}
            injected = {j: v[mine.classes].detach().requires_grad_() for j, v in injected.items() if heads}
            seeds = {j: torch.cat([a[j] for a in (vectors, injected) if j in a]) for j in {**vectors, **injected}}
            out = loop.run(mine.plan, seeds) if seeds else {}
            total = weights.new_zeros((), requires_grad=True)
            if len(weights):
                lengths = [row_norms(v) for k, v in out.items() if k != last or not self.heads]
                norms = torch.cat(lengths)[mine.order.to(norms.device)]
                total = total + (norms * weights).sum()
            if heads:
                total = total + out[last][:, mine.classes].diagonal().sum()
            wanted = [*leaves, *vectors.values(), *injected.values()]
            gradients: list[Tensor | None] = []
            if wanted:  # else this process has no rows, and nobody asks for gradients
                gradients = [*torch.autograd.grad(total, wanted, allow_unused=True)]
        found = iter(gradients[len(leaves) :])
        with torch.no_grad():
            at = 0
            for j, v in vectors.items():
                gradient = next(found)
                count = len(v)
                if gradient is not None:
                    self._advance(j, gradient, weights[at : at + count].sign(), mine.rows[j])
                at += count
            for j in self.heads:
                rows = self.get_buffer(f"rows_{j}").zero_()
                gradient = next(found) if j in injected else None
                if gradient is not None:
                    rows[mine.classes] = gradient
            self.norms.zero_()[mine.pairs] = norms.detach()
            self.ranks.add(self.norms, *self._rows().values())
            self.value.copy_(self._formula(self.norms, self._rows()))
        return gradients[: len(leaves)]

    def _iterate(self, resolved: Resolved) -> None:
        """One power iteration of the hidden blocks alone, at given weights."""
        rows = self._mine.rows
        if not rows:
            return
        with torch.enable_grad():
            vectors = {j: self._own_vectors(j).requires_grad_() for j in rows}
            out = self._loop.at(resolved).run(self._mine.pair_plan, vectors)
            total = torch.cat([row_norms(v) for v in out.values()]).sum()
            gradients = torch.autograd.grad(total, list(vectors.values()))
        for (j, at), gradient in zip(rows.items(), gradients, strict=True):
            self._advance(j, gradient, torch.ones_like(gradient.flatten(1)[:, 0]), at)

    def _advance(self, source: int, gradient: Tensor, signs: Tensor, rows: Rows) -> None:
        """One power iteration of some blocks from one source; see :func:`next_vectors`."""
        states = self.get_buffer(f"vectors_{source}"), self.get_buffer(f"memory_{source}")
        following = next_vectors(gradient, states[0][rows], states[1][rows], signs)
        for state, new in zip(states, following, strict=True):
            state[rows] = new

    def gather(self) -> None:
        """Bring together what the processes that share the passes know."""
        super().gather()
        if self.ranks.size == 1:
            return
        for j in self._vectors():
            states = self.get_buffer(f"vectors_{j}"), self.get_buffer(f"memory_{j}")
            others = torch.ones(len(states[0]), dtype=torch.bool, device=states[0].device)
            others[self._mine.rows.get(j, [])] = False
            for state in states:
                state[others] = 0
            self.ranks.add(*states)

    def _power_steps(self, count: int) -> None:
        """Improve the vectors at the present weights without a gradient; the rows, which are exact, are made once."""
        with ordinary_mode():
            with torch.no_grad():
                resolved = detached(self.graph.resolve(self.value.dtype, self.value.device))
            for _ in range(count - 1):
                self._iterate(resolved)
            self._pass(
                resolved,
                [],
                torch.ones_like(self.norms),
                {j: torch.zeros_like(r) for j, r in self._rows().items()},
            )

    def refresh(self, iterations: int = 1) -> Tensor:
        """Bring the state up to the present weights by power iterations (at least one); the value, no gradient."""
        self._power_steps(iterations)
        return self.value.clone()

    def settle(self) -> Tensor:
        """Bring the state close to convergence, by Lanczos; the value, no gradient.

        Singular values that are nearly equal it tells apart in fewer products than power iteration does.
        """
        rows = [row for vectors in self._vectors().values() for row in vectors]
        known = dict(zip(self.pairs, rows, strict=True))
        known = {pair: v for i, (pair, v) in enumerate(known.items()) if i % self.ranks.size == self.ranks.rank}
        if known:
            with ordinary_mode(), torch.no_grad():
                loop = self._loop.at(detached(self.graph.resolve(self.value.dtype, self.value.device)))
                found = leading_vectors(loop, list(known), tolerance=_SETTLED, max_products=_PRODUCTS, start=known)
                for pair, vector in known.items():
                    if bool(torch.isfinite(found[pair].norm)):
                        vector.copy_(found[pair].vector)
                for j in self._vectors():
                    self.get_buffer(f"memory_{j}").zero_()
        return self.refresh()

    def _step(self, resolved: Resolved, tensors: Sequence[Tensor], cotangent: Tensor) -> list[Tensor | None]:
        """One pass: the gradients, the next leading vectors, the exact rows of the head."""
        for _ in range(self.iterations - 1):
            self._iterate(resolved.with_tensors([t.detach() for t in tensors]))
        with torch.enable_grad():
            norms = self.norms.detach().requires_grad_()
            rows = {j: r.detach().requires_grad_() for j, r in self._rows().items()}
            value = self._formula(norms, rows)
            inputs = [norms, *rows.values()]
            weighted = torch.autograd.grad(value, inputs, cotangent.to(value.dtype), allow_unused=True)
        settled = [torch.zeros_like(t) if g is None else g for t, g in zip(inputs, weighted, strict=True)]
        leaves = [t.detach().requires_grad_() for t in tensors]
        # Where nothing is vulnerable: keep the vectors warm, touch no weight. (Not by an if, which waits for a GPU.)
        some = cotangent.abs().sum() > 0
        weights, injected = torch.where(some, settled[0], 1.0), dict(zip(rows, settled[1:], strict=True))
        found = self._pass(resolved.with_tensors(leaves), leaves, weights, injected)
        return [None if g is None else torch.where(some, g, 0.0) for g in found]


def _those(numbers: list[int], every: bool) -> Rows:
    return slice(None) if every else torch.tensor(numbers, dtype=torch.int64)


def _flat(rows: Tensor) -> Tensor:
    """(C, n) in the order of memory: distances do not mind, and nothing is copied."""
    if rows.ndim == 4 and rows.is_contiguous(memory_format=torch.channels_last):
        rows = rows.permute(0, 2, 3, 1)
    return rows.flatten(1)


def _distances(rows: Tensor) -> Tensor:
    """Distances between all rows (C, n), zero on the diagonal, with a finite gradient everywhere."""
    rows = rows - rows.mean(0)  # what all have in common would be large and cancel
    gram = rows @ rows.T
    squares = gram.diagonal()[:, None] + gram.diagonal()[None, :] - 2 * gram
    own = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    tiny = math.sqrt(torch.finfo(rows.dtype).tiny)
    return squares.masked_fill(own, 1.0).clamp_min(tiny).sqrt().masked_fill(own, 0.0)
