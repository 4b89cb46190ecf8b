"""Lies about what proves a small-gain bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from certificates import lies, scale_bound

LIES, lie = lies()


GAIN = {"precision": "real", "method": "smallgain", "scaling": "neuron", "seconds": 20.0, "failure": 0.0}
GAIN_GLOBAL = {**GAIN, "scope": "global"}
GAIN_RANDOM = {**GAIN, "dense_limit": 1, "failure": 1e-12}


def evidence(c: dict[str, Any]) -> dict[str, Any]:
    """What proves a small-gain bound."""
    found: dict[str, Any] = c["bound"]["smallgain"]
    return found


def _weights(c: dict[str, Any], value: Callable[[int], float]) -> None:
    for i, part in enumerate(evidence(c)["weights"]):
        part["values"] = [value(i)] * len(part["values"])


def _claim(c: dict[str, Any], norm: float) -> None:
    found = evidence(c)["norm"]
    found["upper"], found["lower"] = norm, min(norm, found["lower"])


@lie("norms, from below", **GAIN)
def a_scaled_norm_too_small(c: dict[str, Any]) -> None:
    _claim(c, evidence(c)["norm"]["lower"] * (1 - 1e-6))


@lie("bound", **GAIN)
def a_scaled_norm_too_large(c: dict[str, Any]) -> None:
    _claim(c, 1.5)


@lie("bound", **GAIN)
def a_scaled_norm_that_overflows(c: dict[str, Any]) -> None:
    _claim(c, 1e200)


@lie("norms, from below", **GAIN)
def other_weights(c: dict[str, Any]) -> None:
    _weights(c, lambda i: 1.0)


@lie("norms, from below", **GAIN)
def extreme_weights(c: dict[str, Any]) -> None:
    _weights(c, lambda i: 2.0 ** (299 * (-1) ** i))


@lie("read", **GAIN)
def weights_out_of_range(c: dict[str, Any]) -> None:
    _weights(c, lambda i: 1e200)


@lie("read", **GAIN)
def a_negative_weight(c: dict[str, Any]) -> None:
    evidence(c)["weights"][0]["values"][0] *= -1


@lie("read", **GAIN)
def a_weight_of_zero(c: dict[str, Any]) -> None:
    evidence(c)["weights"][1]["values"][0] = 0.0


@lie("read", **GAIN)
def a_weight_too_few(c: dict[str, Any]) -> None:
    evidence(c)["weights"][0]["values"].pop()


@lie("bound", **GAIN)
def weights_of_a_layer_missing(c: dict[str, Any]) -> None:
    evidence(c)["weights"].pop()


@lie("bound", **GAIN)
def weights_of_a_layer_too_many(c: dict[str, Any]) -> None:
    evidence(c)["weights"].append(evidence(c)["weights"][-1])


@lie("bound", **GAIN)
def weights_of_another_shape(c: dict[str, Any]) -> None:
    evidence(c)["weights"][0]["shape"] = [2, 4]


@lie("bound", **GAIN)
def another_kind_of_weights(c: dict[str, Any]) -> None:
    evidence(c)["kind"] = "layer"


@lie("read", **GAIN)
def a_kind_that_does_not_exist(c: dict[str, Any]) -> None:
    evidence(c)["kind"] = "each"


@lie("norms, from below", **GAIN)
def a_larger_p(c: dict[str, Any]) -> None:
    """And the bound that follows from it."""
    evidence(c)["output"] = [[1.01 * v for v in row] for row in evidence(c)["output"]]
    scale_bound(c, 1 / 1.01)


@lie("bound", **GAIN)
def a_p_without_inverse(c: dict[str, Any]) -> None:
    evidence(c)["output"] = [[1.0] * 3] * 3


@lie("bound", **GAIN)
def a_p_of_zeros(c: dict[str, Any]) -> None:
    evidence(c)["output"] = [[0.0] * 3] * 3


@lie("bound", **GAIN)
def a_huge_p(c: dict[str, Any]) -> None:
    evidence(c)["output"] = [[1e300 * (a == b) for b in range(3)] for a in range(3)]


@lie("bound", **GAIN)
def a_tiny_p(c: dict[str, Any]) -> None:
    evidence(c)["output"] = [[1e-300 * (a == b) for b in range(3)] for a in range(3)]


@lie("bound", **GAIN)
def a_number_for_pairs(c: dict[str, Any]) -> None:
    evidence(c)["output"] = [[1.0]]


@lie("bound", **GAIN)
def a_p_of_fewer_classes(c: dict[str, Any]) -> None:
    evidence(c)["output"] = [[1.0, 0.0], [0.0, 1.0]]


@lie("read", **GAIN)
def a_p_that_is_not_square(c: dict[str, Any]) -> None:
    evidence(c)["output"].pop()


@lie("bound", **GAIN_GLOBAL)
def a_p_of_zero(c: dict[str, Any]) -> None:
    evidence(c)["output"] = [[0.0]]


@lie("bound", **GAIN_GLOBAL)
def a_negative_p(c: dict[str, Any]) -> None:
    evidence(c)["output"] = [[-1.0]]


@lie("bound", **GAIN_GLOBAL)
def a_matrix_for_the_whole(c: dict[str, Any]) -> None:
    evidence(c)["output"] = [[float(a == b) for b in range(3)] for a in range(3)]


@lie("bound", **GAIN)
def no_evidence(c: dict[str, Any]) -> None:
    c["bound"]["smallgain"] = None


@lie("read", **GAIN)
def evidence_of_another_method(c: dict[str, Any]) -> None:
    c["bound"]["method"] = "liplt"


@lie("read", **GAIN)
def a_scaled_norm_that_may_fail(c: dict[str, Any]) -> None:
    evidence(c)["norm"]["failure"] = 1e-13


@lie("read", **GAIN)
def a_scaled_norm_below_what_was_seen(c: dict[str, Any]) -> None:
    evidence(c)["norm"]["lower"] = 5.0


@lie("failure", **GAIN_RANDOM)
def a_scaled_failure_that_does_not_add_up(c: dict[str, Any]) -> None:
    evidence(c)["norm"]["failure"] /= 2
