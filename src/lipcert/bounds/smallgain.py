"""Scaled small gain: never above LipLT, on the same linear map, and as sharp as LipSDP.

For positive D_j, if ‖P·y‖² + Σ‖D_j·z_j‖² ≤ ‖x‖² + Σ‖D_j·w_j‖² for all (x, w), the true w_j (for which the two sums
compare as ‖D_j·w_j‖ ≤ ‖D_j·z_j‖) leave ‖P·Δy‖ ≤ ‖Δx‖, so that |h·Δy| ≤ ‖P⁻ᵀh‖·‖Δx‖ for every functional h of the
output. The search for D (:mod:`lipcert.bounds.scaling`) and P = N^{-1/2} (:mod:`lipcert.bounds.gain`) may be as
careless as it likes: one norm, ‖S‖ ≤ σ of the scaled map, proves them. Where σ > 1, weights t^level with t = 1/σ repair
it (by Schwarz's lemma, t ↦ S(t) being analytic with S(0) = 0), which costs the factor σ^level(y).

One weight for each neuron is LipSDP-Neuron (Fazlyab et al. 2019), without its semidefinite program.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lipcert.bounds.evidence import KINDS, Evidence, Kind, Scaling
from lipcert.bounds.gain import Probe, head_rows, solve
from lipcert.bounds.output import fitted, functional_norms, whitening
from lipcert.bounds.recursive import estimated, proved, typical_norms
from lipcert.bounds.result import Estimate, Scope, UpperBound
from lipcert.bounds.scaling import Progress, Search
from lipcert.bounds.stages import Find, staged_start
from lipcert.bounds.starts import balanced_start, feasible_start
from lipcert.errors import BoundError
from lipcert.loop import LoopMap, Pair
from lipcert.norms.result import Norm
from lipcert.norms.scaled import prove_scaled
from lipcert.norms.upper import DENSE, deterministic_limit
from lipcert.scaled import ScaledMap, levels, weight_shapes

__all__ = [
    "ALL_HEADS",
    "estimated_smallgain",
    "evidence_value",
    "excess",
    "feasible_value",
    "gain_at",
    "global_gain",
    "identity_heads",
    "objective",
    "prove",
    "proved_smallgain",
    "scaled_at",
    "search",
    "search_map",
]

ALL_HEADS = 24
"""As many outputs are looked at one by one while D is searched; of more, a sketch."""
_SKETCH = 12
_SMALL = 2.0e6  # entries of all rows together: so small a network is searched in float64
_RANGE = 1e12  # of m_k: products of a few of these and their inverses are within float32
# Of conjugate gradients for the final N, and where it is of many outputs; it errs by the square, times Q's condition.
# Of many outputs few directions are left with more than a hundredth to make up for (bounds/output.py), unless N is
# nearly singular: then what is missing is much beside its least eigenvalues.
_CLOSE, _CLOSE_MANY, _CLOSE_SINGULAR = 1e-4, 2e-2, 1e-3
_SINGULAR = 1e-2  # of the mean of N's diagonal
_ROWS = 40
_LOOKS_AHEAD = 3  # at which outputs a global bound depends on, where they are too many to look at all
_FINEST_SHARE = 0.5  # of the time there is: a finer scaling is begun while less has passed
_PARTS_SHARE = 0.3  # of the time there is, for the parts of a deep network
_ROOM = 1e-3  # that a part's constant is taken for more than it is, so that ‖S_z‖ < 1 of the whole


Objective = Callable[[Tensor, float], Tensor]


def objective(scope: Scope, *, sketched: bool) -> tuple[Objective, bool]:
    """J(N, sharpness), and whether it needs no sharpening."""
    if scope == "pairwise" and not sketched:

        def pairwise(gain: Tensor, _: float) -> Tensor:
            diagonal = gain.diagonal()
            squares = diagonal[:, None] + diagonal[None, :] - 2 * gain
            off = ~torch.eye(len(gain), dtype=torch.bool, device=gain.device)
            return squares[off].clamp_min(1e-300).log().mean() / 2

        return pairwise, True
    if scope != "global":
        return lambda gain, _: gain.diagonal().clamp_min(1e-300).log().mean() / 2, True

    def largest(gain: Tensor, sharpness: float) -> Tensor:
        eigenvalues = torch.linalg.eigvalsh(gain).clamp_min(1e-300)
        return torch.logsumexp(sharpness * eigenvalues.log(), 0) / sharpness / 2

    return largest, False


def identity_heads(loop: LoopMap) -> Tensor:
    """Each entry of the output by itself: (C, *output_shape)."""
    shape = loop.target_shape(loop.depth + 1)
    size, like = math.prod(shape), loop.resolved
    return torch.eye(size, dtype=like.dtype, device=like.device).reshape(size, *shape)


def _heads(loop: LoopMap, scope: Scope) -> tuple[Tensor, bool]:
    """The functionals of the output that the search looks at, and whether they are a sketch."""
    shape = loop.target_shape(loop.depth + 1)
    size, like = math.prod(shape), loop.resolved
    if size <= ALL_HEADS:
        return identity_heads(loop), False
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn((_SKETCH, size), generator=generator, dtype=torch.float64)
    if scope == "pairwise":
        rows = rows - rows.mean(1, keepdim=True)
    if scope == "global":
        rows = torch.linalg.qr(rows.T)[0].T.contiguous()
    return rows.to(dtype=like.dtype, device=like.device).reshape(_SKETCH, *shape), True


def search_map(loop: LoopMap, hidden: Mapping[int, float]) -> LoopMap:
    """T in the dtype to search in: float64 where that is cheap, float32 where its range allows."""
    entries = sum(math.prod(loop.source_shape(j)) for j in range(loop.depth + 1))
    if entries * ALL_HEADS <= _SMALL or not all(1 / _RANGE < m < _RANGE for m in hidden.values()):
        return loop
    return loop.at(loop.graph.resolve(torch.float32))


def search(
    loop: LoopMap,
    hidden: Mapping[int, float],
    *,
    scope: Scope,
    norms: Mapping[Pair, float] | None = None,
    scaling: str = "auto",
    seconds: float = 60.0,
    start: Scaling | None = None,
    progress: Progress | None = None,
    rough: bool = False,
) -> tuple[Scaling, Tensor | float]:
    """Find D, and N (C, C) for it (a number, λ_max of N, for ``"global"``).

    Args:
        loop: T in float64.
        hidden, norms: Lipschitz constants m_k of x ↦ z_k and the norms they come from, roughly, to start from.
        scope: what is to be small: with ``"pairwise"`` the mean of log L_ab over all pairs, with ``"class"`` that of
            log L_a, with ``"global"`` the largest of all.
        scaling: ``"layer"``, ``"channel"``, ``"neuron"``, or ``"auto"``: the finest that is reached in half of
            ``seconds``, each from what the one before has found.
        seconds: when to stop the search; what is found then is used.
        start: D of an earlier bound of the same graph, instead of a start of its own.
        progress: is told how it goes.
        rough: stop where more is to be had for much more time.

    Returns:
        D and N, not proved.

    Raises:
        BoundError: the search fails.
    """
    began = time.monotonic()
    working = search_map(loop, hidden)
    heads, sketched = _heads(working, scope)
    wanted, smooth = objective(scope, sketched=sketched)
    found = Search(working, heads, wanted)
    kinds: list[Kind] = [k for i, k in enumerate(KINDS) if scaling == "auto" or scaling in KINDS[i:]]
    if start is None:
        start = _start(loop, working, hidden, norms, found, "channel" if scaling == "auto" else kinds[-1], seconds)
    current, started = start, time.monotonic()
    kinds = _distinct(working, kinds[KINDS.index(start.kind) :])
    candidates = [] if smooth else [start]  # what is sharpened begins far from the maximum that it is to end at
    roughly = kinds[0] == "layer" and len(kinds) > 1
    for i, kind in enumerate(kinds):
        if scaling == "auto" and i and time.monotonic() - started > _FINEST_SHARE * (began + seconds - started):
            break
        if sketched and scope == "global":  # the largest of all is not seen by heads at random
            _, heads = _largest_gain(scaled_at(working, current), heads, steps=_LOOKS_AHEAD)
            found = Search(working, heads, wanted)
        # A weight a layer is only where a finer scaling starts from; a weight a neuron needs the best of the channels'.
        current = current.refined(working, kind)
        current, _ = found.run(
            current, deadline=began + seconds, smooth=smooth, progress=progress, rough=rough or (roughly and not i)
        )
        candidates.append(current)
    if roughly and candidates[-1].kind == kinds[0]:  # there was no time for a finer one
        current, _ = found.run(current, deadline=began + seconds, smooth=smooth, progress=progress)
        candidates.append(current)
    if len(candidates) > 1:  # a finer search may be held up by ‖S_z‖ ≥ 1 where a coarser one was not
        current = min(candidates, key=found.reached)
        if scaling != "auto":  # what was asked for, though it be equal in each channel
            current = current.refined(working, kinds[-1])
    return current, gain_at(working, current, scope, found.heads if sketched else None)


def _distinct(loop: LoopMap, kinds: Sequence[Kind]) -> list[Kind]:
    """The same without those that are the next one by another name: where an activation has no dimensions of space."""
    shapes = [weight_shapes(loop, k) for k in kinds]
    return [k for i, k in enumerate(kinds) if i + 1 == len(kinds) or shapes[i] != shapes[i + 1]]


def _start(
    loop: LoopMap,
    working: LoopMap,
    hidden: Mapping[int, float],
    norms: Mapping[Pair, float] | None,
    search: Search,
    kind: Kind,
    seconds: float,
) -> Scaling:
    """What LipLT gives, a balance of each channel, or the blocks of a deep network by themselves: the best of these."""
    deadline = time.monotonic() + _PARTS_SHARE * seconds
    ways: list[Callable[[], Scaling | None]] = [
        lambda: feasible_start(working, hidden, norms),
        lambda: balanced_start(working, "channel") if kind != "layer" else None,
        lambda: staged_start(loop, _finder(kind), deadline),
    ]
    starts, failed = list[Scaling](), list[BoundError]()
    for way in ways:
        try:
            start = way()
        except BoundError as error:
            failed.append(error)
        else:
            starts += [] if start is None else [start]
    if not starts:
        raise failed[0]
    return starts[0] if len(starts) == 1 else min(starts, key=search.reached)


def _finder(kind: Kind) -> Find:
    """D and a Lipschitz constant of a part of a network."""

    def find(part: LoopMap, seconds: float) -> tuple[Scaling | None, float]:
        value, hidden, norms = estimated(part, "global", 0)
        if not part.depth:
            return None, float(value) * (1 + _ROOM)
        start = feasible_start(part, hidden, norms).refined(part, kind)
        found, gain = search(part, hidden, scope="global", scaling=kind, seconds=seconds, start=start, rough=True)
        return found, math.sqrt(float(gain)) * (1 + _ROOM)

    return find


def global_gain(loop: LoopMap, scaling: Scaling) -> float:
    """λ_max of N at D, as :func:`search` finds it for a global bound."""
    working = search_map(loop, {})
    heads, sketched = _heads(working, "global")
    return float(gain_at(working, scaling, "global", heads if sketched else None))


def gain_at(loop: LoopMap, scaling: Scaling, scope: Scope, sketch: Tensor | None = None) -> Tensor | float:
    """N at D, of every output; for a sketched global bound λ_max alone, by subspace iteration on N."""
    scaled = scaled_at(loop, scaling)
    if scope == "global" and sketch is not None:
        return _largest_gain(scaled, sketch)[0]
    gain, vectors = _gain_matrix(scaled, _CLOSE if sketch is None else _CLOSE_MANY)
    if sketch is not None and float(torch.linalg.eigvalsh(gain)[0]) < _SINGULAR * float(gain.diagonal().mean()):
        gain, _ = _gain_matrix(scaled, _CLOSE_SINGULAR, vectors)
    return float(torch.linalg.eigvalsh(gain)[-1]) if scope == "global" else gain.cpu()


def _gain_matrix(scaled: ScaledMap, close: float, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """N of every output, and the solutions V (C, n), to that tolerance and from such a start."""
    loop, probe = scaled.loop, Probe.random(scaled)
    shape = loop.target_shape(loop.depth + 1)
    size = math.prod(shape)
    rows, solutions, results = [], [], []
    for i in range(0, size, _ROWS):
        some = torch.eye(size, dtype=loop.resolved.dtype, device=loop.resolved.device)[i : i + _ROWS]
        b = head_rows(loop, some.reshape(len(some), *shape)) / scaled.divisors
        found = solve(scaled, b, None if start is None else start[i : i + _ROWS], probe, tolerance=close)
        if found is None:
            raise BoundError("the search for a small-gain bound ended outside of its domain: use method='liplt'.")
        rows.append(b)
        solutions.append(found.vectors)
        results.append(found.images)
    found_rows = torch.cat(solutions)
    b, v, z = torch.cat(rows).double(), found_rows.double(), torch.cat(results).double()
    cross = b @ v.T
    gain = cross + cross.T - (v @ v.T - z @ z.T)  # off the diagonal too it errs by a square, unlike b·vᵀ
    return (gain + gain.T) / 2, found_rows


def scaled_at(loop: LoopMap, scaling: Scaling) -> ScaledMap:
    """S without y."""
    like = loop.resolved
    return ScaledMap(loop, [d.to(dtype=like.dtype, device=like.device) for d in scaling.weights], None)


def _largest_gain(scaled: ScaledMap, heads: Tensor, *, steps: int = 12) -> tuple[float, Tensor]:
    """λ_max of N by subspace iteration, a little more than what was seen, and leading vectors of N."""
    seen, start, probe = 0.0, None, Probe.random(scaled)
    for _ in range(steps):
        found = solve(scaled, head_rows(scaled.loop, heads) / scaled.divisors, start, probe, tolerance=_CLOSE)
        if found is None:
            raise BoundError("the search for a small-gain bound ended outside of its domain: use method='liplt'.")
        output = ScaledMap(scaled.loop, scaled.weights, 1.0)
        _, y = output.values(found.vectors)
        assert y is not None
        flat = y.reshape(len(y), -1)
        before, seen = seen, max(seen, float(torch.linalg.svdvals(flat.double())[0]))
        heads = torch.linalg.qr(flat.T)[0].T.reshape(heads.shape).contiguous()
        if seen - before < 1e-4 * seen:
            break
    return seen * (1 + 1e-3), heads


def prove(
    loop: LoopMap,
    scaling: Scaling,
    gain: Tensor | float,
    *,
    slack: float,
    **options: Any,
) -> Evidence:
    """Prove the norm of S for given D and N.

    Args:
        loop: T in float64.
        scaling, gain: from :func:`search`, or from anywhere.
        slack: relative excess to aim at in the bound.
        options: the others of :func:`lipcert.norms.scaled.prove_scaled`.
    """
    # whatever float32 makes of P, the norm is that of the P that stands in the evidence
    output = fitted(scaled_at(search_map(loop, {}), scaling), whitening(gain))
    # the inverse of a matrix that is read from a file is that of one stored in rows, to the last bit
    evidence = Evidence(scaling, output.contiguous() if isinstance(output, Tensor) else output)
    norm = prove_scaled(
        evidence.map(loop),
        slack=slack / max(levels(loop)),
        **options,
    )
    return replace(evidence, norm=norm)


def _power(value: float, exponent: int) -> float:
    """A power, infinite where it overflows."""
    try:
        return float(value**exponent)
    except OverflowError:
        return math.inf


def evidence_value(loop: LoopMap, evidence: Evidence, scope: Scope) -> Tensor:
    """The bound that the evidence proves, rounding included: σ^level(y)·‖P⁻ᵀh‖ for each h of the scope; float64.

    Raises:
        BoundError: it proves nothing: P is not what the scope asks for, or has no inverse, or the norm is too large.
    """
    if evidence.norm is None:
        raise BoundError("this evidence proves nothing: the norm of its scaled map is not there.")
    # in this order NaN stays what it is
    factor = _power(max(evidence.norm.upper, 1.0), levels(loop)[-1]) * (1 + 2.0**-40)
    if not math.isfinite(factor):
        raise BoundError(f"a scaled map of norm {evidence.norm.upper:g} proves nothing.")
    return feasible_value(loop, evidence.output, scope) * factor


def feasible_value(loop: LoopMap, output: Tensor | float, scope: Scope) -> Tensor:
    """``‖P⁻ᵀh‖`` for each h of the scope, rounding included: the bound, if ‖S‖ ≤ 1."""
    if isinstance(output, Tensor) == (scope == "global"):
        raise BoundError("P of a small-gain bound must be a number where the scope is global, else a matrix.")
    if isinstance(output, Tensor):
        return functional_norms(output, scope).to(loop.resolved.device)
    if not output:
        raise BoundError("the number P of a small-gain bound is zero.")
    return loop.resolved.scalar(1 / abs(output) * (1 + 2.0**-40))


def excess(loop: LoopMap, norm: Norm) -> float:
    """By how much a bound may be above what it would be if ‖S‖ were what was seen of it."""
    lower = max(norm.lower, 1.0)
    return _power(max(norm.upper, lower) / lower, levels(loop)[-1]) - 1


def _bounded(loop: LoopMap, hidden: Mapping[int, float]) -> bool:
    """Whether there is anything to search: activations, none of which sees a constant."""
    return bool(loop.depth) and all(math.isfinite(hidden[k]) and hidden[k] > 0 for k in range(1, loop.depth + 1))


def estimated_smallgain(loop: LoopMap, scope: Scope, seed: int, **options: Any) -> Estimate:
    """The bound as it would be if conjugate gradients and norms were exact; ``options`` as in :func:`search`."""
    value, hidden, norms = estimated(loop, scope, seed)
    if not _bounded(loop, hidden):
        return Estimate(value, "smallgain", scope)
    try:
        found, gain = search(loop, hidden, scope=scope, norms=norms, **options)
        sharp = feasible_value(loop, fitted(scaled_at(search_map(loop, hidden), found), whitening(gain)), scope)
    except BoundError as error:  # an output that does not depend on the input, say
        warnings.warn(f"no small-gain bound was found, and LipLT's is used: {error}", stacklevel=2)
        return Estimate(value, "smallgain", scope)
    return Estimate(torch.minimum(value, sharp), "smallgain", scope, found)


def proved_smallgain(
    loop: LoopMap,
    scope: Scope,
    *,
    dense_limit: int | None,
    failure: float,
    slack: float,
    norms: Mapping[Pair, Norm] | None = None,
    evidence: Evidence | None = None,
    base: UpperBound | None = None,
    **options: Any,
) -> UpperBound:
    """The bound proved, entry by entry the smaller of LipLT's and its own; ``options`` as in :func:`search`.

    With ``norms`` it is made from these and from ``evidence`` instead; with ``base``, LipLT's bound, from that. Where a
    search or a proof fails, which a warning says, it is LipLT's.
    """
    if base is None:
        half = failure / 2 or failure
        base = proved(loop, "liplt", scope, dense_limit=dense_limit, failure=half, slack=slack, norms=norms)
    sharp: Tensor | None = None
    if norms is not None:
        sharp = None if evidence is None else evidence_value(loop, evidence, scope)
    elif _bounded(loop, base.hidden):
        try:
            proofs = {p: n.upper for p, n in base.norms.items()}
            known = typical_norms(loop, proofs, base.heads)
            found, gain = search(loop, base.hidden, scope=scope, norms=known, **options)
            limit = deterministic_limit(dense_limit, failure)
            share = failure / 2
            evidence = prove(
                loop, found, gain, slack=slack, dense=min(DENSE, limit), limit=limit, failure=share, norms=proofs
            )
            sharp = evidence_value(loop, evidence, scope)
        except BoundError as error:
            warnings.warn(f"no small-gain bound was found, and LipLT's is used: {error}", stacklevel=2)
    if sharp is None or evidence is None or evidence.norm is None:
        return replace(base, method="smallgain")
    value = torch.minimum(base.value, sharp)
    risk = base.failure + evidence.norm.failure
    if norms is None and 0 < risk <= failure * (1 + 2.0**-30):  # what was asked for, but for the last digits of a sum
        risk = failure
    return replace(
        base, value=value, method="smallgain", failure=risk, slack=excess(loop, evidence.norm), evidence=evidence
    )
