"""Choices that options offer, kept equal to the library's by a test."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Annotated

import typer

from lipcert.errors import ConfigError

__all__ = [
    "DenseLimitOption",
    "FailureOption",
    "GuaranteeName",
    "MethodName",
    "PrecisionName",
    "RefineOption",
    "ScalingName",
    "ScalingOption",
    "ScopeName",
    "SecondsOption",
    "SlackOption",
    "check_refine",
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

SecondsOption = Annotated[
    float,
    typer.Option("--seconds", min=0.1, help="How long a small-gain bound, or the best, is searched for at most."),
]


RefineOption = Annotated[
    float,
    typer.Option(
        "--refine",
        min=0.0,
        help="Seconds more for small gain (--scope pairwise or class), a pair at a time: some minutes for ten classes.",
        show_default="none",
    ),
]


class PrecisionName(Enum):
    """The arithmetic for which radii hold."""

    float32 = "float32"
    float64 = "float64"
    real = "real"


class MethodName(Enum):
    """How a bound is computed."""

    product = "product"
    liplt = "liplt"
    smallgain = "smallgain"
    best = "best"


class ScalingName(Enum):
    """What shares a weight in a small-gain bound."""

    auto = "auto"
    layer = "layer"
    channel = "channel"
    neuron = "neuron"


class ScopeName(Enum):
    """What a bound is of."""

    whole = "global"
    each = "class"
    pairwise = "pairwise"


class GuaranteeName(Enum):
    """How far a bound can be trusted."""

    upper = "upper"
    estimate = "estimate"


ScalingOption = Annotated[
    ScalingName,
    typer.Option("--scaling", help="What shares a weight in a small-gain bound; auto: the finest that time allows."),
]


def check_refine(refine: float, methods: Sequence[MethodName], scope: ScopeName) -> None:
    """Refuse --refine where there is nothing to refine.

    Raises:
        ConfigError: which option is missing.
    """
    if refine and MethodName.smallgain not in methods:
        raise ConfigError("--refine is for --method smallgain, whose weights it searches for.")
    if refine and scope is ScopeName.whole:
        raise ConfigError("--refine is for bounds of single outputs: --scope pairwise or class.")
