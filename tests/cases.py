"""The one catalogue of small networks: name → (module, input shape). Importing this fills it."""

from __future__ import annotations

from functools import cache

import torch

import cases_activations
import cases_blocks
import cases_layers
import cases_published
import cases_shapes
import lipcert
from catalogue import CASES, Case
from lipcert.loop import LoopMap
from references import Blocks, blocks

__all__ = ["AFFINE", "CASES", "Case", "loop_map", "named", "nonlinear", "reference_blocks", "traced"]

assert cases_activations
assert cases_blocks
assert cases_layers
assert cases_published
assert cases_shapes


def named(*tags: str, without: tuple[str, ...] = ()) -> list[str]:
    """Names of the cases that have all tags and none of ``without``."""
    return [n for n, c in CASES.items() if set(tags) <= c.tags and not set(without) & c.tags]


AFFINE = frozenset({"linear", "identity", "pool-avg3d"})
"""Cases without an activation, written down so that collecting tests need not trace them all; a test holds it."""


def nonlinear() -> list[str]:
    """Names of the cases with an activation whose outputs are no images, each of them once."""
    return [n for n in named(without=("image", "twin")) if n not in AFFINE]


@cache
def traced(name: str) -> lipcert.Graph:
    """The float64 module of a case, traced once for all tests; read its weights, do not change them."""
    case = CASES[name]
    return lipcert.trace(case.module(), case.shape)


@cache
def loop_map(name: str, *, centred: bool = True) -> LoopMap:
    """T of a case in float64."""
    graph = traced(name)
    return LoopMap(graph, graph.resolve(torch.float64), centred=centred)


@cache
def reference_blocks(name: str, *, centred: bool = True) -> Blocks:
    """The matrices of T of a case, made without lipcert."""
    case = CASES[name]
    return blocks(case.module(), case.shape, centred=centred)
