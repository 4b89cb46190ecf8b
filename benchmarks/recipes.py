"""Settings of a training beside each other, judged on images that were held out of the training set.

    python -m benchmarks.recipes CONFIG [section.key=value …] --try 'section.key=value …' [--try …] [--seeds 0]

A line for each ``--try`` on top of what is common to all: clean accuracy, and accuracy at the radii of the
configuration with the bound estimated, on images held out of the training set; the test images are not looked at.
Every run goes on where it was stopped, and none that is finished is trained again. With ``--smallgain S`` a second line
has what small gain makes of it (an estimate too, a weight a channel, S seconds of search), and with ``--local N`` a
third one what is certified around each sample of N of the held-out images, from a proved bound of S seconds of search,
in real arithmetic.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.training import run_name, trained
from lipcert import certify, lipschitz
from lipcert.data import load
from lipcert.data.splits import split
from lipcert.train import RunFolder, load_config
from lipcert.train.evaluate import evaluate

_HELD_OUT = "data.validation=0.1"


def _by_small_gain(folder: RunFolder, seconds: float, data: Path | None) -> list[float]:
    """Shares of the held-out images: clean, and at the radii of the configuration."""
    module, header = folder.load_model()
    config = folder.config()
    bound = lipschitz(
        module,
        header["input_shape"],
        method="smallgain",
        scope="pairwise",
        scaling="channel",
        seconds=seconds,
    )
    held_out = split(load(config.data.name, "train", root=data), config.data.validation, config.seed)[1]
    found, _ = evaluate(module, held_out, bound, config.train.eval_epsilons, device=torch.device("cpu"))
    return [found.clean, *found.robust.values()]


def _locally(folder: RunFolder, seconds: float, count: int, data: Path | None) -> list[float]:
    """Shares of some of the held-out images: clean, and certified around each sample."""
    module, _ = folder.load_model()
    config = folder.config()
    held_out = split(load(config.data.name, "train", root=data), config.data.validation, config.seed)[1]
    some = held_out.subset(slice(0, count * (len(held_out) // count), len(held_out) // count))
    epsilons = list(config.train.eval_epsilons)
    how: dict[str, Any] = {"method": "smallgain", "scaling": "channel", "seconds": seconds}
    x = some.images.float() / 255
    found = certify(module.eval(), x, some.labels, **how, precision="real", local=epsilons)
    return [found.clean_accuracy, *(found.certified_accuracy(e) for e in epsilons)]


def main(
    config: str,
    overrides: Sequence[str] = (),
    *,
    tries: Sequence[str] = ("",),
    seeds: Sequence[int] = (0,),
    data: Path | None = None,
    out: Path = Path("runs/recipes"),
    smallgain: float | None = None,
    local: int = 0,
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
            if smallgain is not None:
                began = time.perf_counter()
                better = _by_small_gain(folder, smallgain, data)
                shown = " " * 9 + "".join(f"{100 * s:>9.2f}" for s in better)
                print(f"{'':>4} {time.perf_counter() - began:>8.0f}{shown}    by small gain", flush=True)
            if smallgain is not None and local:
                began = time.perf_counter()
                shown = " " * 9 + "".join(f"{100 * s:>9.2f}" for s in _locally(folder, smallgain, local, data))
                print(f"{'':>4} {time.perf_counter() - began:>8.0f}{shown}    around each of {local}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipes", description=__doc__)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", default=[])
    parser.add_argument("--try", dest="tries", action="append", default=[], help="settings of one line")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=Path("runs/recipes"))
    parser.add_argument("--smallgain", type=float, default=None, metavar="S", help="seconds to look for small gain too")
    parser.add_argument("--local", type=int, default=0, metavar="N", help="held-out images to certify around each")
    given = vars(parser.parse_args())
    main(**{**given, "tries": given["tries"] or [""]})
