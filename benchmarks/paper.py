"""The paper's experiments, one command each, at any budget of training seconds.

    python -m benchmarks.paper EXPERIMENT [section.key=value …] [--budget SECONDS] [--seeds 0 1 2] [--data DIR]

Experiments: ``mnist`` and ``cifar10`` (the main table: losses and bounds), ``weight``, ``radius-cap`` and
``temperature`` (ablations of CRM on CIFAR-10), ``bounds`` (LipLT, product and small gain in training), ``clock`` and
``clock-mnist`` (certified accuracy over seconds of training), ``over-training`` (bounds over training), ``time`` (what
a bound costs by depth, classes and iterations; no training). Each writes a table (Markdown and CSV), and a plot where
there is an axis. The seconds of ``clock`` are those of a run's middle epoch, times epochs.

All distances are in pixels in [0, 1]. The published settings of CIFAR-10 are for pixels in [−1, 1]; `cifar10-6c2f-crm`
has them in these units.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from benchmarks.studies import Experiment, Settings, Way, plot, run_of, study, write_table
from lipcert import trace
from lipcert.bounds import graph_bound, lower_bound
from lipcert.models import build
from lipcert.train import Interrupted, Trainer, TrainingBound, crm_loss, load_config

_CIFAR, _MNIST = "cifar10-6c2f-quick", "mnist-4c3f-quick"
_RADIUS = 36 / 255


def _losses(config: str, epsilon: float, ramp: bool) -> list[Way]:
    grown = f"{{start=0.01,end={epsilon},epochs=[0,3]}}" if ramp else f"{epsilon}"
    own = f"{{kind='gloro-trades',epsilon={grown},weight=1.5}}"
    return [
        Way("cross-entropy", config, ("loss={kind='ce'}",)),
        Way("LMT, global product bound", config, (f"loss={{kind='lmt',epsilon={grown}}}", *_of("product", "global"))),
        Way("GloRo (TRADES), product bound", config, (f"loss={own}", *_of("product", "pairwise"))),
        Way("worst case of all classes, LipLT", config, (f"loss={{kind='lmt',epsilon={grown}}}",)),
        Way("CRM, product bound", config, _of("product", "pairwise")),
        Way("CRM, LipLT", config),
        Way("CRM, small gain", config, ("bound.method='smallgain'",)),
    ]


def _of(method: str, scope: str) -> tuple[str, str]:
    return f"bound.method='{method}'", f"bound.scope='{scope}'"


def _mnist(s: Settings) -> None:
    study("mnist", [*_losses(_MNIST, 1.58, True), Way("CRM as published, LipLT", "mnist-4c3f-crm", _soon())], s)


def _cifar(s: Settings) -> None:
    study("cifar10", [*_losses(_CIFAR, _RADIUS, False), Way("CRM as published, LipLT", "cifar10-6c2f-crm", _soon())], s)


def _soon() -> tuple[str, ...]:
    """The published settings start the robust term after some epochs, of which a budget may have none."""
    return ("loss.start_epoch=0", "schedule={kind='constant'}")


def _series(name: str, key: str, values: list[float], axis: str, *, log: bool = True) -> Experiment:
    def run(s: Settings) -> None:
        study(name, [Way(f"{key}={v:g}", _CIFAR, (f"{key}={v}",), v) for v in values], s, x=axis, log=log)

    return run


def _bounds(s: Settings) -> None:
    ways = {"LipLT": "liplt", "product": "product", "small gain": "smallgain"}
    for name, config in (("bounds-cifar10", _CIFAR), ("bounds-mnist", _MNIST)):
        study(name, [Way(k, config, (f"bound.method='{m}'",)) for k, m in ways.items()], s)


def _clock(name: str, ways: list[Way], epsilon: float) -> Experiment:
    def run(s: Settings) -> None:
        curves, rows = {}, []
        for way in ways:
            folder = run_of(way, s.seeds[0], s, "train.eval_every=1")
            metrics = folder.metrics()
            # the middle epoch's, times epochs: the machine may have been busy during some of them, or stopped
            pace = statistics.median(m["seconds"] for m in metrics)
            at = [pace * (i + 1) for i in range(len(metrics))]
            key = next(k for k in metrics[0]["estimated_certified"] if abs(float(k) - epsilon) < 1e-6)
            curves[way.label] = [(t, 100 * m["estimated_certified"][key]) for t, m in zip(at, metrics, strict=True)]
            rows += [
                {
                    "way": way.label,
                    "seconds": t,
                    "clean": 100 * m["clean"],
                    f"at {epsilon:.4g}": 100 * m["estimated_certified"][key],
                }
                for t, m in zip(at, metrics, strict=True)
            ]
            write_table(s.out / name, rows)
        plot(
            s.out / f"{name}.png", curves, "seconds of training", f"estimated certified at {epsilon:.4g}, %", title=name
        )

    return run


def _over_training(s: Settings) -> None:
    """All bounds of one network at every epoch of its training."""
    way = Way("CRM, LipLT", _CIFAR)
    folder = run_of(way, s.seeds[0], s)  # which says how many epochs there are
    config = load_config(folder.config_file, ["train.checkpoint_every=1"])
    rows, again = [], s.out / "runs" / "over-training"
    trainer = Trainer(config, again, root=s.data, device=torch.device("cpu"))
    for epoch in range(config.train.epochs):
        with suppress(Interrupted):
            trainer.fit(resume=trainer.folder.exists, steps=len(trainer.batches))
        graph = trace(trainer.deployed.eval(), trainer.train_data.input_shape)
        row = {"epoch": epoch + 1}
        for method in ("product", "liplt", "smallgain"):
            bound = graph_bound(graph, method=method, scope="pairwise", scaling="channel", seconds=s.prove or 30.0)  # type: ignore[arg-type]
            row[method] = float(bound.value.max())
        row["steepest pair seen"] = float(lower_bound(graph, scope="pairwise").value.max())
        rows.append(row)
        write_table(s.out / "over-training", rows)
    curves = {k: [(r["epoch"], r[k]) for r in rows] for k in rows[0] if k != "epoch"}
    plot(s.out / "over-training.png", curves, "epoch", "largest L of a pair", title="CIFAR-10, 6C2F, CRM", log_y=True)


def _mlp(depth: int, classes: int) -> nn.Module:
    return build("mlp", input_shape=(256,), num_classes=classes, widths=[256] * depth)


def _seconds(step: object, rounds: int = 12) -> float:
    found = []
    for _ in range(rounds + 2):
        began = time.perf_counter()
        step()  # type: ignore[operator]
        found.append(time.perf_counter() - began)
    return statistics.median(found[2:])


def _time(s: Settings) -> None:
    """A training step's pass, and a whole bound, by what they depend on."""
    rows = []
    cases = [("depth", d, 10, 1) for d in (1, 2, 4, 8, 16)]
    cases += [("classes", 4, c, 1) for c in (10, 50, 100, 200)]
    cases += [("iterations", 4, 10, i) for i in (1, 2, 5, 10)]
    for axis, depth, classes, iterations in cases:
        torch.manual_seed(0)
        net = _mlp(depth, classes)
        x, y = torch.rand(256, 256), torch.randint(classes, (256,))
        row: dict[str, object] = {"axis": axis, "depth": depth, "classes": classes, "iterations": iterations}

        def plain(net: nn.Module = net, x: torch.Tensor = x, y: torch.Tensor = y) -> None:
            nn.functional.cross_entropy(net(x), y).backward()

        row["cross-entropy, ms"] = 1e3 * _seconds(plain)
        for method in ("product", "liplt"):
            bound = TrainingBound(net, (256,), method=method, iterations=iterations)  # type: ignore[arg-type]

            def robust(
                net: nn.Module = net, x: torch.Tensor = x, y: torch.Tensor = y, bound: TrainingBound = bound
            ) -> None:
                crm_loss(net(x), y, bound(), temperature=5.0, radius_cap=1.0, weight=1.0).backward()

            row[f"CRM, {method}, ms"] = 1e3 * _seconds(robust)
        graph = trace(net.eval(), (256,))
        for method in ("product", "liplt", "smallgain"):
            began = time.perf_counter()
            graph_bound(graph, method=method, scope="pairwise", guarantee="upper", scaling="layer")  # type: ignore[arg-type]
            row[f"{method} proved, s"] = time.perf_counter() - began
        rows.append(row)
        write_table(s.out / "time", rows)
        print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)
    for axis in ("depth", "classes", "iterations"):
        mine = [r for r in rows if r["axis"] == axis]
        curves = {k: [(r[axis], r[k]) for r in mine] for k in mine[0] if k.endswith("ms")}
        plot(s.out / f"time-{axis}.png", curves, axis, "ms a step", title="256 inputs, width 256, batch 256")  # type: ignore[arg-type]


