"""The bound that a network has by the construction of its layers, without a look at the whole."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from lipcert.bounds.lipschitz import FAILURE, lipschitz
from lipcert.bounds.result import Bound, Guarantee, Scope, UpperBound
from lipcert.errors import BoundError, ShapeError
from lipcert.graph.capture import check_state, first_line, in_eval_mode
from lipcert.graph.trace import check_mode
from lipcert.layers.activations import ACTIVATIONS, HalfAbs, MaxMin, lipschitz_of
from lipcert.layers.linear import LipschitzConv2d, LipschitzLinear
from lipcert.layers.normalised import Normalised, positive
from lipcert.layers.parts import Pool, is_altered, is_changed
from lipcert.layers.residual import ResidualConv2d, ResidualLinear
from lipcert.layers.smallgain import SmallGainConv2d, SmallGainLinear
from lipcert.norms.upper import check_failure

__all__ = ["Construction", "by_construction", "construction"]

_NORMALISED = (LipschitzLinear, LipschitzConv2d, ResidualLinear, ResidualConv2d)
_CLOSED = (SmallGainLinear, SmallGainConv2d)
_PROMISING = (*_NORMALISED, *_CLOSED)
_NEUTRAL = (nn.Identity, nn.Flatten, nn.Dropout, nn.ZeroPad2d, Pool, MaxMin, HalfAbs)  # 1-Lipschitz, in eval mode
_SLACKS = (5e-3, 1e-3, 1e-4)  # of a layer's proof: the first is what layers are sealed with
_ROOM = 2.0**-40  # what a factor or a slope, computed in float64, is rounded by at most
_UNIT = 2.0**-53
_SAMPLES, _SAME = 3, 1e-3


@dataclass(frozen=True)
class Construction:
    """A network as a row of layers of which each promises a constant, and what comes behind them.

    Attributes:
        layers: those, and the activations and changes of shape between them, each with the constant that it promises.
        rest: what comes behind; empty if nothing does.
        shape: of its input, without the batch dimension.
    """

    layers: tuple[tuple[nn.Module, Fraction], ...]
    rest: nn.Sequential
    shape: tuple[int, ...]

    @property
    def constant(self) -> Fraction:
        """The product of what they promise, exactly."""
        return math.prod((p for _, p in self.layers), start=Fraction(1))


def _in_order(module: nn.Module) -> Iterator[nn.Module]:
    """What a Sequential runs through."""
    if type(module) is not nn.Sequential or is_changed(module):
        yield module
        return
    for child in module._modules.values():
        if child is not None:
            yield from _in_order(child)


def _promise(module: nn.Module) -> Fraction | None:
    """The constant that a module has by its construction, if any."""
    if is_altered(module):
        return None
    kind = type(module)
    if isinstance(module, _PROMISING) and kind in _PROMISING:
        return Fraction(positive(module.lipschitz))
    if kind in _NEUTRAL:
        return Fraction(1)
    if kind in ACTIVATIONS.values():
        steepest = Fraction(lipschitz_of(copy.deepcopy(module), 1))
        return steepest if steepest == 1 else steepest * Fraction(1 + _ROOM)
    return None


def construction(module: nn.Module, input_shape: Sequence[int]) -> Construction:
    """Cut a network behind the last of its first layers that are Lipschitz by construction.

    Args:
        module: a layer of :mod:`lipcert.layers`, or an ``nn.Sequential`` (of these too) that begins with some, and with
            activations and changes of shape between them.
        input_shape: shape of one input, without the batch dimension.

    Raises:
        BoundError: its first layers promise nothing, or it is not one layer behind another.
        lipcert.errors.ModuleStateError: a layer's activation was replaced.
        ShapeError: it does not take such inputs.
    """
    if torch.nn.modules.module._global_forward_hooks or torch.nn.modules.module._global_forward_pre_hooks:
        raise BoundError("there are hooks on all modules, which may change what layers compute: remove them first.")
    every = list(_in_order(module))
    promises = takewhile(lambda pair: pair[1] is not None, ((m, _promise(m)) for m in every))
    layers = tuple((m, p) for m, p in promises if p is not None)
    if not any(isinstance(m, _PROMISING) for m, _ in layers):
        raise BoundError(
            "this network does not begin with layers that are Lipschitz by construction (of lipcert.layers as they "
            "are, one behind another in an nn.Sequential): bound it by LipLT or small gain instead."
        )
    for layer, _ in layers:
        if isinstance(layer, _CLOSED):
            layer.check_activation()
    rest = nn.Sequential(*every[len(layers) :])
    rest.training = module.training
    shape = _checked(module, nn.Sequential(*(m for m, _ in layers)), rest, tuple(input_shape))
    found = Construction(layers, rest, shape)
    if not 0 < _above(found.constant) < math.inf:
        raise BoundError("the product of the constants of these layers is not a number of float64: rescale them.")
    return found


def _checked(module: nn.Module, begin: nn.Module, rest: nn.Module, input_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape between the two parts, which behind one another are the module, each sample by itself."""
    reference = next(t for t in [*begin.parameters(), *begin.buffers()] if t.is_floating_point())
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((_SAMPLES, *input_shape), generator=generator, dtype=torch.float64).to(reference)
    with in_eval_mode(module), torch.no_grad():
        try:
            value = begin(x.clone())
            whole, single, again = module(x.clone()), module(x[1:2].clone()), rest(value.clone())
        except Exception as error:
            raise ShapeError(f"the module does not take inputs of shape {input_shape}: {first_line(error)}") from error
    if not bool(torch.isfinite(whole).all()):
        raise BoundError("the network's outputs are not finite on random inputs: it has no bound.")
    scale = float(whole.abs().max()) * _SAME
    if whole.shape != again.shape or len(value) != _SAMPLES or single.shape[1:] != whole.shape[1:]:
        raise BoundError("this network mixes the samples of a batch, or is more than its layers: it has no bound.")
    if float((whole - again).abs().max()) > scale or float((whole[1:2] - single).abs().max()) > scale:
        raise BoundError("this network mixes the samples of a batch, or is more than its layers: it has no bound.")
    return tuple(value.shape[1:])


