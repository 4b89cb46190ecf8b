"""Small gain within a ball: above every attack, whatever the multipliers are; nearly the gradient in small balls."""

from __future__ import annotations

from fractions import Fraction
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import lipcert
from bounds.test_local import gap, pairs_of, side_lost, true_fall
from cases import named, traced
from exact import fall_of_one_hidden_layer
from lipcert.bounds import UpperBound, graph_bound
from lipcert.bounds.local_gain import Dual, LocalGain
from lipcert.bounds.pairs import pair_bounds
from lipcert.bounds.reweighted import fall
from lipcert.layers import HalfAbs
from lipcert.loop import LoopMap
from random_programs import SHAPE, Program

LOGITS = named(without=("image",))
NETS = {
    "relu": lambda: nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 3)),
    "half-abs": lambda: nn.Sequential(nn.Linear(6, 30), HalfAbs(), nn.Linear(30, 30), HalfAbs(), nn.Linear(30, 3)),
    "leaky": lambda: nn.Sequential(nn.Linear(6, 30), nn.LeakyReLU(0.2), nn.Linear(30, 9), nn.PReLU(), nn.Linear(9, 3)),
    "conv": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 8, 2, padding=1), HalfAbs(), nn.Flatten(), nn.Linear(96, 3)
    ),
}


def bounded(graph: lipcert.Graph, scaling: str = "neuron") -> UpperBound:
    bound = graph_bound(
        graph, method="smallgain", scope="pairwise", guarantee="upper", scaling=scaling, seconds=2.0, failure=1e-9
    )
    assert isinstance(bound, UpperBound)
    return bound


def made(graph: lipcert.Graph, bound: UpperBound) -> LocalGain | None:
    return LocalGain.of(LoopMap(graph, graph.resolve(torch.float64)), bound)


@cache
def net_of(name: str) -> tuple[lipcert.Graph, UpperBound, LocalGain]:
    torch.manual_seed(0)
    graph = lipcert.trace(NETS[name]().double().eval(), (6,))
    bound = bounded(graph)
    gain = made(graph, bound)
    assert gain is not None
    return graph, bound, gain


@pytest.mark.filterwarnings("ignore:no small-gain bound was found")
@pytest.mark.parametrize("name", LOGITS[::3])
def test_no_attack_falls_further(name: str) -> None:
    graph = traced(name)
    gain = made(graph, bounded(graph, "channel"))
    if gain is None:
        return
    x, a, b = pairs_of(graph, 8)
    radius = torch.tensor([1e-3, 0.1, 1.0, 10.0], dtype=torch.float64).repeat(2)
    found = fall(gain, x, a, b, radius)
    assert bool((true_fall(graph, x, a, b, radius, 4) <= found * (1 + 1e-9) + 1e-12).all())


def test_most_of_the_catalogue_has_one() -> None:
    assert sum(made(traced(name), bounded(traced(name), "layer")) is not None for name in LOGITS[::9]) >= 8


@pytest.mark.filterwarnings("ignore:no small-gain bound was found")
@pytest.mark.parametrize("seed", range(6))
def test_no_attack_falls_further_in_random_programs(seed: int) -> None:
    graph = lipcert.trace(Program(seed), SHAPE)
    gain = made(graph, bounded(graph))
    if gain is None:
        return
    x, a, b = pairs_of(graph, 9, seed)
    radius = torch.tensor([0.03, 0.3, 3.0], dtype=torch.float64).repeat(3)
    found = fall(gain, x, a, b, radius)
    assert bool((true_fall(graph, x, a, b, radius, 4) <= found * (1 + 1e-9) + 1e-12).all())


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("seed", range(4))
def test_any_multipliers_are_sound(name: str, seed: int) -> None:
    """Near the best ones too, where nothing is lost by how bad they are."""
    graph, _, gain = net_of(name)
    x, a, b = pairs_of(graph, 12, seed)
    radius = torch.tensor([0.05, 0.5, 2.0], dtype=torch.float64).repeat(4)
    worst, kinks, head = true_fall(graph, x, a, b, radius), gain.kinks(x), gain.head(a, b)
    generator = torch.Generator().manual_seed(seed)

    def draw(like: Tensor, size: float) -> Tensor:
        return size * torch.randn(like.shape, generator=generator, dtype=torch.float64)

    seen: list[Dual] = []

    class Spy(LocalGain):
        def proved(self, kinks, head, radius, dual):  # type: ignore[no-untyped-def]
            seen.append(dual)
            return super().proved(kinks, head, radius, dual)

    spy = Spy.__new__(Spy)
    spy.__dict__ = gain.__dict__
    fall(spy, x, a, b, radius)
    best = seen[-1]
    for size in (0.0, 1e-3, 0.1, 1.0, 10.0):
        for factor in (0.3, 1.0, 3.0):
            tolls = {k: v * (1 + draw(v, size)) + draw(v, size * 0.1) for k, v in best.tolls.items()}
            dual = Dual(best.vector + draw(best.vector, size * 0.1), tolls, best.price * factor)
            found = gain.proved(kinks, head, radius, dual)
            assert bool((worst <= found * (1 + 1e-9)).all()), (size, factor)
    nothing = Dual(torch.zeros_like(best.vector), {}, torch.ones_like(best.price))
    assert bool((worst <= gain.proved(kinks, head, radius, nothing)).all())


