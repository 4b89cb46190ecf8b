"""What each ONNX operator computes, in torch: one function an operator, on tensors and attributes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lipcert.errors import ImportFileError

__all__ = ["OPERATORS", "VALUES", "Attributes", "Result", "Sizes"]

Attributes: TypeAlias = "dict[str, Any]"
Result: TypeAlias = Any
"""A tensor, whole numbers (:class:`Sizes`), a constant array where an operator asks for its values, or a tuple."""

Operator: TypeAlias = Callable[..., Result]
OPERATORS: dict[str, Operator] = {}


def operator(*names: str) -> Callable[[Operator], Operator]:
    """Register what ONNX operators compute; called with their inputs (None where one is left out) and attributes."""

    def register(function: Operator) -> Operator:
        for name in names:
            OPERATORS[name] = function
        return function

    return register


VALUES: dict[str, tuple[int, ...]] = {"Clip": (1, 2), "Pad": (2,), "Pow": (1,), "Resize": (1, 2, 3), "Upsample": (1,)}
"""Which inputs of an operator must be constants, given to it as arrays."""


class Sizes(list[Any]):
    """Whole numbers that shapes and indices are made of; the size of the batch among them may be a symbol.

    Args:
        values: in a row.
        shape: of the array that they are the entries of.
    """

    def __init__(self, values: Sequence[Any], shape: tuple[int, ...] | None = None) -> None:
        super().__init__(values)
        self.shape = (len(self),) if shape is None else shape


def numbers(value: Any) -> list[Any]:
    """The entries of whole numbers."""
    if not isinstance(value, Sizes):
        raise refuse("a shape, an axis or an index that is computed from the signal")
    return list(value)


def refuse(what: str) -> ImportFileError:
    """The error for something that an operator may have and this importer does not read."""
    return ImportFileError(f"{what} is not supported by lipcert's ONNX importer.")


# --- affine ---------------------------------------------------------------------------------------------------------
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


# --- arithmetic -----------------------------------------------------------------------------------------------------
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

# --- activations ----------------------------------------------------------------------------------------------------
_PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "Relu": torch.relu,
    "Tanh": torch.tanh,
    "Sigmoid": torch.sigmoid,
    "Softplus": F.softplus,
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


# --- pooling --------------------------------------------------------------------------------------------------------
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


# --- shapes ---------------------------------------------------------------------------------------------------------
@operator("Identity", "Dropout")
def _identity(_: Attributes, x: Result, *__: Any) -> Result:
    return x


@operator("Cast")
def _cast(a: Attributes, x: Result) -> Result:
    if isinstance(x, Sizes):
        return x
    wanted = {1: torch.float32, 10: torch.float16, 11: torch.float64, 16: torch.bfloat16}.get(a["to"])
    if wanted is None:
        raise refuse("a cast of the signal to whole numbers")
    return x.to(wanted)


@operator("Shape")
def _shape(a: Attributes, x: Tensor) -> Sizes:
    return Sizes(list(x.shape)[a.get("start", 0) : a.get("end")])


@operator("Flatten")
def _flatten(a: Attributes, x: Tensor) -> Tensor:
    axis = a.get("axis", 1)
    if axis % x.ndim != 1:
        raise refuse("Flatten that does not keep the batch")
    return x.flatten(1)


@operator("Reshape")
def _reshape(a: Attributes, x: Tensor, shape: Any) -> Tensor:
    sizes = numbers(shape)
    if not a.get("allowzero"):
        sizes = [x.shape[i] if isinstance(n, int) and n == 0 else n for i, n in enumerate(sizes)]
    return x.reshape(sizes)


@operator("Transpose")
def _transpose(a: Attributes, x: Tensor) -> Tensor:
    return x.permute(a.get("perm", list(range(x.ndim))[::-1]))


@operator("Concat")
def _concat(a: Attributes, *inputs: Any) -> Result:
    if any(isinstance(v, Sizes) for v in inputs):
        return Sizes([n for v in inputs for n in numbers(v)])
    return torch.cat(list(inputs), dim=a["axis"])


@operator("Split")
def _split(a: Attributes, x: Tensor, sizes: Any = None) -> tuple[Tensor, ...]:
    axis = a.get("axis", 0)
    given = a.get("split") if sizes is None else numbers(sizes)
    if given is None:
        count = int(a["num_outputs"] if "num_outputs" in a else a["outputs"])
        each = -(-x.shape[axis] // count)  # the last may be smaller
        given = [min(each, x.shape[axis] - i * each) for i in range(count)]
    return torch.split(x, list(given), dim=axis)


@operator("Slice")
def _slice(a: Attributes, x: Any, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None) -> Result:
    begin, end = (a[k] if v is None else numbers(v) for k, v in (("starts", starts), ("ends", ends)))
    along = a.get("axes", list(range(len(begin)))) if axes is None else numbers(axes)
    by = [1] * len(begin) if steps is None else numbers(steps)
    if isinstance(x, Sizes):
        return Sizes(x[begin[0] : end[0] : by[0]])
    for start, stop, axis, step in zip(begin, end, along, by, strict=True):
        if step == -1 and start in (-1, x.shape[axis] - 1) and stop < -x.shape[axis]:
            x = x.flip(axis)
            continue
        if step < 1:
            raise refuse("Slice with a negative step")
        index = [slice(None)] * x.ndim
        index[axis] = slice(start, None if stop >= x.shape[axis] else stop, step)
        x = x[tuple(index)]
    return x


@operator("Gather")
def _gather(a: Attributes, x: Any, indices: Any) -> Result:
    axis, chosen = a.get("axis", 0), numbers(indices)
    axis = axis if isinstance(x, Sizes) else axis % x.ndim
    if isinstance(x, Sizes):
        return Sizes([x[i] for i in chosen], indices.shape)
    if not indices.shape:
        return x.select(axis, chosen[0])
    index = torch.tensor([i % x.shape[axis] for i in chosen], device=x.device)
    flat = x.index_select(axis, index)
    return flat if len(indices.shape) == 1 else flat.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


@operator("Squeeze")
def _squeeze(a: Attributes, x: Any, axes: Any = None) -> Result:
    if isinstance(x, Sizes):
        return Sizes(x, ())
    given = a.get("axes") if axes is None else numbers(axes)
    if given is None:
        raise refuse("Squeeze of all dimensions of size 1, which may be the batch")
    return x.squeeze(tuple(given))


@operator("Unsqueeze")
def _unsqueeze(a: Attributes, x: Any, axes: Any = None) -> Result:
    if isinstance(x, Sizes):
        return Sizes(x)
    given = a["axes"] if axes is None else numbers(axes)
    for axis in sorted(n % (x.ndim + len(given)) for n in given):
        x = x.unsqueeze(axis)
    return x


@operator("Expand")
def _expand(_: Attributes, x: Tensor, shape: Any) -> Tensor:
    sizes = numbers(shape)
    ndim = max(len(sizes), x.ndim)
    sizes, own = [1] * (ndim - len(sizes)) + sizes, [1] * (ndim - x.ndim) + list(x.shape)
    return x.expand([o if isinstance(n, int) and n == 1 else n for n, o in zip(sizes, own, strict=True)])


@operator("Pad")
def _pad(a: Attributes, x: Tensor, pads: Any = None, value: Any = None, axes: Any = None) -> Tensor:
    given = numbers(pads) if pads is not None else a["pads"]
    half = len(given) // 2
    along = list(range(half)) if axes is None else [n % x.ndim for n in numbers(axes)]
    amounts = [(0, 0)] * x.ndim
    for i, axis in enumerate(along):
        amounts[axis] = (given[i], given[half + i])
    while amounts and amounts[0] == (0, 0):  # torch counts from the last one; modes other than constant pad space only
        amounts = amounts[1:]
    flat = [n for pair in reversed(amounts) for n in pair]
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}[
        a.get("mode", "constant")
    ]
    if not flat:
        return x
    fill = float(a.get("value", 0.0) if value is None else value.item())
    return F.pad(x, flat, value=fill) if mode == "constant" else F.pad(x, flat, mode=mode)


@operator("DepthToSpace")
def _depth_to_space(a: Attributes, x: Tensor) -> Tensor:
    if a.get("mode", "DCR") != "CRD":
        block = a["blocksize"]
        channels = x.shape[1] // block**2
        x = x.reshape(x.shape[0], block**2, channels, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
    return F.pixel_shuffle(x, a["blocksize"])


@operator("SpaceToDepth")
def _space_to_depth(a: Attributes, x: Tensor) -> Tensor:
    block = a["blocksize"]
    y = F.pixel_unshuffle(x, block)
    return y.reshape(x.shape[0], x.shape[1], block**2, *y.shape[2:]).transpose(1, 2).flatten(1, 2)


@operator("Resize", "Upsample")
def _resize(a: Attributes, x: Tensor, *rest: Any) -> Tensor:
    given = [v for v in rest if v is not None and v.size]
    if a.get("antialias") or "axes" in a or not (given or "scales" in a):
        raise refuse("Resize with antialias or axes")
    target = given[-1] if given else np.asarray(a["scales"])
    if len(target) != x.ndim or x.ndim < 3:
        raise refuse("Resize of something else than images")
    if target.dtype.kind == "i":
        channels, sizes = int(target[1]) in (0, x.shape[1]), [int(n) for n in target[2:]]
    else:
        channels = float(target[0]) == float(target[1]) == 1
        exact = [n * float(s) for n, s in zip(x.shape[2:], target[2:], strict=True)]
        sizes = [round(n) for n in exact]
        channels = channels and all(abs(n - m) < 1e-6 * m for n, m in zip(exact, sizes, strict=True))
    old = a["opset"] < 11 or a.get("upsample")  # before there was an attribute for it
    where = "asymmetric" if old else a.get("coordinate_transformation_mode", "half_pixel")
    mode, nearest = a.get("mode", "nearest"), "floor" if old else a.get("nearest_mode", "round_prefer_floor")
    whole = not any(n % m for n, m in zip(sizes, x.shape[2:], strict=True))
    halves = where in ("half_pixel", "pytorch_half_pixel")
    left = (halves and nearest == "round_prefer_floor") or (where == "asymmetric" and nearest == "floor")
    if channels and mode == "nearest" and whole and left:
        return F.interpolate(x, size=sizes, mode="nearest")
    if channels and mode == "linear" and (halves or where == "align_corners") and min(x.shape[2:]) > 1:
        kind = {1: "linear", 2: "bilinear", 3: "trilinear"}[x.ndim - 2]
        return F.interpolate(x, size=sizes, mode=kind, align_corners=where == "align_corners")
    raise refuse(f"Resize in mode {mode} with {where}, {nearest} and these sizes")


@operator("TopK")
def _topk(a: Attributes, x: Tensor, count: Any) -> tuple[Tensor, ...]:
    values, indices = torch.topk(
        x, numbers(count)[0], a.get("axis", -1), bool(a.get("largest", 1)), bool(a.get("sorted", 1))
    )
    return values, indices