def _above(number: Fraction) -> float:
    """A float that is not smaller."""
    try:
        near = float(number)
    except OverflowError:
        return math.inf
    return near if Fraction(near) >= number else math.nextafter(near, math.inf)


def _proved(layer: nn.Module, promised: Fraction, failure: float) -> tuple[Fraction, float]:
    """A Lipschitz constant that a layer is proved to have, and the probability that it has not."""
    if isinstance(layer, _CLOSED):
        return promised * _closed_form(layer), 0.0
    if not isinstance(layer, Normalised):
        return promised, 0.0
    # a state from a file says of itself that it was proved: whether the factor is small enough is seen here
    plain, found, risk = layer.plain(), Fraction(0), 0.0
    with torch.no_grad():
        factor = copy.deepcopy(layer).double().factor()
    if factor.ndim or not 0 < float(factor) < math.inf:
        raise BoundError(f"{type(layer).__name__}: its factor is {factor.tolist()}, no positive number: seal it again.")
    for i, slack in enumerate(_SLACKS):
        with in_eval_mode(plain):
            bound = lipschitz(plain, layer.input_shape, guarantee="upper", slack=slack, failure=failure / len(_SLACKS))
        assert isinstance(bound, UpperBound)
        value = Fraction(float(bound)) * Fraction(float(factor) * (1 + _ROOM))
        found, risk = value if not i else min(found, value), risk + bound.failure
        if found <= promised:
            return promised, risk
    return found, risk


