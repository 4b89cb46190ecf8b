"""What every loss checks before it computes, and plain cross-entropy.

The checks look at shapes, dtypes and devices. Values are looked at on the CPU only: on a GPU that would wait
for the device at every step.
"""

from __future__ import annotations

import math
from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor

from lipcert.bounds.pairs import check_bound, check_labels
from lipcert.errors import ConfigError, ShapeError

__all__ = ["check_inputs", "check_logits", "check_parameter", "cross_entropy", "own_label"]


@overload
def check_parameter(name: str, value: float, *, positive: bool = False, infinite: bool = False) -> float: ...
@overload
def check_parameter(
    name: str, value: float | Tensor, *, positive: bool = False, infinite: bool = False
) -> float | Tensor: ...
def check_parameter(
    name: str, value: float | Tensor, *, positive: bool = False, infinite: bool = False
) -> float | Tensor:
    """A loss parameter as a float: a finite number ≥ 0 (> 0 where ``positive``; or ∞ where ``infinite``).

    A tensor () on a GPU is taken as it is: a step that is recorded as a CUDA graph finds its numbers there, and to look
    at one would wait for the device.

    Raises:
        ConfigError: otherwise.

    >>> check_parameter("epsilon", 1)
    1.0
    """
    if isinstance(value, Tensor) and value.ndim == 0 and not value.is_cpu:
        return value
    number = not isinstance(value, bool) and isinstance(value, (int, float))
    least = "above 0" if positive else "of at least 0"
    if not number or not (0 < value <= math.inf or (value == 0 and not positive)):
        raise ConfigError(f"{name} must be a number {least}; got {value!r}")
    if value == math.inf and not infinite:
        raise ConfigError(f"{name} must be finite; got {value!r}")
    return float(value)


def check_logits(logits: Tensor, labels: Tensor, *, empty: bool = False) -> Tensor:
    """The logits in float32 or float64, after the checks that concern them and the labels.

    Raises:
        ShapeError: see :func:`check_inputs`.
    """
    if not isinstance(logits, Tensor) or logits.ndim != 2 or not logits.is_floating_point():
        got = f"shape {tuple(logits.shape)} of {logits.dtype}" if isinstance(logits, Tensor) else repr(logits)
        raise ShapeError(f"logits must be a real floating-point tensor of shape (N, C); got {got}")
    check_labels(labels)
    n, classes = logits.shape
    if labels.shape[0] != n:
        raise ShapeError(f"there are {n} rows of logits but {labels.shape[0]} labels")
    if n == 0 and not empty:
        raise ShapeError("the batch is empty: a mean over no samples has no value")
    if labels.device != logits.device:
        raise ShapeError(f"labels are on {labels.device}, logits on {logits.device}: move one to the other")
    if labels.is_cpu and n and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ShapeError(
            f"labels must lie in 0 … {classes - 1} for {classes} logits; got {int(labels.min())} … {int(labels.max())}"
        )
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def check_inputs(logits: Tensor, labels: Tensor, bound: Tensor, *, empty: bool = False) -> tuple[Tensor, Tensor]:
    """The logits and the bound in one dtype (float32 or float64), after all checks.

    Raises:
        ShapeError: a shape, dtype or device that does not fit, labels out of range (on the CPU), or an empty
            batch unless ``empty``.
    """
    z = check_logits(logits, labels, empty=empty)
    check_bound(bound, logits.shape[1])
    if bound.device != logits.device:
        raise ShapeError(f"the bound is on {bound.device}, logits on {logits.device}: move one to the other")
    dtype = torch.promote_types(z.dtype, bound.dtype)
    return z.to(dtype), bound.to(dtype)


def own_label(labels: Tensor, classes: int) -> Tensor:
    """(N, C), True at each sample's own label."""
    return labels[:, None] == torch.arange(classes, device=labels.device)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy ``−(1/N)·Σ log softmax(z)_y``, computed in float32 at least.

    Raises:
        ShapeError: logits or labels of another shape or dtype, or an empty batch.

    >>> round(cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3])).item(), 4)  # log 4
    1.3863
    """
    return F.cross_entropy(check_logits(logits, labels), labels)
