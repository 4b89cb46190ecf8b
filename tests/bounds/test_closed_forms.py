"""The closed forms that benchmarks compare with: feasible points of LipSDP, above everything that is true."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from adversary_exact import Exact
from chains import matrices, network
from closed_forms import (
    Rule,
    eclipse_fast,
    from_multipliers,
    gershgorin,
    product,
    scaled,
    shifted,
    syed_hu,
    through,
)
from lipcert.bounds import lower_bound

RULES = [scaled(0.7), scaled(1.0), scaled(1.9), gershgorin(1.0), gershgorin(1.99), shifted(1.05), shifted(2.0)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("widths", [(2, 4, 3), (2, 4, 4, 3), (3, 4, 3, 2), (1, 3, 3, 3, 2)])
def test_not_below_the_exact_constant(widths: tuple[int, ...], seed: int) -> None:
    weights = matrices(*widths, seed=seed)
    exact = Exact(network(weights)).constant
    for value in (product(weights), eclipse_fast(weights), syed_hu(weights)):
        assert value >= exact * (1 - 1e-12)
    for rule in RULES:
        assert through(weights, lambda _, gram, rule=rule: rule(gram)) >= exact * (1 - 1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("widths", [(5, 20, 4), (20, 8, 30, 3), (6, 16, 16, 16, 16, 16, 5)])
def test_the_order_of_the_bounds(widths: tuple[int, ...], seed: int) -> None:
    weights = matrices(*widths, seed=seed)
    x = torch.from_numpy(np.random.default_rng(seed).standard_normal((20, widths[0])))
    found = float(lower_bound(network(weights), x, steps=20))
    assert found <= syed_hu(weights) <= eclipse_fast(weights) * (1 + 1e-12) <= product(weights) * (1 + 1e-11)
    assert eclipse_fast(weights) < 0.95 * product(weights)
    assert syed_hu(weights) < 0.98 * eclipse_fast(weights)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_gives_a_feasible_point_of_lipsdp(rule: Rule) -> None:
    """The whole matrix of LipSDP, formed from its definition, is negative semidefinite at ρ = L², and not below."""
    weights = matrices(4, 6, 5, 3, seed=7)
    multipliers: list[np.ndarray] = []

    def note(_: int, gram: np.ndarray) -> np.ndarray:
        multipliers.append(rule(gram))
        return multipliers[-1]

    bound = through(weights, note)
    assert bound == pytest.approx(from_multipliers(weights, multipliers), rel=1e-12)
    a = np.zeros((11, 15))
    a[:6, :4], a[6:, 4:10] = weights[0], weights[1]
    b = np.hstack([np.zeros((11, 4)), np.eye(11)])
    for factor, feasible in ((1 + 1e-9, True), (1 - 1e-6, False)):
        rho = (bound * factor) ** 2
        t = np.diag(np.concatenate(multipliers)) * rho
        whole = a.T @ t @ b + b.T @ t @ a - 2 * b.T @ t @ b
        whole[:4, :4] -= rho * np.eye(4)
        whole[10:, 10:] += weights[2].T @ weights[2]
        assert (np.linalg.eigvalsh(whole)[-1] <= 1e-12 * rho) is np.bool_(feasible)


def test_a_chain_of_numbers_and_a_single_matrix() -> None:
    numbers = [np.array([[v]]) for v in (2.0, -3.0, 0.5)]
    assert eclipse_fast(numbers) == pytest.approx(3.0, rel=1e-12)
    matrix = matrices(4, 3)
    assert syed_hu(matrix) == pytest.approx(product(matrix), rel=1e-12)


def test_multipliers_that_are_not_feasible() -> None:
    weights = matrices(4, 5, 3)
    top = float(np.linalg.norm(weights[0], 2)) ** 2
    assert from_multipliers(weights, [np.full(5, 2.1 / top)]) == math.inf
    assert through(weights, lambda _, gram: scaled(2.1)(gram)) == math.inf


def test_dead_neurons() -> None:
    weights = matrices(4, 6, 6, 3, seed=2)
    weights[0][2] = 0
    weights[1][:, 4] = 0
    weights[1][0] = 0
    for rule in RULES:
        assert math.isfinite(through(weights, lambda _, gram, rule=rule: rule(gram)))
    assert syed_hu(weights) <= product(weights)


@pytest.mark.skipif(
    "LIPCERT_LIPSDP_DATA" not in os.environ, reason="set LIPCERT_LIPSDP_DATA to the folder with the .mat files"
)
@pytest.mark.parametrize(
    ("file", "known"),
    [("mnist_weights.mat", (31.50, 26.81, 25.95, 24.32)), ("random_weights.mat", (43.31, 39.90, 37.72, 36.48))],
)
def test_check_values(file: str, known: tuple[float, ...]) -> None:
    """The product and LipSDP are published, the closed forms in between are what this computes."""
    from scipy.io import loadmat

    weights = [w.astype(float) for w in loadmat(Path(os.environ["LIPCERT_LIPSDP_DATA"]) / file)["weights"].ravel()]
    for f, value in zip((product, eclipse_fast, syed_hu), known, strict=False):
        assert f(weights) == pytest.approx(value, abs=0.006)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((100, weights[0].shape[1])))
    assert 0.98 * known[-1] < float(lower_bound(network(weights, biases=0), x)) < known[-1] + 0.01
