"""The ``[optimizer]`` and ``[schedule]`` sections: one model for each kind."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from lipcert.train.schema_base import Section

__all__ = [
    "AdamConfig",
    "ConstantLR",
    "CosineLR",
    "ExponentialLR",
    "LrConfig",
    "OneCycleLR",
    "OptimizerConfig",
    "SGDConfig",
]


class _Optimizer(Section):
    kind: str
    lr: float = Field(gt=0, description="the peak learning rate")
    weight_decay: float = Field(default=0.0, ge=0)
    clip_norm: float = Field(default=0.0, ge=0, description="of the whole gradient; 0 does not clip")

    @field_validator("clip_norm", mode="before")
    @classmethod
    def _none_is_zero(cls, value: Any) -> Any:
        return 0.0 if value is None else value


Beta = Annotated[float, Field(ge=0, lt=1)]


class AdamConfig(_Optimizer):
    """Adam, or AdamW with its decoupled weight decay."""

    kind: Literal["adam", "adamw"]
    betas: Annotated[tuple[Beta, Beta], Field(strict=False)] = (0.9, 0.999)


class SGDConfig(_Optimizer):
    """Stochastic gradient descent."""

    kind: Literal["sgd"]
    momentum: float = Field(default=0.9, ge=0, lt=1)


OptimizerConfig = Annotated[AdamConfig | SGDConfig, Field(discriminator="kind")]


class _WarmedUp(Section):
    kind: str
    warmup: float = Field(default=0.0, ge=0, description="epochs in which the rate rises linearly from 0")


class ConstantLR(_WarmedUp):
    """The same learning rate throughout."""

    kind: Literal["constant"]


class CosineLR(_WarmedUp):
    """Half a cosine from the end of the warm-up to the end of the run."""

    kind: Literal["cosine"]
    final_lr: float = Field(default=0.0, ge=0)


class OneCycleLR(Section):
    """Up along half a cosine, and down along another. The defaults are those of torch's scheduler."""

    kind: Literal["onecycle"]
    peak: float = Field(default=0.3, gt=0, lt=1, description="when the peak is, as a fraction of the run")
    initial_fraction: float = Field(default=0.04, ge=0, le=1, description="of the peak learning rate")
    final_fraction: float = Field(default=4e-6, ge=0, le=1, description="of the peak learning rate")


class ExponentialLR(_WarmedUp):
    """Constant until ``start_epoch``, then exponential to ``final_lr`` at the end of the run."""

    kind: Literal["exponential"]
    start_epoch: float = Field(ge=0)
    final_lr: float = Field(gt=0)


LrConfig = Annotated[ConstantLR | CosineLR | OneCycleLR | ExponentialLR, Field(discriminator="kind")]
