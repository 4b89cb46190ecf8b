"""Choices that options offer, kept equal to the library's by a test."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

__all__ = ["DenseLimitOption", "FailureOption", "GuaranteeName", "MethodName", "ScopeName", "SlackOption"]

DenseLimitOption = Annotated[
    int, typer.Option("--dense-limit", min=1, help="Largest smaller side of a matrix formed for an upper bound.")
]
FailureOption = Annotated[
    float,
    typer.Option("--failure", help="Probability with which the norms of larger blocks may fail; 0: deterministic."),
]
SlackOption = Annotated[float, typer.Option("--slack", help="Relative excess of such a norm to aim at.")]


class MethodName(Enum):
    """How a bound is computed."""

    product = "product"
    liplt = "liplt"


class ScopeName(Enum):
    """What a bound is of."""

    whole = "global"
    each = "class"
    pairwise = "pairwise"


class GuaranteeName(Enum):
    """How far a bound can be trusted."""

    upper = "upper"
    estimate = "estimate"
