"""Small-gain bounds with any weights, and what the accounts of rounding say with them, in coarse arithmetic."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import lipcert
from catalogue import Fn
from lipcert import UpperBound
from lipcert.bounds.evidence import KINDS, Evidence, Kind, Scaling
from lipcert.bounds.lipschitz import graph_bound
from lipcert.bounds.result import Scope
from lipcert.certify.contest import _rounded
from lipcert.certify.logits import executed_logits
from lipcert.certify.rounding import Account
from lipcert.graph import Graph
from lipcert.loop import LoopMap
from lipcert.norms.result import Norm
from lipcert.scaled import ScaledMap, levels, weight_shapes


def small_gain(net: nn.Module, x: Tensor, scope: Scope) -> UpperBound:
    """By small gain, after a search that need not end."""
    found = lipcert.lipschitz(
        net, tuple(x.shape[1:]), method="smallgain", scope=scope, guarantee="upper", scaling="neuron", seconds=0.3
    )
    assert isinstance(found, UpperBound)
    return found


@functools.lru_cache(maxsize=1)
def graph_of(net: nn.Module, shape: tuple[int, ...]) -> Graph:
    return lipcert.trace(net, shape)


def loop_of(net: nn.Module, x: Tensor) -> LoopMap:
    graph = graph_of(net, tuple(x.shape[1:]))
    return LoopMap(graph, graph.resolve(torch.float64))


def with_weights(
    net: nn.Module, x: Tensor, kind: Kind, weights: Sequence[Tensor], output: Tensor | float
) -> UpperBound:
    """LipLT's bound, with these weights and the norm that they have as evidence."""
    loop = loop_of(net, x)
    scaled = ScaledMap(loop, weights, output)
    matrix = scaled.apply(torch.eye(scaled.source_shape(0)[0], dtype=torch.float64))
    norm = float(torch.linalg.matrix_norm(matrix.detach(), 2)) * (1 + 1e-9)
    scope = "pairwise" if isinstance(output, Tensor) else "global"
    base = graph_bound(loop.graph, method="liplt", scope=scope, guarantee="upper")
    evidence = Evidence(Scaling(kind, tuple(weights)), output, Norm(norm, norm, "dense"))
    return dataclasses.replace(base, method="smallgain", evidence=evidence)


def any_bound(net: nn.Module, x: Tensor, seed: int, *, loose: bool) -> UpperBound:
    """With random weights: of norm 1, or ``loose``, of the norm that they happen to have."""
    loop, generator = loop_of(net, x), torch.Generator().manual_seed(seed)
    kind, output = KINDS[seed % 3], 0.3
    weights = [
        (0.5 * torch.randn(s, generator=generator, dtype=torch.float64)).exp() for s in weight_shapes(loop, kind)
    ]
    found = with_weights(net, x, kind, weights, output)
    assert found.evidence is not None
    assert found.evidence.norm is not None
    if loose:
        return found
    t = 0.999 / max(1.0, found.evidence.norm.upper)
    found = with_weights(net, x, kind, found.evidence.map(loop).loosened(t).weights, output * t ** levels(loop)[-1])
    assert found.evidence is not None
    assert found.evidence.norm is not None
    assert found.evidence.norm.upper <= 1
    return found


def accounts_of(net: nn.Module, x: Tensor, bound: UpperBound) -> tuple[Account, ...]:
    _, _, found = executed_logits(graph_of(net, tuple(x.shape[1:])), bound, [x], torch.float64)
    return found.accounts


def limit(accounts: tuple[Account, ...], pair: tuple[int, int], radius: float) -> float:
    """``E_ab`` of the only sample, of the least coefficients of these accounts."""
    still, growing = _rounded(accounts, torch.tensor([pair[0]]), accounts[0].final.shape[1])
    return float(still[0, pair[1]] + growing[0, pair[1]] * radius)


def second_limit(net: nn.Module, x: Tensor, bound: UpperBound, radius: float, pair: tuple[int, int] = (0, 1)) -> float:
    return limit(accounts_of(net, x, bound)[1:], pair, radius)


HEAD = [1.0, -1.0]


def absolute() -> nn.Module:
    return Fn(lambda s, x: x.abs())


def by_hand(net: nn.Module, x: Tensor, times: float = 1.0) -> UpperBound:
    """D = 1, as each layer has the norm 1, or ``times`` as much for each level."""
    loop = loop_of(net, x)
    weights = [torch.full((1,), times**k, dtype=torch.float64) for k in range(1, loop.depth + 1)]
    return with_weights(net, x, "layer", weights, times ** (loop.depth + 1) / math.sqrt(2))
