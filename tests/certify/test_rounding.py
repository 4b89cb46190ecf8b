"""Rounding of the executed network stays within E: in an emulated coarse arithmetic, against an adversary too.

The analysis is made for a unit roundoff of 2⁻¹², where what it leaves out would show. That it would is tested as
well: each of its parts is left out once, and each time the emulated execution leaves the smaller E.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import lipcert
from coarse import COARSE, NETS, PAIRS, ROWS, UNIT, adversary, chosen, some_net
from emulated import ORDERS, Machine, Mean, Residual, run
from lipcert.bounds import parts as parts_module
from lipcert.bounds.lipschitz import graph_bound
from lipcert.certify import rounding
from lipcert.certify.arithmetic import ARITHMETICS
from lipcert.certify.contest import _rounded
from lipcert.certify.logits import executed_logits
from lipcert.certify.rounding import Account
from lipcert.graph.types import Elementwise
from lipcert.loop import LoopMap


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float64 modules are analysed as if they ran with a unit roundoff of 2⁻¹²; parts are always taken together too."""
    monkeypatch.setitem(ARITHMETICS, torch.float64, COARSE)
    monkeypatch.setattr(parts_module, "_KEEP", 0.0)


def _allowed(
    net: nn.Module, x: Tensor, scope: str = "pairwise", method: str = "liplt", *, parts: bool = False
) -> tuple[Account, int]:
    graph = lipcert.trace(net, tuple(x.shape[1:]))
    method = "smallgain" if parts else method
    bound = graph_bound(graph, method=method, scope=scope, guarantee="upper", parts=parts, seconds=0.3)
    assert bool(bound.parts) == parts
    assert len(bound.parts) < 3 or any(p.behind is not None and p.until is None for p in bound.parts)
    logits, _, found = executed_logits(graph, bound, [x], torch.float64)
    return found.accounts[0], logits.shape[1]


def _limit(found: Account, pair: tuple[int, int], radius: float, classes: int = 3) -> float:
    """``E_ab`` of the first sample."""
    still, growing = _rounded([found], torch.full((len(found.final),), pair[0]), classes)
    return float(still[0, pair[1]] + growing[0, pair[1]] * radius)


