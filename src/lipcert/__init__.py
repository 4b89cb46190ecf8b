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
from lipcert.version import __version__
from lipcert.zoo import load

__all__ = [
    "Bound",
    "CertifiedRadii",
    "Estimate",
    "EstimatedRadii",
    "Graph",
    "LipcertError",
    "Radii",
    "UpperBound",
    "__version__",
    "certify",
    "lipschitz",
    "load",
    "load_onnx",
    "trace",
]
