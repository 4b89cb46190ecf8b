"""The convolutional networks of the robustness literature: 4C3F, 6C2F and 8C2F.

Convolutions first, then fully connected layers, an activation after every layer but the last. A convolution
is written ``(channels, kernel, stride, padding)``.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn

from lipcert.errors import ConfigError
from lipcert.layers.activations import make_activation, slopes_by_name
from lipcert.layers.linear import orthogonal_at_centre
from lipcert.models.registry import register

__all__ = ["convnet", "eight_c_two_f", "four_c_three_f", "six_c_two_f"]

Conv = tuple[int, int, int, int]


def convnet(
    name: str,
    convolutions: Sequence[Conv],
    hidden: Sequence[int],
    *,
    input_shape: tuple[int, ...],
    num_classes: int,
    activation: str = "relu",
    init: str = "torch",
) -> nn.Sequential:
    """Convolutions, flatten, fully connected layers; strides need not divide the sizes.

    A convolution turns a side n into ``⌊(n + 2·padding − kernel)/stride⌋ + 1``.

    Args:
        name: for messages.
        convolutions: ``(channels, kernel, stride, padding)`` each.
        hidden: widths of the fully connected layers before the last.
        input_shape: (C, H, W).
        num_classes: width of the last layer.
        activation: see :data:`lipcert.layers.ACTIVATIONS`.
        init: ``"torch"``, its layers' own, or ``"orthogonal"``: layers start as isometries (a convolution at the centre
            of its kernel), times √2 but for the last if the activation takes half of the signal (not one that keeps its
            size: ``maxmin``, ``half-abs``).

    Raises:
        ConfigError: the input is not (C, H, W) or too small, or the activation or init does not fit.

    >>> net = convnet("tiny", [(4, 3, 2, 1)], [], input_shape=(1, 8, 8), num_classes=3)
    >>> net.fc1
    Linear(in_features=64, out_features=3, bias=True)
    """
    if len(input_shape) != 3:
        raise ConfigError(f"model '{name}' takes images (channels, height, width); got {input_shape}")
    channels, *sides = input_shape
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    step = 0
    for step, (out, kernel, stride, padding) in enumerate(convolutions, 1):
        if min(sides) + 2 * padding < kernel:
            raise ConfigError(
                f"model '{name}' is too deep for images of {input_shape[1]}×{input_shape[2]}: convolution "
                f"{step} has kernel {kernel} but only {sides[0]}×{sides[1]} pixels are left. Use larger "
                "images or a smaller model."
            )
        layers[f"conv{step}"] = nn.Conv2d(channels, out, kernel, stride, padding)
        layers[f"act{step}"] = make_activation(activation, out)
        channels, sides = out, [(side + 2 * padding - kernel) // stride + 1 for side in sides]
    layers["flatten"] = nn.Flatten()
    width = channels * sides[0] * sides[1]
    for i, out in enumerate(hidden, 1):
        layers[f"fc{i}"] = nn.Linear(width, out)
        layers[f"act{step + i}"] = make_activation(activation, out)
        width = out
    layers[f"fc{len(hidden) + 1}"] = nn.Linear(width, num_classes)
    if init == "orthogonal":
        gain = 1.0 if slopes_by_name(activation)[0] == 0 else math.sqrt(2)  # without a centre it keeps sizes
        _orthogonal([m for m in layers.values() if isinstance(m, (nn.Conv2d, nn.Linear))], gain)
    elif init != "torch":
        raise ConfigError(f"model '{name}': init must be 'torch' or 'orthogonal'; got {init!r}")
    return nn.Sequential(layers)


@torch.no_grad()
def _orthogonal(layers: Sequence[nn.Conv2d | nn.Linear], gain: float) -> None:
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            orthogonal_at_centre(layer)
        else:
            nn.init.orthogonal_(layer.weight)
        if layer is not layers[-1]:
            layer.weight.mul_(gain)
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)


@register("4c3f")
def four_c_three_f(
    *, input_shape: tuple[int, ...], num_classes: int, activation: str = "relu", init: str = "torch"
) -> nn.Sequential:
    """4C3F (published for MNIST): 32 3/1/1 · 32 4/2/1 · 64 3/1/1 · 64 4/2/1 · 512 · 512 · classes.

    >>> sum(p.numel() for p in four_c_three_f(input_shape=(1, 28, 28), num_classes=10).parameters())
    1974762
    """
    convolutions = [(32, 3, 1, 1), (32, 4, 2, 1), (64, 3, 1, 1), (64, 4, 2, 1)]
    return convnet(
        "4c3f",
        convolutions,
        [512, 512],
        input_shape=input_shape,
        num_classes=num_classes,
        activation=activation,
        init=init,
    )


@register("6c2f")
def six_c_two_f(
    *, input_shape: tuple[int, ...], num_classes: int, activation: str = "relu", init: str = "torch"
) -> nn.Sequential:
    """6C2F (published for CIFAR-10): 4C3F's convolutions · 64 3/1/1 · 64 4/2/1 · 512 · classes.

    >>> sum(p.numel() for p in six_c_two_f(input_shape=(3, 32, 32), num_classes=10).parameters())
    733866
    """
    convolutions = [(32, 3, 1, 1), (32, 4, 2, 1), (64, 3, 1, 1), (64, 4, 2, 1), (64, 3, 1, 1), (64, 4, 2, 1)]
    return convnet(
        "6c2f",
        convolutions,
        [512],
        input_shape=input_shape,
        num_classes=num_classes,
        activation=activation,
        init=init,
    )


@register("8c2f")
def eight_c_two_f(
    *,
    input_shape: tuple[int, ...],
    num_classes: int,
    padding: str = "code",
    activation: str = "relu",
    init: str = "torch",
) -> nn.Sequential:
    """8C2F (published for Tiny-ImageNet, 64×64).

    64 3/1/1 · 64 3/1/p · 64 4/2/0 · 128 3/1/1 · 128 3/1/1 · 128 4/2/0 · 256 3/1/1 · 256 4/2/0 · 256 ·
    classes, where p, the padding of the second convolution, is 1 in the paper's text and 0 in its authors'
    code. With 1 the strides do not divide; the number of weights is the same.

    Args:
        input_shape: (C, H, W).
        num_classes: width of the last layer.
        padding: ``"code"`` (p = 0) or ``"paper"`` (p = 1).
        activation, init: see :func:`convnet`.

    Raises:
        ConfigError: another padding, an input that is too small, or an activation or init that does not fit.

    >>> sum(p.numel() for p in eight_c_two_f(input_shape=(3, 64, 64), num_classes=200).parameters())
    4342984
    """
    second = {"code": 0, "paper": 1}
    if padding not in second:
        raise ConfigError(f"8c2f: padding must be 'code' or 'paper'; got {padding!r}")
    convolutions = [
        (64, 3, 1, 1),
        (64, 3, 1, second[padding]),
        (64, 4, 2, 0),
        (128, 3, 1, 1),
        (128, 3, 1, 1),
        (128, 4, 2, 0),
        (256, 3, 1, 1),
        (256, 4, 2, 0),
    ]
    return convnet(
        "8c2f",
        convolutions,
        [256],
        input_shape=input_shape,
        num_classes=num_classes,
        activation=activation,
        init=init,
    )
