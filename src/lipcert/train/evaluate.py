"""Accuracy and radii of a model on a data set, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from lipcert.bounds.result import Bound, UpperBound
from lipcert.certify.local import Local
from lipcert.certify.network import BATCH, certified
from lipcert.certify.radius import Radii, radii
from lipcert.data import Batches, Dataset
from lipcert.graph import Graph
from lipcert.graph.capture import in_eval_mode
from lipcert.parallel import ALONE, Ranks

__all__ = ["Evaluation", "certify_data", "evaluate", "predict", "radius_key"]


def radius_key(epsilon: float) -> str:
    """The key of a radius in a JSON document: different for different radii, and read back exactly.

    >>> radius_key(36 / 255), radius_key(1)
    ('0.1411764705882353', '1.0')
    """
    return repr(float(epsilon))


@dataclass(frozen=True)
class Evaluation:
    """What is reported of an epoch: shares of the samples, and the range of the bound over pairs of classes.

    ``robust`` has the keys of :func:`radius_key`.
    """

    clean: float
    robust: dict[str, float]
    bound_low: float
    bound_high: float
    collapsed: bool


def predict(
    module: nn.Module, data: Dataset, *, device: torch.device, batch_size: int = 1000, ranks: Ranks = ALONE
) -> tuple[Tensor, Tensor]:
    """Logits (N, C) in float32 of a model in eval mode, and labels (N,), on the CPU.

    With several processes each computes its part, and all get all of it.
    """
    batches = Batches(data.subset(ranks.part(len(data))), batch_size, shuffle=False, seed=0, device=device)
    with in_eval_mode(module), torch.no_grad():
        logits = torch.cat([module(x).float() for x, _ in batches.epoch(0)])
    return ranks.gather(logits, len(data)).cpu(), data.labels.cpu()


def certify_data(
    graph: Graph,
    bound: UpperBound,
    data: Dataset,
    *,
    device: torch.device,
    precision: str | None = None,
    local: Local = False,
    progress: Callable[[int], None] | None = None,
    ranks: Ranks = ALONE,
) -> Radii:
    """Certified radii of every sample of a data set.

    With several processes each certifies its part, and all get all of it.

    Args:
        precision, local: as in :func:`lipcert.certify`.
        progress: is told of how many of its samples this process has the local radii.
    """
    mine = data.subset(ranks.part(len(data)))
    images = (x for x, _ in Batches(mine, BATCH, shuffle=False, seed=0, device=device).epoch(0))
    return _together(
        certified(graph, bound, images, mine.labels, precision, local=local, progress=progress), len(data), ranks
    )


def _together(result: Radii, count: int, ranks: Ranks) -> Radii:
    """The radii of all processes' samples, in order."""
    if ranks.size == 1:
        return result
    columns = {f.name: getattr(result, f.name) for f in fields(result)}
    found: dict[str, Any] = {name: ranks.gather(v, count) for name, v in columns.items() if isinstance(v, Tensor)}
    alone = None if result.alone is None else _together(result.alone, count, ranks)
    return replace(result, **found, alone=alone)


def evaluate(
    module: nn.Module,
    data: Dataset,
    bound: Bound,
    epsilons: tuple[float, ...],
    *,
    device: torch.device,
    ranks: Ranks = ALONE,
) -> tuple[Evaluation, Radii]:
    """Clean accuracy and accuracy at radii, with a bound given."""
    logits, labels = predict(module, data, device=device, ranks=ranks)
    result = radii(logits, bound, labels)
    values = bound.value[bound.value > 0]
    summary = Evaluation(
        clean=result.clean_accuracy,
        robust={radius_key(e): result.robust_accuracy(e) for e in epsilons},
        bound_low=float(values.min()) if values.numel() else 0.0,
        bound_high=float(values.max()) if values.numel() else 0.0,
        # To give all samples of one class that class is no collapse.
        collapsed=bool((result.prediction == result.prediction[0]).all() and (labels != labels[0]).any()),
    )
    return summary, result
