"""A network with the factors of its Lipschitz layers written into ordinary weights."""

from __future__ import annotations

import copy

import torch
from torch import nn

from lipcert.layers.linear import PairwiseLinear
from lipcert.layers.normalised import Normalised
from lipcert.layers.smallgain import SmallGainConv2d, SmallGainLinear

__all__ = ["fold"]

_FOLDABLE = (Normalised, PairwiseLinear, SmallGainLinear, SmallGainConv2d)


@torch.no_grad()
def fold(module: nn.Module) -> nn.Module:
    """A copy in eval mode in which every layer of :mod:`lipcert.layers` is made of ordinary ones with fixed weights.

    What a layer promises is proved once more for its present weights, and its factor goes into the weights, a hair
    rounded down: each folded layer is at most κ-Lipschitz. The copy computes the same up to that, faster, and its radii
    can be certified for float32 execution.

    Args:
        module: a network, or one layer.

    Raises:
        BoundError: weights that are not finite.

    >>> import torch
    >>> from lipcert.layers import LipschitzLinear
    >>> fold(nn.Sequential(LipschitzLinear(3, 2)))
    Sequential(
      (0): Linear(in_features=3, out_features=2, bias=True)
    )
    """
    copied = copy.deepcopy(module)
    replaced: dict[int, nn.Module] = {}
    for layer in [m for m in copied.modules() if isinstance(m, _FOLDABLE)]:
        replaced[id(layer)] = layer.folded()
    if id(copied) in replaced:
        return replaced[id(copied)].eval()
    for parent in list(copied.modules()):
        for name, child in list(parent.named_children()):
            if id(child) in replaced:
                setattr(parent, name, replaced[id(child)])
    return copied.eval()
