"""The fully connected network."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from lipcert.layers.activations import make_activation
from lipcert.models.options import positive_integers
from lipcert.models.registry import register

__all__ = ["mlp"]


@register("mlp")
def mlp(
    *,
    input_shape: tuple[int, ...],
    num_classes: int,
    widths: Sequence[int] = (128, 64),
    activation: str = "relu",
) -> nn.Sequential:
    """Flatten, then fully connected layers with an activation after each but the last.

    Args:
        input_shape: of any length; flattened.
        num_classes: width of the last layer.
        widths: of the hidden layers; none gives a linear classifier.
        activation: see :data:`lipcert.layers.ACTIVATIONS`.

    Raises:
        ConfigError: a width that is not a positive integer, or an activation that does not fit.

    >>> net = mlp(input_shape=(1, 8, 8), num_classes=10, widths=(32,))
    >>> sum(p.numel() for p in net.parameters())  # (64 + 1)·32 + (32 + 1)·10
    2410
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    width = math.prod(input_shape)
    for i, out in enumerate(positive_integers("mlp: widths", widths), 1):
        layers[f"fc{i}"] = nn.Linear(width, out)
        layers[f"act{i}"] = make_activation(activation, out)
        width = out
    layers[f"fc{len(widths) + 1}"] = nn.Linear(width, num_classes)
    return nn.Sequential(layers)
