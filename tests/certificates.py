"""Certificates of small networks, and liars who change them: for the tests of certificates and of `verify`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from lipcert.bounds import graph_bound
from lipcert.certify import Certificate, Origin, Report, Samples, certificate_of, recompute, verify
from lipcert.certify.canonical import canonical
from lipcert.errors import BoundError
from lipcert.graph import trace
from lipcert.loop import LoopMap, Pair
from lipcert.models.normalize import Normalize
from lipcert.norms import Norm
from lipcert.norms.confirm import confirm_norms
from lipcert.norms.dense import block

CLASSES = ("ant", "bee", "cat")


class Residual(nn.Module):
    """Two branches, and a constant that is in no state_dict."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.register_buffer("shift", torch.full((6,), 0.1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = nn.functional.leaky_relu(self.first(x), 0.2)
        return self.last(h + torch.tanh(self.inner(h) + self.shift))


def network(name: str, seed: int = 0) -> nn.Module:
    """A small classifier of three classes, always the same for a name and a seed."""
    torch.manual_seed(seed)
    if name == "mlp":
        net: nn.Module = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    elif name == "linear":
        net = nn.Linear(5, 3)
    elif name == "residual":
        net = Residual()
    else:
        first, last = nn.Conv2d(2, 3, 3, padding=1), nn.Linear(27, 3)
        net = nn.Sequential(Normalize([0.4, 0.5], [0.2, 0.3]), first, nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), last)
    return net.eval()


SHAPES = {"mlp": (5,), "linear": (5,), "residual": (5,), "conv": (2, 6, 6)}


def samples(name: str, count: int = 12) -> Samples:
    """Inputs in [0, 1]; three quarters are labelled as the network predicts."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand((count, *SHAPES[name]), generator=generator)
    with torch.no_grad():
        y = network(name)(x).argmax(1)
    y[::4] = (y[::4] + 1) % 3
    return Samples.of(x, y, name="made [up]", split="test", classes=CLASSES)


@cache
def certificate(name: str = "mlp", **options: Any) -> Certificate:
    """Of :func:`network` on :func:`samples`."""
    origin = Origin("mlp", {"widths": (8, 6)}, SHAPES[name], CLASSES)
    return certificate_of(network(name), samples(name), epsilons=[0.01, 0.02, 0.1], origin=origin, **options)


def content(name: str = "mlp", **options: Any) -> dict[str, Any]:
    """What stands in it, to be changed at will."""
    found: dict[str, Any] = json.loads(canonical(certificate(name, **options).model_dump()))
    del found["sha256"]
    return found


def resealed(changed: Mapping[str, Any]) -> bytes:
    """As a liar writes it: in the one form, with the checksum that belongs to it."""
    return canonical(changed)


def stale(changed: Mapping[str, Any], original: bytes) -> bytes:
    """As a change leaves it: in the one form, with the checksum of before."""
    return b"".join(resealed(changed).splitlines(keepends=True)[:-2] + original.splitlines(keepends=True)[-2:])


# --- verifying --------------------------------------------------------------------------------------------------------
def by_svd(
    loop: LoopMap, claims: Mapping[Pair, Norm], *, limit: int, failure: float, seed: int | None = None
) -> dict[Pair, str]:
    """Stands in for `confirm_norms`."""
    for pair, claim in claims.items():
        norm = float(torch.linalg.matrix_norm(block(loop, pair), 2))
        if norm > claim.upper * (1 + 1e-12):
            raise BoundError(f"block {pair} has a norm of {norm}")
    return dict.fromkeys(claims, "svd")


@cache
def _is_there() -> bool:
    loop = LoopMap(trace(nn.Linear(2, 2).eval(), (2,)))
    try:
        confirm_norms(loop.at(loop.graph.resolve(torch.float64)), {}, limit=10, failure=1e-12)
    except NotImplementedError:
        return False
    return True


@pytest.fixture
def confirming(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms are confirmed by `confirm_norms`, or by a stand-in where that is not there."""
    if not _is_there():
        monkeypatch.setattr(recompute, "confirm_norms", by_svd)