_GLORO = "loss={kind='gloro-trades',epsilon=%s,weight=1.5}"
_BETTER = ("train.batch_size=128", "data.augment.shift=0.0625", "model.options.init='orthogonal'", "loss.weight=7.5")
_RAISED = "loss.weight={start=1.0,end=30.0,epochs=[0,3]}"  # at 30 from the first step it collapses to a constant
_CLOCK = [
    Way("CRM, lipcert's recipe", _CIFAR, _BETTER),
    Way("CRM, lipcert's recipe, lipres-s", "cifar10-lipres-s-half-hour", ("loss.weight.epochs=[0,EPOCHS]",)),
    Way("CRM, published settings", "cifar10-6c2f-crm", _soon()),
    Way("GloRo (TRADES), product bound", _CIFAR, (*_BETTER, _GLORO % _RADIUS, *_of("product", "pairwise"))),
]
_CLOCK_MNIST = [
    Way("CRM, lipcert's recipe", "mnist-4c3f-half-hour"),
    Way("CRM, published settings, λ raised over 3 epochs", "mnist-4c3f-crm", (*_soon(), _RAISED)),
    Way(
        "GloRo (TRADES), product bound",
        "mnist-4c3f-half-hour",
        (_GLORO % "{start=0.01,end=1.58,epochs=[0,3]}", *_of("product", "pairwise")),
    ),
]
EXPERIMENTS: dict[str, Experiment] = {
    "mnist": _mnist,
    "cifar10": _cifar,
    "weight": _series("weight", "loss.weight", [2, 5, 10, 15, 30], "λ, 1 per pixel unit"),
    "radius-cap": _series("radius-cap", "loss.radius_cap", [0.05, 0.1, 0.2, 0.4, 0.8], "r₀, pixel units"),
    "temperature": _series("temperature", "loss.temperature", [3, 6, 12, 24, 48], "t, 1 per pixel unit"),
    "bounds": _bounds,
    "clock": _clock("clock", _CLOCK, _RADIUS),
    "clock-mnist": _clock("clock-mnist", _CLOCK_MNIST, 1.58),
    "over-training": _over_training,
    "time": _time,
}


def main() -> None:
    """Run one experiment."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper", description=__doc__)
    parser.add_argument("experiment", choices=list(EXPERIMENTS))
    parser.add_argument(
        "overrides", nargs="*", default=[], help="of every configuration, such as data.name=cifar10-jpeg"
    )
    parser.add_argument("--budget", type=float, default=1800.0, help="seconds of each training")
    parser.add_argument("--prove", type=float, default=60.0, help="of the search for small gain; 0: estimates only")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=Path("runs/studies"))
    given = vars(parser.parse_args())
    EXPERIMENTS[given.pop("experiment")](Settings(**given))


if __name__ == "__main__":
    main()
