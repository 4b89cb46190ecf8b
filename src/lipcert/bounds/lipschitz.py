"""The verb: a Lipschitz bound of any module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import get_args

import torch
from torch import Tensor, nn

from lipcert.bounds.heads import class_norms, pairwise_norms
from lipcert.bounds.recursion import combine, hidden_bounds, hidden_pairs
from lipcert.bounds.result import Bound, Estimate, Guarantee, Method, Scope, UpperBound
from lipcert.errors import BoundError, ShapeError
from lipcert.graph import Graph, trace
from lipcert.graph.capture import ordinary_mode
from lipcert.loop import LoopMap, Pair
from lipcert.norms import Norm, estimate_norms, upper_norms

__all__ = ["DENSE_LIMIT", "FAILURE", "SLACK", "graph_bound", "lipschitz"]

DENSE_LIMIT: int | None = None
"""The largest smaller side of a block of which ``guarantee="upper"`` forms a matrix; None chooses."""
FAILURE = 1e-12
"""The probability with which a whole bound may fail where its blocks are larger than that."""
SLACK = 2e-3
"""The relative excess of a bound that is aimed at, over the same formula with exact norms."""


def _one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise BoundError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}.")


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


def lipschitz(
    module: nn.Module,
    input_shape: Sequence[int],
    *,
    method: Method = "liplt",
    scope: Scope = "global",
    guarantee: Guarantee = "estimate",
    dense_limit: int | None = DENSE_LIMIT,
    failure: float = FAILURE,
    slack: float = SLACK,
    seed: int = 0,
) -> Bound:
    """Bound the ℓ2 Lipschitz constant of a module.

    Args:
        module: any supported ``nn.Module`` in eval mode (see :func:`lipcert.trace`).
        input_shape: shape of one input, without the batch dimension.
        method: ``"liplt"`` (the loop transformation; never above the product on a chain) or ``"product"``
            (products of the norms of the affine maps between activations, added where branches meet).
        scope: ``"global"`` for the whole output, ``"class"`` for each logit, ``"pairwise"`` for each difference of
            two logits.
        guarantee: ``"upper"``: a proved upper bound, rounding included; ``"estimate"``: power iteration, from
            below, not a certificate.
        dense_limit: for ``"upper"``, the largest smaller side of a block of which a matrix may be formed, in float64:
            the block itself up to 2,048, its Gram matrix beyond. By default 2,048, and 16,384 where ``failure`` is 0;
            the norms of larger blocks are proved by a randomised test.
        failure: the probability with which that test may fail, all norms together, over random vectors that are drawn
            when this is called, after the weights were fixed. 0 asks for a deterministic bound: larger blocks are
            then bounded by the product of the norms of their layers where they are chains of these (convolutions of
            any size, as all blocks of ``"product"`` without parallel affine branches are), and refused elsewhere.
        slack: the relative excess to aim at in the bound, over the same formula with exact norms; each norm is proved
            as closely as it matters. A tenth of it takes three times as long where the test is used.
        seed: of the start of an estimate's power iteration.

    Returns:
        :class:`UpperBound` or :class:`Estimate`, with a float64 ``value`` on the module's device.

    Raises:
        BoundError: an unknown option, a block too large for a deterministic bound, or a bound that is not finite.
        ShapeError: per-class bounds of an output that is not a vector of logits.
        lipcert.errors.TraceError: the module cannot be traced.

    Source: Fazlyab, Entesari, Roy, Chellappa, NeurIPS 2023.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2)).eval()
        >>> for p in net.parameters():
        ...     _ = torch.nn.init.eye_(p) if p.ndim == 2 else torch.nn.init.zeros_(p)
        >>> bound = lipschitz(net, (2,), guarantee="upper")
        >>> round(float(bound), 6), bound.guarantee
        (1.0, 'upper')
        >>> lipschitz(net, (2,), scope="pairwise").value.round(decimals=4).tolist()
        [[0.0, 1.4142], [1.4142, 0.0]]
    """
    graph = trace(module, input_shape)
    return graph_bound(
        graph,
        method=method,
        scope=scope,
        guarantee=guarantee,
        dense_limit=dense_limit,
        failure=failure,
        slack=slack,
        seed=seed,
    )


def graph_bound(
    graph: Graph,
    *,
    method: Method = "liplt",
    scope: Scope = "global",
    guarantee: Guarantee = "estimate",
    dense_limit: int | None = DENSE_LIMIT,
    failure: float = FAILURE,
    slack: float = SLACK,
    seed: int = 0,
    norms: Mapping[Pair, Norm] | None = None,
) -> Bound:
    """:func:`lipschitz` of a network that is traced already, at its present weights.

    With ``norms`` an upper bound is made from these (a certificate's, say) instead of proving any: it is as good as
    they are. They must be those of exactly the blocks that the bound needs.
    """
    for name, given, kind in (
        ("method", method, Method),
        ("scope", scope, Scope),
        ("guarantee", guarantee, Guarantee),
    ):
        _one_of(name, given, get_args(kind))
    if scope != "global" and len(graph.output_shape) != 1:
        raise ShapeError(
            f"scope={scope!r} needs an output of logits, one number a class; this module's has shape "
            f"{graph.output_shape}. Use scope='global'."
        )
    graph.capture.check()
    # γ_n holds for sums of products in any order, but not for the FFT and Winograd convolutions of cuDNN.
    upper = guarantee == "upper"
    with ordinary_mode(), torch.no_grad(), torch.backends.cudnn.flags(enabled=not upper):
        loop = LoopMap(graph, graph.resolve(torch.float64), centred=method == "liplt")
        last, pairs = loop.depth + 1, loop.pairs() if scope == "global" else hidden_pairs(loop)
        proofs: dict[Pair, Norm] = {}
        head = {} if scope == "global" else (class_norms if scope == "class" else pairwise_norms)(loop, upper=upper)
        if upper:
            if norms is None:
                proofs = upper_norms(
                    loop,
                    pairs,
                    limit=dense_limit,
                    failure=failure,
                    slack=slack,
                    shares=partial(_shares, loop, pairs, head),
                )
            else:
                proofs = _given(norms, pairs)
            known = {p: loop.resolved.scalar(n.upper) for p, n in proofs.items()}
        else:
            known = estimate_norms(loop, pairs, seed=seed)

        def final(norms: Mapping[Pair, Tensor]) -> dict[int, Tensor]:
            return head or {j: norms[last, j] for j in range(last) if (last, j) in norms}

        def evaluate(norms: Mapping[Pair, Tensor], floor: float = 0.0) -> tuple[dict[int, Tensor], Tensor]:
            hidden, rows = hidden_bounds(loop, norms, floor=floor), final(norms)
            return hidden, combine(rows, hidden, torch.zeros_like(next(iter(rows.values()))), floor=floor)

        hidden, value = evaluate(known, torch.finfo(torch.float64).tiny if upper else 0.0)
        if upper:  # m_k sums up to k products, each of an m_j that has its own roundings in it
            rounding = 1 + 4 * (last + 2) ** 2 * 2.0**-53
            value = value * rounding
            _, seen = evaluate({p: loop.resolved.scalar(n.lower) for p, n in proofs.items()})
    if not bool(torch.isfinite(value).all()):
        raise BoundError("the bound is not finite: the weights are so large that it overflows float64.")
    if not upper:
        return Estimate(value, method, scope)
    excess = float(torch.where(seen > 0, value / seen, torch.ones_like(value)).max()) - 1
    risk = min(1.0, sum(n.failure for n in proofs.values()) * (1 + 2.0**-30))
    if norms is None:  # what was asked for: the sum of the shares differs from it in its last digits
        risk = failure if risk else 0.0
    constants = {k: float(m) * rounding for k, m in hidden.items() if k}
    return UpperBound(value, method, scope, risk, excess, proofs, constants, final(known))
