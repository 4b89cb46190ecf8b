"""Sums, differences and scalings of signals; reductions that are linear."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lipcert.graph.builder import Builder, Call, Value, rule
from lipcert.graph.forms import Sum
from lipcert.graph.rules.activations import softsign, softsign_of
from lipcert.graph.types import Coefficient, Live


def _broadcast(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return x if x.shape[1:] == shape else x.expand(x.shape[0], *shape)


def _scaled(x: Tensor, factor: Coefficient) -> Tensor:
    return x if isinstance(factor, float) and factor == 1.0 else x * factor


def _constant(value: float) -> Callable[[Live], Coefficient]:
    return lambda live: value


def _sum(b: Builder, call: Call, left: Any, right: Any, p: float, q: float) -> Value:
    """``p·left + q·right`` where at least one is a signal."""
    shape = b.shape_of(call)
    signals = [(v, f) for v, f in ((left, p), (right, q)) if b.is_signal(v)]
    constants = [(v, f) for v, f in ((left, p), (right, q)) if not b.is_signal(v)]
    inputs = []
    for value, _ in signals:
        index = b.values[value]
        assert isinstance(index, int)
        b.check_aligned(call, index, len(shape) + 1)
        inputs.append(index)
    for value, _ in constants:
        b.check_constant(call, value, len(shape) + 1)

    def apply(xs: Any, cs: Any) -> Tensor:
        terms = [_broadcast(_scaled(x, c), shape) for x, c in zip(xs, cs, strict=True)]
        return terms[0] if len(terms) == 1 else terms[0] + terms[1]

    def offset(live: Live) -> Tensor:
        value, factor = constants[0]
        return torch.as_tensor(live(value), dtype=live.dtype, device=live.device) * factor

    plain = [f for _, f in signals] == [1.0, 1.0] and all(b.nodes[i].shape == shape for i in inputs)
    return b.affine(
        call,
        inputs,
        apply,
        coefficients=[_constant(factor) for _, factor in signals],
        offset=offset if constants else None,
        shape=shape,
        terms=_entrywise(b, inputs, shape),
        roundings=1 if plain else 4,
        form=Sum() if plain else None,
    )


def _entrywise(b: Builder, inputs: Sequence[int], shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Terms of a weighted sum entry by entry; an input that is broadcast makes the adjoint a sum of many."""
    return (len(inputs), 1) if all(b.nodes[i].shape == shape for i in inputs) else None


def _factor(call: Call, value: Any) -> float:
    if not isinstance(value, (int, float)):
        raise call.refuse("its alpha is not a number.")
    return float(value)


@rule("add")
def add(b: Builder, call: Call) -> Value:
    """``x + alpha·y``."""
    return _sum(b, call, call["self"], call["other"], 1.0, _factor(call, call["alpha"]))


@rule("sub")
def sub(b: Builder, call: Call) -> Value:
    """``x − alpha·y``."""
    return _sum(b, call, call["self"], call["other"], 1.0, -_factor(call, call["alpha"]))


@rule("rsub")
def rsub(b: Builder, call: Call) -> Value:
    """``y − alpha·x``."""
    return _sum(b, call, call["self"], call["other"], -_factor(call, call["alpha"]), 1.0)


@rule("neg", "negative")
def neg(b: Builder, call: Call) -> Value:
    """``−x``."""
    source = b.signal(call, "self")
    return b.affine(
        call, [source], lambda xs, cs: xs[0] * cs[0], coefficients=[_constant(-1.0)], terms=(1, 1), roundings=0
    )


def _scale(b: Builder, call: Call, signal: str, constant: Any, inverse: bool) -> Value:
    source = b.signal(call, signal)
    shape = b.shape_of(call)
    b.check_aligned(call, source, len(shape) + 1)
    b.check_constant(call, constant, len(shape) + 1)

    def coefficient(live: Live) -> Coefficient:
        value = live(constant)
        value = value.to(live.dtype) if isinstance(value, Tensor) else float(value)  # integers divide exactly
        return 1 / value if inverse else value

    return b.affine(
        call,
        [source],
        lambda xs, cs: xs[0] * cs[0],
        coefficients=[coefficient],
        shape=shape,
        terms=_entrywise(b, [source], shape),
        roundings=3,
    )


@rule("mul", "multiply")
def mul(b: Builder, call: Call) -> Value:
    """A signal times a constant; a product of two signals is refused."""
    if b.is_signal(call["self"]) and b.is_signal(call["other"]):
        raise call.refuse(
            "the product of two signals has no global Lipschitz constant.",
            "Gates and squeeze-and-excitation cannot be bounded; for x·sigmoid(x) use torch.nn.SiLU.",
        )
    if b.is_signal(call["self"]):
        return _scale(b, call, "self", call["other"], inverse=False)
    return _scale(b, call, "other", call["self"], inverse=False)


@rule("div", "divide", "true_divide")
def div(b: Builder, call: Call) -> Value:
    """A signal divided by a constant; softsign."""
    if softsign_of(call.node) is not None:
        return softsign(b, call)
    if call.get("rounding_mode") is not None:
        raise call.refuse("rounding is not continuous.")
    if not b.is_signal(call["self"]) or b.is_signal(call["other"]):
        raise call.refuse("division by a signal has no global Lipschitz constant.", "Divide by a constant only.")
    return _scale(b, call, "self", call["other"], inverse=True)


@rule("mean", "sum")
def reduce(b: Builder, call: Call) -> Value:
    """The mean or the sum over dimensions other than the batch."""
    source = b.signal(call, "self")
    ndim = len(b.nodes[source].shape) + 1
    dims = call.get("dim")
    if dims is None or not list(dims) or any(d % ndim == 0 for d in dims):
        raise call.refuse("it reduces over the batch.", "Name the dimensions, without the first: x.mean((2, 3)).")
    if call.get("dtype") not in (None, call["self"].meta["val"].dtype):
        raise call.refuse("it rounds the signal to another dtype.", "Run the whole module in one dtype.")
    summed = math.prod(b.nodes[source].shape[d % ndim - 1] for d in dims)
    return b.affine(
        call,
        [source],
        lambda xs, cs: call.run(self=xs[0], dtype=None),
        terms=(summed + 1, 2),
        roundings=summed + 1,
    )
