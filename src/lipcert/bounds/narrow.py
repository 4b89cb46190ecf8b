"""Budgets of parts of a narrow layer: how far some of its entries can move together.

‖Δz_k‖ ≤ m_k·ε leaves all of it to any few entries, as if the worst direction could be any. With the rows of A_kj

    ‖P·Δz_k‖ ≤ ‖P·[s_0·A_k0, s_1·A_k1, …]‖₂·ε,     s_j = m_j/√θ_j,  Σ θ_j ≤ 1,

for the projection P on any entries, which is the root of the largest eigenvalue of a part of one n×n Gram matrix. The
rows also bound each entry by itself: |Δz_k,i| ≤ Σ_j ‖row i of A_kj‖·m_j·ε.

Source: ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lipcert.bounds.movement import SAFE
from lipcert.loop import LoopMap
from lipcert.norms.dense import adjoint_rows, chunk, rows_error
from lipcert.norms.errors import UNIT, gamma, underflow
from lipcert.norms.scaling import row_norms

__all__ = ["MOST", "NarrowLayer"]

MOST = 1024
"""Entries of the widest layer of which the rows are formed: each is a backward pass, once for a network."""
_MEMORY = 2**27  # float64 entries of rows held at once (1 GiB)
_DECOMPOSITION = 16.0  # as in norms/dense.py
_RANGE = 2.0**-200, 2.0**200  # of numbers whose squares, and their products, are far from the ends of float64's range
_LOST = 2.0**-250  # more than what underflow of squares takes from a norm then


class NarrowLayer:
    """Target k of a network.

    Args:
        loop: T in float64, centred.
        k: the target.
        constants: m_j for the sources j = 0…k−1 (m_0 = 1), from above.

    Attributes:
        rates: bounds on |Δz_k,i|/ε, (1, *shape).
        sound: whether nothing in it is so large or so small that squares would be lost.

    Example:
        >>> import torch, lipcert
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)).double().eval()
        >>> layer = NarrowLayer(LoopMap(lipcert.trace(net, (3,))), 1, {0: 1.0})
        >>> one = layer.norms(torch.tensor([0]), torch.tensor([2]), 1)
        >>> torch.allclose(one[0], net[0].weight[2].norm().detach())
        True
    """

    def __init__(self, loop: LoopMap, k: int, constants: Mapping[int, float]) -> None:
        size, step, lost = math.prod(loop.target_shape(k)), chunk(loop), underflow(loop)
        sources = [j for j in range(k) if loop.connected(k, j)]
        rows: dict[int, list[Tensor]] = {j: [] for j in sources}
        errors: dict[int, list[Tensor]] = {j: [] for j in sources}
        for start in range(0, size, step):
            stop = min(start + step, size)
            made, off = adjoint_rows(loop, k, sources, start, stop), rows_error(loop, k, sources, start, stop, lost)
            for j in sources:
                rows[j].append(made[j])
                errors[j].append(off[j])
        parts = {j: torch.cat(rows.pop(j)) for j in sources}
        wrong = {j: torch.cat(errors[j]) for j in sources}
        each = sum((row_norms(parts[j]) * SAFE + wrong[j]) * constants[j] for j in sources)
        assert isinstance(each, Tensor)
        self.rates = (each * SAFE).reshape(1, *loop.target_shape(k))
        grams = {j: parts[j] @ parts[j].T for j in sources}
        sizes = {j: math.sqrt(max(_largest(g.cpu()), 0.0)) * constants[j] for j, g in grams.items()}
        total = sum(sizes.values()) * SAFE or 1.0
        # a source that counts for little gets a share of its own, so that its weight stays finite
        shares = {j: (v / total + 1e-6) / (1 + 1e-5 * (1 + len(sources))) for j, v in sizes.items()}
        weights = {j: constants[j] ** 2 / shares[j] for j in sources}
        gram = torch.zeros_like(grams[sources[0]])
        for j in sources:
            gram += weights[j] * grams[j]
        self.gram = ((gram + gram.T) / 2).cpu()
        trace = float(self.gram.diagonal().sum()) * SAFE
        columns = sum(p.shape[1] for p in parts.values())
        self._squared = (gamma(columns + 16) + _DECOMPOSITION * size * UNIT) * trace
        self._added = math.sqrt(sum(weights[j] * float(wrong[j].square().sum()) for j in sources)) * SAFE + _LOST
        ends = [*(constants[j] for j in sources), *(float(p.abs().max()) for p in parts.values() if bool(p.any()))]
        self.sound = all(_RANGE[0] < v < _RANGE[1] for v in ends) and bool(torch.isfinite(self.gram).all())

    @staticmethod
    def of(loop: LoopMap, k: int, constants: Mapping[int, float]) -> NarrowLayer | None:
        """Of target k, if it is narrow enough for its rows to be formed, and squares of its numbers are in range."""
        size = math.prod(loop.target_shape(k))
        entries = size * sum(math.prod(loop.source_shape(j)) for j in range(k))
        if size > MOST or entries > _MEMORY or not all(_RANGE[0] < constants[j] < _RANGE[1] for j in range(k)):
            return None
        found = NarrowLayer(loop, k, constants)
        return found if found.sound else None

    def norms(self, row: Tensor, entry: Tensor, count: int) -> Tensor:
        """‖P·Δz_k‖/ε from above for R projections.

        Args:
            row: (n,) int64, not falling: of which projection an entry is.
            entry: (n,) int64, the entries that each keeps.
            count: R.

        Returns:
            (R,) float64; 0 where none is kept.
        """
        found = []
        sizes = torch.bincount(row.cpu(), minlength=count).tolist()
        for kept in torch.split_with_sizes(entry.cpu(), sizes):
            top = 0.0
            if len(kept):
                top = _largest(self.gram[kept][:, kept])
                top = math.sqrt(max(top, 0.0) + self._squared) * SAFE + self._added
            found.append(top)
        return torch.tensor(found, dtype=torch.float64, device=row.device)


def _largest(matrix: Tensor) -> float:
    """The largest eigenvalue as LAPACK computes it; infinite if it cannot."""
    try:
        return float(torch.linalg.eigvalsh(matrix)[-1])
    except RuntimeError:
        return math.inf
