"""Layers with a bound of their own: the bound holds, is reached, has the right gradient, and survives what users do."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lipcert
from lipcert.errors import BoundError, ConfigError, ModuleStateError, ShapeError
from lipcert.layers import (
    LipschitzConv2d,
    LipschitzLinear,
    Normalised,
    PairwiseLinear,
    Pool,
    ResidualConv2d,
    ResidualLinear,
    SmallGainConv2d,
    SmallGainLinear,
    fold,
)
from lipcert.loop import LoopMap
from lipcert.scaled import ScaledMap
from lipcert.train import GainBound, TrainingBound

# name: (layer of κ, shape of one input)
LAYERS: dict[str, tuple[Callable[[float], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda k: LipschitzLinear(6, 4, lipschitz=k), (6,)),
    "linear, wide": (lambda k: LipschitzLinear(3, 7, bias=False, lipschitz=k), (3,)),
    "conv": (lambda k: LipschitzConv2d((2, 6, 6), 3, 3, lipschitz=k), (2, 6, 6)),
    "conv, strided": (lambda k: LipschitzConv2d((2, 6, 6), 5, 4, stride=2, padding=1, lipschitz=k), (2, 6, 6)),
    "residual": (lambda k: ResidualLinear(6, lipschitz=k), (6,)),
    "residual, narrow": (lambda k: ResidualLinear(6, 3, activation="tanh", lipschitz=k), (6,)),
    "residual, learned": (lambda k: ResidualLinear(6, 9, out_features=4, shortcut="learned", lipschitz=k), (6,)),
    "residual, maxmin": (lambda k: ResidualLinear(6, activation="maxmin", lipschitz=k), (6,)),
    "residual, half-abs": (lambda k: ResidualLinear(6, activation="half-abs", lipschitz=k), (6,)),
    "residual conv": (lambda k: ResidualConv2d((2, 6, 6), lipschitz=k), (2, 6, 6)),
    "residual conv, gelu": (lambda k: ResidualConv2d((2, 6, 6), hidden=3, activation="gelu", lipschitz=k), (2, 6, 6)),
    "residual conv, strided": (lambda k: ResidualConv2d((2, 6, 6), 4, stride=2, lipschitz=k), (2, 6, 6)),
    "residual conv, pool": (lambda k: ResidualConv2d((2, 6, 6), 4, stride=2, shortcut="pool", lipschitz=k), (2, 6, 6)),
    "small gain": (lambda k: SmallGainLinear(6, 8, lipschitz=k), (6,)),
    "small gain, leaky": (lambda k: SmallGainLinear(6, 4, activation="leaky-relu", lipschitz=k), (6,)),
    "small gain conv": (lambda k: SmallGainConv2d((2, 5, 5), 3, lipschitz=k), (2, 5, 5)),
}
SMALL_GAIN = [name for name in LAYERS if name.startswith("small gain")]
NORMALISED = [name for name in LAYERS if name not in SMALL_GAIN]


def _layer(name: str, kappa: float = 1.0, *, size: float = 1.0, seed: int = 0) -> tuple[nn.Module, tuple[int, ...]]:
    """A layer with random weights of that size."""
    torch.manual_seed(seed)
    make, shape = LAYERS[name]
    layer = make(kappa)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(size * torch.randn(p.shape))
    return layer, shape


def _steepest(layer: nn.Module, shape: tuple[int, ...]) -> float:
    """The largest Jacobian norm at some points, in float64."""
    layer = copy.deepcopy(layer).double()
    largest = 0.0
    for scale in (0.1, 1.0, 10.0):
        for x in scale * torch.randn(8, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64):
            jacobian = torch.autograd.functional.jacobian(lambda v: layer(v[None])[0].flatten(), x)
            largest = max(largest, float(torch.linalg.matrix_norm(jacobian.reshape(len(jacobian), -1), 2)))
    return largest


@pytest.mark.parametrize(("name", "kappa"), list(zip(NORMALISED, itertools.cycle([0.5, 3.0]), strict=False)))
def test_liplt_of_the_layer_is_its_constant(name: str, kappa: float) -> None:
    layer, shape = _layer(name, kappa)
    layer.eval()
    bound = lipcert.lipschitz(layer, shape, guarantee="upper", slack=1e-4)
    assert 0.99 * kappa <= float(bound) <= kappa * (1 + 1e-4)
    assert _steepest(layer, shape) <= kappa
    proved = lipcert.lipschitz(fold(layer), shape, guarantee="upper", slack=1e-5)
    assert float(proved) <= kappa


@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("name", SMALL_GAIN)
def test_small_gain_of_the_layer_is_its_constant(name: str, size: float) -> None:
    layer, shape = _layer(name, 2.0, size=size)
    layer.eval()
    bound = lipcert.lipschitz(layer, shape, method="smallgain", guarantee="upper")
    assert float(bound) <= 2.0 * 1.01
    assert _steepest(layer, shape) <= 2.0 * (1 + 1e-9)


def test_the_sdp_based_layer_is_a_special_case() -> None:
    """With ReLU and κ = 1 it is x − 2·Wᵀ·T⁻¹·relu(Wx + b) as published, and D = T^{-1/2} proves ‖S‖ ≤ 1."""
    layer, _ = _layer("small gain")
    assert isinstance(layer, SmallGainLinear)
    layer = layer.double().eval()
    w, q, b = layer.weight.detach(), layer.log_q.detach().exp(), layer.bias.detach()
    t = torch.stack([sum(abs(w[i] @ w[j]) * q[j] / q[i] for j in range(8)) for i in range(8)])
    x = torch.randn(5, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x), x - 2 * (torch.relu(x @ w.T + b) / t) @ w)
    with torch.no_grad():
        scaled = ScaledMap(LoopMap(lipcert.trace(layer, (6,))), [t.rsqrt()], 1.0)
        matrix = scaled.apply(torch.eye(14, dtype=torch.float64))
    assert float(torch.linalg.matrix_norm(matrix, 2)) <= 1 + 1e-9


@pytest.mark.parametrize("name", NORMALISED)
def test_the_gradient_is_that_of_the_quotient(name: str) -> None:
    """By finite differences, each end with its own norm by SVD."""
    layer, shape = _layer(name, size=0.5)
    layer = layer.double()
    assert isinstance(layer, Normalised)
    steps = 3000 if "conv" in name else 300  # of power iteration, after which little is left to be found
    layer.advance(steps)
    x = torch.randn(3, *shape, dtype=torch.float64)
    weights = torch.randn(layer(x).shape, dtype=torch.float64)
    parameter = layer.inner.weight
    layer.zero_grad()
    (layer(x) * weights).sum().backward()
    assert parameter.grad is not None
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            parameter.view(-1)[0] += sign * 1e-5
            layer.advance(30)  # the vectors have hardly moved, and what is left of that counts squared
            ends.append(float((layer(x) * weights).sum()))
            parameter.view(-1)[0] -= sign * 1e-5
    assert float(parameter.grad.view(-1)[0]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", LAYERS)
def test_folding_changes_nothing_else(name: str) -> None:
    layer, shape = _layer(name, 1.5)
    layer.eval()
    x = torch.randn(4, *shape)
    network = nn.Sequential(layer, nn.Flatten(), PairwiseLinear(layer(x)[0].numel(), 3)).eval()
    folded = fold(network)
    torch.testing.assert_close(folded(x), network(x), rtol=1e-3, atol=1e-3)
    assert not any(isinstance(m, (Normalised, PairwiseLinear)) for m in folded.modules())
    assert not any(p.requires_grad for p in folded[0].parameters())
    assert isinstance(network[2], PairwiseLinear)  # the original is as it was


@pytest.mark.parametrize("name", ["linear", "residual conv", "small gain"])
def test_state_and_copies(name: str, tmp_path: Path) -> None:
    layer, shape = _layer(name)
    layer.eval()
    x = torch.randn(4, *shape)
    other, _ = _layer(name, seed=3)
    other.load_state_dict(layer.state_dict())
    assert float((other.eval()(x) - layer(x)).detach().abs().max()) < 1e-4
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    exported = torch.export.export(layer, (x,)).module()
    torch.testing.assert_close(exported(x), layer(x))


def test_training_keeps_the_bound() -> None:
    """Steps in train mode, then eval: the excess is proved for the weights that there are then."""
    torch.manual_seed(0)
    net = nn.Sequential(
        ResidualLinear(6), ResidualLinear(6, 12), LipschitzLinear(6, 6), nn.ReLU(), PairwiseLinear(6, 3)
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    x, y = torch.randn(64, 6), torch.randint(3, (64,))
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert float(net[0].excess) == 1
    net.eval()
    assert float(net[0].excess) > 1
    assert float(lipcert.lipschitz(net, (6,), scope="pairwise", guarantee="upper").value.max()) <= 1.003
    sealed = [float(m.excess) for m in net.modules() if isinstance(m, Normalised)]
    net.eval()
    assert sealed == [float(m.excess) for m in net.modules() if isinstance(m, Normalised)]


def test_a_deep_stack_neither_vanishes_nor_explodes() -> None:
    torch.manual_seed(0)
    for block in (ResidualLinear, SmallGainLinear):
        stack = nn.Sequential(*(block(8) for _ in range(50)))
        x = torch.randn(16, 8, requires_grad=True)
        values: list[Tensor] = [x]
        for layer in stack:
            values.append(layer(values[-1]))
            values[-1].retain_grad()
        (values[-1] * torch.randn(16, 8)).sum().backward()
        sizes = [float(v.grad.norm()) for v in values if v.grad is not None]
        assert len(sizes) == 51
        assert max(sizes) <= 1.5 * min(sizes)
        moved = (stack(x + 1e-2 * torch.randn(16, 8)) - stack(x)).norm()
        assert 0.5e-2 < float(moved) / 128**0.5 < 1.5e-2


@pytest.mark.parametrize("far", [1e2, 1e4])
@pytest.mark.parametrize("seed", [0, 1])
def test_any_scales_of_a_small_gain_block(far: float, seed: int) -> None:
    """Rows that are orthogonal but for rounding, or exactly: quotients of q made another block of it in float64."""
    torch.manual_seed(seed)
    block = SmallGainLinear(4)
    with torch.no_grad():
        block.log_q.copy_(torch.tensor([far, -far, 0.0, 1.0]))
    assert bool(torch.isfinite(block(torch.randn(5, 4))).all())
    bound = lipcert.lipschitz(block.eval(), (4,), method="smallgain", scaling="neuron", guarantee="upper")
    assert float(bound) <= 1.05


def test_a_zero_layer_is_zero() -> None:
    layer = LipschitzLinear(3, 2, bias=False)
    nn.init.zeros_(layer.inner.weight)
    for mode in (True, False):
        assert torch.equal(layer.train(mode)(torch.ones(1, 3)), torch.zeros(1, 2))
    assert torch.equal(fold(layer)(torch.ones(1, 3)), torch.zeros(1, 2))


@pytest.mark.parametrize("size", [torch.nan, torch.inf, 1e-44])
def test_weights_that_no_factor_makes_up_for(size: float) -> None:
    layer = LipschitzLinear(3, 2)
    nn.init.constant_(layer.inner.weight, size)
    with pytest.raises((BoundError, ModuleStateError)):
        layer.eval()


@pytest.mark.parametrize("size", [1e-30, 1e20, 1e30])
def test_weights_of_any_size(size: float) -> None:
    layer = LipschitzLinear(5, 4)
    nn.init.normal_(layer.inner.weight, std=size)
    nn.init.zeros_(layer.inner.bias)
    layer.eval()
    assert 0.98 < float(torch.linalg.matrix_norm(layer(torch.eye(5)).T, 2)) <= 1
    last = PairwiseLinear(5, 4, bias=False)
    nn.init.normal_(last.inner.weight, std=size)
    assert float(torch.pdist(last(torch.eye(5)).T).max()) == pytest.approx(1, rel=1e-5)


# --- the guarantee, whatever happens to the weights -------------------------------------------------------------------
def _constant(layer: nn.Module) -> float:
    bias = layer(torch.zeros(1, 20))
    return float(torch.linalg.matrix_norm((layer(torch.eye(20)) - bias).detach(), 2))


def _by_data(layer: LipschitzLinear) -> None:
    layer.inner.weight.data.copy_(torch.randn(20, 20))
    layer.eval()


def _by_new_data(layer: LipschitzLinear) -> None:
    layer.inner.weight.data = torch.randn(20, 20)
    layer.eval()


def _by_numpy(layer: LipschitzLinear) -> None:
    layer.inner.weight.detach().numpy()[:] = torch.randn(20, 20).numpy()
    layer.eval()


def _by_average(layer: LipschitzLinear) -> None:
    layer.inner.weight.data.mul_(0.5).add_(torch.randn(20, 20), alpha=0.5)
    layer.eval()


def _by_state(layer: LipschitzLinear) -> None:
    other = LipschitzLinear(20, 20)
    nn.init.normal_(other.inner.weight)
    layer.load_state_dict(other.state_dict())


def _by_steps(layer: LipschitzLinear) -> None:
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    for _ in range(3):
        layer(torch.randn(8, 20)).square().sum().backward()
        optimizer.step()


def _in_inference_mode(layer: LipschitzLinear) -> None:
    with torch.no_grad():
        layer.inner.weight.normal_()
    with torch.inference_mode():
        layer.eval()


@pytest.mark.parametrize(
    "change", [_by_data, _by_new_data, _by_numpy, _by_average, _by_state, _by_steps, _in_inference_mode]
)
def test_it_holds_for_the_weights_that_there_are(change: Callable[[LipschitzLinear], None]) -> None:
    torch.manual_seed(0)
    layer = LipschitzLinear(20, 20).eval()
    change(layer)
    assert 0.9 < _constant(layer) <= 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(dtype: torch.dtype) -> None:
    """Before eval and after it: the factor would be off by more than the guarantee allows."""
    with pytest.raises(BoundError, match="too coarse"):
        LipschitzLinear(4, 4).to(dtype).eval()
    layer = LipschitzLinear(4, 4).eval().to(dtype)
    with pytest.raises(BoundError, match="too coarse"):
        layer(torch.ones(1, 4, dtype=dtype))


@pytest.mark.parametrize("kappa", [0.1, 0.3])
def test_a_folded_scale_is_not_rounded_up(kappa: float) -> None:
    scale = fold(SmallGainLinear(4, lipschitz=kappa)).scale
    assert kappa * (1 - 1e-6) < float(scale) <= kappa


def test_functionals_are_of_the_layer_as_it_is() -> None:
    """Not of one that was proved anew in float64: that is another network."""
    layer = LipschitzLinear(4, 4).eval()
    layer.excess.mul_(0.5)  # a state that says too little, and is taken at its word
    layer._sealed_at = layer._glance()
    weights = torch.eye(4, dtype=torch.float64)
    weights[0, 0] += 2.0**-40
    assert float(lipcert.lipschitz(layer, (4,), output_weights=weights)) == pytest.approx(2, rel=1e-2)


def test_a_state_that_is_sealed_stays_as_it_is() -> None:
    """What was certified is what is loaded: nothing is proved, moved or drawn again for the same weights."""
    layer, _ = _layer("residual conv")
    layer.eval()
    saved = {k: v.clone() for k, v in layer.state_dict().items()}
    for mode in (True, False):  # loaded in train mode and then put into eval mode, and the other way round
        other, _ = _layer("residual conv", seed=4)
        other.train(mode)
        other.load_state_dict(saved)
        other.eval()
        assert all(torch.equal(v, saved[k]) for k, v in other.state_dict().items())


def test_looking_leaves_no_trace_in_training() -> None:
    states = []
    for looked in (False, True):
        layer, shape = _layer("residual")
        for seed in range(3):
            layer(torch.randn(4, *shape, generator=torch.Generator().manual_seed(seed))).sum().backward()
            if looked:
                layer.eval()
                lipcert.lipschitz(layer, shape)
                layer.train()
        states.append(layer.state_dict())
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())


@pytest.mark.parametrize("kind", [TrainingBound, GainBound])
def test_bounds_of_a_network_in_training(kind: type[TrainingBound] | type[GainBound]) -> None:
    """In either order of bound and forward pass; nothing is proved for it, and two runs are the same."""
    states = []
    for _ in range(2):
        torch.manual_seed(0)
        net = nn.Sequential(ResidualLinear(6), LipschitzLinear(6, 5), nn.ReLU(), nn.Linear(5, 3))
        bound = kind(net, (6,))
        assert all(float(m.excess) == 1 for m in net.modules() if isinstance(m, Normalised))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        x = torch.randn(8, 6)
        for first in (True, False, True):
            optimizer.zero_grad()
            parts = [bound().sum(), net(x).square().sum()] if first else [net(x).square().sum(), bound().sum()]
            (parts[0] + parts[1]).backward()
            assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in net.parameters())
            optimizer.step()
        states.append(net.state_dict())
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())
    found, options = float(bound.refresh(50).max()), {"scope": "pairwise", "scaling": "channel"}
    method = "liplt" if kind is TrainingBound else "smallgain"
    assert found == pytest.approx(
        float(lipcert.lipschitz(net.eval(), (6,), method=method, **options).value.max()), rel=0.1
    )


def test_a_layer_that_is_used_twice_in_one_step() -> None:
    torch.manual_seed(0)
    layer = ResidualLinear(6)
    net = nn.Sequential(nn.Linear(6, 6), layer, nn.ReLU(), layer)
    (net(torch.randn(4, 6)).sum() + net(torch.randn(4, 6)).sum()).backward()
    assert layer.inner.weight.grad is not None
    folded = fold(net)
    assert not any(isinstance(m, Normalised) for m in folded.modules())
    x = torch.randn(4, 6)
    torch.testing.assert_close(folded(x), net.eval()(x), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("make", [lambda: SmallGainLinear(3), lambda: LipschitzLinear(3, 2), lambda: nn.Linear(3, 2)])
def test_weights_that_are_not_finite_are_not_folded(make: Callable[[], nn.Module]) -> None:
    net = nn.Sequential(make(), LipschitzLinear(3 if isinstance(make(), SmallGainLinear) else 2, 2))
    with torch.no_grad():
        next(net.parameters()).view(-1)[0] = torch.nan
    with pytest.raises(ModuleStateError, match=r"parameter '0\.[\w.]+' contains a NaN"):
        fold(net)


def test_what_folding_would_lose_is_refused() -> None:
    for change in (
        lambda m: m.register_forward_hook(lambda *a: 3 * a[-1]),
        lambda m: torch.nn.utils.parametrizations.orthogonal(m.inner),
        lambda m: m.inner.register_forward_pre_hook(lambda *a: None),
    ):
        net = nn.Sequential(LipschitzLinear(4, 4))
        change(net[0])
        with pytest.raises(ModuleStateError, match="which folding would lose"):
            fold(net)


@pytest.mark.parametrize("make", [lambda: LipschitzConv2d((2, 4, 4), 3, 3), lambda: SmallGainConv2d((2, 4, 4))])
def test_another_size_is_refused(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(ShapeError, match="4, 4"):
        make()(torch.zeros(1, 2, 6, 6))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LipschitzLinear(3, 2, lipschitz=0), "positive"),
        (lambda: PairwiseLinear(3, 2, lipschitz=True), "positive"),
        (lambda: PairwiseLinear(3, 1), "at least 2"),
        (lambda: LipschitzConv2d((3, 4), 2, 3), "channels, height, width"),
        (lambda: LipschitzConv2d((3, 4, 4), 2, 9, padding=0), "does not fit"),
        (lambda: ResidualLinear(3, out_features=4), "identity"),
        (lambda: ResidualLinear(3, shortcut="pool"), "pool"),
        (lambda: ResidualLinear(3, 0), "hidden must be"),
        (lambda: ResidualConv2d((2, 4, 4), stride=0), "stride must be"),
        (lambda: ResidualConv2d((2, 4, 4), kernel_size=(3, 3)), "kernel_size must be"),
        (lambda: SmallGainLinear(4, 0), "hidden must be"),
        (lambda: ResidualLinear(3, shortcut="none"), "must be one of"),
        (lambda: ResidualConv2d((2, 4, 4), kernel_size=2), "odd"),
        (lambda: ResidualConv2d((2, 5, 5), stride=2), "divide"),
        (lambda: ResidualConv2d((4, 4, 4), 2, stride=2, shortcut="pool"), "as many channels"),
        (lambda: SmallGainLinear(4, activation="maxmin"), "not monotone"),
        (lambda: SmallGainLinear(4, activation="half-abs"), "not monotone"),
        (lambda: SmallGainLinear(4, activation="gelu"), "not monotone"),
        (lambda: SmallGainConv2d((2, 4, 4), kernel_size=4), "odd"),
    ],
)
def test_refusals(make: Callable[[], nn.Module], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()


def test_a_pool_has_norm_one() -> None:
    assert float(lipcert.lipschitz(Pool(2, 4).eval(), (3, 4, 4))) == pytest.approx(1.0)
