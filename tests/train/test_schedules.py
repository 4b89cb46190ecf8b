"""Schedules: their ends, their middles, and that nothing but the step decides."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lipcert.errors import ConfigError
from lipcert.train.schedules import average_decay, interpolate, learning_rate, loss_values, value_at
from lipcert.train.schema import (
    CEConfig,
    ConstantLR,
    CosineLR,
    CRMConfig,
    ExponentialLR,
    GloRoConfig,
    GloRoTradesConfig,
    LMTConfig,
    LrConfig,
    OneCycleLR,
    Ramp,
)

Shape = Literal["linear", "exponential", "cosine"]
SHAPES: tuple[Shape, ...] = ("linear", "exponential", "cosine")


def rates(schedule: LrConfig, *, epochs: int = 10, steps: int = 10, lr: float = 0.1, extra: int = 0) -> list[float]:
    return [
        learning_rate(s, steps_per_epoch=steps, epochs=epochs, lr=lr, schedule=schedule)
        for s in range(epochs * steps + extra)
    ]


@given(a=st.floats(1e-6, 1e6), b=st.floats(1e-6, 1e6), u=st.floats(-1, 2), shape=st.sampled_from(SHAPES))
def test_interpolation_stays_between_its_ends(a: float, b: float, u: float, shape: Shape) -> None:
    value = interpolate(a, b, u, shape)
    assert min(a, b) * (1 - 1e-9) <= value <= max(a, b) * (1 + 1e-9)
    if u <= 0:
        assert value == a
    if u >= 1:
        assert value == b


@pytest.mark.parametrize(("shape", "middle"), [("linear", 5.0), ("cosine", 5.0), ("exponential", 3.0)])
def test_middles(shape: Shape, middle: float) -> None:
    assert interpolate(1.0, 9.0, 0.5, shape) == pytest.approx(middle, rel=1e-15)


def test_the_cosine_starts_and_ends_flat() -> None:
    assert interpolate(0.0, 1.0, 0.01, "cosine") < 1e-3
    assert interpolate(0.0, 1.0, 0.99, "cosine") > 1 - 1e-3


def test_ramps() -> None:
    ramp = Ramp(start=1.0, end=9.0, epochs=(2.0, 4.0), shape="exponential")
    assert [value_at(ramp, e) for e in (0, 2, 4, 9)] == [1, 1, 9, 9]
    assert value_at(ramp, 3.0) == pytest.approx(3.0)
    assert value_at(4, 3.0) == 4.0
    jump = Ramp(start=1.0, end=9.0, epochs=(2.0, 2.0))
    assert [value_at(jump, e) for e in (1.999, 2.0)] == [1, 9]


def test_loss_values() -> None:
    ramp = Ramp(start=0.0, end=4.0, epochs=(0.0, 4.0))
    assert loss_values(CEConfig(kind="ce"), 3.0) is None
    crm = CRMConfig(kind="crm", temperature=1.0, radius_cap=ramp, weight=7.0, start_epoch=1.0)
    assert loss_values(crm, 0.5) is None
    assert loss_values(crm, 1.0) == {"radius_cap": 1.0, "weight": 7.0}
    assert loss_values(LMTConfig(kind="lmt", epsilon=ramp), 0.0) == {"epsilon": 0.0}
    assert loss_values(GloRoConfig(kind="gloro", epsilon=ramp), 9.0) == {"epsilon": 4.0}
    trades = GloRoTradesConfig(kind="gloro-trades", epsilon=1.0, weight=ramp)
    assert loss_values(trades, 2.0) == {"epsilon": 1.0, "weight": 2.0}


def test_crm_of_weight_zero_is_plain_cross_entropy() -> None:
    ramp = Ramp(start=0.0, end=4.0, epochs=(2.0, 6.0))
    crm = CRMConfig(kind="crm", temperature=1.0, radius_cap=1.0, weight=ramp)
    assert [loss_values(crm, epoch) for epoch in (0.0, 1.9, 2.0)] == [None] * 3
    assert loss_values(crm, 3.0) == {"radius_cap": 1.0, "weight": 1.0}
    assert loss_values(CRMConfig(kind="crm", temperature=1.0, radius_cap=1.0, weight=0.0), 9.0) is None


def test_averages_are_short_at_first() -> None:
    assert average_decay(0.9999, 0) == 0.1
    assert average_decay(0.5, 7) == 8 / 17
    assert [average_decay(0.5, step) for step in (8, 9, 10**9)] == [0.5] * 3
    assert average_decay(0.05, 0) == 0.05


def test_constant() -> None:
    assert set(rates(ConstantLR(kind="constant"))) == {0.1}


def test_warm_up_wastes_no_step() -> None:
    got = rates(ConstantLR(kind="constant", warmup=0.5))
    assert got[:6] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1, 0.1])


def test_cosine() -> None:
    got = rates(CosineLR(kind="cosine", final_lr=0.01, warmup=2.0), extra=3)
    assert max(got) == pytest.approx(0.1)
    assert got[60] == pytest.approx(0.055)  # half-way between epochs 2 and 10
    assert got[100:] == [0.01] * 3
    assert all(a >= b for a, b in pairwise(got[20:]))


def test_exponential_is_the_published_one() -> None:
    schedule = ExponentialLR(kind="exponential", start_epoch=200.0, final_lr=1e-6)
    got = [learning_rate(e * 98, steps_per_epoch=98, epochs=400, lr=1e-3, schedule=schedule) for e in range(401)]
    assert set(got[:201]) == {1e-3}
    assert got[300] == pytest.approx(math.sqrt(1e-3 * 1e-6))
    assert got[400] == 1e-6
    ratios = [b / a for a, b in pairwise(got[200:])]
    assert max(ratios) == pytest.approx(min(ratios))


def test_a_decay_that_starts_after_the_end_never_does() -> None:
    late = ExponentialLR(kind="exponential", start_epoch=25.0, final_lr=1e-6)
    assert set(rates(late, epochs=2)) == {0.1}
    assert len(rates(CosineLR(kind="cosine", warmup=5.0), epochs=2)) == 20


def test_one_cycle_has_the_shape_of_torch_s() -> None:
    ours = rates(OneCycleLR(kind="onecycle"), epochs=30, steps=100)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=3000)
    reference = []
    for _ in range(3000):
        reference.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert ours[0] == pytest.approx(0.004)
    assert ours == pytest.approx(reference, abs=1e-3 * 0.1)  # it counts its ends differently, by one step
    assert rates(OneCycleLR(kind="onecycle"), epochs=2, steps=1, extra=2)[2:] == [0.1 * 4e-6] * 2


@pytest.mark.parametrize("wrong", [(-1, 1, 1), (0, 0, 1), (0, 1, 0)])
def test_impossible_counts(wrong: tuple[int, int, int]) -> None:
    step, steps, epochs = wrong
    with pytest.raises(ConfigError, match="a learning rate needs"):
        learning_rate(step, steps_per_epoch=steps, epochs=epochs, lr=1.0, schedule=ConstantLR(kind="constant"))
