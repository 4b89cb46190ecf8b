"""Small gain with weights of their own for single outputs."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lipcert
import lipcert.bounds.refine as module
from adversary_exact import Exact
from cases import loop_map, nonlinear, traced
from chains import matrices, network
from lipcert.bounds import UpperBound, graph_bound, lower_bound
from lipcert.bounds.evidence import Evidence, Scaling
from lipcert.bounds.refine import nearest_pairs, refined, with_further
from lipcert.bounds.result import Estimate
from lipcert.bounds.smallgain import evidence_value, excess
from lipcert.certify.certificate import restated, stated
from lipcert.errors import BoundError
from lipcert.loop import LoopMap
from lipcert.norms.scaled import prove_scaled

OPTIONS: dict[str, Any] = {"method": "smallgain", "guarantee": "upper", "seconds": 5.0, "failure": 0.0}


def _net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 4))
    return net.double().eval()


def _upper(net: nn.Module, shape: tuple[int, ...], **options: Any) -> UpperBound:
    found = lipcert.lipschitz(net, shape, **{**OPTIONS, **options})
    assert isinstance(found, UpperBound)
    return found


def _pairs(value: Tensor) -> Tensor:
    return value[torch.ones_like(value).triu(1).bool()] if value.ndim == 2 else value


def _loop(net: nn.Module, shape: tuple[int, ...]) -> LoopMap:
    graph = lipcert.trace(net, shape)
    with torch.no_grad():
        return LoopMap(graph, graph.resolve(torch.float64))


@pytest.mark.parametrize("scope", ["pairwise", "class"])
@pytest.mark.parametrize("seed", [0, 1])
def test_smaller_for_each_output_and_above_the_exact_constant(scope: str, seed: int) -> None:
    net = network(matrices(2, 4, 3, seed=seed), seed=seed)
    first = _upper(net, (2,), scope=scope, scaling="neuron")
    found = _upper(net, (2,), scope=scope, scaling="neuron", refine=60.0)
    exact = Exact(net)
    slopes = torch.stack([torch.as_tensor(c.slope).norm(dim=1) for c in exact.cells]).amax(0)
    least = exact.pairs if scope == "pairwise" else slopes
    assert bool((found.value >= least * (1 - 1e-9)).all())
    assert bool((found.value <= first.value * (1 + 1e-9)).all())


@pytest.mark.parametrize("scope", ["pairwise", "class"])
def test_it_is_what_a_bound_of_that_output_alone_is(scope: str) -> None:
    """Which is at most that of all together, here by some per cent."""
    net = _net()
    first = _upper(net, (5,), scope=scope, scaling="neuron")
    found = _upper(net, (5,), scope=scope, scaling="neuron", refine=60.0)
    assert len(found.further) > 1
    assert bool((_pairs(found.value) < _pairs(first.value) * (1 - 1e-3)).any())
    rows = torch.eye(4, dtype=torch.float64)
    for a, b in ((0, 1), (2, 3)):
        row = rows[a] - rows[b] if scope == "pairwise" else rows[a]
        alone = lipcert.lipschitz(net, (5,), output_weights=row, **{**OPTIONS, "scaling": "neuron"})
        entry = found.value[a, b] if scope == "pairwise" else found.value[a]
        assert float(entry) == pytest.approx(float(alone), rel=5e-3)


def test_the_value_is_the_smallest_that_any_evidence_gives() -> None:
    net = _net(1)
    found, loop = _upper(net, (5,), scope="pairwise", refine=60.0), _loop(net, (5,))
    assert found.evidence is not None
    values = [evidence_value(loop, one, "pairwise") for one in (found.evidence, *found.further)]
    liplt = lipcert.lipschitz(net, (5,), scope="pairwise", guarantee="upper", failure=0.0).value
    smallest = torch.stack([*values, liplt]).amin(0)
    torch.testing.assert_close(found.value, smallest, rtol=1e-12, atol=0)
    norms = [one.norm for one in (found.evidence, *found.further)]
    assert all(norm is not None for norm in norms)
    assert found.slack == max(excess(loop, norm) for norm in norms if norm is not None)


def test_each_scaled_map_has_the_norm_that_is_proved() -> None:
    net = _net(2)
    found, loop = _upper(net, (5,), scope="class", refine=60.0), _loop(net, (5,))
    assert found.further
    for one in found.further:
        assert one.norm is not None
        scaled = one.map(loop)
        with torch.no_grad():
            matrix = scaled.apply(torch.eye(len(scaled.divisors), dtype=torch.float64)).T
        assert float(torch.linalg.matrix_norm(matrix, 2)) <= one.norm.upper


def test_failures_add_up_to_what_was_asked_for() -> None:
    found = _upper(_net(), (5,), scope="pairwise", refine=60.0, failure=1e-9, dense_limit=1)
    assert found.evidence is not None
    norms = [one.norm for one in (found.evidence, *found.further)]
    risks = [*(n.failure for n in found.norms.values()), *(n.failure for n in norms if n is not None)]
    assert all(n is not None and n.method == "chebyshev" for n in norms)
    assert len(found.further) > 1
    assert 0 < sum(risks) <= 1e-9 * (1 + 1e-9)
    assert found.failure == pytest.approx(sum(risks), rel=1e-9)


def test_proofs_that_were_not_kept_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry that came out small may have done so because its proof failed."""
    options = {"scope": "pairwise", "failure": 1e-9, "dense_limit": 1}
    first_value, last_value = (_pairs(_upper(_net(), (5,), refine=r, **options).value) for r in (0.0, 60.0))
    monkeypatch.setattr(module, "_WORTH", float((1 - last_value / first_value).median()))
    found = _upper(_net(), (5,), refine=60.0, **options)
    assert found.evidence is not None
    assert found.evidence.norm is not None
    first = sum(n.failure for n in found.norms.values()) + found.evidence.norm.failure
    kept = [one.norm.failure for one in found.further if one.norm is not None]
    assert 0 < len(kept) < 6
    assert found.failure - first == pytest.approx(6 * kept[0], rel=1e-6)
    stands = json.loads(stated(found))
    assert stands["failure"] == pytest.approx(found.failure, rel=1e-12)
    assert stands["passed_over"] == pytest.approx((6 - len(kept)) * kept[0], rel=1e-6)


