"""What a guarantee costs: certified accuracy by an estimate, in real arithmetic and as float32 executes; and seconds.

``LIPCERT_RUNS=DIR:DIR…`` names trained models, as `lipcert train` leaves them, with their data set found as usual.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from benchmarks.runs import runs
from lipcert import trace
from lipcert.bounds import UpperBound, graph_bound
from lipcert.certify import Radii, radii
from lipcert.data import Batches, Dataset
from lipcert.train.evaluate import certify_data, predict

_SIZES = (50, 200, 1000)
_CPU = torch.device("cpu")


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _forward(module: torch.nn.Module, data: Dataset, dtype: torch.dtype, size: int) -> float:
    """Seconds for all samples; making the batches is timed as well, as it is when certifying."""

    def run() -> None:
        with torch.no_grad():
            for x, _ in Batches(data, size, shuffle=False, seed=0, device=_CPU).epoch(0):
                module(x.to(dtype))

    return _seconds(run)


def main() -> None:
    """Print a table for each run."""
    for run in runs():
        module, data, epsilons = run.module, run.test_data(), run.config.train.eval_epsilons
        graph = trace(module, run.shape)
        bounds = {g: graph_bound(graph, scope="pairwise", guarantee=g) for g in ("estimate", "upper")}  # type: ignore[arg-type]
        proved = bounds["upper"]
        assert isinstance(proved, UpperBound)
        logits, labels = predict(module, data, device=_CPU)
        found: dict[str, Radii] = {"estimate": radii(logits, bounds["estimate"], labels)}
        times: dict[str, list[float]] = {}
        for _ in range(3):  # alternating: the machine is shared
            for name in ("real", "float32"):
                began = time.perf_counter()
                found[name] = certify_data(graph, proved, data, device=_CPU, precision=name)
                times.setdefault(f"certify, {name}", []).append(time.perf_counter() - began)
            for dtype in (torch.float32, torch.float64):
                copy = run.folder.load_model()[0].to(dtype).eval()
                for size in _SIZES:
                    times.setdefault(f"forward, {dtype}, {size}", []).append(_forward(copy, data, dtype, size))
        print(f"\n{run.name}: {len(data):,} images, clean {100 * found['real'].clean_accuracy:.2f} %")
        print(f"{'epsilon':>10}" + "".join(f"{name:>12}" for name in found))
        for epsilon in epsilons:
            print(f"{epsilon:>10.4g}" + "".join(f"{100 * r.robust_accuracy(epsilon):>11.2f}%" for r in found.values()))
        lost = (found["float32"].real - found["float32"].radius)[found["float32"].correct]
        mean = float(found["float32"].real[found["float32"].correct].mean())
        print(f"rounding takes {float(lost.mean()):.4f} off a radius of {mean:.4f}, on average over the correct ones")
        for name, seconds in times.items():
            print(f"{name:>28} {min(seconds):>8.2f} s")


if __name__ == "__main__":
    main()
