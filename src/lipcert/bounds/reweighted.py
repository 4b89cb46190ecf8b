"""The search for u, η and μ of a local small-gain bound (:mod:`lipcert.bounds.local_gain`).

The best of them solve: maximise h·Δy over all p with Q(p) + Σ γ·|D·e(p)| ≤ R². Where each γ·|D·e| is replaced by
ω·(D·e)², that is a system of linear equations, and a small-gain problem of its own: of the same network, with slopes in
an interval 1/θ as long at the slope on the side of z, θ = 1 + ω·r₀², and with weights D/√θ. A few steps of conjugate
gradients solve it, as it is far from where Q is singular. Its solution says which ω = γ/(2·|D·e|) to take next
(iteratively reweighted least squares).

Source: the reweighting is that of ℓ1 problems (Daubechies et al., "Iteratively reweighted least squares minimization
for sparse recovery", 2010).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipcert.bounds.gain import product
from lipcert.bounds.local_gain import Dual, Kink, LocalGain, rows_of
from lipcert.bounds.movement import flat
from lipcert.graph.types import Slopes
from lipcert.scaled import ScaledMap

__all__ = ["fall"]

_ROUNDS = 6
_STEADY = 0.7  # of γ/2, what η aims at
_MOST = 1e4  # θ
_LOOSE, _TIGHT = (2e-2, 5), (5e-4, 25)  # of conjugate gradients: the residual, and how many steps at most
_NEARLY = 3e-3  # how close to enough it has to look to be solved more closely, and proved
_PLENTY = 0.04  # and how much less than enough, to be proved as it is
_FAR = {0: 0.6, 1: 0.12, 2: 0.07, 3: 0.04, 4: 0.025}  # what is farther from enough after so many rounds is given up
_HOPELESS = 1e-2  # by which the gradient, in the precision of the search, is taken for less

Kinks = dict[int, Kink]


@dataclass(frozen=True)
class _Found:
    """What was solved at some θ: p, and u, η and μ from it, what these are about worth, and D·e by number."""

    solution: Tensor
    dual: Dual
    value: Tensor
    missed: dict[int, Tensor]


class _Balls:
    """Some balls of one network, in the precision of the search.

    Args:
        gain: of the network.
        kinks, head, radius: of the balls, in the precision of ``gain.rough``.
    """

    def __init__(self, gain: LocalGain, kinks: Kinks, head: Tensor, radius: Tensor) -> None:
        self.gain, self.kinks, self.head, self.radius = gain, kinks, head, radius

    def part(self, rows: Tensor) -> _Balls:
        """Some of them."""
        kinks = {k: kink.part(rows) for k, kink in self.kinks.items()}
        return _Balls(self.gain, kinks, self.head[rows], self.radius[rows])

    def first(self) -> dict[int, Tensor]:
        """θ to begin with: as if each layer's entries all missed alike, half of what they can together."""
        found = {}
        for k, kink in self.kinks.items():
            alike = (
                0.5 * rows_of(self.radius, kink.bend) * kink.bend / math.sqrt(max(1, math.prod(kink.bend.shape[1:])))
            )
            found[k] = self._theta(kink, alike)
        return found

    def next(self, missed: dict[int, Tensor]) -> dict[int, Tensor]:
        """θ for what was missed at the last one; where the wrong side of the line was taken, nothing is to be."""
        found = {}
        for k, kink in self.kinks.items():
            found[k] = torch.where(missed[k] * kink.sign < 0, _MOST, self._theta(kink, missed[k].abs()))
        return found

    def _theta(self, kink: Kink, missed: Tensor) -> Tensor:
        share = 0.5 * _STEADY * kink.toll * kink.radius.square() / missed.clamp_min(1e-12)
        theta = (1 + torch.where(kink.toll > 0, share, 0.0)).clamp_max(_MOST)
        return torch.where((kink.bend > 0) & (kink.farthest(self.radius) == 0), _MOST, theta)  # it cannot cross

    def at(self, thetas: dict[int, Tensor]) -> ScaledMap:
        """The scaled map of these balls."""
        loop, weights = self.gain.rough, list[Tensor]()
        slopes = dict(loop.resolved.slopes)
        for k, d in enumerate(self.gain.scaled.weights, start=1):
            d = d.to(self.head)
            if k in self.kinks:
                kink, theta = self.kinks[k], thetas[k]
                centre = kink.own + (kink.centre - kink.own) / theta
                slopes[loop.nonlinear[k - 1].index] = Slopes.about(centre, kink.radius / theta)
                d = d / theta.sqrt()
            weights.append(d)
        return ScaledMap(loop.at(replace(loop.resolved, slopes=slopes)), weights, 1.0)

    def rows(self, local: ScaledMap) -> Tensor:
        """b: what h is of (x, p), (R, n)."""
        nothing = self.head.new_zeros((len(self.head), local.factors.shape[-1]))
        return local.adjoint([torch.cat([self.head, nothing], dim=1)])[0]

    def steepest(self) -> Tensor:
        """R·‖∇(h·y)‖, nearly: what no choice is below."""
        thetas = {k: torch.full_like(kink.toll, _MOST) for k, kink in self.kinks.items()}
        local = self.at(thetas)
        gradient = flat(local.sources.split(self.rows(local))[0])
        length: Tensor = gradient.norm(dim=1)
        return length * self.radius

    def solve(self, thetas: dict[int, Tensor], tolerance: float, most: int, start: Tensor | None = None) -> _Found:
        """The best u at these θ, and η and μ that go with it."""
        local = self.at(thetas)
        b = self.rows(local)
        p, z, rest = _conjugate_gradients(local, b, tolerance, most, start)
        value = ((b + rest) * p).sum(1).clamp_min(torch.finfo(b.dtype).tiny).sqrt()  # 2b·p − p·Qp, Qp = b − rest
        scale, price = self.radius / value, value / self.radius
        vector, tolls, missed = list[Tensor](), dict[int, Tensor](), dict[int, Tensor]()
        first, *free = local.sources.split(p * scale[:, None])
        images = local.results.split(z * scale[:, None])
        vector.append(flat(first))
        squares = flat(first).double().square().sum(1)
        costs = torch.zeros_like(value)
        for k, (w, image) in enumerate(zip(free, images, strict=True), start=1):
            if k in self.kinks:
                kink, theta = self.kinks[k], thetas[k]
                root = theta.sqrt()
                w, image = w * root, image * root
                missed[k] = ((kink.centre - kink.own) * image + kink.radius * w) / theta
                bent = kink.radius > 0
                inverse = torch.where(bent, 1 / torch.where(bent, kink.radius, 1.0), 0.0)
                w = (kink.own - kink.centre) * inverse * (1 - 1 / theta) * image + torch.where(bent, w / theta, 0.0)
                tolls[k] = rows_of(price, theta) * (theta - 1) * inverse.square() * missed[k]
                costs = costs + kink.cost(tolls[k], price, self.radius)
            squares = squares + (flat(w).double().square().sum(1) - flat(image).double().square().sum(1))
            vector.append(flat(w))
        dual = Dual(torch.cat(vector, 1).double(), {k: v.double() for k, v in tolls.items()}, price.double())
        return _Found(p, dual, 0.5 * price * (squares + self.radius.square()) + costs, missed)


