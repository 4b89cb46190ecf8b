"""Traps for radii: no point of another class lies within lipcert's radius; one lies within the foil's."""

from __future__ import annotations

import math
from collections.abc import Iterator

import foils
import numpy as np
import pytest
import torch
from radius_traps import TRAPS
from slope_traps import linear
from torch import Tensor, nn

import lipcert
from known_traps import BETWEEN, LOGITS
from lipcert.bounds import UpperBound
from lipcert.certify import radii
from lipcert.errors import BoundError, ModuleStateError

REAL = {"precision": "real"}
FLOAT32 = {"precision": "float32"}


@pytest.mark.parametrize("name", list(TRAPS))
def test_the_witness_lies_in_the_foils_radius_and_not_in_lipcerts(name: str) -> None:
    trap = TRAPS[name]
    net, x, moved = trap.module(), torch.tensor(trap.x), torch.tensor(trap.moved)
    apart = float((x.double() - moved.double()).norm())
    result = lipcert.certify(net, x[None], **REAL)
    with torch.no_grad():
        after = int(trap.module().double()(moved.double()[None]).argmax())
    assert after != int(result.prediction)
    assert trap.foil(net, x) >= apart
    assert float(result.radius) <= apart
    assert float(lipcert.certify(net, x[None], **FLOAT32).radius) <= float(result.radius)


def test_a_tie_is_certified_at_no_radius_at_all() -> None:
    net = TRAPS["tied logits"].module()
    result = lipcert.certify(net, torch.tensor([[1.0, 1.0]]), [0], **REAL)
    assert float(result.radius) == 0.0
    assert result.certified_accuracy(0.0) == 0.0  # type: ignore[attr-defined]


# --- NaN and infinity -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("row", [[3.0, 1.0, math.nan], [math.inf, 0.0, 1.0], [1.0, 0.0, -math.inf], [math.nan] * 3])
def test_logits_that_are_not_finite(row: list[float]) -> None:
    """Sorting lets a NaN stay where it is, and the margin to what happens to be second is no margin."""

    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([row])

    claimed = foils.radius(Constant(), torch.zeros(1), 1.0)
    assert not claimed <= 0  # a margin, an infinite one, or NaN: "not below" whatever it is compared with
    bound = UpperBound(torch.tensor(1.0, dtype=torch.float64), "liplt", "global")
    result = radii(torch.tensor([row]), bound, errors=torch.zeros(()))
    assert float(result.radius) == 0.0
    assert int(result.prediction) == -1


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_an_input_that_is_not_finite_behind_an_activation_that_hides_it(bad: float) -> None:
    last = linear([[1.0, 0.0], [0.0, 1.0]])[0]
    net = nn.Sequential(nn.Hardtanh(0.0, 1.0), last).eval()
    x = torch.tensor([bad, 0.5])
    assert not foils.radius_sqrt2(net, x) <= 0
    result = lipcert.certify(net, x[None], **REAL)
    assert (float(result.radius), int(result.prediction)) == (0.0, -1)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_weights_that_are_not_finite(bad: float) -> None:
    net = linear([[1.0, 0.0], [bad, 1.0]]).eval()
    x = torch.tensor([1.0, 0.0])
    assert not foils.radius(net, x, max(1.0, foils.lipschitz(net))) <= 0
    with pytest.raises(ModuleStateError, match="NaN or an infinity"):
        lipcert.certify(net, x[None], **REAL)


def test_a_run_that_overflows_where_real_arithmetic_does_not() -> None:
    """The module returns infinities: whatever real arithmetic says, its run is certified nowhere."""
    net = linear([[2.0**40]], [[2.0**40]], [[2.0**-80], [-(2.0**-80)]]).eval()
    x = torch.full((1, 1), 2.0**60)
    assert not bool(torch.isfinite(net(x)).all())
    assert float(lipcert.certify(net, x, **REAL).radius) > 0
    assert float(lipcert.certify(net, x, **FLOAT32).radius) == 0


def test_a_network_that_overflows_at_every_input_is_refused() -> None:
    net = linear([[2.0**80]], [[2.0**80]], [[2.0**-80], [-(2.0**-80)]]).eval()
    with pytest.raises(ModuleStateError, match="not finite"):
        lipcert.certify(net, torch.ones(1, 1), **REAL)


def test_a_bound_that_underflows_is_an_error_and_no_infinite_radius() -> None:
    tiny = 1e-170
    net = linear([[tiny]], [[tiny], [-tiny]], dtype=torch.float64).eval()
    net.append(nn.Linear(2, 2, dtype=torch.float64))  # adds a margin that does not depend on the input
    net[2].weight.data, net[2].bias.data = torch.eye(2).double(), torch.tensor([1.0, 0.0]).double()
    x = torch.ones(1, 1, dtype=torch.float64)
    assert foils.radius_sqrt2(net.eval(), x[0]) > 1e290  # a product of norms that is 0, and what guards against 0
    with pytest.raises(BoundError, match="zero, or not finite"):
        lipcert.certify(net, x, **REAL)


