"""When a run cannot go on, and what to do then."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn

from lipcert.errors import TrainingError

__all__ = ["advice", "check_finite", "is_stuck"]

# A run is given up when this many evaluations in a row found one predicted class, after a third of its epochs and at
# least so many steps: before, a network under a strong robust term may just be slow to start.
_PATIENCE, _SLOW_START = 2, 500
_DEAD = 1e-9  # logits that change less than this over a whole unit of input do not depend on it


def advice(checkpoint: Path) -> str:
    """What to change, and where the state from before is."""
    before = f" The checkpoint {checkpoint} is from before." if checkpoint.exists() else ""
    return (
        "Train again with a lower optimizer.lr or loss.weight, with optimizer.clip_norm (1 is a good start), or "
        f"with a loss.weight that rises from 0 over the first epochs.{before}"
    )


def check_finite(loss: float, module: nn.Module | None, epoch: int, checkpoint: Path) -> None:
    """Refuse a loss, or the state of a module, that is not finite.

    Raises:
        TrainingError: with what to change.
    """
    wrong = "" if math.isfinite(loss) else "the loss is"
    if not wrong and module is not None:
        values = [t for t in module.state_dict().values() if t.is_floating_point()]
        wrong = "" if all(bool(torch.isfinite(t).all()) for t in values) else "the weights are"
    if wrong:
        raise TrainingError(f"{wrong} not finite in epoch {epoch}. {advice(checkpoint)}")


def is_stuck(flat: int, bound: float, *, epoch: int, epochs: int, steps: int) -> bool:
    """Whether ``flat`` evaluations in a row with one predicted class, at a bound, are reason to give up.

    >>> is_stuck(2, 0.1, epoch=40, epochs=60, steps=880), is_stuck(5, 0.1, epoch=5, epochs=60, steps=110)
    (True, False)
    """
    late = flat >= _PATIENCE and steps >= _SLOW_START and epochs > epoch >= epochs / 3
    return late or (flat > 0 and bound < _DEAD)
