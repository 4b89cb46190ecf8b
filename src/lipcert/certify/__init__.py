"""Certified radii of a classifier's predictions."""

from __future__ import annotations

from lipcert.certify.logits import exact_logits
from lipcert.certify.network import certify
from lipcert.certify.radius import CertifiedRadii, EstimatedRadii, Radii, radii

__all__ = ["CertifiedRadii", "EstimatedRadii", "Radii", "certify", "exact_logits", "radii"]
