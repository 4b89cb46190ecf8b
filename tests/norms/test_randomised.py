"""The Chebyshev test: above the norm at every scale, with rounding, from a bad guess, and as often as it promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom, chi
from torch import Tensor, nn

import lipcert
from cases import loop_map, named
from exact import chain, chain_blocks, is_upper_bound
from lipcert.errors import BoundError
from lipcert.loop import LoopMap, Pair, Plan
from lipcert.norms import Norm, randomised, upper_norms
from lipcert.norms.errors import BlockErrors
from lipcert.norms.lanczos import estimate_norms

SOME = named()[1::9]


def _linear(matrix: Tensor) -> LoopMap:
    net = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False).double().eval()
    net.weight.data = matrix.double()
    return LoopMap(lipcert.trace(net, (matrix.shape[1],)))


def _tested(
    loop: LoopMap, *, failure: float, slack: float = 1e-3, seed: int | None = None, guess: float | None = None
) -> dict[Pair, Norm]:
    """Every block by the test, at one scale that is guessed, or at the estimated ones."""
    pairs = loop.pairs()
    found = estimate_norms(loop, pairs, tolerance=slack / 1e5, max_products=160) if guess is None else {}
    estimates = {p: float(found[p]) if guess is None else guess for p in pairs}
    slacks = dict.fromkeys(pairs, slack)
    return randomised.probable_norms(BlockErrors(loop, {}), pairs, estimates, slacks, failure=failure, seed=seed)


def _spectrum(values: list[float], seed: int = 0) -> Tensor:
    """A matrix with these singular values."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(len(values), len(values), generator=generator).double()).Q for _ in "lr")
    return left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right


@pytest.mark.parametrize("name", SOME)
def test_above_the_dense_norm_and_close(name: str) -> None:
    loop = loop_map(name)
    exact = upper_norms(loop, loop.pairs(), limit=4096)
    for pair, found in _tested(loop, failure=1e-12, seed=1).items():
        assert exact[pair].lower * (1 - 1e-9) <= found.upper <= exact[pair].upper * 1.01 + 1e-5, pair
        assert found.lower <= found.upper


@pytest.mark.parametrize("exponent", [-150, -30, 0, 30, 150])
def test_above_the_exact_norm_at_every_scale(exponent: int) -> None:
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(s, generator=generator, dtype=torch.float64) for s in ((5, 4), (6, 5), (3, 6))]
    loop = LoopMap(lipcert.trace(chain(*weights), (4,)))
    loop.graph.capture.module[0].weight.data *= 2.0**exponent
    weights[0] = weights[0] * 2.0**exponent
    loop = loop.at(loop.graph.resolve(torch.float64))
    for pair, found in _tested(loop, failure=1e-12, seed=0).items():
        assert is_upper_bound(found.upper, chain_blocks(*weights)[pair])
        assert not is_upper_bound(found.upper * 0.99, chain_blocks(*weights)[pair])


@pytest.mark.parametrize("guess", [0.0, 1e-6, 0.5, 0.99, 1.01, 2.0, 1e3])
def test_a_wrong_estimate_costs_accuracy_and_nothing_else(guess: float) -> None:
    """The estimate only sets the scale: an author of weights who fools power iteration gains nothing."""
    loop = _linear(_spectrum([1.0, 0.99, 0.9, 0.5, 0.1]))
    found = _tested(loop, failure=1e-12, seed=0, guess=guess)[1, 0].upper
    assert 1 <= found <= 1.01 * max(guess, 1)


def test_fails_no_more_often_than_it_says() -> None:
    """At a probability of failure that can be seen, over many starts, for the spectrum that is worst: one peak."""
    loop, failures, trials = _linear(_spectrum([1.0] + [0.9] * 7)), 0, 300
    for seed in range(trials):
        found = _tested(loop, failure=0.05, slack=0.01, seed=seed, guess=0.9)
        failures += found[1, 0].upper < 1
    assert failures <= binom.ppf(1 - 1e-6, trials, 0.05)


@pytest.mark.parametrize("columns", [2, 3, 8, 24])
@pytest.mark.parametrize("failure", [1e-3, 1e-14])
def test_the_projection_is_a_quantile_from_below(columns: int, failure: float) -> None:
    delta = randomised._least_projection(columns, failure)
    assert chi.cdf(delta, columns) <= failure
    assert chi.cdf(delta, columns) > failure / 30


