"""The small-gain bound of a residual network in parts: what it is made of, what it says, and what is refused."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lipcert
from certificates import Block
from lipcert.bounds import UpperBound, graph_bound, lower_bound
from lipcert.bounds.parts import Proofs
from lipcert.bounds.rows import constants_behind, constants_until, row
from lipcert.certify.certificate import restated, stated
from lipcert.errors import BoundError
from lipcert.layers import HalfAbs, SmallGainLinear, fold
from lipcert.loop import LoopMap

SCOPES = ["global", "class", "pairwise"]
QUICK: dict[str, Any] = {"method": "smallgain", "guarantee": "upper", "seconds": 1.0, "failure": 0.0, "slack": 1e-4}


def _row(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    blocks = [Block(act) for act in (nn.ReLU(), nn.LeakyReLU(0.3), nn.Tanh())]
    return nn.Sequential(nn.Linear(5, 6), *blocks, nn.ReLU(), nn.Linear(6, 3)).double().eval()


def _deep(blocks: int = 4) -> nn.Module:
    """Blocks that are 1-Lipschitz, which LipLT does not see."""
    torch.manual_seed(0)
    layers = [SmallGainLinear(6, 12) for _ in range(blocks)]
    for p in (p for layer in layers for p in layer.parameters()):
        nn.init.normal_(p)
    return fold(nn.Sequential(*layers, nn.Linear(6, 3)).eval()).double().eval()


def _bound(net: nn.Module, scope: str = "pairwise", shape: tuple[int, ...] = (5,), **options: Any) -> UpperBound:
    found = graph_bound(lipcert.trace(net, shape), **{"scope": scope, "parts": True, **QUICK, **options})
    assert isinstance(found, UpperBound)
    return found


@pytest.mark.parametrize("scope", SCOPES)
def test_of_each_part_and_of_the_whole(scope: str) -> None:
    net = _row()
    graph = lipcert.trace(net, (5,))
    found, without = _bound(net, scope), _bound(net, scope, parts=False)
    assert [p.scope for p in found.parts] == ["global", "global", "global", scope]
    assert [len(p.hidden) for p in found.parts] == [1, 1, 1, 1]
    assert not without.parts
    assert found.value.shape == without.value.shape
    assert bool((found.value <= without.value * 1.25).all())  # the parts take some of the time of the search
    seen = lower_bound(graph, torch.randn(20, 5, dtype=torch.float64), scope=scope)
    assert bool((found.value >= seen.value * (1 - 1e-9)).all())
    assert found.failure == 0
    by_parts = found.parts[-1].value
    for one in found.parts[:-1]:
        assert one.value.ndim == 0
        by_parts = by_parts * one.value
    assert bool((found.value <= by_parts * (1 + 1e-9)).all())


def test_the_constants_of_parts_and_of_what_activations_see() -> None:
    """No pair of points moves by more."""
    net = _row(1)
    graph, found = lipcert.trace(net, (5,)), _bound(net)
    loop = LoopMap(graph, graph.resolve(torch.float64))
    pieces = row(loop)
    x, d = torch.randn(400, 5, dtype=torch.float64), torch.randn(400, 5, dtype=torch.float64)
    values: list[dict[int, Tensor]] = []
    for points in (x, x + 1e-3 * d, x + d):
        values.append({})
        with torch.no_grad():
            graph.evaluate(points, loop.resolved, lambda node, _, value: values[-1].__setitem__(node.index, value))
    entering = [0, *(p.end for p in pieces)]
    for other in values[1:]:
        for (start, piece), bound in zip(zip(entering, pieces, strict=False), found.parts, strict=True):
            moved = [(other[i] - values[0][i]).norm(dim=1) for i in (start, piece.end)] if start else [None, None]
            if start and bound.scope == "global":
                assert bool((moved[1] <= float(bound.value) * moved[0] * (1 + 1e-9)).all())
        step = (1e-3 if other is values[1] else 1.0) * d.norm(dim=1)
        for k, m in found.hidden.items():
            at = loop.target_node(k)
            assert bool(((other[at] - values[0][at]).norm(dim=1) <= m * step * (1 + 1e-9)).all())


def test_where_liplt_grows_from_block_to_block() -> None:
    net = _deep()
    found = _bound(net, "global", (6,), seconds=15.0, scaling="channel")
    liplt = lipcert.lipschitz(net, (6,), guarantee="upper")
    assert len(found.parts) == 5
    assert all(float(p.value) < 1.002 for p in found.parts[:-1])
    assert float(found) < 1.01 * float(found.parts[-1].value) < 0.5 * float(liplt)
    assert isinstance(liplt, UpperBound)
    assert found.hidden[4] < 0.9 * liplt.hidden[4]


@pytest.mark.parametrize("scope", SCOPES)
def test_what_is_stated_gives_it_again(scope: str) -> None:
    net = _row()
    found = _bound(net, scope)
    again = restated(lipcert.trace(net, (5,)), stated(found))
    assert torch.allclose(again.value, found.value, rtol=1e-12)
    assert again.hidden == pytest.approx(found.hidden, rel=1e-12)
    assert again.slack == pytest.approx(found.slack, abs=1e-12)
    assert [p.evidence is None for p in again.parts] == [p.evidence is None for p in found.parts]


@pytest.mark.parametrize("method", ["smallgain", "best"])
def test_probabilities_of_failure_add_up(method: str) -> None:
    found = _bound(_row(), method=method, failure=1e-9, dense_limit=1, scaling="layer", slack=1e-2)
    of_all = [n.failure for b in (found, *found.parts) for n in b.norms.values()]
    scaled = [b.evidence.norm.failure for b in (found, *found.parts) if b.evidence is not None and b.evidence.norm]
    if method == "smallgain":
        assert found.failure == 1e-9
        assert sum(of_all) + sum(scaled) == pytest.approx(0.75e-9)  # the rest is for several parts together
    else:
        assert sum(of_all) + sum(scaled) < found.failure <= 1e-9 * (1 + 1e-9)


@pytest.mark.parametrize("method", ["liplt", "product"])
def test_other_methods_have_none(method: str) -> None:
    assert not _bound(_row(), method=method).parts


def test_networks_that_cannot_be_cut() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).double().eval()
    found, without = _bound(net), _bound(net, parts=False)
    assert not found.parts
    assert torch.equal(found.value, without.value)
    assert row(LoopMap(lipcert.trace(Block(nn.ReLU()).double().eval(), (6,)))) == []  # its only merge is its output


def test_proofs_of_other_parts_are_refused() -> None:
    net = _row()
    graph, found = lipcert.trace(net, (5,)), _bound(net)
    given = {**QUICK, "norms": found.norms, "evidence": found.evidence, "scope": "pairwise"}
    proofs = [Proofs(p.norms, p.evidence) for p in found.parts]
    assert torch.equal(graph_bound(graph, parts=proofs, **given).value, found.value)
    with pytest.raises(BoundError, match="proofs of 3 parts are given, but this network has 4"):
        graph_bound(graph, parts=proofs[:3], **given)
    with pytest.raises(BoundError, match="not those of this network's blocks"):
        graph_bound(graph, parts=[proofs[0], proofs[3], *proofs[2:]], **given)
    alone = graph_bound(graph, **given)
    assert isinstance(alone, UpperBound)
    assert not alone.parts


class _Sum(nn.Module):
    """w·x, as a merge of two halves."""

    def __init__(self, w: float) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        for half in (self.a, self.b):
            half.weight.data = torch.full((1, 1), w / 2, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.b(x).relu()  # as steep as the sum where x is positive


@pytest.mark.parametrize("exponents", [(-530, -530, 560), (-537, -537, 574), (-540, -540, 600), (300, -300, 0)])
def test_products_of_constants_that_underflow(exponents: tuple[int, int, int]) -> None:
    """The product of the first two has digits that are lost, or is lost as a whole, and the third makes it large."""
    first, second, third = (1.49 * 2.0**e for e in exponents)
    last = nn.Linear(1, 2).double()
    last.weight.data = torch.tensor([[third], [-third]], dtype=torch.float64)
    net = nn.Sequential(_Sum(first), _Sum(second), last).eval()
    found = _bound(net, "pairwise", (1,))
    exact = 2 * Fraction(first) * Fraction(second) * Fraction(third)
    assert len(found.parts) == 3
    assert Fraction(float(found.value[0, 1])) >= exact
    x = torch.full((1, 1), 2.0**20, dtype=torch.float64)
    last.bias.data = torch.tensor([3.0 * float(exact), 0.0], dtype=torch.float64)
    radius = Fraction(float(lipcert.certify(net, x, method="smallgain", failure=0.0, seconds=2.0).radius))
    margin = 2 * Fraction(first) * Fraction(second) * Fraction(third) * 2**20 + Fraction(float(last.bias[0]))
    assert radius * exact <= margin


def test_a_part_that_cannot_be_proved_costs_no_bound_of_the_whole() -> None:
    """Its block is larger than the limit, and no chain of layers; a pairwise bound of the whole needs none such."""
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1))
    net = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), Plus(inner), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(12, 3))
    with pytest.warns(UserWarning, match="no small-gain bound was found"):
        found = _bound(net.double().eval(), shape=(1, 8, 8), dense_limit=32)
    assert not found.parts
    assert bool((found.value[found.value > 0] < 10).all())


def test_certify_takes_a_bound_with_its_parts() -> None:
    net, x = _deep().float(), torch.rand(4, 6)
    made: dict[str, Any] = {"method": "smallgain", "scope": "pairwise", "seconds": 5.0, "guarantee": "upper"}
    found, without = (lipcert.lipschitz(net, (6,), parts=p, **made) for p in (True, False))
    near, far = (lipcert.certify(net, x, bound=b) for b in (found, without))
    assert bool((near.real - near.radius < far.real - far.radius).all())


class Plus(nn.Module):
    """x + inner(x)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


