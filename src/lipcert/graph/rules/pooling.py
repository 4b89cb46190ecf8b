"""Pooling and sorting: averages are linear, maxima and sorts are Lipschitz vector maps."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lipcert.graph.builder import Builder, Call, Value, rule
from lipcert.graph.types import Live


@rule("avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
      "adaptive_avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d")  # fmt: skip
def average_pool(b: Builder, call: Call) -> Value:
    """Average pooling is linear; torch's own operation is its map."""
    source = b.signal(call, "self")
    dims = int(call.name.rstrip("d")[-1])
    window = None if "adaptive" in call.name else math.prod(_spread(call["kernel_size"], dims)) + 1
    terms = None if window is None else (window, window)
    sides = zip(b.nodes[source].shape[-dims:], b.shape_of(call)[-dims:], strict=True)
    roundings = window or math.prod(-(-n // m) + 1 for n, m in sides) + 1
    divisor = call.get("divisor_override")
    if divisor is None:
        return b.affine(call, [source], lambda xs, cs: call.run(self=xs[0]), terms=terms, roundings=roundings)
    return b.affine(  # it may be negative, and signs belong into coefficients
        call,
        [source],
        lambda xs, cs: call.run(self=xs[0], divisor_override=1) * cs[0],
        coefficients=[lambda live: 1.0 / divisor],
        terms=terms,
        roundings=roundings + 1,
    )


def _times_seen(size: int, out: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """In how many windows of a one-dimensional pooling the busiest entry is."""
    seen = [0] * size
    for o in range(out):
        for k in range(kernel):
            i = o * stride - padding + k * dilation
            if 0 <= i < size:
                seen[i] += 1
    return max(seen)


def _spread(value: Any, dims: int) -> list[int]:
    listed = list(value) if isinstance(value, (list, tuple)) else [value]
    return listed * dims if len(listed) == 1 else listed


@rule("max_pool1d", "max_pool2d", "max_pool3d", "max_pool1d_with_indices", "max_pool2d_with_indices",
      "max_pool3d_with_indices")  # fmt: skip
def max_pool(b: Builder, call: Call) -> Value:
    """Max pooling: ``g = √(windows that the busiest entry is in)``, 1 where windows do not overlap.

    ``Σ_w |max_w Δ|² ≤ Σ_w Σ_{i∈w} Δ_i² ≤ g²‖Δ‖²``; the count is a product over the dimensions.
    """
    source = b.signal(call, "self")
    dims = int(call.name[8])
    several = call.name.endswith("with_indices")
    shape = b.shape_of(call, call.node.meta["val"][0] if several else None)
    if len(b.nodes[source].shape) != dims + 1:
        raise call.refuse("its input has no batch dimension of its own.", "Give it (N, C, ...) input.")
    kernel = _spread(call["kernel_size"], dims)
    stride = _spread(call["stride"] or kernel, dims)
    padding, dilation = _spread(call["padding"], dims), _spread(call["dilation"], dims)
    count = math.prod(
        _times_seen(*sizes)
        for sizes in zip(b.nodes[source].shape[-dims:], shape[-dims:], kernel, stride, padding, dilation, strict=True)
    )

    def function(z: Tensor, live: Live) -> Tensor:
        out = call.run(self=z)
        return out[0] if several else out  # type: ignore[no-any-return]

    index = b.vector_map(call, source, math.sqrt(count), function, shape, apart=(0,))
    return (index,) if several else index


@rule("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")
def adaptive_max_pool(b: Builder, call: Call) -> Value:
    """Adaptive max pooling: windows ``[⌊i·n/m⌋, ⌈(i+1)·n/m⌉)``, which may overlap by an entry."""
    source = b.signal(call, "self")
    dims = int(call.name[-2])
    shape = b.shape_of(call, call.node.meta["val"][0])
    if len(b.nodes[source].shape) != dims + 1:
        raise call.refuse("its input has no batch dimension of its own.", "Give it (N, C, ...) input.")
    count = 1
    for n, m in zip(b.nodes[source].shape[-dims:], shape[-dims:], strict=True):
        seen = [0] * n
        for i in range(m):
            for j in range(i * n // m, -(-(i + 1) * n // m)):
                seen[j] += 1
        count *= max(seen)
    return (b.vector_map(call, source, math.sqrt(count), lambda z, live: call.run(self=z)[0], shape, apart=(0,)),)


@rule("sort", "topk")
def sort(b: Builder, call: Call) -> Value:
    """Sorting along a dimension is 1-Lipschitz; so is keeping the first of the sorted. Indices are refused."""
    source = b.signal(call, "self")
    if not call.get("sorted", True):
        raise call.refuse("the order of what it returns is not fixed, so it jumps.", "Use sorted=True.")
    along = call.get("dim", -1) % (len(b.nodes[source].shape) + 1)
    if along == 0:
        raise call.refuse("it sorts along the batch.")
    shape = b.shape_of(call, call.node.meta["val"][0])
    apart = tuple(i for i in range(len(shape)) if i != along - 1)
    return (b.vector_map(call, source, 1.0, lambda z, live: call.run(self=z)[0], shape, apart=apart),)


@rule("amax", "amin")
def extreme(b: Builder, call: Call) -> Value:
    """The largest or smallest entry along dimensions: 1-Lipschitz."""
    source = b.signal(call, "self")
    dims = list(call["dim"])
    if not dims or any(d % (len(b.nodes[source].shape) + 1) == 0 for d in dims):
        raise call.refuse("it reduces over the batch.")
    return b.vector_map(call, source, 1.0, lambda z, live: call.run(self=z))


@rule("max", "min")
def extreme_with_index(b: Builder, call: Call) -> Value:
    """``x.max(dim)``: the values are 1-Lipschitz; ``max(x, y)`` of two tensors is :func:`pairwise_extreme`."""
    if "other" in call.arguments:
        return pairwise_extreme(b, call)
    source = b.signal(call, "self")
    if "dim" not in call.arguments or call["dim"] % (len(b.nodes[source].shape) + 1) == 0:
        raise call.refuse("it reduces over the batch.", "Name a dimension other than the first.")
    shape = b.shape_of(call, call.node.meta["val"][0])
    return (b.vector_map(call, source, 1.0, lambda z, live: call.run(self=z)[0], shape),)


@rule("maximum", "minimum")
def pairwise_extreme(b: Builder, call: Call) -> Value:
    """The larger or smaller of two signals, entry by entry: a part of sorting the pair, which is 1-Lipschitz.

    ``maximum(a, b)`` and ``minimum(a, b)`` of the same signals share the sorted pair, so MaxMin written with them
    is 1-Lipschitz as a whole.
    """
    operands = [call["self"], call["other"]]
    shape = b.shape_of(call)
    if not all(b.is_signal(v) for v in operands):
        raise call.refuse("one of its operands is a constant tensor.", "Use torch.clamp with a number.")
    sources = sorted(i for v in operands if isinstance(i := b.values[v], int))
    for index in sources:
        b.check_aligned(call, index, len(shape) + 1)
    pair = Call(call.node)
    pair.operation, pair.arguments = "maximum/minimum", {}
    stacked = b.affine(
        pair,
        sources,
        lambda xs, cs: torch.stack([x.expand(x.shape[0], *shape) for x in xs], dim=1),
        shape=(2, *shape),
        part="stack",
        roundings=0,
    )
    both = b.vector_map(
        pair, stacked, 1.0, lambda z, live: z.sort(dim=1).values, (2, *shape), apart=tuple(range(1, len(shape) + 1))
    )
    which = 1 if call.name in ("maximum", "max") else 0
    return b.affine(pair, [both], lambda xs, cs: xs[0].select(1, which), shape=shape, part=which, roundings=0)
