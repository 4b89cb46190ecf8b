"""Affine layers with weights: linear, convolutions of every kind, BatchNorm in eval, matrix products."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lipcert.graph.builder import Builder, Call, Value, rule
from lipcert.graph.forms import Convolution
from lipcert.graph.types import Live


def _channel_view(value: Tensor, ndim: int) -> Tensor:
    """A value for each channel (dimension 1), shaped to broadcast against a batch of ``ndim`` dimensions."""
    return value.reshape(1, -1, *(1,) * (ndim - 2))


def _turned(shape: Sequence[int]) -> tuple[int, int]:
    """(terms, terms of the adjoint) of a product with a matrix of shape (out, in), or a vector's."""
    return (int(shape[-1]), int(shape[0]) if len(shape) > 1 else 1)


def _matrix(weight: Any) -> Convolution | None:
    """The form of a product with a constant matrix, on either side of it."""
    return Convolution() if weight.meta["val"].ndim == 2 else None


def _bias(call: Call, ndim: int, channels_first: bool) -> Callable[[Live], Tensor] | None:
    bias = call.get("bias")
    if bias is None:
        return None
    return lambda live: _channel_view(live(bias), ndim) if channels_first else live(bias)


@rule("linear")
def linear(b: Builder, call: Call) -> Value:
    """``y = W x + b`` along the last dimension."""
    source = b.signal(call, "input")
    return b.affine(
        call,
        [source],
        lambda xs, cs: torch.nn.functional.linear(xs[0], torch.as_tensor(cs[0])),
        coefficients=[lambda live: live(call["weight"])],
        offset=_bias(call, len(b.nodes[source].shape) + 1, channels_first=False),
        terms=_turned(call["weight"].meta["val"].shape),
        roundings=_turned(call["weight"].meta["val"].shape)[0] + 1,
        form=_matrix(call["weight"]),
        contracts=(len(b.nodes[source].shape) - 1, 1) if call["weight"].meta["val"].ndim == 2 else None,
    )


@rule("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution")
def convolution(b: Builder, call: Call) -> Value:
    """A convolution or its transpose: torch's own operation without the bias."""
    source = b.signal(call, "input")
    weight_dims = call["weight"].meta["val"].ndim
    if len(b.nodes[source].shape) + 1 != weight_dims:
        raise call.refuse("its input has no batch dimension of its own.", "Give it (N, C, ...) input.")
    transposed = call.get("transposed", "transpose" in call.name)
    groups, (first, second, *kernel) = call.get("groups", 1), call["weight"].meta["val"].shape
    taps = math.prod(int(n) for n in kernel)  # an entry meets each tap of the kernel once at most
    inside, across = int(second) * taps, int(first) // groups * taps
    rest: dict[str, Any] = {k: v for k, v in call.arguments.items() if k not in ("input", "weight", "bias")}
    return b.affine(
        call,
        [source],
        lambda xs, cs: call.target(input=xs[0], weight=cs[0], bias=None, **rest),
        coefficients=[lambda live: live(call["weight"])],
        offset=_bias(call, weight_dims, channels_first=True),
        terms=(across, inside) if transposed else (inside, across),
        roundings=(across if transposed else inside) + 1,
        form=_form(b, call, source, transposed, [int(k) for k in kernel]),
        contracts=None if groups != 1 else (0, 0 if transposed else 1),
    )


