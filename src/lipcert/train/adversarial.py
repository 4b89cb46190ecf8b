"""Samples to train on that are moved to where they are classified worse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

__all__ = ["moved", "sample_by_sample"]

_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@contextmanager
def sample_by_sample(model: nn.Module) -> Iterator[None]:
    """Batch normalisation by its running statistics, which are left alone, so that no sample depends on another.

    >>> norm = nn.BatchNorm1d(2).train()
    >>> with sample_by_sample(norm):
    ...     _ = norm(torch.rand(3, 2))
    >>> int(norm.num_batches_tracked), norm.training
    (0, True)
    """
    layers = [m for m in model.modules() if isinstance(m, _BATCH_NORM) and m.training]
    for layer in layers:
        layer.training = False
    try:
        yield
    finally:
        for layer in layers:
            layer.training = True


def moved(logits: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, distance: float) -> Tensor:
    """Each sample ``distance`` away in ℓ2, along the gradient of its cross-entropy; beyond [0, 1] too, as radii reach.

    One step of the fast gradient method. A sample whose gradient is zero stays where it is, and none moves further.

    Args:
        logits: the network, of a batch (N, *shape); no sample's logits depend on another (:func:`sample_by_sample`).
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
    ends = torch.finfo(up.dtype)
    rows = up.flatten(1).clamp(ends.min, ends.max)
    # of what is classified with confidence the gradient is so small that its squares are no numbers
    rows = rows / rows.abs().amax(1, keepdim=True).clamp_min(ends.tiny)
    step: Tensor = normalize(rows, dim=1).view_as(up)
    return x + distance * step
