"""`python -m benchmarks [check|step|heads|epoch|upper]`: run one benchmark, or all of the quick ones."""

from __future__ import annotations

import argparse
import platform

import torch

from benchmarks import check, epoch, heads, step, upper

KNOWN = {"check": check.main, "step": step.main, "heads": heads.main, "epoch": epoch.main, "upper": upper.main}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *KNOWN], help="which; all if none is named")
    chosen = parser.parse_args().names or [name for name in KNOWN if name != "upper"]
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name in chosen:
        print(f"\n== {name}")
        KNOWN[name]()


if __name__ == "__main__":
    main()
