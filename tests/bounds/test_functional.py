"""Functionals of the output: the same as a further layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lipcert
from cases import CASES
from lipcert.errors import ShapeError


def _policy() -> nn.Module:
    return CASES["published-policy"].module()


def test_one_functional_is_a_row() -> None:
    policy = _policy()
    each = lipcert.lipschitz(policy, (5,), scope="class").value
    for i in range(2):
        w = torch.eye(2)[i]
        assert float(lipcert.lipschitz(policy, (5,), output_weights=w)) == pytest.approx(float(each[i]), rel=1e-6)


@pytest.mark.parametrize("method", ["product", "liplt", "smallgain"])
def test_of_an_image(method: str) -> None:
    """The mean of an image, and two pixels of it, each and both."""
    net = CASES["published-denoiser"].module()
    options = {"method": method, **({"scaling": "channel", "seconds": 1.0} if method == "smallgain" else {})}
    mean = lipcert.lipschitz(net, (1, 4, 4), **options, output_weights=torch.full((1, 4, 4), 1 / 16))  # type: ignore[arg-type]
    whole = lipcert.lipschitz(net, (1, 4, 4), **options, guarantee="upper")  # type: ignore[arg-type]
    assert float(mean) <= float(whole) / 4 * 1.001
    pixels = torch.zeros(2, 1, 4, 4)
    pixels[0, 0, 1, 1] = pixels[1, 0, 2, 3] = 1
    both = float(lipcert.lipschitz(net, (1, 4, 4), **options, output_weights=pixels))  # type: ignore[arg-type]
    each = lipcert.lipschitz(net, (1, 4, 4), **options, scope="class", output_weights=pixels).value  # type: ignore[arg-type]
    assert float(each.max()) * 0.99 <= both <= float(each.norm()) * 1.001
    for seed in range(5):
        x = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        slopes = torch.autograd.functional.jacobian(lambda v: net(v[None])[0].flatten(), x).flatten(1)
        assert float(slopes.mean(0).norm()) <= float(mean) * 1.001
        assert float(slopes[5].norm()) <= float(each[0]) * 1.001


@pytest.mark.parametrize(
    "weights", [torch.ones(3), torch.ones(2, 3), torch.tensor([1.0, torch.nan]), torch.ones(2).int()]
)
def test_refusals(weights: torch.Tensor) -> None:
    with pytest.raises(ShapeError, match="output_weights must"):
        lipcert.lipschitz(_policy(), (5,), output_weights=weights)


@pytest.mark.parametrize("method", ["product", "liplt", "smallgain", "best"])
def test_functionals_are_taken_exactly(method: str) -> None:
    """A float64 functional of a float32 network must not be rounded to its dtype: the bound would be too small."""
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU()).eval()
    nn.init.eye_(net[0].weight)
    for w in ([0.7, 0.0, 0.0], [1e-60, 0.0, 0.0], [1 + 1e-9, -1.0, 0.0]):
        weights = torch.tensor(w, dtype=torch.float64)
        bound = lipcert.lipschitz(net, (3,), method=method, guarantee="upper", output_weights=weights)  # type: ignore[arg-type]
        assert float(weights.clamp_min(0).norm()) * (1 - 1e-15) <= float(bound)
