"""The gain matrix against the explicit one, and the derivative by which its weights are moved."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from cases import loop_map, nonlinear
from lipcert.bounds.evidence import Scaling
from lipcert.bounds.gain import INFEASIBLE, Probe, leading_part, product, solve
from lipcert.bounds.scaling import Search, away, balance, looser, steepest
from lipcert.bounds.smallgain import identity_heads, objective
from lipcert.bounds.starts import feasible_start
from lipcert.errors import BoundError
from lipcert.scaled import ScaledMap
from scaled_reference import gain, matrix, random_weights

NAMES = nonlinear()[::3]


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
    value, moves, slope = balance(scaled, found.gain, found.vectors, found.images, leading, images, wanted, 1.0, 0.0)

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


def test_a_probe_takes_in_what_is_outside_of_its_span() -> None:
    scaled = _feasible(NAMES[0])
    probe = Probe.random(scaled)
    before, n = probe.vectors, len(scaled.divisors)
    vector = torch.randn(n, dtype=before.dtype, generator=torch.Generator().manual_seed(5))
    probe.include(3 * before[0] + 0.01 * vector)
    assert probe.vectors is before
    probe.include(vector)
    torch.testing.assert_close(probe.vectors @ probe.vectors.T, torch.eye(len(before), dtype=before.dtype))
    for kept in (*before[:-1], vector):
        torch.testing.assert_close((kept @ probe.vectors.T) @ probe.vectors, kept)
    probe.include(torch.zeros(n, dtype=before.dtype))
    assert bool(torch.isfinite(probe.vectors).all())


def test_the_leading_part_of_a_span() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn((9, 7), generator=generator, dtype=torch.float64)
    rows = torch.randn((4, 7), generator=generator, dtype=torch.float64)
    rows = torch.cat([rows, rows[:1] + rows[1:2]])  # not independent
    vectors, images = leading_part(rows, rows @ matrix.T, 3)
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(images, vectors @ matrix.T)
    basis = torch.linalg.qr(rows[:4].T)[0]
    torch.testing.assert_close(images.norm(dim=1), torch.linalg.svdvals(matrix @ basis)[:3])


@pytest.mark.parametrize("name", NAMES)
def test_weights_give_way_to_one_direction(name: str) -> None:
    """To first order, ‖S_z·v‖² of the same (x, w) falls as asked for; and less is given up than by loosening all."""
    scaled = _feasible(name)
    square, vector = steepest(scaled, tolerance=1e-12, products=200)
    assert square == pytest.approx(
        np.linalg.norm(matrix(name, scaled.weights, None), 2) ** 2, rel=2e-6
    )  # slopes are rounded up
    image = product(scaled, vector[None])[1][0]
    for part in (1e-2, 1e-4):
        moves = away(scaled, vector, image, square * math.exp(-part))
        moved = ScaledMap(scaled.loop, [d * (-m).exp() for d, m in zip(scaled.weights, moves, strict=True)], None)
        same = (vector / scaled.divisors * moved.divisors)[None]
        fallen = math.log(square * float(same.square().sum() / product(moved, same)[1].square().sum()))
        assert fallen == pytest.approx(part, rel=10 * part)
        given, everything = (sum(float(m.abs().sum()) for m in v) for v in (moves, looser(scaled, part)))
        assert given <= everything * (1 + 1e-9)


@pytest.mark.parametrize("name", NAMES[::3])
def test_a_search_leaves_what_is_not_feasible(name: str) -> None:
    """From a start outside, too; and where it looks at weights again, what was known of the walls is not lost."""
    loop, inside = loop_map(name), _feasible(name)
    t = 1.2 / np.linalg.norm(matrix(name, inside.weights, None), 2)
    while np.linalg.norm(matrix(name, inside.loosened(t).weights, None), 2) < 1.1:
        t *= 1.2
    start = Scaling("neuron", tuple(inside.loosened(t).weights))
    search = Search(loop, identity_heads(loop), objective("class", sketched=False)[0])
    again, changes = search._look_again, []

    def look_again(point, *options):  # type: ignore[no-untyped-def]
        found = again(point, *options)
        changes.append(np.inf if found is None else found.value - point.value)
        return found

    search._look_again = look_again  # type: ignore[method-assign]
    found, _ = search.run(start, steps=15)
    assert np.linalg.norm(matrix(name, found.weights, None), 2) ** 2 <= max(INFEASIBLE, 1 - 2e-5)
    assert min(changes, default=0.0) >= -1e-9


def test_where_a_solution_fails_is_remembered() -> None:
    """A direction of negative curvature becomes a probe: the next look at the walls sees it."""
    name = NAMES[1]
    scaled, t = _feasible(name), 1.0
    while np.linalg.norm(matrix(name, scaled.loosened(t).weights, None), 2) < 1.02:
        t *= 1.02
    wide = scaled.loosened(t)
    probe = Probe.random(wide)
    probe.vectors = probe.vectors[-1:]
    probe.memory = probe.memory[-1:]
    assert solve(wide, _right(wide), None, probe, tolerance=1e-12) is None
    assert float(torch.linalg.svdvals(product(wide, probe.vectors)[1])[0]) ** 2 > INFEASIBLE


@pytest.mark.parametrize("name", NAMES)
def test_a_start_is_feasible(name: str) -> None:
    loop = loop_map(name)
    for size in (1e-3, 1.0, 1e5):
        start = feasible_start(loop, dict.fromkeys(range(1, loop.depth + 1), size))
        assert np.linalg.norm(matrix(name, start.weights, None), 2) < 1
    with pytest.raises(BoundError, match="no weights to start"):
        feasible_start(loop.at(loop.graph.resolve(torch.float32)), dict.fromkeys(range(1, loop.depth + 1), 1e-80))
