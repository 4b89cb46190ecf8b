"""The idea on a picture: two classes in the plane, plain cross-entropy beside CRM, and the ball around each point."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lipcert.certify import Radii, certify
from lipcert.errors import LipcertError
from lipcert.models import build
from lipcert.train import GainBound, crm_loss

__all__ = ["Playground", "draw", "playground", "two_moons"]

_WIDTHS, _STEPS, _LR = (64, 64), 1000, 5e-3
_TRAIN, _TEST, _NOISE = 400, 120, 0.035
_TEMPERATURE, _CAP, _WEIGHT = 40.0, 0.09, 6.0  # of CRM, in units of the plane
_COLOURS = ("#1f5fbf", "#c2571a")


@dataclass(frozen=True, eq=False)
class Playground:
    """A network that was trained on the moons, and what is certified of the test points."""

    title: str
    net: nn.Module
    radii: Radii


def two_moons(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two half circles that reach into each other, with noise: points (n, 2) in [0, 1]², classes (n,).

    >>> x, y = two_moons(100, 0)
    >>> x.shape, y.bincount().tolist(), bool((0 <= x).all() and (x <= 1).all())
    (torch.Size([100, 2]), [50, 50], True)
    """
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 2
    angle = math.pi * torch.rand(count, generator=generator)
    x = torch.stack([torch.cos(angle), torch.sin(angle)], 1)
    x[y == 1] = torch.tensor([1.0, 0.5]) - x[y == 1]
    x = (x + torch.tensor([1.25, 0.95])) / torch.tensor([3.5, 2.4])
    return (x + _NOISE * torch.randn(count, 2, generator=generator)).clamp(0, 1), y


def playground(seed: int = 0, steps: int = _STEPS) -> tuple[Playground, ...]:
    """Train the same network twice, by cross-entropy and by CRM, and certify the same points."""
    x, y = two_moons(_TRAIN, 2 * seed)
    points, classes = two_moons(_TEST, 2 * seed + 1)
    found = []
    for title, robust in (("cross-entropy", False), ("CRM", True)):
        torch.manual_seed(seed)
        net = build("mlp", input_shape=(2,), num_classes=2, widths=_WIDTHS)
        bound = GainBound(net, (2,)) if robust else None
        optimizer = torch.optim.Adam(net.parameters(), lr=_LR)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            optimizer.zero_grad()
            logits = net(x)
            if bound is None:
                loss = nn.functional.cross_entropy(logits, y)
            else:
                loss = crm_loss(logits, y, bound(), temperature=_TEMPERATURE, radius_cap=_CAP, weight=_WEIGHT)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        radii = certify(net.eval(), points, classes, method="smallgain", scaling="neuron")
        found.append(Playground(title, net, radii))
    return tuple(found)


def draw(grounds: tuple[Playground, ...], seed: int, path: Path) -> Path:
    """Decision boundaries, test points, and the ball in which each prediction provably stays.

    Raises:
        LipcertError: matplotlib is missing.
    """
    try:
        from matplotlib.collections import PatchCollection
        from matplotlib.figure import Figure
        from matplotlib.patches import Circle
    except ImportError as error:
        raise LipcertError("the picture needs matplotlib: pip install 'lipcert[demo]'") from error
    points, classes = two_moons(_TEST, 2 * seed + 1)
    figure = Figure(figsize=(5.2 * len(grounds), 5.4), layout="constrained")
    line = torch.linspace(0, 1, 300)
    grid = torch.cartesian_prod(line, line)
    for axes, ground in zip(figure.subplots(1, len(grounds)), grounds, strict=True):
        with torch.no_grad():
            z = ground.net(grid)
        side = (z[:, 1] - z[:, 0]).reshape(len(line), len(line)).T
        axes.contourf(line, line, side, levels=[-1e9, 0, 1e9], colors=_COLOURS, alpha=0.12)
        axes.contour(line, line, side, levels=[0], colors="black", linewidths=1.2)
        for k, colour in enumerate(_COLOURS):
            mine = (classes == k) & ground.radii.correct
            balls = [Circle(tuple(p), r) for p, r in zip(points[mine].tolist(), ground.radii.radius[mine], strict=True)]
            axes.add_collection(PatchCollection(balls, facecolor=colour, edgecolor=colour, alpha=0.1))
            axes.scatter(*points[classes == k].T, s=14, color=colour, edgecolor="white", linewidth=0.5, zorder=3)
        wrong = points[~ground.radii.correct]
        axes.scatter(*wrong.T, s=60, marker="x", color="black", linewidth=1.5, zorder=4)
        mean = float(ground.radii.radius[ground.radii.correct].mean())
        accuracy = 100 * ground.radii.clean_accuracy
        axes.set_title(f"{ground.title}: {accuracy:.0f} % right, mean radius {mean:.3f}", loc="left")
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
    figure.suptitle("Within each disc the network provably answers the same", x=0.01, ha="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return path
