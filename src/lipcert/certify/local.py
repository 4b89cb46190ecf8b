"""Local radii: for each sample the largest ball that a bound on that ball alone certifies, or the global radius.

At a radius ε each other class b is ruled out by the global bound, margin_ab > L_ab·ε, or by a local one, margin_ab
larger than what y_a − y_b can fall by within the ball. That is by :mod:`lipcert.bounds.local_gain` where the bound is
by small gain, and by :mod:`lipcert.bounds.local` where it is not or the network is small, as either may be the better
one there. In all cases what execution can take off is taken off first. The largest ε is looked for from the global
radius upwards, or some given ones are tried; each that is claimed was proved as it is, so nothing rests on the search.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from lipcert.bounds.local import LocalBound
from lipcert.bounds.local_gain import LocalGain
from lipcert.bounds.result import UpperBound
from lipcert.bounds.reweighted import fall
from lipcert.certify.contest import Contest
from lipcert.certify.logits import alike
from lipcert.certify.radius import Radii
from lipcert.errors import BoundError
from lipcert.graph import Graph
from lipcert.graph.capture import ordinary_mode
from lipcert.loop import LoopMap
from lipcert.norms.dense import chunk

__all__ = ["Local", "Progress", "locally", "radii_to_try", "reproved"]

Local = bool | Sequence[float]
"""Whether to look for local radii; or the radii to try, and no others."""
Progress = Callable[[int], None]

_ROWS = 32  # of local small gain, at once
_SAMPLES, _ENTRIES = 256, 2**22  # at once, at most: the rows of few samples would fill no batch of rows
_SMALL = 2048  # entries of x and of all activations together
_ROUNDS = 10
_FIRST = 1.25  # times the global radius: where the search begins
_CLOSE = 1.004  # where it ends
_DOUBTFUL = 1.02  # tried where the search would end below the global radius
_SPARE = 2.0**-14  # by which a radius is smaller than one that was proved: another machine's sums are not the same
_ROOM = 2.0**-10  # of a margin, for what another machine's search may end at
_POWER = 0.75  # the fall is about proportional to ε^(1/0.75)


def radii_to_try(local: Local) -> tuple[float, ...] | None:
    """The radii to try and no others; None where the largest are looked for, or none.

    Raises:
        BoundError: what is no yes or no, and no positive numbers either.

    >>> radii_to_try([0.2, 0.1, 0.2]), radii_to_try(True)
    ((0.1, 0.2), None)
    """
    if isinstance(local, bool):
        return None
    try:
        given = list(local)
        if any(isinstance(e, (bool, str)) for e in given):
            raise TypeError("no numbers")
        found = sorted({float(e) for e in given})
    except (TypeError, ValueError) as error:
        raise BoundError(f"local must be True, False, or the radii to try; got {local!r}.") from error
    if not all(0 < e < math.inf for e in found):
        raise BoundError(f"the radii to try by local bounds must be positive numbers; got {found}.")
    return tuple(found)


def locally(
    graph: Graph,
    bound: UpperBound,
    batches: Iterable[Tensor],
    contest: Contest,
    result: Radii,
    progress: Progress | None = None,
    *,
    at: Sequence[float] | None = None,
) -> Radii:
    """Radii with local bounds added to the global one.

    Args:
        graph: the network.
        bound: of this network, at its present weights.
        batches: of shape (n, *input_shape): the samples of ``result``.
        contest: of these samples, with the rounding that ``result`` has. Margins are taken as small as anybody may find
            them.
        result: their global radii.
        progress: is told how many samples are done.
        at: in order; try these radii only, each by a hair more than it is, instead of looking for the largest, and, of
            samples with labels, those only that are classified correctly: certified accuracy asks of no others.

    Returns:
        radii that are nowhere smaller, with ``result`` as what the bound gives ``alone``.

    Raises:
        BoundError: a bound that does not carry its parts.
    """
    found, start, contest = [], 0, contest.cautious()
    counts = torch.ones_like(result.prediction, dtype=torch.bool) if result.labels is None else result.correct
    with _bounded(graph, bound, closely=at is None) as local:
        for x in _inputs(local, batches):
            stop = start + len(x)
            here, base = contest.part(start, stop), result.radius[start:stop]
            if at is None:
                found.append(_search(local, x, here, base))
            else:
                found.append(_tried(local, x, here, base, at, counts[start:stop]))
            start = stop
            if progress is not None:
                progress(stop)
    radius = torch.cat(found) if found else result.radius
    return replace(result, radius=radius, real=torch.maximum(result.real, radius), alone=result)


def reproved(
    graph: Graph, bound: UpperBound, batches: Iterable[Tensor], contest: Contest, radius: Tensor, which: Tensor
) -> Tensor:
    """For which samples a radius is proved, as it is.

    Args:
        graph, bound, batches, contest: as for :func:`locally`.
        radius: (N,) float64, of anybody.
        which: (N,) bool, the samples that it is asked of.

    Returns:
        (N,) bool, false where it is not asked.
    """
    radius, found, start = radius.to(contest.margins), [], 0
    which = which.to(contest.own.device) & (contest.prediction >= 0) & (radius > 0) & (radius <= contest.reach)
    with _bounded(graph, bound, closely=False) as local:
        for x in _inputs(local, batches):
            part, here = slice(start, start + len(x)), contest.part(start, start + len(x))
            quotient = _quotient(local, x, here, here.executed(), radius[part], which[part])
            found.append(which[part] & (quotient > 1))
            start += len(x)
    return torch.cat(found) if found else which


class _Bounds:
    """The local bounds of a network; ``closely``: how far below enough they are tells where to look next."""

    def __init__(self, graph: Graph, bound: UpperBound, *, closely: bool) -> None:
        self._closely = closely
        self.loop = LoopMap(graph, graph.resolve(torch.float64))
        self._gain = LocalGain.of(self.loop, bound)
        small = sum(math.prod(self.loop.source_shape(j)) for j in range(self.loop.depth + 1)) <= _SMALL
        self._lines = LocalBound(self.loop, bound.hidden) if small or self._gain is None else None
        self.rows = chunk(self.loop) if small or self._gain is None else min(_ROWS, chunk(self.loop))

    def fall(self, x: Tensor, a: Tensor, b: Tensor, radius: Tensor, enough: Tensor) -> Tensor:
        """How much y_a − y_b can fall at most in the balls; not much closer than needed to be less than enough."""
        found = torch.full_like(radius, torch.inf)
        if self._gain is not None:
            found = fall(self._gain, x, a, b, radius, enough, closely=self._closely)
        if self._lines is not None and bool((rest := ~(found < enough)).any()):
            found[rest] = torch.minimum(found[rest], self._lines.fall(x[rest], a[rest], b[rest], radius[rest]))
        return found


@contextmanager
def _bounded(graph: Graph, bound: UpperBound, *, closely: bool) -> Iterator[_Bounds]:
    """The local bounds of the network, and the modes in which they compute."""
    # γ_n holds for sums of products in any order, but not for the FFT and Winograd convolutions of cuDNN.
    with ordinary_mode(), torch.no_grad(), torch.backends.cudnn.flags(enabled=False):
        yield _Bounds(graph, bound, closely=closely)


def _inputs(local: _Bounds, batches: Iterable[Tensor]) -> Iterator[Tensor]:
    most = max(1, min(_SAMPLES, _ENTRIES // math.prod(local.loop.source_shape(0))))
    own = (batch.to(dtype=torch.float64, device=local.loop.resolved.device) for batch in batches)
    return alike(_together(own, most))


def _together(batches: Iterable[Tensor], most: int) -> Iterator[Tensor]:
    """The same samples in batches of so many, or a few more."""
    some: list[Tensor] = []
    for batch in batches:
        some.append(batch)
        if sum(map(len, some)) >= most:
            yield torch.cat(some)
            some = []
    if some:
        yield torch.cat(some)


def _search(local: _Bounds, x: Tensor, contest: Contest, base: Tensor) -> Tensor:
    """The largest radii proved in a bounded number of rounds, of one batch; all samples are tried at once.

    With some room, so that another machine is to prove them too.
    """
    each = contest.executed()
    low, high = base.clone(), torch.full_like(base, torch.inf)
    trial, doubts = torch.minimum(base * _FIRST, contest.reach), torch.zeros_like(base)
    live = (base > 0) & (contest.prediction >= 0) & (trial > base)
    for _ in range(_ROUNDS):
        if not bool(live.any()):
            break
        quotient = _quotient(local, x, contest, each, trial, live, room=_ROOM)
        passed = live & (quotient > 1)
        low, high = torch.where(passed, trial, low), torch.where(live & ~passed, trial, high)
        guess = trial * quotient.nan_to_num(0.0).clamp(0.1, 4.0) ** _POWER * (1 - 2.0**-10)
        doubtful = ~passed & (guess <= low)
        doubts = doubts + doubtful
        between = (low * torch.minimum(high, 2 * low)).sqrt()
        guess = torch.where((guess > low * _CLOSE) & (guess < high / _CLOSE), guess, between)
        guess = torch.where(doubtful & (low == base), torch.minimum(low * _DOUBTFUL, guess), guess)
        trial = torch.minimum(guess, contest.reach)
        live = live & (high > low * _CLOSE) & (doubts < 2) & (trial > low)
    return _spared(local, x, contest, each, low, base)


def _spared(local: _Bounds, x: Tensor, contest: Contest, each: Tensor, low: Tensor, base: Tensor) -> Tensor:
    """A little less than what was proved, proved as it is too: another machine is to find it so."""
    spared = torch.maximum(low * (1 - _SPARE), base)
    kept = _quotient(local, x, contest, each, spared, spared > base, room=_ROOM) > 1
    return torch.where(kept, spared, base)


def _tried(local: _Bounds, x: Tensor, contest: Contest, base: Tensor, at: Sequence[float], counts: Tensor) -> Tensor:
    """The largest of these radii, in order, that are proved of one batch; a sample that fails is not tried again.

    As :func:`_search` with some room.
    """
    each, low = contest.executed(), base
    live = (base > 0) & (contest.prediction >= 0) & counts
    for radius in at:
        trial = torch.full_like(base, radius * (1 + _SPARE))
        asked = live & (low < trial) & (trial <= contest.reach)
        passed = asked & (_quotient(local, x, contest, each, trial, asked, room=_ROOM) > 1)
        low, live = torch.where(passed, trial, low), live & (passed | ~asked)
    return low


def _quotient(
    local: _Bounds, x: Tensor, contest: Contest, each: Tensor, radius: Tensor, live: Tensor, *, room: float = 0.0
) -> Tensor:
    """(n,): the least of margin over fall, over the classes that the global bound does not rule out.

    A sample is certified at its radius where it is larger than 1, and only there. Of one that fails in some class no
    others are looked at. ``room`` takes that much off the margins.
    """
    sample, other = torch.nonzero((each < radius[:, None]) & live[:, None], as_tuple=True)
    left, least = contest.left(sample, other, radius[sample]), torch.full_like(radius, torch.inf)
    known = each[sample, other] / radius[sample]  # by the global bound
    nearest = known.argsort(stable=True)  # the classes that are likeliest to be in the way come first
    for some in torch.split(nearest, local.rows):
        some = some[least[sample[some]] > 1]
        here, rows, b = left[some] * (1 - room), sample[some], other[some]
        fall = local.fall(x[rows], contest.prediction[rows], b, radius[rows], here)
        ratio = torch.maximum((here / fall).nan_to_num(0.0), known[some]).clamp(0.0, 4.0)
        ratio = torch.where(here > fall, ratio.clamp_min(1 + 2.0**-40), ratio.clamp_max(1.0))
        least = least.scatter_reduce(0, rows, ratio, "amin")
    return least