@pytest.mark.parametrize("name", NETS)
def test_from_the_gradient_to_the_global_bound(name: str) -> None:
    graph, bound, gain = net_of(name)
    x, a, b = pairs_of(graph, 8)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(gap(graph, leaf, a, b).sum(), leaf)
    slope, pairs = gradient.norm(dim=1), pair_bounds(bound.value, 3, upward=True)[a, b]
    before = slope * (1 - 1e-4)
    for size in (1e-6, 1e-2, 0.1, 1.0, 100.0):
        radius = torch.full((8,), size, dtype=torch.float64)
        found = fall(gain, x, a, b, radius) / radius
        assert bool((found >= before).all())  # it grows with the ball, but for the end of the search
        assert bool((found <= pairs * (1 + 1e-2)).all())
        if size == 1e-6:
            torch.testing.assert_close(found, slope, rtol=2e-3, atol=0)
        before = found * (1 - 2e-2)


@pytest.mark.parametrize("name", NETS)
def test_it_stops_where_enough_is_proved_or_out_of_reach(name: str) -> None:
    graph, _, gain = net_of(name)
    x, a, b = pairs_of(graph, 6)
    radius = torch.full((6,), 0.3, dtype=torch.float64)
    least = fall(gain, x, a, b, radius)
    enough = least * torch.tensor([0.2, 0.2, 1.5, 1.5, 1.05, 1.05], dtype=torch.float64)
    found = fall(gain, x, a, b, radius, enough)
    assert bool(torch.isinf(found[:2]).all())
    assert bool((found[2:] < enough[2:]).all())
    assert bool((true_fall(graph, x, a, b, radius) <= found).all())
    assert bool(torch.isinf(fall(gain, x, a, b, radius, 0.1 * least)).all())
    assert fall(gain, x[:0], a[:0], b[:0], radius[:0]).shape == (0,)


def test_rows_do_not_see_one_another() -> None:
    graph, _, gain = net_of("half-abs")
    x, a, b = pairs_of(graph, 6)
    radius = torch.tensor([0.1, 1.0, 0.01] * 2, dtype=torch.float64)
    together = fall(gain, x, a, b, radius)
    for i in range(6):
        alone = fall(gain, x[i : i + 1], a[i : i + 1], b[i : i + 1], radius[i : i + 1])
        torch.testing.assert_close(alone[0], together[i], rtol=1e-3, atol=0)


def _steps(first: float, bias: float, second: list[float]) -> lipcert.Graph:
    net = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2)).double().eval()
    with torch.no_grad():
        net[0].weight.fill_(first)
        net[0].bias.fill_(bias)
        net[2].weight.copy_(torch.tensor(second)[:, None])
        net[2].bias.zero_()
    return lipcert.trace(net, (1,))


def _one(gain: LocalGain, x: float, a: int, b: int, radius: float) -> float:
    given = torch.tensor([[x]], dtype=torch.float64), torch.tensor([radius], dtype=torch.float64)
    return float(fall(gain, given[0], torch.tensor([a]), torch.tensor([b]), given[1]))


def test_one_neuron_in_closed_form() -> None:
    """y_0 − y_1 = −relu(x): from x = −1 within 3 it falls by 2, and no multiplier can hide that."""
    graph = _steps(1.0, 0.0, [-1.0, 0.0])
    gain = made(graph, bounded(graph))
    assert gain is not None
    assert 2.0 <= _one(gain, -1.0, 0, 1, 3.0) <= 3.01
    assert _one(gain, -1.0, 0, 1, 0.5) < 1e-2
    assert 1.5 <= _one(gain, 1.0, 0, 1, 1.5) <= 1.51
    assert 0.5 <= _one(gain, 0.0, 0, 1, 0.5) <= 0.51
    assert 1.0 <= _one(gain, 1.0, 1, 0, 3.0) <= 3.01


def test_where_the_side_of_a_kink_is_lost_in_rounding() -> None:
    graph = side_lost()
    gain = made(graph, bounded(graph))
    assert gain is not None
    assert _one(gain, 300.0, 0, 1, 100.0) >= 100.0
    assert _one(gain, -1.0, 1, 0, 100.0) >= 99.0
    assert _one(gain, 60.0, 0, 1, 50.0) >= 50.0  # it comes out as 0, where the other side's line would not fall at all


@pytest.mark.parametrize("exponent", [-200, -40, 40, 200])
def test_scaling_layers_against_each_other(exponent: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).double().eval()
    plain = lipcert.trace(net, (4,))
    x, a, b = pairs_of(plain, 5)
    radius = torch.full((5,), 0.5, dtype=torch.float64)
    worst = true_fall(plain, x, a, b, radius)
    with torch.no_grad():
        net[0].weight.mul_(2.0**exponent)
        net[0].bias.mul_(2.0**exponent)
        net[2].weight.mul_(2.0**-exponent)
    graph = lipcert.trace(net, (4,))
    gain = made(graph, bounded(graph))
    assert gain is not None
    assert bool((fall(gain, x, a, b, radius) >= worst).all())


@pytest.mark.parametrize("seed", range(10))
def test_in_rational_numbers(seed: int) -> None:
    """The fall at points of the ball, with no rounding anywhere, of weights of very different sizes."""
    g = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).double().eval()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64) * 10.0 ** (3 * seed - 15))
    graph = lipcert.trace(net, (3,))
    x, a, b = pairs_of(graph, 1, seed)
    gain = made(graph, bounded(graph))
    assert gain is not None
    limit = Fraction(float(fall(gain, x, a, b, torch.tensor([0.25], dtype=torch.float64))))

    assert fall_of_one_hidden_layer(net, x, int(a), int(b), 0.25, g) <= limit


def test_none_where_there_is_nothing_to_know() -> None:
    for net in (nn.Linear(3, 2), nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))):
        graph = lipcert.trace(net.double().eval(), (3,))
        assert made(graph, bounded(graph)) is None
    graph = traced("act-relu")
    plain = graph_bound(graph, scope="pairwise", guarantee="upper")
    assert isinstance(plain, UpperBound)
    assert made(graph, plain) is None
