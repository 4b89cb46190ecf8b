"""Exact Lipschitz constants and exact distances to the decision boundary of tiny ReLU and LeakyReLU networks.

Such a network is affine on each cell of an arrangement: the hyperplanes of the first layer cut the input space, those
of the next layer cut each cell again. Every cell that meets a large box (whose sides are taken as hyperplanes too) has
a vertex in the box, where at least d hyperplanes meet; so stepping a little from every such vertex to all sides visits
every cell. A cell counts only if one of these points lies in it and the network is run there: what is found is a slope
that the network has, never one of a pattern that does not occur.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

BOX = 1e4
Pattern = tuple[bool, ...]


@dataclass(frozen=True)
class Cell:
    """One linear region: ``f(x) = slope·x + shift`` where ``normals·x + offsets ≥ 0``; ``point`` lies inside."""

    point: np.ndarray
    slope: np.ndarray
    shift: np.ndarray
    normals: np.ndarray
    offsets: np.ndarray


class Exact:
    """All linear regions of ``Linear, ReLU | LeakyReLU, …, Linear`` with few inputs and few neurons, in float64."""

    def __init__(self, net: nn.Sequential) -> None:
        linears = [m for m in net if isinstance(m, nn.Linear)]
        self.weights = [(m.weight.detach().double().numpy(), m.bias.detach().double().numpy()) for m in linears]
        acts = [m for m in net if not isinstance(m, nn.Linear)]
        assert all(isinstance(m, (nn.ReLU, nn.LeakyReLU)) for m in acts)
        self.low = [m.negative_slope if isinstance(m, nn.LeakyReLU) else 0.0 for m in acts]
        self.inputs = self.weights[0][0].shape[1]
        self.cells = [self._cell(p, x, len(self.low)) for p, x in self._patterns().items()]

    def _run(self, x: np.ndarray, depth: int) -> np.ndarray:
        """Which neurons of the first ``depth`` layers are on at each point (N, d): (N, neurons)."""
        signs = [np.zeros((len(x), 0), dtype=bool)]
        for (w, b), low in zip(self.weights[:depth], self.low[:depth], strict=True):
            z = x @ w.T + b
            signs.append(z > 0)
            x = np.where(z > 0, z, low * z)
        return np.concatenate(signs, 1)

    def _cell(self, pattern: Pattern, point: np.ndarray, depth: int) -> Cell:
        """The affine map of the first ``depth`` layers and the one after, where they have this pattern."""
        slope, shift = self.weights[0]
        normals, offsets, rest = [np.zeros((0, self.inputs))], [np.zeros(0)], list(pattern)
        for (w, b), low in zip(self.weights[1 : depth + 1], self.low, strict=False):
            on, rest = np.array(rest[: len(shift)]), rest[len(shift) :]
            sides, gain = np.where(on, 1.0, -1.0), np.where(on, 1.0, low)
            normals.append(sides[:, None] * slope)
            offsets.append(sides * shift)
            slope, shift = w @ (gain[:, None] * slope), w @ (gain * shift) + b
        return Cell(point, slope, shift, np.concatenate(normals), np.concatenate(offsets))

    def _patterns(self) -> dict[Pattern, np.ndarray]:
        """Every pattern that occurs in the box, with a point at which it was seen."""
        found: dict[Pattern, np.ndarray] = {(): np.zeros(self.inputs)}
        for depth in range(len(self.low)):
            deeper: dict[Pattern, np.ndarray] = {}
            for pattern, point in found.items():
                cell = self._cell(pattern, point, depth)
                points = self._around_vertices(cell)
                inside = (points @ cell.normals.T + cell.offsets >= 0).all(1)
                for x, signs in zip(points[inside], self._run(points[inside], depth + 1), strict=True):
                    deeper.setdefault(tuple(signs.tolist()), x)
            found = deeper
        return found

    def _around_vertices(self, cell: Cell) -> np.ndarray:
        """Points next to all vertices of the cell's sides, the box, and the hyperplanes of the next layer."""
        d, eye = self.inputs, np.eye(self.inputs)
        normals = np.concatenate([cell.normals, cell.slope, eye, eye])
        offsets = np.concatenate([cell.offsets, cell.shift, np.full(d, BOX), np.full(d, -BOX)])
        length = np.linalg.norm(normals, axis=1)
        normals, offsets = normals[length > 0] / length[length > 0, None], offsets[length > 0] / length[length > 0]
        subsets = np.array(list(itertools.combinations(range(len(normals)), d)))
        corners = normals[subsets]
        regular = np.abs(np.linalg.det(corners)) > 1e-9
        corners, right = corners[regular], -offsets[subsets[regular]]
        vertices = np.linalg.solve(corners, right[..., None])[..., 0]
        away = np.abs(vertices @ normals.T + offsets)
        away[away < 1e-9 * (1 + np.abs(vertices).max(1, keepdims=True))] = np.inf  # those that meet here
        step = 0.3 * np.minimum(away.min(1), 1.0)
        sides = np.array(list(itertools.product([-1.0, 1.0], repeat=d)))
        moves = np.linalg.solve(corners[:, None], np.broadcast_to(sides[..., None], (len(corners), len(sides), d, 1)))
        moves = moves[..., 0] / np.linalg.norm(moves[..., 0], axis=2, keepdims=True)
        return (vertices[:, None] + step[:, None, None] * moves).reshape(-1, d)

    @property
    def constant(self) -> float:
        """The Lipschitz constant of the whole output."""
        return max(float(np.linalg.norm(c.slope, 2)) for c in self.cells)

    @property
    def pairs(self) -> torch.Tensor:
        """The Lipschitz constant of each difference of two outputs."""
        return torch.as_tensor(
            np.max([np.linalg.norm(c.slope[:, None] - c.slope[None], axis=2) for c in self.cells], axis=0)
        )

    def distance(self, x: np.ndarray, prediction: int) -> tuple[float, np.ndarray | None]:
        """The distance of the nearest point in the box at which another logit is as large, and that point.

        In each cell it is the projection of x onto some of the cell's sides and of the boundaries between two logits.
        """
        best, where = float("inf"), None
        for cell in self.cells:
            for b in range(len(cell.shift)):
                if b == prediction:
                    continue
                normal, offset = cell.slope[b] - cell.slope[prediction], cell.shift[b] - cell.shift[prediction]
                for point in self._projections(x, cell, normal, float(offset)):
                    apart = float(np.linalg.norm(point - x))
                    if apart < best:
                        best, where = apart, point
        return best, where

    def _projections(self, x: np.ndarray, cell: Cell, normal: np.ndarray, offset: float) -> np.ndarray:
        """x projected onto ``normal·x + offset = 0`` and up to d − 1 sides of a cell, where that lies in the cell."""
        length = np.linalg.norm(cell.normals, axis=1)
        sides, shifts = cell.normals[length > 0] / length[length > 0, None], cell.offsets[length > 0]
        shifts = shifts / length[length > 0]
        size = float(np.linalg.norm(normal))
        if size < 1e-12:
            return np.zeros((0, len(x)))
        found = []
        for many in range(min(self.inputs, len(sides) + 1)):
            subsets = list(itertools.combinations(range(len(sides)), many))
            chosen = np.array(subsets, dtype=int).reshape(len(subsets), many)
            planes = np.concatenate([np.broadcast_to(normal / size, (len(chosen), 1, len(x))), sides[chosen]], 1)
            levels = np.concatenate([np.full((len(chosen), 1), offset / size), shifts[chosen]], 1)
            gram = planes @ planes.transpose(0, 2, 1)
            regular = np.abs(np.linalg.det(gram)) > 1e-12
            planes, right = planes[regular], (planes[regular] @ x + levels[regular])[..., None]
            found.append(x - (planes.transpose(0, 2, 1) @ np.linalg.solve(gram[regular], right))[..., 0])
        points = np.concatenate(found)
        return points[(points @ sides.T + shifts >= -1e-9 * (1 + np.abs(points).max(1, keepdims=True))).all(1)]
