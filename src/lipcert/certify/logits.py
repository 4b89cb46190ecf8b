"""Logits of the real-arithmetic network: computed in float64, with a bound on what rounding did to them.

A radius compares differences of logits, and the difference of two large float32 numbers may be all rounding. So the
traced graph is evaluated in float64, where its stored weights are exact, and each logit comes with an error bound:
``γ_n`` times the same network with |W|, |b|, and ℓ·|z| + |φ(0)| for its activations (Higham, ch. 3), at the largest
input of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from lipcert.bounds.pairs import pair_bounds
from lipcert.bounds.result import UpperBound
from lipcert.certify.arithmetic import ARITHMETICS
from lipcert.certify.resting import CAUTION
from lipcert.certify.rounding import Account, Errors, Recursion, Rounding, check_tf32, far_from, require
from lipcert.certify.weighed import Weighed
from lipcert.errors import BoundError
from lipcert.graph import Graph
from lipcert.graph.capture import ordinary_mode
from lipcert.graph.types import Node
from lipcert.loop import LoopMap
from lipcert.norms.errors import TINY, path_error

__all__ = ["alike", "enclosed", "exact_logits", "executed_logits", "pair_errors"]

_LARGER = 16.0
_MATTERS = 1e-6  # radius that errors may cost before they are looked at closely

Watch: TypeAlias = Callable[[Node, Sequence[Tensor], Tensor], None]


def pair_errors(errors: Tensor, chosen: Tensor) -> Tensor:
    """How far y_a − y_b may be off, (N, C), for the class a chosen for each sample, from errors (N, C) or (N, C, m)."""
    several = errors if errors.ndim == 3 else errors[..., None]
    own = several.gather(1, chosen[:, None, None].expand(-1, 1, several.shape[2]))
    return (several + own).amin(2) * (1 + 2.0**-50)


class _Closer:
    """What float64 loses in differences of logits, followed segment by segment (:mod:`lipcert.certify.rounding`).

    The a-priori bound multiplies |W| through the whole network: of deep residual networks it grows by orders of
    magnitude with each block, which the network does not.
    """

    def __init__(self, loop: LoopMap, bound: UpperBound) -> None:
        arithmetic = ARITHMETICS[torch.float64]
        self.recursion = Recursion(loop, bound, arithmetic)
        self.loop, self.watch = loop, Errors(loop, arithmetic, torch.float64, self.recursion.cuts)
        classes = loop.graph.output_shape[0]
        off = ~torch.eye(classes, dtype=torch.bool, device=loop.resolved.device)
        pairs = {j: pair_bounds(h.double(), classes, upward=True) for j, h in self.recursion.heads.items()}
        self.largest = {j: float(v[off].max()) for j, v in pairs.items()}

    @staticmethod
    def of(loop: LoopMap, bound: UpperBound | None, relative: float, *, each: bool) -> _Closer | None:
        """One, if the a-priori errors of inputs of size 1 make up for a radius that matters, and there is a way.

        Who verifies (``each``) has one wherever who certified had, whatever the last digits are on either's machine.
        """
        shape = loop.graph.output_shape
        if bound is None or len(shape) != 1 or shape[0] < 2 or set(bound.hidden) != set(range(1, loop.depth + 1)):
            return None
        ones = torch.ones((1, *loop.graph.input_shape), dtype=torch.float64, device=loop.resolved.device)
        sizes = loop.graph.sizes(ones, loop.resolved, per_rounding=relative)[loop.graph.output]
        matters = _MATTERS * float(bound.value.max()) * (0.5 if each else 1.0)
        return None if float(sizes.max()) * relative <= matters else _Closer(loop, bound)

    def start(self, batch: Tensor) -> None:
        """Before a batch is evaluated."""
        self.watch.reset(far_from(self.loop, batch)[1])

    def closer(self, found: Tensor, errors: Tensor) -> Tensor:
        """After it: the errors (n, C), and the closer ones, (n, C, 2)."""
        sources, final = self.recursion.run(self.watch, self.watch.errors[self.loop.graph.output], found)
        own = final[..., 0] + TINY
        for j, gained in sources.items():
            own = own + 0.5 * self.largest[j] * gained[:, :1]
        return torch.stack([errors, (own * (1 + 2.0**-40)).nan_to_num(torch.inf)], 2)


def exact_logits(
    graph: Graph, batches: Iterable[Tensor], *, each: bool = False, bound: UpperBound | None = None
) -> tuple[Tensor, Tensor]:
    """Float64 logits of the real-arithmetic network, and bounds on the errors of their differences.

    A difference y_a − y_b errs by the sum of the two errors at most; see :func:`lipcert.certify.logits.pair_errors`.

    Args:
        graph: the network.
        batches: of shape ``(n, *input_shape)``, in any floating-point dtype; their numbers are taken as exact.
        each: bound the errors of each sample by its own input, which takes twice as long, and is never more than in a
            batch of any others.
        bound: of this network at its present weights: with its norms the errors of deep networks are bounded closely.

    Returns:
        logits (N, C) and errors, both float64. The errors are (N, C), or (N, C, m) where there are several bounds, of
        which each holds, and infinite where nothing is known.

    Example:
        >>> import lipcert
        >>> net = torch.nn.Linear(2, 2).eval()
        >>> logits, errors = exact_logits(lipcert.trace(net, (2,)), [torch.rand(3, 2)])
        >>> logits.dtype, bool((errors < 1e-12).all())
        (torch.float64, True)
    """
    logits, errors = [], []
    # γ_n holds for sums of products in any order, but not for the FFT and Winograd convolutions of cuDNN.
    with ordinary_mode(), torch.no_grad(), torch.backends.cudnn.flags(enabled=False):
        loop = LoopMap(graph, graph.resolve(torch.float64), centred=bound is None or bound.method != "product")
        relative = path_error(loop)
        closer = _Closer.of(loop, bound, relative, each=each)
        for batch in alike(batches):
            found, error = _evaluated(loop, batch, relative, closer, [], each=each)
            logits.append(found)
            errors.append(error)
    return torch.cat(logits), torch.cat(errors)


def _evaluated(
    loop: LoopMap, batch: Tensor, relative: float, closer: _Closer | None, watches: list[Watch], *, each: bool
) -> tuple[Tensor, Tensor]:
    """:func:`enclosed`, watched by several, and with closer errors if there is a way."""
    if closer is not None:
        closer.start(batch)
        watches = [*watches, closer.watch]

    def watch(node: Node, operands: Sequence[Tensor], value: Tensor) -> None:
        for one in watches:
            one(node, operands, value)

    found, error = enclosed(loop, batch, relative, watch if watches else None, each=each)
    return found, error if closer is None else closer.closer(found, error)


def enclosed(
    loop: LoopMap, batch: Tensor, relative: float, watch: Watch | None = None, *, each: bool = False
) -> tuple[Tensor, Tensor]:
    """Logits of one batch, and bounds on their errors.

    The logits of a sample that is not finite are NaN: a ReLU may hide an infinity, but nothing is certified by that.
    """
    x = batch.to(dtype=torch.float64, device=loop.resolved.device, copy=True)
    finite = torch.isfinite(x)
    x = torch.where(finite, x, torch.zeros_like(x))
    found = loop.graph.evaluate(x, loop.resolved, watch)
    largest = x.abs()
    if not each:
        largest = largest.amax(0, keepdim=True) if len(x) else x.new_zeros((1, *x.shape[1:]))
    sizes = loop.graph.sizes(largest, loop.resolved, per_rounding=relative)[loop.graph.output]
    whole = finite.flatten(1).all(1).reshape(-1, *(1,) * (found.ndim - 1))
    return found.masked_fill(~whole, float("nan")), (relative * sizes).nan_to_num(torch.inf).expand_as(found)


def alike(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """The same samples in batches in which none is far larger than the others.

    Errors are bounded by the largest input of a batch, which must not spoil them for the rest.
    """
    for batch in batches:
        if not len(batch):
            yield batch
            continue
        size = batch.detach().abs().flatten(1).amax(1).double().nan_to_num(0.0, 0.0, 0.0)
        limit = _LARGER * max(float(size.median()), float(size.min()), 1e-300)
        start = 0
        for i in torch.nonzero(size > limit).flatten().tolist():
            yield from (piece for piece in (batch[start:i], batch[i : i + 1]) if len(piece))
            start = i + 1
        if start < len(batch):
            yield batch[start:]


def _within(logits: Tensor, bound: UpperBound, *, each: bool) -> Tensor:
    """(n,), a hair above the radii of real arithmetic, which an execution's are not to exceed; more to verify."""
    top, predicted = logits.max(1)
    pairs = pair_bounds(bound.value.double(), logits.shape[1], upward=True).to(logits.device)[predicted]
    radii = ((top[:, None] - logits) / pairs).scatter(1, predicted[:, None], torch.inf).amin(1)
    return (radii * (1 + 2.0 ** (-29 if each else -30))).nan_to_num(0.0, torch.inf, 0.0).clamp_min(0.0)


