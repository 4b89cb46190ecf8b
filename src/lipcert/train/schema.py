"""What a training run is made of: one frozen model for each section of the TOML file.

Distances (radii, ε) are ℓ2 in **pixel units**, that is in the units of the raw input in [0, 1], also where
the model normalises its input: normalisation is a layer of the model.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import (
    Discriminator,
    Field,
    JsonValue,
    Tag,
    model_validator,
)

from lipcert.train import toml
from lipcert.train.schema_base import Grown, Numbers, Ramp, Section, Value
from lipcert.train.schema_loss import (
    CEConfig,
    CRMConfig,
    GloRoConfig,
    GloRoTradesConfig,
    LMTConfig,
    LossConfig,
    RobustLoss,
)
from lipcert.train.schema_optimizer import (
    AdamConfig,
    ConstantLR,
    CosineLR,
    ExponentialLR,
    LrConfig,
    OneCycleLR,
    OptimizerConfig,
    SGDConfig,
)

__all__ = [
    "AdamConfig",
    "AugmentConfig",
    "BoundConfig",
    "CEConfig",
    "CRMConfig",
    "ConstantLR",
    "CosineLR",
    "DataConfig",
    "ExponentialLR",
    "GloRoConfig",
    "GloRoTradesConfig",
    "LMTConfig",
    "LossConfig",
    "LrConfig",
    "ModelConfig",
    "Normalization",
    "OneCycleLR",
    "OptimizerConfig",
    "Ramp",
    "RobustLoss",
    "RunConfig",
    "SGDConfig",
    "Section",
    "TrainConfig",
    "Value",
]


class AugmentConfig(Section):
    """Random changes of the training images."""

    flip: bool = Field(default=False, description="mirror left to right, with probability one half")
    shift: float = Field(default=0.0, ge=0, lt=1, description="at most, as a fraction of each side")
    rotate: float = Field(default=0.0, ge=0, le=180, description="at most, in degrees, either way")


class DataConfig(Section):
    """The data set. Where it lies on disk is no property of the run: it is given when the run is started."""

    name: str = Field(min_length=1)
    validation: float = Field(default=0.0, ge=0, lt=1, description="fraction of the training set that is held out")
    augment: AugmentConfig = AugmentConfig()


class Normalization(Section):
    """The first layer of the model, ``(x − mean)/std`` for each channel."""

    mean: Numbers
    std: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(strict=False)]

    @model_validator(mode="after")
    def _consistent(self) -> Normalization:
        if not len(self.mean) == len(self.std) >= 1:
            raise ValueError("mean and std must have the same length, at least 1")
        return self


def _none_or_table(value: Any) -> str:
    return "<table>" if isinstance(value, (dict, Normalization)) else "<none>"


class ModelConfig(Section):
    """The architecture: a name of the model registry and its options."""

    name: str = Field(min_length=1)
    options: dict[str, JsonValue] = Field(default_factory=dict)
    normalize: Annotated[
        Annotated[Literal["none"], Tag("<none>")] | Annotated[Normalization, Tag("<table>")],
        Discriminator(_none_or_table),
    ] = Field(default="none", description="a layer of the model, so that radii stay in pixel units")


class BoundConfig(Grown):
    """The Lipschitz bound that the loss and the evaluation during training use."""

    method: Literal["liplt", "product", "smallgain", "layers"] = Field(
        default="liplt", description='"layers": the constants of Lipschitz layers (of lipres) times LipLT of the rest'
    )
    scaling: Literal["layer", "channel", "neuron"] | None = Field(
        default=None, description="what shares a weight in a smallgain bound; by default a channel"
    )
    scope: Literal["pairwise", "class", "global"] = "pairwise"
    every: int = Field(
        default=1,
        ge=1,
        description="refresh the bound every this many steps; at a high learning rate it falls behind if not in each",
    )
    power_iterations: int = Field(default=1, ge=1, description="at each refresh, warm-started")

    @model_validator(mode="after")
    def _consistent(self) -> BoundConfig:
        if self.scaling is not None and self.method != "smallgain":
            raise ValueError(f'scaling is of method = "smallgain"; leave it out with method = "{self.method}"')
        return self


class TrainConfig(Grown):
    """The loop."""

    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="what the network computes in; the bound is in float32, and so is all on a device that only "
        "emulates bfloat16",
    )
    channels_last: bool = Field(
        default=False,
        description="the layout of images; refused for 1 × 1 kernels with a stride and few channels, which torch gets "
        "wrong",
    )
    adversarial: float | None = Field(
        default=None,
        gt=0,
        description="train on samples that are moved this far in ℓ2, in pixel units, along the gradient of the "
        "cross-entropy; the training accuracy is of these",
    )
    ema: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="decay per step of the averaged weights, at most (1 + step)/(10 + step); 0 is off",
    )
    eval_every: int = Field(default=1, ge=1, description="in epochs")
    checkpoint_every: int = Field(default=1, ge=1, description="in epochs")
    eval_epsilons: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(strict=False)] = Field(
        default=(), description="radii at which certified accuracy is reported, in pixel units"
    )


class RunConfig(Section):
    """A whole training run.

    >>> config = RunConfig.model_validate({
    ...     "name": "example", "data": {"name": "digits"}, "model": {"name": "mlp"}, "loss": {"kind": "ce"},
    ...     "optimizer": {"kind": "adam", "lr": 1e-3}, "train": {"epochs": 2, "batch_size": 32},
    ... })
    >>> config.schedule.kind
    'constant'
    """

    name: str = Field(min_length=1)
    seed: int = Field(default=0, ge=0, lt=2**63)
    data: DataConfig
    model: ModelConfig
    bound: BoundConfig = BoundConfig()
    loss: LossConfig
    optimizer: OptimizerConfig
    schedule: LrConfig = ConstantLR(kind="constant")
    train: TrainConfig

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        wrong = []
        if isinstance(self.loss, RobustLoss) and self.loss.start_epoch >= self.train.epochs:
            wrong.append(
                f"loss.start_epoch ({self.loss.start_epoch:g}) is not before train.epochs "
                f"({self.train.epochs}): the robust loss would never be used. Start it earlier, or use "
                '[loss] kind = "ce"'
            )
        if isinstance(self.schedule, (CosineLR, ExponentialLR)) and self.schedule.final_lr > self.optimizer.lr:
            wrong.append(
                f"schedule.final_lr ({self.schedule.final_lr:g}) is above optimizer.lr "
                f"({self.optimizer.lr:g}): the learning rate must fall"
            )
        if wrong:
            raise ValueError("\n".join(wrong))
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, every default filled in; :func:`~lipcert.train.config.parse_config` reads it."""
        return self.model_dump(mode="json")

    def to_toml(self) -> str:
        """A TOML file that :func:`~lipcert.train.load_config` reads back as an equal configuration."""
        return toml.dumps(self.to_dict())

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the canonical JSON: equal for equal runs, however their files are written."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()
