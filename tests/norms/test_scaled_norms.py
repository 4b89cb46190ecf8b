"""Norms of scaled maps: never below the exact one, and passes that err by no more than is said."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lipcert
from cases import loop_map, nonlinear
from chains import matrices, network
from lipcert.errors import BoundError
from lipcert.graph.types import Resolved
from lipcert.loop import LoopMap
from lipcert.norms import Norm
from lipcert.norms import errors as rounding
from lipcert.norms.scaled import ScaledErrors, confirm_scaled, prove_scaled
from lipcert.scaled import ScaledMap
from scaled_reference import matrix, random_output, random_weights

NAMES = nonlinear()
BLOCK = (1, 0)
UNIT = 2.0**-24
OPTIONS = {"dense": 2048, "limit": 2048, "failure": 0.0, "slack": 1e-3}


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def _scaled(name: str, kind: str = "neuron", seed: int = 0, spread: float = 0.5) -> ScaledMap:
    loop = loop_map(name)
    return ScaledMap(loop, random_weights(loop, kind, seed, spread), random_output(loop, seed))


# --- values -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_the_norm_of_the_explicit_matrix(name: str) -> None:
    scaled = _scaled(name)
    expected = np.linalg.norm(matrix(name, scaled.weights, scaled.output), 2)
    found = prove_scaled(scaled, **OPTIONS)
    assert found.method == "dense"
    assert found.upper == pytest.approx(expected, rel=3e-5)  # slopes of the reference are measured


@pytest.mark.parametrize("name", NAMES[::6])
def test_other_methods_are_above_and_close(name: str) -> None:
    scaled = _scaled(name)
    least = float(torch.linalg.matrix_norm(scaled.apply(torch.eye(len(scaled.divisors), dtype=torch.float64)), 2))
    by_gram = prove_scaled(scaled, **{**OPTIONS, "dense": 1})
    by_test = prove_scaled(scaled, **{**OPTIONS, "dense": 1, "limit": 1, "failure": 1e-9}, seed=1)
    for found, method in ((by_gram, "cholesky"), (by_test, "chebyshev")):
        assert found.method == method
        assert least * (1 - 1e-12) <= found.upper <= least * 1.01
        assert found.lower <= least * (1 + 1e-12)
    assert by_test.failure == 1e-9
    with pytest.raises(BoundError, match="probability"):
        prove_scaled(scaled, **{**OPTIONS, "dense": 1, "limit": 1})


def _exact_norm(weights: list[np.ndarray], d: list[np.ndarray], p: np.ndarray) -> mpmath.mpf:
    """‖S‖ of a ReLU chain, its entries in exact rational numbers and the norm in 60 digits."""
    f = np.vectorize(Fraction, otypes=[object])
    sizes, half = [weights[0].shape[1], *map(len, d)], Fraction(1, 2)
    rows: list[np.ndarray] = []
    x = [np.array([[Fraction(int(i == j)) for j in range(sizes[0])] for i in range(sizes[0])], dtype=object)]
    x += [np.full((sizes[0], n), Fraction(0), dtype=object) for n in sizes[1:]]
    for k, w in enumerate(weights):
        z = [f(w) @ part for part in x]
        left = f(d[k])[:, None] if k < len(d) else None
        out = [left * part for part in z] if left is not None else [f(p) @ part for part in z]
        rows.append(np.concatenate([o / (f(d[j - 1]) if j else Fraction(1)) for j, o in enumerate(out)], axis=1))
        if k < len(d):
            x = [half * part for part in z]
            own = [[half if i == j else Fraction(0) for j in range(len(w))] for i in range(len(w))]
            x[k + 1] = np.array(own, dtype=object)
            x = [part if part.shape[0] == len(w) else np.full((len(w), part.shape[1]), Fraction(0)) for part in x]
    s = np.concatenate(rows)
    with mpmath.workdps(60):
        return max(mpmath.svd_r(mpmath.matrix([[mpmath.mpf(v.numerator) / v.denominator for v in r] for r in s]),
                                compute_uv=False))  # fmt: skip


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("exponent", [0, 60, -200])
def test_not_below_the_norm_in_exact_rational_numbers(seed: int, exponent: int) -> None:
    weights = matrices(3, 4, 3, 3, 2, seed=seed)
    weights[0], weights[2] = weights[0] * 2.0**exponent, weights[2] * 2.0**-exponent
    loop = LoopMap(lipcert.trace(network(weights, biases=0.0), (3,)))
    generator = torch.Generator().manual_seed(seed)
    sizes = [2.0**-exponent, 2.0**-exponent, 1.0]
    d = [
        torch.randn(n, generator=generator, dtype=torch.float64).exp() * s
        for n, s in zip((4, 3, 3), sizes, strict=True)
    ]
    p = torch.randn((2, 2), generator=generator, dtype=torch.float64)
    exact = _exact_norm(weights, [v.numpy() for v in d], p.numpy())
    scaled = ScaledMap(loop, d, p)
    for options in (OPTIONS, {**OPTIONS, "dense": 1}, {**OPTIONS, "dense": 1, "limit": 1, "failure": 1e-9}):
        found = prove_scaled(scaled, **options, seed=seed)
        assert exact <= mpmath.mpf(found.upper) <= exact * (1 + 2e-3)


# --- rounding ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors as if float64 had the precision of float32."""
    monkeypatch.setattr(rounding, "UNIT", UNIT)


