"""Lipschitz bounds: product, LipLT and small gain; global, per class, pairwise; and lower bounds to set beside them."""

from __future__ import annotations

from lipcert.bounds.lipschitz import graph_bound, lipschitz
from lipcert.bounds.lower import LowerBound, lower_bound
from lipcert.bounds.result import Bound, Estimate, UpperBound

__all__ = [
    "Bound",
    "Estimate",
    "LowerBound",
    "UpperBound",
    "graph_bound",
    "lipschitz",
    "lower_bound",
]
