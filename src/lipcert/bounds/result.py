"""What a bound is: a value, and how much it can be trusted. An estimate and an upper bound are different types."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, ROUND_FLOOR, Context
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lipcert.bounds.evidence import Evidence, Scaling
from lipcert.norms.result import Norm

__all__ = [
    "AnyMethod",
    "Attempt",
    "Bound",
    "Estimate",
    "Guarantee",
    "Label",
    "Method",
    "Scope",
    "UpperBound",
    "rounded",
]

Method = Literal["product", "liplt", "smallgain"]  # the cheapest first
AnyMethod = Literal["product", "liplt", "smallgain", "best"]
Label = Method | Literal["layers"]  # or by the construction of a network's layers
Scope = Literal["global", "class", "pairwise"]
Guarantee = Literal["estimate", "upper"]


def rounded(value: float, digits: int, *, up: bool) -> str:
    """A number in a few digits that is not below (or not above) it.

    >>> rounded(0.8536543004744892, 6, up=True), rounded(36 / 255, 6, up=False), rounded(2.0, 6, up=True)
    ('0.853655', '0.141176', '2')
    """
    if not math.isfinite(value):
        return str(value)
    short = Context(prec=digits, rounding=ROUND_CEILING if up else ROUND_FLOOR).create_decimal_from_float(value)
    return f"{short.normalize():g}" if short else "0"


@dataclass(frozen=True, eq=False)
class Bound:
    """A Lipschitz constant in ℓ2, per unit of the module's input.

    Attributes:
        value: float64 tensor: () for ``global``, (C,) for ``class`` (logit a), (C, C) with zero diagonal for
            ``pairwise`` (difference of logits a and b).
        method: how it was computed.
        scope: what it bounds.
        guarantee: ``"upper"`` if it is proved, else ``"estimate"``.
        attempts: what each method gave, where ``"best"`` was asked for.
    """

    value: Tensor
    method: Label
    scope: Scope
    attempts: tuple[Attempt, ...] = field(default=(), kw_only=True)
    guarantee: ClassVar[Guarantee]

    def __float__(self) -> float:
        return float(self.value)

    def summary(self) -> str:
        """One line for people; says whether the value is certain."""
        return f"{self.method}, {self.scope}: {self.shown()} ({self.proof()})"

    def ends(self) -> tuple[float, float]:
        """The smallest and the largest value, of different classes."""
        values = self.value.detach().cpu()
        if values.ndim == 2:
            values = values[~torch.eye(len(values), dtype=torch.bool)]
        return float(values.min()), float(values.max())

    def shown(self, digits: int = 6) -> str:
        """The value in a few digits, with its sign: an upper bound is rounded up, never below what was proved."""
        upper = self.guarantee == "upper"
        ends = dict.fromkeys(rounded(v, digits, up=True) if upper else f"{v:.{digits}g}" for v in self.ends())
        return f"L {'≤' if upper else '≈'} {' … '.join(ends)}"

    def proof(self) -> str:
        """How far it can be trusted, for people."""
        return "an estimate from below: not a certificate"


@dataclass(frozen=True, eq=False)
class Attempt:
    """A bound by one method, and the seconds that it took."""

    bound: Bound
    seconds: float


@dataclass(frozen=True, eq=False)
class UpperBound(Bound):
    """A proved bound: the true Lipschitz constant of the real-arithmetic network is not larger.

    Attributes:
        failure: the probability, over random vectors drawn after the weights were fixed, that it is larger all the
            same; 0 if every norm was proved without the randomised test.
        slack: the relative excess over what the same formula gives with the norms as they were seen to be.
        norms: the proof of each block's norm, by (target, source).
        hidden: m_k, a Lipschitz constant of x ↦ z_k, for each activation k = 1…K.
        heads: for each source j the norms ‖row·A_yj‖ that the value is made of, in its shape.
        evidence: what proves a small-gain bound. Its other parts are then those of LipLT's bound, which carries the
            rounding of an execution; its value is in no entry larger than LipLT's.
        further: more such evidence, with weights for single entries (``refine=``): the value is the smallest that any
            gives.
        parts: of a small-gain bound of a residual network, where they were asked for, those of its parts
            (:mod:`lipcert.bounds.parts`): global but for the last, which is in this bound's scope.
        behind, until: of a part, what proves small-gain bounds of all that comes behind it (in the scope of the whole)
            and of all up to its end (global); None where the product of the parts' constants has to do.
    """

    failure: float = 0.0
    slack: float = 0.0
    norms: Mapping[tuple[int, int], Norm] = field(default_factory=dict)
    hidden: Mapping[int, float] = field(default_factory=dict)
    heads: Mapping[int, Tensor] = field(default_factory=dict)
    evidence: Evidence | None = None
    further: tuple[Evidence, ...] = ()
    parts: tuple[UpperBound, ...] = ()
    behind: Evidence | None = None
    until: Evidence | None = None
    guarantee: ClassVar[Guarantee] = "upper"

    def proof(self) -> str:
        """How far it can be trusted, for people."""
        return f"proved, except with probability {self.failure:.6g}" if self.failure else "proved"


@dataclass(frozen=True, eq=False)
class Estimate(Bound):
    """The method's formula with norms estimated from below: close to the bound, and no guarantee of anything.

    Attributes:
        scaling: of a small-gain bound, the weights that were found.
    """

    scaling: Scaling | None = None
    guarantee: ClassVar[Guarantee] = "estimate"
