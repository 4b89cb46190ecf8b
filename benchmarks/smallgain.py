"""Product, LipLT and small gain of trained networks: bounds, certified accuracy and seconds; and a lower bound.

``LIPCERT_RUNS=DIR:DIR…`` names trained models, as `lipcert train` leaves them, with their data set found as usual.
Each search takes ``LIPCERT_SECONDS`` (120) at most. ``LIPCERT_LARGE=1`` adds 8C2F with fresh weights on 3×64×64 in 200
classes, bounds only, which takes half an hour.
"""

from __future__ import annotations

import os
import resource
import time
from typing import Any

import torch

from benchmarks.runs import runs
from lipcert import trace
from lipcert.bounds import Bound, UpperBound, graph_bound, lower_bound
from lipcert.data import Batches
from lipcert.graph import Graph
from lipcert.models import build
from lipcert.train.evaluate import certify_data

_CPU = torch.device("cpu")
_ROWS = (("product", ""), ("liplt", ""), ("smallgain", "layer"), ("smallgain", "channel"), ("smallgain", "neuron"))
_LARGE_ROWS = (("liplt", ""), ("smallgain", "layer"))
_SECONDS = float(os.environ.get("LIPCERT_SECONDS", "120"))


def _bounded(graph: Graph, method: str, scaling: str, **options: Any) -> tuple[Bound, float]:
    """The pairwise bound, and the seconds that it takes."""
    began = time.perf_counter()
    choice = {"method": method, "scaling": scaling or "auto", "scope": "pairwise", "seconds": _SECONDS}
    bound = graph_bound(graph, **choice, **options)
    return bound, time.perf_counter() - began


def _large() -> None:
    torch.manual_seed(0)
    graph = trace(build("8c2f", input_shape=(3, 64, 64), num_classes=200).eval(), (3, 64, 64))
    print("\n8C2F, fresh weights, 3×64×64, 200 classes: pairwise")
    print(f"{'method':>10} {'scaling':>8} {'guarantee':>10} {'mean L':>9} {'slack':>8} {'seconds':>8} {'GiB':>5}")
    off = ~torch.eye(200, dtype=torch.bool)
    for guarantee in ("estimate", "upper"):
        for method, scaling in _LARGE_ROWS:
            bound, seconds = _bounded(graph, method, scaling, guarantee=guarantee, slack=8e-3)
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            slack = f"{bound.slack:8.1e}" if isinstance(bound, UpperBound) else f"{'–':>8}"
            head = f"{method:>10} {scaling:>8} {guarantee:>10}"
            print(f"{head} {float(bound.value[off].mean()):9.5f} {slack} {seconds:8.1f} {memory:5.1f}", flush=True)


def main() -> None:
    """Print a table for each run; ratios are means over pairs of classes."""
    if os.environ.get("LIPCERT_LARGE"):
        _large()
    for run in runs():
        data, epsilons = run.test_data(), run.config.train.eval_epsilons
        graph = trace(run.module, run.shape)
        off = ~torch.eye(graph.output_shape[0], dtype=torch.bool)
        base: torch.Tensor | None = None
        print(f"\n{run.name}: {len(data):,} images, pairwise, proved; certified in real arithmetic")
        at = "".join(f"{f'at {e:.4g}':>12}" for e in epsilons)
        print(f"{'method':>10} {'scaling':>8} {'mean L':>9} {'/ LipLT':>8} {'slack':>8} {'seconds':>8}{at}")
        for method, scaling in _ROWS:
            bound, seconds = _bounded(graph, method, scaling, guarantee="upper")
            assert isinstance(bound, UpperBound)
            values = bound.value[off]
            base = values if method == "liplt" else base
            ratio = f"{float((values / base).mean()):8.4f}" if base is not None else f"{'–':>8}"
            found = certify_data(graph, bound, data, device=_CPU, precision="real")
            shares = "".join(f"{100 * found.robust_accuracy(e):>11.2f}%" for e in epsilons)
            print(
                f"{method:>10} {scaling:>8} {float(values.mean()):9.4f} {ratio} {bound.slack:8.1e} {seconds:8.1f}"
                + shares,
                flush=True,
            )
        began = time.perf_counter()
        x, _ = next(iter(Batches(data, 64, shuffle=False, seed=0, device=_CPU).epoch(0)))
        below = lower_bound(graph, x, scope="pairwise", input_range=(0.0, 1.0), steps=30)
        seconds = time.perf_counter() - began
        values = below.value[off]
        assert base is not None
        ratio = f"{float((values / base).mean()):8.4f}"
        print(f"{'points':>10} {'':>8} {float(values.mean()):9.4f} {ratio} {'':>8} {seconds:8.1f}", flush=True)


if __name__ == "__main__":
    main()
