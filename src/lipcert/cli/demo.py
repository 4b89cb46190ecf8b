"""``lipcert demo``: the whole of the main job on data that needs no download."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from lipcert.certify.radius import Radii
from lipcert.cli.certify import certify_run
from lipcert.cli.common import console, folder_name, guarded, say, table
from lipcert.cli.moons import draw, playground
from lipcert.data import load
from lipcert.errors import ConfigError, LipcertError
from lipcert.shown import percent, radius
from lipcert.train import RunFolder, Trainer, load_config
from lipcert.train.progress import Reporter

__all__ = ["demo"]

_RUNS = {  # name: folder, changes to the configuration
    "cross-entropy": ("cross-entropy", ['loss={kind="ce"}', "name=digits-mlp-ce"]),
    "CRM, LipLT": ("crm", []),
    "CRM, small gain": ("crm-smallgain", ["bound.method=smallgain", "name=digits-mlp-crm-smallgain"]),
}
_AT = (0.05, 0.1)  # radii of the points in the plane
_COLOURS = ("#888888", "#1f5fbf", "#c2571a")


def demo(
    out: Annotated[
        Path, typer.Option("--out", help="Where the runs and the picture go.", parser=folder_name, metavar="PATH")
    ] = Path("runs/demo"),
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    epochs: Annotated[
        int | None, typer.Option("--epochs", min=1, help="Train for less, or more.", show_default="60")
    ] = None,
    two_moons: Annotated[
        bool, typer.Option("--two-moons", help="Instead: the idea in a picture, on points in the plane.")
    ] = False,
) -> None:
    """Train on scikit-learn's digits with plain cross-entropy and with CRM, certify all, and draw the curves.

    Takes well under a minute, and no network. Run again it goes on where it was, and repeats nothing that is done.
    """
    if two_moons:
        if epochs is not None:
            raise typer.BadParameter("--epochs is not for --two-moons")
        _moons(out, seed)
        return
    device = torch.device("cpu")
    torch.set_num_threads(1)  # a net this small only loses time to handing work between threads
    with guarded("Go on with the same command."):
        data = load("digits", "test")
        results: dict[str, tuple[dict[str, float], Radii]] = {}
        for name, (where, changes) in _RUNS.items():
            folder = RunFolder(out / where)
            length = [] if epochs is None else [f"train.epochs={epochs}"]
            config = load_config("digits-mlp-crm", [*changes, *length, f"seed={seed}"])
            if folder.exists and folder.config() != config:
                raise ConfigError(f"{folder.path} holds another run: choose another --out, or delete it.")
            Trainer(config, folder.path, device=device, reporter=Reporter()).fit(resume=folder.exists)
            epsilons = list(folder.config().train.eval_epsilons)
            document, radii, _ = certify_run(
                folder,
                data,
                bounding={"method": "smallgain", "scaling": "neuron", "scope": "pairwise", "guarantee": "upper"},
                epsilons=epsilons,
                device=device,
            )
            results[name] = {"clean": document["clean_accuracy"], **document["accuracy_at"]}, radii
    columns = list(next(iter(results.values()))[0])
    names = [c if c == "clean" else f"certified at {radius(float(c))}" for c in columns]
    shown = table("trained with", *names)
    for name, (numbers, _) in results.items():
        shown.add_row(name, *(percent(numbers[c]) for c in columns))
    say(f"\nDigits, {len(data)} test images. Proved ℓ2 radii (small gain, pairwise), pixels in [0, 1]:")
    console.print(shown)
    with guarded():
        say(f"\nThe whole curve: {_draw({name: r for name, (_, r) in results.items()}, out / 'certified.png')}")


def _moons(out: Path, seed: int) -> None:
    torch.set_num_threads(1)
    with guarded():
        out.mkdir(parents=True, exist_ok=True)
        grounds = playground(seed)
        shown = table("trained with", "right", *(f"certified at {e:g}" for e in _AT), "mean radius")
        shown.columns[0].no_wrap = True
        for g in grounds:
            shares = [percent(g.radii.robust_accuracy(e)) for e in (0.0, *_AT)]
            shown.add_row(g.title, *shares, f"{float(g.radii.radius[g.radii.correct].mean()):.4f}")
        console.print(shown)
        say(f"The picture: {draw(grounds, seed, out / 'two-moons.png')}")


def _draw(results: dict[str, Radii], path: Path) -> Path:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise LipcertError("the picture needs matplotlib: pip install 'lipcert[demo]'") from error
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    top = max(float(r.radius[r.correct].max()) for r in results.values())
    grid = torch.linspace(0, top, 400).tolist()
    for (name, r), colour in zip(results.items(), _COLOURS, strict=True):
        axes.plot(grid, [100 * r.robust_accuracy(e) for e in grid], label=name, color=colour, linewidth=2)
    axes.set(xlabel="ℓ2 radius, pixels in [0, 1]", ylabel="certified accuracy, %", ylim=(0, 100), xlim=(0, top))
    axes.set_title("Digits: provably unchanged within the radius", loc="left")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path
