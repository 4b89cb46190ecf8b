"""Local bounds: against attacks and samples on every network of the catalogue, closed forms, and traps of rounding."""

from __future__ import annotations

from fractions import Fraction
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import lipcert
from cases import CASES, loop_map, named, traced
from exact import fall_of_one_hidden_layer
from lipcert.bounds import graph_bound
from lipcert.bounds.budget import most_harm
from lipcert.bounds.local import LocalBound
from lipcert.bounds.movement import Movement, norms_of_rows
from lipcert.errors import BoundError
from lipcert.graph.types import Elementwise
from lipcert.loop import LoopMap
from random_programs import SHAPE, Program

LOGITS = named(without=("image",))


def bound_of(graph: lipcert.Graph) -> LocalBound:
    bound = graph_bound(graph, guarantee="upper")
    return LocalBound(LoopMap(graph, graph.resolve(torch.float64)), bound.hidden)  # type: ignore[attr-defined]


@cache
def local_bound(name: str) -> LocalBound:
    return bound_of(traced(name))


def gap(graph: lipcert.Graph, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    y = graph.forward(x)[graph.output]
    rows = torch.arange(len(x))
    return y[rows, a] - y[rows, b]


def true_fall(graph: lipcert.Graph, x: Tensor, a: Tensor, b: Tensor, radius: Tensor, starts: int = 6) -> Tensor:
    """The largest fall that projected gradient steps find in the ball: not above the true one."""
    shape = (-1, *(1,) * (x.ndim - 1))
    generator, best = torch.Generator().manual_seed(0), torch.zeros(len(x), dtype=x.dtype)
    before = gap(graph, x, a, b).detach()
    for start in range(starts):
        step = torch.randn(x.shape, generator=generator, dtype=x.dtype) if start else torch.zeros_like(x)
        for i in range(12):
            length = step.flatten(1).norm(dim=1).clamp_min(1e-300)
            inside = step * (radius / length).clamp_max(1.0 if i < 3 else torch.inf).reshape(shape) * (1 - 1e-12)
            moved = (x + inside).requires_grad_()
            found = gap(graph, moved, a, b)
            best = torch.maximum(best, before - found.detach())
            (gradient,) = torch.autograd.grad(found.sum(), moved)
            size = gradient.flatten(1).norm(dim=1).clamp_min(1e-300)
            step = inside - gradient * (radius / size).reshape(shape) * (0.5 + (i % 3))
    return best


def pairs_of(graph: lipcert.Graph, rows: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((rows, *graph.input_shape), generator=generator, dtype=torch.float64)
    y = graph.forward(x)[graph.output].detach()
    order = y.argsort(1, descending=True)
    return x, order[:, 0], order[:, 1]


@pytest.mark.parametrize("name", LOGITS)
def test_no_attack_falls_further(name: str) -> None:
    graph, local = traced(name), local_bound(name)
    x, a, b = pairs_of(graph, 12)
    radius = torch.tensor([1e-3, 0.1, 1.0, 10.0], dtype=torch.float64).repeat(3)
    fall = local.fall(x, a, b, radius)
    assert bool(torch.isfinite(fall).all())
    assert bool((true_fall(graph, x, a, b, radius, 4) <= fall * (1 + 1e-9) + 1e-12).all())


@pytest.mark.parametrize("seed", range(12))
def test_no_attack_falls_further_in_random_programs(seed: int) -> None:
    graph = lipcert.trace(Program(seed), SHAPE)
    x, a, b = pairs_of(graph, 9, seed)
    radius = torch.tensor([0.03, 0.3, 3.0], dtype=torch.float64).repeat(3)
    fall = bound_of(graph).fall(x, a, b, radius)
    assert bool((true_fall(graph, x, a, b, radius, 4) <= fall * (1 + 1e-9) + 1e-12).all())


@pytest.mark.parametrize("name", LOGITS)
def test_movement_contains_every_sample(name: str) -> None:
    graph, local = traced(name), local_bound(name)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((3, *graph.input_shape), generator=generator, dtype=torch.float64)
    radius = torch.tensor([0.01, 0.3, 3.0], dtype=torch.float64)
    seen: dict[int, Tensor] = {}
    # lines are set up by evaluating: the same as in fall(), through the parts that it is made of
    from lipcert.bounds.local import _Ball

    sizes = graph.sizes(x.abs().amax(0, keepdim=True), local.resolved, per_rounding=local.relative)
    ball = _Ball(local, radius, [local.relative * s for s in sizes])
    graph.evaluate(x, local.resolved, activate=ball.enter)
    moved = local.movement.within(radius, ball.passes)
    still = graph.forward(x)
    for _ in range(25):
        step = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        step = step * (radius / step.flatten(1).norm(dim=1)).reshape(-1, *(1,) * (x.ndim - 1))
        for node, before, after in zip(graph.nodes, still, graph.forward(x + step), strict=True):
            seen[node.index] = torch.maximum(seen.get(node.index, torch.zeros_like(after)), (after - before).abs())
    for node in graph.nonlinear:
        if node.index in moved:
            assert bool((seen[node.inputs[0]] <= moved[node.index] * (1 + 1e-9) + 1e-12).all()), node.describe()


@pytest.mark.parametrize("name", list(CASES))
def test_row_norms_are_above_those_of_the_segments(name: str) -> None:
    flat = loop_map(name, centred=False)
    for k in range(1, flat.depth + 1):
        for j in range(k):
            if not flat.connected(k, j):
                continue
            from lipcert.norms.dense import adjoint_rows

            rows = adjoint_rows(flat, k, [j], 0, flat.target_shape(k)[0] if len(flat.target_shape(k)) == 1 else 1)
            true = rows[j].norm(dim=1)
            assert bool((norms_of_rows(flat, k, j).flatten()[: len(true)] >= true * (1 - 1e-12)).all())


@pytest.mark.parametrize("name", ["act-relu", "residual-chain", "dense-concat", "maxpool-residual", "prelu-channels"])
def test_budgets_of_parts_of_narrow_layers(name: str) -> None:
    """No sample moves a part further, no part more than the whole, and one entry no more than its own rate."""
    local, graph = local_bound(name), traced(name)
    assert local.narrow
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((40, *graph.input_shape), generator=generator, dtype=torch.float64)
    step = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    step = step * (0.5 / step.flatten(1).norm(dim=1)).reshape(-1, *(1,) * (x.ndim - 1))
    before, after = graph.forward(x), graph.forward(x + step)
    for node in graph.nonlinear:
        if node.index not in local.narrow:
            continue
        layer, source = local.narrow[node.index], node.inputs[0]
        moved = (after[source] - before[source]).flatten(1).abs()
        size = moved.shape[1]
        kept = torch.rand((8, size), generator=generator) < 0.4
        kept[0] = True
        row, entry = torch.nonzero(kept, as_tuple=True)
        norms = layer.norms(row, entry, 8)
        for part, norm in zip(kept, norms, strict=True):
            assert float((moved * part).norm(dim=1).max()) <= 0.5 * float(norm)
            assert float(norm) <= float(norms[0])
        alone = layer.norms(torch.arange(size), torch.arange(size), size)
        assert bool((moved <= 0.5 * layer.rates.flatten()).all())
        assert bool((layer.rates.flatten() <= alone * len(graph.nonlinear) ** 0.5 * (1 + 1e-5)).all())


def test_an_empty_part_does_not_move() -> None:
    layer = next(iter(local_bound("act-relu").narrow.values()))
    none = torch.zeros(0, dtype=torch.int64)
    assert layer.norms(none, none, 3).tolist() == [0.0] * 3


def test_row_norms_of_a_matrix_are_exact() -> None:
    net = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Flatten(), nn.Linear(7, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    flat = LoopMap(lipcert.trace(net.eval(), (5,)), centred=False)
    torch.testing.assert_close(norms_of_rows(flat, 2, 1)[0], net[3].weight.norm(dim=1).detach(), rtol=1e-6, atol=0)
    conv = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2)).double().eval()
    flat = LoopMap(lipcert.trace(conv, (2, 4, 4)), centred=False)
    inner = norms_of_rows(flat, 1, 0)[0, :, 1, 1]
    torch.testing.assert_close(inner, conv[0].weight.flatten(1).norm(dim=1).detach(), rtol=1e-6, atol=0)


def test_as_the_ball_shrinks_the_fall_is_the_gradient() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 30), nn.LeakyReLU(0.2), nn.Linear(30, 3)).double()
    graph = lipcert.trace(net.eval(), (6,))
    x, a, b = pairs_of(graph, 8)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(gap(graph, leaf, a, b).sum(), leaf)
    radius = torch.full((8,), 1e-7, dtype=torch.float64)
    fall = bound_of(graph).fall(x, a, b, radius)
    torch.testing.assert_close(fall, radius * gradient.norm(dim=1), rtol=1e-5, atol=0)