# --- several parts together -------------------------------------------------------------------------------
def _halves(seed: int = 0) -> nn.Module:
    """Parts of which none keeps distances: their product is far above what they are together."""
    torch.manual_seed(seed)
    hidden = [m for _ in range(4) for m in (nn.Linear(6, 6), HalfAbs())]
    return nn.Sequential(nn.Linear(5, 6), HalfAbs(), *hidden, nn.Linear(6, 3)).double().eval()


@pytest.mark.parametrize("scope", SCOPES)
def test_all_behind_a_part_and_all_up_to_its_end(scope: str) -> None:
    net = _halves()
    graph, found = lipcert.trace(net, (5,)), _bound(net, scope)
    loop = LoopMap(graph, graph.resolve(torch.float64))
    pieces = row(loop)
    assert [p.behind is not None for p in found.parts] == [True, True, True, True, False, False]
    assert [p.until is not None for p in found.parts] == [False, True, True, True, True, False]
    alone = [dataclasses.replace(p, behind=None, until=None) for p in found.parts]
    until, behind = constants_until(pieces, found.parts), constants_behind(pieces, found.parts, scope)
    assert all(a <= b * (1 + 1e-12) for a, b in zip(until, constants_until(pieces, alone), strict=True))
    assert until[-1] < 0.5 * constants_until(pieces, alone)[-1]
    assert float(behind[0].max()) < 0.8 * float(constants_behind(pieces, alone, scope)[0].max())
    x, d = torch.randn(300, 5, dtype=torch.float64), torch.randn(300, 5, dtype=torch.float64)
    for i, piece in enumerate(pieces[:-1]):
        for size in (1e-4, 1.0):
            with torch.no_grad():
                start, end = net[: 2 * i + 2](x), net[: 2 * i + 2](x + size * d)
                assert bool(((end - start).norm(dim=1) <= until[i] * size * d.norm(dim=1) * (1 + 1e-9)).all())
                away = start + size * torch.randn(start.shape, dtype=torch.float64)
                moved, step = net[2 * i + 2 :](away) - net[2 * i + 2 :](start), (away - start).norm(dim=1)
            value = behind[i]
            if scope == "global":
                seen = moved.norm(dim=1) / step
            elif scope == "class":
                seen, value = moved.abs() / step[:, None], value[None]
            else:
                seen, value = (moved[:, :, None] - moved[:, None]).abs() / step[:, None, None], value[None]
            assert bool((seen <= value * (1 + 1e-9)).all())
        assert piece.behind().depth + piece.until().depth == loop.depth


