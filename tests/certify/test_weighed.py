"""Rounding in the units of a small-gain certificate, the second account: in coarse arithmetic, against an adversary."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lipcert
from catalogue import Fn
from certificates import in_units_of_their_own
from coarse import COARSE, NETS, PAIRS, ROWS, UNIT, adversary, chosen, lively, some_net
from emulated import ORDERS, Beside, Machine, Residual, run
from flushing import flushing
from lipcert import UpperBound
from lipcert.bounds.evidence import KINDS, Evidence, Kind, Scaling
from lipcert.bounds.lines import Sides
from lipcert.bounds.lipschitz import graph_bound
from lipcert.bounds.result import Scope
from lipcert.bounds.smallgain import evidence_value
from lipcert.certify import rounding, weighed
from lipcert.certify.arithmetic import ARITHMETICS
from lipcert.certify.contest import _rounded
from lipcert.certify.logits import executed_logits
from lipcert.certify.network import contested
from lipcert.certify.radius import radii
from lipcert.certify.resting import CAUTION, Resting
from lipcert.certify.rounding import Account, Rounding
from lipcert.errors import BoundError
from lipcert.graph import Graph
from lipcert.loop import LoopMap
from lipcert.norms.result import Norm
from lipcert.scaled import ScaledMap, levels, weight_shapes


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


@functools.lru_cache(maxsize=1)
def _graph(net: nn.Module, shape: tuple[int, ...]) -> Graph:
    return lipcert.trace(net, shape)


def _loop(net: nn.Module, x: Tensor) -> LoopMap:
    graph = _graph(net, tuple(x.shape[1:]))
    return LoopMap(graph, graph.resolve(torch.float64))


def _with(net: nn.Module, x: Tensor, kind: Kind, weights: Sequence[Tensor], output: Tensor | float) -> UpperBound:
    """LipLT's bound, with these weights and the norm that they have as evidence."""
    loop = _loop(net, x)
    scaled = ScaledMap(loop, weights, output)
    matrix = scaled.apply(torch.eye(scaled.source_shape(0)[0], dtype=torch.float64))
    norm = float(torch.linalg.matrix_norm(matrix.detach(), 2)) * (1 + 1e-9)
    scope = "pairwise" if isinstance(output, Tensor) else "global"
    base = graph_bound(loop.graph, method="liplt", scope=scope, guarantee="upper")
    evidence = Evidence(Scaling(kind, tuple(weights)), output, Norm(norm, norm, "dense"))
    return dataclasses.replace(base, method="smallgain", evidence=evidence)


def _any_bound(net: nn.Module, x: Tensor, seed: int, *, loose: bool) -> UpperBound:
    """With random weights: of norm 1, or ``loose``, of the norm that they happen to have."""
    loop, generator = _loop(net, x), torch.Generator().manual_seed(seed)
    kind, output = KINDS[seed % 3], 0.3
    weights = [
        (0.5 * torch.randn(s, generator=generator, dtype=torch.float64)).exp() for s in weight_shapes(loop, kind)
    ]
    found = _with(net, x, kind, weights, output)
    assert found.evidence is not None
    assert found.evidence.norm is not None
    if loose:
        return found
    t = 0.999 / max(1.0, found.evidence.norm.upper)
    found = _with(net, x, kind, found.evidence.map(loop).loosened(t).weights, output * t ** levels(loop)[-1])
    assert found.evidence is not None
    assert found.evidence.norm is not None
    assert found.evidence.norm.upper <= 1
    return found


def _accounts(net: nn.Module, x: Tensor, bound: UpperBound) -> tuple[Account, ...]:
    _, _, found = executed_logits(_graph(net, tuple(x.shape[1:])), bound, [x], torch.float64)
    return found.accounts


def _limit(accounts: tuple[Account, ...], pair: tuple[int, int], radius: float) -> float:
    """``E_ab`` of the only sample, of the least coefficients of these accounts."""
    still, growing = _rounded(accounts, torch.tensor([pair[0]]), accounts[0].final.shape[1])
    return float(still[0, pair[1]] + growing[0, pair[1]] * radius)


def _second(net: nn.Module, x: Tensor, bound: UpperBound, radius: float, pair: tuple[int, int] = (0, 1)) -> float:
    return _limit(_accounts(net, x, bound)[1:], pair, radius)


BENT = [name for name in NETS if name not in ("linear", "nearly the identity", "prelu")]  # of these it says nothing


