"""The scaled map S and the gain matrix as explicit matrices, from T made without lipcert."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cases import loop_map, reference_blocks
from lipcert.loop import LoopMap
from lipcert.scaled import weight_shapes

__all__ = ["gain", "matrix", "random_output", "random_weights"]


def random_weights(loop: LoopMap, kind: str, seed: int = 0, spread: float = 1.0) -> list[Tensor]:
    """Log-normal weights of the shapes that a network asks for."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (spread * torch.randn(s, generator=generator, dtype=torch.float64)).exp() for s in weight_shapes(loop, kind)
    ]


def random_output(loop: LoopMap, seed: int = 0) -> Tensor:
    """A square P for a vector of logits."""
    (size,) = loop.target_shape(loop.depth + 1)
    generator = torch.Generator().manual_seed(seed + 100)
    return torch.randn((size, size), generator=generator, dtype=torch.float64)


def _flat(weights: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    return [d.expand(s).reshape(-1).numpy() for d, s in zip(weights, shapes, strict=True)]


def matrix(name: str, weights: Sequence[Tensor], output: Tensor | float | None) -> np.ndarray:
    """S of a case, y first: row by row of ``[P·A_yj/D_j; D_k·A_kj/D_j]``."""
    loop, blocks = loop_map(name), reference_blocks(name)
    last = loop.depth + 1
    sources = [loop.source_shape(j) for j in range(last)]
    results = [loop.target_shape(k) for k in range(1, last + 1)]
    divisors = [np.ones(math.prod(sources[0])), *_flat(weights, sources[1:])]
    factors = _flat(weights, results[:-1])
    rows = []
    for k in ([] if output is None else [last]) + list(range(1, last)):
        size = math.prod(results[k - 1])
        row = np.concatenate(
            [blocks.get((k, j), np.zeros((size, len(divisors[j])))) / divisors[j] for j in range(last)], axis=1
        )
        if k < last:
            row = factors[k - 1][:, None] * row
        else:
            row = output.numpy() @ row if isinstance(output, Tensor) else row * output
        rows.append(row)
    return np.concatenate(rows) if rows else np.zeros((0, sum(map(len, divisors))))


def gain(name: str, weights: Sequence[Tensor]) -> np.ndarray:
    """N = T_y·(I − S_zᵀS_z)⁻¹·T_yᵀ."""
    hidden, classes = matrix(name, weights, None), math.prod(loop_map(name).target_shape(loop_map(name).depth + 1))
    y = matrix(name, weights, 1.0)[:classes]
    return y @ np.linalg.solve(np.eye(y.shape[1]) - hidden.T @ hidden, y.T)
