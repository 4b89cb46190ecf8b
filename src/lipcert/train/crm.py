"""Certified radii as a differentiable quantity, and certified-radius maximisation (CRM)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from lipcert.bounds.pairs import check_bound, pair_rows
from lipcert.errors import ConfigError
from lipcert.train.loss_inputs import check_inputs, check_parameter, cross_entropy, own_label

__all__ = ["crm_loss", "crm_term", "margin_radii"]

# A bound below this divides as this. It lowers radii only, and keeps 1/L and R/L finite in float32.
_FLOOR = 1e-12
# exp(−800) is 0 in float64: classes that far behind the nearest one have no share in the soft minimum.
_NEGLIGIBLE = 800.0


def margin_radii(logits: Tensor, labels: Tensor, bound: Tensor) -> Tensor:
    """Signed radii ``R_b = (z_y − z_b) / L_yb`` towards each class b, and ``+inf`` at b = y.

    The least entry of a row is the certified ℓ2 radius of that sample, in the units of the raw input, if the
    bound is proved and the arithmetic exact; it is negative where the sample is misclassified. For training:
    nothing is rounded outward here.

    Args:
        logits: (N, C).
        labels: (N,) int64.
        bound: (), (C,) or (C, C). Entries below 1e-12 count as 1e-12, which never enlarges a positive radius.

    Returns:
        (N, C) in float32 or float64; differentiable, with gradient 0 (not NaN) at the infinite entries.

    Raises:
        ShapeError: a shape, dtype or device that does not fit.

    Source: Tsuzuku, Sato, Sugiyama 2018 (arXiv 1802.04034), Proposition 1.

    >>> z, y = torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0])
    >>> margin_radii(z, y, torch.tensor([1.0, 1.0, 3.0]))
    tensor([[   inf, 1.0000, 0.2500]])
    """
    z, L = check_inputs(logits, labels, bound, empty=True)
    own = own_label(labels, z.shape[1])
    rows = pair_rows(L, labels, z.shape[1]).masked_fill(own, 1.0).clamp_min(_FLOOR)
    margins = z.gather(1, labels[:, None]) - z
    return (margins / rows).masked_fill(own, math.inf)


def crm_term(
    logits: Tensor,
    labels: Tensor,
    bound: Tensor,
    *,
    temperature: float,
    radius_cap: float | Tensor,
    form: Literal["soft", "hard"] = "soft",
) -> Tensor:
    """The robust term of certified-radius maximisation: ``(1/N)·Σ_{n vulnerable} h_n``.

    A sample is vulnerable when no logit exceeds that of its label and ``R = min_b R_b < radius_cap``, with
    R_b of :func:`.margin_radii`. (A tie counts: R = 0, and the term is what pulls the two apart.) The
    others contribute exactly 0 and receive no gradient, neither do their L_yb. A NaN is not skipped: it makes
    the term NaN. With t the temperature:

    - ``form="soft"``: ``h = −R^soft = (1/t)·log Σ_{b≠y} exp(−t·R_b)``, where R^soft ≤ R;
    - ``form="hard"``: ``h = exp(−t·R)/t``.

    Args:
        logits: (N, C).
        labels: (N,) int64.
        bound: (), (C,) or (C, C), in logit units per unit of the raw input.
        temperature: t > 0, in 1/(units of the raw input): t·R is a pure number.
        radius_cap: r_0 ≥ 0, in units of the raw input; ``inf`` for every sample that is classified correctly.
        form: as above.

    Returns:
        A scalar in the units of a radius, in float32 or float64.

    Raises:
        ShapeError: a shape, dtype or device that does not fit.
        ConfigError: a parameter out of range, or another form.

    Source: Fazlyab, Entesari, Roy, Chellappa 2023 (arXiv 2310.00116).

    >>> z, y = torch.tensor([[3.0, 1.0], [0.0, 2.0]]), torch.tensor([0, 0])
    >>> crm_term(z, y, torch.tensor([2.0, 2.0]), temperature=5.0, radius_cap=1.0)  # −R/2: one of two counts
    tensor(-0.2500)
    """
    t = check_parameter("temperature", temperature, positive=True)
    cap = check_parameter("radius_cap", radius_cap, infinite=True)
    if form not in ("soft", "hard"):
        raise ConfigError(f'form must be "soft" or "hard"; got {form!r}')
    z, L = check_inputs(logits, labels, bound)
    with torch.no_grad():
        radii = margin_radii(z, labels, L)
        least = radii.amin(dim=1, keepdim=True)
        vulnerable = ~((least < 0) | (least >= cap))  # written so that a NaN is one, and shows
        keep = vulnerable & ~own_label(labels, z.shape[1]) & ~(t * (radii - least) >= _NEGLIGIBLE)
    # What does not count is replaced before the division, not after: 0·inf is NaN in a backward pass.
    margins = torch.where(keep, z.gather(1, labels[:, None]) - z, 0.0)
    rows = torch.where(keep, pair_rows(L, labels, z.shape[1]), 1.0).clamp_min(_FLOOR)
    kept = margins / rows
    if form == "soft":
        exponents = torch.where(keep, -t * kept, torch.where(vulnerable, -math.inf, 0.0))
        terms = torch.logsumexp(exponents, dim=1, keepdim=True) / t
    else:
        terms = torch.exp(-t * kept.masked_fill(~keep & vulnerable, math.inf).amin(dim=1, keepdim=True)) / t
    return torch.where(vulnerable, terms, 0.0).sum() / z.shape[0]


def crm_loss(
    logits: Tensor,
    labels: Tensor,
    bound: Tensor,
    *,
    temperature: float,
    radius_cap: float | Tensor,
    weight: float | Tensor,
    form: Literal["soft", "hard"] = "soft",
) -> Tensor:
    """Certified-radius maximisation: ``cross_entropy + weight·crm_term``.

    Args:
        logits: (N, C).
        labels: (N,) int64.
        bound: (), (C,) or (C, C), in logit units per unit of the raw input.
        temperature: see :func:`.crm_term`.
        radius_cap: see :func:`.crm_term`.
        weight: λ ≥ 0, in 1/(units of the raw input). 0 leaves the robust term out and its parameters unread.
        form: see :func:`.crm_term`.

    Returns:
        A scalar.

    Raises:
        ShapeError: a shape, dtype or device that does not fit, or an empty batch.
        ConfigError: a parameter out of range.

    >>> z, y = torch.tensor([[3.0, 1.0]]), torch.tensor([0])
    >>> round(crm_loss(z, y, torch.tensor(1.0), temperature=5.0, radius_cap=2.0, weight=1.0).item(), 4)
    -1.2873
    """
    weight = check_parameter("weight", weight)
    loss = cross_entropy(logits, labels)
    if not isinstance(weight, Tensor) and weight == 0.0:
        check_bound(bound, logits.shape[1])
        return loss
    term = crm_term(logits, labels, bound, temperature=temperature, radius_cap=radius_cap, form=form)
    return loss + weight * term
