"""``lipcert models``, ``lipcert datasets`` and ``lipcert configs``: what there is."""

from __future__ import annotations

from lipcert import data, models, zoo
from lipcert.certify import read_certificate
from lipcert.cli.common import DataOption, JsonOption, console, emit, guarded, say, table
from lipcert.shown import percent, radius
from lipcert.train import available_configs, load_config
from lipcert.train.evaluate import radius_key

__all__ = ["configs", "datasets", "list_models", "list_zoo"]


def list_models(as_json: JsonOption = False) -> None:
    """List the models that can be built by name, with their options."""
    found = {name: models.options_of(name) for name in models.available()}
    if as_json:
        emit(found)
        return
    shown = table("model", "options and their defaults")
    shown.columns[1].justify = "left"
    for name, options in found.items():
        shown.add_row(name, ", ".join(f"{k}={v!r}" for k, v in options.items()).replace("[", r"\["))
    console.print(shown)


def list_zoo(as_json: JsonOption = False) -> None:
    """List the trained models that lipcert comes with, and what is certified of them.

    A name of these stands for a run's folder: `lipcert certify NAME`.
    """
    with guarded():
        found = {name: (zoo.folder(name).config(), read_certificate(zoo.certificate(name))) for name in zoo.available()}
    if as_json:
        emit(
            {
                name: {
                    "data": config.data.name,
                    "model": config.model.name,
                    "loss": config.loss.kind,
                    "bound": c.bound.method,
                    "precision": c.precision.arithmetic,
                    "clean": c.clean.share,
                    "certified": {radius_key(v.epsilon): v.share for v in c.certified},
                    "certificate": str(zoo.certificate(name)),
                }
                for name, (config, c) in found.items()
            }
        )
        return
    shown = table("name", "data", "clean", "certified", "for")
    shown.columns[0].no_wrap = True
    for name, (config, c) in found.items():
        radii = "\n".join(f"{percent(v.share)} at {radius(v.epsilon, 4)}" for v in c.certified)
        shown.add_row(name, config.data.name, percent(c.clean.share), radii, c.precision.arithmetic)
    console.print(shown)
    say("Certified at ℓ2 radii of the raw input, for execution in float32 or for the network of real arithmetic.")


def datasets(root: DataOption = None, as_json: JsonOption = False) -> None:
    """List the data sets that can be loaded by name, and where their files are looked for."""
    found = data.available()
    if as_json:
        emit(
            [
                {
                    "name": d.name,
                    "title": d.title,
                    "shape": d.shape,
                    "classes": d.num_classes,
                    "sizes": dict(d.sizes),
                    "layout": d.layout,
                    "downloadable": d.downloadable,
                    "citation": d.citation,
                }
                for d in found
            ]
        )
        return
    say(f"Looked for under {root or data.default_root()} (--data or LIPCERT_DATA).\n")
    for d in found:
        shape = "×".join(map(str, d.shape)) if d.shape else "any size"
        count = f", {d.num_classes} classes" if d.num_classes else ""
        fetch = ", --download fetches it" if d.downloadable else ""
        console.print(f"[bold]{d.name}[/bold]  {d.title}: {shape}{count}{fetch}", soft_wrap=True)
        say(f"    {d.layout}")


def configs(as_json: JsonOption = False) -> None:
    """List the ready configurations of `lipcert train`."""
    with guarded():
        found = {name: load_config(name) for name in available_configs()}
    if as_json:
        emit({name: config.to_dict() for name, config in found.items()})
        return
    shown = table("configuration", "data", "model", "loss", "epochs", between=2)  # 80 columns are enough
    shown.columns[0].no_wrap = True  # a name is to be copied
    for name, c in found.items():
        shown.add_row(name, c.data.name, c.model.name, c.loss.kind, str(c.train.epochs))
    console.print(shown)
