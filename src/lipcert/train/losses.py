"""The losses: pure functions, and modules with one call signature ``loss(logits, labels, bound)``.

All take ``logits`` z (N, C), ``labels`` y (N,) int64 and ``bound``, a Lipschitz bound of the logits in the
units of the raw input: a scalar (global), (C,) (per class) or (C, C) (pairwise), see
:mod:`lipcert.bounds.pairs`. Gradients flow into the logits and into the bound: the second is what regularises
the network. Half-precision logits are computed with in float32.

What a schedule changes during training is a plain attribute of a module (``weight``, ``radius_cap``,
``epsilon``): assign to it between two steps.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from lipcert.errors import ConfigError
from lipcert.train.crm import crm_loss, crm_term, margin_radii
from lipcert.train.loss_inputs import check_parameter, cross_entropy
from lipcert.train.worst_case import gloro_logits, gloro_loss, gloro_trades_loss, lmt_loss

__all__ = [
    "CRMLoss",
    "CrossEntropy",
    "GloRoLoss",
    "LMTLoss",
    "crm_loss",
    "crm_term",
    "cross_entropy",
    "gloro_logits",
    "gloro_loss",
    "gloro_trades_loss",
    "lmt_loss",
    "margin_radii",
]


class CrossEntropy(nn.Module):
    """Mean cross-entropy; takes a bound, as the others do, and does not look at it.

    >>> import torch
    >>> round(CrossEntropy()(torch.zeros(2, 4), torch.tensor([0, 3])).item(), 4)
    1.3863
    """

    def forward(self, logits: Tensor, labels: Tensor, bound: Tensor | None = None) -> Tensor:
        """See :func:`cross_entropy`."""
        return cross_entropy(logits, labels)


class CRMLoss(nn.Module):
    """Certified-radius maximisation, see :func:`crm_loss`.

    Args:
        temperature: t > 0, in 1/(units of the raw input).
        radius_cap: r_0 ≥ 0, in units of the raw input; may be changed between steps.
        weight: λ ≥ 0, in 1/(units of the raw input); may be changed between steps. 0 is plain cross-entropy.
        form: ``"soft"`` or ``"hard"``.

    Raises:
        ConfigError: a parameter out of range.

    >>> import torch
    >>> loss = CRMLoss(temperature=5.0, radius_cap=2.0, weight=1.0)
    >>> z, y = torch.tensor([[3.0, 1.0]]), torch.tensor([0])
    >>> round(loss(z, y, torch.tensor(1.0)).item(), 4)
    -1.2873
    """

    def __init__(
        self, *, temperature: float, radius_cap: float, weight: float, form: Literal["soft", "hard"] = "soft"
    ) -> None:
        super().__init__()
        if form not in ("soft", "hard"):
            raise ConfigError(f'form must be "soft" or "hard"; got {form!r}')
        self.temperature = check_parameter("temperature", temperature, positive=True)
        self.radius_cap = check_parameter("radius_cap", radius_cap, infinite=True)
        self.weight = check_parameter("weight", weight)
        self.form: Literal["soft", "hard"] = form

    def forward(self, logits: Tensor, labels: Tensor, bound: Tensor) -> Tensor:
        """See :func:`crm_loss`."""
        return crm_loss(
            logits,
            labels,
            bound,
            temperature=self.temperature,
            radius_cap=self.radius_cap,
            weight=self.weight,
            form=self.form,
        )

    def extra_repr(self) -> str:
        """The parameters as they are now."""
        return f"temperature={self.temperature}, radius_cap={self.radius_cap}, weight={self.weight}, form={self.form!r}"


class LMTLoss(nn.Module):
    """Lipschitz-margin training, see :func:`lmt_loss`.

    Args:
        epsilon: ε ≥ 0, in units of the raw input; may be changed between steps. 0 is plain cross-entropy.

    Raises:
        ConfigError: ε out of range.

    >>> LMTLoss(epsilon=0.5)
    LMTLoss(epsilon=0.5)
    """

    def __init__(self, *, epsilon: float) -> None:
        super().__init__()
        self.epsilon = check_parameter("epsilon", epsilon)

    def forward(self, logits: Tensor, labels: Tensor, bound: Tensor) -> Tensor:
        """See :func:`lmt_loss`."""
        return lmt_loss(logits, labels, bound, epsilon=self.epsilon)

    def extra_repr(self) -> str:
        """The parameters as they are now."""
        return f"epsilon={self.epsilon}"


class GloRoLoss(nn.Module):
    """GloRo training: :func:`gloro_loss` without a weight, :func:`gloro_trades_loss` with one.

    Args:
        epsilon: ε ≥ 0, in units of the raw input; may be changed between steps.
        weight: λ ≥ 0 of the TRADES form, a pure number, may be changed between steps (0 is plain
            cross-entropy); ``None`` for the plain form.

    Raises:
        ConfigError: a parameter out of range.

    >>> GloRoLoss(epsilon=0.5, weight=2.0)
    GloRoLoss(epsilon=0.5, weight=2.0)
    """

    def __init__(self, *, epsilon: float, weight: float | None = None) -> None:
        super().__init__()
        self.epsilon = check_parameter("epsilon", epsilon)
        self.weight = None if weight is None else check_parameter("weight", weight)

    def forward(self, logits: Tensor, labels: Tensor, bound: Tensor) -> Tensor:
        """See :func:`gloro_loss` and :func:`gloro_trades_loss`."""
        if self.weight is None:
            return gloro_loss(logits, labels, bound, epsilon=self.epsilon)
        return gloro_trades_loss(logits, labels, bound, epsilon=self.epsilon, weight=self.weight)

    def extra_repr(self) -> str:
        """The parameters as they are now."""
        return f"epsilon={self.epsilon}" + ("" if self.weight is None else f", weight={self.weight}")
