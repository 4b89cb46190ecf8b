"""Choices that options offer, kept equal to the library's by a test."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

__all__ = [
    "DenseLimitOption",
    "FailureOption",
    "GuaranteeName",
    "MethodName",
    "PrecisionName",
    "ScopeName",
    "SlackOption",
]

DenseLimitOption = Annotated[
    int | None,
    typer.Option(
        "--dense-limit",
        min=1,
        help="Largest smaller side of a block of which an upper bound forms a matrix.",
        show_default="2048, or 16384 with --failure 0",
    ),
]
FailureOption = Annotated[
    float,
    typer.Option("--failure", help="Probability with which the norms of larger blocks may fail; 0: deterministic."),
]
SlackOption = Annotated[float, typer.Option("--slack", help="Relative excess of an upper bound to aim at.")]


class PrecisionName(Enum):
    """The arithmetic for which radii hold."""

    float32 = "float32"
    float64 = "float64"
    real = "real"


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
