"""Attacks on bounds and on radii: gradient ascent over both ends of a slope, and within a ball, in both precisions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import lipcert
import reference_bounds as textbook
from adversary_claims import Claims
from adversary_nets import Network
from adversary_report import ROUNDING, Tally

FACTORS = (
    0.9,
    0.97,
    0.99,
    1 - ROUNDING,
    1 + 1e-9,
    1 + 1e-7,
    1 + 1e-5,
    1.001,
    1.01,
    1.03,
    1.1,
    1.25,
    1.5,
    2.0,
    3.0,
    5.0,
)
"""Where along a direction to look for a change of prediction, in radii."""


# --- slopes -------------------------------------------------------------------------------------------------------
@dataclass
class Slopes:
    """The steepest slopes found: of the whole output, and of each difference of two logits."""

    whole: float
    pairs: Tensor
    attacks: int = 0
    points: int = 0

    def see(self, whole: Tensor, pairs: Tensor) -> None:
        self.whole = max(self.whole, float(whole.max()))
        self.pairs = torch.maximum(self.pairs, pairs.amax(0))


def _shaped(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *(1,) * (like.ndim - 1))


def _unit(v: Tensor) -> Tensor:
    return v / _shaped(v.flatten(1).norm(dim=1).clamp_min(1e-300), v)


def _see_jacobians(module: nn.Module, x: Tensor, found: Slopes) -> None:
    jacobians = textbook.jacobians(module, x)
    apart = (jacobians[:, :, None] - jacobians[:, None]).norm(dim=3)
    found.see(torch.linalg.svdvals(jacobians)[:, 0], apart)
    found.points += len(x)


def steepest(module: nn.Module, x: Tensor, *, steps: int = 6, seed: int = 0) -> Slopes:
    """Attack the Lipschitz bounds of a float64 module from the starts x (N, …)."""
    generator = torch.Generator().manual_seed(seed)
    classes = int(module(x[:1]).shape[1])
    found = Slopes(0.0, torch.zeros(classes, classes, dtype=torch.float64))
    _see_jacobians(module, x, found)
    reach = 10 ** (3 * torch.rand(len(x), generator=generator, dtype=torch.float64) - 2)
    a, b = x, x + _shaped(reach, x) * _unit(torch.randn(x.shape, generator=generator, dtype=x.dtype))
    one, other = (torch.randint(classes, (len(x),), generator=generator) for _ in "ab")
    of_pair = one != other  # the rest climb the slope of the whole output
    for step in range(steps):
        a, b = a.detach().requires_grad_(), b.detach().requires_grad_()
        rise, run = module(a) - module(b), (a - b).flatten(1).norm(dim=1).clamp_min(1e-9)
        single = (rise.gather(1, one[:, None]) - rise.gather(1, other[:, None])).flatten().abs()
        quotient = torch.where(of_pair, single, rise.norm(dim=1)) / run
        far = run.detach() > 1e-3  # nearer, the difference of two outputs is too much rounding
        if bool(far.any()):
            apart = (rise[:, :, None] - rise[:, None]).abs() / _shaped(run, rise[:, None])
            found.see((rise.norm(dim=1) / run).detach()[far], apart.detach()[far])
        found.points += 2 * len(x)
        gradients = [g.nan_to_num() for g in torch.autograd.grad(quotient.sum(), (a, b))]
        length = _shaped(0.5 * run.detach() / (1 + step), x)
        a, b = (end.detach() + length * _unit(g) for end, g in zip((a, b), gradients, strict=True))
    _see_jacobians(module, torch.cat([a, b, (a + b) / 2]).detach(), found)
    found.attacks = 5 * len(x)
    return found


# --- balls ----------------------------------------------------------------------------------------------------------
def _gap(z: Tensor, prediction: Tensor) -> Tensor:
    """The largest other logit minus the predicted one: above 0 the prediction has changed."""
    own = nn.functional.one_hot(prediction, z.shape[1]).bool()
    return z.masked_fill(own, -float("inf")).amax(1) - z[own]


def worst_in_ball(module: nn.Module, x: Tensor, prediction: Tensor, radius: Tensor, *, steps: int = 6) -> Tensor:
    """For each input and each other class the direction (of unit length) that projected gradient ascent ends with.

    Returns (classes − 1, N, …): directions of points at ``radius`` from x.
    """
    classes, found = int(module(x[:1]).shape[1]), []
    for shift in range(1, classes):
        target, delta = (prediction + shift) % classes, torch.zeros_like(x)
        best, kept = torch.full_like(radius, -float("inf")), torch.zeros_like(x)
        for step in range(steps + 1):
            at = (x + _shaped(radius, x) * delta).detach().requires_grad_()
            z = module(at)
            gap = (z.gather(1, target[:, None]) - z.gather(1, prediction[:, None])).flatten()
            better = (gap > best).detach() & torch.tensor(step > 0)
            best, kept = torch.where(better, gap.detach(), best), torch.where(_shaped(better, x), delta, kept)
            (gradient,) = torch.autograd.grad(gap.sum(), at)
            still = _shaped(gradient.flatten(1).norm(dim=1) == 0, x)
            gradient = torch.where(still, torch.randn(x.shape, generator=torch.Generator().manual_seed(step)), gradient)
            delta = _unit(delta + (1.5 / (1 + step)) * _unit(gradient)).detach()
        found.append(kept)
    return torch.stack(found)


def rounded_inwards(x: Tensor, moved: Tensor) -> Tensor:
    """Float32 points that are in no coordinate farther from the float32 x than ``moved`` (float64) is."""
    near = moved.float()
    beyond = (near.double() - x.double()).abs() > (moved - x.double()).abs()
    return torch.where(beyond, torch.nextafter(near, x), near)


def _flipped(net: Network, x: Tensor, prediction: Tensor) -> Tensor:
    """Which inputs the float32 module classifies otherwise, run as users run it. (A NaN is another prediction.)"""
    with torch.no_grad():
        z = net.module(x)
    return (z.argmax(1) != prediction) | ~torch.isfinite(z).all(1)


def attack_radii(net: Network, module: nn.Module, x: Tensor, claims: Claims, tally: Tally, seed: int) -> None:
    """Attack certified radii: in float64 at (1 − 1e-9)·R, then where the first change is, then float32 execution."""
    some = (claims.radius > 0) & torch.isfinite(claims.radius)
    if not bool(some.any()):
        return
    x32, prediction, radius = x[some], claims.prediction[some], claims.radius[some]
    start = x32.double()
    directions = worst_in_ball(module, start, prediction, radius * (1 - ROUNDING))
    nearest = torch.full_like(radius, float("inf"))
    point = start.clone()
    with torch.no_grad():
        for factor in FACTORS:
            for direction in directions:
                moved = start + _shaped(radius * factor, start) * direction
                z = module(moved)
                changed = _gap(z, prediction) > 1e-12 * (1 + z.abs().amax(1))
                nearer = changed & (radius * factor < nearest)
                nearest = torch.where(nearer, radius * factor, nearest)
                point = torch.where(_shaped(nearer, point), moved, point)
        tally.judge(net, seed, "radius", radius * (1 + ROUNDING), nearest, point)
        rows, attacks = len(x32), len(directions)
        flips = torch.zeros(rows, dtype=torch.bool)
        for direction in directions:
            moved = rounded_inwards(x32, start + _shaped(radius * (1 - 1e-6), start) * direction)
            flips |= _flipped(net, moved, prediction)
    tally.count("radius of real arithmetic, run in float32", int(flips.sum()))
    tally.attacks += attacks * rows
    tally.points += attacks * rows * (8 + len(FACTORS))


def near_boundary(module: nn.Module, x: Tensor, *, steps: int = 30) -> Tensor:
    """Float32 points between two inputs of different prediction, where the margin is of the size of rounding errors.

    As many as there are such pairs among neighbours in x, at several distances from where the prediction changes.
    """
    with torch.no_grad():
        label = module(x.double()).argmax(1)
        some = label != label.roll(1)
        inner, outer, label = x[some].double(), x.roll(1, 0)[some].double(), label[some]
        points = []
        for step in range(steps):
            middle = (inner + outer) / 2
            same = _shaped(module(middle).argmax(1) == label, middle)
            inner, outer = torch.where(same, middle, inner), torch.where(same, outer, middle)
            if step % 4 == 1:
                points.append(inner)
    return torch.cat(points).float() if len(label) else x[:0]


def attack_executed(net: Network, module: nn.Module, x: Tensor, tally: Tally, seed: int) -> None:
    """Attack radii that include the rounding of the executed network: no float32 run inside may change its mind."""
    x = torch.cat([x, near_boundary(module, x)])
    result = lipcert.certify(net.module, x, precision="float32")
    some = result.radius > 0
    tally.count("radius for float32, run in float32", 0)
    if not bool(some.any()):
        return
    x, prediction, radius = x[some], result.prediction[some], result.radius[some]
    generator = torch.Generator().manual_seed(seed)
    directions = list(worst_in_ball(module, x.double(), prediction, radius))
    directions += [_unit(torch.randn(x.shape, generator=generator, dtype=torch.float64)) for _ in range(2)]
    shares = (0.0, 1e-6, 0.01, 0.3, 0.7, 0.95, 0.999, 1 - 1e-6, 1.0, 1.01, 1.1, 1.5, 3.0)
    for share in shares:
        for direction in directions if share else directions[:1]:
            moved = rounded_inwards(x, x.double() + _shaped(radius * share, x) * direction)
            far = (moved.double() - x.double()).flatten(1).norm(dim=1)
            flips = _flipped(net, moved, prediction)
            nearest = torch.where(flips, far.clamp_min(1e-300), torch.full_like(far, float("inf")))
            tally.judge(net, seed, "radius for float32, run in float32", radius, nearest, moved)
    tally.points += len(shares) * len(directions) * len(x)
