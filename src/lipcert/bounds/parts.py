"""A residual network as a row of parts: what small gain and LipLT say of each by itself, and of their composition.

Cut where all of the network passes through one value, y = f_N(…f_1(x)), so with c_p ≥ Lip(f_p)

    L ≤ c_1⋯c_{N−1}·L(f_N),        m_k ≤ c_1⋯c_{p−1}·m_k(f_p)  for an activation k of part p.

What rounding does to an execution is followed from part to part (:mod:`lipcert.certify.rounding`): LipLT of the whole,
by which it is followed otherwise, adds over all paths, and grows by a factor with each residual block; blocks that are
1-Lipschitz by themselves have a product of one.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lipcert.bounds.evidence import Evidence, Scaling
from lipcert.bounds.refine import refined, with_further
from lipcert.bounds.result import Scope, UpperBound
from lipcert.bounds.scaling import Progress
from lipcert.bounds.smallgain import proved_smallgain
from lipcert.errors import BoundError
from lipcert.graph.parts import merges, part
from lipcert.loop import LoopMap, Pair
from lipcert.norms import Norm
from lipcert.norms.errors import TINY

__all__ = ["Piece", "Proofs", "row", "smallgain_in_parts"]

Proofs = tuple[Mapping[Pair, Norm], Evidence | None]
"""What proves the small-gain bound of one part."""

_UP = 1 + 2.0**-48
_ENOUGH = 1e-2  # of a part's slack
_DENSE = 512  # the largest smaller side of a block of a part that is made explicit, where no limit was given
_SHARE = 0.2  # of the time that there is for a search, for those of the parts


@dataclass(frozen=True, eq=False)
class Piece:
    """A part of a network: T of it, and the node of the whole whose value it ends with."""

    loop: LoopMap
    end: int


def row(loop: LoopMap) -> list[Piece]:
    """The parts of a network, in order; none where it cannot be cut, or where an activation is in none of them."""
    graph = loop.graph
    ends = [n for n in merges(graph) if n != graph.output]
    if not ends:
        return []
    pieces, first = [], 0
    for last in (*ends, graph.output):
        pieces.append(Piece(LoopMap(*part(graph, loop.resolved, first, last), centred=loop.centred), last))
        first = last
    return pieces if sum(piece.loop.depth for piece in pieces) == loop.depth else []


def _proved_parts(
    loop: LoopMap,
    scope: Scope,
    *,
    failure: float,
    slack: float,
    seconds: float,
    given: Sequence[Proofs] | None = None,
    **options: Any,
) -> tuple[UpperBound, ...]:
    """Small-gain bounds of the parts of a network, proved or from what is given; none where it has no parts.

    Args:
        loop: T in float64.
        scope: of the last part; that of the others is global.
        failure, seconds: of all together.
        slack: of the whole; parts are proved less closely, as what they are for, rounding, takes little of a radius.
        given: what proves them, of each.
        options: the others of :func:`lipcert.bounds.smallgain.proved_smallgain`.

    Raises:
        BoundError: what is given is of other parts, or a proof fails.
    """
    pieces = row(loop)
    if failure and options.get("dense_limit") is None:
        options["dense_limit"] = _DENSE
    if given is not None and len(given) != len(pieces):
        raise BoundError(f"proofs of {len(given)} parts are given, but this network has {len(pieces)}.")
    found: list[UpperBound] = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "no small-gain bound was found")  # LipLT's of a part does as well
        for i, piece in enumerate(pieces):
            norms, evidence = (None, None) if given is None else given[i]
            found.append(
                proved_smallgain(
                    piece.loop,
                    scope if i + 1 == len(pieces) else "global",
                    failure=failure / len(pieces),
                    slack=min(max(slack, _ENOUGH), 10 * slack),
                    seconds=seconds / len(pieces),
                    norms=norms,
                    evidence=evidence,
                    **options,
                )
            )
    return tuple(found)


def _product(one: float, other: float) -> float:
    """From above, where it is below the range of floats too."""
    return max(one * other * _UP, TINY)


def _joined(whole: UpperBound, parts: Sequence[UpperBound]) -> UpperBound:
    """The bound of a network made smaller by what its parts say, and with them; its norms and heads stay as they are.

    Its slack is the larger one, where some entries are the one's and some the other's.
    """
    if not parts:
        return whole
    last = parts[-1]
    constant, hidden = 1.0, dict[int, float]()
    for one in parts:
        before = len(hidden)
        hidden |= {before + k: min(whole.hidden[before + k], _product(constant, m)) for k, m in one.hidden.items()}
        if one is not last:
            constant = _product(constant, float(one.value))
    off = last.value > 0  # not between a class and itself
    by_parts: Tensor = (last.value * constant * _UP).clamp_min(TINY).where(off, torch.zeros_like(last.value))
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
    cut = bool(given) if given is not None else bool(parts) and bool(row(loop))
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
    try:
        pieces = _proved_parts(loop, scope, failure=share * failure, seconds=_SHARE * seconds, given=given, **options)
    except BoundError:
        if given is not None:
            raise
        pieces = ()  # a part may have a block that is too large for a proof, and the whole none
    found = _joined(whole, pieces)
    if norms is None and not refine and 0 < found.failure <= failure * (1 + 2.0**-30):  # but for a sum's last digits
        return replace(found, failure=failure if base is None else found.failure)
    return found
