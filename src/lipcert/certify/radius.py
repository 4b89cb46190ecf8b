"""Certified radii: how far every input in ℓ2 may move before the predicted class can change.

    R(x) = min_{b ≠ a} (z_a − z_b) / L_ab,      a = argmax z(x)

No input within distance R of x is classified otherwise by the real-arithmetic network, whose logits are enclosed
(:mod:`lipcert.certify.logits`). The network that runs rounds, at x and everywhere in the ball; with
E_ab = e_ab + f_ab·R for what that can change (:mod:`lipcert.certify.rounding`) it is

    R(x) = min_{b ≠ a} (z_a − z_b − e_ab) / (L_ab + f_ab).

The radius is in the units of the module's input: with pixels in [0, 1] and normalisation inside the module, in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lipcert.bounds.pairs import pair_bounds
from lipcert.bounds.result import Bound, Guarantee
from lipcert.certify.arithmetic import Precision
from lipcert.certify.contest import Contest
from lipcert.certify.rounding import Rounding
from lipcert.errors import BoundError, ShapeError

__all__ = ["CertifiedRadii", "EstimatedRadii", "Radii", "check_kind", "contest_of", "radii", "share"]

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
        precision: the arithmetic in which no input within ``radius`` is classified otherwise: that of the module as it
            runs (``"float32"``), or ``"real"``.
        real: (N,) float64, the radii in real arithmetic; ``radius`` is never larger. Where local bounds have been used,
            the larger of ``radius`` and of what ``bound`` alone gives.
        runner_up: (N,) int64, the class that limits ``real`` by ``bound`` alone.
        margin: (N,) float64, what the logit of the prediction exceeds that of ``runner_up`` by, at least.
        alone: where local bounds have been used (:mod:`lipcert.certify.local`), what ``bound`` alone gives, with no
            larger radii; else None.
    """

    radius: Tensor
    prediction: Tensor
    labels: Tensor | None
    bound: Bound
    precision: Precision
    real: Tensor
    runner_up: Tensor
    margin: Tensor
    alone: Radii | None = None
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
        return share(self.correct)

    def robust_accuracy(self, epsilon: float) -> float:
        """The share of samples that are classified correctly with a radius strictly larger than ``epsilon``."""
        if not epsilon >= 0:
            raise ShapeError(f"epsilon must not be negative; got {epsilon}")
        return share(self.correct & (self.radius > epsilon))

    def real_accuracy(self, epsilon: float) -> float:
        """:meth:`robust_accuracy` with the radii of real arithmetic."""
        if not epsilon >= 0:
            raise ShapeError(f"epsilon must not be negative; got {epsilon}")
        return share(self.correct & (self.real > epsilon))


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


def share(hits: Tensor) -> float:
    """How many of them are true, as a fraction; NaN of none."""
    return int(hits.sum()) / len(hits) if len(hits) else float("nan")  # a mean depends on the device


def check_kind(bound: object) -> None:
    """Refuse what is not a :class:`Bound`, with a message."""
    if not isinstance(bound, Bound):
        raise BoundError(f"bound must be what lipcert.lipschitz returns; got a {type(bound).__name__}.")


def radii(
    logits: Tensor,
    bound: Bound,
    labels: Tensor | None = None,
    *,
    errors: Tensor | None = None,
    rounding: Rounding | None = None,
) -> Radii:
    """Radii from logits and a bound, in float64, rounded down.

    Args:
        logits: (N, C); whatever dtype they were computed in, they are read as exact numbers.
        bound: of the same classes.
        labels: (N,) integers.
        errors: broadcasts to (N, C): how far each logit may be from that of the network that the bound is of, as
            :func:`lipcert.certify.exact_logits` says; zero if the logits are exact. An upper bound asks for them, as a
            logit that a float32 network computes is rounded, and would make radii that are not certified.
        rounding: what execution adds, as :func:`lipcert.certify.logits.executed_logits` says; None for real
            arithmetic.

    Returns:
        :class:`lipcert.CertifiedRadii` for an upper bound, :class:`lipcert.EstimatedRadii` for an estimate.

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
    check_kind(bound)
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
    contest = contest_of(logits, bound, errors, rounding).cautious()
    real, runner_up = contest.real().min(1)
    radius = real if rounding is None else torch.minimum(contest.executed().amin(1), real)
    kind = CertifiedRadii if bound.guarantee == "upper" else EstimatedRadii
    return kind(
        radius,
        contest.prediction,
        None if labels is None else labels.to(contest.prediction),
        bound,
        "real" if rounding is None else rounding.precision,
        real,
        runner_up,
        contest.margins.gather(1, runner_up[:, None])[:, 0],
    )


def contest_of(logits: Tensor, bound: Bound, errors: Tensor | None, rounding: Rounding | None) -> Contest:
    """The numbers that :func:`radii` makes its radii from.

    Raises:
        BoundError: a bound between two classes that is zero, negative or not finite.
    """
    classes = logits.shape[1]
    pairs = pair_bounds(bound.value, classes, upward=True).to(device=logits.device, dtype=torch.float64)
    off = pairs[~torch.eye(classes, dtype=torch.bool, device=pairs.device)]
    if not bool((torch.isfinite(off) & (off > _UNDERFLOWN)).all()):
        raise BoundError(
            "the bound between two classes is zero, or not finite: two logits never differ by the input, or the "
            "bound underflowed. A radius would be meaningless."
        )
    return Contest.of(logits, pairs, errors, rounding)