@pytest.mark.parametrize("name", BENT)
def test_an_adversary_rounds(name: str) -> None:
    scopes: list[Scope] = ["global" if name == "pooled maxima" else "pairwise", "class"]
    for seed, scope in enumerate(scopes):
        net, x = some_net(name, seed)
        bound = _bound(net, x, scope)
        for i, radius in enumerate((0.0, 0.3, 10.0)):
            if i == 1 and seed:
                continue  # which takes as long as the others
            pair = PAIRS[(i + seed) % 3]
            accounts = _accounts(net, x, bound)
            least, second = _limit(accounts, pair, radius), _limit(accounts[1:], pair, radius)
            wrong = adversary(net, x, radius, pair, [ORDERS[(seed + i) % 5], ORDERS[(seed + i + 2) % 5]], seed + i)
            assert 0.003 * least < wrong <= least <= second, (radius, wrong / least, wrong / second)


@pytest.mark.parametrize("loose", [False, True])
@pytest.mark.parametrize("name", ["mlp", "leaky", "tanh", "residual", "pooled maxima", "ends in an activation"])
def test_whatever_the_weights_are(name: str, loose: bool) -> None:
    net, x = some_net(name, 1)
    pair = PAIRS[len(name) % 3]
    wrong = {radius: adversary(net, x, radius, pair, [ORDERS[len(name) % 5]]) for radius in (0.0, 3.0)}
    for seed in range(6):
        accounts = _accounts(net, x, _any_bound(net, x, seed, loose=loose))
        for radius, found in wrong.items():
            assert found <= _limit(accounts, pair, radius) <= _limit(accounts[1:], pair, radius)


@pytest.mark.parametrize("name", list(ROWS))
def test_along_a_row_of_parts_it_says_what_moving_away_adds(name: str) -> None:
    net, x = some_net(name, 0, ROWS)
    graph = lipcert.trace(net, tuple(x.shape[1:]))
    bound = graph_bound(graph, method="smallgain", scope="pairwise", guarantee="upper", parts=True, seconds=0.3)
    accounts = _accounts(net, x, bound)
    assert bool(torch.isinf(accounts[1].sources[0][:, 0]).all())
    for i, radius in enumerate((0.0, 3.0)):
        wrong = adversary(net, x, radius, PAIRS[i], [ORDERS[i]])
        assert wrong <= _limit(accounts, PAIRS[i], radius)


# --- what rests where an activation is flat --------------------------------------------------------------------------


def _found(net: nn.Module, x: Tensor, bound: UpperBound, *, each: bool = False) -> tuple[Rounding, float]:
    """All that is said of the only sample, and R up to which its last account holds."""
    _, _, found = executed_logits(_graph(net, tuple(x.shape[1:])), bound, [x], torch.float64, each=each)
    return found, 0.0 if found.within is None else float(found.within)


def _near(found: Rounding, pair: tuple[int, int], radius: float) -> float:
    assert found.near is not None
    return _limit((found.near,), pair, radius)


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
        for bound in (_bound(net, x, "pairwise"), _any_bound(net, x, seed, loose=False)):
            found, within = _found(net, x, bound)
            pair = PAIRS[seed]
            least, second = _near(found, pair, within), _limit(found.accounts[1:], pair, within)
            wrong = adversary(net, x, within, pair, [ORDERS[(seed + len(name)) % 5]], seed)
            assert wrong <= least <= second, (wrong / least, wrong / second)
            assert wrong <= _limit((*found.accounts, found.near), pair, within)  # type: ignore[arg-type]
            less.append(_near(found, pair, 0.0) / _limit(found.accounts[1:], pair, 0.0))
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
    bound = _by_hand(net, x)
    found, within = _found(net, x, bound)
    assert radius <= within <= radius * (1 + 2.0**-20)
    wrong = _all_upwards(net, x + (radius if at == radius / 2 else 0.0))
    assert UNIT / 2 < wrong <= _near(found, (0, 1), radius)
    assert _near(found, (0, 1), radius) == _limit(found.accounts[1:], (0, 1), radius)
    whole = Resting.rest
    monkeypatch.setattr(Resting, "rest", lambda self, reach: whole(self, share * reach))
    assert wrong > 2 * _near(_found(net, x, bound)[0], (0, 1), radius)


@pytest.mark.parametrize("at", [2.0**-5, 32 * UNIT])
def test_what_cannot_become_active_rests(at: float) -> None:
    net, x = _nearly_active(2.0**-6 if at == 2.0**-5 else 2.0**-20, at)
    found, _ = _found(net, x, _by_hand(net, x))
    assert _near(found, (0, 1), 0.0) < 0.1 * _limit(found.accounts[1:], (0, 1), 0.0)


