"""Layers with weights, and pooling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lipcert.exchange.operators.registry import Attributes, Result, operator, refuse


@operator("Gemm")
def _gemm(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if a.get("transA"):
        raise refuse("Gemm with transA")
    weight = weight if a.get("transB") else weight.T
    alpha, beta = a.get("alpha", 1.0), a.get("beta", 1.0)
    weight = weight if alpha == 1 else alpha * weight
    bias = bias if bias is None or beta == 1 else beta * bias
    if bias is not None and bias.shape != weight.shape[:1]:
        return F.linear(x, weight) + bias
    return F.linear(x, weight, bias)


@operator("MatMul")
def _matmul(_: Attributes, x: Tensor, y: Tensor) -> Tensor:
    return torch.matmul(x, y)


def _padded(a: Attributes, x: Tensor, dims: int, kernel: Sequence[int], value: float = 0.0) -> tuple[Tensor, list[int]]:
    """The input, and the symmetric padding that is left for the operation itself."""
    mode = a.get("auto_pad", "NOTSET")
    strides, dilations = a.get("strides", [1] * dims), a.get("dilations", [1] * dims)
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        pads = [[], []]  # type: ignore[var-annotated]
        for i in range(dims):
            size = x.shape[2 + i]
            wanted = (-(-size // strides[i]) - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1 - size
            less = max(wanted, 0) // 2
            more = max(wanted, 0) - less
            pads[0].append(less if mode == "SAME_UPPER" else more)
            pads[1].append(more if mode == "SAME_UPPER" else less)
        front, back = pads
    else:
        given = a.get("pads", [0] * (2 * dims)) if mode == "NOTSET" else [0] * (2 * dims)
        front, back = list(given[:dims]), list(given[dims:])
    if front == back and min(front, default=0) >= 0:
        return x, front
    amounts = [n for pair in zip(reversed(front), reversed(back), strict=True) for n in pair]
    return F.pad(x, amounts, value=value), [0] * dims


@operator("Conv")
def _conv(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Result:
    dims = weight.ndim - 2
    function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[dims]
    x, padding = _padded(a, x, dims, weight.shape[2:])
    return function(
        x,
        weight,
        bias,
        stride=tuple(a.get("strides", [1] * dims)),
        padding=tuple(padding),
        dilation=tuple(a.get("dilations", [1] * dims)),
        groups=a.get("group", 1),
    )


@operator("ConvTranspose")
def _conv_transpose(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Result:
    dims = weight.ndim - 2
    pads = a.get("pads", [0] * (2 * dims))
    if a.get("auto_pad", "NOTSET") != "NOTSET" or a.get("output_shape") or list(pads[:dims]) != list(pads[dims:]):
        raise refuse("ConvTranspose with auto_pad, output_shape or padding that differs between the two ends")
    function: Any = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[dims]
    return function(
        x,
        weight,
        bias,
        stride=tuple(a.get("strides", [1] * dims)),
        padding=tuple(pads[:dims]),
        output_padding=tuple(a.get("output_padding", [0] * dims)),
        groups=a.get("group", 1),
        dilation=tuple(a.get("dilations", [1] * dims)),
    )


@operator("BatchNormalization")
def _batch_norm(a: Attributes, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    if a.get("training_mode"):
        raise refuse("BatchNormalization in training mode")
    return F.batch_norm(x, mean, var, scale, bias, training=False, eps=a.get("epsilon", 1e-5))


@operator("MaxPool")
def _max_pool(a: Attributes, x: Tensor) -> Result:
    kernel = a["kernel_shape"]
    dims = len(kernel)
    x, padding = _padded(a, x, dims, kernel, -math.inf)
    function: Any = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[dims]
    strides, dilations = tuple(a.get("strides", [1] * dims)), tuple(a.get("dilations", [1] * dims))
    return function(x, tuple(kernel), strides, tuple(padding), dilations, bool(a.get("ceil_mode", 0)))


@operator("AveragePool")
def _average_pool(a: Attributes, x: Tensor) -> Result:
    kernel, counted = a["kernel_shape"], bool(a.get("count_include_pad", 0))
    dims = len(kernel)
    if any(d != 1 for d in a.get("dilations", [1] * dims)):
        raise refuse("AveragePool with dilations")
    padded, padding = _padded(a, x, dims, kernel)
    if padded is not x and not counted:
        raise refuse("AveragePool whose padding differs between the two ends and is not counted")
    function: Any = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[dims]
    strides = tuple(a.get("strides", [1] * dims))
    return function(padded, tuple(kernel), strides, tuple(padding), bool(a.get("ceil_mode", 0)), counted)


@operator("GlobalAveragePool")
def _global_average_pool(_: Attributes, x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


@operator("GlobalMaxPool")
def _global_max_pool(_: Attributes, x: Tensor) -> Tensor:
    return x.amax(tuple(range(2, x.ndim)), keepdim=True)
