"""Training provably robust networks: the losses, the bound inside a step, and one loop."""

from __future__ import annotations

from lipcert.train.bound import TrainingBound
from lipcert.train.config import RunConfig, available_configs, load_config
from lipcert.train.gain import GainBound
from lipcert.train.losses import (
    CRMLoss,
    CrossEntropy,
    GloRoLoss,
    LMTLoss,
    crm_loss,
    gloro_loss,
    gloro_trades_loss,
    lmt_loss,
    margin_radii,
)
from lipcert.train.run_folder import RunFolder
from lipcert.train.trainer import Interrupted, Trainer

__all__ = [
    "CRMLoss",
    "CrossEntropy",
    "GainBound",
    "GloRoLoss",
    "Interrupted",
    "LMTLoss",
    "RunConfig",
    "RunFolder",
    "Trainer",
    "TrainingBound",
    "available_configs",
    "crm_loss",
    "gloro_loss",
    "gloro_trades_loss",
    "lmt_loss",
    "load_config",
    "margin_radii",
]