def _deviation(scaled: ScaledMap, other: ScaledMap) -> tuple[float, float]:
    """How much passes of two maps differ on unit vectors and on their leading ones: forward, and of the adjoint."""
    matrix = scaled.apply(torch.eye(len(scaled.divisors), dtype=torch.float64))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    starts, ends = (
        torch.cat([torch.eye(matrix.shape[0], dtype=torch.float64), u.T]),
        torch.cat([torch.eye(matrix.shape[1], dtype=torch.float64), v]),
    )
    like = other.loop.resolved.dtype
    there = other.apply(starts.to(like)).double() - scaled.apply(starts.to(like).double())
    back = other.adjoint([ends.to(like)])[0].double() - scaled.adjoint([ends.to(like).double()])[0]
    return float(there.norm(dim=1).max()), float(back.norm(dim=1).max())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spread", [0.3, 3.0])
def test_passes_in_float32_err_by_no_more_than_is_said(name: str, spread: float, coarse: None) -> None:
    scaled = _scaled(name, spread=spread)
    single = scaled.at(scaled.loop.graph.resolve(torch.float32))
    errors = ScaledErrors(scaled)
    exact = float(torch.linalg.matrix_norm(scaled.apply(torch.eye(len(scaled.divisors), dtype=torch.float64)), 2))
    assert errors.norm(BLOCK) >= exact * (1 - 1e-12)
    by_segments = errors.error_at(exact)
    assert by_segments > 0
    errors.known[BLOCK] = exact * (1 + 1e-12)
    with torch.no_grad():
        for found in _deviation(scaled, single):
            assert found <= by_segments
            assert found <= errors.error(BLOCK)


def _worst(scaled: ScaledMap) -> ScaledMap:
    """Every coefficient, c and r off by a rounding, all in the direction that the leading singular vectors like."""
    matrix = scaled.apply(torch.eye(len(scaled.divisors), dtype=torch.float64)).detach()
    u, _, v = torch.linalg.svd(matrix)
    resolved: Resolved = scaled.loop.resolved
    leaves = [t.detach().clone().requires_grad_() for t in resolved.tensors()]
    with torch.enable_grad():
        tilted = scaled.at(resolved.with_tensors(leaves))
        value = (tilted.apply(u[:, :1].T) * v[:1]).sum()
        slopes = torch.autograd.grad(value, leaves, allow_unused=True)
    bent = [
        t.detach() if g is None else t.detach() * (1 + UNIT * (g * t.detach()).sign())
        for t, g in zip(leaves, slopes, strict=True)
    ]
    return scaled.at(resolved.with_tensors(bent))


