"""Lies about further evidence of a small-gain bound."""

from __future__ import annotations

import copy
from typing import Any

from certificates import lies, scale_bound

LIES, lie = lies()

FURTHER = {"precision": "real", "method": "smallgain", "scaling": "neuron", "seconds": 20.0, "refine": 60.0}
EXACT = {**FURTHER, "failure": 0.0}
RANDOM = {**FURTHER, "dense_limit": 1, "failure": 1e-12}


def _further(c: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = c["bound"]["further"]
    assert found
    return found


@lie("norms, from below", **EXACT)
def a_further_norm_too_small(c: dict[str, Any]) -> None:
    norm = _further(c)[0]["norm"]
    norm["upper"] = norm["lower"] = norm["lower"] * (1 - 1e-6)


@lie("norms, from below", **EXACT)
def further_weights_that_are_too_large(c: dict[str, Any]) -> None:
    for weights in _further(c)[0]["weights"]:
        weights["values"] = [2 * v for v in weights["values"]]


@lie("norms, from below", **EXACT)
def a_larger_further_p(c: dict[str, Any]) -> None:
    """And the bound that would follow."""
    for one in [c["bound"]["smallgain"], *_further(c)]:
        one["output"] = [[1.01 * v for v in row] for row in one["output"]]
    scale_bound(c, 1 / 1.01)


@lie("bound", **EXACT)
def further_evidence_left_out(c: dict[str, Any]) -> None:
    del c["bound"]["further"]


@lie("read", **EXACT)
def further_evidence_that_is_none(c: dict[str, Any]) -> None:
    """What there is none of does not stand in a certificate."""
    c["bound"]["further"] = []


@lie("bound", **EXACT)
def further_weights_of_a_layer_missing(c: dict[str, Any]) -> None:
    _further(c)[0]["weights"].pop()


@lie("bound", **EXACT)
def a_further_number_for_pairs(c: dict[str, Any]) -> None:
    _further(c)[-1]["output"] = [[1.0]]


@lie("bound", **EXACT)
def a_further_p_without_inverse(c: dict[str, Any]) -> None:
    _further(c)[-1]["output"] = [[1.0] * 3] * 3


@lie("read", **EXACT)
def further_evidence_without_a_first(c: dict[str, Any]) -> None:
    c["bound"]["smallgain"] = None


@lie("failure", **RANDOM)
def a_further_failure_that_does_not_add_up(c: dict[str, Any]) -> None:
    _further(c)[0]["norm"]["failure"] /= 2


@lie("failure", **RANDOM)
def further_evidence_twice(c: dict[str, Any]) -> None:
    """It may fail twice then."""
    _further(c).append(copy.deepcopy(_further(c)[0]))
