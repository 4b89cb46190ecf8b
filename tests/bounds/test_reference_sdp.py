"""LipSDP by a general solver, against exact constants and what has to lie above and below it."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from adversary_exact import Exact
from chains import matrices, network
from closed_forms import eclipse_fast, gershgorin, product, scaled, syed_hu, through
from lipcert.bounds import lower_bound

pytest.importorskip("cvxpy")
pytest.importorskip("scs")
pytest.importorskip("clarabel")

from reference_sdp import lipsdp


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("widths", [(2, 4, 3), (3, 4, 3, 2), (1, 3, 3, 3, 2)])
def test_between_the_exact_constant_and_the_closed_forms(widths: tuple[int, ...], seed: int) -> None:
    weights = matrices(*widths, seed=seed)
    exact = Exact(network(weights))
    neuron, layer = (lipsdp(weights, per=per) for per in ("neuron", "layer"))
    for found in (neuron, layer):
        assert found.status == "optimal"
        assert found.value == pytest.approx(found.claimed, rel=1e-4)
    assert exact.constant * (1 - 1e-9) <= neuron.value <= layer.value * (1 + 1e-5)
    assert layer.value <= eclipse_fast(weights) * (1 + 1e-5) <= product(weights) * (1 + 1e-4)
    assert neuron.value <= syed_hu(weights) * (1 + 1e-5)
    for c in (0.8, 1.2):
        assert layer.value <= through(weights, lambda _, gram, c=c: scaled(c)(gram)) * (1 + 1e-5)
        assert neuron.value <= through(weights, lambda _, gram, c=c: gershgorin(c)(gram)) * (1 + 1e-5)
    pairs = exact.pairs
    for a, b in ((0, 1), (1, 0), (0, weights[-1].shape[0] - 1)):
        functional = np.eye(len(weights[-1]))[a] - np.eye(len(weights[-1]))[b]
        pair = lipsdp(weights, functional=functional).value
        assert float(pairs[a, b]) * (1 - 1e-9) <= pair <= math.sqrt(2) * neuron.value * (1 + 1e-5)


def test_larger_networks_by_both_solvers() -> None:
    weights = matrices(40, 12, 10, 4, seed=3)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((20, 40)))
    low = float(lower_bound(network(weights), x))
    exactly, roughly = (lipsdp(weights, solver=s).value for s in ("CLARABEL", "SCS"))
    assert low <= exactly <= syed_hu(weights)
    assert roughly == pytest.approx(exactly, rel=1e-3)
    assert low <= roughly


def test_a_wide_input_is_what_it_is_without_the_reduction(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = matrices(9, 4, 4, 2, seed=4)
    narrow = lipsdp(weights).value
    monkeypatch.setattr(np.linalg, "qr", lambda a, mode: a)
    assert lipsdp(weights).value == pytest.approx(narrow, rel=1e-5)


def test_numbers_a_matrix_and_nothing() -> None:
    assert lipsdp([np.array([[v]]) for v in (2.0, -3.0, 0.5)]).value == pytest.approx(3.0, rel=1e-5)
    single = matrices(4, 3)
    assert lipsdp(single).value == pytest.approx(product(single), rel=1e-12)
    assert lipsdp([np.eye(3), np.zeros((2, 3))]).value == 0


def test_scales_do_not_matter() -> None:
    weights = matrices(4, 5, 5, 3, seed=5)
    plain = lipsdp(weights).value
    assert lipsdp([weights[0] * 2.0**20, weights[1] * 2.0**-30, weights[2]]).value == pytest.approx(
        plain * 2.0**-10, rel=1e-6
    )


def test_a_solver_that_is_stopped_claims_nothing_too_small() -> None:
    weights = matrices(8, 20, 20, 20, 4, seed=6)
    exactly = lipsdp(weights, solver="SCS").value
    assert lipsdp(weights, solver="SCS", seconds=0.02).value >= exactly * (1 - 1e-3)


@pytest.mark.slow
@pytest.mark.skipif(
    "LIPCERT_LIPSDP_DATA" not in os.environ, reason="set LIPCERT_LIPSDP_DATA to the folder with the .mat files"
)
@pytest.mark.parametrize(
    ("file", "neuron", "layer"), [("mnist_weights.mat", 24.366, 26.256), ("random_weights.mat", 36.482, 39.839)]
)
def test_check_values(file: str, neuron: float, layer: float) -> None:
    """36.48 is what was published; the 24.32 that was lies below what both solvers find."""
    from scipy.io import loadmat

    weights = [w.astype(float) for w in loadmat(Path(os.environ["LIPCERT_LIPSDP_DATA"]) / file)["weights"].ravel()]
    for per, value in (("neuron", neuron), ("layer", layer)):
        assert lipsdp(weights, per=per, solver="SCS").value == pytest.approx(value, abs=1e-3)
