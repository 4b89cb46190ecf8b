"""A recipe from several seeds: each trained, its sums made short, certified on all test images; means over them.

    python -m benchmarks.seeds CONFIG [section.key=value …] [--then CONFIG] [--seeds 0 1 2] [--terms N] [--data DIR] \
        [--out DIR] --certify "lipcert certify's options"

With ``--then`` each goes on by a second configuration, of which the same keys are changed, before its sums are made
short. What is given as a seed is added to that of each configuration.

Every training goes on where it was stopped, and nothing that is finished is made again: ``OUT/seed-0`` is a run as
``lipcert train`` leaves it, ``OUT/seed-0-then`` what it went on to, ``OUT/seed-0-terms-N`` it with sums of
at most N products (``lipcert fold``), and ``OUT/seed-0-….json`` its certificate by these options, which says what its
radii hold for. The last line has means and, after ±, half of the distance between the least and the most.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.training import run_name, spread, trained
from lipcert.certify import Certificate, read_certificate
from lipcert.cli.main import app
from lipcert.train import RunFolder, load_config


def _lipcert(*arguments: str) -> None:
    if failed := app(list(arguments), standalone_mode=False):
        raise SystemExit(failed)


def _certificate(run: Path, terms: int | None, options: Sequence[str], data: Path | None) -> Certificate:
    """Of a finished run, made where it is not there yet."""
    short = run.with_name(f"{run.name}-terms-{terms}")
    file = run.with_name(f"{run.name}-{run_name(str(terms), *options)}.json")
    if terms is not None and not RunFolder(short).exists:
        _lipcert("fold", str(run), str(short), "--terms", str(terms))
    if not file.exists():
        where = () if data is None else ("--data", str(data))
        _lipcert("certify", str(run if terms is None else short), "--save", str(file), *where, *options)
    return read_certificate(file)


def main(
    config: str,
    overrides: Sequence[str] = (),
    *,
    then: str | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    terms: int | None = None,
    certify: str = "",
    data: Path | None = None,
    out: Path = Path("runs/seeds"),
) -> None:
    """Print a line for each seed, and one for all."""
    # a mistake in these is told before anything is trained
    stages = [(name, load_config(name, overrides).seed) for name in (config, then) if name is not None]
    rows: list[list[float]] = []
    for seed in seeds:
        folder, seconds = None, 0.0
        for i, (name, base) in enumerate(stages):
            run = out / f"seed-{seed}{'-then' * i}"
            folder = trained(name, [*overrides, f"seed={base + seed}"], run, data, folder)
            seconds += folder.summary()["training_seconds"]
        found = _certificate(run, terms, certify.split(), data)
        if not rows:
            at = "".join(f"{f'at {v.epsilon:.4g}':>15}" for v in found.certified)
            print(f"{', then '.join(name for name, _ in stages)} {' '.join(overrides)}; {found.precision.arithmetic}")
            print(f"{'seed':>6} {'seconds':>8} {'clean':>15}{at}")
        rows.append([100 * found.clean.share, *(100 * v.share for v in found.certified)])
        shares = "".join(f"{share:>15.2f}" for share in rows[-1])
        print(f"{seed:>6} {seconds:>8.0f} {shares}", flush=True)
    print(f"{'all':>6} {'':>8} " + "".join(f"{spread(column):>15}" for column in zip(*rows, strict=True)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.seeds", description=__doc__)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", default=[])
    parser.add_argument("--then", default=None, metavar="CONFIG", help="to go on with, from what the first has left")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--terms", type=int, default=None, help="products that are added up at a time, at most")
    parser.add_argument("--certify", default="", help="options of lipcert certify, in one argument")
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=Path("runs/seeds"))
    main(**vars(parser.parse_args()))
