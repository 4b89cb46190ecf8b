"""What a case is, how one is registered, and the small building bricks that the cases share."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

CASES: dict[str, Case] = {}


@dataclass(frozen=True)
class Case:
    """A small network: how to build it, the shape of one input, and what tests may assume of it.

    Tags: ``chain`` (layers one after another, each activation's input made from the one before), ``image`` (the
    output is not a vector of logits), ``twin`` (identical steps that lipcert merges, so its T has fewer sources).
    """

    name: str
    shape: tuple[int, ...]
    build: Callable[[], nn.Module]
    tags: frozenset[str]

    def module(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """A fresh copy, the same every time, in eval mode, with random statistics in its BatchNorms."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(zlib.crc32(self.name.encode()))
            module = self.build()
            with torch.no_grad():
                for m in module.modules():
                    if isinstance(m, nn.modules.batchnorm._BatchNorm):
                        m.running_mean.normal_()
                        m.running_var.uniform_(0.3, 2.0)
                        if m.affine:
                            m.weight.normal_(0.2, 1.0)  # some are negative
                            m.bias.normal_()
        return module.to(dtype).eval()

    def inputs(self, rows: int, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
        """A Gaussian batch."""
        generator = torch.Generator().manual_seed(seed)
        return (torch.randn((rows, *self.shape), generator=generator, dtype=torch.float64) * scale).to(dtype)


def case(name: str, shape: tuple[int, ...], build: Callable[[], nn.Module], *tags: str) -> None:
    """Put a network into the catalogue."""
    assert name not in CASES, name
    CASES[name] = Case(name, shape, build, frozenset(tags))


class Fn(nn.Module):
    """A module whose forward is a function ``f(self, x)``; parameters, buffers and submodules by keyword."""

    def __init__(self, f: Callable[[Fn, Tensor], Tensor], **parts: object) -> None:
        super().__init__()
        self.f = f
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self, x)


def classifier(shape: tuple[int, ...], *layers: nn.Module, classes: int = 3) -> nn.Sequential:
    """The layers, then flatten and one linear layer to the logits."""
    body = nn.Sequential(*layers, nn.Flatten())
    with torch.no_grad():
        width = body.eval()(torch.zeros(2, *shape)).shape[1]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, classes))


def layers(name: str, shape: tuple[int, ...], build: Callable[[], list[nn.Module]], *tags: str) -> None:
    """A case that is a list of layers followed by a linear classifier."""
    case(name, shape, lambda: classifier(shape, *build()), *tags)


def function(name: str, shape: tuple[int, ...], f: Callable[[Fn, Tensor], Tensor], *tags: str, **parts: object) -> None:
    """A case that is one function ``f(self, x)``; each part is a function that makes it."""
    case(name, shape, lambda: Fn(f, **{k: make() for k, make in parts.items()}), *tags)
