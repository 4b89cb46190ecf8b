"""The bound that a network has by the construction of its layers, without a look at the whole."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch import nn

from lipcert.bounds.lipschitz import FAILURE, lipschitz
from lipcert.bounds.result import Bound, Guarantee, Scope, UpperBound
from lipcert.errors import BoundError, ShapeError
from lipcert.graph.capture import check_state, first_line, in_eval_mode
from lipcert.graph.trace import check_mode
from lipcert.layers.activations import slopes_of
from lipcert.layers.normalised import Normalised
from lipcert.layers.parts import is_altered
from lipcert.layers.smallgain import SmallGainConv2d, SmallGainLinear

__all__ = ["Construction", "by_construction", "construction"]

_PROMISING = (Normalised, SmallGainLinear, SmallGainConv2d)
_NEUTRAL = (nn.Identity, nn.Flatten, nn.ZeroPad2d, nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Tanh)  # 1-Lipschitz, all of them
_SLACKS = (5e-3, 1e-3, 1e-4)  # of a layer's proof: the first is what layers are sealed with
_ROOM = 2.0**-40  # what the factor of a layer, computed in float64, is rounded by at most


@dataclass(frozen=True)
class Construction:
    """A network as a row of layers of which each promises a constant, and what comes behind them.

    Attributes:
        layers: those, by name, and the activations and changes of shape between them.
        constant: the product of what they promise, exactly.
        rest: what comes behind; empty if nothing does.
        shape: of its input, without the batch dimension.
    """

    layers: dict[str, nn.Module]
    constant: Fraction
    rest: nn.Sequential
    shape: tuple[int, ...]


def _in_order(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """What a Sequential runs through, by name."""
    if type(module) is not nn.Sequential or module._forward_hooks or module._forward_pre_hooks:
        yield name, module
        return
    for key, child in module._modules.items():
        if child is not None:
            yield from _in_order(child, f"{name}.{key}" if name else key)


def _promise(module: nn.Module) -> Fraction | None:
    """The constant that a module has by its construction, if any."""
    if is_altered(module):
        return None
    if isinstance(module, _PROMISING):
        return Fraction(module.lipschitz)
    return Fraction(1) if type(module) in _NEUTRAL else None


def construction(module: nn.Module, input_shape: Sequence[int]) -> Construction:
    """Cut a network behind the last of its first layers that are Lipschitz by construction.

    Args:
        module: a layer of :mod:`lipcert.layers`, or an ``nn.Sequential`` (of these too) that begins with some, and with
            activations and changes of shape between them.
        input_shape: shape of one input, without the batch dimension.

    Raises:
        BoundError: its first layers promise nothing.
        ShapeError: it does not take such inputs.
    """
    every = [(name, m, _promise(m)) for name, m in _in_order(module)]
    count = next((i for i, (_, _, p) in enumerate(every) if p is None), len(every))
    layers = {name: m for name, m, _ in every[:count]}
    if not any(isinstance(m, _PROMISING) for m in layers.values()):
        raise BoundError(
            "this network does not begin with layers that are Lipschitz by construction (of lipcert.layers, one behind "
            "another in an nn.Sequential): bound it with lipcert.lipschitz."
        )
    begin = nn.Sequential(*layers.values())
    reference = next(begin.parameters())
    with in_eval_mode(begin), torch.no_grad():
        try:
            value = begin(reference.new_zeros((2, *input_shape)))
        except Exception as error:
            raise ShapeError(
                f"the module does not take inputs of shape {tuple(input_shape)}: {first_line(error)}"
            ) from error
    if len(value) != 2:
        raise BoundError("this network mixes the samples of a batch (nn.Flatten(0)?): it has no bound.")
    rest = nn.Sequential(*(m for _, m, _ in every[count:]))
    rest.training = module.training
    constant = math.prod((p for _, _, p in every[:count] if p is not None), start=Fraction(1))
    return Construction(layers, constant, rest, tuple(value.shape[1:]))


def _proved(layer: nn.Module, failure: float) -> tuple[Fraction, float]:
    """A Lipschitz constant that a layer is proved to have, and the probability that it has not."""
    if not isinstance(layer, _PROMISING):
        return Fraction(1), 0.0
    promised = Fraction(layer.lipschitz)
    if not isinstance(layer, Normalised):  # closed forms, for a slope β that the layer looked at when it was made
        centre, radius = slopes_of(copy.deepcopy(layer.act), len(layer.bias))
        if centre < radius * (1 - 1e-6) or centre + radius > layer.steepest:
            raise BoundError(f"{layer}: its activation is another one than it was made with, so it promises nothing.")
        return promised, 0.0
    # a state from a file says of itself that it was proved: whether the factor is small enough is seen here
    plain, found, risk = layer.plain(), Fraction(0), 0.0
    with torch.no_grad():
        factor = Fraction(float(copy.deepcopy(layer).double().factor()) * (1 + _ROOM))
    for i, slack in enumerate(_SLACKS):
        share = failure / len(_SLACKS)
        with in_eval_mode(plain):
            bound = lipschitz(plain, layer.input_shape, guarantee="upper", slack=slack, failure=share)
        assert isinstance(bound, UpperBound)
        value = Fraction(float(bound)) * factor
        found, risk = value if not i else min(found, value), risk + bound.failure
        if found <= promised:
            return promised, risk
    return found, risk


def by_construction(
    module: nn.Module,
    input_shape: Sequence[int],
    *,
    scope: Scope = "global",
    guarantee: Guarantee = "upper",
    failure: float = FAILURE,
    **options: Any,
) -> Bound:
    """``κ₁·κ₂·…·L(rest)``: the constants of a network's first layers, times a bound of what comes behind them.

    Where all of a network passes from layer to layer, and each is κ-Lipschitz by its construction, so is the row by
    the product: no layer is looked at together with another, and a stack of fifty has κ⁵⁰ exactly. Of blocks that are
    far from their constants, :func:`lipcert.lipschitz` of the whole may say less (``method="smallgain"`` above all).

    Args:
        module: in eval mode; it begins with layers of :mod:`lipcert.layers` (see :func:`construction`).
        input_shape: shape of one input, without the batch dimension.
        scope, guarantee: as of :func:`lipcert.lipschitz`. ``"upper"`` proves each layer's constant at its weights.
        failure: the probability with which all proofs together may fail; see :func:`lipcert.lipschitz`.
        options: the other options of it, for what comes behind.

    Returns:
        a bound whose ``method`` is ``"layers"``.

    Raises:
        BoundError: the network does not begin with such layers, or as :func:`lipcert.lipschitz` does.
        lipcert.errors.ModuleStateError: train mode, or weights that are not finite.
        ShapeError: the network does not take such inputs.

    >>> from lipcert.layers import SmallGainLinear
    >>> stack = nn.Sequential(*(SmallGainLinear(8, lipschitz=0.5) for _ in range(3))).eval()
    >>> by_construction(stack, (8,)).summary()
    'layers, global: L ≤ 0.125 (proved)'
    """
    check_mode(module)
    check_state(module)
    found = construction(module, input_shape)
    upper = guarantee == "upper"
    constant, risk = found.constant, 0.0
    if upper:
        proofs = [_proved(m, failure / 2 / len(found.layers)) for m in found.layers.values()]
        constant, risk = math.prod((c for c, _ in proofs), start=Fraction(1)), sum(f for _, f in proofs)
    bound = lipschitz(found.rest, found.shape, scope=scope, guarantee=guarantee, failure=failure / 2, **options)
    factor = float(constant)
    if upper and Fraction(factor) < constant:
        factor = math.nextafter(factor, math.inf)
    value = bound.value * factor * (1 + 2.0**-50 * (factor != 1))
    if not len(found.rest) and scope == "global":
        value = torch.full_like(value, factor)
    changed: dict[str, Any] = {"value": value, "method": "layers"}
    if isinstance(bound, UpperBound):  # its parts are those of the rest
        changed |= {"failure": bound.failure + risk, "norms": {}, "hidden": {}, "heads": {}, "evidence": None}
    return replace(bound, **changed)
