"""The bound of a training step: its value, its gradient, what it keeps, and what it leaves alone."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lipcert
from dense_training import SETTINGS, bound
from lipcert.errors import BoundError, ShapeError
from lipcert.train.bound import TrainingBound
from lipcert.train.gain import GainBound

SCOPES = ("global", "class", "pairwise")


def _net(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return SETTINGS[name].build().to(dtype)


def _converged(net: nn.Module, name: str, **options: object) -> TrainingBound:
    training = TrainingBound(net, SETTINGS[name].shape, **options)  # type: ignore[arg-type]
    training.refresh(300)
    return training


def _weights_of(shape: torch.Size) -> Tensor:
    """∂loss/∂L with entries of both signs."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


@pytest.mark.parametrize("name", list(SETTINGS))
@pytest.mark.parametrize(
    ("scope", "method"), [("global", "liplt"), ("class", "liplt"), ("pairwise", "liplt"), ("pairwise", "product")]
)
def test_value_and_gradient_are_the_dense_formula(name: str, scope: str, method: str) -> None:
    net = _net(name).train()  # the eval form is bounded in train mode too
    training = _converged(net, name, scope=scope, method=method)
    expected = bound(SETTINGS[name].blocks(net, method == "liplt"), scope)
    value = training()
    near = 1e-4 if name == "conv" else 1e-9  # its two largest singular values are close
    torch.testing.assert_close(value, expected, rtol=near, atol=1e-10)

    weights = _weights_of(value.shape)
    wanted = torch.autograd.grad((expected * weights).sum(), list(net.parameters()), allow_unused=True)
    (value * weights).sum().backward()
    for (parameter_name, p), want in zip(net.named_parameters(), wanted, strict=True):
        want = torch.zeros_like(p) if want is None else want
        got = torch.zeros_like(p) if p.grad is None else p.grad
        slack = near**0.5 * max(1.0, float(want.abs().max()))
        torch.testing.assert_close(got, want, rtol=1e-4, atol=slack, msg=lambda m, n=parameter_name: f"{n}: {m}")


@pytest.mark.parametrize("name", ["mlp", "residual", "conv"])
@pytest.mark.parametrize("scope", SCOPES)
def test_it_is_the_estimate_of_the_verb(name: str, scope: str) -> None:
    net = _net(name).eval()
    estimate = lipcert.lipschitz(net, SETTINGS[name].shape, scope=scope)  # type: ignore[arg-type]
    torch.testing.assert_close(_converged(net, name, scope=scope).value, estimate.value, rtol=1e-4, atol=1e-9)


