"""The verb: a Lipschitz bound of any module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from lipcert.bounds.heads import class_norms, pairwise_norms
from lipcert.bounds.recursion import combine, hidden_bounds, hidden_pairs
from lipcert.bounds.result import Bound, Estimate, Guarantee, Method, Scope, UpperBound
from lipcert.errors import BoundError, ShapeError
from lipcert.graph import Graph, trace
from lipcert.graph.capture import check_state, ordinary_mode
from lipcert.loop import LoopMap, Pair
from lipcert.norms import estimate_norms, upper_norms

__all__ = ["DENSE_LIMIT", "graph_bound", "lipschitz"]

DENSE_LIMIT = 4096
"""The largest smaller side of a block that ``guarantee="upper"`` makes explicit unless told otherwise."""


def _one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise BoundError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}.")


def lipschitz(
    module: nn.Module,
    input_shape: Sequence[int],
    *,
    method: Method = "liplt",
    scope: Scope = "global",
    guarantee: Guarantee = "estimate",
    dense_limit: int = DENSE_LIMIT,
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
        guarantee: ``"upper"``: a proved upper bound, by explicit float64 matrices; ``"estimate"``: power
            iteration, from below, not a certificate.
        dense_limit: for ``"upper"``, the largest smaller side of a matrix that may be formed.
        seed: of the power iteration's start.

    Returns:
        :class:`UpperBound` or :class:`Estimate`, with a float64 ``value`` on the module's device.

    Raises:
        BoundError: an unknown option, a block too large for ``"upper"``, or a bound that is not finite.
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
    return graph_bound(graph, method=method, scope=scope, guarantee=guarantee, dense_limit=dense_limit, seed=seed)


def graph_bound(
    graph: Graph,
    *,
    method: Method = "liplt",
    scope: Scope = "global",
    guarantee: Guarantee = "estimate",
    dense_limit: int = DENSE_LIMIT,
    seed: int = 0,
) -> Bound:
    """:func:`lipschitz` of a network that is traced already, at its present weights."""
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
    check_state(graph.capture.module)
    # γ_n holds for sums of products in any order, but not for the FFT and Winograd convolutions of cuDNN.
    with ordinary_mode(), torch.no_grad(), torch.backends.cudnn.flags(enabled=guarantee != "upper"):
        loop = LoopMap(graph, graph.resolve(torch.float64), centred=method == "liplt")
        upper = guarantee == "upper"

        def norms(pairs: list[Pair]) -> dict[Pair, Tensor]:
            return upper_norms(loop, pairs, limit=dense_limit) if upper else estimate_norms(loop, pairs, seed=seed)

        last = loop.depth + 1
        if scope == "global":
            known = norms(loop.pairs())
            final = {j: known[last, j] for j in range(last) if (last, j) in known}
        else:
            known = norms(hidden_pairs(loop))
            final = (class_norms if scope == "class" else pairwise_norms)(loop, upper=upper)
        device = loop.resolved.device
        floor = torch.finfo(torch.float64).tiny if upper else 0.0
        known = {p: v.to(device) for p, v in known.items()}
        hidden = {k: m.to(device) for k, m in hidden_bounds(loop, known, floor=floor).items()}
        final = {j: v.to(device) for j, v in final.items()}
        value = combine(final, hidden, torch.zeros_like(next(iter(final.values()))), floor=floor)
        if upper:  # m_k sums up to k products, each of an m_j that has its own roundings in it
            value = value * (1 + 4 * (last + 2) ** 2 * 2.0**-53)
    if not bool(torch.isfinite(value).all()):
        raise BoundError("the bound is not finite: the weights are so large that it overflows float64.")
    return (UpperBound if upper else Estimate)(value, method, scope)
