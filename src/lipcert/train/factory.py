"""What a trainer is put together from: loss, optimizer, batches and averaged weights."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from lipcert.bounds.evidence import Kind, Scaling
from lipcert.data import Augment, Batches, Dataset
from lipcert.errors import BoundError, ConfigError
from lipcert.layers.construction import construction
from lipcert.parallel import ALONE, Ranks
from lipcert.train.bound import TrainingBound
from lipcert.train.deferred import DeferredBound
from lipcert.train.gain import GainBound
from lipcert.train.losses import CRMLoss, CrossEntropy, GloRoLoss, LMTLoss
from lipcert.train.schedules import value_at
from lipcert.train.schema import (
    AdamConfig,
    BoundConfig,
    CEConfig,
    CRMConfig,
    GloRoConfig,
    LMTConfig,
    LossConfig,
    RunConfig,
)

__all__ = [
    "average_into",
    "default_device",
    "kind_of",
    "load_optimizer",
    "make_batches",
    "make_bound",
    "make_loss",
    "make_optimizer",
]


def default_device() -> torch.device:
    """CUDA where there is one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def kind_of(config: BoundConfig) -> Kind:
    """What shares a weight in a small-gain bound."""
    return config.scaling or "channel"


def make_bound(
    config: BoundConfig,
    module: nn.Module,
    shape: tuple[int, ...],
    *,
    seed: int,
    every: int,
    iterations: int,
    start: Scaling | None = None,
) -> DeferredBound:
    """The bound that a loss sees, of a module's present weights; ``start`` is what a small-gain bound begins with.

    Raises:
        ConfigError: ``"layers"`` of a network that does not begin with layers that are Lipschitz by construction.
    """
    if config.method == "smallgain":
        return GainBound(
            module,
            shape,
            scope=config.scope,
            scaling=kind_of(config),
            every=every,
            iterations=iterations,
            seed=seed,
            start=start,
        )
    factor: float = 1.0
    method: Literal["product", "liplt"] = "product" if config.method == "product" else "liplt"
    if config.method == "layers":  # what they are by themselves needs no pass: only what comes behind them has one
        try:
            found = construction(module, shape)
        except BoundError as error:
            raise ConfigError(
                f"bound.method='layers' does not fit this model: {error} Set bound.method to 'liplt' or 'smallgain'; "
                "lipres models have such layers, but not with model.normalize."
            ) from error
        module, shape, factor = found.rest, found.shape, float(found.constant)
    return TrainingBound(
        module,
        shape,
        method=method,
        scope=config.scope,
        every=every,
        iterations=iterations,
        seed=seed,
        factor=factor,
    )


def make_loss(config: LossConfig) -> nn.Module:
    """The loss module of a configuration, at the values of epoch 0."""
    if isinstance(config, CEConfig):
        return CrossEntropy()
    if isinstance(config, CRMConfig):
        return CRMLoss(
            temperature=config.temperature,
            radius_cap=value_at(config.radius_cap, 0),
            weight=value_at(config.weight, 0),
            form=config.form,
        )
    if isinstance(config, LMTConfig):
        return LMTLoss(epsilon=value_at(config.epsilon, 0))
    if isinstance(config, GloRoConfig):
        return GloRoLoss(epsilon=value_at(config.epsilon, 0))
    return GloRoLoss(epsilon=value_at(config.epsilon, 0), weight=value_at(config.weight, 0))


def make_optimizer(config: RunConfig, module: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a configuration; the learning rate is set before each step."""
    o, parameters = config.optimizer, [p for p in module.parameters() if p.requires_grad]
    if isinstance(o, AdamConfig):
        kind = torch.optim.AdamW if o.kind == "adamw" else torch.optim.Adam
        return kind(parameters, lr=o.lr, betas=o.betas, weight_decay=o.weight_decay, fused=True)
    return torch.optim.SGD(parameters, lr=o.lr, momentum=o.momentum, weight_decay=o.weight_decay, fused=True)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a state, each tensor in the memory layout of its parameter.

    The fused steps go through memory as it lies. A checkpoint's tensors are contiguous: those of a parameter in
    channels-last would be paired with the wrong weights.
    """
    optimizer.load_state_dict(state)
    for parameter, slots in optimizer.state.items():
        for name, value in slots.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                slots[name] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def make_batches(
    config: RunConfig, data: Dataset, device: torch.device, layout: torch.memory_format, ranks: Ranks = ALONE
) -> Batches:
    """The training batches of a configuration, or the part of each that is this process's.

    Raises:
        lipcert.errors.ConfigError: there are more processes than images in a batch.
        lipcert.errors.DataError: the augmentation does not fit the images.
    """
    a = config.data.augment
    augment = Augment(flip=a.flip, shift=a.shift, rotate=a.rotate) if a.flip or a.shift or a.rotate else None
    if augment is not None:
        augment(data.images[:1].cpu(), torch.Generator())  # says now, not at the first step, what is wrong
    size = min(config.train.batch_size, len(data))
    if size < ranks.size:
        raise ConfigError(f"a batch of {size} images has none for some of {ranks.size} processes: start fewer.")
    return Batches(
        data,
        size,
        shuffle=True,
        seed=config.seed,
        augment=augment,
        device=device,
        drop_last=True,
        memory_format=layout,
        ranks=ranks,
    )


def average_into(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    """One step of the moving average of the weights; buffers are taken over as they are."""
    with torch.no_grad():
        torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), 1 - decay)
        for mine, other in zip(averaged.buffers(), model.buffers(), strict=True):
            mine.copy_(other)
