"""Certify a module: its predictions on a batch, the bound and the rounding of its execution all in one call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast, get_args

import torch
from torch import Tensor, nn

from lipcert.bounds.lipschitz import DENSE_LIMIT, FAILURE, SECONDS, SLACK, graph_bound
from lipcert.bounds.refine import nearest_pairs
from lipcert.bounds.result import AnyMethod, Bound, Guarantee, Scope, UpperBound
from lipcert.certify.arithmetic import Precision
from lipcert.certify.contest import Contest
from lipcert.certify.local import Local, Progress, locally, radii_to_try
from lipcert.certify.logits import exact_logits, executed_logits
from lipcert.certify.radius import Radii, check_kind, contest_of, radii
from lipcert.errors import BoundError, ShapeError
from lipcert.graph import Graph, check_mode, trace
from lipcert.graph.capture import first_line

__all__ = ["BATCH", "certified", "certify", "contested", "executes", "execution", "logits_of"]

BATCH = 50
"""Samples evaluated at once: float64 is faster in small batches, which stay in the cache."""


def logits_of(module: nn.Module, x: Tensor, *, batch_size: int = 512) -> Tensor:
    """The module's outputs in float32 or wider, a batch at a time, without gradient and without autocast.

    Raises:
        ShapeError: the module does not accept the batch, or ``batch_size`` is not positive.
    """
    if batch_size < 1:
        raise ShapeError(f"batch_size must be at least 1; got {batch_size}")
    if not len(x):
        return logits_of(module, x.new_zeros((1, *x.shape[1:])))[:0]
    parts = []
    device = next((p.device for p in module.parameters()), x.device)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        for some in (x[i : i + batch_size] for i in range(0, len(x), batch_size)):
            try:
                parts.append(module(some.to(device, copy=True)))  # a copy: the module may work in place
            except Exception as error:
                raise ShapeError(
                    f"the module does not accept a batch of shape {tuple(some.shape)} of {some.dtype}: "
                    f"{first_line(error)}"
                ) from error
    return torch.cat(parts)


def certify(
    module: nn.Module,
    x: Tensor,
    y: Tensor | Sequence[int] | None = None,
    *,
    method: AnyMethod = "liplt",
    scope: Scope = "pairwise",
    guarantee: Guarantee = "upper",
    dense_limit: int | None = DENSE_LIMIT,
    failure: float = FAILURE,
    slack: float = SLACK,
    scaling: str = "auto",
    seconds: float = SECONDS,
    refine: float = 0.0,
    batch_size: int = BATCH,
    bound: Bound | None = None,
    precision: Precision | None = None,
    local: Local = False,
) -> Radii:
    """Certify the predictions of a classifier on a batch.

    Args:
        module: a supported classifier in eval mode that maps ``(N, *shape)`` to logits (N, C).
        x: ``(N, *shape)``, in the units in which the radius is wanted (pixels in [0, 1]).
        y: (N,) labels; needed for accuracies only.
        method, scope, guarantee, dense_limit, failure, slack, scaling, seconds, refine: see :func:`lipcert.lipschitz`.
        batch_size: samples evaluated at once.
        bound: a bound of this module, at its present weights, computed before; then the options above are unused.
        precision: ``"float32"`` or ``"float64"``, which must be what the module runs in, for radii that hold for its
            execution, rounding included, under :data:`lipcert.certify.rounding.ASSUMPTIONS`; ``"real"`` for those of
            real arithmetic. By default that of the module; an estimate knows ``"real"`` only.
        local: add bounds that hold in a ball around each sample only (:mod:`lipcert.certify.local`), for an upper
            bound. No radius becomes smaller by it; it takes about as long as some dozens of forward passes in float64
            for each sample. Given some radii, ``[36 / 255]``, these are tried and no others, and (given ``y``) of the
            samples that are classified correctly only, which is all that certified accuracy at them needs, in a
            fraction of the time.

    Returns:
        :class:`CertifiedRadii` (``guarantee="upper"``) or :class:`EstimatedRadii`.

    Raises:
        lipcert.errors.LipcertError: what :func:`lipcert.lipschitz` and :func:`lipcert.certify.radii` raise.

    Example:
        A linear classifier's radius is its margin over the norm of the difference of two rows:

        >>> import torch
        >>> net = torch.nn.Linear(2, 2).eval()
        >>> _ = net.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]])), net.bias.data.zero_()
        >>> result = certify(net, torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
        >>> round(float(result.real), 6), result.certified_accuracy(0.7), result.certified_accuracy(0.71)
        (0.707107, 1.0, 0.0)

        That is the radius in real arithmetic; where float32 rounds as well, it is a little smaller:

        >>> result.precision, bool(0.70710 < result.radius < result.real)
        ('float32', True)
    """
    check_mode(module)
    if bound is not None:
        check_kind(bound)
    if not isinstance(x, Tensor) or x.ndim < 2 or not x.is_floating_point():
        raise ShapeError(
            "x must be a floating-point batch of shape (N, *input_shape), with values in the input's units; got "
            + (f"{tuple(x.shape)} of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__)
        )
    try:
        labels = None if y is None else torch.as_tensor(y, dtype=None if len(y) else torch.int64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ShapeError(f"y must hold one integer for each sample: {first_line(error)}") from error
    graph = trace(module, tuple(x.shape[1:]))
    if bound is None:
        bound = graph_bound(
            graph,
            method=method,
            scope=scope,
            guarantee=guarantee,
            dense_limit=dense_limit,
            failure=failure,
            slack=slack,
            scaling=scaling,
            seconds=seconds,
            refine=refine,
            pairs=nearest_pairs(logits_of(module, x, batch_size=max(batch_size, 1))) if refine else (),
            parts=guarantee == "upper" and executes(graph, precision),
        )
    given = None if labels is None else labels
    if isinstance(bound, UpperBound):
        if batch_size < 1:
            raise ShapeError(f"batch_size must be at least 1; got {batch_size}")
        batches = [x[i : i + batch_size] for i in range(0, max(len(x), 1), batch_size)]
        return certified(graph, bound, batches, given, precision, local=local)
    if radii_to_try(local) is not None or local is True:
        raise BoundError("local radii are for upper bounds: an estimate certifies nothing. Use guarantee='upper'.")
    if precision not in (None, "real"):
        raise BoundError(f"precision={precision!r} is for upper bounds: an estimate certifies nothing.")
    logits = logits_of(module, x, batch_size=batch_size)
    if logits.ndim == 2:  # a finite logit of an infinite input (a ReLU can hide it) certifies nothing
        finite = torch.isfinite(x).flatten(1).all(1).to(logits.device)
        logits = logits.masked_fill(~finite[:, None], float("nan"))
    return radii(logits, bound, None if given is None else given.to(logits.device))


def execution(graph: Graph, precision: str | None) -> Precision:
    """The precision that is meant: the one asked for, or that in which the traced module runs.

    Raises:
        BoundError: an unknown one, or one in which the module does not run.
    """
    runs = str(graph.capture.sample.dtype).removeprefix("torch.")
    if precision is None:
        precision = runs
    if precision not in get_args(Precision) and precision != runs:
        raise BoundError(f"precision must be one of {', '.join(map(repr, get_args(Precision)))}; got {precision!r}.")
    if precision not in ("real", runs):
        raise BoundError(
            f"the module runs in {runs}, so nothing can be said of its execution in {precision}: convert the module, "
            "or use precision='real'."
        )
    return cast(Precision, precision)


def executes(graph: Graph, precision: str | None) -> bool:
    """Whether radii in a precision are those of an execution, whose rounding is followed part by part."""
    return execution(graph, precision) != "real"


def certified(
    graph: Graph,
    bound: UpperBound,
    batches: Iterable[Tensor],
    labels: Tensor | None = None,
    precision: str | None = None,
    *,
    local: Local = False,
    progress: Progress | None = None,
) -> Radii:
    """:func:`certify` of a network that is traced and bounded already, on any number of batches.

    ``progress`` is told of how many samples the local radii are there.
    """
    at = radii_to_try(local)
    wanted = at is not None or bool(local)
    batches = list(batches) if wanted else batches
    result, contest = contested(graph, bound, batches, labels, precision)
    if not wanted:
        return result
    return locally(graph, bound, batches, contest, result, progress, at=at)


def contested(
    graph: Graph,
    bound: UpperBound,
    batches: Iterable[Tensor],
    labels: Tensor | None,
    precision: str | None,
    *,
    each: bool = False,
) -> tuple[Radii, Contest]:
    """The radii by the bound alone, and what local ones are made from; ``each`` as in :func:`exact_logits`."""
    graph.capture.check()
    if len(graph.output_shape) != 1:
        shape = ", ".join(map(str, graph.output_shape))
        raise ShapeError(f"radii are of logits (N, C); this module's output has shape (N, {shape}).")
    chosen = execution(graph, precision)
    if chosen == "real":
        logits, errors = exact_logits(graph, batches, each=each, bound=bound)
        rounding = None
    else:
        logits, errors, rounding = executed_logits(graph, bound, batches, getattr(torch, chosen), each=each)
    result = radii(
        logits,
        bound,
        None if labels is None else labels.to(logits.device),
        errors=errors,
        rounding=rounding,
    )
    return result, contest_of(logits, bound, errors, rounding)
