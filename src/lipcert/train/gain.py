"""The small-gain bound inside a training step: the gain matrix, its weights D carried beside the network's.

As in :mod:`lipcert.train.bound` the value that a loss sees is one step old, and all work is done when autograd hands
over G = ∂loss/∂L. One forward pass of the C rows V ≈ Q⁻¹T_yᵀ (:mod:`lipcert.bounds.gain`), and of a few probes of
‖S_z‖, gives

* N, to second order in what V lacks, and from it the bound in the scope asked for;
* by one backward pass the residuals T_yᵀ − Q·V, with which V makes a step of the heavy-ball iteration (its spectrum is
  known to lie in (0, 1]), after what it lacks of the probes is made up for, and the probes one of subspace iteration
  with momentum;
* by another the gradient of the loss in the weights through N, V held fixed (envelope theorem), and D but for what the
  wall ‖S_z‖ = 1 makes of it: D stands there rather than at a minimum, and gives way when the weights move it;
* how ‖D·z‖² compares with ‖D·w‖² in each group, by which log D moves a little (:mod:`lipcert.bounds.scaling`).

D gives way to a direction in which ‖S_z‖ comes near 1, and to that direction alone: to loosen all of D costs far more
of the bound. For the same reason every few passes one row is followed further, for directions that the probes miss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lipcert.bounds.evidence import KINDS, Kind, Scaling, check_start
from lipcert.bounds.gain import Probe, head_rows, leading_part, product, solve
from lipcert.bounds.options import check_choice
from lipcert.bounds.recursion import hidden_bounds
from lipcert.bounds.result import Scope
from lipcert.bounds.scaling import Search, away, balance, looser, steepest
from lipcert.bounds.smallgain import identity_heads, objective
from lipcert.bounds.starts import feasible_start
from lipcert.errors import BoundError, ShapeError
from lipcert.graph.capture import ordinary_mode
from lipcert.graph.types import Resolved
from lipcert.loop import LoopMap
from lipcert.norms import estimate_norms
from lipcert.scaled import ScaledMap
from lipcert.train.deferred import DeferredBound, detached
from lipcert.train.wall import wall

__all__ = ["GainBound"]

_LEAST = 0.04  # the least eigenvalue of Q that the heavy-ball iteration is made for
_PACE = 0.04  # of log D towards its balance, each step; at 0.1 it circles around it, and V never catches up
_FASTEST, _SLACK = 0.5, 0.8  # where D is far from it, and ‖S_z‖² is below the second: no wall is near
_FAR = 0.9  # of the slope there: D is searched for anew
_CALM = 2.5  # by how much less where the maximum over outputs is sharp
_BARRIER = 1e-2
_LIMIT = 0.985  # ‖S_z‖² beyond which N is not handed out
_FIRM, _NEAR, _SAFE = 0.98, 0.965, 0.95  # what it is after V was solved for, where D gives way, and to what
_TURN, _GLANCE = 8, 16  # every so many passes one row is followed by so many products, for what the probes do not see
_SHARP = 32.0  # of the maximum over outputs that D is searched for where the scope is global
_START_STEPS = 25
_LOOSENINGS = 6  # before D is searched for from the start
_LOOK = 40  # products, of one row, before V is solved for
_CLOSE = 1e-3
_MOST, _DIRECT = 2.0, 4  # ‖S_z‖² that is taken back at once; how often by what is steepest alone
_CANCELLED = 8  # units of rounding in a squared distance between rows, for each unit of their squares
_STALE = 0.1  # of N, which may be missing before V is solved for anew


class GainBound(DeferredBound):
    """A differentiable small-gain estimate that stays warm from step to step. Not a certificate.

    A drop-in for :class:`TrainingBound`, never much above LipLT and often far below it, with C + 4 rows a pass.
    Its gradient is that of the bound at a D that is loosened, or tightened, so that it keeps its distance from the wall
    ‖S_z‖ = 1: where all layers are multiplied by c, each gets what its power of c in the bound asks for.

    Args:
        module: the network that is trained; its eval form is bounded, in train mode too.
        input_shape: shape of one input, without the batch dimension.
        scope: ``"global"`` gives L of shape (), ``"class"`` (C,), ``"pairwise"`` (C, C).
        scaling: what shares a weight: ``"layer"``, ``"channel"`` or ``"neuron"``.
        every: make the pass in every n-th backward pass only.
        iterations: of V in each pass; the first is part of the pass, each further one costs as much.
        seed: of the first probes.
        start: D of an earlier bound of such a network, to begin with instead of what a search finds from LipLT's. Of a
            network that was trained with small gain the search would take long to find one as good.

    Raises:
        BoundError: an option out of range, a network without activations, or a ``start`` of another one.
        ShapeError: an output that is not a vector of logits.

    Example:
        >>> import torch
        >>> from lipcert.train import GainBound, crm_loss
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x, y = torch.rand(16, 3), torch.randint(2, (16,))
        >>> bound = GainBound(net, (3,))
        >>> loss = crm_loss(net(x), y, bound(), temperature=5, radius_cap=0.5, weight=1)
        >>> loss.backward()
    """

    vectors: Tensor
    memory: Tensor
    probes: Tensor
    probe_memory: Tensor
    turn: Tensor
    distance: Tensor

    def __init__(
        self,
        module: nn.Module,
        input_shape: Sequence[int],
        *,
        scope: Scope = "pairwise",
        scaling: Kind = "channel",
        every: int = 1,
        iterations: int = 1,
        seed: int = 0,
        start: Scaling | None = None,
    ) -> None:
        check_choice("scaling", scaling, KINDS)
        super().__init__(module, input_shape, scope, every, {"iterations": iterations})
        self.iterations, self.scaling, graph = iterations, scaling, self.graph
        if len(graph.output_shape) != 1:
            raise ShapeError(f"a small-gain training bound is of logits; this output's shape is {graph.output_shape}.")
        with torch.no_grad(), ordinary_mode():
            self._loop = LoopMap(graph, graph.resolve())
            if not self._loop.depth:
                raise BoundError(
                    "the network has no activations: its Lipschitz constant is a norm. Use TrainingBound "
                    "(bound.method = 'liplt')."
                )
            if start is not None:
                check_start(self._loop, start, scaling)
                start = start.refined(self._loop, scaling)
            self._objective = objective(scope, sketched=False)[0]
            self._create_state(seed, start)

    # --- state --------------------------------------------------------------------------------------------
    def _create_state(self, seed: int, start: Scaling | None) -> None:
        resolved, classes = self._loop.resolved, self.graph.output_shape[0]
        if resolved.dtype not in (torch.float32, torch.float64):
            raise BoundError(
                f"a small-gain training bound needs weights in float32 or float64; these are in {resolved.dtype}. Keep "
                "them in float32 and train under torch.autocast."
            )
        for i, d in enumerate((start or self._searched(self._loop)).weights, start=1):
            self.register_buffer(f"log_weights_{i}", d.log().to(dtype=resolved.dtype, device=resolved.device))
        scaled = self._scaled(resolved)
        size = len(scaled.divisors)
        self.register_buffer("vectors", scaled.divisors.new_zeros((classes, size)))
        self.register_buffer("memory", scaled.divisors.new_zeros((classes, size)))
        self.register_buffer("probes", Probe.random(scaled, seed).vectors)
        self.register_buffer("probe_memory", torch.zeros_like(self.probes))
        self.register_buffer("turn", torch.zeros((), dtype=torch.int64))
        self.register_buffer("distance", torch.zeros((), dtype=torch.float64))
        shape = {"global": (), "class": (classes,), "pairwise": (classes, classes)}[self.scope]
        self.register_buffer("value", scaled.divisors.new_zeros(shape))
        self._register_counter(resolved)
        solved = self._solve(resolved)
        if solved:
            self._settle(1)
        if not solved or not bool(torch.isfinite(self.value).all()):
            raise BoundError("the small-gain bound of these weights cannot be computed: they are too large.")

    def _searched(self, loop: LoopMap) -> Scaling:
        """D by a search from LipLT's own bound."""
        norms = estimate_norms(loop, loop.pairs(), seed=0, tolerance=1e-3)
        hidden = {k: max(float(m), 1e-6) for k, m in hidden_bounds(loop, norms).items()}
        start = feasible_start(loop, hidden, {p: float(n) for p, n in norms.items()}).refined(loop, self.scaling)
        return Search(loop, identity_heads(loop), self._objective).run(start, smooth=True, steps=_START_STEPS)[0]

    def _logs(self) -> list[Tensor]:
        return [self.get_buffer(f"log_weights_{i}") for i in range(1, self._loop.depth + 1)]

    def _exponentials(self) -> list[Tensor]:
        return [v.exp() for v in self._logs()]

    def _scaled(self, resolved: Resolved) -> ScaledMap:
        return ScaledMap(self._loop.at(resolved), self._exponentials(), 1.0)

    @property
    def weights(self) -> Scaling:
        """D as it is now, a start for :func:`lipcert.lipschitz`."""
        return Scaling(self.scaling, tuple(v.exp().double().cpu() for v in self._logs()))

    # --- the formula --------------------------------------------------------------------------------------
    def _formula(self, gain: Tensor) -> Tensor:
        """The bound of the scope from N, with a finite gradient everywhere."""
        if self.scope == "global":
            top: Tensor = torch.linalg.eigvalsh(gain)[-1]
            return top.clamp_min(torch.finfo(gain.dtype).tiny).sqrt()
        diagonal = gain.diagonal()
        if self.scope == "class":
            return diagonal.clamp_min(torch.finfo(gain.dtype).tiny).sqrt()
        own = torch.eye(len(gain), dtype=torch.bool, device=gain.device)
        sums = diagonal[:, None] + diagonal[None, :]
        squares = (sums - 2 * gain).masked_fill(own, 1.0)
        # What rows have in common cancels: below their rounding a difference is not 0 but unknown.
        least = (_CANCELLED * torch.finfo(gain.dtype).eps * sums.detach()).clamp_min(
            math.sqrt(torch.finfo(gain.dtype).tiny)
        )
        return torch.maximum(squares, least).sqrt().masked_fill(own, 0.0)

    # --- the pass -----------------------------------------------------------------------------------------
    def _pass(
        self, resolved: Resolved, leaves: Sequence[Tensor], cotangent: Tensor | None, *, solved: bool = False
    ) -> list[Tensor | None]:
        """One forward pass and one or two backward; updates the state, returns the gradients in ``leaves``.

        Where V is that of other weights it is solved for, once, and the pass is made again.
        """
        if not solved:
            self._glance(resolved)
        scaled, classes = self._scaled(resolved), len(self.vectors)
        with torch.enable_grad():
            rows = torch.cat([self.vectors, self.probes]).detach().requires_grad_()
            z, y = scaled.values(rows)
            assert y is not None
            eye = torch.zeros_like(y)
            eye[:classes] = torch.eye(classes, dtype=y.dtype, device=y.device)
            (image,) = torch.autograd.grad([z, y], rows, [z.detach(), eye], retain_graph=cotangent is not None)
            share, seen = self._lacking(image)
            mine = self.vectors + share @ self.probes
            hidden, out = (v[:classes] + share @ v[classes:] for v in (z, y))
            gain = out + out.T - (mine @ mine.T - hidden @ hidden.T)
            gain = (gain + gain.T) / 2
            finite = bool(torch.isfinite(gain).all())
            value = self._formula(gain) if finite else self.value
            gradients: list[Tensor | None] = []
            if finite and cotangent is not None:
                loss = (value * cotangent.to(value.dtype)).sum()
                (weight,) = torch.autograd.grad(loss, gain, retain_graph=True)
                back = image[:classes] + share @ image[classes:]  # Sᵀ of (1, S_z·V)
                probed = (self.probes, z[classes:], image[classes:])
                near, price = wall(scaled, weight + weight.T, (mine, hidden, back), probed, _LIMIT)
                gradients = [*torch.autograd.grad(loss - price * near, leaves, allow_unused=True)]
        with torch.no_grad():
            # What is missing of N_aa is rᵀQ⁻¹r, r being the residual: at least ‖r‖². Where ‖S_z‖ ≥ 1 N means nothing.
            residual = image[:classes] - self.vectors - share @ (self.probes - image[classes:])
            missing = residual.square().sum(1)
            fresh = solved or (seen <= _LIMIT and bool((missing <= _STALE * gain.diagonal()).all()))
            if fresh and finite:
                self.value.copy_(value.detach())
                solution, probes = (mine, hidden.detach()), (z[classes:].detach(), image[classes:])
                self._move(scaled, gain.detach(), solution, residual, probes)
                return gradients
            if not solved and self._solve(resolved):  # which also tells what is not finite
                return self._pass(resolved, leaves, cotangent, solved=True)
            # weights that are not finite or too large: the loss is to say so
            self.value.fill_(math.nan)
            return [torch.full_like(v, math.nan) for v in leaves]

    @torch.no_grad()
    def _lacking(self, image: Tensor) -> tuple[Tensor, float]:
        """What V lacks of the probes, (C, r), and ‖S_z‖² as they see it.

        With it V has the least error in the norm of Q. The leading vectors of S_zᵀS_z are what heavy ball is slow in.
        """
        classes = len(self.vectors)
        residual, images = image[:classes] - self.vectors, image[classes:]
        inner = (self.probes @ (self.probes - images).T).double()
        if not bool(torch.isfinite(inner).all()):
            return inner.new_full((classes, len(images)), math.nan).to(image), math.inf
        least, turn = torch.linalg.eigh((inner + inner.T) / 2)
        inverse = ((turn / least.clamp_min(1 - _LIMIT)) @ turn.T).to(image)
        share: Tensor = residual @ self.probes.T @ inverse
        return share, 1 - float(least[0])

    def _move(
        self,
        scaled: ScaledMap,
        gain: Tensor,
        solution: tuple[Tensor, Tensor],
        residual: Tensor,
        probes: tuple[Tensor, Tensor],
    ) -> None:
        """One step of V, of the probes, and of D.

        Args:
            scaled: S at the present weights.
            gain: N.
            solution: V with what it lacked of the probes, and S_z of it.
            residual: T_yᵀ − Q·V of that V.
            probes: S_z, and S_zᵀS_z, of the probes.
        """
        vectors, hidden = solution
        root = math.sqrt(_LEAST)
        following = (
            vectors + 4 / (1 + root) ** 2 * residual + ((1 - root) / (1 + root)) ** 2 * (self.vectors - self.memory)
        )
        probe, leading = Probe(self.probes, self.probe_memory), self.probes.clone()
        probe.advance(probes[1])
        args = (scaled, gain, vectors, hidden, leading, probes[0], self._objective, _SHARP, _BARRIER)
        _, moves, slope = balance(*args)
        pace = _PACE / (_CALM if self.scope == "global" else 1)
        self.distance.fill_(slope if probe.seen < _SLACK else 0.0)
        pace = min(max(pace, float(self.distance)), _FASTEST)
        logs = [v - pace * m for v, m in zip(self._logs(), moves, strict=True)]
        if _NEAR < probe.seen < math.inf:
            ((top,), (image,)) = leading_part(leading, probes[0], 1)
            logs = [v - m for v, m in zip(logs, away(scaled, top, image, _SAFE), strict=True)]
        self.memory.copy_(vectors)
        self.vectors.copy_(following)
        self._follow(probe)
        self._take(scaled.loop, logs)

    def _glance(self, resolved: Resolved) -> None:
        """Now and then, see whether there is a steep direction that the probes do not know, and give way to it."""
        self.turn += 1
        if int(self.turn) % _TURN:
            return
        if float(self.distance) > _FAR:
            self._restart(resolved)
            return
        loop = self._loop.at(detached(resolved))
        scaled, probe = ScaledMap(loop, self._exponentials(), None), Probe(self.probes, self.probe_memory)
        square, vector = steepest(scaled, tolerance=_CLOSE, products=_GLANCE, seed=int(self.turn))
        if math.isfinite(square):
            probe.include(vector)
            self._follow(probe)
            if square > _LIMIT:
                self._give_way(scaled, probe)

    def _give_way(self, scaled: ScaledMap, probe: Probe) -> None:
        """Move D by what is steepest among the probes."""
        ((top,), (image,)) = leading_part(probe.vectors, product(scaled, probe.vectors)[1], 1)
        moves = away(scaled, top, image, _SAFE * min(1.0, float(image.square().sum())))
        self._take(scaled.loop, [v - m for v, m in zip(self._logs(), moves, strict=True)])

    def _solve(self, resolved: Resolved) -> bool:
        """V for these weights, with D moved a little where ‖S_z‖ is near 1, or else searched for anew."""
        if bool(torch.isfinite(self.vectors).all()) and self._loosened(resolved, self.vectors):
            return True
        return self._restart(resolved)

    def _restart(self, resolved: Resolved) -> bool:
        """D searched for from the start, and V; False, and all as before, if these weights have none."""
        before = [v.clone() for v in self._logs()]
        try:
            found = self._searched(self._loop.at(detached(resolved)))
        except BoundError:
            return False
        loop = self._loop.at(detached(resolved))
        self._take(loop, [d.log() for d in found.weights])
        self._follow(Probe.random(ScaledMap(loop, self._exponentials(), None)))
        if self._loosened(resolved, None):
            return True
        self._take(loop, before)
        return False

    def _loosened(self, resolved: Resolved, start: Tensor | None) -> bool:
        """V by conjugate gradients, at a D with ‖S_z‖ < 1 that is not far; if that fails, D is as before."""
        before, loop = [v.clone() for v in self._logs()], self._loop.at(detached(resolved))
        probe = Probe(self.probes, self.probe_memory)
        for turn in range(_LOOSENINGS):
            scaled = ScaledMap(loop, self._exponentials(), None)
            square, vector = steepest(scaled, probe.vectors[0], tolerance=_CLOSE, products=_LOOK)
            if not math.isfinite(square):
                break
            probe.include(vector)
            if square < _FIRM:
                b = head_rows(loop, identity_heads(loop)) / scaled.divisors
                found = solve(scaled, b, start, probe, tolerance=1e-2, limit=60)
                if found is not None and probe.seen < _LIMIT:
                    self.vectors.copy_(found.vectors)
                    self.memory.copy_(found.vectors)
                    self._follow(probe)
                    return True
                square = max(square, 1.0)
            start = None
            if square < _MOST and turn < _DIRECT:
                self._give_way(scaled, probe)
            else:
                moves = looser(scaled, math.log(min(square, _MOST) / _SAFE))
                self._take(loop, [v - m for v, m in zip(self._logs(), moves, strict=True)])
        self._take(loop, before)
        return False

    def _follow(self, probe: Probe) -> None:
        self.probes.copy_(probe.vectors)
        self.probe_memory.copy_(probe.memory)

    def _take(self, loop: LoopMap, logs: Sequence[Tensor]) -> None:
        """These weights; V, which is kept in scaled units, changes with them."""
        before = ScaledMap(loop, self._exponentials(), None).divisors
        for v, new in zip(self._logs(), logs, strict=True):
            v.copy_(new)
        ratio = ScaledMap(loop, self._exponentials(), None).divisors / before
        self.vectors.mul_(ratio)
        self.memory.mul_(ratio)

    def _settle(self, count: int) -> None:
        with ordinary_mode(), torch.no_grad():
            resolved = detached(self.graph.resolve(self.value.dtype, self.value.device))
            for _ in range(count):
                self._pass(resolved, [], None)

    def refresh(self, iterations: int = 1) -> Tensor:
        """Bring the state up to the present weights; the value, no gradient.

        D is searched for anew where it or V is that of other weights, and then as many passes are made (at least one).
        """
        with ordinary_mode(), torch.no_grad():
            resolved = detached(self.graph.resolve(self.value.dtype, self.value.device))
            if float(self.distance) > _FAR or not self._current(resolved):
                self._restart(resolved)
        self._settle(max(iterations, 1) + 1)
        return self.value.clone()

    def _current(self, resolved: Resolved) -> bool:
        """Whether V is that of these weights."""
        scaled = self._scaled(resolved)
        b = head_rows(scaled.loop, identity_heads(scaled.loop)) / scaled.divisors
        image, z = product(scaled, self.vectors)
        gain = 2 * (b * self.vectors).sum(1) - self.vectors.square().sum(1) + z.square().sum(1)
        missing = (b - self.vectors + image).square().sum(1)
        return bool((missing <= _STALE * gain).all())

    def _step(self, resolved: Resolved, tensors: Sequence[Tensor], cotangent: Tensor) -> list[Tensor | None]:
        still = detached(resolved)
        for _ in range(self.iterations - 1):
            self._pass(still, [], None)
        if not bool(cotangent.abs().sum() > 0):  # nothing vulnerable in this batch: stay warm, touch no weight
            self._pass(still, [], None)
            return [torch.zeros_like(t) for t in tensors]
        leaves = [t.detach().requires_grad_() for t in tensors]
        return self._pass(resolved.with_tensors(leaves), leaves, cotangent)
