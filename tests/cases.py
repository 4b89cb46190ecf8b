"""The one catalogue of small networks: name → (module, input shape). Importing this fills it."""

from __future__ import annotations

from functools import cache

import cases_activations
import cases_blocks
import cases_layers
import cases_shapes
from catalogue import CASES, Case

import lipcert

__all__ = ["CASES", "Case", "named", "traced"]

assert cases_activations
assert cases_blocks
assert cases_layers
assert cases_shapes


def named(*tags: str, without: tuple[str, ...] = ()) -> list[str]:
    """Names of the cases that have all tags and none of ``without``."""
    return [n for n, c in CASES.items() if set(tags) <= c.tags and not set(without) & c.tags]


@cache
def traced(name: str) -> lipcert.Graph:
    """The float64 module of a case, traced once for all tests; read its weights, do not change them."""
    case = CASES[name]
    return lipcert.trace(case.module(), case.shape)
