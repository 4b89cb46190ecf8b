"""The ``[loss]`` section: one model for each kind. Distances are in pixel units."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lipcert.train.schema_base import Section, Value

__all__ = [
    "CEConfig",
    "CRMConfig",
    "GloRoConfig",
    "GloRoTradesConfig",
    "LMTConfig",
    "LossConfig",
    "RobustLoss",
]


class RobustLoss(Section):
    """What the robust losses share."""

    kind: str
    start_epoch: float = Field(default=0.0, ge=0, description="plain cross-entropy before this epoch")


class CEConfig(Section):
    """Plain cross-entropy."""

    kind: Literal["ce"]


class CRMConfig(RobustLoss):
    """Certified-radius maximisation: cross-entropy + weight · robust term."""

    kind: Literal["crm"]
    temperature: float = Field(gt=0, description="t of the soft minimum, per pixel unit")
    radius_cap: Value = Field(description="r_0, in pixel units: samples with a larger radius are left alone")
    weight: Value = Field(description="λ, per pixel unit")
    form: Literal["soft", "hard"] = "soft"


class LMTConfig(RobustLoss):
    """Lipschitz-margin training."""

    kind: Literal["lmt"]
    epsilon: Value = Field(description="in pixel units")


class GloRoConfig(RobustLoss):
    """GloRo: cross-entropy with one more logit for “not certified”."""

    kind: Literal["gloro"]
    epsilon: Value = Field(description="in pixel units")


class GloRoTradesConfig(RobustLoss):
    """GloRo in the TRADES form."""

    kind: Literal["gloro-trades"]
    epsilon: Value = Field(description="in pixel units")
    weight: Value = Field(description="of the divergence, a pure number")


LossConfig = Annotated[CEConfig | CRMConfig | LMTConfig | GloRoConfig | GloRoTradesConfig, Field(discriminator="kind")]
