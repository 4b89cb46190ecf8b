"""Local radii: never below the global ones, never broken by an attack, and refused where nothing could check them."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lipcert
from cases import CASES, named, traced
from known_traps import BETWEEN, two_weights
from lipcert.bounds import UpperBound, graph_bound
from lipcert.certify import CertifiedRadii, Samples, certify, local, make_certificate, verify
from lipcert.certify.local import reproved
from lipcert.certify.network import certified, contested, executes
from lipcert.errors import BoundError
from lipcert.layers import HalfAbs

LOGITS = named(without=("image",))


def attacked(net: nn.Module, x: Tensor, prediction: Tensor, radius: Tensor, steps: int = 40) -> Tensor:
    """The best of other logits minus the predicted one that gradient steps on the ball find."""
    shape, generator = (-1, *(1,) * (x.ndim - 1)), torch.Generator().manual_seed(0)
    best = torch.full((len(x),), -math.inf, dtype=x.dtype)
    for _ in range(4):
        step = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        for i in range(steps):
            step = step * (radius / step.flatten(1).norm(dim=1).clamp_min(1e-300)).reshape(shape)
            moved = (x + step * (1 - 1e-9)).detach().requires_grad_()
            z = net(moved)
            own = nn.functional.one_hot(prediction, z.shape[1]).bool()
            gap = z.masked_fill(own, -math.inf).amax(1) - z[own]
            best = torch.maximum(best, gap.detach())
            (gradient,) = torch.autograd.grad(gap.sum(), moved)
            length = gradient.flatten(1).norm(dim=1).clamp_min(1e-300)
            step = step + (2 * radius / (1 + i) / length).reshape(shape) * gradient
    return best


def trained(seed: int, widths: tuple[int, ...], act: type[nn.Module] = nn.ReLU) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(seed)
    centres = torch.randn(3, widths[0], dtype=torch.float64)
    y = torch.arange(90) % 3
    x = centres[y] + 0.3 * torch.randn(90, widths[0], dtype=torch.float64)
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), act()]
    net = nn.Sequential(*layers[:-1]).double()
    optimiser = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(30):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimiser.step()
    return net.eval(), x, y


@pytest.mark.parametrize("act", [nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Tanh, nn.GELU])
@pytest.mark.parametrize("widths", [(5, 16, 3), (5, 12, 12, 3), (5, 10, 10, 10, 3)])
def test_no_attack_breaks_a_local_radius(act: type[nn.Module], widths: tuple[int, ...]) -> None:
    net, x, y = trained(0, widths, act)
    result = certify(net, x, y, local=True)
    assert isinstance(result, CertifiedRadii)
    assert bool((attacked(net, x, result.prediction, result.radius) <= 1e-12).all())
    if act in (nn.ReLU, nn.LeakyReLU, nn.PReLU):
        assert result.alone is not None
        gained = result.radius / result.alone.radius
        assert float(gained.median()) > 1.1


@pytest.mark.parametrize(("name", "precision"), [(n, None) for n in LOGITS[::5]] + [(n, "real") for n in LOGITS[1::9]])
def test_never_below_the_global_radius(name: str, precision: str | None) -> None:
    graph, x = traced(name), CASES[name].inputs(2)
    bound = graph_bound(graph, scope="pairwise", guarantee="upper", parts=executes(graph, precision))
    assert isinstance(bound, UpperBound)
    try:
        alone = certified(graph, bound, [x], precision=precision)
    except BoundError:  # its rounding is not known
        with pytest.raises(BoundError):
            certified(graph, bound, [x], precision=precision, local=True)
        return
    result = certified(graph, bound, [x], precision=precision, local=True)
    assert result.alone is not None
    assert torch.equal(result.alone.radius, alone.radius)
    assert bool((result.radius >= alone.radius).all())
    assert bool((result.real >= result.radius).all())
    assert bool((result.real >= alone.real).all())
    for a, b in ((result.prediction, alone.prediction), (result.margin, alone.margin)):
        assert torch.equal(a, b)


def test_regions_of_a_tiny_network_are_enumerated() -> None:
    """On the line, every kink of the margin is a kink of a hidden neuron: the first sign change is found exactly."""
    for seed in range(15):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(1, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)).double().eval()
        x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
        result = certify(net, x, local=True)
        grid = torch.linspace(-12, 12, 480001, dtype=torch.float64)[:, None]
        with torch.no_grad():
            flips = net(grid).argmax(1)
        for i in range(9):
            other = grid[flips != result.prediction[i], 0]
            if len(other):
                assert float(result.radius[i]) <= float((other - x[i, 0]).abs().min())


def test_in_one_dimension_it_reaches_what_is_true() -> None:
    """Between two kinks the network is linear, and the local radius is the distance to the decision boundary."""
    net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2)).double().eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0], [10.0]]))
        net[0].bias.copy_(torch.tensor([0.0, -100.0]))
        net[2].weight.copy_(torch.tensor([[1.0, -5.0], [0.0, 5.0]]))
        net[2].bias.copy_(torch.tensor([-1.0, 0.0]))
    x = torch.tensor([[2.0]], dtype=torch.float64)
    result = certify(net, x, local=True)
    assert result.alone is not None
    assert float(result.alone.radius) < 0.05
    assert 0.99 <= float(result.radius) <= 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_the_network_that_rounds(dtype: torch.dtype) -> None:
    net, x, _ = trained(3, (5, 16, 16, 3))
    net = net.to(dtype)
    executed, real = certify(net, x.to(dtype), local=True), certify(net, x.to(dtype), local=True, precision="real")
    assert bool((executed.radius <= real.radius * (1 + 0.005)).all())
    assert bool((executed.radius <= executed.real).all())
    assert bool((attacked(net, x.to(dtype), executed.prediction, executed.radius.to(dtype)) < 0).all())


def test_a_large_bias_does_not_lend_a_radius() -> None:
    """In float32 the margin at 1.3 comes out as 2; the prediction flips at 0."""
    net = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2)).eval()
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[0].bias.fill_(2.0**24)
        net[2].weight.copy_(torch.tensor([[1.0], [0.0]]))
        net[2].bias.copy_(torch.tensor([-(2.0**24), 0.0]))
    x = torch.tensor([[1.3]])
    assert float(certify(net, x, precision="real", local=True).radius) <= float(x)
    assert certify(net, x, local=True).radius == 0


def test_the_known_trap_of_float32() -> None:
    """In real arithmetic the logits meet at 0, and no earlier; float32 runs into ties at once."""
    net, x = two_weights(), torch.tensor([[BETWEEN]])
    real = float(certify(net, x, local=True, precision="real").radius)
    assert BETWEEN * (1 - 1e-3) <= real <= BETWEEN
    assert float(certify(net, x, local=True).radius) < 1e-6


def test_ties_infinities_and_no_samples() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    x = torch.rand(4, 3)
    x[1, 0], x[2, 2] = math.inf, math.nan
    result = certify(net, x, local=True)
    assert result.radius[1:3].tolist() == [0.0, 0.0]
    assert result.prediction[1:3].tolist() == [-1, -1]
    assert bool((result.radius[[0, 3]] > 0).all())
    assert len(certify(net, x[:0], local=True)) == 0
    with torch.no_grad():
        net[2].weight[1], net[2].bias[1] = net[2].weight[0], net[2].bias[0]
    assert certify(net, x, local=True).radius.tolist() == [0.0] * 4


def test_a_sample_far_larger_than_the_others_spoils_none() -> None:
    net, x, _ = trained(1, (5, 12, 3))
    alone = certify(net, x, local=True, precision="real").radius
    x = x.clone()
    x[7] *= 1e12
    result = certify(net, x, local=True, precision="real").radius
    torch.testing.assert_close(result[:7], alone[:7], rtol=1e-2, atol=0)


@pytest.mark.parametrize("method", ["liplt", "smallgain"])
def test_batches_do_not_matter_much(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    net, x, _ = trained(2, (5, 12, 12, 3))
    all_ = certify(net, x, local=True, method=method).radius
    for samples, size in ((1, 1), (7, 3), (90, 4)):  # looked at together, given together
        monkeypatch.setattr(local, "_SAMPLES", samples)
        some = certify(net, x, local=True, method=method, batch_size=size).radius
        torch.testing.assert_close(some, all_, rtol=1e-2, atol=0)


def test_a_search_wants_bounds_that_are_close(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x, _ = trained(1, (5, 12, 12, 3))
    found = certify(net, x, local=True, method="smallgain", precision="real").radius
    monkeypatch.setattr("lipcert.bounds.reweighted._PLENTY", 2.0)  # nothing is proved by a loose solution
    closest = certify(net, x, local=True, method="smallgain", precision="real").radius
    torch.testing.assert_close(found, closest, rtol=1e-12, atol=0)


@pytest.mark.parametrize("precision", ["real", "float64"])
def test_at_given_radii_it_proves_what_the_search_does(precision: Any) -> None:
    net, x, y = trained(1, (5, 12, 12, 3))
    at = [0.8, 0.2, 0.4]
    every, some = certify(net, x, y, local=True, precision=precision), certify(net, x, y, local=at, precision=precision)
    assert isinstance(every, CertifiedRadii)
    assert isinstance(some, CertifiedRadii)
    assert some.alone is not None
    assert bool((some.radius >= some.alone.radius).all())
    assert bool((attacked(net, x, some.prediction, some.radius) <= 1e-12).all())
    gained = some.radius[some.radius > some.alone.radius]
    assert all(min(abs(float(r) / e - 1) for e in at) < 1e-3 for r in gained)
    for e in at:
        assert some.certified_accuracy(e) >= some.alone.certified_accuracy(e)
        assert some.certified_accuracy(e) == pytest.approx(every.certified_accuracy(e), abs=0.02)
    assert some.certified_accuracy(0.8) > some.alone.certified_accuracy(0.8)
    assert torch.equal(certify(net, x, y, local=[], precision=precision).radius, some.alone.radius)


@pytest.mark.parametrize(
    "wrong", [[0.0], [-1.0], [float("inf")], [float("nan")], ["a"], [True], ["0.1"], "5", None, 0.1, 1]
)
@pytest.mark.parametrize("guarantee", ["upper", "estimate"])
def test_given_radii_are_positive_numbers(wrong: Any, guarantee: Any) -> None:
    with pytest.raises(BoundError, match=r"positive numbers|the radii to try"):
        certify(nn.Linear(3, 2).eval(), torch.rand(2, 3), local=wrong, guarantee=guarantee)


def test_given_radii_are_tried_where_they_count() -> None:
    net, x, y = trained(1, (5, 12, 12, 3))
    at = [0.2, 0.4]
    everywhere = certify(net, x, local=at)
    wrong = torch.where(torch.arange(len(y)) % 2 == 0, y, (everywhere.prediction + 1) % 3)  # every other one at least
    found = certify(net, x, wrong, local=at)
    assert isinstance(found, CertifiedRadii)
    assert found.alone is not None
    assert torch.equal(found.radius[found.correct], everywhere.radius[found.correct])
    assert torch.equal(found.radius[~found.correct], found.alone.radius[~found.correct])
    assert bool((everywhere.radius[~found.correct] > found.radius[~found.correct]).any())


def test_given_radii_may_come_in_any_form() -> None:
    net, x, y = trained(1, (5, 12, 12, 3))
    expected = certify(net, x, y, local=[0.4, 0.8]).radius
    for at in (iter([0.8, 0.4, 0.8]), torch.tensor([0.4, 0.8], dtype=torch.float64), (0.8, 0.4)):
        assert torch.equal(certify(net, x, y, local=at).radius, expected)  # type: ignore[arg-type]


def test_an_estimate_has_no_local_radii() -> None:
    net = nn.Linear(3, 2).eval()
    with pytest.raises(BoundError, match="upper"):
        certify(net, torch.rand(2, 3), guarantee="estimate", local=True)


def test_a_bound_without_its_parts_has_none() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    bound = UpperBound(torch.tensor(9.0, dtype=torch.float64), "liplt", "global")
    with pytest.raises(BoundError, match="made of"):
        certify(net, torch.rand(2, 3), bound=bound, local=True, precision="real")


@pytest.mark.parametrize("scope", ["global", "class", "pairwise"])
@pytest.mark.parametrize("method", ["product", "liplt"])
def test_with_every_bound(scope: str, method: str) -> None:
    net, x, _ = trained(4, (5, 12, 12, 3))
    result = certify(net, x, scope=scope, method=method, local=True)  # type: ignore[arg-type]
    assert bool((attacked(net, x, result.prediction, result.radius, 15) <= 1e-12).all())


def test_a_proof_of_each_is_found_again_and_of_none_that_is_larger() -> None:
    net, x, y = trained(5, (5, 16, 16, 3))
    graph = lipcert.trace(net, (5,))
    bound = lipcert.lipschitz(net, (5,), scope="pairwise", guarantee="upper")
    assert isinstance(bound, UpperBound)
    result = certify(net, x, y, bound=bound, local=True)
    assert result.alone is not None
    larger = result.radius > result.alone.radius
    assert int(larger.sum()) > 80
    for precision in ("float64", "real"):
        _, contest = contested(graph, bound, [x], y, precision)
        assert torch.equal(reproved(graph, bound, [x], contest, result.radius, larger), larger)
        beyond = reproved(graph, bound, [x], contest, result.radius * 1.5, larger)
        assert int(beyond.sum()) < 10
    infinite = torch.full_like(result.radius, math.inf)
    for nothing in (infinite, -result.radius, 0 * result.radius, math.nan * result.radius):
        assert not bool(reproved(graph, bound, [x], contest, nothing, larger).any())


@pytest.mark.parametrize(
    ("power", "act"),
    [(p, nn.ReLU) for p in (-140, -150, -156, -159, -160, -161, -165, -170, -200, -260)]
    + [(p, nn.Tanh) for p in (-140, -159, -161, -260)],
)
def test_norms_of_tiny_rows_are_not_lost(power: int, act: type[nn.Module]) -> None:
    """Their squares underflow, and a fall that is lost is a radius without end."""
    for net in (
        nn.Sequential(nn.Linear(2, 2)),
        nn.Sequential(nn.Linear(2, 2), act(), nn.Linear(2, 2)),
        nn.Sequential(nn.Linear(2, 2), nn.Unflatten(1, (1, 2)), nn.MaxPool1d(1), nn.Flatten(), nn.Linear(2, 2)),
    ):
        net = net.double().eval()
        with torch.no_grad():
            for p in net.parameters():
                p.copy_(torch.eye(2) if p.ndim == 2 else torch.zeros(2))
            net[0].weight[1, 1] = 0.0
            net[-1].weight.mul_(10.0**power)
        x = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
        for precision in ("real", "float64"):
            radius = float(certify(net, x, local=True, precision=precision).radius)  # type: ignore[arg-type]
            assert radius <= 1.0, (power, precision)


def test_norms_of_products_of_small_weights_are_not_lost() -> None:
    layers: list[nn.Module] = []
    for _ in range(6):
        layers += [nn.Linear(2, 2), nn.ReLU()]
    net = nn.Sequential(*layers[:-1]).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(1e-30 * torch.eye(2) if p.ndim == 2 else torch.zeros(2))
    result = certify(net, torch.tensor([[1.0, 0.1]]), local=True, precision="real")
    assert float(result.radius) <= 0.9 / math.sqrt(2)


@pytest.mark.parametrize(("bisections", "precision"), [(44, "real"), (48, "float64")])
def test_what_is_certified_at_a_boundary_is_verified(bisections: int, precision: str) -> None:
    """Margins of the size of their own rounding, which comes out otherwise in batches of other sizes."""
    net, x, y = trained(5, (5, 16, 16, 3))
    with torch.no_grad():
        low, high = x.clone(), x.roll(1, 0).clone()
        for _ in range(bisections):
            middle = (low + high) / 2
            same = net(middle).argmax(1) == net(x).argmax(1)
            low, high = torch.where(same[:, None], middle, low), torch.where(same[:, None], high, middle)
    samples = Samples.of(low, y, name="boundary")
    graph = lipcert.trace(net, (5,))
    bound = lipcert.lipschitz(net, (5,), scope="pairwise", guarantee="upper")
    for size in (1, 7, 90):
        result = certify(net, low, y, bound=bound, local=True, precision=precision, batch_size=size)  # type: ignore[arg-type]
        report = verify(make_certificate(graph, result, samples), net, samples, norms="none")
        assert report.accepted, (size, report.failed)


def test_modes_are_as_before_after_a_mistake() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()

    def broken(done: int) -> None:
        raise RuntimeError(str(done))

    graph, x = lipcert.trace(net, (3,)), torch.rand(4, 3)
    bound = lipcert.lipschitz(net, (3,), scope="pairwise", guarantee="upper")
    assert isinstance(bound, UpperBound)
    with pytest.raises(RuntimeError, match="4") as caught:
        certified(graph, bound, [x], local=True, progress=broken)
    assert caught.tb is not None
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(("act", "precision"), [(nn.ReLU, "float64"), (nn.LeakyReLU, "real"), (HalfAbs, "real")])
def test_by_small_gain(act: type[nn.Module], precision: Any) -> None:
    """No attack breaks a radius, each is found again, and none that is much larger."""
    net, x, y = trained(0, (6, 20, 20, 20, 3), act)
    x, y = x[:30], y[:30]
    graph = lipcert.trace(net, (6,))
    bound = graph_bound(graph, method="smallgain", scope="pairwise", guarantee="upper", parts=precision != "real")
    assert isinstance(bound, UpperBound)
    result = certify(net, x, y, bound=bound, local=True, precision=precision)
    assert isinstance(result, CertifiedRadii)
    assert result.alone is not None
    assert bool((attacked(net, x, result.prediction, result.radius) <= 1e-12).all())
    assert float((result.radius / result.alone.radius).median()) > 1.2
    samples = Samples.of(x, y, name="clusters")
    some = certify(net, x, y, bound=bound, local=[0.3, 0.6], precision=precision)
    for found in (result, some):
        report = verify(make_certificate(graph, found, samples), net, samples, norms="none")
        assert report.accepted, report.failed
    for radius in (0.3, 0.6):
        assert some.certified_accuracy(radius) >= result.certified_accuracy(radius) - 0.04
    _, contest = contested(graph, bound, [x], y, precision)
    larger = result.radius > result.alone.radius
    beyond = reproved(graph, bound, [x], contest, result.radius * 1.5, larger)
    assert int(beyond.sum()) < 0.1 * int(larger.sum())


def test_small_gain_of_the_network_that_rounds() -> None:
    net, x, y = trained(3, (5, 16, 16, 3))
    net, x, y = net.float(), x[:30].float(), y[:30]
    result = certify(net, x, y, method="smallgain", local=True)
    assert bool((attacked(net, x, result.prediction, result.radius.float()) < 0).all())
    samples = Samples.of(x, y, name="clusters")
    graph = lipcert.trace(net, (5,))
    assert verify(make_certificate(graph, result, samples), net, samples, norms="none").accepted
