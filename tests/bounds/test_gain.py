"""The gain matrix against the explicit one, and the derivative by which its weights are moved."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from cases import loop_map, named
from lipcert.bounds.gain import Probe, product, solve
from lipcert.bounds.scaling import Search, balance, feasible_start
from lipcert.bounds.smallgain import identity_heads, objective
from lipcert.errors import BoundError
from lipcert.scaled import ScaledMap
from scaled_reference import gain, matrix, random_weights

NAMES = [n for n in named(without=("image", "twin")) if loop_map(n).depth][::3]


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def _feasible(name: str, norm: float = 0.8) -> ScaledMap:
    """Random weights, loosened until ‖S_z‖ is small enough."""
    loop = loop_map(name)
    scaled = ScaledMap(loop, random_weights(loop, "neuron"), None)
    size = max(np.linalg.norm(matrix(name, scaled.weights, None), 2), norm)
    return scaled.loosened(norm / size)


def _right(scaled: ScaledMap) -> torch.Tensor:
    heads = identity_heads(scaled.loop)
    return Search(scaled.loop, heads, objective("class", sketched=False)[0]).b / scaled.divisors


@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_schur_complement(name: str) -> None:
    scaled = _feasible(name)
    expected = gain(name, scaled.weights)
    b = _right(scaled)
    found = solve(scaled, b, None, Probe.random(scaled), tolerance=1e-10)
    assert found is not None
    size = np.abs(expected).max()
    np.testing.assert_allclose(found.gain.numpy(), expected, atol=1e-4 * size)
    roughly = solve(scaled, b, None, Probe.random(scaled), tolerance=3e-2)
    assert roughly is not None
    np.testing.assert_allclose(roughly.gain, found.gain, atol=3e-2 * size)
    assert float(torch.linalg.eigvalsh(found.gain - roughly.gain)[0]) >= -1e-8 * size  # from below, in Loewner's order
    again = solve(scaled, b, found.vectors, Probe.random(scaled), tolerance=1e-6)
    assert again is not None
    assert again.products <= 2


@pytest.mark.parametrize("name", NAMES[::3])
def test_what_is_not_feasible_is_seen(name: str) -> None:
    scaled, t = _feasible(name), 1.0
    while (size := np.linalg.norm(matrix(name, scaled.loosened(t).weights, None), 2)) < 1.5:
        t *= 1.5
        assert t < 1e9, "nothing leads from the input to an activation"
    wide = scaled.loosened(t)
    probe = Probe.random(wide)
    assert probe.iterate(wide, 60) == pytest.approx(size**2, rel=1e-3)
    assert solve(wide, _right(wide), None, probe, tolerance=1e-10) is None


@pytest.mark.parametrize("name", NAMES[::2])
@pytest.mark.parametrize("scope", ["class", "pairwise"])
def test_moves_have_the_sign_of_the_derivative(name: str, scope: str) -> None:
    """∂J/∂log D is Σ W·(‖D·z‖² − ‖D·w‖²); each move has its sign, and is no larger than what it says of the ratio."""
    scaled, wanted = _feasible(name, 0.5), objective(scope, sketched=False)[0]  # type: ignore[arg-type]
    found = solve(scaled, _right(scaled), None, Probe.random(scaled), tolerance=1e-12)
    assert found is not None
    leading = Probe.random(scaled).vectors
    images = product(scaled, leading)[1]
    value, moves = balance(scaled, found.gain, found.vectors, found.images, leading, images, wanted, 1.0, 0.0)

    def at(weights: list[torch.Tensor]) -> float:
        return float(wanted(torch.from_numpy(gain(name, weights)), 1.0))

    assert value == pytest.approx(at(scaled.weights), abs=1e-4)
    for k, d in enumerate(scaled.weights):
        i = d.numel() // 2
        step = torch.zeros(d.numel(), dtype=torch.float64)
        step[i] = 1e-4
        ends = [at([w * (s * step.reshape(d.shape)).exp() if j == k else w for j, w in enumerate(scaled.weights)])
                for s in (1, -1)]  # fmt: skip
        slope = (ends[0] - ends[1]) / 2e-4
        if abs(slope) > 1e-4:
            assert slope * float(moves[k].flatten()[i]) > 0


def test_a_probe_of_what_is_not_finite() -> None:
    scaled = _feasible(NAMES[0])
    probe = Probe.random(scaled)
    before = probe.vectors
    probe.advance(torch.full_like(before, torch.nan))
    assert probe.seen == torch.inf
    assert probe.vectors is before


@pytest.mark.parametrize("name", NAMES)
def test_a_start_is_feasible(name: str) -> None:
    loop = loop_map(name)
    for size in (1e-3, 1.0, 1e5):
        start = feasible_start(loop, dict.fromkeys(range(1, loop.depth + 1), size))
        assert np.linalg.norm(matrix(name, start.weights, None), 2) < 1
    with pytest.raises(BoundError, match="no weights to start"):
        feasible_start(loop.at(loop.graph.resolve(torch.float32)), dict.fromkeys(range(1, loop.depth + 1), 1e-80))