def test_only_where_an_activation_is_flat() -> None:
    for act, rests in ((nn.ReLU(), True), (nn.LeakyReLU(0.1), False), (nn.Tanh(), False), (_absolute(), False)):
        torch.manual_seed(0)
        net = lively(nn.Linear(3, 4), act, nn.Linear(4, 3))
        x = torch.randn((1, 3), dtype=torch.float64)
        assert (_found(net, x, _any_bound(net, x, 1, loose=False))[0].near is not None) == rests
    flipped = lively(nn.Linear(3, 4), Fn(lambda s, x: -torch.relu(-x)), nn.Linear(4, 3))
    with torch.no_grad():
        flipped[0].weight.mul_(2.0**-10)
        flipped[0].bias.copy_(torch.tensor([50.0, -5.0, 50.0, -5.0]))
    found, _ = _found(flipped, x, _bound(flipped, x, "pairwise"))
    active = _near(found, (0, 1), 0.0)
    assert 0 < active < _limit(found.accounts[1:], (0, 1), 0.0)


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


# --- that it leaves little room, and that a part left out is noticed -----------------------------------------------


HEAD = [1.0, -1.0]


def _absolute() -> nn.Module:
    return Fn(lambda s, x: x.abs())


def _of_one_term(depth: int, at: float) -> tuple[nn.Module, Tensor]:
    """The first term of each sum is all there is, and goes through all of its roundings; no slope has a half-width."""
    hidden, head = torch.full((30, 30), 2.0**-40), torch.full((2, 30), 2.0**-40)
    hidden[0, 0], head[:, 0] = 1.0, torch.tensor(HEAD)
    net = chosen([*[hidden.tolist()] * depth, head.tolist()], *(_absolute() for _ in range(depth)))
    x = torch.zeros((1, 30), dtype=torch.float64)
    x[0, 0] = at
    return net, x


def _by_hand(net: nn.Module, x: Tensor, times: float = 1.0) -> UpperBound:
    """D = 1, as each layer has the norm 1, or ``times`` as much for each level."""
    loop = _loop(net, x)
    weights = [torch.full((1,), times**k, dtype=torch.float64) for k in range(1, loop.depth + 1)]
    return _with(net, x, "layer", weights, times ** (loop.depth + 1) / math.sqrt(2))


def _fewer(module: object, by: int) -> Callable[[pytest.MonkeyPatch], None]:
    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        whole = module.gamma  # type: ignore[attr-defined]
        monkeypatch.setattr(module, "gamma", lambda n, unit: whole(n - by, unit))

    return patch


