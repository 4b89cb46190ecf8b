"""Proved upper bounds of the published networks at their real input sizes: slack, seconds and memory.

For each network with the randomised test at two slacks, and without any (``failure=0``: explicit matrices and Gram
matrices only). ``LIPCERT_RUNS=DIR:DIR…`` adds trained models, as `lipcert train` leaves them; ``LIPCERT_LARGE=1`` adds
8C2F, which takes some minutes, at the first slack only.
"""

from __future__ import annotations

import os
import resource
import time
from collections import Counter

import torch
from torch import nn

from benchmarks.runs import runs
from lipcert.bounds import UpperBound, lipschitz
from lipcert.models import build

_PUBLISHED = {"4c3f": ((1, 28, 28), 10), "6c2f": ((3, 32, 32), 10), "8c2f": ((3, 64, 64), 200)}


_SETTINGS = ((8e-3, 1e-12), (1e-3, 1e-12), (1e-3, 0.0))  # slack, probability of failure


def _models() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    found: dict[str, tuple[nn.Module, tuple[int, ...]]] = {}
    for run in runs():
        found[run.name] = run.module, run.shape
    for name, (shape, classes) in _PUBLISHED.items():
        if name == "8c2f" and not os.environ.get("LIPCERT_LARGE"):
            continue
        torch.manual_seed(0)
        found[f"{name}, fresh weights"] = build(name, input_shape=shape, num_classes=classes).eval(), shape
    return found


def main() -> None:
    """Print one line for each network and slack; memory is the process's highest so far."""
    columns = f"{'network':>24} {'aim':>7} {'highest L':>12} {'upper / seen − 1':>17} {'failure':>8}"
    print(f"{columns} {'s':>7} {'GiB':>5}  norms")
    for name, (module, shape) in _models().items():
        for slack, failure in _SETTINGS if "8c2f" not in name else _SETTINGS[:1]:
            began = time.perf_counter()
            bound = lipschitz(module, shape, scope="pairwise", guarantee="upper", slack=slack, failure=failure)
            seconds = time.perf_counter() - began
            assert isinstance(bound, UpperBound)
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            methods = dict(Counter(n.method for n in bound.norms.values()))
            print(
                f"{name:>24} {slack:>7.0e} {bound.ends()[1]:>12.6g} {bound.slack:>17.2e} {bound.failure:>8.0e} "
                f"{seconds:>7.1f} {memory:>5.1f}  {methods}",
                flush=True,
            )


if __name__ == "__main__":
    main()
