"""Certified radii of a classifier's predictions."""

from __future__ import annotations

from lipcert.certify.radius import CertifiedRadii, EstimatedRadii, Radii, certify, radii

__all__ = ["CertifiedRadii", "EstimatedRadii", "Radii", "certify", "radii"]
