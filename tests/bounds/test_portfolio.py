"""``method="best"``: the smallest bound of all methods that there was time for."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

import lipcert
from certificates import checked, network, samples
from lipcert.bounds import UpperBound, portfolio
from lipcert.bounds.lipschitz import graph_bound
from lipcert.bounds.result import Bound, Estimate
from lipcert.certify import certificate_of
from lipcert.errors import BoundError, TraceError


def mlp(*widths: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).double().eval()


class Doubled(nn.Module):
    """Where branches meet: LipLT of the sum is below the sum of products."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.a(x))
        return self.last(h - torch.relu(self.b(h)))


@pytest.mark.parametrize(
    ("guarantee", "scope"), [("upper", "global"), ("upper", "class"), ("upper", "pairwise"), ("estimate", "pairwise")]
)
@pytest.mark.parametrize("net", [mlp(4, 8, 8, 3), Doubled().double().eval(), mlp(4, 3)], ids=["mlp", "sum", "linear"])
def test_the_smallest_of_all(net: nn.Module, scope: str, guarantee: str) -> None:
    options = {"scope": scope, "guarantee": guarantee, "scaling": "neuron", "seconds": 30.0}
    found = lipcert.lipschitz(net, (4,), method="best", **options)  # type: ignore[arg-type]
    assert [a.bound.method for a in found.attempts] == ["product", "liplt", "smallgain"]
    for attempt in found.attempts:
        alone = lipcert.lipschitz(net, (4,), method=attempt.bound.method, **options)  # type: ignore[arg-type]
        torch.testing.assert_close(attempt.bound.value, alone.value, rtol=1e-6, atol=1e-12)
        assert bool((found.value <= attempt.bound.value * (1 + 1e-9)).all())
        assert type(found) is type(attempt.bound)
        assert attempt.seconds > 0
        assert attempt.bound.attempts == ()
    assert isinstance(found, UpperBound if guarantee == "upper" else Estimate)


def test_the_first_of_those_that_agree_is_taken() -> None:
    found = lipcert.lipschitz(mlp(4, 3), (4,), method="best", guarantee="upper")
    assert found.method == "product"


def test_without_time_it_is_the_cheapest() -> None:
    found = lipcert.lipschitz(mlp(4, 16, 16, 3), (4,), method="best", guarantee="upper", seconds=1e-9)
    assert [a.bound.method for a in found.attempts] == ["product"]
    assert found.method == "product"


def test_probabilities_of_failure_stay_within_what_was_asked_for() -> None:
    found = lipcert.lipschitz(
        mlp(4, 16, 16, 3), (4,), method="best", guarantee="upper", dense_limit=1, failure=1e-6, seconds=5
    )
    assert isinstance(found, UpperBound)
    assert found.method == "smallgain"
    assert found.failure == 1e-6
    product, liplt, smallgain = (a.bound for a in found.attempts)
    for bound, share in ((product, 0.5e-6), (liplt, 0.25e-6), (smallgain, 0.5e-6)):
        assert isinstance(bound, UpperBound)
        assert bound.failure == share
        norms = [n.failure for n in bound.norms.values()]
        if bound.evidence is not None:
            assert bound.evidence.norm is not None
            norms.append(bound.evidence.norm.failure)
        assert math.fsum(norms) <= share * (1 + 1e-9)


def test_the_chosen_one_answers_for_all() -> None:
    """Each fails with some probability, and the smallest is the likeliest to have failed."""
    value = torch.tensor(1.0, dtype=torch.float64)
    failures = {"product": 0.03, "liplt": 0.01, "smallgain": 0.02}

    def bound(method: str, left: float, base: UpperBound | None) -> Bound:
        return UpperBound(value, method, "global", failure=failures[method])  # type: ignore[arg-type]

    found = portfolio.best(bound, 10.0)
    assert isinstance(found, UpperBound)
    assert found.failure == 0.05


def test_starts_that_do_not_fit_are_refused() -> None:
    other = lipcert.lipschitz(mlp(4, 5, 5, 3), (4,), method="smallgain", guarantee="upper")
    assert isinstance(other, UpperBound)
    assert other.evidence is not None
    with pytest.raises(BoundError, match="another network"):
        lipcert.lipschitz(mlp(4, 16, 16, 3), (4,), method="best", start=other.evidence.scaling)


