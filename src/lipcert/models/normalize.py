"""Input normalisation as a layer of the model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lipcert.errors import ConfigError

__all__ = ["Normalize"]


def _vector(name: str, value: float | Sequence[float]) -> list[float]:
    items: list[float] = [value] if isinstance(value, (int, float, str)) else list(value)
    for item in items:
        number = isinstance(item, (int, float)) and not isinstance(item, bool)
        if not number or not math.isfinite(item) or (name == "std" and item <= 0):
            wanted = "positive finite numbers" if name == "std" else "finite numbers"
            raise ConfigError(f"normalisation {name} must hold {wanted}; got {value!r}")
    if not items:
        raise ConfigError(f"normalisation {name} is empty: give one number, or one for each channel")
    return [float(item) for item in items]


class Normalize(nn.Module):
    """``x ↦ (x − mean) / std`` for each channel, with mean and std as buffers.

    As a layer of the model it is inside every Lipschitz bound, so that radii stay in the units of the raw
    input in [0, 1]. (Outside, a radius of 36/255 silently becomes one of 18/255 for ``Normalize(0.5, 0.5)``.)

    Args:
        mean: one number, or one for each channel.
        std: the same, positive.
        trailing: how many dimensions follow the channel dimension: 2 for images (N, C, H, W), 0 for (N, C).

    Raises:
        ConfigError: numbers that are not finite, a std that is not positive, or lengths that differ.

    >>> Normalize(0.5, 0.25)(torch.ones(1, 1, 1, 2))
    tensor([[[[2., 2.]]]])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: float | Sequence[float], std: float | Sequence[float], *, trailing: int = 2) -> None:
        super().__init__()
        means, stds = _vector("mean", mean), _vector("std", std)
        if 1 not in (len(means), len(stds)) and len(means) != len(stds):
            raise ConfigError(
                f"normalisation has {len(means)} means but {len(stds)} standard deviations: give one each"
            )
        shape = (-1, *(1,) * trailing)
        self.register_buffer("mean", torch.tensor(means, dtype=torch.float32).reshape(shape))
        self.register_buffer("std", torch.tensor(stds, dtype=torch.float32).reshape(shape))

    @property
    def channels(self) -> int:
        """How many channels it is for; 1 fits any number."""
        return max(self.mean.shape[0], self.std.shape[0])

    def forward(self, x: Tensor) -> Tensor:
        """Normalise a batch."""
        return (x - self.mean) / self.std

    def extra_repr(self) -> str:
        """The values."""
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"
