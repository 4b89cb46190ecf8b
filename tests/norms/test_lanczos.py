"""Estimates by subspaces: at the norm where a power iteration is not, never above it, at any scale, from any start."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

import lipcert
from cases import loop_map, named
from catalogue import Fn
from exact import chain
from lipcert.loop import LoopMap, Pair, Plan
from lipcert.norms import estimate_norms, lanczos
from lipcert.norms.dense import block
from lipcert.norms.lanczos import leading_vectors
from lipcert.norms.power import gram_products, next_vectors, normalised, product_plan, random_seeds


def _linear(matrix: Tensor) -> LoopMap:
    net = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False).double().eval()
    graph = lipcert.trace(net, (matrix.shape[1],))
    net.weight.data = matrix.double()
    return LoopMap(graph)


def _spectrum(values: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A square matrix with these singular values, and its right singular vectors as rows."""
    generator = torch.Generator().manual_seed(seed)
    n = len(values)
    left, right = (torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q for _ in "lr")
    return left @ (values.double()[:, None] * right.T), right.T


def _norms(loop: LoopMap) -> dict[Pair, float]:
    return {p: float(torch.linalg.matrix_norm(block(loop, p).double(), 2)) for p in loop.pairs()}


def _power(loop: LoopMap, pair: Pair, products: int) -> float:
    """What a power iteration with momentum reaches."""
    vectors = random_seeds(loop, [pair], seed=0)
    memory, plan, known = torch.zeros_like(vectors[pair]), product_plan(loop, vectors), 0.0
    for _ in range(products):
        gradient = gram_products(loop, plan, vectors, unit=True)[pair]
        known = max(known, float(gradient.norm()))
        vectors[pair], memory = next_vectors(gradient, vectors[pair], memory)
    return known


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("name", named()[::7])
def test_the_catalogue(name: str, centred: bool) -> None:
    loop = loop_map(name, centred=centred)
    truth = _norms(loop)
    for pair, found in leading_vectors(loop, loop.pairs()).items():
        assert truth[pair] * (1 - 1e-6) - 1e-15 <= float(found.norm) <= truth[pair] * (1 + 1e-13) + 1e-15, pair
        if truth[pair] > 1e-12:
            assert float(found.vector.norm()) == pytest.approx(1, rel=1e-12)
            plan = product_plan(loop, {pair: found.vector[None]})
            image = gram_products(loop, plan, {pair: found.vector[None]}, unit=True)[pair]
            assert float(image.norm()) == pytest.approx(float(found.norm), rel=1e-6)
    single = loop.at(loop.graph.resolve(torch.float32))
    for pair, norm in estimate_norms(single, loop.pairs()).items():
        assert truth[pair] * (1 - 1e-5) - 1e-6 <= float(norm) <= truth[pair] * (1 + 1e-5) + 1e-6, pair


# --- spectra ----------------------------------------------------------------------------------------------------------
SPECTRA = {
    "even": torch.linspace(1, 0, 300).sqrt(),
    "crowded at the top": 1 - torch.linspace(0, 1, 300) ** 2,
    "one above a crowd": torch.cat([torch.tensor([1.0]), 0.999 - 0.3 * torch.linspace(0, 1, 300) ** 2]),
    "pairs": (1 - torch.linspace(0, 0.9, 150)).repeat_interleave(2),
    "all alike": torch.ones(60),
    "one": torch.cat([torch.ones(1), torch.zeros(80)]),
    "falling fast": 0.5 ** torch.arange(60),
}


@pytest.mark.parametrize("capacity", [4, 16])
@pytest.mark.parametrize("name", SPECTRA)
def test_spectra(name: str, capacity: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanczos, "_SMALLEST", capacity)
    monkeypatch.setattr(lanczos, "_LARGEST", capacity)
    loop = _linear(_spectrum(SPECTRA[name])[0])
    truth = _norms(loop)[1, 0]
    assert truth * (1 - 1e-5) <= float(estimate_norms(loop, [(1, 0)])[1, 0]) <= truth * (1 + 1e-13)


@pytest.mark.parametrize(("name", "share"), [("even", 0.01), ("crowded at the top", 0.5), ("one above a crowd", 0.01)])
def test_closer_than_a_power_iteration_with_momentum(name: str, share: float) -> None:
    loop = _linear(_spectrum(SPECTRA[name])[0])
    found = estimate_norms(loop, [(1, 0)], tolerance=1e-12, max_products=60)
    truth = _norms(loop)[1, 0]
    assert truth - float(found[1, 0]) < share * (truth - _power(loop, (1, 0), 60))


@pytest.mark.parametrize("seed", range(5))
def test_a_start_that_misses_the_leading_vector(seed: int) -> None:
    values = torch.cat([torch.tensor([1.0]), torch.linspace(0.9, 0.1, 99)])
    matrix, right = _spectrum(values, seed)
    loop = _linear(matrix)
    for start in (right[1], right[1:].sum(0)):
        found = leading_vectors(loop, [(1, 0)], seed=seed, start={(1, 0): start})[1, 0]
        assert float(found.norm) == pytest.approx(1, rel=1e-5)
        assert abs(float(found.vector @ right[0])) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SPECTRA)
def test_however_long_it_may_go_on(name: str, dtype: torch.dtype) -> None:
    """Rounding is all that is left at last: it must not be taken for a direction until the basis degenerates."""
    matrix, right = _spectrum(SPECTRA[name])
    loop = _linear(matrix)
    loop = loop.at(loop.graph.resolve(dtype))
    found = leading_vectors(loop, [(1, 0)], tolerance=0, max_products=2000)[1, 0]
    assert float(found.norm) == pytest.approx(1, rel=100 * torch.finfo(dtype).eps + 1e-9)
    if name in ("even", "one above a crowd", "one", "falling fast"):
        assert abs(float(found.vector.double() @ right[0])) == pytest.approx(1, rel=1e-2)


