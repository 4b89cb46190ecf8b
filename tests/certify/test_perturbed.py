"""Rounding as other weights: the second account, in coarse arithmetic and against an adversary.

What is looked for is not how wrong the execution is at a point, but how far it is from what is right at the centre.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import lipcert
from certificates import in_units_of_their_own
from coarse import COARSE, NETS, PAIRS, adversary, chosen, some_net
from emulated import ORDERS
from lipcert import UpperBound
from lipcert.bounds.pairs import pair_bounds
from lipcert.bounds.result import Scope
from lipcert.certify import perturbed, rounding
from lipcert.certify.arithmetic import ARITHMETICS
from lipcert.certify.contest import _around
from lipcert.certify.logits import executed_logits
from lipcert.certify.radius import radii


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARITHMETICS, torch.float64, COARSE)


def _bound(net: nn.Module, x: Tensor, scope: Scope) -> UpperBound:
    """By small gain, after a search that need not end."""
    found = lipcert.lipschitz(
        net, tuple(x.shape[1:]), method="smallgain", scope=scope, guarantee="upper", scaling="neuron", seconds=0.3
    )
    assert isinstance(found, UpperBound)
    return found


def _furthest(net: nn.Module, x: Tensor, bound: UpperBound, pair: tuple[int, int], radius: float) -> float:
    """How far the execution's difference of two logits may be from the right one at x, by the second account."""
    logits, _, found = executed_logits(lipcert.trace(net, tuple(x.shape[1:])), bound, [x], torch.float64)
    assert found.around is not None
    classes = logits.shape[1]
    lost, steeper = _around(found.around, torch.tensor([pair[0]]), classes)
    slope = float(pair_bounds(bound.value, classes, upward=True)[pair] + steeper[0, pair[1]])
    return float(lost[0, pair[1]]) + slope * radius


BENT = [name for name in NETS if name not in ("linear", "nearly the identity", "prelu")]  # of these it says nothing


@pytest.mark.parametrize("name", BENT)
def test_an_adversary_moves_and_rounds(name: str) -> None:
    scopes: list[Scope] = ["global" if name == "pooled maxima" else "pairwise", "global"]
    for seed, scope in enumerate(scopes):
        net, x = some_net(name, seed)
        bound = _bound(net, x, scope)
        for i, radius in enumerate((0.0, 0.3, 10.0)):
            if i == 1 and seed:
                continue  # which takes as long as the others
            pair = PAIRS[(i + seed) % 3]
            limit = _furthest(net, x, bound, pair, radius)
            orders = [ORDERS[(seed + i) % 5], ORDERS[(seed + i + 2) % 5]]
            moved = adversary(net, x, radius, pair, orders, seed + i, moved=True)
            assert 0.001 * limit < moved <= limit, (radius, moved / limit)


def _one_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perturbed, "levels", lambda loop: [0] * (loop.depth + 1) + [1])


def _no_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perturbed, "gamma", lambda n, unit: 0.0)


