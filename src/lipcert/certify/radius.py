"""Certified radii: how far every input in ℓ2 may move before the predicted class can change.

    R(x) = min_{b ≠ a} (z_a − z_b) / L_ab,      a = argmax z(x)

No input within distance R of x is classified otherwise by the real-arithmetic network, whose logits are enclosed
(:mod:`lipcert.certify.logits`); rounding of the executed one is the business of precision="float32", which is not
here yet. The radius is in the units of the module's
input: with pixels in [0, 1] and normalisation inside the module, in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lipcert.bounds.lipschitz import DENSE_LIMIT, FAILURE, SLACK, graph_bound
from lipcert.bounds.pairs import pair_bounds
from lipcert.bounds.result import Bound, Guarantee, Method, Scope
from lipcert.certify.logits import exact_logits
from lipcert.errors import BoundError, ShapeError
from lipcert.graph import check_mode, trace
from lipcert.graph.capture import first_line

__all__ = ["CertifiedRadii", "EstimatedRadii", "Radii", "certify", "logits_of", "radii"]

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_UNDERFLOWN = 2.0**-900  # no bound of use is smaller; what underflows is raised to something below this


@dataclass(frozen=True, eq=False)
class Radii:
    """Radii of a batch of N samples.

    Attributes:
        radius: (N,) float64. 0 for ties, NaN and infinite logits; meaningful whether or not the prediction is right.
        prediction: (N,) int64, the class with the largest logit (−1 where a logit is not finite).
        labels: (N,) int64, or None if none were given.
        bound: the Lipschitz bound that the radii come from.
    """

    radius: Tensor
    prediction: Tensor
    labels: Tensor | None
    bound: Bound
    guarantee: ClassVar[Guarantee]

    def __len__(self) -> int:
        return len(self.radius)

    @property
    def correct(self) -> Tensor:
        """(N,) bool: predicted as labelled.

        Raises:
            ShapeError: no labels were given.
        """
        if self.labels is None:
            raise ShapeError("no labels were given: pass y to know what is classified correctly.")
        return self.prediction == self.labels

    @property
    def clean_accuracy(self) -> float:
        """The share of samples that are classified correctly."""
        return _share(self.correct)

    def robust_accuracy(self, epsilon: float) -> float:
        """The share of samples that are classified correctly with a radius strictly larger than ``epsilon``."""
        if not epsilon >= 0:
            raise ShapeError(f"epsilon must not be negative; got {epsilon}")
        return _share(self.correct & (self.radius > epsilon))


@dataclass(frozen=True, eq=False)
class CertifiedRadii(Radii):
    """Radii from a proved upper bound."""

    guarantee: ClassVar[Guarantee] = "upper"

    def certified_accuracy(self, epsilon: float) -> float:
        """The share of samples that are correct and provably stay so within ``epsilon`` (in input units).

        Raises:
            ShapeError: no labels, or a negative ``epsilon``.
        """
        return self.robust_accuracy(epsilon)


@dataclass(frozen=True, eq=False)
class EstimatedRadii(Radii):
    """Radii from an estimate of the bound: they may be too large, and nothing is certified by them."""

    guarantee: ClassVar[Guarantee] = "estimate"

    def estimated_accuracy(self, epsilon: float) -> float:
        """What :meth:`CertifiedRadii.certified_accuracy` would be if the estimate were exact."""
        return self.robust_accuracy(epsilon)

    def certified_accuracy(self, epsilon: float) -> float:
        """Always refused: an estimate certifies nothing.

        Raises:
            BoundError: always.
        """
        raise BoundError(
            "these radii come from an estimate of the Lipschitz constant, which certifies nothing. Use "
            "certify(..., guarantee='upper'), or read estimated_accuracy(epsilon) for what it is."
        )


def _share(hits: Tensor) -> float:
    return float(hits.double().mean()) if len(hits) else float("nan")


def _check_kind(bound: object) -> None:
    if not isinstance(bound, Bound):
        raise BoundError(f"bound must be what lipcert.lipschitz returns; got a {type(bound).__name__}.")


def radii(logits: Tensor, bound: Bound, labels: Tensor | None = None, *, errors: Tensor | None = None) -> Radii:
    """Radii from logits and a bound, in float64, rounded down.

    Args:
        logits: (N, C); whatever dtype they were computed in, they are read as exact numbers.
        bound: of the same classes.
        labels: (N,) integers.
        errors: broadcasts to (N, C): how far each logit may be from that of the network that the bound is of, as
            :func:`lipcert.certify.exact_logits` says; zero if the logits are exact. An upper bound asks for them, as a
            logit that a float32 network computes is rounded, and would make radii that are not certified.

    Returns:
        :class:`CertifiedRadii` for an upper bound, :class:`EstimatedRadii` for an estimate.

    Raises:
        ShapeError: shapes or dtypes that do not fit.
        BoundError: an upper bound without ``errors``; a bound between two classes that is zero, negative or not finite.

    Example:
        >>> import torch
        >>> from lipcert.bounds import UpperBound
        >>> bound = UpperBound(torch.tensor(1.0, dtype=torch.float64), "liplt", "global")
        >>> logits = torch.tensor([[3.0, 1.0], [1.0, 1.0]])
        >>> radii(logits, bound, errors=torch.zeros(())).radius.round(decimals=3).tolist()
        [1.414, 0.0]
    """
    _check_kind(bound)
    if bound.guarantee == "upper" and errors is None:
        raise BoundError(
            "with an upper bound, radii need to know how far the logits are from those of the real-arithmetic network: "
            "use lipcert.certify, or give the logits and errors of lipcert.certify.exact_logits."
        )
    if logits.ndim != 2 or logits.shape[1] < 2 or not logits.is_floating_point():
        raise ShapeError(f"logits must be real and of shape (N, C), C ≥ 2; got {tuple(logits.shape)} of {logits.dtype}")
    if labels is not None and (labels.shape != logits.shape[:1] or labels.dtype not in _INTEGERS):
        raise ShapeError(f"y must hold one integer for each of the {len(logits)} samples; got {tuple(labels.shape)}")
    classes = logits.shape[1]
    if labels is not None and labels.numel() and not bool(((labels >= 0) & (labels < classes)).all()):
        raise ShapeError(f"y must lie in 0…{classes - 1}; got {int(labels.min())}…{int(labels.max())}")
    pairs = pair_bounds(bound.value, classes, upward=True).to(device=logits.device, dtype=torch.float64)
    off = pairs[~torch.eye(classes, dtype=torch.bool, device=pairs.device)]
    if not bool((torch.isfinite(off) & (off > _UNDERFLOWN)).all()):
        raise BoundError(
            "the bound between two classes is zero, or not finite: two logits never differ by the input, or the "
            "bound underflowed. A radius would be meaningless."
        )
    with torch.no_grad():
        z = logits.detach().double()
        finite = torch.isfinite(z).all(1)
        z = torch.where(finite[:, None], z, torch.zeros_like(z))
        top, prediction = z.max(1)
        margins = top[:, None] - z
        if errors is not None:
            each = errors.to(z).expand_as(z)
            both = each + each.gather(1, prediction[:, None])
            margins = torch.nextafter(margins, -torch.ones_like(z)) - both * (1 + 2.0**-50)
        down = torch.nextafter(
            margins / pairs[prediction].clamp_min(torch.finfo(torch.float64).tiny), -torch.ones_like(z)
        )
        down = torch.nextafter(down, -torch.ones_like(z)).clamp_min(0.0)  # one step for each of − and /
        own = torch.nn.functional.one_hot(prediction, classes).bool()
        radius = down.masked_fill(own, float("inf")).min(1).values
        radius = torch.where(finite, radius, torch.zeros_like(radius))
        prediction = torch.where(finite, prediction, torch.full_like(prediction, -1))
    kind = CertifiedRadii if bound.guarantee == "upper" else EstimatedRadii
    return kind(radius, prediction, None if labels is None else labels.to(prediction), bound)


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
    method: Method = "liplt",
    scope: Scope = "pairwise",
    guarantee: Guarantee = "upper",
    dense_limit: int = DENSE_LIMIT,
    failure: float = FAILURE,
    slack: float = SLACK,
    batch_size: int = 128,
    bound: Bound | None = None,
) -> Radii:
    """Certify the predictions of a classifier on a batch.

    Args:
        module: a supported classifier in eval mode that maps (N, *shape) to logits (N, C).
        x: (N, *shape), in the units in which the radius is wanted (pixels in [0, 1]).
        y: (N,) labels; needed for accuracies only.
        method, scope, guarantee, dense_limit, failure, slack: see :func:`lipcert.lipschitz`.
        batch_size: samples evaluated at once.
        bound: a bound of this module, at its present weights, computed before; then the options above are unused.

    Returns:
        :class:`CertifiedRadii` (``guarantee="upper"``) or :class:`EstimatedRadii`.

    Raises:
        lipcert.errors.LipcertError: what :func:`lipcert.lipschitz` and :func:`radii` raise.

    Example:
        A linear classifier's radius is its margin over the norm of the difference of two rows:

        >>> import torch
        >>> net = torch.nn.Linear(2, 2).eval()
        >>> _ = net.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]])), net.bias.data.zero_()
        >>> result = certify(net, torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
        >>> round(float(result.radius), 6), result.certified_accuracy(0.7), result.certified_accuracy(0.71)
        (0.707107, 1.0, 0.0)
    """
    check_mode(module)
    if bound is not None:
        _check_kind(bound)
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
        )
    errors: Tensor | None = None
    if bound.guarantee == "upper":
        if batch_size < 1:
            raise ShapeError(f"batch_size must be at least 1; got {batch_size}")
        batches = [x[i : i + batch_size] for i in range(0, max(len(x), 1), batch_size)]
        logits, errors = exact_logits(graph, batches)
    else:
        logits = logits_of(module, x, batch_size=batch_size)
    if logits.ndim == 2:  # a finite logit of an infinite input (a ReLU can hide it) certifies nothing
        finite = torch.isfinite(x).flatten(1).all(1).to(logits.device)
        logits = logits.masked_fill(~finite[:, None], float("nan"))
    return radii(logits, bound, None if labels is None else labels.to(logits.device), errors=errors)
