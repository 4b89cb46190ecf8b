"""Coarse arithmetic, emulated: networks run operation by operation, and every single result is rounded.

A :class:`Machine` does the sums of a layer term by term, in the order that it is told to, with or without fused
multiply-adds. It rounds in one of two ways:

- *to the nearest* number of p bits, as a processor would;
- *by an adversary* (:func:`worst`): each result is multiplied by 1 + δ with |δ| ≤ u, the δ chosen by their gradient
  so that the difference of two logits is as wrong as can be. That is all an analysis may assume of roundings, and it
  leaves no room for one that was forgotten.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lipcert.layers import BlockedConv2d, BlockedConvTranspose2d, BlockedLinear

ORDERS = ("given", "random", "descending", "tree", "largest first")


@dataclass
class Machine:
    """Arithmetic of unit roundoff ``unit``; with ``deltas`` an adversary's, who rounds operation i by deltas[i]."""

    unit: float
    order: str = "given"
    fused: bool = False  # multiply-adds with one rounding
    fold: bool = False  # BatchNorm as s·x + (b − s·μ), not ((x − μ)/σ)·w + b
    deltas: Sequence[Tensor] | None = None
    seed: int = 0
    shapes: list[torch.Size] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def rounded(self, value: Tensor, units: float = 1.0) -> Tensor:
        """What the machine holds instead of ``value``."""
        if self.deltas is None:
            mantissa, power = torch.frexp(value)  # in [½, 1): the nearest multiple of u has p bits
            return torch.ldexp((mantissa / self.unit).round() * self.unit, power)
        self.shapes.append(value.shape)
        given = len(self.shapes) <= len(self.deltas)
        return value * (1 + units * self.unit * self.deltas[len(self.shapes) - 1]) if given else value

    def times(self, a: Tensor, b: Tensor) -> Tensor:
        return self.rounded(a * b)

    def plus(self, a: Tensor, b: Tensor) -> Tensor:
        return self.rounded(a + b)

    def sum(self, terms: Tensor, products: Tensor) -> Tensor:
        """The sum of the last dimension; ``products`` says which terms are products that are not rounded yet."""
        terms, products = self._arranged(terms, products)
        parts = list(terms.unbind(-1))
        late = [bool(p) for p in products]  # fused: these are rounded when they are added
        if not self.fused:
            every = self.rounded(terms)
            parts = [e if p else t for e, t, p in zip(every.unbind(-1), parts, late, strict=True)]
        else:  # rounded in any case, so that an adversary's operations have the same numbers whatever comes first
            first = self.rounded(parts[0])
            parts[0] = first if late[0] else parts[0]
        while len(parts) > 1:
            i = self.random.randrange(len(parts) - 1) if self.order == "tree" else 0
            parts[i : i + 2] = [self.plus(parts[i], parts[i + 1])]
        return parts[0]

    def _arranged(self, terms: Tensor, products: Tensor) -> tuple[Tensor, Tensor]:
        if self.order in ("random", "tree"):
            shuffled = torch.tensor(self.random.sample(range(terms.shape[-1]), terms.shape[-1]))
            return terms[..., shuffled], products[shuffled]
        if self.order == "given":
            return terms, products
        key = terms if self.order == "descending" else terms.abs()
        if self.fused:  # the same place for all, so that products and others are not mixed up
            where = key.detach().flatten(0, -2).mean(0).argsort(descending=True)
            return terms[..., where], products[where]
        terms = torch.where(products, self.rounded(terms), terms)
        return terms.gather(-1, key.detach().argsort(-1, descending=True)), torch.zeros_like(products)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``x·weightᵀ + bias`` along the last dimension."""
        terms = x.unsqueeze(-2) * weight
        products = torch.ones(terms.shape[-1], dtype=torch.bool)
        if bias is not None:
            terms = torch.cat([terms, bias.expand(terms.shape[:-1]).unsqueeze(-1)], -1)
            products = torch.cat([products, torch.zeros(1, dtype=torch.bool)])
        return self.sum(terms, products)


class Residual(nn.Module):
    """``x + body(x)``; with ``share`` layers before the fork, whose rounding goes both ways."""

    def __init__(self, body: nn.Module, share: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.share = body, nn.Identity() if share is None else share

    def forward(self, x: Tensor) -> Tensor:
        x = self.share(x)
        return x + self.body(x)


class Beside(nn.Module):
    """Several modules of one input, and their outputs side by side."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], -1)


