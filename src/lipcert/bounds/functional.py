"""Functionals of a network's output: what is asked of an output that is not a vector of logits."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lipcert.errors import ShapeError
from lipcert.graph.trace import trace

__all__ = ["weighted"]


class _Weighted(nn.Module):
    """``x ↦ (⟨w_i, f(x)⟩)_i``."""

    weights: Tensor

    def __init__(self, module: nn.Module, weights: Tensor) -> None:
        super().__init__()
        self.module = module
        self.register_buffer("weights", weights)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = nn.functional.linear(self.module(x).flatten(1), self.weights)
        return result


def weighted(module: nn.Module, input_shape: Sequence[int], weights: Tensor) -> nn.Module:
    """A module of linear functionals of another's output.

    Args:
        module: in eval mode.
        input_shape: of one input, without the batch dimension.
        weights: w, of the shape of one output, or (m, *output_shape) for m functionals.

    Raises:
        ShapeError: weights of another shape, or not finite.
    """
    if not isinstance(weights, Tensor) or weights.layout != torch.strided:
        raise ShapeError(f"output_weights must be a dense tensor; got {type(weights).__name__}.")
    graph = trace(module, input_shape)
    output, given = graph.output_shape, tuple(weights.shape)
    if given != output and given[1:] != output:
        raise ShapeError(
            f"output_weights must be of the output's shape {output}, or (m, {', '.join(map(str, output))}) for m "
            f"functionals of it; got {given}."
        )
    if not weights.is_floating_point() or not bool(torch.isfinite(weights).all()):
        raise ShapeError("output_weights must hold finite floating-point numbers.")
    like = graph.capture.sample
    given_rows = weights.detach().to(like.device).reshape(-1, math.prod(output))
    rows = given_rows.to(like.dtype)
    if not torch.equal(rows.double(), given_rows.double()):  # then the network is bounded in float64, as it is stored
        module, rows = copy.deepcopy(module).double(), given_rows.double()
    result = _Weighted(module, rows)
    result.training = False  # without eval(): it might prove a layer's factor anew, and that would be another network
    return result
