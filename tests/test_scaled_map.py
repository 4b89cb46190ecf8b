"""The scaled map against an explicit matrix, and what its weights may share."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cases import CASES, loop_map, nonlinear
from lipcert.bounds.evidence import Scaling
from lipcert.graph.types import VectorMap
from lipcert.scaled import ScaledMap, levels, weight_shapes
from scaled_reference import matrix, random_output, random_weights

NAMES = nonlinear()
FEW = NAMES[::4]


def _columns(scaled: ScaledMap) -> np.ndarray:
    with torch.no_grad():
        return scaled.apply(torch.eye(len(scaled.divisors), dtype=torch.float64)).numpy().T


@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_matrix_and_its_transpose(name: str) -> None:
    loop = loop_map(name)
    for kind in ("channel", "neuron"):
        weights, output = random_weights(loop, kind), random_output(loop)
        scaled, expected = ScaledMap(loop, weights, output), matrix(name, weights, output)
        size = max(np.abs(expected).max(), 1e-30)
        np.testing.assert_allclose(_columns(scaled), expected, atol=2e-5 * size)  # slopes are measured
        rows = torch.eye(len(expected), dtype=torch.float64)
        np.testing.assert_allclose(scaled.adjoint([rows])[0].numpy(), _columns(scaled), atol=1e-12 * size)
        assert (_columns(scaled.absolute()) >= np.abs(_columns(scaled)) - 1e-12 * size).all()


@pytest.mark.parametrize("name", FEW)
def test_without_an_output_or_with_a_number(name: str) -> None:
    loop = loop_map(name)
    weights, output = random_weights(loop, "neuron"), random_output(loop)
    whole, size = _columns(ScaledMap(loop, weights, output)), len(output)
    np.testing.assert_allclose(_columns(ScaledMap(loop, weights, None)), whole[size:], atol=1e-13)
    plain = _columns(ScaledMap(loop, weights, -2.0))
    np.testing.assert_allclose(output.numpy() @ plain[:size] / -2, whole[:size], atol=1e-12 * np.abs(whole).max())


@pytest.mark.parametrize("name", NAMES)
def test_loosened_weights_shrink_the_norm(name: str) -> None:
    """Schwarz's lemma: multiplied by t^level, the norm of S without y shrinks by t, and level counts blocks."""
    loop = loop_map(name)
    weights = random_weights(loop, "neuron")
    steps = levels(loop)
    assert all(steps[k] > steps[j] for k, j in loop.pairs())
    before = np.linalg.norm(matrix(name, weights, None), 2)
    for t in (0.9, 0.3):
        scaled = ScaledMap(loop, weights, None).loosened(t)
        assert np.linalg.norm(matrix(name, scaled.weights, None), 2) <= t * before * (1 + 1e-9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["layer", "channel", "neuron"])
def test_weights_do_not_exceed_what_a_map_keeps_apart(name: str, kind: str) -> None:
    """‖D·(f(z) − f(z′))‖ ≤ g·‖D·(z − z′)‖, in each part by itself, whatever D is."""
    loop = loop_map(name)
    generator = torch.Generator().manual_seed(3)
    for k, node in enumerate(loop.nonlinear, start=1):
        if not isinstance(node, VectorMap):
            continue
        for spread in (1.0, 6.0):
            weights = random_weights(loop, kind, k, spread)[k - 1]
            z = torch.randn((400, *loop.target_shape(k)), generator=generator, dtype=torch.float64)
            # changes that sit where a weight is small or large
            step = torch.randn(z.shape, generator=generator, dtype=torch.float64) / weights
            step *= torch.rand(z.shape, generator=generator, dtype=torch.float64) < 0.3
            moved = z + step
            before, after = (node.function(v, loop.resolved.live) for v in (z, moved))
            rise = (weights * (after - before)).flatten(1).norm(dim=1)
            run = (weights * (moved - z)).flatten(1).norm(dim=1)  # as it was rounded
            assert bool((rise <= node.constant * run * (1 + 1e-12)).all())


def test_parts() -> None:
    """What shares a weight: a number a layer, one a channel, one an entry; fewer where a map mixes."""

    def shapes(net: torch.nn.Module, shape: tuple[int, ...]) -> list[list[tuple[int, ...]]]:
        import lipcert
        from lipcert.loop import LoopMap

        loop = LoopMap(lipcert.trace(net.eval(), shape))
        return [weight_shapes(loop, kind) for kind in ("layer", "channel", "neuron")]

    pooled = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Flatten(), torch.nn.Linear(12, 2))
    assert shapes(pooled, (3, 4, 4)) == [
        [(1, 1, 1), (1, 1, 1)],
        [(3, 1, 1), (3, 1, 1)],
        [(3, 4, 4), (3, 1, 1)],
    ]


def test_finer_groups_are_the_same_weights() -> None:
    loop = loop_map(FEW[0])
    coarse = Scaling("layer", tuple(random_weights(loop, "layer")))
    for kind in ("channel", "neuron"):
        fine = coarse.refined(loop, kind)  # type: ignore[arg-type]
        assert fine.kind == kind
        a, b = (_columns(ScaledMap(loop, s.weights, 1.0)) for s in (coarse, fine))
        assert np.array_equal(a, b)


def test_the_catalogue_has_maps_that_are_kept_apart() -> None:
    found = {node.operation for n in CASES if n in NAMES for node in loop_map(n).nonlinear
             if isinstance(node, VectorMap) and node.apart}  # fmt: skip
    assert len(found) >= 3
