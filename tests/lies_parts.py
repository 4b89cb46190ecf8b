"""Lies about the parts of a residual network, by which the rounding of its execution is followed."""

from __future__ import annotations

import copy
from typing import Any

from certificates import lies, recount

LIES, lie = lies("row")

ROW = {"method": "smallgain", "scaling": "neuron", "seconds": 1.0, "failure": 0.0}
ROW_REAL = {**ROW, "precision": "real"}
ROW_RANDOM = {**ROW, "dense_limit": 1, "failure": 1e-12}


def _part(c: dict[str, Any], number: int) -> dict[str, Any]:
    found: dict[str, Any] = c["bound"]["parts"][number]
    return found


def _closer(c: dict[str, Any]) -> None:
    """Radii of the execution as large as those of real arithmetic."""
    c["samples"]["radius"] = list(c["samples"]["real_radius"])
    recount(c)


@lie("norms, from below", **ROW)
def a_norm_of_a_part_too_small(c: dict[str, Any]) -> None:
    for norm in _part(c, 0)["norms"]:
        norm["upper"] *= 0.9
        norm["lower"] *= 0.9


@lie("norms, from below", **ROW)
def a_scaled_norm_of_a_part_too_small(c: dict[str, Any]) -> None:
    found = _part(c, 1)["smallgain"]["norm"]
    found["upper"], found["lower"] = found["lower"] * 0.9, found["lower"] * 0.9


@lie("norms, from below", **ROW)
def a_larger_p_of_a_part(c: dict[str, Any]) -> None:
    _part(c, 0)["smallgain"]["output"][0][0] *= 4


@lie("norms, from below", **ROW)
def other_weights_of_a_part(c: dict[str, Any]) -> None:
    for weights in _part(c, 0)["smallgain"]["weights"]:
        weights["values"] = [100.0 * v for v in weights["values"]]


@lie("bound", **ROW)
def a_part_missing(c: dict[str, Any]) -> None:
    c["bound"]["parts"].pop()


@lie("bound", **ROW)
def a_part_too_many(c: dict[str, Any]) -> None:
    c["bound"]["parts"].append(copy.deepcopy(_part(c, 0)))


@lie("bound", **ROW)
def parts_in_another_order(c: dict[str, Any]) -> None:
    c["bound"]["parts"].reverse()


@lie("bound", **ROW)
def a_norm_of_a_part_missing(c: dict[str, Any]) -> None:
    _part(c, 1)["norms"].pop()


@lie("bound", **ROW)
def weights_of_a_part_missing(c: dict[str, Any]) -> None:
    _part(c, 1)["smallgain"]["weights"].pop()


@lie("radii", **ROW)
def radii_as_if_nothing_was_rounded(c: dict[str, Any]) -> None:
    _closer(c)


@lie("radii", **ROW)
def no_parts_where_the_radii_are_by_parts(c: dict[str, Any]) -> None:
    """Then rounding is followed by the whole, which takes off more."""
    c["bound"]["parts"] = []


@lie("read", **ROW)
def norms_of_a_part_in_another_order(c: dict[str, Any]) -> None:
    _part(c, 0)["norms"].reverse()


@lie("read", **ROW)
def parts_of_another_method(c: dict[str, Any]) -> None:
    c["bound"]["method"], c["bound"]["smallgain"] = "liplt", None


@lie("read", **ROW)
def a_part_without_norms(c: dict[str, Any]) -> None:
    del _part(c, 0)["norms"]


@lie("failure", **ROW_RANDOM)
def a_failure_of_a_part_that_does_not_add_up(c: dict[str, Any]) -> None:
    for norm in _part(c, 0)["norms"]:
        norm["failure"] /= 2


@lie("bound", **ROW_REAL)
def parts_from_nowhere(c: dict[str, Any]) -> None:
    c["bound"]["parts"] = [{"norms": [], "smallgain": None}]
