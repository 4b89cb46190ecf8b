"""What BlockErrors grants a pass covers what roundings of that size can do, forwards and back; its norms are bounds."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import lipcert
from cases import loop_map, named
from catalogue import Fn
from lipcert.graph.types import Affine, Node
from lipcert.loop import Group, LoopMap, Pair
from lipcert.norms import errors
from lipcert.norms.dense import block, dense_norms
from lipcert.norms.errors import BlockErrors
from random_programs import SHAPE, Program

SOME = named()[::14]
UNIT = 2.0**-8  # of the coarse arithmetic: so large that products of two errors count


def _loop(net: nn.Module, shape: tuple[int, ...], *, centred: bool = True) -> LoopMap:
    graph = lipcert.trace(net.double().eval(), shape)
    return LoopMap(graph, graph.resolve(torch.float64), centred=centred)


# --- a machine that rounds each node's value once, as an adversary wants --------------------------------------------
class _Spoiled(LoopMap):
    """T with each node's value v replaced by v·(1 + u·δ), or Tᵀ with the same done to each gradient."""

    def __init__(self, loop: LoopMap, back: bool) -> None:
        super().__init__(loop.graph, loop.resolved, centred=loop.centred)
        self.deltas: dict[int, Tensor] = {}
        self.back = back

        def spoiling(node: Affine) -> Callable[..., Tensor]:
            return lambda xs, cs: self.spoil(node, node.apply(xs, cs))

        nodes = [dataclasses.replace(n, apply=spoiling(n)) if isinstance(n, Affine) else n for n in self.walked.nodes]
        self.walked = dataclasses.replace(loop.graph, nodes=tuple(nodes))

    def spoil(self, node: Node, value: Tensor) -> Tensor:
        delta = self.deltas.setdefault(node.index, torch.ones_like(value).requires_grad_())
        if not self.back:
            return value * (1 + UNIT * delta)
        value.register_hook(lambda gradient: gradient * (1 + UNIT * delta))
        return value

    def _activate(self, node, step, seeds, bring):  # type: ignore[no-untyped-def]
        return self.spoil(node, super()._activate(node, step, seeds, bring))


def _wrong(loop: LoopMap, pair: Pair, back: bool, steps: int = 4) -> float:
    """The largest ‖fl(Ap) − Ap‖/‖p‖ (or of Aᵀ) that an adversary finds: for each p of a few its own roundings."""
    (k, j), a = pair, _matrix(loop, pair)
    a = a.T if back else a
    generator = torch.Generator().manual_seed(0)
    guesses = torch.randn((3, a.shape[1]), generator=generator, dtype=torch.float64)
    vectors = torch.cat([torch.linalg.svd(a).Vh[:3], torch.linalg.svd(a.abs()).Vh[:1], guesses, guesses.sign()])
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    spoiled, exact, most = _Spoiled(loop, back), vectors @ a.T, 0.0
    plan = spoiled.plan([Group(len(vectors), frozenset({j}), frozenset({k}))])
    for step in range(steps):
        start = torch.zeros((len(vectors), *loop.source_shape(j)), dtype=torch.float64)
        start = (start if back else vectors.reshape(start.shape).clone()).requires_grad_()
        out = spoiled.run(plan, {j: start})[k]
        if back:
            (out,) = torch.autograd.grad(out, start, vectors.reshape(out.shape), create_graph=True)
        wrong = (out.reshape(exact.shape) - exact).norm(dim=1)
        most = max(most, float(wrong.max()))
        chosen = list(spoiled.deltas.values())
        if not chosen:  # nothing is computed: z is x itself
            break
        for d, slope in zip(chosen, torch.autograd.grad(wrong.sum(), chosen, allow_unused=True), strict=True):
            if step == 0:  # all up was the first guess: then at random, and from there uphill
                d.data = torch.randn(d.shape, generator=generator, dtype=d.dtype).sign()
            elif slope is not None:
                d.data = slope.sign()
    return most


def _norm(loop: LoopMap, pair: Pair) -> float:
    return float(torch.linalg.matrix_norm(block(loop, pair), 2))