@torch.no_grad()
def _closed_form(layer: SmallGainLinear | SmallGainConv2d) -> Fraction:
    """By what the constant is larger than κ, as T and the weights are rounded: 1 + some 1e-13.

    With factors f̃ ≤ ρ·2κ/(β·T), ρ ≥ 1 and T that of exact sums, A = (T/ρ)^{-1/2}·W has ‖A‖² ≤ ρ, and the block
    κ²·(1 + 4ρ(ρ − 1)) = κ²·(2ρ − 1)². The rounding of W·f̃ adds β·‖|W|ᵀ f̃ |W|‖ times its relative error.
    """
    exact = copy.deepcopy(layer).double()
    factors, gram, beta = exact.factors(), exact.gram(), exact.steepest
    q = exact.scales()
    weight = exact.weight.abs_()
    error = _UNIT * 4 * (weight[0].numel() + weight.shape[-1] ** 2 + len(weight) + 8)
    least = ((gram + error * exact.gram()) @ q / q).clamp_min(1e-30)
    rho = float((factors * beta * least).amax()) / (2 * exact.lipschitz) * (1 + error)
    rows = weight.flatten(2).sum(2) if weight.ndim > 2 else weight
    reached = float((rows.T @ (factors * rows.sum(1))).amax()) * beta / exact.lipschitz
    found = 2 * max(rho, 1.0) - 1 + 4 * _UNIT * reached * (1 + error)
    if not found < math.inf:
        raise BoundError(f"{type(layer).__name__}: its weights are too large or too small for float64: rescale them.")
    return Fraction(found * (1 + _ROOM * (found > 1)))


def by_construction(
    module: nn.Module,
    input_shape: Sequence[int],
    *,
    scope: Scope = "global",
    guarantee: Guarantee = "upper",
    failure: float = FAILURE,
    output_weights: Tensor | None = None,
    **options: Any,
) -> Bound:
    """``κ₁·κ₂·…·L(rest)``: the constants of a network's first layers, times a bound of what comes behind them.

    Where all of a network passes from layer to layer, and each is κ-Lipschitz by its construction, so is the row by
    the product: no layer is looked at together with another, and a stack of fifty has κ⁵⁰ (but for the last digits).
    Of blocks that are far from their constants, :func:`lipcert.lipschitz` of the whole may say less
    (``method="smallgain"`` above all). It says nothing of what is between the layers, so that radii of deep networks
    lose more to rounding with it: certify with small gain.

    Args:
        module: in eval mode; it begins with layers of :mod:`lipcert.layers` (see :func:`.construction`).
        input_shape: shape of one input, without the batch dimension.
        scope, guarantee: as of :func:`lipcert.lipschitz`. ``"upper"`` proves each layer's constant at its weights.
        failure: the probability with which all proofs together may fail; see :func:`lipcert.lipschitz`.
        output_weights, options: the other options of it, for what comes behind.

    Returns:
        a bound whose ``method`` is ``"layers"``.

    Raises:
        BoundError: the network does not begin with such layers, or as :func:`lipcert.lipschitz` does.
        lipcert.errors.ModuleStateError: train mode, weights that are not finite, or another activation in a layer.
        ShapeError: the network does not take such inputs.

    >>> from torch import nn
    >>> from lipcert.layers import SmallGainLinear, by_construction
    >>> stack = nn.Sequential(*(SmallGainLinear(8, lipschitz=0.5) for _ in range(3))).eval()
    >>> by_construction(stack, (8,)).summary()
    'layers, global: L ≤ 0.125001 (proved)'
    """
    check_mode(module)
    check_state(module)
    check_failure(failure)
    found = construction(module, input_shape)
    upper = guarantee == "upper"
    constant, risk = found.constant, 0.0
    if upper:
        share = failure / 2 / len(found.layers)
        proofs = [_proved(m, promised, share) for m, promised in found.layers]
        constant, risk = math.prod((c for c, _ in proofs), start=Fraction(1)), sum(f for _, f in proofs)
    if output_weights is not None:
        options["output_weights"] = output_weights
    bound = lipschitz(found.rest, found.shape, scope=scope, guarantee=guarantee, failure=failure / 2, **options)
    factor, values = _above(constant), bound.value
    if not len(found.rest) and scope == "global" and output_weights is None:
        values = torch.full_like(values, factor)  # the identity's bound has some room, which is not needed here
    elif factor != 1:
        product = values * factor * (1 + 2.0**-50)
        raised = torch.nextafter(product, torch.full_like(product, math.inf))  # for products that underflow
        values = torch.where(values > 0, raised, values) if upper else values * factor
    changed: dict[str, Any] = {"value": values, "method": "layers", "attempts": ()}
    if isinstance(bound, UpperBound):  # its parts are those of the rest
        changed |= {
            "failure": bound.failure + risk,
            "norms": {},
            "hidden": {},
            "heads": {},
            "evidence": None,
            "further": (),
        }
    return replace(bound, **changed)
