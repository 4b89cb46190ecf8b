"""Cases: residual, dense, branched and U-shaped networks; shared weights; outputs that are images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from catalogue import case, classifier, function


class Residual(nn.Module):
    """``relu(x + F(x))`` or, without ``last``, ``x + F(x)``; with ``project`` a 1×1 convolution on the skip."""

    def __init__(self, cin: int, cout: int, *, stride: int = 1, last: bool = True, inplace: bool = False) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False), nn.BatchNorm2d(cout)
        self.c2, self.b2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False), nn.BatchNorm2d(cout)
        self.project = None
        if stride != 1 or cin != cout:
            self.project = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))
        self.last, self.relu = last, nn.ReLU(inplace=inplace)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.project is None else self.project(x)
        out = self.b2(self.c2(self.relu(self.b1(self.c1(x)))))
        out += identity
        return self.relu(out) if self.last else out


class PreActivation(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.b, self.c1, self.c2 = nn.BatchNorm2d(channels), nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.c2(F.relu(self.c1(F.relu(self.b(x)))))


class Dense(nn.Module):
    """DenseNet-like: every layer sees all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(4 + 3 * i, 3) for i in range(3))
        self.head = nn.Linear(13, 3)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = torch.cat([x, F.relu(part(x))], dim=1)
        return self.head(x)


class UNet(nn.Module):
    def __init__(self, classes: int | None) -> None:
        super().__init__()
        self.down, self.mid = nn.Conv2d(1, 3, 3, 2, 1), nn.Conv2d(3, 3, 3, 1, 1)
        self.up, self.out = nn.ConvTranspose2d(3, 2, 2, 2), nn.Conv2d(3 + 2 + 1, 2, 1)
        self.head = nn.Linear(32, classes) if classes else None

    def forward(self, x: Tensor) -> Tensor:
        low = F.relu(self.down(x))
        mid = F.relu(self.mid(low))
        y = self.out(torch.cat([F.interpolate(low, scale_factor=2), F.relu(self.up(mid)), x], 1))
        return y if self.head is None else self.head(y.flatten(1))


def _residuals(*blocks: nn.Module) -> nn.Module:
    return classifier((2, 4, 4), *blocks)


case("residual-identity", (2, 4, 4), lambda: _residuals(Residual(2, 2)))
case("residual-inplace", (2, 4, 4), lambda: _residuals(nn.Conv2d(2, 3, 1), Residual(3, 3, inplace=True)))
case("residual-projection", (2, 4, 4), lambda: _residuals(Residual(2, 3, stride=2)))
case("residual-two-open", (2, 4, 4), lambda: _residuals(Residual(2, 2, last=False), Residual(2, 2, last=False)))
case("residual-preactivation", (2, 4, 4), lambda: _residuals(PreActivation(2), PreActivation(2), nn.ReLU()))
case(
    "residual-chain",
    (2, 4, 4),
    lambda: _residuals(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), Residual(3, 3), nn.AvgPool2d(2)),
)
case("dense-concat", (4,), Dense)
case("unet", (1, 4, 4), lambda: UNet(3))
case("unet-image", (1, 4, 4), lambda: UNet(None), "image")
case(
    "image-to-image",
    (2, 4, 4),
    lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 1, 3)),
    "image",
    "chain",
)

_a, _b, _d = (lambda: nn.Linear(4, 4)), (lambda: nn.Linear(4, 4)), (lambda: nn.Linear(4, 3))
function("two-branches", (4,), lambda s, x: s.d(s.a(x).relu() + torch.tanh(s.b(x))), a=_a, b=_b, d=_d)
function(
    "two-branches-unequal", (4,), lambda s, x: s.d(s.a(s.b(s.a(x).relu()).relu()) - s.b(x).tanh() / 2), a=_a, b=_b, d=_d
)
function("shared-layer", (4,), lambda s, x: s.d(s.a(s.a(x).relu()).relu()), "chain", a=_a, d=_d)
function("skip-to-output", (4,), lambda s, x: x + s.a(s.b(x).relu()), a=_a, b=_b)
function("skip-over-activation", (4,), lambda s, x: s.d(s.a(x) + F.relu(s.a(x))), a=_a, d=_d)
function("cancelling-branches", (4,), lambda s, x: s.d(F.relu(s.a(x)) - F.relu(-s.a(x)) - s.a(x)), a=_a, d=_d)
function("unused-branch", (4,), lambda s, x: (s.b(x).softmax(1), s.d(s.a(x).relu()))[1], a=_a, b=_b, d=_d)
function("residual-mlp", (4,), lambda s, x: s.d(x + s.b(F.silu(s.a(x)))), a=_a, b=_b, d=_d)
function(
    "maxpool-residual",
    (1, 4, 4),
    lambda s, x: s.d(F.max_pool2d(x + F.relu(s.c(x)), 2).flatten(1)),
    c=lambda: nn.Conv2d(1, 1, 3, padding=1),
    d=_d,
)


class Scaled(nn.Linear):
    """A linear layer whose forward is another: it must be bounded by what it computes."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x)


case("linear-subclass", (4,), lambda: nn.Sequential(Scaled(4, 5), nn.ReLU(), Scaled(5, 3)), "chain")


def _hooked() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    net[0].register_forward_hook(lambda module, args, out: 2 * out)
    net[2].register_forward_pre_hook(lambda module, args: (args[0] * 1.5,))
    return net


case("forward-hooks", (4,), _hooked, "chain")


def _pruned() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    prune.l1_unstructured(net[0], "weight", amount=0.5)
    return net


case("pruned", (4,), _pruned, "chain")
