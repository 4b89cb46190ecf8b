"""Norms from a Gram matrix and its Cholesky factorisation: not below by a hair, close, and honest about rounding."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lipcert
from cases import loop_map, named
from exact import chain, chain_blocks, is_upper_bound, rational
from lipcert.errors import BoundError
from lipcert.loop import LoopMap, Pair, Plan
from lipcert.norms import Norm, cholesky, upper, upper_norms
from lipcert.norms.dense import block, dense_norms
from lipcert.norms.errors import BlockErrors, underflow
from lipcert.norms.lanczos import estimate_norms


def _linear(matrix: Tensor) -> LoopMap:
    net = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False).double().eval()
    graph = lipcert.trace(net, (matrix.shape[1],))
    net.weight.data = matrix.double()
    return LoopMap(graph)


def _proved(loop: LoopMap, slack: float = 1e-3, guess: float | None = None) -> dict[Pair, Norm]:
    """Every block by its Gram matrix."""
    pairs = loop.pairs()
    found = estimate_norms(loop, pairs, tolerance=slack / 1e5, max_products=200)
    estimates = {p: float(found[p]) if guess is None else guess for p in pairs}
    return cholesky.cholesky_norms(BlockErrors(loop, {}), pairs, estimates, dict.fromkeys(pairs, slack))


def _weights(widths: list[int], seed: int, exponent: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = zip(widths[1:], widths[:-1], strict=True)
    return [torch.randn(s, generator=generator, dtype=torch.float64) * 2.0**exponent for s in shapes]


def _test(loop: LoopMap, pair: Pair = (1, 0)) -> cholesky._Test:
    return cholesky._Test(BlockErrors(loop, {}), pair, underflow(loop))


# --- exactly, in rational numbers -------------------------------------------------------------------------------------
@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 10**6),
    st.lists(st.integers(1, 5), min_size=2, max_size=4),
    st.integers(-50, 50),
    st.sampled_from([1e-9, 1e-3]),
)
def test_not_below_the_norm_by_a_hair(seed: int, widths: list[int], exponent: int, slack: float) -> None:
    weights = _weights(widths, seed, exponent)
    loop = LoopMap(lipcert.trace(chain(*weights), (widths[0],)))
    for pair, found in _proved(loop, slack).items():
        exact = chain_blocks(*weights)[pair]
        assert is_upper_bound(found.upper, exact), pair
        assert not is_upper_bound(found.upper * (1 - 2 * slack - 1e-10), exact), pair
        assert cholesky.proved(BlockErrors(loop, {}), pair, found.upper * (1 + 1e-12))
        assert not cholesky.proved(BlockErrors(loop, {}), pair, found.upper * (1 - 2 * slack - 1e-10))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(0, 3))
def test_the_least_number_that_factorises_still_gives_a_bound(seed: int, n: int, repeated: int) -> None:
    """However far down a factorisation happens to succeed, what is added covers it. Leading eigenvalues may repeat."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q
    values = torch.rand(n, generator=generator, dtype=torch.float64) * 0.9
    values[: repeated + 1] = 1.0 - 2.0**-50 * torch.rand(min(n, repeated + 1), generator=generator).double()
    matrix = q * values * float(torch.rand(1, generator=generator) + 0.1)
    test = _test(_linear(matrix))
    low, high = 0.0, float(test.gram.diagonal().sum()) * 2
    assert cholesky._factorises(test.gram, high)
    while math.nextafter(low, math.inf) < high:
        middle = (low + high) / 2
        low, high = (low, middle) if cholesky._factorises(test.gram, middle) else (middle, high)
    assert is_upper_bound(test.norm(high), rational(matrix))
    assert test.norm(high) <= float(torch.linalg.matrix_norm(matrix, 2)) * (1 + 1e-12)
    assert not test.proves(math.ldexp(math.sqrt(low), test.exponent // 2))


def test_without_what_is_added_it_would_be_below() -> None:
    """The foil: √b alone is too small for some of these matrices."""
    fooled = 0
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        matrix = torch.randn(4, 4, generator=generator, dtype=torch.float64)
        test = _test(_linear(matrix))
        low, high = 0.0, float(test.gram.diagonal().sum()) * 2
        while math.nextafter(low, math.inf) < high:
            middle = (low + high) / 2
            low, high = (low, middle) if cholesky._factorises(test.gram, middle) else (middle, high)
        fooled += not is_upper_bound(math.ldexp(math.sqrt(high), test.exponent // 2), rational(matrix))
    assert fooled > 0


@pytest.mark.parametrize("exponent", [-190, -60, 60, 190])
def test_one_layer_divided_the_next_multiplied(exponent: int) -> None:
    weights = _weights([3, 4, 4, 2], 1)
    weights = [w * 2.0**e for w, e in zip(weights, (exponent, -exponent, 0), strict=True)]
    net = chain(*(torch.ones(w.shape) for w in weights))
    graph = lipcert.trace(net, (3,))
    for linear, w in zip(net[::2], weights, strict=True):
        linear.weight.data = w
    for pair, found in _proved(LoopMap(graph)).items():
        assert is_upper_bound(found.upper, chain_blocks(*weights)[pair])
        assert not is_upper_bound(found.upper * 0.999, chain_blocks(*weights)[pair])


# --- rounding of the size that is granted -----------------------------------------------------------------------------
@pytest.mark.parametrize("part", ["whole", "lower", "upper"])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("level", [1e-9, 1e-4])
def test_errors_that_hide_the_leading_vector(
    level: float, wide: bool, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every column of the Gram matrix errs against the leading eigenvector by all that is granted, in one triangle
    or in both; the eigenvector is spread out, so that it is hit in every column."""
    n = 8
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(n, n, generator=generator, dtype=torch.float64)
    start[:, 0] = 1.0
    q = torch.linalg.qr(start).Q
    top = q[:, 0].abs()
    matrix = (q * torch.linspace(1.0, 0.5, n, dtype=torch.float64)) @ q.T
    if wide:
        matrix = torch.cat([matrix, torch.zeros(n, 2, dtype=torch.float64)], 1)
    gram = cholesky._gram

    def spoilt(loop: LoopMap, pair: Pair) -> Tensor:
        granted = level * (2 + level)  # E·(2‖A‖ + E) in the norm of a column, ‖A‖ = 1
        wrong = torch.outer(top, top) * (granted / float(top.abs().max()))
        kept = {"whole": wrong, "lower": wrong.tril(), "upper": wrong.triu()}[part]
        return gram(loop, pair) - kept

    monkeypatch.setattr(cholesky, "_gram", spoilt)
    monkeypatch.setattr(BlockErrors, "error", lambda *_: level)
    monkeypatch.setattr(cholesky, "relative_error", lambda *_: 1.0)  # so that the other estimate does not count
    loop = _linear(matrix)
    assert _proved(loop, slack=1e-5, guess=0.999)[1, 0].upper >= 1
    assert not cholesky.proved(BlockErrors(loop, {}), (1, 0), 1 - 1e-12)
    if part == "whole":
        monkeypatch.setattr(cholesky, "_gram_error", lambda *_: 0.0)
        assert cholesky.proved(BlockErrors(loop, {}), (1, 0), 1 - level)


def test_products_that_err_in_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """All products AᵀA·e of a network's blocks are turned against the leading vector, by what BlockErrors grants."""
    loop = LoopMap(lipcert.trace(chain(*_weights([3, 5, 6, 7], 4)), (3,)))
    level, products = 1e-5, cholesky.gram_products
    norm = {p: float(torch.linalg.matrix_norm(block(loop, p), 2)) for p in loop.pairs()}

    def spoilt(of: LoopMap, plan: Plan, vectors: dict[Pair, Tensor]) -> dict[Pair, Tensor]:
        found = products(of, plan, vectors)
        for pair, value in found.items():
            a = block(of, pair)  # (sources, targets), as the smaller side is that of the sources
            v = torch.linalg.svd(a).U[:, 0]
            found[pair] = value - torch.outer(v, v)[: len(value)] * (level * (2 * norm[pair] + level))
        return found

    monkeypatch.setattr(cholesky, "gram_products", spoilt)
    monkeypatch.setattr(BlockErrors, "error", lambda *_: level)
    monkeypatch.setattr(cholesky, "relative_error", lambda *_: 1.0)
    for pair, truth in norm.items():
        assert not cholesky.proved(BlockErrors(loop, {}), pair, truth * (1 - 1e-13)), pair
        assert cholesky.proved(BlockErrors(loop, {}), pair, truth * (1 + 1e-2)), pair
    monkeypatch.setattr(BlockErrors, "error", lambda *_: 0.0)
    assert all(cholesky.proved(BlockErrors(loop, {}), p, v - level / 2) for p, v in norm.items())


# --- against explicit matrices ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("centred", [True, False])
# in these two a block is zero but for rounding, of which a Gram matrix gives the root
@pytest.mark.parametrize("name", [n for n in named()[2::14] if n not in ("act-leaky-one", "cancelling-branches")])
def test_above_the_dense_norm_and_close(name: str, centred: bool) -> None:
    loop = loop_map(name, centred=centred)
    exact = dense_norms(loop, loop.pairs())
    for pair, found in _proved(loop).items():
        truth = float(torch.linalg.matrix_norm(block(loop, pair), 2))
        assert truth * (1 - 1e-13) <= found.upper <= exact[pair].upper * 1.001, pair
        assert found.lower <= found.upper
        assert (found.method, found.failure) == ("cholesky", 0.0)


def test_a_deterministic_bound_of_a_convolutional_network(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 4, 2, 1), nn.ReLU(), nn.Flatten(),
                        nn.Linear(128, 40), nn.ReLU(), nn.Linear(40, 10)).eval()  # fmt: skip
    options = {"guarantee": "upper", "failure": 0, "slack": 1e-6}
    dense = lipcert.lipschitz(net, (3, 8, 8), **options)  # type: ignore[arg-type]
    monkeypatch.setattr(upper, "DENSE", 16)
    found = lipcert.lipschitz(net, (3, 8, 8), **options)  # type: ignore[arg-type]
    methods = [n.method for n in found.norms.values()]  # type: ignore[attr-defined]
    assert set(methods) == {"dense", "cholesky"}
    assert found.failure == 0  # type: ignore[attr-defined]
    assert float(found) == pytest.approx(float(dense), rel=1e-6)


# --- the matrix, and what is refused ----------------------------------------------------------------------------------
def test_the_matrix_is_the_same_after_a_factorisation() -> None:
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(9, 9, generator=generator, dtype=torch.float64)
    gram = half @ half.T
    gram[0, 1] = -0.0
    before = gram.clone()
    assert cholesky._factorises(gram, float(gram.trace()))
    assert not cholesky._factorises(gram, 1e-3)
    assert torch.equal(gram, before)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0])
def test_what_is_no_bound_does_not_factorise(bad: float) -> None:
    test = _test(_linear(torch.eye(3)))
    assert bad == math.inf or not cholesky._factorises(test.gram, bad)
    assert not test.proves(bad)


def test_no_norm_is_below_a_negative_number() -> None:
    assert not _test(_linear(torch.eye(3))).proves(-5.0)


@pytest.mark.parametrize("slack", [1e-9, 1e-6, 1e-3])
@pytest.mark.parametrize("low", [0.0, 1e-8, 1e-5, 3e-3, 0.05, 0.9])
def test_from_a_low_estimate_it_is_close_after_few_factorisations(
    low: float, slack: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[float] = []
    factorises = cholesky._factorises
    monkeypatch.setattr(cholesky, "_factorises", lambda gram, b: made.append(b) or factorises(gram, b))
    matrix = torch.randn(40, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    truth = float(torch.linalg.matrix_norm(matrix, 2))
    found = _proved(_linear(matrix), slack, guess=truth * (1 - low))[1, 0]
    assert len(made) <= (12 if low else 1)
    aim = slack if low == 0 or (slack == 1e-3 and low < 0.1) else max(slack, 0.1 * low)  # else attempts run out
    assert truth <= found.upper <= truth * (1 + 1.1 * aim)


def test_from_a_bad_estimate_it_finds_a_bound_all_the_same() -> None:
    found = _proved(_linear(torch.ones(6, 6)), slack=1e-9, guess=0.0)
    assert 6 <= found[1, 0].upper < 40


@pytest.mark.parametrize("n", [1, 2, 5])
def test_multiples_of_the_unit_matrix(n: int) -> None:
    """Every eigenvalue is the largest, and the diagonal of b·I − G is all rounding."""
    for factor in (1.0, 1 / 3, 0.1, 3e30):
        matrix = torch.eye(n, dtype=torch.float64) * factor
        upper = _proved(_linear(matrix), slack=1e-9)[1, 0].upper
        assert is_upper_bound(upper, rational(matrix))
        assert upper < factor * (1 + 1e-8)


@pytest.mark.parametrize("exponent", [-230, 230])
def test_beyond_its_range_it_is_refused(exponent: int) -> None:
    with pytest.raises(BoundError, match="200"):
        _proved(_linear(torch.eye(2, dtype=torch.float64) * 2.0**exponent))


def test_a_block_that_overflows_is_an_error() -> None:
    with pytest.raises(BoundError, match="not finite"):
        _proved(_linear(torch.full((2, 2), 1e200, dtype=torch.float64)), guess=1.0)


def test_a_block_of_zeros_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a residual branch whose last layer begins at zero."""
    monkeypatch.setattr(upper, "DENSE", 1)
    loop = _linear(torch.zeros(4, 3))
    assert 0 <= upper_norms(loop, loop.pairs())[1, 0].upper < 1e-60


def test_a_block_that_cancels_to_nothing_is_bounded_and_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Gram matrix comes out as zeros, or as rounding: what forming it may have lost is all that is known."""
    loop = loop_map("cancelling-branches")
    assert not block(loop, (3, 0)).any()
    (claim,) = dense_norms(loop, [(3, 0)]).values()
    assert cholesky.proved(BlockErrors(loop, {}), (3, 0), claim.upper)
    monkeypatch.setattr(upper, "DENSE", 0)
    found = upper_norms(loop, [(3, 0)])[3, 0]
    assert claim.lower < found.upper < 1e-6
