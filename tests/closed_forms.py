"""Lipschitz bounds of ReLU chains from multipliers of LipSDP that need no solver: ECLipsE-Fast and its relatives.

For weights W_1 … W_l with an activation of slopes in [0, 1] between them, LipSDP-Neuron (Fazlyab et al. 2019) asks for
diagonal Λ_i ≥ 0. Eliminating its blocks from the first layer to the last, with the input's block scaled to I,

    Γ_1 = W_1·W_1ᵀ,    X_i = 2Λ_i − Λ_i·Γ_i·Λ_i ≻ 0,    Γ_{i+1} = W_{i+1}·X_i⁻¹·W_{i+1}ᵀ,    L = √λ_max(Γ_l).

*Any* Λ with X_i ≻ 0, which is 2Λ_i⁻¹ ≻ Γ_i, gives an upper bound L; the smallest over all Λ is LipSDP's.

- ECLipsE-Fast (Xu and Sivaranjani, NeurIPS 2024, arXiv 2404.04375): Λ_i = I/λ_max(Γ_i). They write it
  λ_i = 2/λ_max(Γ_i) for X_i = λ_i·I − λ_i²·Γ_i/4, which is the same. It is at most the product of norms, as
  X_i ⪰ I/λ_max(Γ_i).
- The family of Syed and Hu ("Improved Scalable Lipschitz Bounds for Deep Neural Networks", 2025, arXiv 2503.14297)
  takes other feasible Λ_i, with a free number c, and the best of all; here Λ_i = c·I/λ_max(Γ_i) with 0 < c < 2 (c = 1
  is ECLipsE-Fast), Λ_i = c·diag(Σ_k|Γ_i|_jk)⁻¹ with 0 < c < 2 (Gershgorin), and
  Λ_i = (D_i + c·‖Γ_i/2 − D_i‖·I)⁻¹ with c > 1, D_i the diagonal of Γ_i/2. The paper itself was not at hand: the forms
  are as others describe them, the grids of c are ours. They are upper bounds whatever the paper says.

Floating-point numbers without an account of rounding: references to compare with, not proofs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

__all__ = [
    "Rule",
    "eclipse_fast",
    "from_multipliers",
    "gershgorin",
    "product",
    "scaled",
    "shifted",
    "syed_hu",
    "through",
]

Rule = Callable[[np.ndarray], np.ndarray]
"""From Γ_i to the diagonal of Λ_i."""

SCALED = (0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.7)
GERSHGORIN = (0.5, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 1.9, 1.99)
SHIFTED = (1.05, 1.2, 1.35, 1.5, 1.75, 2.0, 2.5, 3.0)


def product(weights: Sequence[np.ndarray]) -> float:
    """``Π_i ‖W_i‖``."""
    return math.prod(float(np.linalg.norm(w, 2)) for w in weights)


def through(weights: Sequence[np.ndarray], rule: Callable[[int, np.ndarray], np.ndarray]) -> float:
    """L for the diagonals that a rule gives, from the layer's number and Γ_i; infinite where some X_i is not ≻ 0."""
    gram = weights[0] @ weights[0].T
    for i, following in enumerate(weights[1:]):
        multipliers = rule(i, gram)
        x = 2 * np.diag(multipliers) - multipliers[:, None] * gram * multipliers
        try:
            factor = np.linalg.cholesky((x + x.T) / 2)
        except np.linalg.LinAlgError:
            return math.inf
        root = np.linalg.solve(factor, following.T)
        gram = root.T @ root
    return math.sqrt(max(float(np.linalg.eigvalsh(gram)[-1]), 0.0)) if np.isfinite(gram).all() else math.inf


def from_multipliers(weights: Sequence[np.ndarray], multipliers: Sequence[np.ndarray]) -> float:
    """L for given diagonals of Λ_1 … Λ_{l−1}."""
    return through(weights, lambda i, _: multipliers[i])


def _top(gram: np.ndarray) -> float:
    return max(float(np.linalg.eigvalsh(gram)[-1]), 1e-300)


def scaled(c: float) -> Rule:
    """``Λ = c·I/λ_max(Γ)``."""
    return lambda gram: np.full(len(gram), c / _top(gram))


def gershgorin(c: float) -> Rule:
    """``Λ = c·diag(Σ_k|Γ_jk|)⁻¹``; a neuron that sees nothing gets a finite multiplier."""

    def rule(gram: np.ndarray) -> np.ndarray:
        sums = np.abs(gram).sum(1)
        return c / np.maximum(sums, 1e-9 * max(sums.max(), 1e-290))

    return rule


def shifted(c: float) -> Rule:
    """``Λ = (D + c·‖Γ/2 − D‖·I)⁻¹`` with D the diagonal of Γ/2."""

    def rule(gram: np.ndarray) -> np.ndarray:
        diagonal = np.diag(gram) / 2
        rest = float(np.linalg.norm(gram / 2 - np.diag(diagonal), 2))
        return 1 / np.maximum(diagonal + c * rest, 1e-9 * _top(gram))

    return rule


def eclipse_fast(weights: Sequence[np.ndarray]) -> float:
    """ECLipsE-Fast."""
    return through(weights, lambda _, gram: scaled(1.0)(gram))


def syed_hu(weights: Sequence[np.ndarray]) -> float:
    """The best of the family, one rule and one c for all layers."""
    rules = [*map(scaled, SCALED), *map(gershgorin, GERSHGORIN), *map(shifted, SHIFTED)]
    return min(through(weights, lambda _, gram, rule=rule: rule(gram)) for rule in rules)
