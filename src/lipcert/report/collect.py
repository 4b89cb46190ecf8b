"""What is reported of a run: its certificate, what attacks found, its bounds, its training, and some of its images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, Field, FiniteFloat, ValidationError
from torch import Tensor

from lipcert.attacks import Attacked, Judge, read_attacked, remeasured
from lipcert.attacks.target import Target, certificate_in, check_weights, target_of
from lipcert.bounds import graph_bound
from lipcert.bounds.lower import lower_bound
from lipcert.bounds.result import Method
from lipcert.certify import Certificate
from lipcert.certify.certificate import norms_of
from lipcert.certify.radius import share
from lipcert.data import as_float
from lipcert.errors import BoundError, CertificateError, DataError
from lipcert.graph import trace
from lipcert.graph.capture import in_eval_mode
from lipcert.train import RunConfig, RunFolder
from lipcert.train.toml import dumps

__all__ = ["BoundRow", "Entry", "collect"]

_BELOW = 256  # images from which a lower bound climbs
_CLIMB = 20


@dataclass(frozen=True)
class BoundRow:
    """A bound on the Lipschitz constants of differences of logits: the smallest and the largest of all pairs."""

    title: str
    proved: bool
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Entry:
    """All that a report says of one run.

    Attributes:
        label: what it is called in the report.
        path: of its folder, or its name.
        config: its configuration.
        toml: the same, as a file.
        summary: of its training; may be missing.
        metrics: of its epochs; may be missing.
        certificate: of N samples.
        attacked: of the first M ≤ N of them, or of every k-th, if attacks ran.
        images: (N, C, H, W) uint8, if the data set is at hand.
        bounds: from below to above; empty where they were not asked for.
        total: how many samples the split has, if the data set is at hand.
        notes: what is missing, and how to get it.
    """

    label: str
    path: str
    config: RunConfig
    toml: str
    summary: dict[str, Any] | None
    metrics: list[dict[str, Any]]
    certificate: Certificate
    attacked: Attacked | None = None
    images: Tensor | None = None
    bounds: tuple[BoundRow, ...] = ()
    total: int | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def labels(self) -> Tensor:
        """(N,) int64."""
        return torch.tensor(self.certificate.samples.label)

    @property
    def prediction(self) -> Tensor:
        """(N,) int64."""
        return torch.tensor(self.certificate.samples.prediction)

    @property
    def runner_up(self) -> Tensor:
        """(N,) int64: the class that ends a sample's radius."""
        return torch.tensor(self.certificate.samples.runner_up)

    @property
    def radius(self) -> Tensor:
        """(N,) float64: what is certified."""
        return torch.tensor(self.certificate.samples.radius, dtype=torch.float64)

    @property
    def correct(self) -> Tensor:
        """(N,) bool."""
        return self.prediction == self.labels

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return tuple(self.certificate.model.classes)

    @property
    def part(self) -> slice:
        """The samples that were attacked; all, if none were."""
        return slice(None) if self.attacked is None else self.attacked.part

    def certified_at(self, epsilon: float, *, attacked: bool = False) -> float:
        """The certified share of all samples, or of those that were attacked."""
        return share((self.correct & (self.radius > epsilon))[self.part if attacked else slice(None)])


def collect(
    folder: RunFolder,
    *,
    label: str | None = None,
    certificate: Path | None = None,
    attack: Path | None = None,
    data: Path | None = None,
    bounds: bool = True,
) -> Entry:
    """Read a run's folder.

    Args:
        folder: of a finished run.
        label: what it is called; by default as in its configuration.
        certificate, attack: files; by default those in the folder. Attacks may be missing.
        data: where the data sets lie. Without them there are no images.
        bounds: also bound the network by other methods, which takes a while.

    Raises:
        CertificateError: there is no certificate, or one of another network or of other samples.
        lipcert.errors.LipcertError: a file is missing or damaged.
    """
    config, found = folder.config(), certificate_in(folder, certificate)
    if found is None:
        raise CertificateError(
            f"{folder.path} has no certificate, which a report is of: lipcert certify {folder.path} --save "
            f"{folder.certificate_file}"
        )
    notes: list[str] = []
    target: Target | None = None
    try:
        target = target_of(folder, found, split=found.data.split, root=data)
        module = target.module
    except DataError as error:
        notes.append(f"No images, as the data set is not here: {error}")
        module, _ = folder.load_model()
        check_weights(found, module)
    attacked = _attacked(folder, attack, found, target)
    if attacked is None:
        notes.append("No attacks yet: `lipcert attack` runs them.")
    elif not attacked.finished:
        notes.append("The attacks were stopped before their end: the same `lipcert attack` goes on.")
    if attacked is not None and attacked.arithmetic != found.precision.arithmetic:
        notes.append(
            f"The attacks ran in {attacked.arithmetic}, the certificate is for {found.precision.arithmetic}: near the "
            "boundary these may differ."
        )
    if attacked is not None and target is None:
        notes.append("What the attacks found was not measured again, which takes the data set.")
    metrics, damaged = _metrics(folder)
    if damaged:
        notes.append(f"{folder.metrics_file.name} is damaged: the curves of the training are left out.")
    images = None if target is None else target.samples.images
    rows: tuple[BoundRow, ...] = ()
    if bounds:
        rows = tuple(_bounds(found, module, None if images is None else as_float(images[:_BELOW])))
    return Entry(
        label or config.name,
        str(folder.path),
        config,
        dumps(config.to_dict()),
        folder.summary(),
        metrics,
        found,
        attacked,
        images,
        rows,
        None if target is None else target.total,
        tuple(notes),
    )


