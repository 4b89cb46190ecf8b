"""The search for the weights D of a small-gain bound: a fixed-point iteration on log D that stays feasible.

At the best D, every group of entries that shares a weight has W·‖D·z‖² = W·‖D·w‖², summed over the solutions V of
:mod:`lipcert.bounds.gain` with the objective's derivative W = ∂J/∂N. So log D moves by η·½·log(‖D·w‖²/‖D·z‖²), which
knows no units; a step after which J has grown, or ‖S_z‖ ≥ 1, is taken back and η halved. A value is compared only when
conjugate gradients have converged, and ‖S_z‖ is looked at by Lanczos at each step: where D is good many singular values
of S_z come close to 1, and a search that does not see them ends outside, or in front of a wall that is not where it
thinks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lipcert.bounds.evidence import Scaling
from lipcert.bounds.gain import INFEASIBLE, Probe, Solution, head_rows, leading_part, product, solve
from lipcert.loop import LoopMap
from lipcert.norms.lanczos import leading_vectors
from lipcert.scaled import ScaledMap, levels

__all__ = ["Progress", "Search", "away", "balance", "looser", "steepest"]

Progress = Callable[[str, float, float], None]
"""Called with the scaling, a typical value of the bound, and the seconds so far."""

_STEP = 0.5
_WORSE = 3e-3  # log J may grow by this much before a step is taken back: its values are that good
_SETTLED_ROUGHLY = 2e-3  # what four steps must bring of log J where a finer search follows
_WALL = 1 - 1e-6
_LIMIT, _SAFE = 1 - 2e-5, 1 - 5e-4  # ‖S_z‖² at the end of a stage: what is not left as it is, and what it becomes
_LOOKS, _LOOK_CLOSE = 40, 1e-3  # products, of one row, to see ‖S_z‖² at each step, and how closely
_LAST_LOOKS, _LAST_CLOSE = 60, 1e-5  # at the end of a stage
_LOOSER, _LARGEST = 0.98, 4.0  # what ‖S_z‖² of infeasible weights becomes, where it is at most the second
_LONGEST = 2.0  # of a step in log D, before η
_FORMED = 64  # dimensions of (x, p) up to which S_z is formed to find its norm
_LITTLE = 1e-2  # of the average share in a vector: what has less does not move away from it


class _Stage(NamedTuple):
    """What one part of a search looks for, and how closely.

    Attributes:
        sharpness: of the maximum over heads.
        barrier: how much log 1/(1 − ‖S_z‖²) counts beside the objective, which keeps the weights away from where S_z
            cannot be told from infeasible.
        tolerance: of conjugate gradients: N errs by its square, times Q's condition.
        settled: what four steps must bring of log J.
    """

    sharpness: float
    barrier: float
    tolerance: float = 1e-2
    settled: float = 2e-4


# Far from the wall a bound is some per cent above what it ends at: no time is lost there on its last digits.
_STAGES = (_Stage(1.0, 1e-2, settled=_SETTLED_ROUGHLY), _Stage(1.0, 1e-3), _Stage(1.0, 3e-4))
# In a long row of blocks each has its share of the slack, and the last stages take it away, near the wall.
_SHARP_STAGES = (
    _Stage(4.0, 1e-2),
    _Stage(32.0, 1e-2),
    _Stage(256.0, 3e-3),
    _Stage(1024.0, 1e-3, 1e-3),
    _Stage(4096.0, 3e-4, 1e-3, 2e-5),
    _Stage(16384.0, 1e-4, 1e-3, 2e-5),
)
_ROUGH, _ROUGH_SHARP = _STAGES[:1], _SHARP_STAGES[:2]


def balance(
    scaled: ScaledMap,
    gain: Tensor,
    vectors: Tensor,
    images: Tensor,
    leading: Tensor,
    leading_images: Tensor,
    objective: Callable[[Tensor, float], Tensor],
    sharpness: float,
    barrier: float,
) -> tuple[float, list[Tensor], float]:
    """J, and for each weight how far log D is from its balance: ½·log(‖D·z‖²/‖D·w‖²), summed with W = ∂J/∂N.

    The third is how fast J falls along them: its derivative by η, if log D falls by η times as much.

    Args:
        scaled: S at the present weights.
        gain, vectors, images: N, and V and S_z·V in scaled units; see :class:`lipcert.bounds.gain.Solution`.
        leading, leading_images: leading vectors of S_zᵀS_z, and S_z of them.
        objective, sharpness: J(N, sharpness).
        barrier: how much Σ log 1/(1 − ‖S_z·leading‖²) counts beside J.
    """
    with torch.enable_grad():
        given = gain.double().detach().requires_grad_()
        value = objective(given, sharpness)
        (share,) = torch.autograd.grad(value, given)
    share = ((share + share.T) / 2).to(images)
    squares = leading_images.square().sum(1).clamp_max(_WALL)
    wall = (barrier / (1 - squares))[:, None]
    up = ((share @ images) * images).sum(0) + (wall * leading_images.square()).sum(0)
    down = ((share @ vectors) * vectors).sum(0) + (wall * squares[:, None] * leading.square()).sum(0)
    ups, downs = scaled.group_sums(up[None], results=True), scaled.group_sums(down[None], results=False)
    total = sum(float(u.clamp_min(0).sum()) for u in ups) + 1e-30
    # what counts for nothing moves little: its ratio is noise
    floors = [1e-6 * total / d.numel() for d in scaled.weights]
    moves = [
        0.5 * ((u.clamp_min(0) + f) / (d.clamp_min(0) + f)).log().clamp(-_LONGEST, _LONGEST)
        for u, d, f in zip(ups, downs, floors, strict=True)
    ]
    slope = 2 * sum(float(((u - d) * m).sum()) for u, d, m in zip(ups, downs, moves, strict=True))
    return float(value.detach()) - barrier * float((1 - squares).log().sum()), moves, slope


def away(scaled: ScaledMap, vector: Tensor, image: Tensor, target: float) -> list[Tensor]:
    """How far log D is to go down for ‖S_z·v‖² of a unit v (n,) to fall to ``target``, by its derivative.

    Each weight goes along its balance for that vector, ½·log(‖D·z‖²/‖D·w‖²), where what does not take part in it stays
    nearly where it is. Where that does not lead there, all are loosened.

    Args:
        scaled: S at the present weights.
        vector, image: v, and S_z·v.
        target: below ‖S_z·v‖².
    """
    square = float(image.square().sum())
    ups, downs = (scaled.group_sums(v[None].square(), results=r) for v, r in ((image, True), (vector, False)))
    floors = [square * _LITTLE / d.numel() for d in scaled.weights]
    moves = [0.5 * ((u + f) / (d + f)).log() for u, d, f in zip(ups, downs, floors, strict=True)]
    slope = sum(2 * float(((u / square - d) * m).sum()) for u, d, m in zip(ups, downs, moves, strict=True))
    wanted = math.log(square / target)
    if 0 < wanted < slope:
        return [wanted / slope * m for m in moves]
    return looser(scaled, wanted)


def looser(scaled: ScaledMap, wanted: float) -> list[Tensor]:
    """How far log D is to go down for log‖S_z‖² to fall by as much at least: t^level, t² = exp(−wanted)."""
    steps = levels(scaled.loop)[1:]
    return [torch.full_like(d, 0.5 * n * wanted) for d, n in zip(scaled.weights, steps, strict=False)]


def steepest(
    scaled: ScaledMap, start: Tensor | None = None, *, tolerance: float, products: int, seed: int = 0
) -> tuple[float, Tensor]:
    """‖S_z‖² from below, and the vector (n,) at which it is reached, by Lanczos from one vector and a random one.

    Of a small network S_z is formed instead, which takes a fraction of the time.
    """
    size = len(scaled.divisors)
    if size <= _FORMED:
        images = product(scaled, torch.eye(size, dtype=scaled.divisors.dtype, device=scaled.divisors.device))[1]
        if bool(torch.isfinite(images).all()):
            vectors, norms, _ = torch.linalg.svd(images, full_matrices=False)
            norm = float(norms[0])
            return norm * norm, vectors[:, 0].contiguous()
    known = None if start is None else {(1, 0): start}
    found = leading_vectors(scaled, [(1, 0)], tolerance=tolerance, max_products=products, start=known, seed=seed)
    norm = float(found[1, 0].norm)
    return norm * norm, found[1, 0].vector


@dataclass
class _Point:
    """Weights that were looked at: what was solved there, and what it says.

    Attributes:
        logs: log D.
        found: V and N.
        leading, images: leading vectors of S_zᵀS_z, orthonormal, and S_z of them.
        value: log J, and what the walls add.
        moves: where to go from here; see :func:`balance`.
    """

    logs: list[Tensor]
    found: Solution
    leading: Tensor
    images: Tensor
    value: float
    moves: list[Tensor]


class Search:
    """A search for D on one network.

    Args:
        loop: T, centred, in the dtype to compute in.
        heads: (m, *output_shape), the functionals of the output that the objective looks at.
        objective: from N (m, m) to the log of a typical bound; differentiable.
    """

    def __init__(self, loop: LoopMap, heads: Tensor, objective: Callable[[Tensor, float], Tensor]) -> None:
        self.loop, self.objective = loop, objective
        self.heads = heads
        self.b = head_rows(loop, heads)
        self._seen: Tensor | None = None  # the leading vector of S_zᵀS_z when it was last looked at closely

    def scaled(self, logs: Sequence[Tensor]) -> ScaledMap:
        """S without y at these weights."""
        return ScaledMap(self.loop, [v.exp() for v in logs], None)

    def run(
        self,
        start: Scaling,
        *,
        deadline: float = math.inf,
        smooth: bool = True,
        steps: int = 60,
        progress: Progress | None = None,
        rough: bool = False,
    ) -> tuple[Scaling, float]:
        """Improve D from a feasible start; returns it and log J.

        Args:
            start: whose kind says what shares a weight.
            deadline: of ``time.monotonic()``.
            smooth: whether the objective needs no sharpening.
            steps: at most so many at each sharpness.
            progress: is told how it goes.
            rough: stop where finer weights will bring more than further steps.
        """
        began = time.monotonic()
        logs = [d.to(self.b).log() for d in start.weights]
        self._probe = Probe.random(self.scaled(logs))
        self._seen = None
        solution: Tensor | None = None  # V, not in scaled units
        value = math.inf
        stages = (_ROUGH if smooth else _ROUGH_SHARP) if rough else (_STAGES if smooth else _SHARP_STAGES)
        for stage in stages:
            settled = _SETTLED_ROUGHLY if rough else stage.settled
            best: _Point | None = None
            step = most = _STEP / (1 + (0 if smooth else stage.sharpness / 20))
            history: list[float] = []
            for _ in range(steps):
                point = self._look(logs, solution, stage)
                if point is not None and (best is None or point.value <= best.value + _WORSE):
                    history.append(point.value)
                    if best is None or point.value < best.value:
                        best = point
                    step = min(1.1 * step, most)
                    if progress is not None:
                        progress(start.kind, math.exp(point.value), time.monotonic() - began)
                    if len(history) > 4 and min(history[:-4]) - min(history[-4:]) < settled:
                        break
                elif best is None:  # a start that is not feasible after all
                    logs, solution = self._loosened(logs), None
                    continue
                else:  # in looking further on, more may have been seen of the walls near the best
                    step /= 2
                    point = self._look_again(best, stage)
                    if point is None:  # it was not feasible
                        logs, solution, step, history = self._loosened(best.logs), None, min(2 * step, most), []
                        best = None
                        continue
                    best = point
                    if step < most / 64:
                        break
                if time.monotonic() > deadline:
                    break
                logs = [v - step * m for v, m in zip(point.logs, point.moves, strict=True)]
                solution = self._solution(point)
            if best is not None:
                value, logs, solution = best.value, best.logs, self._solution(best)
            logs, solution = self._within(logs, solution)
            if time.monotonic() > deadline:
                break
        return Scaling(start.kind, tuple(v.double().exp().cpu() for v in logs)), value

    def reached(self, scaling: Scaling) -> float:
        """Log J at D, without what keeps the search from ‖S_z‖ = 1; infinite where ‖S_z‖ ≥ 1."""
        scaled = self.scaled([d.to(self.b).log() for d in scaling.weights])
        last = _SHARP_STAGES[-1]
        found = solve(scaled, self.b / scaled.divisors, None, Probe.random(scaled), tolerance=last.tolerance)
        return math.inf if found is None else float(self.objective(found.gain.double(), last.sharpness))

    def _solution(self, point: _Point) -> Tensor:
        """V, not in scaled units: what to start from at other weights."""
        return point.found.vectors / self.scaled(point.logs).divisors

    def _look(self, logs: list[Tensor], solution: Tensor | None, stage: _Stage) -> _Point | None:
        """Solve at these weights, and see where to go; None where ‖S_z‖ ≥ 1 was seen.

        The few products of a solution that was nearly right before do not show the probes a direction that has only now
        become steep: so one row is followed further, by Lanczos.
        """
        scaled = self.scaled(logs)
        carried = None if solution is None else solution * scaled.divisors
        found = solve(scaled, self.b / scaled.divisors, carried, self._probe, tolerance=stage.tolerance)
        if found is None:
            return None
        self._steepest(scaled, tolerance=_LOOK_CLOSE, products=_LOOKS)
        leading = self._probe.vectors
        return self._weighed(logs, found, leading, product(scaled, leading)[1], stage)

    def _look_again(self, point: _Point, stage: _Stage) -> _Point | None:
        """The same weights, with what is known now of the walls; None where they turn out not to be feasible."""
        new = self._probe.vectors
        images = torch.cat([point.images, product(self.scaled(point.logs), new)[1]])
        leading, images = leading_part(torch.cat([point.leading, new]), images, len(new))
        self._probe = Probe(leading, torch.zeros_like(leading))
        return self._weighed(point.logs, point.found, leading, images, stage)

    def _weighed(
        self, logs: list[Tensor], found: Solution, leading: Tensor, images: Tensor, stage: _Stage
    ) -> _Point | None:
        if self._square(images) > INFEASIBLE:
            return None
        gain, vectors = found.gain, found.vectors
        value, moves, _ = balance(
            self.scaled(logs),
            gain,
            vectors,
            found.images,
            leading,
            images,
            self.objective,
            stage.sharpness,
            stage.barrier,
        )
        return _Point(logs, found, leading, images, value, moves)

    def _steepest(self, scaled: ScaledMap, *, tolerance: float, products: int) -> float:
        """‖S_z‖² from below; what leads there is taken in among the probes."""
        square, self._seen = steepest(scaled, self._seen, tolerance=tolerance, products=products)
        self._probe.include(self._seen)
        return square

    @staticmethod
    def _square(images: Tensor) -> float:
        """‖S_z‖² as seen by S_z of orthonormal rows."""
        squares = (images @ images.T).double()
        return float(torch.linalg.eigvalsh(squares)[-1]) if bool(torch.isfinite(squares).all()) else math.inf

    def _loosened(self, logs: list[Tensor]) -> list[Tensor]:
        """Weights with a smaller ‖S_z‖, by what the probes see of it."""
        scaled = self.scaled(logs)
        square = self._square(product(scaled, self._probe.vectors)[1])
        moves = looser(scaled, math.log(min(max(square, 1.0), _LARGEST) / _LOOSER))
        return [v - m for v, m in zip(logs, moves, strict=True)]

    def _within(self, logs: list[Tensor], solution: Tensor | None) -> tuple[list[Tensor], Tensor | None]:
        """The same weights if ‖S_z‖ < 1 by a closer look, else such as make it so."""
        scaled = self.scaled(logs)
        square = self._steepest(scaled, tolerance=_LAST_CLOSE, products=_LAST_LOOKS)
        if square <= _LIMIT:
            return logs, solution
        return [v - m for v, m in zip(logs, looser(scaled, math.log(square / _SAFE)), strict=True)], None
