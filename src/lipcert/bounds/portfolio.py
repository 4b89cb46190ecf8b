"""``method="best"``: every method in turn, the cheapest first, while there is time; the smallest bound is returned."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import get_args

from torch import Tensor

from lipcert.bounds.result import Attempt, Bound, Method, UpperBound
from lipcert.errors import BoundError, out_of_memory

__all__ = ["best"]

_SURE = 2.0**-40  # a later method must be smaller by more than rounding to be preferred


def best(bound: Callable[[Method, float, UpperBound | None], Bound], seconds: float) -> Bound:
    """The smallest bound found.

    Args:
        bound: makes the bound of a method, given the seconds that are left, and LipLT's bound if it is there.
        seconds: after which no method is begun. The first is always tried, and what was begun is proved.

    Returns:
        the bound with the smallest geometric mean of its values, with ``attempts`` of all methods.

    Raises:
        BoundError: neither product nor LipLT gives a bound. Other refusals, and a lack of memory, are warnings.
    """
    began, attempts = time.monotonic(), list[Attempt]()
    for method in get_args(Method):
        start = time.monotonic()
        left = seconds - (start - began)
        if left <= 0 and attempts:
            break
        liplt = next((a.bound for a in attempts if a.bound.method == "liplt"), None)
        try:
            found = bound(method, max(left, 0.1), liplt if isinstance(liplt, UpperBound) else None)
        except (BoundError, MemoryError, RuntimeError) as error:
            if not isinstance(error, BoundError) and not out_of_memory(error):
                raise
            if not attempts and method == "liplt":
                raise
            warnings.warn(f"method='best' goes without '{method}': {error}", stacklevel=4)
            if method == "liplt":
                break  # with which small gain begins
            continue
        attempts.append(Attempt(found, time.monotonic() - start))
    chosen = attempts[0].bound
    for attempt in attempts[1:]:
        if _excess(attempt.bound.value, chosen.value) < -_SURE:
            chosen = attempt.bound
    if isinstance(chosen, UpperBound):
        chosen = replace(chosen, failure=_risk(attempts))
    return replace(chosen, attempts=tuple(attempts))


def _risk(attempts: Sequence[Attempt]) -> float:
    """The probability that any of them fails: the smallest is the likeliest to have. Small gain's includes LipLT's."""
    risks = {a.bound.method: a.bound.failure for a in attempts if isinstance(a.bound, UpperBound)}
    return risks.get("product", 0.0) + max(risks.get("liplt", 0.0), risks.get("smallgain", 0.0))


def _excess(value: Tensor, other: Tensor) -> float:
    """The mean of log(value/other), where both are positive."""
    some = (value > 0) & (other > 0)
    return float((value[some] / other[some]).log().mean()) if bool(some.any()) else 0.0