def _matrix(loop: LoopMap, pair: Pair) -> Tensor:
    """A_kj, rows for its targets."""
    matrix, n_out = block(loop, pair), math.prod(loop.target_shape(pair[0]))
    return matrix if matrix.shape[0] == n_out and n_out <= math.prod(loop.source_shape(pair[1])) else matrix.T


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """One rounding a node, of size UNIT."""
    monkeypatch.setattr(errors, "roundings_at", lambda *_: 1)
    monkeypatch.setattr(errors, "gamma", lambda n: (1 + UNIT) ** (n / 2) - 1)


def _positive(widths: list[int], seed: int, activation: Callable[[], nn.Module] = nn.ReLU) -> LoopMap:
    """A chain of positive matrices: |T| = T, so that the adversary can do nearly all that is granted."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b, bias=False), activation()]
        layers[-2].weight.data = 1 + 0.1 * torch.rand(b, a)
    return _loop(nn.Sequential(*layers[:-1]), (widths[0],))


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("name", SOME)
@pytest.mark.usefixtures("coarse")
def test_no_rounding_does_more_than_is_granted(name: str, centred: bool) -> None:
    loop = loop_map(name, centred=centred)
    known = {p: n.upper for p, n in dense_norms(loop, loop.pairs()).items()}
    for pair in loop.pairs()[-3:]:
        for nearer in ({}, {p: v for p, v in known.items() if p != pair}):
            granted = BlockErrors(loop, nearer).error(pair)
            assert max(_wrong(loop, pair, back, steps=2) for back in (False, True)) <= granted, pair


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.usefixtures("coarse")
def test_nearly_all_that_is_granted_can_happen_and_less_would_be_caught(
    back: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = _positive([4, 5, 6, 5, 3], 0)
    known = {p: n.upper for p, n in dense_norms(loop, loop.pairs()).items()}
    del known[4, 0]
    wrong, granted = _wrong(loop, (4, 0), back), BlockErrors(loop, known).error((4, 0))
    assert 0.5 * granted < wrong <= granted
    # foils: one that leaves out what goes through further activations, and one that looks at the last segment only
    monkeypatch.setattr(LoopMap, "ratios", lambda *_: (0.0, 1.0))
    assert BlockErrors(loop, known).error((4, 0)) < wrong


SLOPES = {
    "near 1": [1 - 1e-9, 0.3, 1.0],
    "all 1": [1.0, 1.0, 1.0],
    "0": [0.0, 0.0, 0.0],
    "-1, so c = 0": [-1.0, -1.0, -1.0],
    "steep": [-4.0, 3.0, 0.5],
}


@pytest.mark.parametrize("slopes", SLOPES.values(), ids=SLOPES)
@pytest.mark.usefixtures("coarse")
def test_slopes_that_differ_by_channel(slopes: list[float]) -> None:
    torch.manual_seed(1)
    first, second = nn.PReLU(3), nn.PReLU(3)
    first.weight.data, second.weight.data = torch.tensor(slopes), torch.tensor(slopes[::-1])
    loop = _loop(nn.Sequential(nn.Linear(4, 3), first, nn.Linear(3, 3), second, nn.Linear(3, 2)), (4,))
    known = {p: n.upper for p, n in dense_norms(loop, loop.pairs()).items()}
    for pair in loop.pairs():
        found = BlockErrors(loop, {p: v for p, v in known.items() if p != pair})
        assert max(_wrong(loop, pair, back) for back in (False, True)) <= found.error(pair)
        assert _norm(loop, pair) <= found.norm(pair) * (1 + 1e-12) + 1e-300


@pytest.mark.parametrize("activation", [lambda: nn.LeakyReLU(1.0), lambda: nn.PReLU(init=1.0)])
def test_an_activation_without_radius_leaves_no_nan(activation: Callable[[], nn.Module]) -> None:
    loop = _loop(nn.Sequential(nn.Linear(4, 3), activation(), nn.Linear(3, 2)), (4,))
    assert 0 < BlockErrors(loop, {}).error((2, 0)) < 1e-12


# --- norms ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("name", named()[3::14])
def test_norms_from_neighbours_are_bounds(name: str, centred: bool) -> None:
    loop = loop_map(name, centred=centred)
    exact = dense_norms(loop, loop.pairs())
    nothing, grown = BlockErrors(loop, {}), BlockErrors(loop, {})
    for pair in sorted(loop.pairs(), key=lambda p: p[0] - p[1]):
        alone = BlockErrors(loop, {p: n.upper for p, n in exact.items() if p != pair})
        for found in (nothing, grown, alone):
            assert found.norm(pair) >= _norm(loop, pair) * (1 - 1e-12), pair
            assert found.error(pair) <= errors.relative_error(loop) * errors.absolute_norm(loop, pair)
        grown.known[pair] = exact[pair].upper
        assert grown.norm(pair) == exact[pair].upper  # later knowledge counts, whatever was guessed before


def test_norms_of_networks_put_together_at_random() -> None:
    for seed in (724464, *range(6)):
        loop = _loop(Program(seed), SHAPE)
        exact = dense_norms(loop, loop.pairs())
        for pair in loop.pairs():
            found = BlockErrors(loop, {p: n.upper for p, n in exact.items() if p != pair})
            assert found.norm(pair) >= _norm(loop, pair) * (1 - 1e-12)
            assert 0 <= found.error(pair) < math.inf


@pytest.mark.parametrize("activation", [nn.SiLU(), nn.GELU(), nn.LeakyReLU(0.1), nn.Mish()], ids=repr)
def test_shares_and_ratios_are_those_of_the_slopes(activation: nn.Module) -> None:
    """They stand for max |c|/ℓ, max r/ℓ, max |c|/r and 1/min r in bounds: none may be too small by a hair."""
    loop = _loop(nn.Sequential(nn.Linear(3, 3), activation, nn.Linear(3, 2)), (3,))
    (slopes,) = loop.resolved.slopes.values()
    c, r, top = (float(v) for v in (slopes.centre, slopes.radius, slopes.lipschitz))
    assert loop.shares(1) == pytest.approx((abs(c) / top, r / top), rel=1e-15)
    assert loop.ratios(1) == pytest.approx((abs(c) / r, 1 / r), rel=1e-15)


def test_a_block_that_cancels_says_nothing_of_its_last_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    """‖A_31‖ = ‖A_20‖ = 0, while the segment from w_1 to z_3 is not, and A_30 is made of it alone."""
    torch.manual_seed(2)
    w, b = torch.randn(3, 3), torch.randn(3, 3)

    def forward(self: Fn, x: Tensor) -> Tensor:
        first = torch.relu(x)
        second = torch.relu(first @ self.w.T - 0.5 * x @ self.w.T)
        return second @ self.b.T - 0.5 * (first @ self.w.T) @ self.b.T

    loop = _loop(Fn(forward, w=w, b=b), (3,))
    exact = dense_norms(loop, loop.pairs())
    assert exact[3, 1].upper < 1e-12
    assert exact[2, 0].upper < 1e-12
    known = {p: n.upper for p, n in exact.items() if p != (3, 0)}
    assert BlockErrors(loop, known).norm((3, 0)) >= exact[3, 0].lower > 0.1

    def foil(self: BlockErrors, pair: Pair) -> float:
        return min(self._sizes[pair], self.known[pair] * (1 + self._ratios[pair[1]]))

    monkeypatch.setattr(BlockErrors, "_segment_norm", foil)
    assert BlockErrors(loop, known).norm((3, 0)) < 1e-10


def test_a_segment_whose_entries_underflow_from_a_unit_input() -> None:
    """2⁹⁰⁰·x enters the segment of 2⁻⁵⁴⁰·2⁻⁵⁴⁰·2²³²: nothing underflows on the way, and all of it rounds."""
    net = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(2)), nn.ReLU(),
                        *(nn.Linear(1, 1, bias=False) for _ in range(3))).double().eval()  # fmt: skip
    graph = lipcert.trace(net, (1,))
    for layer, exponent in zip([m for m in net if isinstance(m, nn.Linear)], (450, 450, -540, -540, 180), strict=True):
        layer.weight.data.fill_(2.0**exponent)
    loop = LoopMap(graph, graph.resolve(torch.float64))
    assert BlockErrors(loop, {}).norm((2, 0)) >= 0.5
    assert BlockErrors(loop, {}).error((2, 0)) >= 2.0**-53


def test_deep_networks_are_granted_far_less_than_by_absolute_values() -> None:
    torch.manual_seed(0)
    loop = _loop(nn.Sequential(*[m for _ in range(6) for m in (nn.Linear(40, 40), nn.ReLU())], nn.Linear(40, 5)), (40,))
    known = {p: n.upper for p, n in dense_norms(loop, loop.pairs()).items()}
    found = BlockErrors(loop, known)
    assert found.error((7, 0)) < 0.01 * errors.relative_error(loop) * errors.absolute_norm(loop, (7, 0))
