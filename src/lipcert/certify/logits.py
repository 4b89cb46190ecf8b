"""Logits of the real-arithmetic network: computed in float64, with a bound on what rounding did to them.

A radius compares differences of logits, and the difference of two large float32 numbers may be all rounding. So the
traced graph is evaluated in float64, where its stored weights are exact, and each logit comes with an error bound:
``γ_n`` times the same network with |W|, |b|, and ℓ·|z| + |φ(0)| for its activations (Higham, ch. 3), at the largest
input of the batch.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lipcert.graph import Graph
from lipcert.graph.capture import ordinary_mode
from lipcert.loop import LoopMap
from lipcert.norms.dense import path_error

__all__ = ["exact_logits"]


def exact_logits(graph: Graph, batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Float64 logits of the real-arithmetic network, and for each a bound on its error.

    Args:
        graph: the network.
        batches: of shape (n, *input_shape), in any floating-point dtype; their numbers are taken as exact.

    Returns:
        logits (N, C) and errors (N, C), both float64.

    Example:
        >>> import lipcert
        >>> net = torch.nn.Linear(2, 2).eval()
        >>> logits, errors = exact_logits(lipcert.trace(net, (2,)), [torch.rand(3, 2)])
        >>> logits.dtype, bool((errors < 1e-12).all())
        (torch.float64, True)
    """
    logits, errors = [], []
    # γ_n holds for sums of products in any order, but not for the FFT and Winograd convolutions of cuDNN.
    with ordinary_mode(), torch.no_grad(), torch.backends.cudnn.flags(enabled=False):
        resolved = graph.resolve(torch.float64)
        relative = path_error(LoopMap(graph, resolved))
        for batch in batches:
            x = batch.to(dtype=torch.float64, device=resolved.device, copy=True)
            if len(x):
                largest = x.abs().masked_fill(~torch.isfinite(x), 0).amax(0, keepdim=True)  # those end as NaN anyway
                sizes = graph.sizes(largest, resolved, per_rounding=relative)
            else:
                sizes = x.new_zeros((1, *graph.output_shape))
            found = graph.evaluate(x, resolved)
            logits.append(found)
            errors.append((relative * sizes).expand_as(found))
    return torch.cat(logits), torch.cat(errors)
