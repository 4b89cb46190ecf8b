"""Lipschitz constants from below, so that a bound can be shown in a bracket: lower ≤ true ≤ upper.

A difference quotient ``‖f(x) − f(x')‖/‖x − x'‖`` of two points is never above the Lipschitz constant of f, whatever f
is and however the points were found; nor is ``|c·(f(x) − f(x'))|/‖x − x'‖`` above that of c·f. So that is all that is
ever reported: ``steepest.py`` searches, and what it finds is measured here by the quotients of pairs ``x ± h·v/2``,
for several h. (Where f is linear around x and v is the leading singular vector, this is ‖J(x)‖.) Each pair is measured
for every entry of the value.

Rounding: f is evaluated in float64 at the stored weights, and each quotient is lowered by what rounding may have done
to it. For each point that is the smaller of two things: a bound, ``γ_n`` times the network of absolute values (Higham,
ch. 3), which deep networks blow up; and 16·2⁻²⁹ times the distance at which the same network lands in float32 (2⁻²⁹
is the ratio of the two precisions, 16 a margin), which is an estimate.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lipcert.bounds.options import check_scope
from lipcert.bounds.result import Scope, rounded
from lipcert.bounds.steepest import Search
from lipcert.errors import BoundError, ShapeError
from lipcert.graph import Graph, trace
from lipcert.graph.capture import ordinary_mode
from lipcert.graph.types import Resolved
from lipcert.loop import LoopMap
from lipcert.norms.errors import gamma, path_error
from lipcert.norms.scaling import row_norms

__all__ = ["LowerBound", "lower_bound"]

_FRESH = 128  # random points that are looked at
_LADDER = tuple(10.0**-k for k in range(1, 8))  # h of the pairs that are measured, relative to the inputs' scale
_MARGIN = 16 * 2.0**-29
_MEMORY = 2**23  # quotients held at once


@dataclass(frozen=True, eq=False)
class LowerBound:
    """Difference quotients that a network has: its Lipschitz constant in ℓ2 is not smaller, up to rounding as stated.

    Attributes:
        value: float64 tensor: () for ``global``, (C,) for ``class`` (logit a), (C, C) with zero diagonal for
            ``pairwise`` (difference of logits a and b).
        scope: what it is a lower bound of.
        points: ``(M, 2, *input_shape)`` float64: the pairs of points whose quotients these are.
        witness: int64, in the shape of the value: which pair of points; −1 where the value is 0.
        climbed: for each of the M pairs whether the ascent found it; else it lies at one of the inputs given.
        rounding: the largest share of a quotient that was taken off for rounding.
        input_range: the box in which all points lie, if one was asked for.
    """

    value: Tensor
    scope: Scope
    points: Tensor
    witness: Tensor
    climbed: tuple[bool, ...]
    rounding: float
    input_range: tuple[float, float] | None = None

    def __float__(self) -> float:
        return float(self.value)

    def shown(self, digits: int = 6) -> str:
        """The smallest and the largest value, of different classes, rounded down."""
        values = self.value.detach().cpu()
        if values.ndim == 2:
            values = values[~torch.eye(len(values), dtype=torch.bool)]
        ends = dict.fromkeys(rounded(float(v), digits, up=False) for v in (values.min(), values.max()))
        return f"L ≥ {' … '.join(ends)}"

    def summary(self) -> str:
        """One line for people."""
        climbed = sum(self.climbed)
        pairs = f"{len(self.climbed)} pair{'s' * (len(self.climbed) != 1)} of points"
        where = f" in [{self.input_range[0]:g}, {self.input_range[1]:g}]" if self.input_range else ""
        return (
            f"lower, {self.scope}: {self.shown()} (difference quotients of {pairs}{where}, {climbed} found by ascent; "
            f"at most {self.rounding:.1g} of each taken off for rounding)"
        )


def lower_bound(
    module: nn.Module | Graph,
    x: Tensor,
    *,
    scope: Scope = "global",
    steps: int = 50,
    starts: int = 32,
    pairs: Sequence[tuple[int, int]] | None = None,
    input_range: tuple[float, float] | None = None,
    seed: int = 0,
) -> LowerBound:
    """Bound the ℓ2 Lipschitz constant of a module from below, by the steepest pairs of points that a search finds.

    It begins at the inputs given where their Jacobians are largest (of up to 32 outputs, C backward passes for each
    input), and at some points around them, and climbs from there. It says nothing of how much steeper the module is
    elsewhere.

    Args:
        module: any supported ``nn.Module`` in eval mode (see :func:`lipcert.trace`), or what was traced of one.
        x: ``(N, *input_shape)``, where to begin; samples that are not finite are left out.
        scope: ``"global"`` for the whole output, ``"class"`` for each logit, ``"pairwise"`` for each difference of
            two logits.
        steps: of the ascent; 0 looks at the inputs only.
        starts: how many points climb, for all that is bounded together; at least one for each class or pair.
        pairs: for ``"pairwise"``, the pairs (a, b) to search for, if not all of them: each costs some passes of the
            network. The others get what the points found happen to give.
        input_range: keep all points within [low, high]: the bound is then one of the module on that box.
        seed: of random starts.

    Returns:
        :class:`LowerBound`, with a float64 ``value`` on the module's device.

    Raises:
        BoundError: an unknown scope, negative steps, no starts, pairs that are none, or inputs outside of the range.
        ShapeError: logits asked for of an output that is not a vector of them, or no finite inputs.
        lipcert.errors.TraceError: the module cannot be traced.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2)).eval()
        >>> for p in net.parameters():
        ...     _ = torch.nn.init.eye_(p) if p.ndim == 2 else torch.nn.init.zeros_(p)
        >>> bound = lower_bound(net, torch.rand(3, 2))
        >>> bound.shown(3), bound.points.shape
        ('L ≥ 0.999', torch.Size([1, 2, 2]))
    """
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2 or not len(x):
        raise ShapeError("x must be a batch of inputs: a floating-point tensor (N, *input_shape) with N ≥ 1.")
    graph = module if isinstance(module, Graph) else trace(module, tuple(x.shape[1:]))
    if steps < 0 or starts < 1:
        raise BoundError(f"steps must not be negative, and starts must be positive; got {steps} and {starts}.")
    check_scope(scope, graph)
    graph.capture.check()
    with ordinary_mode(), torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
        with torch.no_grad():
            resolved = graph.resolve(torch.float64)
        x = _usable(graph, x, input_range).to(device=resolved.device)
        generator = torch.Generator().manual_seed(seed)
        search = Search(graph, resolved, scale=_scale(x, input_range), box=input_range, generator=generator)
        goals = _goals(scope, graph.output_shape, pairs, x)
        points, climbed = _candidates(search, x, goals, steps, starts)
        with torch.no_grad():
            return _measured(search, scope, points, climbed)


def _usable(graph: Graph, x: Tensor, box: tuple[float, float] | None) -> Tensor:
    if tuple(x.shape[1:]) != graph.input_shape:
        raise ShapeError(f"x must have the shape (N, {', '.join(map(str, graph.input_shape))}); got {tuple(x.shape)}.")
    x = x.detach().double()
    x = x[torch.isfinite(x).flatten(1).all(1)]
    if not len(x):
        raise ShapeError("there is no input without a NaN or an infinity to begin at.")
    if box is not None:
        if not (math.isfinite(box[0]) and math.isfinite(box[1]) and box[0] < box[1]):
            raise BoundError(f"input_range must be two finite numbers, the smaller first; got {box}.")
        if float(x.min()) < box[0] or float(x.max()) > box[1]:
            raise BoundError(f"inputs lie outside of input_range {box}: from {float(x.min())} to {float(x.max())}.")
    return x


def _scale(x: Tensor, box: tuple[float, float] | None) -> float:
    """How far apart inputs are, entry by entry."""
    if box is not None:
        return box[1] - box[0]
    sizes = (float((x - x.mean()).square().mean().sqrt()), float(x.abs().max()), 1.0)
    return next(s for s in sizes if s > 0 and math.isfinite(s))


def _goals(
    scope: Scope, output_shape: tuple[int, ...], pairs: Sequence[tuple[int, int]] | None, like: Tensor
) -> Tensor | None:
    """The covectors to search for, (G, C), or None for the whole output."""
    if pairs is not None and scope != "pairwise":
        raise BoundError("pairs are for scope='pairwise'.")
    if scope == "global":
        return None
    eye = torch.eye(output_shape[0], dtype=like.dtype, device=like.device)
    if scope == "class":
        return eye
    classes = range(len(eye))
    chosen = list(itertools.combinations(classes, 2)) if pairs is None else list(pairs)
    for a, b in chosen:
        if a == b or a not in classes or b not in classes:
            raise BoundError(f"({a}, {b}) is no pair of {len(eye)} different classes.")
    if not chosen:
        raise BoundError("there is no pair of classes to bound.")
    return torch.stack([eye[a] - eye[b] for a, b in chosen])


def _best(search: Search, x: Tensor, goals: Tensor | None, count: int) -> Tensor:
    """Where the Jacobian is largest: the indices of up to ``count`` of the points for each goal, (count, G)."""
    if goals is None:
        scores = search.directions(x, None)[0][:, None]
    else:
        grams = torch.cat([rows @ rows.mT for rows in search.jacobians(x)])
        scores = torch.cat([((goals @ g) * goals).sum(1)[None] for g in grams]).nan_to_num(0.0, 0.0, 0.0)
    return scores.topk(min(count, len(x)), dim=0).indices


def _candidates(search: Search, x: Tensor, goals: Tensor | None, steps: int, starts: int) -> tuple[Tensor, Tensor]:
    """Pairs of points to measure (M, 2, *input_shape), and which of them the ascent found (M,)."""
    best, *_ = _best(search, x, goals, 1)
    found = [(_ladder(search, x[best], goals), False)]
    if steps:
        starts = max(1, starts // len(best))
        fresh = search.around(x, _FRESH)
        begin = torch.cat([x[i] for i in _best(search, x, goals, (starts + 1) // 2)])
        if starts > 1:
            begin = torch.cat([begin, *(fresh[i] for i in _best(search, fresh, goals, starts // 2))])
        rows = None if goals is None else goals.repeat(len(begin) // len(goals), 1)
        tops, left, right = search.climb(begin, rows, steps)
        found += [(_ladder(search, tops, rows), True), (torch.stack([left, right], 1), True)]
    climbed = torch.cat([torch.full((len(p),), by) for p, by in found])
    return torch.cat([p for p, _ in found]), climbed


def _ladder(search: Search, x: Tensor, covectors: Tensor | None) -> Tensor:
    """Pairs x ± h·v/2 around each point, for each h: (M, 2, *input_shape)."""
    norms, v = search.directions(x, covectors)
    rungs = [search.pair(x, v, torch.full_like(norms, h * search.scale)) for h in _LADDER]
    return torch.cat([torch.stack(ends, 1) for ends in rungs])


def _measured(search: Search, scope: Scope, points: Tensor, climbed: Tensor) -> LowerBound:
    """The largest quotients of all pairs, entry by entry, less what rounding may have done."""
    single, relative = search.graph.resolve(torch.float32), path_error(LoopMap(search.graph, search.resolved))
    entries = search.outputs ** (2 if scope == "pairwise" else 1)
    step = max(1, min(search.rows // 2, _MEMORY // entries))
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for start in range(0, len(points), step):
        some = points[start : start + step]
        y, error = _evaluated(search, some.flatten(0, 1), single, relative)
        change = y[1::2] - y[0::2]
        run = row_norms((some[:, 0] - some[:, 1]).flatten(1)) * (1 + gamma(some[0, 0].numel() + 8))
        plain, low = _quotients(scope, change, error.reshape(-1, 2).sum(1), run)
        best = low.max(0)
        lost = 1 - best.values / plain.gather(0, best.indices[None])[0]
        parts.append((best.values, best.indices + start, lost))
    values, indices, losses = (torch.stack(p) for p in zip(*parts, strict=True))
    first = values.max(0)
    witness, lost = (v.gather(0, first.indices[None])[0] for v in (indices, losses))
    positive = first.values > 0
    used, where = torch.unique(witness[positive], return_inverse=True)
    witness = torch.full_like(witness, -1).masked_scatter(positive, where)
    return LowerBound(
        first.values,
        scope,
        points[used],
        witness,
        tuple(climbed[used.cpu()].tolist()),
        float(lost[positive].max()) if len(used) else 0.0,
        search.box,
    )


def _evaluated(search: Search, x: Tensor, single: Resolved, relative: float) -> tuple[Tensor, Tensor]:
    """The network f at a batch (N, C), and how far rounding may have moved it, in the 2-norm: (N,)."""
    y = search.values(x)
    apart = row_norms(y - search.graph.evaluate(x.float(), single).flatten(1).double()) * _MARGIN
    sizes = search.graph.sizes(x.abs().amax(0, keepdim=True), search.resolved, per_rounding=relative)
    bound = row_norms(relative * sizes[search.graph.output].flatten(1)) * (1 + gamma(search.outputs + 8))
    return y, torch.minimum(*(v.expand_as(apart).nan_to_num(math.inf, math.inf) for v in (apart, bound)))


def _quotients(scope: Scope, change: Tensor, error: Tensor, run: Tensor) -> tuple[Tensor, Tensor]:
    """The quotients of pairs of points for each entry of the value, (M, *value_shape): plain, and rounded down."""
    if scope == "global":
        rise = row_norms(change)
    elif scope == "class":
        rise, error, run = change.abs(), error[:, None], run[:, None]
    else:
        rise = (change[:, :, None] - change[:, None, :]).abs()
        error, run = math.sqrt(2.0) * error[:, None, None], run[:, None, None]
    low = (rise * (1 - gamma(change.shape[1] + 8)) - error * (1 + gamma(8))) / run * (1 - gamma(8))
    low = torch.where(torch.isfinite(low) & (run > 0), low, 0.0).clamp_min(0)
    return torch.where(low > 0, rise / run, 1.0), low
