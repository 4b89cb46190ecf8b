"""Blocked summation: the same layers, their long sums made of short ones, so that float32 loses less.

A sum of n terms in floating point may err by γ_n ≈ n·u times the sum of the terms' sizes, in whatever order it is made.
Made as the sum of b sums of n/b terms each, added up two by two, it errs by at most γ_m with m ≈ n/b + log₂ b: that is
what a guaranteed radius has to give for the execution in float32, and in wide layers it is many times less. The layer
is the same function in real arithmetic, of the same weights.

Source: Higham, *Accuracy and Stability of Numerical Algorithms* (2002), section 4.2, on blocked and pairwise sums.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import conv_transpose2d
from torch.nn.utils import parametrize

from lipcert.errors import ConfigError, ModuleStateError
from lipcert.graph.capture import check_state
from lipcert.layers.fold import FOLDABLE
from lipcert.layers.parts import check_unaltered, whole, with_layers

__all__ = ["BLOCKED", "BlockedConv2d", "BlockedConvTranspose2d", "BlockedLinear", "blocked", "blocks"]


_LEAST, _SHORT = 4, 8  # blocks of a layer, if each has so many products
_KEYS = {*vars(nn.Linear(1, 1)), *vars(nn.Conv2d(1, 1, 1)), "sizes"}
"""What such a layer has by itself."""


def blocks(inputs: int, taps: int, terms: int) -> list[int]:
    """How many inputs (features or channels) each block has, as equal as they can be: ``taps`` terms each.

    Four blocks cost next to nothing, so there are as many, unless they would be very short: of the three channels of
    an image each is one.

    >>> blocks(64, 9, 128), blocks(3, 9, 128), blocks(2, 300, 128), blocks(20, 1, 128)
    ([13, 13, 13, 13, 12], [1, 1, 1], [1, 1], [10, 10])
    """
    count = max(1, -(-inputs // max(1, terms // taps)), min(_LEAST, inputs, inputs * taps // _SHORT))
    return [inputs // count + (i < inputs % count) for i in range(count)]


def _total(parts: Sequence[Tensor]) -> Tensor:
    """Two by two: log₂ of them additions behind one another."""
    while len(parts) > 1:
        rest = parts[-1:] if len(parts) % 2 else []
        parts = [*(a + b for a, b in zip(parts[::2], parts[1::2], strict=False)), *rest]
    return parts[0]


class BlockedLinear(nn.Linear):
    """``y = W x + b`` as a sum of products with blocks of W's columns, of at most ``terms`` each.

    Shapes: (N, …, in) → (N, …, out).

    Raises:
        ConfigError: ``terms`` is no whole number of at least 1.

    >>> from torch import nn
    >>> BlockedLinear(nn.Linear(300, 10), terms=128)
    BlockedLinear(in_features=300, out_features=10, bias=True, blocks=[75, 75, 75, 75])
    """

    def __init__(self, layer: nn.Linear, *, terms: int) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        _share(self, layer)
        self.sizes = blocks(layer.in_features, 1, whole("terms", terms))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        pieces = zip(torch.split(x, self.sizes, -1), torch.split(self.weight, self.sizes, 1), strict=True)
        biases = [None] * (len(self.sizes) - 1) + [self.bias]
        return _total([nn.functional.linear(u, w, b) for (u, w), b in zip(pieces, biases, strict=True)])

    def extra_repr(self) -> str:
        """Its sizes, and those of its blocks."""
        return f"{super().extra_repr()}, blocks={self.sizes}"


class BlockedConv2d(nn.Conv2d):
    """A convolution as a sum of convolutions of blocks of its input's channels, of at most ``terms`` products an entry.

    A kernel of more than ``terms`` weights is not divided: a block has one channel at least.

    Shapes: (N, C, H, W) → (N, out, H′, W′).

    Raises:
        ConfigError: ``terms`` is no whole number of at least 1; or the layer is one of groups, or pads otherwise than
            by zeros.

    >>> from torch import nn
    >>> BlockedConv2d(nn.Conv2d(64, 32, 3, padding=1), terms=128)
    BlockedConv2d(64, 32, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), blocks=[13, 13, 13, 13, 12])
    """

    def __init__(self, layer: nn.Conv2d, *, terms: int) -> None:
        terms = whole("terms", terms)
        if not _divides(layer):
            raise ConfigError(f"only a convolution of one group that pads with zeros is made of blocks; got {layer}")
        self.sizes = _begun(self, layer, terms)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        pieces = zip(torch.split(x, self.sizes, -3), torch.split(self.weight, self.sizes, 1), strict=True)
        biases = [None] * (len(self.sizes) - 1) + [self.bias]
        return _total([self._conv_forward(u, w, b) for (u, w), b in zip(pieces, biases, strict=True)])

    def extra_repr(self) -> str:
        """Its sizes, and those of its blocks."""
        return f"{super().extra_repr()}, blocks={self.sizes}"  # type: ignore[no-untyped-call]


class BlockedConvTranspose2d(nn.ConvTranspose2d):
    """A transposed convolution in blocks of its input's channels, as :class:`BlockedConv2d` is.

    A block of several taps with a stride has fewer products than ``terms``: an entry meets some of the taps only.

    Shapes: (N, C, H, W) → (N, out, H′, W′).

    Raises:
        ConfigError: ``terms`` is no whole number of at least 1; or the layer is one of groups.

    >>> from torch import nn
    >>> BlockedConvTranspose2d(nn.ConvTranspose2d(32, 3, 3), terms=128)
    BlockedConvTranspose2d(32, 3, kernel_size=(3, 3), stride=(1, 1), blocks=[8, 8, 8, 8])
    """

    def __init__(self, layer: nn.ConvTranspose2d, *, terms: int) -> None:
        terms = whole("terms", terms)
        if not _divides(layer):
            raise ConfigError(f"only a transposed convolution of one group is made of blocks; got {layer}")
        self.sizes = _begun(self, layer, terms)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Apply the layer; ``output_size`` as in :class:`torch.nn.ConvTranspose2d`."""
        stride, padding, dilation = self.stride, tuple(map(int, self.padding)), self.dilation  # never a name
        more = self._output_padding(
            x, output_size, list(stride), list(padding), list(self.kernel_size), 2, list(dilation)
        )
        apply = partial(conv_transpose2d, stride=stride, padding=padding, output_padding=more, dilation=dilation)
        pieces = zip(torch.split(x, self.sizes, -3), torch.split(self.weight, self.sizes, 0), strict=True)
        biases = [None] * (len(self.sizes) - 1) + [self.bias]
        return _total([apply(u, w, b) for (u, w), b in zip(pieces, biases, strict=True)])

    def extra_repr(self) -> str:
        """Its sizes, and those of its blocks."""
        return f"{super().extra_repr()}, blocks={self.sizes}"  # type: ignore[no-untyped-call]


