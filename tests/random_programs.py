"""Networks put together at random: any layer on any earlier value, joined by sums, differences, maxima and concats."""

from __future__ import annotations

import math
import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHAPE = (2, 4, 4)
ACTIVATIONS = (nn.ReLU, nn.GELU, nn.Tanh, nn.SiLU, nn.Hardtanh, nn.PReLU)
# Layers are made anew; the others take one or two values.
KINDS = {
    "conv": None, "batchnorm": None, "activation": None, "maxpool": None, "avgpool": None,
    "inplace": lambda a, b: F.relu_(a * 1),
    "add": lambda a, b: a + b,
    "sub": lambda a, b: torch.sub(a, b, alpha=0.7),
    "cat": lambda a, b: torch.cat([a, b], 1),
    "maxmin": lambda a, b: torch.maximum(a, b) - 0.5 * torch.minimum(a, b),
    "scale": lambda a, b: a / -3,
    "transpose": lambda a, b: a.transpose(2, 3),
    "slice": lambda a, b: a[:, :, 1:],
    "pad": lambda a, b: F.pad(a, (0, 0, 1, 0), value=1.5),
    "chunk": lambda a, b: a.chunk(2, 1)[-1],
    "upsample": lambda a, b: F.interpolate(a, scale_factor=2),
    "roll": lambda a, b: a.roll(1, 3),
    "sort": lambda a, b: a.sort(2).values,
    "mean": lambda a, b: a.mean(2, keepdim=True),
}  # fmt: skip


class Program(nn.Module):
    """Up to ``steps`` random steps on images, then a linear classifier of the last value."""

    def __init__(self, seed: int, steps: int = 12) -> None:
        super().__init__()
        self.random = random.Random(seed)
        torch.manual_seed(seed)
        self.layers, self.steps = nn.ModuleList(), []
        shapes = [SHAPE]
        for _ in range(steps):
            i = self.random.randrange(max(0, len(shapes) - 4), len(shapes))
            j = self.random.randrange(len(shapes))
            kind = self.random.choice(list(KINDS))
            values = [torch.zeros(2, *s, dtype=torch.float64) for s in shapes]
            try:
                layer = self._layer(kind, shapes[i][0])
                out = self._step(values, kind, i, j, layer)
            except (RuntimeError, ValueError):  # the shapes do not fit: another step
                continue
            if out.ndim != 4 or not 0 < out[0].numel() <= 128:
                continue
            self.steps.append((kind, i, j, None if layer is None else len(self.layers)))
            self.layers.extend([] if layer is None else [layer])
            shapes.append(tuple(out.shape[1:]))
        self.head = nn.Linear(math.prod(shapes[-1]), 3)
        self.double().eval()

    def _layer(self, kind: str, channels: int) -> nn.Module | None:
        r = self.random
        if kind == "conv":
            kernel, stride, padding = r.choice([1, 2, 3]), r.choice([1, 2]), r.choice([0, 1])
            mode = r.choice(["zeros", "circular", "replicate"])
            return nn.Conv2d(channels, r.choice([1, 2, 3]), kernel, stride, padding, padding_mode=mode).double()
        if kind == "batchnorm":
            layer = nn.BatchNorm2d(channels).double().eval()
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.3, 2)
            layer.weight.data.normal_()
            return layer
        if kind == "activation":
            return r.choice(ACTIVATIONS)().double()
        if kind in ("maxpool", "avgpool"):
            pool = nn.MaxPool2d if kind == "maxpool" else nn.AvgPool2d
            return pool(r.choice([2, 3]), r.choice([1, 2]), r.choice([0, 1]), ceil_mode=r.random() < 0.5)
        return None

    def _step(self, values: list[Tensor], kind: str, i: int, j: int, layer: nn.Module | None) -> Tensor:
        if layer is not None:
            return layer(values[i])
        if kind == "maxmin" and i == j:
            raise ValueError("of two different values")
        return KINDS[kind](values[i], values[j])

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for kind, i, j, at in self.steps:
            values.append(self._step(values, kind, i, j, None if at is None else self.layers[at]))
        return self.head(values[-1].flatten(1))