def checked(c: Certificate, name: str = "mlp", **options: Any) -> Report:
    """`verify` with everything that there is."""
    given: dict[str, Any] = {"origin": Origin("mlp", {"widths": [8, 6]}, SHAPES[name], CLASSES), **options}
    return verify(c, network(name), samples(name), **given)


# --- lies -------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Lie:
    """One change, and the check that finds it in a resealed certificate (``"read"``: reading refuses it)."""

    name: str
    found_by: str
    change: Callable[[dict[str, Any]], None]
    options: Mapping[str, Any]


LIES: list[Lie] = []


def lie(found_by: str, **options: Any) -> Callable[[Callable[[dict[str, Any]], None]], None]:
    def register(change: Callable[[dict[str, Any]], None]) -> None:
        LIES.append(Lie(change.__name__, found_by, change, options))

    return register


def recount(c: dict[str, Any]) -> None:
    """Make verdicts, counts and shares follow from the columns again."""
    columns, count = c["samples"], c["data"]["samples"]
    correct = [a == b for a, b in zip(columns["label"], columns["prediction"], strict=True)]
    c["clean"] = {"count": sum(correct), "share": sum(correct) / count}
    for a in c["certified"]:
        a["verdict"] = [right and r > a["epsilon"] for right, r in zip(correct, columns["radius"], strict=True)]
        a["count"], a["share"] = sum(a["verdict"]), sum(a["verdict"]) / count


def scale_bound(c: dict[str, Any], factor: float) -> None:
    """A smaller bound, and all that follows from it."""
    c["bound"]["value"] = [[v * factor for v in row] for row in c["bound"]["value"]]
    for column in ("real_radius", "radius"):
        c["samples"][column] = [r / factor * (1 - 1e-15) for r in c["samples"][column]]
    recount(c)


REAL = {"precision": "real"}
RANDOM = {"precision": "real", "dense_limit": 1}
GAIN = {"precision": "real", "method": "smallgain", "seconds": 0.2, "failure": 0.0}
GAIN_GLOBAL = {**GAIN, "scope": "global"}
GAIN_RANDOM = {**GAIN, "dense_limit": 1, "failure": 1e-12}


def evidence(c: dict[str, Any]) -> dict[str, Any]:
    """What proves a small-gain bound."""
    found: dict[str, Any] = c["bound"]["smallgain"]
    return found


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


@lie("read")
def another_arithmetic(c: dict[str, Any]) -> None:
    c["precision"]["arithmetic"] = "float64"


@lie("precision")
def rounding_that_was_not_counted(c: dict[str, Any]) -> None:
    c["precision"]["arithmetic"] = "real"


@lie("radii", **REAL)
def real_radii_called_executed(c: dict[str, Any]) -> None:
    c["precision"] = content()["precision"]


@lie("precision")
def an_assumption_dropped(c: dict[str, Any]) -> None:
    c["precision"]["assumptions"].pop()


@lie("data")
def other_data(c: dict[str, Any]) -> None:
    c["data"]["sha256"] = "1" * 64


@lie("data")
def another_data_set_s_name(c: dict[str, Any]) -> None:
    c["data"]["name"] = "mnist"


@lie("data")
def another_split(c: dict[str, Any]) -> None:
    c["data"]["split"] = "train"


@lie("read")
def another_number_of_samples(c: dict[str, Any]) -> None:
    c["data"]["samples"] += 1


@lie("data")
def a_sample_left_out(c: dict[str, Any]) -> None:
    c["data"]["samples"] -= 1
    for column in c["samples"].values():
        column.pop()
    for a in c["certified"]:
        a["verdict"].pop()
    recount(c)


@lie("sums")
def a_clean_count(c: dict[str, Any]) -> None:
    c["clean"]["count"] += 1


@lie("sums")
def a_clean_share(c: dict[str, Any]) -> None:
    c["clean"]["share"] = 1.0


@lie("sums")
def a_certified_count(c: dict[str, Any]) -> None:
    c["certified"][1]["count"] += 1


