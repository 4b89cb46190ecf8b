"""The bound as one differentiable formula of explicit matrices: what TrainingBound must agree with when converged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from catalogue import Fn

Blocks = dict[tuple[int, int], Tensor]


def matrix(f: Callable[[Tensor], Tensor], *shape: int) -> Tensor:
    """The matrix of a linear function, by its images of a basis; differentiable in the weights that f reads."""
    n = int(torch.tensor(shape).prod())
    return f(torch.eye(n, dtype=torch.float64).reshape(n, *shape)).flatten(1).T


def slopes(low: Tensor | float, high: Tensor | float, centred: bool) -> tuple[Tensor, Tensor]:
    """c and r of an activation."""
    low, high = torch.as_tensor(low, dtype=torch.float64), torch.as_tensor(high, dtype=torch.float64)
    if centred:
        return (low + high) / 2, (high - low) / 2
    return torch.zeros_like(low + high), torch.maximum(low.abs(), high.abs())


def chain(maps: list[Tensor], gains: list[tuple[Tensor, Tensor]]) -> Blocks:
    """Blocks of ``W_1, φ_1, W_2, …``; c and r are numbers or one value for each entry."""
    result: Blocks = {}
    for k in range(1, len(maps) + 1):
        for j in range(k):
            block = maps[j] if j == 0 else maps[j] * gains[j - 1][1]
            for i in range(j + 1, k):
                block = maps[i] @ (gains[i - 1][0].reshape(-1, 1) * block)
            result[k, j] = block
    return result


def bound(blocks: Blocks, scope: str) -> Tensor:
    """LipLT's formula (or the product's, where c = 0)."""
    last = max(k for k, _ in blocks)
    m = [torch.ones((), dtype=torch.float64)]
    for k in range(1, last):
        m.append(sum(torch.linalg.matrix_norm(blocks[k, j], 2) * m[j] for j in range(k) if (k, j) in blocks))
    rows = {j: blocks[last, j] for j in range(last) if (last, j) in blocks}
    if scope == "global":
        return sum(torch.linalg.matrix_norm(r, 2) * m[j] for j, r in rows.items())
    if scope == "class":
        return sum(r.norm(dim=1) * m[j] for j, r in rows.items())
    eye = torch.eye(len(next(iter(rows.values()))), dtype=torch.float64)
    apart = {j: (r[:, None] - r[None] + eye[..., None]).norm(dim=2) * (1 - eye) for j, r in rows.items()}
    return sum(d * m[j] for j, d in apart.items())


@dataclass(frozen=True)
class Setting:
    """A network and its blocks by hand, as functions of its parameters."""

    shape: tuple[int, ...]
    build: Callable[[], nn.Module]
    blocks: Callable[[nn.Module, bool], Blocks]


def _mlp_blocks(net: nn.Module, centred: bool) -> Blocks:
    relu = slopes(0.0, 1.0, centred)
    return chain([net[0].weight, net[2].weight, net[4].weight], [relu, relu])


def _batchnorm() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.PReLU(5), parametrizations.weight_norm(nn.Linear(5, 5)),
                        nn.LeakyReLU(0.2), nn.Linear(5, 3))  # fmt: skip
    net[1].running_mean.normal_()
    net[1].running_var.uniform_(0.3, 2)
    net[1].weight.data.normal_(0.5)
    net[2].weight.data = torch.tensor([0.25, -0.5, 1.5, 0.1, 0.9])
    return net


def _batchnorm_blocks(net: nn.Module, centred: bool) -> Blocks:
    bn, w = net[1], net[2].weight
    scale = bn.weight / (bn.running_var + bn.eps).sqrt()
    g, v = (getattr(net[3].parametrizations.weight, f"original{i}") for i in (0, 1))
    one = torch.ones_like(w)
    gains = [slopes(torch.minimum(w, one), torch.maximum(w, one), centred), slopes(0.2, 1.0, centred)]
    return chain([scale[:, None] * net[0].weight, g * v / v.norm(dim=1, keepdim=True), net[5].weight], gains)


def _residual() -> nn.Module:
    def f(s: Fn, x: Tensor) -> Tensor:
        return s.d(x + s.b(F.relu(s.a(x))))

    return Fn(f, a=nn.Linear(4, 6), b=nn.Linear(6, 4), d=nn.Linear(4, 3))


def _residual_blocks(net: nn.Module, centred: bool) -> Blocks:
    c, r = slopes(0.0, 1.0, centred)
    a, b, d = net.a.weight, net.b.weight, net.d.weight
    through = torch.eye(4, dtype=torch.float64) + c * b @ a
    return {(1, 0): a, (2, 0): d @ through, (2, 1): r * d @ b}


def _conv() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, 1), nn.Conv2d(3, 2, 2, stride=2),
                         nn.ReLU(), nn.Flatten(), nn.Linear(8, 4))  # fmt: skip


def _conv_blocks(net: nn.Module, centred: bool) -> Blocks:
    first = matrix(lambda e: F.conv2d(e, net[0].weight, padding=1), 1, 5, 5)
    second = matrix(lambda e: F.conv2d(e, net[3].weight, stride=2), 3, 4, 4)
    (c, r), last = slopes(0.0, 1.0, centred), net[6].weight
    pool = 2.0  # each pixel is in four windows
    result = {
        (1, 0): first, (2, 0): c * first, (2, 1): r * torch.eye(len(first), dtype=torch.float64),
        (3, 2): pool * second, (4, 2): c * last @ second * pool, (4, 3): r * last,
    }  # fmt: skip
    return {pair: b for pair, b in result.items() if bool(b.any())}


SETTINGS = {
    "mlp": Setting((4,), lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)),
                   _mlp_blocks),
    "batchnorm": Setting((4,), _batchnorm, _batchnorm_blocks),
    "residual": Setting((4,), _residual, _residual_blocks),
    "conv": Setting((1, 5, 5), _conv, _conv_blocks),
    "linear": Setting((4,), lambda: nn.Sequential(nn.Linear(4, 3)), lambda net, centred: {(1, 0): net[0].weight}),
}  # fmt: skip
