"""Lower bounds: quotients that the network really has, below every upper bound and every exact constant."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

import lipcert
from adversary_exact import Exact
from cases import CASES, traced
from chains import matrices, network
from lipcert.bounds import LowerBound, graph_bound, lower_bound
from lipcert.errors import BoundError, ModuleStateError, ShapeError

UP = 1 + 1e-13  # rounding of the references
LOGITS = [n for n in CASES if "image" not in CASES[n].tags]
IMAGES = [n for n in CASES if "image" in CASES[n].tags]


def mlp(*widths: int, seed: int = 0, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        modules = [m for a, b in itertools.pairwise(widths) for m in (nn.Linear(a, b), act())]
    return nn.Sequential(*modules[:-1]).double().eval()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def quotients(module: nn.Module, bound: LowerBound) -> Tensor:
    """What the witnesses of a bound say, by the module itself."""
    with torch.no_grad():
        left, right = (module(bound.points[:, i].clone()).flatten(1) for i in (0, 1))
    change, run = left - right, (bound.points[:, 0] - bound.points[:, 1]).flatten(1).norm(dim=1)
    by_pair = {
        "global": lambda: change.norm(dim=1) / run,
        "class": lambda: change.abs() / run[:, None],
        "pairwise": lambda: (change[:, :, None] - change[:, None]).abs() / run[:, None, None],
    }[bound.scope]()
    by_pair = torch.cat([by_pair, torch.zeros_like(bound.value)[None]])  # of the witness −1
    return by_pair.gather(0, (bound.witness % len(by_pair))[None])[0]


# --- against what is exact ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("widths", [(2, 5, 3), (2, 4, 4, 3), (3, 5, 4, 3)])
def test_near_the_exact_constant_and_never_above(widths: tuple[int, ...], seed: int) -> None:
    net = mlp(*widths, seed=seed)
    exact, x = Exact(net), normal(20, widths[0], seed=1)
    whole, pairs = (lower_bound(net, x, scope=s, starts=64) for s in ("global", "pairwise"))  # type: ignore[arg-type]
    assert 0.9 * exact.constant <= float(whole) <= exact.constant * UP
    assert bool((pairs.value <= exact.pairs * UP).all())
    assert float(pairs.value.sum()) >= 0.8 * float(exact.pairs.sum())


@pytest.mark.parametrize("shift", [1e4, 1e8, 1e12])
def test_rounding_never_lifts_it_above_the_exact_constant(shift: float) -> None:
    """Far from the origin differences of outputs are all rounding, and so is what float64 makes of a short step."""
    net = mlp(2, 4, 3, seed=1)
    exact = Exact(net).constant
    for x in (normal(8, 2) * shift, normal(8, 2) + shift):
        assert 0 <= float(lower_bound(net, x, steps=10)) <= exact * UP
    net[0].weight.data /= shift
    net[2].weight.data *= shift  # the biases of the first layer are now far larger than what they are added to
    exact = Exact(net).constant
    assert float(lower_bound(net, normal(8, 2), steps=10)) <= exact * UP


def _exactly(net: nn.Sequential, x: Tensor) -> list[Fraction]:
    """A ReLU network in rational numbers."""
    values = [Fraction(v) for v in x.tolist()]
    for m in net:
        if isinstance(m, nn.Linear):
            rows, offsets = m.weight.tolist(), m.bias.tolist()
            values = [
                sum((Fraction(w) * v for w, v in zip(row, values, strict=True)), Fraction(offset))
                for row, offset in zip(rows, offsets, strict=True)
            ]
        else:
            values = [max(v, Fraction(0)) for v in values]
    return values


@pytest.mark.parametrize("biases", [0.0, 0.5, 1e3, 1e8])
@pytest.mark.parametrize("widths", [(4, 8, 3), (6, 10, 10, 10, 4), (3, 12, 12, 12, 12, 12, 2)])
def test_never_above_the_exact_quotient_of_its_witness(widths: tuple[int, ...], biases: float) -> None:
    """In rational arithmetic, in which nothing rounds."""
    net = network(matrices(*widths), biases=biases)
    for scope, scale in itertools.product(("global", "class"), (1e-6, 1.0, 1e4)):
        bound = lower_bound(net, normal(5, widths[0]) * scale, scope=scope, steps=3)  # type: ignore[arg-type]
        for c, witness in enumerate(bound.witness.flatten().tolist()):
            if witness < 0:  # biases of 1e8 and steps of 1e-7: nothing is left of such quotients
                assert float(bound.value.flatten()[c]) == 0
                continue
            left, right = bound.points[witness]
            rises = [a - b for a, b in zip(_exactly(net, left), _exactly(net, right), strict=True)]
            rises = rises if scope == "global" else [rises[c]]
            run = sum((Fraction(a) - Fraction(b)) ** 2 for a, b in zip(left.tolist(), right.tolist(), strict=True))
            assert Fraction(float(bound.value.flatten()[c])) ** 2 * run <= sum(r**2 for r in rises)


@pytest.mark.parametrize("outputs", [3, 40])
def test_a_linear_map_is_its_norm(outputs: int) -> None:
    """Also with more outputs than a Jacobian is formed of."""
    net = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, outputs)).double().eval()
    with torch.no_grad():
        net[0].weight[0] *= 10  # apart from the second singular value, so that few products find it
        matrix = net[1].weight @ net[0].weight
    x = normal(5, 30)
    found = {s: lower_bound(net, x, scope=s, steps=2).value for s in ("global", "class", "pairwise")}  # type: ignore[arg-type]
    expected = {
        "global": torch.linalg.matrix_norm(matrix, 2),
        "class": matrix.norm(dim=1),
        "pairwise": (matrix[:, None] - matrix[None]).norm(dim=2),
    }
    for scope, value in found.items():
        torch.testing.assert_close(value, expected[scope], rtol=1e-9, atol=0)
        assert bool((value <= expected[scope] * UP).all())


def test_a_smooth_network() -> None:
    """The slope of tanh is 1 at 0 only, so no quotient is; those of short steps come near."""
    net = nn.Sequential(nn.Linear(1, 1), nn.Tanh(), nn.Linear(1, 1)).double().eval()
    net[0].weight.data.fill_(1.0)
    net[0].bias.data.fill_(-0.7)
    net[2].weight.data.fill_(2.0)
    bound = lower_bound(net, normal(10, 1), steps=100)
    assert 2 * (1 - 1e-3) < float(bound) < 2


# --- against the upper bounds, everywhere -------------------------------------------------------------------------
@pytest.mark.parametrize("name", CASES)
def test_below_the_upper_bound(name: str) -> None:
    module, x, graph = CASES[name].module(), CASES[name].inputs(5, seed=1), traced(name)
    scopes = ("global",) if name in IMAGES else ("global", "class", "pairwise")
    for scope in scopes[:: 1 if len(name) % 3 == 0 else 3]:
        found = lower_bound(graph, x, scope=scope, steps=3)  # type: ignore[arg-type]
        assert found.value.dtype == torch.float64
        assert bool((found.value <= graph_bound(graph, scope=scope, guarantee="upper").value).all())  # type: ignore[arg-type]
        assert found.rounding < 1e-6
        seen = quotients(module, found)
        assert bool((found.value <= seen).all())
        torch.testing.assert_close(found.value, seen, rtol=1e-6, atol=1e-12)


# --- what it promises ---------------------------------------------------------------------------------------------
def test_the_ascent_climbs_and_the_inputs_are_not_forgotten() -> None:
    net, x = mlp(6, 20, 20, 4, seed=3), normal(10, 6)
    for scope in ("global", "class", "pairwise"):
        still, moved = (lower_bound(net, x, scope=scope, steps=n) for n in (0, 40))  # type: ignore[arg-type]
        assert bool((moved.value >= still.value).all())
        assert float(moved.value.sum()) > 1.05 * float(still.value.sum())
        assert not any(still.climbed)
        assert any(moved.climbed)


@pytest.mark.parametrize("box", [(0.0, 1.0), (-0.5, 3.0)])
def test_all_points_stay_in_the_range(box: tuple[float, float]) -> None:
    """Also where the inputs lie on its border, with directions that lead out of it."""
    net = mlp(6, 20, 20, 4, seed=3)
    x = torch.rand(10, 6, dtype=torch.float64).round()
    for scope in ("global", "pairwise"):
        bound = lower_bound(net, x, scope=scope, steps=20, input_range=box)  # type: ignore[arg-type]
        assert box[0] <= float(bound.points.min())
        assert float(bound.points.max()) <= box[1]
        assert bound.input_range == box
        torch.testing.assert_close(bound.value, quotients(net, bound), rtol=1e-9, atol=0)
    assert f"in [{box[0]:g}, {box[1]:g}]" in bound.summary()


def test_chosen_pairs() -> None:
    """They are found as if all were; the others still have a lower bound."""
    net, x = mlp(5, 16, 4, seed=4), normal(20, 5)
    every = lower_bound(net, x, scope="pairwise", steps=0).value
    some = lower_bound(net, x, scope="pairwise", steps=0, pairs=[(2, 0)]).value
    assert torch.equal(some, some.T)
    assert float(some[0, 2]) == float(some[2, 0]) == pytest.approx(float(every[0, 2]), rel=1e-9)
    assert bool((some <= every * (1 + 1e-9)).all())
    assert bool((some + torch.eye(4) > 0).all())


def test_the_same_seed_gives_the_same_bound() -> None:
    net, x = mlp(4, 12, 12, 3, seed=5), normal(6, 4)
    first, again = (lower_bound(net, x, seed=7) for _ in range(2))
    assert torch.equal(first.value, again.value)
    assert torch.equal(first.points, again.points)


@pytest.mark.parametrize(
    "context", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", dtype=torch.bfloat16)]
)
def test_the_context_does_not_matter(context: Callable[[], AbstractContextManager]) -> None:
    net = mlp(4, 12, 3, seed=6).float()
    plain = lower_bound(net, normal(6, 4), steps=10).value
    with context():
        assert torch.equal(lower_bound(net, normal(6, 4), steps=10).value, plain)
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("power", [-300, -40, 40, 300])
def test_rescaling_layers_changes_little(power: int) -> None:
    """At these scales float32 has no numbers for what happens in between."""
    net, x = mlp(4, 8, 8, 3, seed=7), normal(10, 4)
    plain = float(lower_bound(net, x, steps=0))
    for layer, by in ((0, power), (4, -power)):
        net[layer].weight.data *= 2.0**by
    for layer in (0, 2):
        net[layer].bias.data *= 2.0**power
    assert float(lower_bound(net, x, steps=0)) == pytest.approx(plain, rel=1e-6)


def test_deep_networks_lose_little_to_rounding() -> None:
    """Where the network of absolute values is 10⁶ times as steep as the network."""
    net = mlp(32, *[64] * 9, 4, seed=8)
    bound = lower_bound(net, normal(10, 32), steps=10)
    assert bound.rounding < 1e-6
    assert 0 < float(bound) < float(lipcert.lipschitz(net, (32,), guarantee="upper"))


def test_what_it_says() -> None:
    net, x = mlp(3, 8, 3, seed=9), normal(5, 3)
    bound = lower_bound(net, x)
    assert float(bound.shown(4).removeprefix("L ≥ ")) <= float(bound)
    assert bound.summary().startswith("lower, global: L ≥ ")
    assert "1 pair of points" in bound.summary()
    assert not isinstance(bound, lipcert.Bound)
    pairs = lower_bound(net, x, scope="pairwise")
    assert pairs.witness.shape == (3, 3)
    assert pairs.witness.diagonal().tolist() == [-1] * 3
    assert " … " in pairs.shown()


# --- the odd ones -------------------------------------------------------------------------------------------------
def test_a_constant_network_has_no_witness() -> None:
    bound = lower_bound(traced("cancelling-branches"), CASES["cancelling-branches"].inputs(3), steps=3)
    assert float(bound) == 0
    assert int(bound.witness) == -1
    assert bound.points.shape == (0, 2, *CASES["cancelling-branches"].shape)
    assert "L ≥ 0 " in bound.summary()


@pytest.mark.parametrize("x", [torch.zeros(1, 4), torch.ones(3, 4)])
def test_inputs_that_do_not_differ(x: Tensor) -> None:
    assert float(lower_bound(mlp(4, 8, 3), x, steps=10)) > 0


def test_inputs_that_are_not_finite_are_left_out() -> None:
    net, x = mlp(4, 8, 3), normal(6, 4)
    spoilt = torch.cat([x, x[:2]])
    spoilt[6, 1], spoilt[7, 0] = math.nan, -math.inf
    assert torch.equal(lower_bound(net, spoilt, steps=5).value, lower_bound(net, x, steps=5).value)
    with pytest.raises(ShapeError, match="no input without"):
        lower_bound(net, spoilt[6:])


def test_a_network_that_overflows_gives_no_nonsense() -> None:
    net = mlp(3, 3, 3)
    graph = lipcert.trace(net, (3,))
    for p in net.parameters():
        p.data *= 1e200
    for scope in ("global", "class", "pairwise"):
        bound = lower_bound(graph, normal(4, 3), scope=scope, steps=3)  # type: ignore[arg-type]
        assert bool(torch.isfinite(bound.value).all())
    net[0].weight.data[0, 0] = math.nan
    with pytest.raises(ModuleStateError):
        lower_bound(graph, normal(4, 3))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"scope": "local"}, BoundError, "scope must be one of"),
        ({"steps": -1}, BoundError, "negative"),
        ({"starts": 0}, BoundError, "positive"),
        ({"pairs": [(0, 1)]}, BoundError, "pairs are for"),
        ({"scope": "pairwise", "pairs": [(0, 0)]}, BoundError, "no pair"),
        ({"scope": "pairwise", "pairs": [(0, 3)]}, BoundError, "no pair"),
        ({"scope": "pairwise", "pairs": []}, BoundError, "no pair"),
        ({"input_range": (0, 0)}, BoundError, "the smaller first"),
        ({"input_range": (0, math.inf)}, BoundError, "finite"),
        ({"input_range": (0, 0.5)}, BoundError, "outside"),
    ],
)
def test_refusals(options: dict, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        lower_bound(mlp(4, 8, 3), torch.ones(2, 4), **options)


@pytest.mark.parametrize("x", [torch.ones(4), torch.ones(2, 4, dtype=torch.int64), torch.ones(0, 4), torch.ones(2, 5)])
def test_inputs_of_a_wrong_shape(x: Tensor) -> None:
    with pytest.raises(ShapeError):
        lower_bound(mlp(4, 8, 3), x)


def test_classes_of_an_image() -> None:
    with pytest.raises(ShapeError, match="Use scope='global'"):
        lower_bound(traced(IMAGES[0]), CASES[IMAGES[0]].inputs(2), scope="class")
