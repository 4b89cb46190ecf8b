"""The activations that a model can be built with, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from lipcert.errors import ConfigError, ShapeError
from lipcert.graph.trace import trace
from lipcert.graph.types import Slopes
from lipcert.hints import did_you_mean

__all__ = ["ACTIVATIONS", "HalfAbs", "MaxMin", "lipschitz_of", "make_activation", "slopes_by_name", "slopes_of"]


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


class HalfAbs(nn.Module):
    """The first half of the channels as they are, the absolute values of the second.

    MaxMin in other coordinates: of the sum and the difference of a pair, each divided by √2, sorting keeps the first
    and takes the absolute value of the second (but for its sign), and a rotation is for the layers around to learn. So
    it keeps the size of gradients as MaxMin does. But it is elementwise, and linear in half of the channels: a bound
    has to allow for the other half only, each with a weight D of its own where a pair of MaxMin shares one. Train and
    certify it with small gain: LipLT adds up what both halves make of the signal, up to twice as much with each layer.

    Shapes: (N, C, …) with C even → the same.

    Raises:
        ShapeError: C is odd, or there is no channel dimension.

    Source: MaxMin as in :class:`MaxMin`; reflections of pairs at any line, of which both are cases, are the Householder
    activations of Singla, Singla, Feizi 2022 (arXiv 2108.04062).

    >>> HalfAbs()(torch.tensor([[3.0, -1.0, -2.0, 5.0]]))
    tensor([[ 3., -1.,  2.,  5.]])
    """

    def forward(self, x: Tensor) -> Tensor:
        """|x| in the second half of the channel dimension."""
        if x.ndim < 2 or x.shape[1] % 2:
            raise ShapeError(
                f"HalfAbs takes absolute values in half of the channels, so that it needs an even number of them in "
                f"dimension 1; got shape {tuple(x.shape)}"
            )
        half = x.shape[1] // 2
        if self.training:  # the way back of two slices fills a whole gradient with zeros twice and adds them up
            kept, folded = x.chunk(2, dim=1)
        else:  # certificates speak of this form
            kept, folded = x[:, :half], x[:, half:]
        return torch.cat([kept, folded.abs()], dim=1)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "half-abs": HalfAbs,
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


_HALVES = {"half-abs": "leaves half of the channels alone", "maxmin": "sorts pairs of channels"}


def make_activation(name: str, channels: int) -> nn.Module:
    """A new activation module for an input with this many channels.

    Raises:
        ConfigError: no such activation, or ``maxmin`` or ``half-abs`` on an odd number of channels.

    >>> make_activation("relu", 32)
    ReLU()
    """
    if not isinstance(name, str) or name not in ACTIVATIONS:
        hint = did_you_mean(str(name), ACTIVATIONS, f"there are: {', '.join(ACTIVATIONS)}")
        raise ConfigError(f"unknown activation {name!r}; {hint}")
    if name in _HALVES and channels % 2:
        raise ConfigError(f"activation {name!r} {_HALVES[name]}: {channels} is odd; use even widths")
    return ACTIVATIONS[name]()


@cache
def slopes_by_name(name: str) -> tuple[float, float]:
    """(c, r) of what :func:`make_activation` makes, which is the same for any number of channels."""
    return slopes_of(make_activation(name, 2), 2)


def _slopes(activation: nn.Module, channels: int) -> Slopes | None:
    """None of one that sorts."""
    graph = trace(activation.eval(), (channels,))
    (node,) = graph.nonlinear
    return graph.resolve(torch.float64).slopes.get(node.index)


def lipschitz_of(activation: nn.Module, channels: int) -> float:
    """The Lipschitz constant of an elementwise activation: of its steepest slope, up or down.

    >>> lipschitz_of(nn.LeakyReLU(-3.0), 1)
    3.0
    """
    slopes = _slopes(activation, channels)
    return 1.0 if slopes is None else float(torch.as_tensor(slopes.lipschitz).max())


def slopes_of(activation: nn.Module, channels: int) -> tuple[float, float]:
    """(c, r) of an activation, the largest over its channels."""
    slopes = _slopes(activation, channels)
    if slopes is None:  # it sorts: no centre
        return 0.0, 1.0
    # of HalfAbs this is of its second half, [−1, 1], where the slope 1 of the first lies too
    return float(torch.as_tensor(slopes.centre).max()), float(torch.as_tensor(slopes.radius).max())
