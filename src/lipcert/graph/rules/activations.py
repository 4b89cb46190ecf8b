"""Elementwise activations and the interval that their difference quotients lie in.

Extremes that are not round numbers are written with the last digit rounded outward, so that the interval
contains the true one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx

from lipcert.graph.builder import Builder, Call, Value, rule
from lipcert.graph.types import Live, Slopes

# f'(x) of x·Φ(x) is extreme at x = ±√2; the others are at the roots of f''.
_GELU = Slopes(-0.12890414518515481, 1.1289041451851549)
_GELU_TANH = Slopes(-0.1289930686587718, 1.128993068658772)
_SILU = Slopes(-0.09983932012886694, 1.0998393201288671)
_MISH = Slopes(-0.11252612238946259, 1.0884981612517281)

_FIXED: dict[str, Slopes] = {
    "relu": Slopes(0.0, 1.0),
    "relu6": Slopes(0.0, 1.0),
    "tanh": Slopes(0.0, 1.0),
    "sigmoid": Slopes(0.0, 0.25),
    "log_sigmoid": Slopes(0.0, 1.0),
    "silu": _SILU,
    "mish": _MISH,
    "abs": Slopes(-1.0, 1.0),
    "absolute": Slopes(-1.0, 1.0),
    "hardsigmoid": Slopes(0.0, math.nextafter(1 / 6, 1)),
    "hardswish": Slopes(-0.5, 1.5),
    "selu": Slopes(0.0, 1.758099340847377),
    "softshrink": Slopes(0.0, 1.0),
    "erf": Slopes(0.0, math.nextafter(2 / math.sqrt(math.pi), 2)),
    "atan": Slopes(0.0, 1.0),
    "arctan": Slopes(0.0, 1.0),
    "sin": Slopes(-1.0, 1.0),
    "cos": Slopes(-1.0, 1.0),
    "asinh": Slopes(0.0, 1.0),
}


_EXACT = frozenset(("relu", "relu6", "abs", "absolute"))  # they select or change a sign
_HOMOGENEOUS = frozenset(("relu", "abs", "absolute"))
_SIMPLE = 3  # roundings of a comparison and a product, the conversion of its factor included
_OTHERS = 16  # allowed to any other function, as its library computes it


def _plain(
    b: Builder,
    call: Call,
    slopes: Slopes,
    departure: float = 0.0,
    roundings: int = _OTHERS,
    homogeneous: bool = False,
) -> Value:
    name = "self" if "self" in call.arguments else "input"
    source = b.signal(call, name)

    def function(z: Tensor, live: Live) -> Tensor:
        return call.run(**{name: z})  # type: ignore[no-any-return]

    return b.elementwise(call, source, lambda live: slopes, function, departure, roundings, homogeneous)


@rule(*_FIXED)
def fixed(b: Builder, call: Call) -> Value:
    """Activations without parameters: their slopes are a table."""
    roundings = 0 if call.name in _EXACT else _OTHERS
    return _plain(b, call, _FIXED[call.name], roundings=roundings, homogeneous=call.name in _HOMOGENEOUS)


@rule("gelu")
def gelu(b: Builder, call: Call) -> Value:
    """Both forms of GELU, whose slopes dip below 0 and pass 1."""
    return _plain(b, call, _GELU_TANH if call["approximate"] == "tanh" else _GELU)


def _number(call: Call, name: str) -> float:
    value = call[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise call.refuse(f"its {name} is not a finite number.")
    return float(value)


@rule("leaky_relu")
def leaky_relu(b: Builder, call: Call) -> Value:
    """Slopes 1 and ``negative_slope``."""
    slope = _number(call, "negative_slope")
    return _plain(b, call, Slopes(min(1.0, slope), max(1.0, slope)), roundings=_SIMPLE, homogeneous=True)


@rule("rrelu")
def rrelu(b: Builder, call: Call) -> Value:
    """In eval a leaky ReLU with the mean of its two slopes."""
    if call["training"]:
        raise call.refuse("it is random.", "Call module.eval().")
    slope = (_number(call, "lower") + _number(call, "upper")) / 2
    return _plain(b, call, Slopes(min(1.0, slope), max(1.0, slope)), roundings=_SIMPLE, homogeneous=True)


@rule("prelu", "_prelu_kernel")
def prelu(b: Builder, call: Call) -> Value:
    """Slopes 1 and a learned weight for each channel, read live."""
    source = b.signal(call, "self")
    dims = len(b.nodes[source].shape)

    def weight(live: Live) -> Tensor:
        w: Tensor = live(call["weight"])
        return w.reshape(-1, *(1,) * (dims - 1)) if w.ndim == 1 and w.numel() > 1 else w

    def slopes(live: Live) -> Slopes:
        w = weight(live)
        one = torch.ones_like(w)
        return Slopes(torch.minimum(w, one), torch.maximum(w, one))

    def function(z: Tensor, live: Live) -> Tensor:
        w = weight(live).to(z.dtype)
        return torch.where(z > 0, z, w * z)

    return b.elementwise(call, source, slopes, function, roundings=_SIMPLE, homogeneous=True)


@rule("elu")
def elu(b: Builder, call: Call) -> Value:
    """``scale·x`` above 0, ``scale·α(e^{input_scale·x} − 1)`` below: slopes between 0, the two at 0."""
    scale = _number(call, "scale")
    below = _number(call, "alpha") * _number(call, "input_scale")
    if _number(call, "input_scale") <= 0:
        raise call.refuse("its input_scale is not positive, so its slope is unbounded.")
    ends = (0.0, scale * below, scale)
    return _plain(b, call, Slopes(min(ends), max(ends)))


@rule("celu")
def celu(b: Builder, call: Call) -> Value:
    """``α(e^{x/α} − 1)`` below 0: slopes in [0, 1] for positive α."""
    if _number(call, "alpha") <= 0:
        raise call.refuse("its alpha is not positive.")
    return _plain(b, call, Slopes(0.0, 1.0))


@rule("softplus")
def softplus(b: Builder, call: Call) -> Value:
    """``log(1 + e^{βx})/β``: slopes in [0, 1].

    Above ``threshold`` torch returns x itself, a jump by ``log(1 + e^{−threshold})/β``. At the default of 20 that
    is 2e-9, below float32's rounding there; a low threshold or a small β would make a real jump and is refused.
    """
    beta, limit = _number(call, "beta"), _number(call, "threshold")
    jump = math.log1p(math.exp(-limit)) / beta if beta > 0 else math.inf
    if limit < 20 or jump > 1e-6:
        raise call.refuse(
            "with a small beta or a threshold below 20 it jumps, and a jump has no Lipschitz constant.",
            "Keep the default threshold of 20, and beta above 0.01.",
        )
    return _plain(b, call, Slopes(0.0, 1.0), departure=jump)


def softsign_of(node: fx.Node) -> fx.Node | None:
    """The x of ``x / (|x| + 1)``, which torch has no operation for; None of anything else."""
    aten = torch.ops.aten
    if node.target is not aten.div.Tensor:
        return None
    x, below = node.args
    if not isinstance(below, fx.Node) or below.target is not aten.add.Tensor or below.kwargs:
        return None
    size, one = below.args if isinstance(below.args[0], fx.Node) else below.args[::-1]
    absolute = isinstance(size, fx.Node) and size.target is aten.abs.default and size.args[0] is x
    return x if absolute and isinstance(x, fx.Node) and one == 1 else None


def softsign(b: Builder, call: Call) -> Value:
    """``x / (1 + |x|)``, of slope ``1/(1 + |x|)²``: in [0, 1]."""
    call.operation, call.arguments = "softsign", {"self": call["self"]}  # what is divided by is no number of its own
    slopes = Slopes(0.0, 1.0)
    source = b.signal(call, "self")
    return b.elementwise(call, source, lambda live: slopes, lambda z, live: z / (1 + z.abs()), roundings=_SIMPLE)


@rule("hardtanh", "clamp", "clamp_min", "clamp_max", "clip")
def clamp(b: Builder, call: Call) -> Value:
    """Clipping to numbers, on one side or both."""
    bounds = [call.get(k) for k in ("min_val", "max_val", "min", "max") if call.get(k) is not None]
    if not bounds or not all(isinstance(v, (int, float)) for v in bounds):
        raise call.refuse("its limits are tensors.", "Clamp to numbers.")
    return _plain(b, call, Slopes(0.0, 1.0), roundings=_SIMPLE)  # its limits may be rounded


@rule("threshold")
def threshold(b: Builder, call: Call) -> Value:
    """``x`` above the threshold, a value below: continuous only if the two agree."""
    if _number(call, "threshold") != _number(call, "value"):
        raise call.refuse("it jumps at its threshold.", "Use a value equal to the threshold, or ReLU.")
    return _plain(b, call, Slopes(0.0, 1.0))