# --- from step to step --------------------------------------------------------------------------------------------
def _step(net: nn.Module, training: TrainingBound, optimiser: torch.optim.Optimizer, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape, dtype = training.graph.input_shape, training.value.dtype
    x = torch.randn((8, *shape), generator=generator, dtype=torch.float64).to(dtype)
    y = torch.randint(3, (8,), generator=generator)
    optimiser.zero_grad()
    value = training()
    loss = F.cross_entropy(net(x), y) + 0.1 * value.mean()
    loss.backward()
    optimiser.step()
    return value.detach()


@pytest.mark.parametrize("name", ["mlp", "batchnorm", "residual"])
@pytest.mark.parametrize("every", [1, 3])
def test_the_value_follows_the_weights(name: str, every: int) -> None:
    net = _net(name).train()
    training = TrainingBound(net, SETTINGS[name].shape, every=every)
    optimiser = torch.optim.SGD(net.parameters(), 0.02, momentum=0.5)
    values = [_step(net, training, optimiser, i) for i in range(60)]
    assert float(values[-1].max()) < float(values[0].max())  # it regularises
    truth = lipcert.lipschitz(net.eval(), SETTINGS[name].shape, scope="pairwise", guarantee="upper").value
    off = ~torch.eye(3, dtype=torch.bool)
    assert bool(((values[-1] / truth)[off] - 1).abs().max() < 0.1)


def test_the_value_is_one_step_old() -> None:
    net = _net("mlp")
    training = _converged(net, "mlp")
    before = training.value.clone()
    with torch.no_grad():
        net[0].weight.mul_(3.0)
    value = training()
    assert torch.equal(value.detach(), before)
    value.sum().backward()
    torch.testing.assert_close(training(), bound(SETTINGS["mlp"].blocks(net, True), "pairwise"), rtol=1e-6, atol=1e-9)


def test_gradients_in_between_are_scaled_copies() -> None:
    net = _net("mlp")
    training = _converged(net, "mlp", every=3, scope="class")
    gradients = []
    for factor in (1.0, 2.0, -0.5, 1.0):
        net.zero_grad()
        (factor * training()).sum().backward()
        gradients.append(net[2].weight.grad.clone())
    torch.testing.assert_close(gradients[1], 2 * gradients[0])
    torch.testing.assert_close(gradients[2], 0.5 * gradients[0])  # by the size of ∂loss/∂L, not its sign
    assert int(training.counter) == 4


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("name", ["mlp", "batchnorm"])
def test_a_resumed_run_is_the_same_run(every: int, name: str) -> None:
    net = _net(name, torch.float32).train()
    training = TrainingBound(net, SETTINGS[name].shape, every=every)
    optimiser = torch.optim.Adam(net.parameters(), 0.01)
    for i in range(5):
        _step(net, training, optimiser, i)
    saved = copy.deepcopy((net.state_dict(), training.state_dict(), optimiser.state_dict()))
    ahead = [_step(net, training, optimiser, i) for i in range(5, 10)]

    torch.manual_seed(77)
    again = SETTINGS[name].build().train()
    resumed = TrainingBound(again, SETTINGS[name].shape, every=every, seed=5)
    second = torch.optim.Adam(again.parameters(), 0.01)
    for target, state in zip((again, resumed, second), saved, strict=True):
        target.load_state_dict(state)
    for i, value in enumerate(ahead, start=5):
        assert torch.equal(_step(again, resumed, second, i), value)
    for p, q in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)


# --- corners ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("scope", SCOPES)
def test_a_zero_cotangent_touches_no_weight_and_keeps_the_vectors_warm(scope: str) -> None:
    net = _net("mlp")
    training = TrainingBound(net, (4,), scope=scope, warmup=1)  # type: ignore[arg-type]
    for _ in range(300):
        (0.0 * training()).sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in net.parameters())
    torch.testing.assert_close(training.value, bound(SETTINGS["mlp"].blocks(net, True), scope), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("bad", [float("inf"), float("nan"), 3e38])
def test_a_gradient_that_overflowed_does_not_spoil_what_is_kept(scope: str, bad: float) -> None:
    """A gradient scaler makes such gradients and skips the step; the next one must find everything in order."""
    net = _net("mlp", torch.float32)
    training = TrainingBound(net, (4,), scope=scope)  # type: ignore[arg-type]
    training.refresh(200)
    before = training.value.clone()
    value = training()
    value.backward(torch.full_like(value, bad))
    assert all(bool(torch.isfinite(b).all()) for b in training.buffers())
    training.refresh(5)
    torch.testing.assert_close(training.value, before, rtol=1e-4, atol=1e-6)


def test_autocast_does_not_reach_it() -> None:
    results = []
    for enabled in (False, True):
        net = _net("residual", torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            training = TrainingBound(net, (4,))
            training.refresh(20)
            value = training()
            value.sum().backward()
        assert value.dtype == torch.float32
        results.append((value.detach(), net.a.weight.grad, training.value))
    for plain, under_autocast in zip(*results, strict=True):
        assert torch.equal(plain, under_autocast)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients_it_hands_out_its_value(context: object) -> None:
    training = TrainingBound(_net("mlp"), (4,))
    with context():  # type: ignore[operator]
        value = training()
        assert not value.requires_grad
        training.refresh(2)
        value.zero_()
    assert bool(training.value.any())


def test_no_buffer_is_differentiated_or_holds_a_graph() -> None:
    net = _net("batchnorm").train()
    training = TrainingBound(net, (4,), every=2)
    optimiser = torch.optim.SGD(net.parameters(), 0.01)
    for i in range(4):
        _step(net, training, optimiser, i)
    for name, buffer in (*training.named_buffers(), *net.named_buffers()):
        assert not buffer.requires_grad, name
        assert buffer.grad_fn is None, name
        assert buffer.grad is None, name
    assert not list(training.parameters())
    assert net.training


def test_dead_and_zero_layers() -> None:
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    net[2].weight.data.zero_()
    training = TrainingBound(net, (4,))
    training().sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in net.parameters() if p.grad is not None)
    with torch.no_grad():
        net[2].weight.normal_()
    training.refresh(400)
    expected = bound(SETTINGS["mlp"].blocks(net, True), "pairwise")
    torch.testing.assert_close(training.value, expected, rtol=1e-6, atol=1e-9)


def test_equal_classes_have_a_finite_gradient() -> None:
    net = _net("mlp")
    net[4].weight.data[1] = net[4].weight.data[0]
    training = _converged(net, "mlp")
    training().sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    "options",
    [{"every": 0}, {"warmup": 0}, {"iterations": 0}, {"method": "LipLT"}, {"scope": "pair"}, {"scope": ""}],
)
def test_options(options: dict) -> None:
    with pytest.raises(BoundError):
        TrainingBound(_net("mlp"), (4,), **options)


