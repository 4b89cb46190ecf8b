"""Proofs in rational numbers: whether a float is an upper bound of a norm, with no rounding anywhere."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor, nn

Matrix = list[list[Fraction]]


def rational(weights: Tensor) -> Matrix:
    """A float matrix as what it is: a matrix of rational numbers."""
    return [[Fraction(float(v)) for v in row] for row in weights.detach()]


def times(a: Matrix, b: Matrix) -> Matrix:
    """a·b."""
    columns = list(zip(*b, strict=True))
    return [[sum((x * y for x, y in zip(row, column, strict=True)), Fraction(0)) for column in columns] for row in a]


def scaled(a: Matrix, factor: Fraction) -> Matrix:
    """factor·a."""
    return [[factor * v for v in row] for row in a]


def is_upper_bound(value: float, a: Matrix) -> bool:
    """Whether ‖a‖₂ ≤ value: the elimination of value²·I − a·aᵀ meets no negative pivot."""
    if value == float("inf"):
        return True
    gram = times(a, [list(c) for c in zip(*a, strict=True)])
    n = len(gram)
    rest = [[(Fraction(value) ** 2 if i == j else Fraction(0)) - gram[i][j] for j in range(n)] for i in range(n)]
    for i in range(n):
        pivot = rest[i][i]
        if pivot < 0 or (pivot == 0 and any(rest[i][j] != 0 for j in range(i, n))):
            return False
        for r in range(i + 1, n) if pivot else ():
            factor = rest[r][i] / pivot
            for c in range(i, n):
                rest[r][c] -= factor * rest[i][c]
    return True


def chain(*weights: Tensor) -> nn.Sequential:
    """The float64 network of these weights with ReLU in between and no biases."""
    modules: list[nn.Module] = []
    for w in weights:
        linear = nn.Linear(w.shape[1], w.shape[0], bias=False, dtype=torch.float64)
        linear.weight.data = w.clone().double()
        modules += [linear, nn.ReLU()]
    return nn.Sequential(*modules[:-1]).eval()


def chain_blocks(*weights: Tensor) -> dict[tuple[int, int], Matrix]:
    """The blocks A_kj·r_j of that network, exactly."""
    half, result = Fraction(1, 2), {}
    for k in range(1, len(weights) + 1):
        for j in range(k):
            a = rational(weights[j])
            for w in weights[j + 1 : k]:
                a = times(rational(w), scaled(a, half))
            result[k, j] = a if j == 0 else scaled(a, half)
    return result


def fall_of_one_hidden_layer(
    net: nn.Sequential, x: Tensor, a: int, b: int, radius: float, generator: torch.Generator
) -> Fraction:
    """The most that y_a − y_b falls from x (1, n) to forty points on the sphere: linear, ReLU, linear."""

    def linear(layer: nn.Linear, row: list[Fraction]) -> list[Fraction]:
        return [
            sum((w * v for w, v in zip(ws, row, strict=True)), Fraction(0)) + bias
            for ws, (bias,) in zip(rational(layer.weight), rational(layer.bias[:, None]), strict=True)
        ]

    def margin(point: Tensor) -> Fraction:
        (row,) = rational(point)
        y = linear(net[2], [max(Fraction(0), v) for v in linear(net[0], row)])
        return y[a] - y[b]

    before, steps = margin(x), torch.randn((40, *x.shape), generator=generator, dtype=torch.float64)
    return max(before - margin(x + step * (radius * (1 - 1e-12) / step.norm())) for step in steps)
