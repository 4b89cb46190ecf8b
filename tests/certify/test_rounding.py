"""Rounding of the executed network stays within E: in an emulated coarse arithmetic, against an adversary too.

The analysis is made for a unit roundoff of 2⁻¹², where what it leaves out would show. That it would is tested as
well: each of its parts is left out once, and each time the emulated execution leaves the smaller E.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

import lipcert
from certificates import in_units_of_their_own
from emulated import ORDERS, Machine, Mean, Residual, run, worst
from lipcert.bounds.lipschitz import graph_bound
from lipcert.bounds.pairs import pair_bounds
from lipcert.certify import perturbed, rounding
from lipcert.certify.arithmetic import ARITHMETICS, Arithmetic
from lipcert.certify.contest import _rounded
from lipcert.certify.logits import executed_logits
from lipcert.certify.radius import radii
from lipcert.certify.rounding import Rounding
from lipcert.graph.types import Elementwise
from lipcert.loop import LoopMap

UNIT = 2.0**-12


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float64 modules are analysed as if they ran with a unit roundoff of 2⁻¹²."""
    monkeypatch.setitem(ARITHMETICS, torch.float64, Arithmetic("float64", UNIT, 2.0**-900, 2.0**900))


def _lively(*layers: nn.Module) -> nn.Module:
    """Float64, in eval, with biases and statistics that are as large as the rest."""
    net = nn.Sequential(*layers).double().eval()
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, (nn.Linear, nn.Conv2d)) and m.bias is not None:
                m.bias.normal_()
            if isinstance(m, nn.modules.batchnorm._BatchNorm):
                for value in (m.running_mean, m.weight, m.bias):
                    value.normal_()
                m.running_var.uniform_(0.3, 2.0)
            if isinstance(m, nn.PReLU):
                m.weight.uniform_(-0.5, 1.5)
                m.weight[0] = 1.0  # a slope of which nothing is left to be bounded
        for value in (*net.parameters(), *net.buffers()):
            if value.is_floating_point():
                value.copy_(Machine(UNIT).rounded(value))
    return net


L, C = nn.Linear, nn.Conv2d
NETS: dict[str, tuple[tuple[int, ...], Callable[[], nn.Module]]] = {
    "linear": ((7,), lambda: _lively(L(7, 3))),
    "mlp": ((6,), lambda: _lively(L(6, 8), nn.ReLU(), L(8, 8), nn.ReLU(), L(8, 3))),
    "two affine": ((4,), lambda: _lively(L(4, 6), L(6, 5), nn.ReLU(), L(5, 5), L(5, 3))),
    "leaky": ((5,), lambda: _lively(L(5, 6), nn.LeakyReLU(0.3), L(6, 3), nn.LeakyReLU(-0.7), L(3, 3))),
    "nearly the identity": ((5,), lambda: _lively(L(5, 6), nn.LeakyReLU(0.99999), L(6, 6), nn.ReLU(), L(6, 3))),
    "prelu": ((5,), lambda: _lively(L(5, 6), nn.PReLU(6), L(6, 4), nn.PReLU(4), L(4, 3))),
    "tanh": ((5,), lambda: _lively(L(5, 6), nn.Tanh(), L(6, 6), nn.Tanh(), L(6, 3))),
    "ends in an activation": ((4,), lambda: _lively(L(4, 6), nn.ReLU(), L(6, 3), nn.LeakyReLU(0.5))),
    "residual": (
        (5,),
        lambda: _lively(Residual(nn.Sequential(nn.ReLU(), L(5, 5)), L(5, 5)), Residual(nn.Tanh()), L(5, 3)),
    ),
    "pooled maxima": (
        (1, 5, 5),
        lambda: _lively(C(1, 3, 2), nn.ReLU(), nn.MaxPool2d(2, 1), C(3, 2, 2), nn.MaxPool2d(2), nn.Flatten(), L(2, 3)),
    ),
    "batch norm": (
        (2, 5, 5),
        lambda: _lively(
            nn.BatchNorm2d(2),
            C(2, 3, 2, bias=False),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            L(12, 3),
        ),
    ),
    "padded, strided": ((1, 5, 5), lambda: _lively(C(1, 3, 3, 2, 1), nn.ReLU(), nn.Flatten(), L(27, 3))),
    "large and small": ((4,), lambda: _balanced(30.0)),
}  # fmt: skip


