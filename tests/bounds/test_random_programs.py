"""Bounds of networks that nobody designed, against the textbook and against their own Jacobians."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lipcert
import reference_bounds as textbook
from lipcert.bounds import graph_bound
from random_programs import SHAPE, Program
from references import blocks


@pytest.mark.parametrize("seed", range(40))
def test_a_random_program(seed: int) -> None:
    net = Program(seed)
    graph = lipcert.trace(net, SHAPE)
    x = 2 * torch.randn((6, *SHAPE), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    steepest = float(torch.linalg.matrix_norm(textbook.jacobians(net, x), 2).max())
    for method in ("liplt", "product"):
        expected = blocks(net, SHAPE, centred=method == "liplt")
        upper = float(graph_bound(graph, method=method, guarantee="upper"))  # type: ignore[arg-type]
        estimate = float(graph_bound(graph, method=method))  # type: ignore[arg-type]
        pairs = graph_bound(graph, method=method, scope="pairwise", guarantee="upper").value.numpy()  # type: ignore[arg-type]
        assert upper == pytest.approx(textbook.global_bound(expected), rel=3e-6, abs=1e-9)
        np.testing.assert_allclose(pairs, textbook.pair_bounds(expected, 3), rtol=3e-6, atol=1e-9)
        assert 0.9 * upper - 1e-9 <= estimate <= upper
        assert steepest <= upper * (1 + 1e-9) + 1e-12
