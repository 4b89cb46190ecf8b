"""Affine modules as explicit matrices, and the bound of one as a chain of layers."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

import lipcert
from lipcert.loop import LoopMap
from lipcert.norms.chain import chain, chain_norms


def matrix(module: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """The explicit matrix of an affine module, by a basis."""
    n = math.prod(shape)
    with torch.no_grad():
        still = module(torch.zeros(1, *shape, dtype=torch.float64))
        return (module(torch.eye(n, dtype=torch.float64).reshape(n, *shape)) - still).reshape(n, -1).T


def norm(a: Tensor) -> float:
    return float(torch.linalg.matrix_norm(a, 2))


def chain_bound(module: nn.Module, shape: tuple[int, ...]) -> float:
    """The bound of a module without activations as a chain."""
    graph = lipcert.trace(module, shape)
    loop = LoopMap(graph, graph.resolve(torch.float64))
    layers = chain(loop, (1, 0), limit=100)
    assert layers is not None
    return chain_norms(loop, {(1, 0): layers}, {(1, 0): 0.0})[1, 0].upper


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return make().double().eval()