def _balanced(exponent: float) -> nn.Module:
    net = _lively(L(4, 6), nn.ReLU(), L(6, 6), nn.ReLU(), L(6, 3))
    with torch.no_grad():
        net[0].weight.mul_(2.0**exponent), net[0].bias.mul_(2.0**exponent)
        net[2].weight.mul_(2.0**-exponent)
    return net


ROWS: dict[str, tuple[tuple[int, ...], Callable[[], nn.Module]]] = {
    "residual": NETS["residual"],
    "activations behind merges": (
        (4,),
        lambda: _lively(L(4, 5), _block(5, nn.ReLU()), nn.ReLU(), _block(5, nn.LeakyReLU(0.3)), nn.Tanh(), L(5, 3)),
    ),
    "ends in a merge": ((3,), lambda: _lively(_block(3, nn.PReLU(3)), nn.ReLU(), L(3, 3), _block(3, nn.ReLU()))),
    "an affine part": ((4,), lambda: _lively(L(4, 5), Residual(L(5, 5)), _block(5, nn.ReLU()), L(5, 3))),
    "images": (
        (2, 4, 4),
        lambda: _lively(
            Residual(nn.Sequential(C(2, 3, 3, padding=1), nn.ReLU(), C(3, 2, 3, padding=1)), C(2, 2, 1)),
            Residual(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(2))),
            nn.MaxPool2d(2),
            nn.Flatten(),
            L(8, 3),
        ),
    ),
}


def _block(width: int, act: nn.Module) -> nn.Module:
    return Residual(nn.Sequential(L(width, width + 1), act if not isinstance(act, nn.PReLU) else nn.PReLU(width + 1),
                                  L(width + 1, width)))  # fmt: skip


def _net(
    name: str, seed: int = 0, nets: dict[str, tuple[tuple[int, ...], Callable[[], nn.Module]]] = NETS
) -> tuple[nn.Module, Tensor]:
    shape, build = nets[name]
    torch.manual_seed(seed)
    net = build()
    return net, Machine(UNIT).rounded(torch.randn((1, *shape), dtype=torch.float64))


def _allowed(
    net: nn.Module, x: Tensor, scope: str = "pairwise", method: str = "liplt", *, parts: bool = False
) -> tuple[Rounding, int]:
    graph = lipcert.trace(net, tuple(x.shape[1:]))
    method = "smallgain" if parts else method
    bound = graph_bound(graph, method=method, scope=scope, guarantee="upper", parts=parts, seconds=0.3)
    assert bool(bound.parts) == parts
    logits, _, found = executed_logits(graph, bound, [x], torch.float64)
    return found, logits.shape[1]


def _limit(found: Rounding, pair: tuple[int, int], radius: float, classes: int = 3) -> float:
    """``E_ab`` of the first sample."""
    still, growing = _rounded(found, torch.full((len(found.reach),), pair[0]), classes)
    return float(still[0, pair[1]] + growing[0, pair[1]] * radius)


PAIRS = list(itertools.combinations(range(3), 2))


