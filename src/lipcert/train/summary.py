"""The outcome of a run as plain JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lipcert.certify.identity import versions

if TYPE_CHECKING:
    from lipcert.train.evaluate import Evaluation
    from lipcert.train.trainer import Trainer

__all__ = ["epoch_record", "summarise", "title"]


def epoch_record(
    trainer: Trainer, found: Evaluation, *, loss: float, hits: float, seen: float, seconds: float
) -> dict[str, Any]:
    """A line of metrics: of an epoch that was evaluated, with its sums over the training images."""
    return {
        "epoch": trainer.epoch,
        "loss": loss / seen,
        "train_accuracy": hits / seen,
        "split": trainer.eval_split,
        "clean": found.clean,
        "estimated_certified": found.robust,
        "bound": [found.bound_low, found.bound_high],
        "lr": trainer.rate,
        "seconds": seconds,
        "images_per_second": seen / max(seconds, 1e-6),
    }


def summarise(trainer: Trainer, found: Evaluation) -> dict[str, Any]:
    """Final accuracies (estimates: certifying is another command), cost, versions and data of a finished run."""
    return {
        "name": trainer.config.name,
        "config": trainer.config.fingerprint(),
        "seed": trainer.config.seed,
        "start": trainer.started,
        "epochs": trainer.epoch,
        "split": trainer.eval_split,
        "clean_accuracy": found.clean,
        "estimated_certified_accuracy": found.robust,
        "bound_estimate": {
            "method": trainer.config.bound.method,
            "scope": trainer.config.bound.scope,
            "low": found.bound_low,
            "high": found.bound_high,
        },
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "training_seconds": trainer.seconds,
        "device": str(trainer.device),
        "processes": trainer.ranks.size,
        "threads": torch.get_num_threads(),
        "data": {"name": trainer.config.data.name, "train_sha256": trainer.train_data.fingerprint},
        "versions": versions(),
    }


def title(trainer: Trainer) -> str:
    """What is trained, on what."""
    size = sum(p.numel() for p in trainer.model.parameters())
    found = f"{trainer.config.name}: {size:,} parameters on {trainer.device}"
    found += f", in {trainer.ranks.size} processes" if trainer.ranks.size > 1 else ""
    if trainer.config.train.precision == "bfloat16" and not trainer.bfloat16:
        found += ", in float32 (bfloat16 is emulated here, which takes many times as long)"
    return found