@pytest.mark.parametrize("name", NAMES)
def test_roundings_that_conspire_are_covered(name: str, coarse: None) -> None:
    scaled = _scaled(name)
    errors, worst = ScaledErrors(scaled), _worst(scaled)
    exact = float(torch.linalg.matrix_norm(scaled.apply(torch.eye(len(scaled.divisors), dtype=torch.float64)), 2))
    with torch.no_grad():
        assert max(_deviation(scaled, worst)) <= errors.error_at(exact)


def test_a_branch_without_a_radius_has_no_error_by_segments() -> None:
    """Slope 1 has r = 0: nothing tells how a change of z looks as one of w, and the crude bound stands in."""
    net = nn.Sequential(nn.Linear(3, 3), nn.LeakyReLU(1.0), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)).double().eval()
    loop = LoopMap(lipcert.trace(net, (3,)))
    scaled = ScaledMap(loop, [torch.ones(3, dtype=torch.float64)] * loop.depth, 1.0)
    if loop.depth == 2:
        errors = ScaledErrors(scaled)
        assert errors.error_at(10.0) == math.inf
        assert math.isfinite(errors.error(BLOCK))
    matrix = scaled.apply(torch.eye(len(scaled.divisors), dtype=torch.float64))
    assert prove_scaled(scaled, **OPTIONS).upper >= float(torch.linalg.matrix_norm(matrix, 2)) * (1 - 1e-14)


def test_deep_networks_stay_provable() -> None:
    """Segment by segment, in units of S: a bound of a deep network is not lost to its rounding."""
    weights = [2 * w for w in matrices(*[8] * 13, 3, seed=1)]
    loop = LoopMap(lipcert.trace(network(weights, biases=0.0), (8,)))
    d = [torch.full((8,), 3.0**-k, dtype=torch.float64) for k in range(1, loop.depth + 1)]
    scaled = ScaledMap(loop, d, 3.0**-loop.depth)
    exact = float(torch.linalg.matrix_norm(scaled.apply(torch.eye(len(scaled.divisors), dtype=torch.float64)), 2))
    assert exact <= prove_scaled(scaled, **OPTIONS).upper <= exact * (1 + 1e-9)


# --- confirming -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["dense", "cholesky", "chebyshev"])
def test_claims_are_confirmed_by_another_method_or_refuted(method: str) -> None:
    scaled = _scaled(NAMES[0])
    norm = prove_scaled(scaled, **OPTIONS).upper
    for excess, limit in itertools.product((1e-3, 0.1), (2048, 1)):
        claim = Norm(norm * (1 + excess), norm, method, 1e-9 if method == "chebyshev" else 0.0)
        way = confirm_scaled(scaled, claim, limit=limit, failure=1e-9, seed=3)
        assert way is not None
        assert way != method or limit == 1
        assert confirm_scaled(scaled, claim, limit=1, failure=0.0) is None
    with pytest.raises(BoundError, match="at least"):
        confirm_scaled(scaled, Norm(norm * (1 - 1e-6), 0.0, method), limit=2048, failure=1e-9)
    close = Norm(norm * (1 - 1e-10), 0.0, method)  # too close to be seen, and yet not confirmed
    assert confirm_scaled(scaled, close, limit=2048, failure=0.0) is None


def test_maps_that_overflow_are_refuted() -> None:
    loop = loop_map("mlp-deep")
    huge: list[Tensor] = [torch.full(d.shape, 2.0 ** (500 * (-1) ** k), dtype=torch.float64)
                          for k, d in enumerate(random_weights(loop, "layer"))]  # fmt: skip
    with pytest.raises(BoundError):
        confirm_scaled(ScaledMap(loop, huge, 1.0), Norm(1.0, 1.0, "dense"), limit=2048, failure=0.0)
