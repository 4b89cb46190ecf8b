"""All that a training run is at one moment, as plain values and tensors."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from lipcert.train.evaluate import Evaluation
from lipcert.train.factory import load_optimizer

if TYPE_CHECKING:
    from lipcert.train.trainer import Trainer

__all__ = ["put_back", "take"]


def take(trainer: Trainer) -> dict[str, Any]:
    """The state: weights, optimizer, bounds, averages, random numbers, where in the run it is, what was found last."""
    t = trainer
    state: dict[str, Any] = {
        "model": t.model.state_dict(),
        "optimizer": _of_optimizer(t.optimizer.state_dict(), t.rate),
        "bound": t.bound.state_dict(),
        "evaluation_bound": t.evaluation_bound.state_dict(),
        "sums": t.sums,
        "elapsed": t.elapsed,
        "random": torch.get_rng_state(),
        "counters": [t.epoch, t.batch, t.seconds, t.flat, t.robust_before],
        "found": None if t.found is None else asdict(t.found),
        "started": t.started,
    }
    if t.averaged is not None:
        state["averaged"] = t.averaged.state_dict()
    if t.device.type == "cuda":
        state["random_cuda"] = torch.cuda.get_rng_state(t.device)
    return state


def _of_optimizer(state: dict[str, Any], rate: float) -> dict[str, Any]:
    """Without what follows from the device: whether a CUDA graph reads it, and where."""
    groups = [{**group, "lr": rate} for group in state["param_groups"]]
    return {**state, "param_groups": [{**g, "capturable": False} if "capturable" in g else g for g in groups]}


def put_back(trainer: Trainer, state: dict[str, Any]) -> None:
    """Make a trainer of the same configuration what it was.

    Raises:
        KeyError, RuntimeError, TypeError, ValueError: the state does not fit.
    """
    t = trainer
    t.model.load_state_dict(state["model"])
    load_optimizer(t.optimizer, state["optimizer"])
    t.rate = float(t.optimizer.param_groups[0]["lr"])
    t.bound.load_state_dict(state["bound"])
    t.evaluation_bound.load_state_dict(state["evaluation_bound"])
    if t.averaged is not None:
        t.averaged.load_state_dict(state["averaged"])
    t.sums.copy_(state["sums"])
    t.elapsed = state.get("elapsed", 0.0)
    torch.set_rng_state(state["random"])
    if t.device.type == "cuda" and "random_cuda" in state:
        torch.cuda.set_rng_state(state["random_cuda"], t.device)
    t.epoch, t.batch, t.seconds, t.flat, t.robust_before = state["counters"]
    t.found = None if state["found"] is None else Evaluation(**state["found"])
    t.started = state.get("started")  # older runs have none