def test_one_neuron_in_closed_form() -> None:
    """y_0 − y_1 = −relu(x): from x = −1 within 3 it falls by 2, and no line can hide that."""
    net = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2)).double().eval()
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[0].bias.zero_()
        net[2].weight.copy_(torch.tensor([[-1.0], [0.0]]))
        net[2].bias.zero_()
    graph = lipcert.trace(net, (1,))
    local, zero, one = bound_of(graph), torch.tensor([0]), torch.tensor([1])

    def fall(x: float, radius: float) -> float:
        given = torch.tensor([[x]], dtype=torch.float64), torch.tensor([radius], dtype=torch.float64)
        return float(local.fall(given[0], zero, one, given[1]))

    assert fall(-1.0, 3.0) >= 2.0
    assert fall(-1.0, 0.999) < 1e-6
    assert 1.5 <= fall(1.0, 1.5) <= 1.5 + 1e-6
    assert 0.5 <= fall(0.0, 0.5) <= 0.51


@pytest.mark.parametrize("seed", range(20))
def test_the_worst_of_a_budget_is_not_below_any_point(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=g, dtype=torch.float64)

    first, second, far, budget = draw(9), 2 * draw(9), 2 * draw(9), 2 * draw(1)
    drop, row = draw(9), torch.zeros(9, dtype=torch.int64)
    found = float(most_harm(first, second, drop, far, row, budget)[0])
    for _ in range(1000):
        v = torch.randn(9, generator=g, dtype=torch.float64).abs() * (draw(9) > 0.6)
        v = torch.minimum(v * (budget / v.norm().clamp_min(1e-12)), far)
        harm = torch.maximum(first * v, second * v - drop).sum()
        assert float(harm) <= found
    assert float(most_harm(first, second, drop, far, row, torch.zeros(1, dtype=torch.float64))[0]) < 1e-100


