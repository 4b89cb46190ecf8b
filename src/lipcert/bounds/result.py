"""What a bound is: a value, and how much it can be trusted. An estimate and an upper bound are different types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

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
        return f"{self.method}, {self.scope}: L {certain} {shown}{note}"


@dataclass(frozen=True, eq=False)
class UpperBound(Bound):
    """A proved bound: the true Lipschitz constant of the real-arithmetic network is not larger."""

    guarantee: ClassVar[Guarantee] = "upper"


@dataclass(frozen=True, eq=False)
class Estimate(Bound):
    """The method's formula with norms estimated from below: close to the bound, and no guarantee of anything."""

    guarantee: ClassVar[Guarantee] = "estimate"
