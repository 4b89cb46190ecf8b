"""How right the gradient of a training bound is: the derivative of log L by the log of each layer's scale is 1.

A network without biases is multiplied by c when one of its layers is, and biases do not matter for a Lipschitz bound.
"""

from __future__ import annotations

import torch
from torch import nn

import lipcert
from lipcert.models import build
from lipcert.train import GainBound, TrainingBound


def main() -> None:
    """Print the derivatives, of the geometric mean over pairs, layer by layer."""
    torch.manual_seed(0)
    mnist = (1, 28, 28)
    mlp = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 10))
    nets: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
        "MLP 30-40-40-10, fresh": (mlp, (30,)),
        "4C3F, fresh": (build("4c3f", input_shape=mnist, num_classes=10), mnist),
        "4C3F, orthogonal start": (build("4c3f", input_shape=mnist, num_classes=10, init="orthogonal"), mnist),
        "mnist-4c3f-crm": (lipcert.load("mnist-4c3f-crm"), mnist),
    }
    for name, (net, shape) in nets.items():
        for kind in (GainBound, TrainingBound):
            bound = kind(net, shape)
            bound.refresh(60)
            weights = [p for p in net.parameters() if p.ndim > 1]
            value = bound()
            gradients = torch.autograd.grad(value[value > 0].log().mean(), weights)
            found = [float((g * w.detach()).sum()) for g, w in zip(gradients, weights, strict=True)]
            print(f"{name:<24} {kind.__name__:<14} L {float(value.detach().max()):.3f}  ", *(f"{x:.2f}" for x in found))
