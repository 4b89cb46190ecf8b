"""Traps for radii: a network, a point, a point of another class, and the foil whose radius covers that point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import foils
import torch
from slope_traps import SMALLEST, linear
from torch import Tensor, nn

from catalogue import Fn
from known_traps import BETWEEN, WEIGHTS
from lipcert.models.normalize import Normalize

TRAPS: dict[str, Trap] = {}


@dataclass(frozen=True)
class Trap:
    build: Callable[[], nn.Module]
    x: list[float]
    moved: list[float]
    foil: Callable[[nn.Module, Tensor], float]

    def module(self) -> nn.Module:
        """In float32, the same every time."""
        torch.manual_seed(0)
        return self.build().eval()


def _shifted(bias: float) -> nn.Module:
    """y_0 = x, y_1 = 0, by way of numbers at which float32 has lost all digits behind the point."""
    net = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 2))
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[0].bias.fill_(bias)
        net[1].weight.copy_(torch.tensor([[1.0], [0.0]]))
        net[1].bias.copy_(torch.tensor([-bias, 0.0]))
    return net


def _normalised() -> nn.Module:
    return nn.Sequential(Normalize(0.5, 0.5, trailing=0), linear([[1.0, 0.0], [0.0, 1.0]]))


class Scaled(nn.Linear):
    """A subclass that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(4 * x)


def _subclass() -> nn.Module:
    net = nn.Sequential(Scaled(2, 2, bias=False))
    net[0].weight.data = torch.eye(2)
    return net


def _shared() -> nn.Module:
    """The logits are ±(9u − 1): class 0 begins at u = 1/9."""
    last = nn.Linear(2, 2)
    last.weight.data, last.bias.data = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([-1.0, 1.0])
    return Fn(lambda s, x: s.b(s.a(s.a(x))), a=linear([[3.0, 0.0], [0.0, 1.0]]), b=last)


TRAPS["tied logits"] = Trap(
    lambda: linear([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]), [1.0, 1.0], [1.0, 1.0 + 1e-6], foils.radius_without_ties
)
TRAPS["no √2 for two logits that move at once"] = Trap(
    lambda: linear([[1.0], [-1.0]]), [1.0], [-1e-6], lambda net, x: foils.radius(net, x, foils.lipschitz(net))
)
for _power in (24, 27, 30):
    TRAPS[f"adversarial biases of 2^{_power}"] = Trap(
        lambda p=_power: _shifted(2.0**p), [1.3 * 2.0 ** (_power - 24)], [-1e-3], foils.radius_sqrt2
    )
TRAPS["weights of float32's smallest normal"] = Trap(
    lambda: linear([[SMALLEST], [-SMALLEST]]), [1.0], [-1e-6], foils.radius_by_power_iteration
)
for _k in (20, 40, 60):
    TRAPS[f"first divided by 2^{_k}, last multiplied"] = Trap(
        lambda k=_k: linear([[2.0**-k]], [[2.0**k], [-(2.0**k)]]), [1.0], [-1e-6], foils.radius_by_power_iteration
    )
TRAPS["std .5: the radius in pixels is half of it"] = Trap(_normalised, [0.9, 0.5], [0.69, 0.71], foils.radius_sqrt2)
TRAPS["a subclass with another forward"] = Trap(_subclass, [1.0, 0.5], [0.7, 0.8], foils.radius_sqrt2)
TRAPS["a shared layer, used twice"] = Trap(_shared, [0.3, 0.0], [0.1, 0.0], foils.radius_sqrt2)
TRAPS["two weights that differ in their last digit"] = Trap(
    lambda: linear(WEIGHTS), [BETWEEN], [-1e-9], foils.radius_of_pairs
)
