"""Where the rounding analysis was found wanting: numbers at the ends of the range, mixed dtypes, odd shapes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lipcert
from cases import CASES
from catalogue import Fn
from flushing import flushing
from lipcert.errors import LipcertError, ShapeError

TINY = 2.0**-126  # float32's smallest normal number


def _linear(weight: list[list[float]], bias: list[float]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight)).eval()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight)), layer.bias.copy_(torch.tensor(bias))
    return layer


def _holds(net: nn.Module, x: Tensor, away: Tensor, *, flush: bool = False) -> None:
    """No point on the way to ``x + away`` that is within the radius is classified otherwise as it is executed."""
    result = lipcert.certify(net, x)
    for share in torch.linspace(0, 1, 41, dtype=torch.float64).tolist():
        point = (x.double() + share * away.double()).float()
        if float((point.double() - x.double()).norm()) < float(result.radius):
            with flushing(flush):
                y = net(point.clone())[0].double()
            rest = torch.arange(len(y)) != result.prediction[0]
            assert bool((y[result.prediction[0]] > y[rest]).all()), (point, y, result.radius)


def test_a_subnormal_weight_that_is_flushed_in_the_ball() -> None:
    net = _linear([[-1.1 * TINY], [-0.9 * TINY]], [1000 * TINY, 0.0])
    _holds(net, torch.zeros(1, 1), torch.tensor([[1024.0]]), flush=True)


def test_a_subnormal_weight_of_a_batch_norm() -> None:
    net = nn.Sequential(nn.BatchNorm1d(2, eps=0.0)).eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([0.99 * TINY, 0.0])), net[0].running_var.fill_(2.0**-60)
    _holds(net, torch.ones(1, 2), torch.zeros(1, 2), flush=True)


def test_a_subnormal_input_of_a_relu() -> None:
    _holds(nn.ReLU().eval(), torch.tensor([[0.9 * TINY, 0.0]]), torch.zeros(1, 2), flush=True)


@pytest.mark.parametrize("method", ["smallgain", "liplt", "product"])
@pytest.mark.parametrize(("inputs", "behind"), [(4, 150.0), (100, 1000.0)])
def test_a_subnormal_input_of_a_steep_activation(inputs: int, behind: float, method: Any) -> None:
    """It is not the input's size that is lost, but the slope times as much."""
    net = nn.Sequential(nn.LeakyReLU(-100.0), _linear([[1.0] * inputs, [0.0] * inputs], [0.0, behind * TINY])).eval()
    x = torch.full((1, inputs), -0.99 * TINY)
    with flushing(True):
        assert int(net(x.clone()).argmax()) == 1
    result = lipcert.certify(net, x, method=method)
    assert int(result.prediction) == 0
    assert float(result.radius) == 0.0


@pytest.mark.parametrize("kind", ["mean", "pool"])
def test_a_sum_that_overflows_before_it_is_divided(kind: str) -> None:
    n = 2**14
    last = _linear([[2.0**-110], [0.0]], [0.0, -1e6])
    if kind == "mean":
        net = Fn(lambda s, x: s.d(s.a(x).mean(1, keepdim=True)), a=nn.Linear(1, n, bias=False), d=last).eval()
        nn.init.constant_(net.a.weight, 2.0**110.4)
        x, away = torch.zeros(1, 1), torch.full((1, 1), -1024.0)
    else:
        net = Fn(lambda s, x: s.d(s.p(x * 2.0**111.2).flatten(1)), p=nn.AvgPool2d(128), d=last).eval()
        x, away = torch.zeros(1, 1, 128, 128), torch.full((1, 1, 128, 128), -7.9)
    _holds(net, x, away)


def test_joining_an_integer_constant() -> None:
    whole = torch.tensor([[2**24 + 1]])
    net = Fn(lambda s, x: torch.cat([x, s.c.expand(x.shape[0], 1)], 1), c=whole).eval()
    _holds(net, torch.tensor([[2.0**24]]), torch.zeros(1, 1))


def test_a_sum_that_is_made_in_bfloat16() -> None:
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        return s.d(x) + 2.0**-10 * x.sum(1, keepdim=True, dtype=torch.bfloat16) * s.q

    net = Fn(forward, d=_linear([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]], [0.0, 0.0]), q=torch.tensor([[1.0, -1.0]])).eval()
    x = torch.tensor([[-0.2505, 256.9, 0.0]])
    try:
        _holds(net, x, torch.zeros(1, 3))
    except LipcertError:
        return  # refusing it is right too


def test_a_signal_of_one_number() -> None:
    case = CASES["math-scalar-feature"]
    assert lipcert.certify(case.module(torch.float32), case.inputs(3, dtype=torch.float32)).radius.shape == (3,)


def test_an_output_that_is_an_image_is_refused_with_a_message() -> None:
    with pytest.raises(ShapeError, match="radii are of logits"):
        lipcert.certify(nn.Conv2d(1, 1, 3).eval(), torch.rand(3, 1, 4, 4), scope="global")


@pytest.mark.parametrize("precision", ["real", "float32"])
def test_a_huge_sample_takes_nothing_from_the_others(precision: str) -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), torch.rand(4, 3)
    alone = lipcert.certify(net, x, precision=precision).radius
    x[1, 0] = 1e30
    radius = lipcert.certify(net, x, precision=precision).radius
    others = [0, 2, 3]
    assert torch.allclose(radius[others], alone[others], rtol=1e-6, atol=0)
