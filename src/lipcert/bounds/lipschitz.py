"""The verb: a Lipschitz bound of any module."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn

from lipcert.bounds.evidence import KINDS, Evidence, Scaling, check_start
from lipcert.bounds.functional import weighted
from lipcert.bounds.options import check_choice, check_scope, check_seconds
from lipcert.bounds.parts import Proofs, smallgain_in_parts
from lipcert.bounds.portfolio import best
from lipcert.bounds.recursive import estimated, proved
from lipcert.bounds.refine import check_refine, refined_estimate
from lipcert.bounds.result import AnyMethod, Bound, Estimate, Guarantee, Method, Scope, UpperBound
from lipcert.bounds.scaling import Progress
from lipcert.bounds.smallgain import estimated_smallgain
from lipcert.errors import BoundError
from lipcert.graph import Graph, trace
from lipcert.graph.capture import ordinary_mode
from lipcert.loop import LoopMap, Pair
from lipcert.norms import Norm
from lipcert.norms.upper import check_failure

__all__ = ["DENSE_LIMIT", "FAILURE", "SCALINGS", "SECONDS", "SLACK", "graph_bound", "lipschitz"]

DENSE_LIMIT: int | None = None
"""The largest smaller side of a block of which ``guarantee="upper"`` forms a matrix; None chooses."""
FAILURE = 1e-12
"""The probability with which a whole bound may fail where its blocks are larger than that."""
SLACK = 2e-3
"""The relative excess of a bound that is aimed at, over the same formula with exact norms."""
SECONDS = 60.0
"""How long the weights of a small-gain bound are searched for at most, or all methods are tried."""
SCALINGS = ("auto", *KINDS)
"""What may share a weight in a small-gain bound."""


def lipschitz(
    module: nn.Module,
    input_shape: Sequence[int],
    *,
    method: AnyMethod = "liplt",
    scope: Scope = "global",
    guarantee: Guarantee = "estimate",
    dense_limit: int | None = DENSE_LIMIT,
    failure: float = FAILURE,
    slack: float = SLACK,
    scaling: str = "auto",
    seconds: float = SECONDS,
    start: Scaling | None = None,
    progress: Progress | None = None,
    seed: int = 0,
    refine: float = 0.0,
    output_weights: Tensor | None = None,
    parts: bool = False,
) -> Bound:
    """Bound the ℓ2 Lipschitz constant of a module.

    Args:
        module: any supported ``nn.Module`` in eval mode (see :func:`lipcert.trace`).
        input_shape: shape of one input, without the batch dimension.
        method: ``"liplt"`` (the loop transformation; never above the product where all entries of an activation have
            the same slopes), ``"product"`` (products of the norms of the affine maps between activations, added where
            branches meet), or ``"smallgain"`` (scaled
            small gain, :mod:`lipcert.bounds.smallgain`: never above LipLT, as sharp as LipSDP with a weight for each
            neuron, and slower); ``"best"`` for the smallest that these give in the time there is, the cheapest first
            (``bound.method`` says which it was, and ``bound.attempts`` what each gave).
        scope: ``"global"`` for the whole output, ``"class"`` for each logit, ``"pairwise"`` for each difference of
            two logits.
        guarantee: ``"upper"``: a proved upper bound, rounding included; ``"estimate"``: Lanczos iteration, from
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
        scaling: for ``"smallgain"``, what shares a weight: ``"layer"``, ``"channel"``, ``"neuron"``, or ``"auto"``: the
            finest that is reached in time, each from the optimum of the one before.
        seconds: when to stop the search for the weights of ``"smallgain"``; LipLT, which it starts from, and the proof
            come on top. For ``"best"``, all methods together: none is begun later, and only a last proof comes on top.
        start: the weights that an earlier bound of this network found (``bound.evidence.scaling``), not finer than
            ``scaling``.
        progress: called with the scaling, a typical value of the bound, and the seconds so far, at each improvement.
        seed: of the start of an estimate's iteration.
        refine: for ``"smallgain"`` of single outputs or of pairs of up to 24: for so many seconds more, weights for one
            of them at a time, the smallest first; the bound is the smallest of all in each entry. A pair takes a
            fraction of the search for all.
        output_weights: bound x ↦ ⟨w, y⟩ instead, w being of the output's shape: one action of a policy, say, or a mean
            of some pixels. With ``(m, *output_shape)`` the map to m such numbers: together, ``scope="global"``, or each
            by itself, ``scope="class"``.
        parts: for an upper bound by ``"smallgain"`` of a network with shortcuts: bound its parts too, in a fifth of
            ``seconds``, and, where their product says little, several of them together, in two fifths on top. By these
            the rounding of an execution is followed if the bound is handed to :func:`lipcert.certify`, which asks for
            them where it makes a bound itself.

    Returns:
        :class:`UpperBound` or :class:`Estimate`, with a float64 ``value`` on the module's device.

    Raises:
        BoundError: an unknown option, a ``start`` of another network, a block too large for a deterministic
            bound, or a bound that is not finite.
        ShapeError: per-class bounds of an output that is not a vector of logits, or ``output_weights`` that do not fit.
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
        >>> round(float(lipschitz(net, (2,), output_weights=torch.tensor([1.0, 1.0]))), 4)
        1.4142
    """
    if output_weights is not None:
        module = weighted(module, input_shape, output_weights)
    graph = trace(module, input_shape)
    return graph_bound(
        graph,
        method=method,
        scope=scope,
        guarantee=guarantee,
        dense_limit=dense_limit,
        failure=failure,
        slack=slack,
        scaling=scaling,
        seconds=seconds,
        start=start,
        progress=progress,
        seed=seed,
        refine=refine,
        parts=parts,
    )


def graph_bound(
    graph: Graph,
    *,
    method: AnyMethod = "liplt",
    scope: Scope = "global",
    guarantee: Guarantee = "estimate",
    dense_limit: int | None = DENSE_LIMIT,
    failure: float = FAILURE,
    slack: float = SLACK,
    scaling: str = "auto",
    seconds: float = SECONDS,
    start: Scaling | None = None,
    progress: Progress | None = None,
    seed: int = 0,
    refine: float = 0.0,
    pairs: Sequence[tuple[int, int]] = (),
    norms: Mapping[Pair, Norm] | None = None,
    evidence: Evidence | None = None,
    further: Sequence[Evidence] = (),
    parts: bool | Sequence[Proofs] = False,
    liplt: UpperBound | None = None,
) -> Bound:
    """:func:`lipcert.lipschitz` of a network that is traced already, at its present weights.

    With ``norms``, and ``evidence`` and ``further`` for a small-gain bound, an upper bound is made from these (a
    certificate's, say) instead of proving any: it is as good as they are. They must be those of exactly the blocks that
    the bound needs. With ``parts``, an upper bound by small gain has those of the parts of a network with shortcuts
    too, by which rounding is followed: proved, or, where there are ``norms``, made from what is given of each.
    ``pairs`` are those of classes with which ``refine`` is to begin.
    With ``liplt``, LipLT's upper bound of this network in this scope, that by small gain starts from it.
    """
    check_choice("method", method, get_args(AnyMethod))
    check_choice("guarantee", guarantee, get_args(Guarantee))
    check_choice("scaling", scaling, SCALINGS)
    check_scope(scope, graph)
    check_seconds(seconds)
    check_failure(failure)
    if dense_limit is not None and dense_limit < 1:
        raise BoundError(f"dense_limit must be at least 1, or None; got {dense_limit}.")
    if start is not None and method not in ("smallgain", "best"):
        raise BoundError(f"start= is for method='smallgain'; {method!r} has no weights to start from.")
    if isinstance(refine, bool) or not isinstance(refine, (int, float)) or not 0 <= refine < math.inf:
        raise BoundError(f"refine must be a number of seconds, 0 for none; got {refine!r}.")
    if refine and method != "smallgain":
        raise BoundError(f"refine= is for method='smallgain', whose weights it searches for; got {method!r}.")
    if liplt is not None and (method, liplt.method, liplt.scope) != ("smallgain", "liplt", scope):
        raise BoundError(f"liplt= is LipLT's bound in the scope {scope!r}, for method='smallgain' to start from.")
    graph.capture.check()
    if method == "best":
        if norms is not None:
            raise BoundError("norms and evidence are of one method: name it instead of 'best'.")
        if start is not None:
            check_start(LoopMap(graph, graph.resolve(torch.float64)), start, scaling)

        def attempt(which: Method, left: float, base: UpperBound | None) -> Bound:
            # small gain adds half of what it is given to what LipLT may fail with, and product has the other half
            share = failure / 4 or failure if which == "liplt" else failure / 2 or failure
            return graph_bound(
                graph,
                method=which,
                scope=scope,
                guarantee=guarantee,
                dense_limit=dense_limit,
                failure=share,
                slack=slack,
                scaling=scaling,
                seconds=left,
                start=start,
                progress=progress,
                seed=seed,
                parts=bool(parts),
                liplt=base if which == "smallgain" else None,
            )

        return best(attempt, seconds)
    # γ_n holds for sums of products in any order, but not for the FFT and Winograd convolutions of cuDNN.
    upper = guarantee == "upper"
    with ordinary_mode(), torch.no_grad(), torch.backends.cudnn.flags(enabled=not upper):
        loop = LoopMap(graph, graph.resolve(torch.float64), centred=method != "product")
        if method == "smallgain":
            if start is not None:
                check_start(loop, start, scaling)
            if refine:
                check_refine(loop, scope)
            search: dict[str, Any] = {"scaling": scaling, "seconds": seconds, "start": start, "progress": progress}
            if not upper:
                rough = estimated_smallgain(loop, scope, seed, **search)
                return (
                    refined_estimate(loop, rough, seconds=refine, pairs=pairs, progress=progress) if refine else rough
                )
            return smallgain_in_parts(
                loop,
                scope,
                parts=parts,
                dense_limit=dense_limit,
                failure=failure,
                slack=slack,
                norms=norms,
                evidence=evidence,
                base=liplt,
                refine=refine,
                pairs=pairs,
                further=further,
                **search,
            )
        if not upper:
            return Estimate(estimated(loop, scope, seed)[0], method, scope)
        return proved(loop, method, scope, dense_limit=dense_limit, failure=failure, slack=slack, norms=norms)