@lie("sums")
def a_certified_share(c: dict[str, Any]) -> None:
    c["certified"][1]["share"] = 1.0


@lie("sums")
def a_verdict(c: dict[str, Any]) -> None:
    c["certified"][1]["verdict"][0] = not c["certified"][1]["verdict"][0]


@lie("sums")
def another_epsilon(c: dict[str, Any]) -> None:
    c["certified"][-1]["epsilon"] = 99.0


@lie("read")
def an_epsilon_twice(c: dict[str, Any]) -> None:
    c["certified"].append(c["certified"][-1])


@lie("labels")
def a_label(c: dict[str, Any]) -> None:
    c["samples"]["label"][0] = c["samples"]["prediction"][0]
    recount(c)


@lie("read")
def a_label_of_no_class(c: dict[str, Any]) -> None:
    c["samples"]["label"][0] = 3


@lie("margins")
def a_prediction(c: dict[str, Any]) -> None:
    """With a margin and radii that would fit it."""
    columns = c["samples"]
    columns["prediction"][0], columns["runner_up"][0] = columns["runner_up"][0], columns["prediction"][0]
    recount(c)


@lie("margins")
def another_runner_up(c: dict[str, Any]) -> None:
    columns = c["samples"]
    a, b = columns["prediction"][0], columns["runner_up"][0]
    other = 3 - a - b
    columns["margin"][0] *= c["bound"]["value"][a][other] / c["bound"]["value"][a][b] * (1 + 1e-15)
    columns["runner_up"][0] = other


@lie("read")
def a_runner_up_that_is_the_prediction(c: dict[str, Any]) -> None:
    c["samples"]["runner_up"][0] = c["samples"]["prediction"][0]


@lie("margins")
def a_larger_margin(c: dict[str, Any]) -> None:
    """With the radii that follow from it."""
    for column in ("margin", "real_radius", "radius"):
        c["samples"][column][1] *= 1.001
    c["samples"]["margin"][1] *= 1 + 1e-15
    recount(c)


@lie("margins")
def a_smaller_margin(c: dict[str, Any]) -> None:
    for column in ("margin", "real_radius", "radius"):
        c["samples"][column][1] *= 0.9
    c["samples"]["margin"][1] *= 1 + 1e-15
    recount(c)


@lie("quotients", **REAL)
def a_larger_radius(c: dict[str, Any]) -> None:
    for column in ("real_radius", "radius"):
        c["samples"][column][1] *= 1 + 1e-12


@lie("quotients", **REAL)
def a_smaller_radius(c: dict[str, Any]) -> None:
    for column in ("real_radius", "radius"):
        c["samples"][column][1] *= 0.9
    recount(c)


@lie("quotients", **REAL)
def a_radius_below_its_real_one(c: dict[str, Any]) -> None:
    c["samples"]["radius"][1] *= 0.9999


@lie("radii")
def a_larger_executed_radius(c: dict[str, Any]) -> None:
    c["samples"]["radius"] = list(c["samples"]["real_radius"])
    recount(c)


@lie("radii")
def a_smaller_executed_radius(c: dict[str, Any]) -> None:
    c["samples"]["radius"][1] *= 0.99
    recount(c)


@lie("read")
def a_radius_above_the_real_one(c: dict[str, Any]) -> None:
    c["samples"]["radius"][1] = 1e6


@lie("read")
def a_negative_radius(c: dict[str, Any]) -> None:
    c["samples"]["radius"][1] = -0.1


@lie("read")
def a_column_too_short(c: dict[str, Any]) -> None:
    c["samples"]["radius"].pop()


@lie("read")
def a_key_too_many(c: dict[str, Any]) -> None:
    c["bound"]["trust"] = "me"


@lie("read")
def a_key_missing(c: dict[str, Any]) -> None:
    del c["precision"]


@lie("read")
def a_name_that_steers_a_terminal(c: dict[str, Any]) -> None:
    c["data"]["name"] = "mnist\x1b[2J\x1b[31m"


# --- lies about small gain --------------------------------------------------------------------------------------------
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
