"""What an adversary found, in numbers that add up over networks."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from adversary_nets import Network

__all__ = ["ROUNDING", "Finding", "Tally"]

ROUNDING = 1e-9
"""Allowed for the attack's own float64 arithmetic: more than this above a bound is a violation."""


@dataclass(frozen=True)
class Finding:
    """A claim that was broken, and how to see it: ``examine(<network>, seed)`` in tests/adversary.py."""

    network: str
    seed: int
    what: str
    value: float
    limit: float
    point: list[float]

    def __str__(self) -> str:
        return (
            f"{self.what}: {self.value!r} exceeds {self.limit!r}\n"
            f"    see it again, in tests/: from adversary_nets import *; from adversary import examine\n"
            f"    print(examine({self.network}, {self.seed}))\n    at {self.point}"
        )


@dataclass
class Tally:
    """What an adversary did and found; ``+=`` of several gives that of all."""

    nets: int = 0
    attacks: int = 0
    points: int = 0
    broken: dict[str, int] = field(default_factory=dict)
    tightest: dict[str, float] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def judge(self, network: Network, seed: int, what: str, value: Tensor, limit: Tensor, x: Tensor | None) -> None:
        """No value (n,) may exceed its limit (n,): a slope its bound, a radius the distance of a changed prediction.

        ``x`` are the points (n, …) that belong to them, if any.
        """
        ratio = torch.where(value > 0, value / limit, torch.zeros_like(value))
        if ratio.numel():
            self.tightest[what] = max(self.tightest.get(what, 0.0), float(ratio.max()))
        self.count(what, 0)
        for i in torch.nonzero(~(ratio <= 1 + ROUNDING)).flatten().tolist():
            self.count(what, 1)
            where = [] if x is None else x[i].flatten().tolist()
            self.findings.append(Finding(network.name, seed, what, float(value[i]), float(limit[i]), where))

    def count(self, what: str, broken: int) -> None:
        """Violations of a kind that has no ratio; 0 says that there was an attempt."""
        self.broken[what] = self.broken.get(what, 0) + broken

    def __iadd__(self, other: Tally) -> Tally:
        self.nets += other.nets
        self.attacks += other.attacks
        self.points += other.points
        for what, broken in other.broken.items():
            self.count(what, broken)
        for what, ratio in other.tightest.items():
            self.tightest[what] = max(self.tightest.get(what, 0.0), ratio)
        self.findings += other.findings
        return self
