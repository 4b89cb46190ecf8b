"""The activations that a model can be built with, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from lipcert.errors import ConfigError, ShapeError
from lipcert.graph.trace import trace
from lipcert.hints import did_you_mean

__all__ = ["ACTIVATIONS", "MaxMin", "make_activation", "slopes_by_name", "slopes_of"]


class MaxMin(nn.Module):
    """Sorts each pair of channels (2i, 2i+1): the smaller value first, the larger second.

    A permutation of its input at every point, hence 1-Lipschitz in ℓ2 (and norm-preserving in its gradient),
    but not elementwise.

    Shapes: (N, C, …) with C even → the same.

    Raises:
        ShapeError: C is odd, or there is no channel dimension.

    Source: Anil, Lucas, Grosse 2019 (arXiv 1811.05381), GroupSort of group size 2.

    >>> MaxMin()(torch.tensor([[3.0, 1.0, -2.0, 5.0]]))
    tensor([[ 1.,  3., -2.,  5.]])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Sort along the channel dimension in groups of two."""
        if x.ndim < 2 or x.shape[1] % 2:
            raise ShapeError(
                f"MaxMin sorts channels in pairs, so that it needs an even number of them in dimension 1; "
                f"got shape {tuple(x.shape)}"
            )
        pairs = x.reshape(x.shape[0], x.shape[1] // 2, 2, *x.shape[2:])
        return torch.sort(pairs, dim=2).values.flatten(1, 2)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "hardtanh": nn.Hardtanh,
    "leaky-relu": nn.LeakyReLU,
    "maxmin": MaxMin,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


def make_activation(name: str, channels: int) -> nn.Module:
    """A new activation module for an input with this many channels.

    Raises:
        ConfigError: no such activation, or ``maxmin`` on an odd number of channels.

    >>> make_activation("relu", 32)
    ReLU()
    """
    if not isinstance(name, str) or name not in ACTIVATIONS:
        hint = did_you_mean(str(name), ACTIVATIONS, f"there are: {', '.join(ACTIVATIONS)}")
        raise ConfigError(f"unknown activation {name!r}; {hint}")
    if name == "maxmin" and channels % 2:
        raise ConfigError(f"activation 'maxmin' sorts pairs of channels: {channels} is odd; use even widths")
    return ACTIVATIONS[name]()


@cache
def slopes_by_name(name: str) -> tuple[float, float]:
    """(c, r) of what :func:`make_activation` makes, which is the same for any number of channels."""
    return slopes_of(make_activation(name, 2), 2)


def slopes_of(activation: nn.Module, channels: int) -> tuple[float, float]:
    """(c, r) of an activation, the largest over its channels."""
    graph = trace(activation.eval(), (channels,))
    (node,) = graph.nonlinear
    slopes = graph.resolve(torch.float64).slopes.get(node.index)
    if slopes is None:  # it sorts: no centre
        return 0.0, 1.0
    return float(torch.as_tensor(slopes.centre).max()), float(torch.as_tensor(slopes.radius).max())