def test_the_growth_of_an_error_against_that_of_the_signal() -> None:
    """U_{k−i}/T_k by its recurrence, and falling in φ, which lets one test rule out all larger eigenvalues."""
    for steps in (1, 2, 7, 40):
        for index in range(1, steps + 1):
            values = []
            for phi in (1e-3, 0.01, 0.1, 0.5, 2.0):
                first, second = np.polynomial.chebyshev.Chebyshev.basis(steps), [1.0, 2 * math.cosh(phi)]
                for _ in range(steps):
                    second.append(2 * math.cosh(phi) * second[-1] - second[-2])
                ratio = second[steps - index] / first(math.cosh(phi))
                assert randomised._growth(index, steps, phi) == pytest.approx(ratio, rel=1e-6)
                values.append(ratio)
            assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("level", [1e-9, 1e-6, 1e-3])
def test_errors_of_the_size_allowed_that_hide_the_leading_vector(level: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every product errs against the leading eigenvector, by all that the analysis grants rounding."""
    matrix = _spectrum([1.0, 0.9, 0.8, 0.7, 0.6, 0.5])
    loop, top = _linear(matrix), torch.linalg.eigh(matrix.T @ matrix).eigenvectors[:, -1]
    products = randomised.gram_products

    def spoilt(of: LoopMap, plan: Plan, vectors: dict[Pair, Tensor]) -> dict[Pair, Tensor]:
        found = products(of, plan, vectors)
        for pair, value in found.items():
            along = value @ top
            most = level * vectors[pair].norm(dim=1)
            found[pair] = value - torch.outer(along.clamp(-most, most), top)
        return found

    def unlucky(of: LoopMap, block: randomised._Block, columns: int, generator: torch.Generator) -> Tensor:
        start = torch.randn((columns, 6), generator=generator, dtype=torch.float64)
        start -= torch.outer(start @ top, top)
        return start + 1.001 * randomised._least_projection(columns, 1e-12 / 4) / columns**0.5 * top

    monkeypatch.setattr(randomised, "_start", unlucky)
    monkeypatch.setattr(randomised, "gram_products", spoilt)
    monkeypatch.setattr(BlockErrors, "error", lambda *_: level / 2)
    assert _tested(loop, failure=1e-12, seed=0, guess=0.9**0.5)[1, 0].upper >= 1
    # and the foil: an analysis that forgets rounding is fooled once there is enough of it
    if level >= 1e-3:
        monkeypatch.setattr(BlockErrors, "error", lambda *_: 0.0)
        assert _tested(loop, failure=1e-12, slack=1e-4, seed=0, guess=0.9**0.5)[1, 0].upper < 1


def test_a_block_of_zeros() -> None:
    loop = _linear(torch.zeros(4, 3))
    assert 0 < _tested(loop, failure=1e-12)[1, 0].upper < 1e-60


def test_beyond_the_range_of_squares_it_is_refused() -> None:
    loop = _linear(torch.full((2, 2), 1e120, dtype=torch.float64))
    with pytest.raises(BoundError, match="1e100"):
        _tested(loop, failure=1e-12)


# --- the choice between it and the explicit matrix ------------------------------------------------------------------
def test_large_blocks_are_tested_and_small_ones_formed() -> None:
    net = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 5)).eval()
    bound = lipcert.lipschitz(net, (30,), guarantee="upper", dense_limit=5)
    assert {p: n.method for p, n in bound.norms.items()} == {(1, 0): "chebyshev", (2, 0): "dense", (2, 1): "dense"}  # type: ignore[attr-defined]
    assert bound.failure == pytest.approx(1e-12)  # type: ignore[attr-defined]
    assert 0 <= bound.slack < 0.01  # type: ignore[attr-defined]
    assert "except with probability 1e-12" in bound.summary()
    exact = lipcert.lipschitz(net, (30,), guarantee="upper", failure=0)
    assert exact.failure == 0  # type: ignore[attr-defined]
    assert float(exact) <= float(bound) <= 1.01 * float(exact)
    assert "probability" not in exact.summary()


def test_the_random_start_is_another_one_each_time() -> None:
    """A start that the weights' author could foresee would prove nothing."""
    loop = _linear(_spectrum([1.0, 0.7, 0.3]))
    found = {upper_norms(loop, loop.pairs(), limit=1, failure=1e-9)[1, 0].upper for _ in range(3)}
    assert len(found) == 3


@pytest.mark.parametrize("slack", [0.0, -1.0, math.nan, math.inf])
def test_a_slack_that_is_none(slack: float) -> None:
    with pytest.raises(BoundError, match="slack"):
        lipcert.lipschitz(nn.Linear(3, 3).eval(), (3,), guarantee="upper", slack=slack)


@pytest.mark.parametrize("failure", [-1e-9, 0.5, math.nan])
def test_a_probability_of_failure_that_is_none(failure: float) -> None:
    with pytest.raises(BoundError, match="probability"):
        lipcert.lipschitz(nn.Linear(3, 3).eval(), (3,), guarantee="upper", failure=failure)
