"""Logits of the real-arithmetic network: computed in float64, with a bound on what rounding did to them.

A radius compares differences of logits, and the difference of two large float32 numbers may be all rounding. So the
traced graph is evaluated in float64, where its stored weights are exact, and each logit comes with an error bound:
``γ_n`` times the same network with |W|, |b|, and ℓ·|z| + |φ(0)| for its activations (Higham, ch. 3), at the largest
input of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from lipcert.graph import Graph
from lipcert.graph.capture import ordinary_mode
from lipcert.graph.types import Node
from lipcert.loop import LoopMap
from lipcert.norms.errors import path_error

__all__ = ["alike", "enclosed", "exact_logits"]

_LARGER = 16.0

Watch: TypeAlias = Callable[[Node, Sequence[Tensor], Tensor], None]


def exact_logits(graph: Graph, batches: Iterable[Tensor], *, each: bool = False) -> tuple[Tensor, Tensor]:
    """Float64 logits of the real-arithmetic network, and for each a bound on its error.

    Args:
        graph: the network.
        batches: of shape (n, *input_shape), in any floating-point dtype; their numbers are taken as exact.
        each: bound the errors of each sample by its own input, which takes twice as long, and is never more than in a
            batch of any others.

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
        loop = LoopMap(graph, graph.resolve(torch.float64))
        relative = path_error(loop)
        for batch in alike(batches):
            found, error = enclosed(loop, batch, relative, each=each)
            logits.append(found)
            errors.append(error)
    return torch.cat(logits), torch.cat(errors)


def enclosed(
    loop: LoopMap, batch: Tensor, relative: float, watch: Watch | None = None, *, each: bool = False
) -> tuple[Tensor, Tensor]:
    """Logits of one batch, and bounds on their errors.

    The logits of a sample that is not finite are NaN: a ReLU may hide an infinity, but nothing is certified by that.
    """
    x = batch.to(dtype=torch.float64, device=loop.resolved.device, copy=True)
    finite = torch.isfinite(x)
    x = torch.where(finite, x, torch.zeros_like(x))
    found = loop.graph.evaluate(x, loop.resolved, watch)
    largest = x.abs()
    if not each:
        largest = largest.amax(0, keepdim=True) if len(x) else x.new_zeros((1, *x.shape[1:]))
    sizes = loop.graph.sizes(largest, loop.resolved, per_rounding=relative)[loop.graph.output]
    whole = finite.flatten(1).all(1).reshape(-1, *(1,) * (found.ndim - 1))
    return found.masked_fill(~whole, float("nan")), (relative * sizes).expand_as(found)


def alike(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """The same samples in batches in which none is far larger than the others.

    Errors are bounded by the largest input of a batch, which must not spoil them for the rest.
    """
    for batch in batches:
        if not len(batch):
            yield batch
            continue
        size = batch.detach().abs().flatten(1).amax(1).double().nan_to_num(0.0, 0.0, 0.0)
        limit = _LARGER * max(float(size.median()), float(size.min()), 1e-300)
        start = 0
        for i in torch.nonzero(size > limit).flatten().tolist():
            yield from (piece for piece in (batch[start:i], batch[i : i + 1]) if len(piece))
            start = i + 1
        if start < len(batch):
            yield batch[start:]
