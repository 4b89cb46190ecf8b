"""Long sums made of short ones: the same function of the same weights, of which float32 loses less."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import lipcert
from lipcert.certify.arithmetic import segment_roundings
from lipcert.errors import ConfigError, ModuleStateError
from lipcert.layers import BlockedConv2d, BlockedConvTranspose2d, BlockedLinear, LipschitzLinear, blocked
from lipcert.layers.blocked import BLOCKED, blocks
from lipcert.loop import LoopMap
from lipcert.models import build


def _net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(7, 6, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(6, 5, (2, 3), padding="same", dilation=2, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(80, 30),
        nn.ReLU(),
        nn.Linear(30, 4, bias=False),
        nn.Unflatten(1, (4, 1, 1)),
        nn.ConvTranspose2d(4, 5, (3, 2), 2, 1, dilation=(1, 2), output_padding=1, bias=False),
        nn.ReLU(),
        nn.ConvTranspose2d(5, 2, 2),
    )


@pytest.mark.parametrize("terms", [1, 7, 20, 29, 1000])
def test_it_is_the_same_function_of_the_same_weights(terms: int) -> None:
    net = _net().double()
    made = blocked(net, terms=terms)
    x = torch.randn(3, 7, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(made(x), net.eval()(x), rtol=0, atol=1e-13)
    assert list(made.state_dict()) == list(net.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(made.state_dict().values(), net.state_dict().values(), strict=True))
    kinds = [type(m) for m in made]
    assert kinds[::2] == [BlockedConv2d, BlockedConv2d, nn.Flatten, nn.ReLU, nn.Unflatten, nn.ReLU]
    assert kinds[5::2] == [BlockedLinear, BlockedLinear, BlockedConvTranspose2d, BlockedConvTranspose2d]
    assert not any(isinstance(m, BLOCKED) for m in net)  # the original is as it was


@pytest.mark.parametrize(("inputs", "taps", "terms"), [(64, 9, 128), (3136, 1, 128), (5, 300, 128), (3, 9, 27)])
def test_blocks_are_equal_and_within_the_limit(inputs: int, taps: int, terms: int) -> None:
    found = blocks(inputs, taps, terms)
    assert sum(found) == inputs
    assert max(found) - min(found) <= 1
    assert max(found) * taps <= max(terms, taps)
    assert len(found) <= 4 or (inputs * taps) > (len(found) - 1) * (terms // taps or 1) * taps
    assert len(found) == 1 or len(found) >= min(4, inputs)


@pytest.mark.parametrize(
    ("inputs", "taps", "expected"), [(1, 9, 1), (3, 9, 3), (16, 9, 4), (9, 1, 1), (20, 1, 2), (1, 1, 1)]
)
def test_a_few_blocks_whatever_the_limit_is(inputs: int, taps: int, expected: int) -> None:
    assert len(blocks(inputs, taps, 10**6)) == expected


def test_gradients_reach_the_weights() -> None:
    net, x = _net().double(), torch.randn(2, 7, 8, 8, dtype=torch.float64)
    made = blocked(net, terms=20)
    for module in (net, made):
        module(x).square().sum().backward()
    for one, other in zip(net.parameters(), made.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_fewer_roundings_are_counted() -> None:
    net = nn.Sequential(nn.Linear(2000, 3), nn.ReLU(), nn.Linear(3, 2))
    counts = []
    for module in (net.eval(), blocked(net, terms=100)):
        graph = lipcert.trace(module, (2000,))
        counts.append(segment_roundings(LoopMap(graph, graph.resolve(torch.float64)), 1))
    assert counts[0] == (2003, 1)
    most, nodes = counts[1]
    assert most == 100 + 1 + 2 + 5  # a block, and five additions behind one another
    assert nodes == 20 + 19


def test_less_is_taken_off_a_radius() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2000, 40), nn.ReLU(), nn.Linear(40, 3)).eval()
    x = torch.rand(20, 2000)
    real = lipcert.certify(net, x, precision="real").radius
    plain, made = (real - lipcert.certify(module, x).radius for module in (net, blocked(net, terms=50)))
    assert bool((made >= 0).all())
    assert float(made.max()) < 0.2 * float(plain.min())


def test_what_is_left_as_it_is() -> None:
    net = nn.Sequential(
        nn.Conv2d(8, 8, 3, groups=2),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"),
        nn.ConvTranspose2d(8, 8, 3, groups=4),
        nn.ConvTranspose1d(8, 8, 3),
        nn.Conv2d(8, 3, 1),
    )
    made = blocked(net, terms=8)
    assert [type(m) for m in made] == [type(m) for m in net]
    with pytest.raises(ConfigError, match="one group that pads with zeros"):
        BlockedConv2d(nn.Conv2d(8, 8, 3, groups=2), terms=8)
    with pytest.raises(ConfigError, match="transposed convolution of one group"):
        BlockedConvTranspose2d(nn.ConvTranspose2d(8, 8, 3, groups=2), terms=8)


def test_a_transposed_layer_that_is_told_the_size_of_its_result() -> None:
    layer = nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1)
    made, x = BlockedConvTranspose2d(layer, terms=9), torch.randn(2, 6, 5, 5)
    assert made.sizes == [1] * 6
    for size in (None, [9, 9], [10, 9]):
        torch.testing.assert_close(made(x, size), layer(x, size))


def test_a_layer_that_is_there_twice_and_one_by_itself() -> None:
    layer = nn.Linear(9, 9)
    made = blocked(nn.Sequential(layer, nn.ReLU(), layer), terms=3)
    assert made[0] is made[2]
    assert isinstance(blocked(layer, terms=3), BlockedLinear)
    assert isinstance(copy.deepcopy(made)[0], BlockedLinear)
    x = torch.randn(2, 4, 9)
    torch.testing.assert_close(blocked(layer, terms=3)(x), layer(x))


@pytest.mark.parametrize("terms", [0, -1, 2.0, True, "many"])
def test_terms_that_are_none(terms: object) -> None:
    for make in (lambda: blocked(nn.Linear(3, 2), terms=terms), lambda: BlockedLinear(nn.Linear(3, 2), terms=terms)):  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="terms must be a whole number of at least 1"):
            make()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: nn.Sequential(LipschitzLinear(300, 3)), "'0.0' .LipschitzLinear. computes its weights: fold"),
        (lambda: parametrizations.weight_norm(nn.Linear(300, 3)), "parametrisations"),
        (lambda: _hooked(nn.Linear(300, 3)), "hooks"),
        (lambda: nn.utils.weight_norm(nn.Linear(300, 3)), "hooks"),
        (lambda: _with(nn.Linear(300, 3), lambda m: setattr(m, "alpha", 2.0)), "of its own .alpha."),
        (lambda: _with(nn.Linear(300, 3), lambda m: m.register_buffer("scale", torch.ones(1))), ".scale."),
        (lambda: _with(nn.Linear(300, 3), lambda m: m.add_module("more", nn.ReLU())), ".more."),
        (lambda: _with(nn.Linear(300, 3), lambda m: m.register_parameter("gain", None)), ".gain."),
        (lambda: _with(nn.Conv2d(300, 3, 1), lambda m: m.register_full_backward_hook(print)), "hooks"),
    ],
)
def test_what_would_be_lost_is_refused(make: Callable[[], nn.Module], said: str) -> None:
    with pytest.raises(ModuleStateError, match=said):
        blocked(nn.Sequential(make()))


def _with(layer: nn.Module, do: Callable[[nn.Module], object]) -> nn.Module:
    do(layer)
    return layer


def _hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda *_: None)
    return layer


def test_blocks_of_another_size() -> None:
    net = nn.Sequential(nn.Linear(9, 5), nn.ReLU(), nn.Unflatten(1, (5, 1, 1)), nn.Conv2d(5, 2, 1))
    again = blocked(blocked(net, terms=4), terms=2)
    assert (again[0].sizes, again[3].sizes) == ([2, 2, 2, 2, 1], [2, 2, 1])
    assert blocked(blocked(net, terms=2), terms=99)[0].sizes == [9]
    torch.testing.assert_close(again(torch.ones(2, 9)), net(torch.ones(2, 9)))


@pytest.mark.parametrize("make", [nn.Linear, lambda i, o, bias: nn.Conv2d(i, o, 1, bias=bias)])
def test_blocks_of_another_size_without_a_bias(make: Callable[..., nn.Module]) -> None:
    made = blocked(blocked(make(20, 5, bias=False), terms=10), terms=5)
    assert made.bias is None
    assert made.sizes == [5] * 4
    assert list(made.state_dict()) == ["weight"]


def test_models_by_name() -> None:
    torch.manual_seed(0)
    net = build("mlp", input_shape=(1, 20, 20), num_classes=10, widths=[300], terms=100)
    assert [m.sizes for m in net if isinstance(m, BlockedLinear)] == [[100] * 4, [75] * 4]
    plain = build("mlp", input_shape=(1, 20, 20), num_classes=10, widths=[300])
    plain.load_state_dict(net.state_dict())
    with pytest.raises(ConfigError, match="terms needs folded=true"):
        build("lipres-s", input_shape=(3, 32, 32), num_classes=10, terms=100)
    made = build("lipres-s", input_shape=(3, 32, 32), num_classes=10, terms=100, folded=True)
    assert any(isinstance(m, BlockedConv2d) for m in made.modules())
