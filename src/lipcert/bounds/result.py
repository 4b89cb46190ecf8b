"""What a bound is: a value, and how much it can be trusted. An estimate and an upper bound are different types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from lipcert.norms.result import Norm

__all__ = ["Bound", "Estimate", "Guarantee", "Method", "Scope", "UpperBound"]

Method = Literal["product", "liplt"]
Scope = Literal["global", "class", "pairwise"]
Guarantee = Literal["estimate", "upper"]


@dataclass(frozen=True, eq=False)
class Bound:
    """A Lipschitz constant in ℓ2, per unit of the module's input.

    Attributes:
        value: float64 tensor: () for ``global``, (C,) for ``class`` (logit a), (C, C) with zero diagonal for
            ``pairwise`` (difference of logits a and b).
        method: how it was computed.
        scope: what it bounds.
    """

    value: Tensor
    method: Method
    scope: Scope
    guarantee: ClassVar[Guarantee]

    def __float__(self) -> float:
        return float(self.value)

    def summary(self) -> str:
        """One line for people; says whether the value is certain."""
        certain = "≤" if self.guarantee == "upper" else "≈"
        if self.scope == "global":
            shown = f"{float(self.value):.6g}"
        else:
            off = self.value[self.value > 0]
            shown = f"{float(off.min()):.6g} … {float(off.max()):.6g}" if off.numel() else "0"
        note = "" if self.guarantee == "upper" else " (an estimate from below: not a certificate)"
        return f"{self.method}, {self.scope}: L {certain} {shown}{note or self.proof()}"

    def proof(self) -> str:
        """How certain an upper bound is, for people; nothing where that goes without saying."""
        return ""


@dataclass(frozen=True, eq=False)
class UpperBound(Bound):
    """A proved bound: the true Lipschitz constant of the real-arithmetic network is not larger.

    Attributes:
        failure: the probability, over random vectors drawn after the weights were fixed, that it is larger all the
            same; 0 if every norm was proved by an explicit matrix.
        slack: the relative excess over what the same formula gives with the norms as they were seen to be.
        norms: the proof of each block's norm, by (target, source).
    """

    failure: float = 0.0
    slack: float = 0.0
    norms: Mapping[tuple[int, int], Norm] = field(default_factory=dict)
    guarantee: ClassVar[Guarantee] = "upper"

    def proof(self) -> str:
        """Its probability of failure, if it has one."""
        return f" (except with probability {self.failure:.1g})" if self.failure else ""


@dataclass(frozen=True, eq=False)
class Estimate(Bound):
    """The method's formula with norms estimated from below: close to the bound, and no guarantee of anything."""

    guarantee: ClassVar[Guarantee] = "estimate"
