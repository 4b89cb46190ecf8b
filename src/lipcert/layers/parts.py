"""What layers are made of: shapes of convolutions, maps without their biases, shortcuts."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lipcert.errors import ConfigError, ModuleStateError
from lipcert.layers.normalised import LinearMap

__all__ = [
    "Block",
    "Pool",
    "check_unaltered",
    "conv_shape",
    "image_shape",
    "is_altered",
    "is_changed",
    "scaled_copy",
    "whole",
    "with_layers",
    "without_bias",
]

_Layer = TypeVar("_Layer", bound="nn.Linear | nn.Conv2d")


def whole(name: str, value: object, default: int | None = None) -> int:
    """A size, checked; ``default`` where it is None."""
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} must be a whole number of at least 1; got {value!r}")
    return value


def image_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """(C, H, W), checked."""
    sizes = tuple(shape)
    if len(sizes) != 3 or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sizes):
        raise ConfigError(f"input_shape must be (channels, height, width); got {shape!r}")
    return (sizes[0], sizes[1], sizes[2])


def conv_shape(
    shape: tuple[int, int, int], channels: int, kernel: int, stride: int, padding: int
) -> tuple[int, int, int]:
    """Shape of the result of a convolution with zeros around the image."""
    if channels < 1 or kernel < 1 or stride < 1 or padding < 0:
        raise ConfigError(
            "channels, kernel_size and stride must be at least 1 and padding at least 0; got "
            f"{channels}, {kernel}, {stride}, {padding}"
        )
    height, width = ((n + 2 * padding - kernel) // stride + 1 for n in shape[1:])
    if min(height, width) < 1:
        raise ConfigError(
            f"a kernel of {kernel} does not fit on images of {shape[1]}×{shape[2]} with padding {padding}"
        )
    return (channels, height, width)


def without_bias(layer: nn.Linear | nn.Conv2d) -> LinearMap:
    """The linear part of a layer."""
    if isinstance(layer, nn.Linear):
        return lambda u: nn.functional.linear(u, layer.weight)
    return lambda u: nn.functional.conv2d(u, layer.weight, None, layer.stride, layer.padding)


def is_altered(layer: nn.Module) -> bool:
    """Whether a layer, or one in it, has hooks, parametrisations or methods of its own, or is of somebody's class."""
    for m in layer.modules():
        foreign = type(m).__module__.split(".")[0] not in ("lipcert", "torch") or parametrize.is_parametrized(m)
        if foreign or is_changed(m):
            return True
    return False


def check_unaltered(name: str, layer: nn.Module, what: str) -> None:
    """Refuse to replace what is more than the layer itself; ``what`` would lose it.

    Raises:
        ModuleStateError: naming the layer.
    """
    if is_altered(layer):
        raise ModuleStateError(
            f"the layer '{name}' ({type(layer).__name__}) has hooks, parametrisations or a forward of its own, "
            f"which {what} would lose. Remove them first (torch.nn.utils.parametrize.remove_parametrizations)."
        )


def with_layers(module: nn.Module, replaced: Mapping[int, nn.Module]) -> nn.Module:
    """A module in eval mode with others in place of those of its layers whose id is in ``replaced``."""
    if id(module) in replaced:
        return replaced[id(module)].eval()
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):  # a layer that is used twice is there twice
            if child is not None and id(child) in replaced:
                parent._modules[name] = replaced[id(child)]
    return module.eval()


def is_changed(module: nn.Module) -> bool:
    """Whether something was put before, behind or in place of what the class of a module does."""
    return bool(module._forward_hooks or module._forward_pre_hooks or any(map(callable, vars(module).values())))


def scaled_copy(layer: _Layer, factor: Tensor) -> _Layer:
    """A layer of its own with weight and bias multiplied by a number."""
    result = copy.deepcopy(layer)
    with torch.no_grad():
        for p in result.parameters():
            p.mul_(factor)
    result.requires_grad_(False)
    result.eval()
    return result


class Pool(nn.Module):
    """``y = s·(mean over s×s pixels)``, with channels of zeros behind: a shortcut of norm 1.

    Args:
        stride: s, the side of the squares.
        channels: of the result; not fewer than the input's.

    Shapes: (N, C, H, W) → (N, channels, ⌊H/s⌋, ⌊W/s⌋).

    >>> Pool(2, 4)(torch.ones(1, 3, 4, 4))[0, :, 0, 0]
    tensor([2., 2., 2., 0.])
    """

    def __init__(self, stride: int, channels: int) -> None:
        super().__init__()
        self.stride, self.channels = stride, channels

    def forward(self, x: Tensor) -> Tensor:
        """Apply the shortcut."""
        if self.stride > 1:
            x = nn.functional.avg_pool2d(x, self.stride) * float(self.stride)
        more = self.channels - x.shape[1]
        return nn.functional.pad(x, (0, 0, 0, 0, 0, more)) if more else x


class Block(nn.Module):
    """``y = s·H x + G φ(W x)``, s a fixed number, or None for 1."""

    scale: Tensor

    def __init__(
        self, shortcut: nn.Module, inner: nn.Module, act: nn.Module, outer: nn.Module, scale: float | None
    ) -> None:
        super().__init__()
        self.shortcut, self.inner, self.act, self.outer = shortcut, inner, act, outer
        self.scaled = scale is not None
        if scale is not None:
            stored = torch.tensor(scale)
            if float(stored) > scale:  # never above what was proved
                stored = torch.nextafter(stored, torch.zeros(()))
            self.register_buffer("scale", stored)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        y: Tensor = self.shortcut(x) if not self.scaled else self.shortcut(x) * self.scale
        result: Tensor = y + self.outer(self.act(self.inner(x)))
        return result
