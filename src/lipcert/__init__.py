"""Provably robust neural networks: Lipschitz bounds, certified radii, certified training.

>>> import lipcert
>>> sorted(lipcert.__all__)[:4]
['Bound', 'CertifiedRadii', 'Estimate', 'EstimatedRadii']
"""

from __future__ import annotations

from lipcert.bounds import Bound, Estimate, UpperBound, lipschitz
from lipcert.certify import CertifiedRadii, EstimatedRadii, Radii, certify
from lipcert.errors import LipcertError
from lipcert.exchange import load_onnx
from lipcert.graph import Graph, trace

__all__ = [
    "Bound",
    "CertifiedRadii",
    "Estimate",
    "EstimatedRadii",
    "Graph",
    "LipcertError",
    "Radii",
    "UpperBound",
    "certify",
    "lipschitz",
    "load_onnx",
    "trace",
]
__version__ = "0.1.0"
