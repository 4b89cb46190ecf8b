"""No attack inside a certified radius changes a prediction: trained nets, projected gradient ascent, float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cases_blocks import Residual
from lipcert.certify import certify


def _data(n: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    centres = torch.rand((3, *shape), generator=generator, dtype=torch.float64)
    y = torch.arange(n) % 3
    return centres[y] + 0.15 * torch.randn((n, *shape), generator=generator, dtype=torch.float64), y


def _trained(net: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
    net = net.double().train()
    optimiser = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(40):
        optimiser.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimiser.step()
    return net.eval()


NETS = {
    "mlp": ((6,), lambda: nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.GELU(), nn.Linear(12, 3))),
    "pool": (
        (1, 6, 6),
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.LeakyReLU(0.1), nn.MaxPool2d(2, 1), nn.Flatten(), nn.Linear(36, 3)
        ),
    ),
    "residual": ((2, 4, 4), lambda: nn.Sequential(Residual(2, 4, stride=2), nn.Flatten(), nn.Linear(16, 3))),
    "one-layer": ((6,), lambda: nn.Linear(6, 3)),
}


def _attack(net: nn.Module, x: Tensor, prediction: Tensor, radius: Tensor, steps: int) -> Tensor:
    """Ascend the largest other logit minus the predicted one within the ball; returns the best difference found."""
    size = (-1, *(1,) * (x.ndim - 1))
    own = F.one_hot(prediction, 3).bool()
    generator = torch.Generator().manual_seed(1)
    delta = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    best = torch.full((len(x),), -float("inf"), dtype=x.dtype)
    for step in range(steps):
        delta = delta * (radius / delta.flatten(1).norm(dim=1)).reshape(size)  # onto the sphere
        delta = delta.detach().requires_grad_()
        z = net(x + delta)
        gap = z.masked_fill(own, -float("inf")).amax(1) - z[own]
        best = torch.maximum(best, gap.detach())
        (gradient,) = torch.autograd.grad(gap.sum(), delta)
        length = gradient.flatten(1).norm(dim=1).clamp_min(1e-12)
        delta = delta + (2 * radius / (1 + step) / length).reshape(size) * gradient
    return best


@pytest.mark.parametrize("name", list(NETS))
@pytest.mark.parametrize("method", ["liplt", "product"])
def test_attacks_inside_the_radius_fail(name: str, method: str) -> None:
    shape, build = NETS[name]
    torch.manual_seed(0)
    x, y = _data(90, shape)
    net = _trained(build(), x, y)
    result = certify(net, x, y, method=method)  # type: ignore[arg-type]
    assert result.clean_accuracy > 0.8
    inside = _attack(net, x, result.prediction, result.radius * (1 - 1e-9), 30)
    assert bool((inside <= 1e-12).all())


def test_one_step_further_a_linear_classifier_changes_its_mind() -> None:
    torch.manual_seed(0)
    net, x = nn.Linear(6, 4).double().eval(), torch.randn(50, 6, dtype=torch.float64)
    result = certify(net, x)
    for b in range(4):
        direction = (net.weight[b] - net.weight[result.prediction]).detach()
        length = direction.norm(dim=1, keepdim=True).clamp_min(1e-12)
        for factor in (1 - 1e-9, 1 + 1e-9):
            moved = net(x + factor * result.radius[:, None] * direction / length).argmax(1)
            same = moved == result.prediction
            if factor < 1:
                assert bool(same.all())
            elif b == 0:
                changed = ~same
            else:
                changed = changed | ~same
    assert bool(changed.all())
