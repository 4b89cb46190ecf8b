"""Turning a module into a graph of affine maps and slope-bounded activations."""

from __future__ import annotations

from lipcert.graph.trace import check_mode, trace
from lipcert.graph.types import Graph

__all__ = ["Graph", "check_mode", "trace"]
