"""Certified radii of a classifier's predictions."""

from __future__ import annotations

from lipcert.certify.logits import exact_logits
from lipcert.certify.radius import CertifiedRadii, EstimatedRadii, Radii, certify, radii

__all__ = ["CertifiedRadii", "EstimatedRadii", "Radii", "certify", "exact_logits", "radii"]
