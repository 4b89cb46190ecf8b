"""Training with small gain in place of LipLT: the same configuration and seeds, both certified by both bounds.

    python -m benchmarks.training CONFIG [section.key=value …] [--seeds 0 1 2] [--data DIR] [--out DIR]

A third way is LipLT for as many more epochs (``--longer``) as small gain takes longer. Every run goes on where it was
stopped, and none that is finished is trained again. Certified on the whole test set in real arithmetic, by proved
bounds; shares are means over the seeds and, after ±, half of the distance between the least and the most.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from lipcert import trace
from lipcert.bounds import UpperBound, graph_bound
from lipcert.data import load
from lipcert.train import RunFolder, Trainer, load_config
from lipcert.train.evaluate import certify_data
from lipcert.train.progress import SilentReporter

_CPU = torch.device("cpu")
_METHODS = ("liplt", "smallgain")


def run_name(*what: str) -> str:
    """A folder's name for what a training is made from."""
    return hashlib.sha256(" ".join(what).encode()).hexdigest()[:12]


def trained(
    config: str, overrides: Sequence[str], out: Path, data: Path | None, start: RunFolder | None = None
) -> RunFolder:
    settings, folder = load_config(config, overrides), RunFolder(out)
    begin = None if folder.exists else start
    trainer = Trainer(settings, folder.path, root=data, device=_CPU, reporter=SilentReporter(), start=begin)
    trainer.fit(resume=folder.exists)
    return folder


def certified(folder: RunFolder, method: str, seconds: float, data: Path | None) -> list[float]:
    """Clean accuracy, and certified at each radius of the configuration, in per cent."""
    module, header = folder.load_model()
    graph, config = trace(module, tuple(header["input_shape"])), folder.config()
    options = {
        "scope": "pairwise",
        "guarantee": "upper",
        "scaling": config.bound.scaling or "channel",
        "seconds": seconds,
    }
    bound = graph_bound(graph, method=method, **options)  # type: ignore[arg-type]
    assert isinstance(bound, UpperBound)
    found = certify_data(graph, bound, load(config.data.name, "test", root=data), device=_CPU, precision="real")
    return [100 * found.clean_accuracy, *(100 * found.robust_accuracy(e) for e in config.train.eval_epsilons)]


def spread(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):6.2f} ± {(max(values) - min(values)) / 2:4.2f}"


def main(
    config: str = "digits-mlp-crm",
    overrides: Sequence[str] = (),
    *,
    seeds: Sequence[int] = (0, 1, 2),
    longer: int = 0,
    seconds: float = 300.0,
    data: Path | None = None,
    out: Path = Path("runs/training"),
) -> None:
    """Print a line for each way to train and to certify."""
    epochs = load_config(config, overrides).train.epochs
    ways = {"LipLT": [], "small gain": ["bound.method=smallgain"]}
    if longer:
        ways[f"LipLT, {epochs + longer} epochs"] = [f"train.epochs={epochs + longer}"]
    at = "".join(f"{f'at {e:.4g}':>15}" for e in load_config(config, overrides).train.eval_epsilons)
    print(f"{config} {' '.join(overrides)}: {len(seeds)} seeds")
    print(f"{'trained with':>20} {'certified by':>13} {'seconds':>8} {'clean':>15}{at}")
    for way, changes in ways.items():
        folders, began = [], time.perf_counter()
        for seed in seeds:
            name = f"{way.replace(' ', '-').replace(',', '')}-{seed}".lower()
            folders.append(trained(config, [*overrides, *changes, f"seed={seed}"], out / name, data))
        each = (time.perf_counter() - began) / len(seeds)
        for method in _METHODS:
            rows = [certified(folder, method, seconds, data) for folder in folders]
            shares = "".join(f"{spread(column):>15}" for column in zip(*rows, strict=True))
            print(f"{way:>20} {method:>13} {each:>8.1f} {shares}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("config", nargs="?", default="digits-mlp-crm")
    parser.add_argument("overrides", nargs="*", default=[])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--longer", type=int, default=0, help="epochs more, for a third way")
    parser.add_argument("--seconds", type=float, default=300.0, help="of the search for each small-gain bound")
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=Path("runs/training"))
    main(**vars(parser.parse_args()))
