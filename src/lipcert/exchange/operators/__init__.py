"""What each ONNX operator computes, in torch: one function an operator."""

from __future__ import annotations

# Importing a file of operators registers them.
from lipcert.exchange.operators import layers, pointwise, shapes
from lipcert.exchange.operators.registry import OPERATORS, VALUES, Sizes

__all__ = ["OPERATORS", "VALUES", "Sizes", "layers", "pointwise", "shapes"]