BLOCKED = (BlockedLinear, BlockedConv2d, BlockedConvTranspose2d)


def _share(made: nn.Linear | nn.Conv2d | nn.ConvTranspose2d, layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d) -> None:
    """The same weight and bias; without one made has a parameter that is None, as layers of torch have."""
    made.weight = layer.weight
    made.register_parameter("bias", None)
    made.bias = layer.bias


def _begun(made: nn.Conv2d | nn.ConvTranspose2d, layer: nn.Conv2d | nn.ConvTranspose2d, terms: int) -> list[int]:
    """The same layer but for its blocks, whose sizes it returns."""
    nn.Module.__init__(made)
    _share(made, layer)
    for name in (*nn.Conv2d.__constants__, "transposed", "_reversed_padding_repeated_twice"):
        setattr(made, name, getattr(layer, name))
    return blocks(layer.in_channels, math.prod(layer.kernel_size), terms)


def _divides(layer: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    return layer.groups == 1 and layer.padding_mode == "zeros"


def blocked(module: nn.Module, *, terms: int = 128) -> nn.Module:
    """A copy in eval mode whose linear layers and convolutions add up at most ``terms`` products at a time.

    It is the same function in real arithmetic, of the same weights under the same names; what float32 makes of it
    differs in the last digits. What float32 takes off a certified radius becomes several times smaller, for somewhat
    more time: a layer of more than ``terms`` products becomes several smaller ones, and one of fewer up to four.

    Left as they are: convolutions of groups or other paddings than zeros, those of other dimensions than two, and
    layers that are subclasses. A certificate counts what each layer really does, so that is never wrong.

    Args:
        module: a network. Layers of :mod:`lipcert.layers` are to be folded first.
        terms: the most products that one sum may have.

    Raises:
        ConfigError: ``terms`` is no whole number of at least 1.
        ModuleStateError: layers that are to be folded first, weights that are not finite, or a layer with hooks,
            parametrisations or anything else of its own, which would be lost.

    >>> from torch import nn
    >>> blocked(nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10)))
    Sequential(
      (0): BlockedLinear(in_features=512, out_features=64, bias=True, blocks=[128, 128, 128, 128])
      (1): ReLU()
      (2): BlockedLinear(in_features=64, out_features=10, bias=True, blocks=[16, 16, 16, 16])
    )
    """
    whole("terms", terms)
    check_state(module)
    for name, layer in module.named_modules():
        if isinstance(layer, FOLDABLE):
            raise ModuleStateError(
                f"the layer '{name}' ({type(layer).__name__}) computes its weights: fold the network first "
                "(lipcert.layers.fold, lipcert fold), and make blocks of what that gives."
            )
        if _made_of(layer, terms) is not None:
            check_unaltered(name, layer, "making blocks")
            _check_plain(name, layer)
    copied = copy.deepcopy(module)
    replaced: dict[int, nn.Module] = {}
    for layer in copied.modules():
        if (found := _made_of(layer, terms)) is not None:
            replaced[id(layer)] = found
    return with_layers(copied, replaced)


def _made_of(layer: nn.Module, terms: int) -> BlockedLinear | BlockedConv2d | BlockedConvTranspose2d | None:
    """The same layer in blocks; None where it stays what it is."""
    kind = parametrize.type_before_parametrizations(layer)
    found: BlockedLinear | BlockedConv2d | BlockedConvTranspose2d | None = None
    if kind in (nn.Linear, BlockedLinear) and isinstance(layer, nn.Linear):
        found = BlockedLinear(layer, terms=terms)
    elif kind in (nn.Conv2d, BlockedConv2d) and isinstance(layer, nn.Conv2d) and _divides(layer):
        found = BlockedConv2d(layer, terms=terms)
    elif kind in (nn.ConvTranspose2d, BlockedConvTranspose2d) and isinstance(layer, nn.ConvTranspose2d):
        found = BlockedConvTranspose2d(layer, terms=terms) if _divides(layer) else None
    return None if found is None or (len(found.sizes) == 1 and kind not in BLOCKED) else found


def _check_plain(name: str, layer: nn.Module) -> None:
    """Refuse a layer with something of its own that one in blocks would not have, and somebody else may look at."""
    more = [key for key in vars(layer) if key not in _KEYS]
    more += [key for own in (layer._buffers, layer._modules) for key in own]
    more += [key for key in layer._parameters if key not in ("weight", "bias")]
    more += [key for key, value in vars(layer).items() if "hooks" in key and value]
    if more:
        raise ModuleStateError(
            f"the layer '{name}' ({type(layer).__name__}) has something of its own ({more[0]}), which making blocks "
            "would lose. Take it off first."
        )
