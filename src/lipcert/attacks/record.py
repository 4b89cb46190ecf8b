"""What attacks found, sample by sample, in a file that a stopped attack goes on from."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from lipcert.attacks.methods import METHODS
from lipcert.certify.radius import share
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

    Adversarial is what changes the prediction of an input, whether that is right or wrong.

    Attributes:
        key: of what is attacked and how: an attack goes on only where it is the same.
        methods: names of the attacks.
        epsilons: radii at which those attacks ran that look for an adversarial example within one.
        arithmetic: in which predictions were taken.
        about: whatever else is worth keeping, as JSON has it.
        labels: (N,) int64.
        prediction: (N,) int64.
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
    def every(self) -> int:
        """k, where these are every k-th sample of what they are taken from."""
        return int(self.about.get("every", 1))

    @property
    def part(self) -> slice:
        """Where they are among those that they are taken from."""
        return slice(0, len(self.labels) * self.every, self.every)

    def of(self, total: int) -> str:
        """Which they are of so many, in words."""
        reached = min(len(self.labels) * self.every, total)
        first = f"the first {reached:,} of {total:,}" if reached < total else f"{total:,}"
        return first if self.every == 1 else f"one in {self.every} of {first}"

    @property
    def correct(self) -> Tensor:
        """(N,) bool: where the prediction is the label."""
        return self.prediction == self.labels

    @property
    def nearest(self) -> Tensor:
        """(N,) float64: how far the nearest input with another prediction is; infinite where none was found."""
        return self.distances.amin(0)

    @property
    def distance(self) -> Tensor:
        """(N,) float64: :attr:`nearest` where the prediction is right, else 0."""
        return torch.where(self.correct, self.nearest, torch.zeros_like(self.nearest))

    @property
    def by(self) -> tuple[str | None, ...]:
        """Which attack found the nearest one of each sample."""
        least, which = self.distances.min(0)
        return tuple(self.methods[int(m)] if d < torch.inf else None for d, m in zip(least, which, strict=True))

    @property
    def clean_accuracy(self) -> float:
        """The share of samples whose prediction is their label."""
        return share(self.correct)

    def accuracy_at(self, epsilon: float) -> float:
        """The share of samples that are classified rightly and for which nothing was found within ε.

        An upper bound on the true share, as certified accuracy is a lower one; only at :attr:`epsilons`, and by the
        attacks that look for the nearest example, was anything tried.
        """
        return share(self.correct & (self.distance > epsilon))

    def tried(self) -> tuple[Tried, ...]:
        """A line for each attack, of the samples that are classified rightly."""
        found = []
        for name, row in zip(self.methods, self.distances, strict=True):
            some = row[torch.isfinite(row) & self.correct]
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
    """Read what :meth:`Attacked.write` wrote. Whether it is true is :func:`lipcert.attacks.remeasured`'s to say.

    Raises:
        CheckpointError: there is no such file, or it is another one, or damaged.
    """
    path = Path(path)
    tensors, texts = read_file(path)
    try:
        about = _About.model_validate(json.loads(texts[_FORMAT]))
        labels, prediction, distances, points = (tensors[name] for name in _TENSORS)
    except (KeyError, ValueError, ValidationError, RecursionError) as error:
        raise CheckpointError(f"{path} is no file of `lipcert attack`: {type(error).__name__}") from error
    count = len(points) if points.ndim else 0
    shapes: Sequence[tuple[Tensor, tuple[torch.dtype, ...], tuple[int, ...]]] = (
        (labels, (torch.int64,), (count,)),
        (prediction, (torch.int64,), (count,)),
        (distances, (torch.float64,), (len(about.methods), count)),
        (points, (torch.float32, torch.float64), tuple(points.shape)),
    )
    numbers = [*about.epsilons, *about.seconds.values()]
    if (
        about.format != _FORMAT
        or count == 0
        or points.ndim < 2
        or any(t.dtype not in d or tuple(t.shape) != s for t, d, s in shapes)
        or not about.methods
        or len(set(about.methods)) != len(about.methods)
        or not set(about.methods) <= set(METHODS)
        or not all(0 <= v < math.inf for v in numbers)
        or type(about.about.get("every", 1)) is not int
        or not 1 <= about.about.get("every", 1) < 2**31
        or not bool((distances >= 0).all())  # a NaN is not
        or not bool(((points >= 0) & (points <= 1)).all())
    ):
        raise CheckpointError(f"{path} is damaged: what is in it does not fit together")
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
