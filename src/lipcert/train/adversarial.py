"""Samples to train on that are moved to where they are classified worse."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

__all__ = ["moved"]


def moved(logits: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, distance: float) -> Tensor:
    """Each sample ``distance`` away in ℓ2, along the gradient of its cross-entropy; beyond [0, 1] too, as radii reach.

    One step of the fast gradient method. A sample whose gradient is zero stays where it is, and none moves further.

    Args:
        logits: the network, of a batch (N, *shape); no sample's logits depend on another sample.
        x: (N, *shape), in pixel units.
        y: (N,) labels.
        distance: in pixel units.

    Returns:
        (N, *shape), without a gradient.

    >>> x, y = torch.tensor([[0.5, 0.5]]), torch.tensor([0])
    >>> moved(lambda x: 1e-3 * x, x, y, 0.1).sub(x).div(0.1).round(decimals=3)  # the other logit is to grow
    tensor([[-0.7070,  0.7070]])
    """
    at = x.detach().requires_grad_()
    (up,) = torch.autograd.grad(cross_entropy(logits(at), y, reduction="sum"), at)
    rows = up.flatten(1)
    # of what is classified with confidence the gradient is so small that its squares are no numbers
    rows = rows / rows.abs().amax(1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    step: Tensor = normalize(rows, dim=1).view_as(up)
    return x + distance * step