def executed_logits(
    graph: Graph, bound: UpperBound, batches: Iterable[Tensor], dtype: torch.dtype, *, each: bool = False
) -> tuple[Tensor, Tensor, Rounding]:
    """Float64 logits, bounds on their errors, and what an execution in ``dtype`` adds to these within a ball.

    Args:
        graph: the network.
        bound: of this network, at its present weights.
        batches: of shape (n, *input_shape).
        dtype: that the module runs in.
        each: as in :func:`lipcert.certify.exact_logits`.

    Returns:
        as :func:`lipcert.certify.exact_logits`, and a :class:`Rounding`.

    Raises:
        BoundError: an operation of which nobody has said how it rounds, a dtype of which nothing can be said, or a
            bound that does not carry its parts.
    """
    if dtype not in ARITHMETICS:
        raise BoundError(
            f"nothing useful can be said of rounding in {dtype}, whose sums may lose every digit: certify "
            "module.float(), or the network of real arithmetic with precision='real'."
        )
    require(graph)
    arithmetic = ARITHMETICS[dtype]
    logits, errors, parts = [], [], []
    # γ_n holds for sums of products in any order, but not for the FFT and Winograd convolutions of cuDNN.
    with ordinary_mode(), torch.no_grad(), torch.backends.cudnn.flags(enabled=False):
        loop = LoopMap(graph, graph.resolve(torch.float64), centred=bound.method != "product")
        if loop.depth and set(bound.hidden) != set(range(1, loop.depth + 1)):
            raise BoundError(
                "this bound does not say what it is made of: make it with lipcert.lipschitz, for this network."
            )
        check_tf32(loop.resolved.device, dtype)
        relative = path_error(loop)
        recursion, weighed = Recursion(loop, bound, arithmetic), Weighed.of(loop, bound, arithmetic)
        caution = 0.0 if each else CAUTION
        watch = Errors(loop, arithmetic, dtype, recursion.cuts, weighed.weights if weighed else (), caution)
        closer = _Closer.of(loop, bound, relative, each=each)
        for batch in alike(batches):
            far, sizes = far_from(loop, batch)
            watch.reset(sizes)
            found, error = _evaluated(loop, batch, relative, closer, [watch], each=each)
            lost = watch.errors[graph.output]
            sources, final = recursion.run(watch, lost, found)
            accounts, near = [Account(sources, recursion.heads, final)], None
            if weighed is not None:
                accounts.append(weighed.account(watch, lost, found))
                near = weighed.near(watch, lost, found, _within(found, bound, each=each))
            reach = far if all(s.max() < arithmetic.limit for s in sizes) else torch.zeros_like(far)
            logits.append(found)
            errors.append(error)
            parts.append(Rounding(tuple(accounts), reach, arithmetic.name, near))
    return torch.cat(logits), torch.cat(errors), Rounding.join(parts)
