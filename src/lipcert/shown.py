"""Shares and radii as people read them, rounded the way that claims nothing."""

from __future__ import annotations

import math
from decimal import ROUND_FLOOR, Context, Decimal

__all__ = ["percent", "radius"]


def percent(share: float, *, up: bool = False) -> str:
    """A share as a percentage with two decimals, rounded down: 99.996 % are not 100. Up where it is an upper bound.

    >>> percent(2 / 3), percent(2 / 3, up=True), percent(0.57), percent(0.99999)
    ('66.66 %', '66.67 %', '57.00 %', '99.99 %')
    """
    hundredths = 1e4 * share
    whole = math.ceil(hundredths - 1e-6) if up else math.floor(hundredths + 1e-6)
    return f"{whole / 100:.2f} %"


def radius(value: float, digits: int = 6) -> str:
    """A radius at which a share is stated: as it is written where that is short, else rounded down.

    >>> radius(0.3), radius(1.0), radius(36 / 255), radius(36 / 255, 4)
    ('0.3', '1', '0.141176', '0.1411')
    """
    short = f"{value:.{digits}g}"
    if float(short) == value:
        return short
    return format(Context(digits, ROUND_FLOOR).create_decimal(Decimal(value)), "g")
