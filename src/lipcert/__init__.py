"""Provably robust neural networks: Lipschitz bounds, certified radii, certified training."""

from __future__ import annotations

from lipcert.graph import Graph, trace

__all__ = ["Graph", "trace"]
