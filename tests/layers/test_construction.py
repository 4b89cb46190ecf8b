"""Bounds by the construction of layers: never above the product of the constants, never below the truth, or refused."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import lipcert
from lipcert.bounds import lower_bound
from lipcert.errors import BoundError, ConfigError, ModuleStateError, ShapeError
from lipcert.layers import (
    HalfAbs,
    LipschitzLinear,
    MaxMin,
    Normalised,
    PairwiseLinear,
    ResidualConv2d,
    ResidualLinear,
    SmallGainConv2d,
    SmallGainLinear,
    by_construction,
    fold,
)
from lipcert.layers.construction import construction
from lipcert.models.lipres import lipres
from lipcert.train import TrainingBound, load_config
from lipcert.train.factory import make_bound
from lipcert.train.schema import BoundConfig

BLOCKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: LipschitzLinear(5, 5, lipschitz=0.98), (5,)),
    "residual": (lambda: ResidualLinear(5, lipschitz=0.98), (5,)),
    "residual conv": (lambda: ResidualConv2d((2, 4, 4), lipschitz=0.98), (2, 4, 4)),
    "small gain": (lambda: SmallGainLinear(5, lipschitz=0.98), (5,)),
    "small gain conv": (lambda: SmallGainConv2d((2, 4, 4), lipschitz=0.98), (2, 4, 4)),
}


def _random(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return module.eval()


def _jacobian(module: nn.Module, x: Tensor) -> float:
    """The norm of the Jacobian at a point, as the module is."""
    full = torch.func.jacrev(lambda v: module(v[None])[0].flatten())(x)
    return float(torch.linalg.matrix_norm(full.detach().double().flatten(1), 2)) * (1 - 1e-6)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_stack_has_the_product_and_no_more(name: str) -> None:
    make, shape = BLOCKS[name]
    stack = _random(nn.Sequential(*(make() for _ in range(7))))
    bound = by_construction(stack, shape)
    assert isinstance(bound, lipcert.UpperBound)
    assert (bound.method, bound.guarantee) == ("layers", "upper")
    assert float(bound) <= 0.98**7 * (1 + 1e-10)
    for x in torch.randn(4, *shape, generator=torch.Generator().manual_seed(1)):
        assert _jacobian(stack, x) <= float(bound)
    estimate = by_construction(stack, shape, guarantee="estimate")
    assert isinstance(estimate, lipcert.Estimate)
    assert float(estimate) == pytest.approx(0.98**7)


def test_one_linear_layer_reaches_its_constant() -> None:
    layer = _random(LipschitzLinear(6, 6, lipschitz=1.5))
    exact = float(torch.linalg.matrix_norm(fold(layer).weight.double(), 2))  # type: ignore[operator,union-attr]
    assert exact <= float(by_construction(layer, (6,))) == 1.5
    assert exact > 1.49


@pytest.mark.parametrize("scope", ["pairwise", "class", "global"])
@pytest.mark.parametrize("head", ["linear", "pairwise"])
def test_what_comes_behind_is_bounded_as_any_network(scope: Any, head: str) -> None:
    net = _random(lipres([4], [1], 6, input_shape=(1, 4, 4), num_classes=3, head=head))
    net.double().eval()
    bound = by_construction(net, (1, 4, 4), scope=scope)
    weight = net[-1].weight().detach() if isinstance(net[-1], PairwiseLinear) else net[-1].weight.detach()
    assert isinstance(weight, Tensor)
    exact = {
        "global": torch.linalg.matrix_norm(weight, 2),
        "class": weight.norm(dim=1),
        "pairwise": (weight[:, None] - weight[None]).norm(dim=2),
    }[scope]
    assert (bound.value >= exact).all()
    torch.testing.assert_close(bound.value, exact, rtol=3e-3, atol=0)
    x = torch.rand((2, 1, 4, 4), dtype=torch.float64)
    below = float(lower_bound(net, x, scope=scope, starts=2, steps=5).value.max())
    assert bound.ends()[1] >= below * (1 - 1e-9)


def test_pairs_of_a_network_without_anything_behind() -> None:
    layer = _random(LipschitzLinear(4, 3))
    values = by_construction(layer, (4,), scope="pairwise").value
    assert values[0, 1] == pytest.approx(math.sqrt(2), rel=1e-6)
    assert values[0, 1] >= math.sqrt(2)
    assert not values.diagonal().any()


def test_radii_are_certified_with_it() -> None:
    net = _random(lipres([4], [1], 6, input_shape=(1, 4, 4), num_classes=3))
    x = torch.rand(5, 1, 4, 4)
    bound = by_construction(net, (1, 4, 4), scope="pairwise")
    found = lipcert.certify(net, x, bound=bound, precision="real")
    logits = copy.deepcopy(net).double().eval()(x.double()).detach().sort(1, descending=True).values
    assert (found.radius <= (logits[:, 0] - logits[:, 1]) / bound.ends()[0]).all()
    with pytest.raises(BoundError, match="rounding is not known"):
        lipcert.certify(net, x, bound=bound, precision="float32")


def test_a_state_that_lies_about_its_proof_is_found_out() -> None:
    layer = _random(nn.Sequential(LipschitzLinear(6, 6), nn.ReLU()))
    state = layer.state_dict()
    state["0.excess"] = state["0.excess"] * 0.5  # twice as large as it says
    layer.load_state_dict(state)
    inner = layer[0]
    assert isinstance(inner, Normalised)
    assert inner.sealed
    bound = float(by_construction(layer, (6,)))
    assert _jacobian(inner, torch.zeros(6)) <= bound
    assert bound > 1.9


class _Twice(SmallGainLinear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def _with_activation(act: nn.Module) -> nn.Module:
    """One that the layer was not made with."""
    layer = SmallGainLinear(4)
    layer.act = act
    return layer


def _hooked() -> nn.Module:
    layer = SmallGainLinear(4)
    layer.register_forward_hook(lambda m, i, o: 3 * o)
    return layer


def _patched(name: str) -> nn.Module:
    layer = SmallGainLinear(4)
    inner = getattr(layer, name)
    setattr(layer, name, lambda *x: 3 * inner(*x))
    return layer


def _disguised() -> nn.Module:
    class Mine(_Twice):
        __module__ = "lipcert.layers"

    return Mine(4)


def _patched_row() -> nn.Module:
    row = nn.Sequential(SmallGainLinear(4))
    row.forward = lambda x: 3 * nn.Sequential.forward(row, x)  # type: ignore[method-assign]
    return row


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (nn.Linear(4, 4), "does not begin with"),
        (nn.ReLU(), "does not begin with"),
        (_Twice(4), "does not begin with"),
        (_disguised(), "does not begin with"),
        (_hooked(), "does not begin with"),
        (_patched("forward"), "does not begin with"),
        (_patched("outer_part"), "does not begin with"),
        (_patched("divisors"), "does not begin with"),
        (_patched_row(), "does not begin with"),
        (nn.Sequential(_patched_row(), nn.ReLU()), "does not begin with"),
        (parametrizations.weight_norm(SmallGainLinear(4)), "does not begin with"),
        (fold(SmallGainLinear(4)), "does not begin with"),
        (_with_activation(nn.SiLU()), "its activation was replaced"),
        (_with_activation(nn.LeakyReLU(-4e-7)), "its activation was replaced"),
        (_with_activation(nn.Sequential(nn.ReLU(), nn.Linear(4, 4))), "its activation was replaced"),
        (_with_activation(nn.Identity()), "its activation was replaced"),
        (nn.Sequential(SmallGainLinear(4), nn.Flatten(0)), "mixes the samples"),
        (nn.Sequential(SmallGainLinear(4), nn.ZeroPad2d((0, 0, 1, -1))), "mixes the samples"),
    ],
)
def test_what_promises_nothing_is_refused(net: nn.Module, said: str) -> None:
    with pytest.raises((BoundError, ModuleStateError), match=said):
        by_construction(net.eval(), (4,))


def test_a_hook_of_the_whole_is_seen() -> None:
    net = nn.Sequential(SmallGainLinear(4)).eval()
    net.register_forward_hook(lambda m, i, o: 3 * o)
    with pytest.raises(BoundError, match="does not begin with"):
        by_construction(net, (4,))


def test_a_foreign_layer_ends_the_row() -> None:
    net = _random(nn.Sequential(LipschitzLinear(4, 4), _Twice(4), nn.Linear(4, 2)))
    found = construction(net, (4,))
    assert [type(m) for m, _ in found.layers] == [LipschitzLinear]
    assert [type(m) for m in found.rest] == [_Twice, nn.Linear]
    assert float(by_construction(net, (4,))) >= _jacobian(net, torch.randn(4))


def test_shapes_modes_and_weights_that_do_not_fit() -> None:
    net = _random(nn.Sequential(SmallGainLinear(4), nn.ReLU()))
    with pytest.raises(ShapeError, match="does not take inputs of shape"):
        by_construction(net, (5,))
    with pytest.raises(ModuleStateError, match="train mode"):
        by_construction(net.train(), (4,))
    net.eval()[0].bias.data[0] = math.nan  # type: ignore[union-attr,operator]
    with pytest.raises(ModuleStateError, match="NaN"):
        by_construction(net, (4,))


def test_hooks_on_everything_are_refused() -> None:
    layer = SmallGainLinear(4).eval()
    handle = torch.nn.modules.module.register_module_forward_hook(lambda m, i, o: 3 * o)
    try:
        with pytest.raises(BoundError, match="hooks on all modules"):
            by_construction(layer, (4,))
    finally:
        handle.remove()


@pytest.mark.parametrize("excess", [-0.1, -1e-38, 0.0, math.inf, [1.0, 1.0]])
def test_a_factor_that_is_no_positive_number_is_refused(excess: Any) -> None:
    layer = _random(LipschitzLinear(4, 4))
    layer.excess = torch.tensor(excess)
    with pytest.raises((BoundError, ModuleStateError, ShapeError)):
        by_construction(layer, (4,))


def test_constants_that_are_no_positive_numbers_are_refused() -> None:
    layer = SmallGainLinear(4).eval()
    for wrong in (-2.0, 0.0, math.nan, math.inf):
        layer.lipschitz = wrong
        with pytest.raises(ConfigError, match="positive number"):
            by_construction(layer, (4,))
    with pytest.raises(BoundError, match=r"not a number of float64|not finite"):
        by_construction(nn.Sequential(*(SmallGainLinear(4, lipschitz=1e200) for _ in range(2))).eval(), (4,))


def test_functionals_of_the_output() -> None:
    layer = SmallGainLinear(4).eval()
    weights = torch.tensor([3.0, 0.0, 4.0, 0.0])
    assert float(by_construction(layer, (4,), output_weights=weights)) == pytest.approx(5.0, rel=1e-6)


def test_products_that_underflow_are_rounded_up() -> None:
    net = nn.Sequential(SmallGainLinear(4, lipschitz=1e-200), nn.Linear(4, 2)).double().eval()
    with torch.no_grad():
        net[1].weight.mul_(1e-150)  # type: ignore[operator,union-attr]
    assert float(by_construction(net, (4,))) > 0


def test_activations_have_their_slopes() -> None:
    slopes: list[tuple[nn.Module, float]] = [(nn.Sigmoid(), 0.25), (nn.LeakyReLU(3.0), 3.0), (nn.GELU(), 1.129)]
    for act, slope in (*slopes, (nn.Dropout(), 1.0), (MaxMin(), 1.0), (HalfAbs(), 1.0)):
        net = nn.Sequential(SmallGainLinear(4), act).eval()
        assert float(by_construction(net, (4,))) == pytest.approx(slope, rel=1e-3)
        assert float(by_construction(net, (4,))) >= slope * 0.9999


@pytest.mark.parametrize("act", [nn.LeakyReLU(-3.0), nn.ELU(-2.0), nn.LeakyReLU(-1.5)])
def test_activations_that_fall_steeper_than_they_rise(act: nn.Module) -> None:
    """The upper end of the slopes alone was taken once: L = 1 of LeakyReLU(-3)."""
    first = LipschitzLinear(2, 2)
    with torch.no_grad():
        first.inner.weight.copy_(torch.eye(2))
        first.inner.bias.zero_()
    net = nn.Sequential(first, act, nn.Linear(2, 2)).eval()
    x = -1e-2 * torch.rand(50, 2)
    steepest = max(_jacobian(net, row) for row in x)
    bound = by_construction(net, (2,), scope="global", guarantee="upper")
    assert float(bound) >= steepest
    other = lipcert.lipschitz(net, (2,), guarantee="upper")
    assert float(bound) >= 0.99 * float(other)


def test_weights_whose_gram_matrix_is_lost_in_rounding() -> None:
    """|w_1·w_2| may be off by as much as ‖w_1‖·‖w_2‖ times the unit, which counts for the small row."""
    torch.manual_seed(0)
    layer = SmallGainLinear(64, 2).double().eval()
    with torch.no_grad():
        layer.weight.copy_(torch.linalg.qr(torch.randn(64, 2, dtype=torch.float64))[0].T)
        layer.weight[1] *= 1e18
    assert float(by_construction(layer, (64,))) > 1.5


def test_a_layer_used_twice_counts_twice() -> None:
    layer = SmallGainLinear(4, lipschitz=0.5)
    assert float(by_construction(nn.Sequential(layer, layer).eval(), (4,))) == pytest.approx(0.25, rel=1e-10)


def test_in_training_it_is_what_comes_behind_times_the_constants() -> None:
    net = lipres([4], [1], 6, input_shape=(1, 4, 4), num_classes=3)
    bound = make_bound(BoundConfig(method="layers"), net, (1, 4, 4), seed=0, every=1, iterations=1)
    head = net[-1].weight
    assert isinstance(head, Tensor)
    exact = (head[:, None] - head[None]).norm(dim=2)
    torch.testing.assert_close(bound(), exact.detach())
    weights = torch.rand(3, 3)
    (bound() * weights).sum().backward()
    (wanted,) = torch.autograd.grad((exact * weights).sum(), head)
    torch.testing.assert_close(head.grad, wanted)
    assert all(p.grad is None for p in net[:-1].parameters())
    half = TrainingBound(net[-1], (6,), factor=0.5)
    torch.testing.assert_close(half(), 0.5 * exact.detach())


def test_training_with_it_needs_such_a_network() -> None:
    assert load_config("digits-mlp-crm", ["bound.method=layers"]).bound.method == "layers"
    with pytest.raises(ConfigError, match=r"Set bound\.method to 'liplt'"):
        make_bound(BoundConfig(method="layers"), nn.Linear(4, 3), (4,), seed=0, every=1, iterations=1)


def test_a_network_without_a_head_of_its_own_trains_too() -> None:
    net = nn.Sequential(SmallGainLinear(4), LipschitzLinear(4, 3))
    bound = make_bound(BoundConfig(method="layers"), net, (4,), seed=0, every=1, iterations=1)
    loss = net(torch.rand(5, 4)).sum() * bound()[0, 1]
    loss.backward()
    assert float(bound()[0, 1].detach()) == pytest.approx(math.sqrt(2))