@pytest.mark.parametrize(("at", "radius", "module"), [(1.0, 0.0, rounding), (2.0**-10, 10.0, weighed)])
@pytest.mark.parametrize("depth", [1, 2, 4, 10])
def test_it_leaves_little_room(
    depth: int, at: float, radius: float, module: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where what is lost at the sample is all that counts, and where what moving away adds is."""
    net, x = _of_one_term(depth, at)
    bound = _by_hand(net, x)
    wrong = adversary(net, x, radius, (0, 1), ["given"])
    assert (0.6 if depth == 10 else 0.8) < wrong / _second(net, x, bound, radius) <= 1
    _fewer(module, 8 if depth < 10 else 12)(monkeypatch)
    assert wrong > _second(net, x, bound, radius)


@pytest.mark.parametrize("power", [-300, -560])
def test_squares_of_small_losses_are_not_lost(power: int) -> None:
    net, x = _of_one_term(4, 2.0**power)
    bound = _by_hand(net, x)
    wrong = adversary(net, x, 0.0, (0, 1), ["given"])
    assert 0.8 < wrong / _second(net, x, bound, 0.0) <= 1


def _last_layer_only(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = weighed.Weighed.account

    def forgetful(self: weighed.Weighed, errors: rounding.Errors, *rest: object) -> Account:
        errors.weighed = {k: v * (k == max(errors.weighed)) for k, v in errors.weighed.items()}
        return whole(self, errors, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(weighed.Weighed, "account", forgetful)


def _last_layer_grows_only(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = weighed.Weighed.__init__

    def forgetful(self: weighed.Weighed, *args: object) -> None:
        whole(self, *args)  # type: ignore[arg-type]
        self.gammas = {k: g * (k == max(self.gammas)) for k, g in self.gammas.items()}

    monkeypatch.setattr(weighed.Weighed, "__init__", forgetful)


def _no_errors_carried(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has been lost before is no part of how far a value may be."""
    monkeypatch.setattr(weighed.Weighed, "_power", lambda self, k, level: float(level == 0 or k > self.loop.depth))


def _all_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = weighed.segment_roundings
    monkeypatch.setattr(weighed, "segment_roundings", lambda loop, k: [sum(whole(loop, k))])


def _sums_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if in a sum positive and negative terms grew by no more than their difference."""
    monkeypatch.setattr(weighed, "scaled_segments", lambda s, steps: dict.fromkeys(_scaled_pairs(s), 1 + 2.0**-30))


def _scaled_pairs(scaled: ScaledMap) -> list[tuple[int, int]]:
    return LoopMap(scaled.graph, scaled.resolved, centred=False).pairs()


def _exact_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weighed, "count", lambda loop, node: 0)


def _no_centre(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = LoopMap.ratios
    monkeypatch.setattr(LoopMap, "ratios", lambda self, j: (0.0, whole(self, j)[1]))


def _least(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if of two layers of a level only one lost something."""
    monkeypatch.setattr(torch, "hypot", torch.maximum)


def _of_two_sums() -> tuple[nn.Module, Tensor]:
    """What goes through the first layer twice is gone behind the second, but not what is lost there."""
    row = torch.full((2, 30), 2.0**-40)
    row[:, 0] = 1.0
    net = chosen([row.tolist(), [[1.0, -1.0 + 2.0**-7]], [[h] for h in HEAD]], nn.Identity(), _absolute())
    return net, torch.zeros((1, 30), dtype=torch.float64)


def _of_both_signs() -> tuple[nn.Module, Tensor]:
    """A rotation, which is small beside what its terms are."""
    turn = torch.ones((1, 1))
    for _ in range(5):
        turn = torch.cat([torch.cat([turn, turn], 1), torch.cat([turn, -turn], 1)])
    head = torch.tensor(HEAD)[:, None].expand(2, 32).tolist()
    return chosen([turn.tolist(), head], _absolute()), torch.full((1, 32), 2.0**-10, dtype=torch.float64)


def _of_branches() -> tuple[nn.Module, Tensor]:
    """Eight layers of one level, the first term of each all there is of it."""
    row = torch.full((1, 30), 2.0**-40)
    row[0, 0] = 1.0
    branches = [nn.Sequential(*chosen([row.tolist()], _absolute())) for _ in range(8)]
    head = torch.tensor(HEAD)[:, None].expand(2, 8).tolist()
    x = torch.zeros((1, 30), dtype=torch.float64)
    x[0, 0] = 1.0
    return nn.Sequential(Beside(*branches), *chosen([head])).double().eval(), x


def _of_tanh() -> tuple[nn.Module, Tensor]:
    layers = [[[1.0]]] * 3
    return chosen([*layers, [[h] for h in HEAD]], *(nn.Tanh() for _ in layers)), torch.zeros((1, 1)).double()


def _of_relu() -> tuple[nn.Module, Tensor]:
    row = [1.0, *[2.0**-14] * 30, -1.0]
    x = torch.full((1, 32), 2.0**-14, dtype=torch.float64)
    x[0, 0] = x[0, -1] = 1.0
    return chosen([[row], [[1.0]], [[h] for h in HEAD]], nn.ReLU(), nn.ReLU()), x


LEFT_OUT: dict[str, tuple[Callable[[], tuple[nn.Module, Tensor]], float, Callable]] = {
    "losses of all layers": (lambda: _of_one_term(4, 1.0), 0.0, _last_layer_only),
    "growth in all layers": (lambda: _of_one_term(4, 2.0**-10), 10.0, _last_layer_grows_only),
    "sums of two layers": (_of_two_sums, 10.0, _all_halved),
    "terms of both signs": (_of_both_signs, 10.0, _sums_alone),
    "layers of one level": (_of_branches, 0.0, _least),
    "what activations lose": (_of_tanh, 1e-3, _exact_activations),
    "the centre of a slope": (_of_relu, 0.0, _no_centre),
}


@pytest.mark.parametrize("part", list(LEFT_OUT))
def test_the_adversary_finds_what_is_left_out(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, radius, patch = LEFT_OUT[part]
    net, x = build()
    bound = _by_hand(net, x) if "all layers" in part else _bound(net, x, "global")
    wrong = adversary(net, x, radius, (0, 1), ORDERS)
    whole = _second(net, x, bound, radius)
    patch(monkeypatch)
    less = _second(net, x, bound, radius)
    assert less < wrong <= whole, (less / wrong, whole / wrong)


def test_the_last_segment_is_not_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    """|P||S||Δv| is not beside |PSΔv| there, but beside |P||SΔv|: two logits that are nearly the same."""
    weight = torch.full((2, 30), 2.0**-60, dtype=torch.float64)
    weight[:, 0], weight[1, 1] = 1.0, 0.05
    net = nn.Sequential(_absolute(), *chosen([weight.tolist()])).eval()
    x = torch.zeros((1, 30), dtype=torch.float64)
    output = torch.linalg.inv(torch.linalg.cholesky(weight @ weight.T))
    bound = _with(net, x, "layer", [torch.ones(1, dtype=torch.float64)], output / (1 + 1e-12))
    wrong = adversary(net, x, 1.0, (0, 1), ["given"])
    assert wrong <= _second(net, x, bound, 1.0)
    whole = weighed.scaled_segments
    monkeypatch.setattr(
        weighed, "scaled_segments", lambda s, steps: {p: (b + 1) / 2 for p, b in whole(s, steps=steps).items()}
    )
    assert wrong > _second(net, x, bound, 1.0)


def test_a_norm_above_one_counts_for_each_level() -> None:
    """Weights that prove too much by 1.3 for each level, with the norm that they have: they prove what is true."""
    net, x = _of_one_term(6, 1.0)
    large = _by_hand(net, x, 1.3)
    assert large.evidence is not None
    assert large.evidence.norm is not None
    assert large.evidence.norm.upper == pytest.approx(1.3)
    claim = dataclasses.replace(large.evidence, norm=Norm(1.0, 1.0, "dense"))
    wrong = adversary(net, x, 0.0, (0, 1), ["given"])
    nothing = dataclasses.replace(large.evidence, norm=Norm(math.nan, 1.0, "dense"))
    assert _second(net, x, dataclasses.replace(large, evidence=nothing), 1.0) == math.inf
    with pytest.raises(BoundError, match="proves nothing"):
        evidence_value(_loop(net, x), nothing, "global")
    assert _second(net, x, dataclasses.replace(large, evidence=claim), 0.0) < wrong <= _second(net, x, large, 0.0)
    assert _second(net, x, large, 0.0) == pytest.approx(_second(net, x, _by_hand(net, x), 0.0), rel=1e-6)


# --- in float32 ----------------------------------------------------------------------------------------------------


def test_the_second_account_of_rounding_counts_where_it_takes_off_less() -> None:
    """Neurons in units of their own: LipLT and the norms of layers grow with them, and small gain does not see them."""
    net = in_units_of_their_own()
    x = torch.randn((8, 12))
    bound = _bound(net, x[:1], "pairwise")
    logits, errors, found = executed_logits(lipcert.trace(net, (12,)), bound, [x], torch.float32)
    first = dataclasses.replace(found, accounts=found.accounts[:1])
    with_both, alone = (radii(logits, bound, errors=errors, rounding=r) for r in (found, first))
    assert bool((with_both.radius >= alone.radius).all())
    assert float(with_both.radius.sum()) > 1.1 * float(alone.radius.sum())
    assert torch.equal(with_both.real, alone.real)


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
    bound = _bound(net, x[:1], "pairwise")
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


@pytest.mark.parametrize("power", [0, -60, -110, -120])
def test_numbers_that_underflow(power: int) -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.LeakyReLU(0.1), nn.Linear(16, 3)).eval()
    with torch.no_grad():
        for layer, times in ((net[0], 2.0**power), (net[2], 1.0), (net[4], 2.0**-power)):
            layer.weight.mul_(times), layer.bias.mul_(2.0**power if layer is not net[4] else 1.0)
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
    bound = _bound(net, x[:1], "global")
    _, _, found = executed_logits(lipcert.trace(net, (6,)), bound, [x], torch.float32)
    still, growing = _rounded(found.accounts[1:], torch.zeros(16, dtype=torch.int64), 3)
    for radius, flush in itertools.product((0.0, 1.0), (False, True)):
        away = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        point = x + radius * away / away.norm(dim=1, keepdim=True)
        with flushing(flush), torch.no_grad():
            executed = net(point).double()
        wrong = executed - copy.deepcopy(net).double()(point.double())
        distance = (point.double() - x.double()).norm(dim=1)
        share = (wrong[:, :1] - wrong).abs()[:, 1:] / (still + growing * distance[:, None])[:, 1:]
        assert float(share.detach().max()) <= 1


def test_a_bound_by_liplt_has_no_second_account() -> None:
    net, x = some_net("mlp")
    bound = lipcert.lipschitz(net, (6,), scope="pairwise", guarantee="upper")
    assert isinstance(bound, UpperBound)
    assert len(_accounts(net, x, bound)) == 1
