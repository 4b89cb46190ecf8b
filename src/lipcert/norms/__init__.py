"""Norms of the blocks of T: estimates for training, upper bounds for certificates."""

from __future__ import annotations

from lipcert.norms.lanczos import estimate_norms
from lipcert.norms.result import Norm
from lipcert.norms.upper import upper_norms

__all__ = ["Norm", "estimate_norms", "upper_norms"]
