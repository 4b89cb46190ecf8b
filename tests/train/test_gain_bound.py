"""The small-gain bound inside a step: its value, its gradient, its state, and weights that went wrong."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn

import lipcert
import lipcert.train.gain as module
from lipcert.errors import BoundError, ShapeError, TrainingError
from lipcert.scaled import ScaledMap, levels
from lipcert.train import GainBound, Trainer
from runs import STATEFUL, differing, stopped, tiny

SCOPES = ["global", "class", "pairwise"]
SMALLGAIN = 'bound={method="smallgain",every=2}'


def _net(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.LeakyReLU(0.3), nn.Linear(5, 3))
    return net.to(dtype)


def _step(bound: GainBound, weights: Tensor | float = 1.0) -> Tensor:
    value = bound()
    (value * weights).sum().backward()
    return value.detach()


def _matrix(bound: GainBound, tightened: float = 0.0) -> tuple[Tensor, Tensor]:
    """y and S_z as matrices, at D·e^(tightened·level)."""
    loop = bound._loop.at(bound.graph.resolve(bound.value.dtype, bound.value.device))
    factors = [math.exp(tightened * n) for n in levels(loop)[1:-1]]
    scaled = ScaledMap(loop, [d * f for d, f in zip(bound._exponentials(), factors, strict=True)], 1.0)
    with torch.no_grad():
        matrix = scaled.apply(torch.eye(len(scaled.divisors), dtype=bound.value.dtype)).T
    classes = len(bound.vectors)
    return matrix[:classes], matrix[classes:]


def _nearness(bound: GainBound, tightened: float = 0.0) -> float:
    """To the wall, of as many leading directions as there are probes."""
    squares = torch.linalg.svdvals(_matrix(bound, tightened)[1])[: len(bound.probes)] ** 2
    return float(-(1 - squares.clamp_max(1 - 1e-12)).log().sum())


def _value(bound: GainBound, tightened: float = 0.0) -> Tensor:
    """The bound at these weights, solved for densely."""
    y, z = _matrix(bound, tightened)
    return bound._formula(y @ torch.linalg.solve(torch.eye(len(z.T), dtype=z.dtype) - z.T @ z, y.T))


def _kept(bound: GainBound, nearness: float) -> Tensor:
    """The bound where D is loosened, or tightened, until the wall is as near as that."""
    low, high = -1.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _nearness(bound, middle) < nearness else (low, middle)
    return _value(bound, low)


def _check_gradient(bound: GainBound, layers: list[nn.Linear]) -> None:
    """Of a weighted sum of the bound, by differences; with the pace 0 D must not have moved by itself."""
    bound.refresh(200)
    bound.probes.copy_(torch.linalg.svd(_matrix(bound)[1])[2][: len(bound.probes)])  # the last is never quite there
    bound.turn.zero_()
    given = {k: v.clone() for k, v in bound.state_dict().items() if k.startswith("log_weights")}
    weights = torch.randn(bound.value.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    nearness = _nearness(bound)
    _step(bound, weights)
    assert all(torch.equal(bound.get_buffer(k), v) for k, v in given.items())
    for p in (layer.weight for layer in layers):
        assert p.grad is not None
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                p[1, 2] += sign * 1e-5
                ends.append(float((_kept(bound, nearness) * weights).sum()))
                p[1, 2] -= sign * 1e-5
        assert float(p.grad[1, 2]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize(
    ("scope", "scaling"), [("global", "neuron"), ("class", "layer"), ("pairwise", "layer"), ("pairwise", "neuron")]
)
def test_the_gradient_is_that_of_the_bound_at_a_kept_distance_from_the_wall(
    scope: str, scaling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PACE", 0.0)  # D stays
    net = _net()
    _check_gradient(GainBound(net, (3,), scope=scope, scaling=scaling), [net[0], net[2], net[4]])  # type: ignore[arg-type]


class _Skip(nn.Module):
    """Levels that are not the order of the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        return cast("Tensor", self.last(h + self.second(h).relu()))


