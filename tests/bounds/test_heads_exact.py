"""Heads in rational numbers: no row and no difference of two rows is longer than its upper bound, by any hair."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import nn

import lipcert
from exact import rational, times
from lipcert.bounds import graph_bound


def _two_affine(seed: int) -> nn.Sequential:
    """Two linear layers in a row: the rows of W2·W1 have to be computed, and some nearly agree."""
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(5, 7, bias=False), nn.Linear(7, 6, bias=False)).double().eval()
    with torch.no_grad():
        for layer in net:
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64))
        net[1].weight[1] = net[1].weight[0] * (1 + 2.0**-50)
        net[1].weight[2] = net[1].weight[0]
        net[1].weight[2, 3] += 1e-15
        net[0].weight[1] = net[0].weight[0] * (1 + 2.0**-51)
        net[1].weight[5] = 0  # a row of W2·W1 that is all rounding error
        net[1].weight[5, :2] = torch.tensor([1.0, -1.0]) / 3
    return net


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("exponent", [0, -540, 500])
def test_rows_and_differences(seed: int, exponent: int) -> None:
    net = _two_affine(seed)
    graph = lipcert.trace(net, (5,))
    net[1].weight.data *= 2.0**exponent
    rows = times(rational(net[1].weight), rational(net[0].weight))
    classes = graph_bound(graph, scope="class", guarantee="upper").value
    pairs = graph_bound(graph, scope="pairwise", guarantee="upper").value
    for a in range(6):
        assert sum(v * v for v in rows[a]) <= Fraction(float(classes[a])) ** 2
        for b in range(6):
            apart = sum((v - w) ** 2 for v, w in zip(rows[a], rows[b], strict=True))
            assert apart <= Fraction(float(pairs[a, b])) ** 2, (a, b)
    far = sum((v - w) ** 2 for v, w in zip(rows[0], rows[3], strict=True))
    assert Fraction(float(pairs[0, 3])) ** 2 < far * Fraction(1001, 1000)
