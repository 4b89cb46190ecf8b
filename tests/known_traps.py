"""Networks that are known to trap certifiers, for tests in more than one place."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["BETWEEN", "LOGITS", "WEIGHTS", "two_weights"]

WEIGHTS = [[0.9890594482421875], [0.989059507846832275390625]]  # Murray 2026, arXiv 2603.13334
LOGITS = [0.195054709911346435546875, 0.19505472481250762939453125]
BETWEEN = 0.1972123235464096  # the float32 number at which a float32 run of these weights gives these logits


def two_weights() -> nn.Module:
    """y = ReLU(x)·(w_0, w_1), two weights that differ in their last digit: all that float32 sees of it is rounding."""
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 2, bias=False)).eval()
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[2].weight.copy_(torch.tensor(WEIGHTS))
    return net
