"""The loop transformation once more, slow and obvious, and without lipcert: the module itself runs, in float64.

A :class:`TorchDispatchMode` watches the module's own operations. Where an activation φ with slopes in [α, β] meets
a batch, it returns ``c·z + r·w`` in its place (c = (α+β)/2, r = (β−α)/2, w given from outside), and notes z. What is
left is affine; a basis of (x, w_1, …, w_K) is pushed through as one batch, the image of 0 is taken off, and the
blocks A_kj stand there as matrices. Slopes are measured on a grid, pooling's constant by one bright pixel at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

Blocks = dict[tuple[int, int], np.ndarray]

ELEMENTWISE = {
    "relu", "hardtanh", "leaky_relu", "rrelu_with_noise", "_prelu_kernel", "elu", "celu", "gelu", "silu", "mish",
    "hardswish", "hardsigmoid", "softplus", "sigmoid", "log_sigmoid_forward", "tanh", "softshrink", "threshold", "abs",
    "sin", "cos", "erf", "atan", "asinh", "clamp", "clamp_min", "clamp_max",
}  # fmt: skip
WHOLE = {"max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices", "max_pool3d_with_indices",
         "adaptive_max_pool2d", "adaptive_max_pool3d", "sort", "topk", "max", "amax", "amin"}  # fmt: skip
PAIR = {"maximum", "minimum"}


def measured_slopes(f: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """The extreme difference quotients of f over short steps to either side of the points of a fine, long grid."""
    far = torch.logspace(1.7, 9, 200, dtype=torch.float64)
    x = torch.cat([torch.linspace(-40, 40, 400_001, dtype=torch.float64), far, -far])
    h = 1e-6 * x.abs().clamp_min(1.0)
    quotients = torch.cat([(f(b) - f(a)) / (b - a) for a, b in ((x, x + h), (x - h, x))])
    return float(quotients.min()), float(quotients.max())


_KNOWN: dict[str, tuple[float, float]] = {}


def _slopes_of(func: Any, rest: tuple, kwargs: dict) -> tuple[float, float]:
    key = f"{func} {rest} {kwargs}"
    if key not in _KNOWN:
        _KNOWN[key] = measured_slopes(lambda x: _first(func(x.clone(), *rest, **kwargs)))  # it may work in place
    return _KNOWN[key]


def brightest(f: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> float:
    """√ of the number of outputs that one bright pixel can reach: the Lipschitz constant of taking maxima."""
    n = math.prod(shape)
    lit = torch.eye(n, dtype=torch.float64).reshape(n, *shape)
    counts = [(f(s * lit) == s).flatten(1).sum(1).max() for s in (1.0, -1.0)]
    counts[1] = torch.minimum(counts[1], counts[0]) if int(counts[0]) else counts[1]
    return math.sqrt(int(max(counts)) if int(counts[0]) == 0 else int(counts[0]))


@dataclass
class Opened:
    """One activation of one run: its input z and how it is opened."""

    z: Tensor
    out_shape: tuple[int, ...]
    centre: Tensor | float
    radius: Tensor | float
    keep: Any = None


@dataclass
class Linearised(TorchDispatchMode):
    """Replaces activations; ``given`` are the w_k as (rows, …), None for zero."""

    rows: int
    centred: bool
    given: list[Tensor] | None = None
    opened: list[Opened] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        bare = name.removesuffix("_") if not name.startswith("_") else name
        z = args[0] if args else None
        if not isinstance(z, Tensor) or not z.is_floating_point() or z.ndim == 0 or z.shape[0] != self.rows:
            return func(*args, **kwargs)
        if bare in ELEMENTWISE:
            c, r = self._slopes(bare, func, args, kwargs)
            out = self._open(z.clone(), tuple(z.shape[1:]), c, r)
            out = out + c * z
            if name != bare and name.endswith("_"):
                return z.copy_(out)
            return (out, torch.zeros(0)) if bare == "log_sigmoid_forward" else out
        if bare in PAIR and isinstance(args[1], Tensor):
            return self._pair(bare, args)
        if bare in WHOLE and not (bare == "max" and isinstance(args[1], Tensor)):
            return self._whole(func, args, kwargs)
        return func(*args, **kwargs)

    def _slopes(self, name: str, func: Any, args: tuple, kwargs: dict) -> tuple[Any, Any]:
        if name == "_prelu_kernel":
            low, high = args[1].clamp(max=1.0), args[1].clamp(min=1.0)
        elif name == "softplus":
            low, high = 0.0, 1.0  # torch's jump of 2e-9 at its threshold spoils the measurement
        elif name == "rrelu_with_noise":
            low, high = (args[2] + args[3]) / 2, 1.0
        else:
            low, high = _slopes_of(func, args[1:], kwargs)
        if not self.centred:
            size = torch.maximum(low.abs(), high.abs()) if isinstance(low, Tensor) else max(abs(low), abs(high))
            return 0.0, size
        return (low + high) / 2, (high - low) / 2

    def _open(self, z: Tensor, out_shape: tuple[int, ...], c: Any, r: Any, keep: Any = None) -> Tensor:
        self.opened.append(Opened(z, out_shape, c, r, keep))
        if self.given is None:
            return torch.zeros((self.rows, *out_shape), dtype=torch.float64)
        return r * self.given[len(self.opened) - 1].reshape(self.rows, *out_shape)

    def _whole(self, func: Any, args: tuple, kwargs: dict) -> Any:
        z = args[0]
        result = func(*args, **kwargs)
        values = result[0] if isinstance(result, tuple) else result
        g = brightest(lambda s: _first(func(s, *args[1:], **kwargs)), tuple(z.shape[1:]))
        out = self._open(z.clone(), tuple(values.shape[1:]), 0.0, g)
        return (out, *result[1:]) if isinstance(result, tuple) else out

    def _pair(self, name: str, args: tuple) -> Tensor:
        a, b = args
        shape = tuple(torch.broadcast_shapes(a.shape, b.shape)[1:])
        both = {id(a), id(b)}
        for k, known in enumerate(self.opened):
            if known.keep is not None and {id(t) for t in known.keep} == both:
                out = self.given[k].reshape(self.rows, 2, *shape) if self.given else torch.zeros((self.rows, 2, *shape))
                return out[:, 1 if name == "maximum" else 0].to(torch.float64)
        stacked = torch.stack([a.expand(self.rows, *shape), b.expand(self.rows, *shape)], 1)
        out = self._open(stacked, (2, *shape), 0.0, 1.0, keep=(a, b))
        return out[:, 1 if name == "maximum" else 0]


def _first(result: Any) -> Tensor:
    return result[0] if isinstance(result, tuple) else result


def blocks(module: nn.Module, shape: tuple[int, ...], *, centred: bool = True) -> Blocks:
    """The matrices A_kj·r_j of T, for targets k = 1…K (hidden) and K+1 (output), sources j = 0 (input) … K.

    Missing keys are blocks that are zero; that from x to y is always there.
    """
    module = module.double().eval()
    with torch.no_grad():
        scout = Linearised(7, centred)
        with scout:
            module(torch.zeros(7, *shape, dtype=torch.float64))
        sizes = [math.prod(shape), *(math.prod(o.out_shape) for o in scout.opened)]
        total = sum(sizes) + 1
        basis = torch.cat([torch.zeros(1, total - 1, dtype=torch.float64), torch.eye(total - 1, dtype=torch.float64)])
        x, *given = basis.split(sizes, dim=1)
        run = Linearised(total, centred, given)
        with run:
            y = module(x.reshape(total, *shape).clone())
    images = [o.z for o in run.opened] + [y]
    result: Blocks = {}
    for k, image in enumerate(images, start=1):
        columns = (image[1:] - image[:1]).reshape(total - 1, -1).split(sizes)
        for j, column in enumerate(columns):
            matrix = column.T.numpy()
            small = np.abs(matrix).max(initial=0.0) <= 1e-7  # as exact as measured slopes are
            if small and (k, j) == (len(images), 0):
                result[k, j] = np.zeros_like(matrix)  # so that the last target is always there
            elif not small:
                result[k, j] = matrix
    return result