@pytest.mark.parametrize(("name", "parts"), [*((n, False) for n in NETS), *((n, True) for n in ROWS)])
def test_sums_in_any_order_rounded_to_nearest(name: str, parts: bool) -> None:
    worst_share = 0.0
    for seed in range(2):
        net, x = some_net(name, seed, ROWS if parts else NETS)
        found, _ = _allowed(net, x, ("class", "global")[seed], parts=parts)
        away = torch.randn((24, *x.shape[1:]), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        radii = torch.tensor([0.0, 0.1, 3.0], dtype=torch.float64).repeat(8) / away.flatten(1).norm(dim=1)
        points = Machine(UNIT).rounded(x + radii.reshape(-1, *(1,) * (x.ndim - 1)) * away)
        distances = (points - x).flatten(1).norm(dim=1)
        limits = {pair: torch.tensor([_limit(found, pair, float(d)) for d in distances]) for pair in PAIRS}
        for i, order in enumerate(ORDERS):
            fused = (i + seed) % 2 == 1
            machine = Machine(UNIT, order, fused, fold=fused, seed=seed)
            with torch.no_grad():
                wrong = run(machine, net, points) - net(points)
            for (a, b), limit in limits.items():
                worst_share = max(worst_share, float(((wrong[:, a] - wrong[:, b]).abs() / limit).max()))
    assert 1e-3 < worst_share <= 1


@pytest.mark.parametrize("name", list(NETS))
def test_an_adversary_rounds(name: str) -> None:
    for seed, method in enumerate(("liplt", "product")):
        net, x = some_net(name, seed)
        found, _ = _allowed(net, x, ("pairwise", "global")[seed], method)
        for i, radius in enumerate((0.0, 0.3, 10.0)):
            pair = PAIRS[(i + seed) % 3]
            limit = _limit(found, pair, radius)
            orders = [ORDERS[(seed + i) % 5], ORDERS[(seed + i + 2) % 5]]
            wrong = adversary(net, x, radius, pair, orders, seed + i)
            assert 0.01 * limit < wrong <= limit, (radius, wrong / limit)


@pytest.mark.parametrize("name", list(ROWS))
def test_an_adversary_rounds_a_row_of_parts(name: str) -> None:
    for seed in (list(ROWS).index(name) % 2,):
        net, x = some_net(name, seed, ROWS)
        found, _ = _allowed(net, x, ("pairwise", "class")[seed], parts=True)
        for i, radius in enumerate((0.0, 0.3, 10.0)):
            pair = PAIRS[(i + seed) % 3]
            limit = _limit(found, pair, radius)
            wrong = adversary(net, x, radius, pair, [ORDERS[(seed + i) % 5]], seed + i)
            assert 0.003 * limit < wrong <= limit, (radius, wrong / limit)


# --- that a part left out is noticed ------------------------------------------------------------------------------


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


def _dropped(**parts: Callable[[Account], object]) -> Callable[[Account], Account]:
    return lambda found: dataclasses.replace(found, **{k: f(found) for k, f in parts.items()})


def _still(value: Tensor) -> Tensor:
    return value * torch.tensor([1.0, 0.0], dtype=torch.float64)


def _same(found: Account) -> Account:
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
        self.until = [v / 64 for v in self.until]
        self.heads = {j: v / 64 if j < 0 else v for j, v in self.heads.items()}

    monkeypatch.setattr(rounding.Recursion, "__init__", smaller)


_no_sources = _dropped(sources=lambda r: {j: 0 * g for j, g in r.sources.items()})
_no_final = _dropped(final=lambda r: 0 * r.final)
_no_ball = _dropped(final=lambda r: _still(r.final), sources=lambda r: {j: _still(g) for j, g in r.sources.items()})
_deep = [[FIRST], [[1.0]], ONE]
FOILS: dict[str, tuple[Callable[[], nn.Module], float, Callable, Callable]] = {
    "roundings of a sum": (lambda: chosen([[FIRST, [0.0] * 32]]), 0.0, _fewer(4), _same),
    "roundings of a mean": (lambda: nn.Sequential(Mean(), *chosen([ONE])), 0.0, _fewer(3), _same),
    "roundings of a batch norm": (lambda: nn.Sequential(_norm()), 0.0, _few, _same),
    "the last segment": (lambda: nn.Sequential(nn.ReLU(), *chosen([[FIRST, [0.0] * 32]])), 0.0, _whole, _no_final),
    "what activations carry": (lambda: chosen([[FIRST], ONE], nn.ReLU()), 0.0, _whole, _no_sources),
    "the centre of a slope": (lambda: chosen(_deep, nn.ReLU(), nn.ReLU()), 0.0, _no_ratio, _same),
    "the radius of a slope": (lambda: chosen([[[1.0]], ONE], nn.Tanh()), 0.0, _no_inverse, _same),
    "what an activation adds": (lambda: chosen([[[1.0]], ONE], nn.Tanh()), 0.0, _activations_exact, _same),
    "layers without activations": (lambda: chosen([[FIRST], ONE, [[1, 0], [0, 1]]]), 0.0, _nothing_before, _same),
    "the ball, one layer": (lambda: chosen([[FIRST, [0.0] * 32]]), 100.0, _whole, _no_ball),
    "the ball, two layers": (lambda: chosen([[FIRST], ONE], nn.LeakyReLU(0.5)), 100.0, _whole, _no_ball),
}


def _cut(*layers: nn.Module) -> nn.Module:
    """With a merge that changes nothing behind each layer but the last."""
    *front, last = layers
    quiet = [Residual(nn.Sequential(nn.ReLU(), nn.Linear(m.out_features, m.out_features, False)), m) for m in front]
    for m in quiet:
        m.body[1].weight.data.zero_()
    return nn.Sequential(*quiet, last).double().eval()


_first, _one, _times, _spread, _sum = (
    chosen([w])[0] for w in ([FIRST], ONE, [[64.0]], [[64.0], *[[0.0]] * 30, [64.0]], [FIRST, [0.0] * 32])
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
    wrong = adversary(net, x, radius, (0, 1), ORDERS)
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
    wrong = adversary(net, x, radius, (0, 1), ORDERS)
    whole = _limit(_allowed(net, x)[0], (0, 1), radius, 2)
    patch(monkeypatch)
    less = _limit(change(_allowed(net, x)[0]), (0, 1), radius, 2)
    assert less < wrong <= whole, (less, wrong, whole)