@pytest.mark.parametrize("exponent", [-480, -200, -40, 40, 200, 480])
def test_scaling_layers_against_each_other_proves_no_less(exponent: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).double().eval()
    plain = lipcert.trace(net, (4,))
    x, a, b = pairs_of(plain, 5)
    radius = torch.full((5,), 0.5, dtype=torch.float64)
    worst, before = true_fall(plain, x, a, b, radius), bound_of(plain).fall(x, a, b, radius)
    with torch.no_grad():
        net[0].weight.mul_(2.0**exponent)
        net[0].bias.mul_(2.0**exponent)
        net[2].weight.mul_(2.0**-exponent)
    fall = bound_of(lipcert.trace(net, (4,))).fall(x, a, b, radius)
    assert bool((fall >= worst).all())
    # where squares of a layer's numbers would be lost, its rows are not used
    assert bool((fall <= before * (1 + 1e-3 if abs(exponent) < 100 else 3)).all())


def side_lost() -> lipcert.Graph:
    """Of z = x + 2⁶⁰ − 2⁶⁰, which comes out as a multiple of 256: on which side of 0 it is, nobody knows."""
    net = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2)).double().eval()
    with torch.no_grad():
        for layer, bias in ((net[0], 2.0**60), (net[1], -(2.0**60))):
            layer.weight.fill_(1.0)
            layer.bias.fill_(bias)
        net[3].weight.copy_(torch.tensor([[1.0], [0.0]]))
        net[3].bias.zero_()
    return lipcert.trace(net, (1,))


def test_where_the_side_of_a_kink_is_lost_in_rounding() -> None:
    local = bound_of(side_lost())

    def fall(x: float, a: int, b: int, radius: float) -> float:
        given = torch.tensor([[x]], dtype=torch.float64), torch.tensor([radius], dtype=torch.float64)
        return float(local.fall(given[0], torch.tensor([a]), torch.tensor([b]), given[1]))

    assert fall(300.0, 0, 1, 100.0) >= 100.0
    assert fall(-1.0, 1, 0, 100.0) >= 99.0
    assert fall(60.0, 0, 1, 50.0) >= 50.0  # it comes out as 0, where the line of the other side would not fall at all


@pytest.mark.parametrize("seed", range(10))
def test_in_rational_numbers(seed: int) -> None:
    """The fall at the worst vertex that was found, with no rounding anywhere, of weights of very different sizes."""
    g = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).double().eval()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64) * 10.0 ** (4 * seed - 20))
    graph = lipcert.trace(net, (3,))
    x, a, b = pairs_of(graph, 1, seed)
    radius = torch.tensor([0.25], dtype=torch.float64)
    fall = Fraction(float(bound_of(graph).fall(x, a, b, radius)))

    assert fall_of_one_hidden_layer(net, x, int(a), int(b), 0.25, g) <= fall


@pytest.mark.parametrize("name", list(CASES))
def test_what_is_called_homogeneous_is(name: str) -> None:
    graph = traced(name)
    resolved = graph.resolve(torch.float64)
    for node in graph.nonlinear:
        if isinstance(node, Elementwise) and node.homogeneous:
            z = torch.randn((4, *node.shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            value = node.function(z, resolved.live)
            torch.testing.assert_close(node.function(8 * z, resolved.live), 8 * value, rtol=0, atol=0)
            one = torch.ones_like(z)
            line = torch.where(z > 0, node.function(one, resolved.live) * z, -node.function(-one, resolved.live) * z)
            torch.testing.assert_close(value, line, rtol=1e-15, atol=0)


def test_most_activations_of_the_catalogue_with_one_kink_are_seen() -> None:
    found = {
        name for name in CASES if any(isinstance(n, Elementwise) and n.homogeneous for n in traced(name).nonlinear)
    }
    assert {"act-leaky-negative", "act-rrelu", "act-prelu", "prelu-channels", "fn-abs", "fn-relu-inplace"} <= found
    assert not any(n.homogeneous for n in traced("fn-tanh-method").nonlinear)  # type: ignore[attr-defined]


def test_what_it_is_made_of_is_needed() -> None:
    graph = traced("act-relu")
    with pytest.raises(BoundError, match="made of"):
        LocalBound(LoopMap(graph, graph.resolve(torch.float64)), {1: 1.0})
    with pytest.raises(BoundError, match="float64"):
        LocalBound(LoopMap(graph, graph.resolve(torch.float32)), {1: 1.0, 2: 1.0})
    assert Movement(loop_map("act-relu"), {1: 1.0, 2: 2.0}).rates
