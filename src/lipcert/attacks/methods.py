"""Attacks by libraries, each as one generator: a batch in, candidates out, of which some may be adversarial examples.

Foolbox has DDN (Rony et al., 2019) and PGD in ℓ2; pyautoattack has APGD with cross-entropy and with the targeted DLR
loss, and targeted FAB, three of the four parts of AutoAttack (Croce & Hein, 2020; the fourth, Square, is for networks
whose gradients say nothing). Foolbox's FMN is left out: it does not project, and finds too little.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from lipcert.errors import ConfigError

__all__ = ["METHODS", "Method", "Strength"]

_WITHIN = 1 - 1e-6  # of a radius: what float32 makes of the projection shall not be outside of it
_PGD_STEP = 0.075  # of the radius; 40 steps may go three radii far
_TARGETS = 9  # classes that a targeted attack tries, the likeliest first; AutoAttack's number


@dataclass(frozen=True)
class Strength:
    """How hard attacks try.

    Attributes:
        steps: gradient steps of each; None: 100, of PGD 40.
        targets: how many classes targeted attacks try.
        seed: of what is random in them.
    """

    steps: int | None = None
    targets: int = _TARGETS
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.steps is not None and self.steps < 1) or self.targets < 1:
            raise ConfigError(f"an attack needs one step and one target at least; got {self.steps}, {self.targets}")


Run = Callable[[nn.Module, Tensor, Tensor, float, Strength], Iterator[Tensor]]
"""(model, x (n, *shape) in [0, 1], labels (n,), ε, strength) → candidates, each of the shape of x."""


@dataclass(frozen=True)
class Method:
    """One attack.

    Attributes:
        name: on the command line.
        title: in tables.
        nearest: looks for the nearest adversarial example, else for any within ε.
        classes: how many classes there must be at least.
        run: what it does.
    """

    name: str
    title: str
    nearest: bool
    classes: int
    run: Run


def _library(name: str, part: str) -> Any:
    # Foolbox imports GitPython, which is an error where there is no git unless this is set.
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    try:
        return importlib.import_module(f"{name}.{part}")
    except ImportError as error:
        raise ConfigError(f"attacks need {name}, which is not here: pip install 'lipcert[attacks]'") from error


def _foolbox(model: nn.Module, x: Tensor) -> Any:
    return _library("foolbox", "models").PyTorchModel(model, bounds=(0, 1), device=x.device)


def _ddn(model: nn.Module, x: Tensor, y: Tensor, _: float, s: Strength) -> Iterator[Tensor]:
    attack = _library("foolbox", "attacks").DDNAttack(init_epsilon=1.0, steps=s.steps or 100)
    yield attack.run(_foolbox(model, x), x, _library("foolbox", "criteria").Misclassification(y))


def _pgd(model: nn.Module, x: Tensor, y: Tensor, epsilon: float, s: Strength) -> Iterator[Tensor]:
    make = _library("foolbox", "attacks").L2ProjectedGradientDescentAttack
    attack = make(rel_stepsize=_PGD_STEP, steps=s.steps or 40)
    wrong = _library("foolbox", "criteria").Misclassification(y)
    yield attack.run(_foolbox(model, x), x, wrong, epsilon=epsilon * _WITHIN)


def _apgd(model: nn.Module, x: Tensor, y: Tensor, epsilon: float, s: Strength) -> Iterator[Tensor]:
    make = _library("pyautoattack", "autopgd_base").APGDAttack
    yield make(model, **_auto(x, s), eps=epsilon * _WITHIN, loss="ce", logger=_SILENT).perturb(x, y)


def _apgd_t(model: nn.Module, x: Tensor, y: Tensor, epsilon: float, s: Strength) -> Iterator[Tensor]:
    make, targets = _library("pyautoattack", "autopgd_base").APGDAttack_targeted, _targets(model, x, s)
    yield make(model, **_auto(x, s), eps=epsilon * _WITHIN, n_target_classes=targets, logger=_SILENT).perturb(x, y)


def _fab_t(model: nn.Module, x: Tensor, y: Tensor, _: float, s: Strength) -> Iterator[Tensor]:
    attack = _library("pyautoattack", "fab_pt").FABAttack_PT(model, **_auto(x, s), eps=1.0, targeted=True)
    for target in range(2, _targets(model, x, s) + 2):  # its own loop ends with the first class that is near enough
        attack.target_class = target
        yield attack.attack_single_run(x, y, is_targeted=True)


_SILENT = logging.getLogger("lipcert.attacks.pyautoattack")
_SILENT.addHandler(logging.NullHandler())
_SILENT.propagate = False


def _auto(x: Tensor, s: Strength) -> dict[str, Any]:
    return {"norm": "L2", "n_iter": s.steps or 100, "n_restarts": 1, "seed": s.seed, "device": x.device}


def _targets(model: nn.Module, x: Tensor, s: Strength) -> int:
    with torch.no_grad():
        return min(s.targets, int(model(x[:1]).shape[1]) - 1)


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        m.name: m
        for m in (
            Method("ddn", "DDN", True, 2, _ddn),
            Method("pgd", "PGD", False, 2, _pgd),
            Method("apgd-ce", "APGD-CE", False, 2, _apgd),
            Method("apgd-t", "APGD-T", False, 4, _apgd_t),
            Method("fab-t", "FAB-T", True, 2, _fab_t),
        )
    }
)
"""All attacks by name, in the order in which they are best run: what is left for the slow ones is little."""
