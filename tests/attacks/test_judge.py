"""What counts as an adversarial example, and how near it is said to be."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lipcert.attacks import Judge
from lipcert.errors import ConfigError


def _line(dtype: torch.dtype = torch.float32) -> nn.Linear:
    """Two classes, with the boundary where the first coordinate is 1/2."""
    net = nn.Linear(2, 2, dtype=dtype).eval()
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
        net.bias.copy_(torch.tensor([0.5, -0.5]))
    return net


def _nearest(candidate: list[float], x: tuple[float, float] = (0.25, 0.5), arithmetic: str = "float32"):
    judge, inputs = Judge(_line(), arithmetic), torch.tensor([x])
    points, distance = judge.nearest(inputs, torch.tensor([0]), torch.tensor([candidate]))
    return points[0], float(distance[0])


@pytest.mark.parametrize("arithmetic", ["float32", "float64", "real"])
def test_it_goes_back_to_the_boundary(arithmetic: str) -> None:
    point, distance = _nearest([0.75, 0.5], arithmetic=arithmetic)
    assert distance == pytest.approx(0.25, rel=2e-4)
    assert distance > 0.25
    assert float(point[0]) == pytest.approx(0.5, rel=1e-4)
    assert float(point[1]) == 0.5


def test_a_little_beyond_a_candidate_is_looked_too() -> None:
    point, distance = _nearest([0.4999, 0.5])
    assert float(point[0]) > 0.5
    assert distance == pytest.approx(0.25, rel=2e-2)


@pytest.mark.parametrize("candidate", [[0.3, 0.9], [float("nan"), 0.5], [0.25, 0.5], [float("-inf"), float("nan")]])
def test_what_is_none(candidate: list[float]) -> None:
    point, distance = _nearest(candidate)
    assert distance == float("inf")
    assert point.tolist() == [0.25, 0.5]


def test_points_stay_in_the_range() -> None:
    net = nn.Sequential(_line())
    with torch.no_grad():
        net[0].bias.copy_(torch.tensor([1.1, -1.1]))  # the boundary is at 1.1
    judge = Judge(net, "float32")
    _, distance = judge.nearest(torch.tensor([[0.25, 0.5]]), torch.tensor([0]), torch.tensor([[1.5, 0.5]]))
    assert float(distance) == float("inf")


def test_the_distance_is_of_the_point_that_is_given() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    with torch.no_grad():
        net[2].bias.copy_(-net(torch.full((1, 5), 0.5))[0])  # so that all classes meet in the middle
    judge, x = Judge(net, "float32"), torch.rand(50, 5)
    y = judge.labels(x)
    points, distance = judge.nearest(x, y, torch.rand(50, 5))
    found = torch.isfinite(distance)
    assert 5 < int(found.sum()) < 50
    assert bool((judge.labels(points[found]) != y[found]).all())
    assert torch.equal(points[~found], x[~found])
    exact = (points.double() - x.double()).norm(dim=1)
    assert bool((distance[found] >= exact[found]).all())
    torch.testing.assert_close(distance[found], exact[found])


def test_a_counterexample_is_inside_and_of_another_class() -> None:
    judge, x = Judge(_line(), "float32"), torch.tensor([0.25, 0.5])
    other = torch.tensor([0.75, 0.5])
    assert judge.is_counterexample(x, other, 0, 0.51)
    assert not judge.is_counterexample(x, other, 0, 0.5)  # on the sphere, not inside of it
    assert not judge.is_counterexample(x, x + 0.1, 0, 1.0)
    assert not judge.is_counterexample(x, other, 1, 0.51)


def test_in_real_arithmetic_rounding_is_no_excuse() -> None:
    """Logits that differ by less than float64 may be off prove nothing."""
    net = nn.Linear(2, 2, dtype=torch.float64).eval()
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 1 / 3], [1.0, 1 / 3]]))
        net.bias.copy_(torch.tensor([0.0, 1e-17]))
    x, other = torch.tensor([0.2, 0.3], dtype=torch.float64), torch.tensor([0.7, 0.3], dtype=torch.float64)
    judge = Judge(net, "real")
    seen = int(judge.labels(other[None]))
    assert not judge.is_counterexample(x, other, 1 - seen, 1.0)
    with torch.no_grad():
        net.bias[1 - seen] -= 1e-9
    assert judge.is_counterexample(x, other, 1 - seen, 1.0)


def test_a_logit_that_is_not_finite_is_no_class() -> None:
    net = nn.Sequential(nn.Linear(1, 2, bias=False)).eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1e38], [0.0]]))
    assert Judge(net, "float32").labels(torch.tensor([[0.5], [1e5]])).tolist() == [0, -1]


def test_float64_has_a_copy_of_its_own() -> None:
    net = _line()
    judge = Judge(net, "float64")
    assert net.weight.dtype == torch.float32
    assert judge.module.weight.dtype == torch.float64


@pytest.mark.parametrize(
    ("net", "arithmetic", "said"),
    [
        (_line(), "float16", "judges in"),
        (_line(torch.float64), "float32", "another network"),
        (_line(torch.bfloat16), "float32", "in float32 or in float64"),
        (nn.Sequential(_line(), _line(torch.float64)), "float64", "in float32 or in float64"),
    ],
)
def test_refusals(net: nn.Module, arithmetic: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Judge(net, arithmetic)
