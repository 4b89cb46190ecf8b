"""Chains of random matrices, and ReLU networks made of them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import nn


def matrices(*widths: int, seed: int = 0) -> list[np.ndarray]:
    """Gaussian, each (outputs, inputs), with entries of variance 1/inputs."""
    random = np.random.default_rng(seed)
    return [random.standard_normal((b, a)) / math.sqrt(a) for a, b in itertools.pairwise(widths)]


def network(weights: list[np.ndarray], *, biases: float = 0.5, seed: int = 0) -> nn.Sequential:
    """The ReLU network of these weights, in float64, with Gaussian biases of this size."""
    random, layers = np.random.default_rng(seed), list[nn.Module]()
    for w in weights:
        layer = nn.Linear(w.shape[1], w.shape[0], dtype=torch.float64)
        layer.weight.data = torch.from_numpy(w.copy())
        layer.bias.data = torch.from_numpy(random.standard_normal(len(w)) * biases)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()