@pytest.mark.parametrize(("name", "parts"), [*((n, False) for n in NETS), *((n, True) for n in ROWS)])
def test_sums_in_any_order_rounded_to_nearest(name: str, parts: bool) -> None:
    worst_share = 0.0
    for seed in range(2):
        net, x = _net(name, seed, ROWS if parts else NETS)
        found, _ = _allowed(net, x, ("class", "global")[seed], parts=parts)
        away = torch.randn((24, *x.shape[1:]), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        radii = torch.tensor([0.0, 0.1, 3.0], dtype=torch.float64).repeat(8) / away.flatten(1).norm(dim=1)
        points = Machine(UNIT).rounded(x + radii.reshape(-1, *(1,) * (x.ndim - 1)) * away)
        distances = (points - x).flatten(1).norm(dim=1)
        limits = {pair: torch.tensor([_limit(found, pair, float(d)) for d in distances]) for pair in PAIRS}
        for order, fused in itertools.product(ORDERS, (False, True)):
            machine = Machine(UNIT, order, fused, fold=fused, seed=seed)
            with torch.no_grad():
                wrong = run(machine, net, points) - net(points)
            for (a, b), limit in limits.items():
                worst_share = max(worst_share, float(((wrong[:, a] - wrong[:, b]).abs() / limit).max()))
    assert 1e-3 < worst_share <= 1


def _adversary(
    net: nn.Module,
    x: Tensor,
    radius: float,
    pair: tuple[int, int],
    orders: Sequence[str],
    seed: int = 0,
    *,
    moved: bool = False,
) -> float:
    """The most that any of the machines gets wrong, or with ``moved`` that is away from what is right at x."""
    found = 0.0
    for i, order in enumerate(orders):

        def make(deltas: Sequence[Tensor], order: str = order, way: int = seed + i) -> Machine:
            return Machine(UNIT, order, fused=way % 4 == 3, fold=way % 2 == 0, deltas=deltas, seed=seed)

        for sign in (1.0, -1.0):
            found = max(found, worst(make, net, x, radius, pair, sign, moved=moved)[0])
    return found


@pytest.mark.parametrize("name", list(NETS))
def test_an_adversary_rounds(name: str) -> None:
    for seed, method in enumerate(("liplt", "product")):
        net, x = _net(name, seed)
        found, _ = _allowed(net, x, ("pairwise", "global")[seed], method)
        for i, radius in enumerate((0.0, 0.3, 10.0)):
            pair = PAIRS[(i + seed) % 3]
            limit = _limit(found, pair, radius)
            orders = [ORDERS[(seed + i) % 5], ORDERS[(seed + i + 2) % 5]]
            wrong = _adversary(net, x, radius, pair, orders, seed + i)
            assert 0.01 * limit < wrong <= limit, (radius, wrong / limit)


@pytest.mark.parametrize("name", list(ROWS))
def test_an_adversary_rounds_a_row_of_parts(name: str) -> None:
    for seed in (list(ROWS).index(name) % 2,):
        net, x = _net(name, seed, ROWS)
        found, _ = _allowed(net, x, ("pairwise", "class")[seed], parts=True)
        for i, radius in enumerate((0.0, 0.3, 10.0)):
            pair = PAIRS[(i + seed) % 3]
            limit = _limit(found, pair, radius)
            wrong = _adversary(net, x, radius, pair, [ORDERS[(seed + i) % 5]], seed + i)
            assert 0.003 * limit < wrong <= limit, (radius, wrong / limit)


# --- as a network of other weights ------------------------------------------------------------------------------------
def _moved(net: nn.Module, x: Tensor, scope: str) -> tuple[Tensor, Rounding]:
    """L for each pair, by small gain, and what rounding adds."""
    graph = lipcert.trace(net, tuple(x.shape[1:]))
    bound = graph_bound(graph, method="smallgain", scope=scope, guarantee="upper", scaling="neuron", seconds=0.5)
    logits, _, found = executed_logits(graph, bound, [x], torch.float64)
    return pair_bounds(bound.value, logits.shape[1], upward=True), found


def _furthest(bound: Tensor, found: Rounding, pair: tuple[int, int], radius: float) -> float:
    """How far the execution's difference of two logits may be from the right one at x, by the second account."""
    assert found.steeper is not None
    classes = len(bound)
    still, _ = _rounded(found, torch.full((len(found.reach),), pair[0]), classes)
    steeper = pair_bounds(found.steeper, classes, upward=True)
    return float(still[0, pair[1]] + (bound[pair] + steeper[pair]) * radius)


BENT = [name for name in NETS if name not in ("linear", "nearly the identity", "prelu")]  # of these it says nothing


@pytest.mark.parametrize("name", BENT)
def test_an_adversary_moves_and_rounds(name: str) -> None:
    for seed, scope in enumerate(("global" if name == "pooled maxima" else "pairwise", "global")):
        net, x = _net(name, seed)
        bound, found = _moved(net, x, scope)
        for i, radius in enumerate((0.0, 0.3, 10.0)):
            pair = PAIRS[(i + seed) % 3]
            limit = _furthest(bound, found, pair, radius)
            orders = [ORDERS[(seed + i) % 5], ORDERS[(seed + i + 2) % 5]]
            moved = _adversary(net, x, radius, pair, orders, seed + i, moved=True)
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
    net = _chosen([*layers, [[1.0] * width, [-1.0] * width]], *(nn.ReLU() for _ in range(depth)))
    x, radius = torch.ones((1, width), dtype=torch.float64), 1e4
    bound, found = _moved(net, x, "global")
    moved = _adversary(net, x, radius, (0, 1), ["given"], moved=True)
    whole = _furthest(bound, found, (0, 1), radius)
    patch(monkeypatch)
    less = _furthest(*_moved(net, x, "global"), (0, 1), radius)
    assert less < moved <= whole, (less, moved, whole)


class _Absolute(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


def _eight_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = perturbed.gamma
    monkeypatch.setattr(perturbed, "gamma", lambda n, unit: whole(n - 8, unit))


@pytest.mark.parametrize("depth", [1, 2])
def test_the_perturbed_network_leaves_little_room(depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first term of each sum is all there is, and goes through all of its roundings; no slope has a half-width."""
    hidden, head = torch.full((30, 30), 2.0**-40), torch.full((2, 30), 2.0**-40)
    hidden[0, 0], head[:, 0] = 1.0, torch.tensor([1.0, -1.0])
    net = _chosen([*[hidden.tolist()] * depth, head.tolist()], *(_Absolute() for _ in range(depth)))
    x, radius = torch.zeros((1, 30), dtype=torch.float64), 10.0
    x[0, 0] = 2.0**-10
    bound, found = _moved(net, x, "global")
    moved = _adversary(net, x, radius, (0, 1), ["given"], moved=True)
    slope = float(bound[0, 1]) * radius
    # with two layers it depends on the D that is found
    assert (0.8, 0.5)[depth - 1] < (moved - slope) / (_furthest(bound, found, (0, 1), radius) - slope) <= 1
    _eight_fewer(monkeypatch)
    if depth == 1:
        assert moved > _furthest(*_moved(net, x, "global"), (0, 1), radius)


def test_the_second_account_of_rounding_counts_where_it_takes_off_less() -> None:
    """Neurons in units of their own: LipLT and the norms of layers grow with them, and small gain does not see them."""
    net = in_units_of_their_own()
    x = torch.randn((8, 12))
    graph = lipcert.trace(net, (12,))
    options = {"scope": "pairwise", "guarantee": "upper", "scaling": "neuron", "seconds": 1.0}
    bound = graph_bound(graph, method="smallgain", **options)
    logits, errors, found = executed_logits(graph, bound, [x], torch.float32)
    assert found.steeper is not None
    first = dataclasses.replace(found, steeper=None)
    with_both, alone = (radii(logits, bound, errors=errors, rounding=r) for r in (found, first))
    assert bool((with_both.radius >= alone.radius).all())
    assert float(with_both.radius.sum()) > 1.1 * float(alone.radius.sum())
    assert torch.equal(with_both.real, alone.real)


def test_a_bound_by_liplt_has_no_second_account() -> None:
    net, x = _net("mlp")
    assert _allowed(net, x)[0].steeper is None


# --- that a part left out is noticed ------------------------------------------------------------------------------


def _chosen(weights: Sequence[Sequence[Sequence[float]]], *between: nn.Module) -> nn.Module:
    """Linear layers with these weights and no biases, with layers in between."""
    parts: list[nn.Module] = []
    for i, w in enumerate(weights):
        matrix = torch.tensor(w, dtype=torch.float64)
        layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False)
        layer.weight.data = matrix
        parts += [layer, between[i]] if i < len(between) else [layer]
    return nn.Sequential(*parts).double().eval()


FIRST = [1.0, *[2.0**-14] * 30, -1.0]  # at (1, …, 1) all partial sums but the last are as large as the first
ONE = [[1.0], [-1.0]]


def _norm() -> nn.Module:
    norm = nn.BatchNorm1d(2).double().eval()
    with torch.no_grad():
        norm.running_mean.fill_(1.0), norm.running_var.fill_(3.0)
    return norm


def _fewer(by: int) -> Callable[[pytest.MonkeyPatch], None]:
    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        whole = rounding.gamma
        monkeypatch.setattr(rounding, "gamma", lambda n, unit: whole(max(n - by, 0), unit))

    return patch


def _no_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = LoopMap.ratios
    monkeypatch.setattr(LoopMap, "ratios", lambda self, j: (0.0, whole(self, j)[1]))


def _no_inverse(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = LoopMap.ratios
    monkeypatch.setattr(LoopMap, "ratios", lambda self, j: (whole(self, j)[0], 1.0))


def _nothing_before(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rounding.Errors._affine

    def forgetful(self: rounding.Errors, node: object, *rest: object) -> object:
        self.errors = dict.fromkeys(self.errors)
        return whole(self, node, *rest)

    monkeypatch.setattr(rounding.Errors, "_affine", forgetful)


def _activations_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = lipcert.trace

    def exact(*args: object) -> lipcert.Graph:
        graph = trace(*args)
        for node in graph.nodes:
            if isinstance(node, Elementwise):
                object.__setattr__(node, "roundings", 0)
        return graph

    monkeypatch.setattr(lipcert, "trace", exact)


def _dropped(**parts: Callable[[Rounding], object]) -> Callable[[Rounding], Rounding]:
    return lambda found: dataclasses.replace(found, **{k: f(found) for k, f in parts.items()})


def _still(value: Tensor) -> Tensor:
    return value * torch.tensor([1.0, 0.0], dtype=torch.float64)


def _same(found: Rounding) -> Rounding:
    return found


def _whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the analysis as it is."""


def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "gamma", lambda n, unit: 4 * unit)


def _merges_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rounding.Recursion.run

    def forgetful(self: rounding.Recursion, errors: rounding.Errors, *rest: object) -> object:
        errors.ends = {i: 0 * v for i, v in errors.ends.items()}
        return whole(self, errors, *rest)

    monkeypatch.setattr(rounding.Recursion, "run", forgetful)


def _parts_that_shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rounding.Recursion.__init__

    def smaller(self: rounding.Recursion, *args: object) -> None:
        whole(self, *args)
        self.bounds = tuple(dataclasses.replace(b, value=b.value / 64) for b in self.bounds)

    monkeypatch.setattr(rounding.Recursion, "__init__", smaller)


_no_sources = _dropped(sources=lambda r: {j: 0 * g for j, g in r.sources.items()})
_no_final = _dropped(final=lambda r: 0 * r.final)
_no_ball = _dropped(final=lambda r: _still(r.final), sources=lambda r: {j: _still(g) for j, g in r.sources.items()})
_deep = [[FIRST], [[1.0]], ONE]
FOILS: dict[str, tuple[Callable[[], nn.Module], float, Callable, Callable]] = {
    "roundings of a sum": (lambda: _chosen([[FIRST, [0.0] * 32]]), 0.0, _fewer(4), _same),
    "roundings of a mean": (lambda: nn.Sequential(Mean(), *_chosen([ONE])), 0.0, _fewer(3), _same),
    "roundings of a batch norm": (lambda: nn.Sequential(_norm()), 0.0, _few, _same),
    "the last segment": (lambda: nn.Sequential(nn.ReLU(), *_chosen([[FIRST, [0.0] * 32]])), 0.0, _whole, _no_final),
    "what activations carry": (lambda: _chosen([[FIRST], ONE], nn.ReLU()), 0.0, _whole, _no_sources),
    "the centre of a slope": (lambda: _chosen(_deep, nn.ReLU(), nn.ReLU()), 0.0, _no_ratio, _same),
    "the radius of a slope": (lambda: _chosen([[[1.0]], ONE], nn.Tanh()), 0.0, _no_inverse, _same),
    "what an activation adds": (lambda: _chosen([[[1.0]], ONE], nn.Tanh()), 0.0, _activations_exact, _same),
    "layers without activations": (lambda: _chosen([[FIRST], ONE, [[1, 0], [0, 1]]]), 0.0, _nothing_before, _same),
    "the ball, one layer": (lambda: _chosen([[FIRST, [0.0] * 32]]), 100.0, _whole, _no_ball),
    "the ball, two layers": (lambda: _chosen([[FIRST], ONE], nn.LeakyReLU(0.5)), 100.0, _whole, _no_ball),
}


def _cut(*layers: nn.Module) -> nn.Module:
    """With a merge that changes nothing behind each layer but the last."""
    *front, last = layers
    quiet = [Residual(nn.Sequential(nn.ReLU(), nn.Linear(m.out_features, m.out_features, False)), m) for m in front]
    for m in quiet:
        m.body[1].weight.data.zero_()
    return nn.Sequential(*quiet, last).double().eval()


_first, _one, _times, _spread, _sum = (
    _chosen([w])[0] for w in ([FIRST], ONE, [[64.0]], [[64.0], *[[0.0]] * 30, [64.0]], [FIRST, [0.0] * 32])
)
ROW_FOILS: dict[str, tuple[Callable[[], nn.Module], float, Callable]] = {
    "what a merge is wrong by": (lambda: _cut(_first, _one), 0.0, _merges_exact),
    "what a part makes of it": (lambda: _cut(_first, _times, _one), 0.0, _parts_that_shrink),
    "what a part makes of the ball": (
        lambda: nn.Sequential(Residual(nn.ReLU(), _spread), _sum).double().eval(),
        100.0,
        _parts_that_shrink,
    ),
}


@pytest.mark.parametrize("part", list(ROW_FOILS))
def test_the_adversary_finds_what_is_left_out_of_a_row(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, radius, patch = ROW_FOILS[part]
    net = build()
    x = torch.full((1, net[0].share.in_features), 2.0**-14, dtype=torch.float64)
    x[0, 0] = x[0, -1] = 1.0
    wrong = _adversary(net, x, radius, (0, 1), ORDERS)
    whole = _limit(_allowed(net, x, parts=True)[0], (0, 1), radius, 2)
    patch(monkeypatch)
    less = _limit(_allowed(net, x, parts=True)[0], (0, 1), radius, 2)
    assert less < wrong <= whole, (less, wrong, whole)


@pytest.mark.parametrize("part", list(FOILS))
def test_the_adversary_finds_what_is_left_out(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, radius, patch, change = FOILS[part]
    net = build().double().eval()
    inputs = next((m.in_features for m in net if isinstance(m, nn.Linear)), 2)
    x = torch.full((1, 32 if "mean" in part else inputs), 2.0**-14, dtype=torch.float64)
    if "of a slope" not in part and "adds" not in part:  # elsewhere tanh is to be as steep as it can be
        x[0, 0] = x[0, -1] = -1.0 if "norm" in part else 1.0
    wrong = _adversary(net, x, radius, (0, 1), ORDERS)
    whole = _limit(_allowed(net, x)[0], (0, 1), radius, 2)
    patch(monkeypatch)
    less = _limit(change(_allowed(net, x)[0]), (0, 1), radius, 2)
    assert less < wrong <= whole, (less, wrong, whole)
