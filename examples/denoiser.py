"""A denoiser that is to stand in an iteration, and whether it is nonexpansive, so that plug-and-play converges.

    python examples/denoiser.py

Plug-and-play methods put a denoiser f where a proximal step would be; what is known of their convergence asks that f,
or x − f(x), is nonexpansive. Two networks are trained on the digits: one like DnCNN, and one of layers whose Lipschitz
constant is 1 by construction. Both are bounded as maps of images; half a minute on a laptop.
"""

from __future__ import annotations

import torch
from torch import nn

import lipcert
from lipcert.data import as_float, load
from lipcert.layers import SmallGainConv2d, fold

SHAPE = (1, 8, 8)


class Residual(nn.Module):
    """x − body(x): the noise is estimated, and taken off."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Take the noise off."""
        return x - self.body(x)


def plain() -> nn.Module:
    """Three convolutions."""
    return Residual(
        nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 1, 3, padding=1),
        )
    )


def nonexpansive() -> nn.Module:
    """Two blocks that are 1-Lipschitz whatever their weights are."""
    return nn.Sequential(SmallGainConv2d(SHAPE, 16), SmallGainConv2d(SHAPE, 16))


def trained(module: nn.Module, images: torch.Tensor, steps: int) -> tuple[nn.Module, float]:
    """The module after training on noisy digits, and its mean squared error over that of doing nothing."""
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        clean = images[torch.randint(len(images), (128,), generator=generator)]
        noisy = clean + 0.2 * torch.randn(clean.shape, generator=generator)
        optimizer.zero_grad()
        (module(noisy) - clean).square().mean().backward()
        optimizer.step()
    module.eval()
    with torch.no_grad():
        noisy = images + 0.2 * torch.randn(images.shape, generator=generator)
        return module, float((module(noisy) - images).square().mean() / (noisy - images).square().mean())


def main(steps: int = 400) -> dict[str, tuple[float, float]]:
    """Print errors and bounds; returns (relative error, proved Lipschitz bound) by name."""
    images, found = as_float(load("digits", "train").images), {}
    for name, make in (("plain", plain), ("nonexpansive", nonexpansive)):
        torch.manual_seed(0)
        module, error = trained(make(), images, steps)
        bound = float(lipcert.lipschitz(fold(module), SHAPE, method="smallgain", guarantee="upper"))
        found[name] = (error, bound)
        print(f"{name:>13}: error {error:.3f} of the noise, Lipschitz constant ≤ {bound:.3f}")
    return found


if __name__ == "__main__":
    main()
