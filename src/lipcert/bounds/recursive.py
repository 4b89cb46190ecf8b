"""Product and LipLT: bounds by the recursion over the norms of the blocks, as estimates or proved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from lipcert.bounds.heads import class_norms, pairwise_norms
from lipcert.bounds.recursion import combine, hidden_bounds, hidden_pairs
from lipcert.bounds.result import Method, Scope, UpperBound
from lipcert.errors import BoundError
from lipcert.loop import LoopMap, Pair
from lipcert.norms import Norm, estimate_norms, upper_norms

__all__ = ["estimated", "proved", "typical_norms"]


def _rows(loop: LoopMap, scope: Scope, *, upper: bool) -> dict[int, Tensor]:
    """Norms of the head's rows, from each source; none for the output as a whole."""
    if scope == "global":
        return {}
    return (class_norms if scope == "class" else pairwise_norms)(loop, upper=upper)


def _evaluate(
    loop: LoopMap, norms: Mapping[Pair, Tensor], head: Mapping[int, Tensor], floor: float = 0.0
) -> tuple[dict[int, Tensor], Tensor]:
    """The hidden constants m_k, and the bound."""
    hidden, rows = hidden_bounds(loop, norms, floor=floor), _final(loop, norms, head)
    return hidden, combine(rows, hidden, torch.zeros_like(next(iter(rows.values()))), floor=floor)


def _final(loop: LoopMap, norms: Mapping[Pair, Tensor], head: Mapping[int, Tensor]) -> dict[int, Tensor]:
    last = loop.depth + 1
    return dict(head) or {j: norms[last, j] for j in range(last) if (last, j) in norms}


def _finite(value: Tensor) -> Tensor:
    if not bool(torch.isfinite(value).all()):
        raise BoundError("the bound is not finite: the weights are so large that it overflows float64.")
    return value


def estimated(loop: LoopMap, scope: Scope, seed: int) -> tuple[Tensor, dict[int, float], dict[Pair, float]]:
    """The bound with norms estimated from below, the hidden constants m_k with these, and the norms themselves."""
    pairs = loop.pairs() if scope == "global" else hidden_pairs(loop)
    head = _rows(loop, scope, upper=False)
    norms = estimate_norms(loop, pairs, seed=seed)
    hidden, value = _evaluate(loop, norms, head)
    return _finite(value), {k: float(m) for k, m in hidden.items() if k}, typical_norms(loop, norms, head)


def typical_norms(loop: LoopMap, norms: Mapping[Pair, Tensor | float], head: Mapping[int, Tensor]) -> dict[Pair, float]:
    """One number for each block; of the head's rows, where there are several, their mean."""
    found = {pair: float(norm) for pair, norm in norms.items()}
    return found | {(loop.depth + 1, j): float(v.sum() / (v > 0).sum().clamp_min(1)) for j, v in head.items()}


def proved(
    loop: LoopMap,
    method: Method,
    scope: Scope,
    *,
    dense_limit: int | None,
    failure: float,
    slack: float,
    norms: Mapping[Pair, Norm] | None = None,
) -> UpperBound:
    """The bound with norms that are proved, or with those given; see :func:`lipcert.bounds.graph_bound`."""
    pairs = loop.pairs() if scope == "global" else hidden_pairs(loop)
    head = _rows(loop, scope, upper=True)
    if norms is None:
        shares = partial(_shares, loop, pairs, head)
        proofs = upper_norms(loop, pairs, limit=dense_limit, failure=failure, slack=slack, shares=shares)
    else:
        proofs = _given(norms, pairs)
    known = {p: loop.resolved.scalar(n.upper) for p, n in proofs.items()}
    hidden, value = _evaluate(loop, known, head, torch.finfo(torch.float64).tiny)
    # m_k sums up to k products, each of an m_j that has its own roundings in it
    rounding = 1 + 4 * (loop.depth + 3) ** 2 * 2.0**-53
    value = _finite(value * rounding)
    _, seen = _evaluate(loop, {p: loop.resolved.scalar(n.lower) for p, n in proofs.items()}, head)
    excess = float(torch.where(seen > 0, value / seen, torch.ones_like(value)).max()) - 1
    risk = min(1.0, sum(n.failure for n in proofs.values()) * (1 + 2.0**-30))
    if norms is None:  # what was asked for: the sum of the shares differs from it in its last digits
        risk = failure if risk else 0.0
    constants = {k: float(m) * rounding for k, m in hidden.items() if k}
    return UpperBound(value, method, scope, risk, excess, proofs, constants, _final(loop, known, head))


def _given(norms: Mapping[Pair, Norm], pairs: Sequence[Pair]) -> dict[Pair, Norm]:
    if set(norms) != set(pairs):
        odd = sorted(set(norms) ^ set(pairs))[0]
        raise BoundError(f"the norms given are not those of this network's blocks: they differ at {odd}.")
    return {pair: norms[pair] for pair in pairs}


def _shares(
    loop: LoopMap, pairs: Sequence[Pair], head: Mapping[int, Tensor], norms: Mapping[Pair, float]
) -> dict[Pair, float]:
    """``∂ log L/∂ log ‖A_kj‖`` for each block, averaged over the entries of the bound."""
    last = loop.depth + 1
    logs = {p: torch.tensor(norms[p], dtype=torch.float64).clamp_min(1e-300).log().requires_grad_() for p in pairs}
    with torch.enable_grad():
        found = {p: v.exp() for p, v in logs.items()}
        rows = head or {j: found[last, j] for j in range(last) if (last, j) in found}
        total = combine(rows, hidden_bounds(loop, found), torch.zeros_like(next(iter(rows.values()))))
        mean = total[total > 0].log().mean()
        back = torch.autograd.grad(mean, list(logs.values()), allow_unused=True)
    return {p: 0.0 if g is None else float(g) for p, g in zip(logs, back, strict=True)}
