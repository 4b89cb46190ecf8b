"""Power iteration with momentum: faster than without, never above the norm, and still where there is nowhere to go."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lipcert.norms.power import next_vectors


def _matrix(eigenvalues: Tensor, seed: int) -> Tensor:
    """A symmetric matrix with these eigenvalues."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues), generator=generator, dtype=torch.float64)).Q
    return (q * eigenvalues) @ q.T


def _iterate(matrix: Tensor, steps: int, *, momentum: bool, seed: int = 0) -> float:
    """The Rayleigh quotient after some steps from a random start."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.nn.functional.normalize(torch.randn(1, len(matrix), generator=generator, dtype=torch.float64))
    memory = torch.zeros_like(vectors)
    for _ in range(steps):
        vectors, memory = next_vectors(vectors @ matrix, vectors, memory)
        if not momentum:
            memory = torch.zeros_like(memory)
    return float((vectors @ matrix @ vectors.T).squeeze())


@pytest.mark.parametrize("seed", range(5))
def test_momentum_reaches_the_norm_in_a_fraction_of_the_steps(seed: int) -> None:
    matrix = _matrix(torch.linspace(0, 1, 200, dtype=torch.float64) ** 2, seed)
    assert 1 - _iterate(matrix, 100, momentum=True) < 0.1 * (1 - _iterate(matrix, 100, momentum=False))


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 12), rank=st.integers(0, 12), steps=st.integers(1, 60))
def test_never_above_the_largest_eigenvalue(seed: int, n: int, rank: int, steps: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    eigenvalues = torch.rand(n, generator=generator, dtype=torch.float64)
    eigenvalues[rank:] = 0
    found = _iterate(_matrix(eigenvalues, seed), steps, momentum=True, seed=seed)
    assert math.isfinite(found)
    assert found <= float(eigenvalues.max()) * (1 + 1e-9) + 1e-15


def test_the_scale_of_the_gradient_does_not_matter() -> None:
    """The gradient comes multiplied by the loss's weight, another one in every step."""
    matrix = _matrix(torch.linspace(0, 1, 30, dtype=torch.float64), 0)
    x = y = torch.nn.functional.normalize(torch.randn(2, 30, dtype=torch.float64))
    memory_x = memory_y = torch.zeros_like(x)
    for i in range(30):
        x, memory_x = next_vectors(x @ matrix, x, memory_x)
        y, memory_y = next_vectors(y @ matrix * 10.0 ** (i % 7 - 3), y, memory_y)
    torch.testing.assert_close(x, y)


@pytest.mark.parametrize("gradient", [0.0, math.inf, math.nan])
def test_a_row_that_cannot_move_stays(gradient: float) -> None:
    vectors, memory = torch.tensor([[0.6, 0.8], [1.0, 0.0]]), torch.tensor([[0.1, 0.2], [0.0, 0.0]])
    gradients = torch.tensor([[gradient, gradient], [1.0, 1.0]])
    moved, remembered = next_vectors(gradients, vectors, memory)
    assert torch.equal(moved[0], vectors[0])
    assert torch.equal(remembered[0], memory[0])
    torch.testing.assert_close(moved[1], torch.tensor([0.5**0.5, 0.5**0.5]))
