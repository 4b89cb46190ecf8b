"""Settings of a training beside each other, judged on images that were held out of the training set.

    python -m benchmarks.recipes CONFIG [section.key=value …] --try 'section.key=value …' [--try …] [--seeds 0]

A line for each ``--try`` on top of what is common to all: clean accuracy, and accuracy at the radii of the
configuration with the bound estimated, on images held out of the training set; the test images are not looked at. Every
run goes on where it was stopped, and none that is finished is trained again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.training import run_name, trained
from lipcert.train import load_config

_HELD_OUT = "data.validation=0.1"


def main(
    config: str,
    overrides: Sequence[str] = (),
    *,
    tries: Sequence[str] = ("",),
    seeds: Sequence[int] = (0,),
    data: Path | None = None,
    out: Path = Path("runs/recipes"),
) -> None:
    """Print a line for each setting."""
    common = [_HELD_OUT, *overrides]
    settings = load_config(config, common)
    at = "".join(f"{f'at {e:.4g}':>9}" for e in settings.train.eval_epsilons)
    print(f"{config} {' '.join(common)}; {torch.get_num_threads()} threads")
    print(f"{'seed':>4} {'seconds':>8}{'train':>9}{'clean':>9}{at}  setting")
    for given in tries:
        for seed in seeds:
            every = [*common, *given.split(), f"seed={seed}"]
            every.append(f"train.eval_every={load_config(config, every).train.epochs}")
            folder = trained(config, every, out / run_name(config, *every), data)
            last, found = folder.metrics()[-1], folder.summary()
            shares = [last["train_accuracy"], found["clean_accuracy"]]
            shown = "".join(f"{100 * s:>9.2f}" for s in [*shares, *found["estimated_certified_accuracy"].values()])
            print(f"{seed:>4} {found['training_seconds']:>8.0f}{shown}  {given or '(as it is)'}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipes", description=__doc__)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", default=[])
    parser.add_argument("--try", dest="tries", action="append", default=[], help="settings of one line")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=Path("runs/recipes"))
    given = vars(parser.parse_args())
    main(**{**given, "tries": given["tries"] or [""]})