def _some_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = perturbed.gamma
    monkeypatch.setattr(perturbed, "gamma", lambda n, unit: whole(n // 16, unit))


@pytest.mark.parametrize("patch", [_one_level, _no_sums, _some_terms])
def test_the_adversary_finds_what_is_left_out_of_the_perturbed_network(
    patch: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums of terms of one sign: the network is as steep as its bound, and each rounding makes it steeper."""
    width, depth = 24, 14
    layers = [[[1.0 / width] * width] * width for _ in range(depth)]
    net = chosen([*layers, [[1.0] * width, [-1.0] * width]], *(nn.ReLU() for _ in range(depth)))
    x, radius = torch.ones((1, width), dtype=torch.float64), 1e4
    bound = _bound(net, x, "global")
    moved = adversary(net, x, radius, (0, 1), ["given"], moved=True)
    whole = _furthest(net, x, bound, (0, 1), radius)
    patch(monkeypatch)
    less = _furthest(net, x, bound, (0, 1), radius)
    assert less < moved <= whole, (less, moved, whole)


class _Absolute(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


def _eight_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = perturbed.gamma
    monkeypatch.setattr(perturbed, "gamma", lambda n, unit: whole(n - 8, unit))


def _of_one_term(depth: int, at: float) -> tuple[nn.Module, Tensor]:
    """The first term of each sum is all there is, and goes through all of its roundings; no slope has a half-width."""
    hidden, head = torch.full((30, 30), 2.0**-40), torch.full((2, 30), 2.0**-40)
    hidden[0, 0], head[:, 0] = 1.0, torch.tensor([1.0, -1.0])
    net = chosen([*[hidden.tolist()] * depth, head.tolist()], *(_Absolute() for _ in range(depth)))
    x = torch.zeros((1, 30), dtype=torch.float64)
    x[0, 0] = at
    return net, x


@pytest.mark.parametrize("depth", [1, 2])
def test_the_perturbed_network_leaves_little_room(depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    (net, x), radius = _of_one_term(depth, 2.0**-10), 10.0
    bound = _bound(net, x, "global")
    moved = adversary(net, x, radius, (0, 1), ["given"], moved=True)
    slope = float(pair_bounds(bound.value, 2, upward=True)[0, 1]) * radius
    assert (0.8, 0.5)[depth - 1] < (moved - slope) / (_furthest(net, x, bound, (0, 1), radius) - slope) <= 1
    _eight_fewer(monkeypatch)
    if depth == 1:
        assert moved > _furthest(net, x, bound, (0, 1), radius)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_losses_at_the_sample_leave_little_room(depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one layer loses, as where many do: f′ carries it as far as it must, but for the choice of t."""
    net, x = _of_one_term(depth, 1.0)
    bound = _bound(net, x, "global")
    moved = adversary(net, x, 0.0, (0, 1), ["given"], moved=True)
    assert {1: 0.8, 2: 0.5, 4: 0.3}[depth] < moved / _furthest(net, x, bound, (0, 1), 0.0) <= 1
    if depth == 1:
        whole = rounding.gamma
        monkeypatch.setattr(rounding, "gamma", lambda n, unit: whole(n - 8, unit))
        assert moved > _furthest(net, x, bound, (0, 1), 0.0)


@pytest.mark.parametrize("power", [-300, -560])
def test_squares_of_small_losses_are_not_lost(power: int) -> None:
    net, x = _of_one_term(4, 2.0**power)
    bound = _bound(net, x, "global")
    moved = adversary(net, x, 0.0, (0, 1), ["given"], moved=True)
    assert 0.3 < moved / _furthest(net, x, bound, (0, 1), 0.0) <= 1


def _no_level(monkeypatch: pytest.MonkeyPatch) -> None:
    real = perturbed.levels
    monkeypatch.setattr(perturbed, "levels", lambda loop: [*[real(loop)[-1]] * (loop.depth + 1), real(loop)[-1]])


def _first_layer_only(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = perturbed.Perturbed._loss
    monkeypatch.setattr(perturbed.Perturbed, "_loss", lambda self, e, k: whole(self, e, k) * (k == 1))


@pytest.mark.parametrize("patch", [_no_level, _first_layer_only])
def test_the_adversary_finds_losses_at_the_sample_that_are_left_out(
    patch: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of many layers add up."""
    net, x = _of_one_term(10, 1.0)
    bound = _bound(net, x, "global")
    moved = adversary(net, x, 0.0, (0, 1), ["given"], moved=True)
    whole = _furthest(net, x, bound, (0, 1), 0.0)
    patch(monkeypatch)
    less = _furthest(net, x, bound, (0, 1), 0.0)
    assert less < moved <= whole, (less, moved, whole)


def test_the_second_account_of_rounding_counts_where_it_takes_off_less() -> None:
    """Neurons in units of their own: LipLT and the norms of layers grow with them, and small gain does not see them."""
    net = in_units_of_their_own()
    x = torch.randn((8, 12))
    bound = _bound(net, x[:1], "pairwise")
    logits, errors, found = executed_logits(lipcert.trace(net, (12,)), bound, [x], torch.float32)
    assert found.around is not None
    first = dataclasses.replace(found, around=None)
    with_both, alone = (radii(logits, bound, errors=errors, rounding=r) for r in (found, first))
    assert bool((with_both.radius >= alone.radius).all())
    assert float(with_both.radius.sum()) > 1.1 * float(alone.radius.sum())
    assert torch.equal(with_both.real, alone.real)


def test_a_bound_by_liplt_has_no_second_account() -> None:
    net, x = some_net("mlp")
    bound = lipcert.lipschitz(net, (6,), scope="pairwise", guarantee="upper")
    assert isinstance(bound, UpperBound)
    assert executed_logits(lipcert.trace(net, (6,)), bound, [x], torch.float64)[2].around is None
