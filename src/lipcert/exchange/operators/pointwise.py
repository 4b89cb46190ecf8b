"""Arithmetic, reductions and activations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lipcert.exchange.operators.registry import (
    OPERATORS,
    Attributes,
    Operator,
    Result,
    Sizes,
    numbers,
    operator,
    refuse,
)


def _elementwise(function: Callable[..., Any], numeric: Callable[[Any, Any], Any]) -> Operator:
    def apply(_: Attributes, *inputs: Any) -> Result:
        if any(isinstance(v, Sizes) for v in inputs):  # sizes are computed with
            left, right = (numbers(v) for v in inputs)
            size = max(len(left), len(right))
            left, right = (v * size if len(v) == 1 else v for v in (left, right))
            return Sizes([numeric(u, v) for u, v in zip(left, right, strict=True)])
        result = inputs[0]
        for other in inputs[1:]:
            result = function(result, other)
        return result

    return apply


OPERATORS["Add"] = OPERATORS["Sum"] = _elementwise(torch.add, lambda u, v: u + v)
OPERATORS["Sub"] = _elementwise(torch.sub, lambda u, v: u - v)
OPERATORS["Mul"] = _elementwise(torch.mul, lambda u, v: u * v)
OPERATORS["Div"] = _elementwise(torch.div, lambda u, v: u // v)
OPERATORS["Max"] = _elementwise(torch.maximum, max)
OPERATORS["Min"] = _elementwise(torch.minimum, min)


@operator("Neg")
def _neg(_: Attributes, x: Tensor) -> Tensor:
    return -x


@operator("Mean")
def _mean(_: Attributes, *inputs: Tensor) -> Tensor:
    total = inputs[0]
    for other in inputs[1:]:
        total = total + other
    return total / len(inputs)


def _reduction(function: Callable[..., Tensor]) -> Operator:
    def apply(a: Attributes, x: Tensor, axes: Any = None) -> Tensor:
        given = a.get("axes") if axes is None else numbers(axes)
        if not given:
            if a.get("noop_with_empty_axes"):
                return x
            given = list(range(x.ndim))
        return function(x, dim=tuple(given), keepdim=bool(a.get("keepdims", 1)))

    return apply


OPERATORS["ReduceMean"] = _reduction(torch.mean)
OPERATORS["ReduceSum"] = _reduction(torch.sum)
OPERATORS["ReduceMax"] = _reduction(torch.amax)
OPERATORS["ReduceMin"] = _reduction(torch.amin)

_PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "Relu": torch.relu,
    "Tanh": torch.tanh,
    "Sigmoid": torch.sigmoid,
    "Softsign": F.softsign,
    "Abs": torch.abs,
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Atan": torch.atan,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Log": torch.log,
    "Sqrt": torch.sqrt,
    "Reciprocal": torch.reciprocal,
    "Sign": torch.sign,
    "Floor": torch.floor,
    "Ceil": torch.ceil,
    "Round": torch.round,
    "Mish": F.mish,
    "HardSwish": F.hardswish,
}
for _name, _function in _PLAIN.items():
    OPERATORS[_name] = lambda _, x, function=_function: function(x)


@operator("Pow")
def _pow(_: Attributes, x: Tensor, exponent: Any) -> Tensor:
    power = float(exponent.item())
    return x if power == 1 else torch.pow(x, power)


@operator("Softplus")
def _softplus(a: Attributes, x: Tensor) -> Tensor:
    return F.softplus(x, a.get("beta", 1.0))  # ONNX has none: it stands where a pattern was put together


@operator("LeakyRelu")
def _leaky_relu(a: Attributes, x: Tensor) -> Tensor:
    return F.leaky_relu(x, a.get("alpha", 0.01))


@operator("Elu")
def _elu(a: Attributes, x: Tensor) -> Tensor:
    return F.elu(x, a.get("alpha", 1.0))


@operator("Celu")
def _celu(a: Attributes, x: Tensor) -> Tensor:
    return F.celu(x, a.get("alpha", 1.0))


@operator("Selu")
def _selu(a: Attributes, x: Tensor) -> Tensor:
    if not math.isclose(a.get("alpha", 1.67326), 1.67326, rel_tol=1e-4) or not math.isclose(
        a.get("gamma", 1.0507), 1.0507, rel_tol=1e-4
    ):
        raise refuse("Selu with other constants than the published")
    return F.selu(x)


@operator("Gelu")
def _gelu(a: Attributes, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=a.get("approximate", "none"))


@operator("Swish")
def _swish(a: Attributes, x: Tensor) -> Tensor:
    if a.get("alpha", 1.0) != 1.0:
        raise refuse("Swish with another alpha than 1")
    return F.silu(x)


@operator("Shrink")
def _shrink(a: Attributes, x: Tensor) -> Tensor:
    limit, bias = a.get("lambd", 0.5), a.get("bias", 0.0)
    if bias != limit or limit < 0:
        raise refuse("Shrink with a bias that is not its lambd, which jumps")
    return F.softshrink(x, limit)


@operator("HardSigmoid")
def _hard_sigmoid(a: Attributes, x: Tensor) -> Tensor:
    line: Tensor = x * a.get("alpha", 0.2) + a.get("beta", 0.5)
    return line.clamp(0.0, 1.0)


@operator("PRelu")
def _prelu(_: Attributes, x: Tensor, slope: Tensor) -> Tensor:
    """The slope broadcasts against the signal from its last dimension on; torch takes one number, or one a channel."""
    shape = (1,) * (x.ndim - slope.ndim) + tuple(slope.shape)
    if slope.numel() == 1 or (slope.ndim <= x.ndim and shape[1] == slope.numel() == x.shape[1]):
        return F.prelu(x, slope.reshape(-1))
    raise refuse("PRelu with slopes other than one, or one for each channel")


@operator("Clip")
def _clip(a: Attributes, x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    least = a.get("min") if low is None else float(low.item())
    most = a.get("max") if high is None else float(high.item())
    return x if least is None and most is None else torch.clamp(x, least, most)


@operator("Softmax")
def _softmax(a: Attributes, x: Tensor) -> Tensor:
    return torch.softmax(x, a.get("axis", -1))


@operator("LogSoftmax")
def _log_softmax(a: Attributes, x: Tensor) -> Tensor:
    return torch.log_softmax(x, a.get("axis", -1))


@operator("LayerNormalization")
def _layer_norm(a: Attributes, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.layer_norm(x, scale.shape, scale, bias, a.get("epsilon", 1e-5))
