"""Losses on worst-case logits ``z_b + ε·L_yb``: Lipschitz-margin training and GloRo."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lipcert.bounds.pairs import pair_rows
from lipcert.errors import ShapeError
from lipcert.train.loss_inputs import check_inputs, check_parameter, own_label

__all__ = ["gloro_logits", "gloro_loss", "gloro_trades_loss", "lmt_loss"]


def lmt_loss(logits: Tensor, labels: Tensor, bound: Tensor, *, epsilon: float | Tensor) -> Tensor:
    """Lipschitz-margin training: cross-entropy of ``z_b + ε·L_yb`` (b ≠ y) and z_y.

    These are the worst logits in the ball of radius ε, bounded one by one. With a global bound the offset is
    ``√2·ε·L``, as published; with a pairwise one it is the loss that Hu et al. 2023 call EMMA.

    Args:
        logits: (N, C).
        labels: (N,) int64.
        bound: (), (C,) or (C, C), in logit units per unit of the raw input.
        epsilon: ε ≥ 0, in units of the raw input. 0 gives plain cross-entropy.

    Returns:
        A scalar.

    Raises:
        ShapeError: a shape, dtype or device that does not fit, or an empty batch.
        ConfigError: ε out of range.

    Source: Tsuzuku, Sato, Sugiyama 2018 (arXiv 1802.04034).

    >>> z, y = torch.tensor([[2.0, 1.0]]), torch.tensor([0])
    >>> round(lmt_loss(z, y, torch.tensor([1.0, 1.0]), epsilon=0.5).item(), 4)  # log 2: the margin is used up
    0.6931
    """
    epsilon = check_parameter("epsilon", epsilon)
    z, L = check_inputs(logits, labels, bound)
    return F.cross_entropy(z + epsilon * pair_rows(L, labels, z.shape[1]), labels)


def gloro_logits(logits: Tensor, bound: Tensor, epsilon: float | Tensor) -> Tensor:
    """The logits with one more, ⊥ ("not certified"): ``z_⊥ = max_{b≠j} (z_b + ε·L_jb)``, j = argmax z.

    The prediction is certified at ε exactly when z_j > z_⊥.

    Args:
        logits: (N, C).
        bound: (), (C,) or (C, C), in logit units per unit of the raw input.
        epsilon: ε ≥ 0, in units of the raw input.

    Returns:
        (N, C+1) in float32 or float64, ⊥ last.

    Raises:
        ShapeError: a shape, dtype or device that does not fit.
        ConfigError: ε out of range.

    Source: Leino, Wang, Fredrikson 2021 (arXiv 2102.08452).

    >>> gloro_logits(torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([1.0, 1.0, 4.0]), 0.5)
    tensor([[3.0000, 1.0000, 0.0000, 2.5000]])
    """
    epsilon = check_parameter("epsilon", epsilon)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < 2:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ShapeError(f"logits must be a tensor of shape (N, C) with C ≥ 2; got {got}")
    top = logits.argmax(dim=1)
    z, L = check_inputs(logits, top, bound, empty=True)
    rivals = (z + epsilon * pair_rows(L, top, z.shape[1])).masked_fill(own_label(top, z.shape[1]), -math.inf)
    return torch.cat([z, rivals.amax(dim=1, keepdim=True)], dim=1)


def gloro_loss(logits: Tensor, labels: Tensor, bound: Tensor, *, epsilon: float | Tensor) -> Tensor:
    """Cross-entropy of the C+1 logits of :func:`.gloro_logits`: wrong and uncertified both cost.

    Raises:
        ShapeError: a shape, dtype or device that does not fit, or an empty batch.
        ConfigError: ε out of range.

    Source: Leino, Wang, Fredrikson 2021 (arXiv 2102.08452).

    >>> z, y = torch.tensor([[2.0, 1.0]]), torch.tensor([0])
    >>> round(gloro_loss(z, y, torch.tensor([1.0, 1.0]), epsilon=0.0).item(), 4)  # log(1 + 2·exp(−1))
    0.5514
    """
    check_inputs(logits, labels, bound)
    return F.cross_entropy(gloro_logits(logits, bound, epsilon), labels)


def gloro_trades_loss(
    logits: Tensor, labels: Tensor, bound: Tensor, *, epsilon: float | Tensor, weight: float | Tensor
) -> Tensor:
    """``cross_entropy(z, y) + weight·mean KL(softmax(z), 0 ‖ softmax(z, z_⊥))``.

    The first term asks for accuracy, the second for certification. The two distributions share z, so that the
    logarithm of their ratio is the same for every class and the divergence is
    ``log Σ exp(z, z_⊥) − log Σ exp(z) = softplus(z_⊥ − log Σ exp(z))``: no 0·log 0 is met.

    Args:
        logits: (N, C).
        labels: (N,) int64.
        bound: (), (C,) or (C, C), in logit units per unit of the raw input.
        epsilon: ε ≥ 0, in units of the raw input.
        weight: λ ≥ 0, a pure number.

    Returns:
        A scalar.

    Raises:
        ShapeError: a shape, dtype or device that does not fit, or an empty batch.
        ConfigError: a parameter out of range.

    Source: Leino, Wang, Fredrikson 2021 (arXiv 2102.08452), after TRADES (Zhang et al. 2019).

    >>> z, y = torch.tensor([[2.0, 1.0]]), torch.tensor([0])
    >>> round(gloro_trades_loss(z, y, torch.tensor([1.0, 1.0]), epsilon=0.5, weight=1.0).item(), 4)
    0.862
    """
    weight = check_parameter("weight", weight)
    check_inputs(logits, labels, bound)
    extended = gloro_logits(logits, bound, epsilon)
    z, bottom = extended[:, :-1], extended[:, -1]
    divergence = -F.logsigmoid(torch.logsumexp(z, dim=1) - bottom)
    return F.cross_entropy(z, labels) + weight * divergence.mean()
