"""Cases: every activation, alone between two linear layers, and functional and method forms of the common ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from catalogue import case, function, layers
from lipcert.layers import HalfAbs

ACTIVATIONS = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky": lambda: nn.LeakyReLU(0.2),
    "leaky-steep": lambda: nn.LeakyReLU(2.5),
    "leaky-negative": lambda: nn.LeakyReLU(-0.5),
    "leaky-falling": lambda: nn.LeakyReLU(-3.0),  # steepest where it falls
    "leaky-one": lambda: nn.LeakyReLU(1.0),
    "rrelu": lambda: nn.RReLU(0.1, 0.4),
    "prelu": nn.PReLU,
    "elu": nn.ELU,
    "elu-steep": lambda: nn.ELU(alpha=2.5),
    "elu-negative": lambda: nn.ELU(alpha=-0.7),
    "celu": lambda: nn.CELU(alpha=0.3),
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "gelu-tanh": lambda: nn.GELU(approximate="tanh"),
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "hardtanh": lambda: nn.Hardtanh(-0.3, 2.0),
    "softplus": nn.Softplus,
    "softplus-beta": lambda: nn.Softplus(beta=3.0),
    "sigmoid": nn.Sigmoid,
    "logsigmoid": nn.LogSigmoid,
    "tanh": nn.Tanh,
    "tanhshrink": nn.Tanhshrink,
    "softshrink": lambda: nn.Softshrink(0.2),
    "threshold": lambda: nn.Threshold(0.25, 0.25),
}
for _name, _make in ACTIVATIONS.items():
    layers(
        f"act-{_name}",
        (4,),
        lambda make=_make: [nn.Linear(4, 6), make(), nn.Linear(6, 5), nn.ReLU()],
        *(["chain"] if _name != "tanhshrink" else []),
    )


def _channels() -> list[nn.Module]:
    prelu = nn.PReLU(4)
    prelu.weight.data = torch.tensor([-0.5, 0.25, 1.0, 1.75])
    return [nn.Conv2d(2, 4, 2), prelu]


layers("prelu-channels", (2, 4, 4), _channels, "chain")
layers("prelu-features", (4,), lambda: [nn.Linear(4, 4), nn.PReLU(4, init=-0.3)], "chain")

FUNCTIONS = {
    "abs": torch.abs,
    "sin": torch.sin,
    "cos": torch.cos,
    "erf": torch.erf,
    "atan": torch.atan,
    "asinh": torch.asinh,
    "clamp": lambda z: z.clamp(-0.5, 1.5),
    "clamp-min": lambda z: torch.clamp_min(z, -0.1),
    "clamp-max": lambda z: z.clamp(max=0.2),
    "relu-method": lambda z: z.relu(),
    "tanh-method": lambda z: z.tanh(),
    "relu-inplace": F.relu_,
    "leaky-functional": lambda z: F.leaky_relu(z, negative_slope=0.3, inplace=True),
    "elu-functional": lambda z: F.elu(z, 0.5, inplace=True),
}
for _name, _apply in FUNCTIONS.items():
    function(
        f"fn-{_name}",
        (4,),
        lambda s, x, f=_apply: s.b(f(s.a(x))),
        "chain",
        a=lambda: nn.Linear(4, 6),
        b=lambda: nn.Linear(6, 3),
    )


def _half_abs_conv() -> list[nn.Module]:
    return [nn.Conv2d(2, 4, 2), HalfAbs(), nn.Conv2d(4, 4, 2), HalfAbs()]


layers("half-abs", (4,), lambda: [nn.Linear(4, 6), HalfAbs(), nn.Linear(6, 4), HalfAbs()])
layers("half-abs-conv", (2, 4, 4), _half_abs_conv)


# --- activations that are not elementwise -------------------------------------------------------------------------
def _maxmin(s: nn.Module, x: Tensor) -> Tensor:
    a, b = s.a(x).chunk(2, dim=1)
    return s.b(torch.cat([torch.maximum(a, b), torch.minimum(a, b)], dim=1))


def _maxmin_old_names(s: nn.Module, x: Tensor) -> Tensor:
    a, b = torch.split(s.a(x), 3, dim=1)
    return s.b(torch.stack([torch.max(a, b), torch.min(b, a)], dim=2).flatten(1))


def _groupsort(s: nn.Module, x: Tensor) -> Tensor:
    z = s.a(x)
    return s.b(z.view(z.shape[0], 2, 3).sort(dim=2).values.flatten(1))


for _name, _f in {
    "maxmin": _maxmin,
    "maxmin-old-names": _maxmin_old_names,
    "groupsort": _groupsort,
    "sort-descending": lambda s, x: s.b(torch.sort(s.a(x), dim=-1, descending=True)[0]),
    "topk": lambda s, x: F.linear(s.a(x).topk(3, dim=1).values, s.b.weight[:, :3]),
    "max-over-features": lambda s, x: s.b(s.a(x).unflatten(1, (6, 1)).max(dim=2).values),
    "amin": lambda s, x: F.linear(s.a(x).unflatten(1, (2, 3)).amin(2), s.b.weight[:, :2]),
    "maxout": lambda s, x: F.linear(s.a(x).view(-1, 3, 2).amax(dim=-1), s.b.weight[:, :3]),
    "only-maximum": lambda s, x: F.linear(torch.maximum(s.a(x)[:, :3], s.a(x)[:, 3:]), s.b.weight[:, :3]),
}.items():
    function(f"sorting-{_name}", (4,), _f, a=lambda: nn.Linear(4, 6), b=lambda: nn.Linear(6, 3))


class Swish(nn.Module):
    """An activation module of a user's own, used twice in one net."""

    def forward(self, z: Tensor) -> Tensor:
        return F.silu(z)


def _shared_activation() -> nn.Module:
    act = Swish()
    return nn.Sequential(nn.Linear(4, 6), act, nn.Linear(6, 6), act, nn.Linear(6, 3))


case("shared-activation", (4,), _shared_activation, "chain")
