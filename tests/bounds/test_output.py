"""P of a small-gain bound: what it proves, and how it comes from the gain matrix."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

import lipcert
from cases import loop_map
from chains import matrices, network
from lipcert.bounds import UpperBound, graph_bound, smallgain
from lipcert.bounds.evidence import Evidence, Scaling
from lipcert.bounds.output import fitted, functional_norms, whitening
from lipcert.bounds.recursive import estimated
from lipcert.bounds.result import Scope
from lipcert.bounds.smallgain import evidence_value, search
from lipcert.errors import BoundError
from lipcert.loop import LoopMap
from lipcert.norms import Norm, dense
from lipcert.scaled import ScaledMap
from scaled_reference import random_output

SCOPES = get_args(Scope)


@pytest.mark.parametrize("exponent", [0, 500, -500, 510, -900])
def test_norms_of_functionals_at_any_scale(exponent: int) -> None:
    """Against 50 digits, two rows nearly equal among them, and none below the truth."""
    import mpmath

    loop = loop_map("mlp-deep")
    (size,) = loop.target_shape(loop.depth + 1)
    p = torch.linalg.inv(random_output(loop)).T.contiguous()
    inverse = torch.linalg.inv(p)
    inverse[1] = inverse[0] * (1 + 1e-9)
    p = torch.linalg.inv(inverse + 1e-7 * torch.eye(size, dtype=torch.float64)) * 2.0**exponent
    norm = Norm(1.0, 1.0, "dense")
    with mpmath.workdps(50):
        exact = mpmath.matrix(p.tolist()) ** -1
        rows = [[exact[a, i] for i in range(size)] for a in range(size)]
        classes = [mpmath.norm(r) for r in rows]
        pairs = [[mpmath.norm([x - y for x, y in zip(a, b, strict=True)]) for b in rows] for a in rows]
        evidence = Evidence(Scaling("layer", ()), p, norm)
        found = evidence_value(loop, evidence, "class").tolist()
        for a, b in zip(found, classes, strict=True):
            assert b <= a <= b * (1 + 1e-4)
        for row, wanted in zip(evidence_value(loop, evidence, "pairwise").tolist(), pairs, strict=True):
            for a, b in zip(row, wanted, strict=True):
                assert b <= a <= b * (1 + 1e-2) + max(classes) * 1e-6


@pytest.mark.parametrize(
    ("output", "scope", "said"),
    [
        (torch.zeros(3, 3), "class", "no inverse"),
        (torch.ones(3, 3), "pairwise", "inverse|ill-conditioned"),
        (torch.full((3, 3), torch.nan), "class", "inverse|ill-conditioned"),
        (torch.diag(torch.tensor([1.0, 1.0, 1e-17])), "class", "ill-conditioned"),
        (0.0, "global", "zero"),
        (1.0, "pairwise", "must be a number"),
        (1.0, "class", "must be a number"),
        (torch.eye(3), "global", "must be a number"),
    ],
)
def test_outputs_that_prove_nothing(output: Tensor | float, scope: Scope, said: str) -> None:
    given = output.double() if isinstance(output, Tensor) else output
    with pytest.raises(BoundError, match=said):
        evidence_value(loop_map("mlp-deep"), Evidence(Scaling("layer", ()), given, Norm(1.0, 1.0, "dense")), scope)


def test_a_number_for_all_outputs_is_none_for_pairs() -> None:
    """‖e_a − e_b‖ = √2: with y = (f, −f) the difference is steeper than y by that."""
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 2, bias=False)).double().eval()
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[2].weight.copy_(torch.tensor([[1.0], [-1.0]]))
    options: dict[str, Any] = {"method": "smallgain", "guarantee": "upper", "failure": 0.0, "seconds": 5.0}
    whole = lipcert.lipschitz(net, (1,), scope="global", **options)
    graph = lipcert.trace(net, (1,))
    base = lipcert.lipschitz(net, (1,), scope="pairwise", **options)
    assert isinstance(whole, UpperBound)
    assert isinstance(base, UpperBound)
    assert whole.evidence is not None
    with pytest.raises(BoundError, match="must be a number"):
        graph_bound(graph, method="smallgain", scope="pairwise", guarantee="upper", norms=base.norms,
                    evidence=whole.evidence)  # fmt: skip


@pytest.mark.parametrize("norm", [1e200, 1e308, math.inf])
def test_norms_that_prove_nothing(norm: float) -> None:
    evidence = Evidence(Scaling("layer", ()), torch.eye(3, dtype=torch.float64), Norm(norm, 1.0, "dense"))
    with pytest.raises(BoundError, match="proves nothing"):
        evidence_value(loop_map("mlp-deep"), evidence, "class")


def test_whitening() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn((4, 4), generator=generator, dtype=torch.float64)
    gain = a @ a.T
    p = whitening(gain)
    assert isinstance(p, Tensor)
    torch.testing.assert_close(p @ gain @ p.T, torch.eye(4, dtype=torch.float64), atol=1e-6, rtol=0)
    assert isinstance(whitening(a[:, :2] @ a[:, :2].T), Tensor)  # singular
    for nothing in (0.0, -1.0, math.nan, torch.zeros(3, 3).double(), -torch.eye(3).double()):
        with pytest.raises(BoundError, match="liplt"):
            whitening(nothing)


@pytest.mark.parametrize("lost", [0.0, 0.02, 0.5])
def test_an_output_that_is_too_large_is_fitted(lost: float) -> None:
    """N is too small along two directions: P is made smaller there, and the bound becomes what N would have given."""
    loop = loop_map("mlp-deep")
    with torch.no_grad():
        scaling, gain = search(loop, estimated(loop, "class", 0)[1], scope="class", scaling="layer")
        assert isinstance(gain, Tensor)
        root = torch.linalg.cholesky(gain)
        turn = torch.linalg.qr(torch.randn((3, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
        kept = torch.tensor([1.0, 1 - lost, 1 - lost / 2], dtype=torch.float64)
        wrong = root @ (turn * kept) @ turn.T @ root.T
        scaled = ScaledMap(loop, list(scaling.weights), None)
        found, exact = fitted(scaled, whitening(wrong)), whitening(gain)
        number = fitted(scaled, 10 / math.sqrt(float(torch.linalg.eigvalsh(gain)[-1])))
    assert isinstance(found, Tensor)
    assert isinstance(exact, Tensor)
    assert isinstance(number, float)
    values = []
    for output in (found, exact, number):
        matrix = dense.block(ScaledMap(loop, list(scaling.weights), output), (1, 0))
        assert float(torch.linalg.matrix_norm(matrix, 2)) <= 1 + 1e-4
        if isinstance(output, Tensor):
            values.append(functional_norms(output, "class"))
    torch.testing.assert_close(values[0], values[1], rtol=2e-3, atol=0)
    assert 1 / number == pytest.approx(math.sqrt(float(torch.linalg.eigvalsh(gain)[-1])), rel=1e-3)


def _decaying() -> nn.Sequential:
    """24-40-40-80, the singular values of whose head fall as 0.6^i."""
    net = network(matrices(24, 40, 40, 80, seed=0), seed=0).double()
    head = net[-1].weight
    with torch.no_grad():
        u, s, v = torch.linalg.svd(head, full_matrices=False)
        head.copy_(u * (s[0] * 0.6 ** torch.arange(len(s))) @ v)
    return net


def test_more_outputs_than_the_rank_of_the_gain_matrix() -> None:
    """N is singular there, and what it lacks is much beside its least eigenvalues."""
    graph = lipcert.trace(_decaying(), (24,))
    loop = LoopMap(graph, graph.resolve(torch.float64))
    with torch.no_grad():
        scaling, gain = search(loop, estimated(loop, "class", 0)[1], scope="class", scaling="layer")
        exact = smallgain._gain_matrix(ScaledMap(loop, list(scaling.weights), None), 1e-8)[0]
        assert isinstance(gain, Tensor)
        values = [functional_norms(whitening(n), "class") for n in (gain, exact)]  # type: ignore[arg-type]
    torch.testing.assert_close(values[0], values[1], rtol=2e-2, atol=0)