class _Metric(BaseModel):
    """What is drawn of an evaluated epoch; there is more in a line."""

    epoch: int = Field(ge=1)
    clean: float = Field(ge=0, le=1)
    estimated_certified: dict[str, float]
    bound: tuple[FiniteFloat, FiniteFloat]


def _metrics(folder: RunFolder) -> tuple[list[dict[str, Any]], bool]:
    """The evaluated epochs of a training, and whether there are others than can be drawn."""
    found = folder.metrics()
    try:
        return [_Metric.model_validate(m).model_dump() for m in found], False
    except ValidationError:
        return [], True


def _attacked(folder: RunFolder, file: Path | None, certificate: Certificate, target: Target | None) -> Attacked | None:
    """What attacks found, which must be of the certificate's samples; measured again if they are at hand.

    Raises:
        CertificateError: it is of others, or contradicts the certificate.
    """
    if file is None and not folder.attack_file.exists():
        return None
    found = read_attacked(file or folder.attack_file)
    part, samples = found.part, certificate.samples
    if (len(found.labels) - 1) * found.every >= len(samples.label):
        raise CertificateError(
            f"the attacks are of {found.of(part.stop)} samples, the certificate of the first {len(samples.label):,}: "
            f"attack these (--first {len(samples.label)}), or certify all."
        )
    same = found.labels.tolist() == list(samples.label[part])
    if not same or found.prediction.tolist() != list(samples.prediction[part]):
        raise CertificateError("what the attacks found is of other samples or another network than the certificate.")
    if found.about.get("weights") not in (None, certificate.model.weights_sha256):
        raise CertificateError("what the attacks found is of another network than the certificate.")
    if target is not None:
        judge, x = Judge(target.module, found.arithmetic), as_float(target.samples.images[part]).to(found.points)
        with in_eval_mode(target.module):
            found = remeasured(found, judge, x, file or folder.attack_file)
    inside = found.nearest < torch.tensor(samples.radius[part], dtype=torch.float64)
    if found.arithmetic == certificate.precision.arithmetic and bool(inside.any()):
        raise CertificateError(
            f"sample {int(inside.nonzero()[0])} has an adversarial example inside of its certified radius: run "
            "`lipcert attack` with this certificate, and report what it says."
        )
    return found


def _bounds(certificate: Certificate, module: torch.nn.Module, x: Tensor | None) -> list[BoundRow]:
    """Bounds of differences of logits, from below to above."""
    rows: list[BoundRow] = []
    graph = trace(module, tuple(certificate.input.shape))
    points = torch.rand((_BELOW, *graph.input_shape), generator=torch.Generator().manual_seed(0)) if x is None else x
    below = lower_bound(graph, points.to(graph.capture.sample), scope="pairwise", input_range=(0.0, 1.0), steps=_CLIMB)
    rows.append(_row("steepest pairs of points found", False, below.value))
    value = torch.tensor(certificate.bound.value, dtype=torch.float64)
    rows.append(_row(_TITLES.get(certificate.bound.method, certificate.bound.method), True, value))
    others: tuple[Method, ...] = ("liplt", "product")
    for method in others:
        if method == certificate.bound.method:
            continue
        norms = norms_of(certificate.bound) if method == "liplt" else None
        try:
            found = graph_bound(graph, method=method, scope="pairwise", guarantee="upper", norms=norms)
        except BoundError:  # its norms do not stand in this certificate
            continue
        rows.append(_row(_TITLES[method], True, found.value))
    return rows


_TITLES = {"liplt": "LipLT", "product": "product of the layers' norms", "smallgain": "small gain"}


def _row(title: str, proved: bool, value: Tensor) -> BoundRow:
    value = value.detach().double().cpu()
    if value.ndim == 2 and len(value) > 1:
        value = value[~torch.eye(len(value), dtype=torch.bool)]
    return BoundRow(title, proved, float(value.min()), float(value.max()))


def epsilons_of(entries: Sequence[Entry]) -> list[float]:
    """The radii at which the certificates state an accuracy, of all runs together."""
    return sorted({v.epsilon for e in entries for v in e.certificate.certified if v.epsilon > 0})
