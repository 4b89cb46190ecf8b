"""Lies about several parts of a network together: what is behind a part, and what is up to its end."""

from __future__ import annotations

from typing import Any

from certificates import lies

LIES, lie = lies("halves")

ROW = {"method": "smallgain", "scaling": "neuron", "seconds": 1.0, "failure": 0.0}
RANDOM = {**ROW, "dense_limit": 1, "failure": 1e-12}


def _behind(c: dict[str, Any], part: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = c["bound"]["parts"][part]["behind"]
    return found


def _until(c: dict[str, Any], part: int = 2) -> dict[str, Any]:
    found: dict[str, Any] = c["bound"]["parts"][part]["until"]
    return found


@lie("norms, from below", **ROW)
def a_norm_of_all_behind_too_small(c: dict[str, Any]) -> None:
    norm = _behind(c)["norm"]
    norm["upper"] = norm["lower"] = norm["lower"] * (1 - 1e-6)


@lie("norms, from below", **ROW)
def a_larger_p_of_all_behind(c: dict[str, Any]) -> None:
    found = _behind(c, 1)
    found["output"] = [[4 * v for v in row] for row in found["output"]]


@lie("norms, from below", **ROW)
def a_larger_p_of_all_until(c: dict[str, Any]) -> None:
    _until(c)["output"][0][0] *= 4


@lie("norms, from below", **ROW)
def other_weights_of_all_until(c: dict[str, Any]) -> None:
    for weights in _until(c)["weights"]:
        weights["values"] = [100.0 * v for v in weights["values"]]


@lie("bound", **ROW)
def what_is_behind_another_part(c: dict[str, Any]) -> None:
    c["bound"]["parts"][0]["behind"] = _behind(c, 1)


@lie("bound", **ROW)
def what_is_until_another_part(c: dict[str, Any]) -> None:
    c["bound"]["parts"][2]["until"] = _until(c, 1)


@lie("bound", **ROW)
def a_number_for_the_pairs_behind(c: dict[str, Any]) -> None:
    _behind(c)["output"] = [[1.0]]


@lie("bound", **ROW)
def a_matrix_for_all_until(c: dict[str, Any]) -> None:
    _until(c)["output"] = [[1.0, 0.0], [0.0, 1.0]]


@lie("bound", **ROW)
def a_p_without_inverse_behind(c: dict[str, Any]) -> None:
    _behind(c)["output"] = [[1.0] * 3] * 3


@lie("bound", **ROW)
def nothing_more_is_behind_the_last_but_one(c: dict[str, Any]) -> None:
    c["bound"]["parts"][-2]["behind"] = _behind(c)


@lie("bound", **ROW)
def what_nobody_asks(c: dict[str, Any]) -> None:
    """The whole's own evidence, of another scope."""
    c["bound"]["parts"][-1]["until"] = c["bound"]["smallgain"]


@lie("radii", **ROW)
def nothing_is_known_of_several_together(c: dict[str, Any]) -> None:
    """Then rounding is followed from part to part, which takes off more."""
    for part in c["bound"]["parts"]:
        part.pop("behind", None), part.pop("until", None)


@lie("read", **ROW)
def what_there_is_none_of(c: dict[str, Any]) -> None:
    """It does not stand in a certificate."""
    c["bound"]["parts"][-1]["behind"] = None


@lie("failure", **RANDOM)
def a_failure_behind_that_does_not_add_up(c: dict[str, Any]) -> None:
    _behind(c)["norm"]["failure"] /= 2


@lie("failure", **RANDOM)
def a_failure_until_that_does_not_add_up(c: dict[str, Any]) -> None:
    _until(c)["norm"]["failure"] /= 2
