"""Product, LipLT and small gain of trained networks: bounds, certified accuracy and seconds; and a lower bound.

``LIPCERT_RUNS=DIR:DIR…`` names trained models, as `lipcert train` leaves them, with their data set found as usual.
"""

from __future__ import annotations

import time

import torch

from benchmarks.runs import runs
from lipcert import trace
from lipcert.bounds import UpperBound, graph_bound, lower_bound
from lipcert.data import Batches
from lipcert.train.evaluate import certify_data

_CPU = torch.device("cpu")
_ROWS = (("product", ""), ("liplt", ""), ("smallgain", "layer"), ("smallgain", "channel"), ("smallgain", "neuron"))
_SECONDS = 120.0


def main() -> None:
    """Print a table for each run; ratios are means over pairs of classes."""
    for run in runs():
        data, epsilons = run.test_data(), run.config.train.eval_epsilons
        graph = trace(run.module, run.shape)
        off = ~torch.eye(graph.output_shape[0], dtype=torch.bool)
        base: torch.Tensor | None = None
        print(f"\n{run.name}: {len(data):,} images, pairwise, proved; certified in real arithmetic")
        at = "".join(f"{f'at {e:.4g}':>12}" for e in epsilons)
        print(f"{'method':>10} {'scaling':>8} {'mean L':>9} {'/ LipLT':>8} {'slack':>8} {'seconds':>8}{at}")
        for method, scaling in _ROWS:
            began = time.perf_counter()
            bound = graph_bound(
                graph,
                method=method,  # type: ignore[arg-type]
                scope="pairwise",
                guarantee="upper",
                scaling=scaling or "auto",
                seconds=_SECONDS,
            )
            seconds = time.perf_counter() - began
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
