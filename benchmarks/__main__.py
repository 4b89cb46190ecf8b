"""`python -m benchmarks NAME…`: the benchmarks that are named, or all of the quick ones."""

from __future__ import annotations

import argparse
import platform

import torch

from benchmarks import (
    adversary,
    check,
    curves,
    epoch,
    gpu,
    heads,
    homogeneity,
    mlps,
    parts,
    precision,
    smallgain,
    stack,
    step,
    training,
    upper,
)

QUICK = {"check": check.main, "parts": parts.main, "step": step.main, "heads": heads.main, "epoch": epoch.main}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    known = [
        *QUICK,
        "gpu",
        "upper",
        "precision",
        "curves",
        "adversary",
        "mlps",
        "smallgain",
        "stack",
        "homogeneity",
        "training",
    ]
    parser.add_argument("names", nargs="*", choices=[[], *known], help="which; all of the quick ones if none is named")
    parser.add_argument("--nets", type=int, default=10_000, help="how many networks the adversary attacks")
    options = parser.parse_args()
    functions = QUICK | {
        "upper": upper.main,
        "gpu": gpu.main,
        "precision": precision.main,
        "curves": curves.main,
        "homogeneity": homogeneity.main,
        "mlps": mlps.main,
        "smallgain": smallgain.main,
        "stack": stack.main,
        "training": training.main,
        "adversary": lambda: adversary.main(options.nets),
    }
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name in options.names or QUICK:
        print(f"\n== {name}")
        functions[name]()


if __name__ == "__main__":
    main()
