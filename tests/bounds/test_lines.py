"""Lines in place of activations: no change within the limits costs more than they say, for any row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lipcert.bounds.lines import Place, Sides, kinked_line, plain_line
from lipcert.graph.types import Slopes

ENTRIES, ROWS, POINTS = 6, 8, 1500
SIDES = {"relu": (0.0, 1.0), "leaky": (0.2, 1.0), "steep": (2.5, 1.0), "abs": (-1.0, 1.0), "linear": (0.7, 0.7)}


def changes(generator: torch.Generator, moved: Tensor, budget: Tensor) -> Tensor:
    """(POINTS, R, n) changes on the edge of what is allowed; most move few entries."""
    shape = (POINTS, *moved.shape)
    kept = torch.rand(shape, generator=generator) < torch.rand((POINTS, 1, 1), generator=generator)
    step = torch.randn(shape, generator=generator, dtype=torch.float64) * kept
    for _ in range(3):  # what is cut off at one entry is given to the others
        step = step * (budget[:, None] / step.norm(dim=2, keepdim=True).clamp_min(1e-300))
        step = torch.maximum(torch.minimum(step, moved), -moved)
    return step * (budget[:, None] / step.norm(dim=2, keepdim=True).clamp_min(1e-300)).clamp_max(1.0)


@pytest.mark.parametrize("kind", list(SIDES))
@pytest.mark.parametrize("seed", range(12))
def test_kinked(kind: str, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    left, right = (torch.full((1, ENTRIES), v, dtype=torch.float64) for v in SIDES[kind])

    def draw() -> Tensor:
        return torch.randn((ROWS, ENTRIES), generator=g, dtype=torch.float64)

    z, row, moved = 0.5 * draw(), draw(), draw().abs() * (2 + seed)
    error = torch.zeros((1, ENTRIES), dtype=torch.float64)
    error[0, :2] = 0.3
    budget = torch.linspace(0.2, 3.0, ROWS, dtype=torch.float64)
    place = Place.of(Sides(left, right), z, error)
    slope, cost = kinked_line(place, row, moved, lambda at, entry: budget)
    step = changes(g, moved, budget)
    true = z + error * (2 * torch.rand((POINTS, 1, ENTRIES), generator=g, dtype=torch.float64) - 1)

    def phi(v: Tensor) -> Tensor:
        return torch.where(v > 0, right * v, left * v)

    change = phi(true + step) - phi(true)
    assert bool(((row * (change - slope * step)).sum(2) >= -cost - 1e-12).all())
    assert bool((change.abs() <= place.passed(step.abs(), max(map(abs, SIDES[kind]))) + 1e-12).all())
    if kind == "linear":
        assert float(cost.max()) < 1e-300


@pytest.mark.parametrize("seed", range(6))
def test_plain(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    row = torch.randn((ROWS, ENTRIES), generator=g, dtype=torch.float64)
    moved = torch.rand((ROWS, ENTRIES), generator=g, dtype=torch.float64) * 2
    budget = torch.linspace(0.2, 3.0, ROWS, dtype=torch.float64)
    slope, cost = plain_line(Slopes(-0.2, 1.1), row, moved, budget)
    step = changes(g, moved, budget)
    quotient = torch.where(torch.rand(step.shape, generator=g) < 0.5, -0.2, 1.1)
    worst = torch.minimum((row * (quotient - slope) * step).sum(2), -(row * 0.65 * step).abs().sum(2))
    assert bool((worst >= -cost - 1e-12).all())
    assert float(cost[-1]) < 1.3 * float(-worst[:, -1].min()) + 1e-9


def test_the_tangent_is_free_where_a_kink_can_only_help() -> None:
    one = torch.ones((1, 3), dtype=torch.float64)
    place = Place.of(Sides(0 * one, one), torch.tensor([[-2.0, 0.1, 3.0]], dtype=torch.float64), 0 * one)
    slope, cost = kinked_line(place, one, 9 * one, lambda at, entry: torch.tensor([9.0], dtype=torch.float64))
    assert slope.tolist() == [[0.0, 1.0, 1.0]]
    assert float(cost) < 1e-300
