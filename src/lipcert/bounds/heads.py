"""Heads: from the hidden bounds to L of the whole output, of each logit, or of each difference of two logits.

The pairwise head needs ‖(e_a − e_b)ᵀA_yj‖ for all pairs. With the C rows ``p_a = A_yjᵀe_a`` (C adjoint passes) and
their Gram matrix M it is ``√(M_aa + M_bb − 2 M_ab)``: no pass for each of the C(C−1)/2 pairs. Where two rows nearly
agree that difference cancels, and the rows themselves are subtracted; for an upper bound always.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lipcert.loop import LoopMap
from lipcert.norms.dense import adjoint_rows, chunk, rows_error
from lipcert.norms.errors import gamma, underflow
from lipcert.norms.scaling import row_differences, row_norms

__all__ = ["class_norms", "pairwise_norms", "row_distances"]

_CANCELS = 1e-3  # below this share of the terms, a squared distance from a Gram matrix is formed again directly
_MEMORY = 2**28  # float64 entries of rows held at once (2 GiB)


def row_distances(left: Tensor, right: Tensor) -> Tensor:
    """``‖left_a − right_b‖₂`` for all rows, from a Gram matrix, with near-equal rows subtracted directly.

    Args:
        left: (A, n); right: (B, n).

    Example:
        >>> rows = torch.tensor([[1.0, 0.0], [1.0, 1e-9], [0.0, 2.0]], dtype=torch.float64)
        >>> row_distances(rows, rows)[0, 1].item()
        1e-09
    """
    terms = left.square().sum(1)[:, None] + right.square().sum(1)[None, :]
    squares = terms - 2 * (left @ right.T)
    a, b = torch.nonzero(squares < _CANCELS * terms, as_tuple=True)
    step = max(1, 2**24 // left.shape[1])
    for i in range(0, len(a), step):
        some = slice(i, i + step)
        squares[a[some], b[some]] = (left[a[some]] - right[b[some]]).square().sum(1)
    return squares.clamp_min(0).sqrt()


def _blocks(loop: LoopMap) -> Iterator[tuple[int, int]]:
    classes = loop.target_shape(loop.depth + 1)[0]
    entries = sum(math.prod(loop.source_shape(j)) for j in range(loop.depth + 1))
    step = max(1, min(classes, _MEMORY // max(entries, 1)))
    for start in range(0, classes, step):
        yield start, min(start + step, classes)


def _rows(loop: LoopMap, start: int, stop: int) -> dict[int, Tensor]:
    """All rows of a block of classes, made in passes of a bounded number of rows."""
    step = chunk(loop)
    target, sources = loop.depth + 1, range(loop.depth + 1)
    parts = [adjoint_rows(loop, target, sources, i, min(i + step, stop)) for i in range(start, stop, step)]
    return {j: torch.cat([p[j] for p in parts]) for j in parts[0]}


def class_norms(loop: LoopMap, *, upper: bool) -> dict[int, Tensor]:
    """``‖e_aᵀA_yj‖`` for each source j and class a: {j: (C,)}; with ``upper`` not below the true value."""
    parts: list[dict[int, Tensor]] = []
    lost = underflow(loop) if upper else None
    for start, stop in _blocks(loop):
        rows = _rows(loop, start, stop)
        norms = {j: row_norms(v) for j, v in rows.items()}
        if lost is not None:
            error = rows_error(loop, loop.depth + 1, list(rows), start, stop, lost)
            norms = {j: v * (1 + gamma(rows[j].shape[1] + 4)) + error[j] for j, v in norms.items()}
        parts.append(norms)
    return {j: torch.cat([p[j] for p in parts]).double() for j in parts[0]}


def pairwise_norms(loop: LoopMap, *, upper: bool) -> dict[int, Tensor]:
    """``‖(e_a − e_b)ᵀA_yj‖`` for each source j: {j: (C, C)}; with ``upper`` not below the true value."""
    classes = loop.target_shape(loop.depth + 1)[0]
    distance: Callable[[Tensor, Tensor], Tensor] = row_differences if upper else row_distances
    blocks = list(_blocks(loop))
    result: dict[int, Tensor] = {}
    slack: dict[int, list[Tensor]] = {}
    lost = underflow(loop) if upper else None
    for i, (start, stop) in enumerate(blocks):
        rows = _rows(loop, start, stop)
        if lost is not None:
            for j, e in rows_error(loop, loop.depth + 1, list(rows), start, stop, lost).items():
                slack.setdefault(j, []).append(e)
        for low, high in blocks[: i + 1]:
            others = rows if low == start else _rows(loop, low, high)
            for j, own in rows.items():
                if j not in result:
                    result[j] = own.new_zeros((classes, classes), dtype=torch.float64)
                values = distance(own, others[j]).double()
                if upper:
                    values = values * (1 + gamma(own.shape[1] + 8))
                result[j][start:stop, low:high] = values
                result[j][low:high, start:stop] = values.T
    for j, value in result.items():
        if upper:
            error = torch.cat(slack[j])
            value += error[:, None] + error[None, :]
        value.fill_diagonal_(0)
    return result
