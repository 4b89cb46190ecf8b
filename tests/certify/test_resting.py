"""What is lost where an activation is flat, and stays so: in coarse arithmetic, against an adversary."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lipcert
from catalogue import Fn
from coarse import COARSE, NETS, PAIRS, UNIT, adversary, lively
from emulated import ORDERS, Machine, Residual, run
from lipcert import UpperBound
from lipcert.bounds.evidence import Scaling
from lipcert.bounds.lines import Sides
from lipcert.certify.arithmetic import ARITHMETICS
from lipcert.certify.logits import executed_logits
from lipcert.certify.network import contested
from lipcert.certify.resting import CAUTION, Resting
from lipcert.certify.rounding import Rounding
from weighing import HEAD, absolute, any_bound, by_hand, graph_of, limit, small_gain


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARITHMETICS, torch.float64, COARSE)


def _found(net: nn.Module, x: Tensor, bound: UpperBound) -> tuple[Rounding, float]:
    """All that is said of the only sample, and R up to which its last account holds."""
    _, _, found = executed_logits(graph_of(net, tuple(x.shape[1:])), bound, [x], torch.float64)
    return found, 0.0 if found.near is None else float(found.near[1])


def _near(found: Rounding, pair: tuple[int, int], radius: float) -> float:
    assert found.near is not None
    return limit((found.near[0],), pair, radius)


def _resting(shape: tuple[int, ...], build: Callable[[], nn.Module], seed: int) -> tuple[nn.Module, Tensor]:
    """Some channels that are never active, far apart classes."""
    torch.manual_seed(seed)
    net = build()
    with torch.no_grad():
        for layer in [m for m in net.modules() if isinstance(m, (nn.Linear, nn.Conv2d))][:-1]:
            layer.bias[::2] -= 4.0
            layer.weight[::2] *= 0.125
        layers = [m for m in net.modules() if isinstance(m, nn.Linear)]
        layers[-1].bias += 4 * torch.arange(3.0)
    return net, Machine(UNIT).rounded(torch.randn((1, *shape), dtype=torch.float64))


RESTING: dict[str, tuple[tuple[int, ...], Callable[[], nn.Module]]] = {
    "mlp": NETS["mlp"],
    "deeper": ((4,), lambda: lively(*(f for i in range(4) for f in (nn.Linear(4 + 2 * (i > 0), 6), nn.ReLU())),
                                    nn.Linear(6, 3))),
    "leaky among them": ((4,), lambda: lively(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.LeakyReLU(0.3),
                                              nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))),
    "residual": ((5,), lambda: lively(nn.Linear(5, 5), Residual(nn.Sequential(nn.ReLU(), nn.Linear(5, 5))),
                                      nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3))),
    "pooled maxima": NETS["pooled maxima"],
    "ends in an activation": ((4,), lambda: lively(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3), nn.LeakyReLU(0.5))),
}  # fmt: skip


@pytest.mark.parametrize("name", list(RESTING))
def test_what_rests_loses_nothing(name: str) -> None:
    less = []
    for seed in range(3):
        net, x = _resting(*RESTING[name], seed)
        for bound in (small_gain(net, x, "pairwise"), any_bound(net, x, seed, loose=False)):
            found, within = _found(net, x, bound)
            pair = PAIRS[seed]
            least, second = _near(found, pair, within), limit(found.accounts[1:], pair, within)
            wrong = adversary(net, x, within, pair, [ORDERS[(seed + len(name)) % 5]], seed)
            assert wrong <= least <= second, (wrong / least, wrong / second)
            assert found.near is not None
            assert wrong <= limit((*found.accounts, found.near[0]), pair, within)
            less.append(_near(found, pair, 0.0) / limit(found.accounts[1:], pair, 0.0))
    assert min(less) < 0.95, less


def _nearly_active(radius: float, at: float) -> tuple[nn.Module, Tensor]:
    """``at`` below 0 behind a ReLU; the radius of real arithmetic is the given one."""
    net = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2)).double().eval()
    with torch.no_grad():
        net[0].weight.fill_(1.0), net[0].bias.fill_(-1.0)
        net[2].weight.copy_(torch.tensor(HEAD)[:, None]), net[2].bias.copy_(torch.tensor([2 * radius, 0.0]))
    return net, torch.tensor([[1.0 - at]], dtype=torch.float64)


def _all_upwards(net: nn.Module, point: Tensor) -> float:
    """What the difference of two logits is wrong by if every result is rounded away from 0."""
    probe = Machine(UNIT, deltas=[])
    run(probe, net, point)
    wrong = run(Machine(UNIT, deltas=[torch.ones(s, dtype=point.dtype) for s in probe.shapes]), net, point) - net(point)
    return float((wrong[0, 0] - wrong[0, 1]).detach())


@pytest.mark.parametrize(("radius", "at", "share"), [(2.0**-6, 2.0**-7, 0.3), (2.0**-20, UNIT / 2, 2.0**-5)])
def test_what_may_become_active_does_not_rest(
    radius: float, at: float, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By moving away from the sample, and by rounding alone."""
    net, x = _nearly_active(radius, at)
    bound = by_hand(net, x)
    found, within = _found(net, x, bound)
    assert radius <= within <= radius * (1 + 2.0**-20)
    wrong = _all_upwards(net, x + (radius if at == radius / 2 else 0.0))
    assert UNIT / 2 < wrong <= _near(found, (0, 1), radius)
    assert _near(found, (0, 1), radius) == limit(found.accounts[1:], (0, 1), radius)
    whole = Resting.rest
    monkeypatch.setattr(Resting, "rest", lambda self, reach: whole(self, share * reach))
    assert wrong > 2 * _near(_found(net, x, bound)[0], (0, 1), radius)


