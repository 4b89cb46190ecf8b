"""Residual networks of layers that are 1-Lipschitz by construction."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import nn

from lipcert.errors import ConfigError
from lipcert.layers import (
    LipschitzConv2d,
    LipschitzLinear,
    PairwiseLinear,
    ResidualConv2d,
    SmallGainConv2d,
    make_activation,
)
from lipcert.layers.normalised import positive
from lipcert.models.options import positive_integers
from lipcert.models.registry import register

__all__ = ["lipres"]

_BLOCKS = {"residual": ResidualConv2d, "smallgain": SmallGainConv2d}
_HEADS = ("linear", "pairwise")
_DOWNS = ("residual", "plain")
_STEMS = ("half", "full")
_SIZES: dict[str, dict[str, Any]] = {
    "s": {"widths": (32, 64, 128), "blocks": (1, 1, 1), "hidden": 256},
    "m": {"widths": (64, 128, 256), "blocks": (2, 2, 2), "hidden": 512},
    "l": {"widths": (64, 128, 256), "blocks": (4, 4, 4), "hidden": 512},
}


def lipres(
    widths: Sequence[int],
    blocks: Sequence[int],
    hidden: int,
    *,
    input_shape: tuple[int, ...],
    num_classes: int,
    block: str = "smallgain",
    head: str = "linear",
    head_scale: float = 2.0,
    activation: str = "relu",
    down: str = "residual",
    plain_activation: str | None = None,
    stem: str = "half",
) -> nn.Sequential:
    """Stages of residual blocks, each stage at half the size of the one before; all but the last layer is 1-Lipschitz.

    A convolution; then for each stage its blocks, and between two stages a layer of stride 2; flatten, a fully
    connected layer, the logits. The first stage is at half the size of the image.

    Args:
        widths: channels of the stages.
        blocks: how many blocks each stage has.
        hidden: width of the fully connected layer before the last.
        input_shape: (C, H, W); 2^stages must divide H and W, which zeros around the image see to where they do not.
        num_classes: width of the last layer.
        block: ``"residual"`` (:class:`~lipcert.layers.ResidualConv2d`: 1-Lipschitz by LipLT of the block) or
            ``"smallgain"`` (:class:`~lipcert.layers.SmallGainConv2d`: by small gain, in closed form).
        head: ``"linear"``, or ``"pairwise"``: every difference of two logits of the whole network is
            ``head_scale``-Lipschitz.
        head_scale: of the last layer; with ``"linear"`` its rows start orthogonal and of this norm. Radii do not depend
            on it, but cross-entropy does: it learns little from the small margins that 1-Lipschitz features have.
        activation: of the blocks, see ``lipcert.layers.ACTIVATIONS``.
        down: what is between two stages: ``"residual"`` (:class:`~lipcert.layers.ResidualConv2d`), or ``"plain"``
            (:class:`~lipcert.layers.LipschitzConv2d` of kernel 4, with an activation behind; the first convolution has
            one too then).
        plain_activation: of the layers that are not blocks; that of the blocks by default. A block of ``"smallgain"``
            reflects with ReLU what absolute values would, and so keeps the size of gradients as it starts; a plain
            layer does with ``"half-abs"``.
        stem: the first convolution: ``"half"``, of kernel 4 and stride 2, or ``"full"``, of kernel 3 at the size of the
            image, with a layer of stride 2 behind.

    Raises:
        ConfigError: an input that is not (C, H, W), or an option that does not fit.
    """
    if len(input_shape) != 3:
        raise ConfigError(f"lipres takes images (channels, height, width); got {input_shape}")
    if block not in _BLOCKS:
        raise ConfigError(f"lipres: block must be one of {', '.join(map(repr, _BLOCKS))}; got {block!r}")
    if head not in _HEADS:
        raise ConfigError(f"lipres: head must be one of {', '.join(map(repr, _HEADS))}; got {head!r}")
    if down not in _DOWNS:
        raise ConfigError(f"lipres: down must be one of {', '.join(map(repr, _DOWNS))}; got {down!r}")
    if stem not in _STEMS:
        raise ConfigError(f"lipres: stem must be one of {', '.join(map(repr, _STEMS))}; got {stem!r}")
    positive(head_scale, "lipres: head_scale")
    behind = activation if plain_activation is None else plain_activation
    widths = positive_integers("lipres: widths", widths)
    blocks = positive_integers("lipres: blocks", blocks, length=len(widths))
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    unit = 2 ** len(widths)
    height, width = (-(-n // unit) * unit for n in input_shape[1:])
    if (height, width) != input_shape[1:]:
        missing = (height - input_shape[1], width - input_shape[2])
        layers["pad"] = nn.ZeroPad2d((missing[1] // 2, -(-missing[1] // 2), missing[0] // 2, -(-missing[0] // 2)))
    shape: tuple[int, ...] = (input_shape[0], height, width)
    kernel, stride = (3, 1) if stem == "full" else (4, 2)
    first = LipschitzConv2d(shape, widths[0], kernel, stride=stride, padding=1)
    layers["stem"], shape = first, first.output_shape
    if down == "plain":
        layers["stem_act"] = make_activation(behind, widths[0])
    for stage, (channels, count) in enumerate(zip(widths, blocks, strict=True), 1):
        halve = stage > 1 or stem == "full"
        if halve and down == "residual":
            residual = ResidualConv2d(shape, channels, stride=2, activation=activation)
            layers[f"down{stage}"], shape = residual, residual.output_shape
        elif halve:
            plain = LipschitzConv2d(shape, channels, 4, stride=2, padding=1)
            layers[f"down{stage}"], shape = plain, plain.output_shape
            layers[f"down{stage}_act"] = make_activation(behind, channels)
        for i in range(1, count + 1):
            layers[f"stage{stage}_block{i}"] = _BLOCKS[block](shape, activation=activation)
    layers["flatten"] = nn.Flatten()
    features = shape[0] * shape[1] * shape[2]
    layers["fc1"], layers["act"] = LipschitzLinear(features, hidden), make_activation(behind, hidden)
    layers["fc2"] = (
        _last(hidden, num_classes, head_scale)
        if head == "linear"
        else PairwiseLinear(hidden, num_classes, lipschitz=head_scale)
    )
    return nn.Sequential(layers)


def _last(features: int, classes: int, scale: float) -> nn.Linear:
    layer = nn.Linear(features, classes)
    nn.init.orthogonal_(layer.weight, gain=scale)
    nn.init.zeros_(layer.bias)
    return layer


for _size, _parts in _SIZES.items():
    register(f"lipres-{_size}")(partial(lipres, **_parts))
