"""Upper bounds lie above the true norm, and barely; estimates lie below it, and barely."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lipcert
from cases import CASES, loop_map, named, reference_blocks
from exact import chain, chain_blocks, is_upper_bound, rational
from lipcert.errors import BoundError
from lipcert.loop import LoopMap, Pair
from lipcert.norms import dense, estimate_norms, upper_norms
from lipcert.norms.errors import underflow
from reference_bounds import norm


def uppers(loop: LoopMap, pairs: list[Pair], *, limit: int) -> dict[Pair, float]:
    """Deterministic upper bounds."""
    return {pair: n.upper for pair, n in upper_norms(loop, pairs, limit=limit).items()}


SOME = [n for i, n in enumerate(CASES) if i % 3 == 0 and n != "math-same-twice"]


@pytest.mark.parametrize("name", SOME)
def test_upper_and_estimate_enclose_the_norm(name: str) -> None:
    loop, blocks = loop_map(name), reference_blocks(name)
    upper, estimate = uppers(loop, loop.pairs(), limit=4096), estimate_norms(loop, loop.pairs())
    for pair in loop.pairs():
        truth = norm(blocks[pair]) if pair in blocks else 0.0
        assert float(upper[pair]) >= truth * (1 - 2e-6)  # slopes of the reference are measured
        assert float(upper[pair]) <= truth * (1 + 2e-6) + 1e-6
        # both are of the same float64 map: here nothing is measured
        assert float(estimate[pair]) <= float(upper[pair])
        assert float(estimate[pair]) >= 0.99 * float(upper[pair]) - 1e-9


# --- exactly, in rational numbers ---------------------------------------------------------------------------------
def _assert_above(*weights: torch.Tensor) -> dict[tuple[int, int], float]:
    net = chain(*(torch.ones(w.shape) for w in weights))
    graph = lipcert.trace(net, (weights[0].shape[1],))
    for linear, w in zip(net[::2], weights, strict=True):  # after the trace, whose check wants ordinary numbers
        linear.weight.data = w.double()
    loop = LoopMap(graph)
    upper = uppers(loop, loop.pairs(), limit=100)
    for pair, matrix in chain_blocks(*weights).items():
        assert is_upper_bound(float(upper[pair]), matrix), pair
    return {p: float(v) for p, v in upper.items()}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 5), min_size=2, max_size=4), st.integers(-30, 30))
def test_not_below_the_norm_by_a_hair(seed: int, widths: list[int], exponent: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    pairs = zip(widths[1:], widths[:-1], strict=True)
    weights = [torch.randn(s, generator=generator, dtype=torch.float64) * 10.0**exponent for s in pairs]
    _assert_above(*weights)


def test_float32_weights_are_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(s, generator=generator) for s in ((5, 4), (5, 5), (3, 5))]
    net = chain(*weights).float()
    loop = LoopMap(lipcert.trace(net, (4,)), lipcert.trace(net, (4,)).resolve(torch.float64))
    for pair, found in upper_norms(loop, loop.pairs(), limit=100).items():
        assert is_upper_bound(found.upper, chain_blocks(*weights)[pair])
        assert not is_upper_bound(found.upper * (1 - 1e-11), chain_blocks(*weights)[pair])
        assert not is_upper_bound(found.lower * (1 - 1e-12), chain_blocks(*weights)[pair])


def test_cancellation_in_forming_a_block() -> None:
    """W2·W1 is what is left of large numbers that cancel: its rounding errors are as large as itself."""
    first = torch.tensor([[1.0, 1.0], [1.0 + 2.0**-52, 1.0]], dtype=torch.float64) * 0.1
    second = torch.tensor([[1.0, -1.0]], dtype=torch.float64) / 3
    bounds = _assert_above(first, second)
    assert bounds[2, 0] < 1e-15


@pytest.mark.parametrize("exponent", [0, 8, 60, 200, 450, 500, 540, 700, 1000, 1022])
@pytest.mark.parametrize("order", [(1, -1, 0), (-1, 1, 0), (0, -1, 1), (0.5, 0.5, -1), (-0.5, -0.5, 1), (1, 0, -1)])
def test_one_layer_divided_the_next_multiplied(exponent: int, order: tuple[float, ...]) -> None:
    """§9: no bound may fall below the truth for it; so high a power that squares and products under- and overflow."""
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(s, generator=generator, dtype=torch.float64) for s in ((4, 3), (4, 4), (2, 4))]
    weights = [w * 2.0 ** int(e * exponent) for w, e in zip(weights, order, strict=True)]
    if all(bool(torch.isfinite(w).all()) for w in weights):
        _assert_above(*weights)


def test_weights_at_the_edge_of_what_float64_holds() -> None:
    smallest = torch.tensor([[2.0**-1074, 0.0], [0.0, 3 * 2.0**-1074]], dtype=torch.float64)
    _assert_above(smallest, smallest * 2.0**1000, smallest * 2.0**500)
    _assert_above(smallest, torch.eye(2, dtype=torch.float64) * 2.0**1000, torch.eye(2, dtype=torch.float64) * 8)


def test_a_block_that_overflows_is_an_error() -> None:
    net = chain(torch.ones(3, 3), torch.eye(3), torch.ones(3, 3))
    loop = LoopMap(lipcert.trace(net, (3,)))
    net[0].weight.data *= 1e200
    net[4].weight.data *= 1e200
    loop = LoopMap(loop.graph)
    with pytest.raises(BoundError, match="not finite"):
        uppers(loop, loop.pairs(), limit=100)


@pytest.mark.parametrize("largest", [2048, 1], ids=["svd", "gram"])
@pytest.mark.parametrize("exponent", [0, -700, 700])
def test_decompositions_round_up(largest: int, exponent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given the matrix exactly, at every scale: multiples of orthogonal matrices, whose norms hit and miss floats."""
    monkeypatch.setattr(dense, "_MAX_SVD", largest)
    generator = torch.Generator().manual_seed(0)
    for n in (1, 2, 3, 5):
        for _ in range(6):
            q = torch.linalg.qr(torch.randn(n, n + 1, generator=generator, dtype=torch.float64).T).Q.T
            matrix = q * float(torch.rand(1, generator=generator)) * 2.0**exponent
            upper = dense.spectral_norm_upper(matrix)
            assert is_upper_bound(upper, rational(matrix))
            assert not is_upper_bound(upper * (1 - (1e-12 if largest > 1 else 1e-6)), rational(matrix))


