"""What naive tools do: small, obvious, and each wrong on some trap. Nothing here is used by anything but the traps."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


def power_norm(matrix: Tensor, *, steps: int = 5, start: Tensor | None = None) -> float:
    """Five steps of power iteration in float32 from a fixed start, with an epsilon against division by zero."""
    w = matrix.detach().float()
    v = torch.ones(w.shape[1]) if start is None else start
    for _ in range(steps):
        v = v / (v.norm() + 1e-12)
        v = w.T @ (w @ v)
    return float((w @ (v / (v.norm() + 1e-12))).norm())


def layer_norm(layer: nn.Module) -> float:
    """By the type of the layer; a kernel is reshaped to a matrix; pooling, activations and all else are taken for 1."""
    if isinstance(layer, nn.Linear):
        return power_norm(layer.weight)
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        return power_norm(layer.weight.flatten(1))
    if isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d)):
        return power_norm(layer.weight.flatten(1))
    return 1.0


def exact_layer_norm(layer: nn.Module) -> float:
    """The same with exact norms of the matrices, so that only what is done with them is naive."""
    if hasattr(layer, "weight") and layer.weight.ndim > 1:
        return float(torch.linalg.matrix_norm(layer.weight.detach().double().flatten(1), 2))
    return 1.0


def lipschitz(net: nn.Module, norm: Callable[[nn.Module], float] = layer_norm) -> float:
    """Walk the children, multiply what they are worth. (``modules()`` yields a shared layer once.)"""
    product = 1.0
    for layer in net.modules():
        if not list(layer.children()):
            product *= norm(layer)
    return product


def lipschitz_exact_layers(net: nn.Module) -> float:
    """The walk over the children with exact norms of the layers."""
    return lipschitz(net, exact_layer_norm)


def radius(net: nn.Module, x: Tensor, bound: float) -> float:
    """Margin of the logits, as the module computes them, over the bound; no √2, no ties, nothing about NaN."""
    ranked = sorted(net(x[None])[0].tolist(), reverse=True)
    return (ranked[0] - ranked[1]) / max(bound, 1e-300)


def radius_of_pairs(net: nn.Module, x: Tensor) -> float:
    """The margin of a linear classifier over the exact norm of the difference of two rows: only the logits round."""
    logits = net(x[None])[0].detach().double()
    weight = next(iter(net.parameters())).detach().double()
    top = int(logits.argmax())
    others = [b for b in range(len(logits)) if b != top]
    return min(float((logits[top] - logits[b]) / (weight[top] - weight[b]).norm()) for b in others)


def radius_without_ties(net: nn.Module, x: Tensor) -> float:
    """The margin to the largest logit that *differs* from the top one: a tie is not seen."""
    z = net(x[None])[0].detach()
    return float(z.max() - z[z < z.max()].max()) / (math.sqrt(2) * lipschitz_exact_layers(net))


def radius_sqrt2(net: nn.Module, x: Tensor) -> float:
    """With the √2, exact norms, and the logits that the module computed."""
    return radius(net, x, math.sqrt(2) * lipschitz_exact_layers(net))


def radius_by_power_iteration(net: nn.Module, x: Tensor) -> float:
    """With the √2, and power iteration in float32."""
    return radius(net, x, math.sqrt(2) * lipschitz(net))


class CachedBound:
    """Computed once for a module, and believed from then on."""

    def __init__(self) -> None:
        self.known: dict[int, float] = {}

    def __call__(self, net: nn.Module) -> float:
        return self.known.setdefault(id(net), lipschitz_exact_layers(net))