@pytest.mark.parametrize("at", [2.0**-5, 32 * UNIT])
def test_what_cannot_become_active_rests(at: float) -> None:
    net, x = _nearly_active(2.0**-6 if at == 2.0**-5 else 2.0**-20, at)
    found, _ = _found(net, x, by_hand(net, x))
    assert _near(found, (0, 1), 0.0) < 0.1 * limit(found.accounts[1:], (0, 1), 0.0)


def test_only_where_an_activation_is_flat() -> None:
    for act, rests in ((nn.ReLU(), True), (nn.LeakyReLU(0.1), False), (nn.Tanh(), False), (absolute(), False)):
        torch.manual_seed(0)
        net = lively(nn.Linear(3, 4), act, nn.Linear(4, 3))
        x = torch.randn((1, 3), dtype=torch.float64)
        assert (_found(net, x, any_bound(net, x, 1, loose=False))[0].near is not None) == rests
    flipped = lively(nn.Linear(3, 4), Fn(lambda s, x: -torch.relu(-x)), nn.Linear(4, 3))
    with torch.no_grad():
        flipped[0].weight.mul_(2.0**-10)
        flipped[0].bias.copy_(torch.tensor([50.0, -5.0, 50.0, -5.0]))
    found, _ = _found(flipped, x, small_gain(flipped, x, "pairwise"))
    active = _near(found, (0, 1), 0.0)
    assert 0 < active < limit(found.accounts[1:], (0, 1), 0.0)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), power=st.integers(-50, 50))
def test_resting(seed: int, power: int) -> None:
    """Nothing is left out that is near, most of what is far is, and who is not cautious leaves out no less."""
    torch.manual_seed(seed)
    z = 2.0**power * torch.randn((3, 4, 5), dtype=torch.float64) * 10 ** torch.randn((3, 4, 5), dtype=torch.float64)
    lost = torch.rand((3, 4, 5), dtype=torch.float64) * 10 ** torch.randn((3, 4, 5), dtype=torch.float64)
    sides = Sides(torch.zeros((1, 4, 5), dtype=torch.float64), torch.ones((1, 4, 5), dtype=torch.float64))
    reach = z.abs().flatten(1)[:, seed % 20] * (1 + 1e-12)
    far = (z < 0) & (z.abs() > reach[:, None, None])
    very_far = (z < 0) & (z.abs() > 1.2 * reach[:, None, None]) & (z.abs() < 2.0**40) & (z.abs() > 2.0**-39)
    least, most = (lost.masked_fill(gone, 0.0).flatten(1).norm(dim=1) for gone in (far, very_far))
    found = Resting(lost, z, sides).rest(reach)
    assert bool((least <= found).all())
    assert bool((found <= most * (1 + 1e-5)).all())
    other = z * (1 + 1e-12 * torch.randn_like(z))
    assert bool(
        (Resting(lost, other, sides, CAUTION).rest(reach * (1 + CAUTION) * (1 - 1e-12)) >= found / 1.00001).all()
    )


def test_resting_of_extreme_numbers() -> None:
    sides = Sides(torch.zeros((1, 3), dtype=torch.float64), torch.ones((1, 3), dtype=torch.float64))
    z = torch.tensor([[-1.0, -4.0, 1.0]] * 5 + [[math.nan, -4.0, 1.0]], dtype=torch.float64)
    lost = torch.tensor([1e-300, 1e-320, 0.0, 1e200, math.inf, 1.0], dtype=torch.float64)[:, None] * torch.ones(1, 3)
    lost[0, 1] = 1.0  # beside which the others' squares are nothing
    found = Resting(lost, z, sides).rest(torch.full((6,), 2.0, dtype=torch.float64))
    assert bool((found >= torch.tensor([1e-300, 0, 0, 1.4e200, math.inf, 1.4], dtype=torch.float64)).all())
    assert float(found[0]) < 1e-140
    for reach in (math.nan, math.inf):
        nothing = Resting(lost, z, sides).rest(torch.full((6,), reach, dtype=torch.float64))
        assert bool((nothing >= lost.amax(1)).all())


def test_who_verifies_leaves_out_what_was_left_out() -> None:
    """Hidden units of every distance to where they become active, in another order, as another machine has them."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(6, 400), nn.ReLU(), nn.Linear(400, 3)).eval()
    with torch.no_grad():
        net[0].weight.mul_(0.05), net[0].bias.copy_(-torch.logspace(-3, 1, 400))
        net[2].bias.copy_(torch.tensor([0.0, 0.2, 0.4]))
    x, order = torch.randn(40, 6), torch.randperm(400)
    other = copy.deepcopy(net)
    with torch.no_grad():
        for value, old in ((other[0].weight, net[0].weight), (other[0].bias, net[0].bias)):
            value.copy_(old[order])
        other[2].weight.copy_(net[2].weight[:, order])
    bound = small_gain(net, x[:1], "pairwise")
    assert bound.evidence is not None
    moved = Scaling("neuron", tuple(d[order] for d in bound.evidence.scaling.weights))
    there = dataclasses.replace(bound, evidence=dataclasses.replace(bound.evidence, scaling=moved))
    made, again = (
        contested(lipcert.trace(n, (6,)), b, [x], None, "float32", each=each)[1]
        for n, b, each in ((net, bound, False), (other, there, True))
    )
    least = made.cautious()
    assert bool((again.near_still <= least.near_still).all())
    assert bool((again.executed() >= least.executed()).all())
    assert float((made.still - made.near_still).amax(1).min()) > 0
