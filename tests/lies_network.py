"""Lies about which network was certified, and about its bound."""

from __future__ import annotations

from typing import Any

from certificates import RANDOM, REAL, lies, network, scale_bound
from lipcert.bounds import graph_bound
from lipcert.graph import trace
from lipcert.norms import Norm

LIES, lie = lies()


@lie("weights")
def other_weights_hash(c: dict[str, Any]) -> None:
    c["model"]["weights_sha256"] = "0" * 64


@lie("graph")
def other_graph_hash(c: dict[str, Any]) -> None:
    c["model"]["graph"]["sha256"] = "f" * 64


@lie("graph")
def another_operation(c: dict[str, Any]) -> None:
    c["model"]["graph"]["nodes"][2]["operation"] = "aten.tanh.default"


@lie("graph")
def another_place(c: dict[str, Any]) -> None:
    c["model"]["graph"]["nodes"][1]["place"] = "9"


@lie("graph")
def another_kind(c: dict[str, Any]) -> None:
    c["model"]["graph"]["nodes"][2]["kind"] = "vector map"


@lie("graph", **REAL)
def another_dtype(c: dict[str, Any]) -> None:
    c["model"]["dtype"] = "float64"


@lie("model")
def another_model_name(c: dict[str, Any]) -> None:
    c["model"]["name"] = "6c2f"


@lie("model")
def other_model_options(c: dict[str, Any]) -> None:
    c["model"]["options"] = {"widths": [8, 7]}


@lie("data")
def classes_swapped(c: dict[str, Any]) -> None:
    c["model"]["classes"] = ["bee", "ant", "cat"]


@lie("input")
def another_input_shape(c: dict[str, Any]) -> None:
    c["input"]["shape"] = c["model"]["graph"]["nodes"][0]["shape"] = [6]


@lie("read")
def an_input_shape_that_is_not_the_graph_s(c: dict[str, Any]) -> None:
    c["input"]["shape"] = [6]


@lie("read")
def a_huge_input_shape(c: dict[str, Any]) -> None:
    c["input"]["shape"] = c["model"]["graph"]["nodes"][0]["shape"] = [2**20, 2**20]


@lie("data")
def a_larger_range(c: dict[str, Any]) -> None:
    c["input"]["largest"] = 255.0


@lie("read")
def preprocessing_outside(c: dict[str, Any]) -> None:
    c["input"]["preprocessing"] = "divided by 255"


@lie("input")
def a_normalisation_that_is_not_there(c: dict[str, Any]) -> None:
    c["input"]["normalization"] = [{"place": "0", "mean": [0.5], "std": [0.5]}]


@lie("read")
def another_norm(c: dict[str, Any]) -> None:
    c["input"]["norm"] = "linf"


@lie("read")
def an_estimate(c: dict[str, Any]) -> None:
    c["bound"]["guarantee"] = "estimate"


@lie("read")
def an_estimate_by_format(c: dict[str, Any]) -> None:
    c["format"] = "lipcert-estimate"


@lie("read")
def an_unknown_version(c: dict[str, Any]) -> None:
    c["version"] = 2


@lie("read")
def no_time(c: dict[str, Any]) -> None:
    c["created"] = "2026-13-01T00:00:00Z"


@lie("bound")
def another_method(c: dict[str, Any]) -> None:
    c["bound"]["method"] = "product"


@lie("read")
def another_scope(c: dict[str, Any]) -> None:
    c["bound"]["scope"] = "global"


@lie("norms, from below")
def a_norm_too_small(c: dict[str, Any]) -> None:
    c["bound"]["norms"][0]["upper"] *= 0.99
    c["bound"]["norms"][0]["lower"] *= 0.98


