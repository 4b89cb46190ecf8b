"""A run's model, with its samples and its certificate, which must be of both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lipcert.certify import Certificate, read_certificate
from lipcert.certify.identity import weights_digest
from lipcert.data import Dataset, load
from lipcert.errors import CertificateError
from lipcert.train import RunFolder
from lipcert.train.run_folder import model_for

__all__ = ["Target", "certificate_in", "target_of"]


@dataclass(frozen=True, eq=False)
class Target:
    """What is attacked, or reported on.

    Attributes:
        module: of the run.
        samples: the first ones of a split, or every k-th of these.
        total: how many there are of them.
        certificate: of these samples, or of more that begin with them.
        every: k.
    """

    module: nn.Module
    samples: Dataset
    total: int
    certificate: Certificate | None
    every: int = 1

    @property
    def _part(self) -> slice:
        return slice(0, len(self.samples) * self.every, self.every)

    @property
    def radius(self) -> Tensor | None:
        """(N,) float64: certified radii."""
        if self.certificate is None:
            return None
        return torch.tensor(self.certificate.samples.radius[self._part], dtype=torch.float64)

    @property
    def prediction(self) -> Tensor | None:
        """(N,) int64: certified classes."""
        if self.certificate is None:
            return None
        return torch.tensor(self.certificate.samples.prediction[self._part])

    @property
    def arithmetic(self) -> str:
        """In which predictions are taken: that of the certificate, or the module's own."""
        if self.certificate is not None:
            return self.certificate.precision.arithmetic
        own = next(p.dtype for p in self.module.parameters())
        return str(own).removeprefix("torch.")


def certificate_in(folder: RunFolder, given: Path | None = None) -> Certificate | None:
    """The certificate in a file, by default in the run's folder, if there is one.

    Raises:
        CertificateError: it cannot be read.
    """
    if given is None and not folder.certificate_file.exists():
        return None
    return read_certificate(folder.certificate_file if given is None else given)


def target_of(
    folder: RunFolder,
    certificate: Certificate | None,
    *,
    split: str = "test",
    first: int | None = None,
    every: int = 1,
    root: Path | None = None,
    download: bool = False,
) -> Target:
    """The model of a run and the samples of its data set, of which the certificate must be.

    Raises:
        CertificateError: it is of others.
        lipcert.errors.LipcertError: the model or the data cannot be read.
    """
    found = load(folder.config().data.name, split, root=root, download=download)
    module = model_for(folder, found)
    if certificate is not None:
        check_weights(certificate, module)
    stop = len(found) if first is None else min(first, len(found))
    if certificate is not None:
        whole = found.subset(slice(certificate.data.samples))
        if (certificate.data.split, certificate.data.sha256) != (split, whole.fingerprint):
            raise CertificateError(
                f"the certificate is of {certificate.data.samples:,} samples of {certificate.data.name}, "
                f"{certificate.data.split}, which these are not."
            )
        stop = min(stop, len(whole))
    samples = found if (stop, every) == (len(found), 1) else found.subset(slice(0, stop, every))
    return Target(module, samples, len(found), certificate, every)


def check_weights(certificate: Certificate, module: nn.Module) -> None:
    """Refuse a certificate of another network; a module is turned to float64 for one that is of it in float64.

    Raises:
        CertificateError: it is of other weights.
    """
    judged = module.double() if certificate.model.dtype == "float64" else module
    if certificate.model.weights_sha256 != weights_digest(judged):
        raise CertificateError("the certificate is of other weights than this run's: give its own, or certify it.")