def _small(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(1)
    if name == "convolutions":
        layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2), nn.ReLU(), nn.Conv2d(6, 6, 2), nn.ReLU()]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(6, 4)), (1, 7, 7)
    sizes = [3, *[8] * 6, 3] if name == "deep" else [3, 6, 5, 3]
    dense = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*dense[:-1]), (3,)


@pytest.mark.parametrize(
    ("name", "start", "scope"),
    [
        *(("dense", 1.0, scope) for scope in SCOPES),
        *((name, start, "pairwise") for name in ("deep", "convolutions") for start in (1.0, 4.0)),
        ("convolutions", 1.0, "global"),
    ],
)
def test_the_bound_grows_with_every_layer(name: str, start: float, scope: str) -> None:
    """Log L must grow by 1 with the log of each layer's scale: with D held, of early layers it nearly did not."""
    net, shape = _small(name)
    net.double()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(start)
    bound = GainBound(net, shape, scope=scope)  # type: ignore[arg-type]
    bound.refresh(100)
    weights = [p for p in net.parameters() if p.ndim > 1]
    value = bound()
    gradients = torch.autograd.grad(value[value > 0].log().mean(), weights)
    found = [float((g * w.detach()).sum()) for g, w in zip(gradients, weights, strict=True)]
    assert sum(found) / len(found) == pytest.approx(1.0, abs=0.05)
    assert 0.7 < min(found) <= max(found) < 1.4


def test_the_gradient_where_layers_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PACE", 0.0)
    torch.manual_seed(1)
    net = _Skip().double()
    _check_gradient(GainBound(net, (3,)), [net.first, net.second, net.last])


@pytest.mark.parametrize("scope", SCOPES)
def test_it_settles_where_the_estimate_is(scope: str) -> None:
    net = _net()
    bound = GainBound(net, (3,), scope=scope, scaling="neuron")  # type: ignore[arg-type]
    value = bound.refresh(200)
    torch.testing.assert_close(value, _value(bound), rtol=1e-3, atol=1e-6)
    sharp = lipcert.lipschitz(net.eval(), (3,), method="smallgain", scope=scope, seconds=1.0).value  # type: ignore[arg-type]
    least = lipcert.lipschitz(net, (3,), scope=scope).value  # type: ignore[arg-type]
    assert float(value.max()) >= float(sharp.max()) * 0.98
    assert float(value.max()) <= float(least.max()) * 1.02
    assert float(value.max()) <= float(sharp.max()) * 1.02
    start = bound.weights
    again = lipcert.lipschitz(net, (3,), method="smallgain", scope=scope, start=start, seconds=0.0)  # type: ignore[arg-type]
    assert float(again.value.max()) <= float(value.max()) * 1.02


def test_it_follows_a_network_in_training() -> None:
    net = _net(torch.float32)
    bound = GainBound(net, (3,))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.003)
    first = float(bound.value.max())
    for _ in range(60):
        optimizer.zero_grad()
        _step(bound)
        optimizer.step()
    kept, fresh = float(bound.refresh().max()), float(GainBound(net, (3,)).refresh(50).max())
    assert kept < 0.9 * first
    assert fresh * 0.9 <= kept <= fresh * 1.1


@pytest.mark.parametrize("every", [1, 3])
def test_state_goes_on_bit_by_bit(every: int) -> None:
    net = _net(torch.float32)
    bound = GainBound(net, (3,), every=every)
    for _ in range(4):
        _step(bound)
    other_net = copy.deepcopy(net)
    other = GainBound(other_net, (3,), every=every, seed=9)
    other.load_state_dict(bound.state_dict())
    for p in (*net.parameters(), *other_net.parameters()):
        p.grad = None
    for _ in range(4):
        assert torch.equal(_step(bound), _step(other))
    assert all(torch.equal(a, b) for a, b in zip(bound.state_dict().values(), other.state_dict().values(), strict=True))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(net.parameters(), other_net.parameters(), strict=True)
               if a.grad is not None)  # fmt: skip