def test_a_graph_that_changed_is_refused() -> None:
    net = mlp(4, 5, 3)
    graph = lipcert.trace(net, (4,))
    net[1] = nn.Tanh()
    with pytest.raises(TraceError, match="changed since"):
        graph_bound(graph, method="best")


def test_lipschitz_bounds_given_are_counted_in() -> None:
    """A bound that may fail with the whole probability already leaves none of it unsaid."""
    graph = lipcert.trace(mlp(4, 16, 16, 3), (4,))
    options = {"guarantee": "upper", "dense_limit": 1, "failure": 1e-6}
    base = graph_bound(graph, method="liplt", **options)  # type: ignore[arg-type]
    assert isinstance(base, UpperBound)
    found = graph_bound(graph, method="smallgain", liplt=base, seconds=2, **options)  # type: ignore[arg-type]
    assert isinstance(found, UpperBound)
    assert found.failure >= 1.5e-6 * (1 - 1e-9)
    for wrong in ({"scope": "class"}, {"method": "product"}):
        with pytest.raises(BoundError, match="in the scope"):
            graph_bound(graph, liplt=base, **{"method": "smallgain", **options, **wrong})  # type: ignore[arg-type]


def test_a_method_that_refuses_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    value = torch.tensor(2.0, dtype=torch.float64)

    def bound(method: str, left: float, base: UpperBound | None) -> Bound:
        if method == "liplt":
            raise BoundError("too large a block")
        assert base is None
        return UpperBound(value / (1 + (method == "smallgain")), method, "global")  # type: ignore[arg-type]

    with pytest.warns(UserWarning, match="goes without 'liplt': too large a block"):
        found = portfolio.best(bound, 10.0)
    assert [a.bound.method for a in found.attempts] == ["product"]
    assert found.method == "product"

    def refusing(method: str, left: float, base: UpperBound | None) -> Bound:
        raise BoundError(f"not by {method}")

    with pytest.warns(UserWarning, match="not by product"), pytest.raises(BoundError, match="not by liplt"):
        portfolio.best(refusing, 10.0)


def test_what_there_is_survives_a_lack_of_memory() -> None:
    def bound(method: str, left: float, base: UpperBound | None) -> Bound:
        if method == "smallgain":
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return UpperBound(torch.tensor(1.0, dtype=torch.float64), method, "global")  # type: ignore[arg-type]

    with pytest.warns(UserWarning, match="goes without 'smallgain'"):
        assert portfolio.best(bound, 10.0).method == "product"

    def broken(method: str, left: float, base: UpperBound | None) -> Bound:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        portfolio.best(broken, 10.0)


def test_no_method_is_begun_late(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.0, 3.0, 3.0, 11.0, 11.0])
    monkeypatch.setattr(portfolio.time, "monotonic", lambda: next(clock))
    left: list[float] = []

    def bound(method: str, seconds: float, base: UpperBound | None) -> Bound:
        left.append(seconds)
        return UpperBound(torch.tensor(1.0, dtype=torch.float64), method, "global")  # type: ignore[arg-type]

    found = portfolio.best(bound, 10.0)
    assert left == [10.0, 7.0]
    assert [a.seconds for a in found.attempts] == [3.0, 8.0]


def test_evidence_is_of_one_method() -> None:
    graph = lipcert.trace(mlp(4, 5, 3), (4,))
    with pytest.raises(BoundError, match="name it"):
        graph_bound(graph, method="best", norms={})


def test_a_certificate_names_the_method_that_it_was() -> None:
    c = certificate_of(network("mlp"), samples("mlp"), method="best", seconds=2.0)
    assert c.bound.method == "smallgain"
    report = checked(c, origin=None)
    assert report.accepted, report.failed
    assert c.bound.passed_over == 0
    c = certificate_of(network("mlp"), samples("mlp"), method="best", seconds=2.0, dense_limit=1, failure=1e-6)
    assert c.bound.passed_over == pytest.approx(0.5e-6)
    assert c.bound.failure == pytest.approx(1e-6)
    assert checked(c, origin=None).accepted
