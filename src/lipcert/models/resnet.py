"""A small residual network."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from lipcert.errors import ConfigError
from lipcert.layers.activations import make_activation
from lipcert.models.options import positive_integers
from lipcert.models.registry import register

__all__ = ["BasicBlock", "resnet_small"]


def _conv(inputs: int, outputs: int, kernel: int, stride: int, norm: bool) -> list[tuple[str, nn.Module]]:
    """A convolution that keeps the size (up to its stride), with a BatchNorm or a bias."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=not norm)
    return [("conv", conv), *([("norm", nn.BatchNorm2d(outputs))] if norm else [])]


class BasicBlock(nn.Module):
    """``y = φ(S(x) + B(x))`` with B two 3×3 convolutions, φ between them, and S the shortcut.

    S is the identity where the shape stays, else a 1×1 convolution of the same stride.

    Args:
        inputs: channels in.
        outputs: channels out.
        stride: of the first convolution and of the shortcut.
        activation: φ, see :data:`lipcert.layers.ACTIVATIONS`.
        norm: BatchNorm after each convolution. In eval mode it is affine and folds into the bound.

    Shapes: (N, inputs, H, W) → (N, outputs, ⌈H/stride⌉, ⌈W/stride⌉).

    Source: He, Zhang, Ren, Sun 2016 (arXiv 1512.03385).

    >>> import torch
    >>> BasicBlock(4, 8, stride=2)(torch.zeros(2, 4, 5, 6)).shape
    torch.Size([2, 8, 3, 3])
    """

    def __init__(
        self, inputs: int, outputs: int, *, stride: int = 1, activation: str = "relu", norm: bool = True
    ) -> None:
        super().__init__()
        first = _conv(inputs, outputs, 3, stride, norm)
        second = _conv(outputs, outputs, 3, 1, norm)
        self.branch = nn.Sequential(
            OrderedDict(
                [(f"{name}1", layer) for name, layer in first]
                + [("act1", make_activation(activation, outputs))]
                + [(f"{name}2", layer) for name, layer in second]
            )
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(OrderedDict(_conv(inputs, outputs, 1, stride, norm)))
        self.act = make_activation(activation, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        result: Tensor = self.act(self.shortcut(x) + self.branch(x))
        return result


@register("resnet-small")
def resnet_small(
    *,
    input_shape: tuple[int, ...],
    num_classes: int,
    widths: Sequence[int] = (16, 32, 64),
    blocks: Sequence[int] = (1, 1, 1),
    activation: str = "relu",
    norm: bool = True,
) -> nn.Sequential:
    """3×3 stem, three stages of :class:`BasicBlock` (the second and third halve the size), mean, linear.

    Args:
        input_shape: (C, H, W).
        num_classes: width of the last layer.
        widths: channels of the three stages; the stem has those of the first.
        blocks: how many blocks each stage has.
        activation: see :data:`lipcert.layers.ACTIVATIONS`.
        norm: BatchNorm after each convolution; without it the convolutions have biases.

    Raises:
        ConfigError: an input that is not (C, H, W), or an option that does not fit.

    >>> net = resnet_small(input_shape=(3, 32, 32), num_classes=10)
    >>> sum(p.numel() for p in net.parameters())
    78042
    """
    if len(input_shape) != 3:
        raise ConfigError(f"model 'resnet-small' takes images (channels, height, width); got {input_shape}")
    if not isinstance(norm, bool):
        raise ConfigError(f"resnet-small: norm must be true or false; got {norm!r}")
    stages = positive_integers("resnet-small: widths", widths, length=3)
    depth = positive_integers("resnet-small: blocks", blocks, length=3)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for name, layer in _conv(input_shape[0], stages[0], 3, 1, norm):
        layers[f"stem_{name}"] = layer
    layers["stem_act"] = make_activation(activation, stages[0])
    channels, sides = stages[0], list(input_shape[1:])
    for stage, (width, count) in enumerate(zip(stages, depth, strict=True), 1):
        for i in range(1, count + 1):
            stride = 2 if stage > 1 and i == 1 else 1
            block = BasicBlock(channels, width, stride=stride, activation=activation, norm=norm)
            layers[f"stage{stage}_block{i}"] = block
            channels, sides = width, [-(-side // stride) for side in sides]
    # A pool of fixed size rather than an adaptive one: its linear map is plain to see when it is traced.
    layers["pool"] = nn.AvgPool2d((sides[0], sides[1]))
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(channels, num_classes)
    return nn.Sequential(layers)