def _form(b: Builder, call: Call, source: int, transposed: bool, kernel: Sequence[int]) -> Convolution:
    """What the norm of a convolution depends on beside its weights."""

    def each(name: str) -> tuple[int, ...]:
        given = list(call[name]) if isinstance(call[name], (list, tuple)) else [call[name]]
        return tuple(int(n) for n in given * (len(kernel) if len(given) == 1 else 1))

    reads, writes = b.nodes[source].shape[1:], b.shape_of(call)[1:]
    if transposed:
        reads, writes = writes, reads
    dilation, named = each("dilation"), call["padding"]
    if isinstance(named, str):  # "same": what does not halve is behind
        padding = tuple(d * (k - 1) // 2 if named == "same" else 0 for d, k in zip(dilation, kernel, strict=True))
    else:
        padding = each("padding")
    groups = int(call.get("groups", 1))
    return Convolution(reads, writes, each("stride"), padding, dilation, groups, tuple(kernel))


@rule("batch_norm")
def batch_norm(b: Builder, call: Call) -> Value:
    """BatchNorm with stored statistics: ``y = s·(x − μ) + b`` with ``s = w/√(σ² + eps)`` for each channel."""
    source = b.signal(call, "input")
    if call["training"] or call["running_mean"] is None or call["running_var"] is None:
        raise call.refuse(
            "it uses the statistics of the batch, so one sample changes the outputs of the others.",
            "Use track_running_stats=True and eval mode.",
        )
    ndim = len(b.nodes[source].shape) + 1

    def scale(live: Live) -> Tensor:
        scale = torch.rsqrt(live(call["running_var"]) + call["eps"])
        return _channel_view(scale if call["weight"] is None else scale * live(call["weight"]), ndim)

    def offset(live: Live) -> Tensor:
        shift = -scale(live) * _channel_view(live(call["running_mean"]), ndim)
        return shift if call["bias"] is None else shift + _channel_view(live(call["bias"]), ndim)

    def offset_size(live: Live) -> Tensor:
        shift = (scale(live) * _channel_view(live(call["running_mean"]), ndim)).abs()
        return shift if call["bias"] is None else shift + _channel_view(live(call["bias"]), ndim).abs()

    return b.affine(
        call,
        [source],
        lambda xs, cs: xs[0] * cs[0],
        coefficients=[scale],
        offset=offset,
        terms=(1, 1),
        roundings=16,  # five make the scale, and it may be multiplied by x − μ or by x and by μ
        offset_size=offset_size,
        amplifies=lambda live: torch.rsqrt(live(call["running_var"]) + call["eps"]),
    )


@rule("matmul", "mm")
def matmul(b: Builder, call: Call) -> Value:
    """A product of a signal with a constant matrix on either side."""
    right = call.get("other", call.get("mat2"))
    x_first = b.is_signal(call["self"])
    if x_first and b.is_signal(right):
        raise call.refuse(
            "it multiplies two signals, which has no global Lipschitz constant.",
            "Dot-product attention cannot be bounded; use fixed mixing weights.",
        )
    matrix = right if x_first else call["self"]
    source = b.signal(call, "self" if x_first else ("other" if "other" in call.arguments else "mat2"))
    rank, dims = len(b.nodes[source].shape) + 1, matrix.meta["val"].ndim
    if dims >= rank and not (x_first and dims == 2 and rank == 2):
        b.check_constant(call, matrix, rank)
    if not x_first and rank < 3:
        raise call.refuse("it contracts the batch dimension.", "Write x @ W.T instead of W @ x.")
    sizes = [int(n) for n in matrix.meta["val"].shape]
    summed = sizes[-2] if x_first and dims > 1 else sizes[-1]
    if x_first:
        return b.affine(
            call,
            [source],
            lambda xs, cs: torch.matmul(xs[0], cs[0]),  # type: ignore[arg-type]
            coefficients=[lambda live: live(matrix)],
            terms=(sizes[0], sizes[1]) if dims == 2 else None,
            roundings=summed,
            form=_matrix(matrix),
        )
    return b.affine(
        call,
        [source],
        lambda xs, cs: torch.matmul(cs[0], xs[0]),  # type: ignore[arg-type]
        coefficients=[lambda live: live(matrix)],
        terms=(sizes[1], sizes[0]) if dims == 2 else None,
        roundings=summed,
        form=_matrix(matrix),
    )


@rule("addmm")
def addmm(b: Builder, call: Call) -> Value:
    """``β·bias + α·x W`` with a constant bias and matrix."""
    source = b.signal(call, "mat1")
    b.check_constant(call, call["self"], 2)
    return b.affine(
        call,
        [source],
        lambda xs, cs: xs[0] @ cs[0],
        coefficients=[lambda live: live(call["mat2"]) * call["alpha"]],
        offset=lambda live: live(call["self"]) * call["beta"],
        terms=_turned(call["mat2"].meta["val"].shape[::-1]),
        # where α is not 1 it may be multiplied in before or after the sum
        roundings=int(call["mat2"].meta["val"].shape[0]) + 2 if call["alpha"] == call["beta"] == 1 else None,
        form=_matrix(call["mat2"]),
    )


@rule("einsum")
def einsum(b: Builder, call: Call) -> Value:
    """An Einstein sum of one signal with constants, its batch letter kept first and used nowhere else."""
    equation, operands = call["equation"].replace(" ", ""), list(call["tensors"])
    signals = [i for i, operand in enumerate(operands) if b.is_signal(operand)]
    if len(signals) != 1:
        raise call.refuse("it multiplies two signals, which has no global Lipschitz constant.")
    if "->" not in equation or "." in equation:
        raise call.refuse("only explicit equations without '...' are read.", "Write 'bi,oi->bo'.")
    left, result = equation.split("->")
    terms = left.split(",")
    which, batch = signals[0], terms[signals[0]][0]
    if result[:1] != batch or any(batch in t for i, t in enumerate(terms) if i != which):
        raise call.refuse("the batch letter must come first in the signal and the result, and only there.")
    if terms[which].count(batch) != 1:
        raise call.refuse("it takes a diagonal across the batch.")
    source = b.values[operands[which]]
    assert isinstance(source, int)
    constants = [operand for i, operand in enumerate(operands) if i != which]

    def apply(xs: Any, cs: Any) -> Tensor:
        return torch.einsum(equation, *cs[:which], xs[0], *cs[which:])

    getters = [lambda live, c=c: live(c) for c in constants]
    return b.affine(call, [source], apply, coefficients=getters)
