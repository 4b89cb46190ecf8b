"""Networks for coarse arithmetic (:mod:`emulated`), and an adversary who rounds them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from emulated import Machine, Residual, worst
from lipcert.certify.arithmetic import Arithmetic
from lipcert.layers import BlockedConv2d, BlockedConvTranspose2d, BlockedLinear, HalfAbs

UNIT = 2.0**-12
COARSE = Arithmetic("float64", UNIT, 2.0**-900, 2.0**900)
"""Float64 modules are analysed as if they ran with a unit roundoff of 2⁻¹²."""


def lively(*layers: nn.Module) -> nn.Module:
    """Float64, in eval, with biases and statistics that are as large as the rest."""
    net = nn.Sequential(*layers).double().eval()
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, (nn.Linear, nn.Conv2d)) and m.bias is not None:
                m.bias.normal_()
            if isinstance(m, nn.modules.batchnorm._BatchNorm):
                for value in (m.running_mean, m.weight, m.bias):
                    value.normal_()
                m.running_var.uniform_(0.3, 2.0)
            if isinstance(m, nn.PReLU):
                m.weight.uniform_(-0.5, 1.5)
                m.weight[0] = 1.0  # a slope of which nothing is left to be bounded
        for value in (*net.parameters(), *net.buffers()):
            if value.is_floating_point():
                value.copy_(Machine(UNIT).rounded(value))
    return net


L, C = nn.Linear, nn.Conv2d
NETS: dict[str, tuple[tuple[int, ...], Callable[[], nn.Module]]] = {
    "linear": ((7,), lambda: lively(L(7, 3))),
    "mlp": ((6,), lambda: lively(L(6, 8), nn.ReLU(), L(8, 8), nn.ReLU(), L(8, 3))),
    "two affine": ((4,), lambda: lively(L(4, 6), L(6, 5), nn.ReLU(), L(5, 5), L(5, 3))),
    "leaky": ((5,), lambda: lively(L(5, 6), nn.LeakyReLU(0.3), L(6, 3), nn.LeakyReLU(-0.7), L(3, 3))),
    "nearly the identity": ((5,), lambda: lively(L(5, 6), nn.LeakyReLU(0.99999), L(6, 6), nn.ReLU(), L(6, 3))),
    "prelu": ((5,), lambda: lively(L(5, 6), nn.PReLU(6), L(6, 4), nn.PReLU(4), L(4, 3))),
    "tanh": ((5,), lambda: lively(L(5, 6), nn.Tanh(), L(6, 6), nn.Tanh(), L(6, 3))),
    "ends in an activation": ((4,), lambda: lively(L(4, 6), nn.ReLU(), L(6, 3), nn.LeakyReLU(0.5))),
    "residual": (
        (5,),
        lambda: lively(Residual(nn.Sequential(nn.ReLU(), L(5, 5)), L(5, 5)), Residual(nn.Tanh()), L(5, 3)),
    ),
    "pooled maxima": (
        (1, 5, 5),
        lambda: lively(C(1, 3, 2), nn.ReLU(), nn.MaxPool2d(2, 1), C(3, 2, 2), nn.MaxPool2d(2), nn.Flatten(), L(2, 3)),
    ),
    "batch norm": (
        (2, 5, 5),
        lambda: lively(
            nn.BatchNorm2d(2),
            C(2, 3, 2, bias=False),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            L(12, 3),
        ),
    ),
    "padded, strided": ((1, 5, 5), lambda: lively(C(1, 3, 3, 2, 1), nn.ReLU(), nn.Flatten(), L(27, 3))),
    "in blocks": (
        (7,),
        lambda: lively(
            BlockedLinear(L(7, 6), terms=2),
            nn.ReLU(),
            BlockedLinear(L(6, 8, bias=False), terms=4),
            nn.LeakyReLU(0.3),
            BlockedLinear(L(8, 3), terms=1),
        ),
    ),
    "channels in blocks": (
        (2, 4, 4),
        lambda: lively(
            C(2, 5, 2), nn.ReLU(), BlockedConv2d(C(5, 3, 3, 2, 1), terms=18), nn.ReLU(), nn.Flatten(), L(12, 3)
        ),
    ),
    "transposed, in blocks": (
        (2, 2, 2),
        lambda: lively(
            C(2, 5, 1),
            nn.ReLU(),
            BlockedConvTranspose2d(nn.ConvTranspose2d(5, 3, 3, padding=1), terms=18),
            nn.ReLU(),
            nn.Flatten(),
            L(12, 3),
        ),
    ),
    "large and small": ((4,), lambda: _balanced(30.0)),
}  # fmt: skip


def _balanced(exponent: float) -> nn.Module:
    net = lively(L(4, 6), nn.ReLU(), L(6, 6), nn.ReLU(), L(6, 3))
    with torch.no_grad():
        net[0].weight.mul_(2.0**exponent), net[0].bias.mul_(2.0**exponent)
        net[2].weight.mul_(2.0**-exponent)
    return net


ROWS: dict[str, tuple[tuple[int, ...], Callable[[], nn.Module]]] = {
    "residual": NETS["residual"],
    "activations behind merges": (
        (4,),
        lambda: lively(L(4, 5), _block(5, nn.ReLU()), nn.ReLU(), _block(5, nn.LeakyReLU(0.3)), nn.Tanh(), L(5, 3)),
    ),
    "ends in a merge": ((3,), lambda: lively(_block(3, nn.PReLU(3)), nn.ReLU(), L(3, 3), _block(3, nn.ReLU()))),
    "an affine fork inside a part": ((4,), lambda: lively(L(4, 5), Residual(L(5, 5)), _block(5, nn.ReLU()), L(5, 3))),
    "images": (
        (2, 4, 4),
        lambda: lively(
            Residual(nn.Sequential(C(2, 3, 3, padding=1), nn.ReLU(), C(3, 2, 3, padding=1)), C(2, 2, 1)),
            Residual(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(2))),
            nn.MaxPool2d(2),
            nn.Flatten(),
            L(8, 3),
        ),
    ),
    "linear in half of the channels": (
        (4,),
        lambda: lively(L(4, 6), HalfAbs(), L(6, 4), HalfAbs(), L(4, 4), HalfAbs(), L(4, 3)),
    ),
}


def _block(width: int, act: nn.Module) -> nn.Module:
    return Residual(nn.Sequential(L(width, width + 1), act if not isinstance(act, nn.PReLU) else nn.PReLU(width + 1),
                                  L(width + 1, width)))  # fmt: skip


def some_net(
    name: str, seed: int = 0, nets: dict[str, tuple[tuple[int, ...], Callable[[], nn.Module]]] = NETS
) -> tuple[nn.Module, Tensor]:
    shape, build = nets[name]
    torch.manual_seed(seed)
    net = build()
    return net, Machine(UNIT).rounded(torch.randn((1, *shape), dtype=torch.float64))


PAIRS = list(itertools.combinations(range(3), 2))


def adversary(
    net: nn.Module,
    x: Tensor,
    radius: float,
    pair: tuple[int, int],
    orders: Sequence[str],
    seed: int = 0,
) -> float:
    """The most that any of the machines gets wrong."""
    found = 0.0
    for i, order in enumerate(orders):

        def make(deltas: Sequence[Tensor], order: str = order, way: int = seed + i) -> Machine:
            return Machine(UNIT, order, fused=way % 4 == 3, fold=way % 2 == 0, deltas=deltas, seed=seed)

        for sign in (1.0, -1.0):
            found = max(found, worst(make, net, x, radius, pair, sign)[0])
    return found


def chosen(weights: Sequence[Sequence[Sequence[float]]], *between: nn.Module) -> nn.Module:
    """Linear layers with these weights and no biases, with layers in between."""
    parts: list[nn.Module] = []
    for i, w in enumerate(weights):
        matrix = torch.tensor(w, dtype=torch.float64)
        layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False)
        layer.weight.data = matrix
        parts += [layer, between[i]] if i < len(between) else [layer]
    return nn.Sequential(*parts).double().eval()
