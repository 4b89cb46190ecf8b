"""Rounding in the units of a small-gain certificate, the second account: in coarse arithmetic, against an adversary."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import lipcert
from certificates import in_units_of_their_own
from coarse import COARSE, NETS, PAIRS, ROWS, adversary, chosen, some_net
from emulated import ORDERS, Beside
from flushing import flushing
from lipcert import UpperBound
from lipcert.bounds.lipschitz import graph_bound
from lipcert.bounds.result import Scope
from lipcert.bounds.smallgain import evidence_value
from lipcert.certify import rounding, weighed
from lipcert.certify.arithmetic import ARITHMETICS
from lipcert.certify.contest import _rounded
from lipcert.certify.logits import executed_logits
from lipcert.certify.radius import radii
from lipcert.certify.rounding import Account
from lipcert.errors import BoundError
from lipcert.loop import LoopMap
from lipcert.norms.result import Norm
from lipcert.scaled import ScaledMap
from weighing import (
    HEAD,
    absolute,
    accounts_of,
    any_bound,
    by_hand,
    limit,
    loop_of,
    second_limit,
    small_gain,
    with_weights,
)


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARITHMETICS, torch.float64, COARSE)


BENT = [name for name in NETS if name not in ("linear", "nearly the identity", "prelu")]  # of these it says nothing


@pytest.mark.parametrize("name", BENT)
def test_an_adversary_rounds(name: str) -> None:
    scopes: list[Scope] = ["global" if name == "pooled maxima" else "pairwise", "class"]
    for seed, scope in enumerate(scopes):
        net, x = some_net(name, seed)
        bound = small_gain(net, x, scope)
        for i, radius in enumerate((0.0, 0.3, 10.0)):
            if i == 1 and seed:
                continue  # which takes as long as the others
            pair = PAIRS[(i + seed) % 3]
            accounts = accounts_of(net, x, bound)
            least, second = limit(accounts, pair, radius), limit(accounts[1:], pair, radius)
            wrong = adversary(net, x, radius, pair, [ORDERS[(seed + i) % 5], ORDERS[(seed + i + 2) % 5]], seed + i)
            assert 0.003 * least < wrong <= least <= second, (radius, wrong / least, wrong / second)


@pytest.mark.parametrize("loose", [False, True])
@pytest.mark.parametrize("name", ["mlp", "leaky", "tanh", "residual", "pooled maxima", "ends in an activation"])
def test_whatever_the_weights_are(name: str, loose: bool) -> None:
    net, x = some_net(name, 1)
    pair = PAIRS[len(name) % 3]
    wrong = {radius: adversary(net, x, radius, pair, [ORDERS[len(name) % 5]]) for radius in (0.0, 3.0)}
    for seed in range(6):
        accounts = accounts_of(net, x, any_bound(net, x, seed, loose=loose))
        for radius, found in wrong.items():
            assert found <= limit(accounts, pair, radius) <= limit(accounts[1:], pair, radius)


@pytest.mark.parametrize("name", list(ROWS))
def test_along_a_row_of_parts_it_says_what_moving_away_adds(name: str) -> None:
    net, x = some_net(name, 0, ROWS)
    graph = lipcert.trace(net, tuple(x.shape[1:]))
    bound = graph_bound(graph, method="smallgain", scope="pairwise", guarantee="upper", parts=True, seconds=0.3)
    accounts = accounts_of(net, x, bound)
    assert bool(torch.isinf(accounts[1].sources[0][:, 0]).all())
    for i, radius in enumerate((0.0, 3.0)):
        wrong = adversary(net, x, radius, PAIRS[i], [ORDERS[i]])
        assert wrong <= limit(accounts, PAIRS[i], radius)


# --- that it leaves little room, and that a part left out is noticed -----------------------------------------------


def _of_one_term(depth: int, at: float) -> tuple[nn.Module, Tensor]:
    """The first term of each sum is all there is, and goes through all of its roundings; no slope has a half-width."""
    hidden, head = torch.full((30, 30), 2.0**-40), torch.full((2, 30), 2.0**-40)
    hidden[0, 0], head[:, 0] = 1.0, torch.tensor(HEAD)
    net = chosen([*[hidden.tolist()] * depth, head.tolist()], *(absolute() for _ in range(depth)))
    x = torch.zeros((1, 30), dtype=torch.float64)
    x[0, 0] = at
    return net, x


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
    bound = by_hand(net, x)
    wrong = adversary(net, x, radius, (0, 1), ["given"])
    assert (0.6 if depth == 10 else 0.8) < wrong / second_limit(net, x, bound, radius) <= 1
    _fewer(module, 8 if depth < 10 else 12)(monkeypatch)
    assert wrong > second_limit(net, x, bound, radius)


@pytest.mark.parametrize("power", [-300, -560])
def test_squares_of_small_losses_are_not_lost(power: int) -> None:
    net, x = _of_one_term(4, 2.0**power)
    bound = by_hand(net, x)
    wrong = adversary(net, x, 0.0, (0, 1), ["given"])
    assert 0.8 < wrong / second_limit(net, x, bound, 0.0) <= 1


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
    monkeypatch.setattr(weighed, "segment_roundings", lambda loop, k: (whole(loop, k)[0], 1))


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
    net = chosen([row.tolist(), [[1.0, -1.0 + 2.0**-7]], [[h] for h in HEAD]], nn.Identity(), absolute())
    return net, torch.zeros((1, 30), dtype=torch.float64)


def _of_both_signs() -> tuple[nn.Module, Tensor]:
    """A rotation, which is small beside what its terms are."""
    turn = torch.ones((1, 1))
    for _ in range(5):
        turn = torch.cat([torch.cat([turn, turn], 1), torch.cat([turn, -turn], 1)])
    head = torch.tensor(HEAD)[:, None].expand(2, 32).tolist()
    return chosen([turn.tolist(), head], absolute()), torch.full((1, 32), 2.0**-10, dtype=torch.float64)


def _of_branches() -> tuple[nn.Module, Tensor]:
    """Eight layers of one level, the first term of each all there is of it."""
    row = torch.full((1, 30), 2.0**-40)
    row[0, 0] = 1.0
    branches = [nn.Sequential(*chosen([row.tolist()], absolute())) for _ in range(8)]
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
    bound = by_hand(net, x) if "all layers" in part else small_gain(net, x, "global")
    wrong = adversary(net, x, radius, (0, 1), ORDERS)
    whole = second_limit(net, x, bound, radius)
    patch(monkeypatch)
    less = second_limit(net, x, bound, radius)
    assert less < wrong <= whole, (less / wrong, whole / wrong)


def test_the_last_segment_is_not_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    """|P||S||Δv| is not beside |PSΔv| there, but beside |P||SΔv|: two logits that are nearly the same."""
    weight = torch.full((2, 30), 2.0**-60, dtype=torch.float64)
    weight[:, 0], weight[1, 1] = 1.0, 0.05
    net = nn.Sequential(absolute(), *chosen([weight.tolist()])).eval()
    x = torch.zeros((1, 30), dtype=torch.float64)
    output = torch.linalg.inv(torch.linalg.cholesky(weight @ weight.T))
    bound = with_weights(net, x, "layer", [torch.ones(1, dtype=torch.float64)], output / (1 + 1e-12))
    wrong = adversary(net, x, 1.0, (0, 1), ["given"])
    assert wrong <= second_limit(net, x, bound, 1.0)
    whole = weighed.scaled_segments
    monkeypatch.setattr(
        weighed, "scaled_segments", lambda s, steps: {p: (b + 1) / 2 for p, b in whole(s, steps=steps).items()}
    )
    assert wrong > second_limit(net, x, bound, 1.0)


def test_a_norm_above_one_counts_for_each_level() -> None:
    """Weights that prove too much by 1.3 for each level, with the norm that they have: they prove what is true."""
    net, x = _of_one_term(6, 1.0)
    large = by_hand(net, x, 1.3)
    assert large.evidence is not None
    assert large.evidence.norm is not None
    assert large.evidence.norm.upper == pytest.approx(1.3)
    claim = dataclasses.replace(large.evidence, norm=Norm(1.0, 1.0, "dense"))
    wrong = adversary(net, x, 0.0, (0, 1), ["given"])
    nothing = dataclasses.replace(large.evidence, norm=Norm(math.nan, 1.0, "dense"))
    assert second_limit(net, x, dataclasses.replace(large, evidence=nothing), 1.0) == math.inf
    with pytest.raises(BoundError, match="proves nothing"):
        evidence_value(loop_of(net, x), nothing, "global")
    too_small = second_limit(net, x, dataclasses.replace(large, evidence=claim), 0.0)
    assert too_small < wrong <= second_limit(net, x, large, 0.0)
    assert second_limit(net, x, large, 0.0) == pytest.approx(second_limit(net, x, by_hand(net, x), 0.0), rel=1e-6)


# --- in float32 ----------------------------------------------------------------------------------------------------


def test_the_second_account_of_rounding_counts_where_it_takes_off_less() -> None:
    """Neurons in units of their own: LipLT and the norms of layers grow with them, and small gain does not see them."""
    net = in_units_of_their_own()
    x = torch.randn((8, 12))
    bound = small_gain(net, x[:1], "pairwise")
    logits, errors, found = executed_logits(lipcert.trace(net, (12,)), bound, [x], torch.float32)
    first = dataclasses.replace(found, accounts=found.accounts[:1])
    with_both, alone = (radii(logits, bound, errors=errors, rounding=r) for r in (found, first))
    assert bool((with_both.radius >= alone.radius).all())
    assert float(with_both.radius.sum()) > 1.1 * float(alone.radius.sum())
    assert torch.equal(with_both.real, alone.real)


@pytest.mark.parametrize("power", [0, -60, -110, -120])
def test_numbers_that_underflow(power: int) -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.LeakyReLU(0.1), nn.Linear(16, 3)).eval()
    with torch.no_grad():
        for layer, times in ((net[0], 2.0**power), (net[2], 1.0), (net[4], 2.0**-power)):
            layer.weight.mul_(times), layer.bias.mul_(2.0**power if layer is not net[4] else 1.0)
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
    bound = small_gain(net, x[:1], "global")
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
    assert len(accounts_of(net, x, bound)) == 1