class Mean(nn.Module):
    """The mean of the last dimension, which is kept."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(-1, keepdim=True)


def run(m: Machine, module: nn.Module, x: Tensor) -> Tensor:
    """The module as the machine computes it."""
    match module:
        case nn.Sequential():
            for part in module:
                x = run(m, part, x)
            return x
        case Residual():
            x = run(m, module.share, x)
            return m.plus(x, run(m, module.body, x))
        case Beside():
            return torch.cat([run(m, branch, x) for branch in module.branches], -1)
        case BlockedLinear() | BlockedConv2d() | BlockedConvTranspose2d():
            turned = isinstance(module, BlockedConvTranspose2d)
            weight = module.weight.transpose(0, 1).flip(2, 3) if turned else module.weight
            some = zip(x.split(module.sizes, 1), weight.split(module.sizes, 1), strict=True)
            wide = not isinstance(module, BlockedLinear)
            make = (lambda u, w, b: _convolution(m, module, u, w, b)) if wide else m.product
            sums = [make(u, w, module.bias if i + 1 == len(module.sizes) else None) for i, (u, w) in enumerate(some)]
            while len(sums) > 1:
                pairs = [m.plus(a, b) for a, b in zip(sums[::2], sums[1::2], strict=False)]
                sums = [*pairs, *sums[2 * len(pairs) :]]
            return sums[0]
        case nn.Linear():
            return m.product(x, module.weight, module.bias)
        case nn.Conv2d():
            return _convolution(m, module, x, module.weight, module.bias)
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            return _batch_norm(m, module, x)
        case nn.AvgPool2d():
            k = module.kernel_size
            windows = x.unfold(2, k, k).unfold(3, k, k).flatten(4)
            return _average(m, windows)
        case Mean():
            return _average(m, x).unsqueeze(-1)
        case nn.LeakyReLU() | nn.PReLU():
            stored = isinstance(module, nn.PReLU)
            slope = module.weight if stored else m.rounded(torch.tensor(module.negative_slope, dtype=x.dtype))
            slope = slope.reshape(-1, *(1,) * (x.ndim - 2)) if slope.numel() > 1 else slope
            return torch.where(x > 0, x, m.times(x, slope))
        case nn.Tanh():  # the 16 units of |z| that the assumptions allow
            if m.deltas is None:
                return m.rounded(m.rounded(torch.tanh(x)))
            ideal = torch.tanh(x)
            return ideal + m.rounded(x, units=16) - x
        case _:  # moves or selects: exact
            return module(x)


def _convolution(
    m: Machine, layer: nn.Conv2d | nn.ConvTranspose2d, x: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    padding = layer.padding
    if layer.transposed:  # of stride 1: a convolution with its kernel turned
        padding = tuple(k - 1 - p for k, p in zip(layer.kernel_size, padding, strict=True))
    patches = F.unfold(x, layer.kernel_size, padding=padding, stride=layer.stride).transpose(1, 2)
    out = m.product(patches, weight.flatten(1), bias).transpose(1, 2)
    side = (x.shape[-1] + 2 * padding[0] - layer.kernel_size[0]) // layer.stride[0] + 1
    return out.unflatten(2, (-1, side))


def _average(m: Machine, terms: Tensor) -> Tensor:
    n = terms.shape[-1]
    total = m.sum(terms, torch.zeros(n, dtype=torch.bool))
    return m.times(total, m.rounded(torch.tensor(1 / n, dtype=terms.dtype)))


def _batch_norm(m: Machine, norm: nn.modules.batchnorm._BatchNorm, x: Tensor) -> Tensor:
    def channels(value: Tensor) -> Tensor:
        return value.reshape(-1, *(1,) * (x.ndim - 2))

    assert norm.running_mean is not None
    assert norm.running_var is not None
    eps = m.rounded(torch.tensor(norm.eps, dtype=x.dtype))
    inverse = m.rounded(1 / m.rounded(m.plus(norm.running_var, eps).sqrt()))
    mean, weight, bias = channels(norm.running_mean), channels(norm.weight), channels(norm.bias)
    if not m.fold:
        return m.plus(m.times(m.times(m.plus(x, -mean), channels(inverse)), weight), bias)
    scale = m.times(channels(inverse), weight)
    return m.plus(m.times(x, scale), m.plus(bias, -m.times(scale, mean)))


def worst(
    make: Callable[[Sequence[Tensor]], Machine],
    net: nn.Module,
    x: Tensor,
    radius: float,
    rows: tuple[int, int],
    sign: float,
    steps: int = 3,
) -> tuple[float, Tensor]:
    """The worst rounding of a difference of two logits that a few steps of an adversary find in a ball.

    Args:
        make: a machine with the deltas that it is given.
        net: float64 module.
        x: the centre, one sample.
        radius: of the ball.
        rows: the two logits.
        sign: which way to push.
        steps: choices of all roundings, and of the point.

    Returns:
        by how much the difference was wrong, and where.
    """
    probe = make([])
    with torch.no_grad():
        run(probe, net, x)
    deltas = [torch.zeros(s, dtype=x.dtype) for s in probe.shapes]
    generator = torch.Generator().manual_seed(probe.seed)
    away = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    best, where = 0.0, x
    for step in range(steps + 1):
        point = (x + radius * away / away.norm()).requires_grad_()
        chosen = [d.requires_grad_() for d in deltas]
        wrong = run(make(chosen), net, point) - net(point)
        target = sign * (wrong[0, rows[0]] - wrong[0, rows[1]])
        if float(target.detach()) > best:
            best, where = float(target.detach()), point.detach()
        if step == steps:
            break
        slopes = torch.autograd.grad(target, [*chosen, point], allow_unused=True)
        deltas = [torch.zeros_like(d) if g is None else g.sign().detach() for d, g in zip(chosen, slopes, strict=False)]
        if step and slopes[-1] is not None and float(slopes[-1].norm()) > 0:
            away = slopes[-1].detach()
    return best, where
