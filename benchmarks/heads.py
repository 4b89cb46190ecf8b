"""The pairwise head: C adjoint passes and a Gram matrix, against one row for each of the C(C−1)/2 pairs."""

from __future__ import annotations

import time

import torch

from lipcert import trace
from lipcert.bounds.heads import pairwise_norms
from lipcert.loop import LoopMap
from lipcert.models import build


def _direct(loop: LoopMap, classes: int, chunk: int = 256) -> dict[int, torch.Tensor]:
    """One adjoint row for each pair."""
    a, b = torch.triu_indices(classes, classes, 1)
    parts: dict[int, list[torch.Tensor]] = {}
    for some in torch.arange(len(a)).split(chunk):
        rows = torch.zeros(len(some), classes, dtype=loop.resolved.dtype)
        rows[torch.arange(len(some)), a[some]] = 1
        rows[torch.arange(len(some)), b[some]] = -1
        for j, v in enumerate(loop.adjoint([None] * loop.depth + [rows])):
            parts.setdefault(j, []).append(v.flatten(1).norm(dim=1))
    result = {}
    for j, found in parts.items():
        full = torch.zeros(classes, classes, dtype=torch.float64)
        full[a, b] = torch.cat(found).double()
        result[j] = full + full.T
    return result


def main() -> None:
    """Print seconds and the largest relative difference; 1000 classes by the Gram matrix only."""
    print(
        f"{'classes':>8} {'pairs':>8} {'Gram s':>8} {'upper s':>8} {'rows s':>8} {'rows/Gram':>10} {'difference':>11}"
    )
    for classes in (10, 200, 1000):
        torch.manual_seed(0)
        model = build("6c2f", input_shape=(3, 32, 32), num_classes=classes).eval()
        graph = trace(model, (3, 32, 32))
        with torch.no_grad():
            loop = LoopMap(graph, graph.resolve(torch.float64))
            began = time.perf_counter()
            gram = pairwise_norms(loop, upper=False)
            first = time.perf_counter() - began
            began = time.perf_counter()
            pairwise_norms(loop, upper=True)
            second = time.perf_counter() - began
            line = f"{classes:>8} {classes * (classes - 1) // 2:>8} {first:>8.2f} {second:>8.2f}"
            if classes <= 200:
                began = time.perf_counter()
                direct = _direct(loop, classes)
                third = time.perf_counter() - began
                gap = max(float(((gram[j] - direct[j]).abs() / direct[j].clamp_min(1e-300)).max()) for j in gram)
                line += f" {third:>8.2f} {third / first:>10.1f} {gap:>11.1e}"
            print(line)


if __name__ == "__main__":
    main()
