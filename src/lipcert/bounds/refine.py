"""Small gain once more for single outputs, each with weights D of its own.

D of a small-gain bound is a compromise between all pairs of classes. Found for one pair alone it is another D, with a
gain matrix N of its own, and as good a proof as the first: each gives a bound of all pairs, and in each entry the
smallest counts. The search for one pair starts from the D for all, and takes a fraction of its time.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lipcert.bounds.evidence import Evidence, Scaling
from lipcert.bounds.output import fitted, whitening
from lipcert.bounds.result import Estimate, Scope, UpperBound
from lipcert.bounds.scaling import Progress, Search
from lipcert.bounds.smallgain import (
    ALL_HEADS,
    evidence_value,
    excess,
    feasible_value,
    gain_at,
    identity_heads,
    prove,
    scaled_at,
    search_map,
)
from lipcert.errors import BoundError
from lipcert.loop import LoopMap
from lipcert.norms.upper import DENSE, deterministic_limit

__all__ = ["check_refine", "nearest_pairs", "refined", "refined_estimate", "with_further"]

_STEPS = 25  # at each stage of a search
_DIGITS = 6  # of a weight
_WORTH = 1e-4  # by how much less the entry must be for the evidence to be kept

Entry = tuple[int, ...]


def _entries(value: Tensor, pairs: Sequence[tuple[int, int]]) -> list[Entry]:
    """The entries of a bound's value, each pair once: first those of the pairs given, and then the smallest first.

    What a network was trained for has its small constants where its classes are near to each other.
    """
    if value.ndim == 1:
        entries: list[Entry] = [(a,) for a in range(len(value))]
        wanted: list[Entry] = [(a,) for pair in pairs for a in pair]
    else:
        entries = [(a, b) for a in range(len(value)) for b in range(a + 1, len(value))]
        wanted = [(min(pair), max(pair)) for pair in pairs]
    rest = sorted(entries, key=lambda entry: float(value[entry]))
    return list(dict.fromkeys([*(entry for entry in wanted if entry in entries), *rest]))


def nearest_pairs(logits: Tensor) -> list[tuple[int, int]]:
    """The pairs of classes that are first and second at some samples, the most frequent first: these decide radii.

    Args:
        logits: (N, C).

    >>> nearest_pairs(torch.tensor([[3.0, 1.0, 2.0], [2.0, 0.0, 3.0], [0.0, 2.0, 1.0]]))
    [(0, 2), (1, 2)]
    """
    if logits.ndim != 2 or not len(logits) or logits.shape[1] < 2:
        return []
    found, counts = torch.unique(logits.topk(2, 1).indices.sort(1).values, dim=0, return_counts=True)
    order = counts.argsort(descending=True, stable=True)
    return [(int(a), int(b)) for a, b in found[order].tolist()]


def _functional(heads: Tensor, entry: Entry) -> Tensor:
    """e_a, or e_a − e_b, as a row (1, C)."""
    return heads[entry[0]][None] if len(entry) == 1 else (heads[entry[0]] - heads[entry[1]])[None]


def _short(scaling: Scaling) -> Scaling:
    """The same in a few decimal digits, as there may be many of them in a file: what is proved is proved of these."""
    weights = [[float(f"{v:.{_DIGITS}g}") for v in d.flatten().tolist()] for d in scaling.weights]
    kept = [torch.tensor(w, dtype=d.dtype).reshape(d.shape) for w, d in zip(weights, scaling.weights, strict=True)]
    return Scaling(scaling.kind, tuple(kept))


def _log_gain(gain: Tensor, _: float) -> Tensor:
    return gain.diagonal().clamp_min(1e-300).log().mean() / 2


def _found(
    loop: LoopMap, scope: Scope, scaling: Scaling, entries: Sequence[Entry], deadline: float
) -> Iterator[tuple[Entry, Scaling, Tensor]]:
    """D and N for each entry, as long as there is time."""
    heads = identity_heads(loop)
    for entry in entries:
        if time.monotonic() >= deadline:
            return
        try:
            search = Search(loop, _functional(heads, entry), _log_gain)
            found = _short(search.run(scaling, deadline=deadline, smooth=True, steps=_STEPS)[0])
            gain = gain_at(loop, found, scope)
        except BoundError:  # the first evidence has this entry too
            continue
        assert isinstance(gain, Tensor)
        yield entry, found, gain


def check_refine(loop: LoopMap, scope: Scope) -> None:
    """Refuse what is not to be refined.

    Raises:
        BoundError: a bound of the output as a whole, or one of very many outputs.
    """
    outputs = math.prod(loop.target_shape(loop.depth + 1))
    if scope == "global":
        raise BoundError("refine= is for bounds of single outputs: scope='pairwise' or 'class', not 'global'.")
    if outputs > ALL_HEADS:
        raise BoundError(f"refine= is for up to {ALL_HEADS} outputs; this network has {outputs}.")


def refined(
    loop: LoopMap,
    bound: UpperBound,
    *,
    seconds: float,
    failure: float,
    slack: float,
    dense_limit: int | None,
    pairs: Sequence[tuple[int, int]] = (),
    progress: Progress | None = None,
) -> UpperBound:
    """A small-gain bound with further evidence for single entries, the smallest first, while there is time.

    Args:
        loop: T in float64.
        bound: by small gain; one without evidence, LipLT's, stays as it is.
        seconds: after which no further entry is begun. What was found is proved, which comes on top.
        failure: of all further evidence together.
        slack, dense_limit: as for :func:`lipcert.bounds.smallgain.proved_smallgain`.
        pairs: of classes, with whose entries to begin.
        progress: is told how it goes.
    """
    first = bound.evidence
    if first is None:
        return bound
    began, known = time.monotonic(), {pair: norm.upper for pair, norm in bound.norms.items()}
    entries, limit = _entries(bound.value, pairs), deterministic_limit(dense_limit, failure)
    if not entries:
        return bound
    options: dict[str, Any] = {"dense": min(DENSE, limit), "limit": limit, "failure": failure / len(entries)}
    risks, kept, value, working = list[float](), list[Evidence](), bound.value, search_map(loop, bound.hidden)
    for entry, scaling, gain in _found(working, bound.scope, first.scaling, entries, began + seconds):
        try:
            evidence = prove(loop, scaling, gain, slack=slack, norms=known, **options)
            found = evidence_value(loop, evidence, bound.scope)
        except BoundError as error:
            warnings.warn(f"entry {entry} of the bound is not refined: {error}", stacklevel=2)
            continue
        risks.append(0.0 if evidence.norm is None else evidence.norm.failure)
        if float(found[entry]) < float(value[entry]) * (1 - _WORTH):
            kept.append(evidence)
            value = torch.minimum(value, found)
            if progress is not None:
                progress(scaling.kind, float(value[value > 0].log().mean().exp()), time.monotonic() - began)
    # What came out small may have done so because its proof failed: those that were not kept count too.
    return with_further(loop, bound, kept, risk=math.fsum(risks))


def with_further(
    loop: LoopMap, bound: UpperBound, further: Sequence[Evidence], *, risk: float | None = None
) -> UpperBound:
    """A bound with further evidence, whatever it says of each entry: the smallest counts.

    Its slack is the largest of all. ``risk`` is the probability that any proof fails from which it was chosen, by
    default that any of its own does.

    Raises:
        BoundError: what is given proves nothing.
    """
    if not further:
        return bound
    value = bound.value
    for one in further:
        value = torch.minimum(value, evidence_value(loop, one, bound.scope))
    norms = [one.norm for one in further if one.norm is not None]
    return replace(
        bound,
        value=value,
        failure=min(1.0, bound.failure + (math.fsum(norm.failure for norm in norms) if risk is None else risk)),
        slack=max(bound.slack, *(excess(loop, norm) for norm in norms)),
        further=tuple(further),
    )


def refined_estimate(
    loop: LoopMap,
    bound: Estimate,
    *,
    seconds: float,
    pairs: Sequence[tuple[int, int]] = (),
    progress: Progress | None = None,
) -> Estimate:
    """The same without proofs."""
    if bound.scaling is None:
        return bound
    began, value, working = time.monotonic(), bound.value, search_map(loop, {})
    for _, scaling, gain in _found(working, bound.scope, bound.scaling, _entries(value, pairs), began + seconds):
        try:
            output = fitted(scaled_at(working, scaling), whitening(gain))
            value = torch.minimum(value, feasible_value(loop, output, bound.scope))
        except BoundError:
            continue
        if progress is not None:
            progress(scaling.kind, float(value[value > 0].log().mean().exp()), time.monotonic() - began)
    return replace(bound, value=value)