def test_a_cotangent_of_zeros_touches_nothing() -> None:
    net = _net()
    bound = GainBound(net, (3,))
    _step(bound, 0.0)
    assert all(p.grad is None or not p.grad.any() for p in net.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_weights_that_are_not_finite(wrong: float, dtype: torch.dtype) -> None:
    """The value and the gradients say so, as those of the other bound do; what the network was is not forgotten."""
    net = _net(dtype)
    bound, good = GainBound(net, (3,)), copy.deepcopy(net.state_dict())
    before = bound.refresh(5)
    state = {k: v.clone() for k, v in bound.state_dict().items() if k.startswith("log_weights")}
    with torch.no_grad():
        net[2].weight.fill_(wrong)
    _step(bound)
    assert bool(bound.value.isnan().all())
    assert any(p.grad is not None and bool(p.grad.isnan().any()) for p in net.parameters())
    assert all(torch.equal(bound.get_buffer(k), v) for k, v in state.items())
    net.load_state_dict(good)
    torch.testing.assert_close(bound.refresh(30), before, rtol=0.05, atol=1e-6)


@pytest.mark.parametrize("factor", [0.1, 1.5, 10.0])
def test_weights_that_jump(factor: float) -> None:
    """V of other weights makes N far too small, or infinite: it is noticed, and solved for anew."""
    net = _net()
    bound = GainBound(net, (3,))
    with torch.no_grad():
        for layer in (0, 2, 4):
            net[layer].weight.mul_(factor)
    jumped = bound.refresh(1)
    settled = GainBound(net, (3,)).refresh(200)
    assert float(jumped.max()) >= 0.9 * float(settled.max())
    if factor > 0.5:  # else D is far from where it should be, which makes N large, and takes more passes to mend
        assert float(jumped.max()) <= 3 * float(settled.max())


def test_a_steep_direction_that_the_probes_do_not_know_is_seen_in_time() -> None:
    """Some passes later D has given way to it, and to it alone; what is handed out was not above what it had to be."""
    net = _net()
    bound = GainBound(net, (3,), scaling="neuron")
    bound.refresh(50)
    before = [v.clone() for v in bound._logs()]
    resolved = bound.graph.resolve(bound.value.dtype, bound.value.device)
    scaled = bound._scaled(resolved)
    with torch.no_grad():
        matrix = scaled.apply(torch.eye(len(scaled.divisors), dtype=torch.float64)).T[3:]
        size = torch.linalg.matrix_norm(matrix, 2)
        vectors = torch.linalg.svd(matrix)[2]
        bound.probes.copy_(vectors[-len(bound.probes) :])  # those that know least
        bound.probe_memory.zero_()
        for layer in (0, 2, 4):
            net[layer].weight.mul_(float(0.995 / size))
        for _ in range(8):
            bound._glance(bound.graph.resolve(bound.value.dtype, bound.value.device))
        scaled = bound._scaled(bound.graph.resolve(bound.value.dtype, bound.value.device))
        matrix = scaled.apply(torch.eye(len(scaled.divisors), dtype=torch.float64)).T[3:]
        assert float(torch.linalg.matrix_norm(matrix, 2)) ** 2 < 0.97
        assert any(not torch.equal(a, b) for a, b in zip(before, bound._logs(), strict=True))


@pytest.mark.parametrize("factor", [0.01, 0.7])
@pytest.mark.parametrize("scope", SCOPES)
def test_weights_that_shrink(scope: str, factor: float) -> None:
    """‖S_z‖ is small then, V is right, and D is useless: it is searched for anew if it does not get there by itself."""
    net = _net()
    bound = GainBound(net, (3,), scope=scope)  # type: ignore[arg-type]
    bound.refresh(30)
    with torch.no_grad():
        for layer in (0, 2, 4):
            net[layer].weight.mul_(factor)
    settled = float(GainBound(net, (3,), scope=scope).refresh(60).max())  # type: ignore[arg-type]
    _step(bound)  # not as far off any more that V would say so
    for _ in range(9):
        _step(bound)
    assert float(bound.value.max()) <= 1.25 * settled
    with torch.no_grad():
        for layer in (0, 2, 4):
            net[layer].weight.mul_(factor)
    settled = float(GainBound(net, (3,), scope=scope).refresh(60).max())  # type: ignore[arg-type]
    _step(bound)
    assert float(bound.refresh().max()) <= 1.25 * settled


@pytest.mark.parametrize("scope", SCOPES)
def test_weights_that_grow_beyond_measure(scope: str) -> None:
    """What is not finite is solved for anew; it is not handed to an eigenvalue routine."""
    net = _net(torch.float32)
    bound = GainBound(net, (3,), scope=scope)  # type: ignore[arg-type]
    with torch.no_grad():
        net[2].weight.mul_(1e7)
    for _ in range(3):
        _step(bound)
    settled = float(GainBound(net, (3,), scope=scope).refresh(30).max())  # type: ignore[arg-type]
    assert 0.9 * settled <= float(bound.value.max()) <= 3 * settled
    with torch.no_grad():
        net[2].weight.mul_(1e14)
    with pytest.raises(BoundError, match="too large"):
        GainBound(net, (3,), scope=scope)  # type: ignore[arg-type]


@pytest.mark.parametrize("layer", [0, 2, 4])
def test_a_layer_that_dies(layer: int) -> None:
    net = _net()
    bound = GainBound(net, (3,))
    with torch.no_grad():
        net[layer].weight.zero_()
    bound.refresh(30)
    _step(bound)
    assert bool(torch.isfinite(bound.value).all())
    assert float(bound.value.max()) < 1e-3
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in net.parameters())


