"""Certified accuracy over the radius, of one network by every bound: numbers, and a plot for each run.

``LIPCERT_RUNS=DIR:DIR…`` names trained models, as `lipcert train` leaves them, with their data set found as usual. All
curves are of the first ``LIPCERT_IMAGES`` (1000) test images, by proved bounds, in the arithmetic ``LIPCERT_PRECISION``
(real); the plots are written to ``LIPCERT_PLOTS`` (the present folder).
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

from benchmarks.runs import Run, runs
from lipcert import trace
from lipcert.bounds import UpperBound, graph_bound
from lipcert.certify import Radii
from lipcert.certify.network import certified

_SECONDS = 120.0
_METHODS = (("product", False), ("liplt", False), ("smallgain", False), ("liplt", True), ("smallgain", True))
_NAMES = {"product": "product", "liplt": "LipLT", "smallgain": "small gain"}


def _plot(run: Run, curves: dict[str, Radii], file: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    furthest = max(float(r.radius[r.correct].quantile(0.98)) for r in curves.values())
    for name, found in curves.items():
        ends = found.radius[found.correct].sort().values
        share = 100 * (len(ends) - torch.arange(len(ends) + 1)) / len(found)
        where = torch.cat([torch.zeros(1, dtype=ends.dtype), ends])
        axes.step(where.numpy(), share.numpy(), where="post", label=name, linestyle="--" if "local" in name else "-")
    for epsilon in run.config.train.eval_epsilons:
        axes.axvline(epsilon, color="0.8", linewidth=0.8, zorder=0)
    axes.set(xlim=(0, furthest), ylim=(0, 100), xlabel="ε, ℓ2, raw pixels in [0, 1]", ylabel="certified at ε, %")
    axes.set_title(f"{run.config.model.name}, {run.config.data.name}: {len(next(iter(curves.values()))):,} test images")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main() -> None:
    """Print a table and write a plot for each run."""
    count, folder = int(os.environ.get("LIPCERT_IMAGES", "1000")), Path(os.environ.get("LIPCERT_PLOTS", "."))
    precision = os.environ.get("LIPCERT_PRECISION", "real")
    for run in runs():
        graph, curves, bounds = trace(run.module, run.shape), dict[str, Radii](), dict[str, UpperBound]()
        batches, labels = run.first(count)
        epsilons = run.config.train.eval_epsilons
        print(f"\n{run.name}: the first {len(labels):,} test images, proved, {precision}")
        head = "".join(f"{f'at {e:.4g}':>12}" for e in epsilons)
        print(f"{'bound':>22} {'bound, s':>9} {'s an image':>11}{head} {'mean radius':>12}")
        for method, local in _METHODS:
            began = time.perf_counter()
            if method not in bounds:
                found = graph_bound(graph, method=method, scope="pairwise", guarantee="upper", seconds=_SECONDS)  # type: ignore[arg-type]
                assert isinstance(found, UpperBound)
                bounds[method] = found
            middle = time.perf_counter()
            result = certified(graph, bounds[method], batches, labels, precision, local=local)
            each = (time.perf_counter() - middle) / len(labels)
            name = _NAMES[method] + (" + local" if local else "")
            curves[name] = result
            shares = "".join(f"{100 * result.robust_accuracy(e):>11.2f}%" for e in epsilons)
            mean = float(result.radius[result.correct].mean())
            print(f"{name:>22} {middle - began:>9.1f} {each:>11.3f}{shares} {mean:>12.4f}", flush=True)
        file = folder / f"{run.name}-curves.png"
        _plot(run, curves, file)
        print(f"plot: {file}")


if __name__ == "__main__":
    main()
