"""The adversary breaks none of lipcert's claims, and breaks those of power iteration on the same networks."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

import lipcert
from adversary import PROVED, examine, sweep
from adversary_attacks import rounded_inwards, steepest
from adversary_claims import foil, proved
from adversary_exact import Exact
from adversary_nets import KINDS, network, program, trained
from adversary_report import Tally

SEEDS = 2
CLOSE = ("nearly-linear", "aligned", "tiny")  # where bounds are attained


@cache
def _of_kind(kind: str) -> dict[str, Tally]:
    return sweep(range(_seeds(kind)), draws=_draws(kind), kinds=[kind])[kind]


def _draws(kind: str) -> int:
    return 4 if kind in CLOSE else 3


def _seeds(kind: str) -> int:
    return SEEDS + (kind == "tiny")  # quick, and one more where all regions are known


def _assert_nothing_found(tally: Tally) -> None:
    assert not tally.findings, "\n".join(map(str, tally.findings[:5]))


@pytest.mark.parametrize("kind", list(KINDS))
def test_no_claim_is_broken(kind: str) -> None:
    for by in PROVED:
        tally = _of_kind(kind)[by]
        _assert_nothing_found(tally)
        assert tally.nets == _seeds(kind) * _draws(kind)
        assert tally.points > 100 * tally.nets


def test_power_iteration_in_place_of_the_upper_bound_is_caught() -> None:
    """Else the adversary would be too weak to say anything."""
    caught = Tally()
    for kind in CLOSE:  # what it is caught by most
        caught += _of_kind(kind)["foil"]
    assert caught.broken["bound"] >= 10
    assert caught.broken["pairwise bound"] >= 3
    assert caught.broken["radius"] >= 3
    assert caught.broken["bound, all regions"] >= 1
    assert str(caught.findings[0]).count("examine(network(") == 1


def test_a_float32_run_breaks_radii_of_real_arithmetic_and_not_its_own() -> None:
    tally = _of_kind("biased")["lipcert"]
    assert tally.broken["radius of real arithmetic, run in float32"] > 0
    assert tally.broken["radius for float32, run in float32"] == 0
    assert 0 < tally.tightest["radius for float32, run in float32"] < 1


@pytest.mark.parametrize("kind", ["aligned", "nearly-linear", "tiny"])
def test_where_the_bound_is_attained_the_adversary_gets_there(kind: str) -> None:
    """So an underestimate of 1 % would be seen there."""
    tally = _of_kind(kind)["lipcert"]
    assert max(tally.tightest["bound"], tally.tightest["pairwise bound"]) > 0.9999
    assert tally.tightest["radius"] > 0.98


@pytest.mark.parametrize(("kind", "seed"), [("mlp", 0), ("conv", 2), ("residual", 1), ("max-pool", 3), ("tiny", 5)])
def test_trained(kind: str, seed: int) -> None:
    net = trained(kind, seed)
    result = examine(net, seed, rows=24)["lipcert"]
    _assert_nothing_found(result)
    assert result.tightest["bound"] > 0.1


@pytest.mark.parametrize(("kind", "seed"), [("mlp", 1), ("conv", 0), ("residual", 2), ("max-pool", 1), ("tiny", 3)])
def test_trained_with_local_bounds(kind: str, seed: int) -> None:
    _assert_nothing_found(examine(trained(kind, seed), seed, rows=24, executed=False)["local"])


# --- random graphs --------------------------------------------------------------------------------------------------
@pytest.mark.filterwarnings("ignore:no small-gain bound was found")  # then LipLT's is what is attacked
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**9))
@example(seed=20789)  # its output does not depend on its input
def test_random_graphs(seed: int) -> None:
    result = examine(program(seed), seed % 1000)
    _assert_nothing_found(result["lipcert"])
    _assert_nothing_found(result["local"])


@pytest.mark.filterwarnings("ignore:no small-gain bound was found")
@settings(max_examples=8, deadline=None)
@given(kind=st.sampled_from(list(KINDS)), seed=st.integers(0, 10**9), draw=st.integers(0, 10**6))
def test_random_networks(kind: str, seed: int, draw: int) -> None:
    result = examine(network(kind, seed, draw), seed % 1000)
    _assert_nothing_found(result["lipcert"])
    _assert_nothing_found(result["local"])


# --- the adversary itself -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["mlp", "residual", "aligned", "scaled"])
def test_with_exact_norms_the_foil_is_lipcert(kind: str) -> None:
    """The foil differs in the norms and in nothing else; and lipcert's bound is not above it by more than rounding."""
    net = network(kind, 3)
    graph, x = lipcert.trace(net.module, net.shape), net.inputs(6)
    ours, theirs = proved(graph, x), foil(graph, x, lambda a: float(np.linalg.norm(a, 2)))
    assert ours.whole <= theirs.whole * (1 + 1e-9)
    torch.testing.assert_close(ours.pairs, theirs.pairs, rtol=1e-9, atol=0)
    torch.testing.assert_close(ours.radius, theirs.radius, rtol=1e-6, atol=1e-12)


