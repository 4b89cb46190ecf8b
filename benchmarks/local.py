"""What local bounds add: certified accuracy by each global bound, alone and with local bounds; and seconds per image.

``LIPCERT_RUNS=DIR:DIR…`` names trained models, as `lipcert train` leaves them, with their data set found as usual.
The first ``LIPCERT_IMAGES`` (200) test images are certified, in real arithmetic if ``LIPCERT_PRECISION`` is not set.
"""

from __future__ import annotations

import os
import time
from typing import get_args

import torch

from benchmarks.runs import runs
from lipcert import trace
from lipcert.bounds import UpperBound, graph_bound
from lipcert.bounds.local import LocalBound
from lipcert.bounds.result import Method
from lipcert.certify.network import certified
from lipcert.loop import LoopMap

_METHODS = [m for m in ("liplt", "smallgain") if m in get_args(Method)]


def main() -> None:
    """Print a table for each run."""
    count, precision = int(os.environ.get("LIPCERT_IMAGES", "200")), os.environ.get("LIPCERT_PRECISION", "real")
    for run in runs():
        graph = trace(run.module, run.shape)
        batches, labels = run.first(count)
        print(f"\n{run.name}: the first {len(labels):,} test images, {precision}")
        for method in _METHODS:
            bound = graph_bound(graph, method=method, scope="pairwise", guarantee="upper")  # type: ignore[arg-type]
            assert isinstance(bound, UpperBound)
            began = time.perf_counter()
            alone = certified(graph, bound, batches, labels, precision)
            middle = time.perf_counter()
            LocalBound(LoopMap(graph, graph.resolve(torch.float64)), bound.hidden)
            prepared = time.perf_counter()
            local = certified(graph, bound, batches, labels, precision, local=True)
            ended = time.perf_counter()
            print(f"{'epsilon':>10} {method:>12} {'and local':>12}")
            for epsilon in run.config.train.eval_epsilons:
                shares = [100 * r.robust_accuracy(epsilon) for r in (alone, local)]
                print(f"{epsilon:>10.4g}" + "".join(f"{share:>12.2f}%" for share in shares))
            some = alone.correct & (alone.radius > 0)
            gained = (local.radius / alone.radius)[some]
            middling = ", ".join(f"{float(gained.quantile(q)):.3f}" for q in (0.1, 0.5, 0.9))
            print(f"radius, local / global, of the correct ones (10 %, median, 90 %): {middling}")
            preparing, before = prepared - middle, (middle - began) / len(labels)
            more = (ended - prepared - preparing) / len(labels) - before
            print(f"{before:.3f} s an image; with local bounds {more:.3f} s more, after {preparing:.1f} s")


if __name__ == "__main__":
    main()
