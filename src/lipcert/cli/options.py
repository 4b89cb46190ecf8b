"""Choices that options offer, kept equal to the library's by a test."""

from __future__ import annotations

from enum import Enum

__all__ = ["GuaranteeName", "MethodName", "ScopeName"]


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