def _patterns_by_linear_programming(exact: Exact, neurons: int) -> set[tuple[bool, ...]]:
    """All 2^n patterns, kept where a point lies strictly inside (and in the box)."""
    found = set()
    for pattern in itertools.product([False, True], repeat=neurons):
        cell = exact._cell(pattern, np.zeros(exact.inputs), len(exact.low))
        length = np.linalg.norm(cell.normals, axis=1)
        if not (cell.offsets[length == 0] > 0).all():
            continue
        left = np.hstack([-cell.normals, length[:, None]])  # distance t from all sides, as large as can be
        best = linprog(
            np.eye(exact.inputs + 1)[-1] * -1, left, cell.offsets, bounds=[(-1e4, 1e4)] * exact.inputs + [(None, 1)]
        )
        if best.status == 0 and -best.fun > 1e-7:
            found.add(pattern)
    return found


@pytest.mark.parametrize("seed", range(14))
def test_every_linear_region_is_found_and_no_other(seed: int) -> None:
    net = network("tiny", seed)
    exact = Exact(net.module)  # type: ignore[arg-type]
    neurons = len(exact.cells[0].offsets)
    assert neurons <= 8, "take a seed with fewer: there is a linear program for each pattern"
    by_points = set(exact._patterns())
    assert by_points == _patterns_by_linear_programming(exact, neurons)
    with torch.no_grad():
        for cell in exact.cells:
            here = net.double()(torch.as_tensor(cell.point)[None])[0]
            np.testing.assert_allclose(cell.slope @ cell.point + cell.shift, here, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_no_attack_beats_the_exact_search(seed: int) -> None:
    """Neither the constant nor the nearest point of another class; and the attack is not far behind."""
    net = network("tiny", 100 + seed)
    exact, x = Exact(net.module), net.inputs(40, seed).double()  # type: ignore[arg-type]
    found = steepest(net.double(), x)
    assert found.whole <= exact.constant * (1 + 1e-9)
    assert bool((found.pairs <= exact.pairs * (1 + 1e-9)).all())
    with torch.no_grad():
        z = net.double()(x)
        start, label = x[0], int(z[0].argmax())
        apart, where = exact.distance(start.numpy(), label)
        reached = (x - start).norm(dim=1)[z.argmax(1) != label]
        assert reached.numel() == 0 or float(reached.min()) >= apart * (1 - 1e-9)
        if where is not None:
            there = net.double()(torch.as_tensor(where)[None])[0]
            assert float(there.max() - there[label]) >= -1e-9 * float(there.abs().max() + 1)


def test_points_are_rounded_towards_the_centre() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 3, generator=generator)
    moved = x.double() + 10 ** (-8 * torch.rand(2000, 1, generator=generator).double()) * torch.randn(
        2000, 3, generator=generator, dtype=torch.float64
    )
    near = rounded_inwards(x, moved)
    assert near.dtype == torch.float32
    assert bool(((near.double() - x.double()).abs() <= (moved - x.double()).abs()).all())
    assert bool(((near.double() - moved).abs() <= 2.0**-22 * (x.abs() + moved.abs())).all())
