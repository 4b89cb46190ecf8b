"""Certificates of small networks, and what a lie about one is: for the tests of certificates and of `verify`.

The lies themselves are in `lies_network.py`, `lies_samples.py` and `lies_smallgain.py`; `lies.py` has them all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from lipcert.certify import Certificate, Origin, Report, Samples, certificate_of, verify
from lipcert.certify.canonical import canonical
from lipcert.layers import HalfAbs
from lipcert.models.normalize import Normalize

CLASSES = ("ant", "bee", "cat")


class Residual(nn.Module):
    """Two branches, and a constant that is in no state_dict."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.register_buffer("shift", torch.full((6,), 0.1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = nn.functional.leaky_relu(self.first(x), 0.2)
        return self.last(h + torch.tanh(self.inner(h) + self.shift))


class Block(nn.Module):
    """Behind which all of a network passes through one value."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.inner, self.act, self.outer = nn.Linear(6, 4), act, nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.outer(self.act(self.inner(x)))


def network(name: str, seed: int = 0) -> nn.Module:
    """A small classifier of three classes, always the same for a name and a seed."""
    torch.manual_seed(seed)
    if name == "mlp":
        net: nn.Module = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    elif name == "linear":
        net = nn.Linear(5, 3)
    elif name == "residual":
        net = Residual()
    elif name == "halves":
        hidden = [m for _ in range(4) for m in (nn.Linear(6, 6), HalfAbs())]
        net = nn.Sequential(nn.Linear(5, 6), HalfAbs(), *hidden, nn.Linear(6, 3))
    elif name == "row":
        net = nn.Sequential(nn.Linear(5, 6), Block(nn.ReLU()), nn.ReLU(), Block(nn.Tanh()), nn.ReLU(), nn.Linear(6, 3))
    else:
        first, last = nn.Conv2d(2, 3, 3, padding=1), nn.Linear(27, 3)
        net = nn.Sequential(Normalize([0.4, 0.5], [0.2, 0.3]), first, nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), last)
    return net.eval()


def in_units_of_their_own() -> nn.Module:
    """Orthogonal layers between neurons in units of about e^±1.5, with which LipLT and the norms of layers grow."""
    torch.manual_seed(0)
    layers = [nn.Linear(12, 12) for _ in range(4)] + [nn.Linear(12, 3)]
    before = torch.ones(12)
    for layer in layers:
        nn.init.orthogonal_(layer.weight)
        units = torch.ones(3) if layer is layers[-1] else (1.5 * torch.randn(12)).exp()
        layer.weight.data = units[:, None] * layer.weight.data / before
        before = units
    return nn.Sequential(*(m for layer in layers[:-1] for m in (layer, nn.ReLU())), layers[-1]).eval()


SHAPES = {"mlp": (5,), "linear": (5,), "residual": (5,), "row": (5,), "halves": (5,), "conv": (2, 6, 6)}


def samples(name: str, count: int = 12) -> Samples:
    """Inputs in [0, 1]; three quarters are labelled as the network predicts."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand((count, *SHAPES[name]), generator=generator)
    with torch.no_grad():
        y = network(name)(x).argmax(1)
    y[::4] = (y[::4] + 1) % 3
    return Samples.of(x, y, name="made [up]", split="test", classes=CLASSES)


@cache
def certificate(name: str = "mlp", **options: Any) -> Certificate:
    """Of :func:`network` on :func:`samples`."""
    origin = Origin("mlp", {"widths": (8, 6)}, SHAPES[name], CLASSES)
    return certificate_of(network(name), samples(name), epsilons=[0.01, 0.02, 0.1], origin=origin, **options)


def content(name: str = "mlp", **options: Any) -> dict[str, Any]:
    """What stands in it, to be changed at will."""
    found: dict[str, Any] = json.loads(canonical(certificate(name, **options).model_dump()))
    del found["sha256"]
    return found


def resealed(changed: Mapping[str, Any]) -> bytes:
    """As a liar writes it: in the one form, with the checksum that belongs to it."""
    return canonical(changed)


def stale(changed: Mapping[str, Any], original: bytes) -> bytes:
    """As a change leaves it: in the one form, with the checksum of before."""
    return b"".join(resealed(changed).splitlines(keepends=True)[:-2] + original.splitlines(keepends=True)[-2:])


def checked(c: Certificate, name: str = "mlp", **options: Any) -> Report:
    """`verify` with everything that there is."""
    given: dict[str, Any] = {"origin": Origin("mlp", {"widths": [8, 6]}, SHAPES[name], CLASSES), **options}
    return verify(c, network(name), samples(name), **given)


# --- lies -------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Lie:
    """One change, and the check that finds it in a resealed certificate (``"read"``: reading refuses it)."""

    name: str
    found_by: str
    change: Callable[[dict[str, Any]], None]
    options: Mapping[str, Any]
    network: str


def lies(network: str = "mlp") -> tuple[list[Lie], Callable[..., Callable[[Callable[[dict[str, Any]], None]], None]]]:
    """A list of them about a network, and the decorator that adds to it a change and the check that finds it."""
    told: list[Lie] = []

    def lie(found_by: str, **options: Any) -> Callable[[Callable[[dict[str, Any]], None]], None]:
        def register(change: Callable[[dict[str, Any]], None]) -> None:
            told.append(Lie(change.__name__, found_by, change, options, network))

        return register

    return told, lie


def recount(c: dict[str, Any]) -> None:
    """Make verdicts, counts and shares follow from the columns again."""
    columns, count = c["samples"], c["data"]["samples"]
    correct = [a == b for a, b in zip(columns["label"], columns["prediction"], strict=True)]
    c["clean"] = {"count": sum(correct), "share": sum(correct) / count}
    for a in c["certified"]:
        a["verdict"] = [right and r > a["epsilon"] for right, r in zip(correct, columns["radius"], strict=True)]
        a["count"], a["share"] = sum(a["verdict"]), sum(a["verdict"]) / count


def scale_bound(c: dict[str, Any], factor: float) -> None:
    """A smaller bound, and all that follows from it."""
    c["bound"]["value"] = [[v * factor for v in row] for row in c["bound"]["value"]]
    for column in ("real_radius", "radius"):  # without local bounds
        c["samples"][column] = [r / factor * (1 - 1e-15) for r in c["samples"][column]]
    recount(c)


REAL = {"precision": "real"}
LOCAL = {"local": True}
RANDOM = {"precision": "real", "dense_limit": 1}
