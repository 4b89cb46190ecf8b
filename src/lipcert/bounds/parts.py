"""A network as a row of parts: what small gain and LipLT say of each, and of several together.

y = f_N(…f_1(x)) (:mod:`lipcert.bounds.rows`), so with c_p ≥ Lip(f_p)

    L ≤ c_1⋯c_{N−1}·L(f_N),        m_k ≤ c_1⋯c_{p−1}·m_k(f_p)  for an activation k of part p.

What rounding does to an execution is followed from part to part (:mod:`lipcert.certify.rounding`): LipLT of the whole,
by which it is followed otherwise, adds over all paths, and grows by a factor with each residual block; blocks that are
1-Lipschitz by themselves have a product of one. Where such a product is far above the bound of the whole, small gain
says more of several parts together: of all that is behind each, and of all up to its end.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from lipcert.bounds.evidence import Evidence, Scaling
from lipcert.bounds.refine import refined, with_further
from lipcert.bounds.result import Scope, UpperBound
from lipcert.bounds.rows import UP, Piece, constants_behind, constants_until, product, row
from lipcert.bounds.scaling import Progress
from lipcert.bounds.smallgain import global_gain, prove, proved_smallgain, scaled_at, search, search_map
from lipcert.errors import BoundError
from lipcert.loop import LoopMap, Pair
from lipcert.norms import Norm, estimate_norms
from lipcert.norms.errors import TINY
from lipcert.norms.upper import DENSE, deterministic_limit
from lipcert.scaled import ScaledMap

__all__ = ["Proofs", "smallgain_in_parts"]


@dataclass(frozen=True, eq=False)
class Proofs:
    """What proves the small-gain bound of one part; where that is known, also of all behind it and up to its end."""

    norms: Mapping[Pair, Norm]
    evidence: Evidence | None = None
    behind: Evidence | None = None
    until: Evidence | None = None


_ENOUGH = 1e-2  # of a part's slack
_DENSE = 512  # the largest smaller side of a block of a part that is made explicit, where no limit was given
_SHARE = 0.2  # of the time that there is for a search, for those of the parts
_TOGETHER = 0.4  # the same, on top, for those of several parts together
_MOST = 5.0  # times as much, after which no further one of these is begun
_LEVELS = [2.0 ** (-k / 2) for k in range(1, 12)]  # of the mean of an activation's weights
_UNDER, _SEEN = 0.95, 1e-3  # P beside the least of them, and how closely a norm is seen
_KEEP = 2.0  # where the parts together are less than so many times the whole, they keep distances well enough


def _proved_parts(
    pieces: Sequence[Piece],
    scope: Scope,
    *,
    failure: float,
    slack: float,
    seconds: float,
    given: Sequence[Proofs] | None = None,
    **options: Any,
) -> tuple[UpperBound, ...]:
    """Small-gain bounds of the parts of a network, proved or from what is given.

    Args:
        pieces: the parts, in float64.
        scope: of the last part; that of the others is global.
        failure, seconds: of all together.
        slack: of the whole; parts are proved less closely, as what they are for, rounding, takes little of a radius.
        given: what proves them, of each.
        options: the others of :func:`lipcert.bounds.smallgain.proved_smallgain`.

    Raises:
        BoundError: what is given is of other parts, or a proof fails.
    """
    if failure and options.get("dense_limit") is None:
        options["dense_limit"] = _DENSE
    if given is not None and len(given) != len(pieces):
        raise BoundError(f"proofs of {len(given)} parts are given, but this network has {len(pieces)}.")
    if given is not None:
        asked = [given[0].until, given[-1].until, *(one.behind for one in given[-2:])]
        if any(one is not None for one in asked):
            raise BoundError("up to the end of the first part or the last, and behind the last two, nothing is asked.")
    found: list[UpperBound] = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "no small-gain bound was found")  # LipLT's of a part does as well
        for i, piece in enumerate(pieces):
            proofs = None if given is None else given[i]
            one = proved_smallgain(
                piece.loop,
                scope if i + 1 == len(pieces) else "global",
                failure=failure / len(pieces),
                slack=_less_closely(slack),
                seconds=seconds / len(pieces),
                norms=None if proofs is None else proofs.norms,
                evidence=None if proofs is None else proofs.evidence,
                **options,
            )
            found.append(one if proofs is None else _with(one, behind=proofs.behind, until=proofs.until))
    return tuple(found)


def _less_closely(slack: float) -> float:
    return min(max(slack, _ENOUGH), 10 * slack)


def _with(part: UpperBound, *, behind: Evidence | None = None, until: Evidence | None = None) -> UpperBound:
    """The bound of a part with what more is proved, and with its probability of failure."""
    norms = [one.norm for one in (behind, until) if one is not None and one.norm is not None]
    failure = part.failure + math.fsum(norm.failure for norm in norms)
    return replace(part, failure=failure, behind=behind or part.behind, until=until or part.until)


def _by_parts(parts: Sequence[UpperBound]) -> Tensor:
    """The bound of a network that those of its parts give."""
    last, constant = parts[-1], 1.0
    for one in parts[:-1]:
        constant = product(constant, float(one.value))
    off = last.value > 0  # not between a class and itself
    return (last.value * constant * UP).clamp_min(TINY).where(off, torch.zeros_like(last.value))


def _proved_together(
    pieces: Sequence[Piece],
    whole: UpperBound,
    parts: Sequence[UpperBound],
    *,
    failure: float,
    slack: float,
    seconds: float,
    dense_limit: int | None,
    **_: Any,
) -> tuple[UpperBound, ...]:
    """The parts with proofs of all that is behind each, and up to its end, where the parts themselves say little of it.

    D of the whole, without what belongs to other activations, has ‖S_z‖ < 1 there too, and is where a search begins.
    """
    off = whole.value > 0
    if whole.evidence is None or float((_by_parts(parts) / whole.value)[off].median()) < _KEEP:
        return tuple(parts)
    found, weights, kind = list(parts), whole.evidence.scaling.weights, whole.evidence.scaling.kind
    depths = [0, *accumulate(piece.loop.depth for piece in pieces)]
    jobs = [(p, True) for p in reversed(range(len(parts) - 2))] + [(p, False) for p in range(1, len(parts) - 1)]
    limit = deterministic_limit(_DENSE if failure and dense_limit is None else dense_limit, failure)
    proving = {"slack": _less_closely(slack), "dense": min(DENSE, limit), "limit": limit}
    began = time.monotonic()
    for p, behind in jobs:
        if time.monotonic() - began > _MOST * seconds:
            break
        loop, cut = pieces[p].behind() if behind else pieces[p].until(), depths[p + 1]
        if not loop.depth:
            continue
        try:
            if behind:
                start = Scaling(kind, weights[cut:])
                scope, each = whole.scope, 2 * seconds / len(jobs)
                best, gain = search(loop, {}, scope=scope, scaling=kind, seconds=each, start=start)
            else:
                best, gain = _levelled(loop, Scaling(kind, weights[:cut]), depths[p])
            evidence = prove(loop, best, gain, failure=failure / len(jobs), **proving)
        except BoundError:
            continue  # the product of the parts' constants has to do
        found[p] = _with(found[p], behind=evidence) if behind else _with(found[p], until=evidence)
    return tuple(found)


def _levelled(loop: LoopMap, scaling: Scaling, before: int) -> tuple[Scaling, float]:
    """D and the global λ_max(N) of all up to the end of a part, of which ``before`` activations are in earlier ones.

    In D of the whole an activation's weights also say how much its channels count behind it. Here all of them count
    alike. Where the part ends in its activations, which make nothing larger, one weight for each of these, as large as
    it can be, is what bounds the output too: a norm shows whether it is, for a fraction of the time that N takes.
    """
    working, weights = search_map(loop, {}), scaling.weights
    level = [torch.full_like(d, float(d.log().mean().exp())) for d in weights[before:]]
    least = min((float(d.min()) for d in level), default=0.0)
    for share in _LEVELS if least else ():
        tried = Scaling(scaling.kind, (*weights[:before], *(share * d for d in level)))
        output = _UNDER * share * least
        scaled = ScaledMap(working, scaled_at(working, tried).weights, output)
        if float(estimate_norms(scaled, [(1, 0)], tolerance=_SEEN)[1, 0]) < 1 + _SEEN:
            return tried, output**-2
    return scaling, global_gain(loop, scaling)


def _joined(whole: UpperBound, pieces: Sequence[Piece], parts: Sequence[UpperBound]) -> UpperBound:
    """The bound of a network made smaller by what its parts say, and with them; its norms and heads stay as they are.

    Its slack is the larger one, where some entries are the one's and some the other's.
    """
    if not parts:
        return whole
    constants, hidden = [1.0, *constants_until(pieces, parts)], dict[int, float]()
    for constant, one in zip(constants, parts, strict=True):
        before = len(hidden)
        hidden |= {before + k: min(whole.hidden[before + k], product(constant, m)) for k, m in one.hidden.items()}
    by_parts, off = _by_parts(parts), parts[-1].value > 0
    constants_behind(pieces, parts, whole.scope)  # that what was given proves them
    smaller = (by_parts < whole.value)[off]
    excess = math.prod(1 + one.slack for one in parts) - 1
    slack = max(excess if bool(smaller.any()) else 0.0, whole.slack if not bool(smaller.all()) else 0.0)
    return replace(
        whole,
        value=torch.minimum(whole.value, by_parts),
        hidden=hidden,
        failure=min(1.0, whole.failure + math.fsum(one.failure for one in parts)),
        slack=slack,
        parts=tuple(parts),
    )


def smallgain_in_parts(
    loop: LoopMap,
    scope: Scope,
    *,
    parts: bool | Sequence[Proofs],
    failure: float,
    seconds: float,
    norms: Mapping[Pair, Norm] | None = None,
    evidence: Evidence | None = None,
    base: UpperBound | None = None,
    start: Scaling | None = None,
    progress: Progress | None = None,
    refine: float = 0.0,
    pairs: Sequence[tuple[int, int]] = (),
    further: Sequence[Evidence] = (),
    **options: Any,
) -> UpperBound:
    """The small-gain bound of a network, and of its parts if it has any and they are wanted.

    Args:
        loop: T in float64.
        scope: of the bound.
        parts: whether to prove those of the parts too, if they can be; with ``norms``, what proves them, of each.
        failure, seconds: of all together.
        refine, pairs: seconds for further evidence, which come on top, and with what to begin; with ``norms``, it is
            given as ``further``.
        norms, evidence, base, start, progress, options: as for :func:`lipcert.bounds.smallgain.proved_smallgain`, of
            the whole.
    """
    given = None if norms is None else () if isinstance(parts, bool) else tuple(parts)
    pieces = row(loop) if given or (given is None and parts) else []
    cut = bool(given) or bool(pieces)
    share = (0.5 if base is None else 0.25) if cut else 0.0
    own = 0.5 * failure if cut else failure  # half of it for further evidence, if there is to be some
    whole = proved_smallgain(
        loop,
        scope,
        failure=0.5 * own if refine else own,
        seconds=(1 - _SHARE) * seconds if cut else seconds,
        norms=norms,
        evidence=evidence,
        base=base,
        start=start,
        progress=progress,
        **options,
    )
    if norms is not None:
        whole = with_further(loop, whole, further)
    elif refine:
        rest = {key: options[key] for key in ("slack", "dense_limit")}
        whole = refined(loop, whole, seconds=refine, failure=0.5 * own, pairs=pairs, progress=progress, **rest)
    if not cut:
        return whole
    each = 0.5 * share * failure  # half of it for several parts together
    try:
        each_part = _proved_parts(pieces, scope, failure=each, seconds=_SHARE * seconds, given=given, **options)
    except BoundError:
        if given is not None:
            raise
        each_part = ()  # a part may have a block that is too large for a proof, and the whole none
    if each_part and given is None:
        each_part = _proved_together(pieces, whole, each_part, failure=each, seconds=_TOGETHER * seconds, **options)
    found = _joined(whole, pieces, each_part)
    if norms is None and not refine and 0 < found.failure <= failure * (1 + 2.0**-30):  # but for a sum's last digits
        return replace(found, failure=failure if base is None else found.failure)
    return found