def test_what_is_stated_of_several_together_gives_it_again() -> None:
    net = _halves()
    graph, found = lipcert.trace(net, (5,)), _bound(net)
    again = restated(graph, stated(found))
    pieces = row(LoopMap(graph, graph.resolve(torch.float64)))
    assert constants_until(pieces, again.parts) == constants_until(pieces, found.parts)
    for one, other in zip(*(constants_behind(pieces, b.parts, "pairwise") for b in (found, again)), strict=True):
        assert torch.equal(one, other)


def test_parts_that_keep_distances_are_not_taken_together() -> None:
    found = _bound(_deep(), "global", (6,), seconds=2.0, scaling="channel")
    assert not any(p.behind or p.until for p in found.parts)


def test_the_probabilities_of_several_together_add_up() -> None:
    found = _bound(_halves(), failure=1e-9, dense_limit=1, scaling="layer", slack=1e-2)
    norms = [n for b in (found, *found.parts) for n in b.norms.values()]
    norms += [
        e.norm for b in (found, *found.parts) for e in (b.evidence, b.behind, b.until) if e is not None and e.norm
    ]
    assert found.failure == 1e-9
    assert sum(n.failure for n in norms) == pytest.approx(1e-9, rel=0.05)  # of what was tried all but one or two hold
    assert sum(n.failure for n in norms) <= 1e-9 * (1 + 1e-12)
