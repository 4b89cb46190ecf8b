"""Norms of the blocks of T: estimates for training, upper bounds for certificates."""

from __future__ import annotations

from lipcert.norms.dense import upper_norms
from lipcert.norms.power import estimate_norms

__all__ = ["estimate_norms", "upper_norms"]
