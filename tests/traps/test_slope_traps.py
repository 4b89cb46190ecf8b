"""Traps for bounds: lipcert's bound is not below the slope of the witness, the foil's is."""

from __future__ import annotations

import foils
import pytest
import torch
from slope_traps import TRAPS, linear
from torch import Tensor, nn

import lipcert
from catalogue import Fn
from lipcert.bounds import graph_bound
from lipcert.errors import ModuleStateError, TraceError


def slope(net: nn.Module, a: Tensor, b: Tensor) -> float:
    """‖f(a) − f(b)‖/‖a − b‖ in float64."""
    with torch.no_grad():
        out = net(torch.stack([a, b]))
    return float((out[0] - out[1]).norm() / (a - b).norm())


@pytest.mark.parametrize("name", list(TRAPS))
def test_the_witness_refutes_the_foil_and_not_lipcert(name: str) -> None:
    trap = TRAPS[name]
    seen = slope(trap.module().double(), *trap.points())
    assert seen > 0
    assert not trap.foil(trap.module()) >= seen * (1 - 1e-6)  # it is below, or NaN, which bounds nothing
    for method in ("liplt", "product"):
        bound = lipcert.lipschitz(trap.module(), trap.shape, method=method, guarantee="upper")  # type: ignore[arg-type]
        assert float(bound) >= seen * (1 - 1e-12)


def test_started_orthogonal_no_number_of_steps_helps() -> None:
    """Power iteration started orthogonal to the top vector stays there; a proof does not depend on a start."""
    net = linear([[3.0, -3.0], [1.0, 1.0]])
    top, orthogonal = torch.tensor([1.0, -1.0]), torch.tensor([1.0, 1.0])
    assert foils.power_norm(net[0].weight, steps=1000, start=orthogonal) < 0.5 * slope(net, top, torch.zeros(2))
    assert float(lipcert.lipschitz(net.eval(), (2,), guarantee="upper")) >= slope(net.double(), top.double(), 0 * top)


# --- refusals -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(bad: float) -> None:
    """``max(nan, …)`` and comparisons with NaN let such a layer pass in silence."""
    net = linear([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, bad]]).eval()
    assert not bool(torch.isfinite(net(torch.tensor([[1.0, 2.0]]))).all())  # the witness
    assert max(1.0, foils.lipschitz(net)) == 1.0  # max(1, nan) is 1
    with pytest.raises(ModuleStateError, match=r"parameter '1\.weight' contains a NaN or an infinity"):
        lipcert.lipschitz(net, (2,), guarantee="upper")


def _steep_on_one_side(s: Fn, x: Tensor) -> Tensor:
    return 10 * s.a(x) if float(x.sum()) > 0 else s.a(x)


def _jump(s: Fn, x: Tensor) -> Tensor:
    return s.a(x) + (x.sum(1, keepdim=True) > 0)


@pytest.mark.parametrize("forward", [_steep_on_one_side, _jump])
def test_a_forward_that_depends_on_its_data(forward: object) -> None:
    net = Fn(forward, a=linear([[1.0, 0.0], [0.0, 1.0]])).eval()  # type: ignore[arg-type]
    a, b = torch.tensor([[-1e-3, 0.0]]), torch.tensor([[1e-3, 0.0]])
    with torch.no_grad():
        seen = float((net(a) - net(b)).norm() / (a - b).norm())
    assert foils.lipschitz_exact_layers(net) < seen / 2
    with pytest.raises(TraceError, match=r"forward|branch|data|not continuous"):
        lipcert.lipschitz(net, (2,), guarantee="upper")


# --- a model changed after tracing ----------------------------------------------------------------------------------
def test_weights_changed_after_tracing() -> None:
    net = linear([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]).eval()
    graph, cached = lipcert.trace(net, (2,)), foils.CachedBound()
    cached(net)
    net[0].weight.data *= 10
    seen = slope(net, torch.zeros(2), torch.tensor([1.0, 0.0]))
    assert cached(net) < seen / 5
    for bound in (graph_bound(graph, guarantee="upper"), lipcert.lipschitz(net, (2,), guarantee="upper")):
        assert float(bound) >= seen
    net[0] = linear([[100.0, 0.0], [0.0, 100.0]])[0]
    assert float(graph_bound(graph, guarantee="upper")) >= slope(net, torch.zeros(2), torch.tensor([1.0, 0.0]))


def _other_activation(net: nn.Sequential) -> None:
    net[1] = nn.LeakyReLU(-50.0)


def _hook(net: nn.Sequential) -> None:
    net[0].register_forward_hook(lambda module, args, out: 50 * out)


def _one_layer_more(net: nn.Sequential) -> None:
    net.append(linear([[50.0, 0.0], [0.0, 50.0]])[0])


CHANGES = [_other_activation, _hook, _one_layer_more]


def _changed(change: object) -> tuple[nn.Sequential, lipcert.Graph, float]:
    first, second = linear([[1.0, 0.0], [0.0, 1.0]]), linear([[1.0, 0.0], [0.0, 1.0]])
    net = nn.Sequential(first[0], nn.ReLU(), second[0]).eval()
    graph = lipcert.trace(net, (2,))
    change(net)  # type: ignore[operator]
    net.eval()
    return net, graph, max(slope(net, torch.zeros(2), s * torch.tensor([1.0, 0.0])) for s in (1, -1))


@pytest.mark.parametrize("change", CHANGES)
def test_layers_changed_after_tracing(change: object) -> None:
    """The verbs trace what there is now."""
    cached = foils.CachedBound()
    net, _, seen = _changed(lambda net: (cached(net), change(net)))  # type: ignore[operator]
    assert cached(net) < seen / 5
    assert float(lipcert.lipschitz(net, (2,), guarantee="upper")) >= seen


@pytest.mark.parametrize("change", CHANGES)
def test_a_graph_of_layers_that_were_changed_since(change: object) -> None:
    """A graph reads weights anew, and refuses another forward by name."""
    _, graph, _ = _changed(change)
    with pytest.raises(TraceError, match="changed since it was traced"):
        graph_bound(graph, guarantee="upper")
