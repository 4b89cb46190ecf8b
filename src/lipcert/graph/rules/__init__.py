"""The rules: one small registered function for each kind of operation; importing this registers them all."""

from __future__ import annotations

from lipcert.graph.rules import activations, arithmetic, linear, pooling, refused, shape

__all__ = ["activations", "arithmetic", "linear", "pooling", "refused", "shape"]
