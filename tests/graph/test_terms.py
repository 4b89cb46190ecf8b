"""What a rule says of how many terms a sum has holds for the matrix of the map: rounding analysis stands on it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import lipcert
from cases import loop_map, named
from lipcert import models
from lipcert.graph import Graph
from lipcert.graph.types import Affine, Coefficient

_LARGEST = 3000


def _ones(coefficient: Coefficient) -> Coefficient:
    return torch.ones_like(coefficient) if isinstance(coefficient, Tensor) else 1.0


def _structure(graph: Graph, node: Affine, coefficients: tuple[Coefficient, ...], which: int) -> Tensor:
    """Which entries (columns) of one of its inputs the entries of a node's result (rows) depend on."""
    shapes = [graph.nodes[i].shape for i in node.inputs]
    size = math.prod(shapes[which])
    operands = [torch.zeros((size, *shape), dtype=torch.float64) for shape in shapes]
    operands[which] = torch.eye(size, dtype=torch.float64).reshape(size, *shapes[which])
    return node.apply(operands, tuple(map(_ones, coefficients))).reshape(size, -1).T != 0


@pytest.mark.parametrize("name", named())
def test_no_sum_has_more_terms_than_its_rule_says(name: str) -> None:
    loop = loop_map(name)
    graph = loop.graph
    for node in graph.nodes:
        if not isinstance(node, Affine) or node.terms is None:
            continue
        if max(math.prod(graph.nodes[i].shape) for i in node.inputs) > _LARGEST:
            continue
        coefficients = loop.resolved.coefficients[node.index]
        inputs = [_structure(graph, node, coefficients, which) for which in range(len(node.inputs))]
        assert int(sum(m.sum(1) for m in inputs).max()) <= node.terms[0], node.describe()  # type: ignore[union-attr]
        assert max(int(m.sum(0).max()) for m in inputs) <= node.terms[1], node.describe()


@pytest.mark.parametrize("name", ["4c3f", "6c2f", "resnet-small", "mlp"])
def test_the_layers_of_the_ready_networks_are_counted(name: str) -> None:
    """A rule that counts nothing is safe, and a thousand times too careful."""
    shape = (1, 28, 28) if name == "4c3f" else (3, 32, 32)
    graph = lipcert.trace(models.build(name, input_shape=shape, num_classes=10).eval(), shape)
    assert all(n.terms is not None for n in graph.nodes if isinstance(n, Affine))