def test_from_a_certificate_it_is_the_same_to_the_last_bit() -> None:
    """Several processes share it in that form, and each makes radii of it."""
    for seed in range(3):
        net = _net(seed)
        found = _upper(net, (5,), scope="pairwise", refine=60.0)
        assert torch.equal(restated(lipcert.trace(net, (5,)), stated(found)).value, found.value)


def test_one_output_has_no_pairs() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)).eval()
    assert _upper(net, (4,), scope="pairwise", refine=1.0).value.tolist() == [[0.0]]


def test_estimates_too() -> None:
    net = _net()
    first, found = (
        lipcert.lipschitz(net, (5,), method="smallgain", scope="pairwise", seconds=5.0, refine=refine)
        for refine in (0.0, 60.0)
    )
    assert isinstance(found, Estimate)
    assert bool((found.value <= first.value * (1 + 1e-9)).all())
    proved = _upper(net, (5,), scope="pairwise", refine=60.0)
    torch.testing.assert_close(found.value, proved.value, rtol=5e-3, atol=1e-12)


def test_no_time_is_no_evidence() -> None:
    net, loop = _net(), _loop(_net(), (5,))
    first = _upper(net, (5,), scope="pairwise")
    found = refined(loop, first, seconds=0.0, failure=0.0, slack=1e-3, dense_limit=None)
    assert found is first


def test_evidence_that_says_less_changes_nothing() -> None:
    """Whoever makes a certificate may put in what they like."""
    net, loop = _net(), _loop(_net(), (5,))
    first = _upper(net, (5,), scope="pairwise")
    assert first.evidence is not None
    looser = Evidence(
        Scaling(first.evidence.scaling.kind, tuple(0.5 * d for d in first.evidence.scaling.weights)),
        0.5 * torch.as_tensor(first.evidence.output),
    )
    norm = prove_scaled(looser.map(loop), slack=1e-3, dense=2048, limit=2048, failure=0.0)
    found = with_further(loop, first, [replace(looser, norm=norm)])
    assert torch.equal(found.value, first.value)
    assert found.slack >= first.slack


@pytest.mark.parametrize("name", [n for n in nonlinear()[::7] if "resnet18" not in n])  # half a minute
def test_of_odd_networks_it_is_never_larger_and_above_their_steepest_points(name: str) -> None:
    graph, loop = traced(name), loop_map(name)
    first = graph_bound(graph, scope="class", **{**OPTIONS, "seconds": 1.0})
    assert isinstance(first, UpperBound)
    with torch.no_grad():
        found = refined(loop, first, seconds=2.0, failure=0.0, slack=2e-3, dense_limit=None)
    assert bool((found.value <= first.value).all())
    x = torch.rand((32, *graph.input_shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    below = lower_bound(graph, x.to(graph.capture.sample), scope="class", steps=10)
    assert bool((found.value >= below.value * (1 - 1e-9)).all())


def test_what_is_refused() -> None:
    net = _net()
    with pytest.raises(BoundError, match="refine= is for bounds of single outputs"):
        lipcert.lipschitz(net, (5,), method="smallgain", refine=1.0)
    with pytest.raises(BoundError, match="refine= is for method='smallgain'"):
        lipcert.lipschitz(net, (5,), method="liplt", scope="pairwise", refine=1.0)
    for wrong in (-1.0, float("nan"), float("inf"), "3", True):
        with pytest.raises(BoundError, match="refine must be a number of seconds"):
            lipcert.lipschitz(net, (5,), method="smallgain", scope="pairwise", refine=wrong)
    wide = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 25)).eval()
    with pytest.raises(BoundError, match="up to 24 outputs; this network has 25"):
        lipcert.lipschitz(wide, (2,), method="smallgain", scope="pairwise", refine=1.0)


def test_it_begins_with_the_pairs_that_are_given() -> None:
    value = torch.tensor([[0.0, 3.0, 1.0], [3.0, 0.0, 2.0], [1.0, 2.0, 0.0]])
    assert module._entries(value, []) == [(0, 2), (1, 2), (0, 1)]
    assert module._entries(value, [(1, 0), (0, 1), (5, 7)]) == [(0, 1), (0, 2), (1, 2)]
    assert module._entries(value[0], [(2, 1)]) == [(2,), (1,), (0,)]


def test_which_pairs_decide_radii() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [2.0, 0.0, 3.0], [0.0, 2.0, 1.0]])
    assert nearest_pairs(logits) == [(0, 2), (1, 2)]
    assert nearest_pairs(logits[:0]) == nearest_pairs(logits[0]) == nearest_pairs(logits[:, :1]) == []