@pytest.mark.parametrize(
    ("net", "options", "kind", "said"),
    [
        (nn.Linear(3, 2), {}, BoundError, "no activations"),
        (_net(), {"scope": "each"}, BoundError, "scope must be"),
        (_net(), {"scaling": "auto"}, BoundError, "scaling must be"),
        (_net(), {"every": 0}, BoundError, "at least 1"),
        (_net(), {"iterations": 0}, BoundError, "at least 1"),
        (_net(), {"iterations": 1.5}, BoundError, "whole number"),
        (_net(torch.float16), {}, BoundError, "float32 or float64"),
        (_net(torch.bfloat16), {}, BoundError, "float32 or float64"),
    ],
)
def test_refusals(net: nn.Module, options: dict[str, object], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        GainBound(net, (3,), **options)  # type: ignore[arg-type]


def test_images_are_refused() -> None:
    net = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.ReLU())
    with pytest.raises(ShapeError, match="logits"):
        GainBound(net, (1, 4, 4))


# --- runs -------------------------------------------------------------------------------------------------------------
def test_a_resumed_run_is_the_undisturbed_one(tmp_path: Path) -> None:
    config = tiny(*[s for s in STATEFUL if not s.startswith("bound")], SMALLGAIN)
    Trainer(config, tmp_path / "whole").fit()
    stopped(config, tmp_path / "part", 7)
    Trainer(config, tmp_path / "part").fit(resume=True)
    assert differing(tmp_path / "whole", tmp_path / "part") == []


def test_a_run_that_blows_up_says_what_to_change(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"optimizer\.lr"):
        Trainer(tiny(SMALLGAIN, "optimizer.lr=1e30"), tmp_path / "run").fit()


def test_it_changes_its_dtype_with_the_module() -> None:
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 3))
    bound = GainBound(net, (3,))
    before = bound.refresh()
    net.double()
    bound.double()
    torch.testing.assert_close(bound.refresh(20), before.double(), rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("rate", [0.01, 0.1])
def test_it_follows_weights_that_move_fast(rate: float) -> None:
    """Where ‖S_z‖ ≥ 1, N means nothing and what is made up for along the probes blows up: it must not be handed out."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(),
                        nn.Linear(16, 4))  # fmt: skip
    x, y = torch.randn(64, 8), torch.randint(4, (64,))
    bound, optimizer = GainBound(net, (8,)), torch.optim.Adam(net.parameters(), lr=rate)
    for step in range(16):
        optimizer.zero_grad()
        (nn.functional.cross_entropy(net(x), y) + 1e-9 * bound().sum()).backward()
        if step % 5 == 0:
            fresh = float(GainBound(net, (8,)).refresh(10).max())
            assert 0.9 * fresh < float(bound.value.max()) < 3 * fresh
        optimizer.step()
