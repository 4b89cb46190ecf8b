"""Certified radii of a classifier's predictions, and certificates of them that anyone can check."""

from __future__ import annotations

from lipcert.certify.certificate import certificate_of, make_certificate, read_certificate, write_certificate
from lipcert.certify.identity import Origin, Samples
from lipcert.certify.logits import exact_logits
from lipcert.certify.network import certify
from lipcert.certify.radius import CertifiedRadii, EstimatedRadii, Radii, radii
from lipcert.certify.report import Check, Report
from lipcert.certify.schema import Certificate
from lipcert.certify.verify import verify

__all__ = [
    "Certificate",
    "CertifiedRadii",
    "Check",
    "EstimatedRadii",
    "Origin",
    "Radii",
    "Report",
    "Samples",
    "certificate_of",
    "certify",
    "exact_logits",
    "make_certificate",
    "radii",
    "read_certificate",
    "verify",
    "write_certificate",
]
