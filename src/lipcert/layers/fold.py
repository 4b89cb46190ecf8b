"""A network with the factors of its Lipschitz layers written into ordinary weights."""

from __future__ import annotations

import copy

import torch
from torch import nn

from lipcert.graph.capture import check_state
from lipcert.layers.linear import PairwiseLinear
from lipcert.layers.normalised import Normalised
from lipcert.layers.parts import check_unaltered, with_layers
from lipcert.layers.smallgain import SmallGainConv2d, SmallGainLinear

__all__ = ["FOLDABLE", "fold"]

FOLDABLE = (Normalised, PairwiseLinear, SmallGainLinear, SmallGainConv2d)


@torch.no_grad()
def fold(module: nn.Module, *, prove: bool = True) -> nn.Module:
    """A copy in eval mode in which every layer of :mod:`lipcert.layers` is made of ordinary ones with fixed weights.

    What a layer promises is proved once more for its present weights, and its factor goes into the weights, a hair
    rounded down: each folded layer is at most κ-Lipschitz. The copy computes the same up to that, faster, and its radii
    can be certified for float32 execution.

    Args:
        module: a network, or one layer.
        prove: False for the form alone, whose weights are to be replaced by those of a folded network: it promises
            nothing.

    Raises:
        BoundError: weights that are too large or too small.
        ModuleStateError: weights that are not finite, or a layer with hooks or parametrisations of its own.

    >>> from torch import nn
    >>> from lipcert.layers import LipschitzLinear, fold
    >>> fold(nn.Sequential(LipschitzLinear(3, 2)))
    Sequential(
      (0): Linear(in_features=3, out_features=2, bias=True)
    )
    """
    if prove:
        check_state(module)
    for name, layer in module.named_modules():
        if isinstance(layer, FOLDABLE):
            check_unaltered(name, layer, "folding")
    copied = copy.deepcopy(module)
    replaced: dict[int, nn.Module] = {}
    for layer in copied.modules():
        if isinstance(layer, FOLDABLE):
            replaced[id(layer)] = layer.folded(prove=prove) if isinstance(layer, Normalised) else layer.folded()
    return with_layers(copied, replaced)