# --- a model changed after its bound was computed ---------------------------------------------------------------------
def test_a_bound_of_the_weights_of_before() -> None:
    net, cached = linear([[1.0], [-1.0]]).eval(), foils.CachedBound()
    net[0].bias = nn.Parameter(torch.tensor([0.0, 1.0]))
    cached(net)
    net[0].weight.data *= 10  # logits (10u, 1 − 10u): class 0 begins at u = 0.05
    x, moved = torch.tensor([1.0]), torch.tensor([0.049])
    assert int(net(x[None]).argmax()) != int(net(moved[None]).argmax())
    assert foils.radius(net, x, math.sqrt(2) * cached(net)) > float(x - moved)
    assert float(lipcert.certify(net, x[None], **REAL).radius) <= float(x - moved)


# --- §9: two weights -----------------------------------------------------------------------------------------------
def _ordered(values: np.ndarray) -> np.ndarray:
    """Float32 numbers as integers in the same order, one apart for neighbours."""
    bits = values.astype(np.float32).view(np.int32).astype(np.int64)
    return np.where(bits >= 0, bits, -(2**31) - bits)


def _number(order: np.ndarray) -> np.ndarray:
    return np.where(order >= 0, order, -(2**31) - order).astype(np.int32).view(np.float32)


def _flips(net: nn.Module, points: np.ndarray, label: int, *, strictly: bool) -> np.ndarray:
    """Where a float32 run ranks another logit above (or, unless strictly, beside) that of the label."""
    with torch.no_grad():
        z = net(torch.from_numpy(points)[:, None])
    other = torch.cat([z[:, :label], z[:, label + 1 :]], 1).amax(1)
    return (other > z[:, label] if strictly else other >= z[:, label]).numpy()


def _near(x: float) -> Iterator[np.ndarray]:
    """Every float32 number around x, nearest first, in growing rings; then ones ever farther."""
    here = int(_ordered(np.array([x]))[0])
    for start in range(1, 2**18, 2**12):
        steps = np.arange(start, start + 2**12)
        yield _number(np.stack([here - steps, here + steps], 1).ravel())
    for far in np.logspace(-2, 1, 60):
        yield np.array([x - far, x + far], dtype=np.float32)


def nearest_flip(net: nn.Module, x: float, label: int, *, strictly: bool) -> float:
    """The nearest float32 number with another prediction that a search finds, moved towards x while it stays so."""
    for points in _near(x):
        flips = _flips(net, points, label, strictly=strictly)
        if flips.any():
            found = float(points[flips][np.abs(points[flips].astype(float) - x).argmin()])
            break
    inner, outer = (int(v) for v in _ordered(np.array([x, found])))
    while abs(outer - inner) > 1:
        middle = (inner + outer) // 2
        flipped = bool(_flips(net, _number(np.array([middle])), label, strictly=strictly)[0])
        inner, outer = (inner, middle) if flipped else (middle, outer)
    return float(_number(np.array([outer]))[0])


def test_the_two_weights_give_the_published_logits() -> None:
    """One float32 input of a bias-free layer explains all four numbers, and the radii that go with them.

    The run's margin over the difference of the weights is 0.25 (0.247 for a certifier whose norm is 1 % too large).
    In real arithmetic the logits meet at 0, so 0.1972 is all there is: the other 0.05 were rounding.
    """
    net = TRAPS["two weights that differ in their last digit"].module()
    assert net(torch.tensor([[BETWEEN]])).tolist() == [LOGITS]
    assert foils.radius_of_pairs(net, torch.tensor([BETWEEN])) == 0.25
    radius = float(lipcert.certify(net, torch.tensor([[BETWEEN]]), **REAL).radius)
    assert BETWEEN * (1 - 1e-6) <= radius <= BETWEEN


def test_a_float32_run_breaks_at_0_197() -> None:
    net = TRAPS["two weights that differ in their last digit"].module()
    found = nearest_flip(net, BETWEEN, 1, strictly=True)
    assert int(net(torch.tensor([[found]])).argmax()) == 0
    assert 0.197 < BETWEEN - found < 0.1973
    assert BETWEEN - found < 0.247 < foils.radius_of_pairs(net, torch.tensor([BETWEEN]))
    assert float(lipcert.certify(net, torch.tensor([[BETWEEN]]), **REAL).radius) <= BETWEEN - found


def test_the_radius_for_float32_ends_before_the_nearest_tie() -> None:
    """Far nearer than 0.197 a run gives two equal logits, and ``argmax`` another class; real radii do not see it."""
    net = TRAPS["two weights that differ in their last digit"].module()
    tie = nearest_flip(net, BETWEEN, 1, strictly=False)
    assert int(net(torch.tensor([[tie]])).argmax()) == 0
    assert 0 < abs(tie - BETWEEN) < 1e-6
    result = lipcert.certify(net, torch.tensor([[BETWEEN]]), **FLOAT32)
    assert float(result.radius) < abs(tie - BETWEEN)
    assert float(lipcert.certify(net, torch.tensor([[BETWEEN]]), **REAL).radius) > 0.19