@lie("norms, by another method")
def a_norm_a_little_too_small(c: dict[str, Any]) -> None:
    """And the bound, the radii, the verdicts, the counts: all that follows from it."""
    norm = c["bound"]["norms"][0]
    norm["upper"] *= 1 - 2e-5
    norm["lower"] *= 1 - 2e-5
    claims = {(n["target"], n["source"]): Norm(n["upper"], n["lower"], "dense") for n in c["bound"]["norms"]}
    bound = graph_bound(trace(network("mlp"), (5,)), guarantee="upper", scope="pairwise", norms=claims)
    c["bound"]["value"], c["bound"]["slack"] = bound.value.tolist(), max(0.0, bound.slack)  # type: ignore[attr-defined]


@lie("bound")
def a_norm_larger_than_the_bound_allows(c: dict[str, Any]) -> None:
    c["bound"]["norms"][0]["upper"] *= 1.5


@lie("bound")
def a_norm_missing(c: dict[str, Any]) -> None:
    del c["bound"]["norms"][1]


@lie("bound")
def a_norm_of_no_block(c: dict[str, Any]) -> None:
    c["bound"]["norms"].append({**c["bound"]["norms"][-1], "target": 77, "source": 3})


@lie("read")
def a_norm_twice(c: dict[str, Any]) -> None:
    c["bound"]["norms"].append(c["bound"]["norms"][-1])


@lie("read")
def norms_out_of_order(c: dict[str, Any]) -> None:
    c["bound"]["norms"].reverse()


@lie("read")
def a_norm_below_what_was_seen(c: dict[str, Any]) -> None:
    c["bound"]["norms"][0]["lower"] = c["bound"]["norms"][0]["upper"] * 2


@lie("read")
def a_dense_norm_that_may_fail(c: dict[str, Any]) -> None:
    c["bound"]["norms"][0]["failure"] = 1e-13


@lie("read", **RANDOM)
def a_randomised_norm_that_cannot_fail(c: dict[str, Any]) -> None:
    c["bound"]["norms"][0]["failure"] = 0.0


@lie("read", **RANDOM)
def a_norm_by_another_name(c: dict[str, Any]) -> None:
    c["bound"]["norms"][0]["method"] = "dense"


@lie("read", **RANDOM)
def a_method_that_does_not_exist(c: dict[str, Any]) -> None:
    c["bound"]["norms"][0]["method"] = "trust me"


@lie("failure", **RANDOM)
def a_failure_of_others_that_is_not_counted(c: dict[str, Any]) -> None:
    c["bound"]["passed_over"] = 1e-13


@lie("failure", **RANDOM)
def a_smaller_failure(c: dict[str, Any]) -> None:
    c["bound"]["failure"] = 1e-15


@lie("failure", **RANDOM)
def no_failure(c: dict[str, Any]) -> None:
    c["bound"]["failure"] = 0.0


@lie("failure", **RANDOM)
def a_larger_failure(c: dict[str, Any]) -> None:
    c["bound"]["failure"] = 1e-9


@lie("bound")
def a_smaller_bound(c: dict[str, Any]) -> None:
    scale_bound(c, 0.999999)


@lie("bound")
def a_larger_bound(c: dict[str, Any]) -> None:
    scale_bound(c, 1.01)


@lie("bound", **REAL)
def one_entry_smaller(c: dict[str, Any]) -> None:
    c["bound"]["value"][0][1] = c["bound"]["value"][1][0] = c["bound"]["value"][0][1] * 0.9


@lie("read")
def not_symmetric(c: dict[str, Any]) -> None:
    c["bound"]["value"][0][1] *= 0.9


@lie("read")
def a_negative_entry(c: dict[str, Any]) -> None:
    c["bound"]["value"][0][1] = c["bound"]["value"][1][0] = -1.0


@lie("read")
def no_zero_on_the_diagonal(c: dict[str, Any]) -> None:
    c["bound"]["value"][0][0] = 1.0


@lie("read")
def a_row_too_many(c: dict[str, Any]) -> None:
    c["bound"]["value"].append([1.0, 1.0, 1.0])


@lie("bound")
def another_slack(c: dict[str, Any]) -> None:
    c["bound"]["slack"] = 0.5
