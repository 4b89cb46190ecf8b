"""Lipschitz bounds: product and LipLT; global, per class, pairwise."""

from __future__ import annotations

from lipcert.bounds.lipschitz import graph_bound, lipschitz
from lipcert.bounds.result import Bound, Estimate, UpperBound

__all__ = ["Bound", "Estimate", "UpperBound", "graph_bound", "lipschitz"]
