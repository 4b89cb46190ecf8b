"""Bounds by the textbook, from explicit matrices; and what no upper bound may lie below."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor, nn

from references import Blocks


def norm(matrix: np.ndarray) -> float:
    """The largest singular value."""
    return float(np.linalg.svd(matrix, compute_uv=False)[0])


def hidden(blocks: Blocks, last: int) -> list[float]:
    """``m_0 = 1, m_k = Σ_j ‖A_kj‖·m_j``: LipLT from centred blocks, the product bound from others."""
    m = [1.0]
    for k in range(1, last):
        m.append(sum(norm(blocks[k, j]) * m[j] for j in range(k) if (k, j) in blocks))
    return m


def _last(blocks: Blocks) -> int:
    return max(k for k, _ in blocks)


def global_bound(blocks: Blocks) -> float:
    """L of the whole output."""
    last = _last(blocks)
    m = hidden(blocks, last)
    return sum(norm(blocks[last, j]) * m[j] for j in range(last) if (last, j) in blocks)


def class_bounds(blocks: Blocks, classes: int) -> np.ndarray:
    """L of each logit: the same with one row."""
    last = _last(blocks)
    m = hidden(blocks, last)
    rows = [
        [np.linalg.norm(blocks[last, j][a]) * m[j] for j in range(last) if (last, j) in blocks] for a in range(classes)
    ]
    return np.array([sum(r) for r in rows])


def pair_bounds(blocks: Blocks, classes: int) -> np.ndarray:
    """L of each difference of two logits: the same with the difference of two rows, pair by pair."""
    last = _last(blocks)
    m = hidden(blocks, last)
    result = np.zeros((classes, classes))
    for a, b in itertools.permutations(range(classes), 2):
        for j in range(last):
            if (last, j) in blocks:
                result[a, b] += np.linalg.norm(blocks[last, j][a] - blocks[last, j][b]) * m[j]
    return result


def jacobians(module: nn.Module, x: Tensor) -> Tensor:
    """(N, C, n): the derivative of each output in each input, at each sample."""
    rows = []
    x = x.clone().requires_grad_()
    out = module(x.clone()).flatten(1)
    for c in range(out.shape[1]):
        (g,) = torch.autograd.grad(out[:, c].sum(), x, retain_graph=True, allow_unused=True)
        rows.append(torch.zeros_like(x).flatten(1) if g is None else g.flatten(1))
    return torch.stack(rows, 1).detach()


def steepest_quotient(module: nn.Module, x: Tensor, steps: int = 15) -> float:
    """The largest ‖f(x) − f(x')‖/‖x − x'‖ that gradient ascent over both ends finds from a batch of starts."""
    generator = torch.Generator().manual_seed(5)
    ends = torch.stack([x, x + torch.randn(x.shape, generator=generator, dtype=x.dtype)]).requires_grad_()
    optimiser = torch.optim.Adam([ends], lr=0.1)
    best = 0.0
    for _ in range(steps):
        a, b = ends.unbind()
        rise, run = (module(a.clone()) - module(b.clone())).flatten(1).norm(dim=1), (a - b).flatten(1).norm(dim=1)
        quotient = rise / run.clamp_min(1e-6)
        best = max(best, float(quotient.detach()[run.detach() > 1e-6].max()))
        optimiser.zero_grad()
        (-quotient.sum()).backward()
        optimiser.step()
    return best
