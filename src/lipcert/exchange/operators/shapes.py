"""What moves entries about: shapes, slices, padding, resizing, sorting."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lipcert.exchange.operators.registry import Attributes, Result, Sizes, numbers, operator, refuse


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
