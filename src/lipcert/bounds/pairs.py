"""From a bound in any scope (global, per class, pairwise) to a bound for each pair of classes.

A Lipschitz bound of the logits comes as one number, one for each class, or one for each pair. What a radius
needs is always the same: L_ab with |(y_a − y_b)(x) − (y_a − y_b)(x')| ≤ L_ab·‖x − x'‖₂.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipcert.errors import ShapeError

__all__ = ["check_bound", "check_labels", "pair_bounds", "pair_rows"]


def check_bound(bound: Tensor, num_classes: int) -> None:
    """Refuse what is not a Lipschitz bound of ``num_classes`` logits, by shape and dtype (never by value).

    Raises:
        ShapeError: not a real floating-point tensor of shape (), (C,) or (C, C), or fewer than two classes.

    >>> check_bound(torch.ones(3), 4)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    lipcert.errors.ShapeError: the bound has shape (3,) but there are 4 classes: give a scalar (global), ...
    """
    if num_classes < 2:
        raise ShapeError(f"a pair of classes needs at least two logits; got {num_classes}")
    if not isinstance(bound, Tensor) or not bound.is_floating_point():
        raise ShapeError(f"the bound must be a real floating-point tensor; got {_describe(bound)}")
    if tuple(bound.shape) not in ((), (num_classes,), (num_classes, num_classes)):
        raise ShapeError(
            f"the bound has shape {tuple(bound.shape)} but there are {num_classes} classes: give a scalar "
            f"(global), ({num_classes},) (per class) or ({num_classes}, {num_classes}) (pairwise)"
        )


def check_labels(labels: Tensor) -> None:
    """Refuse what is not a vector of int64 labels. Looks at shape and dtype, not at values.

    Raises:
        ShapeError: not an int64 tensor of shape (N,).

    >>> check_labels(torch.tensor([0, 2, 1]))
    """
    if not isinstance(labels, Tensor) or labels.ndim != 1 or labels.dtype != torch.int64:
        raise ShapeError(f"labels must be a tensor of shape (N,) of torch.int64; got {_describe(labels)}")


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"shape {tuple(value.shape)} of {value.dtype}"
    return f"a {type(value).__name__}"


def _sqrt2(bound: Tensor, upward: bool) -> float | Tensor:
    if not upward:
        return math.sqrt(2.0)
    # The nearest number to √2 may lie below it (in float32 it does): the next one never does.
    nearest = torch.tensor(math.sqrt(2.0), dtype=bound.dtype, device=bound.device)
    return torch.nextafter(nearest, torch.full_like(nearest, math.inf))


def _up(value: Tensor, upward: bool) -> Tensor:
    """One step up, past the rounding of the one operation that made ``value``; an exact 0 stays 0."""
    if not upward:
        return value
    return torch.where(value > 0, torch.nextafter(value, torch.full_like(value, math.inf)), value)


def pair_bounds(bound: Tensor, num_classes: int, *, upward: bool = False) -> Tensor:
    """The matrix L_ab of bounds for the differences y_a − y_b, from a bound in any scope.

    - global L of the map x ↦ y: ``L_ab = √2·L``, since ‖e_a − e_b‖₂ = √2;
    - per class L_a of x ↦ y_a: ``L_ab = L_a + L_b``;
    - pairwise: itself. It must be symmetric; that is not checked.

    Args:
        bound: shape (), (C,) or (C, C), in output units per unit of the raw input.
        num_classes: C ≥ 2.
        upward: round the √2 and the sum up, as a certificate must. The result then carries no gradient.

    Returns:
        (C, C), zero on the diagonal whatever ``bound`` has there. Differentiable where ``upward`` is False.

    Raises:
        ShapeError: see :func:`check_bound`.

    >>> pair_bounds(torch.tensor([1.0, 2.0, 4.0]), 3)
    tensor([[0., 3., 5.],
            [3., 0., 6.],
            [5., 6., 0.]])
    """
    check_bound(bound, num_classes)
    if upward:
        bound = bound.detach()
    if bound.ndim == 0:
        full = _up(bound * _sqrt2(bound, upward), upward).expand(num_classes, num_classes)
    elif bound.ndim == 1:
        full = _up(bound[:, None] + bound, upward)
    else:
        full = bound
    own = torch.eye(num_classes, dtype=torch.bool, device=bound.device)
    return full.masked_fill(own, 0.0)


def pair_rows(bound: Tensor, labels: Tensor, num_classes: int, *, upward: bool = False) -> Tensor:
    """Row n is ``L_{y_n, b}`` over the classes b: :func:`pair_bounds` at the label of each sample.

    Args:
        bound: as in :func:`pair_bounds`.
        labels: (N,) int64 on the bound's device, each in 0 … C−1.
        num_classes: C ≥ 2.
        upward: as in :func:`pair_bounds`.

    Returns:
        (N, C), zero at each sample's own label.

    Raises:
        ShapeError: a bound or labels of another shape or dtype.

    >>> pair_rows(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([2, 0]), 3)
    tensor([[5., 6., 0.],
            [0., 3., 5.]])
    """
    check_labels(labels)
    # C×C numbers at most: cheaper to form once than to repeat the arithmetic for each sample.
    return pair_bounds(bound, num_classes, upward=upward)[labels]