def _conjugate_gradients(
    scaled: ScaledMap, b: Tensor, tolerance: float, most: int, start: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(I − SᵀS)·x = b for each row, each with a map of its own, S without y: x, S·x, and what is left of b."""
    tiny = torch.finfo(b.dtype).tiny
    if start is None:
        x, z, r = torch.zeros_like(b), b.new_zeros((len(b), scaled.factors.shape[-1])), b
    else:
        image, z = product(scaled, start)
        x, r = start, b - start + image
    p, rr, size = r, r.square().sum(1), b.square().sum(1)
    for _ in range(most):
        done = rr <= tolerance**2 * size  # and stays what it is, whatever other rows need
        if bool(done.all()):
            break
        back, image = product(scaled, p)
        turned = p - back
        step = (rr / (p * turned).sum(1).clamp_min(tiny)).masked_fill(done, 0.0)[:, None]
        x, z, r = x + step * p, z + step * image, r - step * turned
        new = r.square().sum(1)
        p, rr = r + (new / rr.clamp_min(tiny))[:, None] * p, new
    return x, z, r


@torch.no_grad()
def fall(
    gain: LocalGain,
    x: Tensor,
    a: Tensor,
    b: Tensor,
    radius: Tensor,
    enough: Tensor | None = None,
    *,
    closely: bool = True,
) -> Tensor:
    """How much y_a − y_b can fall at most from x to any x′ with ‖x′ − x‖₂ ≤ R.

    Args:
        gain: of the network.
        x: (R, *input_shape) float64, finite.
        a, b: (R,) classes.
        radius: (R,) float64, R > 0.
        enough: (R,); where less than that is proved nothing more is looked for, and nothing at all where that is out of
            reach.
        closely: whether what is less than enough is to be close too, as a search for a radius wants it.

    Returns:
        (R,) float64, from above; infinite where nothing is known.
    """
    best = torch.full_like(radius, torch.inf)
    if not len(x):
        return best
    kinks, head = gain.kinks(x), gain.head(a, b)
    dtype = gain.rough.resolved.dtype
    balls = _Balls(gain, {k: v.to(dtype) for k, v in kinks.items()}, head.to(dtype), radius.to(dtype))
    live = torch.arange(len(x), device=x.device)

    def prove(rows: Tensor, dual: Dual) -> None:
        here = {k: v.part(rows) for k, v in kinks.items()}
        found = gain.proved(here, head[rows], radius[rows], dual)
        best[rows] = torch.minimum(best[rows], found)

    if enough is not None:
        live = live[balls.steepest().double() * (1 - _HOPELESS) < enough]
        balls = balls.part(live)
    thetas = balls.first()
    for turn in range(_ROUNDS if len(live) else 0):
        found = balls.solve(thetas, *_LOOSE)
        value = found.value.double()
        ready = value < enough[live] * (1 + _NEARLY) if enough is not None else torch.full_like(value, turn).bool()
        if enough is not None and not closely and bool((plenty := value < enough[live] * (1 - _PLENTY)).any()):
            prove(live[plenty], found.dual.part(plenty))
            ready &= ~(best[live] < enough[live])
        if bool(ready.any()):
            same = {k: v[ready] for k, v in thetas.items()}
            closer = balls.part(ready).solve(same, *_TIGHT, start=found.solution[ready])
            prove(live[ready], closer.dual)
        if turn == _ROUNDS - 1:
            break
        left = torch.ones_like(ready)
        if enough is not None:
            left = ~(best[live] < enough[live]) & (value < enough[live] * (1 + _FAR.get(turn, math.inf)))
        live, balls = live[left], balls.part(left)
        if not len(live):
            break
        thetas = balls.next({k: v[left] for k, v in found.missed.items()})
    return best
