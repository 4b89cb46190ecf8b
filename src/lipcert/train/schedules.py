"""Values that change during training, as pure functions of the step: nothing to save, so resuming is exact.

Time is counted in epochs since the start of the run and may be fractional: step s of a run with k steps an
epoch is at epoch s/k.
"""

from __future__ import annotations

import math
from typing import Literal

from lipcert.errors import ConfigError
from lipcert.train.schema import (
    CEConfig,
    ConstantLR,
    CosineLR,
    CRMConfig,
    ExponentialLR,
    LossConfig,
    LrConfig,
    OneCycleLR,
    Ramp,
)

__all__ = ["average_decay", "interpolate", "learning_rate", "loss_values", "value_at"]


def interpolate(
    start: float, end: float, fraction: float, shape: Literal["linear", "exponential", "cosine"] = "linear"
) -> float:
    """Between ``start`` (fraction ≤ 0) and ``end`` (fraction ≥ 1), both met exactly.

    With u the fraction: linear ``start + u·(end − start)``; exponential ``start·(end/start)^u``, both
    positive; cosine ``start + (1 − cos πu)/2·(end − start)``.

    >>> interpolate(1.0, 100.0, 0.5, "exponential")
    10.0
    """
    if fraction <= 0:
        return start
    if fraction >= 1:
        return end
    if shape == "exponential":
        return float(start * (end / start) ** fraction)
    if shape == "cosine":
        fraction = (1 - math.cos(math.pi * fraction)) / 2
    return start + fraction * (end - start)


def value_at(value: float | Ramp, epoch: float) -> float:
    """A number of the configuration at an epoch.

    >>> value_at(Ramp(start=0.0, end=8.0, epochs=(2, 6)), 3.0)
    2.0
    """
    if not isinstance(value, Ramp):
        return float(value)
    begin, end = value.epochs
    if begin == end:
        return value.start if epoch < begin else value.end
    return interpolate(value.start, value.end, (epoch - begin) / (end - begin), value.shape)


def loss_values(loss: LossConfig, epoch: float) -> dict[str, float] | None:
    """What to assign to the loss module's attributes at an epoch; None while plain cross-entropy is used.

    CRM of weight 0 is plain cross-entropy: it has no backward pass through the bound, which then falls behind.

    >>> config = CRMConfig(kind="crm", temperature=5.0, radius_cap=2.2, weight=30.0, start_epoch=10)
    >>> loss_values(config, 9.99) is None
    True
    >>> loss_values(config, 10)
    {'radius_cap': 2.2, 'weight': 30.0}
    """
    if isinstance(loss, CEConfig) or epoch < loss.start_epoch:
        return None
    names = [name for name in ("epsilon", "radius_cap", "weight") if hasattr(loss, name)]
    values = {name: value_at(getattr(loss, name), epoch) for name in names}
    return None if isinstance(loss, CRMConfig) and values["weight"] == 0 else values


def average_decay(decay: float, step: int) -> float:
    """The decay of the averaged weights at a step, counted from 0: ``min(decay, (1 + step)/(10 + step))``.

    A long average of a short run would be that of its random start.

    >>> [round(average_decay(0.9999, step), 4) for step in (0, 10, 90, 10**6)]
    [0.1, 0.55, 0.91, 0.9999]
    """
    return min(decay, (1 + step) / (10 + step))


def _decayed(epoch: float, epochs: float, lr: float, schedule: ConstantLR | CosineLR | ExponentialLR) -> float:
    if isinstance(schedule, ConstantLR):
        return lr
    begin = schedule.warmup if isinstance(schedule, CosineLR) else schedule.start_epoch
    if begin >= epochs:
        return lr
    shape: Literal["cosine", "exponential"] = "cosine" if isinstance(schedule, CosineLR) else "exponential"
    return interpolate(lr, schedule.final_lr, (epoch - begin) / (epochs - begin), shape)


def learning_rate(step: int, *, steps_per_epoch: int, epochs: int, lr: float, schedule: LrConfig) -> float:
    """The learning rate of a step, counted from 0.

    With e = step/steps_per_epoch: what a schedule reaches at the end of the run it reaches at e = epochs,
    that is just after the last step. A warm-up of w epochs multiplies by
    ``min(1, (step + 1)/(w·steps_per_epoch))``, so that no step is lost to a rate of 0.

    Args:
        step: 0 … epochs·steps_per_epoch − 1; later ones keep the final rate.
        steps_per_epoch: at least 1.
        epochs: of the whole run, at least 1.
        lr: the peak.
        schedule: the ``[schedule]`` section.

    Raises:
        ConfigError: a negative step, or no steps or epochs.

    >>> decay = ExponentialLR(kind="exponential", start_epoch=1, final_lr=1e-5)
    >>> [round(learning_rate(s, steps_per_epoch=1, epochs=3, lr=1e-3, schedule=decay), 6) for s in range(4)]
    [0.001, 0.001, 0.0001, 1e-05]
    """
    if step < 0 or steps_per_epoch < 1 or epochs < 1:
        raise ConfigError(
            f"a learning rate needs step ≥ 0, steps_per_epoch ≥ 1 and epochs ≥ 1; got {step}, "
            f"{steps_per_epoch}, {epochs}"
        )
    epoch = step / steps_per_epoch
    if isinstance(schedule, OneCycleLR):
        top = schedule.peak * epochs
        if epoch < top:
            return interpolate(schedule.initial_fraction * lr, lr, epoch / top, "cosine")
        return interpolate(lr, schedule.final_fraction * lr, (epoch - top) / (epochs - top), "cosine")
    ramp_steps = schedule.warmup * steps_per_epoch
    factor = min(1.0, (step + 1) / ramp_steps) if ramp_steps > 0 else 1.0
    return factor * _decayed(epoch, epochs, lr, schedule)