def test_images_have_no_classes() -> None:
    net = nn.Conv2d(1, 2, 3)
    with pytest.raises(ShapeError, match="logits"):
        TrainingBound(net, (1, 5, 5))
    assert float(TrainingBound(net, (1, 5, 5), scope="global").value) > 0


@pytest.mark.parametrize("name", list(SETTINGS))
@pytest.mark.parametrize("scope", SCOPES)
def test_settled_it_is_the_estimate(name: str, scope: str) -> None:
    net = _net(name)
    training = TrainingBound(net, SETTINGS[name].shape, scope=scope, warmup=1)  # type: ignore[arg-type]
    value = training.settle()
    estimate = lipcert.lipschitz(net.eval(), SETTINGS[name].shape, scope=scope).value  # type: ignore[arg-type]
    torch.testing.assert_close(value, estimate.to(value), rtol=2e-3, atol=1e-9)
    torch.testing.assert_close(training.refresh(300), value, rtol=2e-3, atol=1e-9)


def test_settled_it_tells_singular_values_apart_that_power_iteration_does_not() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(400, 400, bias=False), nn.ReLU(), nn.Linear(400, 2, bias=False)).eval()
    spectrum = torch.linspace(0.9, 1.0, 400)
    spectrum[-1] = 1.01
    with torch.no_grad():
        first = nn.init.orthogonal_(torch.empty(400, 400)), nn.init.orthogonal_(torch.empty(400, 400))
        net[0].weight.copy_(first[0] * spectrum @ first[1])  # type: ignore[operator]
    exact = float(lipcert.lipschitz(net, (400,)))
    values = [
        float(TrainingBound(net, (400,), scope="global", warmup=1).refresh(40)),
        float(TrainingBound(net, (400,), scope="global", warmup=1).settle()),
    ]
    assert abs(values[1] - exact) < 2e-3 * exact
    assert abs(values[1] - exact) < abs(values[0] - exact)


@pytest.mark.parametrize("common", [0.0, 1e3, 1e5])
def test_what_rows_of_the_last_layer_have_in_common_is_no_distance(common: float) -> None:
    """In float32 their squares would cancel, and a bound of 0 makes every radius endless."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 3))
    wanted = lipcert.lipschitz(copy.deepcopy(net).double().eval(), (3,), scope="pairwise").value
    with torch.no_grad():
        net[2].weight += common * torch.randn(1, 8)
    liplt = TrainingBound(net, (3,), scope="pairwise").settle().double()
    torch.testing.assert_close(liplt, wanted, rtol=0.05, atol=0)
    assert bool((GainBound(net, (3,), scope="pairwise").settle().double() >= 0.6 * wanted).all())  # rounding, at worst
