"""Trainings beside each other within a budget of seconds each, their certificates, tables and plots.

How many epochs fit into a budget is measured once for each way to train, by some steps of it, and written beside its
run: a study that was stopped goes on where it was, with the epochs that it began with.
"""

from __future__ import annotations

import csv
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.training import certified, run_name, trained
from lipcert.train import Interrupted, RunFolder, Trainer, load_config

_CPU = torch.device("cpu")
_WARM, _TIMED = 3, 12  # steps


@dataclass(frozen=True)
class Way:
    """A way to train: what is changed in a configuration, and how it is called in tables and plots.

    Attributes:
        label: in the table.
        config: a ready configuration, or a file.
        overrides: changes to it; ``EPOCHS`` in them stands for as many as fit into the budget.
        x: where it stands on the axis of a plot, if it has one.
    """

    label: str
    config: str
    overrides: tuple[str, ...] = ()
    x: float | None = None


@dataclass
class Settings:
    """What all studies take.

    Attributes:
        budget: seconds of training, each.
        out, data: folders of the results, and of the data sets.
        seeds: one training for each.
        prove: seconds of the search for a small-gain bound; 0 leaves proofs out, and has estimates by the bound that
            was trained with.
        overrides: of every configuration.
    """

    budget: float = 1800.0
    out: Path = Path("runs/studies")
    data: Path | None = None
    seeds: Sequence[int] = (0,)
    prove: float = 60.0
    overrides: Sequence[str] = ()


def epochs_in(seconds: float, config: str, overrides: Sequence[str], data: Path | None) -> int:
    """How many epochs of a training fit into that time here, by the pace of some steps; at least one."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(load_config(config, overrides), Path(folder) / "run", root=data, device=_CPU)
        paces = []
        for count in (_WARM, _TIMED):
            began, resume = time.perf_counter(), trainer.folder.exists
            try:
                trainer.fit(resume=resume, steps=count)
            except Interrupted:
                paces.append((time.perf_counter() - began) / count)
        each = paces[-1] * len(trainer.batches)
    return max(1, int(seconds / each))


def run_of(way: Way, seed: int, s: Settings, *changes: str) -> RunFolder:
    """The finished run of a way to train."""
    common = [*way.overrides, *s.overrides, *changes, f"seed={seed}"]
    name = run_name(way.config, *common, repr(s.budget))
    note = s.out / "runs" / f"{name}.json"
    if not note.exists():
        note.parent.mkdir(parents=True, exist_ok=True)
        found = epochs_in(s.budget, way.config, [c.replace("EPOCHS", "1") for c in common], s.data)
        note.write_text(json.dumps({"way": way.label, "config": way.config, "overrides": common, "epochs": found}))
    epochs = json.loads(note.read_text())["epochs"]
    common, length = [c.replace("EPOCHS", str(epochs)) for c in common], [f"train.epochs={epochs}"]
    if not any(c.startswith("train.eval_every") for c in changes):
        length.append(f"train.eval_every={epochs}")
    return trained(way.config, [*common, *length], s.out / "runs" / name, s.data)


def measured(way: Way, s: Settings) -> dict[str, Any]:
    """A row: label, x, epochs, seconds, clean, and shares at the configuration's radii; means over the seeds."""
    rows = []
    for seed in s.seeds:
        folder = run_of(way, seed, s)
        summary = folder.summary()
        assert summary is not None
        at = folder.config().train.eval_epsilons
        row: dict[str, Any] = {"epochs": summary["epochs"], "seconds": summary["training_seconds"]}
        if s.prove:
            for method in ("liplt", "smallgain"):
                clean, *shares = certified(folder, method, s.prove, s.data)
                row |= {"clean": clean, **{f"{method} {e:.4g}": v for e, v in zip(at, shares, strict=True)}}
        else:
            found = summary["estimated_certified_accuracy"]
            row |= {"clean": 100 * summary["clean_accuracy"]}
            row |= {f"estimate {float(e):.4g}": 100 * v for e, v in found.items()}
        rows.append(row)
    mean = {key: sum(r[key] for r in rows) / len(rows) for key in rows[0]}
    return {"way": way.label, "x": way.x, **mean}


def study(name: str, ways: Sequence[Way], s: Settings, *, x: str = "", log: bool = False) -> list[dict[str, Any]]:
    """Train, certify, and write a table; with ``x``, the name of an axis, a plot over it as well."""
    rows: list[dict[str, Any]] = []
    for way in ways:
        rows.append(measured(way, s))
        write_table(s.out / name, rows)  # what there is so far
        print("  ".join(f"{k} {_shown(v)}" for k, v in rows[-1].items() if v is not None), flush=True)
    if x:
        curves = {k: [(r["x"], r[k]) for r in rows] for k in rows[0] if k not in ("way", "x", "epochs", "seconds")}
        plot(s.out / f"{name}.png", curves, x, "%", title=f"{name}: {s.budget:g} s each", log=log)
    return rows


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """The rows as Markdown and CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = [k for k in rows[0] if any(r.get(k) is not None for r in rows)]
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    lines += [f"| {' | '.join(_shown(r.get(k, '')) for k in columns)} |" for r in rows]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")
    with path.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def plot(
    file: Path,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    x: str,
    y: str,
    *,
    title: str,
    log: bool = False,
    log_y: bool = False,
) -> None:
    """A line for each curve, into a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for i, (name, points) in enumerate(curves.items()):
        axes.plot(*zip(*points, strict=True), marker="osD^vPX*"[i % 8], markersize=4, label=name)
    axes.set(xlabel=x, ylabel=y, **({"xscale": "log"} if log else {}), **({"yscale": "log"} if log_y else {}))
    axes.set_title(title, loc="left")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    print(f"plot: {file}")


Experiment = Callable[[Settings], None]
