"""What attacks found, sample by sample, in a file that a stopped attack goes on from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from lipcert.errors import CheckpointError
from lipcert.train.safefile import read_file, write_file

__all__ = ["Attacked", "Tried", "read_attacked"]

_FORMAT = "lipcert-attack"


@dataclass(frozen=True)
class Tried:
    """One attack on all samples: how many adversarial examples it found, and how far they are, over all its radii."""

    method: str
    found: int
    mean: float
    median: float
    seconds: float


class _About(BaseModel):
    """What stands beside the numbers in a file."""

    model_config = ConfigDict(extra="forbid")

    format: str
    key: str
    methods: list[str]
    epsilons: list[float]
    arithmetic: str
    about: dict[str, Any]
    seconds: dict[str, float]
    done: list[str]
    finished: bool


@dataclass(eq=False)
class Attacked:
    """Of N samples and M attacks; grows while attacks run.

    Attributes:
        key: of what is attacked and how: an attack goes on only where it is the same.
        methods: names of the attacks.
        epsilons: radii at which those attacks ran that look for an adversarial example within one.
        arithmetic: in which predictions were taken.
        about: whatever else is worth keeping, as JSON has it.
        labels: (N,) int64.
        prediction: (N,) int64. A sample whose prediction is not its label is not attacked.
        distances: (M, N) float64, of the nearest adversarial example that each found; infinite where none.
        points: ``(N, *shape)``, the nearest of all; the input itself where there is none.
        seconds: by attack.
        done: units of work that are done.
        finished: whether all are.
    """

    key: str
    methods: tuple[str, ...]
    epsilons: tuple[float, ...]
    arithmetic: str
    about: dict[str, Any]
    labels: Tensor
    prediction: Tensor
    distances: Tensor
    points: Tensor
    seconds: dict[str, float]
    done: set[str]
    finished: bool = False

    @property
    def correct(self) -> Tensor:
        """(N,) bool: the samples that were attacked."""
        return self.prediction == self.labels

    @property
    def distance(self) -> Tensor:
        """(N,) float64: of the nearest adversarial example; 0 where the prediction is wrong, infinite where none."""
        nearest = self.distances.amin(0) if len(self.methods) else torch.full((len(self.labels),), torch.inf)
        return torch.where(self.correct, nearest, torch.zeros_like(nearest))

    @property
    def by(self) -> tuple[str | None, ...]:
        """Which attack found the nearest one of each sample."""
        if not len(self.methods):
            return (None,) * len(self.labels)
        least, which = self.distances.min(0)
        return tuple(self.methods[int(m)] if d < torch.inf else None for d, m in zip(least, which, strict=True))

    @property
    def clean_accuracy(self) -> float:
        """The share of samples whose prediction is their label."""
        return float(self.correct.double().mean())

    def accuracy_at(self, epsilon: float) -> float:
        """The share of samples that are classified rightly and for which nothing was found within ε.

        An upper bound on the true share, as certified accuracy is a lower one; only at :attr:`epsilons`, and by the
        attacks that look for the nearest example, was anything tried.
        """
        return float((self.correct & (self.distance > epsilon)).double().mean())

    def tried(self) -> tuple[Tried, ...]:
        """A line for each attack."""
        found = []
        for name, row in zip(self.methods, self.distances, strict=True):
            some = row[torch.isfinite(row)]
            mean, median = (float(some.mean()), float(some.median())) if len(some) else (float("nan"), float("nan"))
            found.append(Tried(name, len(some), mean, median, self.seconds.get(name, 0.0)))
        return tuple(found)

    def put(self, method: str, rows: Tensor, points: Tensor, distance: Tensor) -> None:
        """Keep what is nearer than what there was."""
        m, points, distance = self.methods.index(method), points.to(self.points), distance.to(self.distances)
        nearer = distance < self.distances[:, rows].amin(0)
        self.points[rows[nearer]] = points[nearer]
        self.distances[m, rows] = torch.minimum(self.distances[m, rows], distance)

    def write(self, path: Path) -> None:
        """Write all of it, whole or not at all.

        Raises:
            CheckpointError: it cannot be written.
        """
        about = _About(
            format=_FORMAT,
            key=self.key,
            methods=list(self.methods),
            epsilons=list(self.epsilons),
            arithmetic=self.arithmetic,
            about=self.about,
            seconds=self.seconds,
            done=sorted(self.done),
            finished=self.finished,
        )
        tensors = {name: getattr(self, name).cpu().contiguous() for name in _TENSORS}
        write_file(path, tensors, {_FORMAT: about.model_dump_json()})


_TENSORS = ("labels", "prediction", "distances", "points")


def read_attacked(path: str | Path) -> Attacked:
    """Read what :meth:`Attacked.write` wrote.

    Raises:
        CheckpointError: there is no such file, or it is another one, or damaged.
    """
    path = Path(path)
    tensors, texts = read_file(path)
    try:
        about = _About.model_validate(json.loads(texts[_FORMAT]))
        labels, prediction, distances, points = (tensors[name] for name in _TENSORS)
    except (KeyError, ValueError, ValidationError) as error:
        raise CheckpointError(f"{path} is no file of `lipcert attack`: {type(error).__name__}") from error
    shapes: Sequence[tuple[Tensor, torch.dtype, tuple[int, ...]]] = (
        (labels, torch.int64, (len(points),)),
        (prediction, torch.int64, (len(points),)),
        (distances, torch.float64, (len(about.methods), len(points))),
        (points, torch.float32 if points.dtype == torch.float32 else torch.float64, tuple(points.shape)),
    )
    if about.format != _FORMAT or any(t.dtype != d or tuple(t.shape) != s for t, d, s in shapes):
        raise CheckpointError(f"{path} is damaged: its numbers do not fit each other")
    return Attacked(
        about.key,
        tuple(about.methods),
        tuple(about.epsilons),
        about.arithmetic,
        about.about,
        labels,
        prediction,
        distances,
        points,
        about.seconds,
        set(about.done),
        about.finished,
    )