def test_from_the_leading_vector_it_is_there_at_once() -> None:
    matrix, right = _spectrum(torch.linspace(1, 0.1, 200))
    found = leading_vectors(_linear(matrix), [(1, 0)], max_products=1, start={(1, 0): 3 * right[0]})
    assert float(found[1, 0].norm) == pytest.approx(1, rel=1e-12)


# --- scales and shapes ------------------------------------------------------------------------------------------------
def _scaled(dtype: torch.dtype, exponents: tuple[int, ...]) -> tuple[LoopMap, dict[Pair, float]]:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(s, generator=generator, dtype=dtype) for s in ((30, 20), (25, 30), (10, 25))]
    net = chain(*weights).to(dtype)
    graph = lipcert.trace(net, (20,))
    truth = _norms(LoopMap(graph, graph.resolve(torch.float64)))
    for linear, e in zip(net[::2], exponents, strict=True):
        linear.weight.data *= 2.0 ** (e // 2)
        linear.weight.data *= 2.0 ** (e - e // 2)
    total = [0, *itertools.accumulate(exponents)]
    # ReLU: the block from source j passes through the layers j+1…k
    return LoopMap(graph), {(k, j): math.ldexp(v, total[k] - total[j]) for (k, j), v in truth.items()}


@pytest.mark.parametrize(
    ("dtype", "exponents"),
    [(torch.float32, e) for e in ((90, 0, 0), (-90, 0, 0), (100, -110, 60), (-60, 110, -120))]
    + [(torch.float64, e) for e in ((900, 0, 0), (-900, 0, 0), (900, -990, 500), (-600, 990, -900))],
)
def test_any_scale(dtype: torch.dtype, exponents: tuple[int, ...]) -> None:
    loop, truth = _scaled(dtype, exponents)
    for pair, found in estimate_norms(loop, loop.pairs()).items():
        assert float(found) == pytest.approx(truth[pair], rel=1e-5), pair


def test_sources_of_a_single_number() -> None:
    def forward(self: Fn, x: Tensor) -> Tensor:
        return torch.relu(torch.relu(x).sum(1))[:, None] * torch.tensor([3.0, 4.0], dtype=x.dtype)

    graph = lipcert.trace(Fn(forward).double().eval(), (5,))
    loop = LoopMap(graph, graph.resolve(torch.float64))
    assert loop.source_shape(2) == ()
    truth = _norms(loop)
    assert truth[3, 2] == pytest.approx(2.5)
    for pair, found in leading_vectors(loop, loop.pairs()).items():
        assert float(found.norm) == pytest.approx(truth[pair], rel=1e-6)
        assert found.vector.shape == loop.source_shape(pair[1])


def test_blocks_of_zeros_among_others() -> None:
    loop = LoopMap(lipcert.trace(chain(torch.zeros(3, 3), torch.eye(3), torch.zeros(2, 3)), (3,)))
    found = estimate_norms(loop, loop.pairs())
    assert {p for p, v in found.items() if float(v)} == {(2, 1)}
    assert float(found[2, 1]) == pytest.approx(0.5)
    assert estimate_norms(loop, []) == {}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_not_hidden(bad: float) -> None:
    net = chain(torch.eye(3), torch.eye(3), torch.eye(3))
    graph = lipcert.trace(net, (3,))
    net[2].weight.data[0, 0] = bad
    found = estimate_norms(LoopMap(graph), [(1, 0), (2, 1), (3, 2)])
    assert float(found[1, 0]) == pytest.approx(1)
    assert not math.isfinite(float(found[2, 1]))
    assert float(found[3, 2]) == pytest.approx(0.5)


# --- work -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("most", [1, 2, 5, 17])
def test_no_more_products_than_allowed(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    done: dict[Pair, int] = {}

    def counting(of: LoopMap, plan: Plan, vectors: Mapping[Pair, Tensor], **options: object) -> dict[Pair, Tensor]:
        for pair, rows in vectors.items():
            done[pair] = done.get(pair, 0) + len(rows)
        return gram_products(of, plan, vectors, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(lanczos, "gram_products", counting)
    loop = LoopMap(lipcert.trace(chain(torch.ones(60, 50), torch.ones(60, 60), torch.ones(50, 60)), (50,)))
    found = estimate_norms(loop, loop.pairs(), max_products=most)
    assert set(done) == set(found)
    assert max(done.values()) <= most
    assert all(float(v) > 0 for v in found.values())


def test_the_same_seed_gives_the_same_and_another_hardly_another() -> None:
    loop = loop_map("residual-two-open")
    first, again, other = (leading_vectors(loop, loop.pairs(), seed=s) for s in (4, 4, 5))
    for pair, found in first.items():
        assert torch.equal(found.norm, again[pair].norm)
        assert torch.equal(found.vector, again[pair].vector)
        assert float(found.norm) == pytest.approx(float(other[pair].norm), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_of_unit_norm_at_any_scale(dtype: torch.dtype) -> None:
    finest = torch.finfo(dtype)
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [3.0, 4.0], [3.0, 4.0]], dtype=dtype)
    factors = torch.tensor([1.0, 1.0, finest.tiny, finest.max / 8], dtype=dtype)
    unit, norms = normalised(rows * factors[:, None])
    torch.testing.assert_close(unit, torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.6, 0.8], [0.6, 0.8]], dtype=dtype))
    torch.testing.assert_close(norms, torch.tensor([5.0, 0.0, 5.0, 5.0], dtype=dtype) * factors, rtol=1e-6, atol=0)