# --- structure ----------------------------------------------------------------------------------------------------
def test_zero_blocks() -> None:
    weights = [torch.zeros(3, 3), torch.eye(3), torch.zeros(2, 3)]
    bounds = _assert_above(*weights)
    assert bounds[1, 0] < 1e-290  # not 0: a bound does not claim what underflow could hide
    assert bounds[2, 1] == pytest.approx(0.5)
    estimate = estimate_norms(*(lambda loop: (loop, loop.pairs()))(LoopMap(lipcert.trace(chain(*weights), (3,)))))
    assert float(estimate[1, 0]) == 0.0


def test_rank_one_and_near_equal_rows() -> None:
    row = torch.randn(1, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    near = row.repeat(5, 1) + 1e-14 * torch.randn(5, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    _assert_above(row.repeat(4, 1), torch.ones(3, 4))
    _assert_above(near, torch.tensor([[1.0, -1.0, 0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("name", ["conv2d-stride", "dense-concat", "rank-deficient"])
def test_the_gram_path(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices too large for an SVD go by their Gram matrix: the bound stays above, and near."""
    loop = loop_map(name)
    by_svd = uppers(loop, loop.pairs(), limit=4096)
    monkeypatch.setattr(dense, "_MAX_SVD", 1)
    for pair, value in uppers(loop, loop.pairs(), limit=4096).items():
        truth = norm(reference_blocks(name)[pair]) if pair in reference_blocks(name) else 0.0
        assert float(value) >= truth * (1 - 1e-12)
        assert float(value) == pytest.approx(float(by_svd[pair]), rel=1e-6, abs=1e-7)


def test_blocks_made_in_several_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = loop_map("conv2d-stride")
    whole = uppers(loop, loop.pairs(), limit=4096)
    monkeypatch.setattr(dense, "_CHUNK", {"cpu": 7 * 84})
    for pair, value in uppers(loop, loop.pairs(), limit=4096).items():
        assert float(value) == pytest.approx(float(whole[pair]), rel=1e-12)


def test_rows_and_their_errors_made_in_several_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = loop_map("conv2d-stride")
    target, sources = loop.depth + 1, range(loop.depth + 1)
    options = loop, target, sources, 0, loop.target_shape(target)[0]
    rows, errors = dense.adjoint_rows(*options), dense.rows_error(*options, underflow(loop))
    monkeypatch.setattr(dense, "_CHUNK", {"cpu": 1})
    for j, found in dense.rows_error(*options, underflow(loop)).items():
        torch.testing.assert_close(found, errors[j], rtol=1e-12, atol=0)
        assert bool((found > 0).all())
    truth = reference_blocks("conv2d-stride")
    for j, found in rows.items():
        torch.testing.assert_close(found, torch.as_tensor(truth[target, j]), rtol=1e-9, atol=1e-12)


def test_the_limit_says_which_block_and_what_to_do() -> None:
    net = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 25)).eval()
    with pytest.raises(BoundError) as caught:
        lipcert.lipschitz(net, (30,), guarantee="upper", dense_limit=19, failure=0)
    for part in ("aten.relu.default in '1'", "side of 20", "limit of 19", "dense_limit", "guarantee='estimate'"):
        assert part in str(caught.value)
    assert float(lipcert.lipschitz(net, (30,), guarantee="upper", dense_limit=25, failure=0)) > 0


def test_upper_bounds_want_float64() -> None:
    loop = LoopMap(lipcert.trace(nn.Linear(3, 3).eval(), (3,)))
    with pytest.raises(BoundError, match="float64"):
        uppers(loop, loop.pairs(), limit=100)


# --- estimates ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(4))
def test_an_estimate_is_near_and_not_above(seed: int) -> None:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 4, 2, 1), nn.ReLU(), nn.Flatten(),
                        nn.Linear(96, 10)).double().eval()  # fmt: skip
    loop = LoopMap(lipcert.trace(net, (3, 8, 8)))
    truth = uppers(loop, loop.pairs(), limit=4096)
    for pair, value in estimate_norms(loop, loop.pairs(), seed=seed).items():
        assert 0.99 * float(truth[pair]) <= float(value) <= float(truth[pair])


def test_estimates_are_reproducible() -> None:
    loop = loop_map("residual-two-open")
    a, b = (estimate_norms(loop, loop.pairs(), seed=4) for _ in range(2))
    assert all(bool(a[p] == b[p]) for p in a)
    assert np.isclose(float(a[1, 0]), float(estimate_norms(loop, [(1, 0)], seed=5)[1, 0]), rtol=1e-3)


def test_every_case_has_a_graph_that_can_be_bounded() -> None:
    assert len(named()) == len(CASES) > 150
